"""Whether a network's answer can be used at all."""

from __future__ import annotations

import torch
from torch import Tensor

from gap_bioimage.errors import BrokenNetworkError


def finite(log_rate: Tensor) -> Tensor:
    """Return log-rates as they are, if all of them are numbers.

    Raises
    ------
    BrokenNetworkError
        If one of them is not finite.
    """
    if not bool(torch.isfinite(log_rate).all()):
        broken = int((~torch.isfinite(log_rate)).sum())
        raise BrokenNetworkError(
            f"the network returned {broken} log-rates that are not finite, expected numbers; its training has "
            "diverged or its weights are damaged: train it again, with a lower train.learning_rate"
        )
    return log_rate
