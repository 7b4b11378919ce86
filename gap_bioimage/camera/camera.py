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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import ValidationError

from gap_bioimage.camera.moments import as_stack, moments_of
from gap_bioimage.camera.noise import noise_of
from gap_bioimage.camera.shifted_poisson import (
    LOWEST,
    MODEL_FROM,
    ROUNDING,
    balanced_shift,
    camera_shift,
    mean_of_counts,
    spread_of_lowest,
)
from gap_bioimage.config import Camera, error_sentence, read_yaml
from gap_bioimage.errors import AxesError, ConfigError, GapWarning, NotPhotonCountsError
from gap_bioimage.files import replacing

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

_QUIET = 0.5  # electrons of read noise that clipping at zero does not matter for
_TOO_NOISY, _TOO_QUIET = 2.0, 0.5  # variance over mean of counts, 1 for photons
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
    """

    camera: Camera
    maps: PixelMaps | None = None

    @classmethod
    def of(cls, camera: Detector | Camera | Path | str) -> Detector:
        """Take a camera as numbers, or read its yaml.

        Raises
        ------
        ConfigError
            If the yaml does not describe a camera, or its maps cannot be read.
        """
        if isinstance(camera, Detector):
            return camera
        return cls(camera) if isinstance(camera, Camera) else read_camera(camera)

    @property
    def scalar(self) -> Detector:
        """The same camera without maps."""
        return Detector(self.camera)

    def crop(self, rows: slice, columns: slice) -> Detector:
        """Return the camera of a part of its images."""
        if self.maps is None:
            return self
        cut = (rows, columns)
        return Detector(self.camera, PixelMaps(self.maps.offset[cut], self.maps.read_noise[cut]))

    def shift(self) -> float | NDArray[np.float64]:
        """Return what is added to the electrons before rounding, a number or (y, x): the variance that is not theirs.

        It holds read noise, rounding to counts, and the uniform noise of one ADU that training adds, since several
        electrons may share one ADU.
        """
        deviation = self._deviation()
        if isinstance(deviation, float):
            return camera_shift(self.camera.gain, self.camera.offset % 1, self._noise(), round(deviation, 4))
        # beyond 1 the shift is a formula, below a smooth curve
        knots = np.linspace(0.0, 1.0, 200)
        curve = np.interp(deviation, knots, [balanced_shift(float(knot)) for knot in knots])
        return np.where(deviation > 1, np.square(deviation) + ROUNDING, curve)

    def background(self) -> float | NDArray[np.float64]:
        """Return what is to be subtracted from denoised counts, a number or (y, x): the counts of no electrons."""
        camera, shift = self.camera, self.scalar.shift()
        assert isinstance(shift, float)  # noqa: S101
        mean = mean_of_counts(camera.gain, camera.offset % 1, self._noise(), shift)
        # rounding differs from pixel to pixel; with maps the average over all must do
        return mean if self.maps is None else self.shift() + (mean - shift)

    def counts(self, adu: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.int32]:
        """Turn camera values into counts.

        Parameters
        ----------
        adu
            Values (..., y, x) as recorded.
        rng
            For training: spreads values within their ADU and the lowest counts a little, so that the variance of
            the counts is their mean also where one ADU is several electrons, or near darkness. Without it every
            value gives the same count.

        Returns
        -------
        NDArray
            Same shape; about Poisson with the mean ``electrons + shift``.
        """
        values = np.asarray(adu).astype(np.float64)
        if rng is not None:
            values += rng.random(values.shape) - 0.5
        electrons = (values - self._offset()) / self.camera.gain + self.shift()
        counts = np.clip(np.rint(electrons), 0, np.iinfo(np.int32).max).astype(np.int32)
        return counts if rng is None else self._spread(counts, rng)

    def electrons(self, adu: xr.DataArray) -> xr.DataArray:
        """Return camera values (..., y, x) in electrons, neither rounded nor clipped: for people to look at."""
        import xarray as xr

        offset = self._offset()
        return (
            adu - (offset if isinstance(offset, float) else xr.DataArray(offset, dims=["y", "x"]))
        ) / self.camera.gain

    def saturated(self, adu: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels reached the camera's ceiling; the type's own where none is known."""
        ceiling = self.camera.saturation
        if ceiling is None:
            ceiling = np.iinfo(adu.dtype).max if adu.dtype.kind in "iu" else math.inf
        reached: NDArray[np.bool_] = adu >= ceiling
        return reached

    def check_size(self, image: xr.DataArray) -> None:
        """See that maps fit an image.

        Raises
        ------
        AxesError
            If they have other sizes.
        """
        size = (image.sizes["y"], image.sizes["x"])
        if self.maps is not None and self.maps.offset.shape != size:
            raise AxesError(
                f"the camera's maps have {self.maps.offset.shape} pixels, the image {size}; crop the dark frames as "
                "the images, or remove 'maps' from the camera's yaml to use one offset for all pixels"
            )

    def _noise(self) -> float:
        """Read noise without digitisation, electrons."""
        return math.sqrt(max(0.0, self.camera.read_noise**2 - ROUNDING / self.camera.gain**2))

    def _deviation(self) -> float | NDArray[np.float64]:
        """Standard deviation of no electrons, with the uniform noise of one ADU added; electrons."""
        step = ROUNDING / self.camera.gain**2
        noise = self.camera.read_noise if self.maps is None else np.asarray(self.maps.read_noise, np.float64)
        deviation = np.sqrt(np.maximum(np.square(noise), step) + step)
        return float(deviation) if self.maps is None else deviation

    def _offset(self) -> float | NDArray[np.float64]:
        return self.camera.offset if self.maps is None else np.asarray(self.maps.offset, np.float64)

    def _spread(self, counts: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
        """Move some of the lowest counts up or down by one: clipping at zero has taken variance from them."""
        deviation = self.scalar._deviation()
        assert isinstance(deviation, float)  # noqa: S101
        chance = spread_of_lowest(round(deviation, 4))
        if not any(chance):
            return counts
        table = np.zeros(LOWEST + 1)
        table[1:LOWEST] = chance
        low = table[np.minimum(counts, LOWEST)]
        drawn = rng.random(counts.shape)
        moved: NDArray[np.int32] = counts + (drawn < low) - (drawn > 1 - low)
        return moved


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
        raise ConfigError(
            f"{path} does not describe a camera: {told}; `gap-bioimage calibrate` writes such a file, or write the "
            "lines 'gain: 2.2' and 'offset: 100' yourself"
        ) from None
    if camera.maps is None:
        return Detector(camera)
    file = path.parent / camera.maps
    if not file.is_file():
        raise ConfigError(f"{path} names the maps {camera.maps}, which are not beside it; copy them there too")
    maps = read_photons(file, "cyx", check=False)
    if maps.sizes["c"] != 2:
        raise ConfigError(f"{file} has {maps.sizes['c']} channels, expected two: offset and read noise of each pixel")
    offset, noise = np.asarray(maps.data, np.float32)
    return Detector(camera, PixelMaps(offset, noise))


def write_camera(path: Path | str, detector: Detector) -> None:
    """Write ``camera.yaml``, and its maps as ``camera_maps.tif`` beside it.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    import xarray as xr

    from gap_bioimage.io import write_image

    path, camera = Path(path), detector.camera
    if detector.maps is not None:
        camera = camera.model_copy(update={"maps": f"{path.stem}_maps.tif"})
        both = np.stack([detector.maps.offset, detector.maps.read_noise]).astype(np.float32)
        names = ["offset (ADU)", "read noise (electrons)"]
        write_image(path.with_name(str(camera.maps)), xr.DataArray(both, dims=list("cyx"), coords={"c": names}))
    with replacing(path) as temporary:
        temporary.write_text(camera_yaml(camera), encoding="utf-8")


def camera_yaml(camera: Camera) -> str:
    """Return a camera as yaml, without what is not known."""
    return yaml.safe_dump(camera.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def check_camera_image(image: xr.DataArray, detector: Detector, *, name: str) -> None:
    """Refuse images that this camera cannot have written, and warn where counts will not be Poisson.

    Parameters
    ----------
    image
        Camera values, dims that end in y, x.
    detector
        The camera.
    name
        What to call the image in the message.

    Raises
    ------
    NotPhotonCountsError
        If values are not finite, or most lie far below the offset.
    AxesError
        If maps have other sizes than the image.

    Warns
    -----
    UserWarning
        If pixels are saturated, or dark pixels have too little signal and read noise for the shifted Poisson
        model.
    """
    if image.dtype.kind not in "uif":
        raise NotPhotonCountsError(f"{name} holds {image.dtype}, expected a camera's numbers; save it as 16 bit")
    detector.check_size(image)
    sample = _some_planes(image)
    if sample.dtype.kind == "f" and not np.isfinite(sample).all():
        raise NotPhotonCountsError(f"{name} has values that are not finite, expected a camera's numbers")
    camera = detector.camera
    noise = camera.gain * max(camera.read_noise, 1.0)
    below = float(np.mean(sample < camera.offset - 3 * noise))
    if below > _MOST_BELOW:
        raise NotPhotonCountsError(
            f"{below:.0%} of the pixels of {name} lie far below the camera's offset of {camera.offset:g} ADU (median "
            f"{np.median(sample):g}), expected raw images of that camera; for images that are photon counts already "
            "leave the camera out (--camera none)"
        )
    share = float(np.mean(detector.saturated(sample)))
    if share > 1e-4:
        warnings.warn(
            f"{share:.2%} of the pixels of {name} are saturated: training leaves them out, and results there are too "
            "dark; use a shorter exposure",
            GapWarning,
            stacklevel=2,
        )
    _check_noise(image, detector, name)
    # a percentile, because single pixels of dark images are noise
    dark = float(np.percentile(sample, 25)) - camera.offset
    signal = max(0.0, dark / camera.gain)
    if camera.read_noise > _QUIET and signal + camera.read_noise**2 < MODEL_FROM:
        warnings.warn(
            f"dark pixels of {name} have {signal:.2g} electrons with a read noise of {camera.read_noise:.2g}: they are "
            "clipped at zero, and their counts are only roughly those of photons (signal + read noise^2 should be at "
            "least 1)",
            GapWarning,
            stacklevel=2,
        )


def _check_noise(image: xr.DataArray, detector: Detector, name: str) -> None:
    """Warn where the counts' noise is far from that of photons, in time where there are frames, as in calibrations."""
    measured = detector.camera.measured
    time = image.dims.index("t") if "t" in image.dims else None
    if time is None and measured.get("correlated"):
        return  # calibrate has said so; single images then have other noise than differences of frames
    values = image.data if isinstance(image.data, np.ndarray) else np.asarray(image.data)
    counts = detector.scalar.counts(as_stack(values, time)[:8, :8])
    noise = noise_of(moments_of(counts, in_time=counts.shape[1] > 1)) if min(counts.shape[2:]) > 2 else None
    found = 1.0 if noise is None else noise.smallest if noise.smallest > _TOO_NOISY else noise.dark
    if not _TOO_QUIET <= found <= _TOO_NOISY:
        warnings.warn(
            f"with this camera's numbers the noise of {name} has {found:.2g} times the variance of photons: they are "
            "those of another camera or setting, or the image was smoothed or resampled; measure them with "
            "`gap-bioimage calibrate`",
            GapWarning,
            stacklevel=3,
        )


def _some_planes(image: xr.DataArray) -> NDArray[Any]:
    """Return up to eight planes, spread evenly."""
    values = image.data.reshape(-1, *image.shape[-2:])
    chosen = np.unique(np.linspace(0, len(values) - 1, 8).astype(int))
    return np.stack([np.asarray(values[i]) for i in chosen])
