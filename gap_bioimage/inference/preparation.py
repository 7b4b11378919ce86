"""Turn an image into the items that a network sees one by one, and their rates back into an image of photons.

Camera values (ADU to counts), one-bit frames, movies as stacks, planes and channels one by one: each conversion is made
on the way in and undone on the way out, here and nowhere else. Hot pixels are replaced on the way in.
"""

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.camera.camera import Detector, check_camera_image
from gap_bioimage.camera.noise import hot_pixels
from gap_bioimage.counts import check_dim, check_whole_numbers
from gap_bioimage.errors import (
    AxesError,
    ConfigError,
    CountsWarning,
    EmptyImageWarning,
    HotPixelWarning,
    NotPhotonCountsError,
)
from gap_bioimage.filters import whole_counts, without_hot_pixels
from gap_bioimage.io.image import as_image, items_first, time_as_z
from gap_bioimage.model import CameraLike, Model, check_model
from gap_bioimage.network import photons_of

_BRIGHT_FRAMES = 0.95  # detections per frame above which the number of photons is barely known
_LISTED = 5  # hot pixels that a warning lists


@dataclass(frozen=True)
class Layout:
    """How to present an image to a model: the arguments that ``denoise`` documents."""

    dims: str | Iterable[str] | None = None
    planes: bool = False
    camera: CameraLike = "model"
    time_as_z: bool = False
    separate_channels: bool = False


@dataclass(frozen=True)
class Prepared:
    """Counts for a network, and how to turn its rates back into photons."""

    # counts with the axes of the input (z for t with ``time_as_z``); float32 until camera noise is made Poisson
    image: xr.DataArray
    ordered: xr.DataArray  # the same with dims (..., c, [z,] y, x), hot pixels replaced
    camera: Detector | None = None  # if the counts come from camera values
    n_frames: int | None = None  # if they are sums of this many one-bit frames
    time_as_z: bool = False

    @cached_property
    def items(self) -> NDArray[Any]:
        """The counts that the network sees one by one, (n, c, [z,] y, x)."""
        values: NDArray[Any] = self.ordered.data
        return values.reshape(-1, *self.ordered.shape[self.ordered.dims.index("c") :])

    def tensor(self, number: int) -> Tensor:
        """Return one item as the network sees it, (1, c, [z,] y, x) float32."""
        if self.camera is not None:
            return self.camera.seen(self.items[number])[None]
        return torch.from_numpy(np.ascontiguousarray(self.items[number]).astype(np.float32))[None]

    def whole(self, number: int) -> Tensor:
        """Return one item as whole numbers, whose hash seeds its samples, (1, c, [z,] y, x) float32."""
        return whole_counts(torch.from_numpy(self.items[number].astype(np.float32)), rounded=True)[None]

    def photons(self, rates: NDArray[np.float32], n_samples: int | None = None) -> xr.DataArray:
        """Return expected counts ([sample,] n, c, [z,] y, x) as photons, with the axes of the input image."""
        full = self.ordered if n_samples is None else self.ordered.expand_dims(sample=n_samples)
        result = full.copy(data=rates.reshape(full.shape))
        if "channel" in result.dims:
            result = result.squeeze("c", drop=True).rename(channel="c")
        elif "c" not in self.image.dims:
            result = result.squeeze("c", drop="c" not in self.image.coords)  # a chosen channel keeps its name
        result = result.transpose(*(() if n_samples is None else ("sample",)), *self.image.dims)
        if self.camera is not None:
            background = self.camera.background()
            by_pixel = background if isinstance(background, float) else xr.DataArray(background, dims=["y", "x"])
            result = (result - by_pixel).astype(np.float32)
        elif self.n_frames is not None:
            result = result.copy(data=photons_of(torch.from_numpy(result.values), 0.0, self.n_frames).numpy())
        return result.rename(z="t") if self.time_as_z else result

    def names(self, numbers: Sequence[int]) -> str:
        """Describe items in words: how many they are, and the position of the first."""
        if len(self.items) == 1:
            return "the image"
        axes = self.ordered.dims[: self.ordered.dims.index("c")]
        place = np.unravel_index(numbers[0], [self.ordered.sizes[axis] for axis in axes])
        first = ", ".join(f"{axis} {index}" for axis, index in zip(axes, place, strict=True))
        return f"{len(numbers)} of {len(self.items)} images (the first at {first}, counted from 0)"

    def warn_of_empty(self, consequence: str) -> None:
        """Warn if items hold no photons."""
        if empty := [number for number, item in enumerate(self.items) if not item.any()]:
            warnings.warn(f"no photons in {self.names(empty)}: {consequence}", EmptyImageWarning, stacklevel=3)


