"""Binomial thinning: speed against per-sample ``torch.distributions.Binomial``, in one run on the same counts.

python benchmarks/thinning.py
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from results import write_section

from gap_bioimage.photons.simulate import simulate
from gap_bioimage.photons.thinning import binomial

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = {"2D, 16 x 256 x 256": (2, (256, 256), 16), "3D, 4 x 32 x 64 x 64": (3, (32, 64, 64), 4)}
PHOTONS = (1.0, 10.0, 100.0)
FRACTIONS = (0.01, 0.3, 0.9)
REPEATS = 5


def original(batch: np.ndarray, fraction: float) -> None:
    """Draw as the original's data loader does: one distribution per sample, on the CPU, of integer counts."""
    for sample in batch:
        counts = torch.from_numpy(sample.astype(np.int32))
        torch.distributions.Binomial(counts, probs=torch.tensor([fraction])).sample()


def ours(batch: np.ndarray, fraction: float) -> None:
    """Draw as our data loader does: one table per sample."""
    rng = np.random.default_rng(0)
    for sample in batch:
        binomial(sample, fraction, rng)


def pixels_per_second(draw: Callable[[np.ndarray, float], None], batch: np.ndarray, fraction: float) -> float:
    """Return the best of several runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        draw(batch, fraction)
        times.append(time.perf_counter() - start)
    return batch.size / min(times)


def main() -> None:
    """Measure and write the table."""
    lines = [
        "| batch | photons per pixel | fraction | original, Mpx/s | ours, Mpx/s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, (dim, shape, size) in CASES.items():
        for photons in PHOTONS:
            batch = np.stack([simulate(dim, shape, photons, seed)[0].values for seed in range(size)])
            for fraction in FRACTIONS:
                old = pixels_per_second(original, batch, fraction)
                new = pixels_per_second(ours, batch, fraction)
                row = f"| {name} | {photons:g} | {fraction:g} | {old / 1e6:.1f} | {new / 1e6:.0f} | {new / old:.0f} |"
                lines.append(row)
    write_section("Thinning: speed against torch.distributions.Binomial per sample", __doc__, "\n".join(lines))


if __name__ == "__main__":
    main()
