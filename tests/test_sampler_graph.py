"""The sampler of exported models: the graph, its channels, its seeds, older engines."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from draws import observed
from fixtures_model import random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gap_bioimage.exporting.weights import without_debug_records
from gap_bioimage.network import PhotonDenoiser
from gap_bioimage.sampler import PosteriorSampler, Sampler, in_exposure, photon_budget, sample_keys

# The module of exported models

SMALL: dict[str, Any] = {"depth": 2, "start_filts": 4, "levels": 3}
SIZES: dict[int, tuple[int, ...]] = {2: (13, 10), 3: (5, 9, 10)}


def sampler_of(dim: int = 2, channels: int = 1, **more: Any) -> PosteriorSampler:
    settings_ = {"n_samples": 3, "n_steps": 4, "seed": 7, "gain": 100.0, "brightest": 1e6} | more
    sampler = PosteriorSampler(box_px=[5] * dim, window_px=[7] * dim, dim=dim, channels=channels, **settings_, **SMALL)
    network = random_network(1, dim=dim, channels=channels, anchor=more.get("anchor", False), **SMALL)
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
def test_counts_of_any_type_and_of_no_other_shape(dim: int) -> None:
    sampler, photons = sampler_of(dim, 2), counts_of(dim, 2)
    denoiser = PhotonDenoiser([5] * dim, dim=dim, channels=2, **SMALL).eval().requires_grad_(False)
    denoiser.network.load_state_dict(sampler.network.state_dict())
    for module in (sampler, denoiser):
        for graph in (module, torch.jit.script(module)):
            expected = graph(photons)
            assert expected.dtype == torch.float32
            for kind in (torch.float64, torch.int32, torch.int64, torch.uint8, torch.float16):
                assert torch.equal(graph(photons.to(kind)), expected)
            for wrong in (photons[0], photons[:, :1], photons[None]):
                with pytest.raises((ValueError, torch.jit.Error), match=r"expected .batch, channel.*with 2 channels"):
                    graph(wrong)
    assert torch.equal(sampler.sample(photons.double(), 1, 1, 0), sampler.sample(photons, 1, 1, 0))


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
    sampler.network.conv_final.weight.data *= 0.3  # without peaks of single pixels, which would count as hot
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


@pytest.mark.parametrize(("dim", "n_steps"), [(2, 12), (3, 3)])
@pytest.mark.parametrize("brightest", [5.0, 1e6])
def test_the_graph_climbs_as_the_driver_does(dim: int, n_steps: int, brightest: float) -> None:
    sampler = sampler_of(dim, n_steps=n_steps, brightest=brightest)
    photons = counts_of(dim)
    driver = Sampler(sampler.network, brightest, [7] * dim, cut=sampler.cut)
    stop = photon_budget(photons, 100.0, brightest, [7] * dim)
    samples = sampler.sample(photons, 3, n_steps, 7)
    for number in range(3):
        keys = sample_keys(photons, 7, torch.tensor([number]))
        x, log_rate, factor = driver.draw(photons, sampler.network(photons), stop, keys, n_steps)
        rate = sampler.network.rate(x, log_rate, [5] * dim) * factor
        # equal to the last bit only if every photon fell into the same pixel
        assert torch.equal(samples[number], in_exposure(rate, x, photons))


@pytest.mark.parametrize("anchor", [False, True])
def test_hot_pixels_do_not_scale_the_samples(anchor: bool) -> None:
    sampler = sampler_of(anchor=anchor)
    photons = counts_of()
    photons[..., 6, 4] = photons[..., 5:8, 3:6].mean().round()
    hot = photons.clone()
    hot[..., 6, 4] = 65535
    calm, alarmed = sampler(photons)[:, :1], sampler(hot)[:, :1]
    assert float(alarmed.median()) == pytest.approx(float(calm.median()), rel=0.3)
    assert float(alarmed.max()) < 3 * float(calm.max())


OLD_SCRIPT = """
import sys, torch
for name in sys.argv[2:]:
    sampler, photons = torch.jit.load(f"{sys.argv[1]}/{name}.pt"), torch.load(f"{sys.argv[1]}/{name}.counts")
    with torch.no_grad():
        results = [sampler(photons) for _ in range(2)] + [sampler.sample(photons, 2, 3, 1 << 40)]
    torch.save(results, f"{sys.argv[1]}/{name}.result")
"""


def test_archives_run_in_an_older_torch(tmp_path: Path, old_torch: Callable[..., None]) -> None:
    expected = {}
    for dim in (2, 3):
        sampler, name = sampler_of(dim, channels=2), str(dim)
        torch.jit.save(torch.jit.script(sampler), tmp_path / "full.pt")
        (tmp_path / f"{name}.pt").write_bytes(without_debug_records((tmp_path / "full.pt").read_bytes()))
        photons = counts_of(dim, channels=2, batch=2)
        torch.save(photons, tmp_path / f"{name}.counts")
        expected[name] = [sampler(photons)] * 2 + [sampler.sample(photons, 2, 3, 1 << 40)]
    old_torch(OLD_SCRIPT, tmp_path, *expected)
    for name, results in expected.items():
        for old, new in zip(torch.load(tmp_path / f"{name}.result", weights_only=True), results, strict=True):
            # convolutions round otherwise, and now and then a photon falls elsewhere, in one of many samples
            far = (old - new).abs() > 1e-4 * new + 1.5e-4
            changed = far.flatten(2).any(2)  # by item and channel, or by sample and item
            assert changed.double().mean() < 0.4
            relative = torch.sqrt((old - new).double().square().sum() / new.double().square().sum())
            assert relative < 0.02


def test_the_loop_of_the_draw_stays_a_loop() -> None:
    # unrolled, the fuser of torch 2.0 compiles it for minutes
    from gap_bioimage.sampler import poisson

    draw = torch.jit.script(poisson)
    for _ in range(3):
        draw(torch.rand(1, 64, dtype=torch.float64), torch.tensor([[1, 2]]), torch.arange(64))
    assert "prim::Loop" in str(torch.jit.last_executed_optimized_graph())
