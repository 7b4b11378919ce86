"""Files of any other format that an installed reader of bioio (BSD-3-Clause) knows.

The extra brings the reader of DeltaVision files (bioio-dv, MIT). Readers of further formats are found when they are
installed beside; their licences are their own.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, damaged, naming_damage
from gap_bioimage.photons.formats.units import to_seconds, to_um

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_NUMBERED = re.compile(r"(Channel|Image)(:\d+)+")  # what bioio calls things without a name
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def reader_of(path: Path) -> Any | None:
    """Return bioio's reader of a file; None for TIFF, and where bioio or a reader of this format is missing."""
    with path.open("rb") as file:
        if file.read(4) in _TIFF or find_spec("bioio") is None:
            return None
    from bioio import BioImage
    from bioio_base.exceptions import UnsupportedFileFormatError

    try:
        return BioImage(path).reader
    except UnsupportedFileFormatError:
        return None
    except Exception as error:  # readers raise many types on damaged files
        raise damaged(path, error) from None


def open_with(reader: Any, path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open one scene with a reader of bioio.

    Parameters
    ----------
    reader
        From ``reader_of``.
    path
        The file, for messages.
    series, level
        Which scene, by number or name, and which level of its pyramid.

    Raises
    ------
    UnreadableImageError
        If the file is damaged, or holds several scenes of which none was chosen.
    AxesError
        If there is no such scene or level.
    """
    with naming_damage(path):
        scenes = [str(scene) for scene in reader.scenes]
        shapes = []
        for number in range(len(scenes)):
            reader.set_scene(number)
            shapes.append(tuple(reader.shape))
        place = choose(path, list(zip(scenes, shapes, strict=True)), series)
        reader.set_scene(place)
        levels = [tuple(reader.resolution_level_dims[number]) for number in reader.resolution_levels]
        reader.set_resolution_level(choose_level(path, levels, level))
        image = reader.xarray_dask_data
        meta = _metadata(reader, image, scenes[place])
    axes = "".join(str(dim) if dim in tuple("TCZYXS") else "Q" for dim in image.dims)

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        return np.asarray(image.data[index])

    return Stored(axes, tuple(image.shape), np.dtype(image.dtype), read, meta)


def _metadata(reader: Any, image: Any, name: str) -> Metadata:
    told = reader.physical_pixel_sizes
    measured = {axis.lower(): to_um(getattr(told, axis), "um") for axis in "ZYX"}
    sizes = {axis: size for axis, size in measured.items() if size is not None}
    interval = reader.time_interval
    seconds = interval.total_seconds() if hasattr(interval, "total_seconds") else interval
    names = [str(each) for each in np.atleast_1d(image.coords["C"].values)] if "C" in image.coords else []
    channels = () if any(_NUMBERED.fullmatch(each) for each in names) else tuple(names)
    return Metadata(sizes, to_seconds(seconds, "s"), channels, "" if _NUMBERED.fullmatch(name) else name)
