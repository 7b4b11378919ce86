"""HDF5 and the formats of microscope vendors, through libraries under permissive licences; bioio reads the rest.

libCZI, pylibCZIrw, bioio-czi and readlif are not used, since they are under LGPL or GPL.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io.image import Lazy, Metadata, Stored, image_of, steps_of, unit_warning

_PLACEHOLDER = re.compile(r"(Channel|Image)(:\d+)+")  # of bioio, for a missing name


def _lazy(image: Any, open_file: Callable[[], Any], array_of: Callable[[Any], Any]) -> Lazy:
    def read(index: tuple[Any, ...]) -> npt.NDArray[Any]:
        with open_file() as file:
            return np.array(array_of(file)[index])

    return Lazy(image.shape, image.dtype, read)


def _stored(name: str, array: Any, dims: Iterable[str], steps: Mapping[str, float], channels: Sequence[str]) -> Stored:
    dims = [dim if dim.upper() in tuple("TCZYXS") else _foreign(dim) for dim in dims]
    return Stored(name, {0: image_of(array, dims, Metadata(steps, channels))})


def _foreign(dim: str) -> str:
    return f"{dim.lower()} of the file"


def _narrow(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return counts as uint16 if they fit, as in Fiji's format and from most detectors."""
    return counts.astype(np.uint16) if counts.max(initial=0) <= np.iinfo(np.uint16).max else counts


def _steps(coords: Mapping[Any, Any], length: str, time: str = "s") -> dict[str, float]:
    known = {axis.lower(): np.asarray(coords[axis]) for axis in "TZYX" if axis in coords}
    steps = {axis: abs(c[-1] - c[0]) / (c.size - 1) for axis, c in known.items() if c.size > 1}
    return steps_of({axis: (step, time if axis == "t" else length) for axis, step in steps.items()})


def _lif(path: Path) -> Iterator[Stored]:
    """Yield the images of a Leica file, one per stage position of a tile scan."""
    from liffile import LifFile

    def read(file: Any, number: int) -> Any:
        # mapped to read only the indexed part; colours are reordered, which a memory map does not allow
        return file.images[number].asarray(out=None if "S" in file.images[number].dims else "memmap")

    with LifFile(str(path)) as file:
        for number, image in enumerate(file.images):
            array = _lazy(image, partial(LifFile, str(path)), partial(read, number=number))
            channels = image.xml_element.findall("./Data/Image/ImageDescription/Channels/ChannelDescription")
            dyes = [item.findtext("ChannelProperty[Key='DyeName']/Value") or "" for item in channels]
            stored = _stored(image.path, array, image.dims, _steps(image.coords, "m"), dyes)
            names = [f"{image.path}/{position}" for position in range(image.sizes.get("M", 0))]
            yield from stored.by_position(_foreign("M"), names) if names else [stored]


def _nd2(path: Path) -> Iterator[Stored]:
    from nd2 import ND2File

    with ND2File(path) as file:
        coords = file.to_xarray(delayed=True, squeeze=False).coords
        steps = _steps(coords, "um", "ms")
        calibrated = [channel.volume.axesCalibrated for channel in file.metadata.channels or []]
        if calibrated and not calibrated[0][0]:  # for uncalibrated pixels the library returns 1 um
            steps = {axis: step for axis, step in steps.items() if axis in "tz"}
        names = {axis: [str(name) for name in coords[axis].values] for axis in "CP" if axis in coords}
        array = _lazy(file, partial(ND2File, path), lambda file: file.to_dask())
        stored = _stored("", array, file.sizes, steps, names.get("C", []))
        yield from stored.by_position(_foreign("P"), names["P"]) if "P" in file.sizes else [stored]


def _ptu(path: Path) -> Iterator[Stored]:
    """Yield the image of a PicoQuant file: photons per frame, pixel and detector, summed over the laser period."""
    from ptufile import PtuFile

    def read(index: tuple[Any, ...]) -> npt.NDArray[Any]:
        with PtuFile(str(path)) as file:
            return _narrow(np.asarray(file.decode_image(dtime=-1, dtype=np.uint32, keepdims=True))[..., 0][index])

    with PtuFile(str(path)) as file:
        dims = list(file.dims)
        if not {"Y", "X"} < set(dims) or dims[-1] != "H":
            raise UnreadableImageError(f"{path} holds a point or a line, expected an image scan; choose another file")
        yield _stored("", Lazy(file.shape[:-1], np.uint32, read), dims[:-1], _steps(file.coords, "m"), ())


