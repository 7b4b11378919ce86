"""Images and dark frames for a calibration: what is accepted, and as which array."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from gap_bioimage.camera.camera import PixelMaps
from gap_bioimage.camera.moments import Floats, Values, as_stack, piled_up, scan
from gap_bioimage.camera.shifted_poisson import ROUNDING
from gap_bioimage.errors import AxesError, NotPhotonCountsError

_LEAST_PX = 16


@dataclass(frozen=True)
class Frames:
    """A camera's images: (planes, frames, y, x), and what stood out."""

    values: Values
    name: str
    ceiling: float  # ADU, maybe infinite
    whole: bool
    minimum: float
    repeated: str | None
    saturated: float = 0.0

    @property
    def count(self) -> int:
        """Frames of the same field."""
        return int(self.values.shape[1])

    @property
    def method(self) -> str:
        """What their noise is taken from."""
        return "stack" if self.count > 1 else "one image"


@dataclass(frozen=True)
class Dark:
    """What dark frames tell."""

    frames: Frames
    offset: tuple[float, float]  # ADU, with its standard error
    pixel_offset: Floats
    pixel_variance: Floats | None  # ADU^2, of several frames


def frames_of(images: xr.DataArray | Path | str, saturation: float | None = None) -> Frames:
    """Take images for a calibration, or refuse them."""
    from gap_bioimage.counts import check_axes
    from gap_bioimage.io import read_photons

    image = read_photons(images, check=False) if isinstance(images, (str, Path)) else images
    check_axes(image)
    name = Path(str(image.attrs.get("source", image.name or "the image"))).name
    if image.sizes.get("c", 1) > 1:
        raise AxesError(
            f"{name} has {image.sizes['c']} channels, expected one, because each may have another camera; choose one "
            "with --channel (in Python isel(c=0))"
        )
    image = (image.isel(c=0) if "c" in image.dims else image).transpose(..., "y", "x")
    rows, columns = image.shape[-2:]
    if min(rows, columns) < _LEAST_PX:
        raise AxesError(f"{name} has {rows} x {columns} pixels, expected at least {_LEAST_PX} x {_LEAST_PX}; crop less")
    values = image.data if isinstance(image.data, np.ndarray) else np.asarray(image.data)
    found = scan(values) if values.dtype.kind in "buif" else None
    if found is None:
        raise NotPhotonCountsError(f"{name} holds {values.dtype}, expected a camera's numbers; save it as 16 bit")
    if found.nonfinite:
        raise NotPhotonCountsError(
            f"{name} has {found.nonfinite} pixels that are NaN or infinite, expected a camera's numbers; use raw images"
        )
    if found.minimum == found.maximum:
        raise NotPhotonCountsError(f"all pixels of {name} are {found.minimum:g}, expected noise; use raw images")
    stack = as_stack(values, image.dims.index("t") if "t" in image.dims else None)
    if not found.fractional and found.minimum == 0 and len(np.unique(stack[:1, :2])) == 2:
        raise NotPhotonCountsError(
            f"{name} holds two values only, as one-bit frames do; they need no camera: train with --sum-frames"
        )
    distinct, repeated = _distinct(stack)
    ceiling = found.maximum if saturation is None and piled_up(values.dtype, found) else saturation
    ceiling = math.inf if ceiling is None else ceiling
    return Frames(distinct, name, ceiling, not found.fractional, found.minimum, repeated)


def _distinct(stack: Values) -> tuple[Values, str | None]:
    """Leave out frames that repeat an earlier one or have one value, whose noise would be taken for the camera's."""
    first: dict[bytes, int] = {}
    told = []
    for t in range(stack.shape[1]):
        if stack[:, t].min() == stack[:, t].max():
            told.append(f"frame {t} has no noise, as one that the camera dropped")
            continue
        digest = hashlib.blake2b(b"".join(plane.tobytes() for plane in stack[:, t]), digest_size=16).digest()
        if first.setdefault(digest, t) != t:
            told.append(f"frames {first[digest]} and {t} are equal")
    if not told or not first:
        return stack, None
    more = f", and {len(told) - 1} more are like that" if len(told) > 1 else ""
    text = f"{told[0]}{more}: left out, {len(first)} of {stack.shape[1]} frames remain"
    return stack[:, sorted(first.values())], text


def dark_of(dark: xr.DataArray | Path | str, frames: Frames) -> Dark:
    """Measure dark frames, which are to be as large as the images and darker."""
    found = frames_of(dark)
    if len(found.values) > 1:
        raise AxesError(f"{found.name} is a stack along z, expected dark frames one after the other; name it t")
    size, expected = found.values.shape[2:], frames.values.shape[2:]
    if size != expected:
        raise AxesError(
            f"the dark frames {found.name} have {size} pixels, {frames.name} {expected}; record or crop both alike"
        )
    film, count = found.values[0], found.count
    mean = np.asarray(np.mean(film, axis=0, dtype=np.float64))
    level = np.array([np.mean(frame, dtype=np.float64) for frame in film])
    error = float(level.std(ddof=1) / count**0.5) if count > 1 else float(mean.std() / mean.size**0.5)
    light = float(np.mean(frames.values[:, 0], dtype=np.float64))
    if mean.mean() > light:
        raise NotPhotonCountsError(
            f"the dark frames {found.name} (mean {mean.mean():.4g} ADU) are brighter than {frames.name} (mean "
            f"{light:.4g}), expected frames without light; exchange them, or record new ones with the shutter closed"
        )
    squares = sum((np.square(frame - mean) for frame in film), np.zeros(size))
    return Dark(found, (float(mean.mean()), error), mean, squares / (count - 1) if count > 1 else None)


def maps_of(dark: Dark, gain: float) -> PixelMaps | None:
    """Offset and read noise of every pixel, drawn towards their means by the share of scatter that chance explains."""
    variance, count = dark.pixel_variance, dark.frames.count
    if variance is None:
        return None

    def drawn_in(values: Floats, by_chance: float) -> Floats:
        mean, scatter = float(values.mean()), float(values.var())
        share = max(0.0, 1 - by_chance / scatter) if scatter > 0 else 0.0
        return np.asarray(mean + share * (values - mean), np.float64)

    usual = float(variance.mean())
    noise = np.sqrt(np.maximum(drawn_in(variance, 2 * usual**2 / (count - 1)), ROUNDING)) / gain
    return PixelMaps(drawn_in(dark.pixel_offset, usual / count).astype(np.float32), noise.astype(np.float32))
