"""Models that run, and models that fail in one way each."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import zips
from gap_bioimage.validation.reports.score import verdicts_of
from gap_bioimage.validation.running.execution import Plan, run_checks
from gap_bioimage.validation.running.reproduction import reproduces
from gap_bioimage.validation.running.runner import Runner

from gap_bioimage.validation.package.archive import open_package
from gap_bioimage.validation.package.description import format_checks
from gap_bioimage.validation.report import validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gap_bioimage.validation.running.process import ModelProcess

    from gap_bioimage.validation.checks import Check

    Run = Callable[..., dict[str, Check]]


@pytest.fixture(scope="module")
def run(model_process: ModelProcess) -> Run:
    """Return a function that validates a zip and returns its checks by id."""

    def call(path: Path, *, run_code: bool = False) -> dict[str, Check]:
        report = validate(path, consumers=["fiji", "zoo"], run_code=run_code, process=model_process)
        return {check.id: check for check in report.checks}

    return call


@pytest.fixture(scope="module")
def good(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    return run(zips.make_zip(tmp_path_factory.mktemp("good")), run_code=True)


def test_the_good_zip_passes_every_run(good: dict[str, Check]) -> None:
    ran = {id_: check.status for id_, check in good.items() if check.consumer in ("core", "run")}
    assert {id_ for id_, status in ran.items() if status != "passed"} <= {"run.cuda"}  # where there is no such device
    assert {"core.test", "run.sizes", "run.tiled", "run.batch", "run.zero", "run.single_photon"} <= ran.keys()
    assert {
        "run.conservation",
        "run.formats_agree",
        "run.negative_control",
        "run.deterministic",
    } <= ran.keys()
    assert good["fiji.below_min"].status == "passed"
    assert good["zoo.deepimagej"].status == "passed"


def test_both_weights_formats_are_run(good: dict[str, Check]) -> None:
    assert "pytorch_state_dict" in good["core.test"].message
    assert "torchscript" in good["core.test"].message


def test_python_code_is_run_on_request_only(run: Run, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w').close()\n" + zips.BLUR
    path = zips.make_zip(tmp_path, source=source)
    marker.unlink()  # made when the zip was written
    checks = run(path)
    assert not marker.exists()
    assert checks["run.pytorch_state_dict"].status == "skipped"
    assert checks["run.pytorch_state_dict"].fix == "--run-code"
    assert checks["core.test"].status == "passed"  # by torchscript
    run(path, run_code=True)
    assert marker.exists()


def test_a_state_dict_alone_is_skipped_not_failed(tmp_path: Path) -> None:
    def alone(rdf: dict[str, Any]) -> None:
        del rdf["weights"]["torchscript"]

    report = validate(zips.make_zip(tmp_path, alone))
    checks = {check.id: check for check in report.checks}
    assert checks["core.test"].status == "skipped"
    assert checks["core.test"].fix == "--run-code"
    assert report.status == "passed"


def test_custom_processing_is_code_too(run: Run, tmp_path: Path) -> None:
    def custom(rdf: dict[str, Any]) -> None:
        files = zips.model_files()
        step = {
            "source": "tiny.py",
            "sha256": zips.sha256(files["tiny.py"]),
            "callable": "Tiny",
            "kwargs": {},
        }
        rdf["outputs"][0]["postprocessing"] = [{"id": "custom", **step}]

    checks = run(zips.make_zip(tmp_path, custom))
    assert checks["core.test"].status == "skipped"
    assert "custom" in checks["run.torchscript"].message


BROKEN = [
    ("run.tiled", "rate = rate / rate.mean() * 20.0", "failed"),
    ("run.batch", "rate = rate + photons.amax() * 0.1", "failed"),
    ("run.zero", "rate = rate / rate.sum()", "failed"),
    ("run.single_photon", "rate = rate / (photons.sum() - 1.0)", "failed"),
    ("run.conservation", "rate = 2.0 * rate", "failed"),
    ("run.deterministic", "rate = rate + 0.1 * torch.randn_like(rate)", "warning"),
    ("run.sizes", "assert photons.shape[2] == photons.shape[3]", "failed"),
    ("fiji.below_min", "assert photons.shape[3] >= 16", "failed"),
    ("run.negative_control", "rate = rate * 1e-5", "failed"),
]


@pytest.mark.parametrize(("check_id", "body", "status"), BROKEN)
def test_a_model_that_misbehaves_is_noticed(run: Run, tmp_path: Path, check_id: str, body: str, status: str) -> None:
    checks = run(zips.make_zip(tmp_path, zips.torchscript_only, source=zips.tiny(body)))
    assert checks[check_id].status == status, checks[check_id].message
    assert checks[check_id].fix


def test_small_wrong_outputs_fail_on_their_own_scale(run: Run, tmp_path: Path) -> None:
    source = zips.tiny("rate = rate * 1e-5")
    expected = np.load(io.BytesIO(zips.model_files(source)["output.npy"]))
    checks = run(
        zips.make_zip(
            tmp_path,
            zips.torchscript_only,
            source=source,
            files={"output.npy": zips.npy(expected[..., ::-1].copy())},
        )
    )
    assert checks["core.test"].status == "passed"  # core's tolerance is absolute
    assert checks["run.reproduces"].status == "failed"
    assert checks["run.negative_control"].status == "failed"


def test_wrong_expected_outputs_fail_core(run: Run, tmp_path: Path) -> None:
    expected = np.load(io.BytesIO(zips.model_files()["output.npy"]))
    checks = run(
        zips.make_zip(tmp_path, zips.torchscript_only, files={"output.npy": zips.npy(expected[..., ::-1].copy())})
    )
    assert checks["core.test"].status == "failed"
    assert checks["run.reproduces"].status == "failed"
    assert checks["zoo.deepimagej"].status == "failed"


def ran(path: Path) -> dict[str, Check]:
    """What running a model finds, whatever is wrong with its files."""
    found: list[Check] = []
    with open_package(path) as (package, _):
        assert package is not None
        description, _ = format_checks(package)
        assert description is not None
        run_checks(package, description, Plan(run_code=True, found=lambda check, drawn: found.append(check)))
    return {check.id: check for check in found}


@pytest.mark.parametrize(("value", "n_broken"), [(np.nan, 1024), (np.inf, 1)])
def test_expected_outputs_that_are_no_numbers_prove_nothing(tmp_path: Path, value: float, n_broken: int) -> None:
    expected = np.load(io.BytesIO(zips.model_files()["output.npy"]))
    expected.flat[:n_broken] = value
    checks = ran(zips.make_zip(tmp_path, zips.torchscript_only, files={"output.npy": zips.npy(expected)}))
    statuses = {name: checks[name].status for name in ("core.test", "run.reproduces", "run.negative_control")}
    assert statuses == {"core.test": "failed", "run.reproduces": "failed", "run.negative_control": "skipped"}
    assert checks["zoo.deepimagej"].status == "skipped"
    for name in (*statuses, "zoo.deepimagej"):
        assert f"{n_broken} of 1024 values of 'rate'" in checks[name].message
    assert next(entry for entry in verdicts_of(list(checks.values())) if entry.consumer == "core").verdict == "fails"


def test_a_model_that_gives_no_numbers_fails_and_is_not_compared(tmp_path: Path) -> None:
    files = zips.model_files(zips.tiny("rate = rate * float('nan')"))
    good = zips.model_files()["output.npy"]
    path = zips.make_zip(
        tmp_path, zips.torchscript_only, files={"torchscript.pt": files["torchscript.pt"], "output.npy": good}
    )
    checks = ran(path)
    assert checks["core.test"].status == checks["run.reproduces"].status == "failed"
    for name in ("core.test", "run.reproduces"):
        assert "gives for the test input 1024 of 1024 values of 'rate' are NaN or infinite" in checks[name].message
    for name in ("run.tiled", "run.padding", "run.batch", "run.dtypes", "run.deterministic", "run.conservation"):
        assert checks[name].status == "skipped", checks[name]
    assert not any("inf of" in check.message or "inf%" in check.message for check in checks.values())


def test_a_disagreement_is_told_in_plain_words(tmp_path: Path) -> None:
    expected = np.load(io.BytesIO(zips.model_files()["output.npy"]))
    made = float(expected[0, 0, 7, 9])
    expected[0, 0, 7, 9] = 1000
    expected[0, 0, 1, 2] += 5
    path = zips.make_zip(tmp_path, zips.torchscript_only, files={"output.npy": zips.npy(expected)})
    words = f"2 of 1024 values of 'rate' disagree with the expected ones; the worst: expected 1000, got {made:.4g}"
    assert f"{words} at y 7, x 9" in ran(path)["core.test"].message


def test_exchanged_test_tensors_are_noticed(tmp_path: Path) -> None:
    files = zips.model_files()
    swapped = {"input.npy": files["output.npy"], "output.npy": files["input.npy"]}
    check = ran(zips.make_zip(tmp_path, zips.torchscript_only, files=swapped))["run.reproduces"]
    assert check.status == "failed"
    assert "the test tensors of input and output look exchanged" in check.message
    assert check.fix.startswith("Exchange the files")


class TwoOutputs:
    """Stands in for a runner whose model gives two images."""

    weights_format = "torchscript"

    def __init__(self, exchanged: bool) -> None:
        ramp = np.arange(12.0).reshape(1, 1, 3, 4)
        self.produced = {"a": ramp, "b": ramp**2}
        self.test_inputs = {"photons": ramp}
        self.test_outputs = {"a": ramp**2, "b": ramp} if exchanged else {"a": ramp + 1, "b": ramp**2}

    def axes(self, name: str) -> tuple[str, ...]:
        return ("batch", "channel", "y", "x")


@pytest.mark.parametrize("exchanged", [True, False])
def test_exchanged_outputs_are_noticed(exchanged: bool) -> None:
    outcome = reproduces(cast("Runner", TwoOutputs(exchanged)))
    assert outcome.status == "failed"
    assert ("the test tensors of 'a' and 'b' look exchanged" in outcome.message) == exchanged


def test_constant_outputs_cannot_be_judged(run: Run, tmp_path: Path) -> None:
    checks = run(zips.make_zip(tmp_path, zips.torchscript_only, source=zips.tiny("rate = rate * 0.0 + 7.0")))
    assert checks["run.negative_control"].status == "warning"


def test_formats_that_disagree_fail(run: Run, tmp_path: Path) -> None:
    other = zips.model_files(zips.tiny("rate = rate + 1.0"))["torchscript.pt"]
    checks = run(zips.make_zip(tmp_path, files={"torchscript.pt": other}), run_code=True)
    assert checks["run.formats_agree"].status == "failed"
    assert checks["core.test"].status == "failed"


def test_missing_halo_is_a_warning_and_too_small_a_halo_fails(run: Run, tmp_path: Path) -> None:
    def no_halo(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        for axis in rdf["outputs"][0]["axes"]:
            axis.pop("halo", None)

    assert run(zips.make_zip(tmp_path, no_halo))["run.tiled"].status == "warning"
    wide = zips.tiny("rate = self.blur(self.blur(self.blur(self.blur(rate))))")
    assert run(zips.make_zip(tmp_path, zips.torchscript_only, source=wide))["run.tiled"].status == "failed"


def test_a_halo_wider_than_half_the_tile_is_tiled_too(run: Run, tmp_path: Path) -> None:
    def wide(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        for axis in rdf["inputs"][0]["axes"][2:]:
            axis["size"] = {"min": 28, "step": 4}
        for axis in rdf["outputs"][0]["axes"][2:]:
            axis["halo"] = 10

    check = run(zips.make_zip(tmp_path, wide))["run.tiled"]
    assert check.status == "passed", check.message
    assert "6 tiles of (28, 28)" in check.message


def test_fixed_shapes_are_run_as_they_are(run: Run, tmp_path: Path) -> None:
    def fixed(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        for axis in (*rdf["inputs"][0]["axes"][2:], *rdf["outputs"][0]["axes"][2:]):
            axis["size"] = 32
            axis.pop("halo", None)

    checks = run(zips.make_zip(tmp_path, fixed))
    assert checks["core.test"].status == "passed"
    assert checks["run.sizes"].status == checks["run.tiled"].status == "skipped"
    assert checks["run.zero"].status == "passed"


def test_a_zip_without_photons_need_not_conserve_them(run: Run, tmp_path: Path) -> None:
    def other(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        rdf["config"] = {"gap_bioimage": {"conserves_photons": False}}

    checks = run(zips.make_zip(tmp_path, other, source=zips.tiny("rate = 2.0 * rate")))
    assert checks["run.conservation"].status == "skipped"


def test_weights_that_do_not_load_fail(run: Run, tmp_path: Path) -> None:
    other = {"torchscript.pt": zips.model_files()["weights.pt"]}  # a state_dict is no TorchScript
    checks = run(zips.make_zip(tmp_path, zips.torchscript_only, files=other))
    assert checks["core.test"].status == "failed"
    assert checks["run.loads"].status == "failed"
    # what is neither is refused before anything loads it
    checks = run(zips.make_zip(tmp_path, zips.torchscript_only, files={"torchscript.pt": b"no weights"}))
    assert checks["archive.pickles"].status == "failed"
    assert checks["core.test"].status == "skipped"


def test_random_states_are_left_alone(run: Run, tmp_path: Path) -> None:
    import torch

    np.random.seed(7)
    torch.manual_seed(7)
    expected = np.random.random(), torch.rand(1).item()
    np.random.seed(7)
    torch.manual_seed(7)
    run(zips.make_zip(tmp_path, zips.torchscript_only))
    assert (np.random.random(), torch.rand(1).item()) == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_torchscript_that_writes_files_is_not_run(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "written"
    source = zips.tiny(f'torch.save(rate, "{target}")')
    script = zips.model_files(source)["torchscript.pt"]
    target.unlink()  # made when the zip was written
    path = zips.make_zip(tmp_path, zips.torchscript_only, files={"torchscript.pt": script})
    checks = run(path)
    assert not target.exists()
    assert checks["core.test"].status == "skipped"
    assert "writes files" in checks["run.torchscript"].message


def test_samplers_need_not_agree_over_tiles(run: Run, tmp_path: Path) -> None:
    def sampler(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        rdf["config"] = {"gap_bioimage": {"stochastic": True}}

    path = zips.make_zip(tmp_path, sampler, source=zips.tiny("rate = rate / rate.mean() * 20.0"))
    assert run(path)["run.tiled"].status == "skipped"


STOCHASTIC = [entry for entry in BROKEN if entry[0] != "run.tiled"]


@pytest.mark.parametrize(("check_id", "body", "status"), STOCHASTIC)
def test_samplers_that_misbehave_are_noticed_too(
    run: Run, tmp_path: Path, check_id: str, body: str, status: str
) -> None:
    def sampler(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        rdf["config"] = {"gap_bioimage": {"stochastic": True, "conserves_photons": True}}

    checks = run(zips.make_zip(tmp_path, sampler, source=zips.tiny(body)))
    assert checks[check_id].status == status, checks[check_id].message


def test_samplers_run_once_for_formats_that_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sampler(rdf: dict[str, Any]) -> None:
        rdf["config"] = {"gap_bioimage": {"stochastic": True}}

    used: list[str] = []
    original = Runner.run
    monkeypatch.setattr(
        Runner, "run", lambda self, *args, **kw: used.append(self.weights_format) or original(self, *args, **kw)
    )
    found: list[Check] = []
    with open_package(zips.make_zip(tmp_path, sampler)) as (package, _):
        assert package is not None
        description, _ = format_checks(package)
        assert description is not None
        run_checks(package, description, Plan(run_code=True, found=lambda check, drawn: found.append(check)))
    assert {check.status for check in found if check.consumer == "run"} == {"passed", "skipped"}
    assert used.count("pytorch_state_dict") == 1  # to see that it agrees
    assert used.count("torchscript") <= 25


OPERATION = """
class Op:
    def __call__(self, array):
        return {}
