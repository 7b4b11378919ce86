"""What the README of a sampling zip says about its samples."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from gap_bioimage.export.weights import SAMPLER_WEIGHTS, TORCHSCRIPT, brightest_of
from gap_bioimage.sampler import GAIN, WINDOW_PX

if TYPE_CHECKING:
    from gap_bioimage.export.kinds import Product, Sampling
    from gap_bioimage.export.uncertainty import SampleScores
    from gap_bioimage.model import Model

_FROM_GRAPH = f"""\
import zipfile
import torch

with zipfile.ZipFile("model.zip") as archive:
    model = torch.jit.load(archive.open("{TORCHSCRIPT}"))
"""
_FROM_FILE = """\
# unpack {file} from the zip first
import torch
from {module} import load_sampler

model = load_sampler()
"""


def paragraph(text: str) -> str:
    """Join the lines of a text and break them anew."""
    return textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False)


def sampling_text(model: Model, product: Product, sampling: Sampling, room_db: float) -> str:
    """Explain channels, tiles, brightness, cost, seed, and how to draw other samples.

    Parameters
    ----------
    model, product, sampling
        What is exported.
    room_db
        How far photons can be added to the example.
    """
    n, window = sampling.n_samples, " x ".join(map(str, WINDOW_PX[model.config.dim]))
    channels = ", ".join(f"{number + 1} {name}" for number, name in enumerate(product.channel_names))
    deviation = "n - 1 in the denominator" if n > 1 else "0: it takes two"
    top_db, top = model.trained_range_db[1], brightest_of(model)
    paragraphs = [
        f"""Channels: {channels}. Mean and standard deviation ({deviation}) are those of the samples in the same output,
        pixel by pixel. All are photons per pixel in the exposure of the input.""",
        f"""Each sample is one clean image that could have given these counts: photons are added in {sampling.n_steps}
        steps where the network expects the next ones, and what it expects in the end is the sample. What is in all
        samples is supported by the counts; what comes and goes is not. The network runs
        1 + {n} x {sampling.n_steps} = {sampling.evaluations} times for each image or tile.""",
        """Tiles: every tile draws samples of its own. Where a program runs the model in tiles, samples end at the
        tiles' borders: they show seams there, the standard deviation too, and the mean weaker ones, since it averages
        over the samples. `gap-bioimage sample` draws whole samples of large images.""",
        f"""Brightness: photons are added up to {10 * math.log10(GAIN):g} dB, but no further than the trained range
        goes, {top_db:g} dB or {top:.3g} photons per pixel, in the brightest window of {window} px. The distance to
        that is the room; the image on the cover has {room_db:.1f} dB of it. The less room, the less of the
        posterior's variance samples show; 10 dB are enough. An image without room, as bright as the brightest
        that the network was trained on or brighter, gets samples that all equal the denoised image and a standard
        deviation of 0, without a warning.""",
        f"""Seed: the noise is a function of the seed, here {sampling.seed}, and of the counts: the same program on the
        same computer draws the same samples again. Elsewhere results are rounded otherwise, and among the thousands of
        photons of a sample one may then land in another place; the samples that follow from it are others, as good
        as the first. The test image of this zip has few photons for that reason, be it fewer than the network was
        trained for.""",
        "Other numbers of samples and steps, and other seeds, in Python with torch alone:",
    ]
    if product.hook is not None:
        paragraphs.insert(
            1,
            f"""The network samples inside `{product.hook.file_name}`, which carries it as text, and the weights of this
            zip only hand the counts on to that file. On a GPU: write `device: cuda` into its kwargs in `rdf.yaml`.
            `{SAMPLER_WEIGHTS}` is what `gap-bioimage` loads.""",
        )
    return "\n\n".join([*map(paragraph, paragraphs), f"```python\n{_snippet(model, product, sampling)}```"])


def _snippet(model: Model, product: Product, sampling: Sampling) -> str:
    loading = _FROM_GRAPH
    if product.hook is not None:
        file = product.hook.file_name
        loading = _FROM_FILE.format(file=file, module=file.removesuffix(".py"))
    n_samples, n_steps, seed = 4 * sampling.n_samples, sampling.n_steps, sampling.seed + 1
    return f"""\
{loading}
# counts: a numpy array (batch, channel, {"z, " if model.config.dim == 3 else ""}y, x)
photons = torch.from_numpy(counts.astype("float32"))
# n_samples, n_steps, seed; the samples have one axis more, in front
samples = model.sample(photons, {n_samples}, {n_steps}, {seed}).numpy()
"""


def sample_scores_text(scores: SampleScores) -> str:
    """Tell what was measured on samples of split photons."""
    return paragraph(
        f"""Samples: {scores.n_samples} were drawn from the one half ({scores.room_db:.1f} dB of room). Their mean
        differs from the denoised image by {scores.mean_difference:.2%} (relative RMS);
        {scores.expected_difference:.2%} is what so many independent samples of their variance would. That variance is
        {scores.variance:.3g} photons^2 per pixel; it should equal the squared error of the denoised image, which is
        {scores.squared_error:.3g} +- {scores.standard_error:.2g} by the photons of the other half."""
    )
