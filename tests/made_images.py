"""Counts with every axis and calibration, and what a round trip must keep of them."""

import numpy as np
import pytest
import tifffile
import xarray as xr

from gap_bioimage.io import pixel_size_um

LENGTHS = {"t": 3, "c": 2, "z": 4, "y": 17, "x": 12}
STEPS = {"z": 0.3, "y": 0.065, "x": 0.108, "t": 2.5}
CHANNELS = ["actin", "DNA"]
MOVIE = np.random.default_rng(0).poisson(5, (10, 17, 12)).astype(np.uint16)
DIMS = ["yx", "zyx", "tyx", "cyx", "czyx", "tzyx", "tcyx", "tczyx"]


def counts(dims, dtype=np.uint16, calibrated=True, seed=0):
    shape = [LENGTHS[d] for d in dims]
    values = np.random.default_rng(seed).poisson(5, shape).astype(dtype)
    coords = {d: np.arange(LENGTHS[d]) * STEPS[d] for d in dims if d in STEPS} if calibrated else {}
    if calibrated and "c" in dims:
        coords["c"] = CHANNELS
    return xr.DataArray(values, dims=list(dims), coords=coords)


def image(values, dims="tczyx"):
    values = np.asarray(values)
    return xr.DataArray(values, dims=list(dims)[-values.ndim :])


def poisson(mean=5.0, shape=(64, 64), seed=0):
    return np.random.default_rng(seed).poisson(mean, shape)


def sharp_cells(mean, seed, size=128, dark=0.05):
    """Discs with sharp edges, as no optics leave them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    scene = np.full((size, size), dark)
    for _ in range(size // 8):
        (top, left), (tall, wide) = rng.uniform(0, size, 2), rng.uniform(3, 12, 2)
        scene[((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < 1] += rng.uniform(0.3, 1)
    return rng.poisson(scene / scene.mean() * mean)


def assert_same(again, expected):
    """See that values, type, axes and calibration are the same."""
    assert again.dims == expected.dims
    assert again.dtype == expected.dtype
    np.testing.assert_array_equal(again, expected)
    assert pixel_size_um(again) == pytest.approx(pixel_size_um(expected), rel=1e-6)
    assert set(again.coords) == set(expected.coords)
    for dim in set(expected.coords) - {"c"}:
        np.testing.assert_allclose(again[dim], expected[dim], rtol=1e-6)
    if "c" in expected.coords:
        assert again.c.values.tolist() == expected.c.values.tolist()


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) > 30
    return text


def pages(path, planes, description=None, bigtiff=False, **options):
    """Write a page per plane, as most microscopes do."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for plane in planes:
            writer.write(plane, contiguous=False, metadata=None, description=description, **options)
            description = None


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
