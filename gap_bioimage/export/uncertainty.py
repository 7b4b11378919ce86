"""How well samples show what is not known: measured on split photons, without a known truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gap_bioimage.counts import thin
from gap_bioimage.export.example import brightest_piece, room_db
from gap_bioimage.network import conserve_photons

if TYPE_CHECKING:
    from gap_bioimage.sampler import PosteriorSampler

_PIECE_PX = {2: (256, 256), 3: (24, 96, 96)}  # sampling costs many runs of the network
_LEAST_SAMPLES = 4


@dataclass(frozen=True)
class SampleScores:
    """Samples of the image, drawn from one half of its photons, against the other half.

    Attributes
    ----------
    n_samples
        As many were drawn.
    room_db
        How far photons could be added.
    mean_difference, expected_difference
        Relative RMS difference between the samples' mean and the denoised image, and that of as many independent
        samples with the same variance.
    variance
        Of the samples, mean over the pixels.
    squared_error, standard_error
        Of the denoised image, mean over the pixels, as the other half tells, and how well it does.
    """

    n_samples: int
    room_db: float
    mean_difference: float
    expected_difference: float
    variance: float
    squared_error: float
    standard_error: float


def score_samples(sampler: PosteriorSampler, counts: np.ndarray, seed: int = 0) -> SampleScores:
    """Draw samples from one half of the photons and judge their variance by the other half.

    Where the posterior is right, its variance is the squared error of its mean m. The other half u, Poisson with
    the unknown rate, tells that error without the truth: the mean of ``(u - m)^2 - u``.

    Parameters
    ----------
    sampler
        The module that samples.
    counts
        Held-out counts (c, [z,] y, x).
    seed
        For the split.
    """
    sizes = _PIECE_PX[counts.ndim - 1]
    piece = brightest_piece(counts, [min(*pair) for pair in zip(sizes, counts.shape[1:], strict=True)])
    seen, unseen = thin(piece.astype(np.int64), 0.5, seed)
    photons = torch.from_numpy(seen.astype(np.float32))[None]
    n_samples = max(_LEAST_SAMPLES, sampler.n_samples)
    with torch.inference_mode():
        mmse = conserve_photons(photons, sampler.network(photons), sampler.box_px)[0].double().numpy()
        samples = sampler.sample(photons, n_samples, sampler.n_steps, sampler.seed)[:, 0].double().numpy()
    variance = float(samples.var(axis=0, ddof=1).mean())
    scale = max(float(np.square(mmse).mean()), 1e-30)
    errors = np.square(unseen - mmse) - unseen
    return SampleScores(
        n_samples,
        room_db(seen, sampler.brightest),
        float(np.sqrt(np.square(samples.mean(axis=0) - mmse).mean() / scale)),
        float(np.sqrt(variance / n_samples / scale)),
        variance,
        float(errors.mean()),
        float(errors.std() / np.sqrt(errors.size)),
    )
