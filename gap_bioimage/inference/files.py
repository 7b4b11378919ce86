"""Files in, files out: images for a model, samples with their statistics and states, movies."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from gap_bioimage.camera.camera import Detector
from gap_bioimage.counts import check_photon_counts
from gap_bioimage.errors import AxesError, ConfigError, GapWarning
from gap_bioimage.files import remove
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.resume import Unfinished
from gap_bioimage.inference.sampling import Progress, generate, sample
from gap_bioimage.inference.trained_range import warn_if_samples_disagree
from gap_bioimage.io import read_photons, sum_frames, write_image
from gap_bioimage.model import Model
from gap_bioimage.pictures import draw_posterior

_SHOWN_SAMPLES = 3
_DENOISE_ARGUMENTS = ("planes", "camera", "time_as_z", "separate_channels", "tile_px", "halo_px", "device", "precision")


def read_for_model(
    model: Model, path: Path, detector: Detector | None, n_frames: int | None = None, *, may_be_empty: bool = False,
    **selection: Any,
) -> xr.DataArray:  # fmt: skip
    """Read an image for a model; camera values and sums of one-bit frames are not checked as photon counts.

    An image without photons is accepted if it ``may_be_empty``: samples are generated from it. ``n_frames`` one-bit
    frames are summed, as many as in the training. The selection is that of ``read_photons``.
    """
    check_summed(model, n_frames)
    counts = detector is None and model.n_frames is None
    image = read_photons(path, check=counts and not may_be_empty, **selection)
    if counts and may_be_empty and not (image.dtype.kind in "biuf" and image.size and not image.any()):
        check_photon_counts(image, name=path.name)
    return image if n_frames is None else sum_frames(image, n_frames, name=path.name)


def check_summed(model: Model, n_frames: int | None) -> None:
    """Refuse a number of one-bit frames to sum that differs from the training."""
    if n_frames not in (None, model.n_frames):
        trained = "photon counts" if model.n_frames is None else f"sums of {model.n_frames} one-bit frames"
        raise ConfigError(f"{n_frames} frames are to be summed, but the model was trained on {trained}; do the same")


def sample_to_files(
    model: Model,
    counts: xr.DataArray,
    out: Path,
    n_samples: int,
    *,
    states: bool = False,
    on_step: Callable[[Progress], None],
    **arguments: Any,
) -> tuple[xr.DataArray, list[Path]]:
    """Draw samples into files, the same ones after an interruption; return them and the paths written.

    ``states`` also writes the counts after every step, one file per sample. ``arguments`` are passed to ``sample``.
    """
    time_as_z, dim = arguments.get("time_as_z", False), model.config.dim
    if states and not set(counts.dims) <= {"c", *"zyx"[-dim:], *("t" if time_as_z else "")}:
        sizes = ", ".join(f"{axis} {size}" for axis, size in counts.sizes.items())
        raise AxesError(f"the image holds several images ({sizes}), expected one for states; give one frame or plane")
    unfinished = _unfinished(out, "states" if states else None)

    def report(progress: Progress) -> None:
        on_step(progress)
        if states:
            for number, counted in zip(progress.samples, progress.counts.cpu().numpy(), strict=True):
                unfinished.save(f"sample{number}_step{progress.step}", counts=counted)

    drawn = sample(model, counts, n_samples, unfinished=unfinished, on_step=report, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # sampling has warned already
        mmse = denoise(model, counts, **{name: arguments[name] for name in _DENOISE_ARGUMENTS if name in arguments})
    warn_if_samples_disagree(drawn, mmse)
    detector = arguments.get("camera")
    files = write_samples(out, counts if detector is None else detector.electrons(counts), mmse, drawn)
    if states:
        files += write_states(out, unfinished, n_samples, counts)
    unfinished.remove()
    return drawn, files


def generate_to_file(
    model: Model,
    out: Path,
    shape: Sequence[int],
    n_samples: int,
    *,
    movie: Path | None = None,
    on_step: Callable[[Progress], None],
    **arguments: Any,
) -> xr.DataArray:
    """Generate images into a file, and a movie (.gif, .mp4) of the first; the same ones after an interruption."""
    from gap_bioimage.movie import Recorder, check_movie

    if movie is not None:
        check_movie(movie)
    unfinished = _unfinished(out, "movie" if movie is not None else None)
    recorder = Recorder(unfinished)

    def report(progress: Progress) -> None:
        on_step(progress)
        if movie is not None and 0 in progress.samples:
            recorder.add(progress)

    images = generate(model, shape, n_samples, unfinished=unfinished, on_step=report, **arguments)
    write_image(out, images.isel(sample=0) if n_samples == 1 else images)
    if movie is not None:
        recorder.write(movie)
    unfinished.remove()
    return images


def _unfinished(out: Path, steps: str | None) -> Unfinished:
    """Return the store of finished samples, and of their states or movie frames, until all files are written."""
    return Unfinished(out.with_name(f".{out.name}.unfinished"), {"steps": steps} if steps else {})


def beside(out: Path, name: str, suffix: str | None = None) -> Path:
    """Return ``out`` with ``_name`` before its suffix, which may be a double one such as ``.ome.tif``."""
    double = out.name.lower().endswith((".ome.tif", ".ome.tiff", ".ome.zarr"))
    stem = Path(out.stem).stem if double else out.stem
    return out.with_name(f"{stem}_{name}{out.name[len(stem) :] if suffix is None else suffix}")


def write_samples(out: Path, counts: xr.DataArray, mmse: xr.DataArray, samples: xr.DataArray) -> list[Path]:
    """Write the stack of samples, and for two or more their mean, standard deviation and a figure; return the files.

    Fiji shows the stack as frames; for a movie there is one numbered file per sample. The figure shows the plane with
    the most photons. A single sample has no statistics: those of an earlier run are removed.
    """
    images, n_samples = {out: samples}, samples.sizes["sample"]
    if "t" in samples.dims:
        images = {beside(out, f"{n + 1:03d}"): samples.isel(sample=n) for n in range(n_samples)}
    figure, statistics = beside(out, "figure", ".png"), [beside(out, "mean"), beside(out, "std")]
    if n_samples > 1:
        images |= dict(zip(statistics, mean_and_std(samples), strict=True))
    for path, image in images.items():
        write_image(path, image)
    if n_samples == 1:
        for path in (*statistics, figure):
            remove(path)
        return list(images)
    totals = mmse.sum(("y", "x"))
    brightest = totals.argmax(...) if totals.ndim else {}

    def plane(image: xr.DataArray) -> NDArray[np.floating]:
        return np.asarray(image.isel(brightest).transpose("y", "x").values, float)

    panels = {"counts": plane(counts), "denoised (MMSE)": plane(mmse)}
    panels |= {f"sample {number}": plane(one) for number, one in enumerate(samples[:_SHOWN_SAMPLES], 1)}
    draw_posterior(figure, panels, plane(images[statistics[1]]))
    return [*images, figure]


def write_states(out: Path, unfinished: Unfinished, n_samples: int, counts: xr.DataArray) -> list[Path]:
    """Write the accumulated counts after every step, one file per sample with steps as frames; return the files.

    ``unfinished`` holds ``counts`` (c, [z,] y, x) under ``sample{n}_step{k}``, samples from 0, steps from 1. Axes and
    pixel sizes are those of the image.
    """
    written = []
    order = [dim for dim in ("c", "z", "y", "x") if dim in counts.dims or dim == "c"]
    coords = {name: coord for name, coord in counts.coords.items() if name in order}
    for number in range(n_samples):
        prefix = f"sample{number}_step"
        steps = [unfinished.load(f"{prefix}{step}") for step in range(1, unfinished.count(prefix) + 1)]
        stack = xr.concat([xr.DataArray(step["counts"], dims=order) for step in steps if step is not None], "t")
        stack = stack if "c" in counts.dims else stack.squeeze("c")
        written.append(beside(out, f"states_{number + 1:03d}"))
        write_image(written[-1], stack.assign_coords(coords).assign_attrs(counts.attrs))
    return written


def mean_and_std(samples: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return mean and standard deviation (n - 1) over ``sample``, one sample in memory at a time."""
    count = samples.sizes["sample"]
    total = sum((one.astype(np.float64) for one in samples.transpose("sample", ...)), 0.0 * samples[0])
    mean = total / count
    squares = sum(((one - mean) ** 2 for one in samples), 0.0 * mean)
    return mean.astype(np.float32), ((squares / max(1, count - 1)) ** 0.5).astype(np.float32)
