"""Movies of single-photon cameras, whose frames are 0 or 1 in each pixel, summed to counts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import AxesError, NotPhotonCountsError

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray


def sum_frames(movie: xr.DataArray, n_frames: int, *, name: str = "the movie") -> xr.DataArray:
    """Sum every ``n_frames`` successive frames of a one-bit movie; frames left over are dropped.

    Parameters
    ----------
    movie
        Dims with t; values 0 and 1 (or 0 and one other number, such as 255).
    n_frames
        Frames per sum, at least 1; 1 keeps single frames, as numbers.
    name
        What to call the movie in messages.

    Returns
    -------
    xarray.DataArray
        Counts from 0 to ``n_frames``, in the same dims; t is dropped where one sum remains.

    Raises
    ------
    AxesError
        If there is no t, or it has fewer frames.
    NotPhotonCountsError
        If frames hold more than two values.

    Warns
    -----
    UserWarning
        If frames are left over.
    """
    if "t" not in movie.dims or movie.sizes["t"] < n_frames or n_frames < 1:
        raise AxesError(
            f"{n_frames} frames of {name} are to be summed, but its axes are "
            f"{', '.join(f'{axis} {size}' for axis, size in movie.sizes.items())}; expected at least that many frames "
            "t, and at least 1 to sum"
        )
    sums, left = divmod(movie.sizes["t"], n_frames)
    if left:
        warnings.warn(f"the last {left} frames of {name} make no sum of {n_frames} and are left out", stacklevel=2)
    axis = movie.get_axis_num("t")
    values: NDArray[Any] = movie.data
    dtype = np.uint8 if n_frames < 256 else np.uint16 if n_frames < 65536 else np.uint32
    shape = tuple(sums if i == axis else size for i, size in enumerate(movie.shape))
    counts = np.empty(shape, dtype)
    one = _value_of_one(values, name)
    for number in range(sums):  # one sum in memory at a time: such movies are long
        cut = [slice(None)] * movie.ndim
        cut[axis] = slice(number * n_frames, (number + 1) * n_frames)
        block = np.asarray(values[tuple(cut)])
        _check_two_values(block, one, name)
        cut[axis] = slice(number, number + 1)
        counts[tuple(cut)] = (block != 0).sum(axis=axis, keepdims=True, dtype=dtype)
    every = movie.isel(t=slice(0, sums * n_frames, n_frames))
    summed = every.copy(data=counts)
    if "t" in summed.coords and "step" in summed.coords["t"].attrs:
        summed.coords["t"].attrs["step"] = float(movie.coords["t"].attrs["step"]) * n_frames
    return summed.isel(t=0, drop=True) if sums == 1 else summed


def _value_of_one(values: NDArray[Any], name: str) -> int:
    if values.dtype.kind not in "biuf":
        raise NotPhotonCountsError(f"{name} holds {values.dtype}, expected frames of 0 and 1")
    return int(values.max(initial=0)) or 1


def _check_two_values(block: NDArray[Any], one: int, name: str) -> None:
    if not np.all((block == 0) | (block == one)):
        raise NotPhotonCountsError(
            f"frames of {name} hold other values than 0 and {one}, expected those of a one-bit camera; leave "
            "--sum-frames out for counts"
        )
