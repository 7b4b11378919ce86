"""Sums of one-bit frames."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.io import sum_frames


def movie(frames: int, seed: int = 0, one: int = 1, dims: str = "tyx") -> xr.DataArray:
    sizes = {"t": frames, "c": 2, "z": 3, "y": 5, "x": 7}
    bits = np.random.default_rng(seed).random([sizes[d] for d in dims]) < 0.3
    return xr.DataArray((bits * one).astype(np.uint8), dims=list(dims))


@settings(max_examples=40)
@given(sums=st.integers(1, 5), frames=st.integers(1, 9), one=st.sampled_from([1, 7, 255]))
def test_sums_hold_every_photon(sums: int, frames: int, one: int) -> None:
    bits = movie(sums * frames, sums, one)
    summed = sum_frames(bits, frames)
    assert int(summed.sum()) == int((bits != 0).sum())
    assert int(summed.max()) <= frames
    expected = (bits.values != 0).reshape(sums, frames, 5, 7).sum(1)
    np.testing.assert_array_equal(summed.values.reshape(sums, 5, 7), expected)
    assert summed.dims == (("t", "y", "x") if sums > 1 else ("y", "x"))


@pytest.mark.parametrize("dims", ["tczyx", "zyxt", "tyx"])
def test_other_axes_stay_in_their_order(dims: str) -> None:
    bits = movie(6, dims=dims)
    summed = sum_frames(bits, 3)
    assert summed.dims == bits.dims
    assert summed.sizes["t"] == 2
    np.testing.assert_array_equal(summed.isel(t=1), bits.isel(t=slice(3, 6)).sum("t"))


def test_the_interval_grows() -> None:
    bits = movie(8).assign_coords(t=("t", np.arange(8) * 0.5, {"units": "s", "step": 0.5}))
    summed = sum_frames(bits, 4)
    np.testing.assert_array_equal(summed.coords["t"], [0, 2])
    assert summed.coords["t"].attrs["step"] == 2.0


def test_frames_left_over_are_told_and_dropped() -> None:
    with pytest.warns(UserWarning, match="the last 2 frames"):
        summed = sum_frames(movie(8), 3)
    assert summed.sizes["t"] == 2


@pytest.mark.parametrize(
    ("image", "frames"), [(movie(3), 4), (movie(3).isel(t=0), 1), (movie(3), 0)], ids=["few", "no movie", "none"]
)
def test_too_few_frames_are_refused(image: xr.DataArray, frames: int) -> None:
    with pytest.raises(AxesError, match="are to be summed"):
        sum_frames(image, frames)


def test_frames_of_counts_are_refused() -> None:
    with pytest.raises(NotPhotonCountsError, match="other values than 0 and 3"):
        sum_frames(movie(4).copy(data=np.random.default_rng(0).integers(0, 4, (4, 5, 7))), 2)
    with pytest.raises(NotPhotonCountsError, match="expected frames of 0 and 1"):
        sum_frames(movie(4).astype(complex), 2)


def test_long_sums_do_not_overflow() -> None:
    full = xr.DataArray(np.ones((300, 2, 2), np.uint8), dims=["t", "y", "x"])
    assert sum_frames(full, 300).values.tolist() == [[300, 300], [300, 300]]
