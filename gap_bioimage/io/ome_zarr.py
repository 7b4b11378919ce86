"""OME-Zarr images, 0.1 to 0.6, alone, in plates and in bioformats2raw's layout; and bare Zarr arrays.

The libraries of OME's metadata know 0.4 and 0.5 only, and refuse a store as a whole where one word of it strays from
the schema; what is read here, axes, scales and names, is much the same in all versions.
"""

from __future__ import annotations

import itertools
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import GapWarning, OutputError, UnreadableImageError
from gap_bioimage.io.files import Stored, missing, naming_damage
from gap_bioimage.io.image import AXES, Metadata, lazy_image, steps_of, wrong_axes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    import zarr

_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_VERSION = re.compile(r"0\.[1-6]\b")
_CHUNK = {"z": 16, "y": 256, "x": 256}
_SMALLEST = 256  # a level whose planes are no larger is the last
_ISOTROPIC = 1.5  # planes this many pixels apart, or closer, are merged too
_KINDS = {"t": ("time", "second"), "c": ("channel", None)}
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


@dataclass(frozen=True)
class _Image:
    """An image in a store: its levels, and what is said about them (nothing, for a bare array)."""

    name: str
    levels: Mapping[int, zarr.Array[Any]]
    words: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def open_zarr(path: Path) -> list[Stored]:
    """Return the images of a Zarr store, a folder or a zip (``.ozx``); of plates, those of all fields that are there.

    Chunks that a store lacks are empty by Zarr's definition, so one that was copied in part cannot be told from a
    dark image.

    Notes
    -----
    Source: OME-NGFF 0.4 to 0.6, ``multiscales``, ``coordinateSystems``, ``omero``, ``plate`` and
    ``bioformats2raw.layout``.
    """
    try:
        import zarr
    except ImportError:
        raise missing(path, "zarr") from None
    with naming_damage(path):
        store = str(path) if path.is_dir() else zarr.storage.ZipStore(path, mode="r")
        images = list(_images(zarr.open(store, mode="r"), ""))
    several = len(images) > 1
    return [
        Stored(
            image.name,
            {number: array.shape for number, array in image.levels.items()},
            lambda number, image=image: _opened(path, image, number, several),  # type: ignore[misc]
        )
        for image in images
    ]


def _opened(path: Path, image: _Image, number: int, several: bool) -> xr.DataArray:
    array = image.levels[number]
    dims, problem = _axes(image)
    steps, unitless = _calibration(path, image, dims, number)
    meta = Metadata(steps, image.channels, image.name if several else "", unitless, problem=problem)
    return lazy_image(array.shape, array.dtype, dims, array.__getitem__, meta)


def _images(node: zarr.Group | zarr.Array[Any], place: str) -> Iterator[_Image]:
    """Yield the images of a group, in the order that its metadata give, else in natural order.

    Those that it lists and lacks have no levels.
    """
    import zarr

    if isinstance(node, zarr.Array):
        yield _Image(place, {0: node})
        return
    words = _words(node)
    if "multiscales" in words:
        yield from _multiscales(node, words, place)
        return
    if "plate" in words:
        names = [str(part["path"]) for part in words["plate"]["wells"]]
    elif "well" in words:
        names = [str(part["path"]) for part in words["well"]["images"]]
    else:
        names = _series(node, words)
    for name in names:
        inner = f"{place}/{name}".strip("/")
        if name in node:
            yield from _images(node[name], inner)
        else:
            yield _Image(inner, {})


def _multiscales(node: zarr.Group, words: Mapping[str, Any], place: str) -> Iterator[_Image]:
    channels = words.get("omero", {}).get("channels", [])
    labels = tuple(str(each["label"]) for each in channels if each.get("label"))
    for entry in words["multiscales"]:
        version = str(words.get("version") or entry.get("version") or "0.5")
        if not _VERSION.match(version):
            raise UnreadableImageError(
                f"{node.store} is OME-Zarr {version}, which is not known, expected 0.1 to 0.6; write it as 0.5"
            )
        paths = [str(dataset["path"]) for dataset in entry["datasets"]]
        levels = {number: node[name] for number, name in enumerate(paths) if name in node}
        yield _Image(place or str(entry.get("name") or ""), levels, entry, labels)  # type: ignore[arg-type]


