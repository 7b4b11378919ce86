"""Ablations: the recipe of anchored networks with one change at a time, in dB relative to the recipe.

    python benchmarks/changes.py ../shared/data WORK --seeds 2

Every training has the scenes, steps and windows of quality.py, and CPU defaults otherwise. A change and the
recipe share seeds, so differences are paired. Results in WORK are reused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from quality import Image, Job, denoise_counts, evaluate, train_model
from report import interval
from results import write_section
from scenes import RECIPES, SCENES, Scene

from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.model import Model

RECIPE, EIGHT = "the recipe", "mean over eight flips and rotations"
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    RECIPE: {},
    "Adam, at its own best rate": {"train": {"optimizer": "adam", "learning_rate": 2e-3}},
    "learning rate 2e-3 instead of 4e-3": {"train": {"learning_rate": 2e-3}},
    "learning rate 8e-3 instead of 4e-3": {"train": {"learning_rate": 8e-3}},
    "warm-up over 100 steps instead of 20": {"train": {"warmup_steps": 100}},
    "averaged weights, decay 0.99": {"train": {"ema_decay": 0.99}},
    "batch size 16 instead of 8, twice the work": {"train": {"batch_size": 16}},
    "2 windows of 128 px instead of 8 of 64 px": {"train": {"patch_px": (128, 128), "batch_size": 2}},
    "photon loss alone": {"train": {"total_weight": 0.0}},
    "equal weights of all images": {"train": {"brightness_power": 0.0}},
    "images weighted by their photons": {"train": {"brightness_power": 1.0}},
    "inputs with at most half of the photons": {"thinning": {"max_fraction": 0.5}},
    "inputs with up to 95 % of the photons": {"thinning": {"max_fraction": 0.95}},
    "a fifth of the windows binned 2 x 2": {"thinning": {"max_db": None, "binned": 0.2}},
    "anchor of version 1": {"network": {"anchor_version": 1}},
    "skips concatenated instead of added": {"network": {"merge_mode": "concat"}},
    "upsampling instead of transposed convolutions": {"network": {"up_mode": "upsample"}},
}  # fmt: skip


def eight_fold_mean(model: Model, scene: Scene, counts: Image, device: str) -> Image:
    """Return the mean result over all flips and quarter turns of a plane."""
    total = np.zeros(counts.shape)
    for turns in range(4):
        for step in (1, -1):
            image = denoise_counts(model, scene, np.rot90(counts, turns)[:, ::step].copy(), device)
            total += np.rot90(image[:, ::step], -turns)
    return total / 8


def run(job: Job, change: str) -> dict[str, Any]:
    """Train, and score the test scenes at all levels, unless the result exists."""
    path = job.out.with_name(f"{change.replace(' ', '_')}_{job.seed}.json")
    if path.exists():
        return dict(json.loads(path.read_text()))
    scene, start = SCENES[job.scene](job.data), time.process_time()
    model = train_model(dataclasses.replace(job, method=RECIPE if change == EIGHT else change), scene)
    method: Callable[..., Image] = eight_fold_mean if change == EIGHT else denoise_counts
    results = evaluate(scene, job, lambda counts, truth, level: method(model, scene, counts, job.device))
    levels = {level: scores["PSNR"] for level, scores in results["levels"].items()}
    row = {"levels": levels, "minutes": (time.process_time() - start) / 60}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(row))
    return row


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return a markdown table: the PSNR of the recipe, and the gain of each change."""
    levels = list(rows[RECIPE][0]["levels"])
    text = f"| | {' | '.join(levels)} | mean | minutes |\n|{'---|' * (len(levels) + 3)}\n"
    for change, seeds in rows.items():
        pairs = list(zip(seeds, rows[RECIPE], strict=False))
        gains = [[row["levels"][k] - (change != RECIPE) * base["levels"][k] for row, base in pairs] for k in levels]
        means = [float(np.mean(seed)) for seed in zip(*gains, strict=True)]
        cells = [f"{np.mean(gain):{'.2f' if change == RECIPE else '+.2f'}}" for gain in gains]
        minutes = np.mean([row["minutes"] for row in seeds])
        text += f"| {change} | {' | '.join(cells)} | {interval(means, 2)} | {minutes:.1f} |\n"
    return text


def main() -> None:
    """Run the missing trainings, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", nargs="+", default=["cells"], choices=list(SCENES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = "PSNR in dB by photons per pixel (for changes: the difference from the recipe); CPU minutes on one thread; "
    text += f"seeds: {options.seeds}.\n"
    for name in options.scenes:
        rows: dict[str, list[dict[str, Any]]] = {}
        for seed in range(options.seeds):
            for change in [*CHANGES, EIGHT]:
                RECIPES[change] = CHANGES.get(change, {})
                job = Job(options.data, options.work, name, change, seed, options.scale, "cpu", 1)
                job.out.parent.mkdir(parents=True, exist_ok=True)
                rows.setdefault(change, []).append(run(job, change))
                print(name, seed, change, rows[change][-1], flush=True)
        text += f"\n**{name}**\n\n{table(rows)}"
    if math.isclose(options.scale, 1.0):
        write_section("Quality: ablations", __doc__, text)


if __name__ == "__main__":
    main()
