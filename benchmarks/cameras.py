"""Simulated cameras with known parameters."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def simulate_camera(
    electrons: xr.DataArray | NDArray[Any],
    *,
    gain: float = 2.2,
    offset: float = 100.0,
    read_noise: float = 1.6,
    n_frames: int = 24,
    em: bool = False,
    saturation: int = 65535,
    seed: int = 0,
) -> xr.DataArray:
    """Simulate frames (t, y, x) of a camera, with ``em`` of an EMCCD, from electrons (y, x) or (t, y, x).

    An EMCCD turns n electrons into gamma(n, 1): the noise-derived gain is then ``2 gain``, and the read noise
    ``read_noise / 2`` effective electrons (Robbins and Hadwen, IEEE Trans. Electron Devices 50, 2003).
    """
    scene, rng = np.asarray(electrons, np.float64), np.random.default_rng((seed, 2))
    collected = rng.poisson(scene, scene.shape if scene.ndim == 3 else (n_frames, *scene.shape)).astype(np.float64)
    if em:
        collected = np.where(collected > 0, rng.gamma(np.maximum(collected, 1)), 0.0)
    adu = np.rint(offset + gain * (collected + read_noise * rng.standard_normal(collected.shape)))
    return xr.DataArray(np.clip(adu, 0, saturation).astype(np.uint16), dims=list("tyx"), name="camera")
