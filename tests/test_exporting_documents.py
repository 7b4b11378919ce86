"""Description, README and cover of a zip: readable by every consumer, true to its files, with measured numbers."""

import re
import shutil
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fixtures_model import CARD, Trained, export_unchecked, random_model, rdf_of
from PIL import Image

from gap_bioimage import load_model, simulate
from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera
from gap_bioimage.errors import CheckpointError
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.documents import ONLY_CORE, draw_cover, write_readme
from gap_bioimage.exporting.kinds import Operation, Sampling, product_of
from gap_bioimage.exporting.measures import HaloReport, Measured, SampleScores, Scores, Sizes


def card(**changes: Any) -> Card:
    return Card.model_validate({**yaml.safe_load(CARD), **changes})


FILLED = """
maintainers: [{name: Ada Example, github_user: fynnbe}]
modality: fluorescence microscopy
target_structure: [nuclei]
limitations: Simulated images only.
out_of_scope_use: Not for diagnosis.
funded_by: Example Foundation
git_repo: https://github.com/ada/x
version_comment: First version.
uploader: {email: ada@example.com, name: Ada Example}
dataset: my-photon-counts
"""


def test_a_filled_card_makes_complete_metadata(trained_2d: Trained, tmp_path: Path) -> None:
    from bioimageio.spec import load_model_description

    own = tmp_path / "card.yaml"
    own.write_text(yaml.safe_dump({**yaml.safe_load(CARD), **yaml.safe_load(FILLED)}))
    descr = load_model_description(export_unchecked(replace(trained_2d, card=own), tmp_path / "model.zip"))
    assert descr.validation_summary.metadata_completeness >= 0.75
    facts = rdf_of(tmp_path / "model.zip")["config"]["bioimageio"]
    parameters = sum(p.numel() for p in load_model(trained_2d.run).network.parameters())
    assert (facts["model_parameter_count"], facts["training"]["training_batch_size"]) == (parameters, 8)
    # the network has four filters; its anchor takes most of the memory, 0.5 GB measured
    assert facts["memory_requirements_inference"] == "about 0.6 GB per 10^6 pixels"


@pytest.mark.parametrize("shape", [(1, 1024, 1024), (1, 40, 300), (1, 12, 64, 48)])
def test_covers_are_small_twice_as_wide_as_high_and_of_whole_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    photons = np.random.default_rng(0).poisson(5, shape)
    draw_cover(tmp_path / "cover.png", photons, photons * 0.9)
    pixels = np.asarray(Image.open(tmp_path / "cover.png").convert("L"))
    height, width = pixels.shape
    assert width == 2 * height + 2 and 400 <= height <= 512
    assert height % min(256, *shape[-2:]) == 0  # whole pixels
    assert (tmp_path / "cover.png").stat().st_size < 500_000
    assert (pixels[:, height : height + 2] == 255).all()  # the line
    assert min(pixels[:, :height].std(), pixels[:, height + 2 :].std()) > 10


def readme(
    folder: Path, dim: int = 2, kind: Any = "denoise", own: Operation | None = None, camera: Detector | None = None,
    **fields: Any,
) -> str:  # fmt: skip
    sizes = Sizes.of((2,) * dim, (10, 12, 14)[:dim])
    halo = HaloReport(sizes.halo_px, {0.03: 0.0081, 3.0: 0.0012})
    product = product_of(kind, replace(random_model(dim=dim), camera=camera), Sampling(3, 7, 5), own)
    samples = None if kind == "denoise" else SampleScores(4, 6.25, 0.0789, 0.0987, 0.0051)
    measured = Measured(
        sizes, halo, [33] * dim, Scores(0.5, 0.7, 0.01, 2.5), True, "0.5 s per megapixel", samples, 12.3
    )
    path = folder / "README.md"
    write_readme(path, card(**fields), product, measured)
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
    told = ("36 x 40 px", "12 x 14 px", "0.0001 to 100 photons", "Only for cells.", "Not for diagnosis.", "29% below")
    measured = ("0.5 s per megapixel", "0.81% at 0.03; 0.12% at 3 ", "2 x 2 px")
    assert not [part for part in (*told, *measured, "Simulated cells.", "arXiv.2307.06607") if part not in text]


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


DRAWN = ["1 + 3 x 7 = 22", "12.3 dB", "6.2 dB of headroom", "here 5", "0.0789", "0.0987 +- 0.0051"]
NAMES = "1 mean, 2 std, 3 sample1, 4 sample2, 5 sample3"
IN_3D = [ONLY_CORE, "sample_posterior.py", "sampler_weights.pt", "15 x 63 x 63 px", "(batch, channel, z, y, x)"]


@pytest.mark.parametrize(
    ("kind", "dim", "told"), [("sample", 2, [*DRAWN, NAMES, "63 x 63 px", "DeepImageJ"]), ("sample-hook", 3, IN_3D)]
)
def test_samplers_explain_their_samples_and_who_runs_them(tmp_path: Path, kind: str, dim: int, told: list[str]) -> None:
    text = flat(readme(tmp_path, dim, kind))
    assert [part for part in told if part not in text] == []
    assert ("DeepImageJ" in text) == (kind == "sample")


@pytest.mark.parametrize("kind", ["denoise", "sample", "sample-hook"])
def test_the_printed_command_can_be_run(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gap_bioimage.cli import app

    (line,) = re.findall(r"`gap-bioimage (\w+ model\.zip[^`]*)`", readme(tmp_path, kind=kind))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.zip"):  # which is not there: the line itself was understood
        app(line.split(), standalone_mode=False)


def test_an_own_operation_and_a_camera_are_named(tmp_path: Path) -> None:
    numbers = {"method": "photon transfer", "gain_95": [2.1, 2.3]}
    camera = Detector(Camera(gain=2.2, offset=100.37, read_noise=1.4, measured=numbers))
    text = flat(readme(tmp_path, own=Operation("postprocessing.py", b"", "Mask", {"above": 2.5}), camera=camera))
    for part in ("Mask(above=2.5)", "2.2 ADU per electron", "photon transfer; gain (95 % confidence): 2.1 to 2.3"):
        assert part in text
