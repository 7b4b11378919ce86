"""Coverage of posterior samples, tested on held-out photons: whether their spread matches their error."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from gap_bioimage.config import SamplingConfig
from gap_bioimage.counts import thin
from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.preparation import Layout, check_whole, prepare, refuse_one_bit
from gap_bioimage.inference.sampling import Drawing, Draws, Progress
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.model import CameraLike, Model
from gap_bioimage.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLOCKS_PX = (4, 16, 64)
_CENTRAL = (0.5, 0.9)
_TOLERANCE, _SIGNIFICANT = 0.03, 3.0  # deviations of the coverage: absolute, and in standard errors


@dataclass(frozen=True)
class Blocks:
    """Held-out photons in square blocks, compared with the predictions of the samples."""

    size_px: int
    count: int  # number of blocks
    within: tuple[float, float]  # shares of blocks in the central 50 % and 90 % of the predictions
    ranks: tuple[int, ...]  # blocks by number of samples that predicted fewer photons, ties broken at random
    posterior: float  # share of the samples' spread in the predicted variance; the rest is photon noise

    @property
    def verdict(self) -> str:
        """The verdict on the samples' spread: "calibrated", "too narrow", "too wide", or "not seen" in photon noise."""
        errors = [max(_TOLERANCE, _SIGNIFICANT * math.sqrt(q * (1 - q) / self.count)) for q in _CENTRAL]
        deviations = [(share - q) / error for share, q, error in zip(self.within, _CENTRAL, errors, strict=True)]
        if min(deviations) < -1:
            return "too narrow"
        if max(deviations) > 1:
            return "too wide"
        # the spread is seen if samples with half of it would lower the 90 % coverage by more than its error
        normal, q = NormalDist(), _CENTRAL[-1]
        bound = normal.inv_cdf((1 + q) / 2) * math.sqrt(1 - 0.75 * self.posterior)
        return "calibrated" if q - (2 * normal.cdf(bound) - 1) > errors[-1] else "not seen"


@dataclass(frozen=True)
class Coverage:
    """How well posterior samples of thinned counts predict the photons that were held out.

    The sampler was given a ``fraction`` of the photons; ``blocks`` holds the result per block size. In larger blocks
    posterior uncertainty is a larger share of the variance, but there are fewer of them.
    """

    fraction: float
    n_samples: int
    blocks: tuple[Blocks, ...]

    def __str__(self) -> str:
        """Return the result in two lines."""
        rows = [(b.size_px, *map("{:.0%}".format, (*b.within, b.posterior)), b.count, b.verdict) for b in self.blocks]
        sizes, in_50, in_90, shares, counts, verdicts = (" / ".join(map(str, c)) for c in zip(*rows, strict=True))
        return (
            f"held-out photons in blocks of {sizes} px: {in_50} within the central 50%, {in_90} within the central 90% "
            f"of the predictions\nspread of the samples: {verdicts} ({shares} of the variance in {counts} blocks)"
        )

    def draw(self) -> "Figure":
        """Return a figure of the rank histograms, which are flat if samples are calibrated."""
        figure = new_figure(3 * len(self.blocks), 2.4)
        for axes, b in zip(figure.subplots(1, len(self.blocks), squeeze=False)[0], self.blocks, strict=True):
            axes.bar(range(len(b.ranks)), b.ranks, width=1.0)
            axes.axhline(b.count / len(b.ranks), color="black", linewidth=1)
            axes.set_title(f"blocks of {b.size_px} px: {b.count}")
            axes.set(xlabel="samples below the held-out photons", ylabel="blocks")
        return figure


