"""Sizes that zips declare, and the scores."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from gap_bioimage.exporting import measures
from gap_bioimage.exporting.measures import Scores, Sizes, score_on_halves
from gap_bioimage.inference.trained_range import warn_of_headroom
from gap_bioimage.simulation import simulate

AXES = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(0, 12)), min_size=2, max_size=3)


@given(AXES)
def test_sizes_hold_two_halos_and_a_block(axes: list[tuple[int, int]]) -> None:
    step, halo = zip(*((s, s * n) for s, n in axes), strict=True)
    sizes = Sizes.of(step, halo)
    assert (sizes.pool_px, sizes.halo_px, set(sizes.step_px)) == (step, halo, {1})
    assert Sizes.of(step, halo, any_size=False).step_px == step
    thin, deep = (Sizes.of(step, halo, depth=sizes.min_px[0] - less) for less in (1, 0))
    assert deep == sizes and thin.min_px == (step[0], *sizes.min_px[1:]) and thin.halo_px == (0, *halo[1:])
    for low, s, h in zip(sizes.min_px, step, halo, strict=True):
        assert low % s == 0
        assert low > 2 * h
        assert 2 * h <= 0.75 * low + 1
        assert low <= 2 * h + max(16, 2 * h // 3) + 2 * s


def test_the_squared_error_is_that_against_the_truth() -> None:
    photons, truth = simulate(2, (256, 256), photons=8.0, seed=0)
    wrong = truth.values / 2 + 0.5  # of half of the photons
    scores = score_on_halves(lambda seen: torch.from_numpy(wrong)[None, None], photons.values[None])
    assert scores.squared_error == pytest.approx(0.25, abs=0.06)
    best = min(
        float(np.square(ndimage.gaussian_filter(photons.values.astype(float), sigma) - truth.values).mean())
        for sigma in (0.5, 0.7, 1.0, 1.4, 2.0)
    )
    assert scores.gaussian_error == pytest.approx(best / 2, rel=0.3)  # half of the photons: half of the noise
    assert scores.verdict.startswith("is ") and " below " in scores.verdict and " dB" in scores.verdict
    assert scores.pseudo_psnr_db == pytest.approx(10 * np.log10(photons.values.mean() / 2), abs=0.1)


def test_channels_and_depth_are_not_blurred_into_each_other() -> None:
    stack = np.zeros((2, 32, 32), np.int64)
    stack[0] = np.random.default_rng(0).poisson(40, (32, 32))
    # with channels kept apart, a filter of any width knows that the second one is empty
    assert score_on_halves(lambda photons: photons, stack).gaussian_error < 2


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (Scores(0.9, 0.6, 0.01, 2.5), "is 50% above that of"),
        (Scores(0.3, 0.6, 0.01, 2.5), "is 50% below that of the best Gaussian filter, 3.0 dB"),
        (Scores(0.45, 0.6, 0.1, 2.5), "with so few held-out photons chance alone makes 33%"),
        (Scores(-0.65, 0.1, 0.05, 2.5), "is not known"),
        (Scores(0.3, 0.6, 0.01, 2.5, correlated=True), "is not known"),
        (score_on_halves(lambda photons: photons, np.zeros((1, 16, 16), np.int64)), "is not measurably different"),
    ],
)
def test_verdicts_compare_with_the_best_filter(scores: Scores, told: str) -> None:
    assert told in scores.verdict


# Samples


def sampler_to(brightest: float, **more: Any) -> Any:
    return SimpleNamespace(brightest=brightest, least_gain=1.0, **more)


@pytest.mark.parametrize(("brightest", "room"), [(300.0, 20.0), (30.0, 10.0), (6.0, 3.01), (3.0, 0.0), (1.0, 0.0)])
def test_room_is_what_the_trained_range_leaves_and_little_is_warned_about(brightest: float, room: float) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = measures.headroom_db(np.full((1, 80, 80), 3), sampler_to(brightest))
        warn_of_headroom(found, "in images like the example")
    assert found == pytest.approx(room, abs=0.01)
    assert len(caught) == (room < 6)


def test_the_spread_of_samples_is_judged_by_the_true_error() -> None:
    """A network that answers flat, on a scene that is not: the other half knows how wrong that is."""
    rng = np.random.default_rng(0)
    scene = np.where(np.arange(256)[:, None] % 2 == 0, 6.0, 2.0) * np.ones((256, 256))
    counts = rng.poisson(scene)[None]

    def sample(photons: torch.Tensor, n_samples: int, n_steps: int, seed: int) -> torch.Tensor:
        return float(photons.mean()) + torch.from_numpy(rng.normal(0, 0.7, (n_samples, *photons.shape)))

    sampler = sampler_to(20.0, sample=sample, n_samples=2, n_steps=3, seed=0)
    scores = measures.score_samples(sampler, lambda photons: torch.full_like(photons, float(photons.mean())), counts)
    assert scores.n_samples == 4
    assert scores.variance == pytest.approx(0.7**2, rel=0.02)
    assert scores.squared_error == pytest.approx(1.0, abs=4 * scores.standard_error)  # halves of 6 and 2: 2 +- 1
    assert scores.standard_error < 0.05
    assert scores.headroom_db == pytest.approx(10.0, abs=0.3)
