"""How fast denoising, training and sampling are, against the original's architecture in plain eager float32 torch.

    python benchmarks/speed.py [--device cuda]

Every ratio comes from one process in which the reference and the others take turns; its times are medians. Peaks, of
which the achieved rates are shares, are those of a large matrix product and of a copy in the same process.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import functools
import json
import math
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from exact import Dirichlet, draw_counts, draw_samples
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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

ORIGINAL = "original, eager float32"
KIND = {"float32": torch.float32, "bf16": torch.bfloat16}
KINDS = {kind: label for label, kind in KIND.items()}
SIZE = {2: {"depth": 5, "start_filts": 32}, 3: {"depth": 4, "start_filts": 32}}
IMAGE = {2: (512, 512), 3: (32, 256, 256)}
WINDOW = {2: (16, (128, 128)), 3: (4, (16, 64, 64))}
PARTS = ("denoise 2D", "denoise 3D", "train 2D", "train 3D", "tiles", "sample", "bf16")


@dataclass
class Row:
    """One way of doing a piece of work."""

    part: str
    way: str
    seconds: float
    ratio: float  # the reference's time over this one's, median over rounds
    mpx_per_s: float
    memory_mb: float  # peak, above what there was before
    flops: float  # share of the peak of a matrix product of the same type
    bytes: float  # what all operators read and wrote, as a share of what a copy does
    note: str = ""


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operators read and write, views left out."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or any(name in str(func) for name in ("empty", "detach", "_unsafe_view"))):
            given = [*args, *(out if isinstance(out, (list, tuple)) else [out])]
            flat = [t for one in given for t in (one if isinstance(one, (list, tuple)) else [one])]
            self.total += sum(t.numel() * t.element_size() for t in flat if isinstance(t, Tensor))
        return out


class Machine:
    """A device: its clock, its memory and its peaks."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device != "cpu"
        size = 8192 if self.cuda else 3072
        a = torch.rand(size, size, device=device)
        big = torch.rand(2**28 if self.cuda else 2**26, device=device)
        target = torch.empty_like(big)
        self.flops = {}
        for kind in (torch.float32, torch.bfloat16):
            b = a.to(kind)
            self.flops[kind] = 2 * size**3 / min(self.time(lambda b=b: b @ b) for _ in range(5))
        self.bytes = 8 * big.numel() / min(self.time(lambda: target.copy_(big)) for _ in range(5))

    def time(self, run: Callable[[], Any]) -> float:
        """Return the seconds of a run."""
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_mb(self, run: Callable[[], Any]) -> float:
        """Return how much memory a run takes at its worst."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.time(run)
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
        run()
        return (_status_kb("VmHWM") - before) / 1e3


def _status_kb(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


class Contest:
    """Ways of doing the same work, which take turns; the first is the reference."""

    def __init__(self, part: str, machine: Machine, pixels: float, seconds: float) -> None:
        self.part, self.machine, self.pixels, self.seconds = part, machine, pixels, seconds
        self.ways: dict[str, tuple[Callable[[], Any], torch.dtype, str, Callable[[], Any]]] = {}

    def add(
        self,
        way: str,
        run: Callable[[], Any],
        kind: torch.dtype = torch.float32,
        note: str = "",
        eager: Callable[[], Any] | None = None,
    ) -> None:
        """Add a way; ``eager`` does the same where operators can be counted."""
        self.ways[way] = (run, kind, note, eager or run)

    def rows(self) -> list[Row]:
        """Let them run, round by round, until the time is over."""
        counted, memory, times = {}, {}, {way: [] for way in self.ways}
        for way, (run, _, _, eager) in self.ways.items():
            with FlopCounterMode(display=False) as flops, Traffic() as traffic:
                memory[way] = self.machine.peak_mb(eager)
            counted[way] = flops.get_total_flops(), traffic.total
            run()
        start = time.perf_counter()
        while not times[way] or (time.perf_counter() - start < self.seconds and len(times[way]) < 30):
            for way, (run, _, _, _) in self.ways.items():
                times[way].append(self.machine.time(run))
        first, found = next(iter(times.values())), []
        for way, (_, kind, note, _) in self.ways.items():
            took = statistics.median(times[way])
            ratio = statistics.median(a / b for a, b in zip(first, times[way], strict=True))
            flops, moved = counted[way][0] / took, counted[way][1] / took
            found.append(
                Row(self.part, way, took, ratio, self.pixels / took / 1e6, memory[way],
                    flops / self.machine.flops[kind], moved / self.machine.bytes, note)
            )  # fmt: skip
        return found


def original(dim: int, device: str) -> OriginalGap:
    """Return the original's default network, with random weights."""
    torch.manual_seed(0)
    return OriginalGap(dim, levels=10, channels=1, up_mode="transpose", merge_mode="add", **SIZE[dim]).to(device)


