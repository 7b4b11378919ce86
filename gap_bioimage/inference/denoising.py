"""Posterior mean (MMSE) of the photons: per pixel, and per region with its standard deviation."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.errors import AxesError, NetworkWarning, TrainedRangeWarning
from gap_bioimage.inference.preparation import Layout, Prepared, check_whole, prepare, refuse_one_bit
from gap_bioimage.inference.tiling import TiledNetwork, tile_memory
from gap_bioimage.io.image import as_image
from gap_bioimage.model import CameraLike, Model
from gap_bioimage.sampler import WINDOW_PX, brightest_mean, poisson, sample_keys, step_keys

_MARGIN = 10**0.1  # windows this much brighter than the brightest training window are out of range
_MOST_PARTS = 64
_PHOTONS_ADDED = 1000.0  # enough to reduce the estimate's own noise to a few percent
_SHARE_ADDED = (0.02, 0.1)  # limits, of the region's photons; more would change the posterior
_LEAST_ADDED, _MOST_PASSES = 60.0, 16  # photons added over all passes, and passes, for dim regions
_CONTRADICTION = 5.0  # standard errors between expected and counted photons


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
    device: str = "auto",
    precision: str = "auto",
    on_tile: Callable[[int, int], None] | None = None,
) -> xr.DataArray:
    """Denoise an image; the result has the same axes and, for counts, about the same total.

    Frames (t), and planes (z) with a 2D model, are denoised one by one, channels jointly. For networks without an
    anchor, images brighter than the training are split at random into darker parts, and the results are added up.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``.
    photons
        Counts or camera values, dims out of ``t c z y x``. A plain array needs ``dims``, such as "zyx". Whole numbers
        are taken for counts: only ``read_photons`` checks whether they come from photons.
    planes, time_as_z, separate_channels
        Denoise a stack plane by plane with a 2D model; treat a movie as one stack for a 3D model; denoise several
        channels one by one with a single-channel model.
    camera
        The camera of the image, or its yaml; "model" for the camera of the training, if any; None for counts.
    tile_px, halo_px
        Tile size including the halo, and halo, per spatial axis. By default the halo is measured on the network, and
        tiles change the result by less than a thousandth (RMS). With the receptive field as halo only rounding differs.
    device
        "auto" for a GPU if torch finds one, or "cpu", "cuda", ...
    precision
        "float32"; "bf16" for convolutions in bfloat16; "auto" for bfloat16 on a GPU if it changes the result little.
    on_tile
        Called with (tiles done, all tiles) over the whole image.

    Returns
    -------
    xarray.DataArray
        Expected photons per pixel, float32, axes of ``photons``; camera noise can make them slightly negative.

    Raises
    ------
    AxesError, NotPhotonCountsError, ConfigError, BrokenNetworkError
        If the axes or channels do not fit the model; if values are negative, fractional or not finite, or cannot come
        from that camera; if the device or the tiles cannot be used; if the network returns values that are not finite.

    Warns
    -----
    EmptyImageWarning, TrainedRangeWarning, HotPixelWarning
        If frames, planes or channels hold no photons, are brighter than the training, or have hot pixels (replaced).
    """
    prepared = prepare(model, photons, Layout(dims, planes, camera, time_as_z, separate_channels))
    network = TiledNetwork(model.network, tile_px, halo_px, device, tile_memory(device), precision)
    network.measure_halo(prepared.items.shape[2:])
    parts = parts_of(model, prepared)
    prepared.warn_of_empty("the result there is 0, which is not an estimate")
    if bright := [number for number, count in enumerate(parts) if count > 1]:
        warn_of_parts(prepared.names(bright), max(parts))
    rates = np.zeros(prepared.items.shape, np.float32)
    report = on_tile or (lambda done, total: None)
    done, runs = 0, sum(min(count, _MOST_PARTS) for count in parts)

    def expect(counts: Tensor) -> Tensor:
        nonlocal done
        log_rate = network(counts, lambda tile, tiles: report(done * tiles + tile, runs * tiles))
        done += 1
        return network.network.rate(counts, log_rate, [])

    for item, count in enumerate(parts):
        rate = sum_of_parts(expect, prepared.tensor(item), count)
        if prepared.items[item].any():  # without photons the network returns only its prior
            rates[item] = rate[0].numpy()
    return prepared.photons(rates)


def sum_of_parts(expect: Callable[[Tensor], Tensor], counts: Tensor, parts: int) -> Tensor:
    """Return the expected counts as the sum over random parts of the counts."""
    total = sum((expect(part) for part in split_counts(counts, parts)), torch.zeros(()))
    return total * (parts / min(parts, _MOST_PARTS))


def split_counts(counts: Tensor, parts: int) -> Iterator[Tensor]:
    """Split counts at random into independent parts of equal brightness; yield at most the first 64."""
    if parts == 1:
        yield counts
        return
    rest, rng = counts.numpy().astype(np.int64), np.random.default_rng(0)
    for number in range(min(parts, _MOST_PARTS)):
        part = rest if number == parts - 1 else rng.binomial(rest, 1 / (parts - number))
        rest = rest - part
        yield torch.from_numpy(part.astype(np.float32))


def parts_of(model: Model, prepared: Prepared) -> list[int]:
    """Return, per item, the number of parts that makes none of them brighter than the training."""
    if model.network.anchored:
        return [1] * len(prepared.items)
    window = list(WINDOW_PX[model.config.dim])
    ratios = (float(brightest_mean(prepared.tensor(n), window)) / model.brightest for n in range(len(prepared.items)))
    return [math.ceil(ratio) if ratio > _MARGIN else 1 for ratio in ratios]


def warn_of_parts(name: str, parts: int) -> None:
    """Warn that the images described by ``name`` are split into parts."""
    problem = f"a part of {name} is {10 * math.log10(parts):.0f} dB brighter than the training"
    advice = f"photons are split into {parts} parts that are not; a model trained on images as bright does better"
    warnings.warn(f"{problem}: {advice}", TrainedRangeWarning, stacklevel=3)


@dataclass(frozen=True)
class Region:
    """Photons of one region and their posterior standard deviation, given the photons of the whole image.

    ``std`` is None if the network gives no usable estimate: with few photons, or beyond its trained range.
    """

    label: int
    pixels: int
    counted: int
    photons: float
    std: float | None

    def __str__(self) -> str:
        """Return the result as a sentence."""
        if self.std is not None:
            return f"region {self.label}: {self.photons:.1f} +- {self.std:.1f} photons ({self.counted} counted)"
        return f"region {self.label}: {self.photons:.1f} photons, standard deviation unknown ({self.counted} counted)"

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields as plain numbers."""
        return asdict(self)


