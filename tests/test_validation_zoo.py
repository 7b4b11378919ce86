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


@pytest.fixture(scope="module")
def cases(benchmark: Any) -> Any:
    if not ZOO.exists():
        pytest.skip("the zoo's reports are not here")
    return benchmark.judge(json.loads(ZOO.read_text(encoding="utf-8")))


def test_verdicts_hold_against_the_zoos_reports(benchmark: Any, cases: Any) -> None:
    figures = {tool: benchmark.figures(found) for tool, found in cases.items()}
    assert figures["biapy"]["right"] >= 0.98
    assert figures["ilastik"]["right"] >= 0.88
    assert figures["deepimagej"]["passes_said_to_work"] == 1
    assert figures["deepimagej"]["own_failures_said_to_work"] <= 0.1
    left_open = {tool: sum(case.said == "unknown" for case in found) for tool, found in cases.items()}
    assert left_open == {"biapy": 0, "ilastik": 0, "deepimagej": 3, "bioimageio.core": 25}
    core = figures["bioimageio.core"]  # what it decides it may decide wrongly, but never against a model that passes
    assert core["passes_said_to_fail"] == 0 and core["right_of_models"] >= 0.8
    assert core["passes_said_to_work"] >= 0.75 and core["own_failures_said_to_work"] <= 0.25


@pytest.mark.parametrize(
    ("tool", "why", "own"),
    [
        ("deepimagej", "unable to download | The provided id does not correspond to an existing model in", False),
        ("deepimagej", "error running the model | at net.imagej.ClassLauncher.main(ClassLauncher.java:87)", False),
        ("deepimagej", "error running the model | java.lang.OutOfBoundsException: 3 at net.imagej", True),
        ("ilastik", "Client error '404 Not Found' for url", False),
        ("deepimagej", "unable to read the yaml file | Path provided does not correspond to a Numpy file: x", False),
        ("bioimageio.core", "The read operation timed out", False),
        ("biapy", "[all] Model needs to have a single input.", True),
    ],
)  # fmt: skip
def test_failures_of_the_test_machine_are_told_apart(benchmark: Any, tool: str, why: str, own: bool) -> None:
    model = {"model": "m", "rdf": {"type": "model"}, "reports": {tool: {"status": "failed", "why": why}}}
    [case] = benchmark.judge([model])[tool]
    assert case.own is own
