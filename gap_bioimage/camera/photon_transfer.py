"""The photon-transfer line, variance = gain (mean - offset) + read^2, and a camera's numbers.

The line gives the gain and ``read^2 - gain offset``. The third central moment, ``gain^2 (mean - offset)`` for Poisson
light, to which symmetric read noise adds nothing, separates the two; behind electron multiplication it is 1.5 times as
large. Two bounds hold in any case: read noise is at least that of digitisation, no block is darker than the offset.
Intervals are from a bootstrap over blocks. J. R. Janesick, "Photon Transfer", SPIE Press (2007).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy

from gap_bioimage.camera.moments import Flags, Floats, Moments
from gap_bioimage.camera.shifted_poisson import ROUNDING

POISSON, MULTIPLIED = 1.0, 1.5  # slope of the third moment over gain^2
LEAST_BLOCKS = 12
_COARSE = 0.9  # ADU per electron above which whole numbers of electrons differ by whole ADU
_ROUNDED = 0.5  # ADU^2 below which rounding is no longer noise of 1/12 ADU^2
_FULL_WEIGHT, _NO_WEIGHT = 3.0, 6.0  # residuals, in standard deviations
_LEAST_VARIANCE = 5e-3  # ADU^2; counts of few photons have no less
_ZEROS, _FEW_ZEROS = 2e-3, 1e-2  # shares of zeros: where clipping may start, and how many may stay
_LIKE_COUNTS = 0.15  # relative difference of variance and mean
_REPLICATES, _MOST_CLUSTERS = 1000, 1024
_SYSTEMATIC = 0.03  # of the third moment's slope


@dataclass(frozen=True)
class Line:
    """Variance = intercept + gain mean, ADU."""

    gain: float
    intercept: float

    def at(self, mean: Floats) -> Floats:
        """Return the variance, kept positive."""
        return np.maximum(self.intercept + self.gain * mean, _LEAST_VARIANCE)


@dataclass(frozen=True)
class Fit:
    """The line, the blocks that it was fitted to, and what was left out."""

    line: Line
    moments: Moments
    weight: Floats  # of the blocks: 0 where something moves or flickers
    clipped: bool = False  # dark pixels are clipped at zero, or all of them may be
    coarse: bool = False  # noise is lost in rounding

    @property
    def kept(self) -> Moments:
        """The blocks that obey the line."""
        return self.moments.at(self.weight > 0) if self.weight.any() else self.moments

    @property
    def outliers(self) -> float:
        """Share of the blocks that do not obey the line."""
        return float(np.mean(self.weight == 0))


def fit_line(moments: Moments) -> Fit:
    """Fit the line to blocks that obey it, without those that are clipped at zero or rounded coarsely."""

    def enough(kept: Flags) -> bool:
        return bool(np.count_nonzero(kept) >= max(LEAST_BLOCKS, 0.1 * len(kept)))

    found, clipped, coarse = _iterated(moments), False, False
    dim, bright = moments.zeros > _ZEROS, moments.zeros < _FEW_ZEROS
    if dim.any() and not enough(bright):  # nothing tells the line of the others, but counts have no other
        clipped = abs(moments.variance.sum() / moments.mean.sum() - 1) > _LIKE_COUNTS
    elif dim.any():
        rest = _iterated(moments.at(bright))
        clipped = _falls_short(moments.at(dim), rest.line)
        found = rest if clipped else found
    if found.line.gain < _COARSE:
        fine = found.line.at(found.moments.mean) >= _ROUNDED
        coarse = bool(np.mean(fine) < 0.5)
        if enough(fine) and not fine.all():
            found = _iterated(found.moments.at(fine))
    return replace(found, clipped=clipped, coarse=coarse)


def _falls_short(dim: Moments, line: Line) -> bool:
    """Whether blocks with zeros have less noise than the line of the others says, and are no counts."""
    each = line.at(dim.mean)
    weight = 1 / dim.variance_of_variance(each, line.gain)
    variance, mean, expected = (float(np.average(of, weights=weight)) for of in (dim.variance, dim.mean, each))
    least = max(4 / float(weight.sum()) ** 0.5, 0.02 * expected)
    return expected - variance > least and abs(variance / mean - 1) > _LIKE_COUNTS


def _iterated(moments: Moments) -> Fit:
    """Fit by least squares with weights of one over the variance by chance, less for outliers, repeatedly."""
    line = _first_line(moments)
    for _ in range(30):
        expected = line.at(moments.mean)
        scatter = moments.variance_of_variance(expected, line.gain)
        away = np.abs(moments.variance - expected) / np.sqrt(scatter)
        scale = max(1.0, 1.4826 * float(np.median(away)))
        weight = np.clip((_NO_WEIGHT - away / scale) / (_NO_WEIGHT - _FULL_WEIGHT), 0, 1) / scatter
        gain, intercept = _line_of(_line_sums(moments, weight).sum(1))
        before, line = line, Line(float(gain), float(intercept))
        if not line.gain > 0 or abs(before.gain - line.gain) < 1e-6 * line.gain:
            break
    return Fit(line, moments, weight)


def _first_line(moments: Moments) -> Line:
    """Median slope between groups of similar brightness, which parts that move do not reach."""
    groups = np.array_split(np.argsort(moments.mean, kind="stable"), min(24, len(moments.mean)))
    x = np.array([np.median(moments.mean[group]) for group in groups])
    y = np.array([np.quantile(moments.variance[group], 0.4) for group in groups])
    gain = float(scipy.stats.theilslopes(y, x).slope) if len(np.unique(x)) > 1 else 0.0
    gain = gain if gain > 0 else max(1e-6, float(np.median(y) / max(np.median(x), 1e-6)))
    return Line(gain, float(np.median(y - gain * x)))


def _line_sums(moments: Moments, w: Floats) -> Floats:
    """Return what least squares needs of each block, to be added up: (7, blocks)."""
    x, y, n = moments.mean, moments.variance, moments.samples
    return np.stack([w, w * x, w * x * x, w * y, w * x * y, w / n, w * y / n])


def _line_of(sums: Floats, read: float = 0.0, multiplying: float = POISSON) -> tuple[Floats, Floats]:
    """Return gain and intercept from sums (7, ...) over blocks, free of the bias that noisy means cause.

    The mean of a block errs by variance / samples, together with its variance by third moment / samples. With the third
    moment ``multiplying gain (variance - read)``, ``read`` in ADU^2, both become one term below the fraction.
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
        """Value and interval with as many digits as they are worth."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def to_list(self) -> list[float | None]:
        """Value, low, high for JSON; None for what is not bounded."""
        return [float(f"{x:.6g}") if np.isfinite(x) else None for x in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class Known:
    """What was given."""

    offset: tuple[float, float] | None = None  # ADU, and its standard error
    read_noise: float | None = None  # electrons
    multiplying: bool | None = None
    imposed: bool = True  # the third moment's slope follows from the gain; noise that somebody smoothed has another


@dataclass(frozen=True)
class Numbers:
    """Gain (ADU per electron), offset (ADU), read noise (electrons), and what the third moment says."""

    gain: Estimate
    offset: Estimate
    read_noise: Estimate
    intercept: float
    third: Estimate | None  # slope over gain^2
    multiplying: bool
    undecided: bool  # whether it multiplies


def numbers_of(fit: Fit, known: Known, seed: int) -> Numbers:
    """Return a camera's numbers; without third moments, as of two frames, the bounds alone are known."""
    # the same draws for both, because variance and third moment of a block err together
    blocks, kept = fit.moments, fit.kept
    sums, cubes = _resampled(_line_sums(blocks, fit.weight), seed), None
    if not np.isnan(blocks.third).all():
        w = (fit.weight > 0) / blocks.variance_of_third(fit.line.at(blocks.mean), fit.line.gain)
        x, k = blocks.mean, np.nan_to_num(blocks.third)
        cubes = _resampled(np.stack([w, w * x, w * x * x, w * k, w * x * k]), seed)
    darkest = float(np.min(kept.mean + 3 * np.sqrt(np.maximum(kept.variance, ROUNDING) / kept.samples)))
    tries = [POISSON, MULTIPLIED] if known.multiplying is None else [MULTIPLIED if known.multiplying else POISSON]
    solved = [_solve(sums, cubes, known, q, darkest, np.random.default_rng((seed, 5))) for q in tries]
    ratio = None if cubes is None else _ratio(cubes, solved[0], known)
    multiplying, undecided = _multiplying(ratio, known)
    best = solved[-1] if multiplying else solved[0]
    allowed = solved if undecided else [best]
    low, high = min(each.low for each in allowed), max(each.high for each in allowed)
    return Numbers(
        gain=_estimate(best.gain[0], *(each.gain[1:] for each in allowed)),
        offset=Estimate(float(best.offset[0]), low, high),
        read_noise=_estimate(best.read_noise[0], *(each.read_noise[1:] for each in allowed)),
        intercept=float(best.intercept[0]),
        third=ratio,
        multiplying=multiplying,
        undecided=undecided,
    )


