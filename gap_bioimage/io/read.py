"""From a path to counts: open, choose a series, name the axes, choose a channel and frames, load, check."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

from gap_bioimage.errors import AxesError, GapError, GapWarning, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io import select
from gap_bioimage.io.image import (
    AXES,
    ON_DISK,
    Lazy,
    Metadata,
    Stored,
    image_of,
    middle_slice,
    natural,
    refuse_overflow,
)
from gap_bioimage.io.ome_zarr import is_zarr, open_zarr
from gap_bioimage.io.tiff import open_tiff
from gap_bioimage.io.vendors import READERS, open_with_bioio

READABLE = (".tif", ".tiff", ".lsm", ".npy", ".zarr", ".ozx", *READERS)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SWAP_LIMIT_BYTES = 10**9
_PIECE = {"z": 32, "y": 512, "x": 512}


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

    Uncompressed TIFF and ``.npy`` are memory-mapped, except for files under 1 GB in non-native byte order, which few
    libraries accept. For all other formats, only the selected part is read into memory.

    Parameters
    ----------
    path
        A TIFF, ImageJ TIFF, OME-TIFF, ``.npy``, OME-Zarr (the folder, ``.ozx`` or ``.zip``), HDF5, CZI, LIF, ND2, PTU
        or SDT file. Photon streams (PTU, SDT) become counts per pixel, frame and channel, summed over the arrival times
        within the laser period.
    axes
        The axes of the array as stored, out of ``t c z y x``, for files that do not name them.
    channel
        Keep only this channel: its index from 0, or its name.
    time
        Keep only this frame (its index from 0), without its axis; or a range, such as ``"0:50"`` or ``"::2"``.
    series, level
        The image in a file that holds several (scenes, positions, fields, datasets): its index from 0, or its name;
        the level of a pyramid, by default 0, the full resolution.
    check, saturation
        Refuse values that cannot be photon counts, which reads the whole file, piece by piece; the largest accepted
        fraction of pixels at the detector's ceiling.

    Returns
    -------
    xarray.DataArray
        Counts with dims out of ``t c z y x``, in this order. Axes of length 1 other than y and x are dropped
        unless named in ``axes``. Where known, z, y and x have coordinates in micrometres, t in seconds, and
        c has names; a single channel keeps its name as a coordinate ``c`` without an axis. The attribute ``source``
        is the name of the file, ``series`` that of the image in it, if it has one.

    Raises
    ------
    UnreadableImageError
        If the file is missing, empty, not an image, or lacks selected planes; if it holds several images and ``series``
        is not given; if it does not fit into memory, or needs a library that is not installed.
    AxesError
        If the axes are unknown, or ``axes``, ``channel``, ``time``, ``series`` or ``level`` do not fit.
    NotPhotonCountsError
        If it is a picture (RGB, PNG, JPEG) or its values cannot be counts.

    Warns
    -----
    UserWarning
        If the level is not the full resolution, a recording stopped early, or pixel sizes have no unit.
    """
    chosen = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    return _read_all([Path(path)], chosen, saturation if check else None)[0]


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
    on_disk: bool = False,
) -> list[xr.DataArray]:
    """Read several images; a folder stands for all images in it, in natural order (2 before 10).

    Parameters and errors are those of :func:`read_photons`; every file, and every folder that is an OME-Zarr, is one
    image. With ``on_disk``, images that do not fit into memory stay on disk and are read where they are indexed, as in
    training; a piece from their middle is checked.

    Returns
    -------
    list of xarray.DataArray
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not (files := image_files(*map(Path, paths))):
        raise UnreadableImageError("no images were given, expected at least one; name a file or a folder")
    chosen = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    return _read_all(files, chosen, saturation if check else None, on_disk)


def image_files(*paths: Path) -> list[Path]:
    """Return the images at these paths, those of folders in natural order, and one file of each OME-TIFF set."""
    if len(listed := [file for path in paths for file in _listed(path)]) == 1:
        return listed
    files: list[Path] = []
    members: set[str] = set()
    for file in listed:
        if (own := str(file.resolve())) not in members:
            files.append(file)
            members |= _files_of_set(file) - {own}  # a file that is given twice is read twice
    return files


def _listed(path: Path) -> list[Path]:
    if not path.is_dir() or is_zarr(path):
        return [path]
    files = [f for f in path.iterdir() if f.suffix.lower() in READABLE and not f.name.startswith(".")]
    files = [f for f in files if is_zarr(f) or not f.is_dir()]
    if not files:
        raise UnreadableImageError(f"the folder {path} holds no images, expected {', '.join(READABLE)} files")
    return sorted(files, key=lambda file: natural(file.name))


def _files_of_set(path: Path) -> set[str]:
    if not path.name.lower().endswith((".ome.tif", ".ome.tiff")):
        return set()
    with suppress(GapError), _damage_reported(path):  # errors are reported when it is read
        return {file for image in _open(path) for level in image.levels.values() for file in level.encoding["files"]}
    return set()


def _read_all(
    files: Sequence[Path], chosen: dict[str, Any], saturation: float | None, on_disk: bool = False
) -> list[xr.DataArray]:
    from gap_bioimage.counts import check_photon_counts

    images: list[xr.DataArray] = []
    for file in files:
        image = open_image(file, **chosen)
        if on_disk and not image.encoding.get("mapped") and image.nbytes > psutil.virtual_memory().available:
            image.encoding[ON_DISK] = True
            middle = {axis: middle_slice(n, _PIECE.get(str(axis), 1)) for axis, n in image.sizes.items()}
            piece = image.isel(middle).load()
        else:
            image = piece = loaded(image, file)
        refuse_overflow(piece, file.name)
        if saturation is not None:
            check_photon_counts(piece, name=file.name, saturation=saturation)
        images.append(image)
    if chosen["level"]:
        message = f"level {chosen['level']} of an image pyramid holds averages in most files; omit level to read counts"
        warnings.warn(message, GapWarning, stacklevel=3)
    return images


def open_image(path: Path, axes: str | None = None, **chosen: Any) -> xr.DataArray:
    """Open one image without loading its values, with the choices of :func:`read_photons`, one after the other."""
    with _damage_reported(path):
        image = select.choose_image(path, _open(path), chosen.get("series"), chosen.get("level"))
    image = select.name_axes(image, axes, path.name)
    image = select.choose_channel(image, chosen.get("channel"), path.name)
    image = select.choose_frames(image, chosen.get("time"), path.name)
    if warning := image.attrs.pop("metadata").warning:
        warnings.warn(f"{path.name} {warning}", GapWarning, stacklevel=5)
    single = [dim for dim in image.dims if image.sizes[dim] == 1 and dim not in ("y", "x", *(axes or "").lower())]
    image = image.isel(dict.fromkeys(single, 0)).drop_vars([dim for dim in single if dim != "c"], errors="ignore")
    return image.assign_attrs(source=path.name)


def open_volume(path: Path, **chosen: Any) -> xr.DataArray:
    """Open an image, or a folder with one plane per file in natural order as one stack, without loading its values."""
    if not path.is_dir() or is_zarr(path):
        return open_image(path, **chosen)
    files = image_files(path)
    first = open_image(files[0], **chosen)
    if len(files) == 1:
        return first
    if set(first.dims) != {"y", "x"}:
        axes = " ".join(map(str, first.dims))
        raise AxesError(f"{files[0]} has axes {axes}, expected planes (y x) in a folder; name one of its files instead")

    def plane(file: Path, index: tuple[Any, ...]) -> Any:
        opened = open_image(file, **chosen)
        if (opened.shape, opened.dtype) != (first.shape, first.dtype):
            raise AxesError(f"{file} and {files[0].name} differ in shape or type; keep only planes of one stack")
        return loaded(opened[index], file).values

    def read(index: tuple[Any, ...]) -> Any:
        number, *inner = index
        if isinstance(number, slice):
            return np.stack([plane(file, tuple(inner)) for file in files[number]])
        return plane(files[number], tuple(inner))

    stack = image_of(Lazy((len(files), *first.shape), first.dtype, read), ["z", *map(str, first.dims)], Metadata())
    stack = stack.assign_coords({name: coord for name, coord in first.coords.items() if name in ("y", "x", "c")})
    stack.attrs = {"source": path.name}
    return stack


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Turn what libraries and codecs raise on damaged files into an UnreadableImageError; GapErrors pass."""
    try:
        yield
    except GapError:
        raise
    except Exception as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        problem = f"{path} cannot be read as an image ({why or type(error).__name__})"
        hint = "copy it again, or convert it to OME-TIFF in Fiji"
        raise UnreadableImageError(f"{problem}, expected a complete file in a known format; {hint}") from None


