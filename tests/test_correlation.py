"""Noise of raw images is independent; what was done to them shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from gap_bioimage.photons.judging.correlation import neighbour_correlation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gap_bioimage.simulation import simulate

if TYPE_CHECKING:
    from pathlib import Path

Values = np.ndarray[Any, Any]


def white(shape: tuple[int, ...] = (256, 256), seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(100, 10, shape)


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(12, 12), (64, 64), (40, 100), (5, 32, 32), (2, 3, 30, 30)]),
    log_mean=st.floats(-2, 3),
    repeats=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_independent_counts_are_never_correlated(
    shape: tuple[int, ...], log_mean: float, repeats: bool, seed: int
) -> None:
    counts = np.random.default_rng(seed).poisson(10**log_mean, shape)
    assert not neighbour_correlation(counts, 0 if repeats and len(shape) > 2 else None).found


@pytest.mark.parametrize("frames", [2, 6])
def test_repeats_are_free_of_bright_structure(frames: int) -> None:
    rng = np.random.default_rng(3)
    scene = ndimage.gaussian_filter(rng.random((96, 96)), 0.7) ** 4 * 100_000
    noisy = rng.poisson(scene, (frames, 96, 96)).astype(float)
    assert abs(neighbour_correlation(noisy).largest) > 0.2
    assert abs(neighbour_correlation(noisy, 0).largest) < 0.05
    averaged = neighbour_correlation((noisy[..., 1:] + noisy[..., :-1]) / 2, 0)
    assert (averaged.y, averaged.x) == (pytest.approx(0, abs=0.05), pytest.approx(0.5, abs=0.05))


@pytest.mark.parametrize("repeats", [None, 0])
def test_the_error_is_that_of_the_estimate(repeats: int | None) -> None:
    found = [neighbour_correlation(white((6, 48, 48), seed), repeats) for seed in range(100)]
    deviations = np.array([(c.x / c.error, c.y / c.error) for c in found])
    assert 0.7 < deviations.std() < 1.3
    assert abs(deviations.mean()) < 4 / math.sqrt(deviations.size)


@pytest.mark.parametrize("shift", [(0.5, 0.0), (0.3, 0.2), (0.0, 0.4)])
@pytest.mark.parametrize("repeats", [None, 0])
def test_a_shift_by_part_of_a_pixel_leaves_its_own_correlation(shift: tuple[float, float], repeats: int | None) -> None:
    moved = ndimage.shift(white((16, 256, 256)), (0, *shift), order=1)[:, 2:, 2:]
    expected = [f * (1 - f) / (f**2 + (1 - f) ** 2) for f in shift]
    found = neighbour_correlation(moved, repeats)
    assert [found.y, found.x] == pytest.approx(expected, abs=5 * found.error)
    assert found.found
    assert found.error < 0.02


def change(name: str, image: Values) -> Values:
    changed: dict[str, Any] = {
        "smoothed": lambda: ndimage.gaussian_filter(image, 0.8),
        "median": lambda: ndimage.median_filter(image, 3),
        "enlarged": lambda: ndimage.zoom(image, 2, order=1),
        "repeated pixels": lambda: image.repeat(2, 0).repeat(2, 1),
        "turned": lambda: ndimage.rotate(image, 3, order=1, reshape=False, mode="reflect"),
    }
    values: Values = changed[name]()
    return values


@pytest.mark.parametrize("name", ["smoothed", "median", "enlarged", "repeated pixels", "turned"])
@pytest.mark.parametrize("photons", [0.5, 20.0])
def test_what_averages_pixels_correlates_them(name: str, photons: float) -> None:
    counts = simulate(2, (512, 512), photons)[0].values.astype(float)
    found = neighbour_correlation(change(name, counts))
    assert found.found
    assert min(found.y, found.x) > 0.1
    assert not neighbour_correlation(counts).found


def test_sharpening_makes_it_negative() -> None:
    found = neighbour_correlation(white() - ndimage.laplace(white()))
    assert found.found
    assert max(found.y, found.x) < -0.1
    assert found.largest == min(found.y, found.x)


def test_structure_that_stands_still_or_bleaches_leaves_no_trace_in_repeats() -> None:
    rng = np.random.default_rng(0)
    scene = 1000 * rng.random((100, 100))  # not resolved at all
    bleaching = np.linspace(1, 0.5, 20)[:, None, None]
    movie = scene * bleaching + rng.normal(0, 1, (20, 100, 100))
    stack = xr.DataArray(movie, dims=["t", "y", "x"])
    found = neighbour_correlation(stack)
    assert found.method == "repeats"
    assert not found.found
    assert neighbour_correlation(stack.expand_dims("c", axis=1)) == found
    assert neighbour_correlation(stack.transpose("t", "y", "x").rename(t="z")).method == "single image"


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((0, 5)),
        np.zeros((1, 1)),
        np.zeros((64, 64)),
        np.full((64, 64), 7),
        np.full((64, 64), np.nan),
        np.zeros((64, 64), complex),
        np.arange(64.0),
        np.array([["a"]]),
    ],
)
def test_nothing_is_known_of_images_without_noise(values: Values) -> None:
    found = neighbour_correlation(values)
    assert found.method == "none"
    assert not found.found
    assert found.largest == 0
    assert math.isnan(found.x)


def test_real_images(shared_data: Path) -> None:
    movie = tifffile.imread(shared_data / "telomeres_camera_tyx.tif")
    resampled = neighbour_correlation(movie, 0)
    assert resampled.found
    assert resampled.y == pytest.approx(0.46, abs=0.02)
    assert resampled.x == pytest.approx(0.13, abs=0.03)
    assert not neighbour_correlation(tifffile.imread(shared_data / "hazelnut_photons_t0_zyx.tif")).found
