"""Gain, offset and read noise of a camera from its own images."""

import datetime
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gap_bioimage.camera.camera import Detector, share_noise, write_camera
from gap_bioimage.camera.frames import Dark, Frames, Images, dark_of, frames_of
from gap_bioimage.camera.moments import NEAR, SATURATED, Floats, Moments, moments_of
from gap_bioimage.camera.noise import SMOOTHED, Correlation, Curve, correlation_of, curve_of, frame_correlation
from gap_bioimage.camera.photon_transfer import LEAST_BLOCKS, Estimate, Fit, Known, Line, Numbers, fit_line, numbers_of
from gap_bioimage.config import Camera
from gap_bioimage.errors import ConfigError, NotPhotonCountsError

_STRUCTURE = 0.06  # relative bias of a gain from one image of simulated cells, see benchmarks/calibration.py
_NO_LINE = 3.0  # chi-square per degree of freedom above which one image shows structure rather than noise
_CONTRADICTED = 0.3  # relative rise above a line through the known offset above which that offset is wrong
_SAME_CAMERA = "give frames without light or an offset of the same settings, or neither to have the offset estimated"
_SHOWN = 3000  # blocks in the plot
_LEFT_OUT = 0.1  # fraction of the field left out above which a warning is given
_BENT = 0.05  # relative departure from the line above which a warning is given
_MOVING = 0.02  # share of motion in the variance above which a warning is given
_ENOUGH_DARK = 16  # dark frames below which a warning is given


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Gain, offset and read noise of a camera with 95 % intervals, and the goodness of the fit.

    Attributes
    ----------
    detector
        The camera to pass as ``camera=``, with per-pixel maps if there were several dark frames.
    gain, offset, read_noise
        ADU per electron (from the noise), ADU, and electrons RMS including digitisation.
    method
        "stack" (frames of the same field) or "one image".
    offset_from
        "given", "dark frames", "given read noise", or "noise" (third moment and bounds).
    images, dark, frames, dark_frames
        File names without folders, and numbers of frames of the same field.
    goodness, line
        The photon-transfer curve of groups of blocks with the chi-square of a straight line, and the fitted line.
    cloud
        (2, blocks): mean and variance of a few thousand single blocks.
    correlation
        Correlation of the noise of neighbouring pixels along y and x.
    third
        Slope of the third moment over gain^2: 1 for Poisson light, 1.5 after electron multiplication.
    counts
        Whether the images are already photon counts.
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
    goodness: Curve
    line: Line
    cloud: Floats
    correlation: tuple[float, float]
    third: Estimate | None
    warnings: tuple[str, ...]
    counts: bool

    @property
    def unit(self) -> str:
        """The unit of the signal: "electron", or "effective photon" for detectors that multiply electrons."""
        return "effective photon" if self.detector.camera.multiplying else "electron"

    @property
    def message(self) -> str:
        """The result as a sentence, without the warnings."""
        numbers = f"gain {self.gain} ADU per {self.unit}, offset {self.offset} ADU, read noise {self.read_noise}"
        start = f"{self.images} already holds photon counts, no camera is needed" if self.counts else self.images
        return f"{start}: {numbers} {self.unit}s (95 % intervals)"

    def save(self, path: Path | str) -> None:
        """Write the camera as YAML, and its maps as a TIFF next to it.

        Raises
        ------
        OutputError
            If a file cannot be written.
        """
        write_camera(path, self.detector)

    def to_dict(self) -> dict[str, Any]:
        """Return all results for JSON; an estimate is [value, low, high], with None for an infinite bound."""
        plain = ("images", "method", "offset_from", "frames", "dark", "dark_frames", "counts", "message")
        groups = zip(self.goodness.mean, self.goodness.variance, self.goodness.error, strict=True)
        return {name: getattr(self, name) for name in plain} | {
            "camera": self.detector.camera.model_dump(mode="json", exclude={"measured"}),
            **{name: getattr(self, name).to_list() for name in ("gain", "offset", "read_noise")},
            "chi_square": _short(self.goodness.chi_square),
            "degrees_of_freedom": self.goodness.freedom,
            "bend": _short(self.goodness.bend),
            "correlation": [_short(c) for c in self.correlation],
            "third_moment": None if self.third is None else self.third.to_list(),
            "photon_transfer": [[_short(v) for v in group] for group in groups],
            "warnings": list(self.warnings),
        }


