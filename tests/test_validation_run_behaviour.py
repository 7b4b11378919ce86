"""What users expect of a running model: other images, number types, batches and devices."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
import zips
from running import judged

from gap_bioimage.validation.check import definition
from gap_bioimage.validation.run import behaviour
from gap_bioimage.validation.run.behaviour import as_loaded, below_min, graph_dtypes, other_device, output_kind, sizes

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.run.runner import Runner


def in_training(body: str, init: str) -> bytes:
    """TorchScript of the tiny network, saved while it was in training mode."""
    script = torch.jit.load(io.BytesIO(zips.model_files(zips.tiny(body, init))["torchscript.pt"])).train()
    file = io.BytesIO()
    torch.jit.save(script, file)
    return file.getvalue()


def test_a_model_saved_in_training_mode_fails_where_that_matters(tmp_path: Path) -> None:
    dropout = {"torchscript.pt": in_training("rate = self.other(rate)", "self.other = nn.Dropout(0.5)")}
    outcome = judged(as_loaded, zips.make_zip(tmp_path, files=dropout))
    assert outcome.status == "failed"
    assert "in training mode" in outcome.message
    assert len(outcome.evidence) == 1
    harmless = {"torchscript.pt": in_training("", "")}
    assert judged(as_loaded, zips.make_zip(tmp_path, files=harmless)).status == "passed"
    assert judged(as_loaded, zips.make_zip(tmp_path)).message.startswith("saved in evaluation mode")


@pytest.mark.parametrize(
    ("annotation", "result", "words"),
    [
        ("Dict[str, torch.Tensor]", '{"rate": rate}', "returns a dict"),
        ("Tuple[torch.Tensor, torch.Tensor]", "(rate, rate)", "returns 2 tensors, 1 are described"),
        ("List[torch.Tensor]", "[rate]", None),
        ("Tuple[torch.Tensor]", "(rate,)", None),
        ("Optional[torch.Tensor]", "None", "returns a NoneType"),
    ],
)
def test_the_kind_of_output_is_told(tmp_path: Path, annotation: str, result: str, words: str | None) -> None:
    source = zips.BLUR.replace("-> torch.Tensor:", f"-> {annotation}:").replace("return rate", f"return {result}")
    file = tmp_path / "kind.py"
    file.write_text("from typing import Dict, List, Optional, Tuple\n" + source)
    namespace: dict[str, Any] = {"__name__": "kind", "__file__": str(file)}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(namespace["Tiny"]().eval()), buffer)
    outcome = judged(output_kind, zips.make_zip(tmp_path, files={"torchscript.pt": buffer.getvalue()}))
    assert outcome.status == ("passed" if words is None else "failed")
    assert words is None or words in outcome.message


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
        ("dtypes", "", "passed", "uint16, int32, float64 give what float32 gives"),
        ("cost", "", "passed", "s and"),
    ],
)
def test_a_model_that_misbehaves_is_noticed(tmp_path: Path, name: str, body: str, status: str, words: str) -> None:
    outcome = judged(definition(f"run.{name}").outcome_of, zips.make_zip(tmp_path, source=zips.tiny(body)))
    assert outcome.status == status, outcome.message
    assert words in outcome.message


@pytest.mark.parametrize(
    ("forward", "step", "status", "words"),
    [
        ("photons.float()", {}, "passed", "takes uint8, int32, int64, float64"),
        ("photons", {}, "failed", "in the graph itself, images are refused as"),
        ("photons.float() + float(photons.dtype == torch.float64)", {}, "failed", "float64 differs by"),
        ("photons", {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, "skipped", "makes float32 of every image"),
        ("photons", {"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": 0.0}}, "skipped", "makes float32"),
        ("photons", {"id": "clip", "kwargs": {"min": 0.0, "max": 9.0}}, "failed", "refused"),
    ],
)
def test_the_graph_itself_is_fed_too(
    tmp_path: Path, forward: str, step: dict[str, Any], status: str, words: str
) -> None:
    mutate = zips.put("inputs", 0, "preprocessing", value=[step] if step else [])
    path = zips.make_zip(tmp_path, mutate, source=zips.BLUR.replace("photons.float()", forward))
    outcome = judged(graph_dtypes, path)
    assert outcome.status == status, outcome.message
    assert words in outcome.message
    # through the declared way they all pass
    assert judged(behaviour.dtypes, path).status == "passed"


def test_another_device_is_compared(tmp_path: Path) -> None:
    def shifted(runner: Runner) -> Any:
        runner.produced = {name: array + 1 for name, array in runner.produced.items()}
        return other_device(runner, "cpu")

    path = zips.make_zip(tmp_path)
    assert judged(lambda runner: other_device(runner, "cpu"), path).status == "passed"
    outcome = judged(shifted, path)
    assert outcome.status == "failed"
    assert len(outcome.evidence) == 1
    assert judged(behaviour.cuda, path).status == ("passed" if torch.cuda.is_available() else "skipped")


@pytest.mark.parametrize(
    ("judge", "body", "status", "words"),
    [
        (sizes, "", "passed", "4 sizes from (16, 16) to (24, 24) run"),
        (sizes, "assert photons.shape[2] == photons.shape[3]", "failed", "input size (20, 16) raised AssertionError"),
        (sizes, "rate = rate[..., :32, :]", "passed", ""),
        (sizes, "rate = rate[..., :20, :]", "failed", "20 along y, declared is"),
        (below_min, "", "passed", "2 sizes below min run, from (4, 4)"),
        (below_min, "assert photons.shape[3] >= 16", "failed", "below min, raised"),
    ],
)
def test_sizes_are_tried(tmp_path: Path, judge: Any, body: str, status: str, words: str) -> None:
    source = zips.tiny(body if body != "rate = rate[..., :20, :]" else "")
    script = zips.model_files(zips.tiny(body))["torchscript.pt"]
    outcome = judged(judge, zips.make_zip(tmp_path, source=source, files={"torchscript.pt": script}))
    assert outcome.status == status, outcome.message
    assert words in outcome.message
