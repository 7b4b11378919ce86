"""Comparisons: on the output's own scale, as bioimageio.core does it, and as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from gap_bioimage.validation.outcome import Evidence, Outcome
from gap_bioimage.validation.run.compare import (
    Tolerance,
    _plane,
    core_tolerance,
    draw_evidence,
    keep_evidence,
    mismatched_ppm,
    not_finite,
    read_pictures,
    relative_rms,
    wrong_versions,
)

if TYPE_CHECKING:
    from pathlib import Path

RAMP = np.linspace(0, 1, 64).reshape(1, 1, 8, 8)


def test_relative_rms_does_not_depend_on_scale() -> None:
    noisy = RAMP + 0.01 * np.random.default_rng(0).standard_normal(RAMP.shape)
    assert relative_rms(noisy, RAMP) == pytest.approx(relative_rms(1e-9 * noisy, 1e-9 * RAMP))
    assert relative_rms(noisy, RAMP) == pytest.approx(relative_rms(noisy + 1e3, RAMP + 1e3), rel=1e-6)


def test_relative_rms_of_what_cannot_be_compared_is_infinite() -> None:
    assert relative_rms(RAMP[..., :4], RAMP) == np.inf
    assert relative_rms(np.full_like(RAMP, np.nan), RAMP) == np.inf
    assert relative_rms(np.ones(3), np.zeros(3)) == np.inf
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0


def test_the_scale_may_be_the_magnitude() -> None:
    assert relative_rms(RAMP + 1.1, RAMP + 1.0, centred=False) == pytest.approx(0.1 / np.sqrt(np.mean((RAMP + 1) ** 2)))
    assert relative_rms(RAMP + 1.1, RAMP + 1.0) == pytest.approx(0.1 / RAMP.std())
    assert relative_rms(np.full(9, 1.1), np.ones(9)) == pytest.approx(0.1)  # of a constant it is


def test_core_accepts_anything_small() -> None:
    small = 1e-4 * RAMP
    assert mismatched_ppm(np.flip(small), small, Tolerance()) == 0
    assert mismatched_ppm(np.flip(RAMP), RAMP, Tolerance()) > 5e5


def test_numbers_agree_with_numbers_only() -> None:
    broken = RAMP.copy()
    broken.flat[0] = np.nan
    one = 1e6 / RAMP.size
    assert mismatched_ppm(broken, RAMP, Tolerance()) == mismatched_ppm(RAMP, broken, Tolerance()) == pytest.approx(one)
    assert mismatched_ppm(broken, broken, Tolerance()) == 0
    broken.flat[0] = np.inf
    assert mismatched_ppm(broken, RAMP, Tolerance()) == mismatched_ppm(RAMP, broken, Tolerance()) == pytest.approx(one)
    assert mismatched_ppm(broken, -broken, Tolerance(rtol=3)) == pytest.approx(one)


def test_values_that_are_no_numbers_are_counted() -> None:
    array = np.array([0.0, np.nan, np.inf, -np.inf])
    assert not_finite({"a": array[:1], "n": np.arange(3)}) == ""
    assert not_finite({"a": array, "b": array[:2]}) == "3 of 4 values of 'a', 1 of 2 values of 'b' are NaN or infinite"
    assert not_finite({"b": array[:2]}) == "1 of 2 values of 'b' is NaN or infinite"


def test_core_tolerance_is_taken_from_the_description() -> None:
    entry = {"absolute_tolerance": 1e-5, "output_ids": ["rate"]}
    rdf = {"config": {"bioimageio": {"reproducibility_tolerance": [entry]}}}
    assert core_tolerance(rdf, "rate").atol == 1e-5
    assert core_tolerance(rdf, "other") == Tolerance()
    assert core_tolerance({}, "rate") == Tolerance()


def test_wrong_versions_differ_from_the_expected_output() -> None:
    names = [name for name, _ in wrong_versions(RAMP, ("batch", "channel", "y", "x"))]
    assert names == ["mirrored along x", "mirrored along y", "shuffled"]
    symmetric = RAMP + np.flip(RAMP, axis=3)
    names = [name for name, _ in wrong_versions(symmetric, ("batch", "channel", "y", "x"))]
    assert names == ["mirrored along y", "shuffled"]
    assert list(wrong_versions(np.ones((2, 2)), ("y", "x"))) == []


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
