"""How models are loaded and fed."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
import zips
from gap_bioimage.validation.running.loading import (
    as_loaded,
    cost,
    cuda,
    other_device,
    output_kind,
)
from gap_bioimage.validation.running.number_types import as_counts, dtypes, graph_dtypes
from gap_bioimage.validation.running.runner import Runner

from gap_bioimage.validation.package.archive import open_package
from gap_bioimage.validation.package.description import format_checks
from gap_bioimage.validation.package.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gap_bioimage.validation.checks import Outcome


def judged(judge: Callable[[Runner], Outcome], path: Path, weights_format: str = "torchscript") -> Outcome:
    with open_package(path) as (package, _):
        assert package is not None
        description, _ = format_checks(package)
        assert description is not None
        facts = Facts(package)
        file = facts.file_of(facts.weights[weights_format])
        with Runner(description.as_written, weights_format, "cpu", file, package.rdf) as runner:
            return judge(runner)


def in_training(body: str, init: str) -> bytes:
    """TorchScript of the tiny network, saved while it was in training mode."""
    source = zips.tiny(body, init)
    script = torch.jit.load(io.BytesIO(zips.model_files(source)["torchscript.pt"])).train()
    file = io.BytesIO()
    torch.jit.save(script, file)
    return file.getvalue()


def test_a_model_saved_in_training_mode_fails_where_that_matters(tmp_path: Path) -> None:
    dropout = {"torchscript.pt": in_training("rate = self.other(rate)", "self.other = nn.Dropout(0.5)")}
    outcome = judged(as_loaded, zips.make_zip(tmp_path, files=dropout))
    assert outcome.status == "failed"
    assert "in training mode" in outcome.message
    assert "eval()" in outcome.fix
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


def test_other_number_types_are_converted(tmp_path: Path) -> None:
    assert judged(dtypes, zips.make_zip(tmp_path)).status == "passed"
    assert judged(dtypes, zips.make_zip(tmp_path), "pytorch_state_dict").status == "passed"


class Picky:
    """Stands in for a runner whose model takes no uint16, and is wrong for float64."""

    def __init__(self, refused: str, wrong: str) -> None:
        self.refused, self.wrong = refused, wrong
        self.small_inputs = {"photons": np.arange(12.0).reshape(1, 1, 3, 4)}

    def axes(self, name: str) -> tuple[str, ...]:
        return ("batch", "channel", "y", "x")

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        dtype = inputs["photons"].dtype
        if dtype == self.refused:
            raise RuntimeError("expected scalar type Float")
        return {"rate": inputs["photons"] + (dtype == self.wrong)}


@pytest.mark.parametrize(
    ("refused", "wrong", "status", "words"),
    [
        ("uint16", "", "warning", "refused as uint16 (expected scalar type Float)"),
        ("", "float64", "failed", "as float64 differs by"),
        ("int32", "uint16", "failed", "as uint16 differs by"),
        ("", "", "passed", "through the declared preprocessing, in bioimageio.core, uint16, int32, float64 give"),
    ],
)
def test_number_types_that_are_refused_or_wrong_are_told(refused: str, wrong: str, status: str, words: str) -> None:
    outcome = dtypes(cast("Runner", Picky(refused, wrong)))
    assert outcome.status == status
    assert words in outcome.message
    assert bool(outcome.fix) == (status != "passed")


@pytest.mark.parametrize(
    ("forward", "status", "words"),
    [
        ("photons.float()", "passed", "takes uint8, int32, int64, float64"),
        ("photons", "warning", "the graph itself refuses images as"),
        ("photons.float() + float(photons.dtype == torch.float64)", "failed", "float64 differs by"),
    ],
)
def test_the_graph_itself_is_fed_too(tmp_path: Path, forward: str, status: str, words: str) -> None:
    path = zips.make_zip(tmp_path, source=zips.BLUR.replace("photons.float()", forward))
    outcome = judged(graph_dtypes, path)
    assert outcome.status == status, outcome.message
    assert words in outcome.message
    assert ("x.float()" in outcome.fix) == (status != "passed")
    # through the declared way they all pass
    assert judged(dtypes, path).status == "passed"


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ({"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, "skipped"),
        ({"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": 0.0}}, "skipped"),
        ({"id": "clip", "kwargs": {"min": 0.0, "max": 9.0}}, "warning"),
    ],
)
def test_steps_that_convert_come_before_the_graph(tmp_path: Path, step: dict[str, Any], status: str) -> None:
    source = zips.BLUR.replace("photons.float()", "photons")
    path = zips.make_zip(tmp_path, zips.put("inputs", 0, "preprocessing", value=[step]), source=source)
    assert judged(graph_dtypes, path).status == status


@pytest.mark.parametrize("values", [[0.0, 1.0, 5.0, 1000.0], [-1.0, 0.25, 1.0], [0.0, 1e-6], [3.0, 3.0], [0.0, 1e9]])
def test_counts_fit_every_number_type(values: list[float]) -> None:
    counts = as_counts(np.array(values))
    for dtype in ("uint16", "int32", "float32"):
        assert np.array_equal(counts.astype(dtype).astype(np.float64), counts)
    if len(set(values)) > 1:
        assert counts.max() > counts.min()


def test_the_other_device_is_compared(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    assert judged(lambda runner: other_device(runner, "cpu"), path).status == "passed"
    random = zips.make_zip(tmp_path, source=zips.tiny("rate = rate * (1.0 + torch.rand_like(rate))"))

    def shifted(runner: Runner) -> Outcome:
        runner.produced = {name: array + 1 for name, array in runner.produced.items()}
        return other_device(runner, "cpu")

    outcome = judged(shifted, random)
    assert outcome.status == "failed"
    assert len(outcome.evidence) == 1


def test_cuda_is_compared_where_there_is_one(tmp_path: Path) -> None:
    expected = "passed" if torch.cuda.is_available() else "skipped"
    assert judged(cuda, zips.make_zip(tmp_path)).status == expected


def test_the_cost_is_measured(tmp_path: Path) -> None:
    outcome = judged(cost, zips.make_zip(tmp_path))
    assert outcome.status == "passed"
    seconds, memory = outcome.message.split(" s and ")
    assert 0 < float(seconds) < 60
    assert 0 <= float(memory.split(" MB")[0]) < 5000


_PEAK = """
import numpy as np
from gap_bioimage.validation.running.loading import forget_peak, peak_memory
forget_peak()
before = peak_memory()
kept = np.ones({size}, np.uint8)
print(peak_memory() - before)
"""


def test_the_peak_of_memory_follows_what_is_used() -> None:
    # in a process of its own: not every system lets a process forget the peak of its past
    size = 2**28
    code = _PEAK.format(size=size)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.9 * size < int(result.stdout) < 1.5 * size
