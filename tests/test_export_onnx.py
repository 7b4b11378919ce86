"""ONNX weights: what torch computes, in files that the consumers read; refused where they are not."""

from __future__ import annotations

import importlib
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from fixtures_model import CONFIGS, random_model

from gap_bioimage import export, load_model
from gap_bioimage.errors import ExportError
from gap_bioimage.export.halo import Sizes
from gap_bioimage.export.onnx_weights import ONNX, check_onnx, write_onnx
from gap_bioimage.export.weights import denoiser_of

if TYPE_CHECKING:
    from pathlib import Path

    from fixtures_model import Trained


@pytest.fixture
def engines() -> tuple[Any, Any]:
    return pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config.values())))
def test_onnx_computes_what_torch_does_at_all_multiples_of_the_step(
    tmp_path: Path, config: dict[str, Any], engines: tuple[Any, Any]
) -> None:
    model = random_model(**config)
    dim, channels = model.config.dim, model.config.channels
    denoiser = denoiser_of(model, [33, 33] if dim == 2 else [5, 17, 17])
    write_onnx(tmp_path, denoiser, channels, Sizes((24,) * dim, tuple(model.network.step_px), (8,) * dim))
    stored = engines[0].load(tmp_path / ONNX)
    assert stored.ir_version <= 8
    assert [(entry.domain, entry.version <= 18) for entry in stored.opset_import] == [("", True)]
    session = engines[1].InferenceSession(tmp_path / ONNX, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for batch, size in ((1, (8, 16, 30)), (3, (24, 50, 20)), (1, (2, 2, 2))):
        photons = torch.poisson(torch.full((batch, channels, *size[-dim:]), 2.0), generator)
        with torch.inference_mode():
            expected = denoiser(photons).numpy()
        (got,) = session.run(None, {"photons": photons.numpy()})
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_a_zip_with_onnx_passes_every_check(trained_2d: Trained, tmp_path: Path, engines: tuple[Any, Any]) -> None:
    assert engines
    report = export(trained_2d.run, tmp_path / "model.zip", trained_2d.card, onnx=True)
    checks = {check.id: check for check in report.checks}
    assert report.status == "passed"
    assert not [check.id for check in report.checks if check.status == "warning"]
    for name in ("core.test", "run.loads"):
        assert "onnx" in checks[name].message
    assert checks["run.formats_agree"].status == "passed"
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        entry = yaml.safe_load(archive.read("rdf.yaml"))["weights"]["onnx"]
        assert ONNX in archive.namelist()
    assert (entry["source"], entry["opset_version"], entry["parent"]) == (ONNX, 17, "pytorch_state_dict")
    assert load_model(tmp_path / "model.zip").config == load_model(trained_2d.run).config


def test_weights_that_differ_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: tuple[Any, Any]
) -> None:
    class Wrong:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.session = session(*args, **kwargs)

        def run(self, names: Any, inputs: Any) -> Any:
            return [1.01 * output for output in self.session.run(names, inputs)]

    session = engines[1].InferenceSession
    monkeypatch.setattr(engines[1], "InferenceSession", Wrong)
    with pytest.raises(ExportError, match=r"differ from torch's by .* leave --onnx out"):
        write_onnx(tmp_path, denoiser_of(random_model(), [9, 9]), 1, Sizes((24, 24), (2, 2), (8, 8)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sample", "sample-hook"])
def test_samplers_have_no_onnx(trained_2d: Trained, tmp_path: Path, kind: Any) -> None:
    stages: list[str] = []
    with pytest.raises(ExportError, match=f"'{kind}' has no ONNX weights.*leave --onnx out"):
        export(trained_2d.run, tmp_path / "model.zip", trained_2d.card, kind, onnx=True, on_stage=stages.append)
    assert stages == []


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def absent(name: str, *args: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *args) if name in sys.modules else None

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ExportError, match=rf"No module named '{missing}'.*gap-bioimage\[onnx\]"):
        check_onnx("denoise")
