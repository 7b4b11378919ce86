"""Training pairs: thinning on the device that trains, and one-bit frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.training.pairs import Window, free_slots, pairs_of

FRACTIONS = [0.001, 0.3, 0.99]


def thinned(counts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the inputs that a window becomes."""
    pairs = pairs_of([Window(counts.astype(np.int32))], [fraction], None, torch.Generator().manual_seed(seed))
    return pairs.photons[0].numpy()


@pytest.mark.parametrize("n", [1, 10, 200])
@pytest.mark.parametrize("p", FRACTIONS)
def test_draws_follow_the_binomial_law(n: int, p: float) -> None:
    drawn = thinned(np.full((1, 400, 500), n), p, 1000 * n + round(1000 * p)).ravel()
    expected = binom.pmf(np.arange(n + 1), n, p) * drawn.size
    observed = np.bincount(drawn.astype(np.int64), minlength=n + 1)
    assert not observed[expected < 1e-7].any()
    # rare results share a bin, so that chi-square's approximation holds
    often = expected > 10
    found, wanted = (np.append(of[often], of[~often].sum()) for of in (observed, expected))
    found, wanted = found[wanted > 1e-3], wanted[wanted > 1e-3]
    assert len(found) == 1 or chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 1e-4
    size, variance = drawn.size, n * p * (1 - p)
    assert abs(drawn.mean(dtype=float) - n * p) < 4.5 * math.sqrt(variance / size)
    spread = math.sqrt(variance * (1 + variance * (2 - 6 / n)) / size)
    # the second term is the square of the mean's own error, which counts where the first vanishes
    assert abs(drawn.var(dtype=float) - variance) < 4.5 * spread + 4.5**2 * variance / size


def test_pairs_are_functions_of_the_seed_and_windows_keep_their_own_fractions() -> None:
    windows = [Window(np.full((1, 40, 40), n, np.int32)) for n in (9, 0, 20)]
    first, same, other = (
        pairs_of(windows, [0.1, 0.5, 0.8], None, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first.photons, same.photons)
    assert not torch.equal(first.photons, other.photons)
    for index, expected in enumerate((0.9, 0.0, 16.0)):
        assert float(first.photons[index].mean()) == pytest.approx(expected, abs=0.15)
    torch.testing.assert_close(first.exposure, torch.tensor([9.0, 1.0, 0.25]))
    assert torch.isneginf(first.db[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_draw_the_same_law() -> None:
    windows = [Window(np.full((1, 400, 500), n, np.int32)) for n in (3, 200)]
    drawn = pairs_of(windows, [0.3, 0.3], None, torch.Generator("cuda").manual_seed(0)).photons.cpu().double()
    for image, n in zip(drawn, (3, 200), strict=True):
        variance = n * 0.3 * 0.7
        assert abs(float(image.mean()) - 0.3 * n) < 4.5 * math.sqrt(variance / image.numel())
        assert float(image.var()) == pytest.approx(variance, rel=0.03)


def learned(counts: np.ndarray, parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what the photon loss teaches a network that tells pixels and their own input apart, (inputs, pixels).

    At its minimum ``r = sum of targets / sum of weight x targets of the image / sum of weight x r``.
    """
    target, ceiling = (counts - parts).astype(float), int(counts.max())
    known = parts[None] == np.arange(ceiling + 1)[:, None, None]  # (input, image, pixel)
    r = np.ones((ceiling + 1, counts.shape[1]))
    pixels = np.arange(counts.shape[1])
    seen = (known * target).sum(1)
    for _ in range(200):
        total = (weights * r[parts, pixels]).sum(1)
        share = target.sum(1) / np.maximum(total, 1e-12)
        exposure = (known * weights * share[:, None]).sum(1)
        r = np.where(exposure > 0, seen / np.maximum(exposure, 1e-12), 0)
        r /= r[0].mean()
    return r


@pytest.mark.parametrize("ceiling", [1, 4])
def test_one_bit_frames_teach_the_true_rates_whatever_the_input(ceiling: int) -> None:
    rng = np.random.default_rng(0)
    chance = 1 - np.exp(-np.linspace(0.3, 1.5, 12))
    images = 12_000
    counts = rng.binomial(ceiling, chance, (images, 12)).astype(np.int32)
    fraction = torch.from_numpy(rng.choice([0.2, 0.5, 0.8], (images, 1))).float().expand(-1, 12)
    generator, all_counts = torch.Generator().manual_seed(1), torch.from_numpy(counts).float()
    kept = torch.binomial(all_counts, fraction, generator=generator)
    slots = free_slots(all_counts, kept, fraction, ceiling, generator).numpy()
    parts = kept.numpy().astype(np.int32)
    assert (slots >= counts - parts).all()
    right = learned(counts, parts, slots.astype(float))
    expected = chance / chance.mean()
    for photons in range(ceiling):  # where all slots have fired none is left to learn from
        enough = (parts == photons).sum(0) > 1000
        np.testing.assert_allclose(right[photons, enough] / right[0].mean(), expected[enough], rtol=0.12)
    # taken as photon counts, a pixel that has fired is one where none can land, or fewer
    wrong = learned(counts, parts, np.ones(counts.shape))
    assert (wrong[1] < 0.85 * expected).all()


def test_halves_of_one_bit_frames_are_independent() -> None:
    counts = np.random.default_rng(1).binomial(5, 0.6, (1, 400, 1000)).astype(np.int32)
    pairs = pairs_of([Window(counts)], [0.5], 5, torch.Generator().manual_seed(1))
    assert pairs.weight is not None
    part, rest, slots = (of.numpy().ravel() for of in (pairs.photons, pairs.target, pairs.weight))
    # as counts they are not: a pixel cannot fire more than five times
    assert np.corrcoef(part, rest)[0, 1] < -0.2
    # for the same slots they are
    for left in (1, 2, 3, 4):
        same = slots == left
        assert abs(np.corrcoef(part[same], rest[same])[0, 1]) < 0.015
        assert rest[same].mean() == pytest.approx(0.6 * left, rel=0.02)


def test_more_photons_than_frames_are_refused() -> None:
    window = Window(np.array([[[0, 3]]], np.int32))
    with pytest.raises(NotPhotonCountsError, match="2 one-bit frames hold at most 2"):
        pairs_of([window], [0.5], 2, torch.Generator())
