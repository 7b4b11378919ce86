"""The order of axes that training and inference work in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.errors import AxesError

if TYPE_CHECKING:
    import xarray as xr


def items_first(image: xr.DataArray, dim: int, *, separate_channels: bool = False) -> xr.DataArray:
    """Return an image with dims ``(..., c, [z,] y, x)``: what a network of ``dim`` dimensions sees comes last.

    A missing c is added with length 1; frames, and in 2D also planes, come first.

    Parameters
    ----------
    image
        Dims out of ``t c z y x``.
    dim
        Spatial dimensions of the network.
    separate_channels
        Let channels come first too, as ``channel``, and c have length 1.
    """
    spatial = ["z", "y", "x"] if dim == 3 else ["y", "x"]
    if separate_channels and "c" in image.dims:
        image = image.rename(c="channel")
    full = image if "c" in image.dims else image.expand_dims("c")
    items = [axis for axis in full.dims if axis not in ("c", *spatial)]
    return full.transpose(*items, "c", *spatial)


def time_as_z(image: xr.DataArray) -> xr.DataArray:
    """Return a movie as a stack, whose z is time: what a 3D network sees of a movie.

    Raises
    ------
    AxesError
        If it is no movie, or has z already.
    """
    if "t" not in image.dims or "z" in image.dims:
        raise AxesError(
            f"the image has axes {' '.join(map(str, image.dims))}, expected a movie without z to take time as z; name "
            "its axes with --axes, such as tyx, or leave --time-as-z out"
        )
    return image.rename(t="z")
