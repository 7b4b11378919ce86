"""Random numbers, keys and images for the tests of the sampler."""

from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gap_bioimage.sampler import hash_counts, mix, poisson, step_keys

PIECE = 21_000  # pixels drawn at a time: they stay in the processor's cache
NOTHING = hash_counts(torch.zeros(1, 1, 4, 4))


def draw_keys(counts: Tensor, seed: int, samples: Tensor, step: int) -> Tensor:
    """Return the keys of a step from hashes of counts."""
    keys = mix(torch.bitwise_xor(mix(torch.bitwise_xor(counts, seed & 0xFFFFFFFF)), seed >> 32 & 0xFFFFFFFF))
    return step_keys(mix(torch.bitwise_xor(keys, samples.unsqueeze(1))), torch.full_like(samples, step))


def keys_of(seed: int = 0, sample: int = 0, step: int = 0, counts: Tensor = NOTHING) -> Tensor:
    return draw_keys(counts, seed, torch.full((len(counts),), sample), step)


def doubles(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def drawn(rate: float, size: int, keys: Tensor, start: int = 0) -> Tensor:
    pieces = []
    for first in range(0, size, PIECE):
        index = torch.arange(first, min(first + PIECE, size)) + start
        pieces.append(poisson(torch.full((len(keys), len(index)), rate, dtype=torch.float64), keys, index))
    return torch.cat(pieces, 1)


def observed(shape: tuple[int, ...] = (1, 1, 16, 16), mean: float = 3.0, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).poisson(mean, shape).astype(np.float32))


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_sided(statistic: float, degrees: int) -> float:
    below = stats.chi2.cdf(statistic, degrees)
    return float(2 * min(below, 1 - below))
