"""TIFF: plain, ImageJ, OME, Micro-Manager, ScanImage and whatever else tifffile knows.

A file is a table of planes with the page that holds each, -1 where the file lacks it. Such planes are never made up:
the table goes with the image, until one is chosen that lacks none.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from gap_bioimage.errors import GapWarning, UnreadableImageError
from gap_bioimage.io.files import Stored, by_position, naming_damage
from gap_bioimage.io.image import Metadata, lazy_image, mapped_image, steps_of
from gap_bioimage.io.select import STORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import xarray as xr

_DESCRIPTION = 270  # the tag that holds OME-XML, ImageJ's words or tifffile's shape
_POSITIONS = {"R": "tile", "M": "mosaic"}  # tiles and stage positions are images of their own
_IMAGEJ_ORDERS = {"ctz": "ZTC", "zct": "TCZ", "ztc": "CTZ", "tcz": "ZCT", "tzc": "CZT"}


@dataclass(frozen=True)
class _Planes:
    """Where the planes of an image are: in pages of a series, or one behind the other from an offset."""

    dims: str
    table: npt.NDArray[np.intp]
    page: Any
    series: Any
    offset: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.table.shape, *self.page.shape)


def open_tiff(path: Path) -> list[Stored]:
    """Return the images of a TIFF: its series, and of series with stage positions each position.

    Images are mapped where the file is contiguous and uncompressed.
    """
    with naming_damage(path), _quiet_tifffile(), tifffile.TiffFile(path) as tif:
        try:
            count = 1 if tif.is_imagej else len(tif.series)
            return [stored for number in range(count) for stored in _images(path, tif, number)]
        except (IndexError, ValueError):
            if _is_cut(tif):
                raise _truncated(path, "") from None
            raise


def _truncated(path: Path, where: str) -> UnreadableImageError:
    return UnreadableImageError(f"{path} is truncated: it breaks off{where}; copy or export it again")


def _images(path: Path, tif: tifffile.TiffFile, number: int) -> list[Stored]:
    series = tif.series[number]
    levels = [_planes(path, tif, level) for level in series.levels]
    # other kinds are named by tifffile itself, after the kind
    meta = replace(_metadata(tif, number), name=str(series.name or "") if series.kind == "ome" else "")
    shapes = {level: planes.shape for level, planes in enumerate(levels)}
    stored = Stored(meta.name, shapes, partial(_opened, path, tif, levels, meta))
    for axis, dim in enumerate(levels[0].dims[: levels[0].table.ndim]):
        if dim in _POSITIONS:
            return list(by_position(stored, _POSITIONS[dim], axis, _position_names(tif, shapes[0][axis])))
    return [stored]


def _position_names(tif: tifffile.TiffFile, count: int) -> list[str]:
    summary = (tif.micromanager_metadata or {}).get("Summary", {}) if tif.is_micromanager else {}
    found = [str(each.get("Label", "")) for each in summary.get("StagePositions") or [] if isinstance(each, dict)]
    return found if len(found) == count else [f"position {place}" for place in range(count)]


def _opened(path: Path, tif: tifffile.TiffFile, levels: Sequence[_Planes], meta: Metadata, number: int) -> xr.DataArray:
    full, planes = levels[0], levels[number]
    # rounded lengths make rounded ratios: a level is half or a third, not 0.498
    ratio = {a.lower(): max(1, round(n / m)) for a, n, m in zip(full.dims, full.shape, planes.shape, strict=True)}
    meta = replace(meta, steps={axis: step * ratio.get(axis, 1) for axis, step in meta.steps.items()})
    dtype = np.dtype(planes.page.dtype).newbyteorder(tif.byteorder)
    held = planes.table >= 0
    if held.all() and planes.offset is not None:
        return mapped_image(np.memmap(path, dtype, "r", planes.offset, planes.shape), planes.dims, meta)
    image = lazy_image(planes.shape, dtype, planes.dims, partial(_read, path, tif, planes, dtype), meta)
    return image if held.all() else image.assign_coords({STORED: (image.dims[: held.ndim], held)})


def _read(path: Path, tif: tifffile.TiffFile, planes: _Planes, dtype: Any, index: tuple[Any, ...]) -> npt.NDArray[Any]:
    """Return part of an image, decoding no other pages."""
    outer = planes.table.ndim
    wanted, shape = planes.table[index[:outer]], planes.page.shape
    keys = None if planes.page is planes.series else np.ravel(wanted).tolist()
    if planes.offset is not None:
        values = np.memmap(path, dtype, "r", planes.offset, (int(planes.table.max()) + 1, *shape))[keys]
    else:
        tif.filehandle.open()
        with _quiet_tifffile(), warnings.catch_warnings(), tif:
            warnings.simplefilter("ignore")  # it opens the other files of a set by itself, and warns of that
            values = tif.asarray(key=keys, series=planes.series)
    return np.asarray(values).reshape(*np.shape(wanted), *shape)[(..., *index[outer:])]


def _planes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> _Planes:
    """Return where the planes of a level are: as many as its file promises, of which some may not be there."""
    page = series.keyframe
    pages: list[Any] = []
    with suppress(IndexError):  # a description that names more pages than there are
        pages.extend(series.pages)
    inner = len(page.shape)
    dims, lengths = series.axes, series.shape[:-inner]
    mappable = page.is_final and page.parent is tif  # a set's other pages are in other files
    held = [place if _is_held(each) else -1 for place, each in enumerate(pages)]
    if tif.is_imagej and series.kind != "ome" and (promised := _imagej_axes(tif, page, series)):
        dims, lengths = promised[0] + page.axes, promised[1]
    elif _is_cut(tif) and series.kind not in ("ome", "mmstack", "scanimage"):
        raise _truncated(path, f" after {len(pages)} planes")
    elif series.kind == "scanimage" and (words := _scanimage_words(tif)):
        outer, table = _scanimage(path, words, held.index(-1) if -1 in held else len(held))
        return _Planes(outer + page.axes, table, page, series)
    elif (
        series.shape[-inner:] != page.shape
        or series.transform is not None
        or (len(pages) == 1 < math.prod(lengths) and not mappable)
    ):
        return _Planes(dims, np.asarray(min(held, default=-1)), series, series)
    elif len(pages) > math.prod(lengths):  # more than its words name: what they are is not known
        dims, lengths = "I" + page.axes, (len(pages),)
    count, offset = math.prod(lengths), series.dataoffset if mappable else None
    if len(pages) == 1 < count:  # one page describes all planes, which lie behind one another
        offset = page.dataoffsets[0]
        there = (tif.filehandle.size - offset) // max(page.nbytes, 1) if mappable else 0
        held = [place if place < there else -1 for place in range(count)]
    elif -1 in held or len(held) < count:
        held, offset = held + [-1] * (count - len(held)), None
    return _Planes(dims, np.asarray(held, np.intp).reshape(lengths), page, series, offset)


def _is_held(page: Any) -> bool:
    """Whether the values of a page are in its file; they may lie behind its end, or nowhere."""
    if page is None or not sum(page.databytecounts):
        return False
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    return bool(max(ends) <= page.parent.filehandle.size)


def _imagej_axes(
    tif: tifffile.TiffFile, page: tifffile.TiffPage, series: tifffile.TiffPageSeries
) -> tuple[str, tuple[int, ...]] | None:
    """Return the planes that ImageJ's words promise, where tifffile did not find all of them."""
    words = tif.imagej_metadata or {}
    lengths = {"T": words.get("frames", 1), "Z": words.get("slices", 1), "C": words.get("channels", 1)}
    if set(page.axes) & {"S", "C"}:  # channels within the pages
        lengths["C"] = 1
    order = _IMAGEJ_ORDERS.get(str(words.get("order", "")).lower(), "TZC")
    dims = "".join(axis for axis in order if lengths[axis] > 1)
    promised = tuple(int(lengths[axis]) for axis in dims)
    if not dims:
        dims, promised = "I", (int(words.get("images", 1)),)
    found = math.prod(series.shape[: -len(page.shape)])
    more = math.prod(promised) > found or (series.kind != "imagej" and math.prod(promised) == found > 1)
    return (dims, promised) if more else None


