"""Other interpreters: what they run, what they refuse, and what they may not see."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import zips
from running import judged

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.run import engines
from gap_bioimage.validation.run.engines import find_engines, other_cores, other_engines

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.outcome import Outcome


@pytest.fixture(autouse=True)
def _forget() -> None:
    engines._versions.cache_clear()


def in_engine(folder: Path, python: str, body: str = "", seconds: float = 300) -> Outcome:
    path = zips.make_zip(folder, zips.torchscript_only, source=zips.tiny(body))
    outcome: Outcome = judged(lambda runner: other_engines(runner, [python], seconds), path)
    return outcome


def script(folder: Path, answer: str = "", sleep: int = 0) -> str:
    """An interpreter that is torch 2.0.1, and sleeps after its answer."""
    python = folder / "python"
    told = json.dumps({"torch": "2.0.1", "core": "0.9"})
    python.write_text(
        f"#!/bin/sh\nif [ $3 = versions ]; then echo '{told}'; exit; fi\necho '{answer}'\nexec sleep {sleep}\n"
    )
    python.chmod(0o755)
    return str(python)


def test_an_older_engine_runs_it(tmp_path: Path, old_python: str) -> None:
    outcome = in_engine(tmp_path, old_python)
    assert outcome.status == "passed", outcome
    assert outcome.message.startswith("torch ")


def test_what_an_older_engine_does_not_know_fails(tmp_path: Path, old_python: str) -> None:
    outcome = in_engine(tmp_path, old_python, "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")
    assert outcome.status == "failed"
    assert "scaled_dot_product_attention" in outcome.message


def test_engines_that_compute_something_else_are_told(tmp_path: Path) -> None:
    # random numbers differ between processes, as another version's operators may
    outcome = in_engine(tmp_path, sys.executable, "rate = rate + torch.rand([1])")
    assert outcome.status == "failed"
    assert "1000000 ppm" in outcome.message
    assert len(outcome.evidence) == 1


def test_an_engine_that_does_not_come_back_is_told(tmp_path: Path) -> None:
    outcome = in_engine(tmp_path, script(tmp_path, sleep=30), seconds=2)
    assert outcome.status == "failed"
    assert "torch 2.0.1: did not finish within 2 s" in outcome.message


def test_a_second_run_that_takes_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = engines._ask
    slow = {"took": [2.0, 704.0, 2.5]}
    monkeypatch.setattr(engines, "_ask", lambda *words, **options: ask(*words, **options) | slow)
    outcome = in_engine(tmp_path, sys.executable)
    assert outcome.status == "warning"
    assert "2, 704, 2.5 s" in outcome.message


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ({"errors": []}, "passed", "bioimageio.core 0.9: its test passes"),
        ({"errors": ["onnx: no"]}, "failed", "bioimageio.core 0.9: its test fails: onnx: no"),
    ],
)
def test_other_versions_of_core_are_asked(tmp_path: Path, answer: Any, status: str, words: str) -> None:
    outcome = other_cores(tmp_path / "rdf.yaml", ["onnx"], [script(tmp_path, json.dumps(answer))], 60)
    assert (outcome.status, outcome.message) == (status, words)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false", "/bin/echo"])
def test_what_is_no_interpreter_is_refused(python: str) -> None:
    with pytest.raises(ConfigError, match=r"--engine .* does not run as a Python interpreter"):
        find_engines([python])


def test_an_engine_needs_torch(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -I -S "$@"\n')  # -S: no packages
    python.chmod(0o755)
    with pytest.raises(ConfigError, match="has no torch"):
        find_engines([str(python)])


def test_a_relative_path_is_an_interpreter_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = script(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_engines(["./python"]) == (python,)


def test_engines_are_isolated_and_take_tensors_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("__version__ = 'ours'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    inputs = [torch.randn(1, 1, 32, 32)]
    weights = tmp_path / "torchscript.pt"
    weights.write_bytes(zips.model_files(zips.tiny("rate = photons"))["torchscript.pt"])
    torch.save(inputs, tmp_path / "inputs.pt")
    answer = engines._ask(sys.executable, "run", str(weights), str(tmp_path), "3", timeout=300)
    assert len(answer["took"]) == 3
    assert torch.equal(torch.load(tmp_path / "outputs.pt")[0], inputs[0])
