"""The noise of an image: its variance against brightness, what neighbours share of it, and hot pixels."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from gap_bioimage.camera.moments import Flags, Floats, Moments, Values, block_means, steadier

_LEAST_PIXELS, _LEAST_PHOTONS = 36, 20
_GROUPS, _GROUP_PHOTONS = 16, 200
_UNLIT = 3.0  # standard errors above the offset
_EDGES = 5.0  # standard deviations of a block's variance beyond which it holds more than noise
_KNOWN = 0.25  # relative error of the variance of a group
_LEAST_WEIGHT = 1e-6  # smallest error relative to the largest, that a fit can hold
_BETTER = 20.0  # chi-square by which a camera's line must fit better than counts with structure
_SURE = 5.0  # standard errors
_ALIKE = 0.05  # correlation that structure and detectors may leave
SMOOTHED = {True: 0.6, False: 0.3}  # and beyond which noise of frames, and of one image, tells nothing of a camera


@dataclass(frozen=True)
class Curve:
    """The photon-transfer curve: variance of the noise against brightness, in groups of blocks from dark to bright."""

    mean: Floats
    variance: Floats
    error: Floats  # standard error of the variance
    # of a parabola at mean zero, as dead time and structure bend lines, with standard errors; NaN from few groups
    intercept: tuple[float, float] = (math.nan, math.inf)  # counts: 0
    slope: tuple[float, float] = (math.nan, math.inf)  # counts: 1
    chi_square: float = math.inf  # per degree of freedom of a straight line, about 1 for cameras
    bend: float = 0.0  # by how much the parabola departs from the line at the bright end, relative to it
    bend_error: float = math.inf

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the straight line."""
        return max(1, len(self.mean) - 2)

    @property
    def fano(self) -> Floats:
        """Variance over mean of each group: 1 for photon counts, and what structure adds."""
        return self.variance / np.where(self.mean > 0, self.mean, np.nan)

    @property
    def dark(self) -> float:
        """Variance over mean in the darker third; an offset makes it small."""
        return float(np.median(self.fano[self._dark]))

    @property
    def dark_error(self) -> float:
        """Relative standard error of ``dark``."""
        variance = float(np.sum(self.variance[self._dark]))
        return float(np.linalg.norm(self.error[self._dark]) / max(variance, 1e-300))

    @property
    def bright(self) -> float:
        """Variance over mean of the brightest group; dead time makes it small."""
        return float(self.fano[-1])

    @property
    def smallest(self) -> float:
        """The smallest variance over mean: a gain makes even this large."""
        return float(np.min(self.fano))

    @property
    def offset(self) -> float:
        """The mean at which the variance vanishes."""
        return -self.intercept[0] / self.slope[0] if self.slope[0] > 0 else math.nan

    @property
    def _dark(self) -> Flags:
        """The darker third, without groups that a few pixels hold all the light of, if others are left."""
        dark = np.arange(len(self.mean)) < max(1, len(self.mean) // 3)
        known = dark & (self.error < _KNOWN * self.variance)
        return known if known.any() else dark

    def bends(self, least: float) -> int:
        """Whether variance surely rises (1) or falls short (-1) at the bright end by more than a share."""
        return int(np.sign(self.bend)) if abs(self.bend) > max(least, _SURE * self.bend_error) else 0


def curve_of(moments: Moments, unit: float = 1.0, offset: float = -math.inf) -> Curve | None:
    """Return variance against brightness; None where there are fewer than 36 pixels or 20 photons of ``unit`` each."""
    order = np.argsort(moments.mean, kind="stable")
    moments = moments.at(order)
    photons = np.append(0, np.cumsum(np.abs(moments.mean) * moments.samples)) / unit
    if moments.samples.sum() < _LEAST_PIXELS or photons[-1] < _LEAST_PHOTONS:
        return None
    # groups of as many blocks, and of so many photons that each variance is known
    count, edges = len(order), [0]
    error = np.sqrt(np.maximum(moments.variance, 0) / moments.samples)  # noise sorts what has no light
    unlit = int(np.count_nonzero(moments.mean < offset + _UNLIT * error))
    while edges[-1] < count:
        enough = int(np.searchsorted(photons, photons[edges[-1]] + _GROUP_PHOTONS))
        stop = min(count, max(edges[-1] + math.ceil((count - unlit) / _GROUPS), enough, unlit))
        edges.append(stop if photons[-1] - photons[stop] >= _GROUP_PHOTONS else count)
    groups = (slice(*pair) for pair in itertools.pairwise(edges))
    x, y, error = np.array([_typical(moments.at(group), unit) for group in groups]).T
    scale = float(np.abs(x).max())
    if len(np.unique(x[error > 0])) < 4:
        return Curve(x, y, error)
    u, v, e = x[error > 0] / scale, y[error > 0], np.maximum(error[error > 0], _LEAST_WEIGHT * error.max())
    line, line_errors, chi_square = _polynomial(u, v, e, 1)
    parabola, errors, misfit = _polynomial(u, v, e, 2)
    top = float(np.polyval(line, u[-1]))
    bend = (float(np.polyval(parabola, u[-1])) - top) / max(top, 1e-300)
    bend_error = abs(bend) * float(errors[0]) / max(abs(float(parabola[0])), 1e-300)
    # a narrow range of brightness leaves a parabola undecided; counts with structure have mean + c mean^2
    excess = (v - scale * u) / e
    structure = float(np.sum(excess**2) - np.sum(excess * u**2 / e) ** 2 / np.sum(u**4 / e**2))
    at_zero, errors = parabola[1:], errors[1:] * math.sqrt(max(1.0, misfit))
    line_errors = line_errors * math.sqrt(max(1.0, chi_square))
    if structure - chi_square * (len(u) - 2) > _BETTER and errors[1] > line_errors[1]:
        at_zero, errors = line, line_errors
    intercept, slope = ((float(at_zero[k]), float(errors[k])) for k in (1, 0))
    return Curve(x, y, error, intercept, (slope[0] / scale, slope[1] / scale), chi_square, bend, bend_error)


def _typical(group: Moments, unit: float) -> tuple[float, float, float]:
    """Return mean and variance of a group without blocks that hold edges, and the variance's standard error."""
    middle, samples = float(np.median(group.variance)), float(group.samples.mean())
    light = max(float(np.mean(np.abs(group.mean))) / unit, 1e-9)
    each = math.sqrt((2 * float(group.alike.mean()) + 1 / light) / samples)
    # few photons hold all of the noise of a dim block
    full = light * samples > _LEAST_PHOTONS and middle > 0
    kept = group.variance <= middle * (1 + _EDGES * each) if full else np.full(len(group.mean), True)
    found = float(group.variance[kept].mean())
    spread = max(float(group.variance[kept].std()), max(found, 0.0) * each)
    return float(group.mean[kept].mean()), found, spread / math.sqrt(np.count_nonzero(kept))


def _polynomial(x: Floats, y: Floats, error: Floats, degree: int) -> tuple[Floats, Floats, float]:
    """Return coefficients, their standard errors, and chi-square per degree of freedom."""
    middle = float(x.mean())  # about which a narrow range far from zero can be fitted
    best, covariance = np.polyfit(x - middle, y, degree, w=1 / error, cov="unscaled")
    chi_square = float(np.sum(((np.polyval(best, x - middle) - y) / error) ** 2)) / max(1, len(x) - degree - 1)
    about_zero = np.array([[1, 0, 0], [-2 * middle, 1, 0], [middle**2, -middle, 1]])[2 - degree :, 2 - degree :]
    return about_zero @ best, np.sqrt(np.diag(about_zero @ covariance @ about_zero.T)), chi_square


def hot_pixels(counts: Values) -> Flags:
    """Return which pixels of counts (..., y, x) hold more than photons can: the rule of ``anchor.hot_pixels``."""
    found = np.zeros(counts.shape, bool)
    for index in np.ndindex(counts.shape[:-2]):
        plane = np.pad(np.asarray(counts[index], np.float32), 1)
        middle = plane[1:-1, 1:-1]
        beside = (plane[:-2, 1:-1], plane[2:, 1:-1], plane[1:-1, :-2], plane[1:-1, 2:])
        # the rule asks for that, and most images, which do not have it, need not wait for torch
        if np.any((middle > 23) & (sum((4 * pixel < middle).astype(int) for pixel in beside) >= 2)):
            import torch

            from gap_bioimage.filters import hot_pixels as hot

            found[index] = hot(torch.from_numpy(middle.copy())).numpy()
    return found


@dataclass(frozen=True)
class Correlation:
    """Correlation coefficients of the noise of neighbours, -1 to 1; NaN where nothing can be said."""

    y: float = math.nan  # of pixels one above the other
    x: float = math.nan  # of pixels in the same row
    error: float = math.inf  # standard error of the less certain one
    blocks: int = 0  # that it rests on

    @property
    def found(self) -> bool:
        """Whether neighbours' noise is correlated by more than chance: 0.05 and five standard errors."""
        return max(abs(self.y), abs(self.x)) > max(_ALIKE, _SURE * self.error)

    @property
    def largest(self) -> float:
        """The one of y and x that is further from zero; 0 where it is not more than chance."""
        return max(self.y, self.x, key=abs) if self.found else 0.0


def correlation_of(moments: Moments) -> Correlation:
    """Return the correlation of the noise of neighbouring pixels.

    A high-pass along y leaves noise alone, whatever the structure, and does not touch its correlation along x, and the
    other way round; the darker third of the blocks is used, where noise stands out against structure. Independent
    noise gives 0 within the error. Interpolation, smoothing and enlarging make it positive, sharpening negative.
    """
    dark = np.argsort(moments.around, kind="stable")
    products, power = np.split(moments.pairs[:, dark], 2)
    effective = np.cumsum(power[0]) ** 2 / np.maximum(np.cumsum(power[0] ** 2), 1e-300)
    third = math.ceil(len(dark) / 3)  # and more of them where these are empty
    enough = np.flatnonzero(effective[third - 1 :] >= min(30, len(dark)))
    used = third + int(enough[0]) if len(enough) else len(dark)
    products, power = products[:, :used], power[:, :used]
    if not power.sum(1).min() > 0:
        return Correlation()
    value = products.sum(1) / power.sum(1)
    spread = np.linalg.norm(products - value[:, None] * power, axis=1) / power.sum(1)
    least = float(moments.alike_pairs.mean() / moments.samples[dark[:used]].sum()) ** 0.5
    return Correlation(float(value[0]), float(value[1]), max(float(spread.max()), least), used)


def frame_correlation(stack: Values) -> float:
    """Return the correlation of successive frames' noise, 0 where it is small.

    The variance of differences grows with their distance in time until the noise has nothing in common.
    """
    frames = stack.shape[1]
    if frames < 6:
        return 0.0
    lags = np.arange(1, min(8, frames // 2) + 1)
    starts = np.unique(np.linspace(0, frames - 1 - lags[-1], 24).astype(int))
    window = tuple(slice(max(0, (n - 256) // 2), (n + 256) // 2) for n in stack.shape[2:])
    film = stack[stack.shape[0] // 2][(slice(None), *window)]
    steadied = steadier(np.mean(film[starts], axis=0, dtype=np.float64))
    away = (np.mean([steadied(film[s + lag] - film[s].astype(float)) ** 2 for s in starts], axis=0) for lag in lags)
    found = np.array([np.median(block_means(squares, 4)) for squares in away])
    tail = found[len(found) // 2 :].mean()
    shared = float(1 - found[0] / tail) if tail > 0 else 0.0
    return shared if shared >= 2 * _ALIKE else 0.0
