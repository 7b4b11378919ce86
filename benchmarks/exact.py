"""Priors with an exactly known next-photon distribution and posterior, to test samplers without training.

Each prior has ``predict``, from counts (b, c, y, x) to the log-rates of the next photon that a perfect network would
return, and the posterior that samples must follow. Shares refer to the light of the whole image; they sum to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gap_bioimage.network import rate_from_log_rate
from gap_bioimage.sampler import Sampler, sample_keys

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Templates:
    """The image is one of a few templates.

    Attributes
    ----------
    shares
        Share of the light in each pixel, (k, 1, y, x).
    prior
        Probabilities (k,).
    """

    shares: Tensor
    prior: Tensor

    @classmethod
    def random(cls, count: int, size_px: int, contrast: float, seed: int) -> Templates:
        """Draw positive random images; ``contrast`` is the standard deviation of the log-rates."""
        generator = torch.Generator().manual_seed(seed)
        logits = contrast * torch.randn(count, size_px**2, generator=generator, dtype=torch.float64)
        prior = torch.softmax(0.7 * torch.randn(count, generator=generator, dtype=torch.float64), 0)
        return cls(torch.softmax(logits, 1).reshape(count, 1, size_px, size_px), prior)

    def weights(self, counts: Tensor) -> Tensor:
        """Return the posterior probabilities of the templates, (b, k)."""
        evidence = counts.flatten(1).double() @ torch.log(self.shares.flatten(1)).T
        return torch.softmax(evidence + torch.log(self.prior), 1)

    def predict(self, counts: Tensor) -> Tensor:
        """Return the exact log-rates: the logarithm of the posterior mean of the shares."""
        return torch.log(self.weights(counts) @ self.shares.flatten(1)).reshape(counts.shape)


@dataclass(frozen=True)
class Dirichlet:
    """The light of each pixel is independently Gamma distributed; the shares are therefore Dirichlet distributed.

    Attributes
    ----------
    alpha
        Pseudo-counts of the prior, per pixel, (1, c, y, x).
    """

    alpha: Tensor

    def predict(self, counts: Tensor) -> Tensor:
        """Return exact log-rates."""
        return torch.log(counts.double() + self.alpha)

    def posterior(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the shares, (1, c, y, x)."""
        after = counts.double() + self.alpha
        total = after.sum()
        mean = after / total
        return mean, mean * (1 - mean) / (total + 1)


@dataclass(frozen=True)
class Markov:
    """Light along a line switches between a few colours, as a hidden Markov chain.

    Every position emits the same light, split between two channels; the share of the first depends on the hidden
    state. With variable brightness the image's total would couple all pixels, and the forward-backward algorithm
    would no longer be exact.

    Attributes
    ----------
    levels
        Share of the first channel in each state, (s,).
    stay
        Probability that the next position has the same state.
    length
        Positions.
    """

    levels: Tensor
    stay: float
    length: int

    @property
    def step(self) -> Tensor:
        """Transition probabilities (s, s)."""
        states = len(self.levels)
        change = (1 - self.stay) / (states - 1)
        return torch.full((states, states), change, dtype=torch.float64).fill_diagonal_(self.stay)

    def draw(self, seed: int) -> Tensor:
        """Draw shares of the light, (1, 2, 1, length)."""
        generator = torch.Generator().manual_seed(seed)
        states = [int(torch.randint(len(self.levels), (1,), generator=generator))]
        while len(states) < self.length:
            states.append(int(torch.multinomial(self.step[states[-1]], 1, generator=generator)))
        level = self.levels[states]
        return torch.stack([level, 1 - level])[None, :, None] / self.length

    def marginals(self, counts: Tensor) -> Tensor:
        """Return the posterior probabilities of the states by the forward-backward algorithm, (b, length, s)."""
        first, second = counts[:, 0, 0].double()[..., None], counts[:, 1, 0].double()[..., None]
        evidence = first * torch.log(self.levels) + second * torch.log(1 - self.levels)
        likelihood = torch.exp(evidence - evidence.amax(2, keepdim=True))
        step = self.step
        forward, backward = [likelihood[:, 0]], [torch.ones_like(likelihood[:, 0])]
        for position in range(1, self.length):
            forward.append((forward[-1] / forward[-1].sum(1, keepdim=True)) @ step * likelihood[:, position])
            message = (backward[-1] * likelihood[:, self.length - position]) @ step.T
            backward.append(message / message.sum(1, keepdim=True))
        both = torch.stack(forward, 1) * torch.stack(backward[::-1], 1)
        return both / both.sum(2, keepdim=True)

    def predict(self, counts: Tensor) -> Tensor:
        """Return exact log-rates."""
        first = self.marginals(counts) @ self.levels
        return torch.log(torch.stack([first, 1 - first], 1)[:, :, None] / self.length)

    def posterior(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the shares, (1, 2, 1, length)."""
        marginals = self.marginals(counts)
        first = marginals @ self.levels
        variance = (marginals @ self.levels**2 - first**2)[:, None, None] / self.length**2
        return torch.stack([first, 1 - first], 1)[:, :, None] / self.length, variance.expand(-1, 2, -1, -1)


def draw_counts(shares: Tensor, photons: float, seed: int) -> Tensor:
    """Draw Poisson counts with ``photons`` expected photons in the image."""
    return torch.poisson(shares * photons, torch.Generator().manual_seed(seed)).float()


def draw_samples(
    predict: Callable[[Tensor], Tensor],
    counts: Tensor,
    numbers: range,
    stop: Tensor,
    *,
    steps: int = 16,
    beta: float = 0.0,
    restored: bool | None = None,
    brightest: float = math.inf,
    seed: int = 0,
) -> tuple[Tensor, Tensor, int]:
    """Return samples (b, c, y, x) in the exposure of the counts (1, c, y, x), the final counts, and the evaluations.

    The schedule is equal roots with restored variance, or the paper's if ``beta`` is given.
    """
    evaluations = 0

    def counting(x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return predict(x)

    sampler = Sampler(counting, brightest, [63, 63], beta, restored=beta == 0 if restored is None else restored)
    start = counts.expand(len(numbers), *counts.shape[1:]).float()
    keys = sample_keys(counts, seed, torch.tensor(list(numbers)))
    end, log_rate, factor = sampler.draw(start, predict(counts).expand_as(start), stop, keys, steps)
    exposure = start if bool(counts.any()) else end
    return rate_from_log_rate(log_rate, exposure) * factor, end, evaluations
