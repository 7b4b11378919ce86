"""Comparisons: on the output's own scale, and as bioimageio.core does it."""

from __future__ import annotations

import numpy as np
import pytest
from gap_bioimage.validation.running.measures import (
    Tolerance,
    core_tolerance,
    mismatched_ppm,
    not_finite,
    relative_rms,
    wrong_versions,
)

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


def test_constant_expectations_are_measured_by_their_magnitude() -> None:
    assert relative_rms(np.full(9, 1.1), np.ones(9)) == pytest.approx(0.1)


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
    entry = {"absolute_tolerance": 1e-5, "output_ids": ["rate"], "weights_formats": ["torchscript"]}
    rdf = {"config": {"bioimageio": {"reproducibility_tolerance": [entry]}}}
    assert core_tolerance(rdf, "rate", "torchscript").atol == 1e-5
    assert core_tolerance(rdf, "rate", "onnx") == Tolerance()
    assert core_tolerance(rdf, "other", "torchscript") == Tolerance()
    assert core_tolerance({}, "rate", None) == Tolerance()


def test_wrong_versions_differ_from_the_expected_output() -> None:
    names = [name for name, _ in wrong_versions(RAMP, ("batch", "channel", "y", "x"))]
    assert names == ["mirrored along x", "mirrored along y", "shuffled"]
    symmetric = RAMP + np.flip(RAMP, axis=3)
    names = [name for name, _ in wrong_versions(symmetric, ("batch", "channel", "y", "x"))]
    assert names == ["mirrored along y", "shuffled"]
    assert list(wrong_versions(np.ones((2, 2)), ("y", "x"))) == []
