"""The README and the cover of a zip, with numbers measured on the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage

from gap_bioimage.counts import pseudo_psnr_db, thin
from gap_bioimage.export.rdf import ONLY_CORE
from gap_bioimage.export.readme_camera import camera_text
from gap_bioimage.export.readme_sampling import paragraph, sample_scores_text, sampling_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gap_bioimage.export.card import Card
    from gap_bioimage.export.halo import HaloReport, Sizes
    from gap_bioimage.export.kinds import Product
    from gap_bioimage.export.operation import Operation
    from gap_bioimage.export.uncertainty import SampleScores
    from gap_bioimage.network import PhotonDenoiser
    from gap_bioimage.training.checkpoint import Model

_LIMITATIONS = (
    "Made for photon counts (Poisson noise); camera images with an offset or a gain must be converted to photons first."
)
_LIMITATIONS_CAMERA = (
    "Made for raw images of the camera above, or of one with the same offset and gain: images that were scaled, "
    "smoothed, averaged or aligned before have other noise."
)
_LIMITATIONS_ONE_BIT = "Made for sums of one-bit frames of a single-photon camera, as many as stated above."
_SIGMAS_PX = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
_Z_RATIOS = (0.0, 0.3, 0.6, 1.0)  # of the sigma in the plane


@dataclass(frozen=True)
class Scores:
    """Log-likelihood of photons that the denoiser has not seen, nats per photon, and its competitors'."""

    denoised: float
    gaussian: float
    gaussian_sigma_px: float
    flat: float
    pseudo_psnr_db: float
    photons: int


def score_on_halves(denoiser: PhotonDenoiser, counts: np.ndarray, seed: int = 0) -> Scores:
    """Denoise one half of the photons and judge it by the other half, which is independent.

    The likelihood is that of the photons' positions: mean over photons of log(rate / sum(rate)); the truth
    need not be known.

    Parameters
    ----------
    denoiser
        The module of the zip.
    counts
        Held-out counts (c, [z,] y, x).
    seed
        For the split.
    """
    seen, unseen = thin(counts.astype(np.int64), 0.5, seed)
    with torch.inference_mode():
        rate = denoiser(torch.from_numpy(seen.astype(np.float32))[None])[0].numpy()

    competitors = gaussian_filters(seen, _SIGMAS_PX)
    sigma, gaussian = max(
        ((sigma, log_likelihood(image, unseen)) for sigma, image in competitors), key=lambda found: found[1]
    )
    flat = log_likelihood(np.ones(seen.shape), unseen)
    return Scores(log_likelihood(rate, unseen), gaussian, sigma, flat, pseudo_psnr_db(seen), int(unseen.sum()))


