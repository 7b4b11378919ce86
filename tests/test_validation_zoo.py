"""Verdicts on the zoo's real models, from their descriptions alone, held against the zoo's own reports."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ZOO = ROOT.parent / "shared" / "zoo" / "zoo_models.json"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_of_the_zoo", ROOT / "benchmarks" / "zoo.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.mark.skipif(not ZOO.exists(), reason="the zoo's reports are not here")
def test_verdicts_hold_against_the_zoos_reports(benchmark: Any) -> None:
    cases = benchmark.judge(json.loads(ZOO.read_text(encoding="utf-8")))
    figures = {tool: benchmark.figures(found) for tool, found in cases.items()}
    assert figures["biapy"]["right"] >= 0.98
    assert figures["ilastik"]["right"] >= 0.88
    assert figures["deepimagej"]["passes_said_to_work"] == 1
    assert figures["deepimagej"]["own_failures_said_to_work"] <= 0.1
    assert all(case.said != "unknown" for found in cases.values() for case in found)


@pytest.mark.parametrize(
    ("tool", "why", "own"),
    [
        ("deepimagej", "unable to download | The provided id does not correspond to an existing model in", False),
        ("deepimagej", "error running the model | at net.imagej.ClassLauncher.main(ClassLauncher.java:87)", False),
        ("deepimagej", "error running the model | java.lang.OutOfBoundsException: 3 at net.imagej", True),
        ("deepimagej", "error comparing expected outputs | Exception: Values of output output0 differ", True),
        ("ilastik", "Client error '404 Not Found' for url", False),
        ("ilastik", "No module named 'tensorflow'", True),
        ("biapy", "[all] Model needs to have a single input.", True),
    ],
)  # fmt: skip
def test_failures_of_the_test_machine_are_told_apart(benchmark: Any, tool: str, why: str, own: bool) -> None:
    model = {"model": "m", "rdf": {"type": "model"}, "reports": {tool: {"status": "failed", "why": why}}}
    [case] = benchmark.judge([model])[tool]
    assert case.own is own


def test_reports_that_say_nothing_are_left_out(benchmark: Any) -> None:
    model = {"model": "m", "rdf": {"type": "model"}, "reports": {"biapy": {"status": "not-applicable", "why": ""}}}
    assert benchmark.judge([model]) == {tool: [] for tool in benchmark.PROGRAMS}
