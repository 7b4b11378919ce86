"""TIFF: plain, ImageJ, OME, Micro-Manager, ScanImage and whatever else tifffile knows.

A file is a table of planes with the page that holds each, -1 where the file lacks it. Such planes are never made up:
the table goes with the image, until one is chosen that lacks none.
"""

import logging
import math
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import tifffile
import xarray as xr

from gap_bioimage.errors import GapWarning, UnreadableImageError
from gap_bioimage.io.image import Lazy, Metadata, Stored, image_of, steps_of

_POSITIONS = {"R": "tile", "M": "mosaic"}  # tiles and stage positions are images of their own
_IMAGEJ_ORDERS = {"ctz": "ZTC", "zct": "TCZ", "ztc": "CTZ", "tcz": "ZCT", "tzc": "CZT"}
_PLACES = (273, 279, 324, 325)  # the tags that say where the values of a page are
_BYTES = {3: 2, 4: 4, 16: 8}  # of a value, by type


@dataclass(frozen=True)
class _Planes:
    """Where the planes of an image are: in pages of a series, or one behind the other from an offset."""

    dims: str
    table: npt.NDArray[np.intp]
    page: Any
    series: Any
    files: frozenset[str]
    offset: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.table.shape, *self.page.shape)

    def image(self, path: Path, tif: tifffile.TiffFile, meta: Metadata) -> xr.DataArray:
        """Return the planes as an image, mapped where the file is contiguous and uncompressed."""
        dtype, held = np.dtype(self.page.dtype).newbyteorder(tif.byteorder), self.table >= 0
        if held.all() and self.offset is not None:
            return image_of(np.memmap(path, dtype, "r", self.offset, self.shape), self.dims, meta)
        lazy = Lazy(self.shape, dtype, partial(self._read, path, tif, dtype))
        return image_of(lazy, self.dims, meta, None if held.all() else held)

    def _read(self, path: Path, tif: tifffile.TiffFile, dtype: Any, index: tuple[Any, ...]) -> npt.NDArray[Any]:
        outer = self.table.ndim
        wanted, shape = self.table[index[:outer]], self.page.shape
        keys = None if self.page is self.series else np.ravel(wanted).tolist()
        if self.offset is not None:
            values = np.memmap(path, dtype, "r", self.offset, (int(self.table.max()) + 1, *shape))[keys]
        else:
            tif.filehandle.open()
            with _quiet_tifffile(), warnings.catch_warnings(), tif:
                warnings.simplefilter("ignore")  # it opens the other files of a set by itself, and warns of that
                values = tif.asarray(key=keys, series=self.series)
        return np.asarray(values).reshape(*np.shape(wanted), *shape)[(..., *index[outer:])]


def open_tiff(path: Path) -> list[Stored]:
    """Return the images of a TIFF: its series, and of series with stage positions each position."""
    with _quiet_tifffile():
        try:
            with tifffile.TiffFile(path) as tif:
                lost = _lost_page(tif)
            # a page of which only a part is there would be an error of the whole file
            with tifffile.TiffFile(path, size=min(lost, path.stat().st_size) if lost else None) as tif:
                if tif.is_shaped and len(tif.pages) > 1 and getattr(tif.pages[1], "is_shaped", False):
                    tif.is_shaped = False  # type: ignore[attr-defined]  # frames that were appended one by one
                count = 1 if tif.is_imagej or tif.is_lsm else len(tif.series)  # of Zeiss the others are thumbnails
                return [stored for number in range(count) for stored in _images(path, tif, number, lost)]
        except (IndexError, struct.error):
            told = f"{path}, or another file of its set, is cut within a page; copy that again"
            raise UnreadableImageError(f"{told}, or read {path.name} in a folder of its own") from None


def _images(path: Path, tif: tifffile.TiffFile, number: int, lost: int) -> list[Stored]:
    series, meta = tif.series[number], _metadata(tif, number)
    if series.kind == "ome" and (named := sum(map(len, tif.series))) < len(tif.pages) and not lost:
        told = f"holds {len(tif.pages)} planes, of which its description names {named}: the others are left out"
        meta = replace(meta, warning=told)
    levels = [_planes(path, tif, level, lost) for level in series.levels]
    images = {}
    for level, planes in enumerate(levels):
        # rounded lengths make rounded ratios: a level is half or a third, not 0.498
        pairs = zip(levels[0].dims.lower(), levels[0].shape, planes.shape, strict=True)
        steps = {axis: meta.steps[axis] * max(1, round(n / m)) for axis, n, m in pairs if axis in meta.steps}
        images[level] = planes.image(path, tif, replace(meta, steps={**meta.steps, **steps}))
        images[level].encoding["files"] = planes.files  # that hold it together
    # other kinds are named by tifffile itself, after the kind
    stored = Stored(str(series.name or "") if series.kind == "ome" else "", images)
    for axis, dim in enumerate(levels[0].dims[: levels[0].table.ndim]):
        if dim in _POSITIONS:
            return stored.by_position(_POSITIONS[dim], _position_names(tif, levels[0].shape[axis]))
    return [stored]


