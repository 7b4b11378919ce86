"""Leica LIF, LOF and XLIF files, through liffile (BSD-3-Clause); readlif is under GPL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, missing, naming_damage
from gap_bioimage.photons.formats.units import to_seconds, to_um

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

_DIMENSIONS = {"1": "x", "2": "y", "3": "z", "4": "t"}
_MOSAIC = "M"


def open_lif(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open one image of a Leica file.

    Parameters
    ----------
    path
        The file.
    series
        Which image, by number or name; each stage position of a tile scan is one.
    level
        None or 0: these files have no pyramids.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, holds several images of which none was chosen, holds photon streams (whose format
        is not public), or liffile is not installed.
    AxesError
        If there is no such image or level.
    """
    try:
        from liffile import LifFile
    except ImportError:
        raise missing(path, "formats") from None
    with naming_damage(path):
        with LifFile(str(path)) as file:
            known = [(name, number, place) for number, image in enumerate(file.images) for name, place in _parts(image)]
            shapes = [(title, _without_mosaic(file.images[number])[1]) for title, number, _ in known]
            name, number, place = known[choose(path, shapes, series)]
            image = file.images[number]
            axes, shape = _without_mosaic(image)
            choose_level(path, [shape], level)
            meta = _metadata(image.xml_element, name)
            mosaic, dtype = _mosaic(image), np.dtype(image.dtype)

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        full: tuple[slice | int, ...] = index if mosaic is None else (*index[:mosaic], place, *index[mosaic:])
        with LifFile(str(path)) as file:
            # mapped, so that only the part is read; colours are put in order, which a map does not allow
            values = file.images[number].asarray(out=None if "S" in axes else "memmap")
            return np.array(values[full])

    return Stored(axes, shape, dtype, read, meta)


def _mosaic(image: Any) -> int | None:
    return list(image.dims).index(_MOSAIC) if _MOSAIC in image.dims else None


def _parts(image: Any) -> Iterator[tuple[str, int]]:
    """Yield name and place of each stage position."""
    axis = _mosaic(image)
    if axis is None:
        yield image.path, 0
        return
    for place in range(image.shape[axis]):
        yield f"{image.path}/{place}", place


def _without_mosaic(image: Any) -> tuple[str, tuple[int, ...]]:
    pairs = [(axis, length) for axis, length in zip(image.dims, image.shape, strict=True) if axis != _MOSAIC]
    axes = "".join(axis if axis in tuple("TCZYXS") else "Q" for axis, _ in pairs)
    return axes, tuple(length for _, length in pairs)


def _metadata(xml: Any, name: str) -> Metadata:
    """Return the calibration: Leica's lengths reach from the first pixel's centre to the last one's."""
    sizes, interval = {}, None
    for item in xml.iterfind("./Data/Image/ImageDescription/Dimensions/DimensionDescription"):
        axis, steps = _DIMENSIONS.get(item.get("DimID", "")), int(item.get("NumberOfElements", 1)) - 1
        if axis is None or steps < 1:
            continue
        step = abs(float(item.get("Length", 0))) / steps
        if axis == "t":
            interval = to_seconds(step, item.get("Unit"))
        elif (size := to_um(step, item.get("Unit"))) is not None:
            sizes[axis] = size
    return Metadata(sizes, interval, _channels(xml), name)


def _channels(xml: Any) -> tuple[str, ...]:
    """Return the names of the dyes, else those of the colour tables where they differ."""
    items = list(xml.iterfind("./Data/Image/ImageDescription/Channels/ChannelDescription"))
    dyes = []
    for item in items:
        words = {each.findtext("Key"): each.findtext("Value") for each in item.iterfind("ChannelProperty")}
        dyes.append(words.get("DyeName") or "")
    tables = [item.get("LUTName", "") for item in items]
    for names in (dyes, tables):
        if all(names) and len(set(names)) == len(names):
            return tuple(names)
    return ()
