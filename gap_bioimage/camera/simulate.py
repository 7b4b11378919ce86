"""What a camera would write of a scene: electrons, gain, read noise, offset, digitisation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gap_bioimage.errors import ConfigError

if TYPE_CHECKING:
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
    """Simulate camera frames: ``rint(offset + gain (e + N(0, read_noise^2)))``, clipped to 0 and ``saturation``.

    Parameters
    ----------
    electrons
        Expected electrons per pixel and frame, (y, x); or (t, y, x), a scene that changes, without ``n_frames``.
    gain, offset, read_noise
        ADU per electron, ADU without light, electrons RMS without digitisation.
    n_frames
        Frames of the same scene.
    em
        Multiply electrons as an EMCCD does: n become gamma(n, 1). The noise-derived gain is then ``2 gain``, and the
        read noise ``read_noise / 2`` effective electrons (Robbins and Hadwen, IEEE Trans. Electron Devices 50, 2003).
    saturation
        Largest ADU.
    seed
        Same seed, same frames.

    Returns
    -------
    xarray.DataArray
        uint16 with dims t, y, x.

    Raises
    ------
    ConfigError
        If a number is out of range, or the scene is not (y, x) or (t, y, x) of finite numbers from 0 up.
    """
    scene = np.asarray(electrons, np.float64)
    if scene.ndim not in (2, 3) or not scene.size or not np.isfinite(scene).all() or scene.min() < 0:
        raise ConfigError(
            f"electrons has shape {scene.shape}, expected (y, x) or (t, y, x) of finite numbers from 0 up"
        )
    if not (gain > 0 and read_noise >= 0 and n_frames >= 1) or not math.isfinite(gain + read_noise + offset):
        raise ConfigError(
            f"gain {gain:g}, read_noise {read_noise:g}, n_frames {n_frames}: expected a positive gain, a read noise "
            "from 0 up and at least one frame"
        )
    rng = np.random.default_rng((seed, 2))
    shape = scene.shape if scene.ndim == 3 else (n_frames, *scene.shape)
    collected = rng.poisson(scene, shape).astype(np.float64)
    if em:
        collected = np.where(collected > 0, rng.gamma(np.maximum(collected, 1)), 0.0)
    adu = np.rint(offset + gain * (collected + read_noise * rng.standard_normal(shape)))
    return xr.DataArray(np.clip(adu, 0, saturation).astype(np.uint16), dims=list("tyx"), name="camera")
