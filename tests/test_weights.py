"""The weights of a zip: the same network in both formats, and nothing of the machine that wrote them."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from fixtures_model import CONFIGS, random_model

import gap_bioimage.network
from gap_bioimage.export.weights import (
    NETWORK_FILE,
    STATE_DICT,
    TORCHSCRIPT,
    architecture_source,
    denoiser_of,
    write_weights,
)

if TYPE_CHECKING:
    from types import ModuleType


def load_source(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("shipped_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=range(len(CONFIGS)), ids=lambda i: "-".join(map(str, CONFIGS[i].values())))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    model = random_model(**CONFIGS[request.param])
    box = [9, 9] if model.config.dim == 2 else [5, 9, 9]
    write_weights(tmp_path, denoiser_of(model, box), architecture_source())
    return tmp_path, {"box_px": box, **model.config.model_dump(mode="json")}


def test_both_formats_compute_the_same(written: tuple[Path, dict[str, Any]]) -> None:
    folder, arguments = written
    assert sorted(path.name for path in folder.iterdir()) == sorted([TORCHSCRIPT, STATE_DICT, NETWORK_FILE])
    script = torch.jit.load(folder / TORCHSCRIPT)
    module = load_source(folder / NETWORK_FILE).PhotonDenoiser(**arguments).eval()
    module.load_state_dict(torch.load(folder / STATE_DICT, weights_only=True))
    assert type(module) is not gap_bioimage.network.PhotonDenoiser
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, 4), (2, 7)] if arguments["dim"] == 3 else [(1, 16), (2, 21), (1, 1)]
    for batch, size in sizes:
        shape = (batch, arguments["channels"], *[size] * arguments["dim"])
        photons = torch.poisson(torch.full(shape, 2.0), generator)
        with torch.inference_mode():
            expected, got = module(photons), script(photons)
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) <= 1e-6 * float(expected.max())


def test_torchscript_is_not_frozen_and_waits_in_evaluation_mode(written: tuple[Path, dict[str, Any]]) -> None:
    script = torch.jit.load(written[0] / TORCHSCRIPT)
    weights = torch.load(written[0] / STATE_DICT, weights_only=True)
    assert {name for name, _ in script.named_parameters()} == set(weights)
    assert not script.training
    assert not any(parameter.requires_grad for parameter in script.parameters())
    assert next(script.double().parameters()).dtype == torch.float64


def test_no_path_of_this_machine_is_inside(written: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = written
    own = [Path(gap_bioimage.network.__file__).parent, Path.home(), Path(tempfile.gettempdir()), Path.cwd()]
    private = [str(path).encode() for path in own if len(str(path)) > 2]
    absolute = re.compile(rb"(?<![\w.:/])/[A-Za-z][\w.-]*/[\w./-]+")
    for name in (TORCHSCRIPT, STATE_DICT):
        with zipfile.ZipFile(folder / name) as archive:
            for record in archive.namelist():
                content = archive.read(record)
                assert not record.endswith(".debug_pkl")
                assert not [path for path in private if path in content], record
                if "/data/" not in record and "/constants/" not in record:  # not raw numbers
                    assert not absolute.findall(content), record


def test_operators_are_those_of_older_engines(written: tuple[Path, dict[str, Any]]) -> None:
    with zipfile.ZipFile(written[0] / TORCHSCRIPT) as archive:
        code = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".py")).decode()
    assert "forward" in code
    for word in ("lanczos", "rms_norm", "scaled_dot_product", "uint16", "cuda", "torch.device"):
        assert word not in code


def test_zipped_weights_give_the_zipped_output(unchecked_zip_2d: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(unchecked_zip_2d) as archive:
        archive.extractall(tmp_path)
    rdf = yaml.safe_load((tmp_path / "rdf.yaml").read_text())
    photons = torch.from_numpy(np.load(tmp_path / "test_photons.npy"))
    expected = np.load(tmp_path / "test_rate.npy")
    with torch.inference_mode():
        got = torch.jit.load(tmp_path / TORCHSCRIPT)(photons).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * expected.max())
    kwargs = rdf["weights"]["pytorch_state_dict"]["architecture"]["kwargs"]
    module = load_source(tmp_path / NETWORK_FILE).PhotonDenoiser(**kwargs).eval()
    module.load_state_dict(torch.load(tmp_path / STATE_DICT, weights_only=True))
    with torch.inference_mode():
        np.testing.assert_allclose(module(photons).numpy(), expected, rtol=1e-5, atol=1e-6 * expected.max())


def test_the_model_itself_is_left_as_it_was() -> None:
    model = random_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    denoiser = denoiser_of(model, [9, 9])
    for parameter in denoiser.parameters():
        parameter.zero_()
    after = model.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
