"""The MMSE denoiser: expected photons per pixel given the counts."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from gap_bioimage.counts import check_dim, pseudo_psnr_db
from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.finite import finite
from gap_bioimage.inference.items import as_items
from gap_bioimage.inference.prepared import prepare
from gap_bioimage.inference.tiling import tiled_log_rate
from gap_bioimage.network import UNet, rate_from_log_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr

    from gap_bioimage.inference.items import Items
    from gap_bioimage.training.checkpoint import Model
    from gap_bioimage.training.recorded import CameraLike

_MARGIN_DB = 1.0  # a whole image this much brighter than any training window is out of range


def denoise(
    model: Model,
    photons: xr.DataArray,
    *,
    planes: bool = False,
    camera: CameraLike = "model",
    time_as_z: bool = False,
    separate_channels: bool = False,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    device: str = "cpu",
    on_tile: Callable[[int, int], None] | None = None,
) -> xr.DataArray:
    """Denoise an image; the result has the same axes, and of counts the same total.

    Frames (t), and planes (z) of a 2D model, are denoised one by one, channels jointly.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``.
    photons
        Counts, or values of the camera, with dims out of ``t c z y x``. They are checked to be whole numbers from 0
        up; whether these come from photons is judged where files are read, by ``read_photons``.
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
        Called with (tiles done, all tiles) for each image.

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
    UserWarning
        If frames, planes or channels hold no photons, or are brighter than the images of the training.
    """
    prepared = prepare(model, photons, camera=camera, time_as_z=time_as_z)
    check_dim(prepared.counts, model.config.dim, plane_by_plane=planes)
    items = as_items(prepared.counts, model.config.dim, model.config.channels, separate_channels=separate_channels)
    _warn_of_brightness(model, items)
    network = on_device(model.network, device)
    rates = np.empty(items.values.shape, np.float32)
    done = 0

    def report(number: int, count: int) -> None:
        if on_tile is not None:
            on_tile(done * count + number, len(rates) * count)

    for done, item in enumerate(items.values):
        rates[done] = _denoise_item(network, np.asarray(item), tile_px, halo_px, report)
    return prepared.photons(items.restore(rates))


def _warn_of_brightness(model: Model, items: Items) -> None:
    """Warn when an image is brighter than every training window, or parts of it are empty."""
    levels = [pseudo_psnr_db(item) for item in items.values]
    empty = [number for number, level in enumerate(levels) if level == -math.inf]
    if empty:
        warnings.warn(
            f"{items.without_photons(empty)}: the result is 0 there, which tells nothing of what was there",
            stacklevel=3,
        )
    brightest = max(levels)
    limit = model.trained_range_db[1]
    if brightest > limit + _MARGIN_DB:
        warnings.warn(
            f"the image has {brightest:.1f} dB (10 log10 photons per pixel), the model was trained up to "
            f"{limit:.1f} dB; bright structures may come out wrong: train on images as bright as these",
            stacklevel=3,
        )


def on_device(network: UNet, device: str) -> UNet:
    """Move a network to a device.

    Raises
    ------
    ConfigError
        If torch cannot use the device here.
    """
    try:
        return network.to(device)
    except (RuntimeError, AssertionError, NotImplementedError):  # what torch raises depends on the device
        raise ConfigError(
            f"device {device!r} cannot be used here; expected cpu, or cuda where torch finds a GPU"
        ) from None


def _denoise_item(
    network: UNet,
    item: np.ndarray,
    tile_px: Sequence[int] | None,
    halo_px: Sequence[int] | None,
    on_tile: Callable[[int, int], None],
) -> np.ndarray:
    counts = torch.from_numpy(np.ascontiguousarray(item).astype(np.float32))[None]
    log_rate = finite(tiled_log_rate(network, counts, tile_px, halo_px, on_tile))
    return rate_from_log_rate(log_rate, counts)[0].numpy()
