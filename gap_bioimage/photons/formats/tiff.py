"""TIFF files opened without reading them, and never in part."""

from __future__ import annotations

import logging
import math
import struct
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, naming_damage
from gap_bioimage.photons.formats.tiff_metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_SWAP_LIMIT_BYTES = 10**9
_DESCRIPTION = 270  # the tag that holds OME-XML, ImageJ's words or tifffile's shape


def open_tiff(path: Path, axes: str | None, series: int | str | None, level: int | None) -> Stored:
    """Open one image of a TIFF, ImageJ TIFF, OME-TIFF or LSM.

    Parameters
    ----------
    path
        The file.
    axes
        Names of the axes, where the caller knows better; those of length 1 that it names are kept.
    series
        Which image, by number or by OME's name; stage positions are images of their own.
    level
        Which level of a pyramid.

    Returns
    -------
    Stored
        Mapped where the file is contiguous and uncompressed, except under 1 GB in the other byte order.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, truncated, no TIFF, or holds several images of which none was chosen.
    AxesError
        If there is no such series or level.
    """
    with naming_damage(path):
        with _quiet_tifffile(), tifffile.TiffFile(path) as tif:
            if _is_truncated(tif):
                raise _truncated(path)
            place = choose(path, [(_name(image), image.shape) for image in tif.series], series)
            levels = tif.series[place].levels
            number = choose_level(path, [image.shape for image in levels], level)
            image = levels[number]
            if any(page is None for page in image.pages):
                raise _truncated(path)
            meta = _scaled(read_metadata(tif, place), levels[0], image)
            meta = replace(meta, name=_name(levels[0]))
            single = _single_axes(image, axes.upper()) if axes and len(axes) > len(image.shape) else None
            names, shape = single or (image.axes, image.shape)
            values = _map(path, image, place, number)

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        if values is not None:
            return values.reshape(shape)[index]
        return _decode(path, place, number, tuple(shape), index)

    return Stored(names, tuple(shape), np.dtype(image.dtype), read, meta, mapped=values is not None)


def _name(image: tifffile.TiffPageSeries) -> str:
    # other kinds are named by tifffile itself, after the kind
    return str(image.name) if image.kind == "ome" and image.name else ""


def _truncated(path: Path) -> UnreadableImageError:
    return UnreadableImageError(f"{path} is truncated: some of its planes are missing; copy or export it again")


def _scaled(meta: Metadata, full: tifffile.TiffPageSeries, image: tifffile.TiffPageSeries) -> Metadata:
    """Return the calibration of a level, of which a TIFF gives that of the full resolution only."""
    long, short = (dict(zip(each.axes.lower(), each.shape, strict=True)) for each in (full, image))
    sizes = {
        # rounded lengths make rounded ratios: a level is half or a third, not 0.498
        axis: size * max(1, round(long[axis] / short[axis])) if axis in long and axis in short else size
        for axis, size in meta.pixel_size_um.items()
    }
    return replace(meta, pixel_size_um=sizes)


def _map(path: Path, image: tifffile.TiffPageSeries, place: int, number: int) -> npt.NDArray[Any] | None:
    """Return a memory map, or None where the values are compressed, tiled, scattered or in the other byte order."""
    if image.dataoffset is None:
        return None
    values: npt.NDArray[Any] = tifffile.memmap(path, series=place, level=number, mode="r")
    if not values.dtype.isnative and values.nbytes < _SWAP_LIMIT_BYTES:
        return None
    return values


def _decode(path: Path, place: int, number: int, shape: tuple[int, ...], index: tuple[slice, ...]) -> npt.NDArray[Any]:
    """Return part of an image, decoding no other pages where each page is a plane."""
    with _quiet_tifffile(), tifffile.TiffFile(path) as tif:
        image = tif.series[place].levels[number]
        planes = np.arange(math.prod(shape[:-2])).reshape(shape[:-2])
        if len(image.pages) != planes.size or image.pages[0] is None or image.pages[0].shape != shape[-2:]:
            return np.asarray(image.asarray()).reshape(shape)[index]
        wanted = planes[index[:-2]]
        values = np.asarray(tif.asarray(key=wanted.ravel().tolist(), series=place, level=number))
        rows, columns = index[-2:]
        return values.reshape(*wanted.shape, *shape[-2:])[..., rows, columns]


def _single_axes(image: tifffile.TiffPageSeries, axes: str) -> tuple[str, tuple[int, ...]] | None:
    """Give back the axes of length 1 that tifffile squeezed and the caller named."""
    if [axis for axis in axes if axis in image.axes] != list(image.axes):
        return None
    lengths = dict(zip(image.axes, image.shape, strict=True))
    return axes, tuple(lengths.get(axis, 1) for axis in axes)


def _is_truncated(tif: tifffile.TiffFile) -> bool:
    """Whether pages or their description lie behind the end of the file.

    tifffile only logs both, and then returns the first page as if it were all, or planes without axes.
    """
    first, last = tif.pages.first, tif.pages[len(tif.pages) - 1]
    described, _ = _directory(tif, first.offset)
    _, following = _directory(tif, last.offset)
    return following != 0 or (_DESCRIPTION in described and _DESCRIPTION not in first.tags)


def _directory(tif: tifffile.TiffFile, offset: int) -> tuple[set[int], int]:
    """Return the tag codes of a page, and the offset of the page after it (0 at the end)."""
    layout, handle = tif.tiff, tif.filehandle
    handle.seek(offset)
    (count,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
    entries = handle.read(count * layout.tagsize)
    codes = {code for code, *_ in struct.iter_unpack(f"{tif.byteorder}H{layout.tagsize - 2}s", entries)}
    (following,) = struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))
    return codes, following


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """Keep tifffile's log of a damaged file from the terminal; the error says it in one sentence."""
    logger = logging.getLogger("tifffile")

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
