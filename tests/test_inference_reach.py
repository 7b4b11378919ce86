"""The measured halo: enough for tiles to agree with the whole image, at any brightness, on either way to photons."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fixtures_model import random_network

from gap_bioimage.exporting.measures import MOST_HALO_PX, Sizes
from gap_bioimage.exporting.weights import denoiser_of
from gap_bioimage.inference import reach
from gap_bioimage.inference.reach import EXPOSURES, HaloReport, exact_halo_px, measured_halo
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.model import load_model
from gap_bioimage.network import PhotonDenoiser
from gap_bioimage.simulation import simulate, simulate_truth
from gap_bioimage.validation.run.edges import SEAM


@dataclass(frozen=True)
class Case:
    """A network that makes photons, and its measured halo."""

    denoiser: PhotonDenoiser
    report: HaloReport
    sizes: Sizes


def measure(denoiser: PhotonDenoiser) -> HaloReport:
    return measured_halo(denoiser.network, denoiser, MOST_HALO_PX[denoiser.network.dim])


@pytest.fixture(scope="module", params=[2, 3, "plain"])
def measured(request: pytest.FixtureRequest) -> Case:
    if request.param == "plain":
        denoiser = PhotonDenoiser([33, 33], depth=2, start_filts=4).eval().requires_grad_(False)
        denoiser.network.load_state_dict(random_network(seed=3).state_dict())
    else:
        denoiser = denoiser_of(load_model(request.getfixturevalue(f"trained_{request.param}d").run))
    report = measure(denoiser)
    return Case(denoiser, report, Sizes.of(denoiser.network.step_px, report.halo_px))


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
    assert seams(measured.denoiser, another_image(measured, exposure), measured.sizes) < SEAM


def test_halos_are_multiples_of_the_step_within_reach_and_the_same_every_time(measured: Case) -> None:
    denoiser, report = measured.denoiser, measured.report
    assert set(report.relative_rms) == set(EXPOSURES)
    assert all(0 <= rms < SEAM for rms in report.relative_rms.values())
    fields = reach.receptive_field_px(denoiser.network)
    for halo, step, field, box in zip(report.halo_px, denoiser.network.step_px, fields, denoiser.box_px, strict=True):
        assert halo % step == 0
        assert 0 < halo < field + box // 2 + step
    if denoiser.network.dim == 2:
        state = torch.get_rng_state()
        assert measure(denoiser) == report
        assert torch.equal(torch.get_rng_state(), state)
        # the same tiles with a quarter of the halo would not do
        small = Sizes.of(denoiser.network.step_px, [halo // 4 for halo in report.halo_px])
        assert max(seams(denoiser, another_image(measured, exposure), small) for exposure in EXPOSURES) > SEAM


def test_a_measured_halo_leaves_less_than_a_thousandth_of_the_result() -> None:
    network = load_model("nuclei").network
    halo, exact = list(measured_halo(network).halo_px), exact_halo_px(network)
    assert all(0 < h <= e / 2 and h % step == 0 for h, e, step in zip(halo, exact, network.step_px, strict=True))
    photons = torch.from_numpy(simulate(2, (64, 400), 0.3, seed=1)[0].values.astype(np.float32))[None, None]
    whole, changes = TiledNetwork(network)(photons).exp(), []
    for width in (halo, exact):
        change = TiledNetwork(network, [64, 336], width)(photons).exp() - whole
        changes.append(float(change.square().mean().sqrt() / whole.square().mean().sqrt()))
    assert changes[1] < 1e-5 < changes[0] < 1e-3
    large, small = TiledNetwork(network, [64, 336]), TiledNetwork(network)
    for tiled in (large, small):
        tiled.measure_halo((64, 400))
    assert (list(large.halo_px), small.halo_px) == (halo, exact)
