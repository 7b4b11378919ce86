"""The order of axes that training and inference work in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr


def items_first(image: xr.DataArray, dim: int) -> xr.DataArray:
    """Return an image with dims ``(..., c, [z,] y, x)``: what a network of ``dim`` dimensions sees comes last.

    A missing c is added with length 1; frames, and in 2D also planes, come first.
    """
    spatial = ["z", "y", "x"] if dim == 3 else ["y", "x"]
    full = image if "c" in image.dims else image.expand_dims("c")
    items = [axis for axis in full.dims if axis not in ("c", *spatial)]
    return full.transpose(*items, "c", *spatial)
