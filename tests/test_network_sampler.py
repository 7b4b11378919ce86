from __future__ import annotations

import math
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fixtures_model import random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import uniform_filter
from torch import Tensor

import gap_bioimage.network as source
from gap_bioimage.config import SamplingConfig
from gap_bioimage.export.weights import without_debug_records
from gap_bioimage.inference.climb import Climb
from gap_bioimage.network import (
    PhotonDenoiser,
    PosteriorSampler,
    accumulate,
    brightest_mean,
    conserve_photons,
    count_keys,
    draw_keys,
    equal_root_step,
    geometric_step,
    mix,
    photon_budget,
    poisson,
    random_words,
    spread,
    total_photons,
)

if TYPE_CHECKING:
    from pathlib import Path

OLD_PYTHON = shutil.which("python3", path=os.defpath) or ""  # the system's
PIECE = 21_000  # pixels drawn at a time: they stay in the processor's cache
RATES = [0.001, 0.01, 0.1, 1.0, 5.0, 11.9, 12.1, 17.9, 18.1, 20.0, 50.0, 100.0, 300.0, 1000.0, 5000.0]
NOTHING = count_keys(torch.zeros(1, 1, 4, 4))


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


def test_tiny_rates_add_up() -> None:
    rate, size = 1e-6, 10_000_000
    total = float(drawn(rate, size, keys_of()).sum())
    assert min(stats.poisson.cdf(total, rate * size), stats.poisson.sf(total - 1, rate * size)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "images"), [(1e-9, 20), (1e-8, 20), (1e-7, 10), (1e-6, 10)])
def test_tiny_rates_add_up_over_many_images(rate: float, images: int) -> None:
    size = 10_000_000
    total = sum(float(drawn(rate, size, keys_of(seed)).sum()) for seed in range(images))
    mean = rate * size * images
    assert min(stats.poisson.cdf(total, mean), stats.poisson.sf(total - 1, mean)) > 1e-3


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
    image, other = count_keys(observed(seed=0)), count_keys(observed(seed=1))
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
    keys = keys_of(counts=count_keys(torch.arange(4000.0).reshape(-1, 1, 1, 1)))
    zero = torch.zeros(4000, 1, 1, 2)
    tilted = zero + torch.tensor([0.0, 0.1])
    growth, now = torch.ones(4000, dtype=torch.float64), torch.ones(4000, dtype=torch.float64)
    sign = spread(tilted, zero, growth, now, keys)[:, 1] - 1
    assert abs(float(torch.sign(sign).sum())) < 4 * math.sqrt(4000)
    for pixel in range(3):
        rate = torch.ones(4000, 1, dtype=torch.float64)
        assert abs(correlation(poisson(rate, keys, torch.tensor([pixel]))[:, 0], sign)) < 4


def test_mixing_is_one_to_one() -> None:
    for start in (0, (1 << 32) - 1_000_000, 1_234_567_890):
        mixed = mix(torch.arange(start, start + 1_000_000))
        assert len(torch.unique(mixed)) == 1_000_000
        assert mixed.min() >= 0
        assert mixed.max() < 1 << 32
    # and in general, because every step of it can be undone
    x = torch.randint(0, 1 << 32, (10_000,), generator=torch.Generator().manual_seed(0))
    y = [int(value) for value in mix(x)]
    for shift, factor in ((15, 0x735A2D97), (15, 0x21F0AAAD)):
        undone = []
        for value in y:
            value ^= (value >> shift) ^ (value >> 2 * shift)
            undone.append(value * pow(factor, -1, 1 << 32) & 0xFFFFFFFF)
        y = undone
    assert [value ^ (value >> 16) for value in y] == x.tolist()


def test_mixing_flips_half_of_the_bits() -> None:
    x = torch.randint(0, 1 << 32, (20_000,), generator=torch.Generator().manual_seed(1))
    bits = torch.arange(32)
    for bit in range(32):
        flipped = (torch.bitwise_xor(mix(x), mix(torch.bitwise_xor(x, torch.tensor(1 << bit))))[:, None] >> bits) & 1
        # a standard error is 0.0035
        assert (flipped.double().mean(0) - 0.5).abs().max() < 0.02


