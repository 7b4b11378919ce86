"""Simulated fluorescence microscopy: photon counts of cells, or of filaments alone."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage

from gap_bioimage.errors import ConfigError

Image = NDArray[np.float64]
Scene = Literal["cells", "filaments"]
PIXEL_UM = {"z": 0.3, "y": 0.1, "x": 0.1}
DEFAULT_SHAPE = {2: (256, 256), 3: (24, 128, 128)}
_NUCLEUS_UM = 2.2  # mean radius
_PSF_UM = np.array([0.25, 0.1, 0.1])  # (z, y, x); the axial blur is 2.5 times the lateral one
_BACKGROUND = 0.02  # of the peak
_MOST_PIXELS = 1 << 30  # drawing cells takes time that grows with the square of the area
_MOST_PHOTONS = 1e7  # average per pixel, so that the brightest pixels fit into 32 bits


def simulate(
    dim: Literal[2, 3] = 2,
    shape: Sequence[int] | None = None,
    photons: float = 1.0,
    seed: int = 0,
    scene: Scene = "cells",
) -> tuple[xr.DataArray, xr.DataArray]:
    """Simulate photon counts of cells, and the ground truth.

    Parameters
    ----------
    dim
        Spatial dimensions.
    shape
        Pixels along (z,) y, x; 256 x 256 or 24 x 128 x 128 by default.
    photons
        Expected photons per pixel, averaged over the image.
    seed
        Seed of scene and noise. The scene does not depend on ``photons``.
    scene
        "cells" with nuclei, filaments and puncta, or "filaments" alone.

    Returns
    -------
    counts, truth : xarray.DataArray
        Dims (z,) y, x with coordinates in micrometres: Poisson counts (uint16, or uint32 for counts above 65535), and
        expected photons per pixel (float32).

    Raises
    ------
    ConfigError
        If ``photons`` is not positive or too large, ``dim`` and ``shape`` do not fit, or ``scene`` is unknown.
    """
    if not 0 < photons <= _MOST_PHOTONS:
        raise ConfigError(f"photons is {photons:g}, expected a positive number per pixel, at most {_MOST_PHOTONS:g}")
    truth = simulate_truth(dim, shape, seed, scene) * np.float32(photons)
    drawn = np.random.default_rng((seed, 1)).poisson(truth.values)
    dtype = np.uint16 if drawn.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
    return truth.copy(data=drawn.astype(dtype)).rename("photons"), truth


def simulate_truth(
    dim: Literal[2, 3] = 2, shape: Sequence[int] | None = None, seed: int = 0, scene: Scene = "cells"
) -> xr.DataArray:
    """Simulate the noise-free scene of :func:`simulate`, with mean 1."""
    if dim not in DEFAULT_SHAPE:
        raise ConfigError(f"dim is {dim}, expected 2 or 3")
    dims = ("z", "y", "x")[-dim:]
    pixels = tuple(int(n) for n in (DEFAULT_SHAPE[dim] if shape is None else shape))
    if len(pixels) != dim or min(pixels) < 1 or math.prod(pixels) > _MOST_PIXELS:
        expected = f"expected {dim} positive sizes ({', '.join(dims)}) with at most {_MOST_PIXELS:.2g} pixels in all"
        raise ConfigError(f"shape {pixels} does not fit dim {dim}, {expected}")
    if scene not in _SCENES:
        raise ConfigError(f"scene is {scene!r}, expected {' or '.join(map(repr, _SCENES))}")
    step = np.array([PIXEL_UM[d] for d in dims])
    image = _through_microscope(_SCENES[scene](pixels, step, np.random.default_rng((seed, 0))), step)
    image /= image.mean()
    sizes = zip(dims, pixels, strict=True)
    coords = {d: (d, np.arange(n) * PIXEL_UM[d], {"units": "um", "step": PIXEL_UM[d]}) for d, n in sizes}
    return xr.DataArray(image.astype(np.float32), dims=dims, coords=coords, name="rate")


def _cells(pixels: tuple[int, ...], step: Image, rng: np.random.Generator) -> Image:
    """Draw nuclei, cytoplasm, filaments and puncta."""
    centres, radii = _place_nuclei(pixels, step, rng)
    nuclei = _nuclei(pixels, step, centres, radii, rng)
    cytoplasm = _cytoplasm(pixels, step, centres, radii)
    scene: Image = nuclei + 0.08 * cytoplasm * (1 - np.minimum(nuclei, 1))
    scene += _filaments(pixels, step, centres, radii, rng) * (nuclei < 0.1)
    scene += _puncta(pixels, step, cytoplasm * (nuclei < 0.1), rng)
    return scene


def _network(pixels: tuple[int, ...], step: Image, rng: np.random.Generator) -> Image:
    """Draw filaments that start at random places, in bundles of eight."""
    size = np.array(pixels) * step
    bundles = float(np.prod(size[-2:])) / (24 if len(pixels) == 2 else 8)
    starts = rng.uniform(-0.1, 1.1, (max(1, round(bundles)), len(pixels))) * size
    return _filaments(pixels, step, starts, np.full(starts.shape, 2.0), rng)


_SCENES = {"cells": _cells, "filaments": _network}


def _through_microscope(scene: Image, step: Image) -> Image:
    """Blur a scene with the point-spread function of the microscope, and add background."""
    scene = _blur(scene, _PSF_UM[-len(step) :] / step)
    peak = max(float(np.quantile(scene, 0.998)), 1e-6)
    haze = _blur(scene, 25 * PIXEL_UM["x"] / step)  # light from out of focus
    return scene + _BACKGROUND * peak * (0.8 + 0.6 * haze / max(float(haze.max()), 1e-6))


def _place_nuclei(pixels: tuple[int, ...], step: Image, rng: np.random.Generator) -> tuple[Image, Image]:
    """Draw centres and semi-axes, in micrometres, of nuclei that do not overlap."""
    size = np.array(pixels) * step
    radius = min(_NUCLEUS_UM, 0.3 * float(size[-2:].max()))
    n_nuclei = max(1, round(0.3 * float(np.prod(size[-2:])) / (math.pi * radius**2)))
    centres: list[Image] = []
    radii: list[Image] = []
    for _ in range(40 * n_nuclei):
        if len(centres) == n_nuclei:
            break
        r = radius * rng.uniform(0.75, 1.25, len(pixels))
        r[:-2] = np.minimum(r[:-2], 0.4 * size[:-2])  # a cell lies flat in a thin stack
        centre = rng.uniform(0, 1, len(pixels)) * size
        centre[:-2] = size[:-2] * rng.uniform(0.35, 0.65, len(pixels) - 2)
        spacing = 1.25 * np.array([max(r[-2:]) + max(other[-2:]) for other in radii])
        if all(np.linalg.norm(centre[-2:] - c[-2:]) > d for c, d in zip(centres, spacing, strict=True)):
            centres.append(centre)
            radii.append(r)
    return np.array(centres), np.array(radii)


def _nuclei(pixels: tuple[int, ...], step: Image, centres: Image, radii: Image, rng: np.random.Generator) -> Image:
    """Draw rounded bodies with chromatin, dark nucleoli and a wavy outline."""
    micron = 1 / step
    texture = 0.10 * _noise(pixels, 0.15 * micron, rng) + 0.20 * _noise(pixels, 0.45 * micron, rng)
    wave = 0.10 * _noise(pixels, 1.2 * micron, rng)
    nucleoli = _sigmoid((_noise(pixels, 0.35 * micron, rng) - 1.9) * 6)
    chromatin = np.clip(1 + texture, 0.25, None) * (1 - 0.75 * nucleoli)
    out = np.zeros(pixels)
    for window, distance, radius in _neighbourhoods(pixels, step, centres, radii, reach=1.5):
        # a sigmoid in micrometres gives all nuclei the same, fairly sharp edge
        body = _sigmoid((1 - distance + wave[window]) * float(radius[-1]) / 0.05)
        out[window] = np.maximum(out[window], rng.uniform(0.45, 1.0) * body * chromatin[window])
    return out


def _cytoplasm(pixels: tuple[int, ...], step: Image, centres: Image, radii: Image) -> Image:
    """Draw the soft glow around each nucleus."""
    out = np.zeros(pixels)
    for window, distance, _ in _neighbourhoods(pixels, step, centres, radii, reach=3.0):
        out[window] = np.maximum(out[window], _sigmoid((1.9 - distance) * 5))
    return out


def _neighbourhoods(
    pixels: tuple[int, ...], step: Image, centres: Image, radii: Image, reach: float
) -> Iterator[tuple[tuple[slice, ...], Image, Image]]:
    """Yield for each nucleus the part of the image within ``reach`` radii, the distances there in radii, its radii."""
    for centre, radius in zip(centres, radii, strict=True):
        low = np.floor((centre - reach * radius) / step).astype(int).clip(0)
        high = np.minimum(np.ceil((centre + reach * radius) / step).astype(int) + 1, pixels)
        window = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
        per_axis = zip(window, step, centre, radius, strict=True)
        axes = [(np.arange(w.start, w.stop) * s - c) / r for w, s, c, r in per_axis]
        squares: Any = sum(np.square(axis) for axis in np.ix_(*axes))
        if squares.size:
            yield window, np.sqrt(squares), radius


def _filaments(pixels: tuple[int, ...], step: Image, centres: Image, radii: Image, rng: np.random.Generator) -> Image:
    """Draw smooth random walks, about a pixel wide, that start at the given ellipsoids."""
    dims, stride = len(pixels), 0.5 * PIXEL_UM["x"]
    length = int(4.5 * float(radii[:, -1].mean()) / stride)
    owner = np.repeat(np.arange(len(centres)), 8)
    angle = rng.uniform(0, 2 * np.pi, len(owner))
    start = centres[owner].copy()
    start[:, -2:] += 0.9 * radii[owner][:, -2:] * np.stack([np.sin(angle), np.cos(angle)], 1)
    start[:, :-2] += 0.7 * radii[owner][:, :-2] * rng.uniform(-1, 1, (len(owner), dims - 2))
    turns = ndimage.gaussian_filter1d(rng.normal(0, 0.12, (len(owner), length)), 8, axis=1)
    heading = angle[:, None] + rng.normal(0, 0.6, (len(owner), 1)) + np.cumsum(turns, axis=1)
    moves = np.zeros((len(owner), length, dims))
    moves[..., -2], moves[..., -1] = np.sin(heading), np.cos(heading)
    moves[..., :-2] = rng.normal(0, 0.12, (len(owner), 1, dims - 2))
    points = start[:, None] + stride * np.cumsum(moves, axis=1)
    fade = np.linspace(1, 0.5, length) * rng.uniform(0.5, 1.0, (len(owner), 1))
    line = 1.2 if dims == 2 else 4.0  # in 3D the blur spreads the same light along z
    return _splat(pixels, points.reshape(-1, dims) / step, line * fade.ravel())


def _puncta(pixels: tuple[int, ...], step: Image, density: Image, rng: np.random.Generator) -> Image:
    """Draw point sources of a spatial density, with widely varying brightness."""
    weights = np.cumsum(density.ravel())
    if weights[-1] <= 0:
        return np.zeros(pixels)
    count = round(0.6 * float(np.prod(np.array(pixels[-2:]) * step[-2:]) / 4))
    chosen = np.searchsorted(weights, rng.uniform(0, weights[-1], count))
    corners = np.stack(np.unravel_index(chosen.clip(0, density.size - 1), pixels), 1)
    points = corners + rng.uniform(-0.5, 0.5, corners.shape)
    light = 5.0 if len(pixels) == 2 else 12.0
    return _splat(pixels, points, light * rng.lognormal(0, 0.35, count))


def _splat(pixels: tuple[int, ...], points: Image, light: Image) -> Image:
    """Draw point sources at fractional pixel positions, distributed over the neighbouring pixels."""
    out = np.zeros(pixels)
    base = np.floor(points).astype(int)
    part = points - base
    for corner in np.ndindex((2,) * len(pixels)):
        index = base + np.array(corner)
        share = light * np.prod(np.where(corner, part, 1 - part), axis=1)
        inside = np.all((index >= 0) & (index < pixels), axis=1)
        flat = np.ravel_multi_index(tuple(index[inside].T), pixels)
        out += np.bincount(flat, share[inside], minlength=out.size).reshape(pixels)
    return out


def _noise(pixels: tuple[int, ...], sigma: Image, rng: np.random.Generator) -> Image:
    """Return smooth noise of unit variance."""
    rough = _blur(rng.standard_normal(pixels), sigma)
    return rough / max(float(rough.std()), 1e-9)


def _blur(image: Image, sigma: Any) -> Image:
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=3.0))


def _sigmoid(x: Image) -> Image:
    return 0.5 * (1 + np.tanh(x / 2))
