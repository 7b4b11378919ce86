"""What may be wrong with a calibration, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gap_bioimage.camera.camera import CORRELATED
from gap_bioimage.camera.frames import Dark, Frames
from gap_bioimage.camera.noise import Correlation, Curve
from gap_bioimage.camera.photon_transfer import Fit, Numbers

LEFT_OUT = 0.1  # share of the field from which on it is told that it was left out
_BENT, _MISFIT = 0.05, 2.0  # departure from the line that matters, and chi-square
_ENOUGH_DARK = 16


@dataclass(frozen=True)
class Measured:
    """All that a calibration rests on."""

    frames: Frames
    dark: Dark | None
    saturated: float  # share of the field
    correlation: Correlation  # of neighbours
    between_frames: float  # correlation
    lost: float  # raw variance over that of frames that share noise
    fit: Fit
    curve: Curve
    numbers: Numbers

    @property
    def shared(self) -> float:
        """The largest correlation of the noise, of neighbours or of frames."""
        return max(abs(self.correlation.largest), self.between_frames)


def of_images(it: Measured) -> Iterator[str]:
    """Yield what may be wrong with the images, the gravest first."""
    y, x, bend = it.correlation.y, it.correlation.x, it.curve.bend
    if it.frames.left_out:
        yield it.frames.left_out
    if it.shared >= CORRELATED:
        shared = f"{y:.2f} along y, {x:.2f} along x, {it.between_frames:.2f} between frames"
        told = f"the noise is correlated ({shared}): these images were smoothed or resampled, and the gain is too small"
        yield f"{told} by a factor of up to {it.lost * it.correlation.factor:.1f}; use raw images"
    dark = "" if it.dark is None else ", dark frames of other settings"
    if (bends := it.curve.bends(_BENT)) < 0:
        yield f"the variance falls short of the line by {-bend:.0%} in bright parts (saturation, dead time{dark})"
    elif bends > 0:
        cause = "light that flickers or objects that move" if it.frames.count > 1 else "structure taken for noise"
        yield f"the variance rises above the line by {bend:.0%} in bright parts: {cause}{dark}; the gain may be wrong"
    elif it.curve.chi_square > _MISFIT and it.shared < CORRELATED:
        yield f"the line fits worse than chance explains (chi-square {it.curve.chi_square:.3g} per degree)"
    if it.fit.outliers > LEFT_OUT:
        told = f"{it.fit.outliers:.0%} of the field moves or flickers and was left out"
        yield f"{told}; if the detector multiplies, say --multiplying"
    if it.saturated > LEFT_OUT:
        yield f"{it.saturated:.0%} of the field is saturated and was left out"
    if it.fit.clipped:
        yield "dark pixels are clipped at zero, and the gain may be too large; use raw images, or raise the offset"


def of_numbers(it: Measured) -> Iterator[str]:
    """Yield what may be wrong with the numbers."""
    if it.fit.coarse:
        yield "the noise is hardly more than one ADU, which distorts it; use brighter images or a higher camera gain"
    if it.frames.count == 1:
        yield "this rests on one image, in which fine structure passes for noise; a stack of the same field is better"
    offset = it.numbers.offset
    if offset.low == offset.high and it.numbers.read_noise.high == 0:
        yield f"the variance would be negative at the offset of {offset.value:g} ADU, which may be too low"
    if it.numbers.undecided and it.frames.count > 2 and it.shared < CORRELATED:
        told = "the noise does not tell whether the detector multiplies electrons (EMCCD, photomultiplier)"
        yield f"{told}; the offset's interval allows for both (--multiplying)"
    if it.dark is not None and it.dark.frames.count < _ENOUGH_DARK:
        maps = "a single one tells no read noise" if it.dark.pixel_variance is None else "read noise per pixel is rough"
        yield f"{it.dark.frames.count} dark frames: {maps}; record {_ENOUGH_DARK} or more"
