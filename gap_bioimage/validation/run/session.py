"""The checks of one model, in the process that runs it: bioimageio.core's own test, then what that test leaves out."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import (
    Check,
    Definition,
    NotApplicable,
    Outcome,
    Severity,
    declare,
    definitions,
    merge_outcomes,
    one_sentence,
)
from gap_bioimage.validation.run.compare import not_finite
from gap_bioimage.validation.run.engines import OLDER_ENGINE, OTHER_VERSIONS, other_cores, other_engines
from gap_bioimage.validation.run.evidence import keep_evidence
from gap_bioimage.validation.run.reference import (
    AGREEMENT,
    CONTROL,
    CORE_TEST,
    core_tests,
    formats_agree,
    negative_control,
)
from gap_bioimage.validation.run.runner import ModelError, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from gap_bioimage.validation.package.archive import Package
    from gap_bioimage.validation.package.description import Description

WEIGHTS_FORMATS = (
    "pytorch_state_dict",
    "torchscript",
    "onnx",
    "keras_hdf5",
    "keras_v3",
    "tensorflow_js",
    "tensorflow_saved_model_bundle",
)
"""Formats of weights that a description may give."""

_RUNS_CODE = {"pytorch_state_dict", "keras_hdf5", "keras_v3", "tensorflow_saved_model_bundle"}
"""Formats whose loading executes code of the package, or graphs that may read and write files."""
_NEEDS = {
    "onnx": "onnxruntime",
    "keras_hdf5": "tensorflow",
    "keras_v3": "keras",
    "tensorflow_saved_model_bundle": "tensorflow",
}
_RUN_CODE = "--run-code"
_REPORT = "Report it with your model."

WEIGHTS = {
    name: declare(
        f"run.{name}",
        "run",
        Severity.DEGRADES,
        asks=f"Weights in the format {name} that can be run here.",
        breaks="nothing is known about these weights",
        fix="Allow it with --run-code, or install what the message names.",
        order=-8,
    )
    for name in WEIGHTS_FORMATS
}
LOADS = declare(
    "run.loads",
    "run",
    Severity.BLOCKS,
    asks="Weights that load.",
    breaks="the model cannot be run",
    fix="See that the weights load.",
    order=-2,
)


@dataclass(frozen=True)
class Job:
    """One model to run.

    Parameters
    ----------
    package, description
        The opened package and its valid description.
    run_code
        Allow Python code of the package to run.
    device
        Torch device name.
    engines
        Other Python interpreters, from `engines.find_engines`, to run the model in too.
    keep
        Folder for arrays and pictures of what failed; None keeps nothing.
    pictures
        Folder for pictures of the rest; None draws none.
    seconds
        What other interpreters may take.
    done
        Ids of checks that are not made again.
    """

    package: Package
    description: Description
    run_code: bool = False
    device: str = "cpu"
    engines: tuple[str, ...] = ()
    keep: Path | None = None
    pictures: Path | None = None
    seconds: float = 600.0
    done: tuple[str, ...] = ()


@dataclass
class Session:
    """What is made of a job, and who is told of it.

    Parameters
    ----------
    job
        The job.
    begin
        Called with the id of each check before it is made.
    found
        Called with each check, and titles and paths of its pictures.
    """

    job: Job
    begin: Callable[[str], None] = lambda check_id: None
    found: Callable[[Check, list[tuple[str, Path]]], None] = lambda check, drawn: None
    _raised: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Make every check that needs the model to run; it may never return, so call it in a process of its own."""
        description, rdf = self.job.description, self.job.package.rdf
        self._make(CONTROL, lambda: negative_control(rdf, description.as_written))
        blocked = {name: why for name in description.weights if (why := why_not(self.job, name))}
        for name, outcome in blocked.items():
            self._make(WEIGHTS[name], lambda outcome=outcome: outcome)  # type: ignore[misc]
        runnable = [name for name in description.weights if name not in blocked]
        if not runnable:
            self._make(CORE_TEST, lambda: _nothing_runs(list(description.weights), blocked))
            return
        self._make(CORE_TEST, lambda: core_tests(description.as_written, runnable, self.job.device))
        with ExitStack() as stack:
            runners: list[Runner] = []
            if self._make(LOADS, lambda: self._load(runnable, stack, runners)) is None:
                self._load(runnable, stack, runners)  # told before, in a process that is gone
            self._run_all(runners)
        if self.job.engines:
            rdf_path = self.job.package.root / self.job.package.rdf_name
            seconds = 0.9 * self.job.seconds
            self._make(OTHER_VERSIONS, lambda: other_cores(rdf_path, runnable, self.job.engines, seconds))

    def _run_all(self, runners: list[Runner]) -> None:
        """Put all weights formats through every check, or one of them where they agree and the check takes long."""
        agreement = self._make(AGREEMENT, lambda: formats_agree(runners)) if len(runners) > 1 else None
        agree = agreement is not None and agreement.status == "passed"
        for made in definitions("run"):
            subjects = [runner for runner in runners if not made.weights or runner.weights_format in made.weights]
            # samplers run their network many times for each output
            if agree and (made.once or any(runner.is_stochastic for runner in subjects)):
                subjects = subjects[-1:]
            if subjects:
                self._make(made, lambda made=made, subjects=subjects: merge_outcomes(self._each(made, subjects)))  # type: ignore[misc]
        scripted = [runner for runner in runners if runner.weights_format == "torchscript"]
        if self.job.engines and scripted:
            seconds = 0.9 * self.job.seconds
            self._make(OLDER_ENGINE, lambda: other_engines(scripted[0], self.job.engines, seconds))

    def _load(self, names: Iterable[str], stack: ExitStack, runners: list[Runner]) -> Outcome:
        found = []
        description, package = self.job.description, self.job.package
        descr = description.upgraded or description.as_written
        for name in names:
            try:
                file = package.file(_source(package.rdf, name))
                runners.append(stack.enter_context(Runner(descr, name, self.job.device, file, package.rdf)))
                found.append((name, Outcome("passed", "loads")))
            except ModelError as error:
                found.append((name, Outcome("failed", str(error))))
        return merge_outcomes(found)

    def _each(self, made: Definition, runners: Iterable[Runner]) -> Iterator[tuple[str, Outcome]]:
        for runner in runners:
            yield runner.weights_format, self._guarded(made, lambda runner=runner: _judged(made, runner))  # type: ignore[misc]

    def _make(self, made: Definition, judge: Callable[[], Outcome]) -> Outcome | None:
        """Make a check, unless it is done, and tell of it."""
        if made.id in self.job.done:
            return None
        self.begin(made.id)
        outcome = self._guarded(made, judge)
        if outcome.status == "failed" and not outcome.fix:
            outcome = replace(outcome, fix=made.fix_text)
        drawn = keep_evidence(made.id, outcome, keep=self.job.keep, pictures=self.job.pictures)
        check = made.check(outcome)
        # a model that raises does not run, however mild the check
        self.found(replace(check, status=outcome.status) if made.id in self._raised else check, drawn)
        return outcome

    def _guarded(self, made: Definition, judge: Callable[[], Outcome]) -> Outcome:
        """What a model raises is its failure; what the check itself raises leaves the question open."""
        try:
            return judge()
        except NotApplicable as reason:
            return Outcome("skipped", one_sentence(reason))
        except ModelError as error:
            self._raised.add(made.id)
            return Outcome("failed", f"raised {error}", "See that the model accepts this input.")
        except Exception as error:
            told = f"{type(error).__name__}: {one_sentence(error, 120)}"
            return Outcome("error", f"this check itself raised {told}", _REPORT)


