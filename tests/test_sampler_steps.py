"""Schedules, budgets, restored variance and the sampling step."""

import math

import numpy as np
import pytest
import torch
from draws import NOTHING, doubles, draw_keys, keys_of, noise, observed, two_sided
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import uniform_filter
from torch import Tensor

from gap_bioimage.sampler import (
    CUT,
    PosteriorSampler,
    accumulate,
    brightest_mean,
    equal_root_step,
    geometric_step,
    hash_counts,
    mix,
    photon_budget,
    poisson,
    restore_variance,
    total_photons,
)

# Schedules and budgets

photon_numbers = st.floats(1, 1e9)


@settings(max_examples=100, deadline=None)
@given(start=photon_numbers, gain=st.floats(1, 1e6), steps=st.integers(1, 60))
def test_equal_steps_in_the_inverse_root(start: float, gain: float, steps: int) -> None:
    first, stop = doubles([start]), doubles([start * gain])
    now = first
    for step in range(steps):
        now = now + equal_root_step(torch.tensor(step), steps, first, stop, now)
        expected = start / (1 - (step + 0.5) / (steps - 0.5) * (1 - math.sqrt(1 / gain))) ** 2
        assert float(now) == pytest.approx(expected, rel=1e-6)
    assert float(now) == pytest.approx(start * gain, rel=1e-6)


def test_equal_steps_never_remove_photons_and_do_nothing_without_room() -> None:
    start, stop = doubles([100, 100, 0, 100]), doubles([100, 1e4, 0, 50])
    now = doubles([100, 5e3, 0, 100])
    added = [equal_root_step(torch.tensor(step), 12, start, stop, now) for step in range(12)]
    assert all((value >= 0).all() for value in added)
    for image in (0, 2, 3):
        assert all(float(value[image]) == 0 for value in added)
    # more than planned has come already: wait, then go on from there
    assert float(added[0][1]) == 0
    assert float(added[-1][1]) == pytest.approx(5e3)


@settings(max_examples=100, deadline=None)
@given(now=st.floats(0, 1e9), stop=st.floats(1, 1e9), beta=st.floats(1e-3, 3))
def test_geometric_steps_are_those_of_the_paper(now: float, stop: float, beta: float) -> None:
    added = float(geometric_step(beta, doubles([stop]), doubles([now])))
    if now >= 0.99 * stop:
        assert added == 0
    else:
        assert added == pytest.approx(min(max(beta * now, 1), stop - now), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=3), window=st.integers(0, 4), seed=st.integers(0, 1000))
def test_brightest_window_is_scipys(sizes: list[int], window: int, seed: int) -> None:
    image = observed((2, 2, *sizes), 3.0, seed)
    box = [min(2 * window + 1, size - 1 + size % 2) for size in sizes]
    means = [uniform_filter(item.mean(0).astype(float), box, mode="constant").max() for item in image.numpy()]
    result = brightest_mean(image, [2 * window + 1] * len(sizes))
    np.testing.assert_allclose(result.numpy(), means, rtol=1e-5)


def test_budgets_belong_to_each_image() -> None:
    images = torch.stack([torch.full((1, 9, 9), value) for value in (0.0, 0.1, 4.0, 5.0, 80.0)])
    budget = photon_budget(images, 100.0, 10.0, [5, 5])
    # nothing stays nothing; 20 dB; up to the range; up to the range; already beyond it
    torch.testing.assert_close(budget, doubles([0, 810, 810, 810, 6480]), rtol=1e-5, atol=0)
    for item in range(5):
        assert torch.equal(photon_budget(images[item : item + 1], 100.0, 10.0, [5, 5]), budget[item : item + 1])
    unlimited = photon_budget(images, 100.0, math.inf, [5, 5])
    torch.testing.assert_close(unlimited, 100 * total_photons(images))


# Restored variance


def both_signs(log_rate: Tensor, previous: Tensor, growth: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
    found: dict[bool, Tensor] = {}
    for seed in range(100):
        keys = keys_of(seed).expand(len(log_rate), -1)
        minus = bool(mix(keys[0, :1]) & 1)
        found.setdefault(minus, restore_variance(log_rate, previous, growth, now, keys))
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


def test_spread_is_the_last_change_against_the_neighbours() -> None:
    log_rate, previous = 0.02 * noise((2, 1, 4, 6), 1), 0.02 * noise((2, 1, 4, 6), 2)
    growth = doubles([0.16, 4.0])
    plus, minus = both_signs(log_rate + 3, previous - 40, growth, doubles([10, 10]))
    after, before = (torch.softmax(x.double().flatten(1), 1) for x in (log_rate, previous))
    # changes that are cut at their deviation keep 0.718 of it
    change = (after - before) / after / torch.sqrt(growth)[:, None] / math.sqrt(1 - 2 * stats.norm.pdf(1))
    for item in range(2):
        share, moved = after[item].numpy().reshape(4, 6), (after * change)[item].numpy().reshape(4, 6)
        # boxes no larger than the image, in odd numbers
        near = [uniform_filter(x, (3, 5), mode="constant") for x in (moved, share)]
        expected = moved / share - near[0] / near[1]
        expected -= (share * expected).sum()
        np.testing.assert_allclose(plus[item].numpy().reshape(4, 6), 1 + expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(minus[item].numpy().reshape(4, 6), 1 - expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 30, 26), (3, 2, 5, 9, 12)])
