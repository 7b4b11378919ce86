"""What may be wrong with a calibration: one function for each doubt, which returns a sentence or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gap_bioimage.camera.frames import Dark, Frames
from gap_bioimage.camera.noise import Correlation, Curve
from gap_bioimage.camera.photon_transfer import Fit, Numbers

CORRELATED = 0.1  # noise of neighbours that raw images do not share
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


def _left_out(it: Measured) -> str:
    return it.frames.left_out


def _correlated(it: Measured) -> str:
    told = f"{it.correlation.y:.2f} along y, {it.correlation.x:.2f} along x, {it.between_frames:.2f} between frames"
    text = (
        f"the noise of neighbouring pixels is correlated ({told}): somebody has smoothed or resampled these images, "
        f"and the gain is too small by a factor of up to {it.lost * it.correlation.factor:.1f}; use raw images"
    )
    return text if it.shared >= CORRELATED else ""


def _not_straight(it: Measured) -> str:
    bend, bends = it.curve.bend, it.curve.bends(_BENT)
    if bends < 0:
        return f"the variance falls short of the line by {-bend:.0%} in bright parts (saturation, dead time)"
    if bends > 0:
        cause = "light that flickers or objects that move" if it.frames.count > 1 else "structure taken for noise"
        return f"the variance rises above the line by {bend:.0%} in bright parts: {cause}; the gain may be too high"
    text = f"the line fits worse than chance explains (chi-square {it.curve.chi_square:.3g} per degree)"
    return text if it.curve.chi_square > _MISFIT and it.shared < CORRELATED else ""


def _moving(it: Measured) -> str:
    text = f"{it.fit.outliers:.0%} of the field moves or flickers and was left out"
    return f"{text}; if the detector multiplies, say --multiplying" if it.fit.outliers > LEFT_OUT else ""


def _saturated(it: Measured) -> str:
    return f"{it.saturated:.0%} of the field is saturated and was left out" if it.saturated > LEFT_OUT else ""


def _clipped(it: Measured) -> str:
    text = "dark pixels are clipped at zero: the camera's offset is too low for its read noise; raise it"
    return text if it.fit.clipped else ""


def _coarse(it: Measured) -> str:
    text = "the noise is hardly more than one ADU, where rounding distorts it: gain and offset may be wrong beyond "
    return f"{text}their intervals; use brighter images or a higher camera gain" if it.fit.coarse else ""


def _one_image(it: Measured) -> str:
    text = "this rests on one image, in which fine structure passes for noise; a stack of the same field is better"
    return text if it.frames.count == 1 else ""


def _wide(it: Measured) -> str:
    gain = it.numbers.gain
    text = f"the gain is known to {gain.low:.3g} to {gain.high:.3g} only; record more frames of a field with dark and "
    return "" if gain.high - gain.low <= 0.2 * gain.value else f"{text}bright parts"


def _undecided(it: Measured) -> str:
    text = "the noise does not tell whether the detector multiplies electrons (EMCCD, photomultiplier); the offset's "
    told = it.numbers.undecided and it.frames.count > 2 and it.shared < CORRELATED
    return f"{text}interval allows for both; say --multiplying if it does" if told else ""


def _few_dark(it: Measured) -> str:
    if it.dark is None or it.dark.frames.count >= _ENOUGH_DARK:
        return ""
    maps = "a single one tells no read noise" if it.dark.pixel_variance is None else "read noise per pixel is rough"
    return f"{it.dark.frames.count} dark frames: {maps}; record {_ENOUGH_DARK} or more"


# the gravest first
DOUBTS: tuple[Callable[[Measured], str], ...] = (
    *(_left_out, _correlated, _not_straight, _moving, _saturated, _clipped),
    *(_coarse, _one_image, _wide, _undecided, _few_dark),
)
