"""How good the denoised images are: known truths at several brightnesses, and real repeats.

    python benchmarks/quality.py ../shared/data WORK

Trains every network on counts alone, with the same steps and windows, and writes one section of results.md per data
set. Runs that WORK holds are resumed or used as they are, so that the command may be stopped and given again;
``--only zebrafish hazelnut pollen cells`` chooses data sets, ``--scale 0.1`` shortens the runs for a trial.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import torch
import xarray as xr
from results import write_section
from scipy import ndimage

from gap_bioimage.config import RunConfig
from gap_bioimage.simulation import simulate_truth
from gap_bioimage.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.model import Model

Image = np.ndarray[Any, np.dtype[Any]]
RECIPES: dict[str, dict[str, Any]] = {
    "anchored": {"network": {"anchor": True}},
    "plain": {"network": {"anchor": False}},
    "plain, original's recipe": {"network": {"anchor": False, "log1p": False}, "train": {"learning_rate": 1e-4}},
}
SIGMAS_PX = np.geomspace(0.4, 12, 18)


@dataclass(frozen=True)
class Scene:
    """Training counts, a truth to test on, and how to train.

    Attributes
    ----------
    counts
        Images to train on, (z,) y, x.
    tests
        Expected photons per pixel of the test scenes, mean 1.
    levels
        Mean photons per pixel at which they are tested.
    settings
        Sections of ``RunConfig``.
    recipes
        Names of those to compare.
    """

    counts: list[Image]
    tests: list[Image]
    levels: tuple[float, ...]
    settings: dict[str, dict[str, Any]]
    recipes: dict[str, dict[str, Any]] = field(default_factory=lambda: RECIPES)


def psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal-to-noise ratio, with the truth's maximum as peak."""
    return float(10 * math.log10(float(truth.max()) ** 2 / np.mean((image - truth) ** 2)))


def nats(rate: Image, photons: Image) -> float:
    """Return the mean over photons of x ln d - d, nats per photon (the Poisson log-likelihood but for ln x!)."""
    rate = np.maximum(rate, 1e-3)
    return float((photons * np.log(rate) - rate).sum() / photons.sum())


def settings_2d(steps: int, **thinning: float) -> dict[str, dict[str, Any]]:
    """Return what all 2D networks here have in common."""
    return {
        "network": {"dim": 2, "depth": 4, "start_filts": 16},
        "thinning": thinning,
        "train": {"steps": steps, "batch_size": 8, "patch_px": (64, 64), "warmup_steps": 100, "validate_every": 250},
    }


def trained(scene: Scene, recipe: dict[str, Any], out: Path, scale: float) -> tuple[Model, float]:
    """Return the last weights of a run that had all its steps, and the minutes that this call trained."""
    sections = {name: {**values, **recipe.get(name, {})} for name, values in scene.settings.items()}
    sections["train"]["steps"] = max(2, round(sections["train"]["steps"] * scale))
    dims = ["z", "y", "x"][-scene.counts[0].ndim :]
    images = [xr.DataArray(counts, dims=dims) for counts in scene.counts]
    start = time.monotonic()
    resume = (out / "config.yaml").exists()
    model = train(images, out, RunConfig.from_dict(sections), resume=resume, progress=False, device="cpu")
    return model, (time.monotonic() - start) / 60


def denoised(model: Model, counts: Image, *, flips: bool = False) -> Image:
    """Return the expected photons per pixel; with ``flips`` the mean over the eight turns and mirror images."""
    photons = torch.from_numpy(counts.astype(np.float32))[None, None]
    images = []
    for turn, mirror in [(0, False)] if not flips else [(t, m) for t in range(4) for m in (False, True)]:
        turned = torch.rot90(photons, turn, (-2, -1))
        turned = turned.flip(-1) if mirror else turned
        rate = model.network.rate(turned, model.network(turned), [])
        images.append(torch.rot90(rate.flip(-1) if mirror else rate, -turn, (-2, -1)))
    mean: Image = torch.stack(images).mean(0)[0, 0].double().numpy()
    return mean


def best_gaussian(counts: Image, score: Callable[[Image], float]) -> float:
    """Return the score of the best Gaussian filter, chosen on the very image that it is scored on."""
    ratios = (0.0,) if counts.ndim == 2 else (0.0, 0.25, 0.5)
    widths = ((z * s, s, s)[-counts.ndim :] for s in SIGMAS_PX for z in ratios)
    return max(score(ndimage.gaussian_filter(counts.astype(float), width)) for width in widths)


def drawn(truth: Image, level: float, seed: int) -> Image:
    """Return counts of a scene."""
    return np.random.default_rng([seed, round(1000 * level)]).poisson(truth * level).astype(np.int32)


def table(header: list[str], rows: dict[str, list[float]], digits: int = 1) -> str:
    """Return a table in markdown."""
    lines = [f"| | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in row)} |" for name, row in rows.items()]
    return "\n".join(lines)


