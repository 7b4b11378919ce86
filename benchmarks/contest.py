"""Alternating timings of several ways to do the same work: time, memory, and shares of the machine's peaks."""

from __future__ import annotations

import ctypes
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

if TYPE_CHECKING:
    from collections.abc import Callable

FUSED = {
    operator: lambda x, weight, *_, out_shape, **__: conv_flop_count(x, weight, out_shape)
    for operator in (torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu)
}
KIND = {"float32": torch.float32, "bf16": torch.bfloat16}


class Traffic(TorchDispatchMode):
    """Sums the bytes that operators read and write, excluding views."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or any(name in str(func) for name in ("empty", "detach", "_unsafe_view"))):
            moved = [t for t in tree_leaves((args, out)) if isinstance(t, Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in moved)
        return out


class Machine:
    """A device: its clock, its memory and its peaks."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda, self.flops = device, device != "cpu", {}
        size = 8192 if self.cuda else 3072
        a, source = torch.rand(size, size, device=device), torch.rand(2**28 if self.cuda else 2**26, device=device)
        for name, kind in KIND.items():
            b = a.to(kind)
            self.flops[name] = 2 * size**3 / min(self.time(lambda b=b: b @ b) for _ in range(5))
        target = torch.empty_like(source)
        self.bytes = 8 * source.numel() / min(self.time(lambda: target.copy_(source)) for _ in range(5))

    def time(self, run: Callable[[], Any]) -> float:
        """Return the seconds that a run takes."""
        wait = torch.cuda.synchronize if self.cuda else lambda: None
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    def peak_mb(self, run: Callable[[], Any]) -> float:
        """Return the peak memory of a run, above the memory in use before."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
        run()
        return (_status_kb("VmHWM") - before) / 1e3


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def shares_of(run: Callable[[], Any]) -> dict[str, float]:
    """Return the share of each operator in the time of a run, largest first."""
    with torch.profiler.profile() as profiler:
        run()
    events = profiler.key_averages()
    times = {e.key.removeprefix("aten::"): e.self_device_time_total or e.self_cpu_time_total for e in events}
    return {key: times[key] / sum(times.values()) for key in sorted(times, key=lambda key: -times[key])}


class Contest:
    """Ways to do the same work, timed alternately; the first is the reference."""

    def __init__(self, work: str, machine: Machine, pixels: float) -> None:
        self.work, self.machine, self.pixels = work, machine, pixels
        self.ways: dict[str, tuple[Callable[[], Any], str, str, float | None]] = {}

    def add(
        self, way: str, run: Callable[[], Any], kind: str = "float32", note: str = "", aim: float | None = None
    ) -> None:
        """Add a way with its convolution dtype ``kind``; ``aim`` is the target ratio."""
        self.ways[way] = run, kind, note, aim

    def rows(self, seconds: float) -> list[dict[str, Any]]:
        """Run all ways, round by round, until the time is up."""
        costs, times, rows = {}, {way: [] for way in self.ways}, []
        for way, (run, *_) in self.ways.items():
            with FlopCounterMode(display=False, custom_mapping=FUSED) as flops, Traffic() as traffic:
                memory = self.machine.peak_mb(run)
            costs[way] = flops.get_total_flops(), traffic.total, memory
        start, first = time.perf_counter(), times[next(iter(times))]
        while not first or (time.perf_counter() - start < seconds and len(first) < 50):
            for way, (run, *_) in self.ways.items():
                times[way].append(self.machine.time(run))
        for way, (run, kind, note, aim) in self.ways.items():
            elapsed, (flops, moved, memory) = statistics.median(times[way]), costs[way]
            shares, ratio = shares_of(run), statistics.median(a / b for a, b in zip(first, times[way], strict=True))
            convolving = sum(share for name, share in shares.items() if "conv" in name)
            rows.append({
                "work": self.work, "way": way, "seconds": elapsed, "rounds": len(first),
                "Mpx/s": self.pixels / elapsed / 1e6,
                "ratio": ratio, "aim": aim, "at most": ratio / convolving if convolving else None,
                "peak MB": memory, "of peak FLOP/s": flops / elapsed / self.machine.flops[kind],
                "of peak bytes/s": moved / elapsed / self.machine.bytes, "note": note,
                "shares": ", ".join(f"{share:.0%} {name}" for name, share in list(shares.items())[:4]),
            })  # fmt: skip
        return rows
