"""Gain, offset and read noise of a camera from its own images."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera
from gap_bioimage.photons.cameras.block_selection import Goodness, Selected, select_blocks
from gap_bioimage.photons.cameras.calibration_frames import Dark, Frames, dark_of, frames_of, pixel_maps
from gap_bioimage.photons.cameras.calibration_refusals import (
    check_correlation,
    check_frames,
    check_gain,
    check_numbers,
    check_offset,
)
from gap_bioimage.photons.cameras.calibration_warnings import CORRELATED, MOVING, calibration_warnings, is_counts
from gap_bioimage.photons.cameras.noise_moments import Moments, image_moments, stack_moments
from gap_bioimage.photons.cameras.numbers import Estimate, Known, Numbers, estimate_numbers
from gap_bioimage.photons.cameras.photon_transfer import Line, Points, average
from gap_bioimage.photons.judging.correlation import neighbour_correlation

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import xarray as xr

_LEAST_VARIANCE = 0.35  # ADU^2 of dark frames below which rounding is no longer noise
_STRUCTURE = 0.06  # of the gain: the bias on simulated cells, see benchmarks/calibration.py
_MUCH_SATURATED = 0.05  # share of the blocks
_SHOWN = 3000
_DIGITS = 6


@dataclass(frozen=True)
class Calibration:
    """A camera's numbers with 95 % intervals, and how well they fit.

    Attributes
    ----------
    detector
        For ``camera=`` of training, and ``write_camera``; with maps where dark frames gave them.
    gain, offset, read_noise
        ADU per electron (noise-derived), ADU, electrons RMS with digitisation.
    method
        "stack" (frames of the same field) or "one image".
    offset_from
        "given", "dark frames", "given read noise", or "noise": third moment and bounds.
    images, dark
        Names of the files, without folders.
    frames, dark_frames
        How many of the same field.
    goodness
        Chi-square, and the groups of blocks behind it: the points of the photon-transfer curve.
    line
        The line through them.
    cloud
        (2, blocks): mean and variance of single blocks, some thousand of them.
    correlation
        Of the noise of neighbouring pixels along y and x.
    third
        Slope of the third moment over gain^2: 1 for Poisson light, 1.5 behind electron multiplication.
    warnings
        Sentences.
    counts
        Whether the images are photon counts already.
    """

    detector: Detector
    gain: Estimate
    offset: Estimate
    read_noise: Estimate
    method: str
    offset_from: str
    images: str
    frames: int
    dark: str | None
    dark_frames: int
    goodness: Goodness
    line: Line
    cloud: npt.NDArray[np.float64]
    correlation: tuple[float, float]
    third: Estimate | None
    warnings: tuple[str, ...]
    counts: bool

    @property
    def message(self) -> str:
        """The result in words, without the warnings."""
        unit = "effective photon" if self.detector.camera.multiplying else "electron"
        if self.counts:
            return (
                f"{self.images} holds photon counts already: gain {self.gain.value:.3g}, offset "
                f"{self.offset.value:.3g}; no camera is needed"
            )
        return (
            f"{self.images}: gain {self.gain} ADU per {unit}, offset {self.offset} ADU, read noise {self.read_noise} "
            f"{unit}s (95 % intervals)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON; intervals are [value, low, high], None where there is no bound."""
        groups = zip(self.goodness.mean, self.goodness.variance, self.goodness.error, strict=True)
        return {
            "images": self.images,
            "camera": self.detector.camera.model_dump(mode="json", exclude={"measured"}),
            "gain": self.gain.to_list(),
            "offset": self.offset.to_list(),
            "read_noise": self.read_noise.to_list(),
            "method": self.method,
            "offset_from": self.offset_from,
            "frames": self.frames,
            "dark": self.dark,
            "dark_frames": self.dark_frames,
            "chi_square": _short(self.goodness.chi_square),
            "degrees_of_freedom": self.goodness.freedom,
            "bend": _short(self.goodness.bend),
            "correlation": [_short(c) for c in self.correlation],
            "third_moment": None if self.third is None else self.third.to_list(),
            "photon_transfer": [[_short(float(v)) for v in group] for group in groups],
            "counts": self.counts,
            "message": self.message,
            "warnings": list(self.warnings),
        }


