"""The photon-transfer line: variance = gain (mean - offset) + read^2, whatever the structure within a block.

The line gives the gain and ``read^2 - gain offset``. The third central moment, ``gain^2 (mean - offset)`` for Poisson
light, to which symmetric read noise adds nothing, separates the two; behind electron multiplication it is 1.5 times as
large. Two bounds hold in any case: read noise is at least that of digitisation, no block is darker than the offset.

J. R. Janesick, "Photon Transfer", SPIE Press (2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy

from gap_bioimage.camera.moments import Flags, Floats, Moments
from gap_bioimage.camera.shifted_poisson import ROUNDING

COARSE = 0.9  # ADU per electron above which whole numbers of electrons differ by whole ADU
LEAST_BLOCKS = 12
POISSON, MULTIPLIED = 1.0, 1.5  # slope of the third moment over gain^2
_GROUPS = 20
_FULL_WEIGHT, _NO_WEIGHT = 3.0, 6.0  # residuals, in standard deviations
_LEAST_VARIANCE = 5e-3  # ADU^2; counts of few photons have no less
_ROUNDED = 0.5  # ADU^2 below which rounding is no longer noise of 1/12 ADU^2
_ZEROS, _FEW_ZEROS = 2e-3, (1e-3, 1e-2, 5e-2)  # shares of zeros: where clipping may start, and how many may stay
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
class Points:
    """Blocks as the line is fitted to them: weights are one over the variance by chance, 0 for outliers."""

    mean: Floats
    variance: Floats
    third: Floats
    weight: Floats
    third_weight: Floats
    samples: int

    @property
    def line_sums(self) -> Floats:
        """What least squares needs of each block, to be added up: (7, blocks)."""
        w, x, y, n = self.weight, self.mean, self.variance, self.samples
        return np.stack([w, w * x, w * x * x, w * y, w * x * y, w / n, w * y / n])

    @property
    def third_sums(self) -> Floats:
        """The same for the third moment: (5, blocks)."""
        w, x, k = self.third_weight, self.mean, self.third
        return np.stack([w, w * x, w * x * x, w * k, w * x * k])


@dataclass(frozen=True)
class Goodness:
    """How well the line fits groups of blocks of similar brightness, the points of the photon-transfer curve."""

    mean: Floats  # ADU, dark to bright
    variance: Floats
    error: Floats
    chi_square: float  # per degree of freedom
    freedom: int  # how many of them there are
    bend: float = 0.0  # by how much a parabola departs from the line at the bright end, relative to it
    bend_error: float = math.inf

    def bends(self, least: float) -> int:
        """Whether variance surely rises (1) or falls short (-1) at the bright end by more than a share."""
        return int(np.sign(self.bend)) if abs(self.bend) > max(least, 5 * self.bend_error) else 0


@dataclass(frozen=True)
class Fit:
    """The line, what it goes through, and what was left out."""

    line: Line
    moments: Moments
    points: Points
    dark: Points | None  # of dark frames
    goodness: Goodness
    outliers: float  # share of the blocks that do not obey the line, since something moves or flickers there
    clipped: bool = False  # dark pixels are clipped at zero
    coarse: bool = False  # noise is lost in rounding


def points_of(moments: Moments, line: Line, *, loud: float = 1.0, robust: bool = True) -> Points:
    """Weigh blocks against the line that they about obey; ``robust`` takes weight from outliers.

    Correlated neighbours raise the scatter of variances by ``loud``.
    """
    expected = line.at(moments.mean)
    scatter = loud * moments.variance_of_variance(expected, line.gain)
    weight = 1 / scatter
    if robust:
        away = np.abs(moments.variance - expected) / np.sqrt(scatter)
        scale = max(1.0, 1.4826 * float(np.median(away)))
        weight = weight * np.clip((_NO_WEIGHT - away / scale) / (_NO_WEIGHT - _FULL_WEIGHT), 0, 1)
    third_weight = (weight > 0) / moments.variance_of_third(expected, line.gain)
    return Points(moments.mean, moments.variance, moments.third, weight, third_weight, moments.samples)


def line_of_sums(sums: Floats, read: float = 0.0, multiplying: float = POISSON) -> tuple[Floats, Floats]:
    """Return gain and intercept from sums (7, ...) over blocks, free of the bias that noisy means cause.

    The mean of a block errs by variance / samples, together with its variance by third moment / samples. With the third
    moment ``multiplying gain (variance - read)``, ``read`` in ADU^2, both become one term below the fraction.
    """
    w, x, xx, y, xy, n, ny = sums
    spread = xx - x * x / w + (multiplying - 1) * ny - multiplying * read * n
    gain = (xy - x * y / w) / np.where(np.abs(spread) > 0, spread, np.nan)
    return gain, (y - gain * x) / w


def fit_line(moments: Moments, *, loud: float, anchor: Moments | None = None) -> Fit:
    """Fit the line to blocks that obey it, without those that are clipped at zero or rounded coarsely.

    The line goes through the moments of dark frames, ``anchor``; ``loud`` as for ``points_of``.
    """

    def fit(keep: Flags) -> Fit:
        return _iterated(moments.at(keep), loud, anchor)

    def enough(keep: Flags) -> bool:
        return bool(np.count_nonzero(keep) >= max(LEAST_BLOCKS, 0.1 * np.count_nonzero(kept)))

    kept = np.ones(len(moments.mean), bool)
    found, clipped, coarse = fit(kept), False, False
    bright = next((keep for few in _FEW_ZEROS if enough(keep := moments.zeros < few)), None)
    if bright is not None and np.any(moments.zeros > _ZEROS):
        rest = fit(bright)
        clipped = _falls_short(moments.at(moments.zeros > _ZEROS), rest.line, loud)
        found, kept = (rest, bright) if clipped else (found, kept)
    if found.line.gain < COARSE:
        fine = kept & (found.line.intercept + found.line.gain * moments.mean >= _ROUNDED)
        coarse = bool(np.mean(fine[kept]) < 0.5)
        if enough(fine) and np.any(fine != kept):
            found = fit(fine)
    return replace(found, clipped=clipped, coarse=coarse)


def _iterated(moments: Moments, loud: float, anchor: Moments | None) -> Fit:
    line = _first_line(moments)
    for _ in range(30):
        points = points_of(moments, line, loud=loud)
        dark = None if anchor is None else points_of(anchor, line, loud=loud)
        total = points.line_sums.sum(1) + (0 if dark is None else dark.line_sums.sum(1))
        gain, intercept = line_of_sums(total)
        before, line = line, Line(float(gain), float(intercept))
        if not line.gain > 0 or abs(before.gain - line.gain) < 1e-6 * line.gain:
            break
    return Fit(line, moments, points, dark, goodness_of(points, line), float(np.mean(points.weight == 0)))


def _first_line(moments: Moments) -> Line:
    """Median slope between groups of similar brightness."""
    order = np.array_split(np.argsort(moments.mean, kind="stable"), min(24, len(moments.mean)))
    x = np.array([np.median(moments.mean[g]) for g in order])
    y = np.array([np.quantile(moments.variance[g], 0.4) for g in order])
    gain = float(scipy.stats.theilslopes(y, x).slope) if len(np.unique(x)) > 1 else 0.0
    if gain <= 0:
        gain = max(1e-6, float(np.median(y) / max(np.median(x), 1e-6)))
    return Line(gain, float(np.median(y - gain * x)))


def _falls_short(dim: Moments, line: Line, loud: float) -> bool:
    """Whether blocks with zeros have less noise than the line of the others says, and are no counts."""
    points = points_of(dim, line, loud=loud, robust=False)
    variance, mean = (float(np.average(v, weights=points.weight)) for v in (points.variance, points.mean))
    expected = float(np.average(line.at(points.mean), weights=points.weight))
    least = max(4 / float(points.weight.sum()) ** 0.5, 0.02 * expected)
    return expected - variance > least and abs(variance / mean - 1) > _LIKE_COUNTS


def goodness_of(points: Points, line: Line) -> Goodness:
    """Compare groups of blocks of similar brightness with the line, and with a parabola."""
    order = np.argsort(points.mean, kind="stable")
    order = order[points.weight[order] > 0]
    groups = np.array_split(order, int(np.clip(len(order) // 6, 1, _GROUPS)))
    w = np.array([points.weight[g].sum() for g in groups])
    x, y = (np.array([points.weight[g] @ v[g] for g in groups]) / w for v in (points.mean, points.variance))
    chi_square = float(np.sum((y - line.intercept - line.gain * x) ** 2 * w)) / max(1, len(groups) - 2)
    found = Goodness(x, y, 1 / np.sqrt(w), chi_square, max(1, len(groups) - 2))
    if len(groups) < 4:
        return found
    u = (x - x[0]) / max(float(np.ptp(x)), 1e-9)
    parabola, covariance = np.polyfit(u, y, 2, w=np.sqrt(w), cov="unscaled")
    departure = float(np.polyval(parabola, 1.0) - np.polyval(np.polyfit(u, y, 1, w=np.sqrt(w)), 1.0))
    per_curvature = abs(departure / parabola[0]) if parabola[0] else 1.0
    top = float(line.at(x[-1:])[0])
    return replace(found, bend=departure / top, bend_error=float(np.sqrt(covariance[0, 0])) * per_curvature / top)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Value and interval with as many digits as they are worth."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    @property
    def error(self) -> float:
        """About one standard error."""
        return (self.high - self.low) / 4

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


def numbers_of(fit: Fit, known: Known, third: Points | None, seed: int) -> Numbers:
    """Return a camera's numbers, with intervals from a bootstrap over blocks; without ``third`` from bounds alone."""
    rng = np.random.default_rng((seed, 3))
    points = fit.points
    cubes: Floats | None
    if third is points:  # variance and third moment of a block err together
        sums, cubes = np.split(_resampled(np.concatenate([points.line_sums, points.third_sums]), rng), [7])
    else:
        sums = _resampled(points.line_sums, rng)
        cubes = None if third is None else _resampled(third.third_sums, rng)
    if fit.dark is not None:
        sums = sums + _resampled(fit.dark.line_sums, rng)
    used = points.weight > 0 if points.weight.any() else slice(None)
    darkest = points.mean + 3 * np.sqrt(np.maximum(points.variance, ROUNDING) / points.samples)
    tries = [POISSON, MULTIPLIED] if known.multiplying is None else [MULTIPLIED if known.multiplying else POISSON]
    solved = {q: _solve(sums, cubes, known, q, float(np.min(darkest[used])), rng) for q in tries}
    ratio = None if cubes is None else _ratio(cubes, solved[tries[0]], known)
    chosen, undecided = _choose(ratio, known)
    kept, best = [solved[q] for q in (tries if undecided else [chosen])], solved[chosen]
    gain = _estimate(best.gain[0], *(each.gain[1:] for each in kept))
    noise = _estimate(best.read_noise[0], *(each.read_noise[1:] for each in kept))
    intervals = [each.offset_interval() for each in kept]
    offset = Estimate(float(best.offset[0]), min(i.low for i in intervals), max(i.high for i in intervals))
    return Numbers(gain, offset, noise, float(best.intercept[0]), ratio, chosen == MULTIPLIED, undecided)