def test_draws_repeat() -> None:
    counts = count_keys(observed())
    one, other = (drawn(4.0, 1000, keys_of(7, 3, 5, counts)) for _ in range(2))
    assert torch.equal(one, other)
    assert len(torch.unique(one)) > 5


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
@given(
    counts=st.lists(st.integers(0, 70_000), min_size=2, max_size=30),
    data=st.data(),
)
def test_every_count_matters(counts: list[int], data: st.DataObject) -> None:
    image = torch.tensor(counts, dtype=torch.float32)[None, None, None]
    keys = count_keys(image)
    pixel = data.draw(st.integers(0, len(counts) - 1))
    more = image.clone()
    more[..., pixel] += 1
    assert (count_keys(more) != keys).all()
    other = data.draw(st.integers(0, len(counts) - 1).filter(lambda index: index != pixel))
    moved = more.clone()
    moved[..., other] -= 1
    assert (count_keys(moved) != keys).all()
    assert (count_keys(torch.cat([image, torch.zeros(1, 1, 1, 1)], 3)) != keys).all()


def test_keys_of_similar_images_do_not_collide() -> None:
    # one photon anywhere in a dark image, and two in one pixel
    single = torch.eye(1024).reshape(-1, 1, 32, 32)
    keys = torch.cat([count_keys(single), count_keys(2 * single), count_keys(single + single.roll(1, 0))])
    assert len(torch.unique(keys, dim=0)) == len(keys)
    assert len(torch.unique(keys[:, 0])) >= len(keys) - 1
    assert abs(correlation(keys[:, 0], keys[:, 1])) < 4


@pytest.mark.parametrize("shape", [(8, 1, 5, 7), (8, 2, 3, 5, 7)])
def test_hashes_do_not_depend_on_batch_mates(shape: tuple[int, ...]) -> None:
    images = observed(shape)
    images[1] *= 1e6
    images[2] = 0
    keys = count_keys(images)
    for item in range(8):
        assert torch.equal(keys[item : item + 1], count_keys(images[item : item + 1]))
    assert len(torch.unique(keys[:, 0])) == 8
    numbers = torch.arange(8)
    steps = draw_keys(keys, 5, numbers, 2)
    for item in range(8):
        one = slice(item, item + 1)
        assert torch.equal(steps[one], draw_keys(keys[one], 5, numbers[one], 2))
        alone, index = doubles(observed((1, 100), 5.0)), torch.arange(100)
        together = poisson(alone.expand(8, -1), steps, index)
        assert torch.equal(together[one], poisson(alone, steps[one], index))


def test_the_whole_seed_matters() -> None:
    seeds = [*range(10), *((1 << bit) + 1 for bit in range(10, 63)), (1 << 63) - 1]
    keys = torch.cat([keys_of(seed, counts=count_keys(observed())) for seed in seeds])
    assert len(torch.unique(keys[:, 0])) == len(torch.unique(keys[:, 1])) == len(seeds)


# Schedules and budgets

photon_numbers = st.floats(1, 1e9)


@settings(max_examples=100, deadline=None)
@given(start=photon_numbers, gain=st.floats(1, 1e6), steps=st.integers(1, 60))
def test_equal_steps_in_the_inverse_root(start: float, gain: float, steps: int) -> None:
    first, stop = doubles([start]), doubles([start * gain])
    now = first
    for step in range(steps):
        now = now + equal_root_step(step, steps, first, stop, now)
        expected = start / (1 - (step + 1) / steps * (1 - math.sqrt(1 / gain))) ** 2
        assert float(now) == pytest.approx(expected, rel=1e-6)
    assert float(now) == pytest.approx(start * gain, rel=1e-6)


def test_equal_steps_never_remove_photons_and_do_nothing_without_room() -> None:
    start, stop = doubles([100, 100, 0, 100]), doubles([100, 1e4, 0, 50])
    now = doubles([100, 5e3, 0, 100])
    added = [equal_root_step(step, 12, start, stop, now) for step in range(12)]
    assert all((value >= 0).all() for value in added)
    for image in (0, 2, 3):
        assert all(float(value[image]) == 0 for value in added)
    # more than planned has come already: wait, then go on from there
    assert float(added[0][1]) == 0
    assert float(added[-1][1]) == pytest.approx(5e3)


def test_each_image_has_its_own_steps() -> None:
    start, stop, now = doubles([10, 1e5, 0, 3]), doubles([1e3, 1e6, 50, 300]), doubles([20, 3e5, 7, 299])
    for item in range(4):
        one = slice(item, item + 1)
        alone = start[one], stop[one], now[one]
        assert torch.equal(equal_root_step(4, 9, start, stop, now)[one], equal_root_step(4, 9, *alone))
        assert torch.equal(geometric_step(0.1, stop, now)[one], geometric_step(0.1, stop[one], now[one]))


