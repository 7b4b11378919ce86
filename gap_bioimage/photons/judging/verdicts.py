"""From what was measured to a verdict, and a sentence that says why."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.photons.judging.evidence import Evidence
    from gap_bioimage.photons.judging.statistics import Noise

Verdict = Literal["photon counts", "counts times k", "camera image", "processed", "not usable"]
Kind = Literal[
    "counts",
    "one-bit frames",
    "multiplied counts",
    "camera",
    "resampled camera",
    "smoothed or interpolated",
    "sharpened",
    "rescaled",
    "background subtracted",
    "jpeg-compressed",
    "rgb",
    "8-bit grey photograph",
    "picture",
    "fractions",
    "saturated",
    "empty",
]

_QUIET = 0.5  # variance / mean that no photon counter falls below in the dark
_DEAD = 0.25  # nor where it is bright, whatever its dead time
_BELOW = 0.95  # the same where neighbouring pixels share noise too
_LOUD = 1.5  # and that photon counts do not reach in their smoothest part
_STRUCTURE = 1.3  # and where even what optics cannot resolve is this quiet, the rest is fine structure
_FALLING = 0.93  # variance / mean at bright pixels that tells of dead time
_OPPOSITE = -0.1  # correlation of neighbouring pixels that structure never causes
_CAMERA_ALIKE = 0.1  # of bright and sharp structure in a single camera image
_RISING = 1.1  # variance / mean of bright over dark parts, as an offset makes it
_WEAK = 0.85  # variance / mean that dead time alone does not explain in the dark
_SURE = 4.0  # standard errors
_SURE_OF_OFFSET = 5.0
_LEAST_OFFSET = 5.0
_CLOSE = 0.6  # of a camera's offset, below which no pixel lies
_BRIGHT = 20.0  # smallest value that speaks of an offset rather than of rescaling
_FEW = 20  # pixels that may share a divisor by chance
_TO_PHOTONS = (
    "subtract the camera offset, divide by the gain and round to get photons first, or measure the camera with "
    "`gap-bioimage calibrate` and give its yaml with --camera"
)


@dataclass(frozen=True)
class Finding:
    """What an image is, in a sentence, and whether it is refused as photon counts."""

    verdict: Verdict
    kind: Kind
    message: str
    refused: bool = True
    factor: float = 1.0
    """What photons were multiplied by, where the verdict is "counts times k"."""


def judge(evidence: Evidence, name: str, saturation: float) -> Finding:
    """Say what an image is.

    Parameters
    ----------
    evidence
        From :func:`gap_bioimage.photons.judging.evidence.measure`.
    name
        What to call the image.
    saturation
        Accepted share of pixels at the ceiling.
    """
    finders: tuple[Callable[[Evidence, str], Finding | None], ...] = (
        _no_numbers,
        _fractions,
        _one_bit,
        _repainted,
        _multiplied,
        _quiet,
        _shared_noise,
        _offset,
        lambda e, n: _saturated(e, n, saturation),
        _weak,
        _too_noisy,
    )
    for find in finders:
        finding = find(evidence, name)
        if finding is not None:
            return finding
    return _good(evidence, name)


def _margin(noise: Noise) -> float:
    """Return how much below its true value a variance may be found by chance; few pixels miss it by factors."""
    return math.exp(-_SURE * noise.relative_error)


def _no_numbers(evidence: Evidence, name: str) -> Finding | None:
    """Look for what no detector returns."""
    found = evidence.statistics
    if evidence.dtype.kind not in "biuf":
        text = f"{name} holds {evidence.dtype}, expected whole numbers of photons; save it as integers"
    elif not found.pixels:
        text = f"{name} has no pixels, expected photon counts; export it again"
    elif found.nonfinite:
        text = (
            f"{name} has {found.nonfinite} pixels that are NaN or infinite, expected whole numbers of photons; use "
            "the raw counts"
        )
    elif found.minimum < 0:
        return Finding(
            "processed",
            "background subtracted",
            f"{name} has negative values (minimum {found.minimum:g}), expected photon counts from 0 up; use the "
            "counts before any background was subtracted",
        )
    elif not found.total:
        text = f"{name} is all zero, expected some photons; choose another image or channel"
    elif found.minimum == found.maximum and found.pixels >= _FEW:
        text = f"every pixel of {name} is {found.minimum:g}, expected photon counts, which vary; choose another image"
    else:
        return None
    return Finding("not usable", "empty", text)


def _fractions(evidence: Evidence, name: str) -> Finding | None:
    found, step, noise = evidence.statistics, evidence.traces.step, evidence.noise
    if not found.fractional:
        return None
    if step is not None and noise is not None and _QUIET < noise.dark / step and noise.smallest / step < _LOUD:
        return Finding(
            "counts times k",
            "multiplied counts",
            f"every value of {name} is a multiple of {step:.6g} (mean {found.mean:.4g}, variance/mean "
            f"{noise.dark:.3g}), expected photon counts; divide by {step:.6g} and round",
            factor=step,
        )
    share = found.fractional / found.pixels
    return Finding(
        "processed",
        "fractions",
        f"{name} has fractional values ({share:.0%} of the pixels, mean {found.mean:.3g}), expected whole numbers of "
        f"photons; use the raw counts, or for a camera image {_TO_PHOTONS}",
    )


def _repainted(evidence: Evidence, name: str) -> Finding | None:
    """Look for what programs for pictures do: colours, JPEG, contrast."""
    traces, noise = evidence.traces, evidence.noise
    loud = noise is not None and noise.smallest > _LOUD
    # A camera with little read noise has combs too, but not empty ones.
    comb = traces.missing_levels and evidence.statistics.lattice <= 1
    comb = comb and not (loud and traces.empty_levels < traces.missing_levels / 2)
    kind: Kind
    if traces.colours:
        kind, told = "rgb", f"the channels of {name} share {traces.shared_noise:.0%} of their noise, as colours do"
    elif traces.jpeg:
        kind = "jpeg-compressed"
        told = f"{name} shows the 8 x 8 blocks of JPEG (steps {traces.jpeg_edge:.2f} times as large at their borders)"
    elif comb:
        if evidence.correlation.found and evidence.statistics.minimum > 0 and not evidence.grey_photograph:
            return _quiet(evidence, name) or _offset(evidence, name)  # a camera's image that was resampled
        kind = "8-bit grey photograph" if evidence.grey_photograph else "rescaled"
        told = f"{name} misses {traces.missing_levels} levels between others, as after a change of contrast or scale"
    else:
        return None
    return Finding(
        "processed", kind, f"{told}, expected photon counts; use the file as the detector's software saved it"
    )


def _multiplied(evidence: Evidence, name: str) -> Finding | None:
    """Look for counts that somebody multiplied."""
    found, noise, k = evidence.statistics, evidence.noise, evidence.statistics.lattice
    if k <= 1 or found.pixels - found.zeros < _FEW:
        return None
    if noise and noise.dark < _QUIET * k * _margin(noise):
        return _quiet(evidence, name, k)
    if noise and noise.smallest / (1 + _SURE * noise.relative_error) > _LOUD * k:
        return Finding(
            "processed",
            "rescaled",
            f"every value of {name} is a multiple of {k}, and its variance/mean {noise.smallest:.3g} fits neither "
            f"photon counts nor counts times {k} (mean {found.mean:.4g}); use the raw counts before any rescaling",
        )
    fano = noise.dark if noise else 1.0
    return Finding(
        "counts times k",
        "multiplied counts",
        f"every value of {name} is a multiple of {k} (mean {found.mean:.4g}, variance/mean {fano:.3g}), expected "
        f"photon counts; divide by {k}",
        factor=k,
    )


def _quiet(evidence: Evidence, name: str, k: int = 1) -> Finding | None:
    """Look for noise much weaker than that of photons."""
    noise = evidence.noise
    if noise is None or noise.dark >= _QUIET * k * _margin(noise):
        return None
    numbers = f"{evidence.levels}, variance/mean {noise.dark:.2g} in the dark"
    if evidence.statistics.minimum > 0:
        return _camera(evidence, name, numbers)
    return _smoothed(evidence, name, numbers)


def _smoothed(evidence: Evidence, name: str, numbers: str) -> Finding:
    kind: Kind = "8-bit grey photograph" if evidence.grey_photograph else "smoothed or interpolated"
    return Finding(
        "processed",
        kind,
        f"{name} looks smoothed or rescaled ({numbers}), expected photon counts, whose variance/mean is 1; use the raw "
        "counts",
    )


def _camera(evidence: Evidence, name: str, numbers: str) -> Finding:
    resampled = evidence.correlation.found and abs(evidence.correlation.largest) > _CAMERA_ALIKE
    told = f"{name} looks like a camera image with an offset ({numbers}), expected photon counts"
    if resampled:
        told += (
            f", and neighbouring pixels share noise ({evidence.neighbours}, expected 0), as after a shift by part of a "
            "pixel or smoothing: look for the file as the camera wrote it"
        )
    else:
        told += ", whose variance/mean is 1"
    return Finding("camera image", "resampled camera" if resampled else "camera", f"{told}; {_TO_PHOTONS}")


def _shared_noise(evidence: Evidence, name: str) -> Finding | None:
    """Look for pixels that were made from several: photons then vary less, and neighbours vary together."""
    noise, most = evidence.noise, evidence.correlation.largest
    if noise is None or not evidence.correlation.found:
        return None
    weak = noise.dark < min(_BELOW, _margin(noise))
    numbers = f"{evidence.neighbours}, variance/mean {noise.dark:.2g} in the dark"
    if most < _OPPOSITE:
        return Finding(
            "processed",
            "sharpened",
            f"neighbouring pixels of {name} vary against one another ({numbers}), as after sharpening or "
            "deconvolution, expected independent photon counts; use the raw counts",
        )
    if not weak or most < 0:
        return None
    return Finding(
        "processed",
        "smoothed or interpolated",
        f"neighbouring pixels of {name} share noise ({numbers}), as after smoothing, a shift by part of a pixel or a "
        "change of size, expected independent photon counts; use the raw counts",
    )


def _offset(evidence: Evidence, name: str) -> Finding | None:
    """Look for a line of variance against mean that starts at an offset, however bright the image."""
    curve, lowest = evidence.curve, evidence.statistics.minimum
    if curve is None or not curve.intercept < -_SURE_OF_OFFSET * curve.intercept_error:
        return None
    if not curve.offset > _LEAST_OFFSET or lowest < _CLOSE * curve.offset:
        return None
    numbers = f"{evidence.levels}, variance {curve.slope:.2g} times what exceeds {curve.offset:.3g}"
    return _camera(evidence, name, numbers)


def _weak(evidence: Evidence, name: str) -> Finding | None:
    """Look for noise a little weaker than that of photons in the dark, where no dead time is felt."""
    noise, curve = evidence.noise, evidence.curve
    if noise is None or noise.dark >= _WEAK * _margin(noise) or evidence.traces.one_bit:
        return None
    numbers = f"{evidence.levels}, variance/mean {noise.dark:.2g} in the dark and {noise.bright:.2g} where it is bright"
    rise = 1.0 if curve is None else curve.rise
    if rise > _RISING and evidence.statistics.minimum > 0:
        return _camera(evidence, name, numbers)
    if noise.bright < _DEAD and not evidence.piled_up:
        return _smoothed(evidence, name, numbers)
    if rise < 1 / _RISING:  # weaker still where it is bright: dead time, after all
        return None
    if evidence.statistics.minimum > _BRIGHT:
        return replace(_camera(evidence, name, numbers), refused=False)
    return Finding(
        "processed",
        "rescaled",
        f"{name} has less noise than photon counts ({numbers}, expected 1), as after rescaling, smoothing or with an "
        "offset; use the raw counts, or measure the camera with `gap-bioimage calibrate`",
        refused=False,
    )


def _saturated(evidence: Evidence, name: str, accepted: float) -> Finding | None:
    share = evidence.statistics.at_maximum / evidence.statistics.pixels
    if share <= accepted or not evidence.piled_up:
        return None
    return Finding(
        "not usable",
        "saturated",
        f"{name} is saturated ({share:.2%} of the pixels at the maximum {evidence.statistics.maximum:g}), expected "
        "counts below the detector's ceiling; use a shorter exposure or crop the bright part away",
    )


def _too_noisy(evidence: Evidence, name: str) -> Finding | None:
    noise, curve = evidence.noise, evidence.curve
    if noise is None or noise.smallest / (1 + _SURE * noise.relative_error) < _LOUD:
        return None
    if curve is not None and len(curve.fano) and np.quantile(curve.fano, 0.25) < _STRUCTURE:
        return None
    numbers = f"{evidence.levels}, variance/mean {noise.smallest:.3g} where it is smoothest, expected 1"
    if curve is not None and curve.intercept > _SURE_OF_OFFSET * curve.intercept_error and 0.5 < curve.slope < _LOUD:
        return Finding(
            "processed",
            "background subtracted",
            f"{name} is noisier than photon counts ({numbers}), as if about {curve.intercept:.3g} had been subtracted "
            "from every pixel, so the network would copy noise; use the counts before any background was subtracted",
            refused=False,
        )
    return Finding(
        "camera image",
        "camera",
        f"{name} is noisier than photon counts ({numbers}), so the network would copy noise; unless these are counts, "
        f"{_TO_PHOTONS}",
        refused=False,
    )


def _one_bit(evidence: Evidence, name: str) -> Finding | None:
    if not evidence.traces.one_bit:
        return None
    one = evidence.statistics.maximum
    share = evidence.statistics.mean / one
    return Finding(
        "photon counts",
        "one-bit frames",
        f"{name} holds one-bit frames, 0 and {one:g}: no pixel has more than one photon, although {share:.3g} per "
        "pixel would give some more; sum frames with --sum-frames",
        refused=one != 1,
    )


def _good(evidence: Evidence, name: str) -> Finding:
    noise = evidence.noise
    text = f"{name} holds photon counts, {evidence.statistics.mean:.3g} per pixel"
    if noise is not None:
        text += f", with variance/mean {noise.dark:.2f} in the dark and {noise.bright:.2f} where it is bright"
        if noise.bright < _FALLING * _margin(noise):
            text += " (the detector's dead time: bright pixels count too few photons)"
    return Finding("photon counts", "counts", text, refused=False)
