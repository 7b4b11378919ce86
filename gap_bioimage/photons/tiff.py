"""TIFF files opened without reading them, and never in part."""

from __future__ import annotations

import logging
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from gap_bioimage.errors import GapError, UnreadableImageError
from gap_bioimage.photons.tiff_metadata import Metadata, read_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_SWAP_LIMIT_BYTES = 10**9
_DESCRIPTION = 270  # the tag that holds OME-XML, ImageJ's words or tifffile's shape


def open_tiff(path: Path, axes: str | None = None) -> tuple[npt.NDArray[Any], str, Metadata]:
    """Map or read the one image of a TIFF.

    Parameters
    ----------
    path
        The file.
    axes
        Names of the axes, where the caller knows better; those of length 1 that it names are kept.

    Returns
    -------
    values, axes, metadata
        A memory map where the file is contiguous and uncompressed; tifffile's upper-case letters.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, truncated, no TIFF, or holds several images.
    """
    try:
        with _quiet_tifffile(), tifffile.TiffFile(path) as tif:
            if _is_truncated(tif) or any(page is None for page in _one_series(path, tif).pages):
                raise UnreadableImageError(
                    f"{path} is truncated: some of its planes are missing; copy or export it again"
                )
            series = tif.series[0]
            values, stored = _tiff_values(path, tif), series.axes
            if axes and len(axes) > values.ndim:
                values = _with_single_axes(values, series, axes.upper())
            return values, stored, read_metadata(tif)
    except GapError:
        raise
    except Exception as error:  # tifffile and its codecs raise many types on damaged files
        raise damaged(path, error) from None


def _one_series(path: Path, tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    if len(tif.series) == 1:
        return tif.series[0]
    shapes = ", ".join(str(series.shape) for series in tif.series[:4])
    raise UnreadableImageError(
        f"{path} holds {len(tif.series)} images of shapes {shapes}, expected one; save each as its own file"
    )


def _tiff_values(path: Path, tif: tifffile.TiffFile) -> npt.NDArray[Any]:
    series = tif.series[0]
    if series.dataoffset is None:  # compressed, tiled or scattered
        return np.asarray(series.asarray())
    values = tifffile.memmap(path, mode="r").reshape(series.shape)
    if not values.dtype.isnative and values.nbytes < _SWAP_LIMIT_BYTES:
        return np.asarray(values, dtype=values.dtype.newbyteorder("="))
    return values


def _with_single_axes(values: npt.NDArray[Any], series: tifffile.TiffPageSeries, axes: str) -> npt.NDArray[Any]:
    """Give back the axes of length 1 that tifffile squeezed and the caller named."""
    lengths = dict(zip(series.get_axes(squeeze=False), series.get_shape(squeeze=False), strict=True))
    same_order = [axis for axis in axes if axis in series.axes] == list(series.axes)
    if not (same_order and set(axes) <= set(lengths)):
        return values
    return values.reshape([lengths[axis] for axis in axes])


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


def damaged(path: Path, error: Exception) -> UnreadableImageError:
    """Return the error for a file that a library could not read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImageError(
        f"{path} cannot be read as an image ({reason}), expected a whole TIFF, OME-TIFF or .npy file; "
        "copy it again, or convert it to OME-TIFF in Fiji"
    )


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
