"""Pixel sizes, frame intervals and channel names in the words of ImageJ and OME."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from gap_bioimage.photons.formats.stored import Metadata
from gap_bioimage.photons.formats.units import to_seconds, to_um

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tifffile


def read_metadata(tif: tifffile.TiffFile, series: int = 0) -> Metadata:
    """Return the calibration of one image of an open TIFF.

    A plain TIFF has none: its resolution is that of a printer or screen (72 per inch), not of a microscope.
    For the same reason centimetres and inches are not believed in ImageJ files, which copy them from plain
    ones.

    Source: OME-TIFF 2016-06 schema; ImageJ's ``TiffEncoder``.
    """
    if tif.is_ome and tif.ome_metadata:
        return _from_ome(tif.ome_metadata, series)
    if tif.is_imagej and tif.imagej_metadata:
        return _from_imagej(tif, tif.imagej_metadata)
    return Metadata()


def to_imagej(meta: Metadata, axes: str, shape: Sequence[int]) -> tuple[dict[str, Any], tuple[float, float] | None]:
    """Return ImageJ's metadata and resolution (pixels per micrometre, x and y) for :func:`tifffile.imwrite`.

    Parameters
    ----------
    axes, shape
        Of the array to write; ``axes`` is a subset of ``TZCYX`` in that order.
    """
    size = meta.pixel_size_um
    words: dict[str, Any] = {"axes": axes, "mode": "composite" if "C" in axes else "grayscale"}
    resolution = None
    if "x" in size and "y" in size:  # ImageJ has one unit for all axes, so z alone cannot be said
        resolution = (1 / size["x"], 1 / size["y"])
        words["unit"] = "micron"
        if "z" in size:
            words["spacing"] = size["z"]
    if meta.interval_s is not None:
        words["finterval"] = meta.interval_s
    if meta.channels:  # one label per plane, channels running fastest
        planes = math.prod(n for axis, n in zip(axes, shape, strict=True) if axis in "TZC")
        words["Labels"] = [*meta.channels] * (planes // len(meta.channels))
    return words, resolution


def to_ome(meta: Metadata, axes: str) -> dict[str, Any]:
    """Return OME's metadata for :func:`tifffile.imwrite`; ``axes`` is a subset of ``TZCYX`` in that order."""
    words: dict[str, Any] = {"axes": axes}
    for axis, size in meta.pixel_size_um.items():
        words[f"PhysicalSize{axis.upper()}"] = size
        words[f"PhysicalSize{axis.upper()}Unit"] = "µm"
    if meta.interval_s is not None:
        words["TimeIncrement"] = meta.interval_s
        words["TimeIncrementUnit"] = "s"
    if meta.channels:
        words["Channel"] = {"Name": [*meta.channels]}
    return words | ({"Name": meta.name} if meta.name else {})


def _from_ome(xml: str, series: int) -> Metadata:
    try:
        image = ElementTree.fromstring(xml).findall("{*}Image")[series]  # noqa: S314  (expat bounds its expansion)
    except (IndexError, ElementTree.ParseError):  # a broken XML is a missing calibration
        return Metadata()
    pixels = image.find("{*}Pixels")
    if pixels is None:
        return Metadata()
    sizes = {}
    for axis in "ZYX":
        size = to_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if size is not None:
            sizes[axis.lower()] = size
    interval = to_seconds(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    names = [channel.get("Name", "") for channel in pixels.findall("{*}Channel")]
    return Metadata(sizes, interval, tuple(names) if all(names) else ())


def _from_imagej(tif: tifffile.TiffFile, words: Mapping[str, Any]) -> Metadata:
    tags = _first(tif.pages).tags
    sizes = {}
    for axis in "zyx":
        unit = words.get(f"{axis}unit", words.get("unit", ""))
        if axis == "z":
            size = to_um(words.get("spacing"), unit)
        else:
            resolution = tags.get(f"{axis.upper()}Resolution")
            pixels, per = resolution.value if resolution is not None else (0, 1)
            size = to_um(per / pixels if pixels else None, unit)
        if size is not None:
            sizes[axis] = size
    interval = to_seconds(words.get("finterval"), words.get("tunit", "s"))
    labels = words.get("Labels") or []
    labels = [labels] if isinstance(labels, str) else labels  # tifffile's way with a single one
    channels = int(words.get("channels", 1))
    names = tuple(str(label) for label in labels[:channels])
    # ImageJ labels planes ("slice 1 of 20", or with the header of a file), not channels; they are channel names only
    # where they repeat.
    one_line = all(name and "\n" not in name for name in names)
    repeats = one_line and len(labels) % channels == 0 and tuple(labels) == names * (len(labels) // channels)
    return Metadata(sizes, interval, names if repeats else ())


def _first(value: Any) -> Any:
    return value if isinstance(value, dict) else value[0]
