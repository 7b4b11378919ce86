"""Images with named axes, as readers yield them and as writers and all functions of the package take them."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from tifffile import TIFF
from xarray.backends import BackendArray
from xarray.core import indexing

from gap_bioimage.errors import AxesError, GapWarning, NotPhotonCountsError

AXES = "tczyx"
SAMPLES = "samples"
STORED = "stored"  # coordinate of images with missing planes: whether the file holds each plane
ON_DISK = "on disk"  # encoding key of images too large for memory, which are read where they are indexed
_UNKNOWN = "axis "
_NUMBERED = re.compile(r"^(phony_)?(dim|axis|d)_?\d+$")  # placeholders, not names
_SYNONYMS = {
    **{"t": "time timepoint timepoints frame frames", "c": "channel channels ch wavelength"},
    **{"z": "depth slice slices plane planes", "y": "height row rows", "x": "width column columns col cols"},
    **{SAMPLES: "sample rgb", _UNKNOWN: "other sequence unknown"},
}
_NAMES = {name: axis for axis, names in _SYNONYMS.items() for name in names.split()} | {"": _UNKNOWN}
_PREFIXES = {"p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "\u03bc": 1e-6, "m": 1e-3, "": 1.0}
_PREFIXES |= {"pico": 1e-12, "nano": 1e-9, "micro": 1e-6, "milli": 1e-3}
# no "inch", which is a unit of printers; ImageJ escapes non-ASCII characters as Java does
_METRE = ("m", "meter", "meters", "metre", "metres")
_UM = {f"{p}{name}": 1e6 * value for p, value in _PREFIXES.items() for name in _METRE}
_UM |= {"micron": 1.0, "microns": 1.0, "\\u00b5m": 1.0, "cm": 1e4, "centimeter": 1e4, "angstrom": 1e-4, "å": 1e-4}
_S = {f"{p}{name}": value for p, value in _PREFIXES.items() for name in ("s", "sec", "second", "seconds")}
_S |= {"min": 60.0, "minute": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0}


@dataclass(frozen=True)
class Metadata:
    """Metadata of an image in a file; empty where the file gives nothing reliable."""

    steps: Mapping[str, float] = field(default_factory=dict)  # by axis: micrometres (z, y, x), seconds (t)
    channels: Sequence[str] = ()
    name: str = ""
    description: str = ""  # free text
    problem: str = ""  # why the axes are unknown
    warning: str = ""  # to issue when the image is read

    @property
    def pixel_size_um(self) -> dict[str, float]:
        """Steps of z, y and x."""
        return {axis: step for axis, step in self.steps.items() if axis != "t"}


@dataclass(frozen=True)
class Stored:
    """One image of a file, as every reader yields it."""

    name: str  # empty if the file gives none
    levels: Mapping[int, xr.DataArray]  # of the pyramid, lazy, without those that are listed but missing

    def by_position(self, dim: str, names: Sequence[str]) -> list[Stored]:
        """Split an image with stage positions or tiles along ``dim`` into one image for each."""
        levels = self.levels.items()
        return [Stored(name, {n: image.isel({dim: index}) for n, image in levels}) for index, name in enumerate(names)]


def steps_of(measured: Mapping[str, tuple[Any, Any]], digits: int = 7) -> dict[str, float]:
    """Return the steps of axes, given as values and units, without missing ones and those in unknown units."""
    steps = {
        axis: step_of(*measured[name], axis, digits) for name in measured if (axis := _axis(name)) in tuple("tzyx")
    }
    return {axis: step for axis, step in steps.items() if step is not None}


def _axis(name: Any) -> str:
    """Return our letter for an axis that a file names in a word or a letter of tifffile; other names in lower case."""
    plain = re.sub(r"[(\[].*", "", str(name).lower()).strip()  # without units, as in "z (um)"
    plain = _NUMBERED.sub("", TIFF.AXES_NAMES.get(plain.upper(), plain))
    return _NAMES.get(plain, plain)


def step_of(value: Any, unit: Any, axis: str, digits: int = 7) -> float | None:
    """Return a step in micrometres, or in seconds along t; None where it is missing or its unit is unknown."""
    factor = (_S if axis == "t" else _UM).get(str(unit).strip().lower())
    try:
        # TIFF stores ratios of 32-bit integers: the digits hide their rounding. Descending stages have negative steps
        step = abs(float(f"{float(value) * (factor or 0):.{digits}g}"))
    except (TypeError, ValueError):
        return None
    return step if math.isfinite(step) and step > 0 else None


def unit_warning(measured: Mapping[str, tuple[Any, Any]]) -> str:
    """Return a warning about steps without a unit, or ""; of these, 0 and 1 are placeholders."""
    unitless = {axis: value for name, (value, unit) in measured.items() if (axis := _axis(name)) in "tzyx" and not unit}
    steps = {axis: step_of(value, "um", "x") for axis, value in unitless.items()}
    sizes = ", ".join(f"{axis} {step:g}" for axis, step in steps.items() if step not in (None, 1))
    hint = "in HDF5 as the attribute element_size_um, in OME-Zarr as the unit of each axis"
    return sizes and f"does not state the unit of its pixel sizes ({sizes}), which are ignored; store the unit {hint}"


class Lazy(BackendArray):
    """An array on disk; ``read`` takes an integer or a slice per axis, with explicit ends and positive steps."""

    def __init__(self, shape: Iterable[int], dtype: Any, read: Callable[[tuple[Any, ...]], Any]) -> None:
        self.shape, self.dtype, self._read = tuple(shape), np.dtype(dtype), read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> npt.NDArray[Any]:
        def read(index: tuple[Any, ...]) -> npt.NDArray[Any]:
            along = zip(index, self.shape, strict=True)
            return np.asarray(self._read(tuple(slice(*n.indices(m)) if isinstance(n, slice) else n for n, m in along)))

        return np.asarray(indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, read))


def image_of(
    array: Any, dims: Iterable[str], meta: Metadata, stored: npt.NDArray[np.bool_] | None = None
) -> xr.DataArray:
    """Return an array as an image: a NumPy array as a (memory-mapped) view, others read where they are indexed.

    ``dims`` are tifffile's letters or a file's own names, empty if it gives none. ``stored`` marks, along the first
    axes, which planes the file holds; None if it holds all.
    """
    shape, names = tuple(array.shape), [_axis(dim) for dim in dims]
    if names and len(names) != len(shape):
        meta = replace(meta, problem=f"names the axes {' '.join(names)}, but its array has {len(shape)}")
        names = [_UNKNOWN] * len(shape)
    elif not names:
        names = ["y", "x"] if len(shape) == 2 else [_UNKNOWN] * len(shape)
    unknown = [name == _UNKNOWN or name in names[:number] for number, name in enumerate(names)]
    names = [f"{_UNKNOWN}{number}" if unknown[number] else name for number, name in enumerate(names)]
    mapped = isinstance(array, np.ndarray)
    if not mapped:
        lazy = array if isinstance(array, Lazy) else Lazy(shape, array.dtype, array.__getitem__)
        array = indexing.LazilyIndexedArray(lazy)
    image = xr.DataArray(xr.Variable(names, array), name="photons", attrs={"metadata": meta})
    image.encoding["mapped"] = mapped
    if stored is not None:
        image = image.assign_coords({STORED: (names[: stored.ndim], stored)})
    single = [dim for dim in names if image.sizes[dim] == 1 and dim not in tuple(AXES) and not is_unknown(dim)]
    return with_coordinates(image.isel(dict.fromkeys(single, 0)))


def is_unknown(dim: Hashable) -> bool:
    """Whether the file does not name this axis."""
    return str(dim).startswith(_UNKNOWN)


def with_coordinates(image: xr.DataArray) -> xr.DataArray:
    """Return an image with coordinates from its metadata: micrometres on z, y and x, seconds on t, names on c."""
    meta = image.attrs["metadata"]
    coords: dict[str, Any] = {}
    for axis, step in meta.steps.items():
        if axis in image.dims:
            # stored as well, because coordinates of an axis of length 1 have no differences
            attributes = {"units": "s" if axis == "t" else "um", "step": step}
            coords[axis] = (axis, np.arange(image.sizes[axis]) * step, attributes)
    if any(meta.channels) and len(meta.channels) == image.sizes.get("c", 1):
        coords["c"] = ("c", list(meta.channels)) if "c" in image.dims else meta.channels[0]
    return image.assign_coords(coords)


def pixel_size_um(image: xr.DataArray) -> dict[str, float]:
    """Return the known pixel sizes in micrometres, by axis (``z``, ``y``, ``x``)."""
    return metadata_of(image).pixel_size_um


def metadata_of(image: xr.DataArray) -> Metadata:
    """Return the metadata in an image's coordinates, and its name in the file that it was read from."""
    has_names = "c" in image.coords and image.coords["c"].dtype.kind in "UO"
    names = tuple(map(str, image.coords["c"].values.ravel())) if has_names else ()
    measured = {}
    for axis in [axis for axis in "tzyx" if axis in image.dims and axis in image.coords]:
        coord = image.coords[axis]
        step = coord.attrs.get("step")
        if coord.size > 1 and coord.dtype.kind in "fiu":
            step = (float(coord[-1]) - float(coord[0])) / (coord.size - 1)
        measured[axis] = step, coord.attrs.get("units", "s" if axis == "t" else "um")
    return Metadata(steps_of(measured, 9), names, str(image.attrs.get("series", "")))


