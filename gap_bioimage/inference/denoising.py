"""The MMSE denoiser: expected photons per pixel given the counts."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gap_bioimage.counts import binomial
from gap_bioimage.errors import EmptyImageWarning, TrainedRangeWarning
from gap_bioimage.inference.preparation import prepare
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.sampler import WINDOW_PX, brightest_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from torch import Tensor

    from gap_bioimage.inference.preparation import Prepared
    from gap_bioimage.model import CameraLike, Model

_MARGIN = 10**0.1  # windows this much brighter than the brightest of the training are out of range
_MOST_PARTS = 64


def denoise(
    model: Model,
    photons: xr.DataArray | NDArray[Any],
    *,
    dims: str | Iterable[str] | None = None,
    planes: bool = False,
    camera: CameraLike = "model",
    time_as_z: bool = False,
    separate_channels: bool = False,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    device: str = "cpu",
    on_tile: Callable[[int, int], None] | None = None,
) -> xr.DataArray:
    """Denoise an image; the result has the same axes and, of counts, about the same total.

    Frames (t), and planes (z) of a 2D model, are denoised one by one, channels jointly. Networks without an anchor
    know the brightness of their training only: what is brighter is split at random into parts that are not, and the
    results for the parts are added up, with a warning.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``.
    photons
        Counts, or values of the camera, with dims out of ``t c z y x``. They are checked to be whole numbers from 0
        up; whether these come from photons is judged where files are read, by ``read_photons``.
    dims
        The axes of a plain array, such as "zyx".
    planes
        Let a 2D model run on a stack plane by plane.
    camera
        The camera of the image, or its yaml; "model" for the one that the model was trained with, if any; None where
        the image holds counts.
    time_as_z
        Let a 3D model see a movie as one stack.
    separate_channels
        Let a model of one channel denoise several, one by one.
    tile_px, halo_px
        Tile with halo, and halo, per spatial axis; the result does not depend on them while the halo is
        at least the receptive field, which is the default.
    device
        "cpu", "cuda", ...
    on_tile
        Called with (tiles done, all tiles) over the whole image.

    Returns
    -------
    xarray.DataArray
        Expected photons per pixel, float32, dims and coordinates of ``photons``. The noise of a camera may take
        them slightly below 0.

    Raises
    ------
    AxesError
        If the axes or channels do not fit the model.
    ConfigError
        If the device cannot be used, or the tiles do not fit the image or the network.
    BrokenNetworkError
        If the network returns values that are not finite.
    NotPhotonCountsError
        If values are negative, fractional or not finite, or the image cannot come from that camera.

    Warns
    -----
    EmptyImageWarning, TrainedRangeWarning, HotPixelWarning
        If frames, planes or channels hold no photons, are brighter than the images of the training, or have pixels
        whose photons are left out.
    """
    layout: Any = {"dims": dims, "planes": planes, "time_as_z": time_as_z, "separate_channels": separate_channels}
    prepared = prepare(model, photons, camera=camera, **layout)
    network = TiledNetwork(model.network, tile_px, halo_px, device)
    parts = _parts(model, prepared)
    _warn(model, prepared, parts)
    rates = np.empty(prepared.items.shape, np.float32)
    done, runs = 0, sum(min(count, _MOST_PARTS) for count in parts)

    def report(number: int, count: int) -> None:
        if on_tile is not None:
            on_tile(done * count + number, runs * count)

    for item, count in enumerate(parts):
        rate = torch.zeros(1, *rates.shape[1:])
        for part in split_counts(prepared.tensor(item), count):
            rate += network.network.rate(part, network(part, report), [])
            done += 1
        # without photons the answer is only what the training images were like
        rates[item] = (rate * (count / min(count, _MOST_PARTS)))[0].numpy() if prepared.items[item].any() else 0.0
    return prepared.photons(rates)


def split_counts(counts: Tensor, parts: int) -> Iterator[Tensor]:
    """Split counts at random into independent parts, alike in brightness; of many parts only the first are given."""
    rest, rng = counts.numpy().astype(np.int64), np.random.default_rng(0)
    for number in range(min(parts, _MOST_PARTS)):
        part = rest if number == parts - 1 else binomial(rest, 1 / (parts - number), rng)
        rest = rest - part
        yield counts if parts == 1 else torch.from_numpy(part.astype(np.float32))


def _parts(model: Model, prepared: Prepared) -> list[int]:
    """Return into how many parts each item is to be split, so that none is brighter than the training."""
    if model.network.anchored:
        return [1] * len(prepared.items)
    brightest, window = 10 ** (model.trained_range_db[1] / 10), list(WINDOW_PX[model.config.dim])
    ratios = (float(brightest_mean(prepared.tensor(n), window)) / brightest for n in range(len(prepared.items)))
    return [math.ceil(ratio) if ratio > _MARGIN else 1 for ratio in ratios]


def _warn(model: Model, prepared: Prepared, parts: list[int]) -> None:
    empty = [number for number, item in enumerate(prepared.items) if not item.any()]
    if empty:
        warnings.warn(
            f"{prepared.without_photons(empty)}: the result is 0 there, which tells nothing of what was there",
            EmptyImageWarning,
            stacklevel=3,
        )
    bright = [number for number, count in enumerate(parts) if count > 1]
    if bright:
        warnings.warn(
            f"the brightest part of {prepared.names(bright)} is {10 * math.log10(max(parts)):.0f} dB brighter than the "
            f"model was trained for ({model.trained_range_db[1]:.1f} dB): its photons are split into {max(parts)} "
            "parts that are not, and the results added up; a model trained on images as bright does better",
            TrainedRangeWarning,
            stacklevel=3,
        )
