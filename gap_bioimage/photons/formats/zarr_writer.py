"""Images written as OME-Zarr 0.5 with their pyramids."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from gap_bioimage.photons.formats.stored import Metadata

_CHUNK = {"z": 16, "y": 256, "x": 256}
_SMALLEST = 256  # a level whose planes are no larger is the last
_ISOTROPIC = 1.5  # planes this many pixels apart, or closer, are merged too
_KINDS = {"t": ("time", "second"), "c": ("channel", None)}
_COLOURS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def write_zarr(path: Path, values: npt.NDArray[Any], axes: str, meta: Metadata, name: str) -> None:
    """Write an image, volume by volume: no more than one volume and its pyramid is in memory.

    The full resolution holds the values as they are. Each further level halves y and x, and z where planes are about
    as close as pixels; its values are averages, so that one contrast fits all levels: for display, not for counting.

    Parameters
    ----------
    path
        The folder, which does not exist yet.
    values, axes
        Array and one lower-case letter per axis, out of ``t c z y x`` in this order (OME-Zarr's).
    meta
        Calibration; the unit of axes without one is left out.
    name
        What viewers call the image.

    Raises
    ------
    OutputError
        If zarr is not installed.

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
    factors = _factors(dict(zip(axes, values.shape, strict=True)), meta)
    root = zarr.create_group(str(path), zarr_format=3)
    levels = [
        root.create_array(
            str(number),
            shape=_shape(values.shape, axes, factor),
            chunks=tuple(
                min(_CHUNK.get(a, 1), n) for a, n in zip(axes, _shape(values.shape, axes, factor), strict=True)
            ),
            dtype=values.dtype,
            dimension_names=list(axes),
        )
        for number, factor in enumerate(factors)
    ]
    outer = [a for a in axes if a in "tc"]
    ranges: dict[int, tuple[float, float]] = {}
    for place in itertools.product(*(range(n) for n in values.shape[: len(outer)])):
        volume = np.asarray(values[place])
        channel = place[axes.index("c")] if "c" in outer else 0
        low, high = ranges.get(channel, (np.inf, -np.inf))
        ranges[channel] = (min(low, float(volume.min(initial=0))), max(high, float(volume.max(initial=0))))
        for number, level in enumerate(levels):
            if number:
                volume = _halved(volume, axes[len(outer) :], factors[number - 1], factors[number])
            level[place] = volume
    root.attrs["ome"] = _words(name, axes, meta, factors, [ranges[c] for c in sorted(ranges)])


def _factors(lengths: dict[str, int], meta: Metadata) -> list[dict[str, int]]:
    """Return by how much each level is smaller than the image, per axis; 1 on axes that are not named."""
    factors = [{"z": 1, "y": 1, "x": 1}]
    sizes = meta.pixel_size_um
    while max(-(-lengths[axis] // factors[-1][axis]) for axis in "yx") > _SMALLEST:
        last = factors[-1]
        close = "z" in sizes and "x" in sizes and sizes["z"] * last["z"] <= _ISOTROPIC * sizes["x"] * last["x"]
        halve = {"y": True, "x": True, "z": close}
        factors.append({a: f * 2 if halve[a] and -(-lengths.get(a, 1) // f) > 1 else f for a, f in last.items()})
    return factors


def _shape(shape: Sequence[int], axes: str, factor: dict[str, int]) -> tuple[int, ...]:
    return tuple(-(-length // factor.get(axis, 1)) for axis, length in zip(axes, shape, strict=True))


def _halved(volume: npt.NDArray[Any], axes: str, before: dict[str, int], after: dict[str, int]) -> npt.NDArray[Any]:
    """Return averages over pairs; at an odd end the last value is a pair of its own."""
    dtype = volume.dtype
    exact = np.float64 if dtype.kind in "iu" and dtype.itemsize > 2 else np.float32
    for number, axis in enumerate(axes):
        if after[axis] > before[axis]:
            pad = [(0, volume.shape[i] % 2 if i == number else 0) for i in range(volume.ndim)]
            pairs = np.pad(volume, pad, mode="edge")
            shape = (*pairs.shape[:number], -1, 2, *pairs.shape[number + 1 :])
            volume = pairs.reshape(shape).mean(axis=number + 1, dtype=exact)
    return (np.rint(volume) if dtype.kind in "iu" else volume).astype(dtype)


def _words(
    name: str, axes: str, meta: Metadata, factors: list[dict[str, int]], ranges: list[tuple[float, float]]
) -> dict[str, Any]:
    steps = {**meta.pixel_size_um, **({} if meta.interval_s is None else {"t": meta.interval_s})}
    described = []
    for axis in axes:
        kind, unit = _KINDS.get(axis, ("space", "micrometer"))
        described.append({"name": axis, "type": kind} | ({"unit": unit} if unit and axis in steps else {}))
    datasets = [
        {
            "path": str(number),
            "coordinateTransformations": [
                {"type": "scale", "scale": [float(steps.get(axis, 1.0) * factor.get(axis, 1)) for axis in axes]}
            ],
        }
        for number, factor in enumerate(factors)
    ]
    multiscale = {"name": name, "axes": described, "datasets": datasets, "type": "mean"}
    words: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
    if meta.channels:
        words["omero"] = {"channels": _channels(meta.channels, ranges)}
    return words


def _channels(names: Sequence[str], ranges: list[tuple[float, float]]) -> list[dict[str, Any]]:
    channels = []
    for number, (name, (low, high)) in enumerate(zip(names, ranges, strict=True)):
        colour = "FFFFFF" if len(names) == 1 else _COLOURS[number % len(_COLOURS)]
        window = {"min": low, "max": high, "start": low, "end": high}
        channels.append({"label": str(name), "color": colour, "active": True, "window": window})
    return channels