@settings(max_examples=100, deadline=None)
@given(now=st.floats(0, 1e9), stop=st.floats(1, 1e9), beta=st.floats(1e-3, 3))
def test_geometric_steps_are_those_of_the_paper(now: float, stop: float, beta: float) -> None:
    added = float(geometric_step(beta, doubles([stop]), doubles([now])))
    if now >= 0.99 * stop:
        assert added == 0
    else:
        assert added == pytest.approx(min(max(beta * now, 1), stop - now), rel=1e-12)


def test_geometric_steps_end_at_the_stop() -> None:
    now, stop = doubles([0, 5, 1e4]), doubles([1e3, 1e5, 1e4])
    steps = 0
    while bool((added := geometric_step(0.1, stop, now)).any()):
        now, steps = now + added, steps + 1
    assert (now <= stop).all()
    assert (now >= 0.99 * stop).all()
    # 5, one by one to 10, then 10 % each to 1e5
    assert steps == 5 + math.ceil(math.log(0.99 * 1e4) / math.log(1.1))


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    window=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_brightest_window_is_scipys(sizes: list[int], window: int, seed: int) -> None:
    image = observed((2, 2, *sizes), 3.0, seed)
    box = [min(2 * window + 1, size - 1 + size % 2) for size in sizes]
    means = [uniform_filter(item.mean(0).astype(float), box, mode="constant").max() for item in image.numpy()]
    result = brightest_mean(image, [2 * window + 1] * len(sizes))
    np.testing.assert_allclose(result.numpy(), means, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 2, 2), (2, 3, 5, 4), (1, 1, 100, 70), (1, 1, 3, 70, 2)])
def test_a_constant_image_is_as_bright_as_its_pixels(shape: tuple[int, ...]) -> None:
    mean = brightest_mean(torch.full(shape, 7.0), [63] * (len(shape) - 2))
    torch.testing.assert_close(mean, torch.full((shape[0],), 7.0), rtol=1e-6, atol=0)


def test_small_images_are_one_window() -> None:
    image = observed((3, 1, 9, 7))
    torch.testing.assert_close(brightest_mean(image, [63, 63]), image.mean((1, 2, 3)), rtol=1e-6, atol=0)


def test_budgets_belong_to_each_image() -> None:
    images = torch.stack([torch.full((1, 9, 9), value) for value in (0.0, 0.1, 4.0, 5.0, 80.0)])
    budget = photon_budget(images, 100.0, 10.0, [5, 5])
    # nothing stays nothing; 20 dB; up to the range; up to the range; already beyond it
    torch.testing.assert_close(budget, doubles([0, 810, 810, 810, 6480]), rtol=1e-5, atol=0)
    for item in range(5):
        assert torch.equal(photon_budget(images[item : item + 1], 100.0, 10.0, [5, 5]), budget[item : item + 1])
    unlimited = photon_budget(images, 100.0, math.inf, [5, 5])
    torch.testing.assert_close(unlimited, 100 * total_photons(images))


def test_totals_are_exact() -> None:
    image = torch.full((2, 1, 1000, 1000), 16_777_215.0)
    image[1] = 1
    assert total_photons(image).tolist() == [16_777_215.0 * 1e6, 1e6]


# Restored variance


