"""What `inspect` measures on an image, and the table of rules that makes a verdict and a sentence of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import scipy
import xarray as xr

from gap_bioimage.camera.moments import (
    FEW_PIXELS,
    Floats,
    Statistics,
    Values,
    as_stack,
    looks_at,
    moments_of,
    piled_up,
    scan,
)
from gap_bioimage.camera.noise import Correlation, Noise, correlation_of, hot_pixels, noise_of

Verdict = Literal["photon counts", "counts times k", "camera image", "processed", "not usable"]
Planes = list[Floats]

_DIPS = ((3, 0.7), (16, 0.1))  # levels on either side, and the share of theirs below which one is a dip
_LEAST_DIPS = 3  # smooth histograms have one between two peaks
_STEPS, _MOST_STEPS = 1 << 20, 1e5  # pixels to look for a common step in, and multiples that it may have
_AREA, _LABELS = 0.8, 0.85  # share of pixels with the same neighbour that makes areas of two, and of more, numbers
_ALIKE, _PIECES = 0.6, 3.0  # the same of small labels, each of which is in one piece or few
_STILL = 1.2  # variance / mean of differences of frames above which something may move
_COLOURS = 0.5  # share of the noise that channels have in common

_QUIET = 0.5  # variance / mean that no photon counter falls below in the dark
_DEAD = 0.25  # nor where it is bright, whatever its dead time
_FELT = 0.7  # nor in the dark, where dead time is felt there too
_BELOW, _WEAK = 0.95, 0.85  # where neighbours share noise too, and where they do not
_LOUD = 1.5  # and that photon counts do not reach in their smoothest part
_STRUCTURE = 1.3  # and where even what optics cannot resolve is this quiet, the rest is fine structure
_FALLING = 0.93  # variance / mean at bright pixels that tells of dead time
_OPPOSITE = -0.1  # correlation of neighbouring pixels that structure never causes
_CAMERA_ALIKE = 0.1  # of bright and sharp structure in a single camera image
_RISING = 1.1  # variance / mean of bright over dark parts, as an offset makes it
_SURE = 4.0  # standard errors
_LEAST_OFFSET, _CLOSE = 5.0, 0.6  # the last: of an offset, below which no pixel lies
_PROJECTED = 5.0  # square roots of the brightness by which a maximum of many frames exceeds their mean
_FITS, _STEEP = 3.0, 3.0  # chi-square of a camera's line, and a slope that counts less a background never have
_MOST_HOT = 0.01  # share of pixels; more are single photons of a detector that multiplies
_FEW = 20  # pixels that may share a divisor by chance
_TO_PHOTONS = (
    "subtract the camera offset, divide by the gain and round to get photons first, or measure the camera with "
    "`gap-bioimage calibrate` and give its yaml with --camera"
)


@dataclass(frozen=True)
class Evidence:
    """What was measured on an image."""

    dtype: np.dtype[Any]
    size: tuple[int, int]  # (rows, columns)
    statistics: Statistics
    noise: Noise | None = None  # where there is enough to see
    correlation: Correlation = field(default_factory=Correlation)
    planes: Planes = field(default_factory=list)  # some (y, x), whole, for what programs leave in them
    channels: list[Planes] = field(default_factory=list)  # the same for each channel, where there are some
    hot: list[tuple[int, int]] = field(default_factory=list)  # places (y, x) that no photons explain

    @property
    def piled_up(self) -> bool:
        """Whether pixels pile up at the maximum."""
        return piled_up(self.dtype, self.statistics)

    @property
    def saturated(self) -> float:
        """Share of pixels at the maximum."""
        return self.statistics.at_maximum / max(self.statistics.pixels, 1)

    @property
    def step(self) -> float | None:
        """What values with fractions are multiples of."""
        if not self.statistics.fractional or not self.planes:
            return None
        return common_step(np.concatenate([plane.ravel() for plane in self.planes]))


def measure(photons: xr.DataArray, without: list[tuple[int, int]] | None = None) -> Evidence:
    """Measure an image of any type and size, whose dims end in y, x, and leave out the hot pixels (y, x) ``without``.

    All pixels are read once, piece by piece, for the statistics; the rest is measured on about 4 million of them.
    """
    values: Values = photons.data if isinstance(photons.data, np.ndarray) else photons.values
    size = (values.shape[-2], values.shape[-1]) if values.ndim > 1 else (1, values.size)
    if values.dtype.kind not in "biuf":
        return Evidence(values.dtype, size, Statistics(values.size, values.size))
    statistics = scan(values)
    if statistics.nonfinite or statistics.minimum == statistics.maximum or min(size) < 3 or values.ndim < 2:
        return Evidence(values.dtype, size, statistics)
    singles, mask = as_stack(values), None
    if without:
        rows, columns = np.array(without).T
        mask = np.zeros(size, bool)
        mask[rows, columns] = True
        hot = np.asarray(values[..., rows, columns], np.float64)
        stuck = int(np.count_nonzero(hot == statistics.maximum))
        statistics = replace(statistics, total=statistics.total - float(hot.sum()), pixels=statistics.pixels - hot.size)
        statistics = replace(statistics, at_maximum=statistics.at_maximum - stuck)
    elif not statistics.fractional and statistics.minimum >= 0:
        some = singles[:: max(1, len(singles) // 64), 0]
        found = hot_pixels(some)
        without = [(int(y), int(x)) for y, x in np.argwhere(found.any(0))]
        stuck = int(np.count_nonzero(found & (some == statistics.maximum)))
        statistics = replace(statistics, at_maximum=statistics.at_maximum - stuck)
    stack = as_stack(values, photons.dims.index("t") if "t" in photons.dims else None)
    planes = [look.mean for look in looks_at(singles, FEW_PIXELS, False, mask)]
    evidence = Evidence(values.dtype, size, statistics, planes=planes, hot=without or [])
    unit = (evidence.step or 1.0) if statistics.fractional else max(statistics.lattice, 1)
    noise = None
    if statistics.total:
        noise = noise_of(moments_of(singles, in_time=False, most=FEW_PIXELS, hot=mask), unit)
    if noise is not None and stack.shape[1] > 2:
        in_time = noise_of(moments_of(stack, in_time=True, most=FEW_PIXELS, hot=mask), unit)
        moves = in_time is None or in_time.dark > max(_STILL, noise.dark)
        noise = noise if moves else in_time
    parts = np.moveaxis(values, photons.dims.index("c"), 0)[:5] if "c" in photons.dims else ()
    channels = [[look.mean for look in looks_at(as_stack(part), FEW_PIXELS, False)] for part in parts]
    return replace(evidence, noise=noise, correlation=correlation_of(stack, mask), channels=channels)


def missing_levels(planes: Planes) -> tuple[int, int]:
    """Count the dips of a histogram, levels that rounding after a change of scale has skipped, and the empty ones.

    A dip has at most 0.7 of the pixels that the fuller of three levels on either side have, by five standard errors;
    or, after a large factor, next to none of those that 16 levels have.
    """
    lowest = min(float(plane.min()) for plane in planes)
    levels = np.concatenate([(plane - lowest)[plane - lowest < 1 << 16].astype(np.int64) for plane in planes])
    histogram = np.bincount(levels).astype(float)
    count, empty = max(_dips(histogram, reach, share) for reach, share in _DIPS)
    return (count, empty) if count >= _LEAST_DIPS else (0, 0)


def _dips(histogram: Floats, reach: int, share: float) -> tuple[int, int]:
    if len(histogram) < 2 * reach:
        return 0, 0
    fullest = np.lib.stride_tricks.sliding_window_view(np.pad(histogram, reach), reach).max(1)
    expected = share * np.minimum(fullest[: len(histogram)], fullest[reach + 1 :])
    dips = histogram < expected - 5 * np.sqrt(np.maximum(expected, 1))
    # several in a row are one, so that a valley between two peaks does not count for more
    starts = dips & ~np.concatenate([[False], dips[:-1]])
    return int(starts.sum()), int((starts & (histogram == 0)).sum())


def common_step(values: Floats) -> float | None:
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


def areas(planes: Planes) -> bool:
    """Whether pixels have the values of their neighbours, as in masks, classes and labels and never in noise.

    The most frequent number is taken for the background. Small labels are told from noise by their number of pieces,
    which is pixels - pairs + squares of like neighbours (Euler).
    """
    numbers, times = np.unique(np.concatenate([plane.ravel() for plane in planes]), return_counts=True)
    background = numbers[np.argmax(times)]
    pairs = np.zeros((2, 2))  # of objects and background, those that are alike and all
    pieces = 0
    for plane in planes:
        objects, right, below = plane != background, plane[:, 1:] == plane[:, :-1], plane[1:] == plane[:-1]
        for alike, inside in ((right, objects[:, 1:]), (below, objects[1:])):
            pairs += [[(alike & inside).sum(), inside.sum()], [(alike & ~inside).sum(), (~inside).sum()]]
            pieces -= int((alike & inside).sum())
        pieces += int(objects.sum() + (right[1:] & right[:-1] & below[:, 1:] & objects[1:, 1:]).sum())
    inside, outside = pairs[:, 0] / np.maximum(pairs[:, 1], 1)
    if min(inside, outside) >= (_AREA if len(numbers) == 2 else _LABELS):
        return True
    whole = len(numbers) > 2 * len(planes) and pieces <= _PIECES * len(planes) * len(numbers)
    return bool(min(inside / _ALIKE, outside / _LABELS) >= 1 and whole)


def one_bit(planes: Planes) -> bool:
    """Whether only 0 and one number occur although photon counts of this brightness would hold larger ones."""
    one = max(float(plane.max()) for plane in planes)
    if one <= 0 or not all(((plane == 0) | (plane == one)).all() for plane in planes):
        return False
    local = (scipy.ndimage.uniform_filter(plane / one, 9)[4::9, 4::9] for plane in planes)
    return sum(81 / 2 * float((mean**2).sum()) for mean in local) > 20


def shared_noise(channels: list[Planes]) -> float:
    """Return the smallest correlation of the noise of two to four channels with the one before; large for colours."""
    if not 2 <= len(channels) <= 4 or min(channels[0][0].shape) < 5:
        return 0.0
    ripple = np.outer([1.0, -4, 6, -4, 1], [1.0, -4, 6, -4, 1])
    noise = [
        np.concatenate([scipy.ndimage.correlate(p, ripple)[2:-2, 2:-2].ravel() for p in planes]) for planes in channels
    ]
    pairs = zip(noise[1:], noise[:-1], strict=True)
    return min(float(a @ b) / max(math.sqrt(float(a @ a) * float(b @ b)), 1e-300) for a, b in pairs)


@dataclass(frozen=True)
class Finding:
    """What an image is, in a sentence; whether it is refused as photon counts, and what these were multiplied by."""

    verdict: Verdict
    kind: str
    message: str
    refused: bool = True
    factor: float = 1.0
    advice: str | None = None


def examined(photons: xr.DataArray, name: str, saturation: float = 1e-4) -> tuple[Evidence, Finding]:
    """Measure and judge an image; hot pixels are left out if the others then are photon counts."""
    evidence = measure(photons)
    if 0 < len(evidence.hot) <= _MOST_HOT * math.prod(evidence.size):
        others = measure(photons, evidence.hot)
        finding = judge(others, name, saturation)
        if finding.kind == "counts":
            return others, finding
    return evidence, judge(evidence, name, saturation)


def judge(evidence: Evidence, name: str, saturation: float = 1e-4) -> Finding:
    """Say what an image called ``name`` is; ``saturation`` is the accepted share of pixels at the ceiling."""
    for rule in _RULES:
        finding = rule(evidence, name)
        if finding is not None and not (finding.kind == "saturated" and evidence.saturated <= saturation):
            return finding
    return _good(evidence, name)


def _margin(noise: Noise) -> float:
    """Return how much below its true value a variance may be found by chance; few pixels miss it by factors."""
    return math.exp(-_SURE * noise.dark_error)


def _numbers(evidence: Evidence) -> str:
    found, noise = evidence.statistics, evidence.noise
    told = f"minimum {found.minimum:g}, mean {found.mean:.4g}"
    if noise is not None:
        told += f", variance/mean {noise.dark:.3g} in the dark and {noise.bright:.3g} where it is bright"
    if evidence.correlation.found:
        told += f", noise of neighbours correlated by {evidence.correlation.y:.2f} and {evidence.correlation.x:.2f}"
    return f"({told}; expected 1{' and 0' if evidence.correlation.found else ''})" if noise is not None else f"({told})"


def _unusable(evidence: Evidence, name: str) -> Finding | None:
    """Look for what no detector returns."""
    found = evidence.statistics
    if evidence.dtype.kind not in "biuf":
        text = f"{name} holds {evidence.dtype}, expected whole numbers of photons; save it as integers"
    elif not found.pixels:
        text = f"{name} has no pixels, expected photon counts; export it again"
    elif found.nonfinite:
        text = f"{name} has {found.nonfinite} pixels that are NaN or infinite, expected photon counts; use the raw ones"
    elif found.minimum == found.maximum == 0:
        text = f"{name} is all zero, expected some photons; choose another image or channel"
    elif found.minimum == found.maximum > 0 and found.pixels >= _FEW:
        text = f"every pixel of {name} is {found.minimum:g}, expected photon counts, which vary; choose another image"
    elif min(evidence.size) < 2 and found.minimum >= 0:
        rows, columns = evidence.size
        advice = "save the values as an image with rows and columns"
        text = f"{name} has {rows} x {columns} pixels, a single row or column, expected an image; {advice}"
        return Finding("not usable", "one row", text, refused=False, advice=advice)
    else:
        return None
    return Finding("not usable", "empty", text)


def _negative(evidence: Evidence, name: str) -> Finding | None:
    """Look for values below zero: of a camera with a low baseline, or where a background was subtracted."""
    found, noise = evidence.statistics, evidence.noise
    if not found.minimum < 0:
        return None
    told = f"{name} has negative values (minimum {found.minimum:g})"
    if not found.fractional and noise is not None and not evidence.correlation.found:
        gain, error = noise.slope
        # light that was subtracted left its noise, so that no line fits; constant light leaves a camera's floor
        flat = float(np.ptp(noise.mean)) ** 2 < float(noise.variance.mean())
        if (noise.misfit < _FITS and (flat or gain > _SURE * error)) or gain > max(_STEEP, _SURE * error):
            told += f" and the noise of a camera (variance {gain:.2g} times what exceeds {noise.offset:.3g})"
            return Finding("camera image", "camera", f"{told}, expected photon counts; {_TO_PHOTONS}")
    told += ", expected photon counts from 0 up; use the counts before any background was subtracted"
    return Finding("processed", "background subtracted", told)


def _fractions(evidence: Evidence, name: str) -> Finding | None:
    found, noise, step = evidence.statistics, evidence.noise, evidence.step
    if not found.fractional:
        return None
    if step is not None and noise is not None and _QUIET < noise.dark / step and noise.smallest / step < _LOUD:
        text = f"every value of {name} is a multiple of {step:.6g} {_numbers(evidence)}, expected photon counts"
        return Finding("counts times k", "multiplied counts", f"{text}; divide by {step:.6g} and round", factor=step)
    text = (
        f"{name} has fractional values ({found.fractional / found.pixels:.0%} of the pixels, mean {found.mean:.3g}), "
        f"expected whole numbers of photons; use the raw counts, or for a camera image {_TO_PHOTONS}"
    )
    return Finding("processed", "fractions", text)


def _drawn(evidence: Evidence, name: str) -> Finding | None:
    """Look for masks and labels, for one-bit frames, for colours."""
    found = evidence.statistics
    if not evidence.planes:
        return None
    if areas(evidence.planes):
        advice = "name the files that hold images, rather than their folder, to leave the mask out"
        text = f"{name} holds a mask or labels, {found.minimum:g} to {found.maximum:g}, whose pixels repeat their"
        return Finding("not usable", "mask", f"{text} neighbours as noise never does; {advice}", advice=advice)
    if one_bit(evidence.planes):
        text = (
            f"{name} holds one-bit frames, 0 and {found.maximum:g}: no pixel has more than one photon, although "
            f"{found.mean / found.maximum:.3g} per pixel would give some more; sum frames with --sum-frames"
        )
        return Finding("photon counts", "one-bit frames", text, refused=found.maximum != 1)
    alike = shared_noise(evidence.channels)
    if alike > _COLOURS:
        text = f"the channels of {name} share {alike:.0%} of their noise, as colours do, expected photon counts"
        return Finding("processed", "rgb", f"{text}; use the file as the detector's software saved it")
    return None


def _comb(evidence: Evidence, name: str) -> Finding | None:
    """Look for levels that a change of contrast or scale has skipped."""
    found, noise = evidence.statistics, evidence.noise
    if not evidence.planes or found.lattice > 1:
        return None
    missing, empty = missing_levels(evidence.planes)
    # a camera with little read noise has combs too, but not empty ones
    if not missing or (noise and noise.smallest > _LOUD and empty < missing / 2):
        return None
    if evidence.correlation.found and found.minimum > 0 and _offset(evidence, name):
        return None  # a camera's image that was resampled
    text = f"{name} misses {missing} levels between others, as after a change of contrast or scale"
    advice = "use the file as the detector's software saved it"
    return Finding("processed", "rescaled", f"{text}, expected photon counts; {advice}")


def _multiplied(evidence: Evidence, name: str) -> Finding | None:
    """Look for counts that somebody multiplied."""
    found, noise, k = evidence.statistics, evidence.noise, evidence.statistics.lattice
    if k <= 1 or found.pixels - found.zeros < _FEW:
        return None
    text = f"every value of {name} is a multiple of {k} {_numbers(evidence)}, expected photon counts"
    if noise and noise.dark < _QUIET * k * _margin(noise):
        return _quiet(evidence, name, k)
    if noise and noise.smallest / (1 + _SURE * noise.dark_error) > _LOUD * k:
        return Finding("processed", "rescaled", f"{text} or counts times {k}; use those before any rescaling")
    return Finding("counts times k", "multiplied counts", f"{text}; divide by {k}", factor=k)


def _quiet(evidence: Evidence, name: str, k: int = 1) -> Finding | None:
    """Look for noise much weaker than that of photons."""
    noise = evidence.noise
    if noise is None or noise.dark >= _QUIET * k * _margin(noise):
        return None
    return (_smoothed if evidence.statistics.minimum <= 0 else _camera)(evidence, name)


def _smoothed(evidence: Evidence, name: str) -> Finding:
    text = (
        f"{name} looks smoothed, resampled, rescaled or projected {_numbers(evidence)}, expected photon counts; use "
        "the raw counts, and of a stack its planes rather than their maximum or mean"
    )
    return Finding("processed", "smoothed or interpolated", text)


def _camera(evidence: Evidence, name: str) -> Finding:
    noise = evidence.noise
    if noise is not None and _SURE * noise.slope[1] < noise.slope[0] < 1:
        # no camera has so small a gain and offset, but the maximum of many counts does
        if noise.offset < max(_LEAST_OFFSET, _PROJECTED * math.sqrt(max(float(noise.mean[0]), 0.0))):
            return _smoothed(evidence, name)
    told = f"{name} looks like a camera image with an offset {_numbers(evidence)}, expected photon counts"
    if not (evidence.correlation.found and abs(evidence.correlation.largest) > _CAMERA_ALIKE):
        return Finding("camera image", "camera", f"{told}; {_TO_PHOTONS}")
    told += "; it was smoothed or shifted by part of a pixel, so look for the file as the camera wrote it"
    return Finding("camera image", "resampled camera", f"{told}; {_TO_PHOTONS}")


def _shared_noise(evidence: Evidence, name: str) -> Finding | None:
    """Look for pixels that were made from several: photons then vary less, and neighbours vary together."""
    noise, most = evidence.noise, evidence.correlation.largest
    if noise is None or not evidence.correlation.found:
        return None
    if most < _OPPOSITE:
        text = f"neighbouring pixels of {name} vary against one another {_numbers(evidence)}, as after sharpening or"
        text += " deconvolution, expected independent photon counts; use the raw counts"
        return Finding("processed", "sharpened", text)
    return None if most < 0 or noise.dark >= min(_BELOW, _margin(noise)) else _smoothed(evidence, name)


def _offset(evidence: Evidence, name: str) -> Finding | None:
    """Look for a line of variance against mean that starts at an offset, however bright the image."""
    noise = evidence.noise
    if noise is None or not noise.intercept[0] < -5 * noise.intercept[1] or not noise.offset > _LEAST_OFFSET:
        return None
    return None if evidence.statistics.minimum < _CLOSE * noise.offset else _camera(evidence, name)


def _saturated(evidence: Evidence, name: str) -> Finding | None:
    if not evidence.piled_up:
        return None
    advice = "record it again with a shorter exposure, or crop the bright part away"
    text = f"{evidence.saturated:.2%} of the pixels of {name} are at the maximum {evidence.statistics.maximum:g}"
    text += f", saturated, expected counts below the detector's ceiling; {advice}"
    return Finding("not usable", "saturated", text, advice=advice)


def _weak(evidence: Evidence, name: str) -> Finding | None:
    """Look for noise a little weaker than that of photons in the dark, where no dead time is felt."""
    noise = evidence.noise
    if noise is None:
        return None
    silent = noise.bright + _SURE * noise.bright_error < _DEAD and not evidence.piled_up
    if noise.dark >= _WEAK * _margin(noise) and not silent:
        return None
    rise = noise.bright / noise.dark
    risen = rise > _RISING and noise.offset > _LEAST_OFFSET
    if (risen or noise.dark < _QUIET) and evidence.statistics.minimum > 0:
        return _camera(evidence, name)
    if rise < 1 / _RISING and noise.dark >= _FELT and not silent:  # weaker still where it is bright: dead time
        return None
    text = (
        f"{name} has less noise than photon counts {_numbers(evidence)}, as after rescaling, smoothing, projection or"
    )
    text += " with an offset; use the raw counts, or measure the camera with `gap-bioimage calibrate`"
    return Finding("processed", "rescaled", text, refused=silent or noise.dark < _QUIET)


def _too_noisy(evidence: Evidence, name: str) -> Finding | None:
    noise = evidence.noise
    if noise is None or noise.smallest / (1 + _SURE * noise.dark_error) < _LOUD:
        return None
    if np.quantile(noise.fano, 0.25) < _STRUCTURE:
        return None
    text = f"{name} is noisier than photon counts {_numbers(evidence)}, and the network would copy noise"
    return Finding("camera image", "camera", f"{text}; unless these are counts, {_TO_PHOTONS}", refused=False)


def _good(evidence: Evidence, name: str) -> Finding:
    noise, hot = evidence.noise, evidence.hot
    text = f"{name} holds photon counts, {evidence.statistics.mean:.3g} per pixel"
    if noise is not None:
        text += f", with variance/mean {noise.dark:.2f} in the dark and {noise.bright:.2f} where it is bright"
        if noise.bright < min(_FALLING, 1 - _SURE * noise.bright_error / max(noise.bright, 1e-9)):
            text += " (the detector's dead time: bright pixels count too few photons)"
    if hot:
        named = ", ".join(f"y {y} x {x}" for y, x in hot[:3]) + (", ..." if len(hot) > 3 else "")
        who = f"1 hot pixel ({named}) holds" if len(hot) == 1 else f"{len(hot)} hot pixels ({named}) hold"
        text += f"; {who} more than photons can bring beside such dark neighbours, left out of these numbers"
    return Finding("photon counts", "counts", text, refused=False)


_RULES: tuple[Callable[[Evidence, str], Finding | None], ...] = (
    *(_unusable, _negative, _fractions, _drawn, _comb, _multiplied),
    *(_quiet, _shared_noise, _offset, _saturated, _weak, _too_noisy),
)