def _scanimage_words(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return what ScanImage's header says, by key; nothing where it is an old one that does not name channels."""
    words = (tif.scanimage_metadata or {}).get("FrameData") or tifffile.matlabstr2py(tif.pages.first.software)
    short = {key.removeprefix("SI."): value for key, value in words.items()}
    return short if "hChannels.channelSave" in short else {}


def _scanimage(path: Path, words: Mapping[str, Any], pages: int) -> tuple[str, npt.NDArray[np.intp]]:
    """Return axes and pages of the complete volumes of a recording, else of its complete slices.

    Channels run fastest, then the frames of a slice; what was recorded while the focus flew back is left out.
    """

    def number(*keys: str) -> int:
        found = [words[key] for key in keys if isinstance(words.get(key), (int, float))]
        return int(found[0]) if found and 1 <= found[0] < math.inf else 1

    stack = words.get("hStackManager.enable") is not False
    wanted = number("hStackManager.actualNumSlices", "hStackManager.numSlices") if stack else 1
    volumes = number("hStackManager.actualNumVolumes", "hStackManager.numVolumes")
    frames = max(number("hStackManager.framesPerSlice") // number("hScan2D.logAverageFactor"), 1)
    channels = max(np.size(words["hChannels.channelSave"]), 1)
    flown = max(number("hStackManager.numFramesPerVolumeWithFlyback") // number("hStackManager.framesPerSlice"), wanted)
    slices, kind, total = wanted, "volumes", volumes
    if wanted == 1:  # each frame is a volume of its own
        flown, frames, kind, total = 1, 1, "frames", frames * volumes
    found = held = pages // (flown * frames * channels)
    if not held:
        found = slices = flown = pages // (frames * channels)
        held, kind, total = 1, "slices", wanted
    used = held * flown * frames * channels
    if not used:
        raise UnreadableImageError(f"{path} holds no complete slice of its recording; record it again")
    if found < total or pages > used:
        warnings.warn(
            f"{path.name} holds {found} complete {kind} of {max(found, total)}, and {pages - used} planes more, which "
            "are left out: the recording stopped early, or goes on in another file",
            GapWarning,
            stacklevel=2,
        )
    table = np.arange(used).reshape(held, flown, frames, channels)[:, :slices]
    table = table.transpose(0, 2, 1, 3).reshape(held * frames, slices, channels)
    return "".join(axis for axis, length in zip("TZC", table.shape, strict=True) if length > 1), table.squeeze()


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
