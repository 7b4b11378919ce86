"""The optimiser of anchored networks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

_BETAS = (0.9, 0.999)  # Adam's
_QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan's iteration: singular values from 0.7 to 1.2 after five


class Muon(torch.optim.Optimizer):
    """Steps of weights are momenta with all singular values about 1; of biases, and of others, they are Adam's.

    A gradient of a convolution is dominated by a few directions; so the others are learned as fast, and in the few
    hundred steps of a CPU much more is learned. Steps have the size of Adam's, so that one learning rate serves both.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the step's size of
    Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982.
    """

    def __init__(self, weights: Iterable[nn.Parameter], others: Iterable[nn.Parameter], lr: float) -> None:
        groups = [{"params": list(weights), "evened": True}, {"params": list(others), "evened": False}]
        super().__init__(groups, {"lr": lr, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; return what ``closure`` does, which computes the loss and its gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    way = self._evened if group["evened"] else self._adam
                    way(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _evened(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(gradient, 1 - group["momentum"])
        step = evened(gradient.lerp(state["mean"], group["momentum"]).flatten(1))
        parameter.sub_(step.reshape(parameter.shape), alpha=group["lr"] * 0.2 * math.sqrt(max(step.shape)))

    def _adam(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter), "steps": 0}
        state["steps"] += 1
        state["mean"].lerp_(gradient, 1 - _BETAS[0])
        state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
        seen = [1 - beta ** state["steps"] for beta in _BETAS]
        size = (state["square"] / seen[1]).sqrt_().add_(1e-8)
        parameter.addcdiv_(state["mean"], size, value=-group["lr"] / seen[0])


def evened(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return a matrix with the same singular vectors, and singular values about 1.

    Newton and Schulz iterate polynomials of ``m m'`` times m; here they are multiplied first, and applied to m once.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.mT if tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    square, one = matrix @ matrix.mT, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    a, b, c = _QUINTIC
    product = one
    for _ in range(iterations):
        factor = a * one + b * square + c * (square @ square)
        product, square = factor @ product, factor @ square @ factor
    matrix = product @ matrix
    return matrix.mT if tall else matrix
