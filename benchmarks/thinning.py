"""Binomial thinning: speed against per-sample ``torch.distributions.Binomial``, in one run on the same counts.

    python benchmarks/thinning.py

Both run as a data loader runs them: in two worker processes with one thread each, whose rates add up.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from results import write_section

from gap_bioimage.counts import binomial
from gap_bioimage.simulation import simulate

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

CASES = {"2D, 16 x 256 x 256": (2, (256, 256), 16), "3D, 4 x 32 x 64 x 64": (3, (32, 64, 64), 4)}
PHOTONS = (1.0, 10.0, 100.0)
FRACTIONS = (0.01, 0.3, 0.9)
WORKERS = 2
REPEATS = 7


def original(batch: np.ndarray, fraction: float) -> None:
    """Draw as the original's data loader does: one distribution per sample of integer counts."""
    for sample in batch:
        counts = torch.from_numpy(sample.astype(np.int32))
        torch.distributions.Binomial(counts, probs=torch.tensor([fraction])).sample()


def ours(batch: np.ndarray, fraction: float) -> None:
    """Draw as our data loader does: one table per sample."""
    rng = np.random.default_rng(0)
    for sample in batch:
        binomial(sample, fraction, rng)


def measure(number: int, barrier: Barrier, queue: multiprocessing.Queue[tuple[str, float]]) -> None:
    """Run every case in step with the other workers and report pixels per second."""
    torch.set_num_threads(1)
    for name, (dim, shape, size) in CASES.items():
        for photons in PHOTONS:
            seeds = range(number * size, (number + 1) * size)
            batch = np.stack([simulate(dim, shape, photons, seed)[0].values for seed in seeds])
            for fraction in FRACTIONS:
                for draw in (original, ours):
                    barrier.wait()
                    times = []
                    for _ in range(REPEATS):
                        start = time.perf_counter()
                        draw(batch, fraction)
                        times.append(time.perf_counter() - start)
                    key = f"| {name} | {photons:g} | {fraction:g} |{draw.__name__}"
                    queue.put((key, batch.size / float(np.median(times))))


def main() -> None:
    """Measure and write the table."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(WORKERS), context.Queue()
    workers = [context.Process(target=measure, args=(number, barrier, queue)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    rates: dict[str, float] = {}
    for _ in range(WORKERS * len(CASES) * len(PHOTONS) * len(FRACTIONS) * 2):
        key, rate = queue.get()
        rates[key] = rates.get(key, 0.0) + rate
    for worker in workers:
        worker.join()
    lines = [
        "| batch | photons per pixel | fraction | original, Mpx/s | ours, Mpx/s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(key.rpartition("|")[0] + "|" for key in rates):
        old, new = rates[f"{case}original"], rates[f"{case}ours"]
        lines.append(f"{case} {old / 1e6:.1f} | {new / 1e6:.0f} | {new / old:.1f} |")
    write_section("Thinning: speed against torch.distributions.Binomial per sample", __doc__, "\n".join(lines))


if __name__ == "__main__":
    main()
