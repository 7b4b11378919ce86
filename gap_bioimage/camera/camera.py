"""Convert camera values (ADU) to counts with Poisson noise, and back.

ADU = offset + gain (e + N(0, read^2)): the electrons e are Poisson, the read noise is not. Adding its variance to
the electrons before rounding makes mean and variance equal again ("shifted Poisson"). The two halves of thinned
counts are then uncorrelated: Cov(in, target) = p (1 - p) (Var x - E x). The same number is subtracted from the result.

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
from gap_bioimage.camera.moments import LEAST_PX, as_stack, moments_of, scan
from gap_bioimage.camera.noise import curve_of
from gap_bioimage.config import Camera, error_sentence, read_yaml
from gap_bioimage.errors import AxesError, ConfigError, GapWarning, NotPhotonCountsError
from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

_CORRELATED = 0.1  # noise correlation between neighbours above which images are not raw
_QUIET = 0.5  # read noise (electrons) up to which clipping at zero is harmless
_TOO_NOISY, _TOO_QUIET = 2.0, 0.5  # variance over mean of the counts, 1 for photons, that leads to a warning
_MOST_SATURATED = 1e-4  # fraction of saturated pixels above which a warning is given
_AT_ONCE_PX = 4_000_000  # pixels transformed at a time, to limit memory
_MOST_BELOW = 0.5  # fraction of pixels below the offset: noise alone explains at most half


def share_noise(*correlations: float) -> bool:
    """Whether neighbours with noise of these correlations share it, unlike those in raw images."""
    return max(map(abs, correlations)) >= _CORRELATED


@dataclass(frozen=True)
class PixelMaps:
    """Offset (ADU) and read noise (electrons RMS) of each pixel, both (y, x)."""

    offset: NDArray[np.float32]
    read_noise: NDArray[np.float32]


@dataclass(frozen=True)
class Detector:
    """A camera, with maps of its pixels if they were measured.

    Attributes
    ----------
    camera
        Gain, offset and read noise, one number each for all pixels.
    maps
        Offset and read noise of each pixel, for images of exactly the same pixels.
    moved
        Whether values are given a Poisson distribution (``like_photons``), for anchored networks, rather than rounded.
    """

    camera: Camera
    maps: PixelMaps | None = None
    moved: bool = False

    @classmethod
    def of(cls, camera: Detector | Camera | Path | str) -> Detector:
        """Return the detector of a camera, or of its YAML file (ConfigError as in ``read_camera``)."""
        if isinstance(camera, Detector):
            return camera
        if not isinstance(camera, (Camera, str, Path)):
            raise ConfigError(f"the camera is of type {type(camera).__name__}, expected a Camera or the path of a yaml")
        return cls(camera) if isinstance(camera, Camera) else read_camera(camera)

    @property
    def scalar(self) -> Detector:
        """The same detector without maps."""
        return replace(self, maps=None)

    @property
    def correlations(self) -> tuple[float, float]:
        """Correlation of the noise in the calibration's images: the largest of neighbouring pixels, and of frames."""
        found = [abs(r) if isinstance(r, float) else 0.0 for r in self.camera.measured.get("correlated") or ()]
        return max(found[:2], default=0.0), max(found[2:], default=0.0)

    def crop(self, rows: slice, columns: slice) -> Detector:
        """Return the detector of a region of its images."""
        if self.maps is None:
            return self
        return replace(self, maps=PixelMaps(self.maps.offset[rows, columns], self.maps.read_noise[rows, columns]))

    def for_network(self, anchored: bool) -> Detector:
        """Return the detector for a network: ``moved`` if it is anchored, since others take whole counts only."""
        from gap_bioimage.filters import MIN_SHIFT

        moved = anchored and not self.camera.multiplying and float(np.max(self.shift())) > MIN_SHIFT
        return replace(self, moved=moved)

    def shift(self) -> float | NDArray[np.float64]:
        """Return the number added to the electrons before rounding, a scalar or (y, x).

        It equals the variance that does not come from the electrons: read noise, rounding to counts, and the uniform
        noise of one ADU added in training, where several electrons may share one ADU.
        """
        return self._shift

    @cached_property
    def _shift(self) -> float | NDArray[np.float64]:
        if self.maps is None:
            camera, deviation = self.camera, round(float(self._deviation(self.camera.read_noise)), 4)
            return model.camera_shift(camera.gain, camera.offset % 1, self._noise(), deviation)
        deviation = self._deviation(np.asarray(self.maps.read_noise, np.float64))
        curve = np.interp(deviation, *model.quiet_shifts())  # above 1 the formula below holds
        return np.asarray(np.where(deviation > 1, np.square(deviation) + model.ROUNDING, curve))

    def background(self) -> float | NDArray[np.float64]:
        """Return the mean counts of zero electrons, a scalar or (y, x), to be subtracted from denoised counts."""
        if self.moved:
            return self.shift()
        shift = float(np.mean(self.scalar.shift()))
        mean = model.mean_of_counts(self.camera.gain, self.camera.offset % 1, self._noise(), shift)
        # with maps, rounding differs from pixel to pixel; its average over the image is used
        return mean if self.maps is None else self.shift() + (mean - shift)

    def counts(self, adu: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int32]:
        """Turn camera values into counts.

        Parameters
        ----------
        adu
            Values (..., y, x) as recorded.
        rng
            Random generator, for training: it spreads values uniformly within their ADU, since one ADU may be several
            electrons. Their noise then gets the whole distribution of photons, not the variance alone
            (``like_photons``). Without it, equal values give equal counts.

        Returns
        -------
        NDArray
            Same shape; approximately Poisson with the mean ``electrons + shift``, and 0 where a value is NaN.
        """
        values = np.asarray(adu).astype(np.float64)
        if rng is not None:
            values += rng.random(values.shape) - 0.5
        photons = self._shifted(values)
        if rng is not None and not self.camera.multiplying:
            photons = self._like_photons(photons).double().numpy()
        return np.asarray(np.clip(np.rint(photons), 0, np.iinfo(np.int32).max), np.int32)

    def values(self, adu: NDArray[Any]) -> NDArray[Any]:
        """Return the input of ``seen``, of the same shape: int32 ``counts``, or float32 if ``moved``."""
        return self._shifted(np.asarray(adu, np.float64)).astype(np.float32) if self.moved else self.counts(adu)

    def seen(self, values: NDArray[Any]) -> Tensor:
        """Return the input of networks, float32, from ``values`` (..., y, x)."""
        if self.moved and values.dtype.kind == "f":
            return self._like_photons(values)
        import torch

        return torch.from_numpy(np.ascontiguousarray(values, np.float32))

    def _like_photons(self, values: NDArray[Any]) -> Tensor:
        import torch

        from gap_bioimage.filters import like_photons

        shift = torch.from_numpy(np.atleast_1d(self.shift()).astype(np.float32))
        planes = torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(-1, *values.shape[-2:])
        # in parts, because the transform takes many times the memory of its input
        at_once = max(1, _AT_ONCE_PX // planes[0].numel())
        parts = planes.split(at_once)  # type: ignore[no-untyped-call]
        return torch.cat([like_photons(part, shift) for part in parts]).reshape(values.shape)

    def _shifted(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        photons = (values - self._offset()) / self.camera.gain + self.shift()
        return np.nan_to_num(photons, posinf=np.iinfo(np.int32).max)

    def electrons(self, adu: xr.DataArray) -> xr.DataArray:
        """Return camera values (..., y, x) in electrons, neither rounded nor clipped, for display."""
        return (adu - self._offset()) / self.camera.gain

    def saturated(self, adu: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels reach the camera's saturation, by default the largest value of the dtype."""
        ceiling = self.camera.saturation
        if ceiling is None:
            ceiling = np.iinfo(adu.dtype).max if adu.dtype.kind in "iu" else math.inf
        return np.asarray(adu >= ceiling)

    def check_size(self, image: xr.DataArray, name: str = "the image") -> None:
        """Raise AxesError if the maps and an image differ in size."""
        size = (image.sizes["y"], image.sizes["x"])
        if self.maps is not None and self.maps.offset.shape != size:
            problem = f"the camera's maps have {self.maps.offset.shape} pixels, but {name} has {size}"
            raise AxesError(f"{problem}; crop the dark frames like the images, or remove 'maps' from the camera's yaml")

    def _noise(self) -> float:
        """Return the read noise without digitisation, in electrons."""
        return math.sqrt(max(0.0, self.camera.read_noise**2 - model.ROUNDING / self.camera.gain**2))

    def _deviation(self, noise: float | NDArray[np.float64]) -> Any:
        """Return the standard deviation of zero electrons plus uniform noise of one ADU, in electrons."""
        step = model.ROUNDING / self.camera.gain**2
        return np.sqrt(np.maximum(np.square(noise), step) + step)

    def _offset(self) -> float | NDArray[np.float64]:
        return self.camera.offset if self.maps is None else np.asarray(self.maps.offset, np.float64)


def read_camera(path: Path | str) -> Detector:
    """Read ``camera.yaml`` and the maps that it names.

    Raises
    ------
    ConfigError
        If the file does not describe a camera, or its maps cannot be read.
    """
    from gap_bioimage.io import read_photons

    path = Path(path)
    if not path.exists():
        raise ConfigError(f"there is no camera file {path}; give the yaml from calibrate, or camera=None for counts")
    try:
        camera = Camera.model_validate(read_yaml(path))
    except ValidationError as error:
        problems = "; ".join(error_sentence(Camera, e) for e in error.errors())
        hint = "expected lines such as 'gain: 2.2' and 'offset: 100'; `gap-bioimage calibrate` writes them"
        raise ConfigError(f"{path} does not describe a camera: {problems}; {hint}") from None
    if camera.maps is None:
        return Detector(camera)
    file = path.parent / camera.maps
    if not file.is_file():
        raise ConfigError(f"{path} names the maps {camera.maps}, which are not in its folder; copy them there")
    maps = np.asarray(read_photons(file, "cyx", check=False), np.float32)
    if len(maps) != 2 or not np.isfinite(maps).all():
        problem = "does not have two channels (offset and read noise of each pixel), or has values that are not finite"
        raise ConfigError(f"{file} {problem}; write it again with `gap-bioimage calibrate`")
    return Detector(camera, PixelMaps(*maps))


def write_camera(path: Path | str, detector: Detector) -> None:
    """Write ``camera.yaml``, and its maps as ``camera_maps.tif`` next to it.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    from gap_bioimage.io import write_image

    path, camera = Path(path), detector.camera
    if detector.maps is not None:
        camera = camera.model_copy(update={"maps": f"{path.stem}_maps.tif"})
        maps = np.stack([detector.maps.offset, detector.maps.read_noise]).astype(np.float32)
        names = ["offset (ADU)", "read noise (electrons)"]
        write_image(path.with_name(str(camera.maps)), xr.DataArray(maps, dims=list("cyx"), coords={"c": names}))
    with replacing(path) as temporary:
        values = camera.model_dump(mode="json", exclude_defaults=True)
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def check_camera_image(image: xr.DataArray, detector: Detector, *, name: str) -> None:
    """Refuse images that this camera cannot have recorded, and warn if their counts will not be Poisson.

    Raises NotPhotonCountsError if values are not finite or most lie far below the offset, and AxesError if the maps
    have another size. Warns if pixels are saturated, if the camera was measured on correlated noise, if the noise does
    not match the camera, or if dark pixels have too little signal and read noise for the shifted-Poisson model.
    """
    if image.dtype.kind not in "uif":
        raise NotPhotonCountsError(f"{name} holds {image.dtype}, expected camera values; save it with 16 bits")
    detector.check_size(image, name)
    image = image.transpose(..., "y", "x")
    planes, camera = image.data.reshape(-1, *image.shape[-2:]), detector.camera
    if image.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in planes):
        raise NotPhotonCountsError(f"{name} has values that are not finite, expected camera values")
    sample = np.asarray(planes[np.unique(np.linspace(0, len(planes) - 1, 8).astype(int))])
    below = float(np.mean(sample < camera.offset - 3 * camera.gain * max(camera.read_noise, 1.0)))
    if below > _MOST_BELOW:
        problem = f"{below:.0%} of the pixels of {name} lie far below the camera's offset of {camera.offset:g}"
        hint = "for photon counts give no camera, or camera=None if the model has one"
        raise NotPhotonCountsError(f"{problem}, expected its raw images; {hint}")
    for message in _warnings(image, sample, detector, name):
        warnings.warn(message, GapWarning, stacklevel=2)


def _warnings(image: xr.DataArray, sample: NDArray[Any], detector: Detector, name: str) -> Iterator[str]:
    camera, saturated = detector.camera, float(np.mean(detector.saturated(sample)))
    if saturated > _MOST_SATURATED:
        yield f"{saturated:.2%} of the pixels of {name} are saturated and too dark in results; use a shorter exposure"
    elif (values := scan(sample)).piled_up(sample.dtype) and values.at_maximum > _MOST_SATURATED * values.pixels:
        share, top = values.at_maximum / values.pixels, f"{values.maximum:g}"
        yield f"{share:.2%} of the pixels of {name} are {top}: if that is saturation, add saturation: {top} to the yaml"
    if share_noise(*detector.correlations):
        shared = f"share noise ({max(detector.correlations):.2f})"
        cause = f"this camera was measured on images whose neighbouring pixels or frames {shared}"
        copied = "networks copy some of it, unless trained on other frames of the scene (train.repeats=t)"
        yield f"{cause}: {copied}; held-out photons of {name} cannot show quality; use raw images"
    fano = _variance_over_mean(image, detector)
    if not _TOO_QUIET <= fano <= _TOO_NOISY:
        problem = f"with the gain and offset of this camera, the noise of {name} has {fano:.2g} times the variance of"
        hint = "measure the camera with `gap-bioimage calibrate`"
        yield f"{problem} photons, as with another camera or setting, or after smoothing; {hint}"
    # a percentile, because single dark pixels are noise
    signal = max(0.0, (float(np.percentile(sample, 25)) - camera.offset) / camera.gain)
    if camera.read_noise > _QUIET and signal + camera.read_noise**2 < model.MODEL_FROM:
        problem = f"dark pixels of {name} have {signal:.2g} electrons: clipped at zero, their counts are only roughly"
        yield f"{problem} Poisson (signal + read noise^2 should be at least 1)"


def _variance_over_mean(image: xr.DataArray, detector: Detector) -> float:
    """Return variance over mean of the counts, as in calibrations from frame differences if possible; 1 if unknown."""
    time = image.dims.index("t") if "t" in image.dims else None
    # calibrate warned of correlated noise, for which single images and frame differences give different variances
    if (time is None and detector.camera.measured.get("correlated")) or min(image.shape[-2:]) < LEAST_PX:
        return 1.0
    counts = detector.scalar.counts(as_stack(image.data, time)[:8, :8])
    curve = curve_of(moments_of(counts, in_time=counts.shape[1] > 1))
    return 1.0 if curve is None else curve.smallest if curve.smallest > _TOO_NOISY else curve.dark
