"""Posterior samples of real counts, evaluated on an independent frame; images generated from nothing.

    python benchmarks/hazelnut_samples.py ../shared/data WORK [samples] [generation]

Frame t0 of the z-stack is thinned to a tenth of its photons; samples from these counts are compared with frame t1.
The network is the 2D one of ``hazelnut.py`` (in the same WORK folder). It was trained on t0, and thus on this very
scene: coverage on unseen scenes is in the section on simulated cells. Generation uses a separate network,
trained from -40 dB.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from results import table, write_section
from scipy import stats

import gap_bioimage as gap
from gap_bioimage.config import RunConfig
from gap_bioimage.pictures import draw_posterior, save_figure

if TYPE_CHECKING:
    import xarray as xr

    from gap_bioimage.model import Model

HERE = Path(__file__).parent
PICTURES = HERE.parent / "docs" / "images"
PLANES, SAMPLES, SHARE = (5,), 50, 0.1
METHODS = {
    "geometric, beta 0.1 (the paper's)": gap.SamplingConfig(schedule="geometric", beta=0.1),
    "sqrt, 10 steps (default)": gap.SamplingConfig(steps=10),
    "sqrt, 16 steps": gap.SamplingConfig(steps=16),
}


def train_network(name: str, config: str, data: Path, work: Path) -> Model:
    """Train a network, or resume or load an existing one."""
    settings = RunConfig.read(HERE / config, ["network.dim=2"])
    counts = gap.read_photons(data / "hazelnut_photons_t0_zyx.tif")
    return gap.train(counts, work / name, settings, resume=(work / name).exists())


def predictive_ranks(rates: np.ndarray, counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the ranks (0 to 1) of counts in the mixture of Poisson distributions with the rates (s, ...).

    They are uniform if the rates are posterior samples; ties of the discrete counts are broken at random.
    """
    below = np.mean([stats.poisson.cdf(counts - 1, rate) for rate in rates], 0)
    upto = np.mean([stats.poisson.cdf(counts, rate) for rate in rates], 0)
    return below + np.random.default_rng(seed).random(counts.shape) * (upto - below)


def coverage(ranks: np.ndarray, level: float) -> float:
    """Return the share of ranks inside the central interval."""
    return float(np.mean(np.abs(ranks - 0.5) < level / 2))


