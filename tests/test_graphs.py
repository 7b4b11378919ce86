"""What a GPU does otherwise, and what fused kernels do, gives what the network gives."""

import copy
from typing import Any

import pytest
import torch
from fixtures_model import random_network

from gap_bioimage.graphs import CHANNELS_LAST, Recorded, record_training, with_fused_kernels
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.training.muon import Muon

PHOTONS = torch.poisson(torch.full((1, 1, 40, 56), 2.0), torch.Generator().manual_seed(0))
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("dim", "version"), [(2, 4), (3, 4), (3, 5)])
def test_products_with_matrices_smooth_as_sums_do(dim: int, version: int) -> None:
    anchor = random_network(dim=dim, anchor=True, anchor_version=version).anchor
    photons = torch.poisson(torch.full((2, 5, 53, 38), 3.0), torch.Generator().manual_seed(0))
    for first, count, enlarge in (
        (0, anchor.n_scales, True),
        (2 * anchor.n_scales, 1, False),
        (len(anchor.pools) - 1, 1, False),
    ):
        found = anchor._by_matrices(torch.stack([photons] * count), first, enlarge)
        for number, image in enumerate(found):
            torch.testing.assert_close(image, anchor.smooth(photons, first + number, enlarge), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        {"anchor": True, "anchor_version": 4},
        {"dim": 3, "anchor": True, "anchor_version": 4, "z_conv_stage": 1},
        {"channels": 2, "stem": 2, "merge_mode": "concat"},
        {"dim": 3, "up_mode": "upsample"},
    ],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_fused_kernels_of_a_cpu_change_rounding_only(network: dict[str, Any], bf16: bool) -> None:
    plain = random_network(**network).eval()
    rates = torch.full((1, plain.channels, *(9, 37, 50)[-plain.dim :]), 2.0)
    photons = torch.poisson(rates, torch.Generator().manual_seed(0))
    plain = plain.to(memory_format=CHANNELS_LAST[plain.dim])
    with torch.inference_mode():
        expected, found = plain(photons), with_fused_kernels(plain, bf16)(photons)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1 if bf16 else 1e-5)
    assert torch.equal(plain(photons), expected)  # the network itself stays as it was


def test_without_a_gpu_nothing_is_recorded() -> None:
    network = random_network(anchor=True, anchor_version=4)
    recorded = Recorded(network)
    for _ in range(3):
        assert torch.equal(recorded(PHOTONS), network(PHOTONS))


@on_gpu
@pytest.mark.parametrize("dim", [2, 3])
def test_a_recorded_network_follows_its_input_and_its_weights(dim: int) -> None:
    network = random_network(dim=dim, anchor=True, anchor_version=4).cuda().requires_grad_(False)
    recorded = Recorded(network)
    for exposure in (0.1, 1.0, 10.0, 100.0):
        photons = torch.poisson(torch.full((1, 1, *(24, 40, 48)[-dim:]), exposure, device="cuda"))
        network.conv_final.bias.add_(0.01)
        torch.testing.assert_close(recorded(photons), network(photons), rtol=1e-5, atol=1e-5)


@on_gpu
def test_recorded_steps_of_muon_are_those_of_the_cpu() -> None:
    networks = [random_network(anchor=True, anchor_version=4), random_network(anchor=True, anchor_version=4).cuda()]
    for network in networks:
        weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        optimizer, generator = Muon(weights, [], lr=0.01), torch.Generator().manual_seed(0)
        for _ in range(4):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(weight.device)
            optimizer.step()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=1e-4)


@on_gpu
def test_the_gpu_and_the_cpu_agree() -> None:
    network = random_network(anchor=True, anchor_version=4)
    expected = TiledNetwork(copy.deepcopy(network))(PHOTONS)
    found = TiledNetwork(network, device="cuda")
    for _ in range(3):
        torch.testing.assert_close(found(PHOTONS), expected, rtol=0, atol=0.02)  # its convolutions have 10 bits


@on_gpu
def test_recorded_training_has_the_gradients_of_plain_one() -> None:
    networks = [random_network(anchor=True, anchor_version=4).cuda().train().requires_grad_(True) for _ in range(2)]
    photons = PHOTONS.cuda()
    kept = record_training(networks[0], photons)
    for network in networks:
        network(photons).square().mean().backward()
    assert kept
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0.02, atol=1e-4)
