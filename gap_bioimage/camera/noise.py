"""The noise of an image: its variance against brightness, what neighbours share of it, and hot pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy

from gap_bioimage.camera import moments as m
from gap_bioimage.camera.moments import BLOCK_PX, Flags, Floats, Look, Moments, Values, block_means

_LEAST_PIXELS, _LEAST_PHOTONS = 36, 20
_GROUPS, _GROUP_PHOTONS = 16, 200
_EDGES = 5.0  # standard deviations of a block's variance beyond which it holds more than noise
_BETTER = 20.0  # chi-square by which a camera's line must fit better than counts with structure
_ORDER = 8  # differences that show the neighbours' noise in single images: 90 % above 0.7 of the highest frequency
_SURE = 5.0  # standard errors
_ALIKE = 0.05  # correlation that structure and detectors may leave
_CHI_SQUARE_MEDIAN = 0.4549


@dataclass(frozen=True)
class Noise:
    """Variance of the noise against brightness, in groups of blocks from dark to bright."""

    mean: Floats
    variance: Floats
    error: Floats  # standard error of the variance
    intercept: tuple[float, float]  # of the curve at mean zero, with its standard error; NaN from few groups. Counts: 0
    slope: tuple[float, float]  # the same; counts: 1
    misfit: float  # chi-square per degree of freedom of a straight line, about 1 for cameras

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
    def bright_error(self) -> float:
        """Standard error of ``bright``."""
        return float(self.error[-1] / max(abs(float(self.mean[-1])), 1e-300))

    @property
    def smallest(self) -> float:
        """The smallest variance over mean: a gain makes even this large."""
        return float(np.min(self.fano))

    @property
    def offset(self) -> float:
        """The mean at which the variance vanishes."""
        return -self.intercept[0] / self.slope[0] if self.slope[0] > 0 else math.nan

    @property
    def _dark(self) -> slice:
        return slice(0, max(1, len(self.mean) // 3))


def noise_of(moments: Moments, unit: float = 1.0) -> Noise | None:
    """Return variance against brightness; None where there are fewer than 36 pixels or 20 photons of ``unit`` each."""
    order = np.argsort(moments.mean, kind="stable")
    mean, variance = moments.mean[order], moments.variance[order]
    photons = np.cumsum(np.abs(mean)) * moments.samples / unit
    if len(mean) * moments.samples < _LEAST_PIXELS or photons[-1] < _LEAST_PHOTONS:
        return None
    x, y, error = np.array([_typical(moments, mean[g], variance[g], unit) for g in _groups(photons)]).T
    return Noise(x, y, error, *_fitted(x, y, error))


def _groups(photons: Floats) -> list[slice]:
    """Split blocks, sorted by brightness, into groups of 200 photons and more, so that each variance is known."""
    size, groups, start = max(1, math.ceil(len(photons) / _GROUPS)), [], 0
    while start < len(photons):
        before = photons[start - 1] if start else 0.0
        stop = max(start + size, int(np.searchsorted(photons, before + _GROUP_PHOTONS)) + 1)
        if photons[-1] - photons[min(stop, len(photons)) - 1] < _GROUP_PHOTONS:
            stop = len(photons)
        groups.append(slice(start, stop))
        start = stop
    return groups


def _typical(moments: Moments, mean: Floats, variance: Floats, unit: float) -> tuple[float, float, float]:
    """Return mean and variance of a group without blocks that hold edges, and the variance's standard error."""
    middle = float(np.median(variance))
    light = max(float(np.mean(np.abs(mean))) / unit, 1e-9)
    each = math.sqrt((2 * moments.alike + 1 / light) / moments.samples)
    # few photons hold all of the noise of a dim block
    full = light * moments.samples > _LEAST_PHOTONS
    kept = variance <= middle * (1 + _EDGES * each) if full and middle > 0 else np.ones(len(mean), bool)
    found = float(variance[kept].mean())
    spread = max(float(variance[kept].std()), max(found, 0.0) * each)
    return float(mean[kept].mean()), found, spread / math.sqrt(np.count_nonzero(kept))


