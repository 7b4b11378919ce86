"""The weights of a zip: one network in every format, and nothing of the machine that wrote them."""

import importlib.util
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_model import CONFIGS, Trained, random_model, rdf_of

import gap_bioimage.network
from gap_bioimage import export
from gap_bioimage.config import Camera
from gap_bioimage.errors import ExportError
from gap_bioimage.exporting import weights
from gap_bioimage.exporting.kinds import Sampling, product_of
from gap_bioimage.validation.archive.torchscript import read_code

ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}


def load_source(path: Path) -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location("shipped_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=range(len(CONFIGS)), ids=lambda i: "-".join(map(str, CONFIGS[i].values())))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    product = product_of("denoise", random_model(**CONFIGS[request.param]), Sampling())
    product.write(tmp_path)
    return tmp_path, product.arguments


def test_both_formats_compute_the_same(written: tuple[Path, dict[str, Any]]) -> None:
    folder, arguments = written
    assert {path.name for path in folder.iterdir()} == {weights.TORCHSCRIPT, weights.STATE_DICT, weights.NETWORK_FILE}
    script = torch.jit.load(folder / weights.TORCHSCRIPT)
    assert not script.training
    module = load_source(folder / weights.NETWORK_FILE).PhotonDenoiser(**arguments).eval()
    module.load_state_dict(torch.load(folder / weights.STATE_DICT, weights_only=True))
    assert type(module) is not gap_bioimage.network.PhotonDenoiser
    generator = torch.Generator().manual_seed(0)
    for batch, size in [(1, 4), (2, 7)] if arguments["dim"] == 3 else [(1, 16), (2, 21), (1, 1)]:
        shape = (batch, arguments["channels"], *[size] * arguments["dim"])
        photons = torch.poisson(torch.full(shape, 2.0), generator)
        with torch.inference_mode():
            expected, got = module(photons), script(photons)
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) <= 1e-5 * float(expected.max())


def test_convolutions_keep_their_weights_in_the_fast_order(written: tuple[Path, dict[str, Any]]) -> None:
    script = dict(torch.jit.load(written[0] / weights.TORCHSCRIPT).named_parameters())
    state = torch.load(written[0] / weights.STATE_DICT, weights_only=True)
    for name, weight in state.items():
        assert weight.is_contiguous()
        if weight.dim() in ORDERS:  # of a denoiser; samplers are rounded as in the state_dict
            assert script[name].is_contiguous(memory_format=ORDERS[weight.dim()])
        assert torch.equal(script[name], weight)


@pytest.mark.parametrize("dim", [2, 3])
def test_older_engines_give_the_same_result(tmp_path: Path, old_torch: Callable[..., None], dim: int) -> None:
    product = product_of("denoise", random_model(dim=dim), Sampling())
    product.write(tmp_path)
    photons = torch.poisson(torch.full((1, 1, *(9, 33, 40)[-dim:]), 2.0), torch.Generator().manual_seed(0))
    np.save(tmp_path / "in.npy", photons.numpy())
    np.save(tmp_path / "out.npy", product.run(photons.numpy()))
    script = (
        "import sys, numpy, torch; model = torch.jit.load(sys.argv[1]); "
        "got = model(torch.from_numpy(numpy.load(sys.argv[2]))).numpy(); expected = numpy.load(sys.argv[3]); "
        "assert abs(got - expected).max() <= 1e-5 * expected.max()"
    )
    old_torch(script, *(tmp_path / name for name in (weights.TORCHSCRIPT, "in.npy", "out.npy")))


def test_no_path_of_this_machine_and_no_operator_that_old_engines_lack_is_inside(
    written: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = written
    assert read_code(folder / weights.TORCHSCRIPT).unportable == {}
    own = [Path(gap_bioimage.network.__file__).parent, Path.home(), Path(tempfile.gettempdir()), Path.cwd()]
    private = [str(path).encode() for path in own if len(str(path)) > 2]
    absolute = re.compile(rb"(?<![\w.:/])/[A-Za-z][\w.-]*/[\w./-]+")
    for name in (weights.TORCHSCRIPT, weights.STATE_DICT):
        with zipfile.ZipFile(folder / name) as archive:
            for record in archive.namelist():
                content = archive.read(record)
                assert not record.endswith(".debug_pkl")
                assert not [path for path in private if path in content], record
                if "/data/" not in record and "/constants/" not in record:  # not raw numbers
                    assert not absolute.findall(content), record


def test_onnx_knows_one_bit_frames(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    denoiser = weights.denoiser_of(random_model(), ceiling=8)
    weights.write_onnx(tmp_path, denoiser, 1, [24, 24])
    session = onnxruntime.InferenceSession(tmp_path / weights.ONNX, providers=["CPUExecutionProvider"])
    photons = torch.poisson(torch.full((1, 1, 24, 24), 3.0), torch.Generator().manual_seed(0)).clamp(max=8)
    with torch.inference_mode():
        expected = denoiser(photons).numpy()
    np.testing.assert_allclose(session.run(None, {"photons": photons.numpy()})[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "config", [*CONFIGS, {"dim": 2, "anchor": True}], ids=lambda config: "-".join(map(str, config.values()))
)
def test_onnx_computes_what_torch_does_at_multiples_of_the_pooling(tmp_path: Path, config: dict[str, Any]) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = random_model(**config)
    dim, channels = model.config.dim, model.config.channels
    denoiser = weights.denoiser_of(model)
    weights.write_onnx(tmp_path, denoiser, channels, [24] * dim)
    stored = onnx.load(tmp_path / weights.ONNX)
    assert stored.ir_version <= 8
    assert [(entry.domain, entry.version <= 18) for entry in stored.opset_import] == [("", True)]
    session = onnxruntime.InferenceSession(tmp_path / weights.ONNX, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for batch, steps in ((1, (4, 8, 15)), (3, (12, 25, 10)), (1, (1, 1, 1))):
        size = [n * step for n, step in zip(steps[-dim:], model.network.step_px, strict=True)]
        photons = torch.poisson(torch.full((batch, channels, *size), 2.0), generator)
        with torch.inference_mode():
            expected = denoiser(photons).numpy()
        (got,) = session.run(None, {"photons": photons.numpy()})
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_a_zip_for_a_camera_with_onnx_passes_every_check(trained_2d: Trained, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    camera, counts = Camera(gain=2.0, offset=100, read_noise=1.5), trained_2d.counts
    electrons = counts + np.random.default_rng(0).normal(0, camera.read_noise, counts.shape)
    given: dict[str, Any] = {"test_image": (100 + 2 * electrons).round().astype(np.uint16), "onnx": True}
    report = export(random_model(), tmp_path / "model.zip", trained_2d.card, camera=camera, **given)
    checks = {check.id: check for check in report.checks}
    assert report.status == "passed"
    assert "onnx" in checks["core.test"].message
    assert checks["run.formats_agree"].status == "passed"
    # ONNX weights do not pad by themselves
    assert {axis["size"]["step"] for axis in rdf_of(tmp_path / "model.zip")["inputs"][0]["axes"][2:]} == {2}


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages_and_unfit_kinds_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else ModuleType(name))
    with pytest.raises(ExportError, match=rf"import of {missing} .*gap-bioimage\[onnx\]"):
        weights.check_onnx("denoise")
    with pytest.raises(ExportError, match="'sample' has no ONNX"):
        weights.check_onnx("sample")