def network(dim: int, like: OriginalGap | None = None) -> Model:
    """Return a model with the original's architecture and weights, or the default with random ones."""
    plain = {"anchor": False, "log1p": False} if like is not None else {}
    config = NetworkConfig(dim=dim, **plain, **SIZE[dim])
    made = UNet(**config.model_dump()).eval().requires_grad_(False)
    if like is not None:
        made.load_state_dict(like.state_dict())
    return Model(made, config, (-40.0, 30.0))


def counts_of(dim: int, shape: tuple[int, ...], photons: float = 2.0) -> Any:
    """Return a simulated image."""
    return simulate(dim, shape, photons, seed=1)[0]


def mixed(device: str, kind: torch.dtype) -> Any:
    """Return a context, or decorator, in which convolutions run in this type."""
    return torch.autocast(device, torch.bfloat16, enabled=kind == torch.bfloat16)


def denoise(dim: int, machine: Machine, seconds: float) -> list[Row]:
    """Forward passes of the networks, and ``denoise`` as users call it."""
    device, image = machine.device, counts_of(dim, IMAGE[dim])
    x = torch.from_numpy(image.values.astype(np.float32))[None, None].to(device)
    reference = original(dim, device).eval()
    same, default = network(dim, reference), network(dim)
    contest = Contest(f"denoise {dim}D, {' x '.join(map(str, IMAGE[dim]))}", machine, x.numel(), seconds)
    with torch.inference_mode():
        expected = reference(x)
        difference = float((TiledNetwork(same.network, IMAGE[dim], device=device)(x) - expected).abs().max())
        note = f"log-rates differ by {difference:.1g}"
        contest.add(ORIGINAL, lambda: rate_from_log_rate(reference(x), x))
        for name, model, told in (("same network", same, note), ("default network", default, "")):
            for kind, label in KINDS.items():
                run = TiledNetwork(model.network, IMAGE[dim], device=device)
                run.bf16 = kind == torch.bfloat16
                contest.add(f"{name}, {label}", lambda run=run: run(x), kind, told if label == "float32" else "")
                if dim == 3 and model is default:
                    last = copy.deepcopy(model.network).to(device, memory_format=torch.channels_last_3d)
                    contest.add(f"{name}, channels last, {label}", mixed(device, kind)(lambda n=last: n(x)), kind)
        for precision in ("float32", "bf16"):
            run = functools.partial(gap.denoise, default, image, device=device, precision=precision)
            contest.add(f"gap.denoise, {precision}", run, KIND[precision])
        if machine.cuda:
            compiled(contest, default.network, x)
        return contest.rows()


def compiled(contest: Contest, net: UNet, x: Tensor) -> None:
    """Add the default network as torch.compile makes it."""
    fast = torch.compile(net)

    def run(made: Any = fast) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return made(x)

    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    note = f"compiled in {time.perf_counter() - start:.0f} s"
    contest.add("default network, bf16, compiled", run, torch.bfloat16, note, lambda: run(net))


def tiled(machine: Machine, seconds: float) -> list[Row]:
    """Tiles against the whole image."""
    shape, tile = (2048, 2048) if machine.cuda else (1024, 1024), (1024, 1024) if machine.cuda else (640, 640)
    model, image = network(2), counts_of(2, shape)
    x = torch.from_numpy(image.values.astype(np.float32))[None, None].to(machine.device)
    whole = TiledNetwork(model.network, shape, device=machine.device)
    cut = TiledNetwork(model.network, tile, device=machine.device)
    parts = tiles(shape, tile, cut.halo_px, cut.step)
    area = sum(math.prod(s.stop - s.start for s in part.outer) for part in parts) / math.prod(shape)
    contest = Contest(f"tiles, {shape[0]} x {shape[1]}", machine, x.numel(), seconds)
    contest.add("whole", lambda: whole(x))
    contest.add(f"{len(parts)} tiles of {tile[0]} x {tile[1]}", lambda: cut(x), note=f"{area:.2f} times the pixels")
    return contest.rows()


