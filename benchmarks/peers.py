"""Denoisers to compare with; each turns counts into expected photons per pixel.

A peer is one function in ``PEERS``: given a data set, its methods get counts, what is to be estimated (for those that
choose by it, which nobody could without) and the level of brightness, and return an image, or None at a level that they
are not for. What they need, beside this package:

    pip install -c constraints.txt . careamics==0.3.5 bm3d==4.0.3 scikit-image

R2R and RAM of deepinv are not among them. RAM's weights are a download from Hugging Face, not part of its package, and
could not be had where this was run. R2R is a loss and has no weights; for Poisson counts its pairs are thinned counts,
as here, compared by squared error.
"""

from __future__ import annotations

import math
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import ndimage
from scores import Image, nats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenes import Scene

    Method = Callable[[Image, Image, float], Image | None]

SIGMAS_PX = np.geomspace(0.4, 12, 18)


class Peer(NamedTuple):
    """A denoiser: what makes it for a data set, and the names of the data sets that it is for."""

    make: Callable[[Scene, int, float, dict[str, Any]], Method]  # scene, seed, scale, and what to tell about it
    scenes: tuple[str, ...]


def gaussians(counts: Image) -> Iterator[Image]:
    """Filter with Gaussians of all widths, of volumes also with others along z (or time)."""
    ratios = (0.0,) if counts.ndim == 2 else (0.0, 0.25, 0.5, 1.0, 2.0)
    for width in ((z * s, s, s)[-counts.ndim :] for s in SIGMAS_PX for z in ratios):
        yield ndimage.gaussian_filter(counts.astype(float), width)


def medians(counts: Image) -> Iterator[Image]:
    """Filter with medians of all sizes in the plane, of volumes over one or three planes."""
    for size in (3, 5, 7, 9, 13):
        for planes in (1,) if counts.ndim == 2 else (1, 3):
            yield ndimage.median_filter(counts.astype(float), (planes, size, size)[-counts.ndim :])


def best(images: Iterator[Image], truth: Image) -> Image:
    """Return the image that is nearest to the truth."""
    return min(images, key=lambda image: float(np.mean((image - truth) ** 2)))


def best_gaussian(scene: Scene, *_: Any) -> Method:
    """Choose the width on the truth; of real counts for each plane, on the frame that scores."""

    def of_planes(counts: Image, other: Image, level: float) -> Image:
        del level
        pairs = zip(counts, other, strict=True)
        return np.stack([max(gaussians(plane), key=lambda image, q=q: nats(image, q)) for plane, q in pairs])

    def of_all(counts: Image, truth: Image, level: float) -> Image:
        del level
        rates = gaussians(counts)  # of bits the chance q that a photon was seen, 1 - exp(-s)
        return best((-np.log1p(-rate) for rate in rates) if scene.bits else rates, truth)

    return of_all if scene.real is None else of_planes


def best_median(*_: Any) -> Method:
    """Choose the size on the truth."""
    return lambda counts, truth, level: best(medians(counts), truth)


def bm3d_anscombe(*_: Any) -> Method:
    """BM3D between Anscombe's transform and its exact unbiased inverse, volumes plane by plane.

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

    return lambda counts, truth, level: plane(counts) if counts.ndim == 2 else np.stack([*map(plane, counts)])


def noise2void(scene: Scene, seed: int, scale: float, about: dict[str, Any]) -> Method:
    """Noise2Void of CAREamics with its defaults, on the same counts, with as many steps of windows as large as ours.

    It is made for images like those of its training, and so for one level.
    """
    import torch
    from careamics import CAREamist
    from careamics.config import create_advanced_n2v_config

    train, epochs = scene.settings["train"], 10
    folder = tempfile.TemporaryDirectory()  # lives as long as the method, which reads the weights from it
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    steps = max(1, round(train["steps"] * scale / epochs))
    sizes = (train["patch_px"], train["batch_size"], epochs, steps)
    config = create_advanced_n2v_config("n2v", "array", "SYX", *sizes, num_workers=0)
    denoiser = CAREamist(config, work_dir=folder.name, enable_progress_bar=False)
    denoiser.train(train_data=np.stack(scene.training("Noise2Void", seed)).astype(np.float32))
    about["steps"] = epochs * steps
    about["parameters"] = sum(p.numel() for p in denoiser.model.parameters())

    def method(counts: Image, truth: Image, level: float) -> Image | None:
        del truth
        assert folder.name
        if scene.real is None and level != scene.photons:
            return None
        planes = counts.astype(np.float32).reshape(-1, *counts.shape[-2:])
        predicted, _ = denoiser.predict(pred_data=planes, axes="SYX", num_workers=0)
        return np.maximum(np.concatenate([*map(np.ravel, predicted)]).reshape(counts.shape), 0)

    return method


PEERS: dict[str, Peer] = {
    "best Gaussian": Peer(best_gaussian, ("zebrafish", "cells", "hazelnut", "pollen", "video")),
    "best median": Peer(best_median, ("zebrafish", "cells", "pollen")),
    "Anscombe + BM3D": Peer(bm3d_anscombe, ("zebrafish", "cells", "hazelnut", "pollen")),
    "Noise2Void": Peer(noise2void, ("zebrafish", "cells", "hazelnut")),
}
