"""Pixel sizes, frame intervals and channel names in the words of ImageJ and OME."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tifffile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UM_PER_UNIT = {
    "pm": 1e-6,
    "angstrom": 1e-4,
    "å": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "um": 1.0,
    "µm": 1.0,  # micro sign
    "\u03bcm": 1.0,  # Greek mu
    "\\u00b5m": 1.0,  # ImageJ escapes what Java calls non-ASCII
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "m": 1e6,
}
_SECONDS_PER_UNIT = {"ms": 1e-3, "msec": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hr": 3600.0}


@dataclass(frozen=True)
class Metadata:
    """What an image file says about its axes; empty where it says nothing trustworthy."""

    pixel_size_um: Mapping[str, float] = field(default_factory=dict)
    interval_s: float | None = None
    channels: Sequence[str] = ()


def read_metadata(tif: tifffile.TiffFile) -> Metadata:
    """Return the calibration of an open TIFF.

    A plain TIFF has none: its resolution is that of a printer or screen (72 per inch), not of a microscope.
    For the same reason centimetres and inches are not believed in ImageJ files, which copy them from plain
    ones.

    Source: OME-TIFF 2016-06 schema; ImageJ's ``TiffEncoder``.
    """
    if tif.is_ome and tif.ome_metadata:
        return _from_ome(tif.ome_metadata)
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
    return words


def _from_ome(xml: str) -> Metadata:
    try:
        image = _first(tifffile.xml2dict(xml)["OME"]["Image"])
        pixels = _first(image["Pixels"])
    except (KeyError, TypeError, ValueError, SyntaxError):  # a broken XML is a missing calibration
        return Metadata()
    sizes = {}
    for axis in "ZYX":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        size = _positive(pixels.get(f"PhysicalSize{axis}"), _UM_PER_UNIT.get(str(unit).lower()))
        if size is not None:
            sizes[axis.lower()] = size
    unit = pixels.get("TimeIncrementUnit", "s")
    interval = _positive(pixels.get("TimeIncrement"), _SECONDS_PER_UNIT.get(str(unit).lower()))
    channels = pixels.get("Channel", [])
    channels = channels if isinstance(channels, (list, tuple)) else [channels]
    names = [str(channel["Name"]) for channel in channels if isinstance(channel, dict) and channel.get("Name")]
    return Metadata(sizes, interval, tuple(names))


def _from_imagej(tif: tifffile.TiffFile, words: Mapping[str, Any]) -> Metadata:
    tags = _first(tif.pages).tags
    sizes = {}
    for axis in "zyx":
        unit = _UM_PER_UNIT.get(str(words.get(f"{axis}unit", words.get("unit", ""))).strip().lower())
        if axis == "z":
            size = _positive(words.get("spacing"), unit)
        else:
            resolution = tags.get(f"{axis.upper()}Resolution")
            pixels, per = resolution.value if resolution is not None else (0, 1)
            size = _positive(per / pixels if pixels else None, unit)
        if size is not None:
            sizes[axis] = size
    unit = _SECONDS_PER_UNIT.get(str(words.get("tunit", "s")).strip().lower())
    labels = words.get("Labels") or []
    channels = int(words.get("channels", 1))
    names = tuple(str(label) for label in labels[:channels])
    # ImageJ labels planes ("slice 1 of 20"), not channels; they are channel names only where they repeat.
    repeats = channels > 1 and len(labels) % channels == 0 and tuple(labels) == names * (len(labels) // channels)
    return Metadata(sizes, _positive(words.get("finterval"), unit), names if repeats else ())


def _first(value: Any) -> Any:
    return value if isinstance(value, dict) else value[0]


def _positive(value: Any, factor: float | None) -> float | None:
    """Return a size in our unit, or None where it is absent, no number, or in a unit not believed."""
    if factor is None or not isinstance(value, (int, float)):
        return None
    size = float(f"{value * factor:.7g}")  # TIFF stores a ratio of 32-bit integers; this hides its rounding
    return size if math.isfinite(size) and size > 0 else None
