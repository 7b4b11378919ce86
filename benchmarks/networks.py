"""Quality of networks against seconds per megapixel, after the same training time.

    python benchmarks/networks.py ../shared/data WORK

Every network trains for the same CPU time on one core, including the drawing of its windows, with as many
steps as fit. Results in WORK are reused, so the command may be stopped and repeated.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from quality import denoise_counts
from results import write_section
from scenes import SCENES, Scene
from scores import nats, psnr_db

from gap_bioimage.config import RunConfig
from gap_bioimage.files import replacing
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.model import Model
from gap_bioimage.network import UNet
from gap_bioimage.training.choices import SIZES, choose_sizes
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.patches import PairBatches, WindowDrawer, as_stacks, split_held_out

ORIGINAL = "the original's default"
NETWORKS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        ORIGINAL: {"depth": 5, "start_filts": 32},
        "depth 5, 32 filters": {"depth": 5, "start_filts": 32},
        "depth 4, 16 filters": {"depth": 4, "start_filts": 16},
        "depth 3, 16 filters": {"depth": 3, "start_filts": 16},
        "stem 2, depth 3, 24 filters": {"stem": 2, "depth": 3, "start_filts": 24},
        "stem 2, depth 3, 16 filters": {"stem": 2, "depth": 3, "start_filts": 16},
        "stem 4, depth 3, 32 filters": {"stem": 4, "depth": 3, "start_filts": 32},
    },
    3: {
        ORIGINAL: {"depth": 4, "start_filts": 32},
        "depth 3, 12 filters": {"depth": 3, "start_filts": 12},
        "stem 2, depth 3, 24 filters": {"stem": 2, "depth": 3, "start_filts": 24},
        "stem 2, depth 3, 16 filters": {"stem": 2, "depth": 3, "start_filts": 16},
    },
}
IMAGE = {2: (512, 512), 3: (16, 256, 256)}


def settings_of(scene: Scene, name: str) -> RunConfig:
    """Return the settings of a network on a scene; the original uses its own encoding, loss and learning rate."""
    recipe = "original's recipe" if name == ORIGINAL else "anchored"
    values = scene.settings_of(recipe, 0, 1.0)
    values["network"] |= NETWORKS[values["network"]["dim"]][name]
    return RunConfig.from_dict(values)


def train_network(scene: Scene, name: str, seconds: float) -> tuple[Model, dict[str, Any]]:
    """Train a network for the given CPU seconds, which also set the schedule of the learning rate."""
    config = settings_of(scene, name)
    images = [xr.DataArray(x, dims=["z", "y", "x"][-x.ndim :]) for x in scene.training("anchored", 0)]
    split = split_held_out(as_stacks(images, config.network.dim), config.train.validation_share, 0)
    config = choose_sizes(config, split, accelerator=False)
    assert config.thinning.max_db is not None
    drawer = WindowDrawer(split.training, config.window_px, config.thinning, config.train.min_photons)
    torch.manual_seed(0)
    module = GapModule(config, (config.thinning.min_db, config.thinning.max_db))
    configured, batches = module.configure_optimizers(), PairBatches(drawer, config.train.batch_size, 0)
    optimizer, (factor, *_) = configured["optimizer"], configured["lr_scheduler"]["scheduler"].lr_lambdas
    start, step, share = time.process_time(), 0, 0.0
    while share < 1:
        for group in optimizer.param_groups:
            group["lr"] = config.train.learning_rate * factor(share * config.train.steps)
        optimizer.zero_grad()
        module.training_step(batches[step], 0).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        step, share = step + 1, (time.process_time() - start) / seconds
    costs = {"steps": step, "seconds": time.process_time() - start}
    network = module.network.eval().requires_grad_(False)
    return Model(network, config.network, module.trained_range_db), costs


def evaluate(data: Path, out: Path, scene_name: str, name: str, seconds: float) -> None:
    """Train and denoise, then write the scores."""
    torch.set_num_threads(1)
    scene = SCENES[scene_name](data)
    model, results = train_network(scene, name, seconds)
    results["parameters"] = sum(p.numel() for p in model.network.parameters())
    for level in scene.levels:
        rows = []
        for number, unit in enumerate(scene.tests):
            truth = unit * level
            image = denoise_counts(model, scene, scene.test(number, level, 0), "cpu")
            if scene.real is None:
                rows.append((psnr_db(image, truth), nats(image, np.random.default_rng([1007, number]).poisson(truth))))
            else:
                rows.append((float("nan"), nats(image, truth)))
        results[f"{level:g}"] = np.mean(rows, 0).tolist()
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(results))
    print(f"{scene_name}, {name}: {results}", flush=True)


def speeds(dim: int, rounds: int = 3) -> dict[str, tuple[float, float]]:
    """Return CPU seconds per megapixel, and the speed relative to the original, measured alternately."""
    torch.set_num_threads(1)
    runs, times = {}, {}
    x = torch.poisson(torch.full((1, 1, *IMAGE[dim]), 2.0), generator=torch.Generator().manual_seed(0))
    for name, settings in NETWORKS[dim].items():
        plain = {"anchor": False, "log1p": False} if name == ORIGINAL else {"anchor": True, "anchor_version": 2}
        network = UNet(dim=dim, **plain, **settings).eval().requires_grad_(False)
        # the original unchanged, ours as ``denoise`` runs them
        runs[name], times[name] = network if name == ORIGINAL else TiledNetwork(network, IMAGE[dim]), []
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.process_time()
                run(x)
                if turn:
                    times[name].append((time.process_time() - start) / x.numel() * 1e6)
    ratios = {name: [a / b for a, b in zip(times[ORIGINAL], own, strict=True)] for name, own in times.items()}
    return {name: (statistics.median(own), statistics.median(ratios[name])) for name, own in times.items()}


def tables(work: Path, data: Path, names: list[str]) -> str:
    """Return a table per scene, fastest network first."""
    text, measured = "", {}
    for scene_name in names:
        scene = SCENES[scene_name](data)
        dim = scene.settings["network"]["dim"]
        measured[dim] = measured.get(dim) or speeds(dim)
        middle, shown = scene.levels[len(scene.levels) // 2], scene.levels if scene.real is None else ()
        heads = [f"dB at {level:g}" for level in shown] + [f"nats at {middle:g}" if shown else "nats"]
        heads += ["steps", "trained for s", "parameters", "seconds per megapixel", "times as fast"]
        text += f"\n### {scene_name}\n\n| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}\n"
        for name, (seconds, ratio) in sorted(measured[dim].items(), key=lambda item: item[1]):
            if (path := results_path(work, scene_name, name)).exists():
                results = json.loads(path.read_text())
                cells = [label_of(dim, name), *(f"{results[f'{level:g}'][0]:.2f}" for level in shown)]
                cells += [f"{results[f'{middle:g}'][1]:.4f}", f"{results['steps']:,}", f"{results['seconds']:.0f}"]
                cells += [f"{results['parameters']:,}", f"{seconds:.2f}", f"{ratio:.1f}"]
                text += f"| {' | '.join(cells)} |\n"
    return text


def label_of(dim: int, name: str) -> str:
    """Return the name of a network, with its ``--size`` in ``train``, if any."""
    sizes = [size for size, network in SIZES[dim].items() if network == NETWORKS[dim][name] and name != ORIGINAL]
    return f"{name} (--size {sizes[0]})" if sizes else name


def results_path(work: Path, scene: str, name: str) -> Path:
    """Return the path of a network's scores."""
    return work / scene / f"{name.replace(' ', '_')}.json"