"""


def with_operation(folder: Path, result: str, body: str = "") -> Path:
    """A zip whose output goes through custom postprocessing."""
    code = OPERATION.format(result).encode()

    def custom(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        rdf["config"] = {"gap_bioimage": {"conserves_photons": False}}
        step = {"id": "custom", "callable": "Op", "source": "op.py", "sha256": zips.sha256(code), "kwargs": {}}
        rdf["outputs"][0]["postprocessing"] = [step]

    source = zips.tiny(body)
    expected = np.load(io.BytesIO(zips.model_files(source)["output.npy"]))
    variables: dict[str, Any] = {}
    exec(code, variables)
    files = {"op.py": code, "output.npy": zips.npy(variables["Op"]()(expected))}
    return zips.make_zip(folder, custom, source=source, files=files)


def test_postprocessing_that_looks_at_whole_tiles_is_told_from_a_halo_that_is_too_small(
    run: Run, tmp_path: Path
) -> None:
    def tiled(result: str, body: str = "") -> Check:
        checks = run(with_operation(tmp_path, result, body), run_code=True)
        assert checks["core.test"].status == "passed"
        return checks["run.tiled"]

    assert tiled("2 * array").status == "passed"
    check = tiled("array / array.mean() * 20")
    assert check.status == "warning"
    assert "because of its custom postprocessing" in check.message
    assert "tiles" in check.fix
    assert tiled("2 * array", "rate = rate / rate.mean() * 20.0").status == "failed"


def test_volumes_run(run: Run, tmp_path: Path) -> None:
    source = zips.BLUR.replace("Conv2d", "Conv3d").replace("size**2", "size**3")

    def volume(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        for tensor in (rdf["inputs"][0], rdf["outputs"][0]):
            y = tensor["axes"][2]
            tensor["axes"].insert(2, {**y, "id": "z"})
        rdf["outputs"][0]["axes"][2]["size"] = {"tensor_id": "photons", "axis_id": "z"}

    checks = run(zips.make_zip(tmp_path, volume, source=source))
    for id_ in ("core.test", "run.sizes", "run.tiled", "run.batch", "run.conservation", "fiji.axis_ids"):
        assert checks[id_].status == "passed", checks[id_].message


def test_format_0_4_runs(run: Run, tmp_path: Path) -> None:
    def old(rdf: dict[str, Any]) -> None:
        zips.torchscript_only(rdf)
        shape = {"min": [1, 1, 16, 16], "step": [0, 0, 4, 4]}
        reference = {"reference_tensor": "photons", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]}
        tensor = {"axes": "bcyx", "data_type": "float32", "data_range": [0, float("inf")]}
        rdf.update(
            format_version="0.4.10",
            timestamp="2024-01-01T00:00:00",
            inputs=[{"name": "photons", **tensor, "shape": shape}],
            outputs=[{"name": "rate", **tensor, "shape": reference, "halo": [0, 0, 2, 2]}],
            test_inputs=["input.npy"],
            test_outputs=["output.npy"],
        )
        del rdf["id"]

    checks = run(zips.make_zip(tmp_path, old))
    for id_ in ("format.valid", "core.test", "run.reproduces", "run.sizes", "run.tiled", "run.batch"):
        assert checks[id_].status == "passed", checks[id_].message
    assert checks["fiji.axis_ids"].status == "skipped"


MODELS = {
    "spec_unet2d_fixed_shape": "passed",
    "spec_unet2d_multi_tensor": "passed",
    "spec_upsample_test_model": "passed",
    "broken/tiktorch_dummy": "failed",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), MODELS.items())
def test_models_of_others(shared_data: Path, name: str, status: str) -> None:
    assert validate(shared_data.parent / "models" / name, run_code=True).status == status
