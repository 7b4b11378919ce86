"""The smallest halo with which tiles of a network agree with the whole image, measured, and the sizes that it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gap_bioimage.inference.tiling import receptive_field_px, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gap_bioimage.network import PhotonDenoiser


EXPOSURES = (0.03, 0.3, 3.0)
"""Mean photons per pixel at which tiles are compared with the whole image."""
TOLERANCE = 0.01
"""Largest relative RMS difference between tiled and whole."""
_AIM = TOLERANCE / 2  # other images than the measured one have other seams, up to twice as strong
_LARGEST_PX = {2: 160, 3: 40}  # wider halos are not practical in the consumers' tiles
_BLOCK_STEPS = {2: 4, 3: 2}
_SLICE_PX = 32  # width of the image along axes that are not cut


@dataclass(frozen=True)
class HaloReport:
    """A halo in pixels per spatial axis, and the relative RMS difference it leaves at each exposure.

    Attributes
    ----------
    halo_px
        The halo.
    relative_rms
        Of tiles that start at multiples of the network's step.
    off_grid_rms
        Of what lies far from all borders, if y and x start half a step beside a multiple: other pixels are pooled.
    """

    halo_px: tuple[int, ...]
    relative_rms: dict[float, float]
    off_grid_rms: dict[float, float]


@dataclass(frozen=True)
class Sizes:
    """Input sizes that a model accepts, per spatial axis: ``min_px + n step_px``, and the halo."""

    min_px: tuple[int, ...]
    step_px: tuple[int, ...]
    halo_px: tuple[int, ...]

    @classmethod
    def of(cls, step_px: Sequence[int], halo_px: Sequence[int]) -> Sizes:
        """Choose the smallest size as a multiple of the step that holds two halos and as much again as block.

        A tile of the smallest size then spends at most three quarters of an axis on its halo.
        """
        minimum = []
        for step, halo in zip(step_px, halo_px, strict=True):
            block = max(step, 2 * halo // 3)
            minimum.append(round_up(2 * halo + block, step))
        return cls(tuple(minimum), tuple(step_px), tuple(halo_px))


def default_box_px(denoiser_reach_px: Sequence[int]) -> list[int]:
    """Return the box in which an exported graph conserves photons.

    129 px in the plane in 2D, 33 in 3D where halos are dear; along z in proportion to the network's own reach.
    """
    planar = 129 if len(denoiser_reach_px) == 2 else 33
    widest = max(denoiser_reach_px)
    return [max(3, int(planar * reach / widest) // 2 * 2 + 1) for reach in denoiser_reach_px]


def measure_halo(denoiser: PhotonDenoiser, counts: np.ndarray, seed: int = 0) -> HaloReport:
    """Measure how wide a halo tiles need.

    A tile is cut out of a larger image, and the difference between the tile's result and the image's is
    looked at as a function of the distance to the cut: one pair of runs judges every halo. The images are
    Poisson counts of the network's own denoised version of real counts, at three exposures.

    Parameters
    ----------
    denoiser
        The module to export.
    counts
        Real counts (c, [z,] y, x).
    seed
        For the Poisson counts.
    """
    network = denoiser.network
    step = network.step_px
    reach = [
        round_up(min(field + box // 2, _LARGEST_PX[network.dim]), s)
        for field, box, s in zip(receptive_field_px(network), denoiser.box_px, step, strict=True)
    ]
    tile = [2 * r + _BLOCK_STEPS[network.dim] * s for r, s in zip(reach, step, strict=True)]
    whole = [t + 2 * r for t, r in zip(tile, reach, strict=True)]
    scene = _extended_scene(denoiser, counts, whole)
    generator = torch.Generator().manual_seed(seed)
    # z and the plane are cut in turn; where both are, their differences add up in squares
    groups = [[0, 1]] if network.dim == 2 else [[0], [1, 2]]
    allowed = _AIM / math.sqrt(len(groups))
    cuts: list[tuple[float, list[int], Tensor, Tensor]] = []
    off_grid: dict[float, float] = {}
    for exposure in EXPOSURES:
        image = torch.poisson(scene * (exposure / float(scene.mean())), generator)
        cuts.extend((exposure, group, *_whole_and_cut(denoiser, image, reach, group)) for group in groups)
        off_grid[exposure] = _off_grid(denoiser, image, reach, step)
    halo = [0] * network.dim
    for _, group, expected, difference in cuts:
        needed = _needed_halo(expected, difference, group, reach, step, allowed)
        for axis in group:
            halo[axis] = max(halo[axis], needed[axis])
    squares = dict.fromkeys(EXPOSURES, 0.0)
    for exposure, group, expected, difference in cuts:
        squares[exposure] += _remaining(expected, difference, group, halo) ** 2
    return HaloReport(tuple(halo), {exposure: math.sqrt(value) for exposure, value in squares.items()}, off_grid)


def _whole_and_cut(
    denoiser: PhotonDenoiser, image: Tensor, reach: list[int], group: list[int]
) -> tuple[Tensor, Tensor]:
    """Return a region of the whole image's result, and what changes when the image is cut around it."""
    cut: Any = (..., *(slice(r, -r) if axis in group else slice(None) for axis, r in enumerate(reach)))
    # a slice is enough along the other axes: a whole cube of a large 3D network would not fit into memory
    image = image[(..., *(slice(None) if axis in group else slice(0, _SLICE_PX) for axis in range(len(reach))))]
    with torch.inference_mode():
        expected = denoiser(image)[cut]
        return expected, denoiser(image[cut].contiguous()) - expected


