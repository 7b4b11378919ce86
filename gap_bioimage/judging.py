"""What an image is: a table of rules over what was measured, the first of which that speaks decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gap_bioimage.camera.noise import Noise
from gap_bioimage.evidence import Evidence, areas, missing_levels, one_bit

Verdict = Literal["photon counts", "counts times k", "camera image", "processed", "not usable"]
Kind = Literal["counts", "one-bit frames", "camera", "processed", "mask", "no image"]

_SURE = 4.0  # standard errors
# variance / mean in the dark, 1 for photons: processing or an offset, the same unless it falls on, a gain
_QUIET, _WEAK, _FELT, _LOUD = 0.5, 0.85, 0.7, 1.3
_SILENT = 0.35  # and where it is bright, which no dead time brings about
_FALLING = 0.93  # and where dead time is named
_OPPOSITE, _ALIKE = -0.1, 0.1  # correlation of neighbours that structure never causes, and that cameras never have
_PROJECTED = 3.0  # square roots of the brightness by which a maximum of several images exceeds their mean
_FITS = 3.0  # chi-square of a camera's line
_COLOURS = 0.5  # share of the noise that channels have in common
_FEW = 20  # pixels that may share a divisor by chance
_AS_SAVED = "use the file as the detector's software saved it"
_TO_PHOTONS = (
    "subtract the camera offset, divide by the gain and round to get photons first, or measure the camera with "
    "`gap-bioimage calibrate` and give its yaml with --camera"
)


@dataclass(frozen=True)
class Finding:
    """What an image is, in a sentence; whether it is refused as photon counts, and what these were multiplied by."""

    verdict: Verdict
    kind: Kind
    message: str
    refused: bool = True
    factor: float = 1.0
    advice: str | None = None


def judge(evidence: Evidence, name: str, saturation: float = 1e-4) -> Finding:
    """Say what an image called ``name`` is; ``saturation`` is the accepted share of pixels at the ceiling."""
    for rule in _RULES:
        if rule is _saturated and evidence.saturated <= saturation:
            continue
        if finding := rule(evidence, name):
            return finding
    return _good(evidence, name)


def processed(text: str, advice: str = _AS_SAVED, refused: bool = True) -> Finding:
    """Return the finding for an image that is no longer as its detector wrote it."""
    return Finding("processed", "processed", f"{text}, expected photon counts; {advice}", refused)


def _camera(text: str, refused: bool = True) -> Finding:
    return Finding("camera image", "camera", f"{text}, expected photon counts; {_TO_PHOTONS}", refused)


def _margin(noise: Noise) -> float:
    """Return how much below its true value a variance may be found by chance; few pixels miss it by factors."""
    return math.exp(-_SURE * noise.dark_error)


def _numbers(evidence: Evidence) -> str:
    found, noise, neighbours = evidence.statistics, evidence.noise, evidence.correlation
    told = f"minimum {found.minimum:g}, mean {found.mean:.4g}"
    if noise is not None:
        told += f", variance/mean {noise.dark:.3g} in the dark and {noise.bright:.3g} where it is bright, of counts 1"
    if neighbours.found:
        told += f", noise of neighbours correlated by {neighbours.y:.2f} and {neighbours.x:.2f}, of raw images 0"
    return f"({told})"


def _unusable(evidence: Evidence, name: str) -> Finding | None:
    """Look for what no detector returns."""
    found = evidence.statistics
    advice = None
    if evidence.dtype.kind not in "biuf":
        text = f"{name} holds {evidence.dtype}, expected whole numbers of photons; save it as integers"
    elif not found.pixels:
        text = f"{name} has no pixels, expected photon counts; export it again"
    elif found.nonfinite:
        text = f"{name} has {found.nonfinite} pixels that are NaN or infinite, expected photon counts; use the raw ones"
    elif found.minimum == found.maximum and (found.maximum == 0 or found.pixels >= _FEW) and found.minimum >= 0:
        text = f"every pixel of {name} is {found.minimum:g}, expected photon counts, which vary; choose another image"
    elif min(evidence.size) < 2 and found.minimum >= 0:
        rows, columns = evidence.size
        advice = "save the values as an image with rows and columns"
        text = f"{name} has {rows} x {columns} pixels, a single row or column, expected an image; {advice}"
    else:
        return None
    return Finding("not usable", "no image", text, refused=advice is None, advice=advice)


def _negative(evidence: Evidence, name: str) -> Finding | None:
    """Look for values below zero: of a camera with a low baseline, or where a background was subtracted."""
    found, noise = evidence.statistics, evidence.noise
    if not found.minimum < 0:
        return None
    text = f"{name} has negative values (minimum {found.minimum:g})"
    if evidence.unit is not None and noise is not None and not evidence.correlation.found and noise.misfit < _FITS:
        # light that was subtracted left its noise, so that no line fits; constant light leaves a camera's floor
        flat = float(np.ptp(noise.mean)) ** 2 < float(noise.variance.mean())
        if flat or noise.slope[0] > _SURE * noise.slope[1]:
            return _camera(f"{text} and the noise of a camera {_numbers(evidence)}")
    return processed(text, "use the counts before any background was subtracted")


def _fractions(evidence: Evidence, name: str) -> Finding | None:
    if evidence.unit is not None:
        return None
    share = evidence.statistics.fractional / evidence.statistics.pixels
    text = f"{name} has fractional values ({share:.0%} of the pixels, mean {evidence.statistics.mean:.3g})"
    return processed(text, f"use the raw counts, or for a camera image {_TO_PHOTONS}")


def _drawn(evidence: Evidence, name: str) -> Finding | None:
    """Look for masks and labels, for one-bit frames, for colours, and for levels that a change of scale has skipped."""
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
    if evidence.colours > _COLOURS:
        return processed(f"the channels of {name} share {evidence.colours:.0%} of their noise, as colours do")
    if evidence.unit == 1 and (missing := missing_levels(evidence.planes)):
        return processed(f"{name} misses {missing} levels between others, as after a change of contrast or scale")
    return None


def _offset(evidence: Evidence, name: str) -> Finding | None:
    """Look for a camera: variance that vanishes at an offset, or is far below the mean though nothing is dark."""
    noise, unit = evidence.noise, evidence.unit or 1.0
    if noise is None:
        return None
    line = noise.intercept[0] < -5 * noise.intercept[1]
    quiet = noise.dark < _QUIET * unit * _margin(noise)
    if not (line or quiet) or evidence.statistics.minimum <= 0:
        return _smoothed(evidence, name) if quiet else None
    # no camera has so small a gain and offset, but the maximum of many counts does
    least = _PROJECTED * math.sqrt(max(float(noise.mean[0]), 0.0))
    projected = _SURE * noise.slope[1] < noise.slope[0] < 1 and noise.offset < least
    if projected or noise.intercept[0] > _SURE * noise.intercept[1]:
        return _smoothed(evidence, name)
    if line and not quiet and evidence.statistics.minimum < noise.offset / 2:
        return None
    text = f"{name} looks like a camera image with an offset {_numbers(evidence)}"
    if evidence.correlation.found and abs(evidence.correlation.largest) > _ALIKE:
        text += ", smoothed or shifted by part of a pixel"
    return _camera(text)


def _smoothed(evidence: Evidence, name: str, refused: bool = True) -> Finding:
    advice = "use the raw counts, and of a stack its planes rather than their maximum or mean"
    return processed(f"{name} looks smoothed, rescaled or projected {_numbers(evidence)}", advice, refused)


def _multiplied(evidence: Evidence, name: str) -> Finding | None:
    """Look for counts that somebody multiplied."""
    found, noise, k = evidence.statistics, evidence.noise, evidence.unit
    if k is None or k == 1 or found.pixels - found.zeros < _FEW:
        return None
    text = f"every value of {name} is a multiple of {k:.6g} {_numbers(evidence)}"
    if noise and noise.smallest / (1 + _SURE * noise.dark_error) > _LOUD * k:
        return processed(f"{text}, with more noise than counts times {k:.6g}")
    return Finding("counts times k", "counts", f"{text}, expected photon counts; divide by {k:.6g}", factor=k)


def _sharpened(evidence: Evidence, name: str) -> Finding | None:
    if not evidence.correlation.found or evidence.correlation.largest > _OPPOSITE:
        return None
    return processed(f"neighbouring pixels of {name} vary against one another {_numbers(evidence)}, as if sharpened")


def _saturated(evidence: Evidence, name: str) -> Finding | None:
    if not evidence.piled_up:
        return None
    advice = "record it again with a shorter exposure, or crop the bright part away"
    text = f"{evidence.saturated:.2%} of the pixels of {name} are at the maximum {evidence.statistics.maximum:g}"
    text += f", saturated, expected counts below the detector's ceiling; {advice}"
    return Finding("not usable", "counts", text, advice=advice)


def _weak(evidence: Evidence, name: str) -> Finding | None:
    """Look for noise a little weaker than that of photons in the dark, where no dead time is felt."""
    noise = evidence.noise
    if noise is None:
        return None
    silent = noise.bright + _SURE * noise.bright_error < _SILENT and not evidence.piled_up
    falls = noise.bright < 0.9 * noise.dark
    if not silent and noise.dark >= min(_FELT if falls else 1, _WEAK * _margin(noise)):
        return None
    return _smoothed(evidence, name, refused=silent or noise.dark < _QUIET)


def _too_noisy(evidence: Evidence, name: str) -> Finding | None:
    noise = evidence.noise
    if noise is None or noise.smallest / (1 + _SURE * noise.dark_error) < _LOUD:
        return None
    return _camera(f"{name} is noisier than photon counts {_numbers(evidence)}, as a camera's image is", refused=False)


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
    *(_unusable, _negative, _fractions, _drawn, _offset, _multiplied),
    *(_sharpened, _saturated, _weak, _too_noisy),
)
