import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gap_bioimage.config import NetworkConfig, RunConfig, TrainConfig
from gap_bioimage.training.loss import photon_loss
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.pairs import Pairs

SHAPES = [(3, 2, 4, 3), (2, 2, 2, 3, 4), (1, 1, 1, 1)]


def scene(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, 2, shape), rng.poisson(3, shape)
    return torch.from_numpy(drawn[0].astype(np.float32)), torch.from_numpy(drawn[1].astype(np.float32))


def brute_force(log_rate: Tensor, target: Tensor) -> list[float]:
    losses = []
    for image, photons in zip(log_rate.double(), target.double(), strict=True):
        log_probability = torch.log_softmax(image.flatten(), 0)
        each = [-float(lp) for lp, n in zip(log_probability, photons.flatten(), strict=True) for _ in range(int(n))]
        losses.append(math.fsum(each) / max(1, len(each)))
    return losses


def total_loss(log_rate: Tensor, target: Tensor, exposure: Tensor) -> Tensor:
    return photon_loss(log_rate, target, None, exposure, 1.0) - photon_loss(log_rate, target)


def module_of(anchor: bool = False, **train: Any) -> GapModule:
    network = NetworkConfig(depth=2, start_filts=2, levels=2, anchor=anchor)
    config = RunConfig(network=network, train=TrainConfig(**train))
    torch.manual_seed(0)
    module = GapModule(config, (-10.0, 5.0))
    torch.nn.init.normal_(module.network.conv_final.weight)
    if module.average is not None:
        module.average.module.load_state_dict(module.network.state_dict())
    return module