def _sdt(path: Path) -> Iterator[Stored]:
    """Yield the images of a Becker & Hickl file, without pixel sizes; blocks become channels if all have one shape."""
    from sdtfile import SdtFile

    with SdtFile(str(path)) as file:
        blocks = [block for block in file.data if block.ndim == 3 and min(block.shape[:2]) > 1]
    if not blocks:
        raise UnreadableImageError(f"{path} holds decay curves, expected an image scan; choose another file")
    one_shape = len({block.shape for block in blocks}) == 1
    for group in [blocks] if one_shape else [[block] for block in blocks]:
        counts = np.stack([block.sum(axis=-1, dtype=np.uint32) for block in group])
        yield _stored("", _narrow(counts), "cyx", {}, ())


def _czi(path: Path) -> Iterator[Stored]:
    """Yield the scenes of a Zeiss file; Python 3.11 has only an old czifile, from before the library was rewritten."""
    from czifile import CziFile

    old = not hasattr(CziFile, "scenes")
    with CziFile(str(path)) as file:
        xml = ElementTree.fromstring(file.metadata() or "<none/>")  # noqa: S314  (expat bounds its expansion)
        scenes = sorted(_tiles(file)) if old else list(file.scenes)
        names = [scene.get("Name", "") for scene in xml.iterfind(".//Image/Dimensions/S/Scenes/Scene")]
        names = names if len(names) == len(scenes) else [""] * len(scenes)
        channels = [channel.get("Name", "") for channel in xml.iterfind(".//Image/Dimensions/Channels/Channel")]
        lengths = xml.iterfind(".//Scaling/Items/Distance")
        measured = {item.get("Id", "").lower(): (item.findtext("Value"), "m") for item in lengths}
        steps = steps_of({**measured, "t": (xml.findtext(".//Image/Dimensions/T/Positions/Interval/Increment"), "s")})
        for name, scene in zip(names, scenes, strict=True):
            image = _old_scene(file, scene) if old else file.scenes[scene]
            dims = image.axes.replace("S", "B").replace("0", "S") if old else image.dims
            array = _lazy(image, partial(CziFile, str(path)), partial(_read_czi, path=path, scene=scene, old=old))
            yield _stored(name, array, dims, steps, channels)


def _read_czi(file: Any, path: Path, scene: Any, old: bool) -> Any:
    if not old:
        return file.scenes[scene].asarray()
    try:
        return _old_scene(file, scene).asarray(resize=False, max_workers=1)
    except KeyError as error:
        problem = f"{path.name} has a compression (number {error} of CZI) that cannot be read on Python 3.11"
        raise UnreadableImageError(f"{problem}; use Python 3.12 or later, or save it without compression") from None


def _tiles(file: Any) -> dict[int, list[Any]]:
    """Return the full-resolution tiles by scene."""
    scenes: dict[int, list[Any]] = {}
    for tile in file.subblock_directory:
        if tile.pyramid_type == 0 and tile.shape == tile.stored_shape:
            scenes.setdefault(int(tile.start[tile.axes.index("S")]) if "S" in tile.axes else 0, []).append(tile)
    return scenes


def _old_scene(file: Any, scene: int) -> Any:
    """Limit a file to the full-resolution tiles of one scene: other pyramid levels would be drawn over the image."""
    for name in ("shape", "start", "axes", "dtype"):  # properties cached from the tiles
        file.__dict__.pop(name, None)
    file.filtered_subblock_directory = sorted(_tiles(file)[scene], key=lambda tile: tile.mosaic_index or 0)
    return file


def _hdf5(path: Path) -> Iterator[Stored]:
    """Yield the numeric datasets of an HDF5 file with two or more dimensions, in alphabetical order."""
    import h5py

    file, nodes = h5py.File(path, "r"), {}
    file.visititems(lambda name, node: nodes.update({name: node}))
    file.visititems_links(
        lambda name, link: nodes.update({name: file.get(name)} if isinstance(link, h5py.ExternalLink) else {})
    )
    for name, data in nodes.items():
        if data is None:
            yield Stored(name, {})
        elif isinstance(data, h5py.Dataset) and data.ndim > 1 and data.dtype.kind in "biuf":
            # no levels if a file with values is missing: HDF5 would fill in zeros
            sources = [source.file_name for source in data.virtual_sources()] if data.is_virtual else []
            complete = all("%" in source or (Path(data.file.filename).parent / source).exists() for source in sources)
            yield Stored(name, {0: _dataset(data)} if complete else {})


