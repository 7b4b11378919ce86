"""Gain, offset and read noise of a camera from its own images."""

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gap_bioimage.camera.camera import CORRELATED, Detector, write_camera
from gap_bioimage.camera.frames import Dark, Frames, Images, dark_of, frames_of
from gap_bioimage.camera.moments import Floats, Moments, moments_of
from gap_bioimage.camera.noise import SMOOTHED, Correlation, Curve, correlation_of, curve_of, frame_correlation
from gap_bioimage.camera.photon_transfer import LEAST_BLOCKS, Estimate, Fit, Known, Line, Numbers, fit_line, numbers_of
from gap_bioimage.config import Camera
from gap_bioimage.errors import ConfigError, NotPhotonCountsError

_STRUCTURE = 0.06  # relative bias of a gain from one image of simulated cells, see benchmarks/calibration.py
_NO_LINE = 3.0  # chi-square per degree of freedom above which one image shows structure rather than noise
_CONTRADICTED = 0.3  # relative rise above a line through the known offset above which that offset is wrong
_OF_THE_SAME = "give dark frames or an offset of the same camera and settings, or leave them out to have it estimated"
_SATURATED = 0.01  # fraction of saturated values in a block above which the block is left out
_SHOWN = 3000  # blocks in the plot
_LEFT_OUT = 0.1  # fraction of the field left out above which a warning is given
_BENT, _MISFIT = 0.05, 2.0  # relative departure from the line, and its chi-square, above which a warning is given
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
    images, dark
        File names without folders.
    frames, dark_frames
        Number of frames of the same field, and of dark frames.
    goodness
        The photon-transfer curve of groups of blocks, with the chi-square of a straight line.
    line
        The fitted line.
    cloud
        (2, blocks): mean and variance of a few thousand single blocks.
    correlation
        Correlation of the noise of neighbouring pixels along y and x.
    third
        Slope of the third moment over gain^2: 1 for Poisson light, 1.5 after electron multiplication.
    warnings
        Full sentences.
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
        told = f"gain {self.gain} ADU per {self.unit}, offset {self.offset} ADU, read noise {self.read_noise}"
        if self.counts:
            return f"{self.images} holds photon counts already, no camera is needed: {told}"
        return f"{self.images}: {told} {self.unit}s (95 % intervals)"

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
        same = ("images", "method", "offset_from", "frames", "dark", "dark_frames", "counts", "message")
        groups = zip(self.goodness.mean, self.goodness.variance, self.goodness.error, strict=True)
        return {name: getattr(self, name) for name in same} | {
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
        If a number is out of range, or if more than one of ``dark``, ``offset`` and ``read_noise`` is given.
    """
    if sum(one is not None for one in (dark, offset, read_noise)) > 1:
        raise ConfigError("of dark frames, offset and read noise several were given; give the dark frames alone")
    for name, value in {"offset": offset, "read noise": read_noise, "saturation": saturation}.items():
        if value is not None and not (math.isfinite(value) and (value >= 0 or name == "offset")):
            raise ConfigError(f"the {name} is {value}, expected a finite number, and from 0 up but for the offset")
    frames = frames_of(images, saturation, dims)
    dark_frames = None if dark is None else dark_of(dark, frames, dims)
    it = _measured(frames, dark_frames)
    tells = frames.count > 2 and it.fit.outliers <= _LEFT_OUT  # moving objects skew the differences as well
    known = Known(
        dark_frames.offset if dark_frames is not None else None if offset is None else (offset, 0.0),
        read_noise,
        # the structure of a single image has a third moment of its own
        multiplying if tells or multiplying is not None else False,
        imposed=abs(it.correlation.largest) < CORRELATED,
    )
    numbers = numbers_of(it.fit, known, seed)
    _check_numbers(frames.name, it.moments, numbers, known)
    if frames.count == 1:  # some of its structure passes for noise
        gain = numbers.gain
        below, above = (math.hypot(gain.value - bound, _STRUCTURE * gain.value) for bound in (gain.low, gain.high))
        numbers = replace(numbers, gain=Estimate(gain.value, max(gain.value - below, 0.0), gain.value + above))
    unlit = numbers.offset.value if frames.count > 1 else -math.inf  # structure biases the offset of one image
    curve = curve_of(it.fit.kept, numbers.gain.value, unlit)
    if curve is None:
        raise NotPhotonCountsError(f"{frames.name} holds hardly any photons, expected bright parts; expose it longer")
    if frames.count == 1 and curve.chi_square > _NO_LINE:
        raise NotPhotonCountsError(f"{frames.name} has sharp structure like noise; use frames of the same field")
    if known.offset is not None and curve.bend > max(_CONTRADICTED, 5 * curve.bend_error):
        told = f"rises {curve.bend:.0%} above a line that begins at the offset of {numbers.offset.value:.4g} ADU"
        raise NotPhotonCountsError(f"the noise of {frames.name} {told}; {_OF_THE_SAME}")
    return _result(it, numbers, curve, known)


@dataclass(frozen=True)
class _Measured:
    """The input of a calibration and the noise measured on it."""

    frames: Frames
    dark: Dark | None
    moments: Moments  # of blocks that are not saturated
    saturated: float  # fraction of saturated blocks
    correlation: Correlation  # between neighbouring pixels
    between_frames: float  # correlation between successive frames
    fit: Fit

    @property
    def shared(self) -> float:
        """The largest correlation of the noise, between neighbouring pixels or successive frames."""
        return max(abs(self.correlation.largest), self.between_frames)


def _measured(frames: Frames, dark: Dark | None) -> _Measured:
    """Measure the noise in unsaturated blocks; refuse saturated images and strongly correlated noise."""
    pattern = None if dark is None else dark.pattern
    moments = moments_of(frames.values, frames.ceiling, in_time=frames.count > 1, pattern=pattern)
    full = moments.saturated > _SATURATED
    if np.count_nonzero(~full) < LEAST_BLOCKS:
        hint = "use a shorter exposure, or give --saturation if the camera's ceiling is higher"
        raise NotPhotonCountsError(f"{np.mean(full):.0%} of the image is saturated, expected less; {hint}")
    moments = moments.at(~full)
    correlation, between_frames = correlation_of(moments), frame_correlation(frames.values)
    if (shared := abs(correlation.largest) + between_frames) > SMOOTHED[frames.count > 1]:
        told = f"neighbouring pixels or successive frames of {frames.name} share noise ({shared:.2f})"
        cause = "as where images were smoothed, averaged or resampled, or the whole field moves"
        raise NotPhotonCountsError(f"{told}, {cause}; use raw images of a field that stands still")
    fit = fit_line(moments if dark is None else dark.added_to(moments))
    return _Measured(frames, dark, moments, float(full.mean()), correlation, between_frames, fit)


def _check_numbers(name: str, blocks: Moments, numbers: Numbers, known: Known) -> None:
    """Refuse images that do not determine the gain, and a known offset that contradicts the images."""
    gain, offset = numbers.gain, numbers.offset.value
    more = "use images with dark and bright parts, more frames of the same field, or add dark frames (--dark)"
    if not math.isfinite(gain.value + gain.high):
        told = f"the brightness of {name} varies too little, or its noise does not grow with it, to find the gain"
        raise NotPhotonCountsError(f"{told}; {more}, all of them raw")
    if known.offset is None:
        return
    error = np.sqrt(np.maximum(blocks.variance, 0) / blocks.samples)
    darker = float(np.mean(blocks.mean + 5 * error < offset - gain.value / 2)) > 0.02
    if darker or numbers.intercept + gain.value * offset < -0.2 * float(np.median(blocks.variance)):
        told = "parts of the field are darker than" if darker else "the variance would be negative at"
        raise NotPhotonCountsError(f"{name}: {told} the offset of {offset:.4g} ADU; {_OF_THE_SAME}")


def _result(it: _Measured, numbers: Numbers, curve: Curve, known: Known) -> Calibration:
    from gap_bioimage import __version__

    frames, dark, gain, offset, kept = it.frames, it.dark, numbers.gain, numbers.offset, it.fit.kept
    given = "noise" if known.read_noise is None else "given read noise"
    told: dict[str, Any] = {"method": "stack" if frames.count > 1 else "one image", "images": frames.name}
    told |= {"frames": frames.count, "dark": None if dark is None else dark.frames.name}
    told |= {"dark_frames": 0 if dark is None else dark.frames.count}
    measured = {name: value for name, value in told.items() if value}
    measured |= {f"{name}_95": getattr(numbers, name).to_list()[1:] for name in ("gain", "offset", "read_noise")}
    if it.correlation.found or it.between_frames:
        measured["correlated"] = [_short(c) for c in (it.correlation.y, it.correlation.x, it.between_frames)]
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
        offset_from=given if known.offset is None else "given" if dark is None else "dark frames",
        goodness=curve,
        line=Line(gain.value, numbers.intercept),
        cloud=np.stack([kept.mean, kept.variance])[:, :: max(1, len(kept.mean) // _SHOWN)],
        correlation=(it.correlation.y, it.correlation.x) if it.correlation.found else (0.0, 0.0),
        third=numbers.third,
        warnings=tuple(_doubts(it, numbers, curve)),
        # whole numbers with gain 1, no offset and no read noise, within the errors
        counts=frames.may_be_counts
        and (abs(gain.value - 1) < 0.07 or gain.low <= 1 <= gain.high < 1.5)
        and min(abs(offset.value), max(offset.low, -offset.high)) < 0.35
        and numbers.read_noise.low < 0.35
        and not (numbers.multiplying or it.correlation.found),
        **told,
    )


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _doubts(it: _Measured, numbers: Numbers, curve: Curve) -> Iterator[str]:
    """Yield warnings: about the images first, then in order of severity."""
    if it.frames.left_out:
        yield it.frames.left_out
    if it.shared >= CORRELATED:
        shared = f"{it.correlation.y:.2f} along y, {it.correlation.x:.2f} along x, {it.between_frames:.2f} in time"
        yield f"the noise is correlated ({shared}): smoothed or resampled, and the gain is too small; use raw images"
    if bends := curve.bends(_BENT):
        told = "rises above" if bends > 0 else "falls short of"
        cause = "flicker, motion or sharp structure" if bends > 0 else "saturation or dead time"
        cause += " or dark frames of other settings" if it.dark is not None else ""
        yield f"the variance {told} the line by {abs(curve.bend):.0%} in bright parts ({cause}), and the gain is off"
    elif curve.chi_square > _MISFIT and it.shared < CORRELATED:
        yield f"the line fits worse than chance explains (chi-square {curve.chi_square:.3g} per degree)"
    if it.fit.outliers > _LEFT_OUT:
        yield f"{it.fit.outliers:.0%} of the field moves or flickers and was left out (or say --multiplying)"
    if it.saturated > _LEFT_OUT:
        yield f"{it.saturated:.0%} of the field is saturated and was left out"
    if it.fit.clipped:
        yield "dark pixels are clipped at zero, and the gain may be too large; use raw images, or raise the offset"
    if it.fit.coarse:
        yield "the noise is hardly more than one ADU, which distorts it; use brighter images or a higher camera gain"
    if it.frames.count == 1:
        yield "this rests on one image, in which fine structure passes for noise; a stack of the same field is better"
    offset = numbers.offset
    if offset.low == offset.high and numbers.read_noise.high == 0:
        yield f"the variance would be negative at the offset of {offset.value:g} ADU, which may be too low"
    if numbers.undecided and it.frames.count > 2 and it.shared < CORRELATED:
        yield "the noise does not tell whether electrons are multiplied; the offset's interval allows for both"
    if it.dark is not None and it.dark.frames.count < _ENOUGH_DARK:
        yield f"{it.dark.frames.count} dark frames tell read noise roughly or not at all; record {_ENOUGH_DARK} or more"
