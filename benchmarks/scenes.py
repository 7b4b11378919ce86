"""Training and test data of the quality benchmark, and the recipes that it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from cameras import simulate_camera
from scipy import ndimage
from scores import Image

from gap_bioimage.config import Camera
from gap_bioimage.simulation import simulate_truth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Settings = dict[str, dict[str, Any]]
RECIPES: dict[str, Settings] = {
    "anchored": {"network": {"anchor": True}},
    "plain": {"network": {"anchor": False}},
    "original's recipe": {"network": {"anchor": False, "log1p": False}, "train": {"learning_rate": 1e-4}},
    "supervised": {"network": {"anchor": True}},
    "untrained": {"network": {"anchor": True}},  # the anchored network before its first step: only the filter
}
CLEAN = 3000  # factor on the photons: a truth that can be thinned, as an almost noise-free target


@dataclass(frozen=True)
class Scene:
    """Training images, test scenes and training settings."""

    truths: list[Image]  # expected photons per pixel of the training images, (z,) y, x, overall mean 1
    photons: float  # mean photons per pixel of the training images
    tests: list[Image]  # expected photons per pixel of the test scenes; for real counts, another frame
    levels: tuple[float, ...]  # mean photons per pixel of the test images
    settings: Settings  # sections of RunConfig
    recipes: tuple[str, ...] = tuple(RECIPES)
    real: Image | None = field(default=None)  # real counts for training and denoising, without a truth
    bits: bool = False  # whether a pixel counts at most one photon
    camera: Camera | None = None  # camera that records the images

    def counts(self, truth: Image, level: float, seed: int) -> Image:
        """Draw counts of a scene (for cameras: electrons with read noise), or return the real counts."""
        if self.real is not None:
            return self.real
        if self.camera is not None:
            numbers = {name: getattr(self.camera, name) for name in ("gain", "offset", "read_noise")}
            adu = simulate_camera(truth * level, n_frames=1, seed=seed + round(1e5 * level), **numbers).values[0]
            return (adu - self.camera.offset) / self.camera.gain
        drawn = np.random.default_rng([seed, round(1000 * level)]).poisson(truth * level).astype(np.int32)
        return np.minimum(drawn, 1) if self.bits else drawn

    def training(self, recipe: str, seed: int) -> list[Image]:
        """Return the training counts."""
        if self.real is not None:
            return list(self.real)
        level = self.photons * (CLEAN if recipe == "supervised" else 1)
        return [self.counts(truth, level, number + 100 * seed) for number, truth in enumerate(self.truths)]

    def recorded(self, counts: Image) -> Image:
        """Return the recorded values: counts, or ADU of the camera."""
        return counts if self.camera is None else np.rint(counts * self.camera.gain + self.camera.offset)

    def test(self, number: int, level: float, seed: int) -> Image:
        """Return the counts to denoise: for one-bit videos the training counts, otherwise new ones."""
        return self.counts(self.tests[number], level, 100 * seed if self.bits else 7 + seed)

    def settings_of(self, recipe: str, seed: int, scale: float) -> Settings:
        """Return the settings of a run."""
        sections = {name: {**values, **RECIPES[recipe].get(name, {})} for name, values in self.settings.items()}
        sections["train"] |= {"steps": max(2, round(sections["train"]["steps"] * scale)), "seed": seed}
        return sections


def _settings(steps: int, network: dict[str, Any], train: dict[str, Any], **thinning: float) -> Settings:
    """Return settings, including those shared by all networks."""
    common = {"steps": steps, "warmup_steps": 20, "validate_every": 250, "precision": "32-true"}
    return {"network": network, "thinning": thinning, "train": {**common, **train}}


def _planes(steps: int, **thinning: float) -> Settings:
    network = {"dim": 2, "depth": 4, "start_filts": 16}
    return _settings(steps, network, {"batch_size": 8, "patch_px": (64, 64)}, **thinning)


def _normalised(truth: Image) -> Image:
    """Return rates with minimum 0 and mean 1."""
    truth = truth.astype(float) - float(truth.min())
    return truth / truth.mean()


def zebrafish(data: Path) -> Scene:
    """Sparse and bright: training on rows 0-640 at 10 photons per pixel, testing on rows 640-1024.

    docs/images/quality.png shows two regions at 1 photon per pixel: bright tissue beside dark background, and a dark
    region.
    """
    truth = _normalised(tifffile.imread(data / "zebrafish_clean_yx.tif"))
    settings = _planes(1500, min_db=-15.0, max_db=20.4)
    return Scene([truth[:640]], 10, [truth[640:]], (0.1, 1, 10, 100), settings)


def cells(data: Path) -> Scene:
    """Simulated cells: training on 8 images of 2 photons per pixel, testing on 4 others; short runs."""
    scenes = [simulate_truth(2, (192, 192), seed).values.astype(float) for seed in range(12)]
    return Scene(scenes[:8], 2, scenes[8:], (0.1, 0.5, 2, 20), _planes(300, min_db=-20.0, max_db=6.0))


def camera(data: Path) -> Scene:
    """The same cells through a camera with 1.6 electrons of read noise: training at 5 electrons per pixel."""
    scene, taken_by, settings = cells(data), Camera(gain=2.2, offset=100.0, read_noise=1.6), _planes(500)
    settings["train"]["purpose"] = "denoise"  # determines the brightness range
    recipes = ("anchored", "plain", "original's recipe")
    return Scene(scene.truths, 5, scene.tests, (0.5, 1.5, 5, 20), settings, recipes, camera=taken_by)


def hazelnut(data: Path) -> Scene:
    """Real photon counts: training on one frame of a z-stack, plane by plane, scoring on the next frame."""
    frame, next_frame = (tifffile.imread(data / f"hazelnut_photons_{t}_zyx.tif").astype(np.int32) for t in ("t0", "t1"))
    recipes = ("anchored", "plain", "original's recipe", "untrained")
    return Scene([], 0, [next_frame], (1,), _planes(750, min_db=-20.0), recipes, real=frame)


def pollen(data: Path) -> Scene:
    """A volume: training on rows 0-160 at 2 photons per voxel, testing on rows 160-256."""
    truth = _normalised(tifffile.imread(data / "pollen_clean_zyx.tif"))
    train = {"patch_px": (12, 48, 48), "batch_size": 2, "validate_every": 100, "validation_windows": 8}
    settings = _settings(400, {"dim": 3, "depth": 3, "start_filts": 12}, train, min_db=-15.0, max_db=10.0)
    return Scene([truth[:, :160]], 2, [truth[:, 160:]], (0.1, 0.5, 2, 10), settings)


def video(data: Path) -> Scene:
    """A one-bit video of 0.06 photons per pixel and frame: a rotating photograph.

    96 frames of scikit-image's camera, 160 x 160 pixels, rotated by a tenth of a degree per frame, or 0.2 pixels in the
    corners. Networks see time as z and train on the video itself: each bit goes to input or target, and pixels with
    bits in the input are excluded from the loss. This is the setting of bit2bit (NeurIPS 2024: 34.35 dB on a
    conventional video below 0.06 photons), but that video was not available, and the two values are not comparable.
    """
    import skimage.data

    angles = [0.1 * number for number in range(96)]
    frames = [ndimage.rotate(skimage.data.camera().astype(float), angle, reshape=False, order=1) for angle in angles]
    truth = _normalised(np.stack(frames)[:, 160:320, 160:320])
    train = {"patch_px": (32, 64, 64), "batch_size": 2, "validation_windows": 8}
    settings = _settings(1000, {"dim": 3, "depth": 4, "start_filts": 24}, train, min_db=-25.0, ceiling=1)
    return Scene([truth], 0.06, [truth], (0.06,), settings, ("anchored", "plain", "untrained"), bits=True)


SCENES: dict[str, Callable[[Path], Scene]] = {
    make.__name__: cache(make) for make in (zebrafish, cells, camera, hazelnut, pollen, video)
}
