"""Tiles that together give the same log-rates as the whole image.

A tile is a block with a halo around it. Blocks start at multiples of the network's pooling step: every tile is pooled
like the whole image. There is no halo beyond the border of the image. An exact halo covers the receptive field, a
measured one the part of it that matters.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from gap_bioimage.errors import BrokenNetworkError, ConfigError
from gap_bioimage.graphs import CHANNELS_LAST, Recorded, has_bf16, with_fused_kernels
from gap_bioimage.inference.reach import EXPOSURES, bytes_per_px, clouds, exact_halo_px, measured_halo, round_up
from gap_bioimage.network import UNet

log = logging.getLogger(__name__)

_MEMORY_BYTES = 2e9  # per tile, if neither its size nor the memory is given
_RECORDED_PX = 2**21  # larger images keep a GPU busy without CUDA graphs
_MOST_BYTES = {"cpu": 8e9, "cuda": 16e9}  # with more memory, halos are only a small part of the work
_TEST_PX = {2: (64, 64), 3: (8, 48, 48)}  # of the images on which bfloat16 is tested
_NEGLIGIBLE = 5e-3  # relative RMS: with an error of a tenth, it costs a hundredth of a dB
_CHANGES: dict[tuple[str, float], float] = {}  # made by bfloat16, by device and a sum over the weights


class Tile(NamedTuple):
    """Where a tile is read, where its block is written, and where the block lies in the tile."""

    outer: tuple[slice, ...]
    inner: tuple[slice, ...]
    crop: tuple[slice, ...]


def tiles(
    shape: Sequence[int],
    tile_px: Sequence[int],
    halo_px: Sequence[int],
    step_px: Sequence[int],
    wanted: Sequence[slice] | None = None,
) -> list[Tile]:
    """Cover ``shape``, or its ``wanted`` part, with tiles of at most ``tile_px``, halo (in whole steps) included."""
    cuts = [slice(0, size) for size in shape] if wanted is None else wanted
    axes = itertools.starmap(_axis_tiles, zip(shape, cuts, tile_px, halo_px, step_px, strict=True))
    return [Tile(*zip(*parts, strict=True)) for parts in itertools.product(*axes)]


def check_sizes(name: str, sizes: Any, dim: int, least: int) -> None:
    """Refuse sizes that are not whole numbers of pixels, one per spatial axis."""
    sizes = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
    if len(sizes) != dim or not all(isinstance(size, Integral) and int(size) >= least for size in sizes):
        text = f"the {name} is {','.join(map(str, sizes))} px, expected {dim} whole numbers ({', '.join('zyx'[-dim:])})"
        raise ConfigError(f"{text} of at least {least}, such as {','.join(['64'] * dim)}")


def _axis_tiles(size: int, wanted: slice, tile: int, halo: int, step: int) -> Iterator[tuple[slice, slice, slice]]:
    if size <= tile:
        yield slice(0, size), slice(0, wanted.stop - wanted.start), wanted
        return
    halo = round_up(halo, step)
    block = (tile - 2 * halo) // step * step
    if block < step:
        problem = f"a tile of {tile} px cannot hold a halo of {halo} px on both sides and a block of {step} px"
        raise ConfigError(f"{problem}; give tiles of at least {2 * halo + step} px")
    for start in range(wanted.start, wanted.stop, block):
        stop = min(start + block, wanted.stop)
        first, last = max(0, start - halo), min(size, stop + halo)
        yield slice(first, last), within(slice(start, stop), wanted), slice(start - first, stop - first)


def at(cuts: Iterable[slice]) -> Any:
    """Return the index of a part along the last axes."""
    return (..., *cuts)


def within(cut: slice, outer: slice) -> slice:
    """Return the position of a part in a larger one."""
    return slice(cut.start - outer.start, cut.stop - outer.start)


class TiledNetwork:
    """A network that runs tile by tile on a device; counts (b, c, [z,] y, x) in, log-rates out.

    With the exact halo, the default, the result equals that of the whole image up to rounding. On the CPU it does not
    depend on the batch. ``memory_bytes`` limits the memory of a tile if no tile size is given; if memory runs out all
    the same, tiles are halved.
    """

    def __init__(
        self,
        network: UNet,
        tile_px: Sequence[int] | None = None,
        halo_px: Sequence[int] | None = None,
        device: str = "cpu",
        memory_bytes: float = _MEMORY_BYTES,
        precision: str = "float32",
    ) -> None:
        for name, sizes, least in (("tile", tile_px, 1), ("halo", halo_px, 0)):
            if sizes is not None:
                check_sizes(name, sizes, network.dim, least)
        device, order = best_device(device), CHANNELS_LAST[network.dim]
        try:
            self.network: UNet = network.to(device, memory_format=order)  # type: ignore[call-overload]
        except (RuntimeError, AssertionError, NotImplementedError):  # the type depends on the device
            raise ConfigError(f"device {device!r} cannot be used here; expected cpu, or cuda with a GPU") from None
        self.tile_px, self.step, self.bf16 = tile_px, list(network.step_px), False
        self.halo_px, self._halo_given = exact_halo_px(network) if halo_px is None else halo_px, halo_px is not None
        self.device, self._run_by_bf16 = next(network.parameters()).device, dict[bool, Recorded]()
        self._budget_px = memory_bytes / bytes_per_px(network)
        self.choose_precision(precision)

    def measure_halo(self, shape: Sequence[int], block_px: Sequence[int] | None = None) -> None:
        """Measure the halo if none was given and an image is so large that it needs tiles or blocks."""
        cut = (min(part) < part[-1] for part in zip(self.tile_for(shape), block_px or shape, shape, strict=False))
        if not self._halo_given and any(cut):
            self.halo_px = measured_halo(self.network).halo_px

    def tile_for(self, shape: Sequence[int], wanted: Sequence[slice] | None = None) -> Sequence[int]:
        """Return the tile for an image or a part of it: the given one, or the largest that fits the memory."""
        if self.tile_px is not None:
            return self.tile_px
        axes, sizes = range(len(shape)), shape if wanted is None else [cut.stop - cut.start for cut in wanted]
        halos = [2 * round_up(halo, step) for halo, step in zip(self.halo_px, self.step, strict=True)]
        # with blocks smaller than half a halo, nearly all of the work would be halo
        least = [round_up(max(halo // 4, step), step) for halo, step in zip(halos, self.step, strict=True)]
        blocks = [round_up(size, step) for size, step in zip(sizes, self.step, strict=True)]
        tile = list(shape)
        while math.prod(tile) > self._budget_px:
            axis = max(axes, key=lambda a: (blocks[a] + halos[a]) / (least[a] + halos[a]))
            if blocks[axis] <= least[axis]:
                break
            blocks[axis] -= self.step[axis]
            even = round_up(-(-sizes[axis] // -(-sizes[axis] // blocks[axis])), self.step[axis])
            tile[axis] = min(even + halos[axis], shape[axis])
        return tuple(tile)

    def _halve(self, shape: Sequence[int]) -> bool:
        """Halve the tiles for images of this shape; return whether they could become smaller."""
        tile = [min(pair) for pair in zip(self.tile_for(shape), shape, strict=True)]
        self.tile_px, self._budget_px = None, math.prod(tile) / 2
        return math.prod(self.tile_for(shape)) < math.prod(tile)

    def batch_for(self, shape: Sequence[int]) -> int:
        """Return how many images share a run: one on the CPU; on a GPU, as many tiles as fit the memory."""
        if self.device.type == "cpu":
            return 1
        return max(1, int(self._budget_px / math.prod(map(min, self.tile_for(shape), shape))))

    def choose_precision(self, precision: str) -> str:
        """Set and return the precision of convolutions; "auto" is bfloat16 on a GPU if it changes clouds little."""
        if precision not in ("auto", "float32", "bf16"):
            raise ConfigError(f"precision is {precision!r}, expected auto, float32 or bf16")
        if precision == "float32" or (precision == "auto" and not has_bf16(self.device)):
            return "float32"
        norms = torch.stack([weights.detach().double().norm() for weights in self.network.parameters()])
        key = str(self.device), float(norms.sum())
        if key not in _CHANGES:
            _CHANGES[key] = self._change_in_bf16()
        change = _CHANGES[key]
        self.bf16 = precision == "bf16" or change < _NEGLIGIBLE
        precision = "bf16" if self.bf16 else "float32"
        log.info("convolutions run in %s; bf16 changes results by %.2g %% (relative RMS)", precision, 100 * change)
        return precision

    def _change_in_bf16(self) -> float:
        """Return the relative RMS change that bfloat16 makes to the rates of clouds, normalised to the mean."""
        rates, sizes = [], _TEST_PX[self.network.dim]
        photons = torch.cat([clouds(self.network, sizes, exposure) for exposure in EXPOSURES])
        for self.bf16 in (False, True):
            rate = self.network.rate(photons, self(photons), []).double()
            rates.append(rate / rate.flatten(1).mean(1).reshape(-1, *[1] * (rate.dim() - 1)))
        return math.sqrt(float((rates[1] - rates[0]).square().sum() / rates[0].square().sum()))

    def __call__(
        self, photons: Tensor, on_tile: Callable[[int, int], None] | None = None, wanted: Sequence[slice] | None = None
    ) -> Tensor:
        """Return float32 log-rates of ``photons`` or of their ``wanted`` part; ``on_tile`` gets (tiles done, all)."""
        while True:
            try:
                log_rate = self._run(photons, on_tile, wanted)
                break
            except (MemoryError, RuntimeError) as error:
                message = f"{type(error).__name__} {error}".lower()
                out_of_memory = any(words in message for words in ("memoryerror", "out of memory", "allocate memory"))
                if not out_of_memory or not self._halve(photons.shape[2:]):
                    raise
                log.info("memory ran out; tiles are now %s px", " x ".join(map(str, self.tile_for(photons.shape[2:]))))
            torch.cuda.empty_cache()  # does nothing without a GPU
        if broken := int((~torch.isfinite(log_rate)).sum()):
            problem = f"the network returned {broken} log-rates that are not finite, expected finite numbers"
            reason = "its training has diverged or its weights are damaged"
            raise BrokenNetworkError(f"{problem}; {reason}: train it again, with a lower train.learning_rate")
        return log_rate

    def _run(
        self, photons: Tensor, on_tile: Callable[[int, int], None] | None, wanted: Sequence[slice] | None
    ) -> Tensor:
        shape = photons.shape[2:]
        parts = tiles(shape, self.tile_for(shape, wanted), self.halo_px, self.step, wanted)
        sizes = shape if wanted is None else [cut.stop - cut.start for cut in wanted]
        log_rate = torch.empty(*photons.shape[:2], *sizes, dtype=torch.float32, device=photons.device)
        if self.bf16 not in self._run_by_bf16:
            self._run_by_bf16[self.bf16] = Recorded(with_fused_kernels(self.network, self.bf16), _RECORDED_PX)
        with torch.inference_mode():
            for number, tile in enumerate(parts, 1):
                piece = photons[at(tile.outer)].to(self.device, torch.float32)
                # image by image on the CPU, where convolutions of a batch round differently
                pieces = [piece] if self.device.type != "cpu" else piece.chunk(len(piece))
                whole = torch.cat([self._run_by_bf16[self.bf16](part) for part in pieces])
                log_rate[at(tile.inner)] = whole[at(tile.crop)].to(photons.device, torch.float32)
                if on_tile is not None:
                    on_tile(number, len(parts))
        return log_rate


def best_device(device: str) -> str:
    """Return a device; "auto" is a GPU if torch finds one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else str(device)


def tile_memory(device: str) -> float:
    """Return the bytes that a tile may take: half of the free memory, but no more than is useful."""
    cuda = (device := best_device(device)).startswith("cuda") and torch.cuda.is_available()
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    return min(free / 2, _MOST_BYTES["cuda" if cuda else "cpu"])
