"""How certain the photons of a region are, from one more run of the network and no samples."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from gap_bioimage.errors import AxesError, ConfigError, NetworkWarning
from gap_bioimage.inference.preparation import check_whole, prepare
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.io.image import as_image
from gap_bioimage.sampler import poisson, sample_keys, step_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from gap_bioimage.inference.preparation import Prepared
    from gap_bioimage.model import CameraLike, Model

_PHOTONS_ADDED = 1000.0  # enough for the estimate's own noise to be some percent
_SHARE_ADDED = (0.02, 0.1)  # of the region's photons; more would change what is asked
_LEAST_ADDED, _MOST_PASSES = 60.0, 16  # photons over all passes, for dim regions
_SURE = 5.0  # standard errors between what is expected and what was counted


@dataclass(frozen=True)
class Region:
    """Photons of one region and their posterior standard deviation, given the photons of the whole image.

    ``std`` is None where the region holds too few photons to tell.
    """

    label: int
    pixels: int
    counted: int
    photons: float
    std: float | None

    def __str__(self) -> str:
        """Return a sentence."""
        if self.std is not None:
            return f"region {self.label}: {self.photons:.1f} +- {self.std:.1f} photons ({self.counted} counted)"
        few = "none was counted" if not self.counted else f"{self.counted} counted, too few to tell"
        return f"region {self.label}: {self.photons:.1f} photons, their error is not known ({few})"

    def to_dict(self) -> dict[str, float | None]:
        """Return plain numbers."""
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
    device: str = "cpu",
    on_region: Callable[[int, int], None] | None = None,
) -> list[Region]:
    """Return the expected photons of regions with their posterior standard deviations.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``.
    photons
        Counts of one image, dims out of ``c z y x``.
    labels
        Integers with the spatial dims of the counts; each one but 0 is a region, in all channels.
    seed
        For the photons that are added.
    passes
        Runs of the network per region, to average; when None one, and more for dim regions.
    dims, camera, tile_px, halo_px, device
        As for ``denoise``.
    on_region
        Called with (regions done, all regions).

    Raises
    ------
    AxesError
        If the counts are several images, or the labels have other sizes or are no labels.
    ConfigError
        If the model was trained on one-bit frames.
    BrokenNetworkError
        If the network returns values that are not finite.

    Warns
    -----
    NetworkWarning
        If a region's expected photons differ from the counted ones by more than both their errors explain.
    """
    check_whole("seed", seed, 0, 2**63)
    if model.n_frames is not None:
        raise ConfigError("regions of one-bit frames are not known: their photons are not sums of what was counted")
    prepared = prepare(model, photons, dims=dims, camera=camera)
    if len(prepared.items) != 1:
        raise AxesError(f"the image holds {len(prepared.items)} frames, expected one for regions; give one frame")
    counts = prepared.tensor(0)
    spatial = "zyx"[-model.config.dim :]
    labels = as_image(
        labels, None if isinstance(labels, xr.DataArray) or dims is None else spatial, what="the label image"
    )
    _check_labels(labels, counts.shape[2:])
    network = TiledNetwork(model.network, tile_px, halo_px, device)

    def expect(x: Tensor) -> Tensor:
        return model.network.rate(counts, network(x), [])

    rate = expect(counts)
    found = []
    numbers = [int(label) for label in np.unique(labels.values) if label]
    for done, label in enumerate(numbers, 1):
        mask = torch.from_numpy(labels.values == label).expand(counts.shape[1:])[None]
        variance = region_variance(expect, counts, rate, mask, seed=seed, label=label, passes=passes)
        seen, expected = int(counts[mask].sum(dtype=torch.float64)), float(rate[mask].sum(dtype=torch.float64))
        found.append(Region(label, int(mask[0, 0].sum()), seen, expected, variance**0.5 if variance > 0 else None))
        _warn_if_contradicted(found[-1])
        found[-1] = _without_background(found[-1], prepared, mask[0, 0].numpy())
        if on_region is not None:
            on_region(done, len(numbers))
    return found


def _check_labels(labels: xr.DataArray, shape: tuple[int, ...]) -> None:
    """Refuse what is no label image of an image with these sizes."""
    if labels.shape != shape:
        raise AxesError(
            f"the labels have {' x '.join(map(str, labels.shape))} pixels ({', '.join(map(str, labels.dims))}) and the "
            f"image {' x '.join(map(str, shape))}, expected the same; crop or resize the labels as the image was"
        )
    lowest, highest = float(labels.min()), float(labels.max())
    if labels.dtype.kind in "iub" and lowest == highest:
        none = "hold no region" if not highest else "tell no region from what is outside"
        raise AxesError(
            f"the labels {none}: all pixels are {highest:g}, expected 0 outside and 1 or more in the regions; give "
            "another label image"
        )
    if labels.dtype.kind not in "iub" or lowest < 0:
        raise AxesError(
            f"the labels are {labels.dtype} from {lowest:g} to {highest:g}, expected whole numbers, 0 outside and 1 or "
            "more in the regions; save the label image as 8 or 16 bit"
        )


def _without_background(region: Region, prepared: Prepared, mask: np.ndarray) -> Region:
    """Subtract what the camera's noise adds to the counts of a region."""
    if prepared.camera is None:
        return region
    background = float(np.broadcast_to(prepared.camera.background(), mask.shape)[mask].sum())
    return replace(region, counted=round(region.counted - background), photons=region.photons - background)


