"""What cannot be calibrated, in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.errors import ConfigError, NotPhotonCountsError

if TYPE_CHECKING:
    from gap_bioimage.photons.cameras.block_selection import Selected
    from gap_bioimage.photons.cameras.calibration_frames import Frames
    from gap_bioimage.photons.cameras.numbers import Numbers

_VARIES = 10.0  # variance of blocks' means over that of their noise
_SMOOTHED, _SMOOTHED_IMAGE = 0.6, 0.3  # correlation of neighbours beyond which nothing can be corrected
_DARKER = 0.02  # share of the field that may seem darker than the offset
_NEGATIVE = 0.2  # of the median variance


def check_numbers(dark: object, offset: float | None, read_noise: float | None, saturation: float | None) -> None:
    """Refuse numbers that are impossible, or given twice.

    Raises
    ------
    ConfigError
        Saying which.
    """
    if dark is not None and (offset is not None or read_noise is not None):
        raise ConfigError("dark frames were given, and an offset or read noise too; give the dark frames alone")
    if offset is not None and read_noise is not None:
        raise ConfigError(
            "offset and read noise were both given, but the images tell one from the other; give the offset"
        )
    for name, value, least in (
        ("offset", offset, -math.inf),
        ("read noise", read_noise, 0),
        ("saturation", saturation, 0),
    ):
        if value is not None and not (math.isfinite(value) and value >= least):
            raise ConfigError(f"the {name} is {value}, expected a finite number{' from 0 up' if least == 0 else ''}")


def check_gain(numbers: Numbers, selected: Selected, frames: Frames) -> None:
    """Refuse images whose noise tells no gain.

    Raises
    ------
    NotPhotonCountsError
        If noise does not grow with brightness, or brightness hardly varies.
    """
    points, gain = selected.points, numbers.gain
    varies = float(points.mean.var()) > _VARIES * float(np.mean(points.variance / points.samples))
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


def check_frames(frames: Frames) -> None:
    """Refuse one-bit frames.

    Raises
    ------
    NotPhotonCountsError
        If there are only 0 and one other number.
    """
    if frames.whole and frames.minimum == 0 and len(np.unique(frames.values[:1, :2])) == 2:
        raise NotPhotonCountsError(
            f"{frames.name} holds two values only, as one-bit frames do; they need no camera: train with --sum-frames"
        )


def check_correlation(frames: Frames, correlation: tuple[float, float]) -> None:
    """Refuse images whose neighbouring pixels share most of their noise.

    Raises
    ------
    NotPhotonCountsError
        If they do.
    """
    most = max(map(abs, correlation))
    if most > (_SMOOTHED if frames.count > 1 else _SMOOTHED_IMAGE):
        raise NotPhotonCountsError(
            f"the noise of neighbouring pixels of {frames.name} is correlated by {most:.2f}: the images were "
            "smoothed or resampled, or the whole field moves, and their noise tells nothing of the camera; use raw "
            "images of a field that stands still"
        )


def check_offset(numbers: Numbers, selected: Selected, frames: Frames) -> None:
    """Refuse offsets, given or of dark frames, that contradict the images.

    Raises
    ------
    NotPhotonCountsError
        If much of the field is darker, or the variance would be negative there.
    """
    points, offset, gain = selected.points, numbers.offset.value, numbers.gain.value
    darker = float(np.mean(points.mean + 5 * np.sqrt(points.variance / points.samples) < offset - gain / 2))
    if darker > _DARKER:
        raise NotPhotonCountsError(
            f"{darker:.0%} of the field of {frames.name} is darker than the offset of {offset:.4g} ADU; give dark "
            "frames or an offset of the same camera and settings, or leave them out to have the offset estimated"
        )
    variance = numbers.intercept + gain * offset
    if variance < -_NEGATIVE * float(np.median(points.variance)):
        raise NotPhotonCountsError(
            f"at the offset of {offset:.4g} ADU the variance of {frames.name} would be negative ({variance:.3g} "
            "ADU^2): that offset is too low; give dark frames or an offset of the same camera and settings, or leave "
            "them out to have it estimated"
        )
