"""Conversion between napari's layers, arrays with scales, and images with named axes in micrometres."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

import gap_bioimage as gap
from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io.image import AXES, ON_DISK, metadata_of, middle_slice, step_of
from gap_bioimage.io.read import READABLE, loaded, open_image

LayerData = tuple[Any, dict[str, Any], str]  # array, settings and kind of a layer, as napari expects them
_UNITS = {"t": "s", "z": "um", "y": "um", "x": "um"}
_LARGE = 16  # bytes of memory per pixel for an image and its results
_PIECE_PX = {"t": 8, "z": 16, "y": 1024, "x": 1024}  # pieces in which large images are read


def reader_of(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return the reader of these files, or None if they cannot be read."""
    paths = [path] if isinstance(path, str) else path
    return read if all(Path(p).suffix.lower() in READABLE for p in paths) else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Read images; whether the values are photon counts is checked when they are used."""
    paths = [Path(p) for p in ([path] if isinstance(path, str) else path)]
    return [layer for p in paths for layer in layers_of(opened(p), p.name.split(".")[0])]


def opened(path: Path) -> xr.DataArray:
    """Open an image and load its values unless it is large; a large one has its ``file`` among its attributes."""
    image = open_image(path)
    ordered = [axis for axis in AXES if axis in image.dims] == [*image.dims]
    if image.size * _LARGE <= psutil.virtual_memory().available or not ordered:
        return loaded(image, path)
    image.encoding[ON_DISK] = True
    return image.assign_attrs(file=path)


def in_memory(image: xr.DataArray) -> xr.DataArray:
    """Return an image with its values; those of a large one are loaded, if they fit into memory."""
    return loaded(image, image.attrs["file"]) if "file" in image.attrs else image


def middle_of(image: xr.DataArray) -> xr.DataArray:
    """Return a piece from the middle of a large image; other images are returned unchanged."""
    if "file" not in image.attrs:
        return image
    piece = {axis: middle_slice(n, _PIECE_PX.get(str(axis), 1)) for axis, n in image.sizes.items()}
    return loaded(image.isel(piece), image.attrs["file"])


def _simulated(dim: Any, photons: float) -> list[LayerData]:
    counts, truth = gap.simulate(dim, photons=photons)
    hidden = [(data, {**settings, "visible": False}, kind) for data, settings, kind in layers_of(truth, "truth")]
    return hidden + layers_of(counts, "counts")


simulated_cells = partial(_simulated, 2, 2.0)
simulated_stack = partial(_simulated, 3, 1.0)


def layers_of(image: xr.DataArray, name: str) -> list[LayerData]:
    """Return an image as layers, one per channel."""
    if "c" in image.dims:
        names = metadata_of(image).channels or range(image.sizes["c"])
        channels = [image.isel(c=n).assign_attrs(channel=n) for n in range(image.sizes["c"])]
        return [layers_of(channel, f"{name} {title}")[0] for channel, title in zip(channels, names, strict=True)]
    dims, steps = [str(dim) for dim in image.dims], metadata_of(image).steps
    units = [_UNITS[dim] if dim in steps else "pixel" for dim in dims]
    return [_layer(image, {"name": name, "scale": [steps.get(dim, 1.0) for dim in dims], "units": units})]


def layer_beside(layer: Any, image: xr.DataArray, name: str) -> LayerData:
    """Return a result as a layer aligned with the one it was computed from; additional axes come first."""
    new = image.ndim - layer.ndim
    scale, translate = [1.0] * new + list(layer.scale), [0.0] * new + list(layer.translate)
    units = ["pixel"] * new + list(layer.units)
    return _layer(image, {"name": f"{layer.name} {name}", "scale": scale, "translate": translate, "units": units})


def _layer(image: xr.DataArray, settings: dict[str, Any]) -> LayerData:
    """Add names of axes, and contrast limits that do not depend on single bright pixels."""
    values = middle_of(image).values
    low, top = float(values.min()), float(np.percentile(values, 99.8))
    settings["contrast_limits"] = (min(0.0, low), top if top > low else low + 1)
    settings["axis_labels"] = [str(dim) for dim in image.dims]
    if "file" not in image.attrs:
        return image.data, settings, "image"
    chunks = {axis: _PIECE_PX.get(str(axis), 1) for axis in image.dims}
    # a token, since dask otherwise hashes all of the data; a lock, since not all readers are thread-safe
    lazy = image.chunk(chunks, token=secrets.token_hex(8), lock=True).data
    return lazy.astype(lazy.dtype.newbyteorder("=")), {**settings, "metadata": {"image": image}}, "image"


def axes_of(layer: Any) -> str:
    """Return the axes of a layer: its labels, or else y and x last, preceded by z and t."""
    labels = "".join(map(str, layer.axis_labels)).lower()
    known = len(labels) == layer.ndim and {"y", "x"} <= set(labels) <= set(AXES)
    return labels if known else AXES.replace("c", "")[-layer.ndim :]


def image_of(layer: Any, axes: str) -> xr.DataArray:
    """Return a layer as an image with named axes, in micrometres and seconds where the layer has units."""
    if layer is None:
        raise AxesError("there is no image layer; open one, or File > Open Sample > GAP denoising")
    axes = axes.strip().lower()
    known = len(axes) == layer.ndim == len(set(axes)) and {"y", "x"} <= set(axes) <= set(AXES)
    if layer.rgb or not known:
        kind = "colours, expected counts" if layer.rgb else f"{layer.ndim} axes, but {axes!r} was given"
        raise AxesError(f"{layer.name} has {kind}; choose another layer, or name its axes, such as {axes_of(layer)!r}")
    large: xr.DataArray | None = layer.metadata.get("image")
    if large is not None:
        if large.dims != tuple(axes):
            raise AxesError(f"the axes of {layer.name} in its file are {''.join(map(str, large.dims))}; give these")
        return large.assign_attrs(source=layer.name)
    data = layer.data[0] if layer.multiscale else layer.data
    if data.nbytes > psutil.virtual_memory().available and not isinstance(data, np.ndarray):
        problem = f"{layer.name} needs {data.nbytes / 1e9:.3g} GB, more than the free memory"
        raise UnreadableImageError(f"{problem}; open it with the reader gap-bioimage, which leaves it on disk")
    image = xr.DataArray(np.asarray(data), dims=list(axes), attrs={"source": layer.name})
    sizes = zip(axes, layer.scale, layer.units, strict=True)
    steps = {axis: step for axis, size, unit in sizes if (step := step_of(size, unit, axis)) is not None}
    coords = {a: (a, np.arange(image.sizes[a]) * s, {"units": _UNITS[a], "step": s}) for a, s in steps.items()}
    return image.assign_coords(coords)