def calibrate(
    images: xr.DataArray | Path | str,
    *,
    dark: xr.DataArray | Path | str | None = None,
    offset: float | None = None,
    read_noise: float | None = None,
    saturation: float | None = None,
    multiplying: bool | None = None,
    seed: int = 0,
) -> Calibration:
    """Measure gain, offset and read noise of a camera on its own images.

    Parameters
    ----------
    images
        Frames of the same field (t), whose differences are noise whatever they show; or one image or stack along z,
        whose finest ripples are. Dims out of ``t z y x``, or a file. The more brightness varies, the better.
    dark
        Frames without light, (t, y, x), as large as the images: they give the offset, read noise, and from two frames
        on maps of both.
    offset
        ADU without light, if known; otherwise estimated from the third moment of the noise.
    read_noise
        Electrons RMS, digitisation included, if known from the data sheet; it gives the offset.
    saturation
        ADU from which on pixels are saturated; found where pixels pile up when not given.
    multiplying
        Whether the detector multiplies electrons (EMCCD, photomultiplier); told by the third moment when not given.
    seed
        Of the bootstrap behind the intervals.

    Returns
    -------
    Calibration

    Raises
    ------
    NotPhotonCountsError
        If noise does not grow with brightness, is missing, or most pixels are saturated.
    AxesError
        If images have several channels or too few pixels, or dark frames another size.
    ConfigError
        If a given number is out of range, or given twice.

    Notes
    -----
    J. R. Janesick, "Photon Transfer", SPIE Press (2007); for one image J. Immerkaer, "Fast noise variance
    estimation", Computer Vision and Image Understanding 64 (1996). The third moment after Poisson's cumulants.
    """
    check_numbers(dark, offset, read_noise, saturation)
    frames = frames_of(images, saturation)
    check_frames(frames)
    dark_frames = None if dark is None else dark_of(dark, frames)
    moments = _moments(frames)
    correlation = _neighbours(frames, moments)
    check_correlation(frames, correlation)
    loud = (1 + 2 * correlation[0] ** 2) * (1 + 2 * correlation[1] ** 2)
    selected = select_blocks(moments, structure=frames.count == 1, loud=loud, anchor=_anchor(dark_frames))
    # moving objects skew differences, too
    tells = frames.count > 2 and selected.moved <= MOVING
    known = Known(
        dark_frames.offset if dark_frames is not None else None if offset is None else (offset, 0.0),
        read_noise,
        # structure of one image has third moments of its own
        multiplying if tells or multiplying is not None else False,
        imposed=max(map(abs, correlation)) < CORRELATED,
    )
    third = _third(frames, selected, loud)
    numbers = estimate_numbers(selected.points, known, third=third, dark=selected.dark, seed=seed)
    check_gain(numbers, selected, frames)
    if known.offset is not None:
        check_offset(numbers, selected, frames)
    numbers = numbers if frames.count > 1 else _allow_for_structure(numbers)
    return _calibration(frames, dark_frames, known, selected, numbers, correlation)


def _moments(frames: Frames) -> Moments:
    if frames.count > 1:
        return stack_moments(frames.values, frames.ceiling)
    return image_moments(frames.values[:, 0], frames.ceiling)


def _neighbours(frames: Frames, moments: Moments) -> tuple[float, float]:
    """Correlation of neighbouring pixels' noise along y and x, 0 where there is no more than chance."""
    if (moments.saturated > 0).mean() > _MUCH_SATURATED:  # where noise ends together, too
        return 0.0, 0.0
    found = neighbour_correlation(frames.values, repeats=1)
    return (found.y, found.x) if found.found else (0.0, 0.0)


