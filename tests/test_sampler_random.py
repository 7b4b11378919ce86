"""The sampler's random numbers: Poisson, independent, functions of what is known."""

import math

import numpy as np
import pytest
import torch
from draws import NOTHING, drawn, keys_of, observed, two_sided
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import gap_bioimage.sampler as source
from gap_bioimage.sampler import hash_counts, mix, poisson, random_words, restore_variance

RATES = [0.001, 0.01, 0.1, 1.0, 5.0, 11.9, 12.1, 17.9, 18.1, 20.0, 50.0, 100.0, 300.0, 1000.0, 5000.0]


# Poisson numbers


def bins_of_at_least(expected: np.ndarray, least: float) -> np.ndarray:
    """Return the bin of every count, so that each bin expects at least that many draws."""
    bins, seen, number = np.zeros(len(expected), int), 0.0, 0
    for count, value in enumerate(expected):
        bins[count] = number
        seen += value
        if seen >= least and expected[count + 1 :].sum() >= least:
            seen, number = 0.0, number + 1
    return bins


def chi_square(counted: np.ndarray, expected: np.ndarray, bins: np.ndarray) -> float:
    expected = np.bincount(bins, expected)
    return float((np.square(np.bincount(bins, counted) - expected) / expected).sum())


@pytest.mark.parametrize("rate", RATES)
def test_counts_are_poisson(rate: float) -> None:
    low = max(0, math.floor(rate - 10 * math.sqrt(rate) - 10))
    values = np.arange(low, math.ceil(rate + 10 * math.sqrt(rate) + 10))
    chance = stats.poisson.pmf(values, rate)
    # so many groups that the ratio itself scatters by 0.05 or less, and 2 to 17 million draws in all
    size = 21_000 if rate < 0.005 else 5_000 if rate < 0.5 else 20_000
    bins = bins_of_at_least(size * chance, 20)
    degrees = int(bins.max())
    groups = max(math.ceil(800 / degrees), 2_000_000 // size)
    counted = np.zeros(len(values))
    total = 0.0
    for seed in range(groups):
        values_drawn = drawn(rate, size, keys_of(seed)).long().numpy().ravel() - low
        counted_now = np.bincount(values_drawn, minlength=len(values))
        assert len(counted_now) == len(values), "a count more than ten standard deviations from the rate"
        total += chi_square(counted_now, size * chance, bins)
        counted += counted_now
    assert 0.8 < total / (groups * degrees) < 1.2
    # all draws as one sample see smaller deviations
    bins = bins_of_at_least(groups * size * chance, 20)
    assert two_sided(chi_square(counted, groups * size * chance, bins), int(bins.max())) > 1e-3


@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.5, 3.0, 11.9, 12.1, 17.99])
def test_low_rates_are_the_inverse_distribution(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    words = torch.randint(0, 1 << 32, (2, 1, 100_000), generator=torch.Generator().manual_seed(0))
    tail = torch.linspace(0, 1, 1000, dtype=torch.float64)
    words[0, 0, :1000] = ((1 << 32) - 1 - (1 << 20) * tail**4).long()  # the upper tail
    words[0, 0, 1000:2000] = ((1 << 20) * tail**4).long()
    monkeypatch.setattr(source, "random_words", lambda keys, index: (words[0], words[1]))
    counts = poisson(torch.full((1, 100_000), rate, dtype=torch.float64), NOTHING, torch.arange(100_000))
    uniform = (words[0].double() * 2.0**20 + (words[1] >> 12).double() + 0.5) * 2.0**-52
    exact = stats.poisson.ppf(uniform.numpy(), rate)
    # more than 48 photons, with a chance of 1e-9, are 48
    assert torch.equal(counts, torch.from_numpy(exact).clamp(max=48))
    assert stats.poisson.sf(48, rate) < 2e-9


@pytest.mark.parametrize("rate", [18.1, 40.0, 1e3, 1e6])
def test_high_rates_round_the_inverse_distribution(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    # the cosine of zero is one: z is the radius, the quantile of the standard normal that it stands for
    radius = torch.linspace(0.01, 6.5, 5000, dtype=torch.float64)
    first = torch.round(torch.exp(-(radius**2) / 2) * 2**32 - 0.5).clamp(min=0)
    radius = torch.sqrt(-2 * torch.log((first + 0.5) * 2.0**-32))
    for angle, sign in ((0, 1), (1 << 31, -1)):
        second = torch.full_like(first, angle).long()
        monkeypatch.setattr(source, "random_words", lambda keys, index, s=second: (first.long()[None], s[None]))
        counts = poisson(torch.full((1, 5000), rate, dtype=torch.float64), NOTHING, torch.arange(5000))[0].numpy()
        # of the tail that is small, so that nothing is lost in 1 - u
        tail = stats.norm.sf(radius.numpy())
        exact = stats.poisson.isf(tail, rate) if sign > 0 else stats.poisson.ppf(tail, rate)
        assert np.abs(counts - exact).max() <= 1
        # by one where the rounding falls just before or after an integer, once in thousands of draws
        chance = stats.norm.pdf(radius.numpy())
        assert chance[counts != exact].sum() < 1e-3 * chance.sum()
        assert (counts >= 0).all()


def test_bad_luck_and_empty_pixels() -> None:
    # not below zero, and nothing where nothing is expected
    rate = torch.full((1, 200_000), 18.5, dtype=torch.float64)
    rate[:, ::2] = 0
    counts = poisson(rate, keys_of(), torch.arange(200_000))
    assert (counts >= 0).all()
    assert not counts[:, ::2].any()
    assert torch.equal(counts, counts.floor())


# Random words and keys


def correlation(first: Tensor, second: Tensor) -> float:
    """Return Pearson's correlation in units of its standard error."""
    a, b = first.flatten().double(), second.flatten().double()
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    return float((a * b).mean()) * math.sqrt(len(a))


@pytest.mark.parametrize("rate", [0.02, 2.0, 50.0])
@pytest.mark.parametrize("lag", [1, 2, 3, 64, 255, 4096, 65_536])
def test_pixels_are_independent(rate: float, lag: int) -> None:
    counts = drawn(rate, 300_000, keys_of(1))
    assert abs(correlation(counts[:, lag:], counts[:, :-lag])) < 4
    spread_out = torch.square(counts - rate)
    assert abs(correlation(spread_out[:, lag:], spread_out[:, :-lag])) < 4


@pytest.mark.parametrize("rate", [0.02, 2.0, 50.0])
def test_steps_samples_seeds_and_images_are_independent(rate: float) -> None:
    image, other = hash_counts(observed(seed=0)), hash_counts(observed(seed=1))
    reference = drawn(rate, 100_000, keys_of(counts=image))
    others = [{"counts": other}]
    others += [{name: number, "counts": image} for name in ("seed", "sample", "step") for number in (1, 2, 3, 64)]
    others += [{"seed": number, "counts": image} for number in (1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)]
    for settings_ in others:
        counts = drawn(rate, 100_000, keys_of(**settings_))
        assert abs(correlation(counts, reference)) < 4
        assert abs(correlation(torch.square(counts - rate), torch.square(reference - rate))) < 4
        # nor are they the same numbers, moved by a pixel
        assert abs(correlation(counts[:, 1:], reference[:, :-1])) < 4


def test_the_two_words_of_a_pixel_are_independent_and_uniform() -> None:
    first, second = random_words(keys_of(3), torch.arange(400_000))
    assert abs(correlation(first, second)) < 4
    assert abs(correlation(first & 0xFF, second & 0xFF)) < 4
    for words in (first, second):
        assert words.min() >= 0
        assert words.max() < 1 << 32
        for shift in (0, 8, 16, 24):
            counted = torch.bincount((words[0] >> shift) & 0xFF, minlength=256).double()
            assert two_sided(float((counted - 1562.5).square().sum() / 1562.5), 255) > 1e-3


def test_the_sign_of_a_step_tells_nothing_of_its_photons() -> None:
    keys = keys_of(counts=hash_counts(torch.arange(4000.0).reshape(-1, 1, 1, 1)))
    # three pixels: a change counts against the neighbours, and a box is odd
    zero = torch.zeros(4000, 1, 1, 3)
    tilted = zero + torch.tensor([0.0, 0.1, 0.0])
    growth, now = torch.ones(4000, dtype=torch.float64), torch.ones(4000, dtype=torch.float64)
    sign = restore_variance(tilted, zero, growth, now, keys)[:, 1] - 1
    assert set(torch.sign(sign).tolist()) == {-1.0, 1.0}
    assert abs(float(torch.sign(sign).sum())) < 4 * math.sqrt(4000)
    for pixel in range(3):
        rate = torch.ones(4000, 1, dtype=torch.float64)
        assert abs(correlation(poisson(rate, keys, torch.tensor([pixel]))[:, 0], sign)) < 4


def test_mixing_is_one_to_one() -> None:
    # every step of it can be undone
    x = torch.randint(0, 1 << 32, (10_000,), generator=torch.Generator().manual_seed(0))
    y = [int(value) for value in mix(x)]
    for shift, factor in ((15, 0x735A2D97), (15, 0x21F0AAAD)):
        undone = []
        for value in y:
            value ^= (value >> shift) ^ (value >> 2 * shift)
            undone.append(value * pow(factor, -1, 1 << 32) & 0xFFFFFFFF)
        y = undone
    assert [value ^ (value >> 16) for value in y] == x.tolist()


def test_pixel_numbers_may_be_huge() -> None:
    keys, size = keys_of(2), 100_000
    reference = drawn(3.0, size, keys)
    for start in (1 << 31, (1 << 32) - size // 2, 1 << 32, 1 << 40):
        counts = drawn(3.0, size, keys, start)
        assert float(counts.mean()) == pytest.approx(3, abs=4 * math.sqrt(3 / size))
        assert float(counts.var()) == pytest.approx(3, rel=0.03)
        assert abs(correlation(counts, reference)) < 4
    # a pixel's number decides alone, whatever comes before it
    assert torch.equal(drawn(3.0, 10, keys, (1 << 32) + 5), drawn(3.0, 20, keys, (1 << 32) - 5)[:, 10:])


# Hashes of images


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 70_000), min_size=2, max_size=30), data=st.data())
def test_every_count_matters(counts: list[int], data: st.DataObject) -> None:
    image = torch.tensor(counts, dtype=torch.float32)[None, None, None]
    keys = hash_counts(image)
    pixel = data.draw(st.integers(0, len(counts) - 1))
    more = image.clone()
    more[..., pixel] += 1
    assert (hash_counts(more) != keys).all()
    other = data.draw(st.integers(0, len(counts) - 1).filter(lambda index: index != pixel))
    moved = more.clone()
    moved[..., other] -= 1
    assert (hash_counts(moved) != keys).all()
    assert (hash_counts(torch.cat([image, torch.zeros(1, 1, 1, 1)], 3)) != keys).all()


def test_keys_of_similar_images_do_not_collide() -> None:
    # one photon anywhere in a dark image, and two in one pixel
    single = torch.eye(1024).reshape(-1, 1, 32, 32)
    keys = torch.cat([hash_counts(single), hash_counts(2 * single), hash_counts(single + single.roll(1, 0))])
    assert len(torch.unique(keys, dim=0)) == len(keys)
    assert len(torch.unique(keys[:, 0])) >= len(keys) - 1
    assert abs(correlation(keys[:, 0], keys[:, 1])) < 4
