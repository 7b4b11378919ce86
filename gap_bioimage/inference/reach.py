"""How far the network looks: the halo with which tiles agree exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gap_bioimage.network import UNet


def receptive_field_px(network: UNet) -> list[int]:
    """Return how far, per spatial axis, the farthest input pixel lies that changes an output pixel."""
    reaches = []
    for axis in range(network.dim):
        along = [axis > 0 or network.dim == 2 or z for z in network.along_z]
        wide_up = network.upsampled and network.dim == 3
        step, reach = network.step_px[axis], 0
        for position in range(step):
            low, high = _needed((position, position), 0, along, network.upsampled, wide_up)
            reach = max(reach, position - low, high - position)
        reaches.append(reach)
    if network.anchored:
        reaches = [reach + features for reach, features in zip(reaches, network.anchor.reach_px(), strict=True)]
    return reaches


def _needed(
    interval: tuple[int, int],
    stage: int,
    along: list[bool],
    upsampled: bool,
    wide_up: bool,
) -> tuple[int, int]:
    """Input pixels that the decoder's outputs ``interval`` of a stage depend on, along one axis."""
    radius = 3 if along[stage] else 0
    if stage == len(along) - 1:
        return _through_encoder((interval[0] - radius, interval[1] + radius), stage, along)
    low, high = interval[0] - radius, interval[1] + radius
    skip_low, skip_high = _through_encoder((low - radius, high + radius), stage, along)
    if along[stage]:
        low, high = ((low - 1) // 2, (high + 1) // 2) if upsampled else (low // 2, high // 2)
    if wide_up:
        # the convolution follows the upsampling, so it widens what is upsampled by one pixel each side
        low, high = interval[0] - radius - 1, interval[1] + radius + 1
        low, high = ((low - 1) // 2, (high + 1) // 2) if along[stage] else (low, high)
    below_low, below_high = _needed((low, high), stage + 1, along, upsampled, wide_up)
    return min(skip_low, below_low), max(skip_high, below_high)


def _through_encoder(interval: tuple[int, int], stage: int, along: list[bool]) -> tuple[int, int]:
    """Input pixels behind the inputs ``interval`` of an encoder block."""
    low, high = interval
    for above in reversed(range(stage)):
        radius = 3 if along[above] else 0
        if along[above]:
            low, high = 2 * low, 2 * high + 1
        low, high = low - radius, high + radius
    return low, high
