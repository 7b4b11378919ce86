"""Posterior samples: every schedule with exact predictors, and ranks of the truth among a trained network's samples.

    python benchmarks/sampler.py WORK

WORK keeps the trained network for later calls; --train-steps sets the number of its training steps.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from exact import Dirichlet, Markov, Templates, draw_counts, draw_samples
from results import table, write_section
from torch import Tensor

from gap_bioimage.config import RunConfig
from gap_bioimage.network import rate_from_log_rate
from gap_bioimage.sampler import WINDOW_PX, brightest_mean, photon_budget, total_photons
from gap_bioimage.simulation import simulate, simulate_truth
from gap_bioimage.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable

    from gap_bioimage.model import Model


SCHEDULES: dict[str, dict[str, Any]] = {
    "geometric, beta 0.05": {"beta": 0.05},
    "geometric, beta 0.1 (the paper's)": {"beta": 0.1},
    "geometric, beta 0.2": {"beta": 0.2},
    "geometric, beta 0.8 (0.1 of a batch of 8)": {"beta": 0.8},
    "equal roots, K = 12": {"steps": 12, "restored": False},
    "equal roots, K = 24": {"steps": 24, "restored": False},
    **{f"sqrt, K = {steps}": {"steps": steps} for steps in (4, 6, 8, 10, 16, 24)},
}
"""Equal roots: the steps of sqrt, without restoring the variance lost by frozen rates."""

# exact predictors

SAMPLES = 2000
PER_PIXEL = (1.0, 10.0)


def draw(name: str, predict: Callable[[Tensor], Tensor], counts: Tensor, gain: float) -> tuple[Tensor, Tensor, int]:
    """Return shares of the light, the final counts, and the evaluations of the predictor."""
    rate, end, evaluations = draw_samples(
        predict, counts, range(SAMPLES), gain * total_photons(counts), **SCHEDULES[name]
    )
    return rate.double() / total_photons(counts), end, evaluations


def moments(prior: Dirichlet | Markov, name: str, counts: Tensor, gain: float) -> tuple[str, int]:
    """Return a cell with the variance ratio and the bias of the mean (in standard deviations), and the evaluations."""
    shares, _, evaluations = draw(name, prior.predict, counts, gain)
    mean, variance = (moment[0] for moment in prior.posterior(counts))
    ratio = shares.var(0).sum() / variance.sum()
    bias = torch.sqrt((shares.mean(0) - mean).square().sum() / variance.sum())
    return f"{float(ratio):.3f} / {float(bias):.3f}", evaluations


def distance(prior: Templates, name: str, images: list[Tensor], gain: float) -> str:
    """Return the total variation between sampled and exact frequencies of the templates, averaged over images."""
    found = []
    for counts in images:
        _, end, _ = draw(name, prior.predict, counts, gain)
        counted = torch.bincount(prior.weights(end).argmax(1), minlength=len(prior.prior)) / SAMPLES
        found.append(float((counted - prior.weights(counts)[0]).abs().sum()) / 2)
    return f"{np.mean(found):.3f}"


def sampling_floor(weights: Tensor) -> float:
    """Return the mean total variation of the same number of exact draws."""
    counted = torch.distributions.Multinomial(SAMPLES, weights).sample((500,)) / SAMPLES
    return float((counted - weights).abs().sum(1).mean() / 2)


def exact_section() -> None:
    """Evaluate every schedule with every exact predictor."""
    pixels = Dirichlet(torch.ones(1, 1, 12, 12, dtype=torch.float64))
    light = torch.from_numpy(np.random.default_rng(5).gamma(1.0, size=(1, 1, 12, 12)))
    dirichlet = [draw_counts(light / light.sum(), per_pixel * 144, 5) for per_pixel in PER_PIXEL]
    chain = Markov(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), 0.9, 64)
    line = draw_counts(chain.draw(3), 192.0, 4)
    templates = Templates.random(6, 6, 0.2, 0)
    images = [draw_counts(templates.shares[k][None], 40.0, k) for k in range(6)]
    torch.manual_seed(0)
    least = np.mean([sampling_floor(templates.weights(counts)[0]) for counts in images])
    rows = []
    for gain in (10.0, 100.0):
        for name in SCHEDULES:
            cells, evaluations = zip(*(moments(pixels, name, counts, gain) for counts in dirichlet), strict=True)
            on_line, _ = moments(chain, name, line, gain)
            row = [f"{10 * math.log10(gain):g} dB", name, str(evaluations[-1]), *cells, on_line]
            rows.append([*row, distance(templates, name, images, gain)])
            print(rows[-1], flush=True)
    priors = [*(f"Dirichlet, {p:g} photons/px" for p in PER_PIXEL), "Markov", "templates"]
    write_section(
        "Sampler with exact predictors",
        __doc__,
        f"The predictors return the exact next-photon distribution, so all errors are the sampler's. {SAMPLES} "
        "samples each. Dirichlet: 144 independent pixels; Markov: three colours along a line of 64 positions, 3 "
        "photons each. Cells: variance of the samples over that of the posterior, summed over pixels / RMS bias of "
        f"their mean in standard deviations of the posterior (exact draws: {SAMPLES**-0.5:.3f}). Templates: one of "
        "6 images, 40 photons, total variation from the exact posterior, mean of 6 inputs (exact draws: "
        f"{least:.3f}). Equal roots: the steps of sqrt, with rates frozen during each step, as in geometric; without "
        "restored variance, a gain of 10 dB for independent pixels ends below 0.9. Evaluations: of the slowest "
        "sample.\n\n" + table(["gain", "schedule", "evaluations", *priors], rows),
    )


# a trained network

CONFIG: dict[str, Any] = {
    "network": {"dim": 2, "depth": 4, "start_filts": 16},
    "thinning": {"min_db": -10.0, "max_fraction": 0.9},
    "train": {"batch_size": 8, "patch_px": [64, 64], "validate_every": 250, "ema_decay": 0.99},
}
TRAINING_SCENES, TRAINING_PHOTONS = 32, 30.0
SCENES, SIZE_PX, PHOTONS, RANKED = 6, 128, 0.3, 19
HALF, NINETY = slice(5, 15), slice(1, 19)  # ranks 0 to 19 within the central 50 % and 90 %
TRAINED = [*(f"sqrt, K = {steps}" for steps in (6, 10, 16)), "equal roots, K = 12", *list(SCHEDULES)[1:4:2]]
VIEWS = {  # block size in px, whether only bright pixels
    "All pixels": (1, False),
    "Pixels with a denoised value above the mean": (1, True),
    "Means of 8 x 8 px": (8, False),
}


def train_network(work: Path, steps: int) -> Model:
    """Train, or load an earlier result."""
    settings = {**CONFIG, "train": {**CONFIG["train"], "steps": steps}}
    images = [simulate(2, (256, 256), TRAINING_PHOTONS, seed)[0] for seed in range(TRAINING_SCENES)]
    run = work / f"run_{steps}"
    return train(images, run, RunConfig.from_dict(settings), resume=(run / "config.yaml").exists())


def samples_of(name: str, model: Model, counts: Tensor) -> Tensor:
    """Draw samples (n, c, y, x) in the observed exposure, up to the top of the trained range."""
    brightest = 10 ** (model.trained_range_db[1] / 10)
    stop = photon_budget(counts, 100.0, brightest, list(WINDOW_PX[2]))
    return draw_samples(model.network, counts, range(RANKED), stop, brightest=brightest, **SCHEDULES[name])[0]


def shot_noise(_: str, model: Model, counts: Tensor) -> Tensor:
    """Draw from a Gaussian around the denoised image, with its rate as the variance."""
    mean = rate_from_log_rate(model.network(counts), counts)
    noise = torch.randn(RANKED, *mean.shape[1:], generator=torch.Generator().manual_seed(0))
    return mean + mean.sqrt() * noise


def ranks(samples: Tensor, truth: Tensor, seed: int) -> Tensor:
    """Return the rank 0..n of the truth among n samples, ties broken at random."""
    tied = (samples == truth).sum(0)
    chance = torch.rand(tied.shape, generator=torch.Generator().manual_seed(seed))
    return (samples < truth).sum(0) + (chance * (tied + 1)).long()


def evaluate(drawn: Tensor, truth: Tensor, denoised: Tensor, view: tuple[int, bool], seed: int) -> tuple[Tensor, float]:
    """Return the frequency of each rank, and the ratio of the mean's squared error to the samples' variance."""
    size, only_bright = view
    drawn, truth, denoised = (torch.nn.functional.avg_pool2d(image, size) for image in (drawn, truth, denoised))
    # select by the observation: a selection by the truth would favour high ranks
    keep = denoised[0] > denoised.mean() if only_bright else torch.ones_like(truth[0], dtype=torch.bool)
    counted = torch.bincount(ranks(drawn, truth[0], seed)[keep], minlength=RANKED + 1)
    # both the sample mean and the truth deviate from the posterior mean
    error, variance = (drawn.mean(0) - truth[0]).square(), drawn.var(0) * (1 + 1 / RANKED)
    return counted / counted.sum(), float(error[keep].double().sum() / variance[keep].double().sum())


def row_of(name: str, scored: list[tuple[Tensor, float]]) -> list[str]:
    """Return a table row: coverage, error over variance, histogram, with standard errors over scenes."""
    counted, ratio = np.array([frequencies.numpy() for frequencies, _ in scored]), [value for _, value in scored]
    cells = []
    for part in (HALF, NINETY):
        inside = 100 * counted[:, part].sum(1)
        cells.append(f"{inside.mean():.0f} ± {inside.std(ddof=1) / SCENES**0.5:.0f} %")
    cells.append(f"{np.mean(ratio):.2f} ± {np.std(ratio, ddof=1) / SCENES**0.5:.2f}")
    histogram = 100 * counted.mean(0).reshape(10, 2).sum(1)
    return [name, *cells, " ".join(f"{share:.0f}" for share in histogram)]


def trained_section(work: Path, steps: int) -> None:
    """Train, sample, and rank the truth."""
    model = train_network(work, steps)
    scenes = []
    for seed in range(500, 500 + SCENES):
        truth = torch.from_numpy(simulate_truth(2, (SIZE_PX, SIZE_PX), seed).values)[None, None] * PHOTONS
        counts = torch.poisson(truth, torch.Generator().manual_seed(seed))
        # the total is observed, not inferred, so shares are compared
        scenes.append((counts, truth * (counts.sum() / truth.sum())))
    top = model.trained_range_db[1]
    room = [top - 10 * math.log10(float(brightest_mean(counts, list(WINDOW_PX[2])))) for counts, _ in scenes]
    rows: dict[str, list[list[str]]] = {title: [] for title in VIEWS}
    with torch.inference_mode():
        denoised = [rate_from_log_rate(model.network(counts), counts) for counts, _ in scenes]
        for name in (*TRAINED, "denoised, Gaussian of shot noise"):
            draw_samples = samples_of if name in SCHEDULES else shot_noise
            drawn = [draw_samples(name, model, counts) for counts, _ in scenes]
            for title, view in VIEWS.items():
                pairs = enumerate(zip(drawn, denoised, scenes, strict=True))
                scored = [evaluate(of, truth, mean, view, number) for number, (of, mean, (_, truth)) in pairs]
                rows[title].append(row_of(name, scored))
                print(title, rows[title][-1], flush=True)
    head = ["samples", "truth within central 50 %", "90 %", "squared error / variance", "ranks by tenths, %"]
    tables = [f"{title}:\n\n{table(head, found)}" for title, found in rows.items()]
    write_section(
        "Ranks of the truth among a trained network's samples",
        __doc__,
        f"2D, depth 4, 16 filters, {steps} steps on simulated cells, {model.trained_range_db[0]:g} to {top:g} dB. "
        f"{SCENES} held-out scenes of {SIZE_PX} px at {PHOTONS:g} photons/px, {RANKED} samples; the headroom of the "
        f"brightest windows is {min(room):.1f} to {max(room):.1f} dB, of which at most 20 dB are used. Exact posterior "
        "samples have a coverage of 50 % and 90 %, a ratio of 1, and 10 % in each tenth. Deviations are due to "
        "network and sampler together; ± is the standard error over scenes.\n\n" + "\n\n".join(tables),
    )


def main() -> None:
    """Measure, and write the sections."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--train-steps", type=int, default=4000)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    exact_section()
    trained_section(arguments.work, arguments.train_steps)


if __name__ == "__main__":
    main()
