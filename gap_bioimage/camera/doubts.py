"""What may be wrong with a calibration, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gap_bioimage.camera.camera import CORRELATED
from gap_bioimage.camera.frames import Dark, Frames
from gap_bioimage.camera.moments import Moments
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
    moments: Moments  # of what is not saturated
    saturated: float  # share of the field
    correlation: Correlation  # of neighbours
    between_frames: float  # correlation
    fit: Fit

    @property
    def shared(self) -> float:
        """The largest correlation of the noise, of neighbours or of frames."""
        return max(abs(self.correlation.largest), self.between_frames)


def doubts_of(it: Measured, numbers: Numbers, curve: Curve) -> Iterator[str]:
    """Yield what may be wrong, of the images first, the gravest before others."""
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
    if it.fit.outliers > LEFT_OUT:
        yield f"{it.fit.outliers:.0%} of the field moves or flickers and was left out (or say --multiplying)"
    if it.saturated > LEFT_OUT:
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
