"""Samples that contradict the denoised image are warned of, and no others."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

from gap_bioimage.inference.trained_range import warn_if_samples_disagree


def images(dims: str = "yx") -> tuple[xr.DataArray, xr.DataArray]:
    """A denoised image, and eight samples whose pixels vary by as much as they hold."""
    rng = np.random.default_rng(0)
    shape = [{"y": 70, "x": 50}.get(dim, 2) for dim in dims]
    mmse = xr.DataArray(1 + rng.random(shape).astype(np.float32), dims=list(dims))
    factors = rng.exponential(size=(8, *shape)).astype(np.float32)
    return mmse, xr.DataArray(factors * mmse.values, dims=["sample", *dims])


@pytest.mark.parametrize("dims", ["yx", "tczyx", "yxc"])
def test_noise_of_single_pixels_is_no_contradiction(dims: str) -> None:
    mmse, samples = images(dims)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_samples_disagree(samples, mmse)
        warn_if_samples_disagree(samples.isel(sample=[0]) * 2, mmse)  # one sample has no spread
        warn_if_samples_disagree(samples * 0, mmse * 0)


def test_a_mean_that_moved_is_named_with_what_the_spread_explains() -> None:
    mmse, samples = images()
    factor = xr.DataArray(np.repeat([0.8, 1.2], [32, 18]), dims="x")
    with pytest.warns(UserWarning, match=r"denoised image by 2\d % \(their spread explains [1-4] %\).*train longer"):
        warn_if_samples_disagree(samples * factor, mmse)


def test_samples_that_differ_as_a_whole_explain_their_mean() -> None:
    mmse, _ = images()
    brightness = xr.DataArray([0.5, 1.0, 1.9], dims="sample")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_samples_disagree(brightness * mmse, mmse)


def test_planes_without_light_were_generated_and_contradict_nothing() -> None:
    mmse, samples = images("tyx")
    mmse[0], samples[:, 0] = 0, 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_samples_disagree(samples, mmse)