def both_signs(log_rate: Tensor, previous: Tensor, growth: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    found: dict[bool, Tensor] = {}
    for seed in range(100):
        keys = keys_of(seed).expand(len(log_rate), -1)
        minus = bool(mix(keys[0, :1]) & 1)
        found.setdefault(minus, spread(log_rate, previous, growth, now, keys))
    return found[False], found[True]


@settings(max_examples=60, deadline=None)
@given(
    size=st.floats(0.01, 300),
    growth=st.floats(1e-9, 50),
    photons=st.floats(0, 1e6),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
)
def test_spread_is_one_over_both_signs(size: float, growth: float, photons: float, shift: float, seed: int) -> None:
    log_rate, previous = size * noise((3, 1, 4, 6), seed) + shift, size * noise((3, 1, 4, 6), seed + 1)
    growths, now = doubles([growth] * 3), doubles([photons] * 3)
    plus, minus = both_signs(log_rate, previous, growths, now)
    torch.testing.assert_close(plus + minus, torch.full_like(plus, 2), rtol=0, atol=1e-12)
    for factor in (plus, minus):
        assert torch.isfinite(factor).all()
        assert (factor >= 0).all()


def test_spread_is_the_last_change() -> None:
    log_rate, previous = 0.02 * noise((2, 1, 4, 6), 1), 0.02 * noise((2, 1, 4, 6), 2)
    growth = doubles([0.16, 4.0])
    plus, minus = both_signs(log_rate + 3, previous - 40, growth, doubles([10, 10]))
    after, before = (torch.softmax(x.double().flatten(1), 1) for x in (log_rate, previous))
    expected = (after - before) / after / torch.sqrt(growth)[:, None]
    torch.testing.assert_close(plus, 1 + expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(minus, 1 - expected, rtol=0, atol=1e-5)
    # so that no light is made or lost
    torch.testing.assert_close((after * plus).sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_spread_stays_within_the_pixels_own_error() -> None:
    log_rate, previous = noise((1, 1, 8, 8), 1), noise((1, 1, 8, 8), 2)
    for photons in (0.0, 10.0, 1e5):
        plus, _ = both_signs(log_rate, previous, doubles([0.01]), doubles([photons]))
        bound = 1 / torch.sqrt(1 + photons * torch.softmax(log_rate.double().flatten(1), 1))
        assert ((plus - 1).abs() <= bound + 1e-12).all()
        assert ((plus - 1).abs() > 0.99 * bound).double().mean() > 0.5


def test_without_growth_nothing_is_restored() -> None:
    log_rate, previous = noise((3, 2, 4, 4), 1), noise((3, 2, 4, 4), 2)
    growth = doubles([0, 0.5, -0.5])
    factor = spread(log_rate, previous, growth, doubles([5, 5, 5]), keys_of().expand(3, -1))
    assert torch.equal(factor[0], torch.ones(32, dtype=torch.float64))
    assert torch.equal(factor[2], torch.ones(32, dtype=torch.float64))
    assert not torch.equal(factor[1], torch.ones(32, dtype=torch.float64))
    same = spread(log_rate, log_rate + 5, doubles([1, 1, 1]), doubles([5, 5, 5]), keys_of().expand(3, -1))
    torch.testing.assert_close(same, torch.ones(3, 32, dtype=torch.float64), rtol=0, atol=1e-6)


def test_spread_does_not_depend_on_batch_mates() -> None:
    log_rate, previous = noise((8, 1, 5, 5), 1), noise((8, 1, 5, 5), 2)
    log_rate[1] *= 1e4
    previous[2] *= 1e4
    growth, now = doubles([0.1, 3, 1, 0, 1e-8, 40, 0.2, 0.3]), doubles([5, 1e9, 3, 0, 4, 5, 6, 7])
    keys = draw_keys(count_keys(observed((8, 1, 5, 5))), 1, torch.arange(8), 1)
    together = spread(log_rate, previous, growth, now, keys)
    for item in range(8):
        one = slice(item, item + 1)
        assert torch.equal(together[one], spread(log_rate[one], previous[one], growth[one], now[one], keys[one]))


# One step


def ones_like(photons: Tensor) -> Tensor:
    return torch.ones(len(photons), 1, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 1, 6, 7), (3, 2, 3, 4, 5)])
def test_finished_images_stay(shape: tuple[int, ...]) -> None:
    photons = observed(shape)
    keys = draw_keys(count_keys(photons), 0, torch.arange(3), 0)
    grown = accumulate(photons, noise(shape), doubles([0, 1e4, 0]), keys, ones_like(photons))
    assert torch.equal(grown[0], photons[0])
    assert torch.equal(grown[2], photons[2])
    assert (grown[1] > photons[1]).all()
    assert (grown >= photons).all()
    assert grown.dtype == torch.float32


@pytest.mark.parametrize("n_new", [0.3, 8.0, 3000.0])
def test_added_photons_are_poisson_and_fall_where_they_should(n_new: float) -> None:
    size = 4000
    photons = torch.zeros(size, 1, 4, 8)
    log_rate = (1.5 * noise((1, 1, 4, 8), 3) + 50).expand_as(photons)
    keys = draw_keys(count_keys(photons[:1]).expand(size, -1), 0, torch.arange(size), 0)
    added = accumulate(photons, log_rate, doubles([n_new] * size), keys, ones_like(photons)).double()
    total = added.flatten(1).sum(1)
    assert float(total.mean()) == pytest.approx(n_new, abs=4 * math.sqrt(n_new / size))
    dispersion = float((total - n_new).square().sum()) / n_new
    # the sum of squares of Poisson numbers has the variance 2 + 1 / mean
    assert dispersion == pytest.approx(size, abs=4 * math.sqrt(size * (2 + 1 / n_new)))
    expected = size * n_new * torch.softmax(log_rate[0].double().flatten(), 0)
    chi = float(((added.sum(0).flatten() - expected).square() / expected).sum())
    assert two_sided(chi, 32) > 1e-3


def test_batch_mates_change_nothing() -> None:
    # neither the photons of the others, nor their log-rates, count
    shape = (8, 1, 12, 12)
    photons, log_rate = observed(shape), 2 * noise(shape, 1)
    photons[1] *= 1e5
    photons[2] = 0
    log_rate[3] = 1e4 * noise((1, 12, 12), 2)
    log_rate[4] += 3e4
    log_rate[5] -= 3e4
    now = total_photons(photons)
    stop = 100 * now + 50
    keys = draw_keys(count_keys(photons), 0, torch.arange(8), 0)
    factor = spread(log_rate, noise(shape, 3), doubles([0.2] * 8), now, keys)
    together = accumulate(photons, log_rate, geometric_step(0.1, stop, now), keys, factor)
    for item in range(8):
        one = slice(item, item + 1)
        n_new = geometric_step(0.1, stop[one], total_photons(photons[one]))
        alone = accumulate(photons[one], log_rate[one], n_new, keys[one], factor[one])
        assert torch.equal(together[one], alone)
        added, wanted = float(total_photons(alone - photons[one])), max(1.0, 0.1 * float(now[item]))
        # of each image's own photons, and at both ends of the batch alike; twice for the factor's sign
        assert abs(added - wanted) < 8 * math.sqrt(wanted) + 0.5 * wanted


def test_dim_images_keep_their_light_beside_huge_log_rates() -> None:
    photons, log_rate = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    log_rate[0] = 5000
    keys = draw_keys(count_keys(photons), 0, torch.arange(2), 0)
    added = accumulate(photons, log_rate, doubles([1e4, 1e4]), keys, ones_like(photons))
    assert added.flatten(1).sum(1).numpy() == pytest.approx([1e4, 1e4], rel=0.04)


def test_large_images_in_pieces_are_as_in_one() -> None:
    side = 2049
    assert side * side > 1 << 22
    photons = torch.zeros(1, 1, side, side)
    log_rate = noise((1, 1, side, side), 4)
    keys = draw_keys(NOTHING, 3, torch.zeros(1, dtype=torch.long), 2)
    n_new = doubles([2.0 * side * side])
    factor = 1 + 0.5 * torch.sign(log_rate.flatten(1)).roll(1, 1).double()
    grown = accumulate(photons, log_rate, n_new, keys, factor).flatten(1)
    rate = torch.softmax(log_rate.double().flatten(1), 1) * n_new * factor
    for start in (0, (1 << 22) - 1000, side * side - 2000):
        index = torch.arange(start, start + 2000)
        assert torch.equal(grown[:, index], poisson(rate[:, index], keys, index).float())


# The module of exported models

SMALL: dict[str, Any] = {"depth": 2, "start_filts": 4, "levels": 3}
SIZES: dict[int, tuple[int, ...]] = {2: (13, 10), 3: (5, 9, 10)}


def sampler_of(dim: int = 2, channels: int = 1, **more: Any) -> PosteriorSampler:
    settings_ = {"n_samples": 3, "n_steps": 4, "seed": 7, "gain": 100.0, "brightest": 1e6} | more
    sampler = PosteriorSampler(box_px=[5] * dim, window_px=[7] * dim, dim=dim, channels=channels, **settings_, **SMALL)
    network = random_network(1, dim=dim, channels=channels, **SMALL)
    sampler.network.load_state_dict(network.state_dict())
    return sampler.eval().requires_grad_(False)


def counts_of(dim: int = 2, channels: int = 1, batch: int = 1, mean: float = 3.0, seed: int = 0) -> Tensor:
    return observed((batch, channels, *SIZES[dim]), mean, seed)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_scripted_equals_eager(dim: int, channels: int) -> None:
    sampler = sampler_of(dim, channels)
    script = torch.jit.script(sampler)
    # twice: the second call runs what the profiler specialised
    for seed in (0, 0, 1):
        photons = counts_of(dim, channels, batch=2, seed=seed)
        assert torch.equal(script(photons), sampler(photons))
        assert torch.equal(script.sample(photons, 2, 3, 1 << 40), sampler.sample(photons, 2, 3, 1 << 40))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("n_samples", [1, 3])
def test_channels_hold_mean_deviation_and_samples(dim: int, channels: int, n_samples: int) -> None:
    sampler, photons = sampler_of(dim, channels, n_samples=n_samples), counts_of(dim, channels, batch=2)
    result = sampler(photons)
    assert result.shape == (2, (2 + n_samples) * channels, *SIZES[dim])
    mean, deviation, samples = result.split([channels, channels, n_samples * channels], 1)
    drawn_ = sampler.sample(photons, n_samples, 4, 7)
    assert drawn_.shape == (n_samples, 2, channels, *SIZES[dim])
    for number in range(n_samples):
        assert torch.equal(samples[:, number * channels : (number + 1) * channels], drawn_[number])
    torch.testing.assert_close(mean, drawn_.mean(0))
    expected = drawn_.std(0) if n_samples > 1 else torch.zeros_like(mean)
    torch.testing.assert_close(deviation, expected, rtol=1e-4, atol=1e-5)
    assert (deviation > 0).all() == (n_samples > 1)


@pytest.mark.parametrize("dim", [2, 3])
def test_results_do_not_depend_on_batch_mates(dim: int) -> None:
    sampler = sampler_of(dim, brightest=200.0)
    photons = counts_of(dim, batch=8)
    photons[1] *= 1e4
    photons[2] = 0
    photons[3] *= 10
    together = sampler(photons)
    for item in range(8):
        assert torch.equal(together[item : item + 1], sampler(photons[item : item + 1]))


def test_other_samples_steps_and_seeds() -> None:
    sampler, photons = sampler_of(n_samples=2), counts_of()
    reference = sampler.sample(photons, 5, 4, 7)
    # fewer samples are the first ones of more
    assert torch.equal(sampler.sample(photons, 2, 4, 7), reference[:2])
    assert torch.equal(sampler(photons)[:, 2:].transpose(0, 1), reference[:2, 0])
    for other in (sampler.sample(photons, 5, 5, 7), sampler.sample(photons, 5, 4, 8)):
        assert (other != reference).double().mean() > 0.99
    assert not torch.equal(sampler.sample(photons, 5, 4, 7 + (1 << 32)), reference)
    assert len({float(sample.sum()) for sample in reference}) == 5


def test_fewer_than_one_sample_or_step_is_refused() -> None:
    for wrong in ({"n_samples": 0}, {"n_steps": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="expected at least 1"):
            sampler_of(**wrong)
    sampler, photons = sampler_of(), counts_of()
    for arguments in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="expected at least 1 sample, 1 step and a seed of at least 0"):
            sampler.sample(photons, *arguments)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_nothing_gives_nothing(dim: int, channels: int) -> None:
    photons = torch.zeros(1, channels, *SIZES[dim])
    assert not sampler_of(dim, channels)(photons).any()


@pytest.mark.parametrize("dim", [2, 3])
def test_an_image_beyond_the_trained_range_is_only_denoised(dim: int) -> None:
    sampler, photons = sampler_of(dim, brightest=0.5), counts_of(dim)
    denoiser = PhotonDenoiser([5] * dim, dim=dim, **SMALL)
    denoiser.network.load_state_dict(sampler.network.state_dict())
    mean, deviation, samples = sampler(photons).split([1, 1, 3], 1)
    expected = denoiser.eval()(photons)
    for number in range(3):
        assert torch.equal(samples[:, number : number + 1], expected)
    assert torch.equal(mean, expected)
    assert (deviation == 0).all()


@pytest.mark.parametrize("mean", [0.05, 3.0, 300.0])
def test_samples_have_the_observed_exposure(mean: float) -> None:
    # with a box that covers the image the photons are conserved, but for what the restored variance adds
    sampler = PosteriorSampler(
        box_px=[127, 127], n_samples=20, n_steps=6, seed=1, gain=100.0, brightest=1e6, window_px=[63, 63], **SMALL
    )
    sampler.network.load_state_dict(random_network(1, **SMALL).state_dict())
    photons = observed((1, 1, 64, 64), mean)
    totals = sampler.eval().requires_grad_(False).sample(photons, 20, 6, 1).double().flatten(1).sum(1)
    n = float(photons.sum())
    assert float(totals.mean()) == pytest.approx(n, abs=4 * math.sqrt(n / 20))
    assert ((totals - n).abs() < 4 * math.sqrt(n)).all()


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1e3, 1e7]),
    weights=st.sampled_from([0.1, 1.0, 30.0]),
    brightest=st.sampled_from([1e-3, 1.0, 1e5]),
    seed=st.integers(0, 99),
)
def test_finite_counts_give_finite_results(
    size: tuple[int, int], scale: float, weights: float, brightest: float, seed: int
) -> None:
    sampler = sampler_of(brightest=brightest)
    for parameter in sampler.network.parameters():
        parameter *= weights
    photons = scale * observed((1, 1, *size), 1.0, seed) - (seed % 2)
    result = sampler(photons)
    assert torch.isfinite(result).all()
    assert (result >= 0).all()


