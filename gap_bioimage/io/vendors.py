"""The formats of microscopes' makers, through libraries under permissive licences; bioio reads what is left.

libCZI, pylibCZIrw and bioio-czi are under LGPL and GPL, as is readlif.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io.files import Stored, missing, naming_damage
from gap_bioimage.io.hdf5 import open_hdf5
from gap_bioimage.io.image import Metadata, lazy_image, steps_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

_NUMBERED = re.compile(r"(Channel|Image)(:\d+)+")  # what bioio calls things without a name
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_Reader = Callable[[Path], list[Stored]]


def _reader(read: Callable[[Path], Iterator[Stored]]) -> _Reader:
    """Name the extra where the library is not installed, and the file where it is damaged."""

    @wraps(read)
    def reader(path: Path) -> list[Stored]:
        with naming_damage(path):
            try:
                return list(read(path))
            except ImportError:
                raise missing(path, "formats") from None

    return reader


def _stored(
    shape: Sequence[int], dtype: Any, dims: Sequence[str], read: Callable[[tuple[Any, ...]], Any], meta: Metadata
) -> Stored:
    known = [dim if dim.upper() in tuple("TCZYXS") else f"{dim} of the file" for dim in dims]
    return Stored(meta.name, {0: tuple(shape)}, lambda _: lazy_image(shape, dtype, known, read, meta))


def _narrow(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return counts in 16 bits where they fit, as Fiji's own format and most detectors have them."""
    return counts.astype(np.uint16) if counts.max(initial=0) <= np.iinfo(np.uint16).max else counts


def _steps(coords: Mapping[Any, Any], length: str, time: str = "s") -> dict[str, float]:
    """Return the steps of a library's coordinates, in its units of length and time."""
    found = {str(axis).lower(): np.asarray(values) for axis, values in coords.items() if axis in tuple("TZYX")}
    spans = {axis: float(abs(c[-1] - c[0])) / (c.size - 1) for axis, c in found.items() if c.size > 1}
    return steps_of({axis: (step, time if axis == "t" else length) for axis, step in spans.items()})[0]


@_reader
def _lif(path: Path) -> Iterator[Stored]:
    """Yield the images of a Leica file; each stage position of a tile scan is one."""
    from liffile import LifFile

    with LifFile(str(path)) as file:
        for number, image in enumerate(file.images):
            dims, shape = list(image.dims), list(image.shape)
            mosaic = dims.index("M") if "M" in dims else None
            places = range(shape[mosaic]) if mosaic is not None else (0,)
            if mosaic is not None:
                del dims[mosaic], shape[mosaic]
            for place in places:
                name = image.path if mosaic is None else f"{image.path}/{place}"
                meta = Metadata(_steps(image.coords, "m"), _dyes(image.xml_element), name)

                def read(index: tuple[Any, ...], n: int = number, at: int | None = mosaic, p: int = place) -> Any:
                    with LifFile(str(path)) as file:
                        # mapped, so that only the part is read; colours are put in order, which a map does not allow
                        values = file.images[n].asarray(out=None if "S" in file.images[n].dims else "memmap")
                        return np.array(values[index if at is None else (*index[:at], p, *index[at:])])

                yield _stored(shape, image.dtype, dims, read, meta)


def _dyes(xml: Any) -> tuple[str, ...]:
    """Return the names of the dyes, else those of the colour tables where they differ."""
    dyes, tables = [], []
    for item in xml.iterfind("./Data/Image/ImageDescription/Channels/ChannelDescription"):
        words = {each.findtext("Key"): each.findtext("Value") for each in item.iterfind("ChannelProperty")}
        dyes.append(words.get("DyeName") or "")
        tables.append(item.get("LUTName", ""))
    for names in (dyes, tables):
        if all(names) and len(set(names)) == len(names):
            return tuple(names)
    return ()