def as_image(array: Any, dims: str | Iterable[str] | None = None, *, what: str = "the image") -> xr.DataArray:
    """Return an array as an image with axes ``dims``; images with named axes pass, anything else is an AxesError."""
    if isinstance(array, (str, bytes, PathLike, Mapping)):  # an xarray.Dataset is a Mapping
        problem = f"{what} is of type {type(array).__name__}, expected the values of one image"
        raise AxesError(f"{problem}; read files with read_photons, and choose one image of several by its name")
    if np.ma.is_masked(array):
        raise NotPhotonCountsError(f"{what} has masked pixels, expected a count in each; fill them, or crop the image")
    if dims is not None and not len(set(dims)) == len(tuple(dims)) == np.ndim(array):
        raise AxesError(f"dims={dims!r} does not fit {what}, which has {np.ndim(array)} axes; name each one once")
    if not isinstance(array, xr.DataArray):
        if dims is None:
            example = AXES[-min(max(np.ndim(array), 2), 5) :]
            raise AxesError(f"the axes of {what} have no names, expected some of t c z y x; give dims={example!r}")
        array = xr.DataArray(np.asarray(array), dims=tuple(dims))
    image: xr.DataArray = array
    renamed = {old: new for old, new in zip(image.dims, dims or image.dims, strict=True) if old != new}
    if set(renamed) & set(AXES):
        raise AxesError(f"dims={dims!r} does not fit {what} with axes {image.dims}; omit dims, or rename the axes")
    image = image.swap_dims(renamed) if renamed else image
    refuse_overflow(image, what)
    if not {"y", "x"} <= set(image.dims) <= set(AXES):
        raise AxesError(f"{what} has axes {image.dims}, expected y, x and others out of t c z; rename them with dims")
    return image


