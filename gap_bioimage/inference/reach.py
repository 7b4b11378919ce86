"""How far a network looks: its receptive field, and the halo that covers what it uses; its memory per pixel."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gap_bioimage.network import PhotonDenoiser, UNet
from gap_bioimage.seams import EdgeProfile, seam_width_px

EXPOSURES = (0.03, 0.3, 3.0)  # photons per pixel at which networks are measured; they look farthest in the dark
_SEAM = 3e-3  # relative RMS error that a measured halo allows beside it; over all pixels it is below 1e-3
_ACROSS_PX = {2: (64, 64), 3: (16, 32, 32)}  # of the test images, across the cut axis
_CLOUDS_PX = (2, 6, 18, 54)  # sizes of the structures in the test images
# full-size feature maps in memory at once, measured on the CPU: per filter of the U-Net, per channel of an anchor
_MAPS_PER_FILTER, _MAPS_PER_CHANNEL = 9, {2: 160, 3: 200}


@dataclass(frozen=True)
class HaloReport:
    """A halo in pixels per axis, and the relative RMS error of tiles on the pooling grid with it, by exposure."""

    halo_px: tuple[int, ...]
    relative_rms: dict[float, float]


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``."""
    return -(-value // step) * step


def bytes_per_px(network: UNet) -> float:
    """Return the memory that a network needs per pixel of an image."""
    filters: int = network.conv_final.in_channels
    channels = network.channels + network.anchor.joins  # with their sum
    anchor = _MAPS_PER_CHANNEL[network.dim] * channels * network.anchored
    return 4 * max(_MAPS_PER_FILTER * filters / network.stem**2, anchor)


def conservation_box_px(network: UNet) -> list[int]:
    """Return the box in which tiles conserve photons, shaped as the receptive field; a pixel for anchored networks."""
    if network.anchored:
        return [1] * network.dim
    planar, reach_px = 129 if network.dim == 2 else 33, receptive_field_px(network)  # halos are costly in 3D
    return [max(3, int(planar * reach / max(reach_px)) // 2 * 2 + 1) for reach in reach_px]


def exact_halo_px(network: UNet) -> list[int]:
    """Return a halo that leaves only rounding errors: the receptive field, without the outer half of an anchor's.

    An anchor applies Gaussian filters in sequence; that half changes a log-rate by less than 2e-6, measured.
    """
    halves = [reach // 2 for reach in network.anchor.reach_px()] if network.anchored else [0] * network.dim
    return [reach - half for reach, half in zip(receptive_field_px(network), halves, strict=True)]


def measured_halo(network: UNet, denoiser: PhotonDenoiser | None = None, most_px: int | None = None) -> HaloReport:
    """Measure the smallest halo beside which a cut changes the result by less than 3e-3 (relative RMS).

    It depends on the network, or on the denoiser around it, alone: all axes are cut, on clouds of all sizes at three
    brightnesses. Halos up to half of the exact one and ``most_px`` are tried; if none of them is enough, the result is
    the exact halo, or ``most_px`` if that is smaller.
    """
    # only differences of log-rates have a meaning
    predict = denoiser or (lambda photons: torch.exp(network(photons).double()))
    box_px = [1] * network.dim if denoiser is None else denoiser.box_px
    exact_px, halo = exact_halo_px(network), list[int]()
    squares = dict.fromkeys(EXPOSURES, 0.0)
    for axes in ([-3], [-2, -1])[3 - network.dim :]:
        exact, box, step = (sizes[axes[0]] for sizes in (exact_px, box_px, network.step_px))
        reaches = (-(-exact // 2) + box // 2, exact + box // 2)
        margin, largest = (round_up(min(reach, most_px or reach), step) for reach in reaches)
        profiles = {exposure: _cut(network, predict, axes, margin, exposure) for exposure in EXPOSURES}
        needed = [profile.needed_halo(_SEAM, step) for profile in profiles.values()]
        px = max(largest if halo_px is None else max(halo_px, step) for halo_px in needed)
        halo += [px] * len(axes)
        for exposure, profile in profiles.items():
            squares[exposure] += len(axes) * profile.seam(min(px, margin), seam_width_px(px)) ** 2
    return HaloReport(tuple(halo), {exposure: math.sqrt(square) for exposure, square in squares.items()})


def _cut(
    network: UNet, predict: Callable[[Tensor], Tensor], axes: Sequence[int], margin: int, exposure: float
) -> EdgeProfile:
    """Cut a margin off both ends of clouds along each of the axes, which are equivalent, and compare."""
    wholes, cuts = [], []
    for axis in axes:
        sizes = [round_up(size, step) for size, step in zip(_ACROSS_PX[network.dim], network.step_px, strict=True)]
        sizes[axis] = 4 * margin + 2 * round_up(seam_width_px(0), network.step_px[axis])
        photons = clouds(network, sizes, exposure)
        inner = photons.narrow(axis, margin, sizes[axis] - 2 * margin)
        with torch.inference_mode():
            wholes.append(predict(photons).narrow(axis, margin, inner.shape[axis]).movedim(axis, 0).cpu())
            cuts.append(predict(inner.contiguous()).movedim(axis, 0).cpu())
    return EdgeProfile.of(torch.cat(wholes, 1).numpy(), torch.cat(cuts, 1).numpy(), 0)


def clouds(network: UNet, sizes: Sequence[int], exposure: float) -> Tensor:
    """Return counts of clouds of all sizes, with ``exposure`` photons per pixel, on the network's device."""
    generator, light = torch.Generator().manual_seed(0), torch.zeros(1, network.channels, *sizes)
    crop: Any = (..., *map(slice, sizes))
    for cloud in _CLOUDS_PX:
        noise = torch.randn(1, network.channels, *(-(-size // cloud) + 1 for size in sizes), generator=generator)
        mode = "bilinear" if network.dim == 2 else "trilinear"
        light += torch.nn.functional.interpolate(noise, scale_factor=cloud, mode=mode)[crop]
    light = light.exp()
    return torch.poisson(light * (exposure / light.mean()), generator).to(next(network.parameters()).device)


def receptive_field_px(network: UNet) -> list[int]:
    """Return, per spatial axis, the distance to the farthest input pixel that changes an output pixel."""
    reaches = []
    for axis in range(network.dim):
        reach = _reach_px(network, [axis > 0 or network.dim == 2 or z for z in network.along_z])
        fold = network.stem if axis >= network.dim - 2 else 1
        # the folding convolution sees no neighbours; each of its pixels covers ``fold`` of the input
        reaches.append(reach * fold - 1 if network.stem > 1 else reach)
    anchors = network.anchor.reach_px() if network.anchored else [0] * network.dim
    return [reach + anchor for reach, anchor in zip(reaches, anchors, strict=True)]


def _reach_px(network: UNet, along: list[bool]) -> int:
    """Return the reach of the U-Net along an axis, by the levels that convolve and pool along it."""
    step = 2 ** sum(along[:-1])
    low = high = torch.arange(64 * step)  # first and last input pixel behind each pixel of a line
    skips = []
    for level, pooled in enumerate(along):
        low, high = (low.roll(3), high.roll(-3)) if pooled else (low, high)
        if level < len(along) - 1:
            skips.append((low, high))
            low, high = (low[::2], high[1::2]) if pooled else (low, high)
    for (skip_low, skip_high), pooled in zip(reversed(skips), reversed(along[:-1]), strict=True):
        if pooled:
            low, high = low.repeat_interleave(2), high.repeat_interleave(2)
            if network.upsampled:  # interpolated between two pixels
                low, high = low.roll(1), high.roll(-1)
        if network.upsampled and network.dim == 3:  # then convolved
            low, high = low.roll(1), high.roll(-1)
        low, high = torch.minimum(low, skip_low), torch.maximum(high, skip_high)
        low, high = (low.roll(3), high.roll(-3)) if pooled else (low, high)
    px = torch.arange(32 * step, 33 * step)  # far from both ends
    return int(torch.maximum(px - low[px], high[px] - px).max())
