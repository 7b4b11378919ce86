"""The photon-transfer line, variance = gain (mean - offset) + read^2, and the numbers of a camera from it.

The line gives the gain and ``read^2 - gain offset``. The third central moment separates read noise and offset: it is
``gain^2 (mean - offset)`` for Poisson light, 1.5 times as much after electron multiplication, and symmetric read noise
does not contribute to it. Two bounds always hold: read noise is at least that of digitisation, and no block is darker
than the offset. A bootstrap over blocks gives the intervals. J. R. Janesick, "Photon Transfer", SPIE Press (2007).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from gap_bioimage.camera.moments import Flags, Floats, Moments
from gap_bioimage.camera.shifted_poisson import ROUNDING

POISSON, MULTIPLIED = 1.0, 1.5  # slope of the third moment over gain^2
LEAST_BLOCKS = 12  # fewest blocks that a line is fitted to
_COARSE = 0.9  # gain (ADU per electron) below which several electrons share an ADU
_ROUNDED = 0.5  # variance (ADU^2) below which rounding error is no longer independent noise of 1/12 ADU^2
_FULL_WEIGHT, _NO_WEIGHT = 3.0, 6.0  # residuals (standard deviations) up to which blocks count fully, and at all
_LEAST_VARIANCE = 5e-3  # ADU^2, lower limit for the line; counts of few photons have no less
_ZEROS, _FEW_ZEROS = 2e-3, 1e-2  # fractions of zeros above which a block may be clipped, and below which it is used
_LIKE_COUNTS = 0.15  # relative difference of variance and mean up to which values may be counts
_REPLICATES, _MOST_CLUSTERS = 1000, 1024  # of the bootstrap
_SYSTEMATIC = 0.03  # least standard error of the third moment's slope


@dataclass(frozen=True)
class Line:
    """The line ``variance = intercept + gain mean``, in ADU."""

    gain: float
    intercept: float

    def at(self, mean: Floats) -> Floats:
        """Return the variance at a mean, with a positive lower limit."""
        return np.maximum(self.intercept + self.gain * mean, _LEAST_VARIANCE)


@dataclass(frozen=True)
class Fit:
    """A fitted line and its blocks."""

    line: Line
    moments: Moments
    weight: Floats  # of the blocks; 0 where something moves or flickers
    clipped: bool = False  # whether dark pixels are clipped at zero, or all pixels may be
    coarse: bool = False  # whether the noise of most blocks is lost in rounding

    @property
    def inliers(self) -> Moments:
        """The blocks that follow the line."""
        return self.moments.at(self.weight > 0) if self.weight.any() else self.moments

    @property
    def outlier_fraction(self) -> float:
        """Fraction of the blocks that do not follow the line."""
        return float(np.mean(self.weight == 0))


def fit_line(moments: Moments) -> Fit:
    """Fit the line robustly, without blocks that are clipped at zero or rounded coarsely."""

    def enough(blocks: Flags) -> bool:
        return bool(np.count_nonzero(blocks) >= max(LEAST_BLOCKS, 0.1 * len(blocks)))

    fit, clipped, coarse = _robust_fit(moments), False, False
    dim, bright = moments.zeros > _ZEROS, moments.zeros < _FEW_ZEROS
    if dim.any() and not enough(bright):  # too few blocks for a line without clipping, but counts have a known one
        clipped = abs(moments.variance.sum() / moments.mean.sum() - 1) > _LIKE_COUNTS
    elif dim.any():
        bright_fit = _robust_fit(moments.at(bright))
        clipped = _falls_short(moments.at(dim), bright_fit.line)
        fit = bright_fit if clipped else fit
    if fit.line.gain < _COARSE:
        fine = fit.line.at(fit.moments.mean) >= _ROUNDED
        coarse = bool(np.mean(fine) < 0.5)
        if enough(fine) and not fine.all():
            fit = _robust_fit(fit.moments.at(fine))
    return replace(fit, clipped=clipped, coarse=coarse)


def _falls_short(dim: Moments, line: Line) -> bool:
    """Whether blocks with zeros have less noise than the line of the other blocks, and are not counts."""
    on_line = line.at(dim.mean)
    weight = 1 / dim.variance_of_variance(on_line, line.gain)
    variance, mean, expected = (float(np.average(a, weights=weight)) for a in (dim.variance, dim.mean, on_line))
    least = max(4 / float(weight.sum()) ** 0.5, 0.02 * expected)
    return expected - variance > least and abs(variance / mean - 1) > _LIKE_COUNTS


def _robust_fit(moments: Moments) -> Fit:
    """Fit by iteratively reweighted least squares: inverse sampling variance, reduced for outliers."""
    line = _first_line(moments)
    for _ in range(30):
        expected = line.at(moments.mean)
        chance = moments.variance_of_variance(expected, line.gain)
        residual = np.abs(moments.variance - expected) / np.sqrt(chance)
        scale = max(1.0, 1.4826 * float(np.median(residual)))
        weight = np.clip((_NO_WEIGHT - residual / scale) / (_NO_WEIGHT - _FULL_WEIGHT), 0, 1) / chance
        gain, intercept = _line_of(_line_sums(moments, weight).sum(1))
        before, line = line, Line(float(gain), float(intercept))
        if not line.gain > 0 or abs(before.gain - line.gain) < 1e-6 * line.gain:
            break
    return Fit(line, moments, weight)


def _first_line(moments: Moments) -> Line:
    """Return a robust first line: the median slope between groups, which motion hardly changes, by their distance."""
    groups = np.array_split(np.argsort(moments.mean, kind="stable"), min(24, len(moments.mean)))
    x = np.array([np.median(moments.mean[group]) for group in groups])
    y = np.array([np.quantile(moments.variance[group], 0.4) for group in groups])
    low, high = np.triu_indices(len(x), 1)
    apart = x[high] - x[low]
    slopes = (y[high] - y[low]) / np.where(apart > 0, apart, np.inf)
    order = np.argsort(slopes)
    share = np.cumsum(apart[order])
    gain = float(slopes[order][np.searchsorted(share, share[-1] / 2)])
    gain = gain if gain > 0 else max(1e-6, float(np.median(y) / max(np.median(x), 1e-6)))
    return Line(gain, float(np.median(y - gain * x)))


def _line_sums(moments: Moments, w: Floats) -> Floats:
    """Return the terms of the least-squares sums for each block, (7, blocks)."""
    x, y, n = moments.mean, moments.variance, moments.samples
    return np.stack([w, w * x, w * x * x, w * y, w * x * y, w / n, w * y / n])


def _line_of(sums: Floats, read: float = 0.0, multiplying: float = POISSON) -> tuple[Floats, Floats]:
    """Return gain and intercept from sums (7, ...) over blocks, corrected for the noise of the blocks' means.

    The mean of a block has the sampling variance variance / samples, and the covariance third / samples with ``y``.
    With the third moment ``multiplying gain (variance - read)``, ``read`` in ADU^2, both are one term in ``spread``.
    """
    w, x, xx, y, xy, n, ny = sums
    spread = xx - x * x / w + (multiplying - 1) * ny - multiplying * read * n
    gain = (xy - x * y / w) / np.where(np.abs(spread) > 0, spread, np.nan)
    return gain, (y - gain * x) / w


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Value and interval with four digits."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def to_list(self) -> list[float | None]:
        """Return value, low and high for JSON, with None for infinity."""
        return [float(f"{x:.6g}") if np.isfinite(x) else None for x in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class Known:
    """What is known of a camera beforehand."""

    offset: tuple[float, float] | None = None  # ADU, with its standard error
    read_noise: float | None = None  # electrons
    multiplying: bool | None = None
    raw: bool = True  # whether the gain determines the slope of the third moment; not in smoothed images


@dataclass(frozen=True)
class Numbers:
    """The numbers of a camera, as estimated."""

    gain: Estimate  # ADU per electron
    offset: Estimate  # ADU
    read_noise: Estimate  # electrons
    intercept: float  # of the line, ADU^2
    third: Estimate | None  # slope of the third moment over gain^2
    multiplying: bool  # whether the detector multiplies electrons
    undecided: bool  # whether the third moment leaves that open


def numbers_of(fit: Fit, known: Known, seed: int) -> Numbers:
    """Return the numbers of a camera; without third moments (two frames) the offset is known within bounds only."""
    # the same bootstrap draws for both, because errors of variance and third moment of a block are correlated
    blocks, inliers = fit.moments, fit.inliers
    sums, cubes = _resampled(_line_sums(blocks, fit.weight), seed), None
    if not np.isnan(blocks.third).all():
        w = (fit.weight > 0) / blocks.variance_of_third(fit.line.at(blocks.mean), fit.line.gain)
        x, k = blocks.mean, np.nan_to_num(blocks.third)
        cubes = _resampled(np.stack([w, w * x, w * x * x, w * k, w * x * k]), seed)
    darkest = float(np.min(inliers.mean + 3 * np.sqrt(np.maximum(inliers.variance, ROUNDING) / inliers.samples)))
    slopes = [POISSON, MULTIPLIED] if known.multiplying is None else [MULTIPLIED if known.multiplying else POISSON]
    solutions = [_solve(sums, cubes, known, q, darkest, np.random.default_rng((seed, 5))) for q in slopes]
    third = None if cubes is None else _third_slope(cubes, solutions[0], known)
    multiplying, undecided = _multiplying(third, known)
    best = solutions[-1] if multiplying else solutions[0]
    possible = solutions if undecided else [best]
    return Numbers(
        gain=_estimate(best.gain[0], *(solution.gain[1:] for solution in possible)),
        offset=Estimate(float(best.offset[0]), min(s.low for s in possible), max(s.high for s in possible)),
        read_noise=_estimate(best.read_noise[0], *(solution.read_noise[1:] for solution in possible)),
        intercept=float(best.intercept[0]),
        third=third,
        multiplying=multiplying,
        undecided=undecided,
    )


def _resampled(sums: Floats, seed: int) -> Floats:
    """Return sums over all blocks, then over bootstrap replicates, which draw clusters of neighbouring blocks."""
    n = min(sums.shape[1], _MOST_CLUSTERS)
    edges = np.linspace(0, sums.shape[1], n + 1).astype(int)[:-1]
    draws = np.random.default_rng((seed, 3)).multinomial(n, np.full(n, 1 / n), _REPLICATES)
    return np.asarray(np.add.reduceat(sums, edges, axis=1) @ np.concatenate([np.ones((1, n)), draws]).T)


@dataclass(frozen=True)
class _Solution:
    """The numbers from all resampled sums, (replicates,); the first is that of the data."""

    gain: Floats
    intercept: Floats
    offset: Floats
    read_noise: Floats
    low: float  # ends of the offset's interval
    high: float


def _solve(
    sums: Floats, cubes: Floats | None, known: Known, q: float, darkest: float, rng: np.random.Generator
) -> _Solution:
    """Solve for all numbers; the third moment's slope is ``q`` gain^2, and no block's mean is below ``darkest``."""
    read, free = 0.0, known.offset is None and known.read_noise is None
    for _ in range(4):
        gain, intercept = _line_of(sums, read, q)
        gain = np.where(gain > 0, gain, np.nan)
        floor = np.where(gain < _COARSE, ROUNDING, 0.0)
        lowest = (floor - intercept) / gain if free else np.full_like(gain, -np.inf)
        highest = np.maximum(darkest, lowest) if free else np.full_like(gain, np.inf)
        if known.offset is not None:
            crossing = known.offset[0] + known.offset[1] * np.append(0, rng.standard_normal(len(gain) - 1))
        elif known.read_noise is not None:
            crossing = gain * known.read_noise**2 - intercept / gain
        elif cubes is not None:
            w, x, xx, k, xk = cubes
            slope = q * gain**2 if known.raw else (xk - x * k / w) / (xx - x * x / w)
            # a slope that noise has made negative gives no offset
            crossing = np.where(slope > 0, (x - k / np.where(slope > 0, slope, 1)) / w, -np.inf)
        else:  # only the bounds are known
            crossing = np.where(rng.random(len(gain)) < 0.5, lowest, highest)
            crossing[0] = (lowest[0] + highest[0]) / 2
        offset = np.clip(crossing, lowest, highest)
        variance = np.maximum(intercept + gain * offset, floor)
        read = float(variance[0])
        if not math.isfinite(read):
            break
    # bounds have errors of their own: the spread of clipped replicates would be too small
    unbounded, lower, upper = (_estimate(values[0], values[1:]) for values in (crossing, lowest, highest))
    low, high = unbounded.low, unbounded.high
    if free:
        low = min(max(low, lower.low), max(upper.low, lower.low), float(offset[0]))
        high = max(min(max(high, lower.high), max(upper.high, lower.high)), float(offset[0]))
    return _Solution(gain, intercept, offset, np.sqrt(variance) / gain, low, high)


def _third_slope(cubes: Floats, solution: _Solution, known: Known) -> Estimate:
    """Return the slope of the third moment over gain^2."""
    w, x, xx, k, xk = cubes
    origin = x / w if known.offset is None else solution.offset
    values = (xk - origin * k) / (xx - 2 * origin * x + origin**2 * w) / solution.gain**2
    return _estimate(values[0], values[1:])


def _multiplying(third: Estimate | None, known: Known) -> tuple[bool, bool]:
    """Return whether the detector multiplies electrons, and whether that is undecided."""
    if known.multiplying is not None:
        return known.multiplying, False
    if third is None or not known.raw or not math.isfinite(third.low + third.high):
        return False, third is None or known.raw
    error = max((third.high - third.low) / 4, _SYSTEMATIC)
    undecided = max(third.value - POISSON, MULTIPLIED - third.value) < 3 * error
    return third.value > (POISSON + MULTIPLIED) / 2 and not undecided, undecided


def _estimate(value: float, *replicates: Floats) -> Estimate:
    """Return a value with the interval that holds the central 95 % of each set of replicates."""
    ends = [np.percentile(np.where(np.isfinite(r), r, np.inf), (2.5, 97.5), method="nearest") for r in replicates]
    low, high = min(value, *(e[0] for e in ends)), max(value, *(e[1] for e in ends))
    return Estimate(float(value), float(low), float(high))