def _resampled(sums: Floats, rng: np.random.Generator) -> Floats:
    """Add up sums over blocks: all of them first, then as bootstrap replicates draw clusters of neighbours."""
    many = min(sums.shape[1], _MOST_CLUSTERS)
    edges = np.linspace(0, sums.shape[1], many + 1).astype(int)[:-1]
    draws = rng.multinomial(many, np.full(many, 1 / many), _REPLICATES)
    resampled: Floats = np.add.reduceat(sums, edges, axis=1) @ np.concatenate([np.ones((1, many)), draws]).T
    return resampled


@dataclass(frozen=True)
class _Solution:
    """The numbers from all resampled sums: (replicates,), the data themselves first."""

    gain: Floats
    intercept: Floats
    crossing: Floats  # the offset before its bounds are applied
    lowest: Floats
    highest: Floats
    floor: Floats  # the least variance

    @property
    def offset(self) -> Floats:
        return np.clip(self.crossing, self.lowest, self.highest)

    @property
    def read_noise(self) -> Floats:
        noise: Floats = np.sqrt(np.maximum(self.intercept + self.gain * self.offset, self.floor)) / self.gain
        return noise

    def offset_interval(self) -> Estimate:
        """Bounds err by themselves: a clipped replicate would be taken for a sure one."""
        parts = (self.crossing, self.lowest, self.highest)
        crossing, lowest, highest = (_estimate(values[0], values[1:]) for values in parts)
        if not math.isfinite(lowest.value):  # nothing bounds an offset that was given
            return crossing
        low = float(np.clip(crossing.low, lowest.low, max(highest.low, lowest.low)))
        high = float(np.clip(crossing.high, lowest.high, max(highest.high, lowest.high)))
        value = float(self.offset[0])
        return Estimate(value, min(low, value), max(high, value))


