"""Posterior samples of clean images, and images from nothing.

Source: arXiv 2307.06607, section 3.3. Large images climb in lockstep: every step runs the network over all
tiles of the image, so that samples have no seams.
"""

from __future__ import annotations

import logging
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from gap_bioimage.config import SamplingConfig
from gap_bioimage.counts import check_dim
from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.arguments import check_whole
from gap_bioimage.inference.denoise import on_device
from gap_bioimage.inference.drawing import Draw, Job, Progress
from gap_bioimage.inference.items import Items, as_items
from gap_bioimage.inference.prepared import Prepared, prepare
from gap_bioimage.inference.trained_range import Strangeness, check_room, photons_to_stop_at
from gap_bioimage.inference.unfinished import Unfinished, fingerprint
from gap_bioimage.training.recorded import detector_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gap_bioimage.training.checkpoint import Model
    from gap_bioimage.training.recorded import CameraLike

log = logging.getLogger(__name__)


def sample(
    model: Model,
    photons: xr.DataArray,
    n_samples: int = 8,
    *,
    seed: int,
    settings: SamplingConfig | None = None,
    planes: bool = False,
    camera: CameraLike = "model",
    time_as_z: bool = False,
    separate_channels: bool = False,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    batch: int | None = None,
    device: str = "cpu",
    unfinished: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> xr.DataArray:
    """Draw clean images from the posterior, given counts.

    Frames (t), and planes (z) of a 2D model, are sampled one by one, channels jointly. A sample depends on
    the seed, its number and its own counts alone.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``; trained on images brighter than these.
    photons
        Counts with dims out of ``t c z y x``. For frames, planes or channels without any,
        and so for an empty image, images are generated instead, with a warning.
    n_samples
        How many.
    seed
        Not negative.
    settings
        Schedule, steps, where to stop.
    planes, camera, time_as_z, separate_channels, tile_px, halo_px, device
        As for ``denoise``.
    batch
        Samples that share one run of the network; chosen when None: one on the CPU, as many as fit on a GPU.
        On the CPU the result does not depend on it; on a GPU convolutions of larger batches may round otherwise,
        which moves single photons.
    unfinished
        A folder to keep finished samples and the state of the current one in, until all are done; the same
        call continues there.
    on_step
        Called after each step.

    Returns
    -------
    xarray.DataArray
        Expected photons per pixel, float32, dims ``sample`` and those of ``photons``.

    Raises
    ------
    AxesError
        If the axes or channels do not fit the model.
    ConfigError
        If ``n_samples``, ``seed``, ``batch`` or the device is impossible.
    NotPhotonCountsError
        If values are negative, fractional or not finite, or the image cannot come from the camera.
    MemoryError
        If the samples do not fit into memory.
    TrainedRangeError
        If the image is so bright that no photons can be added within the trained range, or ``stop_db`` lies
        beyond it.
    BrokenNetworkError
        If the network returns values that are not finite.
    """
    settings = settings or SamplingConfig()
    check_whole("n_samples", n_samples, 1)
    check_whole("seed", seed, 0, 2**63)
    if batch is not None:
        check_whole("batch", batch, 1)
    prepared = prepare(model, photons, camera=camera, time_as_z=time_as_z)
    check_dim(prepared.counts, model.config.dim, plane_by_plane=planes)
    items = as_items(prepared.counts, model.config.dim, model.config.channels, separate_channels=separate_channels)
    drawn = _empty(n_samples, items)
    brightest = 10 ** (model.trained_range_db[1] / 10)
    jobs = _jobs(items, settings, brightest)
    work = {"network": fingerprint(*model.network.state_dict().values())}
    work |= {"photons": fingerprint(*(job.observed for job in jobs)), "tiles": str((tile_px, halo_px, batch, device))}
    work |= {"seed": str(seed), "n_samples": str(n_samples), "settings": settings.model_dump_json()}
    kept = Unfinished(unfinished, work)
    draw = Draw(on_device(model.network, device), seed, n_samples, brightest, tile_px, halo_px, batch, kept, on_step)
    if kept.found:
        log.info("continuing an interrupted run")
    strangeness = Strangeness(brightest)
    for job, numbers, rate in draw.run(jobs):
        drawn[numbers.start : numbers.stop, job.number] = rate.numpy()
        if job.from_nothing:
            strangeness.look_at(rate)
    strangeness.warn()
    kept.remove()
    return prepared.photons(items.restore(drawn, n_samples)).rename("rate")


def _empty(n_samples: int, items: Items) -> np.ndarray:
    """Return room for all samples, (n_samples, n, c, [z,] y, x), before the work begins."""
    shape = (n_samples, *items.values.shape)
    try:
        return np.empty(shape, np.float32)
    except (MemoryError, ValueError):  # numpy has no words of its own for sizes that no machine has
        pixels = " x ".join(str(size) for size in items.image.shape)
        needed = 4 * math.prod(shape) / 2**30
        raise MemoryError(f"{n_samples} samples of {pixels} pixels take {needed:.1f} GiB") from None


def _jobs(items: Items, settings: SamplingConfig, brightest: float) -> list[Job]:
    """Return the images to draw, and warn of those that hold too much or too little for it."""
    counts = [torch.from_numpy(np.ascontiguousarray(item).astype(np.float32))[None] for item in items.values]
    empty = [number for number, item in enumerate(counts) if not bool(item.any())]
    if empty:
        warnings.warn(
            f"{items.without_photons(empty)}, so that nothing is known: images are generated instead, at the "
            "brightest exposure that the model was trained for",
            stacklevel=3,
        )
    stops = [photons_to_stop_at(item, settings.stop_db, brightest) for item in counts]
    if settings.stop_db is None:
        check_room(counts, stops, brightest, items.names)
    generation = _for_generation(settings)
    return [
        Job(number, item, stop, generation if number in empty else settings)
        for number, (item, stop) in enumerate(zip(counts, stops, strict=True))
    ]


def generate(
    model: Model,
    shape: Sequence[int],
    n_samples: int = 1,
    *,
    seed: int,
    settings: SamplingConfig | None = None,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    batch: int | None = None,
    device: str = "cpu",
    unfinished: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> xr.DataArray:
    """Generate images from nothing: the samples of an image without photons.

    Parameters
    ----------
    model
        Trained from few photons on (``thinning.min_db`` of -40 or so).
    shape
        Pixels per spatial axis.
    n_samples, seed, tile_px, halo_px, batch, device, unfinished, on_step
        As for ``sample``.
    settings
        The paper's geometric schedule when not given. Images grow until ``stop_db``, or until their brightest
        window is as bright as the brightest in the training.

    Returns
    -------
    xarray.DataArray
        Expected photons per pixel, float32, dims ``sample [c] [z] y x``.

    Raises
    ------
    ConfigError, TrainedRangeError, BrokenNetworkError
        As for ``sample``.
    """
    if len(shape) != model.config.dim or min(shape) < 1:
        raise ConfigError(
            f"the shape is {', '.join(map(str, shape))} px, expected {model.config.dim} positive numbers for a "
            f"{model.config.dim}D model; for example {'64, ' * (model.config.dim == 3)}256, 256"
        )
    if model.trained_range_db[0] > -20:
        warnings.warn(
            f"the model was trained on images of {model.trained_range_db[0]:g} dB and brighter; generation begins "
            "without any photons: train with thinning.min_db=-40 for it",
            stacklevel=2,
        )
    axes = ["z", "y", "x"][-len(shape) :]
    empty = xr.DataArray(np.broadcast_to(np.uint16(0), (model.config.channels, *shape)), dims=["c", *axes])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the image holds no photons")
        images = sample(
            model,
            empty,
            n_samples,
            camera=None,
            seed=seed,
            settings=_for_generation(settings or SamplingConfig()),
            tile_px=tile_px,
            halo_px=halo_px,
            batch=batch,
            device=device,
            unfinished=unfinished,
            on_step=on_step,
        )
    detector = detector_of(model)
    # maps say which pixel of a camera is which; here is no camera
    images = Prepared(empty, None if detector is None else detector.scalar).photons(images)
    return images.squeeze("c") if model.config.channels == 1 else images


def _for_generation(settings: SamplingConfig) -> SamplingConfig:
    """Equal steps in 1/sqrt(photons) cannot begin at nothing: the first would reach infinitely far."""
    return settings.model_copy(update={"schedule": "geometric"})
