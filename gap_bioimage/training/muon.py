"""Muon, the optimiser of anchored networks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from gap_bioimage.graphs import Recorded

_SIZE = 0.2  # root mean square of a step, as of Adam's
_CHANGE = 15.0  # largest change of an output's size by a step, both relative to the learning rate
_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values are 0.7 to 1.2 after five iterations


class Muon(torch.optim.Optimizer):
    """Step weights along their orthogonalised momentum (all singular values about 1), other parameters as Adam does.

    A few directions dominate the gradient of a convolution. Orthogonalised, the others are learned as fast, and in the
    few hundred steps of a CPU much more is learned. Steps have the size of Adam's: one learning rate serves both. In
    wide layers they are smaller, since such steps change outputs in proportion to the number of inputs, and the outputs
    of large networks grew without end after a few hundred steps.
    Each step shrinks the weights by ``weight_decay`` times the learning rate. Without it, steps of equal size let them
    grow until, after a thousand, a network may return its bounds everywhere.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the step's size of
    Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], others: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.5
    ) -> None:
        groups = [{"params": list(weights), "evened": True}, {"params": list(others), "evened": False}]
        super().__init__(groups, {"lr": lr, "momentum": 0.95, "weight_decay": weight_decay})
        self._orthogonal = Recorded(_orthogonal_steps)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state; one stored before weight decay existed continues without it."""
        super().__setstate__(state)
        self._orthogonal = Recorded(_orthogonal_steps)
        for group in self.param_groups:
            group.setdefault("weight_decay", 0.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; return the loss from ``closure``, which also computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(parameters, [parameter.grad for parameter in parameters], group)
        return loss

    def _step(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["mean"] = torch.zeros_like(parameter)
                if not group["evened"]:
                    state |= {"square": torch.zeros_like(parameter), "steps": torch.zeros((), device=parameter.device)}
        means = [state["mean"] for state in states]
        if group["evened"]:
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            steps = self._orthogonal(*torch._foreach_lerp(gradients, means, group["momentum"]))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, steps, alpha=-group["lr"])
        else:
            squares, counts = ([state[name] for state in states] for name in ("square", "steps"))
            adam(
                parameters, gradients, means, squares, [], counts, fused=True, amsgrad=False,
                beta1=0.9, beta2=0.999, lr=group["lr"], weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip


def _orthogonal_steps(*gradients: Tensor) -> list[Tensor]:
    """Return orthogonalised gradients with the size of Adam's steps; those of one shape are processed together."""
    steps: dict[int, Tensor] = {}
    for shape in {gradient.shape for gradient in gradients}:
        numbers = [number for number, gradient in enumerate(gradients) if gradient.shape == shape]
        matrices = torch.stack([gradients[number].flatten(1) for number in numbers])
        rows, columns = matrices.shape[1:]
        scale = min(_SIZE * math.sqrt(max(rows, columns)), _CHANGE * math.sqrt(rows / columns))
        steps |= dict(zip(numbers, scale * orthogonalised(matrices).reshape(-1, *shape), strict=True))
    return [steps[number] for number in range(len(gradients))]


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices (..., row, column) with the same singular vectors and singular values of about 1.

    The Newton-Schulz iteration multiplies m by polynomials of ``m m'``; here their product is computed first and
    applied to m once.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    matrix = matrix.mT if tall else matrix
    matrix = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    square, identity = matrix @ matrix.mT, torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device)
    a, b, c = _QUINTIC
    product = identity
    for _ in range(iterations):
        factor = a * identity + b * square + c * (square @ square)
        product, square = factor @ product, factor @ square @ factor
    matrix = product @ matrix
    return matrix.mT if tall else matrix
