"""What programs leave in pixel values, and nothing where they left nothing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from gap_bioimage.photons.judging.traces import Traces, common_step, find_traces
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from gap_bioimage.simulation import simulate

Values = np.ndarray[Any, Any]


def cells(photons: float = 20.0, seed: int = 0) -> Values:
    values: Values = simulate(2, (256, 256), photons, seed)[0].values
    return values


def through_jpeg(image: Values, quality: int) -> Values:
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@settings(max_examples=60)
@given(
    dim=st.sampled_from([2, 3]), log_photons=st.floats(-1.5, 2.3), flat=st.booleans(), seed=st.integers(0, 2**32 - 1)
)
def test_counts_show_no_traces(dim: int, log_photons: float, flat: bool, seed: int) -> None:
    if flat:
        counts = np.random.default_rng(seed).poisson(10**log_photons, (100, 120))
    else:
        counts = simulate(dim, (6, 96, 96)[-dim:], 10**log_photons, seed)[0].values  # type: ignore[arg-type]
    assume(counts.max() > 1)
    assert find_traces(counts) == Traces()


@pytest.mark.parametrize("factor", [1.3, 1.7, 2.5, 4.6, 9.7])
def test_rounding_after_a_change_of_scale_leaves_gaps(factor: float) -> None:
    found = find_traces(np.rint(factor * cells()))
    assert found.missing_levels > 10
    assert found.empty_levels > 10


@pytest.mark.parametrize("factor", [0.6, 0.7])
def test_rounding_after_a_reduction_leaves_dips(factor: float) -> None:
    found = find_traces(np.rint(factor * cells(50)))
    assert found.missing_levels > 5
    assert found.empty_levels < found.missing_levels


@pytest.mark.parametrize("quality", [50, 75])
@pytest.mark.parametrize("cut", [0, 3])
def test_the_blocks_of_jpeg_are_found_wherever_they_start(quality: int, cut: int) -> None:
    assert find_traces(through_jpeg(cells(5), quality)[cut:, cut:]).jpeg


@settings(max_examples=40)
@given(step=st.floats(1e-4, 1e3), single=st.booleans(), seed=st.integers(0, 1000))
def test_the_step_of_divided_counts_is_found(step: float, single: bool, seed: int) -> None:
    counts = np.random.default_rng(seed).poisson(5, 2000) * step
    found = common_step(np.asarray(counts.astype(np.float32 if single else np.float64), np.float64))
    assert found == pytest.approx(step, rel=1e-5)


def test_values_without_a_step_have_none() -> None:
    assert common_step(np.random.default_rng(0).normal(0, 1, 5000)) is None
    assert common_step(np.random.default_rng(0).normal(0, 1, 5000).astype(np.float32).astype(np.float64)) is None


def test_one_bit_frames_are_not_dim_counts() -> None:
    rng = np.random.default_rng(0)
    assert find_traces(rng.random((8, 64, 64)) < 0.2).one_bit
    assert not find_traces(rng.poisson(0.01, (64, 64))).one_bit
    assert not find_traces(rng.poisson(0.2, (8, 64, 64))).one_bit


def test_colours_share_noise_and_detectors_do_not() -> None:
    counts = np.stack([cells(5, seed=0), cells(5, seed=0)[::-1], cells(3, seed=1)])
    assert not find_traces(counts, 0).colours
    grey = np.stack([cells(5)] * 3)
    assert find_traces(grey, 0).colours
    assert find_traces(grey, 0).shared_noise == pytest.approx(1)


@pytest.mark.parametrize("values", [np.zeros((0, 4)), np.zeros(3), np.zeros((4, 4), complex), np.full((9, 9), np.nan)])
def test_nothing_is_found_where_nothing_is(values: Values) -> None:
    assert find_traces(values) == Traces()
