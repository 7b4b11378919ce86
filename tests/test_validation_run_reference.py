"""Test outputs: whether they come out, and whether the test proves anything."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zips
from running import ran

if TYPE_CHECKING:
    from pathlib import Path

EXPECTED = np.load(io.BytesIO(zips.model_files()["output.npy"]))


def with_output(folder: Path, output: np.ndarray[Any, Any], source: str = zips.BLUR) -> Path:
    return zips.make_zip(folder, zips.torchscript_only, source=source, files={"output.npy": zips.npy(output)})


def test_small_wrong_outputs_fail_on_their_own_scale(tmp_path: Path) -> None:
    checks = ran(with_output(tmp_path, 1e-5 * EXPECTED[..., ::-1].copy() + 0, zips.tiny("rate = rate * 1e-5")))
    assert checks["core.test"].status == "passed"  # core's tolerance is absolute
    assert checks["run.reproduces"].status == "failed"
    assert checks["run.negative_control"].status == "warning"


def test_a_disagreement_fails(tmp_path: Path) -> None:
    expected = EXPECTED.copy()
    expected[0, 0, 7, 9] = 1000
    checks = ran(with_output(tmp_path, expected))
    assert "1 of 1024 elements disagree" in checks["core.test"].message
    assert checks["core.test"].status == checks["run.reproduces"].status == "failed"
    assert checks["zoo.deepimagej"].status == "warning"


def test_what_bioimageio_core_runs_in_format_0_5_only_is_to_be_updated(tmp_path: Path) -> None:
    def mutate(rdf: dict[str, Any]) -> None:
        zips.to_format_0_4()(rdf)
        kwargs = {"axes": "yx", "gain": 2.0, "offset": 0.0}
        rdf["inputs"][0]["preprocessing"] = [{"name": "scale_linear", "kwargs": kwargs}]

    check = ran(zips.make_zip(tmp_path, mutate))["core.test"]
    assert check.status == "failed"
    assert check.fix is not None
    assert "repair" in check.fix


def test_a_model_that_gives_no_numbers_fails_and_is_not_compared(tmp_path: Path) -> None:
    script = zips.model_files(zips.tiny("rate = rate * float('nan')"))["torchscript.pt"]
    checks = ran(zips.make_zip(tmp_path, zips.torchscript_only, files={"torchscript.pt": script}))
    for name in ("core.test", "run.reproduces"):
        assert checks[name].status == "failed"
        assert "gives for the test input 1024 of 1024 values of 'rate' are NaN or infinite" in checks[name].message
    for name in ("run.tiled", "run.batch", "run.dtypes", "run.deterministic"):
        assert checks[name].status == "skipped", checks[name]


def test_constant_outputs_cannot_be_judged(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=zips.tiny("rate = rate * 0.0 + 7.0"))
    check = ran(path)["run.negative_control"]
    assert check.status == "warning"
    assert "constant" in check.message


def test_formats_that_disagree_are_told(tmp_path: Path) -> None:
    other = zips.model_files(zips.tiny("rate = rate + 1.0"))["torchscript.pt"]
    checks = ran(zips.make_zip(tmp_path, files={"torchscript.pt": other}))
    assert checks["run.formats_agree"].status == "warning"
    assert checks["core.test"].status == "failed"


@pytest.mark.parametrize("batch", ["free", "one"])
def test_weights_that_take_one_image_at_a_time_run_in_programs_that_hand_over_one(tmp_path: Path, batch: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, content = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False), io.BytesIO()
    torch.nn.init.constant_(network.weight, 1 / 9)
    axes = {"photons": {2: "y", 3: "x"}, "rate": {2: "y", 3: "x"}}
    torch.onnx.export(
        network, (torch.ones(1, 1, 32, 32),), content, dynamo=False, input_names=["photons"], output_names=["rate"],
        dynamic_axes=axes,
    )  # fmt: skip

    def one_image(rdf: dict[str, Any]) -> None:
        source = {"source": "weights.onnx", "sha256": zips.sha256(content.getvalue())}
        rdf["weights"] = {"onnx": {**source, "opset_version": 17}}
        for tensor in (*rdf["inputs"], *rdf["outputs"]) if batch == "one" else ():
            tensor["axes"][0]["size"] = 1

    path = zips.make_zip(tmp_path, one_image, files={"weights.onnx": content.getvalue()})
    checks = ran(path)
    ids = ("core.test", "run.reproduces", "run.sizes", "run.batch")
    statuses = ["passed"] * 3 + ["skipped"] if batch == "one" else ["warning", "passed", "passed", "warning"]
    assert [checks[name].status for name in ids] == statuses, checks["core.test"]
    if batch == "free":
        assert "single image runs, two at once do not" in checks["core.test"].message
        assert "batch size of 1" in checks["core.test"].fix