def _solve(
    sums: Floats, cubes: Floats | None, known: Known, q: float, darkest: float, rng: np.random.Generator
) -> _Solution:
    """Solve for all numbers; the third moment's slope is ``q`` gain^2, and no used block lies below ``darkest``."""
    read, free = 0.0, known.offset is None and known.read_noise is None
    for _ in range(4):
        gain, intercept = line_of_sums(sums, read, q)
        gain = np.where(gain > 0, gain, np.nan)
        floor = np.where(gain < COARSE, ROUNDING, 0.0)
        lowest = (floor - intercept) / gain if free else np.full_like(gain, -np.inf)
        highest = np.maximum(darkest, lowest) if free else np.full_like(gain, np.inf)
        crossing = _crossing(gain, intercept, cubes, known, q)
        if crossing is None:  # anything between the bounds
            crossing = lowest + (highest - lowest) * np.concatenate([[0], rng.random(len(gain) - 1)])
        elif known.offset is not None:
            crossing[1:] += known.offset[1] * rng.standard_normal(len(gain) - 1)
        found = _Solution(gain, intercept, crossing, lowest, highest, floor)
        read = max(float(intercept[0] + gain[0] * found.offset[0]), float(floor[0]))
        if not np.isfinite(read):
            break
    return found


def _crossing(gain: Floats, intercept: Floats, cubes: Floats | None, known: Known, q: float) -> Floats | None:
    """Offset: given, from a given read noise, or where the third moment vanishes; None if nothing tells."""
    if known.offset is not None:
        return np.full_like(gain, known.offset[0])
    if known.read_noise is not None:
        return gain * known.read_noise**2 - intercept / gain
    if cubes is None:
        return None
    w, x, xx, k, xk = cubes
    slope = q * gain**2 if known.imposed else (xk - x * k / w) / (xx - x * x / w)
    # a slope that noise has turned negative says nothing
    return np.where(slope > 0, (x - k / np.where(slope > 0, slope, 1)) / w, -np.inf)


