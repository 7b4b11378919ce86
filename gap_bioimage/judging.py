"""Rules that classify an image from its measurements. The first rule that returns a finding decides."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import xarray as xr

from gap_bioimage import evidence as traces
from gap_bioimage.camera.noise import SMOOTHED, Curve
from gap_bioimage.evidence import Evidence, measure

Verdict = Literal["photon counts", "counts times k", "camera image", "processed", "not usable"]
Kind = Literal["counts", "one-bit frames", "camera", "processed", "mask", "no image"]

_SURE = 4.0  # standard errors above which an effect is significant
# variance/mean in the dark (1 for photons): below _QUIET an offset, below _WEAK processing, above _LOUD a gain
_QUIET, _WEAK, _LOUD = 0.5, 0.85, 1.3
_FALLING = 0.93  # variance/mean of the brightest pixels below which the message names dead time
_PRECISE = 0.1  # relative standard error of variance/mean above which the message leaves it out
_OPPOSITE = -0.1  # correlation of neighbours below which structure is rarely the cause
_PROJECTED = 3.0  # square roots of the brightness up to which an offset may come from a maximum projection
_NEAR_POISSON, _NEAR_POISSON_THIRD = 0.1, 0.5  # departures from 1 of variance/mean and third moment/variance
_SKEWED = 2.0  # third moment/variance, in units of the gain, that no camera exceeds
_EVEN = 1.2  # brightest over darkest part of an evenly lit field
_FITS = (3.0, 10.0)  # chi-square up to which a camera's line fits: of one image, and of frames, which may be dim
_DEAD = 1e-3  # fraction of pixels that may be 0 in a camera image with an offset
_FEW = 20  # pixels that may have a common divisor by chance
_AS_SAVED = "use the file as the detector's software saved it"
_BEFORE_SUBTRACTION = "use the counts before any background was subtracted"
_TO_PHOTONS = "measure the camera with `gap-bioimage calibrate` and give its yaml with --camera"


@dataclass(frozen=True)
class Finding:
    """The verdict on an image, with its reason."""

    verdict: Verdict
    kind: Kind
    message: str  # a sentence; rules leave out the name of the image, with which it begins
    refused: bool = True  # whether the image is refused as photon counts
    factor: float = 1.0  # by which the counts were multiplied
    advice: str | None = None


def judge(evidence: Evidence, name: str, saturation: float = 1e-4) -> Finding:
    """Classify the image ``name``; ``saturation`` is the accepted fraction of pixels at the ceiling."""
    scaled = _in_units(evidence)
    rules = [rule for rule in _RULES if rule is not _saturated or evidence.saturated > saturation]
    finding = next(filter(None, (rule(scaled) for rule in rules)), None) or _counts(scaled)
    if scaled.unit != 1 and finding.verdict != "not usable":
        finding = replace(finding, refused=True)
    notes = list(evidence.left_out)
    if finding.kind == "camera" and evidence.saturated > saturation:
        notes.append(f"{evidence.saturated:.2%} of the pixels are saturated at {evidence.statistics.maximum:g}")
    return replace(finding, message="; ".join([f"{name} {finding.message}", *notes]))


def _in_units(evidence: Evidence) -> Evidence:
    """Return the measurements in units of the smallest step, in which counts times k are counts."""
    k, curve, statistics = evidence.unit or 1.0, evidence.curve, evidence.statistics
    if k == 1 or statistics.pixels - statistics.zeros < _FEW:
        return replace(evidence, unit=evidence.unit and 1.0)
    if curve is not None:
        (intercept, intercept_error), (slope, slope_error) = curve.intercept, curve.slope
        curve = replace(curve, mean=curve.mean / k, variance=curve.variance / k**2, error=curve.error / k**2)
        curve = replace(curve, intercept=(intercept / (k * k), intercept_error / (k * k)))
        curve = replace(curve, slope=(slope / k, slope_error / k))
    return replace(evidence, curve=curve, planes=[plane / k for plane in evidence.planes])


def judge_image(photons: xr.DataArray, name: str, saturation: float = 1e-4) -> tuple[Evidence, Finding]:
    """Measure and judge an image and, unless all of it is a camera image or counts times k, each of its channels."""
    photons = photons.transpose(..., "y", "x")
    evidence = measure(photons)
    finding = judge(evidence, name, saturation)
    n_channels, alike = photons.sizes.get("c", 1), finding.verdict in ("camera image", "counts times k")
    for channel in range(n_channels if n_channels > 1 and not alike else 0):
        channel_evidence = measure(photons.isel(c=channel))
        channel_finding = judge(channel_evidence, f"channel {channel} of {name}", saturation)
        if channel_finding.refused and channel_finding.kind != "no image":
            return channel_evidence, channel_finding
    return evidence, finding


def processed(text: str, advice: str = _AS_SAVED, refused: bool = True) -> Finding:
    """Return the finding for an image that is not as the detector recorded it."""
    return Finding("processed", "processed", f"{text}, expected raw values; {advice}", refused)


def _not_usable(kind: Kind, text: str, advice: str) -> Finding:
    return Finding("not usable", kind, f"{text}; {advice}", advice=advice)


def _camera(text: str, refused: bool = True) -> Finding:
    return Finding("camera image", "camera", f"{text}, expected photon counts; {_TO_PHOTONS}", refused)


def _smoothed(evidence: Evidence, refused: bool = True) -> Finding:
    advice = "use the raw counts, and the planes of a stack rather than their maximum or mean"
    return processed(f"looks smoothed, rescaled or projected {_numbers(evidence)}", advice, refused)


def _numbers(evidence: Evidence) -> str:
    curve, neighbours = evidence.curve, evidence.correlation
    numbers = f"minimum {evidence.statistics.minimum:g}, mean {evidence.statistics.mean:.4g}"
    if curve is not None and math.isfinite(curve.dark + curve.bright):
        dark, bright = ((evidence.unit or 1.0) * fano for fano in (curve.dark, curve.bright))
        numbers += f", variance/mean {dark:.3g} (dark) and {bright:.3g} (bright), which is 1 for counts"
    if neighbours.found:
        numbers += f", noise correlation {neighbours.y:.2f} and {neighbours.x:.2f}, which is 0 for raw images"
    return f"({numbers})"


def _unusable(evidence: Evidence) -> Finding | None:
    """Look for values and sizes that no detector returns."""
    statistics, (rows, columns) = evidence.statistics, evidence.size
    lowest, highest, pixels = statistics.minimum, statistics.maximum, statistics.pixels
    line = False
    if evidence.dtype.kind not in "biuf":
        text = f"holds {evidence.dtype}"
    elif statistics.nonfinite:
        text = f"has {statistics.nonfinite} pixels that are NaN or infinite"
    elif not pixels or (lowest == highest and (highest == 0 or (pixels >= _FEW and lowest >= 0))):
        text = f"has the value {lowest:g} everywhere" if pixels else "has no pixels"
    elif line := min(rows, columns) < 2 and lowest >= 0:
        text = f"has {rows} x {columns} pixels, a single row or column"
    else:
        return None
    advice = "save the values as an image with rows and columns" if line else _AS_SAVED
    text = f"{text}, expected an image of photon counts; {advice}"
    return Finding("not usable", "no image", text, refused=not line, advice=advice if line else None)


def _negative(evidence: Evidence) -> Finding | None:
    """Look for negative values: dead pixels, a camera with a low baseline, or a subtracted background."""
    curve, minimum = evidence.curve, evidence.statistics.minimum
    if not minimum < 0:
        return None
    if count := traces.dead_pixels(evidence.planes):
        text = f"has {count} pixels of {minimum:g} and no other negative values: marked dead pixels"
        return _not_usable("counts", text, "set them to 0, or to the mean of their neighbours, and inspect it again")
    text = f"has negative values (minimum {minimum:g})"
    # subtracted light leaves its noise behind, and no line fits
    line = curve is not None and curve.chi_square < _FITS[evidence.repeats]
    if evidence.unit is not None and line:
        return _camera(f"{text} and the noise of a camera {_numbers(evidence)}")
    return processed(text, _BEFORE_SUBTRACTION)


def _fractions(evidence: Evidence) -> Finding | None:
    statistics, fractional = evidence.statistics, evidence.statistics.fractional
    # counts multiplied by a fraction: more than a quarter of the values that are not zero are fractions
    if not fractional or (evidence.unit is not None and 4 * fractional > statistics.pixels - statistics.zeros):
        return None
    text = f"has fractional values ({fractional} of {statistics.pixels} pixels, mean {statistics.mean:.3g})"
    return processed(text, f"use the raw counts, or for a camera image {_TO_PHOTONS}")


def _unusual_levels(evidence: Evidence) -> Finding | None:
    """Look for masks and labels, one-bit frames, overflow, and levels skipped by a change of scale."""
    lowest, highest = evidence.statistics.minimum, evidence.statistics.maximum
    if not evidence.planes:
        return None
    if traces.is_mask(evidence.planes) or traces.is_class_map(evidence.planes):
        text = f"holds a mask or labels, {lowest:g} to {highest:g}, whose pixels repeat their neighbours"
        return _not_usable("mask", text, "to leave it out, name the files or channels that hold images, not the folder")
    if traces.one_bit(evidence.planes):
        return _one_bit(evidence.frames, highest)
    bits = 8 if highest < 256 else 16
    if highest in (2**bits - 2, 2**bits - 1) and lowest == 0 and traces.wrapped(evidence.planes, 2**bits):
        text = f"wraps between 0 and {highest:g} ({bits}-bit overflow): bright pixels are dark, or negative ones bright"
        return _not_usable("counts", text, "record it again with more bits or less light, or save it with a sign")
    if evidence.unit == 1 and (missing := traces.missing_levels(evidence.planes)):
        return processed(f"misses {missing} levels between others, as after a change of contrast or scale")
    return None


def _one_bit(frames: int, one: float) -> Finding:
    values = f"0 and {one:g}, at most one photon in each pixel"
    if frames > 1:
        text = f"holds one-bit frames, {values}; sum them (--sum-frames)"
        return Finding("photon counts", "one-bit frames", text, refused=one != 1)
    text = f"holds a one-bit frame, {values}"
    if one == 1:
        return Finding("photon counts", "one-bit frames", text, refused=False)
    return Finding("counts times k", "one-bit frames", f"{text}; divide by {one:g}", factor=one)


def _offset(evidence: Evidence) -> Finding | None:
    """Look for a camera: variance that vanishes at an offset, or far below the mean although nothing is dark."""
    curve = evidence.curve
    if curve is None:
        return None
    line = curve.intercept[0] < -_SURE * curve.intercept[1]
    quiet = _averaged(curve) or curve.dark < _QUIET * _margin(curve.dark_error)
    if not (line or quiet) or np.quantile(np.concatenate(evidence.planes, axis=None), _DEAD) <= 0:
        return _smoothed(evidence) if quiet else None
    # no camera has such a small gain and offset, but maximum projections of counts do
    least = _PROJECTED * math.sqrt(max(float(curve.mean[0]), 0.0))
    projected = _SURE * curve.slope[1] < curve.slope[0] < 1 and curve.offset < least
    third, error = traces.third_over_variance(evidence.planes)
    if not quiet and abs(curve.dark - 1) < _NEAR_POISSON and abs(third - 1) < _NEAR_POISSON_THIRD:
        return None  # photon counts, whose structure bends the line
    skewed = third > _SKEWED * (curve.slope[0] + 2 * curve.slope[1]) + _SURE * error
    projected |= skewed and not evidence.repeats and curve.chi_square < _FITS[0]
    if projected or curve.intercept[0] > _SURE * curve.intercept[1]:
        return _smoothed(evidence)
    if evidence.correlation.largest > SMOOTHED[evidence.repeats]:
        return _smoothed(evidence)  # too strongly correlated for a calibration
    return _camera(f"looks like a camera image with an offset {_numbers(evidence)}")


def _averaged(curve: Curve) -> bool:
    """Whether noise is far below that of photons at brightnesses where neither rounding nor dead time matters."""
    used = (curve.mean >= 1) & (curve.mean <= curve.mean[-1] / 2)
    total, error = float(curve.fano[used].sum()), float(np.linalg.norm(curve.error[used] / curve.mean[used]))
    return bool(used.any()) and total < used.sum() * _QUIET * _margin(error / max(total, 1e-300))


def _margin(error: float) -> float:
    """Return the factor by which chance may lower a variance, given its relative error."""
    return math.exp(-_SURE * error)


def _sharpened(evidence: Evidence) -> Finding | None:
    if evidence.correlation.largest > _OPPOSITE:
        return None
    return processed(f"has neighbouring pixels with anticorrelated noise, as if sharpened {_numbers(evidence)}")


def _saturated(evidence: Evidence) -> Finding | None:
    if evidence.statistics.maximum == evidence.unit:  # values 0 and 255, say, of single photons
        return None
    text = f"is saturated: {evidence.saturated:.2%} of the pixels are at the maximum {evidence.statistics.maximum:g}"
    return _not_usable("counts", text, "record it again with a shorter exposure, or crop away the bright part")


def _too_quiet(evidence: Evidence) -> Finding | None:
    """Look for noise slightly weaker than that of photons in the dark, where dead time plays no role."""
    curve = evidence.curve
    if curve is None or curve.dark >= _WEAK * _margin(curve.dark_error):
        return None
    if curve.dark >= _QUIET and evidence.statistics.minimum > 0 and not evidence.correlation.found:
        return _camera(f"has less noise than photon counts {_numbers(evidence)}, as with an offset", refused=False)
    return _smoothed(evidence, refused=curve.dark < _QUIET)


def _too_noisy(evidence: Evidence) -> Finding | None:
    curve = evidence.curve
    if curve is None:
        return None
    loud = curve.smallest / (1 + _SURE * curve.dark_error) >= _LOUD  # at every brightness
    if not loud:
        flat = curve.mean[-1] < _EVEN * curve.mean[0]
        if not (flat and curve.dark > 1 + _SURE * curve.dark_error):
            return None
        third, error = traces.third_over_variance(evidence.planes)  # slow, but few images come this far
        if third <= 1 + _NEAR_POISSON_THIRD + 2 * error:
            return None
    k = evidence.unit or 1.0
    if k < 1 or not math.log2(k).is_integer():  # cameras scale values of fewer bits by powers of two only
        return processed(f"has only multiples of {k:.6g} {_numbers(evidence)}, with more noise than counts")
    return _camera(f"is noisier than photon counts {_numbers(evidence)}, like a camera image", refused=False)


def _subtracted(evidence: Evidence) -> Finding | None:
    """Look for the noise of a background that was subtracted before clipping at zero."""
    curve = evidence.curve
    if curve is None or curve.dark < _LOUD or curve.slope[0] > _LOUD or evidence.statistics.minimum != 0:
        return None
    if not curve.intercept[0] > _SURE * curve.intercept[1]:  # unknown for few photons
        return None
    text = f"has too much noise in the dark {_numbers(evidence)}, as after background subtraction and clipping at zero"
    return processed(text, _BEFORE_SUBTRACTION, refused=False)


def _counts(evidence: Evidence) -> Finding:
    curve, hot, k = evidence.curve, evidence.hot, evidence.unit or 1.0
    if k != 1:
        text = f"has values that are all multiples of {k:.6g} {_numbers(evidence)}, expected photon counts"
        return Finding("counts times k", "counts", f"{text}; divide by {k:.6g}", factor=k)
    text = f"holds photon counts, {evidence.statistics.mean:.3g} per pixel"
    if curve is not None:
        text += f", with variance/mean {curve.dark:.2f} in the dark"
        if curve.dark > _LOUD:
            text += " (fine structure adds to it)"
        elif curve.bright_error < _PRECISE:
            text += f" and {curve.bright:.2f} where it is bright"
        if curve.bright < min(_FALLING, 1 - _SURE * curve.bright_error):
            text += "; bright pixels count too few photons, by the detector's dead time"
    if hot:
        positions = ", ".join(f"y {y} x {x}" for y, x in hot[:3]) + (", ..." if len(hot) > 3 else "")
        text += f"; hot pixels are left out, too bright for photons next to dark neighbours: {len(hot)} ({positions})"
    return Finding("photon counts", "counts", text, refused=False)


_RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    *(_unusable, _negative, _fractions, _unusual_levels, _offset),
    *(_sharpened, _saturated, _too_quiet, _too_noisy, _subtracted),
)
