"""Correlation of the noise of neighbouring pixels and successive frames: none in raw images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import ndimage

from gap_bioimage.camera.moments import BLOCK_PX, FEW_PIXELS, Look, block_means, looks_at, overlap, steadier

if TYPE_CHECKING:
    from gap_bioimage.camera.moments import Values

_ORDER = 8  # differences that show the neighbours' noise in single images: 90 % above 0.7 of the highest frequency
_SURE = 5.0  # standard errors
_ALIKE = 0.05  # correlation that structure and detectors may leave
_CHI_SQUARE_MEDIAN = 0.4549


@dataclass(frozen=True)
class Correlation:
    """Correlation coefficients of the noise of neighbours, -1 to 1; NaN where nothing can be said.

    Attributes
    ----------
    y, x
        Of pixels one above the other, and in the same row.
    method
        Noise from differences of frames, from a high-pass of single planes, or too few pixels.
    error
        Standard error of the less certain one.
    blocks
        Blocks of pixels that it rests on.
    t
        Of the same pixel in successive frames; 0 where there are fewer than six.
    factor
        By how much photons' variance is larger than that of the correlated noise: the sum of the correlations with all
        pixels and frames around.
    """

    y: float = math.nan
    x: float = math.nan
    method: Literal["repeats", "single image", "none"] = "none"
    error: float = math.inf
    blocks: int = 0
    t: float = 0.0
    factor: float = 1.0

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


def correlation_of(stack: Values) -> Correlation:
    """Return the correlation of the noise of neighbouring pixels, and of successive frames.

    A high-pass along y leaves noise alone, whatever the structure, and does not touch its correlation along x, and the
    other way round; the darker third of the blocks is used, where noise stands out against structure. Independent
    noise gives 0 within the error. Interpolation, smoothing and enlarging make it positive, sharpening negative.

    Parameters
    ----------
    stack
        (planes, frames, y, x) of finite numbers; frames are repeats of the same field.
    """
    frames = stack.shape[1]
    order = min(2 if frames > 2 else _ORDER, (min(stack.shape[2:]) - 2) // 2 * 2)
    if order < 2 or not stack.size:
        return Correlation()
    looks = list(looks_at(stack, FEW_PIXELS, frames > 1))
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
        noise = ndimage.correlate1d(noise, weights, axis=0)[margin:-margin]
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
    return value, max(spread, math.sqrt(overlap(weights, math.inf, 2) / (used * side**2))), used


def _factor(found: Correlation, looks: list[Look], frames: int) -> float:
    """Sum of the correlations with the pixels around; from sums over blocks, where differences of frames give them."""
    if not found.found:
        return 1.0
    neighbours = (1 + 2 * max(found.y, 0)) * (1 + 2 * max(found.x, 0))
    if frames == 1:
        return neighbours
    ratios = []
    for look in looks:
        power = block_means(look.noise**2, 2 * BLOCK_PX)
        ratios.append(block_means(look.noise, 2 * BLOCK_PX) ** 2 * (2 * BLOCK_PX) ** 2 / np.maximum(power, 1e-30))
    return max(neighbours, float(np.median(np.concatenate(ratios))) / _CHI_SQUARE_MEDIAN)


def _frame_correlation(stack: Values) -> tuple[float, float]:
    """Return the correlation of successive frames' noise, and raw variance over that which second differences show.

    The variance of differences grows with their distance in time until the noise has nothing in common.
    """
    frames = stack.shape[1]
    lags = np.arange(1, min(8, frames // 2) + 1)
    if frames < 6:
        return 0.0, 1.0
    starts = np.unique(np.linspace(0, frames - 1 - lags[-1], 24).astype(int))
    window = tuple(slice(max(0, (n - 256) // 2), (n + 256) // 2) for n in stack.shape[2:])
    film = stack[stack.shape[0] // 2][(slice(None), *window)]
    steadied = steadier(np.mean(film[starts], axis=0, dtype=np.float64))

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
