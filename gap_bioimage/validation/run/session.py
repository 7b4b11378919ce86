"""The checks of one model, in the process that runs it: bioimageio.core's own test, then what that test leaves out."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import Definition, Severity, declare, definitions
from gap_bioimage.validation.outcome import Check, NotApplicable, Outcome, merge_outcomes, one_sentence
from gap_bioimage.validation.run.compare import not_finite
from gap_bioimage.validation.run.engines import OLDER_ENGINE, OTHER_VERSIONS, other_cores, other_engines
from gap_bioimage.validation.run.evidence import keep_evidence
from gap_bioimage.validation.run.reference import (
    AGREEMENT,
    CONTROL,
    CORE_TEST,
    core_test,
    formats_agree,
    negative_control,
)
from gap_bioimage.validation.run.runner import ModelError, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from gap_bioimage.validation.archive.description import Description
    from gap_bioimage.validation.archive.package import Package

_NEEDS = {
    "pytorch_state_dict": "torch",
    "torchscript": "torch",
    "onnx": "onnxruntime",
    "keras_hdf5": "tensorflow",
    "keras_v3": "keras",
    "tensorflow_saved_model_bundle": "tensorflow",
    "tensorflow_js": "",
}
"""Formats of weights that a description may give, and what runs them."""
_SAFE = {"torchscript", "onnx"}
"""The others execute code of the package, or graphs that may read and write files."""
_RUN_CODE = "--run-code"

WEIGHTS = {
    name: declare(
        f"run.{name}", "run", Severity.DEGRADES, asks=f"Weights in the format {name} that can be run here.",
        breaks="nothing is known about these weights",
        fix="Allow it with --run-code, or install what the message names.", order=-8,
    )
    for name in _NEEDS
}  # fmt: skip
LOADS = declare(
    "run.loads", "run", Severity.BLOCKS, asks="Weights that load.", breaks="the model cannot be run",
    fix="See that the weights load.", order=-2,
)  # fmt: skip


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
    keep, pictures
        Folders for arrays and pictures of what failed, and for pictures of the rest; None keeps, or draws, nothing.
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
    """A job, and who is told which check is begun, and what each found (with titles and paths of pictures)."""

    job: Job
    begin: Callable[[str], None] = lambda check_id: None
    found: Callable[[Check, list[tuple[str, Path]]], None] = lambda check, drawn: None
    _raised: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Make every check that needs the model to run; it may never return, so call it in a process of its own."""
        job, descr = self.job, self.job.description.as_written
        self._make(CONTROL, lambda: negative_control(job.package.rdf, descr))
        blocked = {name: why for name in job.description.weights if (why := _why_not(job, name))}
        for name, outcome in blocked.items():
            self._make(WEIGHTS[name], lambda outcome=outcome: outcome)  # type: ignore[misc]
        names = [name for name in job.description.weights if name not in blocked]
        if not names:
            self._make(CORE_TEST, lambda: _nothing_runs(blocked))
            return
        files = {name: job.package.file(_source(job.package, name)) for name in names}
        self._make(
            CORE_TEST,
            lambda: self._each(CORE_TEST, names, lambda name: core_test(descr, name, job.device, files[name])),
        )
        with ExitStack() as stack:
            runners: list[Runner] = []
            if self._make(LOADS, lambda: self._load(names, stack, runners)) is None:
                self._load(names, stack, runners)  # told before, in a process that is gone
            self._run_all(runners)
        if job.engines:
            path = job.package.root / job.package.rdf_name
            self._make(OTHER_VERSIONS, lambda: other_cores(path, names, job.engines, 0.9 * job.seconds))

    def _run_all(self, runners: list[Runner]) -> None:
        """Put all weights through every check, or one of them where they agree and the check takes long."""
        agreement = self._make(AGREEMENT, lambda: formats_agree(runners)) if len(runners) > 1 else None
        for made in definitions("run"):
            subjects = {r.weights_format: r for r in runners if not made.weights or r.weights_format in made.weights}
            # samplers run their network many times for each output
            is_long = made.once or any(runner.is_stochastic for runner in subjects.values())
            if is_long and agreement is not None and agreement.status == "passed":
                subjects = dict(list(subjects.items())[-1:])
            if subjects:
                self._make(made, lambda made=made, of=subjects: self._each(made, of, lambda n: _judged(made, of[n])))  # type: ignore[misc]
        job, scripted = self.job, [runner for runner in runners if runner.weights_format == "torchscript"]
        if job.engines and scripted:
            self._make(OLDER_ENGINE, lambda: other_engines(scripted[0], job.engines, 0.9 * job.seconds))

    def _load(self, names: Iterable[str], stack: ExitStack, runners: list[Runner]) -> Outcome:
        package, description = self.job.package, self.job.description
        descr = description.upgraded or description.as_written

        def load(name: str) -> Outcome:
            file = package.file(_source(package, name))
            runners.append(stack.enter_context(Runner(descr, name, self.job.device, file, package.rdf)))
            return Outcome("passed", "loads")

        return self._each(LOADS, names, load)

    def _each(self, made: Definition, names: Iterable[str], judge: Callable[[str], Outcome]) -> Outcome:
        return merge_outcomes((name, self._guarded(made, lambda name=name: judge(name))) for name in names)  # type: ignore[misc]

    def _make(self, made: Definition, judge: Callable[[], Outcome]) -> Outcome | None:
        """Make a check, unless it is done, and tell of it."""
        if made.id in self.job.done:
            return None
        self.begin(made.id)
        outcome = self._guarded(made, judge)
        if outcome.status == "failed" and not outcome.fix:
            outcome = replace(outcome, fix=made.fix_text)
        check = made.check(outcome)
        if made.id in self._raised:  # a model that raises does not run, however mild the check
            check = replace(check, status=outcome.status)
        self.found(check, keep_evidence(made.id, outcome, keep=self.job.keep, pictures=self.job.pictures))
        return outcome

    def _guarded(self, made: Definition, judge: Callable[[], Outcome]) -> Outcome:
        """What a model raises is its failure; what the check itself raises leaves the question open."""
        try:
            return judge()
        except NotApplicable as reason:
            return Outcome("skipped", one_sentence(reason))
        except ModelError as error:
            self._raised.add(made.id)
            return Outcome("failed", str(error))
        except Exception as error:
            told = f"{type(error).__name__}: {one_sentence(error, 120)}"
            return Outcome("error", f"this check itself raised {told}", "Report it with your model.")


