"""Traces that programs leave in pixel values: missing levels, blocks of JPEG, steps, noise that channels share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gap_bioimage.photons.judging.correlation import noise_planes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.float64]

_LEVELS = 1 << 16
_DIPS_TO_FIND = ((3, 0.7), (16, 0.1))  # levels on either side, and the share of theirs below which one is a dip
_SURE = 5.0  # standard errors
_DIPS = 3  # as many as show a change of scale; smooth histograms have one between two peaks
_JPEG_PX = 8
_LEAST_BLOCKS = 8  # in a row, so that chance is known
_EDGE = 1.05  # steps across JPEG's blocks over steps elsewhere
_STEPS = 1 << 20  # pixels to look for a common step in
_MOST_STEPS = 1e5
_ALIKE = 0.5  # correlation of noise in channels that were made from one another


@dataclass(frozen=True)
class Traces:
    """What was found in about 4 million pixels."""

    missing_levels: int = 0
    """Levels that hold far fewer pixels than those around them, where there are too many to be chance."""
    empty_levels: int = 0
    """As many of these as hold none at all; read noise fills those of a camera that tells electrons apart."""
    jpeg_edge: float = 1.0
    """Steps across the borders of 8 x 8 blocks over steps elsewhere; 1 in raw images."""
    step: float | None = None
    """What values with fractions are multiples of."""
    one_bit: bool = False
    """Only 0 and 1 (or another number), and too many of these for photon counts."""
    shared_noise: float = 0.0
    """Correlation of the noise of channels: 0 for detectors, large for colours."""

    @property
    def jpeg(self) -> bool:
        """Whether the blocks of JPEG show."""
        return self.jpeg_edge > _EDGE

    @property
    def colours(self) -> bool:
        """Whether the channels are colours of one photograph rather than detectors."""
        return self.shared_noise > _ALIKE


def find_traces(values: NDArray[Any], channels: int | None = None) -> Traces:
    """Look for traces of processing.

    Parameters
    ----------
    values
        Real numbers or booleans (..., y, x).
    channels
        The axis of channels, if there is one.

    Returns
    -------
    Traces
    """
    if values.ndim < 2 or values.size == 0 or values.dtype.kind not in "biuf":
        return Traces()
    planes = [plane for plane, _ in noise_planes(values)]
    if not planes:
        return Traces()
    whole = all((plane == np.rint(plane)).all() for plane in planes)
    missing, empty = missing_levels(planes) if whole else (0, 0)
    return Traces(
        missing_levels=missing,
        empty_levels=empty,
        jpeg_edge=jpeg_edge(planes),
        step=None if whole else common_step(np.concatenate([plane.ravel() for plane in planes])),
        one_bit=whole and _one_bit(planes),
        shared_noise=0.0 if channels is None else _shared_noise(values, channels),
    )


def missing_levels(planes: list[Image]) -> tuple[int, int]:
    """Count the dips of a histogram, levels that rounding after a change of scale has skipped, and the empty ones.

    Histograms of counts and of camera images are smooth, apart from chance. A dip has at most 0.7 of the pixels that
    the fuller of three levels on either side have, by five standard errors; or, after a large factor, next to none of
    those that 16 levels have. Fewer than three dips count as none.
    """
    lowest = min(float(plane.min()) for plane in planes)
    histogram = np.zeros(0, np.int64)
    for plane in planes:
        levels = (plane - lowest)[plane - lowest < _LEVELS].astype(np.int64)
        more = np.bincount(levels.ravel(), minlength=len(histogram))
        more[: len(histogram)] += histogram
        histogram = more
    count, empty = max(_dips(histogram, reach, share) for reach, share in _DIPS_TO_FIND)
    return (count, empty) if count >= _DIPS else (0, 0)


def _dips(histogram: NDArray[np.int64], reach: int, share: float) -> tuple[int, int]:
    if len(histogram) < 2 * reach:
        return 0, 0
    padded = np.pad(histogram.astype(float), reach)
    fullest = np.lib.stride_tricks.sliding_window_view(padded, reach).max(1)
    left, right = fullest[: len(histogram)], fullest[reach + 1 :]
    expected = share * np.minimum(left, right)
    dips = histogram < expected - _SURE * np.sqrt(np.maximum(expected, 1))
    # Several in a row are one, so that a valley between two peaks does not count for more.
    starts = dips & ~np.concatenate([[False], dips[:-1]])
    return int(starts.sum()), int((starts & (histogram == 0)).sum())


def jpeg_edge(planes: list[Image]) -> float:
    """Return by how much steps across the borders of 8 x 8 blocks exceed others; 1 where that may be chance.

    The grid may lie in any of eight places, and both axes must show it.
    """
    return min(_edge_along(planes, axis) for axis in (0, 1))


def _edge_along(planes: list[Image], axis: int) -> float:
    """Return the ratio along one axis of (y, x), from third differences, line by line."""
    parts = []
    for plane in planes:
        step = np.abs(ndimage.correlate1d(np.moveaxis(plane, axis, 0), [1.0, -3, 3, -1], axis=0))[2:-2]
        if len(step) < _LEAST_BLOCKS * _JPEG_PX:
            return 1.0
        # Capped, because one bright edge of the structure would outweigh all blocks.
        lines = np.minimum(step, 4 * step.mean()).mean(1)
        parts.append(lines[: len(lines) // _JPEG_PX * _JPEG_PX].reshape(-1, _JPEG_PX))
    periods = np.mean(parts, axis=0)  # planes of one scene have their edges in the same places
    means = periods.mean(0)
    top, second = np.argsort(means)[[-1, -2]]  # an image enlarged twice has four such lines in eight
    # Against a line of the same block, because brightness varies over the image.
    excess = periods[:, top] - periods[:, second]
    error = float(excess.std()) / math.sqrt(len(excess))
    if not means[second] > 0 or excess.mean() <= _SURE * error:
        return 1.0
    return float(means[top] / means[second])


def common_step(values: Image) -> float | None:
    """Return the number of which all values are whole multiples, or None.

    Counts that were divided by something keep such a step. It must be met within rounding by every value, and
    be met by fewer multiples than 100000.
    """
    levels = np.unique(values[:_STEPS] if len(values) > _STEPS else values)
    gaps = np.diff(levels)
    precision = float(np.abs(levels).max()) * 2e-6  # single precision, and a little
    gaps = gaps[gaps > precision]
    if len(levels) < 4 or not len(gaps) or len(levels) > len(values) / 4:
        return None
    step = float(gaps.min())
    multiples = levels / step
    if np.abs(multiples).max() > _MOST_STEPS:
        return None
    whole = np.rint(multiples)
    step = float(levels @ whole / (whole @ whole))  # all levels together know the step best
    apart = np.abs(values - step * np.rint(values / step)).max()
    return step if apart <= precision + 0.001 * step else None


def _one_bit(planes: list[Image]) -> bool:
    """Whether only 0 and one number occur although photon counts of this brightness would hold larger ones."""
    one = max(float(plane.max()) for plane in planes)
    if one <= 0 or not all(((plane == 0) | (plane == one)).all() for plane in planes):
        return False
    local = (ndimage.uniform_filter(plane / one, 9)[4::9, 4::9] for plane in planes)
    expected = sum(81 / 2 * float((mean**2).sum()) for mean in local)
    return expected > 20


def _shared_noise(values: NDArray[Any], axis: int) -> float:
    """Return the smallest correlation of the noise of the first two to four channels with the one before."""
    if not 2 <= values.shape[axis] <= 4:
        return 0.0
    noise = []
    for channel in range(values.shape[axis]):
        planes = noise_planes(values[(slice(None),) * axis + (channel,)])
        if not planes or min(planes[0][0].shape) < 5:
            return 0.0
        noise.append(np.concatenate([_corner(plane).ravel() for plane, _ in planes]))
    pairs = zip(noise[1:], noise[:-1], strict=True)
    return min(float(a @ b) / max(math.sqrt(float(a @ a) * float(b @ b)), 1e-300) for a, b in pairs)


def _corner(plane: Image) -> Image:
    for axis in (0, 1):
        plane = ndimage.correlate1d(plane, [1.0, -4, 6, -4, 1], axis=axis)
    return plane[2:-2, 2:-2]