def main() -> None:
    """Run the requested trainings that are missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", nargs="+", default=["cells", "zebrafish", "hazelnut", "pollen"])
    parser.add_argument("--networks", nargs="+", help="only these, such as 'depth 3, 8 filters'")
    parser.add_argument("--seconds", type=float, default=150.0, help="CPU time of training per network and scene")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="write the section of results.md from WORK")
    options = parser.parse_args()
    if options.tables:
        sizes = " or ".join(" x ".join(map(str, shape)) for shape in IMAGE.values())
        head = f"One seed, {options.seconds:g} s of CPU time on one core per training. `times as fast`: relative to "
        head += f"the original's default in eager float32, one thread, images of {sizes}."
        write_section("Networks", __doc__, head + "\n" + tables(options.work, options.data, options.scenes))
        return
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        running = []
        for scene in options.scenes:
            (options.work / scene).mkdir(parents=True, exist_ok=True)
            known = NETWORKS[SCENES[scene](options.data).settings["network"]["dim"]]
            for name in known if options.networks is None else [n for n in options.networks if n in known]:
                if not (out := results_path(options.work, scene, name)).exists():
                    running.append(pool.apply_async(evaluate, (options.data, out, scene, name, options.seconds)))
        for result in running:
            result.get()


if __name__ == "__main__":
    main()
