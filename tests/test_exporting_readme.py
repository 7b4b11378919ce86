"""The README and cover of a zip: numbers that are measured, pictures that fit."""

from __future__ import annotations

import math
import re
import shutil
import textwrap
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from fixtures_model import CARD, random_model
from PIL import Image
from scipy import ndimage

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera
from gap_bioimage.counts import thin
from gap_bioimage.errors import CheckpointError
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.kinds import Sampling, product_of
from gap_bioimage.exporting.measures import (
    HaloReport,
    Measured,
    SampleScores,
    Scores,
    Sizes,
    log_likelihood,
    score_on_halves,
)
from gap_bioimage.exporting.operation import Operation
from gap_bioimage.exporting.readme import draw_cover, write_readme
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
    assert (scores.denoised, scores.gaussian, scores.flat, scores.squared_error) == (0.0, 0.0, 0.0, 0.0)
    assert "not measurably different" in scores.verdict


def test_the_squared_error_is_that_against_the_truth() -> None:
    photons, truth = simulate(2, (256, 256), photons=8.0, seed=0)
    wrong = truth.values / 2 + 0.5  # of half of the photons
    scores = scored(lambda seen: torch.from_numpy(wrong)[None, None], photons.values[None])
    assert scores.squared_error == pytest.approx(0.25, abs=0.06)
    best = min(
        float(np.square(ndimage.gaussian_filter(photons.values.astype(float), sigma) - truth.values).mean())
        for sigma in (0.5, 0.7, 1.0, 1.4, 2.0)
    )
    assert scores.gaussian_error == pytest.approx(best / 2, rel=0.3)  # half of the photons: half of the noise
    assert scores.verdict.startswith("is ") and " below " in scores.verdict and " dB" in scores.verdict


def test_a_worse_model_is_called_worse() -> None:
    scores = Scores(-6, -6, -8, 1.4, 0.9, 0.6, 0.01, 2.5, 100)
    assert scores.verdict == "is 50% above that of the best Gaussian filter"


@pytest.mark.parametrize("shape", [(1, 1024, 1024), (1, 40, 300), (2, 64, 64), (1, 12, 64, 48)])
def test_covers_are_small_twice_as_wide_as_high_and_of_whole_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    photons = np.random.default_rng(0).poisson(5, shape)
    draw_cover(tmp_path / "cover.png", photons, photons * 0.9)
    with Image.open(tmp_path / "cover.png") as picture:
        width, height = picture.size
        assert width == 2 * height + 2
        assert 400 <= height <= 512
        assert height % min(256, *shape[-2:]) == 0  # whole pixels
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"))
    assert (tmp_path / "cover.png").stat().st_size < 500_000
    assert (pixels[:, height : height + 2] == 255).all()  # the line
    assert pixels[:, :height].std() > 10
    assert pixels[:, height + 2 :].std() > 10


def readme(folder: Path, dim: int = 2, kind: Any = "denoise", own: Operation | None = None, **card: Any) -> str:
    sizes = Sizes.of((2,) * dim, (10, 12, 14)[:dim])
    halo = HaloReport(sizes.halo_px, {0.03: 0.0081, 3.0: 0.0012}, {0.03: 0.0402, 3.0: 0.0305})
    scores = Scores(-6.0, -6.1, -8.0, 1.4, 0.5, 0.7, 0.01, 2.5, 12345)
    content = Card.model_validate({**yaml.safe_load(CARD), **card})
    model, box = random_model(dim=dim), [33] * dim
    product = product_of(kind, model, box, Sampling(3, 7, 5), own)
    samples = None if kind == "denoise" else SampleScores(4, 6.25, 0.0123, 0.0456, 0.0789, 0.0987, 0.0051)
    measured = Measured(sizes, halo, box, scores, True, "0.5 s per megapixel", samples, 12.3)
    path = folder / "README.md"
    write_readme(path, model, content, product, measured)
    return path.read_text(encoding="utf-8")


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_readme_begins_with_the_picture_and_one_sentence(tmp_path: Path) -> None:
    text = readme(tmp_path, limitations="Only for cells.", out_of_scope_use="Not for diagnosis.")
    lines = text.splitlines()
    assert re.fullmatch(r"!\[photon counts on the left, denoised on the right\]\(cover\.png\)", lines[0])
    assert lines[2] == "# Tiny photon denoiser"
    headings = [line for line in lines if line.startswith("# ")]
    assert headings[1:] == ["# Use", "# Description", "# Intended Use", "# Validation", "# Citation", "# Numbers"]
    text = flat(text)
    for part in (
        "of any size from 36 x 40 px (Fiji pads smaller ones for you, but refuses those below about 12 x 14 px)",
        "0.0001 to 100 photons per pixel",
        "Only for cells.",
        "Not for diagnosis.",
        "Simulated cells.",
        "doi.org/10.48550/arXiv.2307.06607",
        "its squared error is 29% below that of the best Gaussian filter, 1.5 dB",
        "0.5 s per megapixel",
        "0.81% at 0.03; 0.12% at 3 photons per pixel",
        "multiples of 2 x 2 px",
        "4.02% at 0.03; 3.05% at 3 photons per pixel",
        "12345 photons: -6.0000 nats per photon",
    ):
        assert part in text
    assert text.index("Gaussian") < text.index("nats")