def gaussian_filters(counts: np.ndarray, sigmas_px: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
    """Filter counts (c, [z,] y, x) with every sigma in the plane and, in 3D, several ratios along z."""
    for sigma in sigmas_px:
        for ratio in _Z_RATIOS if counts.ndim == 4 else (0.0,):
            widths = (*[0.0] * (counts.ndim - 3), ratio * sigma, sigma, sigma)
            yield sigma, ndimage.gaussian_filter(counts.astype(float), widths)


def log_likelihood(rate: np.ndarray, photons: np.ndarray) -> float:
    """Return the mean over photons of log(rate / sum(rate)), in nats; rates are kept above 1e-4 of their mean."""
    rate = np.maximum(rate, 1e-4 * float(rate.mean()) or 1.0)  # no rate at all is a flat one
    return float((photons * np.log(rate / rate.sum())).sum() / max(1, photons.sum()))


def draw_cover(path: Path, counts: np.ndarray, rate: np.ndarray) -> None:
    """Draw counts (c, [z,] y, x) and denoised image side by side, 800 x 400 px: at most 256 x 256 px of both."""
    planes = [array[0] if array.ndim == 3 else array[0, array.shape[1] // 2] for array in (counts, rate)]
    side = min(256, *planes[0].shape)
    corner = [(size - side) // 2 for size in planes[0].shape]
    planes = [plane[corner[0] : corner[0] + side, corner[1] : corner[1] + side] for plane in planes]
    top = float(np.percentile(planes[1], 99.8)) or 1.0
    figure = Figure((8, 4), dpi=100)
    FigureCanvasAgg(figure)
    for position, plane in enumerate(planes):
        axes = figure.add_axes((position / 2, 0, 0.5, 1))
        axes.imshow(plane, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        axes.set_axis_off()
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})


@dataclass(frozen=True)
class Measured:
    """What was measured on the model while it was exported.

    Attributes
    ----------
    sizes, halo, box_px
        Of the graph.
    scores
        Of the denoised image.
    held_out
        Whether the counts behind the scores took no part in training.
    samples
        Scores of the samples, for zips that sample.
    room_db
        How far photons can be added to the example, for zips that sample.
    """

    sizes: Sizes
    halo: HaloReport
    box_px: list[int]
    scores: Scores
    held_out: bool
    samples: SampleScores | None = None
    room_db: float = 0.0


def write_readme(path: Path, model: Model, card: Card, product: Product, measured: Measured) -> None:
    """Write the documentation that travels in the zip."""
    sections = [f"# {card.name}"]
    if product.operations:
        sections.append(f"**{ONLY_CORE}** It runs Python code of this zip: see that you trust its author.")
    sections += [card.description, _what_it_does(model, product, measured)]
    if product.intake.arguments:
        sections += ["## Camera", camera_text(product.intake)]
    sections += ["## Use", _how_to_use(model, product, measured)]
    if product.sampling is not None:
        sections += ["## Samples", sampling_text(model, product, product.sampling, measured.room_db)]
    if product.own is not None:
        sections += ["## Postprocessing", _own_text(product.own)]
    sections += ["## Training data", card.training_data or "Not stated by the author."]
    sections += ["# Validation", _validation_text(measured)]
    sections += ["## Limitations", card.limitations or _limitations(product)]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _what_it_does(model: Model, product: Product, measured: Measured) -> str:
    output = "the expected number of photons per pixel (posterior mean, MMSE)"
    if product.sampling is not None:
        output = "mean and standard deviation of samples of the clean image, then the samples, in photons per pixel"
    steps = ["preprocessing"] * bool(product.intake.preprocessing) + ["postprocessing"] * bool(product.operations)
    inside = f", but for its {' and '.join(steps)}" if steps else ": no pre- or postprocessing is needed"
    return paragraph(
        f"""Input: {product.intake.description.split(";")[0]}. Output: {output}. Photons are conserved around each
        pixel, in a box of {" x ".join(map(str, measured.box_px))} px; `gap-bioimage denoise` conserves them in the
        whole image instead, which differs a little. The network is a {model.config.dim}D GAP U-Net (Generative
        Accumulation of Photons, doi:10.48550/arXiv.2307.06607): it has learnt from noisy counts alone where the next
        photon would land. All computation is inside the model{inside}."""
    )


def _limitations(product: Product) -> str:
    if product.intake.detector is not None:
        return _LIMITATIONS_CAMERA
    return _LIMITATIONS if product.intake.ceiling is None else _LIMITATIONS_ONE_BIT


def _how_to_use(model: Model, product: Product, measured: Measured) -> str:
    sizes, axes = measured.sizes, "zyx"[-model.config.dim :]
    low, high = model.trained_range_db
    grid = ", ".join(
        f"{axis} {minimum} + n x {step}" for axis, minimum, step in zip(axes, sizes.min_px, sizes.step_px, strict=True)
    )
    halos = ", ".join(f"{axis} {value}" for axis, value in zip(axes, sizes.halo_px, strict=True))
    others = [
        f"- Fiji: open the zip with deepImageJ and run it on {product.intake.noun} (16 or 32 bit). The result is a"
        " 32-bit image in photons.",
        "- ilastik: as a neural network model; export the raw float result, since the view shows it as if it were"
        " 0..1.",
    ]
    verb = "denoise" if product.sampling is None else "sample"
    without = "" if product.own is None else f", which leaves {product.own.callable} out"
    options = (
        "" if product.sampling is None else f" --samples {product.sampling.n_samples} --seed {product.sampling.seed}"
    )
    python = f"""- Python: `bioimageio.core.predict(model="model.zip", inputs=...)`, or
  `gap-bioimage {verb} model.zip image.tif out.tif{options}`{without}."""
    uses = "\n".join([*([] if product.operations else others), python])
    return f"""{uses}

Sizes: {grid} pixels; larger images run in tiles with a halo of {halos} pixels, which consumers do by themselves.
Trained for inputs of {low:g} to {high:g} dB (10 log10 of the mean photons per pixel,
{10 ** (low / 10):.3g} to {10 ** (high / 10):.3g} photons per pixel). Brighter images are outside what it has seen."""


def _own_text(operation: Operation) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in operation.kwargs.items())
    return paragraph(
        f"""The output goes through `{operation.callable}({given})` of `{operation.file_name}`, written by the model's
        author, as a numpy array, or tile by tile. What the values mean after that is for the author to say."""
    )


def _validation_text(measured: Measured) -> str:
    scores = measured.scores
    origin = "held-out counts, which took no part in training" if measured.held_out else "the given test image"
    gain = scores.denoised - scores.gaussian
    verdict = f"{abs(gain):.4f} nats per photon {'better' if gain >= 0 else 'worse'}"
    seam, off_grid = (
        "; ".join(f"{100 * rms:.2f} % at {exposure:g}" for exposure, rms in found.items())
        for found in (measured.halo.relative_rms, measured.halo.off_grid_rms)
    )
    step = " x ".join(map(str, measured.sizes.step_px))
    samples = "" if measured.samples is None else f"\n\n{sample_scores_text(measured.samples)}"
    return f"""\
Measured when this file was written, on {origin} ({scores.pseudo_psnr_db:.1f} dB after splitting):
the photons were split at random into two halves, one was denoised, and judged by the log-likelihood of the
other half's {scores.photons} photons (nats per photon; larger is better).

| estimate | nats per photon |
|---|---|
| this model | {scores.denoised:.4f} |
| best Gaussian filter (sigma {scores.gaussian_sigma_px:g} px, chosen on the other half) | {scores.gaussian:.4f} |
| flat image | {scores.flat:.4f} |

The model is {verdict} than the best Gaussian filter.{samples}

Tiles of the denoised image against the whole, relative RMS difference with the declared halo:
{seam} photons per pixel.
That is for tiles that start at multiples of {step} pixels. A tile that starts in between, as the last one may,
pools other pixels together, as an image does that is cut otherwise. That changes the result by
{off_grid} photons per pixel."""
