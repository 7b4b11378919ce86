"""Posterior samples of clean images, and images from nothing.

Source: arXiv 2307.06607, section 3.3. Large images climb in lockstep: every step runs the network over all
tiles of the image, so that samples have no seams.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from gap_bioimage.config import SamplingConfig
from gap_bioimage.errors import ConfigError, EmptyImageWarning, TrainedRangeWarning
from gap_bioimage.inference.preparation import Prepared, check_whole, prepare
from gap_bioimage.inference.resume import Unfinished, fingerprint
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.inference.trained_range import Strangeness, check_room, photons_to_stop_at
from gap_bioimage.sampler import LEAST_GAIN, WINDOW_PX, Sampler, in_exposure, sample_keys, total_photons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from gap_bioimage.model import CameraLike, Model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where sampling is.

    Attributes
    ----------
    item, samples
        Which frame or plane, counted from 0, and which of its samples are on their way.
    step
        Of these samples, counted from 1.
    done, total
        Steps over all frames and samples; the total is an estimate with the geometric schedule.
    counts, rate
        Observed and added counts of these samples, ``(samples, c, [z,] y, x)``, and what the network expects of them.
    """

    item: int
    samples: range
    step: int
    done: int
    total: int
    counts: Tensor
    rate: Tensor

    @property
    def photons(self) -> float:
        """Mean photons per pixel."""
        return float(self.counts.mean(dtype=torch.float64))

    @property
    def db(self) -> float:
        """Pseudo-PSNR."""
        return 10 * math.log10(self.photons) if self.photons > 0 else -math.inf


@dataclass(frozen=True)
class _Job:
    """One image to draw: its number, counts (1, c, [z,] y, x), photons to end with (1,), and schedule."""

    number: int
    observed: Tensor
    stop: Tensor
    settings: SamplingConfig

    @property
    def from_nothing(self) -> bool:
        """Whether nothing was observed, so that images are generated."""
        return not bool(self.observed.any())

    @property
    def expected_steps(self) -> int:
        """About how many steps each sample takes."""
        if self.settings.schedule == "sqrt":
            return self.settings.steps
        start, stop, beta = float(total_photons(self.observed)), float(self.stop), self.settings.beta
        by_one = max(0.0, min(1 / beta, stop) - start)  # photons that come one at a time
        return math.ceil(by_one + math.log(max(1.0, stop / max(start, 1 / beta))) / math.log1p(beta))


@dataclass(frozen=True)
class _Draw:
    """What all images of a call share."""

    network: TiledNetwork
    seed: int
    n_samples: int
    brightest: float
    batch: int | None
    kept: Unfinished
    on_step: Callable[[Progress], None] | None

    def run(self, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, range, Tensor]]:
        """Yield which image, which samples of it, and their expected photons per pixel; finished ones are kept."""
        done, total = 0, self.n_samples * sum(job.expected_steps for job in jobs)
        for job in jobs:
            batch, first = self.batch or self.network.batch_of(job.observed.shape[2:]), None
            for start in range(0, self.n_samples, batch):
                numbers = range(start, min(start + batch, self.n_samples))
                name = f"item{job.number}_samples{numbers.start}-{numbers.stop}"
                finished = self.kept.load(name)
                if finished is None:
                    first = self.network(job.observed) if first is None else first
                    rate = self._sample(job, numbers, first, (done, total))
                    self.kept.save(name, rate=rate.numpy())
                else:
                    rate = torch.from_numpy(finished["rate"])
                done += len(numbers) * job.expected_steps
                yield job, numbers, rate

    def _sample(self, job: _Job, numbers: range, first: Tensor, counted: tuple[int, int]) -> Tensor:
        """Draw samples of one image, given the network's answer to it; ``counted`` is steps before and all steps."""
        # the state lives where the network runs, if random numbers can be made there
        device = self.network.device if self.network.device.type == "cuda" else torch.device("cpu")
        observed = job.observed.to(device).expand(len(numbers), *job.observed.shape[1:])
        first = first.to(device).expand_as(observed)
        step = 0

        def answer(x: Tensor) -> Tensor:
            nonlocal step
            log_rate, step = self.network(x), step + 1
            if self.on_step is not None:
                done = counted[0] + len(numbers) * min(step, job.expected_steps)
                rate = self.network.network.rate(x, log_rate, [])
                self.on_step(Progress(job.number, numbers, step, done, counted[1], x, rate))
            return log_rate

        geometric = job.settings.schedule == "geometric"
        beta = job.settings.beta if geometric else 0.0
        window = list(WINDOW_PX[observed.dim() - 2])
        least = _least_gain(self.network)
        sampler = Sampler(answer, self.brightest, window, beta, restored=not geometric, least_gain=least)
        keys = sample_keys(job.observed.to(device), self.seed, torch.tensor(list(numbers), device=device))
        x, log_rate, factor = sampler.draw(observed, first, job.stop.to(device), keys, job.settings.steps)
        rate = self.network.network.rate(x, log_rate, []) * factor
        return (rate if job.from_nothing else in_exposure(rate, x, observed)).cpu()


