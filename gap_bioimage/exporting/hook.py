"""Posterior sampling as custom postprocessing of a bioimage.io model, for bioimageio.core 0.10.3 or newer.

The model's network, `PhotonCopies`, only passes the photon counts on. The operation, `SamplePosterior`, draws samples
of the clean image with the sampler that this file contains as text. It travels in zips and needs torch and numpy only.
"""

import base64
import io
import zlib
from typing import Any, List

import numpy as np
import torch
from torch import Tensor, nn

CHANNELS = 1
"""Image channels: the first ones of the operation's input are the counts, the others are copies of them."""
TORCHSCRIPT = """
"""
"""The sampler: a TorchScript archive, compressed with zlib, in base64."""


class PhotonCopies(nn.Module):
    """Repeat the input ``copies`` times along the channels, since an operation must keep the shape of its input."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        # consumers expect parameters; a product is exact, while a GPU's convolution may round large counts
        self.scale = nn.Parameter(torch.ones(copies))

    def forward(self, photons: Tensor) -> Tensor:
        """Return (b, copies c, [z,] y, x) from (b, c, [z,] y, x)."""
        shape: List[int] = [1, self.scale.shape[0]]
        for _ in range(photons.dim() - 1):
            shape.append(1)
        return (photons.unsqueeze(1) * self.scale.reshape(shape)).flatten(1, 2)


def load_sampler(device: str = "cpu") -> Any:
    """Return the sampler as TorchScript.

    ``load_sampler().sample(photons, n_samples, n_steps, seed)`` takes counts (batch, channel, [z,] y, x) as a
    float32 tensor, and returns samples with an additional first axis.
    """
    archive = zlib.decompress(base64.b64decode(TORCHSCRIPT))
    load: Any = torch.jit.load
    return load(io.BytesIO(archive), map_location=device).eval()


class SamplePosterior:
    """Turn copies of photon counts into mean, standard deviation and samples of the clean image.

    Photons are added in ``n_steps`` steps, with noise that is a function of the seed and of the counts, on a device
    such as "cpu" or "cuda".
    """

    def __init__(self, n_steps: int, seed: int, device: str = "cpu") -> None:
        if n_steps < 1 or seed < 0:
            raise ValueError(f"n_steps={n_steps}, seed={seed}: expected at least 1 and 0")
        self.device = device
        self.sampler = load_sampler(device)
        self.sampler.n_steps, self.sampler.seed = n_steps, seed

    def __call__(self, copies: np.ndarray) -> np.ndarray:
        """Return mean, standard deviation and n samples of counts repeated 2 + n times, (b, (2 + n) c, [z,] y, x)."""
        self.sampler.n_samples = copies.shape[1] // CHANNELS - 2
        photons = np.array(copies[:, :CHANNELS], dtype=np.float32)
        with torch.inference_mode():
            channels: np.ndarray = self.sampler(torch.from_numpy(photons).to(self.device)).cpu().numpy()
        return channels