def _resampled(sums: Floats, seed: int) -> Floats:
    """Add up sums over blocks: all of them first, then as bootstrap replicates draw clusters of neighbours."""
    many = min(sums.shape[1], _MOST_CLUSTERS)
    edges = np.linspace(0, sums.shape[1], many + 1).astype(int)[:-1]
    draws = np.random.default_rng((seed, 3)).multinomial(many, np.full(many, 1 / many), _REPLICATES)
    resampled: Floats = np.add.reduceat(sums, edges, axis=1) @ np.concatenate([np.ones((1, many)), draws]).T
    return resampled


@dataclass(frozen=True)
class _Solution:
    """The numbers from all resampled sums: (replicates,), the data themselves first."""

    gain: Floats
    intercept: Floats
    offset: Floats
    read_noise: Floats
    low: float  # of the offset's interval
    high: float


def _solve(
    sums: Floats, cubes: Floats | None, known: Known, q: float, darkest: float, rng: np.random.Generator
) -> _Solution:
    """Solve for all numbers; the third moment's slope is ``q`` gain^2, and no used block lies below ``darkest``."""
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
            slope = q * gain**2 if known.imposed else (xk - x * k / w) / (xx - x * x / w)
            # a slope that noise has turned negative says nothing
            crossing = np.where(slope > 0, (x - k / np.where(slope > 0, slope, 1)) / w, -np.inf)
        else:  # anything between the bounds
            crossing = np.where(rng.random(len(gain)) < 0.5, lowest, highest)
            crossing[0] = (lowest[0] + highest[0]) / 2
        offset = np.clip(crossing, lowest, highest)
        variance = np.maximum(intercept + gain * offset, floor)
        read = float(variance[0])
        if not math.isfinite(read):
            break
    # bounds err by themselves: a clipped replicate would be taken for a sure one
    alone, least, most = (_estimate(each[0], each[1:]) for each in (crossing, lowest, highest))
    low, high = alone.low, alone.high
    if free:
        low = min(max(low, least.low), max(most.low, least.low), float(offset[0]))
        high = max(min(max(high, least.high), max(most.high, least.high)), float(offset[0]))
    return _Solution(gain, intercept, offset, np.sqrt(variance) / gain, low, high)


