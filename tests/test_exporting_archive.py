"""Exported zips work, and nothing is left behind where one would not."""

import runpy
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fixtures_model import Trained, broken_model, export_unchecked, no_validation, random_model, rdf_of

from gap_bioimage import denoise, export, load_model, simulate
from gap_bioimage.errors import BrokenNetworkError, CardError, CheckpointError, ExportError, OutputError
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.weights import denoiser_of
from gap_bioimage.validation import report as validation
from gap_bioimage.validation.check import Check
from gap_bioimage.validation.report import Report


@pytest.fixture(scope="module")
def exported(trained_2d: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, list[str]]:
    """A zip that passed its checks, their report, and the stages of its making."""
    folder = tmp_path_factory.mktemp("exported")
    stages: list[str] = []
    report = export(trained_2d.run, folder / "model.zip", trained_2d.card, on_stage=stages.append)
    assert [path.name for path in folder.iterdir()] == ["model.zip"]
    return folder / "model.zip", report, stages


def test_an_exported_zip_passes_every_check_is_flat_and_begins_with_its_description(
    exported: tuple[Path, Report, list[str]],
) -> None:
    path, report, stages = exported
    assert (report.status, stages[-1]) == ("passed", "validating")
    assert report.score is not None and "config." not in "".join(report.score.raise_it)  # but fields of the card
    assert {check.status for check in report.checks if check.consumer in ("core", "run")} <= {"passed", "skipped"}
    partners = [check for check in report.checks if check.consumer in ("fiji", "ilastik", "biapy")]
    assert [check for check in partners if check.status in ("failed", "warning")] == []
    with zipfile.ZipFile(path) as zipped:
        names = zipped.namelist()
        assert zipped.testzip() is None
    assert names[0] == "rdf.yaml"
    assert {axis["size"]["step"] for axis in rdf_of(path)["inputs"][0]["axes"][2:]} == {1}  # the graph pads by itself
    assert sorted(names) == sorted([
        "rdf.yaml", "README.md", "cover.png", "network.py", "weights.pt", "weights_torchscript.pt", "test_photons.npy",
        "test_rate.npy",
    ])  # fmt: skip


def test_an_exported_zip_is_the_same_model_and_bioimageio_predicts_what_it_says(
    exported: tuple[Path, Report, list[str]], trained_2d: Trained
) -> None:
    from bioimageio.core import predict

    model, zipped = load_model(trained_2d.run), load_model(exported[0])
    assert (zipped.origin, zipped.config) == ("bioimage.io zip", model.config)
    assert zipped.trained_range_db == model.trained_range_db
    counts, _ = simulate(2, (256, 256), photons=2.0, seed=8)
    result = predict(model=exported[0], inputs={"photons": counts.values[None, None].astype(np.float32)})
    got = result.members["rate"].data.values[0, 0]
    assert got.shape == counts.shape
    rate = denoise(model, counts).values.astype(float)
    inner = (slice(112, -112),) * 2  # where the mirrored border of bioimageio.core is not seen
    np.testing.assert_allclose(got[inner], rate[inner], rtol=1e-4)