def _open(path: Path) -> list[Stored]:
    """Return the images of a file by its first bytes (HDF5, .npy, TIFF) or its suffix; others are read with bioio."""
    suffix, zarr = path.suffix.lower(), is_zarr(path) or path.suffix.lower() in (".ozx", ".zip")
    head = b"" if is_zarr(path) else _check_file(path)
    suffix = ".h5" if head.startswith(b"\x89HDF") else suffix  # programs use many suffixes for HDF5
    try:
        if head.startswith(b"\x93NUMPY"):
            return [Stored("", {0: image_of(np.load(path, mmap_mode="r", allow_pickle=False), (), Metadata())})]
        if zarr or suffix in READERS:
            return list(open_zarr(path) if zarr else READERS[suffix](path))
        if images := open_tiff(path) if head.startswith(_TIFF) else open_with_bioio(path):
            return images
    except ImportError:
        hint = f"pip install 'gap-bioimage[{'zarr' if zarr else 'formats'}]'"
        raise UnreadableImageError(f"{path.name} needs a library that is not installed; type {hint}") from None
    problem = f"{path} cannot be read as an image: its content is none of {', '.join(READABLE)}"
    raise UnreadableImageError(f"{problem}; copy it again, or export it as OME-TIFF, such as from Fiji")


def loaded(image: xr.DataArray, path: Path) -> xr.DataArray:
    """Return an image or a part of it with values, dims in order, bytes in native order (unless mapped and large)."""
    mapped = image.encoding.get("mapped")
    if not mapped:
        if image.nbytes > (free := psutil.virtual_memory().available):
            problem = f"{path.name} takes {image.nbytes / 1e9:.3g} GB and {free / 1e9:.3g} GB of memory are free"
            hint = 'read part of it with time="0:10", channel=0 or level=1, or save it as an uncompressed OME-TIFF'
            raise UnreadableImageError(f"{problem}; {hint}")
        with _damage_reported(path):
            image.load()
    if not image.dtype.isnative and (image.nbytes < _SWAP_LIMIT_BYTES or not mapped):
        image = image.astype(image.dtype.newbyteorder("="))
    return image.transpose(*(axis for axis in AXES if axis in image.dims))


def _check_file(path: Path) -> bytes:
    if path.is_dir():
        raise UnreadableImageError(f"{path} is a folder, expected one image; name one of the files in it")
    if not path.exists():
        raise UnreadableImageError(f"there is no file {path}, expected an image; check its path, or download it first")
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise UnreadableImageError(f"{path} is empty, expected an image; copy or export it again")
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")):
        raise NotPhotonCountsError(f"{path.name} is a picture for display; export the photon counts as TIFF")
    return head