def test_negative_counts_are_none() -> None:
    sampler, photons = sampler_of(), counts_of()
    assert torch.equal(sampler(torch.where(photons > 0, photons, -3.0)), sampler(photons))


@pytest.mark.parametrize(("dim", "n_steps"), [(2, 12), (3, 3)])
def test_the_graph_climbs_as_the_driver_does(dim: int, n_steps: int) -> None:
    sampler = sampler_of(dim, n_steps=n_steps)
    photons = counts_of(dim)
    stop = photon_budget(photons, 100.0, 1e6, [7] * dim)
    samples = sampler.sample(photons, 3, n_steps, 7)
    for number in range(3):
        climb = Climb(photons, torch.tensor([number]), stop, math.inf, SamplingConfig(steps=n_steps), 7)
        end = climb.run(sampler.network)
        assert end.step == n_steps
        now = total_photons(end.photons)
        keys = keys_of(7, number, n_steps, count_keys(photons))
        factor = spread(end.log_rate, end.previous, end.growth, now, keys).float().reshape(photons.shape)
        rate = conserve_photons(end.photons, end.log_rate, [5] * dim) * factor
        # equal to the last bit only if every photon fell into the same pixel
        assert torch.equal(samples[number], rate * (total_photons(photons) / now).float())


OLD_SCRIPT = """
import sys, torch
for name in sys.argv[2:]:
    sampler, photons = torch.jit.load(f"{sys.argv[1]}/{name}.pt"), torch.load(f"{sys.argv[1]}/{name}.counts")
    with torch.no_grad():
        results = [sampler(photons) for _ in range(2)] + [sampler.sample(photons, 2, 3, 1 << 40)]
    torch.save(results, f"{sys.argv[1]}/{name}.result")
"""


