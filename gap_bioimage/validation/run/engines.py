"""Other interpreters with other versions of torch and bioimageio.core, as the consumers have them."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.check import (
    Evidence,
    NotApplicable,
    Outcome,
    Severity,
    declare,
    merge_outcomes,
    one_sentence,
)
from gap_bioimage.validation.run.compare import ZOO_DEEPIMAGEJ, mismatched_ppm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gap_bioimage.validation.run.runner import Runner

REPEATS = 3
"""Engines observe a graph when it runs first, and compile it for the second run."""
_SLOW = 10.0
"""So many times longer than the first run, and so many seconds, a later one is too slow."""
_SCRIPT = Path(__file__).with_name("engine_script.py")
_PROBE_S = 120

OLDER_ENGINE = declare(
    "fiji.older_engine",
    "run",
    Severity.BLOCKS,
    asks="The same results in the older engines given with --engine.",
    breaks="Fiji's engine is older than what models are made with",
    fix="Rewrite what the older engine does not know, e.g. F.interpolate, and save the TorchScript again.",
    order=2,
)
OTHER_VERSIONS = declare(
    "core.other_versions",
    "run",
    Severity.DEGRADES,
    asks="The same results in the versions of bioimageio.core given with --engine.",
    breaks="users of these versions cannot run it",
    fix="See which format_version and operations that version knows.",
    order=2,
)


def find_engines(engines: Iterable[str]) -> tuple[str, ...]:
    """Absolute paths of interpreters, each of which runs and has torch.

    Raises
    ------
    ConfigError
        If one does not run, or has no torch.
    """
    return tuple(_found(python) for python in engines)


def _found(python: str) -> str:
    # links stay as they are: a virtual environment is known by the place of its interpreter
    path = os.path.abspath(python) if os.path.dirname(python) else shutil.which(python) or python
    try:
        found = _ask(path, "versions", timeout=_PROBE_S)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        text = one_sentence(getattr(error, "strerror", None) or error, 200)
        raise ConfigError(
            f"--engine {python} does not run as a Python interpreter ({text}); "
            "give the path of a python with torch, such as /usr/bin/python3."
        ) from None
    if not found.get("torch"):
        raise ConfigError(f"--engine {python} has no torch; install one there, or give another interpreter.")
    return path


def check_device(device: str) -> None:
    """See that a device is there.

    Raises
    ------
    ConfigError
        If it is not, or torch does not know such devices.
    """
    if device == "cpu":  # torch takes seconds to import
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {device} cannot be used here: {one_sentence(error, 120)}; try cpu") from None


def other_engines(runner: Runner, engines: Sequence[str], seconds: float) -> Outcome:
    """Whether the TorchScript gives the same in other versions of torch, within what the zoo's deepImageJ check allows.

    Each runs it `REPEATS` times, all together within ``seconds``.
    """
    inputs = list(runner.preprocess(runner.test_inputs).values())
    expected = runner.run(runner.test_inputs, postprocess=False)
    return merge_outcomes(_one_engine(runner, python, inputs, expected, seconds) for python in engines)


def _one_engine(
    runner: Runner, python: str, inputs: list[NDArray[Any]], expected: dict[str, NDArray[Any]], seconds: float
) -> tuple[str, Outcome]:
    name = f"torch {_ask(python, 'versions', timeout=_PROBE_S)['torch']}"
    with tempfile.TemporaryDirectory(prefix="gap-engine-") as temp:
        folder = Path(temp)
        for number, array in enumerate(inputs):
            (folder / f"input_{number}.bin").write_bytes(np.ascontiguousarray(array, np.float32).tobytes())
        (folder / "inputs.json").write_text(json.dumps([array.shape for array in inputs]))
        answer = _ask(python, "run", str(runner.file), temp, str(REPEATS), timeout=seconds)
        if "error" in answer:
            return name, Outcome("failed", f"raised {one_sentence(answer['error'], 240)}")
        if "outputs" not in answer:
            return name, _too_slow(answer["took"], seconds)
        got = [
            np.fromfile(folder / f"output_{number}.bin", np.float32, count=math.prod(shape)).reshape(shape)
            for number, shape in enumerate(json.loads((folder / "outputs.json").read_text()))
        ]
    if [array.shape for array in got] != [array.shape for array in expected.values()]:
        shapes = [[array.shape for array in arrays] for arrays in (got, expected.values())]
        return name, Outcome("failed", f"outputs have shapes {shapes[0]} instead of {shapes[1]}")
    return name, _agreement(runner, name, dict(zip(expected, got, strict=True)), expected, answer["took"])


def _agreement(
    runner: Runner, name: str, got: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], took: list[float]
) -> Outcome:
    worst = max(mismatched_ppm(got[output], array, ZOO_DEEPIMAGEJ) for output, array in expected.items())
    text = f"{worst:.0f} ppm of the outputs differ from ours by more than 1.5e-4 + 1e-4 of the value"
    if worst == 0 and max(took[1:], default=0) > max(_SLOW, _SLOW * took[0]):
        times = ", ".join(f"{seconds:.3g}" for seconds in took)
        return Outcome("warning", f"{text}, but runs of one image take {times} s: it compiles the graph", _COMPILES)
    evidence = tuple(
        Evidence(f"{output}, {name}", runner.axes(output), array, got[output]) for output, array in expected.items()
    )
    return Outcome("passed" if worst == 0 else "failed", text, "", evidence)


_COMPILES = "Keep long loops of small steps from being fused: count them with while, not with for."


def _too_slow(took: list[float], seconds: float) -> Outcome:
    if not took:
        return Outcome("failed", f"did not finish within {seconds:g} s")
    text = f"the first run takes {took[0]:.3g} s, run {len(took) + 1} did not finish within {seconds:g} s"
    return Outcome("failed", f"{text}: it compiles the graph", _COMPILES)


def other_cores(rdf: Path, weights_formats: Sequence[str], engines: Sequence[str], seconds: float) -> Outcome:
    """Whether other versions of bioimageio.core, where the interpreters have one, pass their own test."""
    outcomes = []
    for python in engines:
        version = _ask(python, "versions", timeout=_PROBE_S)["core"]
        if version is None:
            continue
        answer = _ask(python, "core", str(rdf), *weights_formats, timeout=seconds)
        late = "" if "errors" in answer or "error" in answer else f"it did not finish within {seconds:g} s"
        found = late or answer.get("error") or "; ".join(answer.get("errors") or [])
        text = f"its test fails: {one_sentence(found, 240)}" if found else "its test passes"
        outcomes.append((f"bioimageio.core {version}", Outcome("failed" if found else "passed", text)))
    if not outcomes:
        raise NotApplicable("no --engine has bioimageio.core")
    return merge_outcomes(outcomes)


def _ask(python: str, *arguments: str, timeout: float | None = None) -> dict[str, Any]:
    """Run the script in another interpreter, isolated from the paths of this one.

    Returns
    -------
    Its last answer, with the seconds of each run as ``took``; nothing but these where the time was over.
    """
    command = [python, "-I", str(_SCRIPT), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  (the user names the interpreter)
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        if arguments[0] == "versions":
            raise
        return {"took": _took((error.stdout or b"").decode(errors="replace").splitlines())}
    lines = done.stdout.strip().splitlines()
    if not lines or "ran" in lines[-1][:8]:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        if arguments[0] == "versions":
            raise RuntimeError(last)
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
        return {"error": f"the interpreter ended {how}: {last}"}
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except ValueError:
        raise RuntimeError(f"it printed {one_sentence(lines[-1], 80)!r}") from None
    if not isinstance(answer, dict):
        raise RuntimeError(f"it printed {one_sentence(lines[-1], 80)!r}")
    return {**answer, "took": _took(lines[:-1])}


def _took(lines: Sequence[str]) -> list[float]:
    return [float(json.loads(line)["ran"]) for line in lines if line.startswith('{"ran"') and line.endswith("}")]
