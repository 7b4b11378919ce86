from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.inspection import inspect
from gap_bioimage.photons.checks import check_axes, check_dim, check_photon_counts, check_whole_numbers
from gap_bioimage.photons.image_io import read_photons
from gap_bioimage.photons.simulate import simulate

WRONG = [
    (np.full((9, 9), np.nan), "NaN"),
    (np.eye(9) - 1, "negative"),
    (np.eye(9) / 2, "fractional"),
    (np.eye(9, dtype=np.int8) - 1, "negative"),
    (np.zeros((0, 9), np.uint8), "no pixels"),
    (np.full((9, 9), "a"), "<U1"),
]


def image(values, dims="tczyx"):
    values = np.asarray(values)
    return xr.DataArray(values, dims=list(dims)[-values.ndim :])


def poisson(mean=5.0, shape=(64, 64), seed=0):
    return np.random.default_rng(seed).poisson(mean, shape)


def refusal(values, **options):
    with pytest.raises(NotPhotonCountsError) as error:
        check_photon_counts(image(values), name="cells.tif", **options)
    text = str(error.value)
    assert "cells.tif" in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_counts(dtype):
    check_photon_counts(image(poisson().astype(dtype)), name="x")


def test_booleans_are_counts():
    check_photon_counts(image(poisson(0.1) > 0), name="x")


def test_negative_values_are_refused():
    values = poisson()
    values[3, 4] = -1
    assert "minimum -1" in refusal(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    values = poisson().astype(float)
    values[3, 4] = bad
    assert "1 pixels that are NaN or infinite" in refusal(values)


def test_fractions_are_refused():
    assert "fractional values (100% of the pixels" in refusal(poisson() + 0.25)


def test_an_empty_exposure_is_refused():
    assert "all zero" in refusal(np.zeros((16, 16), np.uint16))


def test_no_pixels_and_complex_numbers_are_refused():
    assert "no pixels" in refusal(np.zeros((0, 16), np.uint16))
    assert "complex64" in refusal(np.zeros((4, 4), np.complex64))


@settings(max_examples=50, deadline=None)
@given(k=st.integers(2, 300), mean=st.floats(0.5, 50), seed=st.integers(0, 2**32 - 1))
def test_multiplied_counts_are_refused_with_their_factor(k, mean, seed):
    assert f"divide by {k}" in refusal(k * poisson(mean, seed=seed))


@pytest.mark.parametrize("offset", [50, 100, 500])
def test_a_camera_offset_is_refused(offset):
    text = refusal(poisson(4) + offset)
    assert "offset" in text
    assert "minimum" in text
    assert "variance/mean" in text


def test_a_camera_image_of_cells_is_refused():
    counts, _ = simulate(2, (128, 128), 10.0)
    read_noise = np.random.default_rng(0).normal(0, 1.5, counts.shape)
    assert "camera offset" in refusal(np.rint(100 + 2.2 * counts.values + read_noise).astype(np.uint16))


def test_smoothed_counts_are_refused():
    smooth = np.rint(ndimage.gaussian_filter(poisson(20, (128, 128)).astype(float), 1.5))
    smooth[0, 0] = 0
    assert "smoothed" in refusal(smooth.astype(np.uint16))


def test_a_gain_is_warned_about():
    rng = np.random.default_rng(0)
    values = np.rint(poisson(20, (128, 128)) * 4.3 + rng.normal(0, 1, (128, 128))).clip(0).astype(np.uint16)
    with pytest.warns(UserWarning, match="noisier than photon counts"):
        check_photon_counts(image(values), name="x")
    assert inspect(image(values))["verdict"] == "camera image"


@pytest.mark.parametrize("ceiling", [255, 1023, 4095, 65535, 300])
def test_saturation_is_refused(ceiling):
    rate = np.linspace(0.2 * ceiling, 1.2 * ceiling, 128)[None].repeat(128, 0)
    counts = np.random.default_rng(0).poisson(rate).clip(max=ceiling)
    assert f"at the maximum {ceiling}" in refusal(counts)


def test_saturation_can_be_allowed():
    counts = poisson(250, (128, 128)).clip(max=255)
    check_photon_counts(image(counts), name="x", saturation=1.0)


@pytest.mark.parametrize("frame", [0, 1])
def test_real_photon_counts_are_accepted(shared_data, frame):
    found = inspect(shared_data / f"hazelnut_photons_t{frame}_zyx.tif")
    assert found["verdict"] == "photon counts"
    assert found["axes"] == "zyx"
    assert found["fano"] == pytest.approx(1, abs=0.05)
    assert 0.7 < found["fano_bright"] < 0.95  # dead time
    assert "--dim 3" in found["next"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_photons(shared_data / f"hazelnut_photons_t{frame}_zyx.tif")


def test_a_real_camera_movie_is_refused(shared_data):
    with pytest.raises(NotPhotonCountsError, match=r"offset \(minimum 90, mean 104.2, variance/mean 0.0"):
        read_photons(shared_data / "telomeres_camera_tyx.tif")


def test_dimensions_must_fit_the_model():
    stack, plane = image(np.ones((2, 3, 4))), image(np.ones((3, 4)))
    check_dim(stack, 3, plane_by_plane=False)
    check_dim(stack, 2, plane_by_plane=True)
    check_dim(plane, 2, plane_by_plane=False)
    with pytest.raises(AxesError, match=r"axes z y x but the model is 2D.*--planes"):
        check_dim(stack, 2, plane_by_plane=False)
    with pytest.raises(AxesError, match="axes y x but the model is 3D"):
        check_dim(plane, 3, plane_by_plane=False)


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_no_counter_returns_is_refused(values, message):
    with pytest.raises(NotPhotonCountsError, match=f"the film.*{message}"):
        check_whole_numbers(image(values), name="the film")


@pytest.mark.parametrize("dtype", ["bool", "uint8", ">u2", "int64", "float32", "float64"])
def test_whole_numbers_are_not_judged(dtype):
    for values in (np.zeros((9, 9)), np.full((9, 9), 1), 100 * np.eye(9), poisson(shape=(9, 9)) + 100):
        check_whole_numbers(image(values.astype(dtype)), name="the film")


@pytest.mark.parametrize(("given", "wrap"), [(np.zeros(3), "['y', 'x']"), (np.zeros((2, 3, 4)), "['z', 'y', 'x']")])
def test_arrays_without_axes_are_told_how_to_get_them(given, wrap):
    with pytest.raises(AxesError) as caught:
        check_axes(given)
    assert str(caught.value).endswith(f"wrap it with xarray.DataArray(a, dims={wrap})")
    check_axes(image(np.zeros((2, 3, 4))))
    with pytest.raises(AxesError, match="the image has axes y q, expected y and x"):
        check_axes(image(np.zeros((2, 3)), "yq"))
