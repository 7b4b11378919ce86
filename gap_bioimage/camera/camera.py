"""From what a camera writes to counts whose noise is that of photons, and back.

ADU = offset + gain (e + N(0, read^2)): the electrons e are Poisson, the read noise is not. Adding its variance to
the electrons before rounding makes mean and variance equal again ("shifted Poisson"), and so the halves of thinned
counts uncorrelated: Cov(in, target) = p (1 - p) (Var x - E x). The same number is subtracted from the result.

Source: D. L. Snyder et al., "Image recovery from data acquired with a charge-coupled-device camera",
J. Opt. Soc. Am. A 10, 1014 (1993).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from gap_bioimage.camera import shifted_poisson as model
from gap_bioimage.camera.moments import LEAST_PX, as_stack, moments_of
from gap_bioimage.camera.noise import curve_of
from gap_bioimage.config import Camera, error_sentence, read_yaml
from gap_bioimage.errors import AxesError, ConfigError, GapWarning, NotPhotonCountsError
from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

CORRELATED = 0.1  # noise of neighbours that raw images do not share
_QUIET = 0.5  # electrons of read noise that clipping at zero does not matter for
_TOO_NOISY, _TOO_QUIET = 2.0, 0.5  # variance over mean of counts, 1 for photons
_MOST_SATURATED = 1e-4  # share of pixels
_AT_ONCE_PX = 4_000_000
_MOST_BELOW = 0.5  # share of pixels below the offset: noise alone explains at most half


@dataclass(frozen=True)
class PixelMaps:
    """Offset (ADU) and read noise (electrons RMS) of every pixel, both (y, x)."""

    offset: NDArray[np.float32]
    read_noise: NDArray[np.float32]


@dataclass(frozen=True)
class Detector:
    """A camera, and its pixels one by one where they were measured.

    Attributes
    ----------
    camera
        One number for all pixels each.
    maps
        For images of exactly the same pixels.
    moved
        Whether counts are moved until they are distributed as photons, as anchored networks see them.
    """

    camera: Camera
    maps: PixelMaps | None = None
    moved: bool = False

    @classmethod
    def of(cls, camera: Detector | Camera | Path | str) -> Detector:
        """Take a camera as numbers, or read its yaml (ConfigError as for ``read_camera``)."""
        if isinstance(camera, Detector):
            return camera
        if not isinstance(camera, (Camera, str, Path)):
            raise ConfigError(f"the camera is of type {type(camera).__name__}, expected a Camera or its yaml's path")
        return cls(camera) if isinstance(camera, Camera) else read_camera(camera)

    @property
    def scalar(self) -> Detector:
        """The same camera without maps."""
        return replace(self, maps=None)

    @property
    def correlation(self) -> float:
        """How much noise pixels or frames shared when this was measured."""
        told = self.camera.measured.get("correlated") or []
        return max((abs(share) for share in told if isinstance(share, float)), default=0.0)

    def crop(self, rows: slice, columns: slice) -> Detector:
        """Return the camera of a part of its images."""
        if self.maps is None:
            return self
        return replace(self, maps=PixelMaps(self.maps.offset[rows, columns], self.maps.read_noise[rows, columns]))

    def for_network(self, anchored: bool) -> Detector:
        """Return the camera as a network sees its images: plain ones know whole numbers only."""
        from gap_bioimage.filters import LEAST_SHIFT

        moved = anchored and not self.camera.multiplying and float(np.max(self.shift())) > LEAST_SHIFT
        return replace(self, moved=moved)

    def shift(self) -> float | NDArray[np.float64]:
        """Return what is added to the electrons before rounding, a number or (y, x): the variance that is not theirs.

        It holds read noise, rounding to counts, and the uniform noise of one ADU that training adds, since several
        electrons may share one ADU.
        """
        return self._shift

    @cached_property
    def _shift(self) -> float | NDArray[np.float64]:
        if self.maps is None:
            camera = self.camera
            return model.camera_shift(camera.gain, camera.offset % 1, self._noise(), self._rounded_deviation())
        deviation = self._deviation(np.asarray(self.maps.read_noise, np.float64))
        curve = np.interp(deviation, *model.quiet_shifts())  # beyond 1 the shift is a formula
        return np.asarray(np.where(deviation > 1, np.square(deviation) + model.ROUNDING, curve))

    def background(self) -> float | NDArray[np.float64]:
        """Return what is to be subtracted from denoised counts, a number or (y, x): the counts of no electrons."""
        if self.moved:
            return self.shift()
        shift = float(np.mean(self.scalar.shift()))
        mean = model.mean_of_counts(self.camera.gain, self.camera.offset % 1, self._noise(), shift)
        # rounding differs from pixel to pixel; with maps the average over all must do
        return mean if self.maps is None else self.shift() + (mean - shift)

    def counts(self, adu: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int32]:
        """Turn camera values into counts.

        Parameters
        ----------
        adu
            Values (..., y, x) as recorded.
        rng
            For training: spreads values within their ADU, since one ADU may be several electrons, and moves them so
            that their noise is that of photons not in its variance alone (``like_photons``). Without it every value
            gives the same count.

        Returns
        -------
        NDArray
            Same shape; about Poisson with the mean ``electrons + shift``, and 0 where a value is NaN.
        """
        values = np.asarray(adu).astype(np.float64)
        if rng is not None:
            values += rng.random(values.shape) - 0.5
        photons = self._shifted(values)
        if rng is not None and not self.camera.multiplying:
            photons = self._like_photons(photons).double().numpy()
        return np.asarray(np.clip(np.rint(photons), 0, np.iinfo(np.int32).max), np.int32)

    def values(self, adu: NDArray[Any]) -> NDArray[Any]:
        """Return what ``seen`` takes, of the same shape: int32 ``counts``, or float32 if they are to be ``moved``."""
        return self._shifted(np.asarray(adu, np.float64)).astype(np.float32) if self.moved else self.counts(adu)

    def seen(self, values: NDArray[Any]) -> Tensor:
        """Return ``values``, (..., y, x), as networks see them, float32."""
        if self.moved and values.dtype.kind == "f":
            return self._like_photons(values)
        import torch

        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    def _like_photons(self, values: NDArray[Any]) -> Tensor:
        import torch

        from gap_bioimage.filters import like_photons

        shift = torch.from_numpy(np.atleast_1d(self.shift()).astype(np.float32))
        planes = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(-1, *values.shape[-2:])
        # not all at once: it takes many times their memory
        at_once = max(1, _AT_ONCE_PX // planes[0].numel())
        parts = planes.split(at_once)  # type: ignore[no-untyped-call]
        return torch.cat([like_photons(part, shift) for part in parts]).reshape(values.shape)

    def _shifted(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        photons = (values - self._offset()) / self.camera.gain + self.shift()
        return np.nan_to_num(photons, posinf=np.iinfo(np.int32).max)

    def electrons(self, adu: xr.DataArray) -> xr.DataArray:
        """Return camera values (..., y, x) in electrons, neither rounded nor clipped: for people to look at."""
        offset = self._offset()
        return (adu - (offset if self.maps is None else xr.DataArray(offset, dims=["y", "x"]))) / self.camera.gain

    def saturated(self, adu: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels reached the camera's ceiling; the type's own where none is known."""
        ceiling = self.camera.saturation
        if ceiling is None:
            ceiling = np.iinfo(adu.dtype).max if adu.dtype.kind in "iu" else math.inf
        return np.asarray(adu >= ceiling)

    def check_size(self, image: xr.DataArray, name: str = "the image") -> None:
        """See that maps fit an image; AxesError if they have other sizes."""
        size = (image.sizes["y"], image.sizes["x"])
        if self.maps is not None and self.maps.offset.shape != size:
            told = f"the camera's maps have {self.maps.offset.shape} pixels, {name} {size}"
            raise AxesError(f"{told}; crop the dark frames as the images, or remove 'maps' from the camera's yaml")

    def _noise(self) -> float:
        """Read noise without digitisation, electrons."""
        return math.sqrt(max(0.0, self.camera.read_noise**2 - model.ROUNDING / self.camera.gain**2))

    def _deviation(self, noise: float | NDArray[np.float64]) -> Any:
        """Standard deviation of no electrons, with the uniform noise of one ADU added; electrons."""
        step = model.ROUNDING / self.camera.gain**2
        return np.sqrt(np.maximum(np.square(noise), step) + step)

    def _rounded_deviation(self) -> float:
        return round(float(self._deviation(self.camera.read_noise)), 4)

    def _offset(self) -> float | NDArray[np.float64]:
        return self.camera.offset if self.maps is None else np.asarray(self.maps.offset, np.float64)


