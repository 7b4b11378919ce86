"""The measured halo: enough for tiles to agree with the whole image, at any brightness."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gap_bioimage.exporting.intake import mirrored
from gap_bioimage.exporting.measures import EXPOSURES, TOLERANCE, HaloReport, Sizes, default_box_px, measure_halo
from gap_bioimage.exporting.weights import denoiser_of
from gap_bioimage.inference.tiling import receptive_field_px
from gap_bioimage.model import load_model
from gap_bioimage.simulation import simulate_truth

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