def _position_names(tif: tifffile.TiffFile, count: int) -> list[str]:
    summary = (tif.micromanager_metadata or {}).get("Summary", {}) if tif.is_micromanager else {}
    found = [str(each.get("Label", "")) for each in summary.get("StagePositions") or [] if isinstance(each, dict)]
    return found if len(found) == count else [f"position {place}" for place in range(count)]


def _planes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, lost: int) -> _Planes:
    """Return where the planes of a level are: as many as its file promises, of which some may not be there."""
    page, kind = series.keyframe, series.kind
    pages: list[Any] = []
    with suppress(IndexError):  # a description that names more pages than there are
        pages.extend(series.pages)
    inner, files = len(page.shape), frozenset(each.parent.filehandle.path for each in pages if each is not None)
    dims, lengths = series.axes, series.shape[:-inner]
    mappable = page.is_final and page.parent is tif  # a set's other pages are in other files
    held = [place if _is_held(each) else -1 for place, each in enumerate(pages)]
    if tif.is_imagej and kind != "ome" and (promised := _imagej_axes(tif, page, series)):
        dims, lengths = promised[0] + page.axes, promised[1]
    elif kind == "scanimage" and (words := _scanimage_words(tif)):
        outer, table = _scanimage(path, words, held.index(-1) if -1 in held else len(held))
        return _Planes(outer + page.axes, table, page, series, files)
    elif lost and kind not in ("shaped", "imagej", "ome", "mmstack", "ndtiff"):  # the others say how many there were
        raise IndexError
    elif (
        series.shape[-inner:] != page.shape
        or series.transform is not None
        or (len(pages) == 1 < math.prod(lengths) and not mappable and not lost)
    ):
        return _Planes(dims, np.asarray(min(held, default=-1)), series, series, files)
    elif len(pages) > math.prod(lengths):  # more than its words name: what they are is not known
        dims, lengths = "I" + page.axes, (len(pages),)
    count, offset = math.prod(lengths), series.dataoffset if mappable else None
    # one page may describe all planes, which then lie behind one another
    if len(pages) == 1 < count and mappable:
        offset = page.dataoffsets[0]
        there = (tif.filehandle.size - offset) // max(page.nbytes, 1)
        held = [place if place < there else -1 for place in range(count)]
    elif -1 in held or len(held) < count:
        held, offset = held + [-1] * (count - len(held)), None
    return _Planes(dims, np.asarray(held, np.intp).reshape(lengths), page, series, files, offset)


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
    promised = tuple(int(lengths[axis]) for axis in dims) or (int(words.get("images", 1)),)
    count, found = math.prod(promised), math.prod(series.shape[: -len(page.shape)])
    more = count > found or (series.kind != "imagej" and count == found > 1)
    return (dims or "I", promised) if more else None


