"""Write images so that Fiji, ilastik and napari open them with their axes and pixel sizes."""

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import xarray as xr

from gap_bioimage.errors import AxesError, OutputError
from gap_bioimage.files import check_output_path, replacing
from gap_bioimage.io.image import AXES, Metadata, as_image, metadata_of
from gap_bioimage.io.ome_zarr import is_zarr, write_zarr

SUFFIXES = (".tif", ".tiff", ".npy", ".zarr", ".h5", ".hdf5")
_IMAGEJ_LIMIT_BYTES = 4 * 10**9  # classic TIFF has 32-bit offsets; the remainder is for its tags
_VIGRA_FLAGS = {"c": 1, "t": 8, "z": 2, "y": 2, "x": 2}


def check_output(path: Path, source: Path | None = None) -> None:
    """Check that an image can be written to a path, before it is computed."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"cannot write {path}: unknown suffix {path.suffix!r}; use {', '.join(SUFFIXES)}")
    check_output_path(path, folder=path.suffix.lower() == ".zarr")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input itself and is not overwritten; give the output another name")
    if path.suffix.lower() == ".zarr" and path.exists() and not is_zarr(path):
        raise OutputError(f"{path} already exists and is not a Zarr store, so it is kept; choose another name")


def write_image(
    path: Path | str, image: xr.DataArray | npt.NDArray[Any], *, compression: str | None = None, dims: str | None = None
) -> None:
    """Write an image so that Fiji and napari open it with its axes and pixel sizes.

    The file appears when it is complete; until then, and on failure, an existing file stays untouched.

    Parameters
    ----------
    path
        ``.tif`` writes an ImageJ hyperstack, or OME-TIFF where ImageJ's format cannot hold the data (32-bit
        integers, 4 GB and more); ``.ome.tif`` OME-TIFF; ``.ome.zarr`` or ``.zarr`` OME-Zarr 0.5 with a pyramid;
        ``.h5`` or ``.hdf5`` one dataset, for ilastik and Fiji's HDF5 plugin; ``.npy`` the bare array.
    image
        Dims out of ``t c z y x`` in any order, or ``sample`` instead of ``t``: none of these formats has an axis for
        posterior samples, so viewers show them as frames. Floats are written as float32, except to ``.npy``.
    compression
        For TIFF: ``"zlib"`` or another codec of tifffile; compressed files cannot be memory-mapped when read. For
        HDF5: ``"gzip"`` or another of its filters. OME-Zarr is always compressed.
    dims
        The axes of a plain array, such as "zyx".

    Raises
    ------
    AxesError
        If a dim is unknown, or y or x is missing.
    OutputError
        If the suffix is unknown, the file cannot be written, or a library is not installed.
    """
    path = Path(path)
    check_output(path)
    if dims is not None or not isinstance(image, xr.DataArray):  # dims of a DataArray may include sample
        image = as_image(image, dims)
    axes = ["t" if dim == "sample" else str(dim) for dim in image.dims]
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        problem = f"cannot write an image with dims {image.dims}, expected y, x and some of t (or sample), c, z"
        raise AxesError(f"{problem}; rename them, or write one sample at a time")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, image.values, allow_pickle=False)
        return
    tiff = suffix in (".tif", ".tiff")
    image = image.rename({old: new for old, new in zip(image.dims, axes, strict=True) if old != new})
    image = image.transpose(*(axis for axis in ("tzcyx" if tiff else AXES) if axis in axes))
    image, meta = image.copy(data=_storable(path, image.values, tiff)), metadata_of(image)
    with replacing(path, folder=suffix == ".zarr") as temporary:
        try:
            if suffix == ".zarr":
                write_zarr(temporary, image, meta, path.name.removesuffix(path.suffix).removesuffix(".ome"))
            elif tiff:
                _write_tiff(temporary, path, image, meta, compression)
            else:
                _write_hdf5(temporary, image, meta, compression)
        except ImportError as error:
            hint = f"type pip install 'gap-bioimage[{'zarr' if suffix == '.zarr' else 'formats'}]'"
            raise OutputError(f"cannot write {path.suffix}: {error.name} is not installed; {hint}") from None
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"cannot write {path} ({reason}); try it without compression, or as .npy") from error


def _storable(path: Path, values: npt.NDArray[Any], narrow: bool) -> npt.NDArray[Any]:
    """Return the values in a dtype that all formats support; readers of TIFF do not support 64-bit integers."""
    kind = values.dtype.kind
    if kind not in "biuf" or not values.size:
        problem = f"expected real numbers in at least one pixel, given {values.dtype} of shape {values.shape}"
        raise OutputError(f"cannot write {path}: {problem}; write .npy instead")
    if narrow and kind in "iu" and values.dtype.itemsize == 8:
        for ends in map(np.iinfo, (np.uint32, np.int32)):
            if ends.min <= values.min(initial=0) and values.max(initial=0) <= ends.max:
                return values.astype(ends.dtype)
        raise OutputError(f"cannot write {path}: its 64-bit integers do not fit into 32 bits; write .npy instead")
    return values.astype({"b": np.uint8, "f": np.float32}.get(kind, values.dtype.newbyteorder("=")), copy=False)


def _write_tiff(temporary: Path, path: Path, image: xr.DataArray, meta: Metadata, compression: str | None) -> None:
    values, axes = image.values, "".join(map(str, image.dims)).upper()
    imagej = values.dtype in (np.uint8, np.uint16, np.float32) and values.nbytes < _IMAGEJ_LIMIT_BYTES
    if imagej and not path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        options = {"imagej": True} | _imagej(meta, image)
    else:
        options = {"ome": True, "bigtiff": True, "metadata": _ome(meta, axes)}
    tifffile.imwrite(temporary, values, photometric="minisblack", compression=compression, **options)


def _imagej(meta: Metadata, image: xr.DataArray) -> dict[str, Any]:
    """Return ImageJ's metadata and resolution (pixels per micrometre, x and y) for axes in the order t z c y x."""
    steps = meta.steps
    metadata: dict[str, Any] = {"axes": "".join(map(str, image.dims)).upper()}
    metadata["mode"] = "composite" if "c" in image.dims else "grayscale"
    resolution = None
    if "x" in steps and "y" in steps:  # ImageJ has one unit for all axes, so z cannot be stored alone
        resolution = (1 / steps["x"], 1 / steps["y"])
        metadata |= {"unit": "micron"} | ({"spacing": steps["z"]} if "z" in steps else {})
    if "t" in steps:
        metadata["finterval"] = steps["t"]
    if meta.channels:  # one label per plane; channels run fastest
        planes = math.prod(image.sizes.get(axis, 1) for axis in "tzc")
        names = [" ".join(str(name).split()) for name in meta.channels]  # below a line break, ImageJ keeps headers
        metadata["Labels"] = names * (planes // len(names))
    return {"metadata": metadata, "resolution": resolution}


def _ome(meta: Metadata, axes: str) -> dict[str, Any]:
    """Return OME metadata for tifffile, for axes out of TZCYX in that order."""
    metadata: dict[str, Any] = {"axes": axes}
    for axis, size in meta.pixel_size_um.items():
        metadata |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": "µm"}
    if "t" in meta.steps:
        metadata |= {"TimeIncrement": meta.steps["t"], "TimeIncrementUnit": "s"}
    if meta.channels:
        metadata["Channel"] = {"Name": [*meta.channels]}
    return metadata | ({"Name": meta.name} if meta.name else {})


def _write_hdf5(path: Path, image: xr.DataArray, meta: Metadata, compression: str | None) -> None:
    """Write one dataset, ``data`` (as ilastik calls it), with the attributes that the reader uses."""
    import h5py

    if shutil.disk_usage(path.parent).free < image.nbytes:  # HDF5 notices too late, and crashes
        raise OSError(errno.ENOSPC, "")
    axes, steps = "".join(map(str, image.dims)), meta.steps
    tags = [{"key": a, "typeFlags": _VIGRA_FLAGS[a], "resolution": steps.get(a, 0), "description": ""} for a in axes]
    units = {axis: "s" if axis == "t" else "um" for axis in axes if axis in steps}
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=image.values, compression=compression)
        data.attrs.update(axes=axes, axistags=json.dumps({"axes": tags}), axis_units=json.dumps(units))
        for dimension, axis in zip(data.dims, axes, strict=True):
            dimension.label = axis
        if meta.pixel_size_um:
            # always three numbers; 0, which is no pixel's size, marks an unknown one
            data.attrs["element_size_um"] = [steps.get(axis, 0.0 if axis in axes else 1.0) for axis in "zyx"]
        if "t" in steps:
            data.attrs["interval_s"] = steps["t"]
        if meta.channels:
            data.attrs["channels"] = [str(name) for name in meta.channels]
