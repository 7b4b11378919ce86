"""Image files in and out: arrays with named axes, calibrated in micrometres."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import xarray as xr

from gap_bioimage.counts import check_photon_counts
from gap_bioimage.errors import AxesError, NotPhotonCountsError, OutputError, UnreadableImageError
from gap_bioimage.files import replacing, replacing_folder
from gap_bioimage.photons.coordinates import calibrate, metadata_of, pixel_size_um
from gap_bioimage.photons.formats.ome_zarr import is_zarr
from gap_bioimage.photons.formats.opening import READABLE, open_image
from gap_bioimage.photons.formats.stored import Stored, naming_damage
from gap_bioimage.photons.formats.tiff_writer import write_tiff
from gap_bioimage.photons.selection import AXES, axes_of, channel_of, frames_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["SUFFIXES", "check_output", "pixel_size_um", "read_images", "read_photons", "write_image"]

SUFFIXES = (".tif", ".tiff", ".npy", ".zarr", ".h5", ".hdf5")  # written; :data:`READABLE` has those that are read
_FOLDERS = (".zarr",)
_PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP"}


def read_photons(
    path: Path | str,
    axes: str | None = None,
    *,
    channel: int | str | None = None,
    time: int | str | None = None,
    series: int | str | None = None,
    level: int | None = None,
    check: bool = True,
    saturation: float = 1e-4,
) -> xr.DataArray:
    """Read one image of photon counts.

    Uncompressed TIFF and ``.npy`` are mapped, not read: opening one takes no memory, whatever its size. (Files under
    1 GB in the other byte order are read, because few libraries accept it.) All other formats are read into memory,
    but only what was chosen of them; where that does not fit, the error says so.

    Parameters
    ----------
    path
        A TIFF, ImageJ TIFF, OME-TIFF, ``.npy``, OME-Zarr (the folder), HDF5, CZI, LIF, ND2, PTU or SDT file. Photon
        streams (PTU, SDT) become counts per pixel, frame and channel, whatever the arrival times within the laser's
        period.
    axes
        The axes of the array as stored, out of ``t c z y x``, for files that do not know them.
    channel
        Keep this channel only: counted from 0, or its name.
    time
        Keep this frame only, counted from 0, without its axis; or a range such as ``"0:50"``, ``"10:"`` or ``"::2"``,
        as in Python.
    series
        Which image of a file that holds several (series, scenes, stage positions, fields, datasets): counted from 0,
        or its name.
    level
        Which level of a pyramid; the full resolution, 0, when not given.
    check
        Refuse values that cannot be photon counts; this reads the whole file, piece by piece.
    saturation
        Largest accepted share of pixels at the detector's ceiling.

    Returns
    -------
    xarray.DataArray
        Counts with dims out of ``t c z y x``, in this order. Axes of length 1 other than y and x are dropped
        unless named in ``axes``. Where known, z, y and x have coordinates in micrometres, t in seconds, and
        c has names; a single channel keeps its name as a coordinate ``c`` without an axis. The attribute ``source``
        is the file's name, ``series`` that of the image in it, if it has one.

    Raises
    ------
    UnreadableImageError
        If there is no such file, it is empty, truncated or no image, holds several images of which none was chosen,
        does not fit into memory, or needs a library that is not installed.
    AxesError
        If the axes are unknown, or ``axes``, ``channel``, ``time``, ``series`` or ``level`` do not fit.
    NotPhotonCountsError
        If it is a picture (RGB, PNG, JPEG) or its values cannot be counts.

    Warns
    -----
    UserWarning
        If the level is not the full resolution, or pixel sizes are left out because they have no unit.
    """
    return _read(path, axes, channel=channel, time=time, series=series, level=level, check=check, saturation=saturation)


def _read(
    path: Path | str,
    axes: str | None,
    *,
    channel: int | str | None,
    time: int | str | None,
    series: int | str | None,
    level: int | None,
    check: bool,
    saturation: float,
    first: bool = True,
) -> xr.DataArray:
    """Read an image, the first or another of a set: what holds of all of them is said once."""
    path = Path(path)
    _check_file(path)
    stored = open_image(path, axes, series, level)
    dims = axes_of(path, stored.shape, stored.axes, axes)
    parts, single = _parts(path, stored, dims, channel, time)
    values = _values(path, stored, tuple(parts.get(dim, slice(None)) for dim in dims))
    _warn(path, stored, level if first else None)
    photons = xr.DataArray(values, dims=list(dims), name="photons", attrs={"source": path.name})
    photons = photons.transpose(*(axis for axis in AXES if axis in dims))
    photons = calibrate(photons, stored.meta, parts)
    keep = {"y", "x", *(axes or "").lower()}
    gone = [d for d in photons.dims if d in single or (d not in keep and photons.sizes[d] == 1)]
    photons = photons.isel(dict.fromkeys(gone, 0)).drop_vars([d for d in gone if d != "c"], errors="ignore")
    if check:
        check_photon_counts(photons, name=path.name, saturation=saturation)
    return photons


def read_images(
    paths: Path | str | Sequence[Path | str],
    axes: str | None = None,
    *,
    channel: int | str | None = None,
    time: int | str | None = None,
    series: int | str | None = None,
    level: int | None = None,
    check: bool = True,
    saturation: float = 1e-4,
) -> list[xr.DataArray]:
    """Read several images; a folder stands for all images in it, in natural order (2 before 10).

    Parameters and errors are those of :func:`read_photons`; every file, and every folder that is an OME-Zarr, is an
    image of its own.

    Returns
    -------
    list of xarray.DataArray
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in paths for file in _expand(Path(path))]
    if not files:
        raise UnreadableImageError("no images were given, expected at least one; name a file or a folder")
    return [
        _read(
            file,
            axes,
            channel=channel,
            time=time,
            series=series,
            level=level,
            check=check,
            saturation=saturation,
            first=number == 0,
        )
        for number, file in enumerate(files)
    ]


