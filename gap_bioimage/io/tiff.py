"""TIFF: plain, ImageJ, OME, Micro-Manager, ScanImage and everything else that tifffile supports.

An image is a table of planes: the index of the page that holds each, or -1 if the file lacks it. Missing planes are
never made up: the image carries a mask of them until a selection without missing planes is made.
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

_POSITIONS = {"R": "tile", "M": "mosaic"}  # axes of tiles and stage positions, which become separate images
_IMAGEJ_ORDERS = {"ctz": "ZTC", "zct": "TCZ", "ztc": "CTZ", "tcz": "ZCT", "tzc": "CZT"}
_DATA_TAGS = (273, 279, 324, 325)  # StripOffsets, StripByteCounts, TileOffsets, TileByteCounts
_BYTES = {3: 2, 4: 4, 16: 8}  # per value, by TIFF type


@dataclass(frozen=True)
class _Planes:
    """Where the planes of an image are: in pages of a series, or contiguous from an offset."""

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
        """Return the planes as an image, memory-mapped if they are contiguous and uncompressed."""
        dtype, stored = np.dtype(self.page.dtype).newbyteorder(tif.byteorder), self.table >= 0
        if stored.all() and self.offset is not None:
            return image_of(np.memmap(path, dtype, "r", self.offset, self.shape), self.dims, meta)
        lazy = Lazy(self.shape, dtype, partial(self._read, path, tif, dtype))
        return image_of(lazy, self.dims, meta, None if stored.all() else stored)

    def _read(self, path: Path, tif: tifffile.TiffFile, dtype: Any, index: tuple[Any, ...]) -> npt.NDArray[Any]:
        outer = self.table.ndim
        pages, shape = self.table[index[:outer]], self.page.shape
        keys = None if self.page is self.series else np.ravel(pages).tolist()
        if self.offset is not None:
            values = np.memmap(path, dtype, "r", self.offset, (int(self.table.max()) + 1, *shape))[keys]
        else:
            tif.filehandle.open()
            with _quiet_tifffile(), warnings.catch_warnings(), tif:
                warnings.simplefilter("ignore")  # tifffile opens the other files of a set, and warns of that
                values = tif.asarray(key=keys, series=self.series)
        return np.asarray(values).reshape(*np.shape(pages), *shape)[(..., *index[outer:])]


def open_tiff(path: Path) -> list[Stored]:
    """Return the images of a TIFF: one per series, or one per stage position of a series."""
    with _quiet_tifffile():
        try:
            with tifffile.TiffFile(path) as tif:
                end = _first_truncated_page(tif)
            # with a truncated page, tifffile would refuse the whole file
            with tifffile.TiffFile(path, size=min(end, path.stat().st_size) if end else None) as tif:
                described = [str(getattr(page, "shaped_description", "")) for page in tif.pages[:2]]
                if tif.is_shaped and len(described) == 2 and len({text.partition("]")[0] for text in described}) == 1:
                    tif.is_shaped = False  # type: ignore[attr-defined]  # frames that were appended one by one
                if tif.is_ome and (xml := str(tif.ome_metadata)).count("<Image ") == 1 and "TiffData" not in xml:
                    # the schema allows that, and planes are then in the order of the file, but tifffile wants it said
                    first: Any = tif.pages.first
                    first.description = xml.replace("</Pixels>", "<TiffData/></Pixels>")
                count = 1 if tif.is_imagej or tif.is_lsm else len(tif.series)  # in LSM the others are thumbnails
                return [stored for number in range(count) for stored in _images(path, tif, number, bool(end))]
        except (IndexError, struct.error):
            problem = f"{path}, or another file of its set, is truncated within a page"
            raise UnreadableImageError(f"{problem}; copy it again, or read {path.name} in its own folder") from None


def _images(path: Path, tif: tifffile.TiffFile, number: int, truncated: bool) -> list[Stored]:
    series, meta = tif.series[number], _metadata(tif, number)
    if series.kind == "ome" and (named := sum(map(len, tif.series))) < len(tif.pages) and not truncated:
        warning = f"holds {len(tif.pages)} planes, but its description names only {named}: the others are left out"
        meta = replace(meta, warning=warning)
    levels = [_planes(path, tif, level, truncated) for level in series.levels]
    images = {}
    for level, planes in enumerate(levels):
        # lengths are rounded: levels are 2 or 3 times smaller, not 2.01
        pairs = zip(levels[0].dims.lower(), levels[0].shape, planes.shape, strict=True)
        steps = {axis: meta.steps[axis] * max(1, round(n / m)) for axis, n, m in pairs if axis in meta.steps}
        images[level] = planes.image(path, tif, replace(meta, steps={**meta.steps, **steps}))
        images[level].encoding["files"] = planes.files  # all files of a set
    # tifffile names series of other kinds after the kind
    stored = Stored(str(series.name or "") if series.kind == "ome" else "", images)
    for axis, dim in enumerate(levels[0].dims[: levels[0].table.ndim]):
        if dim in _POSITIONS:
            return stored.by_position(_POSITIONS[dim], _position_names(tif, levels[0].shape[axis]))
    return [stored]


def _position_names(tif: tifffile.TiffFile, count: int) -> list[str]:
    summary = (tif.micromanager_metadata or {}).get("Summary", {}) if tif.is_micromanager else {}
    positions = summary.get("StagePositions") or []
    names = [str(position.get("Label", "")) for position in positions if isinstance(position, dict)]
    return names if len(names) == count else [f"position {number}" for number in range(count)]


def _planes(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, truncated: bool) -> _Planes:
    """Return where the planes of a level are: as many as its file promises, some of them possibly missing."""
    page, kind = series.keyframe, series.kind
    pages: list[Any] = []
    with suppress(IndexError):  # the description may list more pages than there are
        pages.extend(series.pages)
    inner, files = len(page.shape), frozenset(page.parent.filehandle.path for page in pages if page is not None)
    dims, lengths = series.axes, series.shape[:-inner]
    mappable = page.is_final and page.parent is tif  # pages of a set may be in other files
    table = [number if _is_stored(page) else -1 for number, page in enumerate(pages)]
    if tif.is_imagej and kind != "ome" and (promised := _imagej_axes(tif, page, series)):
        dims, lengths = promised[0] + page.axes, promised[1]
    elif kind == "scanimage" and (header := _scanimage_header(tif)):
        outer, planes = _scanimage(path, header, table.index(-1) if -1 in table else len(table))
        return _Planes(outer + page.axes, planes, page, series, files)
    elif truncated and kind not in ("shaped", "imagej", "ome", "mmstack", "ndtiff"):  # these record the page count
        raise IndexError
    elif (
        series.shape[-inner:] != page.shape
        or series.transform is not None
        or (len(pages) == 1 < math.prod(lengths) and not mappable and not truncated)
    ):
        return _Planes(dims, np.asarray(min(table, default=-1)), series, series, files)
    elif len(pages) > math.prod(lengths):  # more pages than the metadata describe: their axis is unknown
        dims, lengths = "I" + page.axes, (len(pages),)
    count, offset = math.prod(lengths), series.dataoffset if mappable else None
    # one page may describe all planes, which are then contiguous
    if len(pages) == 1 < count and mappable:
        offset = page.dataoffsets[0]
        complete = (tif.filehandle.size - offset) // max(page.nbytes, 1)
        table = [number if number < complete else -1 for number in range(count)]
    elif -1 in table or len(table) < count:
        table, offset = table + [-1] * (count - len(table)), None
    return _Planes(dims, np.asarray(table, np.intp).reshape(lengths), page, series, files, offset)


def _is_stored(page: Any) -> bool:
    """Whether the values of a page are in its file, rather than absent or beyond its end."""
    if page is None or not sum(page.databytecounts):
        return False
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    return bool(max(ends) <= page.parent.filehandle.size)


def _imagej_axes(
    tif: tifffile.TiffFile, page: tifffile.TiffPage, series: tifffile.TiffPageSeries
) -> tuple[str, tuple[int, ...]] | None:
    """Return axes and lengths that ImageJ's metadata promise, or None if tifffile found all planes."""
    meta = tif.imagej_metadata or {}
    lengths = {"T": meta.get("frames", 1), "Z": meta.get("slices", 1), "C": meta.get("channels", 1)}
    if set(page.axes) & {"S", "C"}:  # channels are within the pages
        lengths["C"] = 1
    order = _IMAGEJ_ORDERS.get(str(meta.get("order", "")).lower(), "TZC")
    dims = "".join(axis for axis in order if lengths[axis] > 1)
    promised = tuple(int(lengths[axis]) for axis in dims) or (int(meta.get("images", 1)),)
    count, found = math.prod(promised), math.prod(series.shape[: -len(page.shape)])
    more = count > found or (series.kind != "imagej" and count == found > 1)
    return (dims or "I", promised) if more else None