@_reader
def _nd2(path: Path) -> Iterator[Stored]:
    """Yield the stage positions of a Nikon file."""
    from nd2 import ND2File

    with ND2File(path) as file:
        image = file.to_xarray(delayed=True, squeeze=False)
        dims, sizes = list(file.sizes), dict(file.sizes)
        at = dims.index("P") if "P" in dims else None
        names = [str(name) for name in image.coords["P"].values] if at is not None else [""]
        channels = [str(name) for name in image.coords["C"].values] if "C" in image.coords else []
        steps = _steps({axis: image.coords[axis].values for axis in "TZYX" if axis in image.coords}, "um", "ms")
        known = [channel.volume.axesCalibrated for channel in file.metadata.channels or []]
        if known and not known[0][0]:  # the library then takes pixels of 1 um
            steps = {axis: step for axis, step in steps.items() if axis in "tz"}
        sizes.pop("P", None)
        for place, name in enumerate(names):

            def read(index: tuple[Any, ...], place: int = place) -> Any:
                with ND2File(path) as file:
                    return np.asarray(file.to_dask()[index if at is None else (*index[:at], place, *index[at:])])

            meta = Metadata(steps, channels if all(channels) else (), name)
            yield _stored(list(sizes.values()), file.dtype, list(sizes), read, meta)


@_reader
def _ptu(path: Path) -> Iterator[Stored]:
    """Yield the image of a PicoQuant file: photons per frame, pixel and detector, whenever in the laser's period."""
    from ptufile import PtuFile

    with PtuFile(str(path)) as file:
        dims, shape = list(file.dims), list(file.shape)
        if not {"Y", "X"} < set(dims) or dims[-1] != "H":
            raise UnreadableImageError(
                f"{path} holds a point or line measurement, expected an image scan in T3 mode; name another file"
            )
        steps = _steps(file.coords, "m")

    def read(index: tuple[Any, ...]) -> npt.NDArray[Any]:
        with PtuFile(str(path)) as file:
            return _narrow(np.asarray(file.decode_image(dtime=-1, dtype=np.uint32, keepdims=True))[..., 0][index])

    yield _stored(shape[:-1], np.uint32, dims[:-1], read, Metadata(steps))


@_reader
def _sdt(path: Path) -> Iterator[Stored]:
    """Yield the images of a Becker & Hickl file: photons per pixel, blocks of one shape as channels, others apart.

    It does not say how large its pixels are.
    """
    from sdtfile import SdtFile

    with SdtFile(str(path)) as file:
        blocks = [block for block in file.data if block.ndim == 3 and min(block.shape[:2]) > 1]
    if not blocks:
        raise UnreadableImageError(f"{path} holds decay curves, expected an image scan; name another file")
    same = len({block.shape for block in blocks}) == 1
    for group in [blocks] if same else [[block] for block in blocks]:
        counts = np.stack([block.sum(axis=-1, dtype=np.uint32) for block in group])
        counts = _narrow(counts)
        yield _stored(counts.shape, counts.dtype, "cyx", counts.__getitem__, Metadata())


@_reader
def _czi(path: Path) -> Iterator[Stored]:
    """Yield the scenes of a Zeiss file.

    czifile was rewritten for Python 3.12 and later; Python 3.11 has its last older release, which is given the tiles
    of one scene's full resolution, because it draws pyramids over the image otherwise.
    """
    from czifile import CziFile

    with CziFile(str(path)) as file:
        xml = ElementTree.fromstring(file.metadata() or "<none/>")  # noqa: S314  (expat bounds its expansion)
        old = not hasattr(file, "scenes")
        scenes = sorted({_scene(tile) for tile in _tiles(file)}) if old else list(file.scenes)
        names = [each.get("Name", "") for each in xml.iterfind(".//Image/Dimensions/S/Scenes/Scene")]
        names = names if len(names) == len(scenes) else [""] * len(scenes)
        for scene, name in zip(scenes, names, strict=True):
            image = _old_scene(file, scene) if old else file.scenes[scene]
            dims = image.axes.replace("S", "B").replace("0", "S") if old else image.dims

            def read(index: tuple[Any, ...], scene: Any = scene) -> Any:
                with CziFile(str(path)) as file:
                    if not old:
                        return np.asarray(file.scenes[scene].asarray())[index]
                    try:
                        return np.asarray(_old_scene(file, scene).asarray(resize=False, max_workers=1))[index]
                    except KeyError as error:
                        raise UnreadableImageError(
                            f"{path.name} is compressed in a way (CZI's number {error}) that Python 3.11 cannot read; "
                            "use Python 3.12 or later, or save it without compression"
                        ) from None

            yield _stored(image.shape, image.dtype, dims, read, _of_czi(xml, name))