def _dataset(data: Any) -> Any:
    """Return a dataset as an image.

    Axes come from vigra's ``axistags`` (ilastik), an attribute ``axes`` or HDF5's dimension labels; pixel sizes from
    ``element_size_um`` (z, y, x: Fiji's HDF5 plugin), else from the tags' ``resolution`` and ``axis_units`` (ilastik);
    not from ``voxel_size`` and the like, which some programs write in micrometres and others in nanometres.
    """
    attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in data.attrs.items()}
    tags = {str(tag["key"]): tag for tag in _from_json(attributes.get("axistags")).get("axes", [])}
    labels = [dim.label or (dim[0].name.rpartition("/")[2] if len(dim) else "") for dim in data.dims]  # or of the scale
    axes = list(tags) or _texts(attributes.get("axes", ())) or (labels if any(labels) else [])
    if len(axes) == 1:  # as one word, "tyx" or "t, y, x"
        axes = re.findall(r"\w+" if re.search(r"\W", axes[0]) else r"\w", axes[0])
    units = _from_json(attributes.get("axis_units"))
    measured: dict[str, Any] = {axis: (tag.get("resolution"), units.get(axis)) for axis, tag in tags.items()}
    if "interval_s" in attributes:
        measured["t"] = attributes["interval_s"], "s"
    if np.shape(element := attributes.get("element_size_um", ())) == (3,):
        measured |= {axis: (size, "um") for axis, size in zip("zyx", element, strict=True)}
    sizes = [int(_text(data.parent, f"ImageSize{axis}") or 0) for axis in "ZYX"]
    if data.ndim == len(sizes) and all(sizes):  # Imaris pads the last chunks with zeros, and gives the ends of axes
        info, axes = data.file.get("DataSetInfo/Image", data), list("zyx")
        for number, (axis, size) in enumerate(zip("xyz", reversed(sizes), strict=True)):
            first, last = (float(_text(info, f"Ext{end}{number}") or "nan") for end in ("Min", "Max"))
            measured[axis] = (last - first) / size, _text(info, "Unit")
        data = Lazy(np.minimum(sizes, data.shape).tolist(), data.dtype, data.__getitem__)
    meta = Metadata(steps_of(measured), _texts(attributes.get("channels", ())), warning=unit_warning(measured))
    return image_of(data, axes, meta)


def _text(node: Any, name: str) -> str:
    """Return a text attribute, in Imaris's files one character per element; "" if there is none."""
    return "".join(_texts(node.attrs.get(name, "")))


def _from_json(text: Any) -> dict[str, Any]:
    """Parse a JSON object; empty for other texts, which come from other programs."""
    try:
        value = json.loads(str(text))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in np.atleast_1d(values)]


def open_with_bioio(path: Path) -> list[Stored]:
    """Return the scenes of a file from an installed reader of bioio; empty if none can read it.

    The extra ``formats`` installs the reader of DeltaVision files (bioio-dv, MIT); others have their own licences.
    """
    if find_spec("bioio") is None:
        return []
    from bioio import BioImage
    from bioio_base.exceptions import UnsupportedFileFormatError

    try:
        reader = BioImage(path).reader
    except UnsupportedFileFormatError:
        return []
    return [_bioio_scene(reader, number, str(name)) for number, name in enumerate(reader.scenes)]


def _bioio_scene(reader: Any, number: int, scene: str) -> Stored:
    def opened() -> Any:
        reader.set_scene(number)
        return reader.xarray_dask_data

    image, seconds = opened(), reader.time_interval
    seconds = seconds.total_seconds() if hasattr(seconds, "total_seconds") else seconds
    measured = {axis.lower(): (getattr(reader.physical_pixel_sizes, axis), "um") for axis in "ZYX"}
    names = [str(name) for name in np.atleast_1d(image.coords["C"].values)] if "C" in image.coords else []
    names = [] if any(map(_PLACEHOLDER.fullmatch, names)) else names
    array = Lazy(image.shape, image.dtype, lambda index: opened().data[index])
    levels = {0: image_of(array, image.dims, Metadata(steps_of(measured | {"t": (seconds, "s")}), names))}
    return Stored("" if _PLACEHOLDER.fullmatch(scene) else scene, levels)


READERS: dict[str, Callable[[Path], Iterator[Stored]]] = {
    **dict.fromkeys((".h5", ".hdf5"), _hdf5),
    **dict.fromkeys((".lif", ".lof", ".xlif"), _lif),
    **{".czi": _czi, ".nd2": _nd2, ".ptu": _ptu, ".sdt": _sdt},
}
