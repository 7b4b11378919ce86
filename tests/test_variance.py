"""Variance against mean, and thinned halves, tell counts from cameras."""

from __future__ import annotations

import numpy as np
import pytest
from gap_bioimage.photons.judging.variance import thinning_correlation, variance_curve
from hypothesis import given, settings
from hypothesis import strategies as st

from gap_bioimage.simulation import simulate_truth


@settings(max_examples=30)
@given(log_photons=st.floats(-0.5, 2), seed=st.integers(0, 2**32 - 1))
def test_the_line_of_counts_goes_through_the_origin(log_photons: float, seed: int) -> None:
    rate = simulate_truth(2, (256, 256), 3).values * 10**log_photons
    curve = variance_curve(np.random.default_rng(seed).poisson(rate))
    assert curve is not None
    assert abs(curve.intercept) < 5 * curve.intercept_error
    assert abs(curve.slope - 1) < 5 * curve.slope_error
    assert np.median(curve.fano) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("gain", [0.5, 1.0, 2.2])
@pytest.mark.parametrize("repeats", [None, 0])
def test_the_line_of_a_camera_tells_gain_and_offset(gain: float, repeats: int | None) -> None:
    rng = np.random.default_rng(0)
    rate = 20 + 200 * simulate_truth(2, (256, 256), 0).values
    shape = (6, *rate.shape)
    values = np.rint(100 + gain * (rng.poisson(np.broadcast_to(rate, shape)) + rng.normal(0, 1, shape)))
    curve = variance_curve(values, repeats)
    assert curve is not None
    assert curve.intercept < -10 * curve.intercept_error
    assert curve.offset == pytest.approx(100, abs=6)
    assert curve.slope == pytest.approx(gain, rel=0.08)
    assert curve.rise > 1.2


def test_too_few_pixels_have_no_line() -> None:
    assert variance_curve(np.ones((8, 8))) is None
    assert variance_curve(np.zeros((64, 64))) is None
    assert variance_curve(np.full((64, 64), np.nan)) is None
    assert variance_curve(np.zeros((0, 64))) is None


@settings(max_examples=30)
@given(log_photons=st.floats(-1, 2), seed=st.integers(0, 2**32 - 1))
def test_halves_of_counts_are_independent(log_photons: float, seed: int) -> None:
    found = thinning_correlation(np.random.default_rng(seed).poisson(10**log_photons, (128, 128)))
    assert found is not None
    value, error = found
    assert abs(value) < 5 * error
    assert error < 0.05


@pytest.mark.parametrize("k", [2, 3, 5])
def test_halves_of_multiplied_counts_share_what_the_theory_says(k: int) -> None:
    counts = k * np.random.default_rng(0).poisson(10, (256, 256))
    found = thinning_correlation(counts)
    assert found is not None
    assert found[0] == pytest.approx((k - 1) / (k + 1), abs=5 * found[1])
    assert thinning_correlation(counts) == found