def sample(
    model: Model,
    photons: xr.DataArray | NDArray[Any],
    n_samples: int = 8,
    *,
    seed: int,
    settings: SamplingConfig | None = None,
    dims: str | Iterable[str] | None = None,
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
    dims, planes, camera, time_as_z, separate_channels, tile_px, halo_px, device
        As for ``denoise``.
    batch
        Samples that share one run of the network; chosen when None: one on the CPU, as many as fit on a GPU.
        On the CPU the result does not depend on it; on a GPU convolutions of larger batches may round otherwise,
        which moves single photons.
    unfinished
        A folder to keep finished samples in until all are done; the same call continues there.
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

    Warns
    -----
    EmptyImageWarning, TrainedRangeWarning, HotPixelWarning, NetworkWarning
        If images are generated, there is little room for photons, pixels are left out, or what is generated is
        strange.
    """
    settings = settings or SamplingConfig()
    check_whole("n_samples", n_samples, 1)
    check_whole("seed", seed, 0, 2**63)
    if batch is not None:
        check_whole("batch", batch, 1)
    layout: Any = {"dims": dims, "planes": planes, "time_as_z": time_as_z, "separate_channels": separate_channels}
    prepared = prepare(model, photons, camera=camera, **layout)
    empty = [number for number, item in enumerate(prepared.items) if not item.any()]
    if empty:
        warnings.warn(
            f"{prepared.without_photons(empty)}, so that nothing is known: images are generated instead, at the "
            "brightest exposure that the model was trained for",
            EmptyImageWarning,
            stacklevel=2,
        )
    network = TiledNetwork(model.network, tile_px, halo_px, device)
    drawn = _draw(model, prepared, network, (n_samples, seed, settings, batch), unfinished, on_step)
    return prepared.photons(drawn, n_samples).rename("rate")


def _draw(
    model: Model,
    prepared: Prepared,
    network: TiledNetwork,
    how: tuple[int, int, SamplingConfig, int | None],
    unfinished: Path | None,
    on_step: Callable[[Progress], None] | None,
) -> np.ndarray:
    """Return samples of all items, (n_samples, n, c, [z,] y, x); ``how`` many, seed, settings, and batch."""
    n_samples, seed, settings, batch = how
    drawn = _room_for(n_samples, prepared)
    brightest = 10 ** (model.trained_range_db[1] / 10)
    jobs = _jobs(prepared, settings, brightest, _least_gain(network))
    work = {"network": fingerprint(*model.network.state_dict().values())}
    work |= {"photons": fingerprint(*(job.observed for job in jobs)), "seed": str(seed), "n_samples": str(n_samples)}
    work |= {"settings": settings.model_dump_json()}
    work |= {"tiles": str((network.tile_px, network.halo_px, batch, str(network.device)))}
    kept = Unfinished(unfinished, work)
    if kept.found:
        log.info("continuing an interrupted run")
    strangeness = Strangeness(brightest)
    for job, numbers, rate in _Draw(network, seed, n_samples, brightest, batch, kept, on_step).run(jobs):
        drawn[numbers.start : numbers.stop, job.number] = rate.numpy()
        if job.from_nothing:
            strangeness.look_at(rate)
    strangeness.warn()
    kept.remove()
    return drawn


def _least_gain(network: TiledNetwork) -> float:
    return LEAST_GAIN if network.network.anchored else 1.0


def _room_for(n_samples: int, prepared: Prepared) -> np.ndarray:
    """Return room for all samples, (n_samples, n, c, [z,] y, x), before the work begins."""
    shape = (n_samples, *prepared.items.shape)
    try:
        return np.empty(shape, np.float32)
    except (MemoryError, ValueError):  # numpy has no words of its own for sizes that no machine has
        pixels = " x ".join(str(size) for size in prepared.image.shape)
        needed = 4 * math.prod(shape) / 2**30
        raise MemoryError(f"{n_samples} samples of {pixels} pixels take {needed:.1f} GiB") from None


def _jobs(prepared: Prepared, settings: SamplingConfig, brightest: float, least_gain: float) -> list[_Job]:
    """Return the images to draw, if photons can be added to them."""
    counts = [prepared.tensor(number) for number in range(len(prepared.items))]
    stops = [photons_to_stop_at(item, settings.stop_db, brightest, least_gain) for item in counts]
    if settings.stop_db is None:
        check_room(counts, stops, brightest, prepared.names)
    # equal steps in 1/sqrt(photons) cannot begin at nothing: the first would reach infinitely far
    generation = settings.model_copy(update={"schedule": "geometric"})
    return [
        _Job(number, item, stop, settings if item.any() else generation)
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
    check_whole("n_samples", n_samples, 1)
    check_whole("seed", seed, 0, 2**63)
    dim, channels = model.config.dim, model.config.channels
    if len(shape) != dim or min(shape) < 1:
        raise ConfigError(
            f"the shape is {', '.join(map(str, shape))} px, expected {dim} positive numbers for a {dim}D model; for "
            f"example {'64, ' * (dim == 3)}256, 256"
        )
    if model.trained_range_db[0] > -20:
        warnings.warn(
            f"the model was trained on images of {model.trained_range_db[0]:g} dB and brighter; generation begins "
            "without any photons: train with thinning.min_db=-40 for it",
            TrainedRangeWarning,
            stacklevel=2,
        )
    empty = xr.DataArray(np.broadcast_to(np.uint16(0), (channels, *shape)), dims=["c", *"zyx"[-dim:]])
    # the maps of a camera say which of its pixels is which, and here is no camera
    camera = None if model.camera is None else model.camera.scalar
    prepared = Prepared(empty, empty, empty.data[None], camera, model.n_frames)
    network = TiledNetwork(model.network, tile_px, halo_px, device)
    settings = (settings or SamplingConfig()).model_copy(update={"schedule": "geometric"})
    drawn = _draw(model, prepared, network, (n_samples, seed, settings, batch), unfinished, on_step)
    images = prepared.photons(drawn, n_samples).rename("rate")
    return images.squeeze("c") if channels == 1 else images
