"""How far a network looks: what its layers could see, and the halo beyond which little of that is used; its memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gap_bioimage.network import PhotonDenoiser, UNet
from gap_bioimage.seams import EdgeProfile, beside

EXPOSURES = (0.03, 0.3, 3.0)  # photons per pixel at which networks are tried; in the dark they look farthest
_SEAM = 3e-3  # what a measured halo may leave beside it, as relative RMS; of all pixels it is below 1e-3
_ACROSS_PX = {2: (64, 64), 3: (16, 32, 32)}  # of the images that are cut
_CLOUDS_PX = (2, 6, 18, 54)  # sizes of what they show
# full-size maps alive at once, measured on the CPU: per filter in the U-Net, and per channel before it in an anchor
_OF_FILTER, _OF_ANCHOR = 9, {2: 160, 3: 200}


@dataclass(frozen=True)
class HaloReport:
    """A halo in pixels per axis, and by exposure the relative RMS by which tiles on the pooling's grid then differ."""

    halo_px: tuple[int, ...]
    relative_rms: dict[float, float]


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``."""
    return -(-value // step) * step


def bytes_per_px(network: UNet) -> float:
    """Return the memory that a network takes for each pixel of an image."""
    filters: int = network.conv_final.in_channels
    return 4 * max(
        _OF_FILTER * filters / network.stem**2, _OF_ANCHOR[network.dim] * network.channels * network.anchored
    )


def box_of(network: UNet) -> list[int]:
    """Return the box in which tiles conserve photons, in proportion to the reach; a pixel for anchored networks."""
    if network.anchored:
        return [1] * network.dim
    planar, reach_px = 129 if network.dim == 2 else 33, receptive_field_px(network)  # halos are dear in 3D
    return [max(3, int(planar * reach / max(reach_px)) // 2 * 2 + 1) for reach in reach_px]


def exact_halo_px(network: UNet) -> list[int]:
    """Return a halo that leaves rounding alone: the receptive field, without the outer half of an anchor's.

    An anchor's filters are Gaussians of Gaussians; that half changes a log-rate by less than 2e-6, measured.
    """
    faint = [reach // 2 for reach in network.anchor.reach_px()] if network.anchored else [0] * network.dim
    return [reach - half for reach, half in zip(receptive_field_px(network), faint, strict=True)]


def measured_halo(network: UNet, denoiser: PhotonDenoiser | None = None, most_px: int | None = None) -> HaloReport:
    """Measure the halo beside which a cut changes less than 3e-3: RMS, in units of the result's.

    A function of the network, or of the denoiser around it, alone: along all axes, on clouds of all sizes at three
    brightnesses. It is looked for up to half of the exact halo and ``most_px``; else it is the exact one, or that.
    """
    # of log-rates only differences mean something
    answer = denoiser or (lambda photons: torch.exp(network(photons).double()))
    box_px = [1] * network.dim if denoiser is None else denoiser.box_px
    exact_px, halo = exact_halo_px(network), list[int]()
    squares = dict.fromkeys(EXPOSURES, 0.0)
    for axes in ([-3], [-2, -1])[3 - network.dim :]:
        exact, box, step = (of[axes[0]] for of in (exact_px, box_px, network.step_px))
        reaches = (-(-exact // 2) + box // 2, exact + box // 2)
        margin, whole = (round_up(min(reach, most_px or reach), step) for reach in reaches)
        profiles = {exposure: _cut(network, answer, axes, margin, exposure) for exposure in EXPOSURES}
        needed = [profile.needed_halo(_SEAM, step) for profile in profiles.values()]
        px = max(whole if found is None else max(found, step) for found in needed)
        halo += [px] * len(axes)
        for exposure, profile in profiles.items():
            squares[exposure] += len(axes) * profile.seam(min(px, margin), beside(px)) ** 2
    return HaloReport(tuple(halo), {exposure: math.sqrt(square) for exposure, square in squares.items()})


def _cut(
    network: UNet, answer: Callable[[Tensor], Tensor], axes: Sequence[int], margin: int, exposure: float
) -> EdgeProfile:
    """Cut so much off both ends of clouds along each of the axes, which are alike, and compare."""
    wholes, cuts = [], []
    for axis in axes:
        sizes = [round_up(size, step) for size, step in zip(_ACROSS_PX[network.dim], network.step_px, strict=True)]
        sizes[axis] = 4 * margin + 2 * round_up(beside(0), network.step_px[axis])
        photons = clouds(network, sizes, exposure)
        inner = photons.narrow(axis, margin, sizes[axis] - 2 * margin)
        with torch.inference_mode():
            wholes.append(answer(photons).narrow(axis, margin, inner.shape[axis]).movedim(axis, 0).cpu())
            cuts.append(answer(inner.contiguous()).movedim(axis, 0).cpu())
    return EdgeProfile.of(torch.cat(wholes, 1).numpy(), torch.cat(cuts, 1).numpy(), 0)


def clouds(network: UNet, sizes: Sequence[int], exposure: float) -> Tensor:
    """Return counts of clouds of all sizes, with so many photons per pixel, on the network's device."""
    generator, light = torch.Generator().manual_seed(0), torch.zeros(1, network.channels, *sizes)
    inside: Any = (..., *map(slice, sizes))
    for cloud in _CLOUDS_PX:
        drawn = torch.randn(1, network.channels, *(-(-size // cloud) + 1 for size in sizes), generator=generator)
        mode = "bilinear" if network.dim == 2 else "trilinear"
        light += torch.nn.functional.interpolate(drawn, scale_factor=cloud, mode=mode)[inside]
    light = light.exp()
    return torch.poisson(light * (exposure / light.mean()), generator).to(next(network.parameters()).device)


def receptive_field_px(network: UNet) -> list[int]:
    """Return how far, per spatial axis, the farthest input pixel lies that changes an output pixel."""
    reaches = []
    for axis in range(network.dim):
        reach = _reach_px(network, [axis > 0 or network.dim == 2 or z for z in network.along_z])
        fold = network.stem if axis >= network.dim - 2 else 1
        # a convolution that folds sees no neighbours, and then a pixel is all that was folded
        reaches.append(reach * fold - 1 if network.stem > 1 else reach)
    anchors = network.anchor.reach_px() if network.anchored else [0] * network.dim
    return [reach + own for reach, own in zip(reaches, anchors, strict=True)]


def _reach_px(network: UNet, along: list[bool]) -> int:
    """Return that of the U-Net along an axis, which some levels convolve and pool."""
    step = 2 ** sum(along[:-1])
    low = high = torch.arange(64 * step)  # first and last input pixel behind each pixel; of a line, far from its ends
    skips = []
    for level, pooled in enumerate(along):
        low, high = (low.roll(3), high.roll(-3)) if pooled else (low, high)
        if level < len(along) - 1:
            skips.append((low, high))
            low, high = (low[::2], high[1::2]) if pooled else (low, high)
    for (skip_low, skip_high), pooled in zip(reversed(skips), reversed(along[:-1]), strict=True):
        if pooled:
            low, high = low.repeat_interleave(2), high.repeat_interleave(2)
            if network.upsampled:  # linearly between two pixels
                low, high = low.roll(1), high.roll(-1)
        if network.upsampled and network.dim == 3:  # and then convolved
            low, high = low.roll(1), high.roll(-1)
        low, high = torch.minimum(low, skip_low), torch.maximum(high, skip_high)
        low, high = (low.roll(3), high.roll(-3)) if pooled else (low, high)
    place = torch.arange(32 * step, 33 * step)
    return int(torch.maximum(place - low[place], high[place] - place).max())