def pairs(photons: Tensor, target: Tensor) -> Pairs:
    db, weight = 10 * torch.log10(photons.flatten(1).mean(1)), torch.ones_like(photons)
    return Pairs(photons, target, db, torch.ones(len(photons)), weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_is_the_mean_of_minus_log_softmax_over_photons(shape: tuple[int, ...]) -> None:
    log_rate, target = scene(shape)
    loss = photon_loss(log_rate, target)
    assert loss.shape == (shape[0],)
    np.testing.assert_allclose(loss.numpy(), brute_force(log_rate, target), rtol=1e-5)
    large = (1000 * log_rate).bfloat16()  # does not overflow
    np.testing.assert_allclose(photon_loss(large, target).numpy(), brute_force(large, target), rtol=1e-5)


def test_images_without_photons_and_pixels_left_out_have_no_loss_and_no_gradient() -> None:
    log_rate, target = scene((2, 1, 4, 4))
    weight = torch.ones(2, 1, 4, 4)
    target[0], target[1, 0, 1, 2], weight[1, 0, 1, 2] = 0, 1e6, 0
    log_rate.requires_grad_()
    loss = photon_loss(log_rate, target, weight)
    assert float(loss[0].detach()) == 0
    loss.sum().backward()
    assert log_rate.grad is not None
    assert not log_rate.grad[0].any()
    assert ((log_rate.grad[1] == 0) == (weight[1] == 0)).all()
    assert float(log_rate.grad.sum()) == pytest.approx(0, abs=1e-6)


def test_total_and_photon_loss_are_the_poisson_likelihood_of_all_pixels() -> None:
    log_rate, target = scene((3, 2, 4, 5))
    exposure = torch.tensor([0.5, 1.0, 3.0])
    weight = torch.from_numpy(np.random.default_rng(1).integers(0, 3, log_rate.shape).astype(np.float32))
    for w in (None, weight):
        allowed = torch.ones_like(log_rate) if w is None else w
        rate = (exposure.reshape(3, 1, 1, 1) * allowed * log_rate.exp()).double()
        photons = torch.where(allowed > 0, target, 0.0).double()
        total = photons.flatten(1).sum(1)
        likelihood = (rate - torch.xlogy(photons, rate)).flatten(1).sum(1)
        expected = (likelihood - total + torch.xlogy(total, total)) / total
        found = photon_loss(log_rate, target, w, exposure, 1.0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(photon_loss(log_rate, target, torch.ones_like(target)), photon_loss(log_rate, target))
    right = torch.log(target.flatten(1).sum(1) / exposure / log_rate.exp().flatten(1).sum(1)).reshape(3, 1, 1, 1)
    torch.testing.assert_close(total_loss(log_rate + right, target, exposure), torch.zeros(3), rtol=0, atol=1e-5)
    assert torch.isfinite(photon_loss(log_rate + 1000, torch.zeros_like(target), None, exposure, 1.0)).all()


@pytest.mark.parametrize(("anchor", "total_weight", "used"), [(False, None, 0), (False, 0.5, 0.5), (True, None, 1)])
def test_step_averages_over_images_with_targets(anchor: bool, total_weight: float | None, used: float) -> None:
    module = module_of(anchor, total_weight=total_weight, brightness_power=0)
    photons, target = scene((4, 1, 8, 8))[1], scene((4, 1, 8, 8), 1)[1]
    target[2] = photons[2] = 0
    loss = float(module.training_step(pairs(photons, target), 0).detach())
    log_rate = module(photons).detach()
    losses = brute_force(log_rate, target) + used * total_loss(log_rate, target, torch.ones(4)).numpy()
    losses[2] -= brute_force(log_rate, target)[2]
    assert loss == pytest.approx(losses.sum() / 3, rel=1e-5)
    assert module.train_loss() == pytest.approx(losses[[0, 1, 3]].mean(), rel=1e-5)
    assert module.train_loss() == 0
    expected = 10 * np.log10(photons.flatten(1).mean(1).numpy()[[0, 1, 3]]).mean()  # of inputs with photons
    assert module.mean_input_db() == pytest.approx(expected, rel=1e-5)


def test_bright_images_weigh_more() -> None:
    photons, target = scene((3, 1, 8, 8))[1], scene((3, 1, 8, 8), 1)[1]
    photons[1, 0, 2:] = 0
    module = module_of(anchor=True, total_weight=0, brightness_power=0.7)
    alone = np.array(brute_force(module(photons).detach(), target))
    brightest = 10 ** (module.trained_range_db[1] / 10)
    weights = np.minimum((photons.flatten(1).mean(1).numpy() + 0.03) / brightest, 1) ** 0.7
    loss = float(module.training_step(pairs(photons, target), 0).detach())
    assert loss == pytest.approx((weights * alone).mean(), rel=1e-5)
    assert module.train_loss() == pytest.approx((weights * alone).sum() / weights.sum(), rel=1e-5)


def test_steps_without_a_finite_gradient_change_nothing() -> None:
    module = module_of()
    weight = module.network.conv_final.weight
    weight.grad = torch.full_like(weight, math.nan)
    module.on_before_optimizer_step(None)
    assert not weight.grad.any()
    weight.grad = torch.full_like(weight, 3.0)
    module.on_before_optimizer_step(None)
    assert float(weight.grad.norm()) == pytest.approx(module.config.train.gradient_clip, rel=1e-4)


def test_validation_loss_is_the_mean_over_images_of_all_batches_weighted_as_in_training_and_forgets() -> None:
    module, nothing, sums = module_of(anchor=True, brightness_power=0.7).eval(), torch.zeros(2, 1, 8, 8), np.zeros(2)
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    module.network.anchor.brightest.fill_(100)
    assert float(module_of().training_step(pairs(nothing, nothing), 0).detach()) == 0
    module.validation_step(pairs(nothing, nothing), 0)
    assert math.isnan(module.validation_loss())
    for seed, size in ((0, 3), (1, 1)):
        photons, target = scene((size, 1, 8, 8), seed)[1], scene((size, 1, 8, 8), seed + 9)[1]
        photons[0, 0, 2:] = 0
        module.validation_step(pairs(photons, target), seed)
        log_rate, brightest = module(photons).detach(), 10 ** (module.trained_range_db[1] / 10)
        weights = np.minimum((photons.flatten(1).mean(1).numpy() + 0.03) / brightest, 1) ** 0.7
        losses = brute_force(log_rate, target) + total_loss(log_rate, target, torch.ones(size)).numpy()
        sums += (weights * losses).sum(), weights.sum()
    assert module.validation_loss() == pytest.approx(sums[0] / sums[1], rel=1e-5)
    assert math.isnan(module.validation_loss())


def test_moving_average_is_used_in_evaluation_only() -> None:
    assert module_of(ema_decay=0.0).average is None
    module = module_of(ema_decay=0.75)
    assert module.average is not None
    photons = scene((1, 1, 8, 8))[1]
    weight = module.network.conv_final.weight
    for value, average in ((1.0, 1.0), (2.0, 1.25), (5.0, 0.75 * 1.25 + 0.25 * 5)):
        weight.data = torch.full_like(weight, value)
        module.on_train_batch_end(None, pairs(photons, photons), 0)
        torch.testing.assert_close(module.average.module.conv_final.weight.data, torch.full_like(weight, average))
        assert torch.equal(module.train()(photons), module.network(photons))
        assert torch.equal(module.eval()(photons), module.average.module(photons))
    assert not torch.equal(module.network(photons), module.average.module(photons))


def test_how_bright_the_inputs_are_is_kept_with_the_average_too() -> None:
    module = module_of(anchor=True, ema_decay=0.75).train()
    for level in (2.0, 4.0, 3.0):
        photons = torch.full((1, 1, 16, 16), level)
        module(photons)
        module.on_train_batch_end(None, pairs(photons, photons), 0)
    assert module.average is not None
    for network in (module.network, module.average.module):
        assert float(network.anchor.brightest) == pytest.approx(4.0)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 20), (5, 20), (30, 20)])
def test_learning_rate_rises_stays_and_falls_to_one_percent_in_the_second_half(warmup: int, steps: int) -> None:
    module = module_of(learning_rate=0.1, warmup_steps=warmup, steps=steps)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    half = steps // 2
    np.testing.assert_allclose(rates[: min(warmup, half)], [0.1 * (k + 1) / warmup for k in range(min(warmup, half))])
    np.testing.assert_allclose(rates[warmup : half + 1], 0.1)
    if warmup < half:
        np.testing.assert_allclose(np.diff(rates[half + 1 :]), -0.198 / steps)
    assert rates[-1] == pytest.approx(0.001)