def scored(scene: Scene, work: Path, scale: float) -> str:
    """Train all recipes on a scene with a known truth, and return the table of dB."""
    cases = [(truth, level, drawn(truth, level, 7)) for level in scene.levels for truth in scene.tests]
    means = lambda values: np.reshape(values, (len(scene.levels), -1)).mean(1).tolist()  # noqa: E731
    rows = {"best Gaussian": means([best_gaussian(c, lambda g, t=t, n=n: psnr_db(g, n * t)) for t, n, c in cases])}
    for name, recipe in scene.recipes.items():
        model, minutes = trained(scene, recipe, work / name.replace(" ", "_").replace("'", ""), scale)
        steps = round(scene.settings["train"]["steps"] * scale)
        steps = recipe.get("train", {}).get("steps", steps)
        rows[f"{name}, {steps} steps"] = means([psnr_db(denoised(model, c), n * t) for t, n, c in cases])
        if "anchored" in name:
            print(f"{work.name}, {name}: {minutes:.1f} minutes")
        if name == "anchored" and scene.counts[0].ndim == 2:
            flipped = [psnr_db(denoised(model, c, flips=True), n * t) for t, n, c in cases]
            rows["anchored, mean of 8 flips"] = means(flipped)
    header = [f"{level:g} photons" for level in scene.levels]
    return "PSNR in dB, the truth's maximum as peak.\n\n" + table(header, rows, 2)


def zebrafish(data: Path, work: Path, scale: float) -> str:
    """Sparse and bright: rows 0-640 for training at 10 photons per pixel, rows 640-1024 for testing."""
    truth = tifffile.imread(data / "zebrafish_clean_yx.tif").astype(float)
    truth -= truth.min()
    truth /= truth.mean()
    settings = settings_2d(1500, min_db=-15.0, max_db=20.4)
    return scored(Scene([drawn(truth[:640], 10, 0)], [truth[640:]], (0.1, 1, 10, 100), settings), work, scale)


def pollen(data: Path, work: Path, scale: float) -> str:
    """A volume: rows 0-160 for training at 2 photons per voxel, rows 160-256 for testing."""
    truth = tifffile.imread(data / "pollen_clean_zyx.tif").astype(float)
    truth -= truth.min()
    truth /= truth.mean()
    settings = settings_2d(400, min_db=-15.0, max_db=10.0)
    settings["network"] = {"dim": 3, "depth": 3, "start_filts": 12}
    settings["train"] |= {"patch_px": (12, 48, 48), "batch_size": 2, "validate_every": 100, "validation_windows": 8}
    recipes = {name: RECIPES[name] for name in ("anchored", "plain")}
    scene = Scene([drawn(truth[:, :160], 2, 0)], [truth[:, 160:]], (0.1, 0.5, 2, 10), settings, recipes)
    return scored(scene, work, scale)


def cells(data: Path, work: Path, scale: float) -> str:
    """Simulated cells: 8 images of 2 photons per pixel, 4 others for testing; short runs."""
    scenes = [simulate_truth(2, (192, 192), seed).values.astype(float) for seed in range(12)]
    settings = settings_2d(300, min_db=-20.0, max_db=6.0)
    longer = {**RECIPES["plain"], "train": {"steps": 1000}}
    recipes = {"anchored": RECIPES["anchored"], "plain": RECIPES["plain"], "plain for longer": longer}
    counts = [drawn(truth, 2, number) for number, truth in enumerate(scenes[:8])]
    return scored(Scene(counts, scenes[8:], (0.1, 0.5, 2, 20), settings, recipes), work, scale)


def hazelnut(data: Path, work: Path, scale: float) -> str:
    """Real photon counts: trained on one frame of a z-stack, plane by plane, and scored on the next frame."""
    seen, unseen = (tifffile.imread(data / f"hazelnut_photons_{t}_zyx.tif").astype(np.int32) for t in ("t0", "t1"))
    settings = settings_2d(750, min_db=-20.0)
    recipes = {name: RECIPES[name] for name in ("anchored", "plain")}
    scene = Scene(list(seen), [], (), settings, recipes)
    planes = [max(nats(ndimage.gaussian_filter(p.astype(float), s), q) * q.sum() for s in SIGMAS_PX) for p, q in
              zip(seen, unseen, strict=True)]  # fmt: skip
    rows = {"best Gaussian of each plane": [sum(planes) / unseen.sum()]}
    for name, recipe in recipes.items():
        model, _ = trained(scene, recipe, work / name, scale)
        rows[name] = [nats(np.stack([denoised(model, plane) for plane in seen]), unseen)]
        flipped = np.stack([denoised(model, plane, flips=True) for plane in seen])
        rows[f"{name}, mean of 8 flips"] = [nats(flipped, unseen)]
    return table(["nats per photon of t1"], rows, 4)


def main() -> None:
    """Run the data sets that were asked for."""
    sets = {scene.__name__: scene for scene in (zebrafish, hazelnut, pollen, cells)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(sets), default=list(sets))
    parser.add_argument("--scale", type=float, default=1.0)
    asked = parser.parse_args()
    for name in asked.only:
        work = asked.work / name
        work.mkdir(parents=True, exist_ok=True)
        body = f"{sets[name].__doc__}\n\n{sets[name](asked.data, work, asked.scale)}"
        if asked.scale == 1:
            write_section(f"Quality: {name}", __doc__, body)
        else:
            print(body)


if __name__ == "__main__":
    main()