def _judged(made: Definition, runner: Runner) -> Outcome:
    if made.compares and (broken := not_finite(runner.produced)):
        raise NotApplicable(f"nothing can be compared: of what the model gives for the test input {broken}")
    return made.outcome_of(runner)


def _nothing_runs(blocked: dict[str, Outcome]) -> Outcome:
    why = f": {next(iter(blocked.values())).message}" if len(blocked) == 1 else ""
    text = f"none of the weights ({', '.join(blocked) or 'none given'}) was run{why}"
    return Outcome("skipped", text, _RUN_CODE if _RUN_CODE in {found.fix for found in blocked.values()} else "")


def _why_not(job: Job, weights_format: str) -> Outcome | None:
    """Why weights are not run, None if they are."""
    rdf, needed = job.package.rdf, _NEEDS.get(weights_format, "")
    text = ""
    if not needed:
        return Outcome("skipped", f"{weights_format} cannot be run from Python")
    if weights_format not in _SAFE:
        text = f"{weights_format} runs code from the package"
    elif any(step.get("id") == "custom" for step in _steps(rdf)):
        text = "a processing step with id 'custom' runs code from the package"
    elif weights_format == "torchscript" and _touches_files(job.package):
        text = "the TorchScript code reads or writes files"
    if text and not job.run_code:
        return Outcome("skipped", f"{text}, which was not allowed", _RUN_CODE)
    if any(tensor.get("output_of") for tensor in _mappings(rdf.get("inputs"))):
        return Outcome("skipped", "an input is the output of another model, which is not in the package")
    if importlib.util.find_spec(needed) is None:
        return Outcome("skipped", f"{weights_format} needs {needed}, which is not installed", f"Install {needed}.")
    return None


def _source(package: Package, weights_format: str) -> object:
    weights = package.rdf.get("weights")
    entry = weights.get(weights_format) if isinstance(weights, dict) else None
    return entry.get("source") if isinstance(entry, dict) else None


def _touches_files(package: Package) -> bool:
    from gap_bioimage.validation.archive.torchscript import read_code

    path = package.file(_source(package, "torchscript"))
    try:
        return path is not None and read_code(path).touches_files
    except ValueError:  # no TorchScript at all: loading it will say so
        return False


def _steps(rdf: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for tensor in (*_mappings(rdf.get("inputs")), *_mappings(rdf.get("outputs"))):
        for key in ("preprocessing", "postprocessing"):
            yield from _mappings(tensor.get(key))


def _mappings(listed: object) -> list[dict[str, Any]]:
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
