"""HDF5 files with datasets that ilastik, Fiji's HDF5 plugin and this package know how to read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import OutputError
from gap_bioimage.io.files import Stored, missing, naming_damage
from gap_bioimage.io.image import Metadata, lazy_image, steps_of, wrong_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import h5py
    import numpy.typing as npt
    import xarray as xr

DATASET = "data"  # ilastik's own name for it
_NO_UNIT = ("element_size", "voxel_size", "pixel_size", "resolution", "spacing")  # other programs' attributes


def open_hdf5(path: Path) -> list[Stored]:
    """Return the datasets of an HDF5 file with numbers in two or more dimensions, in alphabetical order.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, or h5py is not installed.

    Notes
    -----
    Axes come from vigra's ``axistags`` (ilastik), an attribute ``axes`` or HDF5's dimension labels; pixel sizes from
    ``element_size_um`` (z, y, x: Fiji's HDF5 plugin), else from the tags' ``resolution`` and ``axis_units`` (ilastik).
    Attributes such as ``voxel_size`` are in micrometres for some and in nanometres for others, and not believed.
    """
    try:
        import h5py
    except ImportError:
        raise missing(path, "formats") from None
    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "biuf":
            shapes[name] = node.shape

    with naming_damage(path), h5py.File(path, "r") as file:
        file.visititems(visit)
    several = len(shapes) > 1
    return [
        Stored(name, {0: shape}, lambda _, name=name: _opened(path, name, several))  # type: ignore[misc]
        for name, shape in shapes.items()
    ]


def _opened(path: Path, name: str, several: bool) -> xr.DataArray:
    import h5py

    def read(index: tuple[Any, ...]) -> npt.NDArray[Any]:
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][index])

    with h5py.File(path, "r") as file:
        data = file[name]
        dims, problem = _axes(data)
        steps, unitless = _steps(data, [str(dim).lower() for dim in dims])
        channels = [
            c.decode() if isinstance(c, bytes) else str(c) for c in np.atleast_1d(data.attrs.get("channels", ()))
        ]
        meta = Metadata(steps, channels, name if several else "", unitless, problem=problem)
        return lazy_image(data.shape, data.dtype, dims, read, meta)


def _axes(data: h5py.Dataset) -> tuple[Sequence[str], str]:
    """Return a name per axis, and what is wrong with those of the file."""
    known: Sequence[str] = ()
    if "axistags" in data.attrs:
        known = [str(tag["key"]) for tag in json.loads(data.attrs["axistags"])["axes"]]
    elif isinstance(data.attrs.get("axes"), str):
        known = data.attrs["axes"]
    elif any(dimension.label for dimension in data.dims):
        known = [dimension.label for dimension in data.dims]
    if len(known) == data.ndim:
        return known, ""
    bare = ["y", "x"] if data.ndim == 2 and not known else [""] * data.ndim
    return bare, wrong_axes(known, data.shape) if known else ""


def _steps(data: h5py.Dataset, dims: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Return steps by axis, and those without a unit of axes whose step is not known."""
    tags = json.loads(data.attrs.get("axistags", "{}")).get("axes", ())
    units = json.loads(data.attrs.get("axis_units", "{}"))
    told: dict[str, tuple[Any, Any]] = {str(tag["key"]): (tag.get("resolution"), None) for tag in tags}
    told = {axis: (step, units.get(axis)) for axis, (step, _) in told.items() if axis in tuple("tzyx")}
    sizes = np.atleast_1d(data.attrs.get("element_size_um", ()))
    measured: dict[str, tuple[Any, Any]] = dict(told)
    if sizes.shape == (3,):  # ilastik's own sizes count where Fiji's are missing
        measured |= {axis: (size, "um") for axis, size in zip("zyx", sizes.tolist(), strict=True)}
    if "interval_s" in data.attrs:
        measured["t"] = (data.attrs["interval_s"], "s")
    steps, _ = steps_of({axis: step for axis, step in measured.items() if axis in dims or axis == "t"})
    _, unitless = steps_of(told | _bare(data, dims))
    return steps, {axis: step for axis, step in unitless.items() if axis not in steps}


def _bare(data: h5py.Dataset, dims: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the sizes of other programs' attributes, which have no unit, by axis."""
    space = [axis for axis in dims if axis in tuple("zyx")]
    for name in _NO_UNIT:
        found = np.atleast_1d(data.attrs.get(name, ()))
        if found.shape == (len(space),):
            return {axis: (step, None) for axis, step in zip(space, found.tolist(), strict=True)}
    return {}


def write_hdf5(path: Path, image: xr.DataArray, meta: Metadata, compression: str | None) -> None:
    """Write one dataset, ``data``, with the attributes that :func:`open_hdf5` reads.

    Parameters
    ----------
    path
        The file, which does not exist yet.
    image, meta
        Dims out of ``t c z y x``, and their calibration.
    compression
        A filter of HDF5, such as ``"gzip"``, or None.
    """
    try:
        import h5py
    except ImportError:
        raise OutputError(
            f"cannot write {path.suffix}: h5py is not installed; type pip install 'gap-bioimage[formats]'"
        ) from None
    axes, steps = "".join(map(str, image.dims)), meta.steps
    with h5py.File(path, "w") as file:
        try:
            data = file.create_dataset(DATASET, data=image.values, compression=compression)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"cannot write HDF5 ({reason}); try it without compression, or with gzip") from error
        flags = {"c": 1, "t": 8}  # vigra's; 2 is space
        tags = [
            {"key": a, "typeFlags": flags.get(a, 2), "resolution": steps.get(a, 0), "description": ""} for a in axes
        ]
        data.attrs["axes"] = axes
        data.attrs["axistags"] = json.dumps({"axes": tags})
        data.attrs["axis_units"] = json.dumps({a: "s" if a == "t" else "um" for a in axes if a in steps})
        for dimension, axis in zip(data.dims, axes, strict=True):
            dimension.label = axis
        if meta.pixel_size_um:
            # three numbers always; 0, which no pixel measures, stands for an unknown one
            data.attrs["element_size_um"] = [steps.get(axis, 0.0 if axis in axes else 1.0) for axis in "zyx"]
        if "t" in steps:
            data.attrs["interval_s"] = steps["t"]
        if meta.channels:
            data.attrs["channels"] = [str(name) for name in meta.channels]
