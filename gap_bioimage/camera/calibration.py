"""Gain, offset and read noise of a camera from its own images."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.camera.camera import Detector, write_camera
from gap_bioimage.camera.correlation import Correlation, correlation_of
from gap_bioimage.camera.doubts import CORRELATED, LEFT_OUT, check_gain, check_given, check_offset, doubts, is_counts
from gap_bioimage.camera.frames import Dark, Frames, dark_of, frames_of, maps_of
from gap_bioimage.camera.moments import Moments, moments_of
from gap_bioimage.camera.numbers import Estimate, Known, Numbers, numbers_of
from gap_bioimage.camera.photon_transfer import LEAST_BLOCKS, Fit, Goodness, Line, Points, fit_line, points_of
from gap_bioimage.config import Camera
from gap_bioimage.errors import NotPhotonCountsError

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from gap_bioimage.camera.moments import Floats

_LEAST_VARIANCE = 0.35  # ADU^2 of dark frames below which rounding is no longer noise
_STRUCTURE = 0.06  # of the gain: the bias of one image on simulated cells, see benchmarks/calibration.py
_SMOOTHED, _SMOOTHED_IMAGE = 0.6, 0.3  # and beyond which nothing can be corrected
_SATURATED = 0.01  # share of the times at which a block is saturated
_SHOWN = 3000


@dataclass(frozen=True)
class Calibration:
    """A camera's numbers with 95 % intervals, and how well they fit.

    Attributes
    ----------
    detector
        For ``camera=`` of training; with maps where dark frames gave them.
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
    cloud: Floats
    correlation: tuple[float, float]
    third: Estimate | None
    warnings: tuple[str, ...]
    counts: bool

    @property
    def unit(self) -> str:
        """What the gain is per."""
        return "effective photon" if self.detector.camera.multiplying else "electron"

    @property
    def message(self) -> str:
        """The result in words, without the warnings."""
        if self.counts:
            return (
                f"{self.images} holds photon counts already: gain {self.gain.value:.3g}, offset "
                f"{self.offset.value:.3g}; no camera is needed"
            )
        return (
            f"{self.images}: gain {self.gain} ADU per {self.unit}, offset {self.offset} ADU, read noise "
            f"{self.read_noise} {self.unit}s (95 % intervals)"
        )

    def save(self, path: Path | str) -> None:
        """Write the camera as yaml, with its maps as TIFF beside it.

        Raises
        ------
        OutputError
            If a file cannot be written.
        """
        write_camera(path, self.detector)

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
        whose finest ripples are. Dims out of ``t z y x``, or a file. The more brightness varies, the better. Frames
        that repeat another one are left out.
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
        If noise does not grow with brightness, is missing or correlated, or most pixels are saturated.
    AxesError
        If images have several channels or too few pixels, or dark frames another size.
    ConfigError
        If a given number is out of range, or given twice.
    """
    check_given(dark, offset, read_noise, saturation)
    frames = frames_of(images, saturation)
    dark_frames = None if dark is None else dark_of(dark, frames)
    frames, moments, correlation = _measured(frames)
    loud = (1 + 2 * correlation.y**2) * (1 + 2 * correlation.x**2) if correlation.found else 1.0
    fit = fit_line(moments, loud=loud, structure=frames.count == 1, anchor=_anchor(dark_frames))
    tells = frames.count > 2 and fit.outliers <= LEFT_OUT  # moving objects skew differences, too
    given = None if offset is None else (offset, 0.0)
    known = Known(
        given if dark_frames is None else dark_frames.offset,
        read_noise,
        # structure of one image has third moments of its own
        multiplying if tells or multiplying is not None else False,
        imposed=not (correlation.found and abs(correlation.largest) >= CORRELATED),
    )
    numbers = numbers_of(fit, known, _third(frames, fit, loud), seed)
    check_gain(frames, fit, numbers)
    if known.offset is not None:
        check_offset(frames, fit, numbers)
    return _result(frames, dark_frames, known, fit, numbers, correlation)


def _measured(frames: Frames) -> tuple[Frames, Moments, Correlation]:
    """Moments of blocks that are not saturated, and the correlation of the noise; refuse what tells no camera."""
    moments = moments_of(frames.values, frames.ceiling, in_time=frames.count > 1)
    full = moments.saturated > _SATURATED
    if np.count_nonzero(~full) < LEAST_BLOCKS:
        raise NotPhotonCountsError(
            f"{np.mean(full):.0%} of the image is saturated, expected images below the camera's ceiling; use a shorter "
            "exposure, or give --saturation if the ceiling is higher"
        )
    # where pixels are saturated noise ends together, too
    correlation = correlation_of(frames.values) if full.mean() <= LEFT_OUT / 2 else Correlation()
    most = abs(correlation.largest) if correlation.found else 0.0
    if max(most, correlation.t) > (_SMOOTHED if frames.count > 1 else _SMOOTHED_IMAGE):
        whose = "neighbouring pixels" if most >= correlation.t else "successive frames"
        raise NotPhotonCountsError(
            f"the noise of {whose} of {frames.name} is correlated by {max(most, correlation.t):.2f}: the images were "
            "smoothed, averaged or resampled, or the whole field moves, and their noise tells nothing of the camera; "
            "use raw images of a field that stands still"
        )
    return replace(frames, saturated=float(full.mean())), moments.at(~full), correlation


def _anchor(dark: Dark | None) -> Moments | None:
    """Moments of dark frames, if their noise is more than rounding."""
    if dark is None or dark.pixel_variance is None or float(dark.pixel_variance.mean()) < _LEAST_VARIANCE:
        return None
    return moments_of(dark.frames.values, in_time=True)


def _third(frames: Frames, fit: Fit, loud: float) -> Points | None:
    """Blocks whose third moments are known; two frames have them in space only."""
    if frames.count > 2:
        return fit.points
    moments = fit.moments
    if frames.count == 2:
        planes = frames.values.reshape(-1, 1, *frames.values.shape[2:])
        moments = moments_of(planes, frames.ceiling, in_time=False)
        moments = moments.at(moments.saturated == 0)
    # a cut that is tight against structure would take the noise's own skewness
    return points_of(moments, fit.line, loud=loud, robust=False) if len(moments.mean) else None


def _result(
    frames: Frames, dark: Dark | None, known: Known, fit: Fit, numbers: Numbers, correlation: Correlation
) -> Calibration:
    gain = numbers.gain
    if frames.count == 1:  # structure that is taken for noise
        low, high = (math.hypot(gain.value - bound, _STRUCTURE * gain.value) for bound in (gain.low, gain.high))
        gain = Estimate(gain.value, max(gain.value - low, 0.0), gain.value + high)
        numbers = replace(numbers, gain=gain)
    whence = "noise" if known.read_noise is None else "given read noise"
    whence = "dark frames" if dark is not None else "given" if known.offset is not None else whence
    found = Calibration(
        Detector(Camera(gain=gain.value, offset=0)),
        gain,
        numbers.offset,
        numbers.read_noise,
        "stack" if frames.count > 1 else "one image",
        whence,
        frames.name,
        frames.count,
        None if dark is None else dark.frames.name,
        0 if dark is None else dark.frames.count,
        fit.goodness,
        Line(gain.value, numbers.intercept),
        np.stack([fit.points.mean, fit.points.variance])[:, :: max(1, len(fit.points.mean) // _SHOWN)],
        (correlation.y, correlation.x) if correlation.found else (0.0, 0.0),
        numbers.third,
        tuple(doubts(frames, dark, fit, numbers, correlation)),
        is_counts(frames, numbers),
    )
    camera = Camera(
        gain=_short(gain.value) or gain.value,
        offset=_short(numbers.offset.value) or 0.0,
        read_noise=_short(numbers.read_noise.value) or 0.0,
        saturation=frames.ceiling if math.isfinite(frames.ceiling) else None,
        multiplying=numbers.multiplying,
        measured=_record(found, correlation),
    )
    return replace(found, detector=Detector(camera, None if dark is None else maps_of(dark, gain.value)))


def _record(found: Calibration, correlation: Correlation) -> dict[str, Any]:
    """What ``camera.yaml`` tells about how it came to be."""
    from gap_bioimage import __version__

    told: dict[str, Any] = {"method": found.method, "images": found.images, "frames": found.frames}
    if found.dark is not None:
        told |= {"dark": found.dark, "dark_frames": found.dark_frames}
    for name in ("gain", "offset", "read_noise"):
        told[f"{name}_95"] = getattr(found, name).to_list()[1:]
    if correlation.found or correlation.t:
        told["correlated"] = [_short(c) for c in (correlation.y, correlation.x, correlation.t)]
    told |= {"chi_square": _short(found.goodness.chi_square), "gap_bioimage": __version__}
    return {**told, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
