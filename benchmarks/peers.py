"""Denoisers to compare with, and scores; each denoiser turns counts into expected photons per pixel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Image = np.ndarray[Any, np.dtype[Any]]
SIGMAS_PX = np.geomspace(0.4, 12, 18)


def gaussians(counts: Image) -> Iterator[Image]:
    """Filter with Gaussians of all widths, of volumes also with narrower ones along z."""
    ratios = (0.0,) if counts.ndim == 2 else (0.0, 0.25, 0.5)
    for width in ((z * s, s, s)[-counts.ndim :] for s in SIGMAS_PX for z in ratios):
        yield ndimage.gaussian_filter(counts.astype(float), width)


def medians(counts: Image) -> Iterator[Image]:
    """Filter with medians of all sizes in the plane, of volumes over one or three planes."""
    for size in (3, 5, 7, 9, 13):
        for planes in (1,) if counts.ndim == 2 else (1, 3):
            yield ndimage.median_filter(counts.astype(float), (planes, size, size)[-counts.ndim :])


def best(images: Iterator[Image], truth: Image) -> Image:
    """Return the image that is nearest to the truth: no one could choose it without."""
    return min(images, key=lambda image: float(np.mean((image - truth) ** 2)))


def bm3d_anscombe() -> Callable[[Image], Image]:
    """Return BM3D between Anscombe's transform and its exact unbiased inverse, volumes plane by plane.

    Source of the inverse: Makitalo and Foi, IEEE TIP 20 (2011) 2697, its closed form.
    """
    from bm3d import bm3d

    def plane(counts: Image) -> Image:
        transformed = 2 * np.sqrt(counts + 3 / 8)
        low, high = float(transformed.min()), float(transformed.max()) + 1e-6
        filtered = bm3d((transformed - low) / (high - low), 1 / (high - low)) * (high - low) + low
        d = np.maximum(filtered, 2 * math.sqrt(3 / 8))
        root = math.sqrt(3 / 2)
        rate: Image = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8
        return np.maximum(rate, 0)

    return lambda counts: plane(counts) if counts.ndim == 2 else np.stack([plane(image) for image in counts])


def psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal-to-noise ratio, with the truth's maximum as peak."""
    return float(10 * math.log10(float(truth.max()) ** 2 / np.mean((image - truth) ** 2)))


def nats(rate: Image, photons: Image) -> float:
    """Return the mean over photons of x ln d - d, nats per photon (the Poisson log-likelihood but for ln x!)."""
    rate = np.maximum(rate, 1e-3)
    return float((photons * np.log(rate) - rate).sum() / photons.sum())


def ssim(image: Image, truth: Image) -> float:
    """Return the structural similarity with Gaussian windows of 1.5 px, the truth's maximum as range."""
    width = (0.0, 1.5, 1.5)[-truth.ndim :]
    smooth = lambda x: ndimage.gaussian_filter(x, width)  # noqa: E731
    a, b, c, d = smooth(image), smooth(truth), (0.01 * truth.max()) ** 2, (0.03 * truth.max()) ** 2
    variances = smooth(image**2) - a**2 + smooth(truth**2) - b**2
    covariance = smooth(image * truth) - a * b
    return float(np.mean((2 * a * b + c) * (2 * covariance + d) / ((a**2 + b**2 + c) * (variances + d))))


def scores(image: Image, truth: Image, independent: Image) -> dict[str, float]:
    """Return all scores of an image; ``independent`` are other counts of the same scene."""
    covariance = np.cov(image.ravel(), truth.ravel())
    slope = covariance[0, 1] / max(covariance[0, 0], 1e-12)
    scaled = truth.mean() + slope * (image - image.mean())
    return {
        "PSNR": psnr_db(image, truth),
        "scaled PSNR": psnr_db(scaled, truth),
        "SSIM": ssim(image, truth),
        "nats": nats(image, independent),
    }
