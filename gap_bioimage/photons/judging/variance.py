"""Variance against mean: a line through the origin for photon counts, through the offset for a camera.

The noise is what only the corners of Fourier space hold, along y and x at once, where structure is weakest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gap_bioimage.counts import thin
from gap_bioimage.photons.judging.correlation import darkest, noise_planes
from gap_bioimage.photons.judging.statistics import block_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.float64]

_WEIGHTS = np.array([1.0, -4, 6, -4, 1])
_WEIGHTS_IN_TIME = np.array([1.0, -2, 1])
_BLOCK_PX = 8
_POINTS = 16
_THINNED_PX = 1 << 20
_LEAST_BLOCKS = 4
_BETTER = 20.0  # chi-square by which a camera's line must fit better than counts with structure


@dataclass(frozen=True)
class Curve:
    """Points of variance against mean, from dark to bright, and the parabola through them."""

    mean: Image
    variance: Image
    error: Image
    """Standard error of the variances."""
    intercept: float
    """Variance at mean zero: 0 for counts, negative where an offset was added."""
    intercept_error: float
    slope: float
    """At the dark end: 1 for counts, the gain of a camera."""
    slope_error: float

    @property
    def offset(self) -> float:
        """The mean at which the variance vanishes."""
        return -self.intercept / self.slope if self.slope > 0 else math.nan

    @property
    def fano(self) -> Image:
        """Variance over mean of the points that are known to a fifth, from dark to bright; may be empty."""
        known = (self.mean > 0) & (self.error > 0) & (self.error < 0.2 * self.variance)
        ratio: Image = self.variance[known] / self.mean[known]
        return ratio

    @property
    def rise(self) -> float:
        """Variance over mean of the brighter third over that of the darker third; 1 for counts or where unknown."""
        fano = self.fano
        third = len(fano) // 3
        return float(fano[-third:].mean() / fano[:third].mean()) if third else 1.0


def variance_curve(values: NDArray[Any], repeats: int | None = None) -> Curve | None:
    """Return the variance of the noise against brightness.

    Parameters
    ----------
    values
        Real numbers (..., y, x).
    repeats
        The axis of time, if there is one.

    Returns
    -------
    Curve or None
        Up to 16 points; None with fewer than four of them, which is with few pixels or one brightness only.
    """
    if values.ndim < 2 or values.size == 0 or min(values.shape[-2:]) < 2 * _BLOCK_PX:
        return None
    in_time = repeats is not None and values.shape[repeats] >= 3
    weights = _WEIGHTS_IN_TIME if in_time else _WEIGHTS
    parts = [_blocks(plane, residual, weights) for plane, residual in noise_planes(values, repeats)]
    if not parts:
        return None
    mean, variance = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(mean, kind="stable")
    groups = [g for g in np.array_split(order, min(_POINTS, max(1, len(order) // 8))) if len(g)]
    if len(groups) < 4:
        return None
    alike = np.correlate(weights, weights, "full") / (weights @ weights)
    each = math.sqrt(2 / _BLOCK_PX**2) * float(alike @ alike)
    means = np.array([mean[g].mean() for g in groups])
    found = np.array([_typical(variance[g], each) for g in groups])
    errors = np.array([_error(variance[g], v, each) for g, v in zip(groups, found, strict=True)])
    return _fit(means, found, errors)


def _blocks(plane: Image, residual: Image, weights: Image) -> tuple[Image, Image]:
    """Return mean and noise variance of each block."""
    margin = len(weights) // 2
    smooth = np.abs(weights) / np.abs(weights).sum()
    for axis in (0, 1):
        residual = ndimage.correlate1d(residual, weights, axis=axis)
        plane = ndimage.correlate1d(plane, smooth, axis=axis)
    inside = (slice(margin, -margin), slice(margin, -margin))
    power = residual[inside] ** 2 / float(weights @ weights) ** 2
    return block_means(plane[inside], _BLOCK_PX), block_means(power, _BLOCK_PX)


def _typical(variance: Image, each: float) -> float:
    """Return the mean of a group without the blocks that hold edges."""
    middle = float(np.median(variance))
    kept = variance[variance <= middle * (1 + 5 * each)] if middle > 0 else variance
    return float(kept.mean())


def _error(variance: Image, found: float, each: float) -> float:
    spread = min(float(variance.std()), 3 * found * each)
    return max(spread, found * each) / math.sqrt(len(variance))


def _fit(mean: Image, variance: Image, error: Image) -> Curve | None:
    """Fit a parabola, since dead time bends the line down and structure bends it up."""
    used = error > 0
    scale = float(np.abs(mean).max())
    if scale == 0 or used.sum() < 4:
        return None
    x, y, weight = mean[used] / scale, variance[used], 1 / error[used]
    parabola, errors, _ = _least_squares([np.ones_like(x), x, x**2], y, weight)
    line, line_errors, line_misfit = _least_squares([np.ones_like(x), x], y, weight)
    # Counts with structure: variance = mean + c mean^2. A narrow range of brightness leaves a parabola undecided.
    _, _, counts_misfit = _least_squares([x**2], y - x * scale, weight)
    if counts_misfit - line_misfit > _BETTER and errors[0] > line_errors[0]:
        parabola, errors = line, line_errors
    return Curve(
        mean,
        variance,
        error,
        float(parabola[0]),
        float(errors[0]),
        float(parabola[1] / scale),
        float(errors[1] / scale),
    )


def _least_squares(columns: list[Image], y: Image, weight: Image) -> tuple[Image, Image, float]:
    """Return coefficients, their standard errors (wider where the fit is poor) and chi-square."""
    design = np.stack(columns, 1) * weight[:, None]
    inverse = np.linalg.pinv(design.T @ design)
    best = inverse @ design.T @ (y * weight)
    misfit = float(((design @ best - y * weight) ** 2).sum())
    wider = max(1.0, misfit / max(1, len(y) - len(columns)))
    return best, np.sqrt(np.maximum(np.diag(inverse), 0) * wider), misfit


def thinning_correlation(values: NDArray[Any], seed: int = 0) -> tuple[float, float] | None:
    """Split counts at random into halves and correlate their noise: 0 for photons.

    Parameters
    ----------
    values
        Counts (..., y, x): whole numbers from 0 up.
    seed
        Of the split.

    Returns
    -------
    correlation, error
        Of the darker third of the blocks, that is (variance - mean) / (variance + mean); positive where the network
        would copy noise. None where nothing can be said.

    Raises
    ------
    NotPhotonCountsError
        If values are no counts.
    """
    if values.ndim < 2 or values.size == 0 or min(values.shape[-2:]) < 2 * _BLOCK_PX:
        return None
    rng = np.random.default_rng(seed)
    parts, left = [], _THINNED_PX
    for plane, _ in noise_planes(values):
        if left <= 0:
            break
        halves = [half.astype(np.float64) for half in thin(plane.astype(np.int64), 0.5, rng)]
        parts.append(_shared(plane, halves[0], halves[1]))
        left -= plane.size
    if not parts:
        return None
    mean, product, power = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(mean, kind="stable")
    used = darkest(power[order])
    product, power = product[order][:used], power[order][:used]
    total = power.sum()
    if used < _LEAST_BLOCKS or not total > 0:
        return None
    value = product.sum() / total
    return float(value), float(math.sqrt(((product - value * power) ** 2).sum()) / total)


def _shared(plane: Image, first: Image, second: Image) -> tuple[Image, Image, Image]:
    """Return per block the brightness, the product of the halves' noise, and its power."""
    inside = (slice(len(_WEIGHTS) // 2, -(len(_WEIGHTS) // 2)),) * 2
    for axis in (0, 1):
        first = ndimage.correlate1d(first, _WEIGHTS, axis=axis)
        second = ndimage.correlate1d(second, _WEIGHTS, axis=axis)
    first, second = first[inside], second[inside]
    parts = (plane[inside], first * second, (first**2 + second**2) / 2)
    mean, product, power = (block_means(part, _BLOCK_PX) for part in parts)
    return mean, product, power