def train(dim: int, machine: Machine, seconds: float) -> list[Row]:
    """Training steps, the drawing of their windows included."""
    (batch, window), device = WINDOW[dim], machine.device
    image = counts_of(dim, tuple(4 * size if size > 16 else size for size in window), 10.0)
    contest = Contest(
        f"train {dim}D, {batch} x {' x '.join(map(str, window))}", machine, batch * math.prod(window), seconds
    )
    contest.add(ORIGINAL, original_step(dim, image.values.astype(np.int32), device))
    plain = {"anchor": False, "log1p": False}
    for name, chosen in (("same network", plain), ("default network", {})):
        for kind, label in KINDS.items():
            settings = {"network": {"dim": dim, **SIZE[dim], **chosen}, "thinning": {"min_db": -10, "max_db": 10}}
            step = our_step(RunConfig.from_dict(settings), image, device, kind)
            contest.add(f"{name}, {label}", step, kind)
    return contest.rows()


def original_step(dim: int, image: np.ndarray, device: str) -> Callable[[], Any]:
    """Return a step as the original's: a distribution per sample, photon loss, Adam, clipped gradients."""
    net, (size, window), rng = original(dim, device).train(), WINDOW[dim], np.random.default_rng(0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def pair() -> tuple[Tensor, Tensor]:
        starts = [int(rng.integers(0, n - w + 1)) for n, w in zip(image.shape, window, strict=True)]
        counts = torch.from_numpy(image[tuple(slice(s, s + w) for s, w in zip(starts, window, strict=True))])
        fraction = min(float(10 ** rng.uniform(-1, 1) / max(counts.float().mean(), 1e-9)), 0.99)
        kept = torch.distributions.Binomial(counts, probs=torch.tensor([fraction])).sample()
        return kept[None], (counts - kept)[None]

    def step() -> None:
        x, target = (torch.stack(part).float().to(device) for part in zip(*(pair() for _ in range(size)), strict=True))
        optimizer.zero_grad()
        log_p = torch.log_softmax(net(x).flatten(1), 1)
        loss = -((target.flatten(1) * log_p).sum(1) / target.flatten(1).sum(1).clamp(min=1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()

    return step


def our_step(config: RunConfig, image: Any, device: str, kind: torch.dtype) -> Callable[[], Any]:
    """Return a step of ours, as Lightning makes it."""
    module = GapModule(config, (-10.0, 10.0)).to(device)
    size, window = WINDOW[config.network.dim]
    drawer = WindowDrawer(as_stacks([image], config.network.dim), window, config.thinning)
    batches, optimizer, number = PairBatches(drawer, size, 0), module.configure_optimizers()["optimizer"], [0]

    def step() -> None:
        number[0] += 1
        pairs = batches[number[0]]
        pairs = pairs._replace(**{k: v.to(device) for k, v in pairs._asdict().items() if v is not None})
        optimizer.zero_grad()
        with mixed(device, kind):
            loss = module.training_step(pairs, number[0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), config.train.gradient_clip)
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        module.train_losses.clear()

    return step


def variance_ratios() -> tuple[float, dict[int, float]]:
    """Return the samples' variance over the posterior's, exact predictors: beta = 0.1, and ours by steps; 20 dB."""
    bed = Dirichlet(torch.ones(1, 1, 12, 12, dtype=torch.float64))
    light = torch.from_numpy(np.random.default_rng(5).gamma(1.0, size=(1, 1, 12, 12)))

    def ratio(**schedule: Any) -> float:
        found = []
        for photons in (1.0, 10.0):
            counts = draw_counts(light / light.sum(), photons * 144, 5)
            rate = draw_samples(bed.predict, counts, range(2000), 100 * total_photons(counts), **schedule)[0]
            found.append(float((rate / total_photons(counts)).double().var(0).sum() / bed.posterior(counts)[1].sum()))
        return statistics.mean(found)

    return ratio(beta=0.1), {steps: ratio(steps=steps) for steps in (8, 10, 12, 14, 16, 18, 20)}


def sample(machine: Machine, seconds: float) -> list[Row]:
    """One sample of an image with 20 dB of room, by schedules of the same posterior variance."""
    theirs, ours = variance_ratios()
    steps = next((steps for steps, ratio in ours.items() if ratio >= theirs), max(ours))
    device, image = machine.device, counts_of(2, (256, 256), 0.5)
    x = torch.from_numpy(image.values.astype(np.float32))[None, None].to(device)
    reference = original(2, device).eval()
    same, default = network(2, reference), network(2)

    def plainly() -> Tensor:
        now, total = x, x.sum()
        while float(now.sum()) < 99 * float(total):
            p = torch.softmax(reference(now).flatten(1), 1).reshape(now.shape)
            now = now + torch.poisson(p * torch.clamp(0.1 * now.sum(), min=1.0))
        return torch.softmax(reference(now).flatten(1), 1)

    contest = Contest("sample, 256 x 256", machine, x.numel(), seconds)
    with torch.inference_mode():
        contest.add(f"{ORIGINAL}, beta = 0.1", plainly, note=f"variance {theirs:.3f} of the posterior's")
        for name, model in (("same network", same), ("default network", default)):
            settings = SamplingConfig(steps=steps)
            run = lambda m=model, s=settings: gap.sample(m, image, 1, seed=0, settings=s, device=device)  # noqa: E731
            contest.add(f"gap.sample, {name}, {steps} steps", run, note=f"variance {ours[steps]:.3f}")
        return contest.rows()


def bf16(machine: Machine, seconds: float) -> list[Row]:
    """What bfloat16 changes in what a trained network returns."""
    del seconds
    model, found = gap.load_model("nuclei"), []
    for photons in (0.1, 1.0, 10.0, 100.0):
        counts, truth = simulate(2, (512, 512), photons, seed=7)
        x = torch.from_numpy(counts.values.astype(np.float32))[None, None].to(machine.device)
        run = TiledNetwork(model.network, device=machine.device)
        exact = torch.exp(run(x)).cpu().double()[0, 0].numpy()
        run.bf16 = True
        rough = torch.exp(run(x)).cpu().double()[0, 0].numpy()
        rms = math.sqrt(np.square(rough - exact).mean() / np.square(exact).mean())
        db = 10 * math.log10(np.square(exact - truth.values).mean() / np.square(rough - truth.values).mean())
        note = f"relative RMS {rms:.2%}, PSNR {db:+.3f} dB"
        found.append(Row(f"bf16, {photons:g} photons per pixel", "nuclei", *[math.nan] * 6, note))
    return found


def measure(part: str, device: str, threads: int, seconds: float) -> dict[str, Any]:
    """Measure one part in a process of its own."""
    torch.set_num_threads(threads)
    started, machine = time.perf_counter(), Machine(device)
    parts = [functools.partial(work, dim) for work in (denoise, train) for dim in (2, 3)]
    run = dict(zip(PARTS, (*parts, tiled, sample, bf16), strict=True))
    rows = [asdict(row) for row in run[part](machine, seconds)]
    peaks = {str(kind): value for kind, value in machine.flops.items()}
    took = time.perf_counter() - started
    print(f"{device} {part}: {took:.0f} s", flush=True)
    return {
        "device": device,
        "part": part,
        "peak_flops": peaks,
        "peak_bytes": machine.bytes,
        "took": took,
        "rows": rows,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Return the rows of one device as markdown."""
    lines = ["| work | way | ms | Mpx/s | ratio | peak MB | of peak FLOP/s | of peak bytes/s | |", "|---" * 9 + "|"]
    for row in (Row(**row) for part in found for row in part["rows"]):
        if math.isnan(row.seconds):
            lines.append(f"| {row.part} | {row.way} | | | | | | | {row.note} |")
            continue
        cells = [f"{1e3 * row.seconds:.4g}", f"{row.mpx_per_s:.3g}", f"{row.ratio:.2f}", f"{row.memory_mb:.0f}",
                 f"{row.flops:.0%}", f"{row.bytes:.0%}", row.note]  # fmt: skip
        lines.append(f"| {row.part} | {row.way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write."""
    from results import write_section

    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or both as cpu,cuda")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="parts at the same time, on a machine with many cores")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the rounds of each part")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    jobs = [(part, device) for device in given.device.split(",") for part in given.parts.split(",")]
    context = multiprocessing.get_context("spawn")
    found = []
    # a process for each, so that its peak of memory is its own
    with ProcessPoolExecutor(given.jobs, context, max_tasks_per_child=1) as pool:
        waiting = [pool.submit(measure, *job, given.threads, given.seconds) for job in jobs]
        for one in as_completed(waiting):
            found.append(one.result())
            if given.json:
                given.json.write_text(json.dumps(found, indent=1))
    found.sort(key=lambda one: PARTS.index(one["part"]))
    for device in given.device.split(","):
        own = [one for one in found if one["device"] == device]
        peaks, name = own[0]["peak_flops"], torch.cuda.get_device_name() if device == "cuda" else "CPU"
        shown = ", ".join(f"{value / 1e12:.3g} TFLOP/s in {kind[6:]}" for kind, value in peaks.items())
        head = f"{name}, peaks {shown}, {own[0]['peak_bytes'] / 1e9:.3g} GB/s. Ratio: times as fast as the first row."
        write_section(f"Speed: {device}", __doc__, f"{head}\n\n{table(own)}")


if __name__ == "__main__":
    main()
