"""From what was measured on an image to a verdict, and a sentence that says why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gap_bioimage.evidence import areas, jpeg_edge, missing_levels, one_bit, shared_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.camera.noise import Noise
    from gap_bioimage.evidence import Evidence

Verdict = Literal["photon counts", "counts times k", "camera image", "processed", "not usable"]

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
_FEW = 20  # pixels that may share a divisor by chance
_JPEG_EDGE, _COLOURS = 1.05, 0.5
_TO_PHOTONS = (
    "subtract the camera offset, divide by the gain and round to get photons first, or measure the camera with "
    "`gap-bioimage calibrate` and give its yaml with --camera"
)


@dataclass(frozen=True)
class Finding:
    """What an image is, in a sentence; whether it is refused as photon counts, and what these were multiplied by."""

    verdict: Verdict
    kind: str
    message: str
    refused: bool = True
    factor: float = 1.0
    advice: str | None = None


def judge(evidence: Evidence, name: str, saturation: float = 1e-4) -> Finding:
    """Say what an image called ``name`` is; ``saturation`` is the accepted share of pixels at the ceiling."""
    for rule in _RULES:
        finding = rule(evidence, name)
        if finding is not None and not (finding.kind == "saturated" and _saturated_share(evidence) <= saturation):
            return finding
    return _good(evidence, name)


def _margin(noise: Noise) -> float:
    """Return how much below its true value a variance may be found by chance; few pixels miss it by factors."""
    return math.exp(-_SURE * noise.dark_error)


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
    elif found.minimum == found.maximum and found.pixels >= _FEW and found.minimum > 0:
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
    if evidence.whole and noise is not None and not evidence.correlation.found:
        gain, error = noise.slope
        # light that was subtracted left its noise, so that no line fits; one that does not vary leaves a camera's floor
        flat = float(np.ptp(noise.mean)) ** 2 < float(noise.variance.mean())
        if (noise.misfit < _FITS and (flat or gain > _SURE * error)) or gain > max(_STEEP, _SURE * error):
            told += f" and the noise of a camera (variance {gain:.2g} times what exceeds {noise.offset:.3g})"
            return Finding("camera image", "camera", f"{told}, expected photon counts; {_TO_PHOTONS}")
    told += ", expected photon counts from 0 up; use the counts before any background was subtracted"
    return Finding("processed", "background subtracted", told)


def _fractions(evidence: Evidence, name: str) -> Finding | None:
    found, noise = evidence.statistics, evidence.noise
    if evidence.whole:
        return None
    step = evidence.step
    if step is not None and noise is not None and _QUIET < noise.dark / step and noise.smallest / step < _LOUD:
        return Finding(
            "counts times k",
            "multiplied counts",
            f"every value of {name} is a multiple of {step:.6g} (mean {found.mean:.4g}, variance/mean "
            f"{noise.dark:.3g}), expected photon counts; divide by {step:.6g} and round",
            factor=step,
        )
    return Finding(
        "processed",
        "fractions",
        f"{name} has fractional values ({found.fractional / found.pixels:.0%} of the pixels, mean {found.mean:.3g}), "
        f"expected whole numbers of photons; use the raw counts, or for a camera image {_TO_PHOTONS}",
    )


def _drawn(evidence: Evidence, name: str) -> Finding | None:
    """Look for masks and labels, and for one-bit frames."""
    if not evidence.planes:
        return None
    one = evidence.statistics.maximum
    if areas(evidence.planes):
        advice = "name the files that hold images, rather than their folder, to leave the mask out"
        text = f"{name} holds a mask or labels, {evidence.statistics.minimum:g} to {one:g}, whose pixels repeat their"
        return Finding("not usable", "mask", f"{text} neighbours as noise never does; {advice}", advice=advice)
    if not one_bit(evidence.planes):
        return None
    return Finding(
        "photon counts",
        "one-bit frames",
        f"{name} holds one-bit frames, 0 and {one:g}: no pixel has more than one photon, although "
        f"{evidence.statistics.mean / one:.3g} per pixel would give some more; sum frames with --sum-frames",
        refused=one != 1,
    )


def _repainted(evidence: Evidence, name: str) -> Finding | None:
    """Look for what programs for pictures do: colours, JPEG, contrast."""
    found, noise = evidence.statistics, evidence.noise
    if not evidence.planes:
        return None
    missing, empty = missing_levels(evidence.planes)
    # a camera with little read noise has combs too, but not empty ones
    comb = missing and found.lattice <= 1 and not (noise and noise.smallest > _LOUD and empty < missing / 2)
    alike, edge = shared_noise(evidence.channels), jpeg_edge(evidence.planes)
    if alike > _COLOURS:
        kind, told = "rgb", f"the channels of {name} share {alike:.0%} of their noise, as colours do"
    elif edge > _JPEG_EDGE:
        kind = "jpeg-compressed"
        told = f"{name} shows the 8 x 8 blocks of JPEG (steps {edge:.2f} times as large at their borders)"
    elif comb and evidence.correlation.found and found.minimum > 0 and _offset(evidence, name):
        return None  # a camera's image that was resampled
    elif comb:
        kind = "rescaled"
        told = f"{name} misses {missing} levels between others, as after a change of contrast or scale"
    else:
        return None
    told += ", expected photon counts; use the file as the detector's software saved it"
    return Finding("processed", kind, told)


def _multiplied(evidence: Evidence, name: str) -> Finding | None:
    """Look for counts that somebody multiplied."""
    found, noise, k = evidence.statistics, evidence.noise, evidence.statistics.lattice
    if k <= 1 or found.pixels - found.zeros < _FEW:
        return None
    every = f"every value of {name} is a multiple of {k}"
    if noise and noise.dark < _QUIET * k * _margin(noise):
        return _quiet(evidence, name, k)
    if noise and noise.smallest / (1 + _SURE * noise.dark_error) > _LOUD * k:
        return Finding(
            "processed",
            "rescaled",
            f"{every}, and its variance/mean {noise.smallest:.3g} fits neither photon counts nor counts times {k}; use "
            "the raw counts before any rescaling",
        )
    numbers = f"mean {found.mean:.4g}, variance/mean {noise.dark if noise else 1.0:.3g}"
    text = f"{every} ({numbers}), expected photon counts; divide by {k}"
    return Finding("counts times k", "multiplied counts", text, factor=k)


def _quiet(evidence: Evidence, name: str, k: int = 1) -> Finding | None:
    """Look for noise much weaker than that of photons."""
    noise = evidence.noise
    if noise is None or noise.dark >= _QUIET * k * _margin(noise):
        return None
    numbers = f"{evidence.levels}, variance/mean {noise.dark:.2g} in the dark"
    if evidence.statistics.minimum <= 0:
        return _smoothed(name, numbers)
    return _camera(evidence, name, numbers)


def _smoothed(name: str, numbers: str) -> Finding:
    text = (
        f"{name} looks smoothed, rescaled or projected ({numbers}), expected photon counts, whose variance/mean is 1; "
        "use the raw counts, and of a stack its planes rather than their maximum or mean"
    )
    return Finding("processed", "smoothed or interpolated", text)


def _camera(evidence: Evidence, name: str, numbers: str) -> Finding:
    noise = evidence.noise
    if noise is not None and _SURE * noise.slope[1] < noise.slope[0] < 1:
        # no camera has so small a gain and offset, but the maximum of many counts does
        if noise.offset < max(_LEAST_OFFSET, _PROJECTED * math.sqrt(max(float(noise.mean[0]), 0.0))):
            return _smoothed(name, numbers)
    told = f"{name} looks like a camera image with an offset ({numbers}), expected photon counts"
    if not (evidence.correlation.found and abs(evidence.correlation.largest) > _CAMERA_ALIKE):
        return Finding("camera image", "camera", f"{told}, whose variance/mean is 1; {_TO_PHOTONS}")
    told += (
        f", and neighbouring pixels share noise ({evidence.neighbours}, expected 0), as after a shift by part of a "
        "pixel or smoothing: look for the file as the camera wrote it"
    )
    return Finding("camera image", "resampled camera", f"{told}; {_TO_PHOTONS}")


def _shared_noise(evidence: Evidence, name: str) -> Finding | None:
    """Look for pixels that were made from several: photons then vary less, and neighbours vary together."""
    noise, most = evidence.noise, evidence.correlation.largest
    if noise is None or not evidence.correlation.found:
        return None
    numbers = f"{evidence.neighbours}, variance/mean {noise.dark:.2g} in the dark"
    if most < _OPPOSITE:
        return Finding(
            "processed",
            "sharpened",
            f"neighbouring pixels of {name} vary against one another ({numbers}), as after sharpening or "
            "deconvolution, expected independent photon counts; use the raw counts",
        )
    if most < 0 or noise.dark >= min(_BELOW, _margin(noise)):
        return None
    return Finding(
        "processed",
        "smoothed or interpolated",
        f"neighbouring pixels of {name} share noise ({numbers}), as after smoothing, a shift by part of a pixel or a "
        "change of size, expected independent photon counts; use the raw counts",
    )


def _offset(evidence: Evidence, name: str) -> Finding | None:
    """Look for a line of variance against mean that starts at an offset, however bright the image."""
    noise, lowest = evidence.noise, evidence.statistics.minimum
    if noise is None or not noise.intercept[0] < -5 * noise.intercept[1]:
        return None
    if not noise.offset > _LEAST_OFFSET or lowest < _CLOSE * noise.offset:
        return None
    numbers = f"{evidence.levels}, variance {noise.slope[0]:.2g} times what exceeds {noise.offset:.3g}"
    return _camera(evidence, name, numbers)


def _saturated_share(evidence: Evidence) -> float:
    return evidence.statistics.at_maximum / max(evidence.statistics.pixels, 1)


def _saturated(evidence: Evidence, name: str) -> Finding | None:
    if not evidence.piled_up:
        return None
    return Finding(
        "not usable",
        "saturated",
        f"{name} is saturated ({_saturated_share(evidence):.2%} of the pixels at the maximum "
        f"{evidence.statistics.maximum:g}), expected counts below the detector's ceiling; use a shorter exposure or "
        "crop the bright part away",
        advice="record it again with a shorter exposure, or crop the bright part away",
    )


def _weak(evidence: Evidence, name: str) -> Finding | None:
    """Look for noise a little weaker than that of photons in the dark, where no dead time is felt."""
    noise = evidence.noise
    if noise is None:
        return None
    silent = noise.bright + _SURE * noise.bright_error < _DEAD and not evidence.piled_up
    if noise.dark >= _WEAK * _margin(noise) and not silent:
        return None
    numbers = f"{evidence.levels}, variance/mean {noise.dark:.2g} in the dark and {noise.bright:.2g} where it is bright"
    rise = noise.bright / noise.dark
    risen = rise > _RISING and noise.offset > _LEAST_OFFSET
    if (risen or noise.dark < _QUIET) and evidence.statistics.minimum > 0:
        return _camera(evidence, name, numbers)
    if rise < 1 / _RISING and noise.dark >= _FELT and not silent:  # weaker still where it is bright: dead time
        return None
    return Finding(
        "processed",
        "rescaled",
        f"{name} has less noise than photon counts ({numbers}, expected 1), as after rescaling, smoothing, projection "
        "or with an offset; use the raw counts, or measure the camera with `gap-bioimage calibrate`",
        refused=silent or noise.dark < _QUIET,
    )


def _too_noisy(evidence: Evidence, name: str) -> Finding | None:
    noise = evidence.noise
    if noise is None or noise.smallest / (1 + _SURE * noise.dark_error) < _LOUD:
        return None
    if np.quantile(noise.fano, 0.25) < _STRUCTURE:
        return None
    numbers = f"{evidence.levels}, variance/mean {noise.smallest:.3g} where it is smoothest, expected 1"
    return Finding(
        "camera image",
        "camera",
        f"{name} is noisier than photon counts ({numbers}), so the network would copy noise; unless these are counts, "
        f"{_TO_PHOTONS}",
        refused=False,
    )


def _good(evidence: Evidence, name: str) -> Finding:
    noise = evidence.noise
    text = f"{name} holds photon counts, {evidence.statistics.mean:.3g} per pixel"
    if noise is not None:
        text += f", with variance/mean {noise.dark:.2f} in the dark and {noise.bright:.2f} where it is bright"
        if noise.bright < min(_FALLING, 1 - _SURE * noise.bright_error / max(noise.bright, 1e-9)):
            text += " (the detector's dead time: bright pixels count too few photons)"
    if len(evidence.hot):
        places = np.unique(evidence.hot[:, -2:], axis=0)  # the same in many frames
        named = ", ".join(f"y {y} x {x}" for y, x in places[:3]) + (", ..." if len(places) > 3 else "")
        who, hold = ("1 hot pixel", "holds") if len(places) == 1 else (f"{len(places)} hot pixels", "hold")
        text += f"; {who} ({named}) {hold} more than photons can bring beside such dark neighbours"
    return Finding("photon counts", "counts", text, refused=False)


_RULES: tuple[Callable[[Evidence, str], Finding | None], ...] = (
    _unusable,
    _negative,
    _fractions,
    _drawn,
    _repainted,
    _multiplied,
    _quiet,
    _shared_noise,
    _offset,
    _saturated,
    _weak,
    _too_noisy,
)
