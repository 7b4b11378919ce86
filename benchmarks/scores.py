"""Scores of an image when the truth is known."""

import math
from typing import Any

import numpy as np
from scipy import ndimage

Image = np.ndarray[Any, np.dtype[Any]]
DECILES = 10
FLOOR = 1e-3  # photons; a photon at a rate of zero would score minus infinity
LOW, HIGH = 0.125, 0.25  # cycles per pixel: low frequencies are below LOW, high ones above HIGH


def psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal-to-noise ratio, with the truth's maximum as peak."""
    return float(10 * math.log10(float(truth.max()) ** 2 / np.mean((image - truth) ** 2)))


def scaled_psnr_db(image: Image, truth: Image) -> float:
    """Return the PSNR after the optimal shift and scale."""
    covariance = np.cov(image.ravel(), truth.ravel())
    slope = covariance[0, 1] / max(covariance[0, 0], 1e-12)
    return psnr_db(truth.mean() + slope * (image - image.mean()), truth)


def nats(rate: Image, photons: Image) -> float:
    """Return the mean over photons of x ln d - d, nats per photon (the Poisson log-likelihood without ln x!)."""
    rate = np.maximum(rate, FLOOR)
    return float((photons * np.log(rate) - rate).sum() / photons.sum())


def ssim(image: Image, truth: Image) -> float:
    """Return the structural similarity with Gaussian windows of 1.5 px, the truth's maximum as range."""
    width = (0.0, 1.5, 1.5)[-truth.ndim :]
    smooth = lambda x: ndimage.gaussian_filter(x, width)  # noqa: E731
    a, b, c, d = smooth(image), smooth(truth), (0.01 * truth.max()) ** 2, (0.03 * truth.max()) ** 2
    variances = smooth(image**2) - a**2 + smooth(truth**2) - b**2
    covariance = smooth(image * truth) - a * b
    return float(np.mean((2 * a * b + c) * (2 * covariance + d) / ((a**2 + b**2 + c) * (variances + d))))


def bias(image: Image, truth: Image) -> list[float]:
    """Return the relative bias per decile of pixels, darkest first; the divisor is at least 1 % of the image mean."""
    tenths, least = np.array_split(np.argsort(truth, axis=None, kind="stable"), DECILES), 0.01 * truth.mean()
    return [
        float((image.flat[part] - truth.flat[part]).mean() / max(truth.flat[part].mean(), least)) for part in tenths
    ]


def residual_ratio(image: Image, counts: Image) -> float:
    """Return the ratio of the power of counts - image at low frequencies to that at high ones, in the plane.

    Poisson noise has equal power at all frequencies: 1. Above 1, structure was smoothed away. Below 1, the image keeps
    low frequencies of the noise, which nothing but the counts could determine.
    """
    power = np.square(np.abs(np.fft.fft2(counts - image)))
    rows, columns = (np.fft.fftfreq(n) for n in counts.shape[-2:])
    frequency = np.hypot(rows[:, None], columns[None])
    return float(power[..., (frequency < LOW) & (frequency > 0)].mean() / power[..., frequency > HIGH].mean())


def scores(image: Image, truth: Image, counts: Image, independent: Image) -> dict[str, Any]:
    """Return all scores of an image estimated from ``counts``; ``independent`` are other counts of the same scene."""
    return {
        "PSNR": psnr_db(image, truth),
        "scaled PSNR": scaled_psnr_db(image, truth),
        "SSIM": ssim(image, truth),
        "nats": nats(image, independent),
        "residual": residual_ratio(image, counts),
        "bias": bias(image, truth),
    }