def _scanimage_words(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return what ScanImage's header says, by key; nothing where it is an old one that does not name channels."""
    words = (tif.scanimage_metadata or {}).get("FrameData") or tifffile.matlabstr2py(tif.pages.first.software)
    short = {key.rpartition("hStackManager.")[2].removeprefix("SI."): value for key, value in words.items()}
    return short if "hChannels.channelSave" in short else {}


def _scanimage(path: Path, words: Mapping[str, Any], pages: int) -> tuple[str, npt.NDArray[np.intp]]:
    """Return axes and pages of the complete volumes of a recording, else of its complete slices.

    Channels run fastest, then the frames of a slice; what was recorded while the focus flew back is left out.
    """

    def number(*keys: str) -> int:
        found = (words[key] for key in keys if isinstance(words.get(key), (int, float)))
        return int(first) if 1 <= (first := next(found, 1)) < math.inf else 1

    slices = number("actualNumSlices", "numSlices") if words.get("enable") is not False else 1
    # versions before 2018 have volumes of hFastZ instead
    volumes, per_slice = number("actualNumVolumes", "numVolumes", "hFastZ.numVolumes"), number("framesPerSlice")
    frames = max(per_slice // number("hScan2D.logAverageFactor"), 1)
    channels = max(np.size(words["hChannels.channelSave"]), 1)
    flown = max(number("numFramesPerVolumeWithFlyback", "hFastZ.numFramesPerVolume") // per_slice, slices)
    kind = "volumes"
    if slices == 1:  # each frame is a volume of its own
        flown, frames, kind, volumes = 1, 1, "frames", frames * volumes
    held = found = pages // (flown * frames * channels)
    if not held:
        volumes, slices, held, kind = slices, pages // (frames * channels), 1, "slices"
        found = flown = slices
    used = held * flown * frames * channels
    if not used:
        raise UnreadableImageError(f"{path} holds no complete slice of its recording; record it again")
    if found < volumes or pages > used:
        told = f"{path.name} holds {found} complete {kind} of {max(found, volumes)}, and {pages - used} planes more"
        told += ", which are left out: the recording stopped early, or goes on in another file"
        warnings.warn(told, GapWarning, stacklevel=2)
    table = np.arange(used).reshape(held, flown, frames, channels)[:, :slices].transpose(0, 2, 1, 3)
    table = table.reshape(held * frames, slices, channels)
    return "".join(axis for axis, length in zip("TZC", table.shape, strict=True) if length > 1), table.squeeze()


def _metadata(tif: tifffile.TiffFile, series: int) -> Metadata:
    """Return what a TIFF says of one of its images, as in OME's schema, ImageJ's TiffEncoder, Micro-Manager's summary.

    A plain TIFF says nothing: its resolution is that of a printer or screen (72 per inch), not of a microscope.
    """
    if tif.is_ome and tif.ome_metadata:
        return _of_ome(tif.ome_metadata, series)
    if tif.is_imagej and tif.imagej_metadata:
        return _of_imagej(tif, tif.imagej_metadata)
    if tif.is_micromanager and (words := (tif.micromanager_metadata or {}).get("Summary")):
        keys = {"z": "z-step_um", "y": "PixelSize_um", "x": "PixelSize_um", "t": "Interval_ms"}
        names = words.get("ChNames")
        steps = steps_of({axis: (words.get(key), key.split("_")[1]) for axis, key in keys.items()})
        return Metadata(steps, list(map(str, names)) if isinstance(names, list) else ())
    if tif.is_lsm and (words := tif.lsm_metadata):
        voxel = {axis: (words.get(f"VoxelSize{axis.upper()}"), "m") for axis in "zyx"}
        return Metadata(steps_of(voxel | {"t": (words.get("TimeIntervall"), "s")}))
    if tif.is_stk and (words := tif.stk_metadata):
        pixel = {axis: (words.get(f"{axis.upper()}Calibration"), words.get("CalibrationUnits")) for axis in "yx"}
        return Metadata(steps_of({**pixel, "z": (np.median(words["ZDistance"]), "um")}))
    return Metadata(description=str(tif.pages.first.description))


@lru_cache(maxsize=1)  # a file of many positions has one description of all of them
def _ome_images(xml: str) -> list[ElementTree.Element]:
    try:
        return ElementTree.fromstring(xml).findall("{*}Image/{*}Pixels")  # noqa: S314  (expat bounds its expansion)
    except ElementTree.ParseError:  # a broken XML is a missing calibration
        return []


def _of_ome(xml: str, series: int) -> Metadata:
    images = _ome_images(xml)
    if series >= len(images):
        set_of = re.search(r'<BinaryOnly[^>]*MetadataFile="([^"]+)"', xml)
        return Metadata(problem=f"is one of a set that {set_of[1]} describes, which is not read" if set_of else "")
    words = {"z": "PhysicalSizeZ", "y": "PhysicalSizeY", "x": "PhysicalSizeX", "t": "TimeIncrement"}
    said = images[series].attrib
    steps = {a: (said.get(word), said.get(f"{word}Unit", "s" if a == "t" else "µm")) for a, word in words.items()}
    names = [channel.get("Name", "") for channel in images[series].findall("{*}Channel")]
    return Metadata(steps_of(steps), names)


def _of_imagej(tif: tifffile.TiffFile, words: Mapping[str, Any]) -> Metadata:
    words = {key: value for key, value in words.items() if value != "cm"}  # that of printers
    measured = {"z": (words.get("spacing"), words.get("zunit", words.get("unit", "")))}
    for axis in "yx":
        resolution = tif.pages.first.tags.get(f"{axis.upper()}Resolution")
        pixels, per = resolution.value if resolution is not None else (0, 1)
        measured[axis] = (per / pixels if pixels else None, words.get(f"{axis}unit", words.get("unit", "")))
    steps = steps_of(measured | {"t": (words.get("finterval"), words.get("tunit", "s"))})
    labels, channels = words.get("Labels") or [], int(words.get("channels", 1))
    labels = [labels] if isinstance(labels, str) else labels  # tifffile's way with a single one
    names = list(map(str, labels[:channels]))
    # ImageJ labels planes ("slice 1 of 20", or with a file's header); they are names of channels where they repeat
    one_line = not any("\n" in name for name in names)
    repeats = one_line and len(labels) % channels == 0 and list(labels) == names * (len(labels) // channels)
    return Metadata(steps, names if repeats else (), description=str(words))


def _lost_page(tif: tifffile.TiffFile) -> int:
    """Return where the first page begins that is not all in the file; 0 where all are.

    tifffile stops there without a word, or with an error that says nothing of the pages before.
    """
    layout, handle, offset, seen = tif.tiff, tif.filehandle, tif.pages.first.offset, set()
    entry = struct.Struct(f"{tif.byteorder}HH{'QQ' if layout.tagsize == 20 else 'II'}")
    while offset and offset not in seen:
        seen.add(offset)
        handle.seek(offset)
        try:
            (count,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
            for code, kind, length, place in entry.iter_unpack(handle.read(entry.size * count)):
                extent = length * _BYTES.get(kind, 1)
                if code in _PLACES and layout.offsetsize < extent and place + extent > handle.size:
                    return int(offset)
            (offset,) = struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))
        except struct.error:
            return int(offset)
    return 0


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """Keep tifffile's log of a damaged file from the terminal; the error says it in one sentence."""
    logger, drop = logging.getLogger("tifffile"), lambda record: False
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
