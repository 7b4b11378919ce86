"""Measurements on an image before it is judged: its statistics, its noise, and traces of processing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy
import xarray as xr

from gap_bioimage.camera import moments as m
from gap_bioimage.camera.frames import cleared_pixels, distinct
from gap_bioimage.camera.moments import FEW_PIXELS, Flags, Floats, Statistics, Values, as_stack
from gap_bioimage.camera.noise import Correlation, Curve, correlation_of, curve_of, hot_pixels

Planes = list[Floats]

_STILL = 1.2  # variance/mean of frame differences above which something may move
_AREA = 0.8  # fraction of pixels equal to their neighbour in masks and labels
_SIDE, _BESIDE_GAP, _LEAST_GAPS = 3, 25, 3  # levels on either side of a gap, pixels at one of them, and fewest gaps
_PER_LEVEL = 10  # pixels per level from which on a histogram without adjacent levels is not chance
_STEPS, _MOST_STEPS = 1 << 20, 1e5  # pixels searched for a common step, and its largest multiple
_FRAMES, _FRAME_PHOTONS = 64, 100  # frames searched for repeats; photons per frame from which on equality is not chance
_FEW_CLASSES, _ISOLATED = 4, 20  # most values of a class map, and fewest isolated pixels that photons would have
_MOST_HOT = 0.01  # fraction of hot pixels; more are single photons of a detector that multiplies electrons
_FEW_DEAD = 0.01  # most dead pixels, as a fraction
_FLAT = 0.1  # relative difference between blocks of an evenly lit field
_FLIPS = 20  # pixels that wrapped between two that did not, and vice versa
# residual of the central pixel after a parabola is fitted to 5 x 5 pixels
_PLACES = np.mgrid[-2:3, -2:3].reshape(2, 25)
_PARABOLA = np.stack([np.ones(25), *_PLACES, *_PLACES**2, _PLACES.prod(0)])
_RESIDUAL = (np.eye(25) - np.linalg.pinv(_PARABOLA) @ _PARABOLA)[12].reshape(5, 5)


@dataclass(frozen=True)
class Evidence:
    """Measurements on an image, hot pixels excluded."""

    dtype: np.dtype[Any]
    size: tuple[int, int]  # (rows, columns)
    statistics: Statistics
    unit: float | None = 1.0  # largest number of which all values are multiples; None if there is none
    curve: Curve | None = None  # None with too few pixels or photons
    correlation: Correlation = field(default_factory=Correlation)
    frames: int = 1  # in time
    repeats: bool = False  # whether the correlation is that of differences between frames
    planes: Planes = field(default_factory=list)  # sample planes (y, x), to find traces of processing
    hot: list[tuple[int, int]] = field(default_factory=list)  # positions (y, x) of hot pixels
    left_out: tuple[str, ...] = ()  # sentences about other parts that were not measured

    @property
    def saturated(self) -> float:
        """Fraction of pixels at the maximum, if they pile up there."""
        statistics = self.statistics
        return statistics.at_maximum / max(statistics.pixels, 1) if statistics.piled_up(self.dtype) else 0.0


def measure(photons: xr.DataArray) -> Evidence:
    """Measure an image of any dtype and size whose dims end in y, x.

    The statistics are those of all pixels, read once in chunks; the rest is measured on about 4 million pixels.
    """
    whole = _statistics_only(values := photons.data if isinstance(photons.data, np.ndarray) else photons.values)
    varies = whole.statistics.minimum < whole.statistics.maximum  # False for empty images (NaN)
    if values.dtype.kind not in "biuf" or whole.statistics.nonfinite or min(whole.size) < 3 or not varies:
        return whole
    top = left = 0
    planes = as_stack(values)[:, 0]
    planes = planes[:: max(1, len(planes) // 8)]
    if (inside := _uncleared(planes, whole)) and not is_mask(list(planes)):
        values, top, left = values[(..., *inside)], inside[0].start, inside[1].start
        whole = replace(_statistics_only(values), left_out=("a cleared margin or region is left out",))
    values, stack, whole = _without_repeats(values, photons.dims, whole)
    statistics, unit, singles = whole.statistics, whole.unit, as_stack(values)
    hot = np.zeros(whole.size, bool)
    if unit == 1 and statistics.minimum >= 0:
        hot = np.asarray(hot_pixels(singles[:: max(1, len(singles) // 64), 0]).any(0))
        hot &= bool(hot.mean() <= _MOST_HOT)
    excluded = np.asarray(values[..., hot], np.float64)
    samples = [s.mean for s in m.snapshots_of(singles, FEW_PIXELS, False, hot)]
    unit = common_step(np.concatenate(samples, axis=None)) if statistics.fractional else unit
    return replace(
        whole,
        statistics=replace(
            statistics,
            pixels=statistics.pixels - excluded.size,
            total=statistics.total - float(excluded.sum()),
            at_maximum=statistics.at_maximum - int(np.count_nonzero(excluded == statistics.maximum)),
        ),
        frames=photons.sizes.get("t", 1),
        unit=unit,
        **_noise(stack, singles, hot, unit or 1.0, statistics.maximum if whole.saturated else math.inf),
        planes=samples,
        hot=[(top + int(y), left + int(x)) for y, x in np.argwhere(hot)],
    )


def _without_repeats(values: Values, dims: tuple[Any, ...], whole: Evidence) -> tuple[Values, Values, Evidence]:
    """Return the image, its frames (z, t, y, x) without repeated and dropped ones, and the statistics of these."""
    stack = as_stack(values, dims.index("t") if "t" in dims else None)
    if abs(whole.statistics.mean) * math.prod(whole.size) < _FRAME_PHOTONS:
        return values, stack, whole
    frames, message = distinct(stack[:, :_FRAMES])
    if not message:
        return values, stack, whole
    if dims == ("t", "y", "x") and len(values) <= _FRAMES:
        values = frames[0]
    return values, frames, replace(_statistics_only(values), left_out=(*whole.left_out, message))


def _statistics_only(values: Values) -> Evidence:
    size = (values.shape[-2], values.shape[-1])
    if values.dtype.kind not in "biuf":
        return Evidence(values.dtype, size, Statistics(values.size, values.size))
    statistics = m.scan(values)
    unit = None if statistics.fractional else float(max(statistics.lattice, 1))
    return Evidence(values.dtype, size, statistics, unit)


def _noise(stack: Values, singles: Values, hot: Flags, unit: float, ceiling: float) -> dict[str, Any]:
    """Measure the correlation of the noise, between frames if possible, and its variance, so only if nothing moves."""

    def blocks(values: Values, in_time: bool) -> m.Moments:
        moments = m.moments_of(values, (-math.inf, ceiling), in_time=in_time, most=FEW_PIXELS, hot=hot)
        return moments.at(moments.saturated <= moments.saturated.min() + m.SATURATED)

    if min(stack.shape[2:]) < m.LEAST_PX:
        return {}
    moments = blocks(singles, False)
    curve, repeats = curve_of(moments, unit), stack.shape[1] > 1
    if repeats:
        moments = blocks(stack, True)
        in_time = curve_of(moments, unit) if stack.shape[1] > 2 else None
        if curve is not None and in_time is not None and in_time.dark <= max(_STILL, curve.dark):
            curve = in_time
    correlation = correlation_of(moments)
    return {"curve": curve, "correlation": correlation, "repeats": repeats and correlation.blocks > 0}


def _uncleared(planes: Values, whole: Evidence) -> tuple[slice, slice] | None:
    """Return rows and columns inside cleared margins, or the largest square beside other cleared parts, or None."""
    cleared = cleared_pixels(planes, whole.statistics.minimum, whole.unit or 1.0)
    if not cleared.any():
        return None
    rows, columns = (np.flatnonzero(~cleared.all(axis)) for axis in (1, 0))
    window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    if cleared[window].any():
        distance = scipy.ndimage.distance_transform_cdt(np.pad(~cleared, 1), "chessboard")[1:-1, 1:-1]
        (y, x), half = np.argwhere(distance == distance.max())[0].tolist(), int(distance.max()) - 1
        window = slice(y - half, y + half + 1), slice(x - half, x + half + 1)
    part = planes[(slice(None), *window)]
    # what is constant is part of a label
    return window if min(part.shape[1:]) >= m.LEAST_PX and part.min() < part.max() else None


def missing_levels(planes: Planes) -> int:
    """Count the gaps of the histogram: runs of empty levels that rounding skipped after a change of scale.

    On either side one of three levels has so many pixels that an empty one is no chance. If no two occupied levels are
    adjacent, the number of spaces between them is returned.
    """
    lowest = min(float(plane.min()) for plane in planes)
    levels = np.concatenate([(plane - lowest)[plane - lowest < 1 << 16].astype(np.int64) for plane in planes])
    histogram = np.bincount(levels)
    fullest = np.lib.stride_tricks.sliding_window_view(np.pad(histogram, _SIDE), _SIDE).max(1)
    gaps = (histogram == 0) & (np.minimum(fullest[: len(histogram)], fullest[_SIDE + 1 :]) > _BESIDE_GAP)
    if (count := int(np.count_nonzero(np.diff(gaps, prepend=False) & gaps))) >= _LEAST_GAPS:
        return count
    used = np.flatnonzero(histogram)  # dim counts keep a few levels with many pixels each, far from one another
    isolated = len(used) > 2 and np.diff(used).min() > 1 and histogram[used[1:]].sum() >= _PER_LEVEL * len(used)
    return len(used) - 1 if isolated else 0


def common_step(values: Floats) -> float | None:
    """Return the step of which all values are multiples within rounding (counts times a fraction), or None."""
    levels = np.unique(values[:_STEPS])
    precision = float(np.abs(levels).max()) * 2e-6  # single precision, with a margin
    gaps = np.diff(levels)
    gaps = gaps[gaps > precision]
    if len(levels) < 4 or not len(gaps) or len(levels) > len(values) / 4:
        return None
    step = float(gaps[gaps < 1.5 * gaps.min()].mean())  # the mean has a smaller rounding error than one gap
    whole = np.rint(levels / step)
    if np.abs(whole).max() > _MOST_STEPS:
        return None
    step = float(levels @ whole / (whole @ whole))  # least squares over all levels is more precise
    residual = np.abs(values - step * np.rint(values / step)).max()
    return step if residual <= precision + 0.001 * step else None


def is_mask(planes: Sequence[Values]) -> bool:
    """Whether pixels equal their neighbours both in objects and in the background, as in masks and labels.

    The most frequent value is taken for the background. In noisy images few pixels of at least one of the two do so.
    """
    levels, times = np.unique(np.concatenate(planes, axis=None), return_counts=True)
    pairs = np.zeros((2, 2))  # rows: objects, background; columns: equal pairs, all pairs
    for plane in planes:
        objects = np.asarray(plane != levels[np.argmax(times)])
        for equal, inside in ((plane[:, 1:] == plane[:, :-1], objects[:, 1:]), (plane[1:] == plane[:-1], objects[1:])):
            pairs += [[(equal & inside).sum(), inside.sum()], [(equal & ~inside).sum(), (~inside).sum()]]
    return bool((pairs[:, 0] >= _AREA * np.maximum(pairs[:, 1], 1)).all())


def is_class_map(planes: Planes) -> bool:
    """Whether an image of few values (classes, outlines) is clustered, unlike photons, which are independent."""
    isolated = expected = 0.0
    for plane in planes:
        if len(levels := np.unique(plane)) > _FEW_CLASSES:
            return False
        for level in levels:
            members = (plane == level).astype(float)
            neighbours = scipy.ndimage.uniform_filter(members, 3) * 9 - members
            density = (scipy.ndimage.uniform_filter(members, 9) * 81 - members) / 80
            isolated += float(((neighbours < 0.5) & (members > 0)).sum())
            expected += float(((1 - density) ** 8)[members > 0].sum())
    return expected > _ISOLATED and isolated < 0.2 * expected


def third_over_variance(planes: Planes) -> tuple[float, float]:
    """Return the third moment of the noise over its variance, with its standard error, in the darkest blocks.

    It is 1 for photons, at most the gain for cameras (read noise is symmetric), and much larger in maximum projections.
    """
    blocks: list[list[Floats]] = []
    for plane in planes[:: max(1, len(planes) * planes[0].size >> 20)]:
        noise, mean = scipy.ndimage.correlate(plane, _RESIDUAL), scipy.ndimage.uniform_filter(plane, 16)
        images = (mean, noise**2 / np.sum(_RESIDUAL**2), noise**3 / np.sum(_RESIDUAL**3))
        blocks.append([m.block_means(image, m.BLOCK_PX) for image in images])
    mean, variance, third = np.concatenate(blocks, axis=1)
    if not len(mean):
        return 0.0, math.inf
    dark = mean <= max(np.quantile(mean, 1 / 3), mean.min() + _FLAT * abs(mean.min()))
    dark &= variance <= 2 * np.median(variance[dark])
    level = max(float(variance[dark].mean()), 1e-300)
    return float(third[dark].mean()) / level, float(third[dark].std() / dark.sum() ** 0.5) / level


def dead_pixels(planes: Planes) -> int:
    """Count pixels marked by a single negative value, in few pixels."""
    values = np.concatenate(planes, axis=None) if planes else np.zeros(1)
    marked = int(np.count_nonzero(values < 0))
    return marked if 1 < marked <= _FEW_DEAD * values.size and marked == np.count_nonzero(values == values.min()) else 0


def wrapped(planes: Planes, levels: int) -> bool:
    """Whether values outside of a type's range wrapped to its other end.

    Noise then flips pixels between both ends of the range, often, and by half of it, rarely.
    """
    flips = np.zeros(3)
    for image in (*planes, *(plane.T for plane in planes)):
        middle = image[1:-1]
        before, after = middle - image[:-2], middle - image[2:]
        inner = (middle > 0) & (middle < levels - 1)  # the ends may be those of dead and hot pixels
        for number, (low, high) in enumerate(((-1, -0.75), (0.75, 1), (0.375, 0.625))):
            flipped = (np.minimum(before, after) > low * levels) & (np.maximum(before, after) < high * levels)
            flips[number] += np.count_nonzero(inner & flipped)
    return bool(flips[:2].min() >= _FLIPS and 2 * flips[:2].sum() > flips[2])


def one_bit(planes: Planes) -> bool:
    """Whether only 0 and one other value occur, although photon counts of this brightness would have more."""
    one = max(float(plane.max()) for plane in planes)
    if one <= 0 or not all(((plane == 0) | (plane == one)).all() for plane in planes):
        return False
    local = (scipy.ndimage.uniform_filter(plane / one, 9)[4::9, 4::9] for plane in planes)
    return sum(81 / 2 * float((mean**2).sum()) for mean in local) > 20
