"""Pixel sizes, frame intervals and channel names as coordinates of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.photons.formats.stored import Metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr


def pixel_size_um(image: xr.DataArray) -> dict[str, float]:
    """Return the known pixel sizes in micrometres, by axis (``z``, ``y``, ``x``)."""
    sizes = {axis: _step(image, axis) for axis in "zyx"}
    return {axis: size for axis, size in sizes.items() if size is not None}


def metadata_of(image: xr.DataArray) -> Metadata:
    """Return what the coordinates of an image say, and its name in the file that it was read from."""
    names: tuple[str, ...] = ()
    if "c" in image.coords and image.coords["c"].dtype.kind in "UO":
        names = tuple(str(name) for name in image.coords["c"].values.ravel())
    return Metadata(pixel_size_um(image), _step(image, "t"), names, str(image.attrs.get("series", "")))


def calibrate(image: xr.DataArray, meta: Metadata, read: Mapping[str, slice]) -> xr.DataArray:
    """Return an image with coordinates: micrometres on z, y and x, seconds on t, names on c.

    The name of a single channel is kept without its axis, as a coordinate of no dimension; that of the image is the
    attribute ``series``.

    Parameters
    ----------
    image
        Dims out of ``t c z y x``.
    meta
        Of the whole image in the file.
    read
        Which part of which axis was read; all of the others.
    """
    steps = dict(meta.pixel_size_um)
    if meta.interval_s is not None:
        steps["t"] = meta.interval_s
    coords: dict[str, Any] = {}
    for axis, step in steps.items():
        if axis in image.dims:
            part = read.get(axis, slice(None))
            first, every = part.start or 0, part.step or 1
            unit = "s" if axis == "t" else "um"
            # The step is kept as well, because an axis of length 1 has no differences.
            places = first + every * np.arange(image.sizes[axis])
            coords[axis] = (axis, places * step, {"units": unit, "step": step * every})
    names = list(meta.channels)[read.get("c", slice(None))]
    if len(names) == image.sizes.get("c", 1):
        coords["c"] = ("c", names) if "c" in image.dims else names[0]
    return image.assign_coords(coords).assign_attrs({"series": meta.name} if meta.name else {})


def _step(image: xr.DataArray, axis: str) -> float | None:
    if axis not in image.dims or axis not in image.coords or image.coords[axis].dtype.kind not in "fiu":
        return None
    coord = image.coords[axis]
    if coord.size < 2:
        step = coord.attrs.get("step")
        return None if step is None else float(step)
    step = abs(float(coord[-1]) - float(coord[0])) / (coord.size - 1)
    return float(f"{step:.9g}") if step > 0 else None