def _ratio(cubes: Floats, solved: _Solution, known: Known) -> Estimate:
    """Slope of the third moment over gain^2."""
    w, x, xx, k, xk = cubes
    origin = x / w if known.offset is None else solved.offset
    slope = (xk - origin * k) / (xx - 2 * origin * x + origin**2 * w)
    values = slope / solved.gain**2
    return _estimate(values[0], values[1:])


def _choose(ratio: Estimate | None, known: Known) -> tuple[float, bool]:
    """Whether electrons are multiplied, and whether that is left open."""
    if known.multiplying is not None:
        return (MULTIPLIED if known.multiplying else POISSON), False
    if ratio is None or not known.imposed or not np.isfinite(ratio.low + ratio.high):
        return POISSON, ratio is None or known.imposed
    error = max(ratio.error, _SYSTEMATIC)
    undecided = max(abs(ratio.value - POISSON), abs(ratio.value - MULTIPLIED)) < 3 * error
    return (MULTIPLIED if ratio.value > (POISSON + MULTIPLIED) / 2 and not undecided else POISSON), undecided


def _estimate(value: float, *replicates: Floats) -> Estimate:
    """Interval that holds the middle 95 % of each set of replicates."""
    ends = [np.percentile(np.where(np.isfinite(r), r, np.inf), (2.5, 97.5), method="nearest") for r in replicates]
    low, high = min(value, *(e[0] for e in ends)), max(value, *(e[1] for e in ends))
    return Estimate(float(value), float(low), float(high))