def _tiles(file: Any) -> list[Any]:
    return [tile for tile in file.subblock_directory if tile.pyramid_type == 0 and tile.shape == tile.stored_shape]


def _scene(tile: Any) -> int:
    return int(tile.start[tile.axes.index("S")]) if "S" in tile.axes else 0


def _old_scene(file: Any, scene: int) -> Any:
    for name in ("shape", "start", "axes", "dtype"):  # computed from the tiles once
        file.__dict__.pop(name, None)
    tiles = [tile for tile in _tiles(file) if _scene(tile) == scene]
    file.filtered_subblock_directory = sorted(tiles, key=lambda tile: tile.mosaic_index or 0)
    return file


def _of_czi(xml: ElementTree.Element, name: str) -> Metadata:
    """Return the calibration, with the name of the scene; CZI keeps metres and seconds."""
    measured = {
        item.get("Id", "").lower(): (item.findtext("Value"), "m") for item in xml.iterfind(".//Scaling/Items/Distance")
    }
    measured["t"] = (xml.findtext(".//Image/Dimensions/T/Positions/Interval/Increment"), "s")
    steps, _ = steps_of({axis: step for axis, step in measured.items() if axis in tuple("tzyx")})
    names = [each.get("Name", "") for each in xml.iterfind(".//Image/Dimensions/Channels/Channel")]
    return Metadata(steps, tuple(names) if all(names) else (), name)


def open_with_bioio(path: Path) -> list[Stored]:
    """Return the scenes of a file by an installed reader of bioio; none for TIFF, and where none reads it.

    The extra brings the reader of DeltaVision files (bioio-dv, MIT); the licences of others are their own.
    """
    with path.open("rb") as file:
        if file.read(4) in _TIFF or find_spec("bioio") is None:
            return []
    from bioio import BioImage
    from bioio_base.exceptions import UnsupportedFileFormatError

    with naming_damage(path):
        try:
            reader = BioImage(path).reader
        except UnsupportedFileFormatError:
            return []
        return [_scene_of(reader, number, str(name)) for number, name in enumerate(reader.scenes)]


def _scene_of(reader: Any, number: int, scene: str) -> Stored:
    reader.set_scene(number)
    levels = {level: tuple(reader.resolution_level_dims[level]) for level in reader.resolution_levels}
    name = "" if _NUMBERED.fullmatch(scene) else scene

    def opened(level: int) -> Any:
        reader.set_scene(number)
        reader.set_resolution_level(level)
        image = reader.xarray_dask_data
        meta = _of_bioio(reader, image, name)
        return lazy_image(image.shape, image.dtype, image.dims, lambda index: np.asarray(image.data[index]), meta)

    return Stored(scene, levels, opened)


def _of_bioio(reader: Any, image: Any, name: str) -> Metadata:
    interval = reader.time_interval
    seconds = interval.total_seconds() if hasattr(interval, "total_seconds") else interval
    measured = {axis.lower(): (getattr(reader.physical_pixel_sizes, axis), "um") for axis in "ZYX"}
    names = [str(each) for each in np.atleast_1d(image.coords["C"].values)] if "C" in image.coords else []
    steps, _ = steps_of(measured | {"t": (seconds, "s")})
    return Metadata(steps, () if any(_NUMBERED.fullmatch(each) for each in names) else tuple(names), name)


READERS: dict[str, _Reader] = {
    **dict.fromkeys((".h5", ".hdf5"), open_hdf5),
    **dict.fromkeys((".lif", ".lof", ".xlif"), _lif),
    **{".czi": _czi, ".nd2": _nd2, ".ptu": _ptu, ".sdt": _sdt},
}
