"""Images with named axes: what readers yield, what writers and all functions of the package take."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from gap_bioimage.errors import AxesError, NotPhotonCountsError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    import numpy.typing as npt

AXES = "tczyx"
SAMPLES = "samples"
_UNKNOWN = "axis "
_NUMBERED = re.compile(r"^(phony_)?(dim|axis|d)_?\d+$")  # names that say nothing
_NAMES = {
    **{"time": "t", "frame": "t", "frames": "t", "channel": "c", "channels": "c", "wavelength": "c", "depth": "z"},
    **{"height": "y", "width": "x", "s": SAMPLES, "sample": SAMPLES, "rgb": SAMPLES},
    # what files call an axis of which they know nothing
    **dict.fromkeys(("", "i", "q", "other", "sequence", "unknown"), _UNKNOWN),
    **{"r": "tile", "h": "lifetime", "m": "mosaic", "e": "lambda", "a": "angle", "p": "phase", "l": "exposure"},
}
_UM = {"pm": 1e-6, "angstrom": 1e-4, "å": 1e-4, "nm": 1e-3, "um": 1.0, "µm": 1.0, "mm": 1e3, "m": 1e6, "micron": 1.0}
# "cm" and "inch" are units of printers, and not believed; ImageJ escapes what Java calls non-ASCII
_UM |= {"picometer": 1e-6, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}
_UM |= {"\u03bcm": 1.0, "\\u00b5m": 1.0, "microns": 1.0}
_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "msec": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_S |= {"nanosecond": 1e-9, "microsecond": 1e-6, "millisecond": 1e-3, "second": 1.0, "minute": 60.0, "hour": 3600.0}
_S |= {"hr": 3600.0}


@dataclass(frozen=True)
class Metadata:
    """What a file says about an image; empty where it says nothing trustworthy.

    Parameters
    ----------
    steps
        By axis: micrometres (z, y, x) and seconds (t).
    channels
        Their names.
    name
        Of the image, where the file gives one or holds several.
    unitless
        Sizes by axis whose unit the file does not say, so that they are not used.
    description, problem
        What its writer wrote about it; what keeps its axes from being known.
    """

    steps: Mapping[str, float] = field(default_factory=dict)
    channels: Sequence[str] = ()
    name: str = ""
    unitless: Mapping[str, float] = field(default_factory=dict)
    description: str = ""
    problem: str = ""

    @property
    def pixel_size_um(self) -> dict[str, float]:
        """Pixel sizes in micrometres, by axis (``z``, ``y``, ``x``)."""
        return {axis: step for axis, step in self.steps.items() if axis != "t"}

    @property
    def interval_s(self) -> float | None:
        """Seconds between frames."""
        return self.steps.get("t")


def step_of(value: Any, unit: Any, axis: str) -> float | None:
    """Return a step in micrometres, or in seconds along t; None where it is absent, or in a unit not believed."""
    factor = (_S if axis == "t" else _UM).get(str(unit).strip().lower())
    try:
        # TIFF stores a ratio of 32-bit integers; the rounding hides its own
        size = float(f"{float(value) * (factor or 0):.7g}")
    except (TypeError, ValueError):
        return None
    return size if math.isfinite(size) and size > 0 else None


def steps_of(measured: Mapping[str, tuple[Any, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the steps of axes by value and unit, and those without a unit; there 0 and 1 measure nothing."""
    steps = {axis: step_of(value, unit, axis) for axis, (value, unit) in measured.items()}
    bare = {axis: step_of(value, "um", "x") for axis, (value, unit) in measured.items() if not str(unit or "").strip()}
    known = {axis: step for axis, step in steps.items() if step is not None}
    return known, {axis: step for axis, step in bare.items() if step is not None and step != 1}


