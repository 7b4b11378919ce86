"""TIFF: plain, ImageJ, OME, Micro-Manager, ScanImage and whatever else tifffile knows.

A file is a table of planes with the page that holds each, -1 where the file lacks it. Such planes are never made up:
the table goes with the image, until one is chosen that lacks none.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io.files import Stored, naming_damage
from gap_bioimage.io.image import Metadata, lazy_image, mapped_image, steps_of
from gap_bioimage.io.select import STORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import xarray as xr

_DESCRIPTION = 270  # the tag that holds OME-XML, ImageJ's words or tifffile's shape
_POSITIONS = "RM"  # tiles and stage positions are images of their own
_IMAGEJ_ORDERS = {"ctz": "ZTC", "zct": "TCZ", "ztc": "CTZ", "tcz": "ZCT", "tzc": "CZT"}


@dataclass(frozen=True)
class _Planes:
    """Where the planes of an image are: in pages, or one behind the other from an offset."""

    dims: str
    table: npt.NDArray[np.intp]
    page: Any
    series: Any = None
    offset: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.table.shape, *self.page.shape)


def open_tiff(path: Path) -> list[Stored]:
    """Return the images of a TIFF: its series, and of series with stage positions each position.

    Images are mapped where the file is contiguous and uncompressed.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, no TIFF, or cut so that nobody knows what is missing.
    """
    with naming_damage(path), _quiet_tifffile(), tifffile.TiffFile(path) as tif:
        count = len(tif.series) if not tif.is_imagej else 1
        return [stored for number in range(count) for stored in _images(path, tif, number)]


def _images(path: Path, tif: tifffile.TiffFile, number: int) -> Iterator[Stored]:
    series = tif.series[number]
    # other kinds are named by tifffile itself, after the kind
    name = str(series.name) if series.kind == "ome" and series.name else ""
    levels = [_planes(path, tif, level) for level in series.levels]
    first = levels[0]
    axis = next((place for place, dim in enumerate(first.dims[: first.table.ndim]) if dim in _POSITIONS), None)
    names = [name] if axis is None else _position_names(tif, first.table.shape[axis])
    for position, each in enumerate(names):
        cut = [level if axis is None else _at(level, axis, position) for level in levels]
        meta = replace(_metadata(tif, number), name=each)
        shapes = {level: planes.shape for level, planes in enumerate(cut)}
        yield Stored(each, shapes, lambda level, cut=cut, meta=meta: _opened(path, tif, cut, level, meta))


def _at(planes: _Planes, axis: int, position: int) -> _Planes:
    dims = planes.dims[:axis] + planes.dims[axis + 1 :]
    return replace(planes, dims=dims, table=planes.table.take(position, axis))


def _position_names(tif: tifffile.TiffFile, count: int) -> list[str]:
    summary = (tif.micromanager_metadata or {}).get("Summary", {}) if tif.is_micromanager else {}
    found = [str(each.get("Label", "")) for each in summary.get("StagePositions") or [] if isinstance(each, dict)]
    return found if len(found) == count else [f"position {place}" for place in range(count)]


def _opened(path: Path, tif: tifffile.TiffFile, levels: Sequence[_Planes], number: int, meta: Metadata) -> xr.DataArray:
    full, planes = levels[0], levels[number]
    # rounded lengths make rounded ratios: a level is half or a third, not 0.498
    ratio = {a.lower(): max(1, round(n / m)) for a, n, m in zip(full.dims, full.shape, planes.shape, strict=True)}
    meta = replace(meta, steps={axis: step * ratio.get(axis, 1) for axis, step in meta.steps.items()})
    whole = bool((planes.table >= 0).all())
    dtype = np.dtype(f"{tif.byteorder}{np.dtype(planes.page.dtype).str[1:]}")
    if whole and planes.offset is not None:
        values: npt.NDArray[Any] = np.memmap(path, dtype, "r", planes.offset, planes.shape)
        return mapped_image(values, planes.dims, meta)
    image = lazy_image(
        planes.shape, planes.page.dtype, planes.dims, lambda index: _read(path, tif, planes, dtype, index), meta
    )
    outer = list(image.dims[: planes.table.ndim])
    return image if whole else image.assign_coords({STORED: (outer, planes.table >= 0)})


def _read(path: Path, tif: tifffile.TiffFile, planes: _Planes, dtype: Any, index: tuple[Any, ...]) -> npt.NDArray[Any]:
    """Return part of an image, decoding no other pages."""
    outer = planes.table.ndim
    wanted, shape = planes.table[index[:outer]], planes.page.shape
    keys = np.ravel(wanted)
    if planes.offset is not None:
        values = np.memmap(path, dtype, "r", planes.offset, (int(planes.table.max()) + 1, *shape))[keys]
    else:
        tif.filehandle.open()
        with _quiet_tifffile(), tif:
            whole = planes.page is planes.series
            values = np.asarray(tif.asarray(key=None if whole else keys.tolist(), series=planes.series))
    return values.reshape(*np.shape(wanted), *shape)[(..., *index[outer:])]


def _planes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> _Planes:
    """Return where the planes of a level are."""
    page, pages = series.keyframe, list(series.pages)
    inner = len(page.shape)
    dims, lengths = series.axes[:-inner], series.shape[:-inner]
    if tif.is_imagej and math.prod((promised := _imagej_axes(tif, page))[1]) > math.prod(lengths):
        dims, lengths = promised
    elif _is_cut(tif) and series.kind not in ("ome", "mmstack", "scanimage"):
        raise UnreadableImageError(f"{path} is truncated: it breaks off after {len(pages)} planes; copy it again")
    elif series.kind == "scanimage" and (recorded := _scanimage(path, tif, len(pages))):
        return _Planes(recorded[0] + page.axes, recorded[1], page, series)
    elif series.shape[-inner:] != page.shape or series.transform is not None or (1 < len(pages) < math.prod(lengths)):
        return _Planes(series.axes, np.asarray(min(map(_held, pages), default=-1)), series, series)
    elif len(pages) > math.prod(lengths):
        dims, lengths = "I", (len(pages),)
    count, offset = math.prod(lengths), series.dataoffset
    if len(pages) == 1 and count > 1:  # one page describes all planes, which lie behind one another
        offset = page.dataoffsets[0]
        held = (tif.filehandle.size - offset) // max(page.nbytes, 1) if page.is_final else 0
        table = [place if place < held else -1 for place in range(count)]
    else:
        table = [place if _held(each) >= 0 else -1 for place, each in enumerate(pages)] + [-1] * (count - len(pages))
        offset = None if -1 in table or not page.is_final else offset
    return _Planes(dims + page.axes, np.asarray(table, np.intp).reshape(lengths), page, series, offset)


def _held(page: Any) -> int:
    """Return 0 where the values of a page are in its file, -1 where they lie behind its end or nowhere."""
    if page is None or not sum(page.databytecounts):
        return -1
    end = max(start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    return 0 if end <= page.parent.filehandle.size else -1


def _imagej_axes(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[str, tuple[int, ...]]:
    """Return the planes that ImageJ's words promise; where the end of a file is gone, tifffile sees the first only."""
    words = tif.imagej_metadata or {}
    order = _IMAGEJ_ORDERS.get(str(words.get("order", "")).lower(), "TZC")
    lengths = {"T": words.get("frames", 1), "Z": words.get("slices", 1), "C": words.get("channels", 1)}
    if set(page.axes) & {"S", "C"}:  # channels within the pages
        lengths["C"] = 1
    if math.prod(lengths.values()) == 1:
        return "I", (int(words.get("images", 1)),)
    dims = [axis for axis in order if lengths[axis] > 1]
    return "".join(dims), tuple(int(lengths[axis]) for axis in dims)


