"""Movies of single-photon cameras, whose frames are 0 or 1 in each pixel, summed to counts."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.errors import AxesError, GapWarning, NotPhotonCountsError

if TYPE_CHECKING:
    import xarray as xr


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
    if movie.dtype.kind not in "biuf":
        raise NotPhotonCountsError(f"{name} holds {movie.dtype}, expected frames of 0 and 1")
    sums, left = divmod(movie.sizes["t"], n_frames)
    if left:
        warnings.warn(
            f"the last {left} frames of {name} make no sum of {n_frames} and are left out", GapWarning, stacklevel=2
        )
    one = movie.data.max(initial=0) or 1
    dtype = np.min_scalar_type(n_frames)
    summed = movie.isel(t=slice(0, sums * n_frames, n_frames)).astype(dtype)
    for number in range(sums):  # one sum in memory at a time: such movies are long
        block = movie.isel(t=slice(number * n_frames, (number + 1) * n_frames))
        if not np.isin(block.values, (0, one)).all():
            raise NotPhotonCountsError(
                f"frames of {name} hold other values than 0 and {one}, expected those of a one-bit camera; sum no "
                "frames of counts"
            )
        summed[{"t": number}] = (block != 0).sum("t", dtype=dtype)
    if "t" in summed.coords and "step" in summed.coords["t"].attrs:
        summed.coords["t"].attrs["step"] = float(movie.coords["t"].attrs["step"]) * n_frames
    return summed.isel(t=0, drop=True) if sums == 1 else summed
