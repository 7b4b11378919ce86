"""Images and dark frames for the calibration of a camera: what is accepted, and as which array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.io.image import AXES
from gap_bioimage.photons.cameras.shifted_poisson import ROUNDING
from gap_bioimage.photons.judging.evidence import Evidence
from gap_bioimage.photons.judging.statistics import scan

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

    Floats = npt.NDArray[np.float64]

_LEAST_PX = 16


@dataclass(frozen=True)
class Frames:
    """A camera's images as one array.

    Attributes
    ----------
    values
        (planes, frames, y, x).
    name
        What they are called, without folders.
    ceiling
        ADU from which on pixels are saturated, infinite if none is.
    whole
        Whether all values are whole numbers.
    minimum
        Smallest value.
    """

    values: npt.NDArray[Any]
    name: str
    ceiling: float
    whole: bool
    minimum: float

    @property
    def count(self) -> int:
        """Frames of the same field."""
        return int(self.values.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.values.shape[2:]
        return rows, columns


@dataclass(frozen=True)
class Dark:
    """Offset (ADU, with its standard error) and noise of dark frames: the pixels' (y, x) and their mean (ADU^2).

    ``variance`` is None for a single frame.
    """

    frames: Frames
    offset: tuple[float, float]
    pixel_offset: Floats
    pixel_variance: Floats | None


def frames_of(images: xr.DataArray | Path | str, saturation: float | None = None) -> Frames:
    """Take images for a calibration.

    Parameters
    ----------
    images
        Dims out of ``t z y x``, or a file.
    saturation
        ADU from which on pixels are saturated; found where pixels pile up when not given.

    Raises
    ------
    AxesError
        If there are several channels, or too few pixels.
    NotPhotonCountsError
        If values are not finite, or all alike.
    UnreadableImageError
        If a file cannot be read.
    """
    from gap_bioimage.io import read_photons

    image = read_photons(images, check=False) if isinstance(images, (str, Path)) else images
    name = Path(str(image.attrs.get("source", image.name or "the image"))).name
    if image.sizes.get("c", 1) > 1:
        raise AxesError(
            f"{name} has {image.sizes['c']} channels, expected one, because each may have another camera; choose one "
            "with --channel (in Python isel(c=0))"
        )
    dims = [str(dim) for dim in image.dims]
    if not {"y", "x"} <= set(dims) <= set(AXES):
        raise AxesError(f"{name} has dims {' '.join(dims)}, expected y, x and some of t, z; rename them")
    image = image.isel(c=0) if "c" in dims else image
    if min(image.sizes["y"], image.sizes["x"]) < _LEAST_PX:
        raise AxesError(
            f"{name} has {image.sizes['y']} x {image.sizes['x']} pixels, expected at least {_LEAST_PX} x {_LEAST_PX}; "
            "use a larger part of the camera"
        )
    order = [dim for dim in "ztyx" if dim in image.dims]
    values = image.transpose(*order).data
    values = values if isinstance(values, np.ndarray) else np.asarray(values)
    for axis, dim in enumerate("zt"):
        values = values if dim in order else np.expand_dims(values, axis)
    return _checked(values, name, saturation)


def _checked(values: npt.NDArray[Any], name: str, saturation: float | None) -> Frames:
    if values.dtype.kind not in "buif":
        raise NotPhotonCountsError(f"{name} holds {values.dtype}, expected a camera's numbers; save it as 16 bit")
    found = scan(values)
    if found.nonfinite:
        raise NotPhotonCountsError(
            f"{name} has {found.nonfinite} pixels that are NaN or infinite, expected a camera's numbers; use raw images"
        )
    if found.minimum == found.maximum:
        raise NotPhotonCountsError(
            f"all pixels of {name} are {found.minimum:g}, expected noise; use raw images of the camera"
        )
    ceiling = saturation
    if ceiling is None:
        ceiling = found.maximum if Evidence(values.dtype, found).piled_up else np.inf
    return Frames(values, name, float(ceiling), not found.fractional, found.minimum)


def dark_of(dark: xr.DataArray | Path | str, frames: Frames) -> Dark:
    """Measure dark frames.

    Parameters
    ----------
    dark
        Dims y, x or t, y, x, as large as the images.
    frames
        The images.

    Raises
    ------
    AxesError
        If the sizes differ, or there is a z axis.
    NotPhotonCountsError
        If they are brighter than the images, or as :func:`frames_of`.
    """
    found = frames_of(dark)
    if len(found.values) > 1:
        raise AxesError(f"{found.name} is a stack along z, expected dark frames one after the other; name it t")
    if found.size != frames.size:
        raise AxesError(
            f"the dark frames {found.name} have {found.size} pixels, {frames.name} {frames.size}; record or crop both "
            "alike"
        )
    count = found.count
    levels = np.empty(count)
    total, squares = np.zeros(found.size), np.zeros(found.size)
    first = np.asarray(found.values[0, 0], np.float64)
    for t in range(count):
        frame = found.values[0, t] - first
        levels[t] = frame.mean()
        total += frame
        squares += frame**2
    mean = total / count
    error = float(levels.std(ddof=1) / count**0.5) if count > 1 else float(first.std() / first.size**0.5)
    offset = float(mean.mean() + first.mean())
    if offset > float(np.mean(frames.values[:, 0])):
        raise NotPhotonCountsError(
            f"the dark frames {found.name} (mean {offset:.4g} ADU) are brighter than {frames.name} "
            f"(mean {float(np.mean(frames.values[:, 0])):.4g}), expected frames without light; exchange them, or "
            "record new ones with the shutter closed"
        )
    variance = np.maximum(squares - count * mean**2, 0) / (count - 1) if count > 1 else None
    return Dark(found, (offset, error), mean + first, variance)


def pixel_maps(dark: Dark, gain: float) -> tuple[Floats, Floats] | None:
    """Return offset (ADU) and read noise (electrons) of every pixel, (y, x); None for a single dark frame.

    What differs between pixels by chance, because there are few frames, is taken out: each map is drawn towards its
    mean by the share of its scatter that chance explains.
    """
    variance, count = dark.pixel_variance, dark.frames.count
    if variance is None:
        return None
    usual = float(variance.mean())
    offset = _drawn_in(dark.pixel_offset, usual / count)
    noise = _drawn_in(variance, 2 * usual**2 / (count - 1))
    return offset, np.sqrt(np.maximum(noise, ROUNDING)) / gain


def _drawn_in(values: Floats, by_chance: float) -> Floats:
    mean, scatter = float(values.mean()), float(values.var())
    share = max(0.0, 1 - by_chance / scatter) if scatter > 0 else 0.0
    drawn: Floats = mean + share * (values - mean)
    return drawn
