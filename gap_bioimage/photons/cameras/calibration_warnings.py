"""What may be wrong with a camera's calibration, in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.photons.cameras.numbers import MULTIPLIED, POISSON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.photons.cameras.block_selection import Selected
    from gap_bioimage.photons.cameras.calibration_frames import Dark, Frames
    from gap_bioimage.photons.cameras.numbers import Numbers

CORRELATED = 0.1
"""Correlation of neighbouring pixels' noise that raw images do not have."""
_WIDE = 0.1  # half width of the gain's interval over the gain
_ENOUGH_DARK = 16
MOVING = 0.1
"""Share of the field from which on it is told that objects move."""
_UNUSUAL = 0.25  # from either slope that a third moment should have
_BENT = 0.05
_FITS = 2.0  # chi-square per degree of freedom
_NEAR = 0.07  # of gain 1
_EMPTY = 0.35  # ADU of offset or read noise that counts may seem to have


def calibration_warnings(
    frames: Frames, dark: Dark | None, selected: Selected, numbers: Numbers, correlation: tuple[float, float]
) -> Iterator[str]:
    """Yield sentences, the gravest first."""
    yield from _processed(frames, correlation)
    yield from _shape(frames, selected, correlation)
    yield from _left_out(selected)
    yield from _little(frames, numbers)
    yield from _offset(frames, selected, numbers)
    yield from _third(frames, numbers, correlation)
    if dark is not None and dark.frames.count < _ENOUGH_DARK:
        maps = "a single one tells no read noise" if dark.pixel_variance is None else "read noise per pixel is rough"
        yield f"{dark.frames.count} dark frames: {maps}; record {_ENOUGH_DARK} or more"


def is_counts(frames: Frames, numbers: Numbers) -> bool:
    """Whether images are photon counts: whole numbers with gain 1, no offset and no read noise."""
    return (
        frames.whole
        and frames.minimum >= 0
        and (abs(numbers.gain.value - 1) < _NEAR or numbers.gain.low <= 1 <= numbers.gain.high < 1.5)
        and min(abs(numbers.offset.value), max(numbers.offset.low, -numbers.offset.high)) < _EMPTY
        and numbers.read_noise.low < _EMPTY
        and not numbers.multiplying
    )


def _processed(frames: Frames, correlation: tuple[float, float]) -> Iterator[str]:
    along_y, along_x = correlation
    if max(map(abs, correlation)) < CORRELATED:
        return
    factor = (1 + 2 * max(along_y, 0)) * (1 + 2 * max(along_x, 0))
    worse = "" if frames.count > 1 else "; one image cannot calibrate it"
    yield (
        f"the noise of neighbouring pixels is correlated ({along_y:.2f} along y, {along_x:.2f} along x): somebody has "
        f"smoothed or resampled these images, and the gain is too small by a factor of up to {factor:.1f}{worse}; use "
        "raw images"
    )


def _shape(frames: Frames, selected: Selected, correlation: tuple[float, float]) -> Iterator[str]:
    goodness = selected.goodness
    if selected.brightest is not None:
        yield (
            f"the variance falls short of the line in bright parts (saturation, dead time, compression): the gain is "
            f"that below {selected.brightest:.4g} ADU"
        )
    elif goodness.bends(_BENT) < 0:
        yield (
            f"the variance falls short of the line by {-goodness.bend:.0%} in bright parts: saturation, dead time or "
            "compression; use a shorter exposure"
        )
    elif goodness.bends(_BENT) > 0:
        cause = "light that flickers or objects that move" if frames.count > 1 else "structure taken for noise"
        rise = f"the variance rises above the line by {goodness.bend:.0%} in bright parts"
        yield f"{rise}: {cause}; the gain may be too high"
    elif goodness.chi_square > _FITS and max(map(abs, correlation)) < CORRELATED:
        spread = float(np.median(np.abs(goodness.variance / selected.line.at(goodness.mean) - 1)))
        yield (
            f"the line fits worse than chance explains (chi-square {goodness.chi_square:.3g} per degree of freedom; "
            f"blocks of similar brightness depart by {spread:.1%})"
        )


def _left_out(selected: Selected) -> Iterator[str]:
    if selected.moved > MOVING:
        yield (
            f"{selected.moved:.0%} of the field moves or flickers and was left out; if the detector multiplies, say "
            "--multiplying"
        )
    if selected.saturated > MOVING:
        yield f"{selected.saturated:.0%} of the field is saturated and was left out"
    if selected.clipped:
        yield "dark pixels are clipped at zero: the camera's offset is too low for its read noise; raise it"
    if selected.coarse:
        yield (
            "the noise is hardly more than one ADU, where rounding distorts it: gain and offset may be wrong beyond "
            "their intervals; use brighter images or a higher camera gain"
        )


def _little(frames: Frames, numbers: Numbers) -> Iterator[str]:
    gain = numbers.gain
    if frames.count == 1:
        yield (
            "this rests on one image, in which fine structure cannot be told from noise: less certain than its "
            "intervals say; a stack of the same field is better"
        )
    if not math.isfinite(gain.high) or gain.high - gain.low > 2 * _WIDE * gain.value:
        few = f"{frames.count} frames" if frames.count > 1 else "one image"
        yield (
            f"the gain is known to {gain.low:.3g} to {gain.high:.3g} only: {few} with too little range of brightness; "
            "record more frames of a field with dark and bright parts"
        )


def _offset(frames: Frames, selected: Selected, numbers: Numbers) -> Iterator[str]:
    error = (numbers.offset.high - numbers.offset.low) / 4
    variance = numbers.intercept + numbers.gain.value * numbers.offset.value
    if variance < -max(4 * numbers.gain.value * error, 0.02 * float(np.median(selected.points.variance))):
        yield (
            f"at the offset of {numbers.offset.value:.4g} ADU the variance would be negative ({variance:.3g} ADU^2): "
            "the offset is too low for these images; check it, or leave it out to have it estimated"
        )
    darkest = float(np.min(selected.points.mean))
    if numbers.offset.low > darkest + numbers.gain.value:
        yield (
            f"parts of {frames.name} ({darkest:.4g} ADU) are darker than the offset of {numbers.offset.value:.4g}; use "
            "images and dark frames of the same settings"
        )


def _third(frames: Frames, numbers: Numbers, correlation: tuple[float, float]) -> Iterator[str]:
    third = numbers.third
    if third is None or frames.count < 3 or max(map(abs, correlation)) >= CORRELATED:
        return
    if numbers.undecided and not math.isnan(third.value):
        yield (
            "the noise does not tell whether the detector multiplies electrons (EMCCD, photomultiplier); the offset's "
            "interval allows for both; say --multiplying if it does"
        )
        return
    error = (third.high - third.low) / 4
    away = min(abs(third.value - POISSON), abs(third.value - MULTIPLIED))
    if away > max(_UNUSUAL, 4 * error):
        yield (
            f"the noise is not skewed as that of photons (third moment {third.value:.2f} times the expected): it was "
            "processed, or objects move; the offset may be wrong"
        )