def _scanimage_header(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return ScanImage's header by short keys; empty for old headers, which do not name channels."""
    header = (tif.scanimage_metadata or {}).get("FrameData") or tifffile.matlabstr2py(tif.pages.first.software)
    short = {key.rpartition("hStackManager.")[2].removeprefix("SI."): value for key, value in header.items()}
    return short if "hChannels.channelSave" in short else {}


def _scanimage(path: Path, header: Mapping[str, Any], pages: int) -> tuple[str, npt.NDArray[np.intp]]:
    """Return axes and pages of the complete volumes of a recording, else of its complete slices.

    Channels run fastest, then the frames of a slice. Frames recorded during the flyback of the focus are left out.
    """

    def number(*keys: str) -> int:
        values = (header[key] for key in keys if isinstance(header.get(key), (int, float)))
        return int(value) if 1 <= (value := next(values, 1)) < math.inf else 1

    slices = number("actualNumSlices", "numSlices") if header.get("enable") is not False else 1
    # versions before 2018 have keys of hFastZ instead
    volumes, per_slice = number("actualNumVolumes", "numVolumes", "hFastZ.numVolumes"), number("framesPerSlice")
    frames = max(per_slice // number("hScan2D.logAverageFactor"), 1)
    channels = max(np.size(header["hChannels.channelSave"]), 1)
    # slices per volume, with those recorded during flyback
    recorded = max(number("numFramesPerVolumeWithFlyback", "hFastZ.numFramesPerVolume") // per_slice, slices)
    kind = "volumes"
    if slices == 1:  # each frame counts as a volume
        recorded, frames, kind, volumes = 1, 1, "frames", frames * volumes
    count = complete = pages // (recorded * frames * channels)
    if not count:
        volumes, slices, count, kind = slices, pages // (frames * channels), 1, "slices"
        complete = recorded = slices
    used = count * recorded * frames * channels
    if not used:
        raise UnreadableImageError(f"{path} holds no complete slice of its recording; record it again")
    if complete < volumes or pages > used:
        planes = f"{complete} complete {kind} of {max(complete, volumes)}, and {pages - used} planes more"
        reason = "the recording stopped early, or continues in another file"
        warnings.warn(f"{path.name} holds {planes}, which are left out: {reason}", GapWarning, stacklevel=2)
    table = np.arange(used).reshape(count, recorded, frames, channels)[:, :slices].transpose(0, 2, 1, 3)
    table = table.reshape(count * frames, slices, channels)
    return "".join(axis for axis, length in zip("TZC", table.shape, strict=True) if length > 1), table.squeeze()


def _metadata(tif: tifffile.TiffFile, series: int) -> Metadata:
    """Return the metadata of one image, as in OME's schema, ImageJ's TiffEncoder and Micro-Manager's summary.

    The resolution of a plain TIFF is ignored: it is that of a printer or screen (72 per inch), not of a microscope.
    """
    if tif.is_ome and tif.ome_metadata:
        return _ome_metadata(tif.ome_metadata, series)
    if tif.is_imagej and tif.imagej_metadata:
        return _imagej_metadata(tif, tif.imagej_metadata)
    if tif.is_micromanager and (meta := (tif.micromanager_metadata or {}).get("Summary")):
        keys = {"z": "z-step_um", "y": "PixelSize_um", "x": "PixelSize_um", "t": "Interval_ms"}
        names = meta.get("ChNames")
        steps = steps_of({axis: (meta.get(key), key.split("_")[1]) for axis, key in keys.items()})
        return Metadata(steps, list(map(str, names)) if isinstance(names, list) else ())
    if tif.is_lsm and (meta := tif.lsm_metadata):
        voxel = {axis: (meta.get(f"VoxelSize{axis.upper()}"), "m") for axis in "zyx"}
        return Metadata(steps_of(voxel | {"t": (meta.get("TimeIntervall"), "s")}))
    if tif.is_stk and (meta := tif.stk_metadata):
        pixel = {axis: (meta.get(f"{axis.upper()}Calibration"), meta.get("CalibrationUnits")) for axis in "yx"}
        return Metadata(steps_of({**pixel, "z": (np.median(meta["ZDistance"]), "um")}))
    return Metadata(description=str(tif.pages.first.description))


@lru_cache(maxsize=1)  # all positions of a file share one description
def _ome_images(xml: str) -> list[ElementTree.Element]:
    try:
        return ElementTree.fromstring(xml).findall("{*}Image/{*}Pixels")  # noqa: S314  (expat bounds its expansion)
    except ElementTree.ParseError:  # treated as missing metadata
        return []


def _ome_metadata(xml: str, series: int) -> Metadata:
    images = _ome_images(xml)
    if series >= len(images):
        master = re.search(r'<BinaryOnly[^>]*MetadataFile="([^"]+)"', xml)
        return Metadata(problem=f"belongs to a set described in {master[1]}, which is not read" if master else "")
    keys = {"z": "PhysicalSizeZ", "y": "PhysicalSizeY", "x": "PhysicalSizeX", "t": "TimeIncrement"}
    meta = images[series].attrib
    steps = {axis: (meta.get(key), meta.get(f"{key}Unit", "s" if axis == "t" else "µm")) for axis, key in keys.items()}
    names = [channel.get("Name", "") for channel in images[series].findall("{*}Channel")]
    return Metadata(steps_of(steps), names)


def _imagej_metadata(tif: tifffile.TiffFile, meta: Mapping[str, Any]) -> Metadata:
    meta = {key: value for key, value in meta.items() if value != "cm"}  # the unit of printers
    measured = {"z": (meta.get("spacing"), meta.get("zunit", meta.get("unit", "")))}
    for axis in "yx":
        resolution = tif.pages.first.tags.get(f"{axis.upper()}Resolution")
        pixels, per = resolution.value if resolution is not None else (0, 1)
        measured[axis] = (per / pixels if pixels else None, meta.get(f"{axis}unit", meta.get("unit", "")))
    steps = steps_of(measured | {"t": (meta.get("finterval"), meta.get("tunit", "s"))})
    labels, channels = meta.get("Labels") or [], int(meta.get("channels", 1))
    labels = [labels] if isinstance(labels, str) else labels  # tifffile returns a single label as a string
    names = list(map(str, labels[:channels]))
    # ImageJ labels planes ("slice 1 of 20", or a file's header); the labels are channel names only if they repeat
    repeats = list(labels) == names * (len(labels) // channels) and not any("\n" in name for name in names)
    return Metadata(steps, names if repeats else (), description=str(meta))


def _first_truncated_page(tif: tifffile.TiffFile) -> int:
    """Return the offset of the first page that is not complete in the file; 0 if all are.

    tifffile stops there silently, or with an error that does not mention the pages before it.
    """
    layout, handle, offset, seen = tif.tiff, tif.filehandle, tif.pages.first.offset, set()
    entry = struct.Struct(f"{tif.byteorder}HH{'QQ' if layout.tagsize == 20 else 'II'}")
    while offset and offset not in seen:
        seen.add(offset)
        handle.seek(offset)
        try:
            (count,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
            for tag, kind, length, start in entry.iter_unpack(handle.read(entry.size * count)):
                extent = length * _BYTES.get(kind, 1)
                if tag in _DATA_TAGS and layout.offsetsize < extent and start + extent > handle.size:
                    return int(offset)
            (offset,) = struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))
        except struct.error:
            return int(offset)
    return 0


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """Silence tifffile's log of a damaged file; the error says it in one sentence."""
    logger, drop = logging.getLogger("tifffile"), lambda record: False
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
