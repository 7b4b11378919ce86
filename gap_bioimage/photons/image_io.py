"""Image files in and out: arrays with named axes, calibrated in micrometres."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import xarray as xr

from gap_bioimage.errors import AxesError, NotPhotonCountsError, OutputError, UnreadableImageError
from gap_bioimage.files import replacing
from gap_bioimage.photons.checks import check_photon_counts
from gap_bioimage.photons.tiff import damaged, open_tiff
from gap_bioimage.photons.tiff_metadata import Metadata, to_imagej, to_ome

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

AXES = "tczyx"
SUFFIXES = (".tif", ".tiff", ".npy")
_PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP"}
_IMAGEJ_LIMIT_BYTES = 4 * 10**9  # classic TIFF has 32-bit offsets; the rest is for its tags


def read_photons(
    path: Path | str,
    axes: str | None = None,
    *,
    channel: int | None = None,
    check: bool = True,
    saturation: float = 1e-4,
) -> xr.DataArray:
    """Read one image of photon counts.

    Uncompressed files are mapped, not read: opening one takes no memory, whatever its size. (Files under
    1 GB in the other byte order are read, because few libraries accept it.)

    Parameters
    ----------
    path
        A TIFF, ImageJ TIFF, OME-TIFF or ``.npy`` file.
    axes
        The axes of the array as stored, out of ``t c z y x``, for files that do not know them.
    channel
        Keep this channel only, counted from 0.
    check
        Refuse values that cannot be photon counts; this reads the whole file, piece by piece.
    saturation
        Largest accepted share of pixels at the detector's ceiling.

    Returns
    -------
    xarray.DataArray
        Counts with dims out of ``t c z y x``, in this order. Axes of length 1 other than y and x are dropped
        unless named in ``axes``. Where known, z, y and x have coordinates in micrometres, t in seconds, and
        c has names.

    Raises
    ------
    UnreadableImageError
        If there is no such file, or it is empty, truncated or no image.
    AxesError
        If the axes are unknown, or ``axes`` or ``channel`` do not fit.
    NotPhotonCountsError
        If it is a picture (RGB, PNG, JPEG) or its values cannot be counts.
    """
    path = Path(path)
    _check_file(path)
    values, stored, meta = _open_npy(path) if path.suffix.lower() == ".npy" else open_tiff(path, axes)
    dims = _axes_of(path, values.shape, stored, axes)
    photons = xr.DataArray(values, dims=list(dims), name="photons", attrs={"source": path.name})
    photons = photons.transpose(*(axis for axis in AXES if axis in dims))
    photons = _calibrate(photons, meta)
    if channel is not None:
        photons = _select_channel(path, photons, channel)
    keep = {"y", "x", *(axes or "").lower()}
    photons = photons.squeeze([d for d in photons.dims if d not in keep and photons.sizes[d] == 1], drop=True)
    if check:
        check_photon_counts(photons, name=path.name, saturation=saturation)
    return photons


def read_images(
    paths: Path | str | Sequence[Path | str],
    axes: str | None = None,
    *,
    channel: int | None = None,
    check: bool = True,
    saturation: float = 1e-4,
) -> list[xr.DataArray]:
    """Read several images; a folder stands for all images in it, in natural order (2 before 10).

    Parameters and errors are those of :func:`read_photons`; every file is an image of its own.

    Returns
    -------
    list of xarray.DataArray
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in paths for file in _expand(Path(path))]
    if not files:
        raise UnreadableImageError("no images were given, expected at least one; name a file or a folder")
    return [read_photons(f, axes, channel=channel, check=check, saturation=saturation) for f in files]


def pixel_size_um(image: xr.DataArray) -> dict[str, float]:
    """Return the known pixel sizes in micrometres, by axis (``z``, ``y``, ``x``)."""
    sizes = {axis: _step(image, axis) for axis in "zyx"}
    return {axis: size for axis, size in sizes.items() if size is not None}


