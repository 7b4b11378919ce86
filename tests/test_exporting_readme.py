"""The README and cover of a zip: numbers that are measured, pictures that fit."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from fixtures_model import CARD, random_model
from PIL import Image
from scipy import ndimage

from gap_bioimage.counts import thin
from gap_bioimage.errors import CheckpointError
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.measures import HaloReport, Sizes
from gap_bioimage.exporting.kinds import Sampling, product_of
from gap_bioimage.exporting.operation import Operation
from gap_bioimage.exporting.readme import Measured, Scores, draw_cover, log_likelihood, score_on_halves, write_readme
from gap_bioimage.exporting.measures import SampleScores
from gap_bioimage.simulation import simulate

if TYPE_CHECKING:
    from pathlib import Path


def scored(rate_of: Any, counts: np.ndarray, seed: int = 0) -> Scores:
    return score_on_halves(rate_of, counts, seed)


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return simulate(2, (96, 80), photons=2.0, seed=3)[0].values[None]


def test_likelihood_is_that_of_the_photons_positions() -> None:
    rate, photons = np.array([[1.0, 3.0]]), np.array([[1, 2]])
    expected = (math.log(0.25) + 2 * math.log(0.75)) / 3
    assert log_likelihood(rate, photons) == pytest.approx(expected, rel=1e-12)
    assert log_likelihood(100 * rate, photons) == pytest.approx(expected, rel=1e-12)


def test_a_pixel_that_was_given_up_costs_much_but_not_everything() -> None:
    rate, photons = np.array([[0.0, 1.0]]), np.array([[1, 0]])
    assert log_likelihood(rate, photons) == pytest.approx(math.log(0.5e-4), rel=1e-3)


def test_the_truth_beats_everything_else() -> None:
    photons, truth = simulate(2, (64, 64), photons=20.0, seed=0)
    best = log_likelihood(truth.values, photons.values)
    for sigma in (0.5, 1, 2):
        assert best > log_likelihood(ndimage.gaussian_filter(truth.values, sigma), photons.values)
    assert best > log_likelihood(np.ones(truth.shape), photons.values)


def test_scores_are_those_of_the_other_half(counts: np.ndarray) -> None:
    seen, unseen = thin(counts.astype(np.int64), 0.5, 0)
    handed: list[torch.Tensor] = []

    def blur(photons: torch.Tensor) -> torch.Tensor:
        handed.append(photons)
        return torch.from_numpy(ndimage.gaussian_filter(photons.numpy().astype(float), 1.4, axes=(2, 3)))

    scores = scored(blur, counts)
    np.testing.assert_array_equal(handed[0].numpy()[0], seen)
    assert scores.photons == int(unseen.sum())
    assert scores.flat == pytest.approx(-math.log(counts.size), rel=1e-12)
    assert scores.gaussian >= scores.denoised > scores.flat
    assert scores.pseudo_psnr_db == pytest.approx(10 * math.log10(seen.mean()))
    if scores.gaussian_sigma_px == 1.4:
        assert scores.denoised == pytest.approx(scores.gaussian, rel=1e-6)
    assert scored(blur, counts) == scores
    assert scored(blur, counts, seed=1) != scores


def test_channels_and_depth_are_not_blurred_into_each_other() -> None:
    stack = np.zeros((2, 9, 9), np.int64)
    stack[0] = 40
    # with channels kept apart, a filter of any width knows that the second one is empty
    scores = scored(lambda photons: photons, stack)
    assert scores.gaussian > -math.log(81) - 0.05


def test_counts_without_photons_give_numbers() -> None:
    scores = scored(lambda photons: photons, np.zeros((1, 16, 16), np.int64))
    assert (scores.denoised, scores.gaussian, scores.flat) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 1024, 1024), (1, 40, 300), (2, 64, 64), (1, 12, 64, 48)])
def test_covers_are_small_and_twice_as_wide_as_high(tmp_path: Path, shape: tuple[int, ...]) -> None:
    photons = np.random.default_rng(0).poisson(5, shape)
    draw_cover(tmp_path / "cover.png", photons, photons * 0.9)
    with Image.open(tmp_path / "cover.png") as picture:
        assert picture.size == (800, 400)
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    assert (tmp_path / "cover.png").stat().st_size < 500_000
    assert pixels[:, :400].std() > 10
    assert pixels[:, 400:].std() > 10


def test_an_empty_image_has_a_cover(tmp_path: Path) -> None:
    draw_cover(tmp_path / "cover.png", np.zeros((1, 16, 16)), np.zeros((1, 16, 16)))
    assert (tmp_path / "cover.png").stat().st_size > 0


def readme(
    folder: Path,
    dim: int = 2,
    gain: float = 0.1,
    held_out: bool = True,
    kind: Any = "denoise",
    own: Operation | None = None,
    **card: Any,
) -> str:
    sizes = Sizes.of((2,) * dim, (10, 12, 14)[:dim])
    halo = HaloReport(sizes.halo_px, {0.03: 0.0081, 3.0: 0.0012}, {0.03: 0.0402, 3.0: 0.0305})
    scores = Scores(-6.0, -6.0 - gain, 1.4, -8.0, 2.5, 12345)
    content = Card.model_validate({**yaml.safe_load(CARD), **card})
    model, box = random_model(dim=dim), [33] * dim
    product = product_of(kind, model, box, Sampling(3, 7, 5), own)
    measured = Measured(sizes, halo, box, scores, held_out)
    if kind != "denoise":
        samples = SampleScores(4, 6.25, 0.0123, 0.0456, 0.0789, 0.0987, 0.0051)
        measured = replace(measured, samples=samples, room_db=12.3)
    path = folder / "README.md"
    write_readme(path, model, content, product, measured)
    return path.read_text(encoding="utf-8")


def test_the_readme_has_what_the_zoo_looks_for(tmp_path: Path) -> None:
    text = readme(tmp_path, training_data="Simulated cells.", limitations="Only for cells.")
    lines = text.splitlines()
    assert lines[0] == "# Tiny photon denoiser"
    assert "# Validation" in lines
    assert "## Training data" in lines
    assert "## Limitations" in lines
    for part in ("Simulated cells.", "Only for cells.", "10.48550/arXiv.2307.06607", "held-out", "12345 photons"):
        assert part in text
    assert "| this model | -6.0000 |" in text
    assert "| best Gaussian filter (sigma 1.4 px" in text
    assert "0.81 % at 0.03; 0.12 % at 3 photons per pixel" in text
    assert "multiples of 2 x 2 pixels" in text
    assert "4.02 % at 0.03; 3.05 % at 3 photons per pixel" in text
    assert "-40 to 20 dB" in text
    assert "0.0001 to 100 photons per pixel" in text


@pytest.mark.parametrize(
    ("gain", "word"), [(0.1, "0.1000 nats per photon better"), (-0.2, "0.2000 nats per photon worse")]
)
def test_the_readme_is_honest(tmp_path: Path, gain: float, word: str) -> None:
    assert word in readme(tmp_path, gain=gain)


def test_the_readme_says_on_what_was_measured(tmp_path: Path) -> None:
    assert "the given test image" in readme(tmp_path, held_out=False)
    assert "held-out" not in readme(tmp_path, held_out=False)


def test_the_readme_names_sizes_per_axis(tmp_path: Path) -> None:
    text = readme(tmp_path, dim=3)
    assert "3D GAP U-Net" in text
    assert "z 26 + n x 2, y 32 + n x 2, x 38 + n x 2" in text
    assert "z 10, y 12, x 14" in text


def test_a_denoiser_says_nothing_of_samples(tmp_path: Path) -> None:
    text = readme(tmp_path)
    assert "sample" not in text.lower()
    assert "no pre- or postprocessing is needed" in text
    assert "deepImageJ" in text
    assert "gap-bioimage denoise model.zip" in text


def test_a_sampler_explains_its_samples(tmp_path: Path) -> None:
    text = " ".join(readme(tmp_path, kind="sample").split())
    assert "1 mean, 2 std, 3 sample1, 4 sample2, 5 sample3" in text
    assert "1 + 3 x 7 = 22 times" in text
    assert "seams" in text
    assert "12.3 dB" in text
    assert "20 dB or 100 photons per pixel, in the brightest window of 63 x 63 px" in text
    assert "the seed, here 5" in text
    assert "Elsewhere results are rounded otherwise" in text
    assert "deepImageJ" in text
    assert "4 were drawn from the one half (6.2 dB of room)" in text
    assert "by 1.23% (relative RMS); 4.56% is" in text
    assert "0.0789 photons^2 per pixel" in text
    assert "0.0987 +- 0.0051" in text


@pytest.mark.parametrize("kind", ["denoise", "sample", "sample-hook"])
def test_the_printed_command_can_be_run(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gap_bioimage import cli

    (line,) = re.findall(r"`gap-bioimage (\w+ model\.zip[^`]*)`", readme(tmp_path, kind=kind))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.zip"):  # which is not there: the line itself was understood
        cli.app(line.split(), standalone_mode=False)


def test_a_hook_says_who_runs_it_and_where_the_network_is(tmp_path: Path) -> None:
    text = " ".join(readme(tmp_path, dim=3, kind="sample-hook").split())
    assert "Runs in bioimageio.core >= 0.10.3 only; not in Fiji, not in ilastik." in text
    assert "deepImageJ" not in text
    assert "sample_posterior.py" in text
    assert "sampler_weights.pt" in text
    assert "15 x 63 x 63 px" in text
    assert "(batch, channel, z, y, x)" in text


def test_an_own_operation_is_named(tmp_path: Path) -> None:
    text = readme(tmp_path, own=Operation("postprocessing.py", b"", "Mask", {"above": 2.5}))
    assert "Mask(above=2.5)" in text
    assert "Runs in bioimageio.core >= 0.10.3 only" in text
