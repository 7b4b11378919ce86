"""Arrays and pictures of what a model made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from gap_bioimage.validation.running.evidence import _plane, draw_evidence, keep_evidence, read_pictures
from PIL import Image

from gap_bioimage.validation.checks import Evidence, Outcome

if TYPE_CHECKING:
    from pathlib import Path

BCYX = ("batch", "channel", "y", "x")


def evidence(shape: tuple[int, ...] = (1, 1, 8, 12), axes: tuple[str, ...] = BCYX) -> Evidence:
    expected = np.random.default_rng(0).random(shape)
    return Evidence("rate, torchscript", axes, expected, expected + 1, expected * 2)


def test_what_failed_is_kept(tmp_path: Path) -> None:
    item = evidence()
    drawn = keep_evidence("run.reproduces", Outcome("failed", "x", "", (item,)), keep=tmp_path / "new", pictures=None)
    kept = sorted(path.name for path in (tmp_path / "new").iterdir())
    stem = "run.reproduces_rate_torchscript"
    assert kept == [f"{stem}.png", f"{stem}_expected.npy", f"{stem}_given.npy", f"{stem}_got.npy"]
    assert np.array_equal(np.load(tmp_path / "new" / f"{stem}_got.npy"), item.got)
    assert drawn == [("rate, torchscript", tmp_path / "new" / f"{stem}.png")]


def test_what_passed_is_drawn_on_request_only(tmp_path: Path) -> None:
    outcome = Outcome("passed", "x", "", (evidence(),))
    assert keep_evidence("run.reproduces", outcome, keep=tmp_path / "a", pictures=None) == []
    assert not (tmp_path / "a").exists()
    (drawn,) = keep_evidence("run.reproduces", outcome, keep=tmp_path / "a", pictures=tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert [path.suffix for path in (tmp_path / "b").iterdir()] == [".png"]
    (picture,) = read_pictures([("run.reproduces", *drawn), ("run.zero", "gone", tmp_path / "gone.png")])
    assert picture.png.startswith(b"\x89PNG")
    assert picture.title == "rate, torchscript"


def test_names_stay_inside_the_folder(tmp_path: Path) -> None:
    item = Evidence("../../outside/é x", BCYX, np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 4)))
    keep_evidence("run.zero", Outcome("failed", "x", "", (item,)), keep=tmp_path / "in", pictures=None)
    assert all(path.parent == tmp_path / "in" for path in tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 8, 8))),
        (np.full((1, 1, 8, 8), np.nan), np.full((1, 1, 8, 8), np.inf)),
        (np.ones((1, 1, 8, 8), np.uint8), np.zeros((1, 1, 9, 7), np.uint8)),
        (np.ones((1, 3, 5, 8, 400)), np.ones((1, 3, 5, 8, 400))),
        (np.ones((4,)), np.ones((4,))),
        (np.ones(()), np.ones(())),
    ],
)
def test_anything_can_be_drawn(tmp_path: Path, expected: np.ndarray, got: np.ndarray) -> None:
    draw_evidence(tmp_path / "x.png", Evidence("x", BCYX, expected, got))
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > image.height > 100


def test_the_plane_is_the_middle_one_of_the_first_image() -> None:
    volume = np.arange(2 * 3 * 5 * 4 * 6).reshape(2, 3, 5, 4, 6)
    assert np.array_equal(_plane(volume, ("batch", "channel", "z", "y", "x")), volume[0, 0, 2])
    assert np.array_equal(_plane(volume, ("batch", "channel", "z", "x", "y")), volume[0, 0, 2].T)
    assert np.array_equal(_plane(volume[0, 0], ("y", "x", "channel")), volume[0, 0, :, :, 0])
