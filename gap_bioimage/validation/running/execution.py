"""Run the model: bioimageio.core's own test for every weights format, then what that test leaves out."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.facts import Facts
from gap_bioimage.validation.archive.torchscript import read_code
from gap_bioimage.validation.checks import Check, Outcome, merge_outcomes, one_sentence, to_check
from gap_bioimage.validation.running.core_test import core_test, negative_control
from gap_bioimage.validation.running.dynamic import DYNAMIC_CHECKS, formats_agree
from gap_bioimage.validation.running.engines import other_cores, other_engines
from gap_bioimage.validation.running.evidence import keep_evidence
from gap_bioimage.validation.running.runner import Runner
from gap_bioimage.validation.running.shapes import is_stochastic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from gap_bioimage.validation.archive.description import Description
    from gap_bioimage.validation.archive.package import Package

_RUNS_CODE = {"pytorch_state_dict", "keras_hdf5", "keras_v3", "tensorflow_saved_model_bundle"}
"""Formats whose loading executes code of the package, or graphs that may read and write files."""
_NEEDS = {
    "onnx": "onnxruntime",
    "keras_hdf5": "tensorflow",
    "keras_v3": "keras",
    "tensorflow_saved_model_bundle": "tensorflow",
}
_UNTESTED = {"tensorflow_js"}


@dataclass(frozen=True)
class Plan:
    """What is to be checked, and who is told of it.

    Parameters
    ----------
    run_code
        Allow Python code of the package to run.
    device
        Torch device name.
    engines
        Other Python interpreters, in whose torch the TorchScript is run too.
    done
        Ids of checks that are not made again.
    keep
        Folder for arrays and pictures of what failed; None keeps nothing.
    pictures
        Folder for pictures of the rest; None draws none.
    begin
        Called with the id of each check before it is made.
    found
        Called with each check, and titles and paths of its pictures.
    """

    run_code: bool = False
    device: str = "cpu"
    engines: tuple[str, ...] = ()
    done: frozenset[str] = frozenset()
    keep: Path | None = None
    pictures: Path | None = None
    begin: Callable[[str], None] = lambda check_id: None
    found: Callable[[Check, list[tuple[str, Path]]], None] = lambda check, drawn: None

    def make(self, check_id: str, judge: Callable[[], Outcome]) -> Outcome | None:
        """Make a check, unless it is done; what it raises is the model's failure, not ours."""
        if check_id in self.done:
            return None
        self.begin(check_id)
        outcome = _guarded(judge)
        drawn = keep_evidence(check_id, outcome, keep=self.keep, pictures=self.pictures)
        self.found(to_check(check_id, check_id.split(".", 1)[0], outcome), drawn)
        return outcome


def run_checks(package: Package, description: Description, plan: Plan) -> None:
    """Everything that needs the model to run; it may never return, so call it in a process of its own.

    Parameters
    ----------
    package, description
        The opened package and its valid description, all files local.
    plan
        What to check and whom to tell: checks of the consumers ``core``, ``run``, ``fiji`` and ``zoo``. What a
        model raises becomes a failed check.
    """
    plan.make("run.negative_control", lambda: negative_control(package, description))
    blocked = {name: why for name in description.weights if (why := _why_not(name, package, plan.run_code))}
    for name, outcome in blocked.items():
        plan.make(f"run.{name}", lambda outcome=outcome: outcome)  # type: ignore[misc]
    runnable = [name for name in description.weights if name not in blocked]
    if not runnable:
        text = f"none of the weights ({', '.join(description.weights) or 'none given'}) was run"
        fix = "--run-code" if any(found.fix == "--run-code" for found in blocked.values()) else ""
        plan.make("core.test", lambda: Outcome("skipped", text, fix))
        return
    plan.make(
        "core.test",
        lambda: merge_outcomes((name, core_test(description.as_written, name, plan.device)) for name in runnable),
    )
    _dynamic_checks(package, description, runnable, plan)


