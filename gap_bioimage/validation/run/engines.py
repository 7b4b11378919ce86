"""Runs in other interpreters, with the versions of torch and bioimageio.core that consumers use."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation import check as registry
from gap_bioimage.validation.check import Evidence, NotApplicable, Outcome, Severity, one_sentence
from gap_bioimage.validation.run.reference import ZOO_DEEPIMAGEJ, mismatched_ppm
from gap_bioimage.validation.run.runner import Arrays, Runner

_REPEATS = 3  # engines profile a graph in its first run, and compile it for the second
_SLOW = 10.0  # a later run is too slow if it takes both so many seconds and so many times the first run
_COMPILES = "Write long loops of small steps with while, not with for, so that the engine does not fuse them."
_SCRIPT = Path(__file__).with_name("engine_script.py")
_PROBE_S = 120

OLDER_ENGINE = registry.declare(
    "fiji.older_engine", "run", Severity.BLOCKS, asks="The same results in the older engines given with --engine.",
    breaks="Fiji, whose engine is as old, gives other results, or none",
    fix="Replace operators that the older engine lacks, e.g. F.interpolate, and save the TorchScript again.", order=2,
)  # fmt: skip
OTHER_VERSIONS = registry.declare(
    "core.other_versions", "run", Severity.DEGRADES,
    asks="The same results in the versions of bioimageio.core given with --engine.",
    breaks="users of these versions cannot run it", fix="Use a format_version and operations of that version.", order=2,
)  # fmt: skip


def find_engines(engines: Iterable[str]) -> tuple[str, ...]:
    """Return absolute paths of interpreters; raise `ConfigError` unless each of them runs and has torch."""
    paths = []
    for python in engines:
        # links are not resolved: Python finds a virtual environment by the path of its interpreter
        path = os.path.abspath(python) if os.path.dirname(python) else shutil.which(python) or python
        try:
            has_torch = _versions(path).get("torch")
        except (OSError, RuntimeError) as error:
            reason = one_sentence(getattr(error, "strerror", None) or error, 200)
            to_do = "give the path of a python with torch, such as /usr/bin/python3."
            raise ConfigError(f"--engine {python} does not run as a Python interpreter ({reason}); {to_do}") from None
        if not has_torch:
            raise ConfigError(f"--engine {python} has no torch; install it there, or give another interpreter.")
        paths.append(path)
    return tuple(paths)


def check_device(device: str) -> None:
    """Raise `ConfigError` if torch cannot use a device."""
    if device == "cpu":  # torch takes seconds to import
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"--device {device} cannot be used here: {one_sentence(error, 120)}; try cpu") from None


def other_engines(runner: Runner, engines: Sequence[str], seconds: float) -> Outcome:
    """Compare the TorchScript's results in other versions of torch, as strictly as the zoo's deepImageJ check."""
    expected = runner.run(runner.test_inputs, postprocess=False)
    names = {python: f"torch {_versions(python)['torch']}" for python in engines}
    outcomes = ((name, _one_engine(runner, python, name, expected, seconds)) for python, name in names.items())
    return registry.merge_outcomes(outcomes)


def _one_engine(runner: Runner, python: str, name: str, expected: Arrays, seconds: float) -> Outcome:
    import torch

    with tempfile.TemporaryDirectory(prefix="gap-engine-") as folder:
        inputs = runner.preprocess(runner.test_inputs).values()
        torch.save([torch.tensor(array, dtype=torch.float32) for array in inputs], Path(folder, "inputs.pt"))
        answer = _ask(python, "run", str(runner.file), folder, str(_REPEATS), timeout=seconds)
        if error := answer.get("error"):
            return Outcome("failed", one_sentence(error, 240), _COMPILES if "timed_out" in answer else "")
        got = [tensor.numpy() for tensor in torch.load(Path(folder, "outputs.pt"), weights_only=True)]
    pairs = list(zip(expected.items(), got, strict=False))  # an engine may return more outputs than are described
    worst = max(mismatched_ppm(made, array, *ZOO_DEEPIMAGEJ) for (_, array), made in pairs)
    text = f"{worst:.0f} ppm of the outputs differ from ours by more than 1.5e-4 + 1e-4 of the value"
    durations = answer["took"]
    if worst == 0 and max(durations[1:]) > max(_SLOW, _SLOW * durations[0]):
        times = ", ".join(f"{seconds:.3g}" for seconds in durations)
        return Outcome("warning", f"{text}, but runs of one image take {times} s: it compiles the graph", _COMPILES)
    evidence = tuple(Evidence(f"{n}, {name}", runner.axes(n), array, made) for (n, array), made in pairs)
    return Outcome("passed" if worst == 0 else "failed", text, "", evidence)


def other_cores(rdf: Path, weights_formats: Sequence[str], engines: Sequence[str], seconds: float) -> Outcome:
    """Run the test of bioimageio.core in each interpreter that has it."""
    outcomes = []
    for python in engines:
        if (version := _versions(python).get("core")) is None:
            continue
        answer = _ask(python, "core", str(rdf), *weights_formats, timeout=seconds)
        problem = answer.get("error") or "; ".join(answer.get("errors") or [])
        text = f"its test fails: {one_sentence(problem, 240)}" if problem else "its test passes"
        outcomes.append((f"bioimageio.core {version}", Outcome("failed" if problem else "passed", text)))
    if not outcomes:
        raise NotApplicable("no --engine has bioimageio.core")
    return registry.merge_outcomes(outcomes)


@functools.cache
def _versions(python: str) -> dict[str, Any]:
    """Return the versions of torch and bioimageio.core in an interpreter, which takes seconds."""
    answer = _ask(python, "versions", timeout=_PROBE_S)
    if "torch" not in answer:
        raise RuntimeError(answer.get("error") or "it did not answer")
    return answer


def _ask(python: str, *arguments: str, timeout: float) -> dict[str, Any]:
    """Run the script in another interpreter, isolated from our paths; return its answer, or an ``error``."""
    command = [python, "-I", str(_SCRIPT), *arguments]
    try:
        done = subprocess.run(  # noqa: S603  (the user names the interpreter)
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not finish within {timeout:g} s", "timed_out": True}
    output, errors = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    with contextlib.suppress(ValueError, IndexError):
        if isinstance(answer := json.loads(output[-1]), dict):
            return answer
    how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
    reason = (errors or output or ["nothing was printed"])[-1]
    return {"error": f"the interpreter ended {how}: {one_sentence(reason, 160)}"}
