"""Description, README and cover of a zip: readable by every consumer, true to its files, with measured numbers."""

from __future__ import annotations

import hashlib
import re
import shutil
import textwrap
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from fixtures_model import CARD, export_unchecked, random_model
from PIL import Image

from gap_bioimage import load_model, simulate
from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera
from gap_bioimage.errors import CardError, CheckpointError
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.documents import (
    COVER,
    ONLY_CORE,
    TEST_INPUT,
    describe,
    description_of,
    draw_cover,
    write_readme,
)
from gap_bioimage.exporting.kinds import Operation, Product, Sampling, product_of
from gap_bioimage.exporting.measures import HaloReport, Measured, SampleScores, Scores, Sizes

if TYPE_CHECKING:
    from pathlib import Path

    from fixtures_model import Trained


def card(**changes: Any) -> Card:
    return Card.model_validate({**yaml.safe_load(CARD), **changes})


def rdf_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        content: dict[str, Any] = yaml.safe_load(archive.read("rdf.yaml"))
    return content


def test_axes_sizes_and_test_tensors_agree(unchecked_zip_2d: Path) -> None:
    rdf = rdf_of(unchecked_zip_2d)
    (given_,), (made,) = rdf["inputs"], rdf["outputs"]
    assert (given_["id"], made["id"]) == ("photons", "rate")
    axes = [axis.get("id", axis["type"]) for axis in given_["axes"]]
    assert axes == ["batch", "channel", "y", "x"]
    assert axes == [axis.get("id", axis["type"]) for axis in made["axes"]]
    assert all("scale" not in axis for axis in given_["axes"])
    with zipfile.ZipFile(unchecked_zip_2d) as archive:
        tensors = [np.load(archive.open(t["test_tensor"]["source"])) for t in (given_, made)]
    assert tensors[0].shape == tensors[1].shape
    assert all(tensor.dtype == np.float32 for tensor in tensors)
    for size, axis, out in zip(tensors[0].shape[2:], given_["axes"][2:], made["axes"][2:], strict=True):
        low, step = axis["size"]["min"], axis["size"]["step"]
        assert (size - low) % step == 0
        assert step == 1  # the graph pads by itself
        assert low % 2 == out["halo"] % 2 == 0  # tiles start where the whole image is pooled
        assert low > 2 * out["halo"]
        assert out["size"] == {"tensor_id": "photons", "axis_id": axis["id"], "offset": 0}
    assert "preprocessing" not in given_
    assert "postprocessing" not in made


MEASURED = Measured(
    Sizes.of((2, 2), (4, 4)),
    HaloReport((4, 4), {}, {}),
    [9, 9],
    Scores(0.5, 0.7, 0.01, 2.5),
    held_out=True,
    speed="0.5 s per megapixel",
)


def described(folder: Path, own: Card, kind: Any = "denoise", operation: Operation | None = None) -> dict[str, Any]:
    """The description of a model for two channels."""
    model = random_model(channels=2)
    product: Product = product_of(kind, model, [9, 9], Sampling(2, 3, 5), operation)
    product.write(folder)
    np.save(folder / TEST_INPUT, np.zeros((1, 2, 16, 16), np.float32))
    dtype = np.float32 if operation is None else np.uint8
    np.save(folder / product.test_output, np.zeros((1, len(product.channel_names), 16, 16), dtype))
    (folder / COVER).write_bytes(b"")
    rdf = describe(folder, model, own, product, MEASURED)
    assert rdf == yaml.safe_load(yaml.safe_dump(rdf))
    return rdf


SAMPLED = ["mean_0", "mean_1", "std_0", "std_1", "sample1_0", "sample1_1", "sample2_0", "sample2_1"]


DRAWN = {"n_samples": 2, "n_steps": 3, "seed": 5}


def test_a_sampling_model_names_its_channels_and_what_it_draws(tmp_path: Path) -> None:
    rdf = described(tmp_path, card(), "sample")
    (output,) = rdf["outputs"]
    assert output["axes"][1]["channel_names"] == SAMPLED
    assert "postprocessing" not in output and "attachments" not in rdf
    assert rdf["format_version"] == "0.5.9"
    assert {"posterior-sampling", "uncertainty", "denoising"} <= set(rdf["tags"])
    ours = {"kind": "sample", "conserves_photons": True, "stochastic": True, "trained_range_db": [-40.0, 20.0]}
    expected = {**ours, **DRAWN, "pooling_px": [2, 2], "measured": MEASURED.facts}
    assert rdf["config"]["gap_bioimage"] == expected
    architecture = rdf["weights"]["pytorch_state_dict"]["architecture"]
    assert (architecture["source"], architecture["callable"]) == ("network.py", "PosteriorSampler")
    more = {"gain": 100.0, "brightest": 100.0, "window_px": [63, 63], "box_px": [9, 9], "channels": 2}
    assert architecture["kwargs"].items() >= {**DRAWN, **more}.items()


