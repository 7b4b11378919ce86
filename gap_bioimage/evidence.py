"""What is measured on an image before `inspect` judges it: numbers of all pixels, and traces of programs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gap_bioimage.camera.correlation import Correlation, correlation_of
from gap_bioimage.camera.moments import FEW_PIXELS, as_stack, looks_at, moments_of
from gap_bioimage.camera.noise import Noise, hot_pixels, noise_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    import xarray as xr

    Values = npt.NDArray[Any]
    Image = npt.NDArray[np.float64]

_CHUNK_PX = 1 << 24
_LEVELS_BELOW = 5  # values just under the maximum, to see whether pixels pile up at it
_CEILINGS = (255, 1023, 4095, 16383, 65535)
_SURE = 5.0  # standard errors
_DIPS = ((3, 0.7), (16, 0.1))  # levels on either side, and the share of theirs below which one is a dip
_LEAST_DIPS = 3  # smooth histograms have one between two peaks
_JPEG_PX, _JPEG_EDGE = 8, 1.05  # steps across JPEG's blocks over steps elsewhere
_STEPS, _MOST_STEPS = 1 << 20, 1e5  # pixels to look for a common step in, and multiples that it may have
_AREA = 0.8  # share of pixels with the same neighbour from which on there are areas: circles of 3 pixels radius
_LABELS = 0.85
_ALIKE, _PIECES = 0.6, 3.0  # the same of small labels, each of which is in one piece or few
_STILL = 1.2  # variance / mean of differences of frames above which something may move


@dataclass(frozen=True)
class Statistics:
    """One pass over all pixels; sums and extremes are over finite values.

    ``lattice`` is the greatest common divisor of all values: 0 if all are zero, 1 if not all are whole. ``at_maximum``
    counts the pixels there, ``below_maximum`` is their mean number on the five values below.
    """

    pixels: int
    nonfinite: int = 0
    fractional: int = 0
    zeros: int = 0
    minimum: float = math.nan
    maximum: float = math.nan
    total: float = 0.0
    lattice: int = 1
    at_maximum: int = 0
    below_maximum: float = 0.0

    @property
    def mean(self) -> float:
        """Photons per pixel."""
        return self.total / max(self.pixels - self.nonfinite, 1)


def scan(values: Values) -> Statistics:
    """Gather the statistics of an array of real numbers or booleans, of any shape and size, piece by piece."""
    nonfinite = fractional = zeros = lattice = 0
    minimum, maximum, total = math.inf, -math.inf, 0.0
    top = np.zeros(_LEVELS_BELOW + 1, dtype=np.int64)  # pixels at the maximum, maximum - 1, ...
    for chunk in _chunks(values):
        chunk = chunk.astype(np.uint8) if chunk.dtype == bool else chunk
        if chunk.dtype.kind == "f":
            finite = chunk[np.isfinite(chunk)]
            nonfinite += chunk.size - finite.size
            fractional += int(np.count_nonzero(finite != np.rint(finite)))
            chunk = finite
        if not chunk.size:
            continue
        zeros += chunk.size - int(np.count_nonzero(chunk))
        minimum = min(minimum, float(chunk.min()))
        total += float(chunk.sum(dtype=np.float64))
        lattice = 1 if fractional else _lattice(chunk, lattice)
        higher = max(maximum, float(chunk.max()))
        risen = int(min(higher - maximum, len(top)))
        near = chunk[chunk >= higher - _LEVELS_BELOW].astype(np.float64)
        top = np.concatenate([np.zeros(risen, np.int64), top[: len(top) - risen]])
        top += np.bincount((higher - near).astype(np.int64), minlength=len(top))
        maximum = higher
    if math.isinf(minimum):
        minimum = maximum = math.nan
    below = float(top[1:].mean())
    return Statistics(values.size, nonfinite, fractional, zeros, minimum, maximum, total, lattice, int(top[0]), below)


def _chunks(values: Values) -> Iterator[Values]:
    """Yield pieces of about 16 million pixels; a reshape would copy a transposed memory map."""
    if values.size <= _CHUNK_PX or values.ndim == 0:
        yield np.asarray(values)
        return
    rest = values.size // len(values)
    if rest > _CHUNK_PX:
        for part in values:
            yield from _chunks(part)
        return
    step = max(1, _CHUNK_PX // rest)
    for start in range(0, len(values), step):
        yield np.asarray(values[start : start + step])


def _lattice(chunk: Values, lattice: int) -> int:
    for part in (chunk.ravel()[:4096], chunk):  # nearly always 1, and known from a few pixels
        if lattice == 1:
            return 1
        lattice = math.gcd(lattice, int(np.gcd.reduce(np.abs(part.astype(np.int64)), axis=None)))
    return lattice


def piled_up(dtype: np.dtype[Any], found: Statistics) -> bool:
    """Whether the maximum is a ceiling: more pixels there than the values just below lead one to expect."""
    if found.maximum in _CEILINGS or (dtype.kind in "iu" and found.maximum == np.iinfo(dtype).max):
        return found.at_maximum >= 5 and found.at_maximum > 2 * found.below_maximum
    return found.maximum >= 20 and found.at_maximum >= 10 and found.at_maximum > 5 * found.below_maximum


def missing_levels(planes: list[Image]) -> tuple[int, int]:
    """Count the dips of a histogram, levels that rounding after a change of scale has skipped, and the empty ones.

    A dip has at most 0.7 of the pixels that the fuller of three levels on either side have, by five standard errors;
    or, after a large factor, next to none of those that 16 levels have.
    """
    lowest = min(float(plane.min()) for plane in planes)
    levels = np.concatenate([(plane - lowest)[plane - lowest < 1 << 16].astype(np.int64) for plane in planes])
    histogram = np.bincount(levels).astype(float)
    count, empty = max(_dips(histogram, reach, share) for reach, share in _DIPS)
    return (count, empty) if count >= _LEAST_DIPS else (0, 0)


def _dips(histogram: Image, reach: int, share: float) -> tuple[int, int]:
    if len(histogram) < 2 * reach:
        return 0, 0
    fullest = np.lib.stride_tricks.sliding_window_view(np.pad(histogram, reach), reach).max(1)
    expected = share * np.minimum(fullest[: len(histogram)], fullest[reach + 1 :])
    dips = histogram < expected - _SURE * np.sqrt(np.maximum(expected, 1))
    # several in a row are one, so that a valley between two peaks does not count for more
    starts = dips & ~np.concatenate([[False], dips[:-1]])
    return int(starts.sum()), int((starts & (histogram == 0)).sum())


def jpeg_edge(planes: list[Image]) -> float:
    """Return by how much steps across the borders of 8 x 8 blocks exceed others, along both axes; 1 by chance."""
    return min(_edge_along(planes, axis) for axis in (0, 1))


def _edge_along(planes: list[Image], axis: int) -> float:
    parts = []
    for plane in planes:
        step = np.abs(ndimage.correlate1d(np.moveaxis(plane, axis, 0), [1.0, -3, 3, -1], axis=0))[2:-2]
        if len(step) < 8 * _JPEG_PX:
            return 1.0
        # capped, because one bright edge of the structure would outweigh all blocks
        lines = np.minimum(step, 4 * step.mean()).mean(1)
        parts.append(lines[: len(lines) // _JPEG_PX * _JPEG_PX].reshape(-1, _JPEG_PX))
    periods = np.mean(parts, axis=0)  # planes of one scene have their edges in the same places
    means = periods.mean(0)
    top, second = np.argsort(means)[[-1, -2]]  # an image enlarged twice has four such lines in eight
    excess = periods[:, top] - periods[:, second]
    if not means[second] > 0 or excess.mean() <= _SURE * excess.std() / math.sqrt(len(excess)):
        return 1.0
    return float(means[top] / means[second])


def common_step(values: Image) -> float | None:
    """Return the number of which all values are whole multiples within rounding, as of divided counts; or None."""
    levels = np.unique(values[:_STEPS])
    gaps = np.diff(levels)
    precision = float(np.abs(levels).max()) * 2e-6  # single precision, and a little
    gaps = gaps[gaps > precision]
    if len(levels) < 4 or not len(gaps) or len(levels) > len(values) / 4:
        return None
    step = float(gaps.min())
    whole = np.rint(levels / step)
    if np.abs(whole).max() > _MOST_STEPS:
        return None
    step = float(levels @ whole / (whole @ whole))  # all levels together know the step best
    apart = np.abs(values - step * np.rint(values / step)).max()
    return step if apart <= precision + 0.001 * step else None


def areas(planes: list[Image]) -> bool:
    """Whether pixels have the values of their neighbours, as in masks and labels and never in noise."""
    pairs = [(plane[:, 1:], plane[:, :-1]) for plane in planes] + [(plane[1:], plane[:-1]) for plane in planes]
    here, there = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    objects = here != 0
    if not objects.any():
        return False
    alike = here == there
    inside, outside = alike[objects].mean(), 1.0 if objects.all() else alike[~objects].mean()
    least = _AREA if len(np.unique(here[:_STEPS])) == 2 else _LABELS
    if not objects.all() and min(inside, outside) >= least:
        return True
    return bool(min(inside / _ALIKE, outside / _LABELS) >= 1 and _in_pieces(planes))


def _in_pieces(planes: list[Image]) -> bool:
    """Whether there are several numbers, each of which stands for few areas; noise breaks each into many."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pieces = numbers = 0
    for plane in planes:
        place = np.arange(plane.size).reshape(plane.shape)
        right, below = plane[:, 1:] == plane[:, :-1], plane[1:] == plane[:-1]
        here = np.concatenate([place[:, 1:][right], place[1:][below]])
        there = np.concatenate([place[:, :-1][right], place[:-1][below]])
        joined = coo_array((np.ones(len(here), bool), (here, there)), (plane.size, plane.size))
        pieces += connected_components(joined, directed=False)[0]
        numbers += len(np.unique(plane))
    return numbers > 2 * len(planes) and pieces <= _PIECES * numbers


