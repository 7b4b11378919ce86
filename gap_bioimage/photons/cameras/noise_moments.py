"""Mean, variance and third moment of noise in blocks of pixels: the raw material of a camera's calibration.

A stack of the same field gives them from differences of successive frames, one image from what the optics cannot
resolve. Both are sums ``r = sum w x`` over pixels that hold the same signal, with ``sum w = 0``: then
``E r^2 / sum w^2`` is the variance of a pixel and ``E r^3 / sum w^3`` its third central moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gap_bioimage.photons.judging.statistics import block_means

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Plane = tuple[slice, slice]

_BLOCK_PX = 8
_SHORT_BLOCK_PX = 4  # small objects stand out
_LONG = 32  # frames
_LEAST_BLOCK_PX = 2
_ENOUGH_BLOCKS = 64
_MOST_PIXELS = 120_000_000  # per calibration; about ten seconds
_MOST_SIDE_PX = 1024
_TRIPLE = (1.0, -2.0, 1.0)  # in time; blind to linear drift
_PAIR = (1.0, -1.0)
_RIPPLE = (1.0, -4.0, 6.0, -4.0, 1.0)  # in space, along y and x; blind to cubic polynomials


@dataclass(frozen=True)
class Moments:
    """Noise in blocks.

    Attributes
    ----------
    mean, variance, third, zeros, saturated
        All (units, positions): of a block of pixels at one time. ADU, ADU^2, ADU^3 (NaN if unknown), and shares of
        pixels that are zero or saturated.
    relief
        Variance between the signals of a block's pixels (positions,), ADU^2.
    shift
        Mean of the differences themselves (units, positions), over their standard deviation if nothing moves.
    pixels
        Pixels of a block.
    alike
        Variances of single pixels' squares add up ``alike`` times as if they were independent, since the weighted
        sums overlap: within a unit, and over all units of a position.
    alike_cubes
        The same for cubes over all units, in units of variance^3.
    """

    mean: Floats
    variance: Floats
    third: Floats
    zeros: Floats
    saturated: Floats
    shift: Floats
    relief: Floats
    pixels: int
    alike: tuple[float, float]
    alike_cubes: float

    @property
    def known_third(self) -> bool:
        """Whether third moments are known; two frames do not tell."""
        return bool(np.isfinite(self.third).all())

    def at(self, positions: npt.NDArray[Any]) -> Moments:
        """Return some positions only."""
        names = ("mean", "variance", "third", "zeros", "saturated", "shift")
        kept = {name: getattr(self, name)[:, positions] for name in names}
        return replace(self, relief=self.relief[positions], **kept)


def block_side(shape: tuple[int, ...], times: int) -> int:
    """Return the side of blocks: 8 pixels, or 4 of longer films; fewer where there would be less than 64 blocks."""
    most = _BLOCK_PX if times < _LONG else _SHORT_BLOCK_PX
    return int(np.clip(int((shape[0] * shape[1] / _ENOUGH_BLOCKS) ** 0.5), _LEAST_BLOCK_PX, most))


def stack_moments(values: npt.NDArray[Any], saturation: float) -> Moments:
    """Gather moments from the differences of successive frames.

    Each difference is freed of what is proportional to the mean image (bleaching, flicker) and of its own mean.

    Parameters
    ----------
    values
        (planes, frames, y, x), at least two frames; a memory map is read frame by frame.
    saturation
        Value from which on a pixel is saturated.

    Returns
    -------
    Moments
        Units are times, positions are blocks of all planes.
    """
    weights = np.array(_TRIPLE if values.shape[1] > 2 else _PAIR)
    window = _window(values.shape[2:])
    starts = _starts(values, window, len(weights))
    parts = [_plane_moments(plane[(slice(None), *window)], starts, weights, saturation) for plane in values]
    names = ("mean", "variance", "third", "zeros", "saturated", "shift")
    joined: dict[str, Any] = {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}
    joined["relief"] = np.concatenate([part["relief"] for part in parts])
    overlapping = len(starts) > 1 and starts[1] - starts[0] == 1
    squares, cubes = _overlap(weights, len(starts) if overlapping else 1)
    pixels = block_side(parts[0]["frame"].shape, len(starts)) ** 2
    hermite = 6 * np.sum(weights**2) ** 3 / np.sum(weights**3) ** 2 if len(weights) > 2 else np.nan
    return Moments(**joined, pixels=pixels, alike=(1.0, squares), alike_cubes=hermite * cubes)


def image_moments(values: npt.NDArray[Any], saturation: float) -> Moments:
    """Gather moments from the finest ripples of single images, which optics do not resolve.

    Parameters
    ----------
    values
        (planes, y, x), at least 8 x 8 pixels.
    saturation
        Value from which on a pixel is saturated.

    Returns
    -------
    Moments
        One unit; positions are blocks of all planes.
    """
    window = _window(values.shape[1:])
    most = max(1, _MOST_PIXELS // (4 * np.prod([s.stop - s.start for s in window])))
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))
    parts = [_ripples(np.asarray(values[i][window], np.float64), saturation) for i in chosen]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts])[None] for name in parts[0] if name != "frame"
    }
    joined["relief"] = joined["relief"][0]
    w = np.array(_RIPPLE)
    squares, cubes = _overlap(w, 10**6)
    hermite = 6 * np.sum(w**2) ** 6 / np.sum(w**3) ** 4
    pixels = block_side(parts[0]["frame"].shape, 1) ** 2
    return Moments(**joined, pixels=pixels, alike=(squares**2, squares**2), alike_cubes=hermite * cubes**2)


def _window(shape: tuple[int, ...]) -> Plane:
    rows, columns = (slice(max(0, (n - _MOST_SIDE_PX) // 2), min(n, (n + _MOST_SIDE_PX) // 2)) for n in shape)
    return rows, columns


def _starts(values: npt.NDArray[Any], window: Plane, length: int) -> npt.NDArray[np.int64]:
    """First frames of the differences: all of them, or of a long film some, spread evenly."""
    planes, frames = values.shape[:2]
    pixels = planes * int(np.prod([s.stop - s.start for s in window]))
    count, most = frames - length + 1, max(8, _MOST_PIXELS // (length * pixels))
    if count <= max(most, 2 * length):
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, min(most, count // length)).astype(np.int64))


def _plane_moments(
    plane: npt.NDArray[Any], starts: npt.NDArray[np.int64], weights: Floats, saturation: float
) -> dict[str, Floats]:
    used = np.unique(starts[:, None] + np.arange(len(weights)))
    field = np.zeros(plane.shape[1:])
    for t in used:
        field += plane[t]
    field /= len(used)
    drift = _Drift.of(field)
    side = block_side(field.shape, len(starts))
    length = len(weights)
    units = [_unit(np.asarray(plane[s : s + length], np.float64), drift, weights, saturation, side) for s in starts]
    gathered = {name: np.stack([unit[name] for unit in units]) for name in units[0]}
    lost = block_means(drift.leverage, side)
    gathered["variance"] /= 1 - lost
    # 3 sigma^2 r has the mean zero and takes most of the noise from r^3
    noise = np.median(gathered["variance"], axis=0) * np.sum(weights**2)
    gathered["third"] -= 3 * noise * gathered["shift"] / (np.sum(weights**3) or np.nan)
    gathered["third"] /= 1 - 3 * lost
    gathered["shift"] /= np.sqrt(np.maximum(noise, 1e-30) / side**2)
    relief = _relief(field, side) - np.mean(gathered["variance"], axis=0) / len(used)
    return {**gathered, "relief": np.maximum(relief, 0), "frame": field}


@dataclass(frozen=True)
class _Drift:
    """What differences of frames have in common with the mean image: bleaching, flicker, a drifting offset.

    Attributes
    ----------
    basis
        (2, y, x), orthonormal with the weights.
    weights
        About one over the variance of each pixel.
    leverage
        Share of each pixel's variance that is lost.
    """

    basis: Floats
    weights: Floats
    leverage: Floats

    @classmethod
    def of(cls, field: Floats) -> _Drift:
        smooth = ndimage.uniform_filter(field, 5)
        above = smooth - smooth.min()
        weights = 1 / (above + 0.1 * above.mean()) if above.mean() > 0 else np.ones_like(field)
        weights /= weights.sum()
        flat = np.ones_like(field)
        centred = field - np.sum(weights * field)
        power = float(np.sum(weights * centred**2))
        basis = np.stack([flat, centred / power**0.5]) if power > 0 else flat[None]
        return cls(basis, weights, np.minimum(weights * np.sum(basis**2, axis=0), 0.2))

    def removed(self, difference: Floats) -> Floats:
        """Return a difference of frames without them."""
        shares = np.tensordot(self.basis, self.weights * difference, 2)
        return difference - np.tensordot(shares, self.basis, 1)


def _unit(frames: Floats, drift: _Drift, weights: Floats, saturation: float, side: int) -> dict[str, Floats]:
    difference = drift.removed(np.tensordot(weights, frames, 1))
    squares = difference**2
    square, cube = np.sum(weights**2), np.sum(weights**3) or np.nan
    return {
        "mean": block_means(frames.mean(0), side),
        "variance": block_means(squares, side) / square,
        "third": block_means(squares * difference, side) / cube,
        "zeros": block_means((frames == 0).mean(0), side),
        "saturated": block_means((frames >= saturation).mean(0), side),
        "shift": block_means(difference, side),
    }


def _ripples(plane: Floats, saturation: float) -> dict[str, Floats]:
    weights = np.array(_RIPPLE)
    inner = (slice(2, -2), slice(2, -2))
    ripple, local = plane, plane
    for axis in (0, 1):
        ripple = ndimage.correlate1d(ripple, weights, axis=axis)
        local = ndimage.correlate1d(local, weights**2 / np.sum(weights**2), axis=axis)
    ripple, local = ripple[inner], local[inner]  # a photon enters both with the same weight
    side = block_side(ripple.shape, 1)
    square, cube = np.sum(weights**2) ** 2, np.sum(weights**3) ** 2
    variance = block_means(ripple**2, side) / square
    reached = ndimage.maximum_filter(plane, 5)[inner] >= saturation
    return {
        "mean": block_means(local, side),
        "variance": variance,
        "third": (block_means(ripple**3, side) - 3 * variance * square * block_means(ripple, side)) / cube,
        "zeros": block_means((plane[inner] == 0).astype(float), side),
        "saturated": block_means(reached.astype(float), side),
        "shift": np.zeros_like(variance),
        "relief": _relief(ndimage.gaussian_filter(plane, 1.5)[inner], side),  # single pixels are noise
        "frame": ripple,
    }


def _relief(image: Floats, side: int) -> Floats:
    """Variance within each block."""
    return block_means(image**2, side) - block_means(image, side) ** 2


def _overlap(weights: Floats, count: int) -> tuple[float, float]:
    """Sums of squared and cubed correlations of the weighted sums, which share pixels, over ``count`` in a row."""
    full = np.correlate(weights, weights, "full") / np.sum(weights**2)
    lags = np.abs(np.arange(len(full)) - len(weights) + 1)
    share = np.maximum(0.0, 1 - lags / count)
    return float(np.sum(share * full**2)), float(np.sum(share * full**3))