def _anchor(dark: Dark | None) -> Moments | None:
    """Moments of dark frames, if their noise is more than rounding."""
    if dark is None or dark.pixel_variance is None or float(dark.pixel_variance.mean()) < _LEAST_VARIANCE:
        return None
    return stack_moments(dark.frames.values, np.inf)


def _third(frames: Frames, selected: Selected, loud: float) -> Points | None:
    """Points whose third moments are known; two frames have them in space only."""
    if frames.count > 2:
        return selected.points
    moments = selected.moments
    if frames.count == 2:
        moments = image_moments(frames.values.reshape(-1, *frames.size), frames.ceiling)
        moments = moments.at((moments.saturated == 0).all(0))
    # a cut that is tight against structure would take the noise's own skewness
    points = average(moments, selected.line, loud=loud)
    return points if len(points.mean) else None


def _allow_for_structure(numbers: Numbers) -> Numbers:
    """Widen the gain's interval by what structure that is taken for noise adds in one image."""
    gain, allowed = numbers.gain, _STRUCTURE * numbers.gain.value
    low, high = (math.hypot(gain.value - bound, allowed) for bound in (gain.low, gain.high))
    return replace(numbers, gain=Estimate(gain.value, max(gain.value - low, 0.0), gain.value + high))


def _calibration(
    frames: Frames,
    dark: Dark | None,
    known: Known,
    selected: Selected,
    numbers: Numbers,
    correlation: tuple[float, float],
) -> Calibration:
    gain = numbers.gain.value
    found = Camera(
        gain=_short(gain) or gain,
        offset=_short(numbers.offset.value) or 0.0,
        read_noise=_short(numbers.read_noise.value) or 0.0,
        saturation=frames.ceiling if math.isfinite(frames.ceiling) else None,
        multiplying=numbers.multiplying,
        measured=_measured(frames, dark, selected, numbers),
    )
    maps = None if dark is None else pixel_maps(dark, gain)
    pixels = None if maps is None else PixelMaps(maps[0].astype(np.float32), maps[1].astype(np.float32))
    points = selected.points
    shown = np.unique(np.linspace(0, len(points.mean) - 1, _SHOWN).astype(int))
    return Calibration(
        Detector(found, pixels),
        numbers.gain,
        numbers.offset,
        numbers.read_noise,
        _method(frames),
        _offset_from(dark, known),
        frames.name,
        frames.count,
        None if dark is None else dark.frames.name,
        0 if dark is None else dark.frames.count,
        selected.goodness,
        Line(gain, numbers.intercept),
        np.stack([points.mean[shown], points.variance[shown]]),
        correlation,
        numbers.third,
        tuple(calibration_warnings(frames, dark, selected, numbers, correlation)),
        is_counts(frames, numbers),
    )


def _method(frames: Frames) -> str:
    return "stack" if frames.count > 1 else "one image"


def _offset_from(dark: Dark | None, known: Known) -> str:
    if dark is not None:
        return "dark frames"
    if known.offset is not None:
        return "given"
    return "noise" if known.read_noise is None else "given read noise"


def _measured(frames: Frames, dark: Dark | None, selected: Selected, numbers: Numbers) -> dict[str, Any]:
    """What ``camera.yaml`` tells about how it came to be."""
    from gap_bioimage import __version__

    told: dict[str, Any] = {"method": _method(frames), "images": frames.name, "frames": frames.count}
    if dark is not None:
        told |= {"dark": dark.frames.name, "dark_frames": dark.frames.count}
    for name in ("gain", "offset", "read_noise"):
        told[f"{name}_95"] = getattr(numbers, name).to_list()[1:]
    told |= {"chi_square": _short(selected.goodness.chi_square), "gap_bioimage": __version__}
    return {**told, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
