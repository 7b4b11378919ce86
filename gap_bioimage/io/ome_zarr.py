"""OME-Zarr images, 0.1 to 0.6, alone, in plates and in bioformats2raw's layout; and bare Zarr arrays.

Libraries for OME metadata support 0.4 and 0.5 only, and refuse a whole store if one entry violates the schema. Axes,
scales and names, which are all that is read here, are much the same in all versions.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import xarray as xr

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io.image import AXES, Metadata, Stored, image_of, natural, steps_of, unit_warning

_METADATA_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_VERSION = re.compile(r"0\.[1-6]\b")
CHUNK = {"z": 16, "y": 256, "x": 256}
_SMALLEST = 256  # pixels; the first level with planes no larger is the last
_ISOTROPIC = 1.5  # pixels; z is halved too where planes are no further apart
_KINDS = {"t": ("time", "second"), "c": ("channel", None)}
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in _METADATA_FILES)


def open_zarr(path: Path) -> Iterator[Stored]:
    """Yield the images of a Zarr store, a folder or a zip file (``.ozx``); for plates, those of all fields.

    Missing chunks are empty by Zarr's definition: a store that was copied in part looks like one with dark regions.

    Source: OME-NGFF 0.4 to 0.6, ``multiscales``, ``coordinateSystems``, ``omero``, ``plate`` and
    ``bioformats2raw.layout``.
    """
    import zarr

    if path.is_dir():
        yield from _images(zarr.open(str(path), mode="r"), "")
        return
    with ZipFile(path) as file:  # file managers pack the folder itself
        names = {name.partition("/")[0] for name in file.namelist()} - {"__MACOSX"}
    folder = names.pop() if len(names) == 1 and names.isdisjoint(_METADATA_FILES) else ""
    yield from _images(zarr.open(zarr.storage.ZipStore(path, mode="r"), mode="r", path=folder), "")


def _images(node: Any, path: str) -> Iterator[Stored]:
    """Yield the images of a group in the order of its metadata, else by name; missing ones have no levels."""
    metadata = _metadata(node)
    if hasattr(node, "shape"):
        if node.ndim < 2 or node.dtype.kind not in "biuf":  # such as coordinates of an axis
            return
        dims = getattr(node.metadata, "dimension_names", None) or metadata.get("_ARRAY_DIMENSIONS") or ()
        yield Stored(path, {0: image_of(node, [str(name or "") for name in dims], Metadata())})
    elif "multiscales" in metadata:
        for entry in metadata["multiscales"]:
            yield Stored(path or str(entry.get("name") or ""), _levels(node, entry, metadata))
    else:
        for name in _listed(node, metadata):
            inner = f"{path}/{name}".strip("/")
            yield from _images(node[name], inner) if name in node else [Stored(inner, {})]


def _listed(node: Any, metadata: Mapping[str, Any]) -> list[str]:
    fields = metadata.get("plate", {}).get("wells") or metadata.get("well", {}).get("images") or []
    series = _metadata(node["OME"]).get("series") if "bioformats2raw.layout" in metadata and "OME" in node else None
    listed = [field["path"] for field in fields] or series
    return listed or sorted((name for name, _ in node.members() if name not in ("labels", "OME")), key=natural)


def _metadata(node: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = node.attrs.asdict()
    return dict(attributes.get("ome", attributes))  # 0.5 and later have a key "ome"


def _levels(node: Any, entry: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[int, xr.DataArray]:
    version = str(metadata.get("version") or entry.get("version") or "0.5")
    if not _VERSION.match(version):
        raise UnreadableImageError(f"{node.store} is OME-Zarr {version}, expected 0.1 to 0.6; write it as 0.5")
    # 0.1 and 0.2 have five implicit axes, 0.3 has names only, 0.6 has axes in coordinate systems
    axes = _axes(entry) or (AXES if version < "0.3" else "")
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
    types = {"time": "t", "channel": "c"}
    names = [types.get(axis.get("type", ""), str(axis.get("name", "")).lower()) for axis in axes]
    labels = [str(channel.get("label") or "") for channel in (metadata.get("omero") or {}).get("channels") or []]
    common = [] if entry.get("coordinateSystems") else _flat(entry)  # in 0.6 these lead to other coordinate systems
    levels = {}
    for number, dataset in enumerate(entry.get("datasets") or ()):
        if (name := str(dataset["path"])) in node:
            steps, warning = _calibration([*common, *_flat(dataset)], axes, names)
            known = len(names) == node[name].ndim
            levels[number] = image_of(node[name], names, Metadata(steps if known else {}, labels, warning=warning))
    return levels


def _axes(entry: Mapping[str, Any]) -> list[Any]:
    """Return the axes of an image; in 0.6, of the coordinate system that its levels are scaled to."""
    systems = entry.get("coordinateSystems")
    if not systems:
        return list(entry.get("axes") or [])
    outputs = [step.get("output") for step in entry["datasets"][0].get("coordinateTransformations") or []]
    names = [output.get("name") if isinstance(output, dict) else output for output in outputs]
    return list(next((system for system in systems if system.get("name") in names), systems[0])["axes"])


def _calibration(
    transformations: Sequence[Mapping[str, Any]], axes: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[dict[str, float], str]:
    """Return the steps from all transformations combined, and a warning if they are unusable."""
    scale = np.ones(len(axes))
    for step in transformations:
        kind = step.get("type")
        if kind == "scale" and len(step.get("scale", ())) == len(axes):
            scale = scale * np.asarray(step["scale"], float)
        elif kind not in ("translation", "identity"):
            problem = f"has {len(axes)} axes, but the transformation {kind} {step.get(str(kind), '')}"
            return {}, f"{problem}, expected a scale with a number for each; its pixel sizes are left out"
    scaled = any(step.get("type") == "scale" for step in transformations)  # without any, the size is not 1
    along = zip(names, scale, axes, strict=True) if scaled else ()
    measured = {name: (size, axis.get("unit")) for name, size, axis in along}
    return steps_of(measured), unit_warning(measured)


def _flat(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    steps = metadata.get("coordinateTransformations") or metadata.get("transformations") or []
    return [inner for step in steps for inner in (_flat(step) if step.get("type") == "sequence" else [step])]


@dataclass(frozen=True)
class Design:
    """Contents and layout of an OME-Zarr to write.

    Each level after the first halves y and x, and z where planes are about as close as pixels. Its values are averages,
    so that one contrast fits all levels: for display, not for counting.

    Source: OME-NGFF 0.4 and 0.5, https://ngff.openmicroscopy.org/0.5.
    """

    name: str
    sizes: Mapping[str, int]  # in axis order
    meta: Metadata
    dtype: np.dtype[Any]
    version: str = "0.5"  # or 0.4, which has no shards
    block: Mapping[str, int] | None = None  # pixels per axis that are written at once: a shard, or several chunks

    @cached_property
    def factors(self) -> list[dict[str, int]]:
        """Downsampling factors of each level, per axis."""
        factors, steps = [{axis: 1 for axis in "zyx" if axis in self.sizes}], self.meta.steps
        while max(-(-self.sizes[axis] // factors[-1][axis]) for axis in "yx") > _SMALLEST:
            last = factors[-1]
            size = {axis: steps[axis] * last[axis] for axis in "zx" if axis in steps and axis in last}
            near = len(size) == 2 and size["z"] <= _ISOTROPIC * size["x"]
            halved = {axis for axis, f in last.items() if (near or axis != "z") and -(-self.sizes[axis] // f) > 1}
            factors.append({axis: f * 2 if axis in halved else f for axis, f in last.items()})
        return factors

    def shape(self, level: int) -> tuple[int, ...]:
        """Return the shape of a level."""
        return tuple(-(-length // self.factors[level].get(axis, 1)) for axis, length in self.sizes.items())

    def stored(self, level: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of a level's chunks and of its blocks, which are whole chunks."""
        block = self.block or {}
        chunks, blocks = [], []
        for axis, length in zip(self.sizes, self.shape(level), strict=True):
            chunk = min(CHUNK.get(axis, 1), length, block.get(axis, length))
            chunks.append(chunk)
            blocks.append(-(-min(block.get(axis, chunk), length) // chunk) * chunk)
        return tuple(chunks), tuple(blocks)

    def create(self, path: Path, attributes: Mapping[str, Any]) -> list[Any]:
        """Create all levels without values, and return them; readers see the levels that the attributes list."""
        import zarr

        v2 = self.version == "0.4"
        root = zarr.create_group(str(path), zarr_format=2 if v2 else 3, attributes=dict(attributes))
        levels = []
        for number in range(len(self.factors)):
            chunks, block = self.stored(number)
            options: dict[str, Any] = {"shape": self.shape(number), "dtype": self.dtype, "chunks": chunks}
            if v2:
                options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
            else:
                options |= {"dimension_names": list(self.sizes), "shards": block if self.block else None}
            levels.append(root.create_array(str(number), **options))
        return levels

    def attributes(self, ranges: Sequence[Sequence[float]], levels: int | None = None) -> dict[str, Any]:
        """Return OME metadata of the first ``levels`` levels, or all; ``ranges`` holds (min, max) per channel."""
        kinds = [(axis, *_KINDS.get(axis, ("space", "micrometer"))) for axis in self.sizes]
        units = {axis: {"unit": unit} for axis, _, unit in kinds if unit and axis in self.meta.steps}
        axes = [{"name": axis, "type": kind, **units.get(axis, {})} for axis, kind, _ in kinds]
        datasets = []
        for number, factor in enumerate(self.factors[:levels]):
            scale = [float(self.meta.steps.get(axis, 1.0) * factor.get(axis, 1)) for axis in self.sizes]
            datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        channels = []
        for number, (low, high) in enumerate(ranges):
            colour = "FFFFFF" if len(ranges) == 1 else _COLOURS[number % len(_COLOURS)]
            window = {"min": low, "max": high, "start": low, "end": high}
            label = {"label": self.meta.channels[number]} if self.meta.channels else {}
            channels.append({**label, "color": colour, "active": True, "window": window})
        multiscale = {"name": self.name, "axes": axes, "datasets": datasets, "type": "mean"}
        omero = {"channels": channels}
        if self.version == "0.4":
            return {"multiscales": [{"version": "0.4", **multiscale}], "omero": omero}
        return {"ome": {"version": self.version, "multiscales": [multiscale], "omero": omero}}


def write_zarr(path: Path, image: xr.DataArray, meta: Metadata, name: str) -> None:
    """Write an image as OME-Zarr 0.5, exact at full resolution, with one volume and its pyramid in memory at a time."""
    import zarr

    design = Design(name, {str(axis): size for axis, size in image.sizes.items()}, meta, image.dtype)
    levels = design.create(path, {})
    ranges = np.zeros((image.sizes.get("c", 1), 2))
    for index in np.ndindex(*(image.sizes[axis] for axis in image.dims if axis in ("t", "c"))):
        volume = image[index].reset_coords(drop=True)
        ends = ranges[index[image.dims.index("c")] if "c" in image.dims else 0]
        ends[:] = min(ends[0], volume.values.min(initial=0)), max(ends[1], volume.values.max(initial=0))
        for number, level in enumerate(levels):
            if number:
                volume = halved(volume, design.factors[number - 1], design.factors[number])
            level[index] = volume.values
    zarr.open_group(str(path)).attrs.update(design.attributes(ranges.tolist()))


def halved(volume: xr.DataArray, before: Mapping[str, int], after: Mapping[str, int]) -> xr.DataArray:
    """Return averages over pairs; a last value without a partner is kept."""
    pairs = {axis: 2 for axis in before if after[axis] > before[axis]}
    means = volume.coarsen(pairs, boundary="pad").mean()
    return (means.round() if volume.dtype.kind in "iu" else means).astype(volume.dtype)
