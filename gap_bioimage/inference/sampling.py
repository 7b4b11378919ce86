"""Posterior samples of clean images, and images from nothing.

Source: arXiv 2307.06607, section 3.3. Large images climb in lockstep: every step runs the network over all
tiles of the image, so that samples have no seams.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gap_bioimage.config import SamplingConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.climb import Climb, State
from gap_bioimage.inference.denoise import as_items, on_device
from gap_bioimage.inference.prepared import Prepared, prepare
from gap_bioimage.inference.tiling import automatic_batch, tiled_log_rate
from gap_bioimage.inference.trained_range import check_room, photons_to_stop_at
from gap_bioimage.inference.unfinished import Unfinished, fingerprint
from gap_bioimage.photons.checks import check_dim
from gap_bioimage.training.recorded import detector_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gap_bioimage.network import UNet
    from gap_bioimage.training.checkpoint import Model
    from gap_bioimage.training.recorded import CameraLike

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where sampling is.

    Attributes
    ----------
    item, samples
        Which frame or plane, counted from 0, and which of its samples are on their way.
    done, total
        Steps over all frames and samples; the total is an estimate with the geometric schedule.
    state
        Counts and log-rates of these samples, ``(samples, c, [z,] y, x)``.
    photons, db
        Mean photons per pixel, and 10 log10 of it.
    """

    item: int
    samples: range
    done: int
    total: int
    state: State

    @property
    def photons(self) -> float:
        """Mean photons per pixel."""
        return float(self.state.photons.mean(dtype=torch.float64))

    @property
    def db(self) -> float:
        """Pseudo-PSNR."""
        return 10 * math.log10(self.photons) if self.photons > 0 else -math.inf


@dataclass(frozen=True)
class _Run:
    """What all images of a call share."""

    network: UNet
    settings: SamplingConfig
    seed: int
    n_samples: int
    brightest: float
    from_nothing: bool
    tile_px: Sequence[int] | None
    halo_px: Sequence[int] | None
    batch: int | None
    unfinished: Unfinished
    on_step: Callable[[Progress], None] | None

    def predict(self, photons: Tensor) -> Tensor:
        return tiled_log_rate(self.network, photons, self.tile_px, self.halo_px)


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
        Counts with dims out of ``t c z y x``. If there are none at all, images are generated, with a warning.
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
        If ``n_samples``, ``seed`` or the device is impossible.
    TrainedRangeError
        If the image is so bright that no photons can be added within the trained range, or ``stop_db`` lies
        beyond it.
    BrokenNetworkError
        If the network returns values that are not finite.
    """
    settings = settings or SamplingConfig()
    if n_samples < 1:
        raise ConfigError(f"n_samples is {n_samples}, expected at least 1")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"the seed is {seed}, expected a number of at least 0 and below 2^63")
    prepared = prepare(model, photons, camera=camera, time_as_z=time_as_z)
    check_dim(prepared.counts, model.config.dim, plane_by_plane=planes)
    items, restore = as_items(
        prepared.counts, model.config.dim, model.config.channels, separate_channels=separate_channels
    )
    counts = [torch.from_numpy(np.ascontiguousarray(item).astype(np.float32))[None] for item in items]
    empty = not any(bool(item.any()) for item in counts)
    if empty:
        warnings.warn(
            "the image holds no photons, so that nothing is known: images are generated instead, at the brightest "
            "exposure that the model was trained for",
            stacklevel=2,
        )
        settings = _for_generation(settings)
    brightest = 10 ** (model.trained_range_db[1] / 10)
    stops = [photons_to_stop_at(item, settings.stop_db, brightest, from_nothing=empty) for item in counts]
    if settings.stop_db is None:
        check_room(counts, stops, brightest)
    work = {"network": fingerprint(*model.network.state_dict().values()), "photons": fingerprint(*counts)}
    work |= {"seed": str(seed), "n_samples": str(n_samples), "settings": settings.model_dump_json()}
    work |= {"tiles": str((tile_px, halo_px, batch, device))}
    run = _Run(
        on_device(model.network, device),
        settings,
        seed,
        n_samples,
        brightest,
        empty,
        tile_px,
        halo_px,
        batch,
        Unfinished(unfinished, work),
        on_step,
    )
    if run.unfinished.found:
        log.info("continuing an interrupted run")
    drawn = np.empty((n_samples, *items.shape), np.float32)
    for number, (item, stop) in enumerate(zip(counts, stops, strict=True)):
        for numbers, rate in _sample_item(run, item, stop, number, len(counts)):
            drawn[numbers.start : numbers.stop, number] = rate.numpy()
    samples = xr.concat([restore(values) for values in drawn], "sample")
    run.unfinished.remove()
    return prepared.photons(samples).rename("rate")


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
    empty = xr.DataArray(np.zeros((model.config.channels, *shape), np.uint16), dims=["c", *axes])
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


def _sample_item(run: _Run, item: Tensor, stop: Tensor, number: int, n_items: int) -> Iterator[tuple[range, Tensor]]:
    """Draw the samples of one image (1, c, [z,] y, x), in chunks."""
    device = next(run.network.parameters()).device
    # the state lives where the network runs, if random numbers can be made there
    item = item.to(device) if device.type == "cuda" else item
    batch = run.batch or automatic_batch(run.network, item.shape[2:], run.tile_px)
    first = None
    for start in range(0, run.n_samples, batch):
        numbers = range(start, min(start + batch, run.n_samples))
        name = f"item{number}_samples{numbers.start}-{numbers.stop}"
        finished = run.unfinished.load(name)
        if finished is None:
            samples = torch.tensor(list(numbers), device=item.device)
            climb = Climb(item, samples, stop.to(item.device), run.brightest, run.settings, run.seed)
            if first is None:
                first = run.predict(item)
            state = _climb(run, climb, first, name, number, n_items, numbers)
            rate = climb.result(state, None if run.from_nothing else item).cpu()
            run.unfinished.save(name, rate=rate.numpy())
        else:
            rate = torch.from_numpy(finished["rate"])
        yield numbers, rate


def _climb(run: _Run, climb: Climb, first: Tensor, name: str, number: int, n_items: int, numbers: range) -> State:
    """Climb, continuing where an earlier call was stopped."""
    steps = climb.expected_steps()
    before = (number * run.n_samples + numbers.start) * steps

    def report(state: State) -> None:
        if run.unfinished.is_time():
            run.unfinished.save(f"{name}_state", **_to_arrays(state))
        if run.on_step is not None:
            done = before + min(state.step, steps) * len(numbers)
            run.on_step(Progress(number, numbers, done, n_items * run.n_samples * steps, state))

    stored = run.unfinished.load(f"{name}_state")
    state = climb.begin(run.predict, first) if stored is None else _from_arrays(stored, first.device)
    return climb.run(run.predict, state, report)


def _to_arrays(state: State) -> dict[str, np.ndarray]:
    tensors = {key: getattr(state, key) for key in ("photons", "log_rate", "previous", "growth")}
    return {"step": np.array(state.step), **{key: tensor.cpu().numpy() for key, tensor in tensors.items()}}


def _from_arrays(arrays: dict[str, np.ndarray], device: torch.device) -> State:
    tensors = {key: torch.from_numpy(value).to(device) for key, value in arrays.items() if key != "step"}
    return State(**tensors, step=int(arrays["step"]))