def test_the_example_for_bioimageio_gives_what_denoise_gives_borders_included(
    exported: tuple[Path, Report, list[str]], trained_2d: Trained
) -> None:
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "predict_with_bioimageio.py"))
    model = load_model(trained_2d.run)
    for shape in ((37, 53), (2, 3, 17), (2, 2, 21, 5)):
        counts = np.random.default_rng(0).poisson(2.0, shape).astype(np.uint16)
        expected = denoise(model, counts, dims="tzyx"[-len(shape) :], planes=True)
        np.testing.assert_allclose(example["denoise"](str(exported[0]), counts), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(SystemExit):
        example["denoise"](str(exported[0]), counts[0, 0, 0])


def test_a_zip_that_fails_a_check_is_not_written_and_a_stopped_export_leaves_nothing(
    trained_2d: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("temporary", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    out = tmp_path / "out" / "model.zip"
    out.write_bytes(b"the old one")
    failed = Check("core.test", "core", "failed", "the output is another one")
    told = r"model\.zip was not written.*core\.test: the output is another one"
    with no_validation(failed), pytest.raises(ExportError, match=told) as error:
        export(trained_2d.run, out, trained_2d.card)
    assert "\n" not in str(error.value)
    with no_validation(), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(validation, "validate", stop)
        export(trained_2d.run, out, trained_2d.card)
    assert out.read_bytes() == b"the old one"
    assert [path.name for path in out.parent.iterdir()] == ["model.zip"]
    assert not [path for path in (tmp_path / "temporary").iterdir() if path.name.startswith("gap-bioimage-")]


def test_a_test_image_is_needed_and_must_fit(trained_2d: Trained, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(trained_2d.run / "best.ckpt", tmp_path / "model" / "best.ckpt")
    out = tmp_path / "model.zip"
    for told in ("--test-image", "damaged"):
        with pytest.raises(ExportError, match=told):
            export(tmp_path / "model" / "best.ckpt", out, trained_2d.card)
        (tmp_path / "model" / "example.npy").write_bytes((trained_2d.run / "example.npy").read_bytes()[:-9])
    two_channels = xr.DataArray(np.ones((2, 64, 64), np.uint8), dims=["c", "y", "x"])
    with pytest.raises(ExportError, match="2 channels, the model expects 1"):
        export(trained_2d.run, out, trained_2d.card, test_image=two_channels)
    with pytest.raises(ValueError, match="expected z"):
        export(random_model(dim=3), out, trained_2d.card, test_image=two_channels[0])
    with no_validation(), pytest.raises(BrokenNetworkError, match="log-rates that are not finite"):
        export(broken_model(), out, trained_2d.card, test_image=trained_2d.counts)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "magic"}, ExportError, "expected one of denoise, sample, sample-hook"),
        ({"n_samples": 0}, ExportError, "n_samples is 0, expected 1 or more"),
        ({"n_steps": -1}, ExportError, "n_steps is -1, expected 1 or more"),
        ({"seed": -1}, ExportError, "seed is -1, expected 0 or more"),
        ({"seed": 2**63}, ExportError, "seed is"), ({"n_steps": 1.5}, ExportError, "n_steps is 1.5"),
        ({"postprocessing": "none.py:Mask"}, ExportError, r"none\.py cannot be read"),
        ({"postprocessing": "none.py"}, ExportError, r"expected FILE\.py:NAME"),
        ({"model": "none"}, CheckpointError, "does not exist"), ({"card": "none.yaml"}, CardError, r"none\.yaml"),
        ({"out": "none/model.zip"}, OutputError, "none first"), ({"out": "model.tif"}, ExportError, r"ends in \.zip"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_any_work(
    trained_2d: Trained, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    stages: list[str] = []
    arguments: dict[str, Any] = {"model": trained_2d.run, "out": tmp_path / "model.zip", "card": trained_2d.card}
    arguments |= {k: tmp_path / v if k in ("model", "card", "out") else v for k, v in changes.items()}
    with pytest.raises(error, match=message):
        export(**arguments, on_stage=stages.append)
    assert stages == []
    assert list(tmp_path.iterdir()) == []


def test_a_description_without_room_for_the_note_on_custom_code_is_refused(trained_2d: Trained, tmp_path: Path) -> None:
    card, stages = Card.read(trained_2d.card).model_copy(update={"description": "x" * 1000}), list[str]()
    with pytest.raises(CardError, match="41 characters too long"):
        export(trained_2d.run, tmp_path / "m.zip", card, "sample-hook", on_stage=stages.append)
    assert stages == [] and list(tmp_path.iterdir()) == []


def test_a_model_in_memory_and_a_card_object_do(trained_2d: Trained, tmp_path: Path) -> None:
    model = random_model(channels=2)
    counts = np.random.default_rng(0).poisson(3, (2, 3, 64, 64)).astype(np.uint16)
    counts[:, 1] *= 2  # the brightest frame is the one to show
    image = xr.DataArray(counts, dims=["c", "t", "y", "x"])
    with no_validation():
        export(model, tmp_path / "model.zip", Card.read(trained_2d.card), test_image=image)
    with zipfile.ZipFile(tmp_path / "model.zip") as zipped:
        photons, rate = (np.load(zipped.open(f"test_{name}.npy")) for name in ("photons", "rate"))
    np.testing.assert_array_equal(photons[0, :, :64, :64], counts[:, 1])
    with torch.inference_mode():
        expected = denoiser_of(model)(torch.from_numpy(photons)).numpy()
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_the_same_run_gives_the_same_tensors(trained_2d: Trained, unchecked_zip_2d: Path, tmp_path: Path) -> None:
    again = export_unchecked(trained_2d, tmp_path / "model.zip")
    with zipfile.ZipFile(unchecked_zip_2d) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
        for name in ("test_photons.npy", "test_rate.npy", "cover.png", "network.py", "weights.pt"):
            assert first.read(name) == second.read(name), name
