"""Noise of images: variance against brightness, its correlation, and pixels that no photons explain."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gap_bioimage import filters
from gap_bioimage.camera.calibration import calibrate
from gap_bioimage.camera.moments import as_stack, moments_of, scan
from gap_bioimage.camera.noise import Correlation, correlation_of, curve_of, frame_correlation, hot_pixels

Values = np.ndarray[Any, Any]


def white(shape: tuple[int, ...] = (256, 256), seed: int = 0) -> Values:
    return np.random.default_rng(seed).normal(100, 10, shape)


def correlated(values: Values, time: int | None = None) -> Correlation:
    return correlation_of(moments_of(as_stack(values, time), in_time=time is not None))


@settings(max_examples=15, deadline=None)
@given(scale=st.sampled_from([1, 2, 5]), mean=st.floats(0.05, 60), seed=st.integers(0, 1000))
def test_statistics_of_pieces_are_exact(scale: int, mean: float, seed: int) -> None:
    values = scale * np.random.default_rng(seed).poisson(mean, (7, 5, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gap_bioimage.camera.moments._CHUNK_PX", 64)
        found = scan(values.transpose(1, 0, 2))
    top = values.max()
    assert (found.minimum, found.maximum, found.total) == (values.min(), top, values.sum())
    assert found.zeros == np.count_nonzero(values == 0)
    assert found.lattice == np.gcd.reduce(values, axis=None)
    assert found.at_maximum == np.count_nonzero(values == top)
    assert found.below_maximum == pytest.approx(np.mean([np.count_nonzero(values == top - i) for i in range(1, 6)]))


@pytest.mark.parametrize("mean", [0.01, 0.3, 30.0])
@pytest.mark.parametrize("in_time", [False, True])
def test_variance_of_poisson_on_a_ramp_is_its_mean(mean: float, in_time: bool) -> None:
    ramp = np.broadcast_to(np.linspace(0.5, 1.5, 512) * mean, (4, 512, 512))
    curve = curve_of(moments_of(np.random.default_rng(1).poisson(ramp)[None], in_time=in_time))
    assert curve is not None
    assert curve.dark == pytest.approx(1, abs=0.06)
    assert curve.bright == pytest.approx(1, abs=0.1)


def test_the_third_moment_of_poisson_is_its_mean_and_no_photons_tell_nothing() -> None:
    counts = np.random.default_rng(0).poisson(9.0, (1, 3, 64, 64))
    for in_time in (False, True):
        moments = moments_of(counts, in_time=in_time)
        error = math.sqrt(float(np.mean(moments.variance_of_third(np.full(1, 9.0), 1.0))) / len(moments.mean))
        assert moments.third.mean() == pytest.approx(9, abs=5 * error)
    assert curve_of(moments_of(np.zeros((1, 1, 64, 64)), in_time=False)) is None
    assert not correlated(np.zeros((64, 64))).found


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(12, 12), (64, 64), (40, 100), (5, 32, 32), (2, 3, 30, 30), (8, 24, 24)]),
    log_mean=st.floats(-2, 3),
    repeats=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_independent_counts_are_never_correlated(
    shape: tuple[int, ...], log_mean: float, repeats: bool, seed: int
) -> None:
    counts = np.random.default_rng(seed).poisson(10**log_mean, shape)
    assert not correlated(counts, 0 if repeats and len(shape) > 2 else None).found


@pytest.mark.parametrize("time", [None, 0])
def test_the_error_is_that_of_the_estimate(time: int | None) -> None:
    found = [correlated(white((5, 48, 48), seed), time) for seed in range(40)]
    deviations = np.array([(c.x / c.error, c.y / c.error) for c in found])
    assert 0.6 < deviations.std() < 1.3
    assert abs(deviations.mean()) < 4 / math.sqrt(deviations.size)


@pytest.mark.parametrize(("frames", "bleached"), [(2, 1.0), (6, 1.0), (20, 0.5)])
def test_structure_that_stands_still_or_bleaches_leaves_no_trace_in_repeats(frames: int, bleached: float) -> None:
    rng = np.random.default_rng(3)
    sharp = ndimage.gaussian_filter(rng.random((96, 96)), 0.7) ** 4 * 100_000
    noisy = rng.poisson(sharp * np.linspace(1, bleached, frames)[:, None, None]).astype(float)
    assert abs(correlated(noisy).largest) > 0.2
    assert abs(correlated(noisy, 0).largest) < 0.05
    assert frame_correlation(noisy[None]) == 0


@pytest.mark.parametrize("shift", [(0.5, 0.0), (0.3, 0.2)])
@pytest.mark.parametrize("time", [None, 0])
def test_a_shift_by_part_of_a_pixel_leaves_its_own_correlation(shift: tuple[float, float], time: int | None) -> None:
    moved = ndimage.shift(white((16, 256, 256)), (0, *shift), order=1)[:, 2:, 2:]
    expected = [f * (1 - f) / (f**2 + (1 - f) ** 2) for f in shift]
    found = correlated(moved, time)
    assert [found.y, found.x] == pytest.approx(expected, abs=5 * found.error)
    assert found.found


@pytest.mark.parametrize("mean", [0.05, 5.0, 300.0])
def test_hot_pixels_are_found_wherever_they_are_by_cameras_and_by_the_network(mean: float) -> None:
    def by_network(counts: Values) -> Values:
        return np.asarray(filters.hot_pixels(torch.from_numpy(counts.astype(np.float32))))

    counts = np.random.default_rng(0).poisson(mean, (3, 40, 50)).astype(np.uint16)
    hot = np.zeros(counts.shape, bool)
    for place in ((0, 0, 0), (0, 20, 20), (0, 20, 21), (1, 39, 30), (2, 10, 49)):
        hot[place] = True
    counts[hot] = 8 * mean + 120
    for found in (hot_pixels(counts), by_network(counts)):
        np.testing.assert_array_equal(found, hot)
    counts = np.zeros((60, 9, 9), np.uint16)
    counts[:, 4, 4] = np.arange(60)  # about the least that is hot
    np.testing.assert_array_equal(hot_pixels(counts), by_network(counts))


@pytest.mark.parametrize("seed", [0, 1])
def test_what_pixels_differ_by_in_the_dark_does_not_bend_the_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    level, loud = rng.normal(0, 2, (96, 96)), rng.lognormal(0, 0.3, (96, 96))
    light = np.exp(ndimage.gaussian_filter(rng.standard_normal((96, 96)), 4) * 14)

    def record(electrons: float, count: int) -> xr.DataArray:
        film = rng.poisson(electrons * light, (count, 96, 96)) + 1.6 * loud * rng.standard_normal((count, 96, 96))
        return xr.DataArray(np.rint(100 + level + 2.2 * film).astype(np.uint16), dims=list("tyx"))

    found = calibrate(record(3.0, 20), dark=record(0.0, 100))
    assert found.gain.low < 2.2 < found.gain.high
    assert found.gain.value == pytest.approx(2.2, rel=0.03)


@pytest.mark.parametrize("count", [50, 2])
def test_what_was_cleared_around_a_cell_does_not_change_the_gain(count: int) -> None:
    y, x = np.mgrid[:160, :160]
    rng = np.random.default_rng(0)
    electrons = rng.poisson(20 + 15 * np.sin(y / 9) * np.cos(x / 7), (count, 160, 160))
    values = np.rint(2.2 * electrons + 100 + 3.5 * rng.standard_normal(electrons.shape))
    cleared = np.where((y - 80) ** 2 + (x - 80) ** 2 > 60**2, 0, values).astype(np.uint16)
    found = calibrate(cleared, dims="tyx")
    assert found.gain.value == pytest.approx(2.2, rel=0.06 if count == 2 else 0.02)
    assert found.gain.low < 2.2 < found.gain.high
    assert len(found.warnings) == 1