def _warn_if_contradicted(region: Region) -> None:
    """Warn where the photons that were counted say that the network is wrong."""
    # one photon at least: a region in which none were counted could have held some
    error = math.sqrt(max(region.counted, 1) + (region.std or 0.0) ** 2)
    if abs(region.photons - region.counted) > _SURE * error:
        warnings.warn(
            f"region {region.label}: the network expects {region.photons:.1f} photons where {region.counted} were "
            f"counted, {abs(region.photons - region.counted) / error:.0f} times the error of both: it was trained too "
            "briefly, or on other images; train longer",
            NetworkWarning,
            stacklevel=3,
        )


def region_variance(
    expect: Callable[[Tensor], Tensor],
    counts: Tensor,
    rate: Tensor,
    mask: Tensor,
    *,
    seed: int,
    label: int = 1,
    passes: int | None = None,
    share: float | None = None,
) -> float:
    """Return the posterior variance of the photons in a region.

    One more photon at pixel j changes the posterior mean of s_i by Cov(s_i, s_j) / E[s_j], exactly. Photons drawn
    with the rate ``eps E[s]`` over the region so change its sum by eps times its variance, on average and to
    first order in eps. They are whole photons, so that the network sees nothing that it was not trained on.

    Parameters
    ----------
    expect
        Counts to the expected photons, in the exposure of the observed ones.
    counts, rate
        Counts (1, c, [z,] y, x), and the expected photons given them.
    mask
        The region, boolean, same shape.
    seed, label, passes
        Each label and pass draws photons of its own; as many passes as add enough photons when None.
    share
        eps; chosen when None. Small shares need more passes, large ones bias a posterior that is not Gaussian.
    """
    inside = torch.where(mask, rate, torch.zeros_like(rate)).flatten(1).double()
    total = float(inside.sum())
    if total <= 0:
        return 0.0
    eps = float(np.clip(_PHOTONS_ADDED / total, *_SHARE_ADDED)) if share is None else share
    passes = passes or int(np.clip(np.ceil(_LEAST_ADDED / (eps * total)), 1, _MOST_PASSES))
    index = torch.arange(inside.shape[1], device=counts.device)
    number = torch.tensor([label], device=counts.device)
    source, change = sample_keys(counts, seed, number), 0.0
    for number_of_pass in range(passes):
        keys = step_keys(source, torch.full_like(number, number_of_pass))
        added = poisson(eps * inside, keys, index).float().reshape(counts.shape)
        change += float((expect(counts + added) - rate)[mask].sum(dtype=torch.float64))
    return change / (eps * passes)
