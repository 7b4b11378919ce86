"""The noise of an image: its variance against brightness, and pixels that no photons explain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, special

if TYPE_CHECKING:
    import numpy.typing as npt

    from gap_bioimage.camera.moments import Floats, Moments, Values

_LEAST_PIXELS, _LEAST_PHOTONS = 36, 20
_GROUPS, _GROUP_PHOTONS = 16, 200
_EDGES = 5.0  # standard deviations of a block's variance beyond which it holds more than noise
_BETTER = 20.0  # chi-square by which a camera's line must fit better than counts with structure
_SHARPEST = 4.0  # a pixel over its third brightest neighbour: 3.4 for spots of 1.5 pixels full width
_CHANCE = 1e-10  # of one pixel, so that images of many million pixels have none


@dataclass(frozen=True)
class Noise:
    """Variance of the noise against brightness, in groups of blocks from dark to bright.

    Attributes
    ----------
    mean, variance, error
        (groups,); ``error`` is the standard error of ``variance``.
    intercept, slope
        Of the curve at mean zero, with standard errors; NaN from fewer than four groups. Counts: 0 and 1.
    misfit
        Chi-square per degree of freedom of a straight line, about 1 for cameras.
    """

    mean: Floats
    variance: Floats
    error: Floats
    intercept: tuple[float, float]
    slope: tuple[float, float]
    misfit: float

    @property
    def fano(self) -> Floats:
        """Variance over mean of each group: 1 for photon counts, and what structure adds."""
        return self.variance / np.where(self.mean > 0, self.mean, np.nan)

    @property
    def dark(self) -> float:
        """Variance over mean in the darker third; an offset makes it small."""
        return float(np.median(self.fano[: self._third]))

    @property
    def dark_error(self) -> float:
        """Relative standard error of ``dark``."""
        part = slice(0, self._third)
        return float(np.sqrt(np.sum(self.error[part] ** 2)) / max(float(np.sum(self.variance[part])), 1e-300))

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
    def _third(self) -> int:
        return max(1, len(self.mean) // 3)


def noise_of(moments: Moments, unit: float = 1.0) -> Noise | None:
    """Return variance against brightness; None where there are fewer than 36 pixels or 20 photons of ``unit`` each."""
    order = np.argsort(moments.mean, kind="stable")
    mean, variance = moments.mean[order], moments.variance[order]
    photons = np.cumsum(np.abs(mean)) * moments.samples / unit
    if len(mean) * moments.samples < _LEAST_PIXELS or photons[-1] < _LEAST_PHOTONS:
        return None
    groups = [_typical(moments, mean[g], variance[g], unit) for g in _groups(photons)]
    x, y, error = np.array(groups).T
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


def hot_pixels(counts: Values) -> npt.NDArray[np.bool_]:
    """Return which pixels hold more than photons can bring where the neighbours are so dark.

    Optics spread every spot over several pixels. A pixel is hot if even four times the rate of the third brightest of
    the 24 pixels around it (one more photon than that one counted) gives such a count once in 10^10 pixels.

    Parameters
    ----------
    counts
        Photon counts (..., y, x), whole numbers of any type.

    Returns
    -------
    NDArray
        Same shape; all False where a side has fewer than three pixels.
    """
    found = np.zeros(counts.shape, bool)
    if counts.ndim < 2 or min(counts.shape[-2:], default=0) < 3:
        return found
    for index in np.ndindex(counts.shape[:-2]):
        plane = np.asarray(counts[index], np.float64)
        # of the 3 x 3 pixels around a hot one at most three are as bright
        bright = (plane >= _SHARPEST) & (plane > 2 * ndimage.uniform_filter(plane, 3, mode="mirror"))
        rows, columns = np.nonzero(bright)
        if not len(rows):
            continue
        padded = np.pad(plane, 2, mode="reflect")
        around = [padded[rows + dy, columns + dx] for dy in range(5) for dx in range(5) if (dy, dx) != (2, 2)]
        third = np.sort(np.stack(around), axis=0)[-3]
        hot = special.pdtrc(plane[rows, columns] - 1, _SHARPEST * (third + 1)) < _CHANCE
        found[(*index, rows[hot], columns[hot])] = True
    return found
