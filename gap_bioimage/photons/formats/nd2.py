"""Nikon ND2 files, through nd2 (BSD-3-Clause)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, missing, naming_damage
from gap_bioimage.photons.formats.units import to_seconds, to_um

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_POSITION = "P"


def open_nd2(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open one stage position of an ND2 file.

    Parameters
    ----------
    path
        The file.
    series
        Which position, by number or name.
    level
        None or 0: these files have no pyramids.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, holds several positions of which none was chosen, or nd2 is not installed.
    AxesError
        If there is no such position or level.
    """
    try:
        from nd2 import ND2File
    except ImportError:
        raise missing(path, "formats") from None
    with naming_damage(path):
        with ND2File(path) as file:
            sizes = dict(file.sizes)
            positions, at = (
                sizes.pop(_POSITION, 1),
                list(file.sizes).index(_POSITION) if _POSITION in file.sizes else None,
            )
            shape = tuple(sizes.values())
            names = _positions(file, positions)
            place = choose(path, [(name, shape) for name in names], series)
            choose_level(path, [shape], level)
            axes = "".join(axis if axis in tuple("TCZYXS") else "Q" for axis in sizes)
            meta, dtype = _metadata(file, names[place]), np.dtype(file.dtype)

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        full: tuple[slice | int, ...] = index if at is None else (*index[:at], place, *index[at:])
        with ND2File(path) as file:
            return np.asarray(file.to_dask()[full])

    return Stored(axes, shape, dtype, read, meta)


def _positions(file: Any, count: int) -> list[str]:
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            return [str(point.name or "") for point in loop.parameters.points][:count]
    return [""] * count


def _metadata(file: Any, name: str) -> Metadata:
    sizes = {}
    for axis, step in zip("xyz", file.voxel_size(), strict=True):
        size = to_um(step, "um")
        if size is not None:
            sizes[axis] = size
    interval = None
    for loop in file.experiment:
        if loop.type == "TimeLoop":
            # what passed between frames, where the file says so, else what was asked for
            spent = loop.parameters.periodDiff
            interval = to_seconds((spent.avg if spent else None) or loop.parameters.periodMs, "ms")
    channels = (file.metadata.channels or []) if hasattr(file.metadata, "channels") else []
    names = [str(channel.channel.name or "") for channel in channels]
    return Metadata(sizes, interval, tuple(names) if all(names) else (), name)