def as_images(images: Any, dims: str | Iterable[str] | None = None) -> list[xr.DataArray]:
    """Return one image or several as a list, each from :func:`as_image`."""
    # arrays of other libraries, such as torch tensors, have dimensions too
    single = hasattr(images, "ndim") or isinstance(images, (str, bytes, Mapping)) or not hasattr(images, "__iter__")
    images = [images] if single else list(images)
    name = "the image" if len(images) == 1 else "image {} of {}"
    return [as_image(image, dims, what=name.format(number, len(images))) for number, image in enumerate(images, 1)]


def refuse_overflow(image: xr.DataArray, what: str) -> None:
    """Refuse uint64 values too large for int64, the dtype in which counts are thinned."""
    if image.dtype == np.uint64 and (highest := int(image.max())) > np.iinfo(np.int64).max:
        raise NotPhotonCountsError(f"{what} holds {highest:.3g}, expected counts below 2**63; use the original image")


def items_first(image: xr.DataArray, dim: int, *, separate_channels: bool = False) -> xr.DataArray:
    """Return an image with dims ``(..., c, [z,] y, x)``: the axes of a ``dim``-dimensional network's input come last.

    A missing c is added with length 1. Frames, and in 2D also planes, come first; with ``separate_channels`` also
    channels, as ``channel``.
    """
    spatial = ["z", "y", "x"] if dim == 3 else ["y", "x"]
    on_disk = image.encoding.get(ON_DISK)
    if separate_channels and "c" in image.dims:
        image = image.rename(c="channel")
    if "c" not in image.dims and on_disk:  # expand_dims would read it
        single = image
        lazy = Lazy((1, *single.shape), single.dtype, lambda index: single[index[1:]].values[np.newaxis][index[0]])
        image = image_of(lazy, ["c", *map(str, single.dims)], Metadata())
    elif "c" not in image.dims:
        image = image.expand_dims("c")
    items = [axis for axis in image.dims if axis not in ("c", *spatial)]
    return image.transpose(*items, "c", *spatial)


