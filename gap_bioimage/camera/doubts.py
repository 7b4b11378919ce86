"""What may be wrong with a calibration, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from gap_bioimage.camera.frames import Dark, Frames
from gap_bioimage.camera.noise import Correlation
from gap_bioimage.camera.numbers import Numbers
from gap_bioimage.camera.photon_transfer import Fit

CORRELATED = 0.1  # noise of neighbours that raw images do not share
LEFT_OUT = 0.1  # share of the field from which on it is told that it was left out
_ENOUGH_DARK = 16


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
    gain, bend, bends = numbers.gain, fit.goodness.bend, fit.goodness.bends(0.05)
    alike = max(abs(correlation.largest) if correlation.found else 0.0, correlation.t)
    if frames.repeated is not None:
        yield frames.repeated
    if alike >= CORRELATED:
        told = f"{correlation.y:.2f} along y, {correlation.x:.2f} along x, {correlation.t:.2f} between frames"
        yield (
            f"the noise of neighbouring pixels is correlated ({told}): somebody has smoothed or resampled these "
            f"images, and the gain is too small by a factor of up to {correlation.factor:.1f}; use raw images"
        )
    if bends < 0:
        yield f"the variance falls short of the line by {-bend:.0%} in bright parts (saturation, dead time)"
    if bends > 0:
        cause = "light that flickers or objects that move" if frames.count > 1 else "structure taken for noise"
        yield f"the variance rises above the line by {bend:.0%} in bright parts: {cause}; the gain may be too high"
    if not bends and fit.goodness.chi_square > 2 and alike < CORRELATED:
        yield f"the line fits worse than chance explains (chi-square {fit.goodness.chi_square:.3g} per degree)"
    if fit.outliers > LEFT_OUT:
        told = f"{fit.outliers:.0%} of the field moves or flickers and was left out"
        yield f"{told}; if the detector multiplies, say --multiplying"
    if frames.saturated > LEFT_OUT:
        yield f"{frames.saturated:.0%} of the field is saturated and was left out"
    if fit.clipped:
        yield "dark pixels are clipped at zero: the camera's offset is too low for its read noise; raise it"
    if fit.coarse:
        yield (
            "the noise is hardly more than one ADU, where rounding distorts it: gain and offset may be wrong beyond "
            "their intervals; use brighter images or a higher camera gain"
        )
    if frames.count == 1:
        yield "this rests on one image, in which fine structure passes for noise; a stack of the same field is better"
    if not gain.high - gain.low <= 0.2 * gain.value:
        told = f"the gain is known to {gain.low:.3g} to {gain.high:.3g} only"
        yield f"{told}; record more frames of a field with dark and bright parts"
    if numbers.undecided and frames.count > 2 and alike < CORRELATED:
        yield (
            "the noise does not tell whether the detector multiplies electrons (EMCCD, photomultiplier); the offset's "
            "interval allows for both; say --multiplying if it does"
        )
    if dark is not None and dark.frames.count < _ENOUGH_DARK:
        maps = "a single one tells no read noise" if dark.pixel_variance is None else "read noise per pixel is rough"
        yield f"{dark.frames.count} dark frames: {maps}; record {_ENOUGH_DARK} or more"
