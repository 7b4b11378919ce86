"""Lengths and times in the words of microscopes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

UM_PER_UNIT = {
    "pm": 1e-6,
    "picometer": 1e-6,
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
    "centimeter": 1e4,  # "cm" and "inch" are units of printers, and not believed
    "m": 1e6,
    "meter": 1e6,
}
SECONDS_PER_UNIT = {
    "ns": 1e-9,
    "nanosecond": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "microsecond": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
}


def to_um(value: Any, unit: Any) -> float | None:
    """Return a length in micrometres, or None where it is absent, no number, or in a unit not believed."""
    return _positive(value, UM_PER_UNIT.get(str(unit).strip().lower()))


def to_seconds(value: Any, unit: Any) -> float | None:
    """Return a time in seconds, or None where it is absent, no number, or in a unit not believed."""
    return _positive(value, SECONDS_PER_UNIT.get(str(unit).strip().lower()))


def unitless(steps: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Return the steps, of those by axis with their units, that have none; 0 and 1 measure nothing."""
    found = {axis: _positive(step, 1.0) for axis, (step, unit) in steps.items() if not str(unit or "").strip()}
    return {axis: size for axis, size in found.items() if size is not None and size != 1}


def _positive(value: Any, factor: float | None) -> float | None:
    if factor is None:
        return None
    try:
        size = float(f"{float(value) * factor:.7g}")  # TIFF stores a ratio of 32-bit integers; this hides its rounding
    except (TypeError, ValueError):
        return None
    return size if math.isfinite(size) and size > 0 else None
