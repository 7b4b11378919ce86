from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import counts, one_sentence

import gap_bioimage
from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.io import as_image, as_images, pixel_size_um, sum_frames
from gap_bioimage.io.image import step_of


def test_arrays_become_images_where_their_axes_are_named():
    values = np.ones((4, 17, 12), np.uint16)
    image = as_image(values, "zyx")
    assert image.dims == ("z", "y", "x")
    assert np.shares_memory(image.values, values)
    assert as_image(image) is image
    named = as_image(counts("tyx").rename(t="frame"), "tyx")
    assert named.dims == ("t", "y", "x")
    assert pixel_size_um(named) == {"y": 0.065, "x": 0.108}
    named.coords["x"].attrs["units"], named.coords["y"].attrs["units"] = "mm", "pixel"
    assert pixel_size_um(named) == {"x": 108.0}
    assert as_image(values.tolist(), ("z", "y", "x")).shape == values.shape
    assert [each.dims for each in as_images([values[0], counts("yx")], "yx")] == [("y", "x")] * 2
    assert (len(as_images(values, "zyx")), as_images([])) == (1, [])
    for wrong in (np.full((17, 12), 2**63, np.uint64), np.ma.masked_equal([[1, 2], [0, 3]], 0)):
        with pytest.raises(NotPhotonCountsError):
            as_image(wrong, "yx")


@pytest.mark.parametrize(
    ("array", "dims"),
    [
        (np.ones((17, 12)), None),
        (np.ones((4, 17, 12)), "yx"),
        (np.ones((17, 12)), "zy"),
        (counts("zyx"), "yx"),
        (counts("zyx"), "tyx"),
        (counts("zyx"), "xyz"),
        (xr.Dataset({"cells": counts("yx")}), None),
        (xr.Dataset({"cells": counts("yx")}), "yx"),
        (np.ones((4, 17, 12)), "yyx"),
        ("a.tif", None),
        (Path("a.tif"), "yx"),
        (xr.DataArray(np.ones((17, 12))), None),
        (xr.DataArray(np.ones((2, 17, 12)), dims=["q", "y", "x"]), None),
    ],
)
def test_arrays_without_known_axes_are_refused(array, dims):
    with pytest.raises(AxesError) as error:
        as_image(array, dims)
    one_sentence(error)
    with pytest.raises(AxesError):
        as_images(array, dims)


def test_all_functions_take_arrays_whose_axes_are_named_and_ask_for_these(tmp_path):
    values = np.random.default_rng(0).poisson(np.linspace(1, 20, 64), (4, 64, 64)).astype(np.uint16)
    for function in (
        lambda array, **how: gap_bioimage.train(array, tmp_path / "run", **how),
        lambda array, **how: gap_bioimage.sum_frames(array > 4, 2, **how),
        lambda array, **how: gap_bioimage.write_image(tmp_path / "a.tif", array, **how),
        gap_bioimage.inspect,
        gap_bioimage.calibrate,
    ):
        with pytest.raises(AxesError, match="dims='zyx'"):
            function(values)
    report = gap_bioimage.inspect(values, dims="zyx")
    assert report.planes == 4 and report.next == "gap-bioimage train IMAGE --dim 3 --out RUN"
    assert gap_bioimage.sum_frames(values > 4, 2, dims="tyx").sizes["t"] == 2
    assert gap_bioimage.calibrate(values, dims="tyx").counts
    gap_bioimage.write_image(tmp_path / "a.tif", values, dims="tyx")
    assert gap_bioimage.read_photons(tmp_path / "a.tif").sizes["t"] == 4


@pytest.mark.parametrize(
    ("value", "unit", "axis", "step"),
    [
        (108, "nm", "x", 0.108),
        ("0.2", "micron", "y", 0.2),
        (0.2, "\\u00B5m", "z", 0.2),
        (1e-6, "Meter", "x", 1.0),
        (72, "inch", "x", None),
        (0.0, "um", "x", None),
        (float("nan"), "um", "x", None),
        ("wide", "um", "x", None),
        (None, None, "x", None),
        (500, "ms", "t", 0.5),
        (2, "hour", "t", 7200.0),
        (-3, "micrometres", "x", 3.0),
        (2, "um", "t", None),
    ],
)
def test_units_become_micrometres_and_seconds(value, unit, axis, step):
    assert step_of(value, unit, axis) == step


# -- sums of one-bit frames ------------------------------------------------------------------------------------------


def movie(frames, seed=0, one=1, dims="tyx"):
    sizes = {"t": frames, "c": 2, "z": 3, "y": 5, "x": 7}
    bits = np.random.default_rng(seed).random([sizes[d] for d in dims]) < 0.3
    return xr.DataArray((bits * one).astype(np.uint8), dims=list(dims))


@settings(max_examples=20, deadline=None)
@given(sums=st.integers(1, 5), frames=st.integers(1, 9), one=st.sampled_from([1, 7, 255]))
def test_sums_hold_every_photon(sums, frames, one):
    bits = movie(sums * frames, sums, one)
    summed = sum_frames(bits, frames)
    assert int(summed.sum()) == int((bits != 0).sum())
    assert int(summed.max()) <= frames
    expected = (bits.values != 0).reshape(sums, frames, 5, 7).sum(1)
    np.testing.assert_array_equal(summed.values.reshape(sums, 5, 7), expected)
    assert summed.dims == (("t", "y", "x") if sums > 1 else ("y", "x"))
    assert sum_frames(bits.transpose("y", "x", "t"), frames).dims == ("y", "x", "t")[: summed.ndim]


def test_the_interval_grows_and_frames_left_over_are_told_and_dropped():
    bits = movie(10).assign_coords(t=("t", np.arange(10) * 0.5, {"units": "s", "step": 0.5}))
    with pytest.warns(UserWarning, match="the last 2 frames"):
        summed = sum_frames(bits, 4)
    np.testing.assert_array_equal(summed.coords["t"], [0, 2])
    assert summed.coords["t"].attrs["step"] == 2.0


def test_what_makes_no_sum_is_refused():
    for image, frames in ((movie(3), 4), (movie(3)[0], 1), (movie(3), 0)):
        with pytest.raises(AxesError, match="are to be summed"):
            sum_frames(image, frames)
    with pytest.raises(NotPhotonCountsError):
        sum_frames(counts("tyx"), 3)
