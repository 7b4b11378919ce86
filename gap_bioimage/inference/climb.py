"""Photons added step by step, from what was observed to what a sample needs.

The network is any function from counts to log-rates, so that exact predictors can take its place; the step
itself is that of ``network.py``, as in exported models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gap_bioimage.inference.finite import finite
from gap_bioimage.network import rate_from_log_rate
from gap_bioimage.sampler import (
    accumulate,
    count_keys,
    draw_keys,
    equal_root_step,
    geometric_step,
    photon_budget,
    spread,
    total_photons,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.config import SamplingConfig

    Predict = Callable[[Tensor], Tensor]

GAIN = 100.0
"""Photons at the end per observed photon, at most: 20 dB leave 1 % of the posterior's variance out."""
WINDOW_PX = {2: (63, 63), 3: (15, 63, 63)}
"""Windows, about those of the training, in which brightness is held against the trained range."""


@dataclass(frozen=True)
class State:
    """Images on their way up.

    Attributes
    ----------
    photons
        Observed and added counts, (b, c, [z,] y, x).
    log_rate
        The network's answer to them, same shape.
    previous
        Its answer one step before; the same at the start.
    growth
        Photons now per photon one step before, minus 1, (b,).
    step
        Steps done.
    """

    photons: Tensor
    log_rate: Tensor
    previous: Tensor
    growth: Tensor
    step: int


@dataclass(frozen=True)
class Climb:
    """Where to and how: all that does not change on the way.

    Attributes
    ----------
    observed
        Counts (1, c, [z,] y, x); zeros to generate.
    samples
        Number of the sample that each item of the batch is, (b,) int64.
    stop
        Photons to end with, (1,) float64.
    brightest
        Photons per pixel that the brightest window may have, infinite for no limit.
    settings
        Schedule and steps.
    seed
        Not negative.
    """

    observed: Tensor
    samples: Tensor
    stop: Tensor
    brightest: float
    settings: SamplingConfig
    seed: int

    @property
    def spreads(self) -> bool:
        """Whether the variance lost by frozen rates is restored; the paper's schedule does not."""
        return self.settings.schedule == "sqrt"

    def expected_steps(self) -> int:
        """Return about how many steps it takes."""
        if self.settings.schedule == "sqrt":
            return self.settings.steps
        start, stop, beta = float(total_photons(self.observed)), float(self.stop), self.settings.beta
        by_one = max(0.0, min(1 / beta, stop) - start)  # photons that come one at a time
        return math.ceil(by_one + math.log(max(1.0, stop / max(start, 1 / beta))) / math.log1p(beta))

    def begin(self, predict: Predict, log_rate: Tensor | None = None) -> State:
        """Return the first state; the log-rate of the observed photons may be given where it is known."""
        batch = len(self.samples)
        first = finite(predict(self.observed) if log_rate is None else log_rate)
        first = first.expand(batch, *first.shape[1:])
        growth = torch.zeros(batch, dtype=torch.float64, device=self.observed.device)
        return State(self.observed.expand_as(first).float(), first, first, growth, 0)

    def advance(self, predict: Predict, state: State) -> State | None:
        """Return the next state, or None at the end of the climb."""
        now = total_photons(state.photons)
        n_new = self._photons_to_add(state, now)
        if n_new is None:
            return None
        keys, factor = self._keys_and_factor(state)
        photons = accumulate(state.photons, state.log_rate, n_new, keys, factor)
        growth = total_photons(photons) / torch.clamp(now, min=1.0) - 1.0
        return State(photons, finite(predict(photons)), state.log_rate, growth, state.step + 1)

    def result(self, state: State, exposure: Tensor | None = None) -> Tensor:
        """Return the samples (b, c, [z,] y, x), expected photons per pixel, of the last state.

        Parameters
        ----------
        state
            After the last step.
        exposure
            Counts (1, c, [z,] y, x) whose total the samples shall have; those of the state when not given.
        """
        counts = state.photons if exposure is None else exposure.expand_as(state.photons)
        rate = rate_from_log_rate(state.log_rate, counts)
        if not self.spreads:
            return rate
        _, factor = self._keys_and_factor(state)
        return rate * factor.float().reshape(rate.shape)

    def _photons_to_add(self, state: State, now: Tensor) -> Tensor | None:
        window = list(WINDOW_PX[state.photons.dim() - 2])
        limit = photon_budget(state.photons, math.inf, self.brightest, window)
        # without photons there is no brightest window yet
        stop = torch.where(now > 0, torch.minimum(self.stop, torch.maximum(limit, now)), self.stop)
        if self.settings.schedule == "geometric":
            n_new = geometric_step(self.settings.beta, stop, now)
            return n_new if bool((n_new > 0).any()) else None
        if state.step >= self.settings.steps or bool((now >= 0.999 * stop).all()):
            return None
        start = total_photons(self.observed)
        n_new = equal_root_step(state.step, self.settings.steps, start, self.stop, now)
        return torch.clamp(torch.minimum(n_new, stop - now), min=0.0)

    def _keys_and_factor(self, state: State) -> tuple[Tensor, Tensor]:
        keys = draw_keys(count_keys(self.observed), self.seed, self.samples, state.step)
        if self.spreads:
            return keys, spread(state.log_rate, state.previous, state.growth, total_photons(state.photons), keys)
        return keys, torch.ones(len(keys), 1, dtype=torch.float64, device=keys.device)

    def run(
        self, predict: Predict, state: State | None = None, on_step: Callable[[State], None] | None = None
    ) -> State:
        """Climb to the end, from the beginning or from a state on the way."""
        state = self.begin(predict) if state is None else state
        while (following := self.advance(predict, state)) is not None:
            state = following
            if on_step is not None:
                on_step(state)
        return state
