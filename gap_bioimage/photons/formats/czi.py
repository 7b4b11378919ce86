"""Zeiss CZI files, through czifile (BSD-3-Clause).

libCZI, pylibCZIrw and bioio-czi are under LGPL and GPL. czifile was rewritten for Python 3.12 and later; Python 3.11
has its last older release, whose assembly of tiles draws pyramids over the image, so that tiles are put together here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.photons.formats.stored import (
    Metadata,
    Stored,
    choose,
    choose_level,
    missing,
    naming_damage,
    without_single,
)
from gap_bioimage.photons.formats.units import to_seconds, to_um

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt


def open_czi(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open one scene of a CZI file, its tiles put together.

    Parameters
    ----------
    path
        The file.
    series
        Which scene, by number or name.
    level
        None or 0: the file's own pyramid is not read.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, holds several scenes of which none was chosen, is compressed in a way that the
        installed czifile does not know, or czifile is not installed.
    AxesError
        If there is no such scene or level.
    """
    try:
        from czifile import CziFile
    except ImportError:
        raise missing(path, "formats") from None
    with naming_damage(path):
        with CziFile(str(path)) as file:
            xml = ElementTree.fromstring(file.metadata() or "<none/>")  # noqa: S314  (expat bounds its expansion)
            old = not hasattr(file, "scenes")
            keys = sorted({_scene(entry) for entry in _tiles(file)}) if old else list(file.scenes)
            scenes = [_Tiles(path, file, key) if old else _Whole(path, file, key) for key in keys]
        names = [each.get("Name", "") for each in xml.iterfind(".//Image/Dimensions/S/Scenes/Scene")]
        names = names if len(names) == len(scenes) else [""] * len(scenes)
        place = choose(path, [(n, s.shape) for n, s in zip(names, scenes, strict=True)], series)
        choose_level(path, [scenes[place].shape], level)
        return scenes[place].stored(_metadata(xml, names[place]))


class _Scene:
    """A scene in czifile's axes; single ones that are none of ours are hidden."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def values(self, index: tuple[slice, ...]) -> npt.NDArray[Any]:
        raise NotImplementedError

    def stored(self, meta: Metadata) -> Stored:
        kept, drop = without_single(self.axes, self.shape)

        def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
            slices = iter(index)
            return self.values(tuple(slice(None) if place == 0 else next(slices) for place in drop))[drop]

        shape = tuple(length for length, place in zip(self.shape, drop, strict=True) if place != 0)
        return Stored(kept, shape, self.dtype, read, meta)


class _Whole(_Scene):
    """A scene as czifile 2026 reads it."""

    def __init__(self, path: Path, file: Any, key: int) -> None:
        self._path, self._key = path, key
        image = file.scenes[key]
        self.axes, self.shape, self.dtype = _letters(image.dims), tuple(image.shape), np.dtype(image.dtype)

    def values(self, index: tuple[slice, ...]) -> npt.NDArray[Any]:
        from czifile import CziFile

        with CziFile(str(self._path)) as file:
            return np.asarray(file.scenes[self._key].asarray())[index]


class _Tiles(_Scene):
    """A scene put together from the tiles of the full resolution, for czifile 2019."""

    def __init__(self, path: Path, file: Any, key: int) -> None:
        self._path, self._key = path, key
        tiles = [tile for tile in _tiles(file) if _scene(tile) == key]
        starts = np.array([tile.start for tile in tiles])
        stops = starts + np.array([tile.shape for tile in tiles])
        self._start = starts.min(axis=0)
        self.shape = tuple(int(n) for n in stops.max(axis=0) - self._start)
        self.axes = _letters(tiles[0].axes.replace("S", "?").replace("0", "S"))
        self.dtype = np.result_type(*(np.dtype(tile.dtype).base for tile in tiles))

    def values(self, index: tuple[slice, ...]) -> npt.NDArray[Any]:
        from czifile import CziFile

        wanted = [range(*one.indices(n)) for one, n in zip(index, self.shape, strict=True)]
        out = np.zeros([len(each) for each in wanted], self.dtype)
        with CziFile(str(self._path)) as file:
            for tile in sorted(_tiles(file), key=lambda tile: tile.mosaic_index or 0):
                if _scene(tile) != self._key:
                    continue
                places = _overlap(wanted, (np.array(tile.start) - self._start).tolist(), tile.shape)
                if places is not None:
                    out[places[0]] = _decoded(self._path, tile)[places[1]]
        return out


def _tiles(file: Any) -> list[Any]:
    return [tile for tile in file.subblock_directory if tile.pyramid_type == 0 and tile.shape == tile.stored_shape]


def _scene(tile: Any) -> int:
    return int(tile.start[tile.axes.index("S")]) if "S" in tile.axes else 0


def _decoded(path: Path, tile: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(tile.data_segment().data(resize=False))
    except KeyError:
        raise UnreadableImageError(
            f"{path.name} is compressed in a way (CZI's number {tile.compression}) that Python 3.11 cannot read; "
            "use Python 3.12 or later, or save it without compression"
        ) from None


def _overlap(
    wanted: Sequence[range], start: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return where a tile goes in the wanted values, and which of its values those are; None if none are wanted."""
    into, of = [], []
    for places, first, length in zip(wanted, start, shape, strict=True):
        inside = [number for number, place in enumerate(places) if first <= place < first + length]
        if not inside:
            return None
        into.append(slice(inside[0], inside[-1] + 1))
        of.append(slice(places[inside[0]] - first, places[inside[-1]] - first + 1, places.step))
    return tuple(into), tuple(of)


def _letters(axes: Sequence[str]) -> str:
    return "".join(axis if axis in tuple("TCZYXS") else "Q" for axis in axes)


def _metadata(xml: ElementTree.Element, name: str) -> Metadata:
    """Return the calibration, with the name of the scene; CZI keeps metres and seconds."""
    sizes = {}
    for item in xml.iterfind(".//Scaling/Items/Distance"):
        size = to_um(item.findtext("Value"), "m")
        if size is not None and item.get("Id", "").lower() in tuple("zyx"):
            sizes[item.get("Id", "").lower()] = size
    interval = to_seconds(xml.findtext(".//Image/Dimensions/T/Positions/Interval/Increment"), "s")
    names = [each.get("Name", "") for each in xml.iterfind(".//Image/Dimensions/Channels/Channel")]
    return Metadata(sizes, interval, tuple(names) if all(names) else (), name)