def test_archives_run_in_an_older_torch(tmp_path: Path) -> None:
    try:
        probe = subprocess.run(
            [OLD_PYTHON, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        pytest.skip("the system has no Python")

    def version(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".")[:2])

    if probe.returncode or version(probe.stdout) >= version(torch.__version__):
        pytest.skip("no older torch")
    expected = {}
    for dim in (2, 3):
        sampler, name = sampler_of(dim, channels=2), str(dim)
        torch.jit.save(torch.jit.script(sampler), tmp_path / "full.pt")
        (tmp_path / f"{name}.pt").write_bytes(without_debug_records((tmp_path / "full.pt").read_bytes()))
        photons = counts_of(dim, channels=2, batch=2)
        torch.save(photons, tmp_path / f"{name}.counts")
        expected[name] = [sampler(photons)] * 2 + [sampler.sample(photons, 2, 3, 1 << 40)]
    subprocess.run([OLD_PYTHON, "-c", OLD_SCRIPT, str(tmp_path), *expected], check=True, timeout=120)
    for name, results in expected.items():
        for old, new in zip(torch.load(tmp_path / f"{name}.result", weights_only=True), results, strict=True):
            # convolutions round otherwise, and now and then a photon falls elsewhere, in one of many samples
            far = (old - new).abs() > 1e-4 * new + 1.5e-4
            changed = far.flatten(2).any(2)  # by item and channel, or by sample and item
            assert changed.double().mean() < 0.4
            relative = torch.sqrt((old - new).double().square().sum() / new.double().square().sum())
            assert relative < 0.02
