"""Comparisons: on the output's own scale, as bioimageio.core does it, and as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from gap_bioimage.validation.outcome import Evidence, Outcome
from gap_bioimage.validation.run.reference import (
    Tolerance,
    draw_evidence,
    keep_evidence,
    mismatched_ppm,
    not_finite,
    read_pictures,
    relative_rms,
)

if TYPE_CHECKING:
    from pathlib import Path

RAMP = np.linspace(0, 1, 64).reshape(1, 1, 8, 8)
BCYX = ("batch", "channel", "y", "x")


def test_relative_rms_depends_neither_on_scale_nor_on_offset() -> None:
    noisy = RAMP + 0.01 * np.random.default_rng(0).standard_normal(RAMP.shape)
    assert relative_rms(noisy, RAMP) == pytest.approx(relative_rms(1e-9 * noisy, 1e-9 * RAMP))
    assert relative_rms(noisy, RAMP) == pytest.approx(relative_rms(noisy + 1e3, RAMP + 1e3), rel=1e-6)
    assert relative_rms(np.full(9, 1.1), np.ones(9)) == pytest.approx(0.1)  # of a constant
    pairs = ((RAMP[..., :4], RAMP), (np.full_like(RAMP, np.nan), RAMP), (np.ones(3), np.zeros(3)))
    assert {relative_rms(*pair) for pair in pairs} == {np.inf}
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0


def test_numbers_agree_with_numbers_only() -> None:
    assert mismatched_ppm(np.flip(1e-4 * RAMP), 1e-4 * RAMP, Tolerance()) == 0  # core accepts anything small
    assert mismatched_ppm(np.flip(RAMP), RAMP, Tolerance()) > 5e5
    broken = RAMP.copy()
    one = pytest.approx(1e6 / RAMP.size)
    for value in (np.nan, np.inf):
        broken.flat[0] = value
        assert mismatched_ppm(broken, RAMP, Tolerance()) == mismatched_ppm(RAMP, broken, Tolerance()) == one
        assert mismatched_ppm(broken, broken, Tolerance()) == 0
    assert mismatched_ppm(broken, -broken, Tolerance(rtol=3)) == one
    assert mismatched_ppm(RAMP[..., :4], RAMP, Tolerance()) == 1e6


def test_values_that_are_no_numbers_are_counted() -> None:
    array = np.array([0.0, np.nan, np.inf, -np.inf])
    assert not_finite({"a": array[:1], "n": np.arange(3)}) == ""
    assert not_finite({"a": array, "b": array[:2]}) == "3 of 4 values of 'a', 1 of 2 values of 'b' are NaN or infinite"


def test_what_failed_is_kept_and_what_passed_is_drawn_on_request(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).random((1, 1, 8, 12))
    item = Evidence("../rate, é", BCYX, expected, expected + 1, expected * 2)
    failed, passed = (Outcome(status, "x", "", (item,)) for status in ("failed", "passed"))
    keep_evidence("run.reproduces", failed, keep=tmp_path / "new", pictures=None)
    stem = "run.reproduces_.._rate_"  # names stay inside the folder
    names = sorted(path.name.removeprefix(stem) for path in (tmp_path / "new").iterdir())
    assert names == [".png", "_expected.npy", "_given.npy", "_got.npy"]
    assert np.array_equal(np.load(tmp_path / "new" / f"{stem}_got.npy"), item.got)
    assert keep_evidence("run.reproduces", passed, keep=tmp_path / "a", pictures=None) == []
    (drawn,) = keep_evidence("run.reproduces", passed, keep=tmp_path / "a", pictures=tmp_path / "b")
    assert not (tmp_path / "a").exists()
    (picture,) = read_pictures([("run.reproduces", *drawn), ("run.zero", "gone", tmp_path / "gone.png")])
    assert (picture.title, picture.png[:4]) == (item.title, b"\x89PNG")


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (np.full((1, 1, 8, 8), np.nan), np.full((1, 1, 8, 8), np.inf)),
        (np.ones((1, 1, 8, 8), np.uint8), np.zeros((1, 1, 9, 7), np.uint8)),
        (np.ones((1, 3, 5, 8, 400)), np.ones((1, 3, 5, 8, 400))),
        (np.ones(()), np.ones(())),
    ],
)
def test_anything_can_be_drawn(tmp_path: Path, expected: np.ndarray, got: np.ndarray) -> None:
    draw_evidence(tmp_path / "x.png", Evidence("x", BCYX, expected, got))
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > image.height > 100
