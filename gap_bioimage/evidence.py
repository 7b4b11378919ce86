"""What is measured on an image before it is judged: its numbers, its noise, and the traces that programs leave."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import scipy
import xarray as xr

from gap_bioimage.camera import moments as m
from gap_bioimage.camera.frames import distinct
from gap_bioimage.camera.moments import FEW_PIXELS, Flags, Floats, Statistics, Values, as_stack
from gap_bioimage.camera.noise import Correlation, Curve, correlation_of, curve_of, hot_pixels

Planes = list[Floats]

_STILL = 1.2  # variance / mean of differences of frames, above which something may move
_AREA = 0.8  # share of pixels like their neighbour in masks and labels
_SIDE, _GAP, _LEAST_GAPS = 3, 0.7, 3  # levels on either side of a gap, the share of theirs in it; gaps of a comb
_BESIDE_GAP = 0.9  # share of the fullest of these levels that one beside a gap has
_PER_LEVEL = 10  # pixels of levels none of which is beside another
_STEPS, _MOST_STEPS = 1 << 20, 1e5  # pixels to look for a common step in, and multiples that it may have
_FRAMES, _FRAME_PHOTONS = 64, 100  # that are looked at for repeated ones, and their photons
_CLEARED, _FAR = 0.01, 8  # share of the pixels, and steps to the lowest of the others
_FEW_CLASSES, _LONELY = 4, 20  # numbers in a map of classes, and pixels without company
_PAIRS, _PAIR_PHOTONS, _NEAR = 200, 20, 0.61  # how many, with so many photons; share of close ones, 0.64 of photons
_MOST_HOT = 0.01  # share of pixels; more are single photons of a detector that multiplies
_FEW_DEAD, _RARER = 0.01, 20  # share of pixels; by how much fewer these are than the zeros beside
_NEAR_PHOTONS = 0.25  # and what variance over mean is off by then
_FLAT = 0.1  # of the brightness, by which blocks of an evenly lit field differ
_FLIPS = 20  # pixels beyond the ceiling between two below it, and the other way round
# what a parabola through 5 x 5 pixels leaves of the one in the middle
_BESIDE = np.mgrid[-2:3, -2:3].reshape(2, 25)
_FIT = np.stack([np.ones(25), *_BESIDE, *_BESIDE**2, _BESIDE.prod(0)])
_LEFT = (np.eye(25) - np.linalg.pinv(_FIT) @ _FIT)[12].reshape(5, 5)


@dataclass(frozen=True)
class Evidence:
    """What was measured on an image, without its hot pixels."""

    dtype: np.dtype[Any]
    size: tuple[int, int]  # (rows, columns)
    statistics: Statistics
    unit: float | None = 1.0  # all values are whole multiples of it; None if there is no such number
    curve: Curve | None = None  # where there is enough to see
    correlation: Correlation = field(default_factory=Correlation)
    repeats: bool = False  # whether differences of frames gave the correlation
    planes: Planes = field(default_factory=list)  # some (y, x), whole, for what programs leave in them
    colours: float = 0.0  # share of the noise that channels have in common
    hot: list[tuple[int, int]] = field(default_factory=list)  # places (y, x) that no photons explain
    left_out: tuple[str, ...] = ()  # what else nothing was measured on, in words

    @property
    def saturated(self) -> float:
        """Share of pixels at the maximum, where they pile up."""
        found = self.statistics
        return found.at_maximum / max(found.pixels, 1) if found.piled_up(self.dtype) else 0.0


def measure(photons: xr.DataArray) -> Evidence:
    """Measure an image of any type and size, whose dims end in y, x.

    All pixels are read once, piece by piece, for the statistics; the rest is measured on about 4 million of them.
    """
    whole = _scanned(values := photons.data if isinstance(photons.data, np.ndarray) else photons.values)
    varies = whole.statistics.minimum < whole.statistics.maximum  # nor do no pixels
    if values.dtype.kind not in "biuf" or whole.statistics.nonfinite or min(whole.size) < 3 or not varies:
        return whole
    top = left = 0
    some = as_stack(values)[:, 0]
    some = some[:: max(1, len(some) // 8)]
    if inside := (margins := _within_margins(some)) or _within_cleared(some, whole):
        values, top, left = values[(..., *inside)], inside[0].start, inside[1].start
        told = "a margin of one value" if margins else "what was cleared"
        whole = replace(_scanned(values), left_out=(f"{told} is left out",))
    values, stack, whole = _without_repeats(values, photons.dims, whole)
    found, unit, singles = whole.statistics, whole.unit, as_stack(values)
    hot = np.zeros(whole.size, bool)
    if unit == 1 and found.minimum >= 0:
        hot = np.asarray(hot_pixels(singles[:: max(1, len(singles) // 64), 0]).any(0))
        hot &= bool(hot.mean() <= _MOST_HOT)
    apart = np.asarray(values[..., hot], np.float64)
    planes = [look.mean for look in m.looks_at(singles, FEW_PIXELS, False, hot)]
    parts = np.moveaxis(values, photons.dims.index("c"), 0)[:5] if "c" in photons.dims else ()
    unit = common_step(np.concatenate([plane.ravel() for plane in planes])) if found.fractional else unit
    return replace(
        whole,
        statistics=replace(
            found,
            pixels=found.pixels - apart.size,
            total=found.total - float(apart.sum()),
            at_maximum=found.at_maximum - int(np.count_nonzero(apart == found.maximum)),
        ),
        unit=unit,
        **_noise(stack, singles, hot, unit or 1.0),
        planes=planes,
        colours=shared_noise([[look.mean for look in m.looks_at(as_stack(p), FEW_PIXELS, False)] for p in parts]),
        hot=[(top + int(y), left + int(x)) for y, x in np.argwhere(hot)],
    )


def _without_repeats(values: Values, dims: tuple[Any, ...], whole: Evidence) -> tuple[Values, Values, Evidence]:
    """Return an image, its frames (z, t, y, x) without those that repeat others or were dropped, and what is told."""
    stack = as_stack(values, dims.index("t") if "t" in dims else None)
    # few photons may be in the same places by chance
    told = abs(whole.statistics.mean) * math.prod(whole.size) >= _FRAME_PHOTONS
    frames, repeated = distinct(stack[:, :_FRAMES]) if told else (stack, "")
    if not repeated:
        return values, stack, whole
    if dims == ("t", "y", "x") and len(values) <= _FRAMES:
        values = frames[0]
    return values, frames, replace(_scanned(values), left_out=(*whole.left_out, repeated))


def _scanned(values: Values) -> Evidence:
    """Return the statistics alone."""
    size = (values.shape[-2], values.shape[-1])
    if values.dtype.kind not in "biuf":
        return Evidence(values.dtype, size, Statistics(values.size, values.size))
    found = m.scan(values)
    return Evidence(values.dtype, size, found, None if found.fractional else float(max(found.lattice, 1)))


def _noise(stack: Values, singles: Values, hot: Flags, unit: float) -> dict[str, Any]:
    """Return the noise of single images, or of differences of frames; its variance from these where nothing moves."""
    if min(stack.shape[2:]) < m.LEAST_PX:
        return {}
    moments = m.moments_of(singles, in_time=False, most=FEW_PIXELS, hot=hot)
    curve, repeats = curve_of(moments, unit), stack.shape[1] > 1
    if repeats:
        moments = m.moments_of(stack, in_time=True, most=FEW_PIXELS, hot=hot)
        in_time = curve_of(moments, unit) if stack.shape[1] > 2 else None
        if curve is not None and in_time is not None and in_time.dark <= max(_STILL, curve.dark):
            curve = in_time
    correlation = correlation_of(moments)
    return {"curve": curve, "correlation": correlation, "repeats": repeats and correlation.blocks > 0}


def _within_margins(some: Values) -> tuple[slice, slice] | None:
    """Return the rows and columns within margins whose value occurs nowhere else, as stitching leaves; None without."""
    rows, columns = (np.flatnonzero(some.min((0, axis)) < some.max((0, axis))) for axis in (2, 1))
    if not (rows.size and columns.size) or min(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 < m.LEAST_PX:
        return None
    ends = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    inside: Values = np.zeros(some.shape[1:], bool)
    inside[ends] = True
    return None if inside.all() or np.isin(some[:, inside], np.unique(some[:, ~inside])).any() else ends


def _within_cleared(some: Values, whole: Evidence) -> tuple[slice, slice] | None:
    """Return the largest square without what somebody cleared, to a value far below all others; None without."""
    low = some == whole.statistics.minimum
    cleared = low.all(0)
    if cleared.mean() < _CLEARED or np.count_nonzero(low) > len(some) * np.count_nonzero(cleared):
        return None
    away = scipy.ndimage.distance_transform_cdt(np.pad(~cleared, 1), "chessboard")[1:-1, 1:-1]
    row, column = (int(place) for place in np.unravel_index(away.argmax(), away.shape))
    reach = int(away.max()) - 1
    if 2 * reach < m.LEAST_PX or some[~low].min() - whole.statistics.minimum <= _FAR * (whole.unit or 1.0):
        return None
    inside = slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)
    part = some[(slice(None), *inside)]
    return inside if part.min() < part.max() else None  # labels are not for such a look


def missing_levels(planes: Planes) -> int:
    """Count the gaps of a histogram, levels that rounding after a change of scale has skipped.

    A gap has at most 0.7 of the pixels that the fullest of three levels on either side have, by five standard errors;
    and it is sudden, unlike the valley between the values of n electrons and of n + 1 that cameras of little read noise
    show. Where no two levels are neighbours, all are gaps.
    """
    lowest = min(float(plane.min()) for plane in planes)
    levels = np.concatenate([(plane - lowest)[plane - lowest < 1 << 16].astype(np.int64) for plane in planes])
    histogram = np.bincount(levels).astype(float)
    fullest = np.lib.stride_tricks.sliding_window_view(np.pad(histogram, _SIDE), _SIDE).max(1)
    before, after = fullest[: len(histogram)], fullest[_SIDE + 1 :]
    expected = _GAP * np.minimum(before, after)
    gaps = histogram < expected - 5 * np.sqrt(np.maximum(expected, 1))
    # several in a row are one, so that a valley between two peaks does not count for more
    first, behind = np.flatnonzero(np.diff(gaps, prepend=False, append=False)).reshape(-1, 2).T
    beside = np.array([[histogram[first - 1], before[first]], [histogram[behind], after[behind - 1]]])
    sudden = beside[:, 0] >= _BESIDE_GAP * beside[:, 1] - 3 * np.sqrt(beside[:, 1])
    if (count := int((sudden.any(0) | (histogram[first] == 0)).sum())) >= _LEAST_GAPS:
        return count
    taken = np.flatnonzero(histogram)  # of dim counts a few levels remain, each with many pixels and far from the next
    far_apart = len(taken) > 2 and np.diff(taken).min() > 1 and histogram[taken[1:]].sum() >= _PER_LEVEL * len(taken)
    return len(taken) - 1 if far_apart else 0


def common_step(values: Floats) -> float | None:
    """Return the number of which all values are whole multiples within rounding, as of divided counts; or None."""
    levels = np.unique(values[:_STEPS])
    precision = float(np.abs(levels).max()) * 2e-6  # single precision, and a little
    gaps = np.diff(levels)
    gaps = gaps[gaps > precision]
    if len(levels) < 4 or not len(gaps) or len(levels) > len(values) / 4:
        return None
    step = float(gaps[gaps < 1.5 * gaps.min()].mean())  # rounded less than a single one
    whole = np.rint(levels / step)
    if np.abs(whole).max() > _MOST_STEPS:
        return None
    step = float(levels @ whole / (whole @ whole))  # all levels together know the step best
    apart = np.abs(values - step * np.rint(values / step)).max()
    return step if apart <= precision + 0.001 * step else None


def areas(planes: Planes) -> bool:
    """Whether pixels have the values of their neighbours, in objects and on the background, as in masks and labels.

    The most frequent number is taken for the background. Noise has few such pixels in one of the two.
    """
    numbers, times = np.unique(np.concatenate([plane.ravel() for plane in planes]), return_counts=True)
    pairs = np.zeros((2, 2))  # of objects and background, those that are alike and all
    for plane in planes:
        objects = plane != numbers[np.argmax(times)]
        for alike, inside in ((plane[:, 1:] == plane[:, :-1], objects[:, 1:]), (plane[1:] == plane[:-1], objects[1:])):
            pairs += [[(alike & inside).sum(), inside.sum()], [(alike & ~inside).sum(), (~inside).sum()]]
    return bool((pairs[:, 0] >= _AREA * np.maximum(pairs[:, 1], 1)).all())


def outlines(planes: Planes) -> bool:
    """Whether pixels of few numbers keep together as photons, which are independent, do not."""
    alone = expected = 0.0
    for plane in planes:
        if len(numbers := np.unique(plane)) > _FEW_CLASSES:
            return False
        for number in numbers:
            shown = (plane == number).astype(float)
            beside = scipy.ndimage.uniform_filter(shown, 3) * 9 - shown
            share = (scipy.ndimage.uniform_filter(shown, 9) * 81 - shown) / 80
            alone += float(((beside < 0.5) & (shown > 0)).sum())
            expected += float(((1 - share) ** 8)[shown > 0].sum())
    return expected > _LONELY and alone < 0.2 * expected


def typical_of_photons(planes: Planes) -> bool:
    """Whether neighbours differ as photon counts do, whatever a share of them do at edges.

    Of those that differ, but by less than three standard deviations, the root of what they hold together, 64 to 68 %
    differ by less than one; 57 to 62 % where the variance is 1.3 times as large.
    """
    near = far = 0
    for plane in planes:
        for one, other in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
            together, apart = one + other, (one - other) ** 2
            bright = together >= _PAIR_PHOTONS
            bright &= apart > 0  # few levels far apart are often the same
            near += int(np.count_nonzero(bright & (apart < together)))
            far += int(np.count_nonzero(bright & (apart < 9 * together)))
    return far >= _PAIRS and near > _NEAR * far


def asymmetry(planes: Planes) -> tuple[float, float]:
    """Return the third moment of the noise over its variance, with its standard error, in the darkest blocks.

    It is 1 for photons, and at most the gain for cameras, whose read noise has none; maxima of several images lean far
    to the bright side, whatever their gain.
    """
    blocks: list[list[Floats]] = []
    for plane in planes[:: max(1, len(planes) * planes[0].size >> 20)]:
        noise = scipy.ndimage.correlate(plane, _LEFT)
        parts = (scipy.ndimage.uniform_filter(plane, 16), noise**2 / np.sum(_LEFT**2), noise**3 / np.sum(_LEFT**3))
        blocks.append([m.block_means(part, m.BLOCK_PX) for part in parts])
    mean, variance, third = np.concatenate(blocks, axis=1)
    if not len(mean):
        return 0.0, math.inf
    dark = mean <= max(np.quantile(mean, 1 / 3), mean.min() + _FLAT * abs(mean.min()))
    dark &= variance <= 2 * np.median(variance[dark])
    usual = max(float(variance[dark].mean()), 1e-300)
    return float(third[dark].mean()) / usual, float(third[dark].std() / dark.sum() ** 0.5) / usual


def dead_pixels(evidence: Evidence) -> int:
    """Count pixels that one number below zero marks, as no tail of a camera's noise does; 0 where there is a tail."""
    values = np.concatenate([[0.0], *(plane.ravel() for plane in evidence.planes)])
    marked, zeros = int(np.count_nonzero(values < 0)), np.count_nonzero(values == 0)
    if not 1 < marked <= _FEW_DEAD * values.size or marked > np.count_nonzero(values == values.min()):
        return 0
    tail = values.min() >= -1 and zeros / _RARER < marked <= zeros
    photons = evidence.curve is not None and abs(evidence.curve.dark - 1) < _NEAR_PHOTONS
    return marked if photons or not tail else 0


