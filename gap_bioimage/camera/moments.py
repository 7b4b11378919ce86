"""Statistics of all pixels and moments of the noise in blocks, on which ``calibrate`` and ``inspect`` rest.

The noise is taken from differences between frames of the same field, or from the highest spatial frequencies of a
single image, which optics do not resolve. Both are sums ``r = sum w x`` with ``sum w = 0`` over pixels of equal signal:
``E r^2 / sum w^2`` is then the variance of a pixel and ``E r^3 / sum w^3`` its third central moment.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]

TRIPLE, PAIR = np.array([1.0, -2, 1]), np.array([1.0, -1])  # differences in time; three frames cancel linear drift
RIPPLE = np.array([1.0, -4, 6, -4, 1])  # high-pass in space, along y and x; cancels cubic polynomials
# high-pass along one axis, for the correlation along the other: 90 % of it above 0.7 of the highest frequency
_FINEST = np.array([1.0, -8, 28, -56, 70, -56, 28, -8, 1])
NEAR = 9  # pixels averaged in ``Moments.smooth``
LEAST_PX = 12  # side of the smallest image whose noise can be measured
BLOCK_PX = 8  # side of a block
_SHORT_BLOCK_PX, _LONG = 4, 34  # side of a block in movies of at least so many frames, to resolve small objects
_ENOUGH_BLOCKS = 64  # blocks per plane: smaller images get smaller blocks
_SIDE_PX = 1024  # side of the central window that is measured
_PLANES = 64  # most planes of an array that cannot be reshaped without a copy
_PIXELS = 120_000_000  # most pixels measured for a calibration, about ten seconds
FEW_PIXELS = 1 << 22  # most pixels measured to judge an image
SATURATED = 0.01  # fraction of saturated values in a block above which the block is left out
_CHUNK_PX = 1 << 24  # pixels scanned at a time
_LEVELS_BELOW = 5  # values just below the maximum that show whether pixels pile up at it
_CEILINGS = (255, 1023, 4095, 16383, 65535)  # largest values of 8, 10, 12, 14 and 16 bits


@dataclass(frozen=True)
class Statistics:
    """Statistics of all pixels; the sum and extremes are those of finite values."""

    pixels: int
    nonfinite: int = 0
    fractional: int = 0
    zeros: int = 0
    minimum: float = math.nan
    maximum: float = math.nan
    total: float = 0.0
    lattice: int = 1  # greatest common divisor of all values; 0 if all are zero, 1 if some are fractional
    at_maximum: int = 0  # pixels at the maximum
    below_maximum: float = 0.0  # mean number of pixels at each of the five values below it

    @property
    def mean(self) -> float:
        """Mean of the finite values."""
        return self.total / max(self.pixels - self.nonfinite, 1)

    def piled_up(self, dtype: np.dtype[Any]) -> bool:
        """Whether pixels pile up at the maximum, more than at the values just below: it is then a ceiling."""
        step = max(self.lattice, 1)
        below = self.below_maximum * _LEVELS_BELOW / max(_LEVELS_BELOW // step, 1)  # per multiple of the divisor
        if self.maximum / step in _CEILINGS or (dtype.kind in "iu" and self.maximum == np.iinfo(dtype).max):
            return self.at_maximum >= 5 and self.at_maximum > 2 * below
        return step <= _LEVELS_BELOW and self.maximum >= 20 and self.at_maximum >= 10 and self.at_maximum > 5 * below


def scan(values: Values) -> Statistics:
    """Return the statistics of an array of real numbers or booleans of any shape and size, read in chunks."""
    nonfinite = fractional = zeros = lattice = 0
    minimum, maximum, total = math.inf, -math.inf, 0.0
    near: Counter[float] = Counter()  # number of pixels at each of the highest values
    chunks: Any = np.nditer(values, ["buffered", "external_loop", "zerosize_ok"], buffersize=_CHUNK_PX)
    for chunk in chunks:
        chunk = chunk.view(np.uint8) if chunk.dtype == bool else chunk
        if chunk.dtype.kind == "f":
            finite = chunk[np.isfinite(chunk)]
            nonfinite += chunk.size - finite.size
            fractional += int(np.count_nonzero(finite != np.rint(finite)))
            chunk = finite
        if not chunk.size:
            continue
        zeros += chunk.size - int(np.count_nonzero(chunk))
        minimum, highest = min(minimum, float(chunk.min())), chunk.max().item()
        maximum = max(maximum, float(highest))
        total += float(chunk.sum(dtype=np.float64))
        near.update({highest - k: int(np.count_nonzero(chunk == highest - k)) for k in range(_LEVELS_BELOW + 1)})
        lattice = 1 if max(maximum, -minimum) >= 2**63 else lattice  # too large for int64
        for part in (chunk[:4096], chunk):  # a few pixels nearly always suffice to find a divisor of 1
            if lattice != 1 and not fractional:
                lattice = math.gcd(lattice, int(np.gcd.reduce(np.abs(part.astype(np.int64)))))
    if math.isinf(minimum):
        minimum = maximum = math.nan
    below = sum(near[maximum - k] for k in range(1, _LEVELS_BELOW + 1)) / _LEVELS_BELOW
    lattice = 1 if fractional else lattice
    return Statistics(values.size, nonfinite, fractional, zeros, minimum, maximum, total, lattice, near[maximum], below)


@dataclass(frozen=True)
class Moments:
    """Noise in square blocks of pixels, averaged over the frames; arrays (blocks,) in powers of ADU."""

    mean: Floats
    variance: Floats
    third: Floats  # third central moment; NaN for two frames, whose difference is symmetric
    zeros: Floats  # fraction of zeros; 0 among negative values
    saturated: Floats  # fraction of saturated values, and of cleared ones
    samples: Floats  # pixels times frames
    inflation: Floats  # of the sampling variance: n overlapping sums are worth n / inflation independent pixels
    cube_variance: Floats  # variance of the cubes, in units of variance^3
    pair_inflation: Floats  # the same for products of neighbours
    around: Floats  # mean of the wider neighbourhood
    smooth: Floats  # the variance again, from means of neighbouring pixels: larger where something moves or flickers
    pairs: Floats  # (4, blocks): products of neighbours along y and x, then the squares that normalise them

    def at(self, blocks: Values | slice) -> Moments:
        """Return the moments of a selection of blocks."""
        return Moments(*(getattr(self, field.name)[..., blocks] for field in fields(self)))

    def variance_of_variance(self, variance: Floats, gain: float) -> Floats:
        """Return the sampling variance of ``variance``; light adds its kurtosis, ``gain^2 variance``."""
        return (2 * self.inflation * variance**2 + gain**2 * variance) / self.samples

    def variance_of_third(self, variance: Floats, gain: float) -> Floats:
        """Return the sampling variance of ``third``."""
        light = 18 * gain**2 * variance**2 + gain**4 * variance
        return (self.cube_variance * variance**3 + light) / self.samples


@dataclass(frozen=True)
class Snapshot:
    """A plane at one time: images (y, x), and the frames that they were made from."""

    plane: int
    mean: Floats
    noise: Floats  # difference of frames, scaled to the variance of one; without differences the frame itself
    frames: Floats  # (frames, y, x)


def as_stack(values: Values, time: int | None = None) -> Values:
    """Return an array (..., y, x) as (planes, frames, y, x); only some planes of a large transposed memory map."""
    stack = np.expand_dims(values, -3) if time is None else np.moveaxis(values, time, -3)
    outer, inner = stack.shape[:-3], stack.shape[-3:]
    count = math.prod(outer)
    if len(outer) < 2 or stack.flags.c_contiguous or count <= _PLANES:
        return stack.reshape(count, *inner)
    chosen = np.unravel_index(np.linspace(0, count - 1, _PLANES).astype(int), outer)
    return np.stack([stack[index] for index in zip(*chosen, strict=True)])


def snapshots_of(
    stack: Values, most: int, in_time: bool, hot: Flags | None = None, pattern: Floats | None = None
) -> Iterator[Snapshot]:
    """Yield evenly spaced planes of a stack (planes, frames, y, x), cut to a central window: about ``most`` pixels.

    A median of neighbours replaces ``hot`` pixels (y, x). The fixed-pattern offset ``pattern`` (y, x) is subtracted
    from ``mean`` and ``noise``, not from ``frames``.
    """
    planes, frames = stack.shape[:2]
    window = tuple(slice(max(0, (n - _SIDE_PX) // 2), (n + _SIDE_PX) // 2) for n in stack.shape[2:])
    weights = np.ones(1) if not in_time else TRIPLE if frames > 2 else PAIR
    length, pixels = len(weights), math.prod(min(n, _SIDE_PX) for n in stack.shape[2:])
    total, count = max(2, most // (length * pixels)), frames - length + 1
    per_plane = count if planes * count <= total else max(1, min(count, total // planes, max(8, count // length)))
    for plane in np.unique(np.linspace(0, planes - 1, min(planes, total)).astype(int)):
        starts = np.unique(np.linspace(0, count - 1, per_plane).astype(int))
        film = stack[plane][(slice(None), *window)]
        used = np.unique(starts[:, None] + np.arange(length))
        clean = common_mode_filter(np.mean(film[used], axis=0, dtype=np.float64), len(used)) if in_time else None
        for start in starts:
            values = np.array(film[start : start + length], np.float64)
            if hot is not None and hot.any():
                values[:, hot[window]] = scipy.ndimage.median_filter(values, (1, 3, 3))[:, hot[window]]
            corrected = values if pattern is None else values - pattern[window]
            difference = np.tensordot(weights, corrected, 1) / np.linalg.norm(weights)  # a single frame if not in_time
            yield Snapshot(int(plane), corrected.mean(0), difference if clean is None else clean(difference), values)


def common_mode_filter(field: Floats, frames: float = math.inf) -> Callable[[Floats], Floats]:
    """Return a function that removes from frame differences a constant and anything proportional to the mean image.

    Bleaching, flicker, drift and unequal exposures cause such differences. The mean of ``frames`` shares noise with
    each of them: of photon noise, what is removed takes along the square of the proportion divided by ``frames``.
    """
    signal = scipy.ndimage.uniform_filter(field, 5)
    signal -= signal.min()
    weights = 1 / (signal + 0.1 * signal.mean()) if signal.mean() > 0 else np.ones_like(field)
    weights /= weights.sum()
    centred = field - np.sum(weights * field)
    power = float(np.sum(weights * centred**2)) or math.inf

    def without_common_mode(noise: Floats) -> Floats:
        weighted = weights * noise
        share = float(np.sum(weighted * centred)) / power
        return np.asarray((noise - np.sum(weighted) - share * centred) / max(1 - share**2 / frames, 0.5) ** 0.5)

    return without_common_mode


def moments_of(
    stack: Values,
    limits: tuple[float, float] = (-math.inf, math.inf),
    *,
    in_time: bool,
    most: int = _PIXELS,
    hot: Flags | None = None,
    pattern: Floats | None = None,
) -> Moments:
    """Measure the noise in blocks of a stack (planes, frames, y, x), y and x at least ``LEAST_PX``.

    With ``in_time`` the noise is that of differences between frames, at least two, instead of fine spatial detail.
    Values at or beyond ``limits`` were cleared or are saturated. ``most``, ``hot`` and ``pattern`` are those
    of ``snapshots_of``.
    """
    frames = stack.shape[1]
    weights = (TRIPLE if frames > 2 else PAIR) if in_time else RIPPLE
    finest = TRIPLE if in_time and frames > 2 else _FINEST
    square, cube = np.sum(weights**2), np.sum(weights**3)
    largest = _SHORT_BLOCK_PX if in_time and frames >= _LONG else BLOCK_PX
    side = int(np.clip((math.prod(stack.shape[2:]) / _ENOUGH_BLOCKS) ** 0.5, 2, largest))
    per_plane: dict[int, list[Floats]] = {}
    for snapshot in snapshots_of(stack, most, in_time, hot, pattern):
        images = _moment_images(snapshot, in_time, limits, finest)
        per_plane.setdefault(snapshot.plane, []).append(np.stack([block_means(image, side) for image in images]))
    times = len(next(iter(per_plane.values())))
    averages = [np.mean(blocks, axis=0) for blocks in per_plane.values()]
    mean, variance, cubes, shift, zeros, saturated, around, smooth, *pairs = np.concatenate(averages, axis=1)
    # 3 sigma^2 r has mean zero, and subtracting it removes most of the noise from r^3
    skew = cube / square**1.5 if in_time else (cube / square**1.5) ** 2
    third = (cubes - 3 * variance * shift) / skew if skew else np.full_like(cubes, np.nan)
    overlaps = [overlap(weights, times if in_time else math.inf, p) ** (1 if in_time else 2) for p in (2, 3)]
    pair_inflation = overlap(finest, math.inf, 2) * (overlaps[0] if in_time else 1)
    numbers = (side**2 * times, overlaps[0], 6 * overlaps[1] / skew**2 if skew else math.inf, pair_inflation)
    constants = [np.full_like(mean, number) for number in numbers]
    return Moments(*[mean, variance, third, zeros, saturated, *constants, around, smooth, np.stack(pairs)])


def _moment_images(snapshot: Snapshot, in_time: bool, limits: tuple[float, float], finest: Floats) -> list[Floats]:
    """Return images whose block means are the moments: mean, noise^2, noise^3, noise, zeros, saturation, pairs."""
    mean, noise, frames = snapshot.mean, snapshot.noise, snapshot.frames
    saturated = ((frames <= limits[0]) | (frames >= limits[1])).mean(0)
    around, pairs = scipy.ndimage.uniform_filter(mean, 2 * BLOCK_PX), []
    for axis in (0, 1):
        fine = scipy.ndimage.correlate1d(noise, finest, axis=1 - axis)
        pairs += [fine * np.roll(fine, 1, axis), fine**2]
    margin = 0 if in_time else len(RIPPLE) // 2
    inner = (slice(margin, -margin or None),) * 2
    if not in_time:
        for axis in (0, 1):  # squared weights give the mean that belongs to the variance
            noise = scipy.ndimage.correlate1d(noise, RIPPLE / np.linalg.norm(RIPPLE), axis=axis)
            mean = scipy.ndimage.correlate1d(mean, RIPPLE**2 / np.sum(RIPPLE**2), axis=axis)
        saturated = scipy.ndimage.maximum_filter(saturated, len(RIPPLE))
    zeros, squares = ((frames == 0) & (frames.min() == 0)).mean(0), noise**2
    smooth = NEAR * scipy.ndimage.uniform_filter(noise, math.isqrt(NEAR)) ** 2
    images = (mean, squares, squares * noise, noise, zeros, saturated, around, smooth, *pairs[::2], *pairs[1::2])
    return [image[inner] for image in images]


def block_means(image: Floats, side: int) -> Floats:
    """Return the means of square blocks of ``side`` pixels, flat; incomplete blocks at the far edges are left out."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    blocks = image[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(blocks.mean((1, 3)).ravel())


def overlap(weights: Floats, count: float, power: int) -> float:
    """Return the summed powers of the correlations between overlapping weighted sums, of ``count`` in a row."""
    full = np.correlate(weights, weights, "full") / np.sum(weights**2)
    share = np.maximum(0.0, 1 - np.abs(np.arange(len(full)) - len(weights) + 1) / count)
    return float(np.sum(share * full**power))
