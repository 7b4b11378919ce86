"""Tiles that together give the same log-rates as the whole image.

A tile is a block and a halo around it; blocks start at multiples of the network's pooling step, so that
every tile is pooled as the whole image is. At the image's own border there is no halo.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gap_bioimage.errors import BrokenNetworkError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from gap_bioimage.network import UNet

Slices = tuple[slice, ...]

_ACTIVATION_COPIES = 8  # full-size feature maps alive at once, measured on CPU; rounded up
_MEMORY_BYTES = 2e9  # what one tile may take when no tile size is given


class Tile(NamedTuple):
    """Where a tile is read, where its block is written, and where the block lies in the tile."""

    outer: Slices
    inner: Slices
    crop: Slices


def tiles(shape: Sequence[int], tile_px: Sequence[int], halo_px: Sequence[int], step_px: Sequence[int]) -> list[Tile]:
    """Cover ``shape`` with tiles of at most ``tile_px``, halo included.

    Parameters
    ----------
    shape, tile_px, halo_px, step_px
        Per spatial axis, in pixels. The halo is rounded up to a multiple of the step.

    Raises
    ------
    ConfigError
        If the tile or halo does not fit the axes, or a tile is too small to hold its halo and one step.
    """
    _check_sizes("tile", tile_px, len(shape), 1)
    _check_sizes("halo", halo_px, len(shape), 0)
    axes = [
        _axis_tiles(size, tile, round_up(halo, step), step)
        for size, tile, halo, step in zip(shape, tile_px, halo_px, step_px, strict=True)
    ]
    return [Tile(*zip(*parts, strict=True)) for parts in itertools.product(*axes)]


def _check_sizes(name: str, sizes: Sequence[int], dim: int, least: int) -> None:
    axes = ", ".join("zyx"[-dim:])
    given = ", ".join(map(str, sizes))
    if len(sizes) != dim:
        count = "1 number was" if len(sizes) == 1 else f"{len(sizes)} numbers were"
        example = ",".join([str(max(sizes, default=64))] * dim)
        raise ConfigError(f"the {name} is {given} px: {count} given, expected {dim} ({axes}), such as {example}")
    if min(sizes) < least:
        raise ConfigError(f"the {name} is {given} px, expected {dim} numbers ({axes}) of at least {least}")


def _axis_tiles(size: int, tile: int, halo: int, step: int) -> Iterator[tuple[slice, slice, slice]]:
    if size <= tile:
        return iter([(slice(0, size), slice(0, size), slice(0, size))])
    block = (tile - 2 * halo) // step * step
    if block < step:
        raise ConfigError(
            f"a tile of {tile} px cannot hold a halo of {halo} px on both sides and a block of {step} px; "
            f"give tiles of at least {2 * halo + step} px"
        )
    parts = []
    for start in range(0, size, block):
        stop = min(start + block, size)
        first, last = max(0, start - halo), min(size, stop + halo)
        parts.append((slice(first, last), slice(start, stop), slice(start - first, stop - first)))
    return iter(parts)


class TiledNetwork:
    """A network that runs tile by tile on a device; counts (b, c, [z,] y, x) in, log-rates out.

    With the default halo, the receptive field, the result is that of the whole image to rounding. On the CPU it does
    not depend on the batch.

    Parameters
    ----------
    network
        In evaluation mode; it is moved to the device.
    tile_px, halo_px
        Per spatial axis; chosen when None.
    device
        "cpu", "cuda", ...

    Raises
    ------
    ConfigError
        If torch cannot use the device here.
    """

    def __init__(
        self,
        network: UNet,
        tile_px: Sequence[int] | None = None,
        halo_px: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> None:
        try:
            self.network = network.to(device)
        except (RuntimeError, AssertionError, NotImplementedError):  # what torch raises depends on the device
            raise ConfigError(
                f"device {device!r} cannot be used here; expected cpu, or cuda where torch finds a GPU"
            ) from None
        self.tile_px, self.halo_px = tile_px, halo_px
        self.reach, self.step = receptive_field_px(network), list(network.step_px)
        self.device = next(network.parameters()).device

    def tile_of(self, shape: Sequence[int]) -> Sequence[int]:
        """Return the tile for an image: what was given, or the largest that fits about 2 GB of activations."""
        if self.tile_px is not None:
            return self.tile_px
        tile = list(shape)
        minimum = [2 * round_up(reach, step) + step for reach, step in zip(self.reach, self.step, strict=True)]
        while math.prod(tile) > self._budget_px:
            # halve the axis that is longest beyond its minimum
            axis = max(range(len(tile)), key=lambda a: tile[a] / minimum[a])
            if tile[axis] <= minimum[axis]:
                break
            tile[axis] = max(minimum[axis], round_up(tile[axis] // 2, self.step[axis]))
        return tuple(tile)

    def batch_of(self, shape: Sequence[int]) -> int:
        """Return how many images share a run: one on the CPU, on a GPU as many tiles as fit 2 GB."""
        if self.device.type == "cpu":
            return 1
        _check_sizes("tile", self.tile_of(shape), len(shape), 1)
        tile = [min(t, s) for t, s in zip(self.tile_of(shape), shape, strict=True)]
        return max(1, int(self._budget_px / math.prod(tile)))

    def __call__(self, photons: Tensor, on_tile: Callable[[int, int], None] | None = None) -> Tensor:
        """Return log-rates, shape and device of ``photons``, float32; ``on_tile`` gets (tiles done, all tiles).

        Raises
        ------
        BrokenNetworkError
            If values are not finite.
        """
        shape = photons.shape[2:]
        halo = self.reach if self.halo_px is None else self.halo_px
        parts = tiles(shape, self.tile_of(shape), halo, self.step)
        log_rate = torch.empty(photons.shape, dtype=torch.float32, device=photons.device)
        with torch.inference_mode():
            for number, tile in enumerate(parts, 1):
                indices: list[Any] = [(..., *part) for part in tile]
                read, write, crop = indices
                piece = photons[read].to(self.device, torch.float32)
                # on the CPU image by image, since convolutions of a batch round otherwise there
                pieces = [piece] if self.device.type != "cpu" else piece.chunk(len(piece))
                whole = torch.cat([self.network(part) for part in pieces])
                log_rate[write] = whole[crop].to(photons.device, torch.float32)
                if on_tile is not None:
                    on_tile(number, len(parts))
        if not bool(torch.isfinite(log_rate).all()):
            broken = int((~torch.isfinite(log_rate)).sum())
            raise BrokenNetworkError(
                f"the network returned {broken} log-rates that are not finite, expected numbers; its training has "
                "diverged or its weights are damaged: train it again, with a lower train.learning_rate"
            )
        return log_rate

    @property
    def _budget_px(self) -> float:
        return _MEMORY_BYTES / (4 * self.network.conv_final.in_channels * _ACTIVATION_COPIES)


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``."""
    return -(-value // step) * step


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
