"""The photon-transfer line: variance against mean, fitted to blocks that may hold objects or structure.

Variance = gain (mean - offset) + read^2, whatever the structure within a block, so nothing needs to be binned by
noisy single pixels. Source: J. R. Janesick, "Photon Transfer", SPIE Press (2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    import numpy.typing as npt

    from gap_bioimage.photons.cameras.noise_moments import Moments

    Floats = npt.NDArray[np.float64]
    Flags = npt.NDArray[np.bool_]

_ROUNDS = 30
_GROUPS = 24
_MOST_LOST = 0.3  # share of a position's units beyond which it is left out as a whole
_LARGEST_SHIFT = 5.0  # standard errors by which a block may change in a way that noise does not
_FULL_WEIGHT, _NO_WEIGHT = 3.0, 6.0  # residuals, in standard deviations
_MOTION_CUT = 1 - 1e-6  # share of noisy units without objects that stay
_STRUCTURE_CUT = 0.9
_LEAST_VARIANCE = 5e-3  # ADU^2; counts of few photons have no less


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
    """Averages over time, one per position; what the line is fitted to.

    Attributes
    ----------
    mean, variance, third
        ADU, ADU^2, ADU^3.
    samples
        Pixels times units that were averaged.
    weight, third_weight
        One over the variance that ``variance`` and ``third`` have, times what robust fitting leaves of it.
    """

    mean: Floats
    variance: Floats
    third: Floats
    samples: Floats
    weight: Floats
    third_weight: Floats


def fit_line(
    moments: Moments, *, structure: bool, loud: float = 1.0, anchor: Moments | None = None
) -> tuple[Line, Points, Points | None]:
    """Fit the line to blocks, leaving out what is no noise.

    Parameters
    ----------
    moments
        Of images.
    structure
        Whether structure that the optics resolve leaks into the variances, as it does from one image.
    loud
        Factor by which correlation of neighbours raises the scatter of variances.
    anchor
        Moments of dark frames, through which the line is to go.

    Returns
    -------
    line, points, dark
        The fit, and the averages of images and of dark frames that it went through.
    """
    line = _first_line(moments)
    cut = _STRUCTURE_CUT if structure else _MOTION_CUT
    for _ in range(_ROUNDS):
        points = _weigh(average(moments, line, cut, loud), line)
        dark = None if anchor is None else _weigh(average(anchor, line, _MOTION_CUT, loud), line)
        totals = sum(line_sums(part).sum(1) for part in (points, dark) if part is not None)
        gain, intercept = line_of_sums(np.asarray(totals), read=0.0, multiplying=1.0)
        before, line = line, Line(float(gain), float(intercept))
        if not line.gain > 0 or abs(before.gain - line.gain) < 1e-6 * line.gain:
            break
    return line, points, dark


def moving(moments: Moments) -> Flags:
    """Return the positions whose brightness changes more from frame to frame than noise lets it."""
    count = len(moments.shift)
    strength = np.mean(moments.shift**2, axis=0)
    usual = max(float(np.median(strength)), 1e-30)
    limit = 1 + _LARGEST_SHIFT * np.sqrt(2 * moments.alike[1] / count)
    found: Flags = strength > usual * limit
    return found if count > 2 else np.zeros_like(found)


def _first_line(moments: Moments) -> Line:
    """Median slope between groups of similar brightness."""
    mean, variance = moments.mean.mean(0), np.median(moments.variance, axis=0)
    groups = np.array_split(np.argsort(mean, kind="stable"), min(_GROUPS, len(mean)))
    x = np.array([np.median(mean[g]) for g in groups])
    y = np.array([np.quantile(variance[g], 0.4) for g in groups])
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] > x[first]
    slopes = (y[second] - y[first])[apart] / (x[second] - x[first])[apart]
    gain = float(np.median(slopes)) if len(slopes) else 0.0
    if gain <= 0:
        gain = max(1e-6, float(np.median(y) / max(np.median(x), 1e-6)))
    return Line(gain, float(np.median(y - gain * x)))


def average(moments: Moments, line: Line, cut: float = _MOTION_CUT, loud: float = 1.0) -> Points:
    """Average over time, without units that are too noisy; what is lost of noise's own tail is put back."""
    place = moments.mean.mean(0)
    expected = line.at(place)
    fourth = line.gain**2 * expected  # of Poisson light, and all taken as light
    uneven = loud * (1 + line.gain**2 * moments.relief / expected**2)  # few pixels may hold most of the noise
    unit = (2 * uneven * moments.alike[0] + fourth / expected**2) / moments.pixels  # relative variance
    shape = 1 / unit
    limit = special.gammaincinv(shape, cut) / shape
    lost = special.gammainc(shape + 1, limit * shape) / special.gammainc(shape, limit * shape).clip(1e-12)
    kept = moments.variance <= limit * np.maximum(line.at(moments.mean), 0.3 * expected)
    count = kept.sum(0)
    enough = count >= (1 - _MOST_LOST) * len(kept) if len(kept) > 1 else count > 0
    total = np.maximum(count, 1)

    def mean(values: Floats) -> Floats:
        averaged: Floats = np.where(kept, values, 0).sum(0)[enough] / total[enough]
        return averaged

    samples = moments.pixels * count[enough].astype(np.float64)
    expected, fourth, uneven = expected[enough], fourth[enough], uneven[enough]
    variance_error = (2 * uneven * moments.alike[1] * expected**2 + fourth) / samples
    g = line.gain
    cubes = moments.alike_cubes * uneven * expected**3 + (9 * 2 * g**2 * expected**2 + g**4 * expected)
    return Points(
        mean(moments.mean),
        mean(moments.variance) / lost[enough],
        mean(moments.third),
        samples,
        1 / variance_error,
        samples / cubes,
    )


def _weigh(points: Points, line: Line) -> Points:
    """Take weight from points far from the line."""
    residual = (points.variance - line.intercept - line.gain * points.mean) * np.sqrt(points.weight)
    scale = max(1.0, float(np.median(np.abs(residual))) * 1.4826)
    robust = np.clip((_NO_WEIGHT - np.abs(residual) / scale) / (_NO_WEIGHT - _FULL_WEIGHT), 0, 1)
    return Points(
        points.mean,
        points.variance,
        points.third,
        points.samples,
        points.weight * robust,
        points.third_weight * (robust > 0),
    )


def line_sums(points: Points) -> Floats:
    """Return what weighted least squares needs of each point: (7, points) to be added up."""
    w, x, y = points.weight, points.mean, points.variance
    return np.stack([w, w * x, w * x * x, w * y, w * x * y, w / points.samples, w * y / points.samples])


def line_of_sums(sums: Floats, read: float, multiplying: float) -> tuple[Floats, Floats]:
    """Return gain and intercept from sums over points, free of the bias that noisy means cause.

    The mean of a block errs by variance / samples, together with its variance by third moment / samples. With the
    third moment ``multiplying gain (variance - read)`` both corrections become one term below the fraction.

    Parameters
    ----------
    sums
        (7, ...) of :func:`line_sums`.
    read
        Variance of read noise, ADU^2.
    multiplying
        1 for Poisson electrons, 1.5 behind electron multiplication.
    """
    w, x, xx, y, xy, n, ny = sums
    spread = xx - x * x / w + (multiplying - 1) * ny - multiplying * read * n
    gain = (xy - x * y / w) / np.where(np.abs(spread) > 0, spread, np.nan)
    return gain, (y - gain * x) / w