def calibrate(
    images: Images,
    *,
    dark: Images | None = None,
    offset: float | None = None,
    read_noise: float | None = None,
    saturation: float | None = None,
    multiplying: bool | None = None,
    seed: int = 0,
    dims: str | None = None,
) -> Calibration:
    """Measure gain, offset and read noise of a camera from its own images.

    Parameters
    ----------
    images
        A file or an array with dims out of ``t z y x``. Frames of the same field (t) are best: their differences are
        noise, whatever the field shows. From one image or a z-stack the noise is taken from the finest spatial detail.
        A wide range of brightness makes the result more precise. Frames that repeat another one are left out.
    dark
        Frames without light, (t, y, x), of the same size as the images. They give the offset and, from two frames on,
        the read noise and maps of both.
    offset
        ADU without light, if known; otherwise it is estimated from the third moment of the noise.
    read_noise
        Electrons RMS including digitisation, if known from the data sheet; the offset follows from it.
    saturation
        ADU at which pixels saturate; by default the maximum, if pixels pile up there.
    multiplying
        Whether the detector multiplies electrons (EMCCD, photomultiplier); by default the third moment decides.
    seed
        Seed of the bootstrap that gives the intervals.
    dims
        Axes of plain arrays, such as "tyx", and of files that do not name their axes.

    Returns
    -------
    Calibration

    Raises
    ------
    NotPhotonCountsError
        If the noise does not grow with brightness, is missing or correlated, or if most pixels are saturated.
    AxesError
        If the images have several channels or too few pixels, or the dark frames have a different size.
    ConfigError
        If a number is out of range, or several of ``dark``, ``offset`` and ``read_noise`` are given.
    """
    if sum(one is not None for one in (dark, offset, read_noise)) > 1:
        raise ConfigError("several of dark frames, offset and read noise were given; give the dark frames alone")
    _check_values({"offset": offset, "read noise": read_noise, "saturation": saturation})
    frames = frames_of(images, saturation, dims)
    data = _measure(frames, None if dark is None else dark_of(dark, frames, dims))
    known = _known(data, offset, read_noise, multiplying)
    numbers = numbers_of(data.fit, known, seed)
    _check_numbers(data, numbers, known)
    if frames.count == 1:
        numbers = replace(numbers, gain=_with_structure(numbers.gain))
    return _result(data, numbers, _curve(data, numbers, known), known)


def _check_values(given: Mapping[str, float | None]) -> None:
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and (value >= 0 or name == "offset")):
            raise ConfigError(f"the {name} is {value}, expected a finite number, at least 0 except for the offset")


@dataclass(frozen=True)
class _Measurements:
    frames: Frames
    dark: Dark | None
    moments: Moments  # of blocks that are not saturated
    saturated: float  # fraction of saturated blocks
    correlation: Correlation  # between neighbouring pixels
    between_frames: float  # correlation between successive frames
    fit: Fit


def _measure(frames: Frames, dark: Dark | None) -> _Measurements:
    """Measure the noise in unsaturated blocks; refuse saturated images and strongly correlated noise."""
    pattern = None if dark is None else dark.pattern
    moments = moments_of(frames.values, (frames.floor, frames.ceiling), in_time=frames.count > 1, pattern=pattern)
    full = moments.saturated > SATURATED
    if np.count_nonzero(~full) < LEAST_BLOCKS:
        hint = "use a shorter exposure, or give saturation=65535 if the camera saturates there"
        raise NotPhotonCountsError(f"{np.mean(full):.0%} of the image is saturated or cleared, expected less; {hint}")
    moments = moments.at(~full)
    correlation, between_frames = correlation_of(moments), frame_correlation(frames.values)
    if (shared := abs(correlation.largest) + between_frames) > SMOOTHED[frames.count > 1]:
        problem = f"the noise of neighbouring pixels or successive frames of {frames.name} is correlated ({shared:.2f})"
        cause = "as after smoothing, averaging or resampling, or if the whole field moves"
        raise NotPhotonCountsError(f"{problem}, {cause}; use raw images of a field that does not move")
    fit = fit_line(moments if dark is None else dark.added_to(moments))
    return _Measurements(frames, dark, moments, float(full.mean()), correlation, between_frames, fit)


