"""Tiles that together give the same log-rates as the whole image.

A tile is a block and a halo around it; blocks start at multiples of the network's pooling step, so that
every tile is pooled as the whole image is. At the image's own border there is no halo.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.reach import receptive_field_px

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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


def automatic_batch(network: UNet, shape: Sequence[int], tile_px: Sequence[int] | None = None) -> int:
    """Return how many images share a run of the network: one on the CPU, on a GPU as many tiles as fit 2 GB."""
    if next(network.parameters()).device.type == "cpu":
        return 1
    if tile_px is not None:
        _check_sizes("tile", tile_px, len(shape), 1)
    tile = (
        automatic_tile_px(network, shape)
        if tile_px is None
        else [min(t, s) for t, s in zip(tile_px, shape, strict=True)]
    )
    return max(1, int(_budget_px(network) / math.prod(tile)))


def _budget_px(network: UNet) -> float:
    return _MEMORY_BYTES / (4 * network.conv_final.in_channels * _ACTIVATION_COPIES)


def automatic_tile_px(network: UNet, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the largest tile that fits about 2 GB of activations, the whole image if it does."""
    budget_px = _budget_px(network)
    tile = list(shape)
    minimum = [2 * round_up(reach, step) + step for reach, step in zip(*_reach_and_step(network), strict=True)]
    while math.prod(tile) > budget_px:
        # halve the axis that is longest beyond its minimum
        axis = max(range(len(tile)), key=lambda a: tile[a] / minimum[a])
        if tile[axis] <= minimum[axis]:
            break
        tile[axis] = max(minimum[axis], round_up(tile[axis] // 2, network.step_px[axis]))
    return tuple(tile)


def tiled_log_rate(
    network: UNet,
    photons: Tensor,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run the network tile by tile.

    With the default halo, the receptive field, the result is that of the whole image to rounding. On the CPU it
    does not depend on the batch.

    Parameters
    ----------
    network
        In evaluation mode, on the device to use.
    photons
        Counts (b, c, [z,] y, x) on any device.
    tile_px, halo_px
        Per spatial axis; chosen when None.
    on_tile
        Called with (tiles done, all tiles).

    Returns
    -------
    Tensor
        log-rate, shape and device of ``photons``, float32.
    """
    shape = photons.shape[2:]
    reach, step = _reach_and_step(network)
    parts = tiles(
        shape,
        automatic_tile_px(network, shape) if tile_px is None else tile_px,
        reach if halo_px is None else halo_px,
        step,
    )
    device = next(network.parameters()).device
    log_rate = torch.empty(photons.shape, dtype=torch.float32, device=photons.device)
    with torch.inference_mode():
        for number, tile in enumerate(parts, 1):
            read: Any = (..., *tile.outer)
            write: Any = (..., *tile.inner)
            piece = photons[read].to(device, torch.float32)
            crop: Any = (..., *tile.crop)
            log_rate[write] = _run(network, piece)[crop].to(photons.device, torch.float32)
            if on_tile is not None:
                on_tile(number, len(parts))
    return log_rate


def _run(network: UNet, photons: Tensor) -> Tensor:
    """Run the network; on the CPU image by image, since convolutions of a batch round otherwise there."""
    pieces = [photons] if photons.device.type != "cpu" else photons.chunk(len(photons))
    return torch.cat([network(piece) for piece in pieces])


def _reach_and_step(network: UNet) -> tuple[list[int], list[int]]:
    return receptive_field_px(network), list(network.step_px)


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is at least ``value``."""
    return -(-value // step) * step
