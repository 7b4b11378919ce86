"""What the benchmark of quality trains and tests on, and the recipes that it trains."""

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
    "untrained": {"network": {"anchor": True}},  # the anchored network before its first step, a filter
}
CLEAN = 3000  # times as many photons: a truth that can be thinned, and so a target almost without noise


@dataclass(frozen=True)
class Scene:
    """What to train on, what to test on, and how to train."""

    truths: list[Image]  # expected photons per pixel of the images to train on, (z,) y, x, mean 1 over all
    photons: float  # mean photons per pixel of these images
    tests: list[Image]  # expected photons per pixel of the test scenes; of real counts those of another frame
    levels: tuple[float, ...]  # mean photons per pixel at which they are tested
    settings: Settings  # sections of RunConfig
    recipes: tuple[str, ...] = tuple(RECIPES)
    real: Image | None = field(default=None)  # real counts to train on and to denoise, where there is no truth
    bits: bool = False  # whether a pixel counts one photon at most
    camera: Camera | None = None  # what takes the images

    def counts(self, truth: Image, level: float, seed: int) -> Image:
        """Draw counts of a scene, of cameras in electrons with their read noise, or return the real ones."""
        if self.real is not None:
            return self.real
        if self.camera is not None:
            numbers = {name: getattr(self.camera, name) for name in ("gain", "offset", "read_noise")}
            adu = simulate_camera(truth * level, n_frames=1, seed=seed + round(1e5 * level), **numbers).values[0]
            return (adu - self.camera.offset) / self.camera.gain
        drawn = np.random.default_rng([seed, round(1000 * level)]).poisson(truth * level).astype(np.int32)
        return np.minimum(drawn, 1) if self.bits else drawn

    def training(self, recipe: str, seed: int) -> list[Image]:
        """Return the counts to train on."""
        if self.real is not None:
            return list(self.real)
        level = self.photons * (CLEAN if recipe == "supervised" else 1)
        return [self.counts(truth, level, number + 100 * seed) for number, truth in enumerate(self.truths)]

    def recorded(self, counts: Image) -> Image:
        """Return what was recorded: counts, or a camera's values."""
        return counts if self.camera is None else np.rint(counts * self.camera.gain + self.camera.offset)

    def test(self, number: int, level: float, seed: int) -> Image:
        """Return the counts to denoise: of one-bit videos those of the training, else others."""
        return self.counts(self.tests[number], level, 100 * seed if self.bits else 7 + seed)

    def settings_of(self, recipe: str, seed: int, scale: float) -> Settings:
        """Return the settings of a run."""
        both = {name: {**values, **RECIPES[recipe].get(name, {})} for name, values in self.settings.items()}
        both["train"] |= {"steps": max(2, round(both["train"]["steps"] * scale)), "seed": seed}
        return both


def _settings(steps: int, network: dict[str, Any], train: dict[str, Any], **thinning: float) -> Settings:
    """Return what all networks here have in common."""
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
    """Sparse and bright: rows 0-640 to train on at 10 photons per pixel, rows 640-1024 to test on.

    docs/images/quality.png shows two parts at 1 photon per pixel: bright tissue beside dark ground, and a dark part.
    """
    truth = _normalised(tifffile.imread(data / "zebrafish_clean_yx.tif"))
    settings = _planes(1500, min_db=-15.0, max_db=20.4)
    return Scene([truth[:640]], 10, [truth[640:]], (0.1, 1, 10, 100), settings)


def cells(data: Path) -> Scene:
    """Simulated cells: 8 images of 2 photons per pixel to train on, 4 others to test on; short runs."""
    scenes = [simulate_truth(2, (192, 192), seed).values.astype(float) for seed in range(12)]
    return Scene(scenes[:8], 2, scenes[8:], (0.1, 0.5, 2, 20), _planes(300, min_db=-20.0, max_db=6.0))


def camera(data: Path) -> Scene:
    """The same cells through a camera of 1.6 electrons of read noise: 5 electrons per pixel to train on."""
    scene, taken_by, settings = cells(data), Camera(gain=2.2, offset=100.0, read_noise=1.6), _planes(500)
    settings["train"]["purpose"] = "denoise"  # which decides the range of brightness
    recipes = ("anchored", "plain", "original's recipe")
    return Scene(scene.truths, 5, scene.tests, (0.5, 1.5, 5, 20), settings, recipes, camera=taken_by)


def hazelnut(data: Path) -> Scene:
    """Real photon counts: trained on one frame of a z-stack, plane by plane, and scored on the next frame."""
    seen, unseen = (tifffile.imread(data / f"hazelnut_photons_{t}_zyx.tif").astype(np.int32) for t in ("t0", "t1"))
    recipes = ("anchored", "plain", "original's recipe", "untrained")
    return Scene([], 0, [unseen], (1,), _planes(750, min_db=-20.0), recipes, real=seen)


def pollen(data: Path) -> Scene:
    """A volume: rows 0-160 to train on at 2 photons per voxel, rows 160-256 to test on."""
    truth = _normalised(tifffile.imread(data / "pollen_clean_zyx.tif"))
    train = {"patch_px": (12, 48, 48), "batch_size": 2, "validate_every": 100, "validation_windows": 8}
    settings = _settings(400, {"dim": 3, "depth": 3, "start_filts": 12}, train, min_db=-15.0, max_db=10.0)
    return Scene([truth[:, :160]], 2, [truth[:, 160:]], (0.1, 0.5, 2, 10), settings)


def video(data: Path) -> Scene:
    """A one-bit video of 0.06 photons per pixel and frame: a photograph that turns.

    96 frames of scikit-image's camera, 160 x 160 pixels, a tenth of a degree per frame, which is 0.2 pixels in the
    corners. Networks see time as z and train on the video itself: each bit goes to input or target, and pixels of the
    input's bits stay out of the loss. That is the setting of bit2bit (NeurIPS 2024: 34.35 dB on a conventional video
    below 0.06 photons), but that video could not be had, and the two numbers say nothing about each other.
    """
    import skimage.data

    angles = [0.1 * number for number in range(96)]
    frames = [ndimage.rotate(skimage.data.camera().astype(float), angle, reshape=False, order=1) for angle in angles]
    truth = _normalised(np.stack(frames)[:, 160:320, 160:320])
    train = {"patch_px": (32, 64, 64), "batch_size": 2, "validation_windows": 8}
    settings = _settings(1000, {"dim": 3, "depth": 4, "start_filts": 24}, train, min_db=-25.0, ceiling=1)
    return Scene([truth], 0.06, [truth], (0.06,), settings, ("anchored", "plain", "untrained"), bits=True)


SCENES: dict[str, Callable[[Path], Scene]] = {
    made.__name__: cache(made) for made in (zebrafish, cells, camera, hazelnut, pollen, video)
}
