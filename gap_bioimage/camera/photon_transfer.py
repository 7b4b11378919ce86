"""The photon-transfer line: variance = gain (mean - offset) + read^2, whatever the structure within a block.

J. R. Janesick, "Photon Transfer", SPIE Press (2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special, stats

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from gap_bioimage.camera.moments import Moments

    Floats = npt.NDArray[np.float64]
    Flags = npt.NDArray[np.bool_]

COARSE = 0.9  # ADU per electron above which whole numbers of electrons differ by whole ADU
LEAST_BLOCKS = 12
_GROUPS = 20
_FULL_WEIGHT, _NO_WEIGHT = 3.0, 6.0  # residuals, in standard deviations
_STRUCTURE_CUT = 0.9  # share of the blocks of one image that stay: structure is in the rest
_LEAST_VARIANCE = 5e-3  # ADU^2; counts of few photons have no less
_ROUNDED = 0.5  # ADU^2 below which rounding is no longer noise of 1/12 ADU^2
_ZEROS = (2e-3, 1e-3, 1e-2, 5e-2)  # shares of zeros: where clipping may start, and how many may stay
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
    """How well the line fits groups of blocks of similar brightness, the points of the photon-transfer curve.

    Attributes
    ----------
    mean, variance, error
        Dark to bright; ADU, ADU^2.
    chi_square, freedom
        Per degree of freedom, and how many there are.
    bend, bend_error
        By how much a parabola departs from the line at the bright end, relative to it.
    """

    mean: Floats
    variance: Floats
    error: Floats
    chi_square: float
    freedom: int
    bend: float = 0.0
    bend_error: float = math.inf

    def bends(self, least: float) -> int:
        """Whether variance surely rises (1) or falls short (-1) at the bright end by more than a share."""
        return int(np.sign(self.bend)) if abs(self.bend) > max(least, 5 * self.bend_error) else 0


@dataclass(frozen=True)
class Fit:
    """The line, what it goes through, and what was left out.

    Attributes
    ----------
    moments, points, dark
        Of the blocks that are used, and of dark frames.
    outliers
        Share of the blocks that do not obey the line, since something moves or flickers there.
    clipped, coarse
        Whether dark pixels are clipped at zero, and noise is lost in rounding.
    brightest
        ADU above which blocks were left out because the variance falls short.
    """

    line: Line
    moments: Moments
    points: Points
    dark: Points | None
    goodness: Goodness
    outliers: float
    clipped: bool = False
    coarse: bool = False
    brightest: float | None = None


def points_of(moments: Moments, line: Line, *, loud: float = 1.0, cut: float = 1.0, robust: bool = True) -> Points:
    """Weigh blocks against a line.

    Parameters
    ----------
    moments, line
        The blocks, and about what they obey.
    loud
        Factor by which correlated neighbours raise the scatter of variances.
    cut
        Share of the blocks that stay, the others being too noisy; what is lost of noise's own tail is put back.
    robust
        Take weight from outliers.
    """
    expected = line.at(moments.mean)
    scatter = loud * moments.variance_of_variance(expected, line.gain)
    variance, weight = moments.variance, 1 / scatter
    if cut < 1:
        shape = expected**2 / scatter
        limit = special.gammaincinv(shape, cut) / shape
        weight = np.where(variance <= limit * expected, weight, 0)
        variance = variance * special.gammainc(shape, limit * shape) / special.gammainc(shape + 1, limit * shape)
    if robust:
        away = np.abs(variance - expected) / np.sqrt(scatter)
        scale = max(1.0, 1.4826 * float(np.median(away[weight > 0]))) if weight.any() else 1.0
        weight = weight * np.clip((_NO_WEIGHT - away / scale) / (_NO_WEIGHT - _FULL_WEIGHT), 0, 1)
    third_weight = (weight > 0) / moments.variance_of_third(expected, line.gain)
    return Points(moments.mean, variance, moments.third, weight, third_weight, moments.samples)


def line_of_sums(sums: Floats, read: float, multiplying: float) -> tuple[Floats, Floats]:
    """Return gain and intercept from sums (7, ...) over blocks, free of the bias that noisy means cause.

    The mean of a block errs by variance / samples, together with its variance by third moment / samples. With the third
    moment ``multiplying gain (variance - read)``, ``read`` in ADU^2, both become one term below the fraction.
    """
    w, x, xx, y, xy, n, ny = sums
    spread = xx - x * x / w + (multiplying - 1) * ny - multiplying * read * n
    gain = (xy - x * y / w) / np.where(np.abs(spread) > 0, spread, np.nan)
    return gain, (y - gain * x) / w


def fit_line(moments: Moments, *, loud: float, structure: bool, anchor: Moments | None = None) -> Fit:
    """Fit the line to blocks that obey it, without those that are clipped at zero, rounded coarsely or fall short.

    Parameters
    ----------
    moments
        Of blocks that are not saturated.
    loud
        As for :func:`points_of`.
    structure
        Whether structure leaks into the variances, as it does from one image.
    anchor
        Moments of dark frames, through which the line is to go.
    """

    def fit(keep: Flags) -> Fit:
        return _iterated(moments.at(keep), loud, _STRUCTURE_CUT if structure else 1.0, anchor)

    keep = np.ones(len(moments.mean), bool)
    found, keep, clipped = _unclipped(moments, keep, fit(keep), fit, loud)
    coarse = False
    if found.line.gain < COARSE:
        fine = keep & (found.line.intercept + found.line.gain * moments.mean >= _ROUNDED)
        coarse = bool(np.mean(fine[keep]) < 0.5)
        if _enough(fine, keep) and np.any(fine != keep):
            found, keep = fit(fine), fine
    goodness, brightest = found.goodness, None
    while not clipped and found.goodness.bends(0.02) < 0:  # dead time, compression, saturation
        middle = float((found.moments.mean.min() + found.moments.mean.max()) / 2)
        darker = keep & (moments.mean <= middle)
        if np.count_nonzero(darker) < 2 * LEAST_BLOCKS or not fit(darker).line.gain > 1.02 * found.line.gain:
            break
        found, keep, brightest = fit(darker), darker, middle
    return replace(found, goodness=goodness, clipped=clipped, coarse=coarse, brightest=brightest)


def _iterated(moments: Moments, loud: float, cut: float, anchor: Moments | None) -> Fit:
    line = _first_line(moments)
    for _ in range(30):
        points = points_of(moments, line, loud=loud, cut=cut)
        dark = None if anchor is None else points_of(anchor, line, loud=loud)
        total = points.line_sums.sum(1) + (0 if dark is None else dark.line_sums.sum(1))
        gain, intercept = line_of_sums(total, read=0.0, multiplying=1.0)
        before, line = line, Line(float(gain), float(intercept))
        if not line.gain > 0 or abs(before.gain - line.gain) < 1e-6 * line.gain:
            break
    outliers = float(np.mean(points.weight == 0)) - (1 - cut)
    return Fit(line, moments, points, dark, goodness_of(points, line), max(outliers, 0.0))


def _first_line(moments: Moments) -> Line:
    """Median slope between groups of similar brightness."""
    order = np.array_split(np.argsort(moments.mean, kind="stable"), min(24, len(moments.mean)))
    x = np.array([np.median(moments.mean[g]) for g in order])
    y = np.array([np.quantile(moments.variance[g], 0.4) for g in order])
    gain = float(stats.theilslopes(y, x).slope) if len(np.unique(x)) > 1 else 0.0
    if gain <= 0:
        gain = max(1e-6, float(np.median(y) / max(np.median(x), 1e-6)))
    return Line(gain, float(np.median(y - gain * x)))


def _enough(kept: Flags, of: Flags) -> bool:
    return bool(np.count_nonzero(kept) >= max(LEAST_BLOCKS, 0.1 * np.count_nonzero(of)))


def _unclipped(
    moments: Moments, keep: Flags, found: Fit, fit: Callable[[Flags], Fit], loud: float
) -> tuple[Fit, Flags, bool]:
    """Leave out blocks that are clipped at zero, if others are there: they have less noise than the line says."""
    dim = keep & (moments.zeros > _ZEROS[0])
    if not dim.any():
        return found, keep, False
    brighter = [keep & (moments.zeros < few) for few in _ZEROS[1:]]
    bright = next((kept for kept in brighter if _enough(kept, keep)), None)
    if bright is None:
        dark = found.points.mean <= np.median(found.points.mean)
        ratio = found.points.variance[dark].sum() / max(float(found.points.mean[dark].sum()), 1e-9)
        return found, keep, bool(abs(ratio - 1) > _LIKE_COUNTS and found.goodness.chi_square > 3)
    rest = fit(bright)
    left = points_of(moments.at(dim), rest.line, loud=loud, robust=False)
    total = float(left.weight.sum())
    variance, mean = (float(left.weight @ values) / total for values in (left.variance, left.mean))
    expected = float(left.weight @ rest.line.at(left.mean)) / total
    short = expected - variance > max(4 / total**0.5, 0.02 * expected) and abs(variance / mean - 1) > _LIKE_COUNTS
    return (rest, bright, True) if short else (found, keep, False)


def goodness_of(points: Points, line: Line) -> Goodness:
    """Compare groups of blocks of similar brightness with the line."""
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
    # what a parabola adds to a line
    parabola, covariance = np.polyfit(u, y, 2, w=np.sqrt(w), cov="unscaled")
    departure = float(np.polyval(parabola, 1.0) - np.polyval(np.polyfit(u, y, 1, w=np.sqrt(w)), 1.0))
    per_curvature = abs(departure / parabola[0]) if parabola[0] else 1.0
    top = float(line.at(x[-1:])[0])
    return replace(found, bend=departure / top, bend_error=float(np.sqrt(covariance[0, 0])) * per_curvature / top)