def _fitted(x: Floats, y: Floats, error: Floats) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Return intercept and slope at zero of a parabola, as dead time and structure bend lines, and a line's misfit."""
    used = error > 0
    scale = float(np.abs(x).max())
    if used.sum() < 4 or not scale > 0:
        return (math.nan, math.inf), (math.nan, math.inf), math.inf
    u, y, weight = x[used] / scale, y[used], 1 / error[used]

    def solve(*powers: int, of: Floats) -> tuple[Floats, Floats, float]:
        design = np.stack([u**power for power in powers], 1) * weight[:, None]
        inverse = np.linalg.pinv(design.T @ design)
        best = inverse @ design.T @ (of * weight)
        misfit = float(np.sum((design @ best - of * weight) ** 2))
        wider = max(1.0, misfit / max(1, len(u) - len(powers)))
        return best, np.sqrt(np.maximum(np.diag(inverse), 0) * wider), misfit

    best, errors, _ = solve(0, 1, 2, of=y)
    line, line_errors, line_misfit = solve(0, 1, of=y)
    # a narrow range of brightness leaves a parabola undecided; counts with structure have mean + c mean^2
    if solve(2, of=y - u * scale)[2] - line_misfit > _BETTER and errors[0] > line_errors[0]:
        best, errors = line, line_errors
    misfit = line_misfit / max(1, len(u) - 2)
    return (float(best[0]), float(errors[0])), (float(best[1] / scale), float(errors[1] / scale)), misfit


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

            from gap_bioimage.anchor import hot_pixels as hot

            found[index] = hot(torch.from_numpy(middle.copy())).numpy()
    return found


@dataclass(frozen=True)
class Correlation:
    """Correlation coefficients of the noise of neighbours, -1 to 1; NaN where nothing can be said."""

    y: float = math.nan  # of pixels one above the other
    x: float = math.nan  # of pixels in the same row
    method: Literal["repeats", "single image", "none"] = "none"
    error: float = math.inf  # standard error of the less certain one
    blocks: int = 0  # that it rests on
    t: float = 0.0  # of the same pixel in successive frames; 0 where there are fewer than six
    factor: float = 1.0  # photons' variance over that of the correlated noise

    @property
    def found(self) -> bool:
        """Whether neighbours' noise is correlated by more than chance: 0.05 and five standard errors, more of few."""
        if self.method == "none":
            return False
        # the spread of few blocks is hardly known itself, and they were chosen for being dark
        sure = _SURE * (1 + 30 / max(self.blocks, 1))
        return max(abs(self.y), abs(self.x)) > max(_ALIKE, sure * self.error)

    @property
    def largest(self) -> float:
        """The one of y and x that is further from zero; 0 where nothing can be said."""
        return 0.0 if self.method == "none" else max(self.y, self.x, key=abs)


