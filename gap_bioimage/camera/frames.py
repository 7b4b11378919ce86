"""Read, check and clean the images and dark frames of a calibration."""

import hashlib
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import xarray as xr

from gap_bioimage.camera.camera import PixelMaps
from gap_bioimage.camera.moments import Flags, Floats, Moments, Values, as_stack, moments_of, scan
from gap_bioimage.camera.shifted_poisson import ROUNDING
from gap_bioimage.errors import AxesError, NotPhotonCountsError

Images = xr.DataArray | npt.NDArray[Any] | Path | str

_LEAST_PX = 16  # side of the smallest image
_HOT = 20.0  # median absolute deviations from the median beyond which a dark pixel is hot
_LOST = 0.25  # fraction of constant rows, above the median of all frames, that shows a dropped frame
_TORN, _CHANGES = 0.1, 8  # fraction of rows equal to the frame before that shows tearing; value changes in such a row
_CLEARED, _FAR = 0.01, 8  # fraction of pixels at the lowest value in a cleared image; steps to the next value
_BLOCK_PX, _LIT = 8, 4.0  # parts of a dark field, and the range of their variance that shows light
_LEAST_VARIANCE = 0.35  # ADU^2 of dark frames below which rounding error no longer acts as noise


@dataclass(frozen=True)
class Frames:
    """Images of a camera, checked."""

    values: Values  # (planes, frames, y, x)
    name: str
    floor: float  # ADU to which parts of the field were cleared, or minus infinity
    ceiling: float  # ADU at which pixels saturate, or infinity
    may_be_counts: bool  # whole numbers that are not negative
    left_out: str  # a sentence about dropped, repeated and torn frames, or ""
    processed: str  # a sentence about values that no camera stores, or ""

    @property
    def count(self) -> int:
        """Number of frames of the same field."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Dark:
    """Offset and noise of dark frames."""

    frames: Frames
    offset: tuple[float, float]  # ADU, with its standard error
    pixel_offset: Floats  # (y, x), ADU
    pixel_variance: Floats | None  # (y, x), ADU^2; None for a single frame

    def added_to(self, moments: Moments) -> Moments:
        """Return ``moments`` with the blocks of the dark frames, if these have more noise than rounding error."""
        if self.pixel_variance is None or float(self.pixel_variance.mean()) < _LEAST_VARIANCE:
            return moments
        both = moments, moments_of(self.frames.values, in_time=True, pattern=self.pattern)
        return Moments(*(np.concatenate([getattr(m, f.name) for m in both], -1) for f in fields(Moments)))

    @cached_property
    def pattern(self) -> Floats | None:
        """Fixed-pattern offset, (y, x) in ADU with mean 0, shrunk to remove scatter due to chance; 0 at hot pixels."""
        if self.pixel_variance is None:
            return None
        pattern, cold = np.zeros_like(self.pixel_offset), _cold(self.pixel_offset)
        offset = _shrunk(self.pixel_offset[cold], float(self.pixel_variance[cold].mean()) / self.frames.count)
        pattern[cold] = offset - offset.mean()
        return pattern

    def maps(self, gain: float) -> PixelMaps | None:
        """Return offset and read noise of each pixel, shrunk towards their means to remove scatter due to chance."""
        variance, count = self.pixel_variance, self.frames.count
        if variance is None:
            return None
        mean = float(variance.mean())
        noise = np.sqrt(np.maximum(_shrunk(variance, 2 * mean**2 / (count - 1)), ROUNDING)) / gain
        return PixelMaps(_shrunk(self.pixel_offset, mean / count).astype(np.float32), noise.astype(np.float32))


def _cold(offset: Floats) -> Flags:
    deviation = np.abs(offset - np.median(offset))
    return np.asarray(deviation <= _HOT * max(float(np.median(deviation)), 1.0))


def _shrunk(values: Floats, chance_variance: float) -> Floats:
    mean, variance = float(values.mean()), float(values.var())
    factor = max(0.0, 1 - chance_variance / variance) if variance > 0 else 0.0
    return np.asarray(mean + factor * (values - mean), np.float64)


def frames_of(
    images: Images, saturation: float | None = None, dims: str | None = None, *, dark: bool = False
) -> Frames:
    """Read and check images for a calibration; ``dims`` are the axes of plain arrays. Dark frames need no noise."""
    from gap_bioimage.io import read_photons
    from gap_bioimage.io.image import as_image
    from gap_bioimage.judging import judge_image

    path, what = images if isinstance(images, (str, Path)) else None, "the dark stack" if dark else "the image"
    image = as_image(images, dims, what=what) if path is None else read_photons(path, dims, check=False)
    name = Path(str(image.attrs.get("source", image.name or what))).name
    if (count := image.sizes.get("c", 1)) > 1:  # each may be from another camera
        raise AxesError(f"{name} has {count} channels, expected one; choose it by channel=0 when reading")
    image = (image.squeeze("c", drop=True) if "c" in image.dims else image).transpose(..., "y", "x")
    values = np.asarray(image.data)
    if min(values.shape[-2:]) < _LEAST_PX or not values.size:
        shape = " x ".join(map(str, values.shape))
        raise AxesError(f"{name} has {shape} pixels, expected at least {_LEAST_PX} x {_LEAST_PX}; crop less")
    if values.dtype.kind not in "buif":
        raise NotPhotonCountsError(f"{name} holds {values.dtype}, expected camera values; save it with 16 bits")
    statistics = scan(values)
    if statistics.nonfinite or (statistics.minimum == statistics.maximum and not dark):
        problem = "has NaN or infinite values" if statistics.nonfinite else "has the same value everywhere"
        raise NotPhotonCountsError(f"{name} {problem}, expected camera values with noise; use raw images")
    stack = as_stack(values, image.dims.index("t") if "t" in image.dims else None)
    if not (dark or statistics.fractional or statistics.minimum) and len(np.unique(stack[:1, :2])) == 2:
        problem = f"{name} has two values only, like masks and one-bit frames, which need no camera"
        raise NotPhotonCountsError(f"{problem}; train on sums of one-bit frames, sum_frames(movie, 16)")
    if saturation is None:
        saturation = statistics.maximum if statistics.piled_up(values.dtype) else math.inf
    stack, left_out = distinct(stack)
    floor = statistics.minimum if cleared_pixels(stack, statistics.minimum).any() else -math.inf
    may_be_counts = not statistics.fractional and statistics.minimum >= 0
    finding = None if dark else judge_image(image, name)[1]
    processed = finding.message if finding is not None and finding.verdict == "processed" else ""
    return Frames(stack, name, floor, saturation, may_be_counts, left_out, processed)


def cleared_pixels(stack: Values, minimum: float, step: float = 1.0) -> Flags:
    """Return which pixels (y, x) of a stack (..., y, x) were cleared to ``minimum``, far below all others."""
    frames = tuple(range(stack.ndim - 2))
    cleared = np.asarray(stack.max(frames) == minimum)
    if not _CLEARED <= cleared.mean() < 1 or stack.min(frames)[~cleared].min() - minimum <= _FAR * step:
        return np.zeros_like(cleared)
    return cleared


def distinct(stack: Values) -> tuple[Values, str]:
    """Leave out frames that repeat others, are torn or were dropped; return the others and a sentence about it."""
    first: dict[bytes, int] = {}
    problems, intact, rows = [], [], stack.shape[2]
    constant = [np.count_nonzero(frame.min((0, 2)) == frame.max((0, 2))) for frame in np.moveaxis(stack, 1, 0)]
    most = min(float(np.median(constant)) + _LOST * rows, rows - 1)  # dim frames and margins have constant rows, too
    for t in range(stack.shape[1]):
        torn = 0.0
        if t and (equal := (stack[:, t] == stack[:, t - 1]).all(-1)).mean() > _TORN:  # dim rows may agree by chance
            torn = float(np.mean(equal & (np.count_nonzero(np.diff(stack[:, t]), axis=-1) >= _CHANGES)))
        if constant[t] > most:
            problems.append(f"frame {t} has no noise in {constant[t]} of {rows} rows, as if the camera had dropped it")
        # the first row is not compared: some cameras write a time stamp there
        elif (before := first.setdefault(hashlib.blake2b(stack[:, t, 1:].tobytes()).digest(), t)) != t:
            problems.append(f"frames {before} and {t} are equal")
        elif torn > _TORN:
            problems.append(f"frames {t - 1} and {t} are equal in {torn:.0%} of their rows, as in a torn frame")
        else:
            intact.append(t)
    if not problems or not intact:
        return stack, ""
    return stack[:, intact], f"{problems[0]}; such frames are left out, {len(intact)} of {stack.shape[1]} remain"


def dark_of(dark: Images, frames: Frames, dims: str | None = None) -> Dark:
    """Measure dark frames, which must have the size of the images."""
    unlit = frames_of(dark, dims=dims, dark=True)
    size, expected = unlit.values.shape[2:], frames.values.shape[2:]
    if size != expected:
        raise AxesError(f"{unlit.name} has {size} pixels, expected {expected} as {frames.name}; record equal sizes")
    film = unlit.values.reshape(-1, *size)  # without light, planes are frames of the same field
    unlit, count = replace(unlit, values=film[np.newaxis]), len(film)
    mean = np.asarray(np.mean(film, axis=0, dtype=np.float64))
    squares = sum((np.square(frame - mean) for frame in film), np.zeros(size))
    variance = squares / (count - 1) if count > 1 else None
    cold = mean[_cold(mean)]
    noise = float(cold.var() if variance is None else variance.mean())
    error = ROUNDING**0.5 if noise < _LEAST_VARIANCE else (noise / mean.size / count) ** 0.5
    if count > 1:  # few frames show little of the scatter that all pixels share
        level = np.array([np.mean(frame, dtype=np.float64) for frame in film])
        few = float(scipy.special.stdtrit(count - 1, 0.975)) / 1.96  # Student's interval of 95 % over the normal one
        error = max(error, float(level.std(ddof=1)) / count**0.5 * few)
    if variance is not None and _lit(mean, variance):
        problem = f"the noise of {unlit.name} grows with its brightness, expected frames without light"
        raise NotPhotonCountsError(f"{problem}; record them with the shutter closed")
    return Dark(unlit, (float(cold.mean()), error), mean, variance)


def _lit(mean: Floats, variance: Floats) -> bool:
    """Whether the noise grows with the brightness over the field, as photons' does; patterns of cameras do neither."""
    rows, columns = (size // _BLOCK_PX for size in mean.shape)
    shape = (rows, _BLOCK_PX, columns, _BLOCK_PX)
    parts = (image[: rows * _BLOCK_PX, : columns * _BLOCK_PX].reshape(shape) for image in (mean, variance))
    level, noise = (np.median(part, (1, 3)).ravel() for part in parts)  # not of hot pixels
    low, high = np.percentile(noise, (5, 95))
    return bool(high > _LIT * (low + ROUNDING) and np.corrcoef(level, noise)[0, 1] > 0.5 + 3 / len(noise) ** 0.5)