def test_a_hook_is_described_as_custom_postprocessing_for_newer_cores_only(tmp_path: Path) -> None:
    rdf = described(tmp_path, card(), "sample-hook")
    (output,) = rdf["outputs"]
    assert output["axes"][1]["channel_names"] == SAMPLED
    (step,) = output["postprocessing"]
    assert step == {
        "id": "custom",
        "callable": "SamplePosterior",
        "source": "sample_posterior.py",
        "sha256": hashlib.sha256((tmp_path / "sample_posterior.py").read_bytes()).hexdigest(),
        "kwargs": {"n_steps": 3, "seed": 5, "device": "cpu"},
    }
    assert rdf["format_version"] == "0.5.10"
    assert ONLY_CORE in rdf["description"]
    ours = rdf["config"]["gap_bioimage"]
    assert (ours["kind"], ours["requires"]) == ("sample-hook", "bioimageio.core>=0.10.3")
    assert [entry["source"] for entry in rdf["attachments"]] == [ours["sampler"]["source"]] == ["sampler_weights.pt"]
    assert ours["sampler"]["kwargs"]["channels"] == 2
    architecture = rdf["weights"]["pytorch_state_dict"]["architecture"]
    assert (architecture["callable"], architecture["kwargs"]) == ("PhotonCopies", {"copies": 4})


def test_the_note_on_who_can_run_it_needs_room() -> None:
    assert description_of(card(description="x" * 512), custom=False) == "x" * 512
    assert len(description_of(card(description="x" * 440), custom=True)) <= 1024
    for said in ("Made from hazelnuts", "Made from hazelnuts."):
        assert description_of(card(description=said), custom=True).startswith("Made from hazelnuts. Runs in ")
    with pytest.warns(UserWarning, match="1000 characters"):
        long = card(description="x" * 1000)
    with pytest.raises(CardError, match=r"1000 characters.*shorten"):
        description_of(long, custom=True)


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
    assert (facts["task"], facts["architecture_type"], facts["model_parameter_count"]) == (
        "denoising",
        "2D U-Net",
        parameters,
    )
    assert facts["training"]["training_batch_size"] == 8
    assert facts["funded_by"] == "Example Foundation"


@pytest.mark.parametrize("shape", [(1, 1024, 1024), (1, 40, 300), (1, 12, 64, 48)])
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


def readme(folder: Path, dim: int = 2, kind: Any = "denoise", own: Operation | None = None, **fields: Any) -> str:
    sizes = Sizes.of((2,) * dim, (10, 12, 14)[:dim])
    halo = HaloReport(sizes.halo_px, {0.03: 0.0081, 3.0: 0.0012}, {0.03: 0.0402, 3.0: 0.0305})
    model, box = random_model(dim=dim), [33] * dim
    product = product_of(kind, model, box, Sampling(3, 7, 5), own)
    samples = None if kind == "denoise" else SampleScores(4, 6.25, 0.0789, 0.0987, 0.0051)
    measured = Measured(sizes, halo, box, Scores(0.5, 0.7, 0.01, 2.5), True, "0.5 s per megapixel", samples, 12.3)
    path = folder / "README.md"
    write_readme(path, model, card(**fields), product, measured)
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
    measured = ("0.5 s per megapixel", "0.81% at 0.03; 0.12% at 3 ", "2 x 2 px", "4.02% at 0.03; 3.05% at 3 ")
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


def test_a_sampler_explains_its_samples(tmp_path: Path) -> None:
    text = flat(readme(tmp_path, kind="sample"))
    names = "1 mean, 2 std, 3 sample1, 4 sample2, 5 sample3"
    measured = ("1 + 3 x 7 = 22", "12.3 dB", "6.2 dB of room", "63 x 63 px", "here 5", "0.0789", "0.0987 +- 0.0051")
    assert not [part for part in (names, *measured, "DeepImageJ") if part not in text]


@pytest.mark.parametrize("kind", ["denoise", "sample", "sample-hook"])
def test_the_printed_command_can_be_run(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gap_bioimage.cli import app

    (line,) = re.findall(r"`gap-bioimage (\w+ model\.zip[^`]*)`", readme(tmp_path, kind=kind))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.zip"):  # which is not there: the line itself was understood
        app(line.split(), standalone_mode=False)


def test_a_hook_says_who_runs_it_and_where_the_network_is(tmp_path: Path) -> None:
    text = flat(readme(tmp_path, dim=3, kind="sample-hook"))
    assert ONLY_CORE in text and "DeepImageJ" not in text
    for part in ("sample_posterior.py", "sampler_weights.pt", "15 x 63 x 63 px", "(batch, channel, z, y, x)"):
        assert part in text


def test_an_own_operation_and_a_camera_are_named(tmp_path: Path) -> None:
    assert "Mask(above=2.5)" in readme(tmp_path, own=Operation("postprocessing.py", b"", "Mask", {"above": 2.5}))
    numbers = {"method": "photon transfer", "gain_95": [2.1, 2.3]}
    camera = Camera(gain=2.2, offset=100.37, read_noise=1.4, measured=numbers)
    model = replace(random_model(), camera=Detector(camera))
    product = product_of("denoise", model, [9, 9], Sampling())
    write_readme(tmp_path / "camera.md", model, card(), product, replace(MEASURED, held_out=False))
    text = flat((tmp_path / "camera.md").read_text())
    for part in ("2.2 ADU per electron", "photon transfer; gain (95 % confidence): 2.1 to 2.3", "given test image"):
        assert part in text
