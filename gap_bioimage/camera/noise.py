"""The noise of an image: variance against brightness, correlation between neighbours, and hot pixels."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from gap_bioimage.camera.moments import Flags, Floats, Moments, Values, block_means, common_mode_filter

_LEAST_PIXELS, _LEAST_PHOTONS = 36, 20  # below which an image has no curve
_GROUPS, _GROUP_PHOTONS = 16, 200  # most groups of blocks in a curve, and fewest photons in a group
_UNLIT = 3.0  # standard errors above the offset up to which blocks form one dark group
_EDGES = 5.0  # standard deviations above the median variance beyond which a block holds edges
_SURE = 5.0  # standard errors above which an effect is significant
_HARMLESS = 0.05  # correlation of neighbours up to which structure or the detector may be the cause
SMOOTHED = {True: 0.6, False: 0.3}  # correlation above which frames (True) and one image (False) give no gain


@dataclass(frozen=True)
class Curve:
    """The photon-transfer curve: noise variance against brightness, in groups of blocks from dark to bright."""

    mean: Floats
    variance: Floats
    error: Floats  # standard error of the variance
    # at mean zero, with standard errors, of a parabola (dead time and structure bend lines) or a better line; else NaN
    intercept: tuple[float, float] = (math.nan, math.inf)  # 0 for counts
    slope: tuple[float, float] = (math.nan, math.inf)  # 1 for counts
    chi_square: float = math.inf  # of a straight line, per degree of freedom; about 1 for cameras
    bend: float = 0.0  # relative departure of the parabola from the line at the bright end
    bend_error: float = math.inf  # standard error of the bend

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the straight line."""
        return max(1, len(self.mean) - 2)

    @property
    def fano(self) -> Floats:
        """Variance over mean of each group: 1 for photon counts, more where structure passes for noise."""
        return self.variance / np.where(self.mean > 0, self.mean, np.nan)

    @property
    def dark(self) -> float:
        """Variance over mean in the darker third; an offset lowers it."""
        return float(np.median(self.fano[self._dark]))

    @property
    def dark_error(self) -> float:
        """Relative standard error of ``dark``."""
        variance = float(np.sum(self.variance[self._dark]))
        return float(np.linalg.norm(self.error[self._dark]) / max(variance, 1e-300))

    @property
    def bright(self) -> float:
        """Variance over mean of the brightest group; dead time lowers it."""
        return float(self.fano[-1])

    @property
    def bright_error(self) -> float:
        """Relative standard error of ``bright``."""
        return float(self.error[-1] / max(self.variance[-1], 1e-300))

    @property
    def smallest(self) -> float:
        """Smallest variance over mean of all groups; a gain raises even this one."""
        return float(np.min(self.fano))

    @property
    def offset(self) -> float:
        """Mean at which the variance vanishes."""
        return -self.intercept[0] / self.slope[0] if self.slope[0] > 0 else math.nan

    @property
    def _dark(self) -> slice:
        """The darker third of the groups."""
        return slice(max(1, len(self.mean) // 3))

    def bends(self, least: float) -> int:
        """Return 1 or -1 if the bright end is significantly above or below the line, by more than ``least``; else 0."""
        return int(np.sign(self.bend)) if abs(self.bend) > max(least, _SURE * self.bend_error) else 0


def curve_of(moments: Moments, unit: float = 1.0, offset: float = -math.inf) -> Curve | None:
    """Return the photon-transfer curve, or None for fewer than 36 pixels or 20 photons of ``unit`` each.

    Blocks without light, as dark as ``offset``, form one group.
    """
    order = np.argsort(moments.mean, kind="stable")
    moments = moments.at(order)
    photons = np.append(0, np.cumsum(np.abs(moments.mean) * moments.samples)) / unit
    if moments.samples.sum() < _LEAST_PIXELS or photons[-1] < _LEAST_PHOTONS:
        return None
    # groups of equally many blocks, each with enough photons for its variance to be known
    count, edges = len(order), [0]
    error = np.sqrt(np.maximum(moments.variance, 0) / moments.samples)  # without light, noise alone orders the blocks
    unlit = int(np.count_nonzero(moments.mean < offset + _UNLIT * error))
    while edges[-1] < count:
        enough = int(np.searchsorted(photons, photons[edges[-1]] + _GROUP_PHOTONS))
        stop = min(count, max(edges[-1] + math.ceil((count - unlit) / _GROUPS), enough, unlit))
        edges.append(stop if photons[-1] - photons[stop] >= _GROUP_PHOTONS else count)
    groups = (moments.at(slice(*pair)) for pair in itertools.pairwise(edges))
    x, y, error = np.array([_average(group, unit) for group in groups]).T
    scale = float(np.abs(x).max())
    if len(np.unique(x[error > 0])) < 4:
        return Curve(x, y, error)
    u, v, e = x[error > 0] / scale, y[error > 0], error[error > 0]
    line, line_errors, chi_square = _polynomial(u, v, e, 1)
    parabola, errors, misfit = _polynomial(u, v, e, 2)
    top = float(np.polyval(line, u[-1]))
    bend = (float(np.polyval(parabola, u[-1])) - top) / max(top, 1e-300)
    bend_error = abs(bend) * float(errors[0]) / max(abs(float(parabola[0])), 1e-300)
    # a narrow range of brightness does not determine a parabola
    errors, line_errors = errors[1:] * math.sqrt(max(1.0, misfit)), line_errors * math.sqrt(max(1.0, chi_square))
    at_zero, errors = (parabola[1:], errors) if errors[1] <= line_errors[1] else (line, line_errors)
    slope, intercept = zip(at_zero.tolist(), errors.tolist(), strict=True)
    return Curve(x, y, error, intercept, (slope[0] / scale, slope[1] / scale), chi_square, bend, bend_error)


def _average(group: Moments, unit: float) -> tuple[float, float, float]:
    """Return mean and variance of a group, blocks with edges excluded, and the standard error of the variance."""
    median, samples = float(np.median(group.variance)), float(group.samples.mean())
    photons = max(float(np.mean(np.abs(group.mean))) / unit, 1e-9)
    block_error = math.sqrt((2 * float(group.inflation.mean()) + 1 / photons) / samples)  # relative
    used = np.full(len(group.mean), True)
    if photons * samples > _LEAST_PHOTONS and median > 0:  # in a dimmer block, a few photons cause all the noise
        used = group.variance <= median * (1 + _EDGES * block_error)
    variance = float(group.variance[used].mean())
    spread = max(float(group.variance[used].std()), max(variance, 0.0) * block_error)
    return float(group.mean[used].mean()), variance, spread / math.sqrt(np.count_nonzero(used))


def _polynomial(x: Floats, y: Floats, error: Floats, degree: int) -> tuple[Floats, Floats, float]:
    """Return coefficients, their standard errors, and chi-square per degree of freedom."""
    middle = float(x.mean())  # centred, a narrow range far from zero can be fitted
    best, covariance = np.polyfit(x - middle, y, degree, w=1 / error, cov="unscaled")
    chi_square = float(np.sum(((np.polyval(best, x - middle) - y) / error) ** 2)) / max(1, len(x) - degree - 1)
    about_zero = np.array([[1, 0, 0], [-2 * middle, 1, 0], [middle**2, -middle, 1]])[2 - degree :, 2 - degree :]
    return about_zero @ best, np.sqrt(np.diag(about_zero @ covariance @ about_zero.T)), chi_square


def hot_pixels(counts: Values) -> Flags:
    """Return which pixels of counts (..., y, x) are hot, by the rule of ``filters.hot_pixels``.

    It ranks the neighbours of every pixel; here only those of pixels that exceed two of four neighbours fourfold are
    ranked. Most images have none, which spares them the import of torch.
    """
    found = np.zeros(counts.shape, bool)
    for index in np.ndindex(counts.shape[:-2]):
        plane = np.pad(np.asarray(counts[index], np.float32), 2)
        quarter = 0.25 * plane[2:-2, 2:-2]
        beside = plane[1:-3, 2:-2], plane[3:-1, 2:-2], plane[2:-2, 1:-3], plane[2:-2, 3:-1]
        exceeded = sum((neighbours < quarter).view(np.uint8) for neighbours in beside)
        y, x = np.nonzero((exceeded >= 2) & (quarter > 23 / 4))
        if len(y) and min(quarter.shape) >= 3:
            import torch

            from gap_bioimage.filters import most_photons

            around = np.lib.stride_tricks.sliding_window_view(plane, (5, 5))[y, x].reshape(-1, 25)
            third = np.partition(np.delete(around, 12, axis=1), -3)[:, -3]
            found[index][y, x] = around[:, 12] > most_photons(torch.from_numpy(third)).numpy()
    return found


@dataclass(frozen=True)
class Correlation:
    """Correlation coefficients of the noise of neighbouring pixels, -1 to 1; NaN if unknown."""

    y: float = math.nan  # of vertical neighbours
    x: float = math.nan  # of horizontal neighbours
    error: float = math.inf  # the larger standard error of the two
    blocks: int = 0  # number of blocks used

    @property
    def found(self) -> bool:
        """Whether the correlation is significant: more than 0.05 and five standard errors."""
        return max(abs(self.y), abs(self.x)) > max(_HARMLESS, _SURE * self.error)

    @property
    def largest(self) -> float:
        """The correlation along y or x that is further from zero; 0 if not significant."""
        return max(self.y, self.x, key=abs) if self.found else 0.0


def correlation_of(moments: Moments) -> Correlation:
    """Return the correlation of the noise of neighbouring pixels.

    A high-pass along y removes structure and does not change the correlation of the noise along x, and vice versa. The
    darker third of the blocks is used, where noise dominates over structure. Independent noise gives 0 within the
    error; interpolation, smoothing and enlarging give positive values, sharpening negative ones.
    """
    dark = np.argsort(moments.around, kind="stable")
    products, power = np.split(moments.pairs[:, dark], 2)
    effective = np.cumsum(power[0]) ** 2 / np.maximum(np.cumsum(power[0] ** 2), 1e-300)
    third = math.ceil(len(dark) / 3)  # more blocks are used if these are nearly empty
    enough = np.flatnonzero(effective[third - 1 :] >= min(30, len(dark)))
    blocks = third + int(enough[0]) if len(enough) else len(dark)
    products, power = products[:, :blocks], power[:, :blocks]
    if not power.sum(1).min() > 0:
        return Correlation()
    value = products.sum(1) / power.sum(1)
    error = np.linalg.norm(products - value[:, None] * power, axis=1) / power.sum(1)
    least = float(moments.pair_inflation.mean() / moments.samples[dark[:blocks]].sum()) ** 0.5
    return Correlation(float(value[0]), float(value[1]), max(float(error.max()), least), blocks)


def frame_correlation(stack: Values) -> float:
    """Return the correlation of the noise of successive frames, or 0 if it is small.

    The variance of frame differences grows with the time between the frames until their noise is independent.
    """
    frames = stack.shape[1]
    if frames < 6:
        return 0.0
    lags = np.arange(1, min(8, frames // 2) + 1)
    starts = np.unique(np.linspace(0, frames - 1 - lags[-1], 24).astype(int))
    window = tuple(slice(max(0, (n - 256) // 2), (n + 256) // 2) for n in stack.shape[2:])
    film = stack[stack.shape[0] // 2][(slice(None), *window)]
    clean = common_mode_filter(np.mean(film[starts], axis=0, dtype=np.float64))
    squares = (np.mean([clean(film[s + lag] - film[s].astype(float)) ** 2 for s in starts], axis=0) for lag in lags)
    variance = np.array([np.median(block_means(square, 4)) for square in squares])
    tail = variance[len(variance) // 2 :].mean()
    correlation = float(1 - variance[0] / tail) if tail > 0 else 0.0
    return correlation if correlation >= 2 * _HARMLESS else 0.0
