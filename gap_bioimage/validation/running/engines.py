"""Other interpreters with other versions of torch and bioimageio.core, as the consumers have them."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.checks import Evidence, Outcome, merge_outcomes, one_sentence
from gap_bioimage.validation.running.measures import ZOO_DEEPIMAGEJ, mismatched_ppm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gap_bioimage.validation.running.runner import Runner

_SCRIPT = Path(__file__).with_name("engine_script.py")
_PROBE_S = 120
_FIX = "Rewrite what the older engine does not know, e.g. F.interpolate, and save the TorchScript again."


def check_engines(engines: Iterable[str]) -> None:
    """See that interpreters are there and have torch.

    Raises
    ------
    ConfigError
        If one does not run, or has neither torch nor bioimageio.core.
    """
    for python in engines:
        try:
            found = _ask(python, "versions", timeout=_PROBE_S)
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            text = one_sentence(getattr(error, "strerror", None) or error, 200)
            raise ConfigError(
                f"--engine {python} does not run as a Python interpreter ({text}); "
                "give the path of a python with torch, such as /usr/bin/python3."
            ) from None
        if not found["torch"]:
            raise ConfigError(f"--engine {python} has no torch; install one there, or give another interpreter.")


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


def other_engines(runner: Runner, engines: Sequence[str]) -> Outcome:
    """The TorchScript gives the same in other versions of torch, within what the zoo's deepImageJ check allows."""
    inputs = list(runner.preprocess(runner.test_inputs).values())
    expected = list(runner.run(runner.test_inputs, postprocess=False).items())
    axes = [runner.axes(name) for name, _ in expected]
    return merge_outcomes(_one_engine(runner, python, inputs, expected, axes) for python in engines)


def _one_engine(
    runner: Runner,
    python: str,
    inputs: list[NDArray[Any]],
    expected: list[tuple[str, NDArray[Any]]],
    axes: list[tuple[str, ...]],
) -> tuple[str, Outcome]:
    name = f"torch {_ask(python, 'versions', timeout=_PROBE_S)['torch']}"
    with tempfile.TemporaryDirectory(prefix="gap-engine-") as temp:
        folder = Path(temp)
        for number, array in enumerate(inputs):
            (folder / f"input_{number}.bin").write_bytes(np.ascontiguousarray(array, np.float32).tobytes())
        (folder / "inputs.json").write_text(json.dumps([array.shape for array in inputs]))
        answer = _ask(python, "run", str(runner.file), temp)
        if "error" in answer:
            return name, Outcome("failed", f"raised {one_sentence(answer['error'], 240)}", _FIX)
        got = [
            np.fromfile(folder / f"output_{number}.bin", np.float32, count=math.prod(shape)).reshape(shape)
            for number, shape in enumerate(json.loads((folder / "outputs.json").read_text()))
        ]
    if [array.shape for array in got] != [array.shape for _, array in expected]:
        shapes = [[array.shape for array in arrays] for arrays in (got, [array for _, array in expected])]
        return name, Outcome("failed", f"outputs have shapes {shapes[0]} instead of {shapes[1]}", _FIX)
    worst = max(mismatched_ppm(a, b, ZOO_DEEPIMAGEJ) for a, (_, b) in zip(got, expected, strict=True))
    text = f"{worst:.0f} ppm of the outputs differ from ours by more than 1.5e-4 + 1e-4 of the value"
    evidence = tuple(
        Evidence(f"{output}, {name}", names, array, made)
        for made, (output, array), names in zip(got, expected, axes, strict=True)
    )
    return name, Outcome("passed" if worst == 0 else "failed", text, "" if worst == 0 else _FIX, evidence)


def other_cores(rdf: Path, weights_formats: Sequence[str], engines: Sequence[str]) -> Outcome:
    """Other versions of bioimageio.core, where the interpreters have one, pass their own test."""
    outcomes = []
    for python in engines:
        version = _ask(python, "versions", timeout=_PROBE_S)["core"]
        if version is None:
            continue
        answer = _ask(python, "core", str(rdf), *weights_formats)
        found = answer.get("error") or "; ".join(answer.get("errors") or [])
        good = not found
        text = "its test passes" if good else f"its test fails: {one_sentence(found, 240)}"
        fix = "" if good else "See which format_version and operations that version knows."
        outcomes.append((f"bioimageio.core {version}", Outcome("passed" if good else "warning", text, fix)))
    if not outcomes:
        return Outcome("skipped", "no --engine has bioimageio.core")
    return merge_outcomes(outcomes)


def _ask(python: str, *arguments: str, timeout: float | None = None) -> dict[str, Any]:
    """Run the script in another interpreter, isolated from the paths of this one."""
    command = [python, "-I", str(_SCRIPT), *arguments]
    done = subprocess.run(  # noqa: S603  (the user names the interpreter)
        command, capture_output=True, text=True, timeout=timeout, check=False
    )
    lines = done.stdout.strip().splitlines()
    if not lines:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        if arguments[0] == "versions":
            raise RuntimeError(last)
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with exit code {done.returncode}"
        return {"error": f"the interpreter ended {how}: {last}"}
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except ValueError:
        raise RuntimeError(f"it printed {one_sentence(lines[-1], 80)!r}") from None
    return answer