def test_every_program_has_three_steps(tmp_path: Path) -> None:
    text = readme(tmp_path)
    for program in ("Fiji", "ilastik", "Python"):
        steps = text.split(f"**{program}**")[1].split("**")[0].split("# Description")[0]
        assert re.findall(r"^(\d)\. ", steps, re.MULTILINE) == ["1", "2", "3"]


def test_the_python_of_the_readme_runs_and_its_tiles_are_on_the_pooling(tmp_path: Path, unchecked_zip_2d: Path) -> None:
    with zipfile.ZipFile(unchecked_zip_2d) as archive:
        text = archive.read("README.md").decode()
    shutil.copy(unchecked_zip_2d, tmp_path / "model.zip")
    code = textwrap.dedent(text.split("```python\n")[1].split("```")[0])
    code = code.replace('"model.zip"', repr(str(tmp_path / "model.zip")))
    counts = simulate(2, (203, 199), photons=2.0, seed=1)[0].values
    variables: dict[str, Any] = {"counts": counts}
    exec(code, variables)
    assert variables["result"].shape == (1, *counts.shape)
    assert variables["result"].sum() == pytest.approx(counts.sum(), rel=0.05)
    block = int(re.findall(r"blocksize_parameter=(\d+)", text)[0])
    assert block % 2 == 0


def test_the_readme_names_sizes_per_axis(tmp_path: Path) -> None:
    text = readme(tmp_path, dim=3)
    assert "3D GAP U-Net" in text
    for row in ("| z | 36 px | n x 1 px | 10 px | 2 px |", "| y | 40 px |", "| x | 44 px |"):
        assert row in text


def test_a_denoiser_says_nothing_of_samples(tmp_path: Path) -> None:
    text = readme(tmp_path)
    assert "## Samples" not in text
    assert "no pre- or postprocessing is needed" in flat(text)
    assert "gap-bioimage denoise model.zip" in text


def test_a_sampler_explains_its_samples(tmp_path: Path) -> None:
    text = flat(readme(tmp_path, kind="sample"))
    for part in (
        "1 mean, 2 std, 3 sample1, 4 sample2, 5 sample3",
        "1 + 3 x 7 = 22 times",
        "12.3 dB of it",
        "20 dB or 100 photons per pixel, in the brightest window of 63 x 63 px",
        "the seed, here 5",
        "4 were drawn from the one half (6.2 dB of room)",
        "by 1.23 % (relative RMS); 4.56 % is",
        "0.0789 photons^2 per pixel",
        "0.0987 +- 0.0051",
        "DeepImageJ",
    ):
        assert part in text


@pytest.mark.parametrize("kind", ["denoise", "sample", "sample-hook"])
def test_the_printed_command_can_be_run(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gap_bioimage.cli import app

    (line,) = re.findall(r"`gap-bioimage (\w+ model\.zip[^`]*)`", readme(tmp_path, kind=kind))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.zip"):  # which is not there: the line itself was understood
        app(line.split(), standalone_mode=False)


def test_a_hook_says_who_runs_it_and_where_the_network_is(tmp_path: Path) -> None:
    text = flat(readme(tmp_path, dim=3, kind="sample-hook"))
    assert "Runs in bioimageio.core >= 0.10.3 only; not in Fiji, not in ilastik." in text
    assert "DeepImageJ" not in text
    for part in ("sample_posterior.py", "sampler_weights.pt", "15 x 63 x 63 px", "(batch, channel, z, y, x)"):
        assert part in text


def test_an_own_operation_and_a_camera_are_named(tmp_path: Path) -> None:
    text = readme(tmp_path, own=Operation("postprocessing.py", b"", "Mask", {"above": 2.5}))
    assert "Mask(above=2.5)" in text
    numbers = {"method": "photon transfer", "gain_95": [2.1, 2.3]}
    camera = Camera(gain=2.2, offset=100.37, read_noise=1.4, measured=numbers)
    model = replace(random_model(), camera=Detector(camera))
    product = product_of("denoise", model, [9, 9], Sampling())
    sizes = Sizes.of((2, 2), (4, 4))
    measured = Measured(sizes, HaloReport((4, 4), {}, {}), [9, 9], Scores(-6, -6, -8, 1, 1, 1, 1, 0, 9), False, "1 s")
    write_readme(tmp_path / "camera.md", model, Card.model_validate(yaml.safe_load(CARD)), product, measured)
    text = flat((tmp_path / "camera.md").read_text())
    for part in (
        "| gain | 2.2 ADU per electron |",
        "method: photon transfer; gain (95 % confidence): 2.1 to 2.3",
        "the given test image",
    ):
        assert part in text