def _known(data: _Measurements, offset: float | None, read_noise: float | None, multiplying: bool | None) -> Known:
    if multiplying is None and (data.frames.count < 3 or data.fit.outlier_fraction > _LEFT_OUT):
        multiplying = False  # fine structure of an image and moving objects have third moments of their own
    known_offset = data.dark.offset if data.dark is not None else None if offset is None else (offset, 0.0)
    return Known(known_offset, read_noise, multiplying, raw=not share_noise(data.correlation.largest))


def _check_numbers(data: _Measurements, numbers: Numbers, known: Known) -> None:
    """Refuse an offset or read noise that contradicts the images, and images that do not determine the gain."""
    name, blocks, gain = data.frames.name, data.moments, numbers.gain
    found = math.isfinite(gain.value + gain.high)
    if known.offset is not None or (found and known.read_noise is not None):
        offset, error = numbers.offset.value, np.sqrt(np.maximum(blocks.variance, 0) / blocks.samples)
        margin = gain.value / 2 if found else 0.5
        darker = np.mean(blocks.mean + 5 * error < offset - margin) > 0.02
        if darker or (found and numbers.intercept + gain.value * offset < -0.2 * float(np.median(blocks.variance))):
            wrong = "the offset" if known.offset is not None else "the offset that belongs to this read noise"
            wrong = wrong if data.dark is None else f"{data.dark.frames.name}, which is not dark"
            problem = f"parts of {name} are darker than" if darker else f"the variance of {name} would be negative at"
            raise NotPhotonCountsError(f"{problem} {wrong} ({offset:.4g} ADU); {_SAME_CAMERA}")
    if not found:
        problem = f"the brightness of {name} varies too little, or its noise does not grow with it, to find the gain"
        hint = "use raw images with dark and bright parts, or more frames of the same field"
        add = ", or add dark frames" if known.offset is None and known.read_noise is None else ""
        raise NotPhotonCountsError(f"{problem}; {hint}{add}")


def _with_structure(gain: Estimate) -> Estimate:
    """Widen the interval of a gain from one image, some of whose structure passes for noise."""
    below, above = (math.hypot(gain.value - bound, _STRUCTURE * gain.value) for bound in (gain.low, gain.high))
    return Estimate(gain.value, max(gain.value - below, 0.0), gain.value + above)


def _curve(data: _Measurements, numbers: Numbers, known: Known) -> Curve:
    """Return the noise against the brightness; refuse images in which it is not that of photons."""
    frames = data.frames
    unlit = numbers.offset.value if frames.count > 1 else -math.inf  # structure biases the offset of one image
    curve = curve_of(data.fit.inliers, numbers.gain.value, unlit)
    if curve is None:
        raise NotPhotonCountsError(f"{frames.name} has hardly any photons, expected bright parts; expose it longer")
    if frames.count == 1 and curve.chi_square > _NO_LINE:
        raise NotPhotonCountsError(f"{frames.name} has sharp structure like noise; use frames of the same field")
    if known.offset is not None and curve.bend > max(_CONTRADICTED, 5 * curve.bend_error):
        rise = f"rises {curve.bend:.0%} above a line from the offset of {numbers.offset.value:.4g} ADU"
        raise NotPhotonCountsError(f"the noise of {frames.name} {rise}; {_SAME_CAMERA}")
    return curve


