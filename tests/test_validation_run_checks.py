"""What running models tells: whether test outputs come out, other images, types, batches, devices, sizes and tiles."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zips
from running import judged, ran

from gap_bioimage.validation.check import Outcome, definition
from gap_bioimage.validation.run import behaviour
from gap_bioimage.validation.run.behaviour import as_loaded, below_min, graph_dtypes, other_device, output_kind, sizes
from gap_bioimage.validation.run.runner import Runner

EXPECTED = np.load(io.BytesIO(zips.model_files()["output.npy"]))
SQUARE, NARROW = "assert photons.shape[2] == photons.shape[3]", "rate = rate[..., :20, :]"


def with_output(folder: Path, output: np.ndarray[Any, Any], body: str = "") -> Path:
    return zips.make_zip(folder, zips.torchscript_only, source=zips.tiny(body), files={"output.npy": zips.npy(output)})


# Test outputs


def test_small_wrong_outputs_fail_on_their_own_scale(tmp_path: Path) -> None:
    checks = ran(with_output(tmp_path, 1e-5 * EXPECTED[..., ::-1].copy() + 0, "rate = rate * 1e-5"))
    found = [checks[name].status for name in ("core.test", "run.reproduces", "run.negative_control")]
    assert found == ["passed", "failed", "warning"]  # core's tolerance is absolute


@pytest.mark.parametrize(("scale", "status"), [(1.0, "passed"), (1e-5, "warning")])
def test_a_single_number_proves_something_unless_it_is_small(tmp_path: Path, scale: float, status: str) -> None:
    def one(rdf: dict[str, Any]) -> None:
        axes = [{"type": "batch"}, {"type": "channel", "channel_names": ["mean"]}]
        rdf["outputs"][0] |= {"axes": axes, "test_tensor": {"source": "one.npy"}}

    source = zips.BLUR.replace("return rate", f"return {scale} * rate.mean((2, 3))")
    path = zips.scripted(tmp_path, source, mutate=one, one=np.float32(scale) * EXPECTED.mean((2, 3)))
    checks = ran(path)
    assert (checks["run.negative_control"].status, checks["run.tiled"].status) == (status, "skipped")


def test_a_disagreement_fails(tmp_path: Path) -> None:
    expected = EXPECTED.copy()
    expected[0, 0, 7, 9] = 1000
    checks = ran(with_output(tmp_path, expected))
    assert "1 of 1024 elements disagree" in checks["core.test"].message
    found = [checks[name].status for name in ("core.test", "run.reproduces", "zoo.deepimagej")]
    assert found == ["failed", "failed", "warning"]


def test_a_model_that_gives_no_numbers_fails_and_is_not_compared(tmp_path: Path) -> None:
    script = zips.model_files(zips.tiny("rate = rate * float('nan')"))["torchscript.pt"]
    checks = ran(zips.make_zip(tmp_path, zips.torchscript_only, files={"torchscript.pt": script}))
    for name in ("core.test", "run.reproduces"):
        assert checks[name].status == "failed" and "1024 of 1024 values of 'rate' are NaN" in checks[name].message
    assert {checks[f"run.{name}"].status for name in ("tiled", "batch", "dtypes", "deterministic")} == {"skipped"}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (zips.tiny("raise ValueError('RGB only')"), "ValueError: RGB only"),
        (zips.BLUR.replace("Conv2d(1, ", "Conv2d(3, "), "to have 3 channels, but got 1"),
        (zips.tiny("rate = rate + torch.zeros(1, device='cuda:7')"), "Could not run 'aten::"),
        (zips.BLUR.replace("photons: torch.Tensor)", "photons: torch.Tensor, y: torch.Tensor)"), "value for argument"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_run_is_told_once_with_its_reason(tmp_path: Path, source: str, told: str) -> None:
    if "cuda" in source and torch.cuda.is_available():
        pytest.skip("there is such a device")
    checks = ran(zips.scripted(tmp_path, source))
    wrong = {id_: check for id_, check in checks.items() if check.status in ("failed", "warning")}
    assert wrong.keys() == {"core.test", "run.reproduces"}
    assert {told in check.message and "RuntimeError: Ru" not in check.message for check in wrong.values()} == {True}


def test_a_model_of_one_size_that_declares_more_is_told_so_once(tmp_path: Path) -> None:
    checks = ran(zips.scripted(tmp_path, zips.tiny("assert photons.shape[2] == 32")))
    found = {id_ for id_, check in checks.items() if check.status in ("failed", "warning", "error")}
    assert found == {"core.test", "run.sizes"}
    assert {checks[name].status for name in ("run.tiled", "run.cost", "fiji.below_min")} == {"skipped"}


@pytest.mark.parametrize(
    ("mutate", "files", "told"),
    [
        (zips.put("weights", value={"onnx": {"source": "w.onnx", "opset_version": 15}}), {"w.onnx": b"PK\3\4"},
         "protobuf"),
        (zips.drop("weights", "torchscript"), {"tiny.py": b"from layers import Tiny\n"}, "No module named 'layers'"),
    ],
)  # fmt: skip
def test_weights_that_do_not_load_are_told_with_their_reason(
    tmp_path: Path, mutate: Any, files: Any, told: str
) -> None:
    if "w.onnx" in files:
        pytest.importorskip("onnxruntime")
    checks = ran(zips.make_zip(tmp_path, mutate, files={**files, "layers.py": zips.BLUR.encode()}))
    assert checks["core.test"].message == checks["run.loads"].message and told in checks["run.loads"].message
    assert checks["core.test"].status == checks["run.loads"].status == "failed"


def test_statistics_of_one_image_are_forgotten_before_the_next(tmp_path: Path) -> None:
    """Steps without axes take those of all images that a pipeline of bioimageio.core has seen."""
    path = zips.make_zip(tmp_path, zips.put("inputs", 0, "preprocessing", value=[{"id": "scale_range"}]))
    assert {judged(check, path).status for check in (as_loaded, behaviour.deterministic)} == {"passed"}
    assert judged(behaviour.batch, path).status == "failed"  # which they do depend on


def test_formats_that_disagree_are_told(tmp_path: Path) -> None:
    other = zips.model_files(zips.tiny("rate = rate + 1.0"))["torchscript.pt"]
    checks = ran(zips.make_zip(tmp_path, files={"torchscript.pt": other}))
    assert (checks["run.formats_agree"].status, checks["core.test"].status) == ("warning", "failed")
    assert not re.search(r"state_dict|\bnp\.|\\", checks["core.test"].message)  # what fails, in plain notation


@pytest.mark.parametrize("batch", ["free", "one"])
def test_weights_that_take_one_image_at_a_time_run_in_programs_that_hand_over_one(tmp_path: Path, batch: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network, content, axes = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False), io.BytesIO(), {2: "y", 3: "x"}
    torch.nn.init.constant_(network.weight, 1 / 9)
    torch.onnx.export(
        network, (torch.ones(1, 1, 32, 32),), content, dynamo=False, input_names=["photons"], output_names=["rate"],
        dynamic_axes={"photons": axes, "rate": axes},
    )  # fmt: skip

    def one_image(rdf: dict[str, Any]) -> None:
        source = {"source": "weights.onnx", "sha256": zips.sha256(content.getvalue())}
        rdf["weights"] = {"onnx": {**source, "opset_version": 17}}
        for tensor in (*rdf["inputs"], *rdf["outputs"]) if batch == "one" else ():
            tensor["axes"][0]["size"] = 1

    checks = ran(zips.make_zip(tmp_path, one_image, files={"weights.onnx": content.getvalue()}))
    ids = ("core.test", "run.reproduces", "run.sizes", "run.batch")
    statuses = ["passed"] * 3 + ["skipped"] if batch == "one" else ["warning", "passed", "passed", "warning"]
    assert [checks[name].status for name in ids] == statuses, checks["core.test"]
    if batch == "free":
        assert "single image runs, two at once do not" in checks["core.test"].message
        assert "batch size of 1" in checks["core.test"].fix


# Other images


def test_a_model_saved_in_training_mode_fails_where_that_matters(tmp_path: Path) -> None:
    dropout = zips.tiny("rate = self.other(rate)", "self.other = nn.Dropout(0.5)")
    outcome = judged(as_loaded, zips.scripted(tmp_path, dropout, train=True))
    assert (outcome.status, len(outcome.evidence)) == ("failed", 1) and "in training mode" in outcome.message
    assert judged(as_loaded, zips.scripted(tmp_path, zips.BLUR, train=True)).status == "passed"
    assert judged(as_loaded, zips.make_zip(tmp_path)).message.startswith("saved in evaluation mode")


@pytest.mark.parametrize(
    ("annotation", "result", "words"),
    [
        ("Dict[str, torch.Tensor]", '{"rate": rate}', "returns a dict"),
        ("Tuple[torch.Tensor, torch.Tensor]", "(rate, rate)", "returns 2 tensors instead of the 1 described"),
        ("List[torch.Tensor]", "[rate]", ""),
    ],
)
def test_the_kind_of_output_is_told(tmp_path: Path, annotation: str, result: str, words: str) -> None:
    source = zips.BLUR.replace("-> torch.Tensor:", f"-> {annotation}:").replace("return rate", f"return {result}")
    path = zips.scripted(tmp_path, source)
    outcome = judged(output_kind, path)
    assert words in outcome.message
    if "Dict" not in annotation:  # which breaks bioimageio.core, too
        expected = ("warning", "failed") if words else ("passed", "passed")
        assert (outcome.status, judged(as_loaded, path).status) == expected
    else:
        assert outcome.status == "failed" and words in ran(path)["run.output_kind"].message


@pytest.mark.parametrize(
    ("name", "body", "status", "words"),
    [
        ("deterministic", "", "passed", "three runs give identical outputs"),
        ("deterministic", "rate = rate + 0.1 * torch.randn_like(rate)", "failed", "three runs differ by"),
        ("batch", "", "passed", "in a batch of 3"),
        ("batch", "rate = rate + photons.amax() * 0.1", "failed", "in a batch of 3"),
        ("batch", "assert photons.shape[0] == 1", "failed", "takes one image at a time"),
        ("zero", "", "passed", "finite outputs"),
        ("zero", "rate = rate / rate.sum()", "failed", "256 of 256 values of 'rate' are NaN"),
        ("single_photon", "rate = rate / (photons.sum() - 1.0)", "failed", "are NaN or infinite"),
        ("dtypes", "", "passed", "uint16, int32, float64 give the same as float32"),
        ("cost", "", "passed", "s and"),
        ("tiled", "rate = rate / rate.mean() * 20.0", "failed", "no halo up to"),
    ],
)
def test_a_model_that_misbehaves_is_noticed(tmp_path: Path, name: str, body: str, status: str, words: str) -> None:
    path = zips.make_zip(tmp_path, source=zips.tiny(body))
    outcome = judged(definition(f"run.{name}").outcome_of, path)
    assert outcome.status == status and words in outcome.message, outcome.message
    assert name != "deterministic" or judged(as_loaded, path).status == "passed"  # chance is not a mode
    assert name != "tiled" or "statistics of the whole image" in outcome.fix


@pytest.mark.parametrize(
    ("forward", "step", "status", "words"),
    [
        ("photons.float()", {}, "passed", "takes uint8, int32, int64, float64"),
        ("photons", {}, "failed", "in the graph itself, images of dtype uint8 are refused"),
        ("photons.float() + float(photons.dtype == torch.float64)", {}, "failed", "float64 differ by"),
        ("photons", {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, "skipped", "every image to float32"),
        ("photons", {"id": "clip", "kwargs": {"min": 0.0, "max": 9.0}}, "failed", "refused"),
    ],
)
def test_the_graph_itself_is_fed_too(tmp_path: Path, forward: str, step: Any, status: str, words: str) -> None:
    mutate = zips.put("inputs", 0, "preprocessing", value=[step] if step else [])
    path = zips.make_zip(tmp_path, mutate, source=zips.BLUR.replace("photons.float()", forward))
    outcome = judged(graph_dtypes, path)
    assert outcome.status == status and words in outcome.message, outcome.message
    assert judged(behaviour.dtypes, path).status == "passed"  # through the declared way they all pass


def test_another_device_is_compared(tmp_path: Path) -> None:
    def shifted(runner: Runner, shift: int) -> Outcome:
        runner.produced = {name: array + shift for name, array in runner.produced.items()}
        return other_device(runner, "cpu")

    path = zips.make_zip(tmp_path)
    found = [judged(lambda runner, shift=shift: shifted(runner, shift), path) for shift in (0, 1)]
    assert [(outcome.status, len(outcome.evidence)) for outcome in found] == [("passed", 0), ("failed", 1)]
    assert judged(behaviour.cuda, path).status == ("passed" if torch.cuda.is_available() else "skipped")


@pytest.mark.parametrize(
    ("judge", "body", "status", "words"),
    [
        (sizes, "", "passed", "4 sizes from (16, 16) to (24, 24) tried"),
        (sizes, SQUARE, "failed", "input size (20, 16) raised AssertionError"),
        (sizes, "rate = rate[..., :32, :]", "passed", ""),
        (sizes, NARROW, "failed", "20 along y, declared is"),
        (below_min, "", "passed", "2 sizes below min tried, from (4, 4)"),
        (below_min, "assert photons.shape[3] >= 16", "failed", "below min, raised"),
    ],
)
def test_sizes_are_tried(tmp_path: Path, judge: Any, body: str, status: str, words: str) -> None:
    script = zips.model_files(zips.tiny(body))["torchscript.pt"]
    source = zips.tiny("" if body == NARROW else body)
    outcome = judged(judge, zips.make_zip(tmp_path, source=source, files={"torchscript.pt": script}))
    assert outcome.status == status and words in outcome.message, outcome.message
