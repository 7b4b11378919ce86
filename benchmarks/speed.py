"""Speed of denoising, training and sampling, relative to the original's architecture in plain eager float32 torch.

    python benchmarks/speed.py [--device cuda]

Every ratio is the median over rounds in one process, in which the reference and the others alternate. The shares "of
peak" refer to a large matrix product and a copy in the same process. "Its time" lists the four torch operators with
the largest share of the time. "At most" is the ratio if only the convolutions, which belong to oneDNN or cuDNN, took
time. Aims that are not reached are marked.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from contest import KIND, Contest, Machine
from exact import Dirichlet, Markov, draw_counts, draw_samples
from results import table, write_section
from torch import Tensor

import gap_bioimage as gap
from gap_bioimage.config import NetworkConfig, RunConfig, SamplingConfig
from gap_bioimage.inference.tiling import TiledNetwork, tiles
from gap_bioimage.model import Model
from gap_bioimage.network import UNet, rate_from_log_rate
from gap_bioimage.sampler import total_photons
from gap_bioimage.simulation import simulate
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.patches import PairBatches, WindowDrawer, as_stacks

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from original_gap import OriginalGap

if TYPE_CHECKING:
    from collections.abc import Callable

ORIGINAL, PLAIN = "original, eager float32", {"anchor": False, "log1p": False}
SIZE = {2: {"depth": 5, "start_filts": 32}, 3: {"depth": 4, "start_filts": 32}}
IMAGE = {"2D": (512, 512), "3D": (32, 256, 256), "small 3D": (16, 64, 64)}
DENOISE_AIM, TRAIN_AIM = {"float32": 1.8, "bf16": 3.0}, {"float32": 1.5, "bf16": 2.5}
SAMPLE_AIM, TILES_AIM = 4.0, 1 / 1.15
WINDOW = {2: (16, (128, 128)), 3: (4, (16, 64, 64))}
SHOWN = {
    "seconds": (1e3, ".4g"), "Mpx/s": (1, ".3g"), "ratio": (1, ".2f"), "aim": (1, ".2f"), "at most": (1, ".2f"),
    "peak MB": (1, ".0f"), "of peak FLOP/s": (1, ".0%"), "of peak bytes/s": (1, ".0%"),
}  # fmt: skip


def _original(dim: int, device: str) -> OriginalGap:
    torch.manual_seed(0)
    return OriginalGap(dim, levels=10, channels=1, up_mode="transpose", merge_mode="add", **SIZE[dim]).to(device)


def _ours(dim: int, like: OriginalGap | None = None) -> Model:
    config = NetworkConfig(dim=dim, **(PLAIN if like is not None else {}), **SIZE[dim])
    network = UNet(**config.model_dump()).eval().requires_grad_(False)
    if like is not None:
        network.load_state_dict(like.state_dict())
    return Model(network, config, (-40.0, 30.0))


def _image_and_tensor(dim: int, shape: tuple[int, ...], photons: float, device: str) -> tuple[Any, Tensor]:
    image = simulate(dim, shape, photons, seed=1)[0]
    return image, torch.from_numpy(image.values.astype(np.float32))[None, None].to(device)


def _mixed(device: str, kind: str) -> Any:
    return torch.autocast(device, torch.bfloat16, enabled=kind == "bf16")


def _named(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def denoise(shape: tuple[int, ...], machine: Machine, seconds: float) -> list[dict[str, Any]]:
    """Measure forward passes of the networks, and ``denoise`` as called by users."""
    device, dim = machine.device, len(shape)
    image, x = _image_and_tensor(dim, shape, 2.0, device)
    reference = _original(dim, device).eval()
    same, default = _ours(dim, reference), _ours(dim)
    contest = Contest(f"denoise {_named(shape)}", machine, x.numel())
    with torch.inference_mode():
        difference = float((TiledNetwork(same.network, shape, device=device)(x) - reference(x)).abs().max())
        contest.add(ORIGINAL, lambda: rate_from_log_rate(reference(x), x))
        for name, model in (("the same network", same), ("default network", default)):
            for kind in KIND:
                run = TiledNetwork(model.network, shape, device=device)
                run.bf16 = kind == "bf16"
                note = f"log-rates differ by {difference:.1g}" if model is same and not run.bf16 else ""
                aim = DENOISE_AIM[kind] if model is same else None
                contest.add(f"{name}, {kind}", functools.partial(run, x), kind, note, aim)
        for kind in KIND:
            run = functools.partial(gap.denoise, default, image, device=device, precision=kind)
            contest.add(f"gap.denoise, {kind}", run, kind)
        return contest.rows(seconds)


def tiled(machine: Machine, seconds: float) -> list[dict[str, Any]]:
    """Measure tiles against the whole image."""
    shape, tile = (1536, 1536), (1024, 1024)
    _, x = _image_and_tensor(2, shape, 2.0, machine.device)
    whole, cut = (TiledNetwork(_ours(2).network, size, device=machine.device) for size in (shape, tile))
    parts = tiles(shape, tile, cut.halo_px, cut.step)
    area = sum(math.prod(side.stop - side.start for side in part.outer) for part in parts) / math.prod(shape)
    contest = Contest(f"tiles of {_named(shape)}", machine, x.numel())
    contest.add("default network, whole", lambda: whole(x))
    note, aim = f"{area:.2f} times the pixels", TILES_AIM / area
    contest.add(f"{len(parts)} tiles of {_named(tile)}", lambda: cut(x), note=note, aim=aim)
    return contest.rows(seconds)


def train(dim: int, machine: Machine, seconds: float) -> list[dict[str, Any]]:
    """Measure training steps, including the drawing of their windows."""
    size, window = WINDOW[dim]
    image, _ = _image_and_tensor(dim, tuple(2 * side for side in window), 10.0, "cpu")
    contest = Contest(f"train {size} x {_named(window)}", machine, size * math.prod(window))
    contest.add(ORIGINAL, _original_step(dim, image.values.astype(np.int32), machine.device))
    for name, chosen in (("the same network", PLAIN), ("default network", {})):
        for kind in KIND:
            settings = {"network": {"dim": dim, **SIZE[dim], **chosen}, "thinning": {"min_db": -10, "max_db": 10}}
            settings["train"] = {"optimizer": "adam" if chosen else "muon"}
            step = _our_step(RunConfig.from_dict(settings), image, machine.device, kind)
            contest.add(f"{name}, {kind}", step, kind, aim=TRAIN_AIM[kind] if chosen else None)
    return contest.rows(seconds)


def _original_step(dim: int, image: np.ndarray, device: str) -> Callable[[], Any]:
    """Return a training step like the original's: a distribution per sample, photon loss, Adam, clipped gradients."""
    network, (size, window), rng = _original(dim, device).train(), WINDOW[dim], np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def pair() -> tuple[Tensor, Tensor]:
        starts = [int(rng.integers(0, n - w + 1)) for n, w in zip(image.shape, window, strict=True)]
        counts = torch.from_numpy(image[tuple(slice(s, s + w) for s, w in zip(starts, window, strict=True))])
        fraction = min(float(10 ** rng.uniform(-1, 1) / max(counts.float().mean(), 1e-9)), 0.99)
        photons = torch.distributions.Binomial(counts, probs=torch.tensor([fraction])).sample()
        return photons[None], (counts - photons)[None]

    def step() -> None:
        x, target = (torch.stack(part).float().to(device) for part in zip(*(pair() for _ in range(size)), strict=True))
        optimizer.zero_grad()
        log_p, target = torch.log_softmax(network(x).flatten(1), 1), target.flatten(1)
        (-((target * log_p).sum(1) / target.sum(1).clamp(min=1)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    return step


def _our_step(config: RunConfig, image: Any, device: str, kind: str) -> Callable[[], Any]:
    """Return one of our training steps, as Lightning runs it."""
    module, (size, window) = GapModule(config, (-10.0, 10.0)).to(device), WINDOW[config.network.dim]
    drawer = WindowDrawer(as_stacks([image], config.network.dim), window, config.thinning)
    batches = PairBatches(drawer, size, 0, device=torch.device(device))
    optimizer, numbers = module.configure_optimizers()["optimizer"], iter(range(10**9))

    def step() -> None:
        optimizer.zero_grad()
        with _mixed(device, kind):
            loss = module.training_step(batches[next(numbers)], 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), config.train.gradient_clip)
        module.on_before_optimizer_step(optimizer)
        optimizer.step()

    return step


def _variances_of(**schedule: Any) -> list[float]:
    """Return sample variances relative to the posterior's: a chain, and independent pixels at two brightnesses."""
    pixels, chain = Dirichlet(torch.ones(1, 1, 12, 12)), Markov(torch.tensor([0.2, 0.5, 0.8]).double(), 0.9, 64)
    light = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(5)).log().neg()
    images: list[tuple[Dirichlet | Markov, Tensor]] = [(chain, draw_counts(chain.draw(3), 192.0, 4))]
    images += [(pixels, draw_counts(light / light.sum(), photons * 144, 5)) for photons in (1.0, 10.0)]
    found = []
    for prior, counts in images:
        rate = draw_samples(prior.predict, counts, range(2000), 100 * total_photons(counts), **schedule)[0]
        found.append(float((rate / total_photons(counts)).double().var(0).sum() / prior.posterior(counts)[1].sum()))
    return found


