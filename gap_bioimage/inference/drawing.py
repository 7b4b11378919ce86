"""The samples of one image after the other, drawn in chunks that are kept once they are finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gap_bioimage.inference.climb import Climb, State
from gap_bioimage.inference.tiling import automatic_batch, tiled_log_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from gap_bioimage.config import SamplingConfig
    from gap_bioimage.inference.unfinished import Unfinished
    from gap_bioimage.network import UNet


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
class Job:
    """One image to draw samples of.

    Attributes
    ----------
    number
        Counted from 0.
    observed, stop
        Counts (1, c, [z,] y, x), and the photons to end with, (1,) float64.
    settings
        Schedule and steps.
    """

    number: int
    observed: Tensor
    stop: Tensor
    settings: SamplingConfig

    @property
    def from_nothing(self) -> bool:
        """Whether nothing was observed, so that images are generated."""
        return not bool(self.observed.any())


@dataclass(frozen=True)
class Draw:
    """What all images of a call share; ``unfinished`` keeps what is done."""

    network: UNet
    seed: int
    n_samples: int
    brightest: float
    tile_px: Sequence[int] | None
    halo_px: Sequence[int] | None
    batch: int | None
    unfinished: Unfinished
    on_step: Callable[[Progress], None] | None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, range, Tensor]]:
        """Yield chunk by chunk: which image, which samples of it, and their expected photons per pixel."""
        steps = [self._climb(job, range(1)).expected_steps() for job in jobs]
        done = 0
        for job, count in zip(jobs, steps, strict=True):
            for numbers, rate in self._samples(job, done, count, self.n_samples * sum(steps)):
                yield job, numbers, rate
            done += self.n_samples * count

    def _predict(self, photons: Tensor) -> Tensor:
        return tiled_log_rate(self.network, photons, self.tile_px, self.halo_px)

    def _climb(self, job: Job, numbers: range) -> Climb:
        device = next(self.network.parameters()).device
        # the state lives where the network runs, if random numbers can be made there
        observed = job.observed.to(device) if device.type == "cuda" else job.observed
        samples = torch.tensor(list(numbers), device=observed.device)
        return Climb(observed, samples, job.stop.to(observed.device), self.brightest, job.settings, self.seed)

    def _samples(self, job: Job, done: int, steps: int, total: int) -> Iterator[tuple[range, Tensor]]:
        """Draw the samples of one image in chunks."""
        batch = self.batch or automatic_batch(self.network, job.observed.shape[2:], self.tile_px)
        first = None
        for start in range(0, self.n_samples, batch):
            numbers = range(start, min(start + batch, self.n_samples))
            name = f"item{job.number}_samples{numbers.start}-{numbers.stop}"
            finished = self.unfinished.load(name)
            if finished is None:
                climb = self._climb(job, numbers)
                if first is None:
                    first = self._predict(climb.observed)
                report = self._reporter(job, numbers, f"{name}_state", (done + start * steps, steps, total))
                stored = self.unfinished.load(f"{name}_state")
                state = climb.begin(self._predict, first) if stored is None else _from_arrays(stored, first.device)
                state = climb.run(self._predict, state, report)
                rate = climb.result(state, None if job.from_nothing else climb.observed).cpu()
                self.unfinished.save(name, rate=rate.numpy())
            else:
                rate = torch.from_numpy(finished["rate"])
            yield numbers, rate

    def _reporter(self, job: Job, numbers: range, name: str, counted: tuple[int, int, int]) -> Callable[[State], None]:
        """Return what keeps and tells each step; ``counted`` is steps before, steps of each sample, all steps."""
        before, steps, total = counted

        def report(state: State) -> None:
            if self.unfinished.is_time():
                self.unfinished.save(name, **_to_arrays(state))
            if self.on_step is not None:
                done = before + min(state.step, steps) * len(numbers)
                self.on_step(Progress(job.number, numbers, done, total, state))

        return report


def _to_arrays(state: State) -> dict[str, np.ndarray]:
    tensors = {key: getattr(state, key) for key in ("photons", "log_rate", "previous", "growth")}
    return {"step": torch.tensor(state.step).numpy(), **{key: tensor.cpu().numpy() for key, tensor in tensors.items()}}


def _from_arrays(arrays: dict[str, np.ndarray], device: torch.device) -> State:
    tensors = {key: torch.from_numpy(value).to(device) for key, value in arrays.items() if key != "step"}
    return State(**tensors, step=int(arrays["step"]))