def read_camera(path: Path | str) -> Detector:
    """Read ``camera.yaml``, and the maps that it names.

    Raises
    ------
    ConfigError
        If the file does not describe a camera, or its maps cannot be read.
    """
    from gap_bioimage.io import read_photons

    path = Path(path)
    try:
        camera = Camera.model_validate(read_yaml(path))
    except ValidationError as error:
        told = "; ".join(error_sentence(Camera, e) for e in error.errors())
        hint = "expected lines such as 'gain: 2.2' and 'offset: 100'; `gap-bioimage calibrate` writes them"
        raise ConfigError(f"{path} does not describe a camera: {told}; {hint}") from None
    if camera.maps is None:
        return Detector(camera)
    file = path.parent / camera.maps
    if not file.is_file():
        raise ConfigError(f"{path} names the maps {camera.maps}, which are not beside it; copy them there too")
    maps = np.asarray(read_photons(file, "cyx", check=False), np.float32)
    if len(maps) != 2 or not np.isfinite(maps).all():
        told = f"{file} has other than two channels, offset and read noise of each pixel, or values that are not finite"
        raise ConfigError(f"{told}; write it again with `gap-bioimage calibrate`")
    return Detector(camera, PixelMaps(*maps))


def write_camera(path: Path | str, detector: Detector) -> None:
    """Write ``camera.yaml``, and its maps as ``camera_maps.tif`` beside it.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    from gap_bioimage.io import write_image

    path, camera = Path(path), detector.camera
    if detector.maps is not None:
        camera = camera.model_copy(update={"maps": f"{path.stem}_maps.tif"})
        both = np.stack([detector.maps.offset, detector.maps.read_noise]).astype(np.float32)
        names = ["offset (ADU)", "read noise (electrons)"]
        write_image(path.with_name(str(camera.maps)), xr.DataArray(both, dims=list("cyx"), coords={"c": names}))
    with replacing(path) as temporary:
        values = camera.model_dump(mode="json", exclude_defaults=True)
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def check_camera_image(image: xr.DataArray, detector: Detector, *, name: str) -> None:
    """Refuse images that this camera cannot have written, and warn where counts will not be Poisson.

    Raises NotPhotonCountsError if values are not finite or most lie far below the offset, AxesError if maps have
    other sizes. Warns if pixels are saturated, if the noise is that of another camera, or if dark pixels have too
    little signal and read noise for the shifted Poisson model.
    """
    if image.dtype.kind not in "uif":
        raise NotPhotonCountsError(f"{name} holds {image.dtype}, expected a camera's numbers; save it as 16 bit")
    detector.check_size(image, name)
    image = image.transpose(..., "y", "x")
    planes, camera = image.data.reshape(-1, *image.shape[-2:]), detector.camera
    if image.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in planes):
        raise NotPhotonCountsError(f"{name} has values that are not finite, expected a camera's numbers")
    sample = np.asarray(planes[np.unique(np.linspace(0, len(planes) - 1, 8).astype(int))])
    below = float(np.mean(sample < camera.offset - 3 * camera.gain * max(camera.read_noise, 1.0)))
    if below > _MOST_BELOW:
        told = f"{below:.0%} of the pixels of {name} lie far below the camera's offset of {camera.offset:g}"
        counts = "for photon counts leave the camera out, or where a model has one give camera=None"
        raise NotPhotonCountsError(f"{told}, expected its raw images; {counts}")
    for told in _doubts(image, sample, detector, name):
        warnings.warn(told, GapWarning, stacklevel=2)


def _doubts(image: xr.DataArray, sample: NDArray[Any], detector: Detector, name: str) -> Iterator[str]:
    camera, share = detector.camera, float(np.mean(detector.saturated(sample)))
    if share > _MOST_SATURATED:
        yield f"{share:.2%} of the pixels of {name} are saturated, and results there too dark; use a shorter exposure"
    if detector.correlation >= CORRELATED:
        told = f"this camera was measured on images whose neighbours share noise ({detector.correlation:.2f}): networks"
        yield f"{told} copy some of it, and what is held out of {name} tells nothing of quality; use raw images"
    fano = _variance_over_mean(image, detector)
    if not _TOO_QUIET <= fano <= _TOO_NOISY:
        told = f"with this camera's numbers the noise of {name} has {fano:.2g} times the variance of photons, as with"
        yield f"{told} another camera or setting, or after smoothing; measure them with `gap-bioimage calibrate`"
    # a percentile, because single pixels of dark images are noise
    signal = max(0.0, (float(np.percentile(sample, 25)) - camera.offset) / camera.gain)
    if camera.read_noise > _QUIET and signal + camera.read_noise**2 < model.MODEL_FROM:
        told = f"dark pixels of {name} have {signal:.2g} electrons: clipped at zero, their counts are roughly those"
        yield f"{told} of photons (signal + read noise^2 should be at least 1)"


def _variance_over_mean(image: xr.DataArray, detector: Detector) -> float:
    """Variance over mean of the counts, in time where there are frames, as in calibrations; 1 where it is not known."""
    time = image.dims.index("t") if "t" in image.dims else None
    # calibrate has said of correlated noise; single images then have other noise than differences of frames
    known = time is not None or not detector.camera.measured.get("correlated")
    if not known or min(image.shape[-2:]) < LEAST_PX:
        return 1.0
    counts = detector.scalar.counts(as_stack(image.data, time)[:8, :8])
    curve = curve_of(moments_of(counts, in_time=counts.shape[1] > 1))
    return 1.0 if curve is None else curve.smallest if curve.smallest > _TOO_NOISY else curve.dark