def sample(machine: Machine, seconds: float) -> list[dict[str, Any]]:
    """Measure samples of equal posterior variance: a plain implementation of the paper's loop, and ours."""
    image, x = _image_and_tensor(2, (256, 256), 0.5, machine.device)
    reference = _original(2, machine.device).eval()

    def plainly() -> None:
        now = x
        while float(now.sum()) < 99 * float(x.sum()):
            p = torch.softmax(reference(now).flatten(1), 1).reshape(now.shape)
            now = now + torch.poisson(p * torch.clamp(0.1 * now.sum(), min=1.0))
        reference(now)

    contest, least = Contest("a sample of 256 x 256", machine, x.numel()), _variances_of(beta=0.1)
    for steps in range(4, 99):
        reached = _variances_of(steps=steps)
        if all(ours > theirs - 0.005 for ours, theirs in zip(reached, least, strict=True)):
            break
    variance, paper = (" / ".join(f"{ratio:.3f}" for ratio in ratios) for ratios in (reached, least))
    settings = SamplingConfig(steps=steps)
    with torch.inference_mode():
        contest.add(f"{ORIGINAL}, beta = 0.1", plainly, note=f"variance {paper} of the posterior's")
        options = {"seed": 0, "settings": settings, "device": machine.device}
        for name, model in (("the same network", _ours(2, reference)), ("default network", _ours(2))):
            for kind in KIND:
                run = functools.partial(gap.sample, model, image, 1, precision=kind, **options)
                way = f"gap.sample in {steps} steps, {name}, {kind}"
                contest.add(way, run, kind, f"variance {variance}", SAMPLE_AIM if kind == "float32" else None)
        return contest.rows(seconds)