def region_uncertainty(
    model: Model,
    photons: xr.DataArray | NDArray[Any],
    labels: xr.DataArray | NDArray[Any],
    *,
    seed: int,
    dims: str | Iterable[str] | None = None,
    passes: int | None = None,
    camera: CameraLike = "model",
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    device: str = "auto",
    on_region: Callable[[int, int], None] | None = None,
) -> list[Region]:
    """Return the expected photons of regions with their posterior standard deviations, without sampling.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``.
    photons
        Counts of one image, dims out of ``c z y x``.
    labels
        Integers with the spatial dims of the counts. Each value except 0 is a region, in all channels.
    seed, passes
        Seed of the photons that are added; network runs to average per region, by default one, more for dim ones.
    dims, camera, tile_px, halo_px, device, on_region
        As for ``denoise``; called with (regions done, all regions).

    Raises
    ------
    AxesError, ConfigError, BrokenNetworkError
        As for ``denoise``; also for several images, labels of another size or that are not labels, and models of
        one-bit frames.

    Warns
    -----
    NetworkWarning, TrainedRangeWarning
        If expected and counted photons differ by more than both errors explain; as for ``denoise``.
    """
    seed, passes = check_whole("seed", seed, 0, 2**63), None if passes is None else check_whole("passes", passes, 1)
    prepared = prepare(model, photons, Layout(dims, camera=camera))
    _check_for_regions(model, prepared)
    labels = _label_image(labels, dims, (counts := prepared.tensor(0)).shape[2:])
    network = TiledNetwork(model.network, tile_px, halo_px, device, tile_memory(device))

    def expect(x: Tensor) -> Tensor:
        return model.network.rate(counts, network(x), [])

    rate, regions = expect(counts), []
    background = 0.0 if prepared.camera is None else prepared.camera.background()
    numbers = [int(label) for label in np.unique(labels.values) if label]
    for done, label in enumerate(numbers, 1):
        inside = labels.values == label
        mask = torch.from_numpy(inside).expand(counts.shape[1:])[None]
        variance = region_variance(expect, counts, rate, mask, seed=seed, label=label, passes=passes)
        regions.append(_region(label, inside, counts[mask], rate[mask], variance, background))
        if on_region is not None:
            on_region(done, len(numbers))
    return regions


