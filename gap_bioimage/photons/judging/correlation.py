"""Correlation of the noise of neighbouring pixels: none in raw images, some after interpolation or smoothing.

Optics resolve nothing near the highest spatial frequency of a well sampled image. A high-pass along y therefore leaves
noise alone, whatever the structure, and does not touch its correlation along x; and the other way round. A movie tells
more: second differences in time cancel whatever stands still or bleaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from scipy import ndimage

from gap_bioimage.photons.judging.statistics import block_means

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Image = NDArray[np.float64]

_ORDER = (
    8  # differences that single images are filtered with: 90 % of the power lies above 0.7 of the highest frequency
)
_ORDER_IN_TIME = 2  # movies are free of most structure already; this removes flicker and slow motion
_BLOCK_PX = 16
_PIXELS = 1 << 22  # as many as are looked at
_SIDE_PX = 1024
_PLANES = 16
_DARK = 1 / 3  # share of the blocks, where structure disturbs least
_BLOCKS = 30  # as many as the estimate should rest on
_SURE = 5.0  # standard errors
_LEAST = 0.05  # what structure and detectors may leave


@dataclass(frozen=True)
class Correlation:
    """Correlation coefficient of the noise of pixels side by side, -1 to 1; NaN where nothing can be said."""

    y: float
    """Of pixels one above the other."""
    x: float
    """Of pixels in the same row."""
    method: Literal["repeats", "single image", "none"]
    """Noise from second differences in time, from a high-pass of single planes, or too few pixels."""
    error: float
    """Standard error of the less certain one."""
    blocks: int = 0
    """Blocks of pixels that it rests on."""

    @property
    def found(self) -> bool:
        """Whether it is more than chance: 0.05, and five standard errors, more where these are badly known."""
        if self.method == "none":
            return False
        # the spread of few blocks is hardly known itself, and they were chosen for being dark
        sure = _SURE * (1 + _BLOCKS / max(self.blocks, 1))
        return max(abs(self.y), abs(self.x)) > max(_LEAST, sure * self.error)

    @property
    def largest(self) -> float:
        """The one further from zero; 0 where nothing can be said."""
        return 0.0 if self.method == "none" else max(self.y, self.x, key=abs)


NOTHING = Correlation(math.nan, math.nan, "none", math.inf)


def neighbour_correlation(values: xr.DataArray | NDArray[Any], repeats: int | None = None) -> Correlation:
    """Return the correlation of the noise of neighbouring pixels.

    Parameters
    ----------
    values
        Real numbers of any unit, (..., y, x).
    repeats
        The axis along which the same scene repeats, such as that of time; a DataArray's is its ``t``.

    Returns
    -------
    Correlation
        Independent noise, Poisson or not, gives 0 within the error. Interpolation, smoothing, median filters and
        enlarging make it positive; sharpening and deconvolution negative. ``method`` is "none", and nothing is
        known, where there are too few pixels or values that are not finite.

    Notes
    -----
    Noise of darker blocks is used, because it is there that it stands out against structure. Structure that is not
    resolved by four pixels or so, and much brighter than its noise, is taken for noise: with more than 200 photons per
    pixel up to 0.1 is then no sign of anything. Rounding adds independent noise: weak noise that was smoothed and
    rounded looks less correlated than it was. Sharpening by wide kernels leaves the highest frequencies alone and is
    seen in repeats only.
    """
    if isinstance(values, xr.DataArray):
        repeats = values.dims.index("t") if repeats is None and "t" in values.dims else repeats
        values = values.data if isinstance(values.data, np.ndarray) else values.values
    if values.ndim < 2 or values.size == 0 or values.dtype.kind not in "biuf":
        return NOTHING
    frames = 1 if repeats is None else values.shape[repeats]
    order = min(_ORDER_IN_TIME if frames > 2 else _ORDER, (min(values.shape[-2:]) - 2) // 2 * 2)
    if order < _ORDER_IN_TIME:
        return NOTHING
    noise = noise_planes(values, repeats)
    if not noise:
        return NOTHING
    (y, error_y, used_y), (x, error_x, used_x) = (_along(axis, noise, order) for axis in (0, 1))
    if not (math.isfinite(y) and math.isfinite(x)):
        return NOTHING
    method: Literal["repeats", "single image"] = "repeats" if frames > 1 else "single image"
    return Correlation(y, x, method, max(error_y, error_x), min(used_y, used_x))


def noise_planes(values: NDArray[Any], repeats: int | None = None) -> list[tuple[Image, Image]]:
    """Return planes of an image as brightness, and as what holds their noise, both (y, x).

    Parameters
    ----------
    values
        Real numbers (..., y, x).
    repeats
        The axis of time. Noise is the second difference of three frames, or the difference of two, with the variance
        of one frame's noise.

    Returns
    -------
    list of pairs
        About 4 million pixels, from the middle of planes that are spread evenly; empty where values are not finite.
    """
    if repeats is not None and values.shape[repeats] > 1:
        planes = list(_differences(values, repeats % values.ndim))
    else:
        planes = list(_planes(values))
    return planes if all(np.isfinite(residual).all() for _, residual in planes) else []


def _window(shape: tuple[int, ...]) -> tuple[tuple[slice, slice], int]:
    """Return the middle of the planes, and how many of these may be looked at."""
    rows, columns = (slice(max(0, (n - _SIDE_PX) // 2), (n + _SIDE_PX) // 2) for n in shape[-2:])
    pixels = min(shape[-2], _SIDE_PX) * min(shape[-1], _SIDE_PX)
    return (rows, columns), max(1, min(_PLANES, _PIXELS // pixels))


def _planes(values: NDArray[Any]) -> Iterator[tuple[Image, Image]]:
    """Yield planes, spread evenly, as brightness and as what holds the noise."""
    window, most = _window(values.shape)
    count = math.prod(values.shape[:-2])
    for index in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)):
        plane = values[np.unravel_index(index, values.shape[:-2])] if values.ndim > 2 else values
        plane = np.asarray(plane[window], np.float64)
        yield plane, plane


def _differences(values: NDArray[Any], axis: int) -> Iterator[tuple[Image, Image]]:
    """Yield the mean and the second difference of three frames each, or those of two where there are no more."""
    weights = np.array([1.0, -2.0, 1.0] if values.shape[axis] > 2 else [1.0, -1.0])
    window, most = _window(values.shape)
    others = values.shape[:axis] + values.shape[axis + 1 : -2]
    count = values.shape[axis] - len(weights) + 1
    starts = np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
    rest = np.unique(np.linspace(0, math.prod(others) - 1, max(1, most // len(starts))).astype(int))
    for start in starts:
        for index in rest:
            where = np.unravel_index(index, others) if others else ()
            frames = np.stack([
                np.asarray(values[(*where[:axis], start + step, *where[axis:])][window], np.float64)
                for step in range(len(weights))
            ])  # fmt: skip
            yield frames.mean(axis=0), np.tensordot(weights, frames, 1) / np.linalg.norm(weights)


def _along(axis: int, noise: list[tuple[Image, Image]], order: int) -> tuple[float, float, int]:
    """Return the correlation along an axis of (y, x), its standard error, and the blocks that it rests on."""
    weights = np.array([(-1) ** k * math.comb(order, k) for k in range(order + 1)], float)
    side = _BLOCK_PX if min(noise[0][0].shape) >= 4 * _BLOCK_PX else _BLOCK_PX // 2
    mean, product, power = (
        np.concatenate(parts)
        for parts in zip(*(_blocks(axis, plane, residual, weights, side) for plane, residual in noise), strict=True)
    )
    order_of_brightness = np.argsort(mean, kind="stable")
    product, power = product[order_of_brightness], power[order_of_brightness]
    used = darkest(power)
    product, power = product[:used], power[:used]
    total = power.sum()
    if not total > 0:
        return math.nan, math.inf, used
    value = float(product.sum() / total)
    spread = np.sqrt(((product - value * power) ** 2).sum() * used / max(1, used - 1)) / total
    # The filter makes neighbouring residuals alike, so that each tells less.
    alike = np.correlate(weights, weights, "full") / (weights @ weights)
    return value, float(max(spread, math.sqrt(alike @ alike / (used * side**2)))), used


def _blocks(axis: int, plane: Image, residual: Image, weights: Image, side: int) -> tuple[Image, Image, Image]:
    """Return per block the brightness, the mean product of neighbours along an axis, and the mean square."""
    margin = len(weights) // 2
    residual, plane = (np.moveaxis(image, axis, -1) for image in (residual, plane))
    residual = ndimage.correlate1d(residual, weights, axis=0)[margin : residual.shape[0] - margin]
    plane = plane[margin : plane.shape[0] - margin, 1:]
    left, right = residual[:, :-1], residual[:, 1:]
    return (
        block_means(plane, side),
        block_means(left * right, side),
        block_means((left**2 + right**2) / 2, side),
    )


def darkest(power: Image) -> int:
    """Return how many blocks, of those sorted by brightness, to use: a third, and more where these are empty."""
    first = math.ceil(_DARK * len(power))
    sums, squares = np.cumsum(power), np.cumsum(power**2)
    effective = sums**2 / np.maximum(squares, 1e-300)
    enough = np.flatnonzero(effective[first - 1 :] >= min(_BLOCKS, len(power)))
    return first + int(enough[0]) if len(enough) else len(power)
