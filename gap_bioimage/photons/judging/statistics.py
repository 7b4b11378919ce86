"""Numbers that tell photon counts from other images, gathered piece by piece from arrays of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

_CHUNK_PX = 1 << 24
_LEVELS_BELOW = 5  # values just under the maximum, to see whether pixels pile up at it
_BLOCK_PX = 8
_NOISE_PLANES = 64
_NOISE_SIDE_PX = 2048
_GROUPS = 16
_MEDIAN_BIAS = 1.03  # a chi-square's median is below its mean
_LEAST_PX = 36  # fewer residuals can be alike by chance
_GROUP_PHOTONS = 200  # so that a group's variance is known to about 15 %


@dataclass(frozen=True)
class Statistics:
    """One pass over all pixels; sums and extremes are over finite values."""

    pixels: int
    nonfinite: int
    fractional: int
    zeros: int
    minimum: float
    maximum: float
    total: float
    lattice: int
    """Greatest common divisor of all values; 0 when all are zero, 1 when not all are whole numbers."""
    at_maximum: int
    below_maximum: float
    """Mean number of pixels per value, over the five values below the maximum."""

    @property
    def mean(self) -> float:
        """Photons per pixel."""
        return self.total / max(self.pixels - self.nonfinite, 1)


@dataclass(frozen=True)
class Noise:
    """Variance over mean (the Fano factor) of pixels against their neighbours: 1 for photon counts."""

    dark: float
    """In the darker third of the image; an offset makes it small, and structure only adds."""
    bright: float
    """In the brightest part; a detector's dead time makes it small."""
    smallest: float
    """Where it is smallest, that is in the smoothest part; a gain makes even this large."""
    relative_error: float


def scan(values: npt.NDArray[Any]) -> Statistics:
    """Gather the statistics of an array of real numbers or booleans, of any shape and size."""
    nonfinite = fractional = zeros = 0
    minimum, maximum, total, lattice = math.inf, -math.inf, 0.0, 0
    top = np.zeros(_LEVELS_BELOW + 1, dtype=np.int64)  # pixels at the maximum, maximum - 1, ...
    for chunk in _chunks(values):
        chunk = chunk.astype(np.uint8) if chunk.dtype == bool else chunk
        if chunk.dtype.kind == "f":
            finite = chunk[np.isfinite(chunk)]
            nonfinite += chunk.size - finite.size
            fractional += int(np.count_nonzero(finite != np.rint(finite)))
            chunk = finite
        if not chunk.size:
            continue
        zeros += chunk.size - int(np.count_nonzero(chunk))
        minimum = min(minimum, float(chunk.min()))
        total += float(chunk.sum(dtype=np.float64))
        lattice = 1 if fractional else _lattice(chunk, lattice)
        higher = max(maximum, float(chunk.max()))
        top = _shift(top, higher - maximum) + _top_levels(chunk, higher)
        maximum = higher
    if math.isinf(minimum):
        minimum = maximum = math.nan
    below = float(top[1:].mean())
    return Statistics(values.size, nonfinite, fractional, zeros, minimum, maximum, total, lattice, int(top[0]), below)


