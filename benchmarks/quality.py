"""Quality of denoised images, against other denoisers: known truths at several brightnesses, and repeated real frames.

    python benchmarks/quality.py ../shared/data WORK --seeds 3

Trains every network on counts alone, with the same steps and windows, and writes one section of results.md per data
set. ``supervised`` is the same network with the truth as target: an upper bound. Results in WORK are reused, so
the command may be stopped and repeated; ``--methods`` and ``--scenes`` select a part of the work, for example on
another machine. ``--tables`` only draws the contents of WORK. A GPU fits many trainings at once:

    python benchmarks/quality.py DATA WORK --device cuda --workers 14 --seconds 280 --methods anchored plain

``--scale 0.01`` shortens the runs for a trial. peers.py lists the requirements of other denoisers; those that are not
installed are left out.
"""

import argparse
import inspect
import json
import math
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import psutil
import torch
import xarray as xr
from report import draw_picture, write_tables
from scenes import RECIPES, SCENES, Scene
from scores import nats, residual_ratio, scores

from gap_bioimage.config import RunConfig
from gap_bioimage.files import replacing
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.model import Model, load_model
from gap_bioimage.network import UNet, photons_of
from gap_bioimage.training.choices import choose_sizes
from gap_bioimage.training.fit import train
from gap_bioimage.training.patches import Split, as_stacks

Image = peers.Image
PICTURE = Path(__file__).parents[1] / "docs/images/quality.png"
SHOWN = (np.s_[191:383, 716:908], np.s_[100:292, 300:492])  # bright tissue beside dark background; a dark region


