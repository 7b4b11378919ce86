"""Samples as files: the stack, its mean and standard deviation, states on the way, a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gap_bioimage.io import write_image
from gap_bioimage.pictures import draw_posterior

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gap_bioimage.inference.resume import Unfinished

_SHOWN_SAMPLES = 3


def beside(out: Path, name: str, suffix: str | None = None) -> Path:
    """Return ``out`` with ``_name`` before its suffix, which may be a double one such as ``.ome.tif``."""
    double = out.name.lower().endswith((".ome.tif", ".ome.tiff", ".ome.zarr"))
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
    mean, std = mean_and_std(samples)
    for name, image in (("mean", mean), ("std", std)):
        written.append(beside(out, name))
        write_image(written[-1], image)
    written.append(beside(out, "figure", ".png"))
    plane = brightest_plane(mmse)
    shown = {"counts": plane_of(counts, plane), "denoised (MMSE)": plane_of(mmse, plane)}
    for number in range(min(_SHOWN_SAMPLES, samples.sizes["sample"])):
        shown[f"sample {number + 1}"] = plane_of(samples.isel(sample=number), plane)
    draw_posterior(written[-1], shown, plane_of(std, plane))
    return written


def write_states(out: Path, kept: Unfinished, n_samples: int, counts: xr.DataArray) -> list[Path]:
    """Write the accumulated counts after every step, one file per sample, steps as frames.

    Parameters
    ----------
    out
        Its name gets ``_states`` and the sample's number.
    kept
        Holds ``counts`` (c, [z,] y, x) under ``sample{n}_step{k}``, samples from 0, steps from 1.
    n_samples
        How many.
    counts
        The image itself, without t; its axes and pixel sizes are kept.
    """
    written = []
    order = [dim for dim in ("c", "z", "y", "x") if dim in counts.dims or dim == "c"]
    coords = {name: coord for name, coord in counts.coords.items() if name in order}
    for number in range(n_samples):
        prefix = f"sample{number}_step"
        steps = [kept.load(f"{prefix}{step}") for step in range(1, kept.count(prefix) + 1)]
        frames = [xr.DataArray(step["counts"], dims=order) for step in steps if step is not None]
        stack = xr.concat(frames, "t")
        stack = (stack if "c" in counts.dims else stack.squeeze("c")).assign_coords(coords)
        stack = stack.assign_attrs(counts.attrs)
        written.append(beside(out, f"states_{number + 1:03d}"))
        write_image(written[-1], stack)
    return written


def mean_and_std(samples: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return mean and standard deviation (n - 1) over ``sample``, one sample in memory at a time."""
    count = samples.sizes["sample"]
    first = samples.isel(sample=0, drop=True)
    total = sum((samples.isel(sample=n, drop=True).astype(np.float64) for n in range(count)), 0 * first)
    mean = total / count
    squares = sum(((samples.isel(sample=n, drop=True) - mean) ** 2 for n in range(count)), 0 * mean)
    return mean.astype(np.float32), ((squares / max(1, count - 1)) ** 0.5).astype(np.float32)


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
