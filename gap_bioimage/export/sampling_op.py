"""Posterior sampling as a postprocessing operation of a bioimage.io model, for bioimageio.core 0.10.3 or newer.

The model's network hands the photon counts on; the operation draws samples of the clean image with the network
that this file carries as text. It needs torch and numpy only.
"""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
import torch

CHANNELS = 1
"""Image channels: that many of the operation's input are the counts, the others their copies."""
TORCHSCRIPT = """
"""
"""The sampler: a TorchScript archive, compressed with zlib, in base64."""


def load_sampler(device: str = "cpu") -> Any:
    """Return the sampler as TorchScript.

    ``load_sampler().sample(photons, n_samples, n_steps, seed)`` takes counts (batch, channel, [z,] y, x) as a
    float32 tensor, and returns samples with one axis more, in front.
    """
    archive = zlib.decompress(base64.b64decode(TORCHSCRIPT))
    load: Any = torch.jit.load
    return load(io.BytesIO(archive), map_location=device).eval()


class SamplePosterior:
    """Copies of photon counts in; mean, standard deviation and samples of the clean image out.

    Parameters
    ----------
    n_steps
        Steps in which photons are added to draw a sample; at least 1.
    seed
        The noise is a function of the seed and of the counts; at least 0.
    device
        Where to sample: "cpu", "cuda", ...
    """

    def __init__(self, n_steps: int, seed: int, device: str = "cpu") -> None:
        if n_steps < 1 or seed < 0:
            raise ValueError(f"n_steps={n_steps}, seed={seed}: expected at least 1 and 0")
        self.device = device
        self.sampler = load_sampler(device)
        self.sampler.n_steps, self.sampler.seed = n_steps, seed

    def __call__(self, copies: np.ndarray) -> np.ndarray:
        """Return mean, standard deviation and samples along the channels, as photons per pixel.

        Parameters
        ----------
        copies
            The counts, 2 + n times along the channels, (b, (2 + n) c, [z,] y, x), to get n samples in that shape.
        """
        self.sampler.n_samples = copies.shape[1] // CHANNELS - 2
        photons = np.array(copies[:, :CHANNELS], dtype=np.float32)
        with torch.inference_mode():
            channels: np.ndarray = self.sampler(torch.from_numpy(photons).to(self.device)).cpu().numpy()
        return channels
