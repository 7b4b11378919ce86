"""Posterior samples of clean images, and images generated from nothing.

Every step runs the network over all tiles of an image: samples of large images have no seams.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.config import SamplingConfig
from gap_bioimage.errors import ConfigError, NetworkWarning, TrainedRangeWarning
from gap_bioimage.inference.preparation import Layout, Prepared, check_whole, prepare
from gap_bioimage.inference.resume import Unfinished, fingerprint
from gap_bioimage.inference.tiling import TiledNetwork, check_sizes
from gap_bioimage.inference.trained_range import check_headroom, photons_to_stop_at
from gap_bioimage.model import CameraLike, Model, check_model
from gap_bioimage.sampler import CUT, LEAST_GAIN, WINDOW_PX, Sampler, in_exposure, sample_keys, total_photons


@dataclass(frozen=True)
class Progress:
    """Progress of sampling, after a step."""

    item: int  # frame or plane, counted from 0
    samples: range  # its samples that are being drawn
    step: int  # of these samples, counted from 1
    done: int  # steps over all frames and samples
    total: int  # steps in all; an estimate with the geometric schedule
    counts: Tensor  # observed and added counts of these samples, (samples, c, [z,] y, x)
    rate: Tensor  # expected counts given these, from the network

    @property
    def photons(self) -> float:
        """Mean photons per pixel."""
        return float(self.counts.mean(dtype=torch.float64))

    @property
    def db(self) -> float:
        """Pseudo-PSNR in dB."""
        return 10 * math.log10(self.photons) if self.photons > 0 else -math.inf


@dataclass(frozen=True)
class _Item:
    """One image to draw."""

    observed: Tensor  # counts, (1, c, [z,] y, x)
    whole: Callable[[], Tensor]  # the counts as whole numbers, whose hash seeds the samples
    stop: Tensor  # final number of photons, (1,)
    settings: SamplingConfig

    @cached_property
    def steps(self) -> int:
        """Expected number of steps per sample."""
        if self.settings.schedule == "sqrt":
            return self.settings.steps
        start, stop, beta = float(total_photons(self.observed)), float(self.stop), self.settings.beta
        single = max(0.0, min(1 / beta, stop) - start)  # photons that are added one at a time
        return math.ceil(single + math.log(max(1.0, stop / max(start, 1 / beta))) / math.log1p(beta))


@dataclass(frozen=True)
class Draws:
    """The samples to draw."""

    n_samples: int
    seed: int
    settings: SamplingConfig
    batch: int | None = None

    def __post_init__(self) -> None:
        check_whole("batch", 1 if self.batch is None else self.batch, 1)
        for name, *limits in (("n_samples", 1), ("seed", 0, 2**63)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), *limits))  # numpy integers overflow
        if not isinstance(self.settings, SamplingConfig):
            raise ConfigError(f"settings is {self.settings!r}, expected a SamplingConfig like SamplingConfig(steps=8)")


@dataclass(frozen=True)
class Drawing:
    """Draws the samples of all images of a call."""

    model: Model
    network: TiledNetwork
    draws: Draws
    unfinished: str | Path | Unfinished | None = None
    on_step: Callable[[Progress], None] | None = None

    @property
    def least_gain(self) -> float:
        """Final photons per observed photon that are allowed even beyond the trained range."""
        return LEAST_GAIN if self.model.network.anchored else 1.0

    def rates_of(self, prepared: Prepared) -> NDArray[np.float32]:
        """Return samples of the expected counts, (n_samples, n, c, [z,] y, x); keep finished ones until the end."""
        n_samples, folder = self.draws.n_samples, self.unfinished
        rates = np.empty((n_samples, *prepared.items.shape), np.float32)
        items = self._items(prepared)
        store = folder if isinstance(folder, Unfinished) else Unfinished(folder, {})
        store.begin(**self._dependencies(items))
        done, total = 0, n_samples * sum(item.steps for item in items)
        for number, item in enumerate(items):
            batch, first = self.draws.batch or self.network.batch_for(item.observed.shape[2:]), None
            for start in range(0, n_samples, batch):
                numbers = range(start, min(start + batch, n_samples))
                name = f"item{number}_samples{numbers.start}-{numbers.stop}"
                if (finished := store.load(name)) is None:
                    first = self.network(item.observed) if first is None else first
                    finished = {"rate": self._sample(number, item, numbers, first, (done, total)).numpy()}
                    store.save(name, **finished)
                rates[start : numbers.stop, number] = finished["rate"]
                done += len(numbers) * item.steps
        if store is not folder:  # else its owner removes it
            store.remove()
        return rates

    def _items(self, prepared: Prepared) -> list[_Item]:
        """Return the images to sample; refuse them if no photons can be added."""
        if (self.model.history.thinning or {}).get("read_noise"):
            text = "the model was trained to denoise this camera's images, and its samples are less accurate"
            warnings.warn(f'{text}; train another with purpose="sample" (--for sample)', NetworkWarning, stacklevel=4)
        settings, brightest, items = self.draws.settings, self.model.brightest, list[_Item]()
        # equal steps in 1/sqrt(photons) cannot begin without photons: the first would be infinite
        generation = settings.model_copy(update={"schedule": "geometric"})
        for number in range(len(prepared.items)):
            counts = prepared.tensor(number)
            stop = photons_to_stop_at(counts, settings.stop_db, brightest, self.least_gain)
            schedule = settings if counts.any() else generation
            items.append(_Item(counts, partial(prepared.whole, number), stop, schedule))
        if settings.stop_db is None:
            check_headroom([item.observed for item in items], [item.stop for item in items], brightest, prepared.names)
        return items

    def _dependencies(self, items: Sequence[_Item]) -> dict[str, str]:
        draws, network = self.draws, self.network
        return {
            "network": fingerprint(*self.model.network.state_dict().values()),
            "photons": fingerprint(*(item.observed for item in items)),
            "seed": str(draws.seed),
            "n_samples": str(draws.n_samples),
            "settings": draws.settings.model_dump_json(),
            "tiles": str((network.tile_px, network.halo_px, draws.batch, str(network.device), network.bf16)),
        }

    def _sample(self, number: int, item: _Item, numbers: range, first: Tensor, steps: tuple[int, int]) -> Tensor:
        """Draw samples of one image from ``first``, its log-rates; ``steps`` are (done before, all)."""
        # the state stays on the network's device if random numbers can be drawn there
        device = self.network.device if self.network.device.type == "cuda" else torch.device("cpu")
        counts, network, step = item.observed.to(device), self.model.network, 0
        observed = counts.expand(len(numbers), *counts.shape[1:])

        def predict(x: Tensor) -> Tensor:
            nonlocal step
            log_rate, step = self.network(x), step + 1
            if self.on_step is not None:
                done = steps[0] + len(numbers) * min(step, item.steps)
                self.on_step(Progress(number, numbers, step, done, steps[1], x, network.rate(x, log_rate, [])))
            return log_rate

        beta = item.settings.beta if item.settings.schedule == "geometric" else 0.0
        window, cut = list(WINDOW_PX[observed.dim() - 2]), CUT if network.anchored else 1.0
        sampler = Sampler(predict, self.model.brightest, window, beta, beta == 0, self.least_gain, cut)
        keys = sample_keys(item.whole().to(device), self.draws.seed, torch.tensor(list(numbers), device=device))
        first, stop = first.to(device).expand_as(observed), item.stop.to(device)
        x, log_rate, factor = sampler.draw(observed, first, stop, keys, item.settings.steps)
        rate = network.rate(x, log_rate, []) * factor
        return (in_exposure(rate, x, observed) if bool(counts.any()) else rate).cpu()


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
    device: str = "auto",
    precision: str = "auto",
    unfinished: str | Path | Unfinished | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> xr.DataArray:
    """Draw clean images from the posterior, given counts.

    Frames (t), and planes (z) with a 2D model, are sampled one by one, channels jointly. A sample depends only on the
    seed, its number and the counts of its image.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``; trained on images brighter than these.
    photons
        Counts with dims out of ``t c z y x``. For frames, planes or channels without photons (an empty image, for
        example) images are generated instead, with a warning.
    n_samples, seed
        Number of samples, and a seed that is not negative.
    settings
        Schedule, number of steps, and where to stop.
    dims, planes, camera, time_as_z, separate_channels, tile_px, halo_px, device, precision
        As for ``denoise``.
    batch
        Samples that share one run of the network. By default one on the CPU, and as many as fit on a GPU. On the CPU
        the result does not depend on it. On a GPU, convolutions of larger batches may round differently, which moves
        single photons.
    unfinished
        A folder that keeps finished samples until all are done; the same call resumes from it. An ``Unfinished`` is not
        removed at the end: its owner may keep more in it.
    on_step
        Called after each step.

    Returns
    -------
    xarray.DataArray
        Expected photons per pixel, float32, dims ``sample`` and those of ``photons``.

    Raises
    ------
    AxesError, NotPhotonCountsError, ConfigError, BrokenNetworkError
        As for ``denoise``; also if ``n_samples``, ``seed`` or ``batch`` is impossible.
    MemoryError
        If the samples do not fit into memory.
    TrainedRangeError
        If the image is so bright that no photons can be added within the trained range, or ``stop_db`` lies beyond it.
    OutputError
        If ``unfinished`` exists and holds other things.

    Warns
    -----
    EmptyImageWarning, TrainedRangeWarning, HotPixelWarning, NetworkWarning
        If images are generated, if there is little room for photons, if hot pixels are replaced, or if the model was
        trained only to denoise a camera's images.
    """
    draws = Draws(n_samples, seed, settings or SamplingConfig(), batch)
    prepared = prepare(model, photons, Layout(dims, planes, camera, time_as_z, separate_channels))
    network = TiledNetwork(model.network, tile_px, halo_px, device, precision=precision)
    prepared.warn_of_empty("images are generated instead, as bright as the model was trained for")
    rates = Drawing(model, network, draws, unfinished, on_step).rates_of(prepared)
    return prepared.photons(rates, draws.n_samples).rename("rate")


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
    device: str = "auto",
    precision: str = "auto",
    unfinished: str | Path | Unfinished | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> xr.DataArray:
    """Generate images from nothing: samples given an image without photons.

    Parameters
    ----------
    model
        Trained down to very few photons (``thinning.min_db`` of about -40).
    shape
        Pixels per spatial axis.
    n_samples, seed, tile_px, halo_px, batch, device, precision, unfinished, on_step
        As for ``sample``.
    settings
        Where to stop, and the step of the paper's geometric schedule. Photons are added until ``stop_db``, or until
        the brightest window of an image is as bright as the brightest of the training.

    Returns
    -------
    xarray.DataArray
        Expected photons per pixel, float32, dims ``sample [c] [z] y x``.

    Raises
    ------
    ConfigError, TrainedRangeError, BrokenNetworkError
        As for ``sample``.

    Warns
    -----
    TrainedRangeWarning
        If the model was not trained on images with as few photons.
    """
    check_model(model)
    dim, channels = model.config.dim, model.config.channels
    check_sizes("shape", shape, dim, 1)
    draws = Draws(n_samples, seed, settings or SamplingConfig(), batch)
    network = TiledNetwork(model.network, tile_px, halo_px, device, precision=precision)
    if model.trained_range_db[0] > -30:
        problem = f"the model was trained on images of {model.trained_range_db[0]:g} dB and brighter"
        advice = 'generation begins without photons: train with purpose="generate" (--for generate)'
        warnings.warn(f"{problem}; {advice}", TrainedRangeWarning, stacklevel=2)
    empty = xr.DataArray(np.broadcast_to(np.uint16(0), (channels, *shape)), dims=["c", *"zyx"[-dim:]])
    # camera maps describe the pixels of recorded images, not of generated ones
    camera = None if model.camera is None else model.camera.scalar
    prepared = Prepared(empty, empty, camera, model.n_frames)
    rates = Drawing(model, network, draws, unfinished, on_step).rates_of(prepared)
    images = prepared.photons(rates, draws.n_samples).rename("rate")
    return images.squeeze("c") if channels == 1 else images