def _words(node: zarr.Group | zarr.Array[Any]) -> dict[str, Any]:
    """Return OME's metadata, which 0.5 and later keep under a key of their own."""
    words: dict[str, Any] = node.attrs.asdict()
    return dict(words.get("ome", words))


def _series(node: zarr.Group, words: Mapping[str, Any]) -> list[str]:
    listed = _words(node["OME"]).get("series") if "bioformats2raw.layout" in words and "OME" in node else None
    names = [str(name) for name in listed or (name for name, _ in node.members()) if name not in ("labels", "OME")]
    return (
        names if listed else sorted(names, key=lambda n: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", n)])
    )


def _axes(image: _Image) -> tuple[list[str], str]:
    """Return a name per axis, and what is wrong with those of the file.

    0.1 and 0.2 have five axes and do not say so, 0.3 has names only, 0.6 has them in coordinate systems.
    """
    array = next(iter(image.levels.values()))
    if not image.words:
        named: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
        names = [str(name or "") for name in named or ()]
        return (names if len(names) == array.ndim else ["y", "x"] if array.ndim == 2 else [""] * array.ndim), ""
    names = [axis if isinstance(axis, str) else _name(axis) for axis in _described(image.words)] or list(AXES)
    if len(names) == array.ndim:
        return names, ""
    return [""] * array.ndim, wrong_axes(names, array.shape)


def _described(words: Mapping[str, Any]) -> list[Any]:
    """Return the axes of an image; in 0.6, of the coordinate system that its levels are scaled to."""
    systems = words.get("coordinateSystems")
    if not systems:
        return list(words.get("axes") or [])
    given = [step.get("output") for step in words["datasets"][0].get("coordinateTransformations") or []]
    wanted = [output.get("name") if isinstance(output, dict) else output for output in given]
    return list(next((each for each in systems if each.get("name") in wanted), systems[0])["axes"])


def _name(axis: Mapping[str, Any]) -> str:
    return {"time": "t", "channel": "c"}.get(axis.get("type") or "", str(axis["name"]))


def _calibration(
    path: Path, image: _Image, dims: Sequence[str], number: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the steps of a level, and those of the first level that have no unit."""
    axes = [axis for axis in _described(image.words) if isinstance(axis, dict)]
    if not axes or "" in dims:
        return {}, {}
    here = _scale(path, image.words, number, len(axes))
    full = _scale(path, image.words, 0, len(axes)) if number else here
    measured = [
        {
            dim: (step, axis.get("unit"))
            for dim, step, axis in zip(dims, scale, axes, strict=True)
            if dim in tuple("tzyx")
        }
        for scale in (here, full)
    ]
    return steps_of(measured[0])[0], steps_of(measured[1])[1]


def _scale(path: Path, words: Mapping[str, Any], number: int, count: int) -> list[float]:
    """Return the scale of a level, times that of all levels; 0 where it is not known."""
    scale = np.ones(count)
    every = words if not words.get("coordinateSystems") else {}  # in 0.6 these lead on to other systems
    steps = [*(every.get("coordinateTransformations") or []), *_flat(words["datasets"][number])]
    for step in steps:
        kind = step.get("type")
        if kind == "scale" and len(step.get("scale", ())) == count:
            scale = scale * np.asarray(step["scale"], float)
        elif kind not in ("translation", "identity"):
            warnings.warn(
                f"{path.name} has {count} axes, and for their sizes {kind} {step.get(str(kind), '')}, expected a scale "
                "with one number for each; its pixel sizes are left out",
                GapWarning,
                stacklevel=2,
            )
            return [0.0] * count
    return [float(each) for each in scale]


def _flat(words: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for step in words.get("coordinateTransformations") or words.get("transformations") or []:
        yield from _flat(step) if step.get("type") == "sequence" else [step]


def write_zarr(path: Path, image: xr.DataArray, meta: Metadata, name: str) -> None:
    """Write an image as OME-Zarr 0.5, volume by volume: no more than one volume and its pyramid is in memory.

    The full resolution holds the values as they are. Each further level halves y and x, and z where planes are about
    as close as pixels; its values are averages, so that one contrast fits all levels: for display, not for counting.

    Notes
    -----
    Source: OME-NGFF 0.5, https://ngff.openmicroscopy.org/0.5.
    """
    try:
        import zarr
    except ImportError:
        raise OutputError(
            f"cannot write {path.suffix}: zarr is not installed; type pip install 'gap-bioimage[zarr]'"
        ) from None
    factors = _factors(image, meta)
    root = zarr.create_group(str(path), zarr_format=3)
    levels = []
    for number, factor in enumerate(factors):
        shape = {axis: -(-length // factor.get(str(axis), 1)) for axis, length in image.sizes.items()}
        chunks = tuple(min(_CHUNK.get(str(axis), 1), length) for axis, length in shape.items())
        kept = {"dtype": image.dtype, "dimension_names": [str(axis) for axis in shape]}
        levels.append(root.create_array(str(number), shape=tuple(shape.values()), chunks=chunks, **kept))  # type: ignore[arg-type]
    ranges = np.zeros((image.sizes.get("c", 1), 2))
    for place in itertools.product(*(range(image.sizes[axis]) for axis in image.dims if axis in ("t", "c"))):
        volume = image[place].reset_coords(drop=True)
        channel = place[image.dims.index("c")] if "c" in image.dims else 0
        low, high = ranges[channel]
        ranges[channel] = min(low, volume.values.min(initial=0)), max(high, volume.values.max(initial=0))
        for number, level in enumerate(levels):
            if number:
                volume = _halved(volume, factors[number - 1], factors[number])
            level[place] = volume.values
    root.attrs["ome"] = _ome(name, image, meta, factors, ranges.tolist())


def _factors(image: xr.DataArray, meta: Metadata) -> list[dict[str, int]]:
    """Return by how much each level is smaller than the image, per axis."""
    factors, steps = [{axis: 1 for axis in "zyx" if axis in image.dims}], meta.steps
    while max(-(-image.sizes[axis] // factors[-1][axis]) for axis in "yx") > _SMALLEST:
        last = factors[-1]
        close = {"z", "x"} <= set(steps) & set(last) and steps["z"] * last["z"] <= _ISOTROPIC * steps["x"] * last["x"]
        halved = {axis for axis, f in last.items() if (close or axis != "z") and -(-image.sizes[axis] // f) > 1}
        factors.append({axis: f * 2 if axis in halved else f for axis, f in last.items()})
    return factors


def _halved(volume: xr.DataArray, before: Mapping[str, int], after: Mapping[str, int]) -> xr.DataArray:
    """Return averages over pairs; at an odd end the last value is a pair of its own."""
    pairs = {axis: 2 for axis in before if after[axis] > before[axis]}
    means = volume.coarsen(pairs, boundary="pad").mean()
    return (means.round() if volume.dtype.kind in "iu" else means).astype(volume.dtype)


def _ome(
    name: str, image: xr.DataArray, meta: Metadata, factors: list[dict[str, int]], ranges: list[list[float]]
) -> dict[str, Any]:
    described, datasets = [], []
    for axis in map(str, image.dims):
        kind, unit = _KINDS.get(axis, ("space", "micrometer"))
        described.append({"name": axis, "type": kind} | ({"unit": unit} if unit and axis in meta.steps else {}))
    for number, factor in enumerate(factors):
        scale = [float(meta.steps.get(axis, 1.0) * factor.get(axis, 1)) for axis in map(str, image.dims)]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    multiscale = {"name": name, "axes": described, "datasets": datasets, "type": "mean"}
    words: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if meta.channels:
        channels = []
        for number, (label, (low, high)) in enumerate(zip(meta.channels, ranges, strict=True)):
            colour = "FFFFFF" if len(ranges) == 1 else _COLOURS[number % len(_COLOURS)]
            window = {"min": low, "max": high, "start": low, "end": high}
            channels.append({"label": label, "color": colour, "active": True, "window": window})
        words["omero"] = {"channels": channels}
    return words
