"""How good the denoised images are: known truths at several brightnesses, and real repeats, against other denoisers.

    python benchmarks/quality.py ../shared/data WORK --seeds 1

Trains every network on counts alone, with the same steps and windows, and writes one section of results.md per data
set. ``supervised`` is the same network with the truth as target: an upper bound. Runs and scores that WORK holds are
resumed or used as they are, so that the command may be stopped and given again; ``--only zebrafish hazelnut pollen
cells`` chooses data sets, ``--scale 0.1`` shortens the runs for a trial. BM3D needs ``pip install bm3d`` and is left
out without it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import peers
import tifffile
import torch
import xarray as xr
from results import write_section

from gap_bioimage.config import RunConfig
from gap_bioimage.model import load_model
from gap_bioimage.pictures import draw_grid
from gap_bioimage.simulation import simulate_truth
from gap_bioimage.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.model import Model

Image = peers.Image
Recipe = dict[str, Any]
RECIPES: dict[str, Recipe] = {
    "anchored": {"network": {"anchor": True}},
    "plain": {"network": {"anchor": False}},
    "plain, original's recipe": {"network": {"anchor": False, "log1p": False}, "train": {"learning_rate": 1e-4}},
    "supervised": {"network": {"anchor": True}},
}
CLEAN = 3000  # times as many photons: a truth that can be thinned, and so a target almost without noise
PICTURE = Path(__file__).parents[1] / "docs/images/quality.png"


@dataclass(frozen=True)
class Scene:
    """What to train on, a truth to test on, and how to train."""

    truths: list[Image]  # expected photons per pixel of the images to train on, (z,) y, x, mean 1 over all
    photons: float  # mean photons per pixel of these images
    tests: list[Image]  # expected photons per pixel of the test scenes
    levels: tuple[float, ...]  # mean photons per pixel at which they are tested
    settings: dict[str, dict[str, Any]]  # sections of RunConfig
    recipes: dict[str, Recipe] = field(default_factory=lambda: RECIPES)
    methods: ClassVar[list[str] | None] = None  # names of the recipes and denoisers to run; all of them


def settings_2d(steps: int, **thinning: float) -> dict[str, dict[str, Any]]:
    """Return what all 2D networks here have in common."""
    return {
        "network": {"dim": 2, "depth": 4, "start_filts": 16},
        "thinning": thinning,
        "train": {"steps": steps, "batch_size": 8, "patch_px": (64, 64), "warmup_steps": 100, "validate_every": 250},
    }


def trained(counts: list[Image], settings: dict[str, Any], out: Path) -> tuple[Model, float]:
    """Return the last weights of a run that had all its steps, and the minutes that it trained."""
    finished = out / "minutes.json"
    if finished.exists():
        return load_model(out), float(json.loads(finished.read_text()))
    dims = ["z", "y", "x"][-counts[0].ndim :]
    images = [xr.DataArray(image, dims=dims) for image in counts]
    start, resume = time.monotonic(), (out / "config.yaml").exists()
    model = train(images, out, RunConfig.from_dict(settings), resume=resume, progress=False, device="cpu")
    minutes = (time.monotonic() - start) / 60
    finished.write_text(json.dumps(minutes))
    return model, minutes


def denoised(model: Model, counts: Image, *, flips: bool = False) -> Image:
    """Return the expected photons per pixel; with ``flips`` the mean over the eight turns and mirror images."""
    photons = torch.from_numpy(counts.astype(np.float32))[None, None]
    images = []
    for turn, mirror in [(0, False)] if not flips else [(t, m) for t in range(4) for m in (False, True)]:
        turned = torch.rot90(photons, turn, (-2, -1))
        turned = turned.flip(-1) if mirror else turned
        with torch.no_grad():
            rate = model.network.rate(turned, model.network(turned), [])
        images.append(torch.rot90(rate.flip(-1) if mirror else rate, -turn, (-2, -1)))
    mean: Image = torch.stack(images).mean(0)[0, 0].double().numpy()
    return mean


def drawn(truth: Image, level: float, seed: int) -> Image:
    """Return counts of a scene."""
    return np.random.default_rng([seed, round(1000 * level)]).poisson(truth * level).astype(np.int32)


def filters() -> dict[str, Callable[[Image, Image], Image]]:
    """Return the denoisers without training, functions of counts and (for those that choose by it) the truth."""
    methods: dict[str, Callable[[Image, Image], Image]] = {
        "best Gaussian": lambda counts, truth: peers.best(peers.gaussians(counts), truth),
        "best median": lambda counts, truth: peers.best(peers.medians(counts), truth),
    }
    try:
        bm3d = peers.bm3d_anscombe()
    except ImportError:
        print("bm3d is not installed and left out; pip install bm3d")
    else:
        methods["Anscombe + BM3D"] = lambda counts, truth: bm3d(counts)
    return methods


def settings_of(scene: Scene, recipe: Recipe, scale: float, seed: int) -> dict[str, Any]:
    """Return the settings of a run."""
    settings = {name: {**values, **recipe.get(name, {})} for name, values in scene.settings.items()}
    settings["train"] |= {"steps": max(2, round(settings["train"]["steps"] * scale)), "seed": seed}
    return settings


def scored(scene: Scene, work: Path, scale: float, seeds: int) -> str:
    """Train all recipes on a scene with a known truth, and return the table of scores."""
    kept = work / "scores.json"
    table: dict[str, list[dict[str, float]]] = json.loads(kept.read_text()) if kept.exists() else {}

    def judge(name: str, seed: int, denoise: Callable[[Image, Image], Image], about: dict[str, float]) -> None:
        if len(table.setdefault(name, [])) > seed:
            return
        start, pixels, row = time.monotonic(), 0, dict(about)
        for level in scene.levels:
            found = []
            for truth in scene.tests:
                counts = drawn(truth, level, 7 + seed)
                image = denoise(counts, truth * level)
                pixels += image.size
                found.append(peers.scores(image, truth * level, drawn(truth, level, 1007 + seed)))
            row |= {f"{score} {level:g}": float(np.mean([f[score] for f in found])) for score in found[0]}
        table[name].append({**row, "seconds per megapixel": 1e6 * (time.monotonic() - start) / pixels})
        kept.write_text(json.dumps(table))

    for seed in range(seeds):
        for name, method in filters().items():
            judge(name, seed, method, {})
        for name, recipe in scene.recipes.items():
            if scene.methods and name not in scene.methods:
                continue
            if len(table.get(name, [])) > seed and name != "anchored":
                continue
            clean = CLEAN if name == "supervised" else 1
            counts = [drawn(t, scene.photons * clean, number + seed) for number, t in enumerate(scene.truths)]
            settings = settings_of(scene, recipe, scale, seed)
            folder = work / f"{name.replace(' ', '_').replace(chr(39), '').replace(',', '')}_{seed}"
            model, minutes = trained(counts, settings, folder)
            about = {"minutes": minutes, "parameters": sum(p.numel() for p in model.network.parameters())}
            judge(name, seed, lambda counts, truth, m=model: denoised(m, counts), about)  # type: ignore[misc]
            if name == "anchored" and seed == 0 and work.name == "zebrafish":
                draw_picture(scene, model)
            if name == "anchored" and scene.truths[0].ndim == 2:
                judge("anchored, 8 flips", seed, lambda counts, truth, m=model: denoised(m, counts, flips=True), {})  # type: ignore[misc]
    return tables(scene, table, seeds)


def draw_picture(scene: Scene, model: Model) -> None:
    """Draw two parts of the test scene at 1 photon per pixel beside what the denoisers make of them.

    The part with the largest standard deviation, which holds bright tissue and dark ground, and a dark one.
    """
    rows = []
    for window in (np.s_[191:383, 716:908], np.s_[100:292, 300:492]):
        truth, counts = scene.tests[0][window], drawn(scene.tests[0], 1, 7)[window]
        images = {name: method(counts, truth) for name, method in filters().items() if name != "best median"}
        title = f"counts, mean {counts.mean():.2g} per pixel"
        rows.append({title: counts, **images, "gap-bioimage": denoised(model, counts), "truth": truth})
    draw_grid(PICTURE, rows)


def tables(scene: Scene, table: dict[str, list[dict[str, float]]], seeds: int) -> str:
    """Return all scores in markdown: PSNR of each level, and the others of one level in the middle."""
    middle = scene.levels[len(scene.levels) // 2]

    def cell(name: str, key: str, digits: int) -> str:
        values = [row[key] for row in table[name][:seeds] if key in row]
        if not values:
            return ""
        spread = f" ± {1.96 * np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):,.{digits}f}{spread}"

    first = {f"{level:g} photons": (f"PSNR {level:g}", 2) for level in scene.levels}
    others = {"scaled PSNR": 2, "SSIM": 3, "nats": 4}
    second = {name: (f"{name} {middle:g}", digits) for name, digits in others.items()}
    second |= {"minutes": ("minutes", 1), "parameters": ("parameters", 0), "s per Mpx": ("seconds per megapixel", 1)}
    text = f"{scene.settings['train']['steps']} steps; {seeds} seed(s). PSNR in dB, the truth's maximum as peak.\n"
    for columns in (first, second):
        if columns is second:
            text += f"\nAt {middle:g} photons, nats per photon of other counts; minutes of training on this machine.\n"
        text += f"\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"
        for name in table:
            text += f"| {name} | {' | '.join(cell(name, key, digits) for key, digits in columns.values())} |\n"
    return text


def normalised(path: Path) -> Image:
    """Read a clean image as rates with minimum 0 and mean 1."""
    truth = tifffile.imread(path).astype(float)
    truth -= truth.min()
    return truth / truth.mean()


def zebrafish(data: Path, work: Path, scale: float, seeds: int) -> str:
    """Sparse and bright: rows 0-640 for training at 10 photons per pixel, rows 640-1024 for testing.

    The picture, docs/images/quality.png, shows two parts of the test rows at 1 photon per pixel: the 192 x 192 pixels
    with the largest standard deviation, which hold bright tissue and dark ground, and below, on its own scale, a dark
    part of 0.04 photons per pixel, where the network leaves a few faint dark dots at photons that lie close together.
    """
    truth = normalised(data / "zebrafish_clean_yx.tif")
    settings = settings_2d(1500, min_db=-15.0, max_db=20.4)
    return scored(Scene([truth[:640]], 10, [truth[640:]], (0.1, 1, 10, 100), settings), work, scale, seeds)


def pollen(data: Path, work: Path, scale: float, seeds: int) -> str:
    """A volume: rows 0-160 for training at 2 photons per voxel, rows 160-256 for testing."""
    truth = normalised(data / "pollen_clean_zyx.tif")
    settings = settings_2d(400, min_db=-15.0, max_db=10.0)
    settings["network"] = {"dim": 3, "depth": 3, "start_filts": 12}
    settings["train"] |= {"patch_px": (12, 48, 48), "batch_size": 2, "validate_every": 100, "validation_windows": 8}
    recipes = {name: RECIPES[name] for name in ("anchored", "plain")}
    scene = Scene([truth[:, :160]], 2, [truth[:, 160:]], (0.1, 0.5, 2, 10), settings, recipes)
    return scored(scene, work, scale, seeds)


def cells(data: Path, work: Path, scale: float, seeds: int) -> str:
    """Simulated cells: 8 images of 2 photons per pixel, 4 others for testing; short runs."""
    scenes = [simulate_truth(2, (192, 192), seed).values.astype(float) for seed in range(12)]
    settings = settings_2d(300, min_db=-20.0, max_db=6.0)
    recipes = {name: RECIPES[name] for name in ("anchored", "plain", "supervised")}
    recipes["plain, 1000 steps"] = {**RECIPES["plain"], "train": {"steps": 1000}}
    return scored(Scene(scenes[:8], 2, scenes[8:], (0.1, 0.5, 2, 20), settings, recipes), work, scale, seeds)


def hazelnut(data: Path, work: Path, scale: float, seeds: int) -> str:
    """Real photon counts: trained on one frame of a z-stack, plane by plane, and scored on the next frame."""
    seen, unseen = (tifffile.imread(data / f"hazelnut_photons_{t}_zyx.tif").astype(np.int32) for t in ("t0", "t1"))
    planes = [max(peers.nats(g, q) * q.sum() for g in peers.gaussians(p)) for p, q in zip(seen, unseen, strict=True)]
    rows = {"best Gaussian of each plane": [sum(planes) / unseen.sum()]}
    scene = Scene([], 0, [], (), settings_2d(750, min_db=-20.0))
    for name in ("anchored", "plain"):
        for flips in (False, True):
            values = []
            for seed in range(seeds):
                settings = settings_of(scene, RECIPES[name], scale, seed)
                model, _ = trained(list(seen), settings, work / f"{name}_{seed}")
                values.append(peers.nats(np.stack([denoised(model, plane, flips=flips) for plane in seen]), unseen))
            rows[f"{name}{', 8 flips' if flips else ''}"] = values
    lines = [f"| {name} | {np.mean(values):.4f} |" for name, values in rows.items()]
    return "\n".join(["| | nats per photon of t1 |", "|---|---|", *lines])


def main() -> None:
    """Run the data sets that were asked for."""
    sets = {scene.__name__: scene for scene in (zebrafish, hazelnut, pollen, cells)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(sets), default=list(sets))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", help="run these alone, and show of the others what WORK holds")
    asked = parser.parse_args()
    Scene.methods = asked.methods
    for name in asked.only:
        work = asked.work / name
        work.mkdir(parents=True, exist_ok=True)
        body = f"{inspect.getdoc(sets[name])}\n\n{sets[name](asked.data, work, asked.scale, asked.seeds)}"
        if asked.scale == 1:
            write_section(f"Quality: {name}", __doc__, body)
        else:
            print(body)


if __name__ == "__main__":
    main()
