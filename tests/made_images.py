"""Counts with every axis and calibration, and what a round trip must keep of them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from gap_bioimage.io import pixel_size_um

LENGTHS = {"t": 3, "c": 2, "z": 4, "y": 17, "x": 12}
STEPS = {"z": 0.3, "y": 0.065, "x": 0.108, "t": 2.5}
CHANNELS = ["actin", "DNA"]
DIMS = ["yx", "zyx", "tyx", "cyx", "czyx", "tzyx", "tcyx", "tczyx"]


def counts(dims, dtype=np.uint16, calibrated=True, seed=0):
    shape = [LENGTHS[d] for d in dims]
    values = np.random.default_rng(seed).poisson(5, shape).astype(dtype)
    coords = {d: np.arange(LENGTHS[d]) * STEPS[d] for d in dims if d in STEPS} if calibrated else {}
    if calibrated and "c" in dims:
        coords["c"] = CHANNELS
    return xr.DataArray(values, dims=list(dims), coords=coords)


def assert_same(again, image):
    """See that values, type, axes and calibration are the same."""
    assert again.dims == image.dims
    assert again.dtype == image.dtype
    np.testing.assert_array_equal(again, image)
    assert pixel_size_um(again) == pytest.approx(pixel_size_um(image), rel=1e-6)
    assert set(again.coords) == set(image.coords)
    for dim in set(image.coords) - {"c"}:
        np.testing.assert_allclose(again[dim], image[dim], rtol=1e-6)
    if "c" in image.coords:
        assert again.c.values.tolist() == image.c.values.tolist()


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) > 30
    return text