def wrapped(planes: Planes) -> bool:
    """Whether counts go on from 0 beyond 255: noise then flips pixels from end to end, and rarely half of the way."""
    flips = np.zeros(3)
    for image in (*planes, *(plane.T for plane in planes)):
        middle = image[1:-1]
        before, after = middle - image[:-2], middle - image[2:]
        inner = (middle > 0) & (middle < 255)  # where hot and dead pixels are
        for number, (low, high) in enumerate(((-256, -192), (192, 256), (96, 160))):
            found = inner & (np.minimum(before, after) > low) & (np.maximum(before, after) < high)
            flips[number] += np.count_nonzero(found)
    return bool(flips[:2].min() >= _FLIPS and 2 * flips[:2].sum() > flips[2])


def one_bit(planes: Planes) -> bool:
    """Whether only 0 and one number occur although photon counts of this brightness would hold larger ones."""
    one = max(float(plane.max()) for plane in planes)
    if one <= 0 or not all(((plane == 0) | (plane == one)).all() for plane in planes):
        return False
    local = (scipy.ndimage.uniform_filter(plane / one, 9)[4::9, 4::9] for plane in planes)
    return sum(81 / 2 * float((mean**2).sum()) for mean in local) > 20


def shared_noise(channels: list[Planes]) -> float:
    """Return the smallest correlation of the noise of two to four channels with the one before; large for colours."""
    if not 2 <= len(channels) <= 4 or min(channels[0][0].shape) < len(m.RIPPLE):
        return 0.0
    ripple = np.outer(m.RIPPLE, m.RIPPLE)
    noise = [np.concatenate([scipy.ndimage.correlate(p, ripple).ravel() for p in planes]) for planes in channels]
    return min(float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300) for a, b in pairwise(noise))
