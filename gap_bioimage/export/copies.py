"""A network that hands its input on: for models whose work is done by a postprocessing operation.

Such an operation is given the output of the network only, in whose shape it must answer. Only torch is imported:
this file travels in those models as their architecture source.
"""

from typing import List  # noqa: UP035  (TorchScript of older engines knows it)

import torch
from torch import Tensor, nn


class PhotonCopies(nn.Module):
    """The input, ``copies`` times along the channels.

    Parameters
    ----------
    copies
        How often.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        # consumers want parameters; and a product is exact, where a GPU's convolution may round large counts
        self.scale = nn.Parameter(torch.ones(copies))

    def forward(self, photons: Tensor) -> Tensor:
        """Return (b, copies c, [z,] y, x) from (b, c, [z,] y, x)."""
        shape: List[int] = [1, self.scale.shape[0]]  # noqa: UP006
        for _ in range(photons.dim() - 1):
            shape.append(1)
        return (photons.unsqueeze(1) * self.scale.reshape(shape)).flatten(1, 2)