def _why_not(weights_format: str, package: Package, run_code: bool) -> Outcome | None:
    rdf = package.rdf
    if weights_format in _UNTESTED:
        return Outcome("skipped", f"{weights_format} cannot be run from Python")
    if not run_code and weights_format in _RUNS_CODE:
        text = f"{weights_format} runs code from the package, which was not allowed"
        return Outcome("skipped", text, "--run-code")
    if not run_code and _has_custom_operation(rdf):
        text = "a processing step with id 'custom' runs code from the package, which was not allowed"
        return Outcome("skipped", text, "--run-code")
    if not run_code and weights_format == "torchscript" and _touches_files(package):
        text = "the TorchScript code reads or writes files, which was not allowed"
        return Outcome("skipped", text, "--run-code")
    tensors = rdf.get("inputs")
    if any(isinstance(t, dict) and t.get("output_of") for t in (tensors if isinstance(tensors, list) else [])):
        return Outcome("skipped", "an input is the output of another model, which is not in the package")
    needed = _NEEDS.get(weights_format)
    if needed and importlib.util.find_spec(needed) is None:
        return Outcome("skipped", f"{weights_format} needs {needed}, which is not installed", f"Install {needed}.")
    return None


def _touches_files(package: Package) -> bool:
    facts = Facts(package)
    path = facts.file_of(facts.weights.get("torchscript"))
    try:
        return path is not None and read_code(path).touches_files
    except ValueError:  # no TorchScript at all: loading it will say so
        return False


def _has_custom_operation(rdf: dict[str, Any]) -> bool:
    tensors = [*(rdf.get("inputs") or []), *(rdf.get("outputs") or [])]
    steps = [
        step
        for tensor in tensors
        if isinstance(tensor, dict)
        for step in [*(tensor.get("preprocessing") or []), *(tensor.get("postprocessing") or [])]
    ]
    return any(isinstance(step, dict) and step.get("id") == "custom" for step in steps)


def _dynamic_checks(package: Package, description: Description, runnable: list[str], plan: Plan) -> None:
    """Load each weights format once and put all of them through every check."""
    descr = description.upgraded or description.as_written
    facts = Facts(package)
    with ExitStack() as stack:
        runners: list[Runner] = []

        def load() -> Outcome:
            found = []
            for name in runnable:
                try:
                    file = facts.file_of(facts.weights.get(name))
                    runners.append(stack.enter_context(Runner(descr, name, plan.device, file, package.rdf)))
                    found.append((name, Outcome("passed", "loads")))
                except Exception as error:  # whatever loading raises
                    found.append((name, Outcome("failed", one_sentence(error), "See that the weights load.")))
            return merge_outcomes(found)

        if plan.make("run.loads", load) is None:
            load()  # told before, in a process that is gone
        agreement = plan.make("run.formats_agree", lambda: formats_agree(runners)) if len(runners) > 1 else None
        for entry in DYNAMIC_CHECKS:
            subjects = [runner for runner in runners if entry.only in (None, runner.weights_format)]
            # samplers run their network many times for each output
            once = entry.once or any(is_stochastic(runner) for runner in subjects)
            if once and agreement is not None and agreement.status == "passed":
                subjects = subjects[-1:]
            if subjects:
                plan.make(entry.id, lambda: merge_outcomes(_each(entry.judged, subjects)))  # noqa: B023  (called at once)
        scripted = [runner for runner in runners if runner.weights_format == "torchscript"]
        if plan.engines and scripted:
            plan.make("fiji.older_engine", lambda: other_engines(scripted[0], plan.engines))
        if plan.engines:
            plan.make(
                "core.other_versions", lambda: other_cores(package.root / package.rdf_name, runnable, plan.engines)
            )


def _each(judge: Callable[[Runner], Outcome], runners: Iterable[Runner]) -> Iterator[tuple[str, Outcome]]:
    for runner in runners:
        yield runner.weights_format, _guarded(lambda runner=runner: judge(runner))  # type: ignore[misc]


def _guarded(judge: Callable[[], Outcome]) -> Outcome:
    try:
        return judge()
    except Exception as error:  # whatever the model raises is its failure, not ours
        kind = type(error).__name__
        return Outcome("failed", f"raised {kind}: {one_sentence(error, 200)}", "See that the model accepts this input.")