def prepare(
    model: Model,
    image: Any,
    layout: Layout,
    origin: tuple[int, int] | None = None,
    rng: np.random.Generator | None = None,
) -> Prepared:
    """Turn an image, or the part of one that begins at ``origin`` (y, x), into counts for a model; replace hot pixels.

    With ``rng``, camera values become whole counts as in training: thinning splits them into independent halves.
    """
    check_model(model)
    image = as_image(image, layout.dims)
    image = image if image.chunks is None else image.compute()
    source = time_as_z(image) if layout.time_as_z else image
    name = str(image.attrs.get("source", "the image"))
    detector, n_frames = model.camera_for(layout.camera), model.n_frames
    if detector is None:
        check_whole_numbers(source, name=name)
    elif n_frames is None:
        check_camera_image(source, detector, name=name)
        source = _counted(source, detector, rng)
    else:
        raise ConfigError("the model was trained on one-bit frames, which need no camera; give camera=None")
    if n_frames is not None:
        _check_frames(source, n_frames, name)
        if origin is None:  # a part may hold only 0 and 1 because it is dark
            warn_of_single_frames(source, n_frames, name)
    check_dim(source, model.config.dim, plane_by_plane=layout.planes)
    ordered = items_first(source, model.config.dim, separate_channels=layout.separate_channels)
    expected = model.config.channels
    if ordered.sizes["c"] != expected:
        single = "choose one with channel=0, or process each on its own with separate_channels=True"
        remedy = single if expected == 1 else f"give an image with {expected}, without separate_channels"
        has = "1 channel" if (count := source.sizes.get("c", 1)) == 1 else f"{count} channels"
        raise AxesError(f"the image has {has}, the model expects {expected}; {remedy}")
    return Prepared(source, _without_hot_pixels(ordered, name, origin or (0, 0)), detector, n_frames, layout.time_as_z)


def _counted(image: xr.DataArray, detector: Detector, rng: np.random.Generator | None) -> xr.DataArray:
    """Turn camera values into counts, plane by plane to save memory."""
    ordered = image.transpose(..., "y", "x")
    counts = np.empty(ordered.shape, np.float32 if detector.moved and rng is None else np.int32)
    for place in np.ndindex(ordered.shape[:-2]):
        adu = np.asarray(ordered.data[place])
        counts[place] = detector.values(adu) if rng is None else detector.counts(adu, rng)
    return ordered.copy(data=counts).transpose(*image.dims)


def _check_frames(image: xr.DataArray, n_frames: int, name: str) -> None:
    if (highest := float(image.max())) > n_frames:
        raise NotPhotonCountsError(f"{name} holds up to {highest:g} photons in a pixel, but {_trained_on(n_frames)}")
    saturated = float((image >= _BRIGHT_FRAMES * n_frames).mean())
    if n_frames > 1 and saturated > 1e-3:
        problem = f"{saturated:.1%} of the pixels of {name} detected a photon in nearly every frame"
        warnings.warn(f"{problem}: their brightness is barely known; use shorter frames", CountsWarning, stacklevel=4)


def warn_of_single_frames(image: xr.DataArray, n_frames: int, name: str) -> None:
    """Warn if one-bit frames have not been summed."""
    if float(image.max()) == 1 < n_frames:
        warnings.warn(f"{name} holds 0 and 1 only, but {_trained_on(n_frames)}", CountsWarning, stacklevel=4)


def _trained_on(n_frames: int) -> str:
    return f"the model was trained on sums of {n_frames} one-bit frames; sum them with sum_frames(movie, {n_frames})"


def _without_hot_pixels(ordered: xr.DataArray, name: str, origin: tuple[int, int]) -> xr.DataArray:
    """Replace hot pixels by the mean of their neighbours: the network would spread their counts over the image."""
    planes, replaced = ordered.data.reshape(-1, *ordered.shape[-2:]), None
    positions: dict[tuple[int, int], int] = {}  # listed once for all frames
    for number, plane in enumerate(planes):
        hot = hot_pixels(plane)
        if hot.any():
            replaced = planes.copy() if replaced is None else replaced
            cold = without_hot_pixels(torch.from_numpy(plane[None].astype(np.float32)))[0]
            replaced[number][hot] = (cold if plane.dtype.kind == "f" else torch.round(cold)).numpy()[hot]
            for y, x in np.argwhere(hot).tolist():
                positions.setdefault((origin[0] + y, origin[1] + x), int(plane[y, x]))
    if replaced is None:
        return ordered
    listed = ", ".join(f"{count} at (y {y}, x {x})" for (y, x), count in list(positions.items())[:_LISTED])
    listed += ", ..." * (len(positions) > _LISTED)
    problem = f"{name} has {len(positions)} hot pixel(s) with more than light can bring where neighbours are so dark"
    warnings.warn(f"{problem}: {listed}; each now holds the mean of its neighbours", HotPixelWarning, stacklevel=4)
    return ordered.copy(data=replaced.reshape(ordered.shape))


def refuse_one_bit(model: Model, what: str) -> None:
    """Refuse one-bit frames where photons are compared with sums of counts."""
    if model.n_frames is not None:
        raise ConfigError(f"{what} cannot be computed for one-bit frames: their photons are not sums of the counts")


def check_whole(name: str, value: Any, least: int, below: int | None = None) -> int:
    """Return a whole number of any integer type as an int; refuse other values and numbers out of range."""
    try:
        number = int(operator.index(value))
    except TypeError:
        number = None
    if number is None or number < least or (below is not None and number >= below):
        limit = "" if below is None else f" and below 2^{below.bit_length() - 1}"
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least {least}{limit}")
    return number