def one_bit(planes: list[Image]) -> bool:
    """Whether only 0 and one number occur although photon counts of this brightness would hold larger ones."""
    one = max(float(plane.max()) for plane in planes)
    if one <= 0 or not all(((plane == 0) | (plane == one)).all() for plane in planes):
        return False
    local = (ndimage.uniform_filter(plane / one, 9)[4::9, 4::9] for plane in planes)
    return sum(81 / 2 * float((mean**2).sum()) for mean in local) > 20


def shared_noise(channels: list[list[Image]]) -> float:
    """Return the smallest correlation of the noise of two to four channels with the one before; large for colours."""
    if not 2 <= len(channels) <= 4 or min(channels[0][0].shape) < 5:
        return 0.0
    noise = []
    for planes in channels:
        ripple = [1.0, -4, 6, -4, 1]
        corners = (ndimage.correlate1d(ndimage.correlate1d(plane, ripple, 0), ripple, 1) for plane in planes)
        noise.append(np.concatenate([corner[2:-2, 2:-2].ravel() for corner in corners]))
    pairs = zip(noise[1:], noise[:-1], strict=True)
    return min(float(a @ b) / max(math.sqrt(float(a @ a) * float(b @ b)), 1e-300) for a, b in pairs)


@dataclass(frozen=True)
class Evidence:
    """What was measured on an image.

    Attributes
    ----------
    dtype, size, statistics
        Of all pixels; ``size`` is (rows, columns).
    noise, correlation
        Where there is enough to see.
    planes
        Some planes (y, x), whole, for what programs leave in them.
    channels
        The same for each channel, where there are some.
    hot
        (pixels, axes): places of pixels that no photons explain.
    """

    dtype: np.dtype[Any]
    size: tuple[int, int]
    statistics: Statistics
    noise: Noise | None = None
    correlation: Correlation = field(default_factory=Correlation)
    planes: list[Image] = field(default_factory=list)
    channels: list[list[Image]] = field(default_factory=list)
    hot: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    @property
    def whole(self) -> bool:
        """Whether there are whole numbers only."""
        return not self.statistics.fractional

    @property
    def piled_up(self) -> bool:
        """Whether pixels pile up at the maximum."""
        return piled_up(self.dtype, self.statistics)

    @property
    def step(self) -> float | None:
        """What values with fractions are multiples of."""
        if self.whole or not self.planes:
            return None
        return common_step(np.concatenate([plane.ravel() for plane in self.planes]))

    @property
    def levels(self) -> str:
        """Minimum and mean in words."""
        return f"minimum {self.statistics.minimum:g}, mean {self.statistics.mean:.4g}"

    @property
    def neighbours(self) -> str:
        """The correlation of neighbouring pixels in words."""
        return f"{self.correlation.y:.2f} along y and {self.correlation.x:.2f} along x"


