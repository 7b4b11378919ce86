"""What speaks against a calibration: what is refused, and what is told in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.camera.numbers import MULTIPLIED, POISSON
from gap_bioimage.errors import ConfigError, NotPhotonCountsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.camera.correlation import Correlation
    from gap_bioimage.camera.frames import Dark, Frames
    from gap_bioimage.camera.numbers import Numbers
    from gap_bioimage.camera.photon_transfer import Fit

CORRELATED = 0.1
"""Noise of neighbours that raw images do not share."""
LEFT_OUT = 0.1
"""Share of the field from which on it is told that it was left out."""
_ENOUGH_DARK = 16


def check_given(dark: object, offset: float | None, read_noise: float | None, saturation: float | None) -> None:
    """Refuse numbers that are impossible, or given twice."""
    if dark is not None and (offset is not None or read_noise is not None):
        raise ConfigError("dark frames were given, and an offset or read noise too; give the dark frames alone")
    if offset is not None and read_noise is not None:
        raise ConfigError(
            "offset and read noise were both given, but the images tell one from the other; give the offset"
        )
    for name, value in (("offset", offset), ("read noise", read_noise), ("saturation", saturation)):
        positive = name != "offset"
        if value is not None and not (math.isfinite(value) and (value >= 0 or not positive)):
            raise ConfigError(f"the {name} is {value}, expected a finite number{' from 0 up' if positive else ''}")


def check_gain(frames: Frames, fit: Fit, numbers: Numbers) -> None:
    """Refuse images whose noise tells no gain."""
    points, gain = fit.points, numbers.gain
    varies = float(points.mean.var()) > 10 * float(np.mean(points.variance)) / points.samples
    if varies and not (math.isfinite(gain.value) and gain.value > 0):
        raise NotPhotonCountsError(
            f"the noise of {frames.name} does not grow with brightness, as that of a camera does; use raw images with "
            "dark and bright parts, and more frames of the same field"
        )
    if not math.isfinite(gain.value + gain.high):
        raise NotPhotonCountsError(
            f"the brightness of {frames.name} varies too little to find the gain; use images with dark and bright "
            "parts, more frames of the same field, or add dark frames (--dark)"
        )


def check_offset(frames: Frames, fit: Fit, numbers: Numbers) -> None:
    """Refuse offsets, given or of dark frames, that contradict the images."""
    points, offset, gain = fit.points, numbers.offset.value, numbers.gain.value
    error = np.sqrt(np.maximum(points.variance, 0) / points.samples)
    darker = float(np.mean(points.mean + 5 * error < offset - gain / 2))
    if darker > 0.02:
        raise NotPhotonCountsError(
            f"{darker:.0%} of the field of {frames.name} is darker than the offset of {offset:.4g} ADU; give dark "
            "frames or an offset of the same camera and settings, or leave them out to have the offset estimated"
        )
    variance = numbers.intercept + gain * offset
    if variance < -0.2 * float(np.median(points.variance)):
        raise NotPhotonCountsError(
            f"at the offset of {offset:.4g} ADU the variance of {frames.name} would be negative ({variance:.3g} "
            "ADU^2): that offset is too low; give dark frames or an offset of the same camera and settings, or leave "
            "them out to have it estimated"
        )


def is_counts(frames: Frames, numbers: Numbers) -> bool:
    """Whether images are photon counts: whole numbers with gain 1, no offset and no read noise."""
    gain, offset = numbers.gain, numbers.offset
    return (
        frames.whole
        and frames.minimum >= 0
        and (abs(gain.value - 1) < 0.07 or gain.low <= 1 <= gain.high < 1.5)
        and min(abs(offset.value), max(offset.low, -offset.high)) < 0.35
        and numbers.read_noise.low < 0.35
        and not numbers.multiplying
    )


def doubts(frames: Frames, dark: Dark | None, fit: Fit, numbers: Numbers, correlation: Correlation) -> Iterator[str]:
    """Yield what may be wrong, in sentences, the gravest first."""
    if frames.repeated is not None:
        yield frames.repeated
    alike = max(abs(correlation.largest) if correlation.found else 0.0, correlation.t)
    if alike >= CORRELATED:
        told = f"{correlation.y:.2f} along y, {correlation.x:.2f} along x"
        told += f", {correlation.t:.2f} between frames" if correlation.t >= CORRELATED else ""
        worse = "" if frames.count > 1 else "; one image cannot calibrate it"
        yield (
            f"the noise of neighbouring pixels is correlated ({told}): somebody has smoothed or resampled these "
            f"images, and the gain is too small by a factor of up to {correlation.factor:.1f}{worse}; use raw images"
        )
    yield from _shape(frames, fit, alike)
    if frames.saturated > LEFT_OUT:
        yield f"{frames.saturated:.0%} of the field is saturated and was left out"
    if fit.clipped:
        yield "dark pixels are clipped at zero: the camera's offset is too low for its read noise; raise it"
    if fit.coarse:
        yield (
            "the noise is hardly more than one ADU, where rounding distorts it: gain and offset may be wrong beyond "
            "their intervals; use brighter images or a higher camera gain"
        )
    yield from _little(frames, numbers)
    third = numbers.third
    if third is not None and frames.count > 2 and alike < CORRELATED:
        if numbers.undecided and not math.isnan(third.value):
            yield (
                "the noise does not tell whether the detector multiplies electrons (EMCCD, photomultiplier); the "
                "offset's interval allows for both; say --multiplying if it does"
            )
        elif min(abs(third.value - POISSON), abs(third.value - MULTIPLIED)) > max(0.25, 4 * third.error):
            yield (
                f"the noise is not skewed as that of photons (third moment {third.value:.2f} times the expected): it "
                "was processed, or objects move; the offset may be wrong"
            )
    if dark is not None and dark.frames.count < _ENOUGH_DARK:
        maps = "a single one tells no read noise" if dark.pixel_variance is None else "read noise per pixel is rough"
        yield f"{dark.frames.count} dark frames: {maps}; record {_ENOUGH_DARK} or more"


def _shape(frames: Frames, fit: Fit, alike: float) -> Iterator[str]:
    """Yield how the points depart from a line, and what was left out for it."""
    goodness, bends = fit.goodness, fit.goodness.bends(0.05)
    if fit.brightest is not None or bends < 0:
        end = f"the gain is that below {fit.brightest:.4g} ADU" if fit.brightest is not None else "expose shorter"
        yield (
            f"the variance falls short of the line by {-goodness.bend:.0%} in bright parts (saturation, dead time, "
            f"compression): {end}"
        )
    elif bends > 0:
        cause = "light that flickers or objects that move" if frames.count > 1 else "structure taken for noise"
        rise = f"the variance rises above the line by {goodness.bend:.0%} in bright parts"
        yield f"{rise}: {cause}; the gain may be too high"
    elif goodness.chi_square > 2 and alike < CORRELATED:
        spread = float(np.median(np.abs(goodness.variance / fit.line.at(goodness.mean) - 1)))
        yield (
            f"the line fits worse than chance explains (chi-square {goodness.chi_square:.3g} per degree of freedom; "
            f"blocks of similar brightness depart by {spread:.1%})"
        )
    if fit.outliers > LEFT_OUT:
        yield (
            f"{fit.outliers:.0%} of the field moves or flickers and was left out; if the detector multiplies, say "
            "--multiplying"
        )


def _little(frames: Frames, numbers: Numbers) -> Iterator[str]:
    """Yield what little data, or contradictory numbers, leave open."""
    gain, offset = numbers.gain, numbers.offset
    if frames.count == 1:
        yield (
            "this rests on one image, in which fine structure cannot be told from noise: less certain than its "
            "intervals say; a stack of the same field is better"
        )
    if not math.isfinite(gain.high) or gain.high - gain.low > 0.2 * gain.value:
        few = f"{frames.count} frames" if frames.count > 1 else "one image"
        yield (
            f"the gain is known to {gain.low:.3g} to {gain.high:.3g} only: {few} with too little range of brightness; "
            "record more frames of a field with dark and bright parts"
        )
    variance = numbers.intercept + gain.value * offset.value
    if variance < -4 * gain.value * max(offset.error, 0.01):
        yield (
            f"at the offset of {offset.value:.4g} ADU the variance would be negative ({variance:.3g} ADU^2): the "
            "offset is too low for these images; check it, or leave it out to have it estimated"
        )