def _judged(made: Definition, runner: Runner) -> Outcome:
    if made.compares and (broken := not_finite(runner.produced)):
        raise NotApplicable(f"nothing can be compared: of what the model gives for the test input {broken}")
    return made.outcome_of(runner)


def _nothing_runs(weights: list[str], blocked: dict[str, Outcome]) -> Outcome:
    fixes = {found.fix for found in blocked.values()}
    text = f"none of the weights ({', '.join(weights) or 'none given'}) was run"
    if len(blocked) == 1:
        text += f": {next(iter(blocked.values())).message}"
    return Outcome("skipped", text, _RUN_CODE if _RUN_CODE in fixes else "")


def why_not(job: Job, weights_format: str) -> Outcome | None:
    """Why weights are not run, None if they are."""
    package, run_code = job.package, job.run_code
    rdf = package.rdf
    source = _source(rdf, weights_format)
    if remote := _remote(rdf, weights_format):
        text = f"{remote} lies on a server, and nothing is downloaded"
        return Outcome("skipped", text, "Put it into the package.")
    if weights_format == "tensorflow_js":
        return Outcome("skipped", "tensorflow_js cannot be run from Python")
    if not run_code:
        if weights_format in _RUNS_CODE:
            text = f"{weights_format} runs code from the package, which was not allowed"
            return Outcome("skipped", text, _RUN_CODE)
        if _has_custom_operation(rdf):
            text = "a processing step with id 'custom' runs code from the package, which was not allowed"
            return Outcome("skipped", text, _RUN_CODE)
        if weights_format == "torchscript" and _touches_files(package, source):
            return Outcome("skipped", "the TorchScript code reads or writes files, which was not allowed", _RUN_CODE)
    if any(tensor.get("output_of") for tensor in _mappings(rdf.get("inputs"))):
        return Outcome("skipped", "an input is the output of another model, which is not in the package")
    needed = _NEEDS.get(weights_format)
    if needed and importlib.util.find_spec(needed) is None:
        return Outcome("skipped", f"{weights_format} needs {needed}, which is not installed", f"Install {needed}.")
    return None


