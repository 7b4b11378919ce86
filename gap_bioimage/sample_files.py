"""Samples as files: the stack, its mean and standard deviation, states on the way, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gap_bioimage.photons.image_io import write_image
from gap_bioimage.pictures import draw_posterior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_SHOWN_SAMPLES = 3


def beside(out: Path, name: str, suffix: str | None = None) -> Path:
    """Return ``out`` with ``_name`` before its suffix, which may be a double one such as ``.ome.tif``."""
    double = out.name.lower().endswith((".ome.tif", ".ome.tiff"))
    stem = Path(out.stem).stem if double else out.stem
    return out.with_name(f"{stem}_{name}{out.name[len(stem) :] if suffix is None else suffix}")


def write_samples(out: Path, counts: xr.DataArray, mmse: xr.DataArray, samples: xr.DataArray) -> list[Path]:
    """Write samples, and from two on their mean, standard deviation and a figure.

    Parameters
    ----------
    out
        The stack of samples, which Fiji shows as frames; of a movie one file per sample, numbered.
    counts, mmse
        What was observed, and the denoised image.
    samples
        With the dim ``sample``.

    Returns
    -------
    list of Path
        What was written.
    """
    written = []
    if "t" in samples.dims:
        for number in range(samples.sizes["sample"]):
            written.append(beside(out, f"{number + 1:03d}"))
            write_image(written[-1], samples.isel(sample=number))
    else:
        written.append(out)
        write_image(out, samples)
    if samples.sizes["sample"] < 2:
        return written
    std = samples.std("sample", ddof=1)
    for name, image in (("mean", samples.mean("sample")), ("std", std)):
        written.append(beside(out, name))
        write_image(written[-1], image)
    written.append(beside(out, "figure", ".png"))
    plane = brightest_plane(mmse)
    shown = {"counts": plane_of(counts, plane), "denoised (MMSE)": plane_of(mmse, plane)}
    for number in range(min(_SHOWN_SAMPLES, samples.sizes["sample"])):
        shown[f"sample {number + 1}"] = plane_of(samples.isel(sample=number), plane)
    draw_posterior(written[-1], shown, plane_of(std, plane))
    return written


def write_states(out: Path, states: Mapping[int, Sequence[NDArray[np.float32]]], counts: xr.DataArray) -> list[Path]:
    """Write the accumulated counts after every step, one file per sample, steps as frames.

    Parameters
    ----------
    out
        Its name gets ``_states`` and the sample's number.
    states
        By sample, counted from 0: counts (c, [z,] y, x) after each step.
    counts
        The image itself, without t; its axes and pixel sizes are kept.
    """
    written = []
    order = [dim for dim in ("c", "z", "y", "x") if dim in counts.dims or dim == "c"]
    for number, steps in states.items():
        frames = [xr.DataArray(step, dims=order) for step in steps]
        stack = xr.concat(frames, "t").assign_coords({k: v for k, v in counts.coords.items() if k in order})
        written.append(beside(out, f"states_{number + 1:03d}"))
        write_image(written[-1], stack if "c" in counts.dims else stack.squeeze("c"))
    return written


def brightest_plane(image: xr.DataArray) -> dict[str, int]:
    """Return the indices of the plane (y, x) with the most photons."""
    others = [dim for dim in image.dims if dim not in ("y", "x")]
    if not others:
        return {}
    totals = image.sum(("y", "x"))
    found = np.unravel_index(int(np.argmax(totals.values)), totals.shape)
    return {str(dim): int(index) for dim, index in zip(totals.dims, found, strict=True)}


def plane_of(image: xr.DataArray, plane: dict[str, int]) -> NDArray[np.floating]:
    """Return one plane (y, x)."""
    return np.asarray(image.isel(plane).transpose("y", "x").values, float)
