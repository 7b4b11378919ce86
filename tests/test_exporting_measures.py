"""The measured halo: enough for tiles to agree with the whole image, at any brightness; and the scores."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from gap_bioimage.exporting import measures
from gap_bioimage.exporting.measures import EXPOSURES, TOLERANCE, HaloReport, Scores, Sizes, score_on_halves
from gap_bioimage.exporting.weights import denoiser_of
from gap_bioimage.inference.tiling import default_box_px, receptive_field_px
from gap_bioimage.model import load_model
from gap_bioimage.simulation import simulate, simulate_truth

if TYPE_CHECKING:
    from gap_bioimage.network import PhotonDenoiser


@dataclass(frozen=True)
class Case:
    """A trained network, what it was trained on, and its measured halo."""

    denoiser: PhotonDenoiser
    counts: np.ndarray
    report: HaloReport
    sizes: Sizes


@pytest.fixture(scope="module", params=[2, 3], ids="{}d".format)
def measured(request: pytest.FixtureRequest) -> Case:
    trained = request.getfixturevalue(f"trained_{request.param}d")
    model = load_model(trained.run)
    denoiser = denoiser_of(model, default_box_px(receptive_field_px(model.network)))
    counts = np.load(trained.run / "example.npy")
    report = measures.measure_halo(denoiser, counts)
    return Case(denoiser, counts, report, Sizes.of(denoiser.network.step_px, report.halo_px))


def another_image(case: Case, exposure: float) -> torch.Tensor:
    dim = case.denoiser.network.dim
    rate = simulate_truth(dim, [low + (96 if dim == 2 else 16) for low in case.sizes.min_px], seed=9).values  # type: ignore[arg-type]
    photons = np.random.default_rng(3).poisson(rate * (exposure / rate.mean())).astype(np.float32)
    return torch.from_numpy(photons)[None, None]


def seams(denoiser: PhotonDenoiser, photons: torch.Tensor, sizes: Sizes) -> float:
    """Relative RMS difference of tiles of the smallest size, and the whole image away from its border."""
    with torch.inference_mode():
        whole = denoiser(photons)
        inner = tuple(slice(halo, low - halo) for low, halo in zip(sizes.min_px, sizes.halo_px, strict=True))
        shapes = zip(photons.shape[2:], sizes.min_px, inner, strict=True)
        error = norm = 0.0
        for start in itertools.product(*(range(0, size - low + 1, i.stop - i.start) for size, low, i in shapes)):
            outer = tuple(slice(s, s + low) for s, low in zip(start, sizes.min_px, strict=True))
            expected = whole[(..., *outer)][(..., *inner)]
            got = denoiser(photons[(..., *outer)].contiguous())[(..., *inner)]
            error += float((got - expected).double().square().sum())
            norm += float(expected.double().square().sum())
    return (error / norm) ** 0.5


@pytest.mark.parametrize("exposure", EXPOSURES)
def test_tiles_with_the_halo_agree_on_another_image(measured: Case, exposure: float) -> None:
    assert seams(measured.denoiser, another_image(measured, exposure), measured.sizes) < TOLERANCE


def test_halos_are_multiples_of_the_step_within_reach_and_the_same_every_time(measured: Case) -> None:
    denoiser, report = measured.denoiser, measured.report
    assert set(report.relative_rms) == set(EXPOSURES)
    assert all(0 <= rms < TOLERANCE for rms in report.relative_rms.values())
    reach = receptive_field_px(denoiser.network)
    for halo, step, field, box in zip(report.halo_px, denoiser.network.step_px, reach, denoiser.box_px, strict=True):
        assert halo % step == 0
        assert 0 < halo < field + box // 2 + step
    if denoiser.network.dim == 2:
        state = torch.get_rng_state()
        assert measures.measure_halo(denoiser, measured.counts) == report
        assert torch.equal(torch.get_rng_state(), state)
        # the same tiles with a quarter of the halo would not do
        small = Sizes.of(denoiser.network.step_px, [halo // 4 for halo in report.halo_px])
        assert seams(denoiser, another_image(measured, EXPOSURES[0]), small) > TOLERANCE


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
        (Scores(0.45, 0.6, 0.1, 2.5), "with so few photons held out that chance alone makes 33%"),
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
        found = measures.check_room(np.full((1, 80, 80), 3), sampler_to(brightest))
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
    assert scores.room_db == pytest.approx(10.0, abs=0.3)
