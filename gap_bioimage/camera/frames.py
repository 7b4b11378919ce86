"""Images and dark frames for a calibration: what is accepted, and as which array."""

import hashlib
import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gap_bioimage.camera.camera import PixelMaps
from gap_bioimage.camera.moments import Flags, Floats, Moments, Values, as_stack, moments_of, scan
from gap_bioimage.camera.shifted_poisson import ROUNDING
from gap_bioimage.errors import AxesError, NotPhotonCountsError

Images = xr.DataArray | npt.NDArray[Any] | Path | str

_LEAST_PX = 16
_HOT = 20.0  # median deviations beyond which a dark pixel tells nothing of the others
_LOST = 0.25  # share of the rows, more than usual, that hold one value each where a part of a frame is lost
_TORN, _CHANGES = 0.1, 8  # share of the rows that frames have in common where one is torn, and changes along a row
_LEAST_VARIANCE = 0.35  # ADU^2 below which rounding is no longer noise


@dataclass(frozen=True)
class Frames:
    """A camera's images: (planes, frames, y, x), and what stood out."""

    values: Values
    name: str
    ceiling: float  # ADU, maybe infinite
    may_be_counts: bool  # whole numbers from 0 up
    left_out: str  # frames that tell nothing, in words

    @property
    def count(self) -> int:
        """Frames of the same field."""
        return int(self.values.shape[1])


@dataclass(frozen=True)
class Dark:
    """What dark frames tell."""

    frames: Frames
    offset: tuple[float, float]  # ADU, with its standard error
    pixel_offset: Floats
    pixel_variance: Floats | None  # ADU^2, of several frames

    def added_to(self, moments: Moments) -> Moments:
        """Return blocks of images and of the dark frames, if these have noise and not rounding alone."""
        if self.pixel_variance is None or float(self.pixel_variance.mean()) < _LEAST_VARIANCE:
            return moments
        both = moments, moments_of(self.frames.values, in_time=True, pattern=self.pattern)
        return Moments(*(np.concatenate([getattr(m, f.name) for m in both], -1) for f in fields(Moments)))

    @cached_property
    def pattern(self) -> Floats | None:
        """What pixels differ by without light, (y, x) ADU, as far as it is not chance; of hot ones nothing is known."""
        if self.pixel_variance is None:
            return None
        pattern, usual = np.zeros_like(self.pixel_offset), _usual(self.pixel_offset)
        drawn = _drawn_in(self.pixel_offset[usual], float(self.pixel_variance[usual].mean()) / self.frames.count)
        pattern[usual] = drawn - drawn.mean()
        return pattern

    def maps(self, gain: float) -> PixelMaps | None:
        """Offset and read noise of each pixel, drawn to their means by the share of scatter that chance explains."""
        variance, count = self.pixel_variance, self.frames.count
        if variance is None:
            return None
        usual = float(variance.mean())
        noise = np.sqrt(np.maximum(_drawn_in(variance, 2 * usual**2 / (count - 1)), ROUNDING)) / gain
        return PixelMaps(_drawn_in(self.pixel_offset, usual / count).astype(np.float32), noise.astype(np.float32))


def _usual(offset: Floats) -> Flags:
    """Whether pixels are as dark as most, rather than hot."""
    away = np.abs(offset - np.median(offset))
    return np.asarray(away <= _HOT * max(float(np.median(away)), 1.0))


def _drawn_in(values: Floats, by_chance: float) -> Floats:
    mean, scatter = float(values.mean()), float(values.var())
    share = max(0.0, 1 - by_chance / scatter) if scatter > 0 else 0.0
    return np.asarray(mean + share * (values - mean), np.float64)


