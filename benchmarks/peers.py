"""Other denoisers for comparison; each turns counts into expected photons per pixel.

A peer is one function in ``PEERS``. For a data set it returns a method that takes counts, the truth (used by some to
select parameters, which is impossible in practice) and the brightness level. The method returns an image, or None at
levels that it does not support. Requirements in addition to this package:

    pip install -c constraints.txt . careamics==0.3.5 bm3d==4.0.3 deepinv==0.5.0 scikit-image

RAM of deepinv is not included: its weights are a download from Hugging Face, not part of its package, and were not
available on the benchmark machine.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import ndimage
from scores import Image, nats

if TYPE_CHECKING:
    from scenes import Scene

Method = Callable[[Image, Image, float], Image | None]
SIGMAS_PX = np.geomspace(0.4, 12, 18)


class Peer(NamedTuple):
    """A denoiser: a factory of its method for a data set, and the names of the supported data sets."""

    make: Callable[[Scene, int, float, dict[str, Any]], Method]  # scene, seed, scale, facts to add
    scenes: tuple[str, ...]


def gaussians(counts: Image) -> Iterator[Image]:
    """Filter with Gaussians of all widths; for volumes also of other widths along z (or time)."""
    ratios = (0.0,) if counts.ndim == 2 else (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    for width in ((z * s, s, s)[-counts.ndim :] for s in SIGMAS_PX for z in ratios):
        yield ndimage.gaussian_filter(counts.astype(float), width)


def medians(counts: Image) -> Iterator[Image]:
    """Filter with medians of all sizes in the plane; for volumes over one or three planes."""
    for size in (3, 5, 7, 9, 13):
        for planes in (1,) if counts.ndim == 2 else (1, 3):
            yield ndimage.median_filter(counts.astype(float), (planes, size, size)[-counts.ndim :])


def best(images: Iterator[Image], truth: Image) -> Image:
    """Return the image closest to the truth."""
    return min(images, key=lambda image: float(np.mean((image - truth) ** 2)))


def best_gaussian(scene: Scene, *_: Any) -> Method:
    """Select the width on the truth; for real counts per plane, on the scoring frame."""

    def plane_by_plane(counts: Image, other: Image, _: float) -> Image:
        pairs = zip(counts, other, strict=True)
        return np.stack([max(gaussians(plane), key=lambda image, q=q: nats(image, q)) for plane, q in pairs])

    def whole(counts: Image, truth: Image, _: float) -> Image:
        rates = gaussians(counts)  # for one-bit frames the detection probability q = 1 - exp(-s)
        return best((-np.log1p(-rate) for rate in rates) if scene.bits else rates, truth)

    return whole if scene.real is None else plane_by_plane


def best_median(*_: Any) -> Method:
    """Select the size on the truth."""
    return lambda counts, truth, level: best(medians(counts), truth)


def bm3d_anscombe(scene: Scene, *_: Any) -> Method:
    """BM3D between Anscombe's transform and its exact unbiased inverse; volumes plane by plane.

    For camera images the variance of the read noise is added under the root, and subtracted from the result.

    Source of the inverses: Makitalo and Foi, IEEE TIP 20 (2011) 2697 and 22 (2013) 91, their closed forms.
    """
    from bm3d import bm3d

    added = 0.0 if scene.camera is None else scene.camera.read_noise**2

    def plane(counts: Image) -> Image:
        transformed = 2 * np.sqrt(np.maximum(counts + added + 3 / 8, 0))
        low, high = float(transformed.min()), float(transformed.max()) + 1e-6
        filtered = bm3d((transformed - low) / (high - low), 1 / (high - low)) * (high - low) + low
        d = np.maximum(filtered, 2 * math.sqrt(3 / 8))
        root = math.sqrt(3 / 2)
        rate: Image = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8 - added
        return np.maximum(rate, 0)

    return lambda counts, truth, level: plane(counts) if counts.ndim == 2 else np.stack([*map(plane, counts)])


def noise2void(scene: Scene, seed: int, scale: float, about: dict[str, Any]) -> Method:
    """Noise2Void of CAREamics with its defaults, on the same counts, with the steps and window size of our networks.

    It supports only images like its training images, and therefore one level.
    """
    import torch
    from careamics import CAREamist
    from careamics.config import create_advanced_n2v_config

    train, epochs = scene.settings["train"], 10
    folder = tempfile.TemporaryDirectory()  # must outlive the method, which reads the weights from it
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    steps = max(1, round(train["steps"] * scale / epochs))
    sizes = (train["patch_px"], train["batch_size"], epochs, steps)
    config = create_advanced_n2v_config("n2v", "array", "SYX", *sizes, num_workers=0)
    denoiser = CAREamist(config, work_dir=folder.name, enable_progress_bar=False)
    denoiser.train(train_data=np.stack(scene.training("Noise2Void", seed)).astype(np.float32))
    about["steps"] = epochs * steps
    about["parameters"] = sum(p.numel() for p in denoiser.model.parameters())

    def method(counts: Image, _: Image, level: float) -> Image | None:
        assert folder.name
        if scene.real is None and level != scene.photons:
            return None
        planes = counts.astype(np.float32).reshape(-1, *counts.shape[-2:])
        predicted, _ = denoiser.predict(pred_data=planes, axes="SYX", num_workers=0)
        return np.maximum(np.concatenate([*map(np.ravel, predicted)]).reshape(counts.shape), 0)

    return method


def r2r(scene: Scene, seed: int, scale: float, about: dict[str, Any]) -> Method:
    """R2R of deepinv for Poisson counts: 15 % of the photons are the target, with squared error as loss.

    Its U-Net has the levels, filters, steps and window size of our networks. Bright pixels are scaled to about 1,
    as in its examples. Their learning rate of 1e-4 is too low for this few steps (cells: 26.4 dB; 29.2 at 1e-3, and
    hardly more up to 4e-3), and batch normalisation fails on images with high dynamic range (zebrafish: 18.6 dB at
    10 photons per pixel, 44.3 without). It supports only images like its training images.

    Source: Monroy et al., "Generalized Recorrupted-to-Recorrupted", CVPR 2025.
    """
    import torch
    from deepinv.loss import R2RLoss
    from deepinv.models import ArtifactRemoval, UNet
    from deepinv.physics import Denoising, PoissonNoise

    torch.manual_seed(seed)
    train, draw = scene.settings["train"], np.random.default_rng(seed)
    network = scene.settings["network"]
    filters = [network["start_filts"] * 2**level for level in range(network["depth"])]
    images = [image.astype(np.float32) for image in scene.training("R2R", seed)]
    gain = 1 / max(1.0, float(np.quantile(np.concatenate([*map(np.ravel, images)]), 0.999)))
    physics, loss = Denoising(PoissonNoise(gain)), R2RLoss()
    model = loss.adapt_model(ArtifactRemoval(UNet(channels_per_scale=filters, residual=False, batch_norm=False)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    about["steps"] = max(1, round(train["steps"] * scale))
    about["parameters"] = sum(p.numel() for p in model.parameters())
    for _ in range(about["steps"]):
        counts = torch.from_numpy(
            np.stack([window(images, train["patch_px"], draw) for _ in range(train["batch_size"])])
        )
        y = gain * counts[:, None]
        optimizer.zero_grad()
        loss(model(y, physics, update_parameters=True), y, physics, model).backward()
        optimizer.step()
    model.eval()

    def method(counts: Image, _: Image, level: float) -> Image | None:
        if scene.real is None and level != scene.photons:
            return None
        planes = torch.from_numpy(counts.astype(np.float32).reshape(-1, 1, *counts.shape[-2:]))
        rates = [model(gain * plane[None], physics) / gain for plane in planes]
        return np.maximum(torch.cat(rates).double().numpy().reshape(counts.shape), 0)

    return method


def window(images: list[Image], size_px: tuple[int, int], draw: np.random.Generator) -> Image:
    """Cut a window at a random position from one of the images."""
    image = images[draw.integers(len(images))]
    y, x = (draw.integers(whole - part + 1) for whole, part in zip(image.shape, size_px, strict=True))
    return image[y : y + size_px[0], x : x + size_px[1]]


PEERS: dict[str, Peer] = {
    "best Gaussian": Peer(best_gaussian, ("zebrafish", "cells", "camera", "hazelnut", "pollen", "video")),
    "best median": Peer(best_median, ("zebrafish", "cells", "camera", "pollen")),
    "Anscombe + BM3D": Peer(bm3d_anscombe, ("zebrafish", "cells", "camera", "hazelnut", "pollen")),
    "Noise2Void": Peer(noise2void, ("zebrafish", "cells", "camera", "hazelnut")),
    "R2R": Peer(r2r, ("zebrafish", "cells", "hazelnut")),
}
