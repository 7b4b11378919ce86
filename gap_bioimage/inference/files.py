"""From files through a model to files: images for it, samples with their statistics and states, movies."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from gap_bioimage.counts import check_photon_counts
from gap_bioimage.errors import AxesError, ConfigError, GapWarning
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.resume import Unfinished, fingerprint
from gap_bioimage.inference.sampling import generate, sample
from gap_bioimage.inference.trained_range import warn_if_samples_disagree
from gap_bioimage.io import read_photons, sum_frames, write_image
from gap_bioimage.pictures import draw_posterior

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gap_bioimage.camera.camera import Detector
    from gap_bioimage.inference.sampling import Progress
    from gap_bioimage.model import Model

_SHOWN_SAMPLES = 3


def read_for_model(
    model: Model,
    path: Path,
    detector: Detector | None,
    n_frames: int | None = None,
    *,
    may_be_empty: bool = False,
    **selection: Any,
) -> xr.DataArray:
    """Read an image for a model; what a camera wrote, or the sum of one-bit frames, is not judged as counts.

    Parameters
    ----------
    model
        What it is for.
    path
        The file.
    detector
        Its camera; None if it holds counts.
    n_frames
        One-bit frames to sum, if any.
    may_be_empty
        Take an image without any photons, from which samples are generated.
    **selection
        ``axes``, ``channel``, ``time``, ``series``, ``level`` of ``read_photons``.

    Raises
    ------
    ConfigError
        If a model that was trained on other sums, or on counts, is given summed frames.
    """
    if n_frames is not None and n_frames != model.n_frames:
        trained = "photon counts" if model.n_frames is None else f"sums of {model.n_frames} one-bit frames"
        raise ConfigError(
            f"{n_frames} frames are to be summed, but the model was trained on {trained}; "
            + ("do not sum any" if model.n_frames is None else f"sum {model.n_frames} frames")
        )
    counted = detector is None and model.n_frames is None
    image = read_photons(path, check=counted and not may_be_empty, **selection)
    if counted and may_be_empty and (not image.size or image.dtype.kind not in "biuf" or bool(image.any())):
        check_photon_counts(image, name=path.name)
    return image if n_frames is None else sum_frames(image, n_frames, name=path.name)


def sample_to_files(
    model: Model,
    counts: xr.DataArray,
    out: Path,
    n_samples: int,
    *,
    states: bool = False,
    on_step: Callable[[Progress], None],
    **how: Any,
) -> tuple[xr.DataArray, list[Path]]:
    """Draw samples into files, the same ones after an interruption.

    Parameters
    ----------
    model, counts, n_samples, on_step
        As for ``sample``.
    out
        The stack of samples, which Fiji shows as frames; of a movie one file per sample, numbered. Mean, standard
        deviation and a figure are written beside it.
    states
        Write the counts after every step, too, one file per sample.
    **how
        Further arguments of ``sample``, those of tiles and axes also for the denoised image that is shown beside.

    Returns
    -------
    samples
        With the dim ``sample``.
    files
        What was written.

    Raises
    ------
    AxesError
        If ``states`` are to be written of more than one image.
    """
    seen = "y x".split() if model.config.dim == 2 else "z y x".split()
    if states and not set(counts.dims) <= {"c", *seen, *("t" if how.get("time_as_z") else "")}:
        shown = ", ".join(f"{axis} {size}" for axis, size in counts.sizes.items())
        raise AxesError(f"states are written of one image, this one holds several ({shown}); give one frame or plane")
    made_of = {"samples": str(n_samples), **{name: str(value) for name, value in how.items()}}
    if states:  # large images take a while to hash
        made_of["from"] = fingerprint(*model.network.state_dict().values(), torch.from_numpy(np.array(counts)))
    kept = Unfinished(out.with_name(f".{out.name}.states") if states else None, made_of)

    def report(progress: Progress) -> None:
        on_step(progress)
        if states:
            for number, counted in zip(progress.samples, progress.counts.cpu().numpy(), strict=True):
                kept.save(f"sample{number}_step{progress.step}", counts=counted)

    unfinished = out.with_name(f".{out.name}.unfinished")
    drawn = sample(model, counts, n_samples, unfinished=unfinished, on_step=report, **how)
    same = ("planes", "camera", "time_as_z", "separate_channels", "tile_px", "halo_px", "device")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # sampling has said so
        mmse = denoise(model, counts, **{name: how[name] for name in same if name in how})
    warn_if_samples_disagree(drawn, mmse)
    detector = how.get("camera")
    files = write_samples(out, counts if detector is None else detector.electrons(counts), mmse, drawn)
    if states:
        files += write_states(out, kept, n_samples, counts)
        kept.remove()
    return drawn, files


def generate_to_file(
    model: Model,
    out: Path,
    shape: Sequence[int],
    n_samples: int,
    *,
    movie: Path | None = None,
    on_step: Callable[[Progress], None],
    **how: Any,
) -> xr.DataArray:
    """Generate images into a file, and a movie of the first one; the same ones after an interruption.

    Parameters
    ----------
    model, shape, n_samples, on_step
        As for ``generate``.
    out
        The file.
    movie
        Photons beside the denoised state as they grow (.gif, .mp4).
    **how
        Further arguments of ``generate``.

    Raises
    ------
    OutputError
        If the movie cannot be written there.
    """
    from gap_bioimage.movie import Recorder, check_movie

    if movie is not None:
        check_movie(movie)
    made_of = {"shape": str(tuple(shape)), **{name: str(value) for name, value in how.items()}}
    if movie is not None:
        made_of["from"] = fingerprint(*model.network.state_dict().values())
    frames = Unfinished(None if movie is None else movie.with_name(f".{movie.name}.frames"), made_of)
    recorder = Recorder(frames)

    def report(progress: Progress) -> None:
        on_step(progress)
        if movie is not None and 0 in progress.samples:
            recorder.add(progress)

    unfinished = out.with_name(f".{out.name}.unfinished")
    images = generate(model, shape, n_samples, unfinished=unfinished, on_step=report, **how)
    write_image(out, images.isel(sample=0) if n_samples == 1 else images)
    if movie is not None:
        recorder.write(movie)
        frames.remove()
    return images


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