def _scanimage(path: Path, tif: tifffile.TiffFile, pages: int) -> tuple[str, npt.NDArray[np.intp]] | None:
    """Return axes and pages of the complete volumes of a recording, else of its complete slices, else of its frames.

    Frames of one slice follow each other, their channels within; None where an old header does not say.
    """
    words = (tif.scanimage_metadata or {}).get("FrameData", {})
    if "SI.hChannels.channelSave" not in words:
        return None

    def number(*keys: str) -> int:
        found = [words[f"SI.{key}"] for key in keys if isinstance(words.get(f"SI.{key}"), (int, float))]
        return int(found[0]) if found and math.isfinite(found[0]) and found[0] >= 1 else 1

    channels = max(np.size(words["SI.hChannels.channelSave"]), 1)
    frames = max(number("hStackManager.framesPerSlice") // number("hScan2D.logAverageFactor"), 1)
    slices = number("hStackManager.actualNumSlices", "hStackManager.numSlices")
    volumes = number("hStackManager.actualNumVolumes", "hStackManager.numVolumes")
    if words.get("SI.hStackManager.enable") is False:
        slices, volumes = 1, max(volumes, 1)
    flown = max(number("hStackManager.numFramesPerVolumeWithFlyback") // number("hStackManager.framesPerSlice"), slices)
    if slices == 1:
        flown, frames, volumes, wanted = 1, 1, pages // channels, frames * volumes
        kind = "frames"
    else:
        wanted, kind = volumes, "volumes"
    each = flown * frames * channels
    held = pages // each if slices > 1 else volumes
    if slices > 1 and not held:
        slices = flown = pages // (frames * channels)
        wanted, kind, held = number("hStackManager.actualNumSlices", "hStackManager.numSlices"), "slices", 1
        each = flown * frames * channels
    if not slices or not held:
        raise UnreadableImageError(f"{path} holds no complete slice of its recording; record it again")
    found = slices if kind == "slices" else held
    if found < wanted or pages % (frames * channels if kind == "slices" else each):
        warnings.warn(
            f"{path.name} holds {found} complete {kind} of {wanted}, and {pages - held * each} planes more, which are "
            "left out: the recording stopped early, or goes on in another file",
            stacklevel=2,
        )
    table = np.arange(held * each).reshape(held, flown, frames, channels)[:, :slices]
    table = table.transpose(0, 2, 1, 3).reshape(held * frames, slices, channels)
    dims = "".join(axis for axis, length in zip("TZC", table.shape, strict=True) if length > 1)
    return dims, table.squeeze()


def _metadata(tif: tifffile.TiffFile, series: int) -> Metadata:
    """Return what a TIFF says of one of its images.

    A plain TIFF says nothing: its resolution is that of a printer or screen (72 per inch), not of a microscope.
    For the same reason centimetres and inches are not believed in ImageJ files, which copy them from plain
    ones.

    Source: OME-TIFF 2016-06 schema; ImageJ's ``TiffEncoder``; Micro-Manager's summary.
    """
    if tif.is_ome and tif.ome_metadata:
        return _of_ome(tif.ome_metadata, series)
    if tif.is_imagej and tif.imagej_metadata:
        return _of_imagej(tif, tif.imagej_metadata)
    if tif.is_micromanager and (summary := (tif.micromanager_metadata or {}).get("Summary")):
        size = summary.get("PixelSize_um")
        sizes = {"z": (summary.get("z-step_um"), "um"), "y": (size, "um"), "x": (size, "um")}
        names = summary.get("ChNames")
        steps, _ = steps_of(sizes | {"t": (summary.get("Interval_ms"), "ms")})
        return Metadata(steps, tuple(map(str, names)) if isinstance(names, list) else ())
    return Metadata(description=str(tif.pages.first.description))


def _of_ome(xml: str, series: int) -> Metadata:
    try:
        pixels = ElementTree.fromstring(xml).findall("{*}Image")[series].find("{*}Pixels")  # noqa: S314  (expat bounds its expansion)
    except (IndexError, ElementTree.ParseError):  # a broken XML is a missing calibration
        return Metadata()
    if pixels is None:
        return Metadata()
    measured = {
        a: (pixels.get(f"PhysicalSize{a.upper()}"), pixels.get(f"PhysicalSize{a.upper()}Unit", "µm")) for a in "zyx"
    }
    steps, _ = steps_of(measured | {"t": (pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))})
    names = [channel.get("Name", "") for channel in pixels.findall("{*}Channel")]
    return Metadata(steps, tuple(names) if all(names) else ())


def _of_imagej(tif: tifffile.TiffFile, words: Mapping[str, Any]) -> Metadata:
    measured = {"z": (words.get("spacing"), words.get("zunit", words.get("unit", "")))}
    for axis in "yx":
        resolution = tif.pages.first.tags.get(f"{axis.upper()}Resolution")
        pixels, per = resolution.value if resolution is not None else (0, 1)
        measured[axis] = (per / pixels if pixels else None, words.get(f"{axis}unit", words.get("unit", "")))
    steps, _ = steps_of(measured | {"t": (words.get("finterval"), words.get("tunit", "s"))})
    labels = words.get("Labels") or []
    labels = [labels] if isinstance(labels, str) else labels  # tifffile's way with a single one
    channels = int(words.get("channels", 1))
    names = tuple(str(label) for label in labels[:channels])
    # ImageJ labels planes ("slice 1 of 20", or with the header of a file), not channels; they are channel names only
    # where they repeat.
    one_line = all(name and "\n" not in name for name in names)
    repeats = one_line and len(labels) % channels == 0 and tuple(labels) == names * (len(labels) // channels)
    return Metadata(steps, names if repeats else (), description=str(words))


def _is_cut(tif: tifffile.TiffFile) -> bool:
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
    logger, drop = logging.getLogger("tifffile"), lambda record: False
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
