"""The sampling loop with predictors that are exact: whatever a sample lacks is then the sampler's doing."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from benchmarks.exact import Dirichlet, Markov, Templates, draw_counts, draw_samples
from gap_bioimage.sampler import Sampler, brightest_mean, sample_keys, total_photons

Bed = Templates | Dirichlet | Markov
PAPER, FROZEN = {"beta": 0.1}, {"steps": 12, "restored": False}


def sampled(
    bed: Bed, counts: Tensor, gain: float = 100.0, samples: int = 800, **how: Any
) -> tuple[Tensor, Tensor, int]:
    """Return shares of the light and counts at the end, (b, c, y, x), and the fewest evaluations that took."""
    parts = []
    for start in range(0, samples, 250):  # in parts that stay in the processor's cache
        numbers = range(start, min(start + 250, samples))
        parts.append(draw_samples(bed.predict, counts, numbers, gain * total_photons(counts), **how))
    rates, ends, evaluations = zip(*parts, strict=True)
    return torch.cat(rates).double() / total_photons(counts), torch.cat(ends), min(evaluations)


# Templates: which of a few images is it?


def templates(contrast: float = 0.2, seed: int = 0) -> Templates:
    return Templates.random(5, 5, contrast, seed)


def frequencies(bed: Templates, photons: Tensor) -> Tensor:
    weights = bed.weights(photons)
    assert float(weights.amax(1).mean()) > 0.99  # decided at the end
    return torch.bincount(weights.argmax(1), minlength=len(bed.prior)).double()


def chance_of(counted: Tensor, weights: Tensor) -> float:
    """Return the p-value of the chi-square of counted templates; those that are too rare are taken together."""
    expected = counted.sum() * weights
    rare = expected < 8
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counted = torch.cat([counted[~rare], counted[rare].sum()[None]])
    keep = expected > 0.5
    chi = float(((counted - expected).square() / expected)[keep].sum())
    return float(stats.chi2.sf(chi, max(int(keep.sum()) - 1, 1)))


@pytest.mark.parametrize(("how", "seed"), [({"steps": 96}, 0), ({"steps": 96}, 2), ({"beta": 0.03}, 0)], ids=str)
def test_many_small_steps_draw_templates_from_the_posterior(how: dict[str, Any], seed: int) -> None:
    bed = templates()
    counts = draw_counts(bed.shares[seed][None], 40, seed)
    weights = bed.weights(counts)[0]
    assert float(weights.amax()) < 0.9  # undecided at the start
    shares, photons, _ = sampled(bed, counts, samples=1500, seed=seed, **how)
    assert chance_of(frequencies(bed, photons), weights) > 1e-3
    error = shares.std(0) / math.sqrt(len(shares))
    assert ((shares.mean(0) - torch.exp(bed.predict(counts))[0]).abs() < 4.5 * error).all()


@pytest.mark.parametrize("contrast", [0.5, 1.0])
def test_images_from_nothing_have_the_priors_frequencies(contrast: float) -> None:
    bed, nothing, stop = templates(contrast, 1), torch.zeros(1, 1, 5, 5), torch.tensor([2000.0], dtype=torch.float64)
    _, end, _ = draw_samples(bed.predict, nothing, range(2000), stop, beta=0.1, seed=3)
    assert chance_of(frequencies(bed, end), bed.prior) > 1e-3
    totals = total_photons(end)
    assert (totals >= 0.99 * stop).all()
    assert (totals < stop + 5 * torch.sqrt(stop)).all()  # the last step leads to the stop on average


# Dirichlet pixels: mean and variance in closed form


def dirichlet(alpha: float = 1.0, per_pixel: float = 10.0, size: int = 9, seed: int = 5) -> tuple[Dirichlet, Tensor]:
    bed = Dirichlet(torch.full((1, 1, size, size), alpha, dtype=torch.float64))
    light = torch.from_numpy(np.random.default_rng(seed).gamma(alpha, size=(1, 1, size, size)))
    return bed, draw_counts(light / light.sum(), per_pixel * size**2, seed)


def variance_ratio(bed: Dirichlet, counts: Tensor, **how: Any) -> tuple[float, int]:
    shares, _, evaluations = sampled(bed, counts, **how)
    return float((shares.var(0) / bed.posterior(counts)[1][0]).mean()), evaluations


@pytest.mark.parametrize("gain", [10.0, 100.0])
@pytest.mark.parametrize("how", [{"steps": 4}, {"steps": 12}, {"steps": 24}, FROZEN, {"beta": 0.2}], ids=str)
def test_means_are_those_of_the_posterior(how: dict[str, Any], gain: float) -> None:
    bed, counts = dirichlet(per_pixel=1.0)
    shares, _, _ = sampled(bed, counts, gain, 500, **how)
    mean = bed.posterior(counts)[0][0]
    error = (shares.mean(0) - mean) / (shares.std(0) / math.sqrt(len(shares)))
    assert stats.chi2.sf(float(error.square().sum()), error.numel()) > 1e-3
    for part in torch.argsort(mean.flatten()).tensor_split(10):  # of dark and of bright pixels alike
        group = shares.flatten(1)[:, part].sum(1)
        assert abs(float(group.mean() - mean.flatten()[part].sum())) < 4 * float(group.std()) / math.sqrt(len(group))


@pytest.mark.parametrize(("gain", "beta"), [(10.0, 0.1), (100.0, 0.05), (100.0, 0.1), (100.0, 0.2)])
def test_geometric_steps_lose_the_variance_they_should(gain: float, beta: float) -> None:
    ratio, evaluations = variance_ratio(*dirichlet(), gain=gain, beta=beta)
    assert ratio == pytest.approx((1 - 1 / gain) / (1 + beta), abs=0.02)
    assert evaluations == pytest.approx(math.log(gain) / math.log1p(beta), abs=2)


def test_equal_root_steps_lose_less_than_geometric_ones() -> None:
    bed, counts = dirichlet()
    for gain, steps, by_factor, by_root in ((1e2, 12, 0.684, 0.772), (1e4, 12, 0.469, 0.743), (1e4, 24, 0.685, 0.850)):
        ratio, evaluations = variance_ratio(bed, counts, gain=gain, beta=gain ** (1 / steps) - 1)
        assert evaluations <= steps + 1
        assert ratio == pytest.approx(by_factor, abs=0.02)
        ratio, evaluations = variance_ratio(bed, counts, gain=gain, steps=steps, restored=False)
        assert evaluations == steps
        assert ratio == pytest.approx(by_root, abs=0.02)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("per_pixel", [0.2, 1.0, 10.0])
def test_restored_variance_is_more_and_not_too_much(alpha: float, per_pixel: float) -> None:
    bed, counts = dirichlet(alpha, per_pixel)
    for steps in (4, 12):
        frozen, _ = variance_ratio(bed, counts, samples=500, steps=steps, restored=False)
        assert frozen + 0.03 < variance_ratio(bed, counts, samples=500, steps=steps)[0] < 1.05
    assert variance_ratio(bed, counts, samples=500, steps=24)[0] < 1.05


@pytest.mark.parametrize("gain", [10.0, 100.0])
@pytest.mark.parametrize("per_pixel", [3.0, 10.0])
def test_the_papers_variance_costs_a_fifth_of_its_evaluations(gain: float, per_pixel: float) -> None:
    bed, counts = dirichlet(per_pixel=per_pixel)
    paper, evaluations = variance_ratio(bed, counts, gain=gain, **PAPER)
    ours, fewer = variance_ratio(bed, counts, gain=gain, steps=evaluations // 5)
    assert fewer <= evaluations / 5
    assert ours >= paper


# Markov chains: pixels that know of each other


def markov() -> tuple[Markov, Tensor]:
    bed = Markov(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), 0.9, 64)
    return bed, draw_counts(bed.draw(3), 64 * 3.0, 4)


def test_forward_backward_is_the_sum_over_all_chains() -> None:
    # the reference itself, against brute force
    bed = Markov(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), 0.7, 5)
    counts = draw_counts(bed.draw(0), 15.0, 1)
    chains = torch.cartesian_prod(*[torch.arange(3)] * 5)
    levels = bed.levels[chains]
    log_chance = (counts[0, 0, 0] * torch.log(levels) + counts[0, 1, 0] * torch.log(1 - levels)).sum(1)
    chance = torch.softmax(log_chance + torch.log(bed.step[chains[:, :-1], chains[:, 1:]]).sum(1), 0)
    expected = torch.stack([(chance[:, None] * (chains == state)).sum(0) for state in range(3)], 1)
    torch.testing.assert_close(bed.marginals(counts)[0], expected)
    assert float(torch.exp(bed.predict(counts)).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("how", "bias", "least"), [({"steps": 12}, 0.05, 0.92), ({"steps": 48}, 0.05, 0.96), (PAPER, 0.05, 0.88)], ids=str
)
def test_chains_have_the_mean_and_variance_of_the_posterior(how: dict[str, Any], bias: float, least: float) -> None:
    bed, counts = markov()
    shares, photons, _ = sampled(bed, counts, samples=800, seed=2, **how)
    assert float(bed.marginals(photons).amax(2).mean()) > 0.99  # every state is known at the end
    mean, variance = (moment[0] for moment in bed.posterior(counts))
    # the bias of 800 exact draws would be 0.035 standard deviations
    assert float(torch.sqrt((shares.mean(0) - mean).square().sum() / variance.sum())) < bias
    assert least < float(shares.var(0).sum() / variance.sum()) < 1.05


# The loop


def test_photons_are_only_added_and_what_is_known_is_not_asked_again() -> None:
    bed, counts = dirichlet(per_pixel=1.0)
    seen = [counts.expand(20, -1, -1, -1)]

    def predict(photons: Tensor) -> Tensor:
        seen.append(photons)
        return bed.predict(photons)

    start = seen[0]
    sampler = Sampler(predict, math.inf, [63, 63])
    keys = sample_keys(counts, 0, torch.arange(20))
    end, log_rate, factor = sampler.draw(start, bed.predict(start), 100 * total_photons(counts), keys, 7)
    assert len(seen) == 8
    for before, after in itertools.pairwise(seen):
        assert (after >= before).all()
        assert torch.equal(after, after.floor())
    assert torch.equal(end, seen[-1])
    assert torch.equal(log_rate, bed.predict(end))  # of these photons, not of those before
    assert factor.shape == end.shape
    assert total_photons(end).numpy() == pytest.approx(100 * float(counts.sum()), rel=0.05)


@pytest.mark.parametrize("how", [{"steps": 12}, PAPER], ids=str)
def test_the_brightest_window_stays_within_the_trained_range(how: dict[str, Any]) -> None:
    bed, counts = dirichlet(per_pixel=1.0, size=20)
    _, end, _ = draw_samples(bed.predict, counts, range(30), 1e4 * total_photons(counts), brightest=20.0, **how)
    brightest = brightest_mean(end, [63, 63])
    assert (brightest < 20 * 1.05).all()
    assert (brightest > 20 * 0.9).all()
    # an image beyond it stays as it is
    _, end, evaluations = draw_samples(bed.predict, counts, range(2), 9 * total_photons(counts), brightest=0.5, **how)
    assert torch.equal(end, counts.expand_as(end))
    assert evaluations == 0