def correlation_of(stack: Values, hot: Flags | None = None) -> Correlation:
    """Return the correlation of the noise of neighbouring pixels, and of successive frames.

    A high-pass along y leaves noise alone, whatever the structure, and does not touch its correlation along x, and the
    other way round; the darker third of the blocks is used, where noise stands out against structure. Independent
    noise gives 0 within the error. Interpolation, smoothing and enlarging make it positive, sharpening negative.
    ``stack`` is (planes, frames, y, x), finite; its frames are repeats of the same field.
    """
    frames = stack.shape[1]
    order = min(2 if frames > 2 else _ORDER, (min(stack.shape[2:]) - 2) // 2 * 2)
    if order < 2 or not stack.size:
        return Correlation()
    looks = list(m.looks_at(stack, m.FEW_PIXELS, frames > 1, hot))
    (y, error_y, used), (x, error_x, _) = (_along(axis, looks, order) for axis in (0, 1))
    if not (math.isfinite(y) and math.isfinite(x)):
        return Correlation()
    found = Correlation(y, x, "repeats" if frames > 1 else "single image", max(error_y, error_x), used)
    t, in_time = _frame_correlation(stack)
    return replace(found, t=t, factor=in_time * _factor(found, looks, frames))


def _along(axis: int, looks: list[Look], order: int) -> tuple[float, float, int]:
    """Return the correlation along an axis of (y, x), its standard error, and how many blocks it rests on."""
    weights = np.array([(-1) ** k * math.comb(order, k) for k in range(order + 1)], float)
    side = 2 * BLOCK_PX if min(looks[0].mean.shape) >= 8 * BLOCK_PX else BLOCK_PX
    margin, parts = order // 2, []
    for look in looks:
        plane, noise = (np.moveaxis(image, axis, -1) for image in (look.mean, look.noise))
        noise = scipy.ndimage.correlate1d(noise, weights, axis=0)[margin:-margin]
        left, right = noise[:, :-1], noise[:, 1:]
        images = (plane[margin:-margin, 1:], left * right, (left**2 + right**2) / 2)
        parts.append(np.stack([block_means(image, side) for image in images]))
    mean, product, power = np.concatenate(parts, axis=1)
    dark = np.argsort(mean, kind="stable")
    effective = np.cumsum(power[dark]) ** 2 / np.maximum(np.cumsum(power[dark] ** 2), 1e-300)
    first = math.ceil(len(dark) / 3)  # and more of them where these are empty
    enough = np.flatnonzero(effective[first - 1 :] >= min(30, len(dark)))
    used = first + int(enough[0]) if len(enough) else len(dark)
    product, power = product[dark[:used]], power[dark[:used]]
    total = float(power.sum())
    if not total > 0:
        return math.nan, math.inf, used
    value = float(product.sum()) / total
    spread = math.sqrt(((product - value * power) ** 2).sum() * used / max(1, used - 1)) / total
    return value, max(spread, math.sqrt(m.overlap(weights, math.inf, 2) / (used * side**2))), used


def _factor(found: Correlation, looks: list[Look], frames: int) -> float:
    """Sum of the correlations with the pixels around; from sums over blocks, where differences of frames give them."""
    if not found.found:
        return 1.0
    neighbours = (1 + 2 * max(found.y, 0)) * (1 + 2 * max(found.x, 0))
    if frames == 1:
        return neighbours
    side = 2 * BLOCK_PX
    pairs = [(block_means(look.noise, side) * side, block_means(look.noise**2, side)) for look in looks]
    ratios = np.concatenate([total**2 / np.maximum(power, 1e-30) for total, power in pairs])
    return max(neighbours, float(np.median(ratios)) / _CHI_SQUARE_MEDIAN)


def _frame_correlation(stack: Values) -> tuple[float, float]:
    """Return the correlation of successive frames' noise, and raw variance over that which second differences show.

    The variance of differences grows with their distance in time until the noise has nothing in common.
    """
    frames = stack.shape[1]
    if frames < 6:
        return 0.0, 1.0
    lags = np.arange(1, min(8, frames // 2) + 1)
    starts = np.unique(np.linspace(0, frames - 1 - lags[-1], 24).astype(int))
    window = tuple(slice(max(0, (n - 256) // 2), (n + 256) // 2) for n in stack.shape[2:])
    film = stack[stack.shape[0] // 2][(slice(None), *window)]
    steadied = m.steadier(np.mean(film[starts], axis=0, dtype=np.float64))

    def spread(lag: int) -> float:
        away = [steadied(np.asarray(film[s + lag], np.float64) - film[s]) for s in starts]
        return float(np.median(block_means(np.mean(np.square(away), axis=0), 4)))

    found = np.array([spread(int(lag)) for lag in lags])
    if not found[-1] > 0:
        return 0.0, 1.0
    shared = 1 - found / found[len(found) // 2 :].mean()
    if shared[0] < 2 * _ALIKE:
        return 0.0, 1.0
    second = 1 - 4 / 3 * shared[0] + shared[1] / 3
    return float(shared[0]), (1 + 2 * float(np.maximum(shared, 0).sum())) / max(float(second), 0.05)