def frames_of(
    images: Images, saturation: float | None = None, dims: str | None = None, what: str = "the image"
) -> Frames:
    """Take images for a calibration, or refuse them; of plain arrays ``dims`` are the axes."""
    from gap_bioimage.io import read_photons
    from gap_bioimage.io.image import as_image

    path = images if isinstance(images, (str, Path)) else None
    image = as_image(images, dims, what=what) if path is None else read_photons(path, dims, check=False)
    name = Path(str(image.attrs.get("source", image.name or what))).name
    if image.sizes.get("c", 1) > 1:
        told = f"{name} has {image.sizes['c']} channels, expected one, because each may have another camera"
        raise AxesError(f"{told}; choose one with --channel (in Python isel(c=0))")
    image = (image.squeeze("c", drop=True) if "c" in image.dims else image).transpose(..., "y", "x")
    values = np.asarray(image.data)
    if min(values.shape[-2:]) < _LEAST_PX or not values.size:
        told = " x ".join(map(str, values.shape))
        raise AxesError(f"{name} has {told} pixels, expected at least {_LEAST_PX} x {_LEAST_PX}; crop less")
    if values.dtype.kind not in "buif":
        raise NotPhotonCountsError(f"{name} holds {values.dtype}, expected a camera's numbers; save it as 16 bit")
    found = scan(values)
    if found.nonfinite or found.minimum == found.maximum:
        told = f"{name} has pixels that are NaN or infinite, or the same value everywhere"
        raise NotPhotonCountsError(f"{told}, expected a camera's numbers and their noise; use raw images")
    stack = as_stack(values, image.dims.index("t") if "t" in image.dims else None)
    if not found.fractional and found.minimum == 0 and len(np.unique(stack[:1, :2])) == 2:
        told = f"{name} holds two values only, as masks and one-bit frames, which need no camera"
        raise NotPhotonCountsError(f"{told}; of one-bit frames train on sums (--sum-frames)")
    if saturation is None:
        saturation = found.maximum if found.piled_up(values.dtype) else math.inf
    stack, left_out = distinct(stack)
    return Frames(stack, name, saturation, not found.fractional and found.minimum >= 0, left_out)


def distinct(stack: Values) -> tuple[Values, str]:
    """Leave out frames that repeat others or lack parts, all or some rows: their noise is not the camera's."""
    first: dict[bytes, int] = {}
    told, kept, rows = [], [], stack.shape[2]
    bare = [np.count_nonzero(frame.min((0, 2)) == frame.max((0, 2))) for frame in np.moveaxis(stack, 1, 0)]
    most = min(float(np.median(bare)) + _LOST * rows, rows - 1)  # dim frames and those with margins have such rows, too
    for t in range(stack.shape[1]):
        torn = 0.0
        if t and (again := (stack[:, t] == stack[:, t - 1]).all(-1)).mean() > _TORN:  # dim rows may be so by chance
            torn = float(np.mean(again & (np.count_nonzero(np.diff(stack[:, t]), axis=-1) >= _CHANGES)))
        if bare[t] > most:
            told.append(f"frame {t} has no noise in {bare[t]} of {rows} rows, as one that the camera dropped")
        # in the first row some cameras write the time
        elif (before := first.setdefault(hashlib.blake2b(stack[:, t, 1:].tobytes()).digest(), t)) != t:
            told.append(f"frames {before} and {t} are equal")
        elif torn > _TORN:
            told.append(f"frames {t - 1} and {t} are equal in {torn:.0%} of their rows, as where a frame is torn")
        else:
            kept.append(t)
    if not told or not kept:
        return stack, ""
    return stack[:, kept], f"{told[0]} and the like: left out, {len(kept)} of {stack.shape[1]} frames remain"


def dark_of(dark: Images, frames: Frames, dims: str | None = None) -> Dark:
    """Measure dark frames, which are to be as large as the images and darker."""
    found = frames_of(dark, dims=dims, what="the dark stack")
    size, expected = found.values.shape[2:], frames.values.shape[2:]
    if size != expected:
        raise AxesError(f"{found.name} has {size} pixels, expected the {expected} of {frames.name}; record both alike")
    film = found.values.reshape(-1, *size)  # without light planes are frames, too
    found, count = replace(found, values=film[np.newaxis]), len(film)
    mean = np.asarray(np.mean(film, axis=0, dtype=np.float64))
    level = np.array([np.mean(frame, dtype=np.float64) for frame in film])
    usual = mean[_usual(mean)]
    error = float(level.std(ddof=1) / count**0.5) if count > 1 else float(usual.std() / usual.size**0.5)
    light = float(np.mean(frames.values[:, 0], dtype=np.float64))
    if usual.mean() > light:
        told = f"{found.name} is brighter than {frames.name}, expected dark frames"
        raise NotPhotonCountsError(f"{told}; exchange them, or record with the shutter closed")
    squares = sum((np.square(frame - mean) for frame in film), np.zeros(size))
    return Dark(found, (float(usual.mean()), error), mean, squares / (count - 1) if count > 1 else None)