def estimate_noise(values: npt.NDArray[Any]) -> Noise | None:
    """Estimate variance over mean from a high-pass residual, for images with axes ``..., y, x``.

    The residual is that of Immerkaer's double Laplacian, which is blind to linear gradients: for independent
    pixels its variance is that of the pixels, averaged with known weights. Blocks of similar brightness are
    taken together, and bright ones by their median, which ignores edges of structures.

    Returns
    -------
    Noise or None
        None where there are fewer than about 36 pixels or 20 photons.

    Notes
    -----
    J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996).
    """
    if values.ndim < 2 or min(values.shape[-2:]) < 3:
        return None
    blocks = [_block_noise(plane) for plane in _some_planes(values)]
    mean = np.concatenate([m for m, _ in blocks])
    variance = np.concatenate([v for _, v in blocks])
    block_px = _block_side(values) ** 2
    order = np.argsort(mean, kind="stable")
    mean, variance = mean[order], variance[order]
    if len(mean) * block_px < _LEAST_PX or mean.sum() * block_px < 20:
        return None
    groups = _groups(mean, block_px)
    fano = np.array([_fano(mean[g], variance[g]) for g in groups])
    dark = max(1, len(fano) // 3)
    # Neighbouring residuals are correlated: the squares' mean has 3.8 times the variance of independent ones.
    error = math.sqrt(2 * 3.8 / (block_px * sum(len(mean[g]) for g in groups[:dark])))
    return Noise(float(np.median(fano[:dark])), float(fano[-1]), float(fano.min()), error)


def _chunks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield pieces of about 16 million pixels; a reshape would copy a transposed memory map."""
    if values.size <= _CHUNK_PX or values.ndim == 0:
        yield np.asarray(values)
        return
    rest = values.size // len(values)
    if rest > _CHUNK_PX:
        for part in values:
            yield from _chunks(part)
        return
    step = max(1, _CHUNK_PX // rest)
    for start in range(0, len(values), step):
        yield np.asarray(values[start : start + step])


def _lattice(chunk: npt.NDArray[Any], lattice: int) -> int:
    if lattice == 1:
        return 1
    head = np.abs(chunk.ravel()[:4096].astype(np.int64))
    lattice = math.gcd(lattice, int(np.gcd.reduce(head)))
    if lattice == 1:  # nearly always, and known from a few pixels
        return 1
    return math.gcd(lattice, int(np.gcd.reduce(np.abs(chunk.astype(np.int64)), axis=None)))


def _top_levels(chunk: npt.NDArray[Any], maximum: float) -> npt.NDArray[np.int64]:
    near = chunk[chunk >= maximum - _LEVELS_BELOW]
    depth = (maximum - near.astype(np.float64)).astype(np.int64)
    return np.bincount(depth, minlength=_LEVELS_BELOW + 1).astype(np.int64)


def _shift(top: npt.NDArray[np.int64], by: float) -> npt.NDArray[np.int64]:
    if by >= len(top):
        return np.zeros_like(top)
    lower = int(by)
    return np.concatenate([np.zeros(lower, dtype=np.int64), top[: len(top) - lower]])


def _some_planes(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    count = math.prod(values.shape[:-2])
    window = tuple(slice(max(0, (n - _NOISE_SIDE_PX) // 2), (n + _NOISE_SIDE_PX) // 2) for n in values.shape[-2:])
    chosen = np.unique(np.linspace(0, count - 1, min(count, _NOISE_PLANES)).astype(int))
    for index in chosen:
        plane = values[np.unravel_index(index, values.shape[:-2])] if values.ndim > 2 else values
        yield np.asarray(plane[window], dtype=np.float64)


def _block_side(values: npt.NDArray[Any]) -> int:
    rows, columns = (int(n) for n in values.shape[-2:])
    return min(_BLOCK_PX, rows - 2, columns - 2)


def _block_noise(plane: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the mean and noise variance of each block of a plane."""
    # A photon enters both with the same weight, so that even a block with one photon has ratio 1.
    residual = _separable(plane, [1, -2, 1]) / 6
    mean = _separable(plane, [1, 4, 1]) / 36
    side = _block_side(plane)

    return block_means(mean, side), block_means(residual**2, side)


def block_means(image: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    """Return the means of square blocks of ``side`` pixels, flat; what is left over at the far ends is not used."""
    height, width = (min(side, n) for n in image.shape)
    rows, columns = image.shape[0] // height, image.shape[1] // width
    whole = image[: rows * height, : columns * width].reshape(rows, height, columns, width)
    means: npt.NDArray[np.float64] = whole.mean((1, 3)).ravel()
    return means


def _separable(plane: npt.NDArray[np.float64], weights: list[float]) -> npt.NDArray[np.float64]:
    for axis in (0, 1):
        plane = ndimage.correlate1d(plane, weights, axis=axis)
    return plane[1:-1, 1:-1]


def _groups(mean: npt.NDArray[np.float64], block_px: int) -> list[slice]:
    """Split blocks sorted by brightness into groups with enough photons each."""
    photons = np.cumsum(mean) * block_px
    size = max(1, math.ceil(len(mean) / _GROUPS))
    groups, start = [], 0
    while start < len(mean):
        before = photons[start - 1] if start else 0.0
        stop = max(start + size, int(np.searchsorted(photons, before + _GROUP_PHOTONS)) + 1)
        groups.append(slice(start, stop))
        start = stop
    if len(groups) > 1 and photons[-1] - photons[groups[-1].start - 1] < _GROUP_PHOTONS:
        groups[-2:] = [slice(groups[-2].start, len(mean))]
    return groups


def _fano(mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64]) -> float:
    """Return variance / mean of a group: its median over photons where blocks are bright enough to tell."""
    if mean.mean() < 1:
        return float(variance.sum() / mean.sum())
    ratio = variance / np.maximum(mean, 1e-9)
    order = np.argsort(ratio)
    # Weighted by photons, because a group may be many empty blocks and one bright one.
    middle = np.searchsorted(np.cumsum(mean[order]), 0.5 * mean.sum())
    return float(ratio[order[min(middle, len(order) - 1)]]) * _MEDIAN_BIAS