def bf16(machine: Machine, _: float) -> list[dict[str, Any]]:
    """Measure the effect of bfloat16 on the result of a trained network, and on the variance of 16 samples."""
    found = []
    for photons in (0.1, 1.0, 10.0, 100.0):
        image, x = _image_and_tensor(2, (512, 512), photons, machine.device)
        model, truth = gap.load_model("nuclei"), simulate(2, (512, 512), photons, seed=1)[1].values
        run, rates = TiledNetwork(model.network), []
        for run.bf16 in (False, True):
            rates.append(torch.exp(run(x.cpu()))[0, 0].double().numpy())
        rms = math.sqrt(np.square(rates[1] - rates[0]).mean() / np.square(rates[0]).mean())
        db = 10 * math.log10(np.square(rates[0] - truth).mean() / np.square(rates[1] - truth).mean())
        part = image[:128, :128]
        drawn = [gap.sample(model, part, 16, seed=0, precision=kind).var("sample").mean() for kind in KIND]
        note = f"relative RMS {rms:.2%}, PSNR {db:+.3f} dB, variance of samples {float(drawn[1] / drawn[0] - 1):+.2%}"
        found.append({"work": f"bf16 at {photons:g} photons per pixel", "way": "the model nuclei", "note": note})
    return found


PARTS = {
    **{f"denoise {name}": functools.partial(denoise, shape) for name, shape in IMAGE.items()},
    **{f"train {dim}D": functools.partial(train, dim) for dim in (2, 3)},
    **{"tiles": tiled, "sample": sample, "bf16": bf16},
}


def measure(part: str, device: str, threads: int, seconds: float) -> dict[str, Any]:
    """Measure one part."""
    torch.set_num_threads(threads)
    machine = Machine(device)
    rows = PARTS[part](machine, seconds)
    name = torch.cuda.get_device_name() if machine.cuda else f"{threads} threads"
    return {"part": part, "machine": name, "peak": machine.flops | {"copy": machine.bytes}, "rows": rows}


def _table(results: list[dict[str, Any]]) -> str:
    rows = []
    for row in (row for part in results for row in part["rows"]):
        cells = [f"{row[name] * factor:{form}}" if row.get(name) else "" for name, (factor, form) in SHOWN.items()]
        if row.get("aim") and row["ratio"] < row["aim"]:
            cells[list(SHOWN).index("aim")] += " (missed)"
        rows.append([row["work"], row["way"], *cells, row["note"], row.get("shares", "")])
    return table(["work", "way", "ms", *list(SHOWN)[1:], "", "its time"], rows)


def main() -> None:
    """Measure the parts, and write the section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="parts to run in parallel, on a machine with many cores")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the rounds of each part")
    parser.add_argument("--json", type=Path, default=Path("speed.json"))
    options, results = parser.parse_args(), []
    # one process per part, for a separate memory peak
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        settings = (options.device, options.threads, options.seconds)
        for part in as_completed([pool.submit(measure, name, *settings) for name in options.parts.split(",")]):
            results.append(part.result())
            options.json.write_text(json.dumps(results, indent=1))
    results.sort(key=lambda result: list(PARTS).index(result["part"]))
    peak, machine = results[0]["peak"], results[0]["machine"]
    peaks = ", ".join(f"{peak[kind] / 1e12:.3g} TFLOP/s in {kind}" for kind in KIND)
    head = f"{machine}; peaks {peaks}, {peak['copy'] / 1e9:.3g} GB/s. Ratio: speed relative to the first way."
    write_section(f"Speed: {options.device}", __doc__, f"{head}\n\n{_table(results)}")


if __name__ == "__main__":
    main()