def _check_for_regions(model: Model, prepared: Prepared) -> None:
    refuse_one_bit(model, "regions")
    if len(prepared.items) != 1:
        raise AxesError(f"the image holds {len(prepared.items)} frames, expected one frame for regions; select one")
    if max(parts_of(model, prepared)) > 1:
        problem = "the image is brighter than the training of this network without an anchor"
        warnings.warn(f"{problem}: photons and errors of regions may be wrong", TrainedRangeWarning, stacklevel=3)


def _region(
    label: int, inside: NDArray[np.bool_], counts: Tensor, rate: Tensor, variance: float, background: Any
) -> Region:
    counted, expected = int(counts.sum(dtype=torch.float64)), float(rate.sum(dtype=torch.float64))
    region = Region(label, int(inside.sum()), counted, expected, variance**0.5 if variance > 0 else None)
    _warn_if_contradicted(region)
    noise = float(np.broadcast_to(background, inside.shape)[inside].sum())  # counts added by the camera's noise
    return replace(region, counted=round(counted - noise), photons=expected - noise)


def _label_image(labels: Any, dims: str | Iterable[str] | None, shape: Sequence[int]) -> xr.DataArray:
    """Return the labels with axes ([z,] y, x); refuse another shape and values that are not labels."""
    spatial = "zyx"[-len(shape) :]
    axes = None if dims is None or isinstance(labels, xr.DataArray) else [axis for axis in dims if axis in spatial]
    image = as_image(labels, axes, what="the label image")
    image = image.transpose(*spatial) if set(image.dims) == set(spatial) else image
    if image.shape != shape:
        raise AxesError(
            f"the labels have {' x '.join(map(str, image.shape))} pixels ({', '.join(map(str, image.dims))}) and the "
            f"image {' x '.join(map(str, shape))}, expected the same size; crop or resize the labels like the image"
        )
    lowest, highest = float(image.min()), float(image.max())
    if image.dtype.kind not in "iub" or lowest < 0 or lowest == highest:
        problem = f"the labels are {image.dtype} from {lowest:g} to {highest:g}, expected whole numbers, 0 outside"
        raise AxesError(f"{problem} and 1 or more in the regions; save the label image as 8 or 16 bit, or give another")
    return image


def _warn_if_contradicted(region: Region) -> None:
    # at least one photon: a region without counts could have held some
    error = math.sqrt(max(region.counted, 1) + (region.std or 0.0) ** 2)
    if abs(region.photons - region.counted) > _CONTRADICTION * error:
        problem = f"region {region.label}: the network expects {region.photons:.1f} photons where {region.counted} were"
        advice = "it was trained too briefly, or on other images; train longer"
        warnings.warn(f"{problem} counted, far beyond both errors: {advice}", NetworkWarning, stacklevel=3)


def region_variance(
    expect: Callable[[Tensor], Tensor],
    counts: Tensor,
    rate: Tensor,
    mask: Tensor,
    *,
    seed: int,
    label: int = 1,
    passes: int | None = None,
) -> float:
    """Return the posterior variance of the photons in a region, a mask of the shape of the counts (1, c, [z,] y, x).

    One more photon at pixel j changes the posterior mean of s_i by exactly Cov(s_i, s_j) / E[s_j]. Photons drawn with
    the rate eps E[s] over the region therefore change its sum by eps times its variance, on average and to first order.
    Only whole photons are added, as the network was trained on whole counts. A large eps biases the variance if the
    posterior is not Gaussian. ``expect`` and ``rate`` are in the exposure of the counts.
    """
    inside = torch.where(mask, rate, torch.zeros_like(rate)).flatten(1).double()
    total = float(inside.sum())
    if total <= 0:
        return 0.0
    eps = float(np.clip(_PHOTONS_ADDED / total, *_SHARE_ADDED))
    passes = passes or int(np.clip(np.ceil(_LEAST_ADDED / (eps * total)), 1, _MOST_PASSES))
    index = torch.arange(inside.shape[1], device=counts.device)
    number = torch.tensor([label], device=counts.device)
    source, change = sample_keys(counts, seed, number), 0.0
    for step in range(passes):
        keys = step_keys(source, torch.full_like(number, step))
        added = poisson(eps * inside, keys, index).float().reshape(counts.shape)
        change += float((expect(counts + added) - rate)[mask].sum(dtype=torch.float64))
    return change / (eps * passes)
