"""HDF5 files with datasets that ilastik, Fiji's HDF5 plugin and this package know how to read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import OutputError
from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, missing, naming_damage
from gap_bioimage.photons.formats.units import to_seconds, to_um, unitless

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import h5py
    import numpy.typing as npt

DATASET = "data"  # ilastik's own name for it
_NO_UNIT = ("element_size", "voxel_size", "pixel_size", "resolution", "spacing")  # other programs' attributes
_TYPE_FLAGS = {"c": 1, "t": 8}  # vigra's; 2 is space


def open_hdf5(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open one dataset of an HDF5 file.

    Parameters
    ----------
    path
        The file.
    series
        Which dataset, by its path in the file or by number, in alphabetical order; numbers in two or more
        dimensions count.
    level
        None or 0: HDF5 has no pyramids of its own.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, holds several datasets of which none was chosen, or h5py is not installed.
    AxesError
        If there is no such dataset or level.

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
    with naming_damage(path):
        with h5py.File(path, "r") as file:
            sets = _datasets(file)
            place = choose(path, [(name, file[name].shape) for name in sets], series)
            data = file[sets[place]]
            choose_level(path, [data.shape], level)
            name, shape, dtype = sets[place], data.shape, data.dtype
            axes = _axes(data)
            meta = _metadata(data, axes, name if len(sets) > 1 else "")

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][index])

    return Stored(axes, shape, dtype, read, meta)


def write_hdf5(path: Path, values: npt.NDArray[Any], axes: str, meta: Metadata, compression: str | None) -> None:
    """Write one dataset, ``data``, with the attributes that :func:`open_hdf5` reads.

    Parameters
    ----------
    path
        The file, which does not exist yet.
    values, axes
        Array and one lower-case letter per axis.
    compression
        A filter of HDF5, such as ``"gzip"``, or None.

    Raises
    ------
    OutputError
        If there is no such filter, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise OutputError(
            f"cannot write {path.suffix}: h5py is not installed; type pip install 'gap-bioimage[formats]'"
        ) from None
    with h5py.File(path, "w") as file:
        try:
            data = file.create_dataset(DATASET, data=values, compression=compression)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"cannot write HDF5 ({reason}); try it without compression, or with gzip") from error
        steps = {**meta.pixel_size_um, **({} if meta.interval_s is None else {"t": meta.interval_s})}
        tags = [
            {"key": a, "typeFlags": _TYPE_FLAGS.get(a, 2), "resolution": steps.get(a, 0), "description": ""}
            for a in axes
        ]
        data.attrs["axistags"] = json.dumps({"axes": tags})
        data.attrs["axis_units"] = json.dumps({a: "s" if a == "t" else "um" for a in axes if a in steps})
        data.attrs["axes"] = axes
        for dimension, axis in zip(data.dims, axes, strict=True):
            dimension.label = axis
        sizes = meta.pixel_size_um
        if sizes:
            # three numbers always; 0, which no pixel measures, stands for an unknown one
            data.attrs["element_size_um"] = [sizes.get(axis, 0.0 if axis in axes else 1.0) for axis in "zyx"]
        if meta.interval_s is not None:
            data.attrs["interval_s"] = meta.interval_s
        if meta.channels:
            data.attrs["channels"] = [str(name) for name in meta.channels]


def _datasets(file: h5py.File) -> list[str]:
    import h5py

    names: list[str] = []

    def visit(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "biuf":
            names.append(name)

    file.visititems(visit)
    return names


def _axes(data: h5py.Dataset) -> str:
    known: Sequence[str] = ()
    if "axistags" in data.attrs:
        known = [str(tag["key"]) for tag in json.loads(data.attrs["axistags"])["axes"]]
    elif isinstance(data.attrs.get("axes"), str):
        known = data.attrs["axes"]
    elif all(dimension.label for dimension in data.dims):
        known = [dimension.label for dimension in data.dims]
    if len(known) != data.ndim:
        return "YX" if data.ndim == 2 else "Q" * data.ndim
    return "".join(axis.upper() if axis.upper() in tuple("TCZYX") else "Q" for axis in known)


def _metadata(data: h5py.Dataset, axes: str, name: str) -> Metadata:
    found = np.atleast_1d(data.attrs.get("element_size_um", ()))
    steps = _tagged(data)
    given = dict(zip("zyx", found, strict=True)) if found.shape == (3,) else None
    # ilastik's own sizes count where Fiji's are missing
    told = {axis: steps.get(axis, (None, None)) if given is None else (given[axis], "um") for axis in "zyx"}
    sizes = {axis: size for axis in "zyx" if axis.upper() in axes and (size := to_um(*told[axis])) is not None}
    interval = to_seconds(data.attrs.get("interval_s"), "s") or to_seconds(*steps.get("t", (None, None)))
    names = np.atleast_1d(data.attrs.get("channels", ())).tolist()
    channels = tuple(each.decode() if isinstance(each, bytes) else str(each) for each in names)
    known = set(sizes) if interval is None else {*sizes, "t"}
    left_out = {axis: step for axis, step in unitless(steps | _bare(data, axes)).items() if axis not in known}
    return Metadata(sizes, interval, channels, name, left_out)


def _tagged(data: h5py.Dataset) -> dict[str, tuple[Any, Any]]:
    """Return steps and their units by axis, as ilastik writes them."""
    tags = json.loads(data.attrs.get("axistags", "{}")).get("axes", ())
    units = json.loads(data.attrs.get("axis_units", "{}"))
    steps = {str(tag["key"]): tag.get("resolution") for tag in tags}
    return {axis: (step, units.get(axis)) for axis, step in steps.items() if axis in tuple("tzyx")}


def _bare(data: h5py.Dataset, axes: str) -> dict[str, tuple[Any, Any]]:
    """Return the sizes of other programs' attributes, which have no unit, by axis."""
    space = [axis.lower() for axis in axes if axis in "ZYX"]
    for name in _NO_UNIT:
        found = np.atleast_1d(data.attrs.get(name, ()))
        if found.shape == (len(space),):
            return {axis: (step, None) for axis, step in zip(space, found.tolist(), strict=True)}
    return {}