class _Lazy(BackendArray):
    """An array on disk, read where it is indexed."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, read: Callable[[tuple[Any, ...]], Any]) -> None:
        self.shape, self.dtype, self._read = shape, np.dtype(dtype), read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> npt.NDArray[Any]:
        read: npt.NDArray[Any] = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, lambda index: np.asarray(self._read(index))
        )
        return read


def mapped_image(values: npt.NDArray[Any], dims: Iterable[str], meta: Metadata) -> xr.DataArray:
    """Return an array that is mapped into memory as an image, see :func:`lazy_image`."""
    image = _named(xr.Variable(_dims(dims), values), meta)
    image.encoding["mapped"] = True
    return image


def lazy_image(
    shape: Sequence[int], dtype: Any, dims: Iterable[str], read: Callable[[tuple[Any, ...]], Any], meta: Metadata
) -> xr.DataArray:
    """Return an image that is read where it is indexed.

    Parameters
    ----------
    shape, dtype
        Of all of it.
    dims
        What the file calls its axes: letters of tifffile, or words; none for an axis of which it knows nothing.
    read
        From an index of numbers and slices (one per axis, steps above 0) to the values.
    meta
        What else the file says.
    """
    return _named(xr.Variable(_dims(dims), indexing.LazilyIndexedArray(_Lazy(tuple(shape), dtype, read))), meta)


def _named(variable: xr.Variable, meta: Metadata) -> xr.DataArray:
    image = xr.DataArray(variable, name="photons", attrs={"metadata": meta})
    single = [dim for dim in image.dims if is_foreign(dim) and image.sizes[dim] == 1]
    return with_coordinates(image.isel(dict.fromkeys(single, 0)))


def _dims(dims: Iterable[str]) -> list[str]:
    names = [_NUMBERED.sub("", str(dim).strip().lower()) for dim in dims]
    names = [_NAMES.get(name, name) for name in names]
    unknown = [name == _UNKNOWN or name in names[:place] for place, name in enumerate(names)]
    return [f"{_UNKNOWN}{place}" if unknown[place] else name for place, name in enumerate(names)]


def is_unknown(dim: Hashable) -> bool:
    """Whether the file says nothing of this axis."""
    return str(dim).startswith(_UNKNOWN)


def is_foreign(dim: Hashable) -> bool:
    """Whether this axis is known, and none of ours."""
    return not is_unknown(dim) and dim not in tuple(AXES)


def with_coordinates(image: xr.DataArray) -> xr.DataArray:
    """Return an image with micrometres on z, y and x, seconds on t and names on c, from its metadata."""
    meta = image.attrs["metadata"]
    coords: dict[str, Any] = {}
    for axis, step in meta.steps.items():
        if axis in image.dims:
            # The step is kept as well, because an axis of length 1 has no differences.
            words = {"units": "s" if axis == "t" else "um", "step": step}
            coords[axis] = (axis, np.arange(image.sizes[axis]) * step, words)
    if len(meta.channels) == image.sizes.get("c", 1):
        coords["c"] = ("c", list(meta.channels)) if "c" in image.dims else meta.channels[0]
    return image.assign_coords(coords)


def wrong_axes(names: Iterable[str], shape: Sequence[int]) -> str:
    """Return what is wrong with the axes of a file that are not as many as those of its array."""
    hint = f'axes="{AXES[-len(shape) :]}"' if 2 <= len(shape) <= len(AXES) else "out of t, c, z, y, x"
    return (
        f"names the axes {' '.join(names)}, but its array has {len(shape)}, shape {tuple(shape)}, expected a name for "
        f"each; name them, such as {hint}"
    )


def pixel_size_um(image: xr.DataArray) -> dict[str, float]:
    """Return the known pixel sizes in micrometres, by axis (``z``, ``y``, ``x``)."""
    return metadata_of(image).pixel_size_um


def metadata_of(image: xr.DataArray) -> Metadata:
    """Return what the coordinates of an image say, and its name in the file that it was read from."""
    names: tuple[str, ...] = ()
    if "c" in image.coords and image.coords["c"].dtype.kind in "UO":
        names = tuple(str(name) for name in image.coords["c"].values.ravel())
    steps = {axis: _step(image.coords[axis]) for axis in "tzyx" if axis in image.dims and axis in image.coords}
    known = {axis: step for axis, step in steps.items() if step is not None}
    return Metadata(known, names, str(image.attrs.get("series", "")))


def _step(coord: xr.DataArray) -> float | None:
    if coord.dtype.kind not in "fiu":
        return None
    if coord.size < 2:
        step = coord.attrs.get("step")
        return None if step is None else float(step)
    step = abs(float(coord[-1]) - float(coord[0])) / (coord.size - 1)
    return float(f"{step:.9g}") if step > 0 else None


def as_image(array: Any, dims: str | Iterable[str] | None = None, *, what: str = "the image") -> xr.DataArray:
    """Return an array as an image with named axes; what has them passes.

    Parameters
    ----------
    array
        An ``xarray.DataArray``, or with ``dims`` anything that NumPy takes for an array.
    dims
        The axes of ``array``, out of ``t c z y x``, such as ``"zyx"``.
    what
        What to call it in messages.

    Raises
    ------
    AxesError
        If the axes are unknown, are not out of ``t c z y x`` with y and x, or do not fit the array.
    """
    if not isinstance(array, xr.DataArray):
        ndim = np.ndim(array)
        if dims is None:
            example = AXES[-min(max(ndim, 2), 5) :]
            raise AxesError(
                f"{what} is of type {type(array).__name__}, expected an xarray.DataArray with dims out of t c z y x, "
                f"as read_photons returns; name its axes, such as dims={example!r}, or wrap it with "
                f"xarray.DataArray(a, dims={list(example)})"
            )
        if len(tuple(dims)) != ndim:
            raise AxesError(f"dims={dims!r} names {len(tuple(dims))} axes but {what} has {ndim}; name each one")
        image = xr.DataArray(np.asarray(array), dims=tuple(dims))
    elif dims is not None and tuple(dims) != array.dims:
        image = xr.DataArray(array.data, dims=tuple(dims), name=array.name, attrs=array.attrs)
    else:
        image = array
    refuse_overflow(image, what)
    if not {"y", "x"} <= set(image.dims) <= set(AXES):
        raise AxesError(
            f"{what} has axes {' '.join(map(str, image.dims))}, expected y and x, and others out of t c z; name them "
            "with xarray.DataArray(a, dims=['y', 'x'])"
        )
    return image


def as_images(images: Any, dims: str | Iterable[str] | None = None) -> list[xr.DataArray]:
    """Return one image or several, each as :func:`as_image` takes it."""
    # arrays of other libraries, such as torch's tensors, have dimensions too
    single = hasattr(images, "ndim") or isinstance(images, (str, bytes)) or not hasattr(images, "__iter__")
    return [as_image(image, dims, what="an image") for image in ([images] if single else images)]


def refuse_overflow(image: xr.DataArray, what: str) -> None:
    """Refuse unsigned numbers beyond those of 64 signed bits, in which counts are thinned."""
    if image.dtype == np.uint64 and (highest := int(image.max())) > np.iinfo(np.int64).max:
        raise NotPhotonCountsError(
            f"{what} holds numbers up to {highest:.3g}, expected photon counts, which are below 2**63; look for its "
            "original, in which such numbers may be negative ones"
        )


def items_first(image: xr.DataArray, dim: int, *, separate_channels: bool = False) -> xr.DataArray:
    """Return an image with dims ``(..., c, [z,] y, x)``: what a network of ``dim`` dimensions sees comes last.

    A missing c is added with length 1; frames, and in 2D also planes, come first, with ``separate_channels`` also
    channels, as ``channel``.
    """
    spatial = ["z", "y", "x"] if dim == 3 else ["y", "x"]
    if separate_channels and "c" in image.dims:
        image = image.rename(c="channel")
    full = image if "c" in image.dims else image.expand_dims("c")
    items = [axis for axis in full.dims if axis not in ("c", *spatial)]
    return full.transpose(*items, "c", *spatial)


def time_as_z(image: xr.DataArray) -> xr.DataArray:
    """Return a movie as a stack, whose z is time: what a 3D network sees of a movie."""
    if "t" not in image.dims or "z" in image.dims:
        raise AxesError(
            f"the image has axes {' '.join(map(str, image.dims))}, expected a movie without z to take time as z; "
            'name its axes, such as axes="tyx", or leave time_as_z out'
        )
    return image.rename(t="z")