def draw_samples(model: Model, counts: xr.DataArray, settings: gap.SamplingConfig) -> tuple[np.ndarray, float, float]:
    """Draw samples; return them with the network evaluations and CPU seconds per sample."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = model.network.register_forward_hook(count)
    start = time.process_time()
    samples = gap.sample(model, counts, SAMPLES, seed=1, settings=settings, planes=True)
    seconds = time.process_time() - start
    hook.remove()
    n_drawn = SAMPLES * len(PLANES)
    return samples.values, calls / n_drawn, seconds / n_drawn


def evaluate(samples: np.ndarray, mmse: np.ndarray, unseen: np.ndarray) -> list[str]:
    """Return table cells: bias of the mean, spread and error, coverage."""
    scale = unseen.sum((1, 2), keepdims=True) / mmse.sum((1, 2), keepdims=True)
    edges = np.quantile(mmse, np.linspace(0, 1, 11))
    decile = np.clip(np.searchsorted(edges, mmse, side="right") - 1, 0, 9)
    mean, variance = samples.mean(0), samples.var(0, ddof=1)
    biases = [100 * (mean[decile == d].mean() / mmse[decile == d].mean() - 1) for d in range(10)]
    bright = mmse > 1
    # subtract the noise of the counts of t1, and that of the mean of the samples
    error = (mean - unseen / scale) ** 2 - unseen / scale**2 - variance / len(samples)
    ranks = predictive_ranks(samples * scale, unseen)
    cells = [", ".join(f"{bias:+.1f}" for bias in biases)]
    cells += [f"{np.sqrt(variance[bright].mean()):.2f} / {np.sqrt(max(0.0, error[bright].mean())):.2f}"]
    for region in (np.ones_like(bright), bright):
        cells.append(" / ".join(f"{100 * coverage(ranks[region], level):.0f}" for level in (0.5, 0.9)))
    return cells


def radial_spectrum(image: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """Return the power per spatial frequency (cycles per image) of an image divided by its mean."""
    window = np.outer(*(np.hanning(size) for size in image.shape))
    power = np.abs(np.fft.fft2(window * (image / image.mean() - 1))) ** 2 / (window**2).sum()
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size) * size for size in image.shape), indexing="ij"))
    radius = frequency.round().astype(int)
    count = np.bincount(radius.ravel())
    return (np.bincount(radius.ravel(), power.ravel()) / count - noise)[1 : min(image.shape) // 2]


def draw_generation(path: Path, images: np.ndarray, data: np.ndarray) -> str:
    """Draw generated images, and their radial power spectrum with that of the data; return a sentence about it."""
    figure = Figure((14, 4.2), layout="constrained")
    *pictures, last = figure.subplots(1, len(images) + 1)
    for axes, image in zip(pictures, images, strict=True):
        axes.imshow(image, cmap="magma", vmin=0, vmax=np.percentile(image, 99.8))
        axes.set_axis_off()
        axes.set_title("generated")
    bright = [plane for plane in data if plane.mean() > 1]
    # shot noise has a flat spectrum of 1 / mean photons per pixel
    real = np.array([radial_spectrum(plane, 1 / plane.mean()) for plane in bright])
    generated = np.array([radial_spectrum(image) for image in images])
    frequency = np.arange(1, real.shape[1] + 1)
    for spectra, name, colour in ((real, "data, shot noise subtracted", "C0"), (generated, "generated", "C1")):
        last.loglog(frequency, np.maximum(spectra.mean(0), 1e-9), colour, label=name)
        last.fill_between(frequency, *np.maximum(np.quantile(spectra, [0, 1], axis=0), 1e-9), color=colour, alpha=0.2)
    last.set(xlabel="cycles per image", ylabel="power", ylim=(1e-4, None))
    last.legend()
    save_figure(figure, path)
    bands = [(1, 4), (4, 16), (16, 40)]
    means = generated.mean(0), real.mean(0)
    ratios = [np.divide(*(mean[a - 1 : b].mean() for mean in means)) for a, b in bands]
    words = ", ".join(f"{a}-{b}: {ratio:.2f}" for (a, b), ratio in zip(bands, ratios, strict=True))
    return f"Power relative to that of the {len(bright)} brighter planes, by cycles per image: {words}."


def samples_section(data: Path, work: Path) -> None:
    """Sample and evaluate."""
    model = train_network("run_2d", "hazelnut_2d.yaml", data, work)
    frames = [gap.read_photons(data / f"hazelnut_photons_{t}_zyx.tif").isel(z=list(PLANES)) for t in ("t0", "t1")]
    thinned, _ = gap.thin(frames[0].values.astype(np.int64), SHARE, 0)
    counts, unseen = frames[0].copy(data=thinned.astype(np.uint16)), frames[1].values.astype(float)
    mmse = gap.denoise(model, counts, planes=True)
    rows = []
    for name, settings in METHODS.items():
        samples, calls, seconds = draw_samples(model, counts, settings)
        rows.append([name, f"{calls:.1f}", f"{seconds:.1f}", *evaluate(samples, mmse.values, unseen)])
        print(rows[-1], flush=True)
        if "default" in name:
            shown = {"counts": counts.values[0], "denoised (MMSE)": mmse.values[0]}
            shown |= {f"sample {n + 1}": samples[n, 0] for n in range(3)}
            draw_posterior(PICTURES / "samples.png", shown, samples[:, 0].std(0, ddof=1))
    no_spread = evaluate(np.stack([mmse.values] * 2), mmse.values, unseen)
    rows.append(["MMSE only, no posterior spread", "1", "", *no_spread])
    deciles = [float(part.mean()) for part in np.array_split(np.sort(mmse.values, axis=None), 10)]
    header = ["method", "evaluations per sample", "CPU s per sample", "bias of the mean by decile, %"]
    header += ["spread / error, photons", "50 / 90 % coverage, all", "the same above 1 photon"]
    write_section(
        "Hazelnut: posterior samples of a tenth of the photons",
        __doc__,
        f"{SAMPLES} samples of plane {PLANES[0]} of t0, thinned to {SHARE:g} ({counts.values.mean():.2f} photons per "
        "pixel). Bias: the samples' mean relative to the MMSE of the same network, by deciles of the MMSE "
        f"with means of {', '.join(f'{decile:.3g}' for decile in deciles)} photons. Spread: root mean variance of "
        "the samples above 1 photon; error: RMS of their mean relative to t1, noise subtracted. Coverage: share of "
        "pixels of t1 inside the central intervals of the predictive distribution (samples plus Poisson noise of t1; "
        "ties of the discrete counts broken at random, so perfect samples give 50 / 90).\n\n"
        f"{table(header, rows)}\n\n![counts, denoised, samples, standard deviation](../docs/images/samples.png)",
    )


def generation_section(data: Path, work: Path) -> None:
    """Generate and compare spectra."""
    wide = train_network("run_wide", "hazelnut_wide_2d.yaml", data, work)
    images = gap.generate(wide, (256, 256), 3, seed=2).values
    sentence = draw_generation(
        PICTURES / "generated.png", images, gap.read_photons(data / "hazelnut_photons_t0_zyx.tif").values.astype(float)
    )
    write_section(
        "Hazelnut: generated from nothing",
        __doc__,
        f"Three images of 256 x 256 px, beta 0.1, up to the trained range. The network was trained on one stack for "
        f"6000 steps on a CPU, enough for the large shapes but not for the fine ones. {sentence}\n\n"
        "![generated images and radial power spectra](../docs/images/generated.png)",
    )


def main() -> None:
    """Write the requested sections, or all."""
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    for section in sys.argv[3:] or ["samples", "generation"]:
        {"samples": samples_section, "generation": generation_section}[section](data, work)


if __name__ == "__main__":
    main()