def _ratio(cubes: Floats, solved: _Solution, known: Known) -> Estimate:
    """Slope of the third moment over gain^2."""
    w, x, xx, k, xk = cubes
    origin = x / w if known.offset is None else solved.offset
    values = (xk - origin * k) / (xx - 2 * origin * x + origin**2 * w) / solved.gain**2
    return _estimate(values[0], values[1:])


def _multiplying(ratio: Estimate | None, known: Known) -> tuple[bool, bool]:
    """Whether electrons are multiplied, and whether that is left open."""
    if known.multiplying is not None:
        return known.multiplying, False
    if ratio is None or not known.imposed or not math.isfinite(ratio.low + ratio.high):
        return False, ratio is None or known.imposed
    error = max((ratio.high - ratio.low) / 4, _SYSTEMATIC)
    undecided = max(ratio.value - POISSON, MULTIPLIED - ratio.value) < 3 * error
    return ratio.value > (POISSON + MULTIPLIED) / 2 and not undecided, undecided


def _estimate(value: float, *replicates: Floats) -> Estimate:
    """Interval that holds the middle 95 % of each set of replicates."""
    ends = [np.percentile(np.where(np.isfinite(r), r, np.inf), (2.5, 97.5), method="nearest") for r in replicates]
    low, high = min(value, *(e[0] for e in ends)), max(value, *(e[1] for e in ends))
    return Estimate(float(value), float(low), float(high))
