"""Muon evens out what weights learn, and can be resumed."""

import copy

import pytest
import torch
from torch import nn

from gap_bioimage.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (6, 90), (40, 5)])
def test_singular_values_become_one_and_their_vectors_stay(shape: tuple[int, int]) -> None:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    values = torch.logspace(2, 0.5, len(values))
    found = left.mT @ orthogonalised(left @ torch.diag(values) @ right) @ right.mT
    assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.3)).all()
    torch.testing.assert_close(found - torch.diag(found.diagonal()), torch.zeros_like(found), rtol=0, atol=1e-3)


def test_without_a_gradient_nothing_moves_but_weights_decay() -> None:
    weight, bias = nn.Parameter(torch.ones(3, 2, 3, 3)), nn.Parameter(torch.ones(3))
    optimizer = Muon([weight], [bias], 0.1, weight_decay=0.5)
    optimizer.step()
    assert (weight == 1).all()
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    optimizer.step()
    torch.testing.assert_close(weight, torch.full_like(weight, 0.95))
    assert (bias == 1).all()


def test_states_of_before_there_was_decay_go_on_without() -> None:
    weight = nn.Parameter(torch.ones(3, 2, 3, 3))
    state = Muon([weight], [], 0.1).state_dict()
    for group in state["param_groups"]:
        del group["weight_decay"]
    optimizer = copy.deepcopy(Muon([weight], [], 0.1))
    optimizer.load_state_dict(state)
    weight = optimizer.param_groups[0]["params"][0]
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert (weight == 1).all()


@pytest.mark.parametrize(
    ("shape", "limited"), [((64, 64, 3, 3), False), ((48, 48, 3, 3, 3), True), ((512, 512, 3, 3), True)]
)
def test_steps_of_wide_layers_are_limited(shape: tuple[int, ...], limited: bool) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], [], 1.0).step()
    rows, columns = weight.flatten(1).shape
    norm = float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2))
    assert norm < 1.25 * 15 * (rows / columns) ** 0.5
    assert (float(weight.detach().square().mean().sqrt()) < 0.15) == limited


def test_steps_of_weights_and_biases_have_the_size_of_the_learning_rate() -> None:
    weight, bias = nn.Parameter(torch.zeros(16, 4, 3, 3)), nn.Parameter(torch.zeros(16))
    generator = torch.Generator().manual_seed(0)
    optimizer = Muon([weight], [bias], 0.01)
    weight.grad, bias.grad = (1e4 * torch.randn(p.shape, generator=generator) for p in (weight, bias))
    assert optimizer.step(lambda: 7.0) == 7.0
    assert float(weight.square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.3)
    torch.testing.assert_close(bias, -0.01 * bias.grad.sign())