def _source(rdf: dict[str, Any], weights_format: str) -> object:
    weights = rdf.get("weights")
    entry = weights.get(weights_format) if isinstance(weights, dict) else None
    return entry.get("source") if isinstance(entry, dict) else None


def _remote(rdf: dict[str, Any], weights_format: str) -> str:
    """Which of the files that these weights need is not in the package; empty if none is."""
    weights = rdf.get("weights")
    entry = weights.get(weights_format) if isinstance(weights, dict) else None
    tensors = [*_mappings(rdf.get("inputs")), *_mappings(rdf.get("outputs"))]
    named = {
        f"weights.{weights_format}": entry,
        "a test tensor": [
            [tensor.get("test_tensor") for tensor in tensors],
            rdf.get("test_inputs"),
            rdf.get("test_outputs"),
        ],
    }
    return next((name for name, value in named.items() if _names_url(value)), "")


def _names_url(value: Any) -> bool:
    if isinstance(value, dict):
        needed = ("source", "architecture", "external_data")
        return any(_names_url(value.get(key)) for key in needed)
    if isinstance(value, list):
        return any(map(_names_url, value))
    return isinstance(value, str) and value.lower().startswith(("http:", "https:", "ftp:"))


def _touches_files(package: Package, source: object) -> bool:
    from gap_bioimage.validation.package.torchscript import read_code

    path = package.file(source)
    try:
        return path is not None and read_code(path).touches_files
    except ValueError:  # no TorchScript at all: loading it will say so
        return False


def _has_custom_operation(rdf: dict[str, Any]) -> bool:
    tensors = [*_mappings(rdf.get("inputs")), *_mappings(rdf.get("outputs"))]
    lists = [tensor.get(key) for tensor in tensors for key in ("preprocessing", "postprocessing")]
    return any(step.get("id") == "custom" for steps in lists for step in _mappings(steps))


def _mappings(listed: object) -> list[dict[str, Any]]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
