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

    def indices(self) -> Any:
        """Return the three for arrays with further axes before."""
        return [(..., *part) for part in self]


def tiles(shape: Sequence[int], tile_px: Sequence[int], halo_px: Sequence[int], step_px: Sequence[int]) -> list[Tile]:
    """Cover ``shape`` with tiles of at most ``tile_px``, halo included; halos are rounded up to steps."""
    _check_sizes("tile", tile_px, len(shape), 1)
    _check_sizes("halo", halo_px, len(shape), 0)
    axes = [
        _axis_tiles(size, tile, round_up(halo, step), step)
        for size, tile, halo, step in zip(shape, tile_px, halo_px, step_px, strict=True)
    ]
    return [Tile(*zip(*parts, strict=True)) for parts in itertools.product(*axes)]


def _check_sizes(name: str, sizes: Sequence[int], dim: int, least: int) -> None:
    axes, given = ", ".join("zyx"[-dim:]), ", ".join(map(str, sizes))
    if len(sizes) != dim:
        count = "1 number was" if len(sizes) == 1 else f"{len(sizes)} numbers were"
        example = ",".join([str(max(sizes, default=64))] * dim)
        raise ConfigError(f"the {name} is {given} px: {count} given, expected {dim} ({axes}), such as {example}")
    if min(sizes) < least:
        raise ConfigError(f"the {name} is {given} px, expected {dim} numbers ({axes}) of at least {least}")


def _axis_tiles(size: int, tile: int, halo: int, step: int) -> Iterator[tuple[slice, slice, slice]]:
    if size <= tile:
        yield slice(0, size), slice(0, size), slice(0, size)
        return
    block = (tile - 2 * halo) // step * step
    if block < step:
        raise ConfigError(
            f"a tile of {tile} px cannot hold a halo of {halo} px on both sides and a block of {step} px; "
            f"give tiles of at least {2 * halo + step} px"
        )
    for start in range(0, size, block):
        stop = min(start + block, size)
        first, last = max(0, start - halo), min(size, stop + halo)
        yield slice(first, last), slice(start, stop), slice(start - first, stop - first)


class TiledNetwork:
    """A network that runs tile by tile on a device; counts (b, c, [z,] y, x) in, log-rates out.

    With the default halo the result is that of the whole image to rounding: the receptive field, without the outer half
    of an anchor's, whose filters are Gaussians of Gaussians (changes below 2e-6 of a log-rate, measured). On the CPU it
    does not depend on the batch.
    """

    def __init__(
        self,
        network: UNet,
        tile_px: Sequence[int] | None = None,
        halo_px: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> None:
        # channels last: a fifth to a third less time on CPUs in 2D, no gain in 3D
        layout: Any = {"memory_format": torch.channels_last} if network.dim == 2 else {}
        try:
            self.network = network.to(device, **layout)
        except (RuntimeError, AssertionError, NotImplementedError):  # what torch raises depends on the device
            raise ConfigError(
                f"device {device!r} cannot be used here; expected cpu, or cuda where torch finds a GPU"
            ) from None
        self.tile_px, self.step = tile_px, list(network.step_px)
        faint = [reach // 2 for reach in network.anchor.reach_px()] if network.anchored else [0] * network.dim
        whole = receptive_field_px(network)
        self.halo_px = [r - f for r, f in zip(whole, faint, strict=True)] if halo_px is None else halo_px
        self.device = next(network.parameters()).device
        self._budget_px = _MEMORY_BYTES / (4 * network.conv_final.in_channels * _ACTIVATION_COPIES)

    def tile_of(self, shape: Sequence[int]) -> Sequence[int]:
        """Return the tile for an image: what was given, or the largest that fits about 2 GB of activations."""
        if self.tile_px is not None:
            return self.tile_px
        tile = list(shape)
        # with less than half a halo in the middle, nearly all of the work would be halo
        minimum = [
            round_up(2 * round_up(h, s) + max(h // 2, s), s) for h, s in zip(self.halo_px, self.step, strict=True)
        ]
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
        """Return log-rates, shape and device of ``photons``, float32; ``on_tile`` gets (tiles done, all tiles)."""
        shape = photons.shape[2:]
        parts = tiles(shape, self.tile_of(shape), self.halo_px, self.step)
        log_rate = torch.empty(photons.shape, dtype=torch.float32, device=photons.device)
        with torch.inference_mode():
            for number, tile in enumerate(parts, 1):
                outer, inner, crop = tile.indices()
                piece = photons[outer].to(self.device, torch.float32)
                # on the CPU image by image, since convolutions of a batch round otherwise there
                pieces = [piece] if self.device.type != "cpu" else piece.chunk(len(piece))
                whole = torch.cat([self.network(part) for part in pieces])
                log_rate[inner] = whole[crop].to(photons.device, torch.float32)
                if on_tile is not None:
                    on_tile(number, len(parts))
        if broken := int((~torch.isfinite(log_rate)).sum()):
            raise BrokenNetworkError(
                f"the network returned {broken} log-rates that are not finite, expected numbers; its training has "
                "diverged or its weights are damaged: train it again, with a lower train.learning_rate"
            )
        return log_rate


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``."""
    return -(-value // step) * step


def receptive_field_px(network: UNet) -> list[int]:
    """Return how far, per spatial axis, the farthest input pixel lies that changes an output pixel."""
    reaches = []
    for axis in range(network.dim):
        along = [axis > 0 or network.dim == 2 or z for z in network.along_z]
        fold = network.stem if axis >= network.dim - 2 else 1
        cells = 1 if network.stem == 1 else 0  # the convolution that folds sees no neighbours
        reach = 0
        for cell in range(network.step_px[axis] // fold):
            low, high = _inputs_of((cell, cell), 0, along, network.upsampled, network.dim)
            reach = max(reach, (cell - low + cells) * fold - 1, (high - cell + cells) * fold - 1)
        reaches.append(reach)
    if network.anchored:
        reaches = [reach + features for reach, features in zip(reaches, network.anchor.reach_px(), strict=True)]
    return reaches


def _inputs_of(span: tuple[int, int], stage: int, along: list[bool], upsampled: bool, dim: int) -> tuple[int, int]:
    """Return the input pixels that the decoder's outputs ``span`` of a stage depend on, along one axis."""
    radius = 3 if along[stage] else 0
    low, high = span[0] - radius, span[1] + radius
    if stage == len(along) - 1:
        return _through_encoder((low, high), stage, along)
    skip_low, skip_high = _through_encoder((low - radius, high + radius), stage, along)
    if upsampled and dim == 3:
        # the convolution follows the upsampling, so it widens what is upsampled by one pixel each side
        low, high = low - 1, high + 1
    if along[stage]:
        low, high = ((low - 1) // 2, (high + 1) // 2) if upsampled else (low // 2, high // 2)
    below_low, below_high = _inputs_of((low, high), stage + 1, along, upsampled, dim)
    return min(skip_low, below_low), max(skip_high, below_high)


def _through_encoder(span: tuple[int, int], stage: int, along: list[bool]) -> tuple[int, int]:
    """Return the input pixels behind the inputs ``span`` of an encoder block."""
    low, high = span
    for above in reversed(range(stage)):
        if along[above]:
            low, high = 2 * low - 3, 2 * high + 4
    return low, high