def _result(data: _Measurements, numbers: Numbers, curve: Curve, known: Known) -> Calibration:
    from gap_bioimage import __version__

    frames, dark, gain, offset, blocks = data.frames, data.dark, numbers.gain, numbers.offset, data.fit.inliers
    estimated = "noise" if known.read_noise is None else "given read noise"
    method = "stack" if frames.count > 1 else "one image"
    source: dict[str, Any] = {"method": method, "images": frames.name, "frames": frames.count}
    source |= {"dark": dark and dark.frames.name, "dark_frames": (dark and dark.frames.count) or 0}
    measured = {name: value for name, value in source.items() if value}
    measured |= {f"{name}_95": getattr(numbers, name).to_list()[1:] for name in ("gain", "offset", "read_noise")}
    correlation = data.correlation
    if correlation.found or data.between_frames:
        measured["correlated"] = [_short(c) for c in (correlation.y, correlation.x, data.between_frames)]
    measured |= {"chi_square": _short(curve.chi_square), "gap_bioimage": __version__}
    camera = Camera(
        gain=_short(gain.value) or gain.value,
        offset=_short(offset.value) or 0.0,
        read_noise=_short(numbers.read_noise.value) or 0.0,
        saturation=frames.ceiling if math.isfinite(frames.ceiling) else None,
        multiplying=numbers.multiplying,
        measured={**measured, "date": datetime.datetime.now(datetime.UTC).date().isoformat()},
    )
    return Calibration(
        detector=Detector(camera, None if dark is None else dark.maps(gain.value)),
        gain=gain,
        offset=offset,
        read_noise=numbers.read_noise,
        offset_from=estimated if known.offset is None else "given" if dark is None else "dark frames",
        goodness=curve,
        line=Line(gain.value, numbers.intercept),
        cloud=np.stack([blocks.mean, blocks.variance])[:, :: max(1, len(blocks.mean) // _SHOWN)],
        correlation=(correlation.y, correlation.x) if correlation.found else (0.0, 0.0),
        third=numbers.third,
        warnings=tuple(_warnings(data, numbers, curve)),
        # whole numbers with gain 1, no offset and no read noise, within the errors
        counts=frames.may_be_counts
        and (abs(gain.value - 1) < 0.07 or gain.low <= 1 <= gain.high < 1.5)
        and min(abs(offset.value), max(offset.low, -offset.high)) < 0.35
        and numbers.read_noise.low < 0.35
        and not (numbers.multiplying or correlation.found),
        **source,
    )


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _moving(data: _Measurements) -> float:
    """Return by how much noise that extends over many pixels raises the variance, a fraction; 0 if insignificant."""
    blocks, pixels = data.fit.inliers, float(data.fit.inliers.samples.sum())
    excess = float(blocks.smooth.sum() / blocks.variance.sum()) - 1
    least = max(_MOVING * (NEAR - 1), 5 * (2 * NEAR * float(blocks.inflation.mean()) / pixels) ** 0.5)
    return excess / max(NEAR - 1 - excess, 1) if excess > least and data.frames.count > 2 else 0.0


def _warnings(data: _Measurements, numbers: Numbers, curve: Curve) -> Iterator[str]:
    fit, dark, offset = data.fit, data.dark, numbers.offset
    correlated = share_noise(data.correlation.largest, data.between_frames)
    if data.frames.left_out:
        yield data.frames.left_out
    if data.frames.processed and not correlated:
        yield data.frames.processed
    if correlated:
        where = f"{data.correlation.y:.2f} along y, {data.correlation.x:.2f} along x, {data.between_frames:.2f} in time"
        yield f"the noise is correlated ({where}), as if smoothed or resampled: the gain is too small; use raw images"
    if bends := curve.bends(_BENT):
        change = "rises above" if bends > 0 else "falls short of"
        cause = "flicker, motion or sharp structure" if bends > 0 else "saturation or dead time"
        cause += " or dark frames of other settings" if dark is not None else ""
        yield f"the variance {change} the line by {abs(curve.bend):.0%} in bright parts ({cause}): the gain is wrong"
    elif not correlated and (moving := _moving(data)):  # correlated noise looks the same
        yield f"the field moves or flickers, which passes for noise: the gain is about {moving:.0%} too large"
    if fit.outlier_fraction > _LEFT_OUT:
        yield f"{fit.outlier_fraction:.0%} of the field moves or flickers and was left out (or give multiplying=True)"
    if data.saturated > _LEFT_OUT:
        yield f"{data.saturated:.0%} of the field is saturated, or was cleared, and was left out"
    if fit.clipped:
        yield "dark pixels are clipped at zero, and the gain may be too large; use raw images, or raise the offset"
    if fit.coarse:
        yield "the noise is hardly more than one ADU and distorted by rounding; use more light or a higher camera gain"
    if data.frames.count == 1:
        yield "the result rests on one image, whose fine structure passes for noise; use frames of the same field"
    if offset.low == offset.high and numbers.read_noise.high == 0:
        yield f"the variance would be negative at the offset of {offset.value:g} ADU, which may be too low"
    if numbers.undecided and data.frames.count > 2 and not correlated:
        yield "the noise does not show whether electrons are multiplied; the offset's interval allows for both"
    if dark is not None and dark.frames.count < _ENOUGH_DARK:
        yield f"{dark.frames.count} dark frames give a poor read noise or none; record {_ENOUGH_DARK} or more"
