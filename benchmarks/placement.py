"""Placement of the sampling steps: equal in 1/sqrt(photons), with a half-length first step, or optimised one by one.

    python benchmarks/placement.py

The optimisation follows "Jump Your Steps" (Park et al., arXiv 2410.07761), moving each step between its neighbours.
Its objective is the variance of samples from exact predictors relative to that of the posterior.
"""

import statistics

import numpy as np
import torch
from exact import Dirichlet, Markov, draw_counts, draw_samples
from results import table, write_section
from torch import Tensor

from gap_bioimage import sampler
from gap_bioimage.sampler import total_photons

STEPS, SWEEPS, BETWEEN = 8, 3, (0.3, 0.42, 0.58, 0.7)
SEARCHED, EVALUATED = 400, 3000  # samples during the search, and for the table
SEEDS = (11, 12, 13)


def place(shares: list[float]) -> None:
    """Make samplers step to these fractions of the path in 1/sqrt(photons)."""
    places = torch.tensor(shares, dtype=torch.float64)

    def step(k: Tensor, n_steps: int, n_0: Tensor, stop: Tensor, n: Tensor) -> Tensor:
        done = places[torch.clamp(k, max=n_steps - 1)] * (1.0 - torch.sqrt(n_0 / stop))
        return torch.clamp(n_0 / torch.square(1.0 - done) - n, min=0.0)

    sampler.equal_root_step = step


def variance(prior: Dirichlet | Markov, counts: Tensor, shares: list[float], samples: int, seed: int) -> float:
    """Return the variance of samples relative to the posterior's, after a gain of 20 dB."""
    place(shares)
    stop = 100 * total_photons(counts)
    rate = draw_samples(prior.predict, counts, range(samples), stop, steps=len(shares), seed=seed)[0]
    drawn = (rate.double() / total_photons(counts)).var(0)
    return float(drawn.sum() / prior.posterior(counts)[1].sum())


def main() -> None:
    """Optimise the placement, evaluate it on other samples, and write the table."""
    pixels, chain = Dirichlet(torch.ones(1, 1, 12, 12)), Markov(torch.tensor([0.2, 0.5, 0.8]).double(), 0.9, 64)
    light = torch.from_numpy(np.random.default_rng(5).gamma(1.0, size=(1, 1, 12, 12)))
    cases = [(pixels, draw_counts(light / light.sum(), photons * 144, 5)) for photons in (1.0, 10.0)]
    equal = [(k + 1) / STEPS for k in range(STEPS)]
    placed, best = equal, 0.0
    for number in range(SWEEPS * (STEPS - 1)):
        k = number % (STEPS - 1)
        low, high = placed[k - 1] if k else 0.0, placed[k + 1]
        for share in (placed[k], *(low + between * (high - low) for between in BETWEEN)):
            candidate = [*placed[:k], share, *placed[k + 1 :]]
            ratio = statistics.mean(variance(*case, candidate, SEARCHED, 1) for case in cases)
            if ratio > best:
                placed, best = candidate, ratio
    cases.append((chain, draw_counts(chain.draw(3), 192.0, 4)))
    rows, half = [], [(k + 0.5) / (STEPS - 0.5) for k in range(STEPS)]
    for name, shares in (("equal", equal), ("first step half as long (ours)", half), ("optimised", placed)):
        cells = []
        for case in cases:
            ratios = [variance(*case, shares, EVALUATED, seed) for seed in SEEDS]
            cells.append(f"{statistics.mean(ratios):.3f} ± {statistics.stdev(ratios) / len(SEEDS) ** 0.5:.3f}")
        rows.append([name, " ".join(f"{share:.2f}" for share in shares), *cells])
    head = ["steps", "path fraction after each step", "Dirichlet, 1 photon/px", "Dirichlet, 10 photons/px", "Markov"]
    about = f"Variance of {EVALUATED} samples relative to the posterior's, {STEPS} steps, 20 dB; "
    about += f"± is the standard error over {len(SEEDS)} seeds."
    write_section("Placement of the sampler's steps", __doc__, f"{about}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()
