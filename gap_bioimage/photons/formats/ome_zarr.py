"""OME-Zarr images, 0.1 to 0.5, alone, in plates and in bioformats2raw's layout; and bare Zarr arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.photons.formats.stored import Metadata, Stored, choose, choose_level, missing, naming_damage
from gap_bioimage.photons.formats.units import to_seconds, to_um, unitless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt
    import zarr

_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_LETTERS = {"time": "T", "channel": "C"}


@dataclass(frozen=True)
class _Image:
    """An image in a store: its levels, and what is said about them (nothing, for a bare array)."""

    name: str
    levels: tuple[zarr.Array[Any], ...]
    words: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[str, ...] = ()


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def open_zarr(path: Path, series: int | str | None, level: int | None) -> Stored:
    """Open one image of a Zarr store.

    Chunks that a store lacks are empty by Zarr's definition, so one that was copied in part cannot be told from a
    dark image.

    Parameters
    ----------
    path
        The folder.
    series
        Which image, by number or by its path in the store, such as ``A/1/0`` for a field of a plate.
    level
        Which level of the pyramid.

    Raises
    ------
    UnreadableImageError
        If the store is damaged, holds several images of which none was chosen, or zarr is not installed.
    AxesError
        If there is no such series or level.

    Notes
    -----
    Source: OME-NGFF 0.4 and 0.5, ``multiscales``, ``omero``, ``plate`` and ``bioformats2raw.layout``.
    """
    try:
        import zarr
    except ImportError:
        raise missing(path, "zarr") from None
    with naming_damage(path):
        images = list(_images(zarr.open(str(path), mode="r"), ""))
        image = images[choose(path, [(each.name, each.levels[0].shape) for each in images], series)]
        number = choose_level(path, [each.shape for each in image.levels], level)
        axes, meta = _axes(image), _metadata(image, number, image.name if len(images) > 1 else "")
    array = image.levels[number]

    def read(index: tuple[slice, ...]) -> npt.NDArray[Any]:
        return np.asarray(array[index])

    return Stored(axes, array.shape, np.dtype(array.dtype), read, meta)


def _images(node: zarr.Group | zarr.Array[Any], place: str) -> Iterator[_Image]:
    """Yield the images of a group, in the order that its metadata give, else in natural order."""
    import zarr

    if isinstance(node, zarr.Array):
        yield _Image(place, (node,))
        return
    words = _words(node)
    if "multiscales" in words:
        yield from _multiscales(node, words, place)
    elif "plate" in words or "well" in words:
        parts = words["plate"]["wells"] if "plate" in words else words["well"]["images"]
        for part in parts:
            yield from _images(_child(node, part["path"]), _join(place, part["path"]))
    else:
        names = _listed_series(node) if "bioformats2raw.layout" in words else _children(node)
        for name in names:
            yield from _images(_child(node, name), _join(place, name))


def _multiscales(node: zarr.Group, words: Mapping[str, Any], place: str) -> Iterator[_Image]:
    channels = words.get("omero", {}).get("channels", [])
    labels = tuple(str(each["label"]) for each in channels if each.get("label"))
    for entry in words["multiscales"]:
        levels = tuple(_array(node, dataset["path"]) for dataset in entry["datasets"])
        yield _Image(place or str(entry.get("name", "")), levels, entry, labels)


def _words(node: zarr.Group | zarr.Array[Any]) -> dict[str, Any]:
    """Return OME's metadata, which 0.5 keeps under a key of their own."""
    words: dict[str, Any] = node.attrs.asdict()
    return dict(words.get("ome", words))


def _child(node: zarr.Group, name: str) -> zarr.Group | zarr.Array[Any]:
    return node[name]


def _array(node: zarr.Group, name: str) -> zarr.Array[Any]:
    import zarr

    array = node[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no array")
    return array


def _listed_series(node: zarr.Group) -> list[str]:
    if "OME" in node:
        series = _words(_child(node, "OME")).get("series")
        if series:
            return [str(name) for name in series]
    return [name for name in _children(node) if name != "OME"]


def _children(node: zarr.Group) -> list[str]:
    names = [name for name, _ in node.members() if name != "labels"]
    return sorted(names, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])


def _join(place: str, name: str) -> str:
    return f"{place}/{name}".strip("/")


def _axes(image: _Image) -> str:
    """Return a letter per axis; 0.1 and 0.2 have five axes and do not say so, 0.3 has names only."""
    array = image.levels[0]
    if not image.words:
        named: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
        names = [str(name) for name in named or ()]
        if len(names) != array.ndim:
            return "YX" if array.ndim == 2 else "Q" * array.ndim
        return "".join(_letter(name, "") for name in names)
    axes = image.words.get("axes") or list("tczyx")
    return "".join(_letter(a, "") if isinstance(a, str) else _letter(a["name"], a.get("type") or "") for a in axes)


def _letter(name: str, kind: str) -> str:
    letter = _LETTERS.get(kind, name.upper())
    return letter if letter in tuple("TCZYX") else "Q"


def _metadata(image: _Image, number: int, name: str) -> Metadata:
    """Return the calibration of a level."""
    steps = _steps(image, number)
    sizes = {axis: size for axis, step in steps.items() if axis in "zyx" and (size := to_um(*step)) is not None}
    interval = to_seconds(*steps["t"]) if "t" in steps else None
    return Metadata(sizes, interval, image.channels, name, unitless(_steps(image, 0)))


def _steps(image: _Image, number: int) -> dict[str, tuple[float, Any]]:
    """Return the scale of a level, times that of all levels, with its unit; of axes that are ours, without c."""
    axes = [axis for axis in image.words.get("axes") or [] if isinstance(axis, dict)]
    scale = np.ones(len(axes))
    for words in (image.words, image.words["datasets"][number] if image.words else {}):
        for transformation in words.get("coordinateTransformations") or []:
            if transformation.get("type") == "scale" and len(transformation.get("scale", ())) == len(axes):
                scale = scale * np.asarray(transformation["scale"], float)
    letters = [_letter(axis["name"], axis.get("type") or "").lower() for axis in axes]
    steps = zip(letters, scale.tolist(), axes, strict=True)
    return {letter: (step, axis.get("unit")) for letter, step, axis in steps if letter in "tzyx"}