@dataclass(frozen=True)
class Job:
    """One method on one data set with one seed."""

    data: Path
    work: Path
    scene: str
    method: str
    seed: int
    scale: float
    device: str
    workers: int

    @property
    def out(self) -> Path:
        """The results file; the run and the pictures share its name."""
        return self.work / self.scene / f"{self.method.replace(' ', '_')}_{self.seed}.json"

    @property
    def clock(self) -> Callable[[], float]:
        """A clock in seconds: CPU time if the CPU does the work, which excludes other processes."""
        return time.process_time if self.device == "cpu" else time.monotonic

    def machine(self) -> str:
        """Describe the machine."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else f"{platform.machine()} CPU, one thread"
        parallel = f", {self.workers} at a time" if self.workers > 1 else ""
        return f"{name}{parallel}, torch {torch.__version__.split('+')[0]}"


def run(job: Job) -> str:
    """Train (if the method does), denoise, score, and write the results."""
    torch.set_num_threads(1)
    scene = SCENES[job.scene](job.data)
    begin, start = time.monotonic(), job.clock()
    about: dict[str, Any] = {}
    if job.method in RECIPES:
        model = train_model(job, scene)
        if job.method != "untrained":
            about["steps"] = scene.settings_of(job.method, job.seed, job.scale)["train"]["steps"]
            about["parameters"] = sum(p.numel() for p in model.network.parameters())
        method: peers.Method = lambda counts, truth, level: denoise_counts(model, scene, counts, job.device)  # noqa: E731
    else:
        method = peers.PEERS[job.method].make(scene, job.seed, job.scale, about)
    if "steps" in about:  # else nothing was trained
        about["minutes"] = (job.clock() - start) / 60
    results = evaluate(scene, job, method) | about | {"machine": job.machine()}
    with replacing(job.out) as temporary:
        temporary.write_text(json.dumps(results))
    return f"{job.out.relative_to(job.work)}: {time.monotonic() - begin:.0f} s"


def train_model(job: Job, scene: Scene) -> Model:
    """Return the model of a completed run."""
    config = RunConfig.from_dict(scene.settings_of(job.method, job.seed, job.scale))
    counts = [scene.recorded(image) for image in scene.training(job.method, job.seed)]
    images = [xr.DataArray(image, dims=["z", "y", "x"][-image.ndim :]) for image in counts]
    if job.method == "untrained":  # with the filters that training chooses
        stacks = as_stacks(images, config.network.dim)
        config = choose_sizes(config, Split(stacks, stacks), accelerator=False)
        network = UNet(**config.network.model_dump()).eval()
        network.anchor.per_frame.fill_(1 / (config.thinning.ceiling or math.inf))
        return Model(network, config.network, (-math.inf, math.inf), n_frames=config.thinning.ceiling)
    run = job.out.with_suffix("")
    resume = (run / "config.yaml").exists()
    train(images, run, config, camera=scene.camera, resume=resume, progress=False, device=job.device)
    return load_model(run)


def denoise_counts(model: Model, scene: Scene, counts: Image, device: str) -> Image:
    """Return the expected photons per pixel; 2D networks process a stack plane by plane."""
    if scene.camera is not None:
        return denoise(model, scene.recorded(counts), dims="yx", device=device).values
    network, photons = model.network.to(device), torch.from_numpy(counts.astype(np.float32)).to(device)
    planes = model.config.dim == 2 and counts.ndim == 3
    photons = photons[:, None] if planes else photons[None, None]
    with torch.no_grad():
        rate = photons_of(network.rate(photons, network(photons), []), 0.0, model.n_frames or 0)
    image: Image = rate.double().cpu().numpy()
    return image[:, 0] if planes else image[0, 0]


def evaluate(scene: Scene, job: Job, method: peers.Method) -> dict[str, Any]:
    """Denoise the test scenes at all levels; return the scores, and the shortest time in seconds per megapixel."""
    levels: dict[str, Any] = {}
    seconds = math.inf
    for level in scene.levels:
        rows = []
        for number, unit in enumerate(scene.tests):
            truth, counts = unit * level, scene.test(number, level, job.seed)
            start = job.clock()
            image = method(counts, truth, level)
            if image is None:
                continue
            seconds = min(seconds, (job.clock() - start) / counts.size * 1e6)
            if scene.real is not None:
                rows.append({"nats": nats(image, truth), "residual": residual_ratio(image, counts)})
            else:
                other = np.random.default_rng([1007, job.seed, round(1000 * level)]).poisson(truth)
                rows.append(scores(image, truth, counts, other))
            if job.scene == "zebrafish" and level == 1 and job.seed == 0:
                np.savez_compressed(job.out.with_suffix(".npz"), *(image[part].astype(np.float32) for part in SHOWN))
        if rows:
            levels[f"{level:g}"] = {score: np.mean([row[score] for row in rows], axis=0).tolist() for score in rows[0]}
    return {"levels": levels, "seconds per megapixel": seconds}


def jobs(options: argparse.Namespace) -> list[Job]:
    """Return the requested jobs without results: seed by seed, longest first."""
    scenes = {name: make(options.data) for name, make in SCENES.items() if name in options.scenes}
    todo = []
    for name, scene in scenes.items():
        offered = [*scene.recipes, *(peer for peer in peers.PEERS if name in peers.PEERS[peer].scenes)]
        for method in offered if options.methods is None else [m for m in options.methods if m in offered]:
            cost = math.prod(scene.settings["train"]["patch_px"]) * scene.settings["train"]["batch_size"]
            for seed in range(options.seeds if scene.truths or method in RECIPES else 1):
                shared = (options.scale, options.device, options.workers)
                job = Job(options.data, options.work, name, method, seed, *shared)
                todo.append((seed, -cost * scene.settings["train"]["steps"], job))
    return [job for *_, job in sorted(todo, key=lambda entry: entry[:2]) if not job.out.exists()]


def run_all(todo: list[Job], workers: int, seconds: float) -> None:
    """Run jobs in subprocesses; those not finished in time are left out."""
    deadline = psutil.Process().create_time() + seconds
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        running = [pool.apply_async(run, (job,)) for job in todo]
        for job, result in zip(todo, running, strict=True):
            try:
                print(result.get(max(0.0, deadline - time.time())), flush=True)
            except multiprocessing.TimeoutError:
                print(f"{job.out.relative_to(job.work)}: not finished in time", flush=True)
            except Exception as error:
                print(f"{job.out.relative_to(job.work)}: {type(error).__name__}: {error}", flush=True)
        pool.terminate()


def main() -> None:
    """Run the requested jobs, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--methods", nargs="+", choices=[*RECIPES, *peers.PEERS])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e6, help="jobs that are not finished by then are left out")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if not options.tables:
        todo = jobs(options)
        for job in todo:
            job.out.parent.mkdir(parents=True, exist_ok=True)
        run_all(todo, options.workers, options.seconds)
    for name in options.scenes:
        scene, folder = SCENES[name](options.data), options.work / name
        about, to_results = inspect.getdoc(SCENES[name]) or "", options.tables and options.scale == 1
        write_tables(scene, about, folder, __doc__, to_results=to_results)
        if name == "zebrafish" and options.tables:
            draw_picture(PICTURE, scene, folder, SHOWN)


if __name__ == "__main__":
    main()