def measure(photons: xr.DataArray) -> Evidence:
    """Measure an image of any type and size.

    All pixels are read once, piece by piece, for the statistics; the rest is measured on about 4 million of them.

    Parameters
    ----------
    photons
        Any dims that end in y, x.
    """
    values: Values = photons.data if isinstance(photons.data, np.ndarray) else photons.values
    size = (values.shape[-2], values.shape[-1]) if values.ndim > 1 else (1, values.size)
    if values.dtype.kind not in "biuf":
        return Evidence(values.dtype, size, Statistics(values.size, values.size, lattice=1))
    statistics = scan(values)
    found = Evidence(values.dtype, size, statistics)
    if statistics.nonfinite or statistics.minimum == statistics.maximum or min(size) < 3 or values.ndim < 2:
        return found
    time, channel = (photons.dims.index(d) if d in photons.dims else None for d in ("t", "c"))
    stack, singles = as_stack(values, time), as_stack(values)
    found = replace(found, planes=[look.mean for look in looks_at(singles, FEW_PIXELS, False)])
    unit = (found.step or 1.0) if statistics.fractional else max(statistics.lattice, 1)
    noise = noise_of(moments_of(singles, in_time=False, most=FEW_PIXELS), unit) if statistics.total else None
    if noise is not None and stack.shape[1] > 2:
        in_time = noise_of(moments_of(stack, in_time=True, most=FEW_PIXELS), unit)
        moves = in_time is None or in_time.dark > max(_STILL, noise.dark)
        noise = noise if moves else in_time
    channels = [] if channel is None else [
        [look.mean for look in looks_at(as_stack(part), FEW_PIXELS, False)]
        for part in (values.take(c, channel) for c in range(min(values.shape[channel], 5)))
    ]  # fmt: skip
    counts = found.whole and statistics.minimum >= 0
    hot = np.argwhere(hot_pixels(singles[:: max(1, len(singles) // 64), 0])) if counts else found.hot
    return replace(
        found,
        noise=noise,
        correlation=correlation_of(stack),
        channels=channels,
        hot=hot,
    )
