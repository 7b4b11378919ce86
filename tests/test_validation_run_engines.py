"""Other interpreters: what they run, what they refuse, and what they may not see."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

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


def test_an_older_engine_runs_what_it_knows(tmp_path: Path, old_python: str) -> None:
    attention = "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)"
    for body, status, words in (("", "passed", "torch "), (attention, "failed", "scaled_dot_product_attention")):
        outcome = in_engine(tmp_path, old_python, body)
        assert outcome.status == status and words in outcome.message


def test_engines_that_compute_something_else_are_told(tmp_path: Path) -> None:
    # random numbers differ between processes, as another version's operators may
    outcome = in_engine(tmp_path, sys.executable, "rate = rate + torch.rand([1])")
    assert outcome.status == "failed"
    assert "1000000 ppm" in outcome.message
    assert len(outcome.evidence) == 1


def test_an_engine_that_takes_long_or_does_not_come_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = in_engine(tmp_path, script(tmp_path, sleep=30), seconds=2)
    assert outcome.status == "failed" and "torch 2.0.1: did not finish within 2 s" in outcome.message
    ask, slow = engines._ask, {"took": [2.0, 704.0, 2.5]}
    monkeypatch.setattr(engines, "_ask", lambda *words, **options: ask(*words, **options) | slow)
    outcome = in_engine(tmp_path, sys.executable)
    assert outcome.status == "warning" and "2, 704, 2.5 s" in outcome.message


def test_other_versions_of_core_are_asked(tmp_path: Path) -> None:
    for errors, status, words in (([], "passed", "test passes"), (["onnx: no"], "failed", "test fails: onnx: no")):
        python = script(tmp_path, json.dumps({"errors": errors}))
        outcome = other_cores(tmp_path / "rdf.yaml", ["onnx"], [python], 60)
        assert (outcome.status, outcome.message) == (status, f"bioimageio.core 0.9: its {words}")


def test_an_engine_is_an_interpreter_that_has_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for python in ("/nowhere/python", "/bin/false", "/bin/echo"):
        with pytest.raises(ConfigError, match=r"--engine .* does not run as a Python interpreter"):
            find_engines([python])
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -I -S "$@"\n')  # -S: no packages
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match="has no torch"):
        find_engines([str(bare)])
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
