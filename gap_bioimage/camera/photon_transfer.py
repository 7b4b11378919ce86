"""The photon-transfer line: variance = gain (mean - offset) + read^2, whatever the structure within a block.

J. R. Janesick, "Photon Transfer", SPIE Press (2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy

from gap_bioimage.camera.moments import Flags, Floats, Moments

COARSE = 0.9  # ADU per electron above which whole numbers of electrons differ by whole ADU
LEAST_BLOCKS = 12
_GROUPS = 20
_FULL_WEIGHT, _NO_WEIGHT = 3.0, 6.0  # residuals, in standard deviations
_LEAST_VARIANCE = 5e-3  # ADU^2; counts of few photons have no less
_ROUNDED = 0.5  # ADU^2 below which rounding is no longer noise of 1/12 ADU^2
_ZEROS, _FEW_ZEROS = 2e-3, (1e-3, 1e-2, 5e-2)  # shares of zeros: where clipping may start, and how many may stay
_LIKE_COUNTS = 0.15  # relative difference of variance and mean


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


def line_of_sums(sums: Floats, read: float = 0.0, multiplying: float = 1.0) -> tuple[Floats, Floats]:
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

    def enough(keep: Flags) -> bool:
        return bool(np.count_nonzero(keep) >= max(LEAST_BLOCKS, 0.1 * len(keep)))

    found, clipped, coarse = _iterated(moments, loud, anchor), False, False
    dim = moments.zeros > _ZEROS
    bright = next((keep for few in _FEW_ZEROS if enough(keep := moments.zeros < few)), None)
    if np.any(dim) and bright is not None:
        rest = _iterated(moments.at(bright), loud, anchor)
        clipped = _falls_short(moments.at(dim), rest.line, loud)
        found = rest if clipped else found
    if found.line.gain < COARSE:
        fine = found.line.intercept + found.line.gain * found.moments.mean >= _ROUNDED
        coarse = bool(np.mean(fine) < 0.5)
        if enough(fine) and not fine.all():
            found = _iterated(found.moments.at(fine), loud, anchor)
    return replace(found, clipped=clipped, coarse=coarse)


def _iterated(moments: Moments, loud: float, anchor: Moments | None) -> Fit:
    line = _first_line(moments)
    for _ in range(30):
        points = points_of(moments, line, loud=loud)
        dark = None if anchor is None else points_of(anchor, line, loud=loud)
        gain, intercept = line_of_sums(points.line_sums.sum(1) + (0 if dark is None else dark.line_sums.sum(1)))
        before, line = line, Line(float(gain), float(intercept))
        if not line.gain > 0 or abs(before.gain - line.gain) < 1e-6 * line.gain:
            break
    return Fit(line, moments, points, dark, goodness_of(points, line), float(np.mean(points.weight == 0)))


def _first_line(moments: Moments) -> Line:
    """Median slope between groups of similar brightness, which parts that move do not reach."""
    groups = np.array_split(np.argsort(moments.mean, kind="stable"), min(24, len(moments.mean)))
    x = np.array([np.median(moments.mean[group]) for group in groups])
    y = np.array([np.quantile(moments.variance[group], 0.4) for group in groups])
    gain = float(scipy.stats.theilslopes(y, x).slope) if len(np.unique(x)) > 1 else 0.0
    gain = gain if gain > 0 else max(1e-6, float(np.median(y) / max(np.median(x), 1e-6)))
    return Line(gain, float(np.median(y - gain * x)))


def _falls_short(dim: Moments, line: Line, loud: float) -> bool:
    """Whether blocks with zeros have less noise than the line of the others says, and are no counts."""
    points = points_of(dim, line, loud=loud, robust=False)
    seen = (points.variance, points.mean, line.at(points.mean))
    variance, mean, expected = (float(np.average(values, weights=points.weight)) for values in seen)
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