def _off_grid(denoiser: PhotonDenoiser, image: Tensor, reach: list[int], step: Sequence[int]) -> float:
    """Relative RMS difference, far from the borders, when y and x start half a step later."""
    blocks = _BLOCK_STEPS[len(step)]
    sizes = [2 * r + blocks * s for r, s in zip(reach[-2:], step[-2:], strict=True)]
    image = image[..., : sizes[0], : sizes[1]]
    image = image[:, :, :_SLICE_PX] if len(step) == 3 else image
    half = [s // 2 for s in step[-2:]]
    y, x = (slice(r, -r) for r in reach[-2:])
    moved_y, moved_x = (slice(r - h, -r) for r, h in zip(reach[-2:], half, strict=True))
    with torch.inference_mode():
        expected = denoiser(image)[..., y, x]
        moved = denoiser(image[..., half[0] :, half[1] :].contiguous())[..., moved_y, moved_x]
    return float((moved - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-30))


def _needed_halo(
    expected: Tensor,
    difference: Tensor,
    group: list[int],
    reach: list[int],
    step: Sequence[int],
    allowed: float,
) -> list[int]:
    """Return the smallest halo, in steps of the network, that leaves less than the allowed difference."""
    halo = [0] * len(reach)
    for number in range(1, max(reach[axis] // step[axis] for axis in group) + 1):
        for axis in group:
            halo[axis] = min(number * step[axis], reach[axis])
        if _remaining(expected, difference, group, halo) < allowed:
            break
    return halo


def _remaining(expected: Tensor, difference: Tensor, group: list[int], halo: Sequence[int]) -> float:
    """Relative RMS difference inside the halo, as near to the cuts as the block of the smallest tile lies."""
    for axis in group:
        size, width = expected.shape[axis + 2], halo[axis]
        half = min(max(1, width // 3), size // 2 - width)  # of the smallest block, see Sizes.of
        near = torch.cat([torch.arange(width, width + half), torch.arange(size - width - half, size - width)])
        expected, difference = expected.index_select(axis + 2, near), difference.index_select(axis + 2, near)
    rms = float(expected.square().mean().sqrt())
    return float(difference.square().mean().sqrt()) / max(rms, 1e-30)


def _extended_scene(denoiser: PhotonDenoiser, counts: np.ndarray, size: Sequence[int]) -> Tensor:
    """Denoise the counts and mirror the result up to ``size``, (1, c, [z,] y, x)."""
    with torch.inference_mode():
        scene = denoiser(torch.from_numpy(counts.astype(np.float32))[None])[0].numpy()
    return torch.from_numpy(mirrored(scene, size))[None]


def mirrored(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Cut or mirror the spatial axes of an image (c, [z,] y, x) to a size."""
    cut: Any = (..., *(slice(0, wanted) for wanted in size))
    image = image[cut]
    missing = [(0, wanted - have) for wanted, have in zip(size, image.shape[1:], strict=True)]
    return np.pad(image, [(0, 0), *missing], mode="symmetric")