def each_item(image: xr.DataArray, dim: int, *, separate_channels: bool = False) -> Iterator[Any]:
    """Yield a network's inputs one by one, (c, [z,] y, x): as arrays, or for images on disk as lazy views."""
    items = items_first(image, dim, separate_channels=separate_channels)
    for index in np.ndindex(items.shape[: -dim - 1]):
        yield items[index] if image.encoding.get(ON_DISK) else items[index].data


def natural(name: str) -> list[int | str]:
    """Return a sort key by which numbers in names are ordered by value: 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def middle_slice(size: int, length: int) -> slice:
    """Return the middle ``length`` pixels of an axis, or all of a shorter one."""
    start = max(0, (size - length) // 2)
    return slice(start, min(start + length, size))


def time_as_z(image: xr.DataArray) -> xr.DataArray:
    """Return a movie as a stack with time as z, as a 3D network takes it."""
    if "t" not in image.dims or "z" in image.dims:
        problem = f"the image has axes {' '.join(map(str, image.dims))}, expected a movie without z to take time as z"
        raise AxesError(f'{problem}; name its axes, such as axes="tyx", or omit time_as_z=True')
    return image.rename(t="z")


def sum_frames(
    movie: xr.DataArray | npt.NDArray[Any], n_frames: int, *, name: str = "the movie", dims: str | None = None
) -> xr.DataArray:
    """Sum each ``n_frames`` successive frames of a one-bit movie; leftover frames are dropped.

    Parameters
    ----------
    movie
        Dims with t; values 0 and 1 (or 0 and one other number, such as 255).
    n_frames
        Frames per sum, at least 1; with 1, single frames become counts of 0 and 1.
    name
        The movie's name in messages.
    dims
        The axes of a plain array, such as "tyx".

    Returns
    -------
    xarray.DataArray
        Counts from 0 to ``n_frames``, with the same dims; t is dropped if there is only one sum.

    Raises
    ------
    AxesError
        If there is no t axis, or it has fewer frames.
    NotPhotonCountsError
        If frames hold more than two values.

    Warns
    -----
    UserWarning
        If frames are left over.
    """
    movie = as_image(movie, dims, what=name)
    if "t" not in movie.dims or movie.sizes["t"] < n_frames or n_frames < 1:
        sizes = ", ".join(f"{axis} {size}" for axis, size in movie.sizes.items())
        raise AxesError(f"{n_frames} frames of {name} are to be summed, but its axes are {sizes}; expected as many t")
    sums, rest = divmod(movie.sizes["t"], n_frames)
    warn_of_leftover_frames(rest, n_frames, name)
    one = movie.data.max(initial=0) or 1
    dtype = np.min_scalar_type(n_frames)
    summed = movie.isel(t=slice(0, sums * n_frames, n_frames)).astype(dtype)
    for number in range(sums):  # one sum in memory at a time: such movies are long
        block = movie.isel(t=slice(number * n_frames, (number + 1) * n_frames))
        if not np.isin(block.values, (0, one)).all():
            raise NotPhotonCountsError(f"frames of {name} hold values up to {one}, expected two; give one-bit frames")
        summed[{"t": number}] = (block != 0).sum("t", dtype=dtype)
    if "t" in summed.coords and "step" in summed.t.attrs:
        summed.t.attrs["step"] *= n_frames
    return summed.isel(t=0, drop=True) if sums == 1 else summed


def warn_of_leftover_frames(rest: int, n_frames: int, name: str) -> None:
    """Warn of leftover frames, too few for a sum."""
    if rest:
        warnings.warn(f"the last {rest} frames of {name} are left out of sums of {n_frames}", GapWarning, stacklevel=3)