def test_spread_makes_and_loses_no_light(shape: tuple[int, ...]) -> None:
    log_rate, previous = 0.5 * noise(shape, 1), 0.5 * noise(shape, 2)
    plus, _ = both_signs(log_rate, previous, doubles([0.2] * 3), doubles([1e5, 1e6, 1e7]))
    shares = torch.softmax(log_rate.double().flatten(1), 1)
    torch.testing.assert_close((shares * plus).sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_what_changes_smoothly_is_left_out_and_what_changes_finely_is_bounded() -> None:
    flat, ramp = torch.zeros(1, 1, 120, 120), torch.linspace(-1, 1, 120).expand(1, 1, 120, 120)
    photons = 25.0 * 120 * 120
    bound = 1 / math.sqrt(26) / 0.7184
    smooth, _ = both_signs(flat, flat + 0.05 * ramp, doubles([0.2]), doubles([photons]))
    assert float((smooth.reshape(120, 120)[20:-20, 20:-20] - 1).abs().max()) < 0.02 * bound
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(60, 60)[None, None]
    fine, _ = both_signs(flat, flat + checks, doubles([0.2]), doubles([photons]))
    inner = fine.reshape(120, 120)[20:-20, 20:-20]
    torch.testing.assert_close((inner - 1).abs(), torch.full_like(inner, bound), rtol=0.01, atol=0)


def test_without_growth_nothing_is_restored() -> None:
    log_rate, previous = noise((3, 2, 4, 4), 1), noise((3, 2, 4, 4), 2)
    growth = doubles([0, 0.5, -0.5])
    factor = restore_variance(log_rate, previous, growth, doubles([5, 5, 5]), keys_of().expand(3, -1))
    assert torch.equal(factor[0], torch.ones(32, dtype=torch.float64))
    assert torch.equal(factor[2], torch.ones(32, dtype=torch.float64))
    assert not torch.equal(factor[1], torch.ones(32, dtype=torch.float64))
    same = restore_variance(log_rate, log_rate + 5, doubles([1, 1, 1]), doubles([5, 5, 5]), keys_of().expand(3, -1))
    torch.testing.assert_close(same, torch.ones(3, 32, dtype=torch.float64), rtol=0, atol=1e-6)


# One step


def ones_like(photons: Tensor) -> Tensor:
    return torch.ones(len(photons), 1, dtype=torch.float64)


@pytest.mark.parametrize("n_new", [0.3, 8.0, 3000.0])
def test_added_photons_are_poisson_and_fall_where_they_should(n_new: float) -> None:
    size = 4000
    photons = torch.zeros(size, 1, 4, 8)
    log_rate = (1.5 * noise((1, 1, 4, 8), 3) + 50).expand_as(photons)
    keys = draw_keys(hash_counts(photons[:1]).expand(size, -1), 0, torch.arange(size), 0)
    added = accumulate(photons, log_rate, doubles([n_new] * size), keys, ones_like(photons)).double()
    total = added.flatten(1).sum(1)
    assert float(total.mean()) == pytest.approx(n_new, abs=4 * math.sqrt(n_new / size))
    dispersion = float((total - n_new).square().sum()) / n_new
    # the sum of squares of Poisson numbers has the variance 2 + 1 / mean
    assert dispersion == pytest.approx(size, abs=4 * math.sqrt(size * (2 + 1 / n_new)))
    expected = size * n_new * torch.softmax(log_rate[0].double().flatten(), 0)
    chi = float(((added.sum(0).flatten() - expected).square() / expected).sum())
    assert two_sided(chi, 32) > 1e-3


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


def test_plain_networks_restore_what_their_bound_leaves() -> None:
    log_rate, previous = 0.02 * noise((1, 1, 4, 6), 1), 0.02 * noise((1, 1, 4, 6), 2)
    given = (log_rate, previous, doubles([0.2]), doubles([10]), keys_of())
    more, less = restore_variance(*given) - 1, restore_variance(*given, 1.0) - 1
    torch.testing.assert_close(more, less / CUT, rtol=1e-9, atol=1e-12)
    network = {"depth": 2, "start_filts": 2}
    for anchor, cut in ((True, CUT), (False, 1.0)):
        assert PosteriorSampler([1, 1], 2, 3, 0, 100.0, 10.0, [63, 63], anchor=anchor, **network).cut == cut
