"""The measured halo: enough for tiles to agree with the whole image, at any brightness; and the scores."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from gap_bioimage.counts import thin
from gap_bioimage.exporting.intake import mirrored
from gap_bioimage.exporting.measures import (
    EXPOSURES,
    TOLERANCE,
    HaloReport,
    Scores,
    Sizes,
    log_likelihood,
    measure_halo,
    score_on_halves,
)
from gap_bioimage.exporting.weights import denoiser_of
from gap_bioimage.inference.tiling import default_box_px, receptive_field_px
from gap_bioimage.model import load_model
from gap_bioimage.simulation import simulate, simulate_truth

if TYPE_CHECKING:
    from fixtures_model import Trained

    from gap_bioimage.network import PhotonDenoiser


def denoiser_and_counts(trained: Trained) -> tuple[PhotonDenoiser, np.ndarray]:
    model = load_model(trained.run)
    denoiser = denoiser_of(model, default_box_px(receptive_field_px(model.network)))
    return denoiser, np.load(trained.run / "example.npy")


@pytest.fixture(scope="module")
def measured_3d(trained_3d: Trained) -> tuple[PhotonDenoiser, HaloReport]:
    denoiser, counts = denoiser_and_counts(trained_3d)
    return denoiser, measure_halo(denoiser, counts)


def seams(denoiser: PhotonDenoiser, photons: torch.Tensor, sizes: Sizes) -> float:
    """Relative RMS difference of tiles of the smallest size, and the whole image away from its border."""
    with torch.inference_mode():
        whole = denoiser(photons)
        blocks = [low - 2 * halo for low, halo in zip(sizes.min_px, sizes.halo_px, strict=True)]
        per_axis = [
            range(0, size - low + 1, block)
            for size, low, block in zip(photons.shape[2:], sizes.min_px, blocks, strict=True)
        ]
        error = norm = 0.0
        for start in itertools.product(*per_axis):
            outer = tuple(slice(s, s + low) for s, low in zip(start, sizes.min_px, strict=True))
            crop = tuple(slice(h, h + b) for h, b in zip(sizes.halo_px, blocks, strict=True))
            expected = whole[(..., *outer)][(..., *crop)]
            got = denoiser(photons[(..., *outer)].contiguous())[(..., *crop)]
            error += float((got - expected).double().square().sum())
            norm += float(expected.double().square().sum())
    return (error / norm) ** 0.5


@pytest.mark.parametrize("exposure", EXPOSURES)
def test_tiles_with_the_halo_agree_on_another_image_in_2d(trained_2d: Trained, exposure: float) -> None:
    denoiser, counts = denoiser_and_counts(trained_2d)
    report = measure_halo(denoiser, counts)
    sizes = Sizes.of(denoiser.network.step_px, report.halo_px)
    rate = simulate_truth(2, [low + 96 for low in sizes.min_px], seed=9).values
    photons = np.random.default_rng(3).poisson(rate * (exposure / rate.mean())).astype(np.float32)
    assert seams(denoiser, torch.from_numpy(photons)[None, None], sizes) < TOLERANCE


@pytest.mark.parametrize("exposure", EXPOSURES)
def test_tiles_with_the_halo_agree_on_another_image_in_3d(
    measured_3d: tuple[PhotonDenoiser, HaloReport], exposure: float
) -> None:
    denoiser, report = measured_3d
    assert 0 < max(report.relative_rms.values()) < TOLERANCE
    sizes = Sizes.of(denoiser.network.step_px, report.halo_px)
    rate = simulate_truth(3, [low + 16 for low in sizes.min_px], seed=9).values
    photons = np.random.default_rng(3).poisson(rate * (exposure / rate.mean())).astype(np.float32)
    assert seams(denoiser, torch.from_numpy(photons)[None, None], sizes) < TOLERANCE


def test_the_halo_is_the_same_every_time_and_a_multiple_of_the_step(trained_2d: Trained) -> None:
    denoiser, counts = denoiser_and_counts(trained_2d)
    state = torch.get_rng_state()
    first, again = measure_halo(denoiser, counts, seed=5), measure_halo(denoiser, counts, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert set(first.relative_rms) == set(EXPOSURES)
    assert all(0 <= rms < TOLERANCE for rms in first.relative_rms.values())
    reach = receptive_field_px(denoiser.network)
    for halo, step, field, box in zip(first.halo_px, denoiser.network.step_px, reach, denoiser.box_px, strict=True):
        assert halo % step == 0
        assert 0 < halo < field + box // 2 + step


def test_what_an_image_that_is_cut_otherwise_changes_is_told(trained_2d: Trained) -> None:
    denoiser, counts = denoiser_and_counts(trained_2d)
    report = measure_halo(denoiser, counts)
    step, reach = denoiser.network.step_px[0], max(receptive_field_px(denoiser.network)) + denoiser.box_px[0] // 2
    rate = simulate_truth(2, [2 * reach + 64] * 2, seed=9).values
    inner = (..., slice(reach, -reach), slice(reach, -reach))
    for exposure, told in report.off_grid_rms.items():
        photons = np.random.default_rng(3).poisson(rate * (exposure / rate.mean())).astype(np.float32)
        image = torch.from_numpy(photons)[None, None]
        found = []
        for start in (1, step):
            with torch.inference_mode():
                moved = denoiser(torch.nn.functional.pad(image, [start, 0, start, 0]))[..., start:, start:][inner]
                expected = denoiser(image)[inner]
            found.append(float((moved - expected).square().mean().sqrt() / expected.square().mean().sqrt()))
        assert told / 3 < found[0] < 3 * told
        assert found[1] < 1e-4  # a whole step changes nothing


def test_a_smaller_halo_would_not_do(trained_2d: Trained) -> None:
    denoiser, counts = denoiser_and_counts(trained_2d)
    sizes = Sizes.of(denoiser.network.step_px, measure_halo(denoiser, counts).halo_px)
    rate = simulate_truth(2, [low + 96 for low in sizes.min_px], seed=9).values
    photons = np.random.default_rng(3).poisson(rate * (EXPOSURES[0] / rate.mean())).astype(np.float32)
    image = torch.from_numpy(photons)[None, None]
    # the same tiles with a quarter of the halo
    small = Sizes.of(denoiser.network.step_px, [h // 4 for h in sizes.halo_px])
    assert seams(denoiser, image, small) > TOLERANCE


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_mirroring_repeats_an_image_back_and_forth(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    image = np.arange(np.prod(shape)).reshape(shape)
    result = mirrored(image, size)
    assert result.shape == (shape[0], *size)
    rows, columns = (
        np.minimum(np.arange(wanted) % (2 * have), 2 * have - 1 - np.arange(wanted) % (2 * have))
        for wanted, have in zip(size, shape[1:], strict=True)
    )
    np.testing.assert_array_equal(result, image[:, rows][:, :, columns])


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return simulate(2, (96, 80), photons=2.0, seed=3)[0].values[None]


def test_likelihood_is_that_of_the_photons_positions() -> None:
    rate, photons = np.array([[1.0, 3.0]]), np.array([[1, 2]])
    expected = (math.log(0.25) + 2 * math.log(0.75)) / 3
    assert log_likelihood(rate, photons) == pytest.approx(expected, rel=1e-12)
    assert log_likelihood(100 * rate, photons) == pytest.approx(expected, rel=1e-12)


def test_scores_are_those_of_the_other_half(counts: np.ndarray) -> None:
    seen, unseen = thin(counts.astype(np.int64), 0.5, 0)
    handed: list[torch.Tensor] = []

    def blur(photons: torch.Tensor) -> torch.Tensor:
        handed.append(photons)
        return torch.from_numpy(ndimage.gaussian_filter(photons.numpy().astype(float), 1.4, axes=(2, 3)))

    scores = score_on_halves(blur, counts)
    np.testing.assert_array_equal(handed[0].numpy()[0], seen)
    assert scores.photons == int(unseen.sum())
    assert scores.flat == pytest.approx(-math.log(counts.size), rel=1e-12)
    assert scores.gaussian >= scores.denoised > scores.flat
    assert scores.pseudo_psnr_db == pytest.approx(10 * math.log10(seen.mean()))
    if scores.gaussian_sigma_px == 1.4:
        assert scores.denoised == pytest.approx(scores.gaussian, rel=1e-6)
    assert score_on_halves(blur, counts) == scores
    assert score_on_halves(blur, counts, seed=1) != scores


def test_channels_and_depth_are_not_blurred_into_each_other() -> None:
    stack = np.zeros((2, 9, 9), np.int64)
    stack[0] = 40
    # with channels kept apart, a filter of any width knows that the second one is empty
    scores = score_on_halves(lambda photons: photons, stack)
    assert scores.gaussian > -math.log(81) - 0.05


def test_counts_without_photons_give_numbers() -> None:
    scores = score_on_halves(lambda photons: photons, np.zeros((1, 16, 16), np.int64))
    assert (scores.denoised, scores.gaussian, scores.flat, scores.squared_error) == (0.0, 0.0, 0.0, 0.0)
    assert "not measurably different" in scores.verdict


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


def test_a_worse_model_is_called_worse() -> None:
    scores = Scores(-6, -6, -8, 1.4, 0.9, 0.6, 0.01, 2.5, 100)
    assert scores.verdict == "is 50% above that of the best Gaussian filter"