def check_output(path: Path, source: Path | None = None) -> None:
    """See that an image can be written to a path, before the work that makes it.

    Raises
    ------
    OutputError
        If the suffix is unknown, the folder does not exist, ``path`` is the ``source`` itself, or a folder that is no
        Zarr store stands there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"cannot write {path}: unknown suffix {path.suffix!r}; use {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder does not exist; create {path.parent} first")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input itself and is not overwritten; give the output another name")
    if path.suffix.lower() in _FOLDERS and path.exists() and not is_zarr(path):
        raise OutputError(f"{path} is there already and is no Zarr store, so that it is kept; choose another name")


def write_image(path: Path | str, image: xr.DataArray, *, compression: str | None = None) -> None:
    """Write an image so that Fiji and napari open it with its axes and pixel sizes.

    The file appears when it is complete; until then, and on failure, whatever was there stays.

    Parameters
    ----------
    path
        ``.tif`` writes an ImageJ hyperstack, or OME-TIFF where ImageJ's format cannot hold the data (32-bit
        integers, 4 GB and more); ``.ome.tif`` OME-TIFF; ``.ome.zarr`` or ``.zarr`` OME-Zarr 0.5 with a pyramid;
        ``.h5`` or ``.hdf5`` one dataset, for ilastik and Fiji's HDF5 plugin; ``.npy`` the bare array, without pixel
        sizes.
    image
        Dims out of ``t c z y x``, any order, or ``sample`` instead of ``t``: none of these formats has an axis for
        posterior samples, so viewers show them as frames. Floats are written as float32, except to ``.npy``.
    compression
        For TIFF: ``"zlib"`` or another that tifffile knows; compressed files cannot be mapped when read. For HDF5:
        ``"gzip"`` or another of its filters. OME-Zarr is always compressed.

    Raises
    ------
    AxesError
        If dims are unknown or y or x is missing.
    OutputError
        If the suffix is unknown, the file cannot be written, or its library is not installed.
    """
    path = Path(path)
    check_output(path)
    dims = ["t" if dim == "sample" else str(dim) for dim in image.dims]
    if not {"y", "x"} <= set(dims) <= set(AXES) or len(set(dims)) < len(dims):
        raise AxesError(
            f"cannot write an image with dims {' '.join(map(str, image.dims))}, expected y, x and some of t "
            "(or sample), c, z; rename them, or write one sample at a time"
        )
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, image.values, allow_pickle=False)
        return
    names = dict(zip(image.dims, dims, strict=True))
    image = image.rename({old: new for old, new in names.items() if old != new})
    tiff = suffix in (".tif", ".tiff")
    _write(path, image.transpose(*(d for d in ("tzcyx" if tiff else AXES) if d in dims)), compression)


def _write(path: Path, image: xr.DataArray, compression: str | None) -> None:
    values, axes, meta = _real(path, image), "".join(str(dim) for dim in image.dims), metadata_of(image)
    if path.suffix.lower() in _FOLDERS:
        from gap_bioimage.photons.formats.zarr_writer import write_zarr

        with replacing_folder(path) as folder:
            write_zarr(folder, values, axes, meta, path.name.removesuffix(path.suffix).removesuffix(".ome"))
        return
    if path.suffix.lower() in (".tif", ".tiff"):
        write_tiff(path, values, axes, meta, compression)
        return
    from gap_bioimage.photons.formats.hdf5 import write_hdf5

    with replacing(path) as temporary:
        write_hdf5(temporary, values, axes, meta, compression)


def _real(path: Path, image: xr.DataArray) -> npt.NDArray[Any]:
    """Return the values in a type that all formats know."""
    values = image.values
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    if values.dtype.kind not in "iu":
        raise OutputError(f"cannot write {path}: images hold real numbers, given {values.dtype}; write .npy instead")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _warn(path: Path, stored: Stored, level: int | None) -> None:
    if level:
        warnings.warn(
            f"level {level} of an image pyramid holds averages in most files, which are less noisy than photon counts; "
            "leave --level out to work on the counts themselves",
            stacklevel=4,
        )
    if stored.meta.unitless:
        told = ", ".join(f"{axis} {step:g}" for axis, step in stored.meta.unitless.items())
        warnings.warn(
            f"{path.name} does not say the unit of its pixel sizes ({told}), so that they are left out; store them "
            "with their unit: in HDF5 as the attribute element_size_um, in OME-Zarr as the unit of each axis",
            stacklevel=4,
        )


def _parts(
    path: Path, stored: Stored, dims: str, channel: int | str | None, time: int | str | None
) -> tuple[dict[str, slice], list[str]]:
    """Return what to read of c and t, and which of them then goes."""
    lengths = dict(zip(dims, stored.shape, strict=True))
    parts: dict[str, slice] = {}
    single = []
    if channel is not None:
        place = channel_of(path, channel, lengths.get("c", 1), stored.meta.channels)
        parts["c"] = slice(place, place + 1)
        single.append("c")
    if time is not None:
        parts["t"], one = frames_of(path, time, lengths.get("t", 1))
        single += ["t"] if one else []
    return {axis: part for axis, part in parts.items() if axis in dims}, [axis for axis in single if axis in dims]


def _values(path: Path, stored: Stored, index: tuple[slice, ...]) -> npt.NDArray[Any]:
    """Read part of an image, in this machine's byte order unless it is mapped."""
    if not stored.mapped:
        lengths = [len(range(*part.indices(n))) for part, n in zip(index, stored.shape, strict=True)]
        needed, free = math.prod(lengths) * stored.dtype.itemsize, psutil.virtual_memory().available
        if needed > free:
            raise UnreadableImageError(
                f"{path.name} takes {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB of memory are free, expected less; "
                "read part of it with --time 0:10, --channel 0 or --level 1, or write it as an uncompressed OME-TIFF, "
                "which need not be read at once"
            )
    with naming_damage(path):
        values = stored.read(index)
    return values if stored.mapped else np.asarray(values, dtype=values.dtype.newbyteorder("="))


def _expand(path: Path) -> list[Path]:
    if not path.is_dir() or is_zarr(path):
        return [path]
    files = [f for f in path.iterdir() if f.suffix.lower() in READABLE and not f.name.startswith(".")]
    files = [f for f in files if is_zarr(f) or not f.is_dir()]
    if not files:
        raise UnreadableImageError(f"the folder {path} holds no images, expected {', '.join(READABLE)} files")
    return sorted(files, key=lambda f: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", f.name.lower())])


def _check_file(path: Path) -> None:
    if is_zarr(path):
        return
    if path.is_dir():
        raise UnreadableImageError(f"{path} is a folder, expected one image; name one of the files in it")
    if not path.exists():
        raise UnreadableImageError(f"there is no file {path}, expected an image; check its name and folder")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise UnreadableImageError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    if not head:
        raise UnreadableImageError(f"{path} is empty, expected an image; copy or export it again")
    for magic, kind in _PICTURES.items():
        if head.startswith(magic):
            raise NotPhotonCountsError(
                f"{path.name} is a {kind} picture made for display, expected photon counts; export TIFF instead"
            )