def check_output(path: Path, source: Path | None = None) -> None:
    """See that an image can be written to a path, before the work that makes it.

    Raises
    ------
    OutputError
        If the suffix is unknown, the folder does not exist, or ``path`` is the ``source`` itself.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"cannot write {path}: unknown suffix {path.suffix!r}; use {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder does not exist; create {path.parent} first")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise OutputError(f"{path} is the input itself and is not overwritten; give the output another name")


def write_image(path: Path | str, image: xr.DataArray, *, compression: str | None = None) -> None:
    """Write an image so that Fiji opens it with its axes and pixel sizes.

    The file appears when it is complete; until then, and on failure, whatever was there stays.

    Parameters
    ----------
    path
        ``.tif`` writes an ImageJ hyperstack, or OME-TIFF where ImageJ's format cannot hold the data (32-bit
        integers, 4 GB and more); ``.ome.tif`` OME-TIFF; ``.npy`` the bare array, without pixel sizes.
    image
        Dims out of ``t c z y x``, any order, or ``sample`` instead of ``t``: TIFF has no axis for posterior
        samples, so Fiji shows them as frames. Floats are written as float32.
    compression
        For TIFF: ``"zlib"`` or another that tifffile knows. Compressed files cannot be mapped when read.

    Raises
    ------
    AxesError
        If dims are unknown or y or x is missing.
    OutputError
        If the suffix is unknown or the file cannot be written.
    """
    path = Path(path)
    check_output(path)
    dims = ["t" if dim == "sample" else str(dim) for dim in image.dims]
    if not {"y", "x"} <= set(dims) <= set(AXES) or len(set(dims)) < len(dims):
        raise AxesError(
            f"cannot write an image with dims {' '.join(map(str, image.dims))}, expected y, x and some of t "
            "(or sample), c, z; rename them, or write one sample at a time"
        )
    if path.suffix.lower() == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, image.values, allow_pickle=False)
        return
    names = dict(zip(image.dims, dims, strict=True))
    image = image.rename({old: new for old, new in names.items() if old != new})
    _write_tiff(path, image.transpose(*(d for d in "tzcyx" if d in dims)), compression)


def _write_tiff(path: Path, image: xr.DataArray, compression: str | None) -> None:
    values = _writable(path, image.values)
    shown = "".join(str(dim) for dim in image.dims).upper()
    meta = _metadata_of(image)
    imagej = values.dtype in (np.uint8, np.uint16, np.float32) and values.nbytes < _IMAGEJ_LIMIT_BYTES
    options: dict[str, Any] = {"photometric": "minisblack", "compression": compression}
    if imagej and not path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        words, resolution = to_imagej(meta, shown, values.shape)
        options |= {"imagej": True, "metadata": words, "resolution": resolution}
    else:
        options |= {"ome": True, "bigtiff": True, "metadata": to_ome(meta, shown)}
    with replacing(path) as temporary:
        try:
            tifffile.imwrite(temporary, values, **options)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise OutputError(f"cannot write {path} ({reason}); try it without compression, or as .npy") from error


def _writable(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the values in a type that TIFF readers know."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        narrow = np.uint32 if values.min(initial=0) >= 0 else np.int32
        if values.max(initial=0) <= np.iinfo(narrow).max and values.min(initial=0) >= np.iinfo(narrow).min:
            return values.astype(narrow)
        raise OutputError(f"cannot write {path}: its 64-bit integers do not fit into 32 bits; write .npy instead")
    if values.dtype.kind not in "iu":
        raise OutputError(f"cannot write {path}: TIFF holds real numbers, given {values.dtype}; write .npy instead")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _metadata_of(image: xr.DataArray) -> Metadata:
    names: tuple[str, ...] = ()
    if "c" in image.coords and image.coords["c"].dtype.kind in "UO":
        names = tuple(str(name) for name in image.coords["c"].values.ravel())
    return Metadata(pixel_size_um(image), _step(image, "t"), names)


def _calibrate(image: xr.DataArray, meta: Metadata) -> xr.DataArray:
    steps = dict(meta.pixel_size_um)
    if meta.interval_s is not None:
        steps["t"] = meta.interval_s
    coords: dict[str, Any] = {}
    for axis, step in steps.items():
        if axis in image.dims:
            unit = "s" if axis == "t" else "um"
            # The step is kept as well, because an axis of length 1 has no differences.
            coords[axis] = (axis, np.arange(image.sizes[axis]) * step, {"units": unit, "step": step})
    if "c" in image.dims and len(meta.channels) == image.sizes["c"]:
        coords["c"] = ("c", list(meta.channels))
    return image.assign_coords(coords)


def _step(image: xr.DataArray, axis: str) -> float | None:
    if axis not in image.dims or axis not in image.coords or image.coords[axis].dtype.kind not in "fiu":
        return None
    coord = image.coords[axis]
    if coord.size < 2:
        step = coord.attrs.get("step")
        return None if step is None else float(step)
    step = abs(float(coord[-1]) - float(coord[0])) / (coord.size - 1)
    return float(f"{step:.9g}") if step > 0 else None


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
    if not files:
        raise UnreadableImageError(f"the folder {path} holds no images, expected {', '.join(SUFFIXES)} files")
    return sorted(files, key=lambda f: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", f.name.lower())])


def _check_file(path: Path) -> None:
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


def _open_npy(path: Path) -> tuple[npt.NDArray[Any], str, Metadata]:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise damaged(path, error) from None
    if not isinstance(values, np.ndarray):
        raise UnreadableImageError(f"{path} holds several arrays, expected one; save it with numpy.save")
    if values.ndim == 2:
        return values, "YX", Metadata()
    return values, "Q" * values.ndim, Metadata()


def _axes_of(path: Path, shape: tuple[int, ...], stored: str, axes: str | None) -> str:
    if axes is not None:
        return _given_axes(path, shape, axes.lower())
    if "S" in stored:
        raise NotPhotonCountsError(
            f"{path.name} is an RGB photograph (axes {stored}), expected one channel of photon counts; "
            "if its colours are detector channels, name the axes, for example --axes yxc"
        )
    if set(stored) <= set(AXES.upper()) and {"Y", "X"} <= set(stored):
        return stored.lower()
    if len(shape) < 2 or len(shape) > len(AXES):
        raise AxesError(
            f"{path.name} has shape {shape}, expected 2 to 5 axes out of t, c, z, y, x; save it as an image"
        )
    guess = _guess(shape, stored)
    raise AxesError(
        f"{path.name} has shape {shape} and does not say what its axes are, expected some of t, c, z, y, x; "
        f"if they are {guess}, add --axes {guess} (in Python axes={guess!r})"
    )


def _given_axes(path: Path, shape: tuple[int, ...], axes: str) -> str:
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        raise AxesError(f"--axes {axes} is not an order of axes, expected y, x and some of t, c, z; try --axes zyx")
    if len(axes) != len(shape):
        raise AxesError(
            f"--axes {axes} names {len(axes)} axes but {path.name} has {len(shape)}, shape {shape}; name each one"
        )
    return axes


def _guess(shape: tuple[int, ...], stored: str) -> str:
    known = [letter.lower() if letter in AXES.upper() else "" for letter in stored]
    known[-2:] = ["y", "x"]
    for i, length in enumerate(shape[:-2]):
        if not known[i]:
            order = "czt" if length <= 3 else "ztc"
            known[i] = next((axis for axis in order if axis not in known), "?")
    return "".join(known)


def _select_channel(path: Path, photons: xr.DataArray, channel: int) -> xr.DataArray:
    count = photons.sizes.get("c", 1)
    if not 0 <= channel < count:
        raise AxesError(
            f"channel {channel} was asked for, but {path.name} has {count} (counted from 0); choose 0 to {count - 1}"
        )
    return photons.isel(c=channel, drop=True) if "c" in photons.dims else photons