def coverage(
    model: Model,
    photons: xr.DataArray | NDArray[Any],
    n_samples: int = 16,
    *,
    seed: int,
    fraction: float = 0.5,
    settings: SamplingConfig | None = None,
    dims: str | Iterable[str] | None = None,
    planes: bool = False,
    camera: CameraLike = "model",
    time_as_z: bool = False,
    separate_channels: bool = False,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    batch: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    on_step: Callable[[Progress], None] | None = None,
) -> Coverage:
    """Check whether posterior samples are calibrated, on photons that the sampler does not see.

    The counts are thinned: x_in ~ Binomial(x, fraction), and x_out = x - x_in is independent of it given the clean
    image s. Samples s_j of the posterior given x_in predict x_out by Multinomial(sum(x_out), s_j / sum(s_j)), the
    Poisson law with its total known. If the samples are exact, the rank of x_out among the predictions is uniform, for
    any sum of pixels.

    Parameters
    ----------
    model, photons, n_samples, seed, settings, batch, on_step
        As for ``sample``.
    fraction
        Expected share of the photons that the sampler sees, between 0 and 1. A small one tests the spread better, but
        at a brightness farther from that of the image.
    dims, planes, camera, time_as_z, separate_channels, tile_px, halo_px, device, precision
        As for ``denoise``.

    Raises
    ------
    GapError
        As for ``sample``; a ConfigError also if ``fraction`` is not between 0 and 1, if there are too few photons to
        hold some out, or if the model was trained on one-bit frames.
    """
    draws = Draws(check_whole("n_samples", n_samples, 2), seed, settings or SamplingConfig(), batch)
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}, expected a number between 0 and 1, such as 0.5")
    layout = Layout(dims, planes, camera, time_as_z, separate_channels)
    prepared = prepare(model, photons, layout, rng=np.random.default_rng((seed, 2)))
    refuse_one_bit(model, "coverage")
    network = TiledNetwork(model.network, tile_px, halo_px, device, precision=precision)
    drawing = Drawing(model, network, draws, on_step=on_step)
    inputs, held_out = thin(prepared.items, fraction, seed)
    numbers = [n for n in range(len(inputs)) if inputs[n].any() and held_out[n].any()]
    if not numbers:
        raise ConfigError("the image holds too few photons to hold some out")
    thinned = xr.DataArray(inputs[numbers], dims=["t", "c", *"zyx"[-model.config.dim :]])
    rates = drawing.rates_of(replace(prepared, image=thinned, ordered=thinned))
    return compare(rates, held_out[numbers], fraction, seed)


def compare(rates: NDArray[np.floating], held_out: NDArray[np.integer], fraction: float, seed: int) -> Coverage:
    """Compare samples (n_samples, n, c, [z,] y, x), in any exposure, with held-out counts (n, c, [z,] y, x)."""
    rng = np.random.default_rng((seed, 1))
    sizes = [size for size in _BLOCKS_PX if size <= min(held_out.shape[-2:])] or [1]
    predicted: dict[int, list[Any]] = {size: [] for size in sizes}  # drawn and expected counts, by sample
    totals = held_out.reshape(len(held_out), -1).sum(1, dtype=np.int64)
    for sample in rates:
        shares = sample.reshape(len(held_out), -1).astype(float)
        shares /= shares.sum(1, keepdims=True)
        drawn, expected = rng.multinomial(totals, shares), totals[:, None] * shares
        for size, sums in predicted.items():
            sums.append([_block_sums(counts.reshape(held_out.shape), size) for counts in (drawn, expected)])
    blocks = (_compared(size, _block_sums(held_out, size), np.stack(sums, 1), rng) for size, sums in predicted.items())
    return Coverage(fraction, len(rates), tuple(blocks))


def _compared(size: int, counted: NDArray[Any], predicted: NDArray[Any], rng: np.random.Generator) -> Blocks:
    """Compare sums of counts with the drawn and the expected sums of each sample, (2, n_samples, ...)."""
    drawn, expected = predicted
    fewer, equal = (drawn < counted).sum(0), (drawn == counted).sum(0)
    ranks = (fewer + rng.integers(0, equal + 1)).ravel()
    quantiles = (ranks + rng.random(ranks.size)) / (len(drawn) + 1)  # uniform where samples are exact
    low, high = (float((abs(quantiles - 0.5) < q / 2).mean()) for q in _CENTRAL)
    spread, noise = float(expected.var(0, ddof=1).mean()), float(expected.mean())
    histogram = tuple(np.bincount(ranks, minlength=len(drawn) + 1).tolist())
    return Blocks(size, ranks.size, (low, high), histogram, spread / (spread + noise))


def _block_sums(values: NDArray[Any], size: int) -> NDArray[Any]:
    y, x = (length // size for length in values.shape[-2:])
    cut = values[..., : y * size, : x * size]
    return np.asarray(cut.reshape(*values.shape[:-2], y, size, x, size).sum((-3, -1)))
