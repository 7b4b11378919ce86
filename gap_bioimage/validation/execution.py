"""Run the model: bioimageio.core's own test for every weights format, then what that test leaves out."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from gap_bioimage.validation.checks import Check, Outcome, merge_outcomes, one_sentence, to_check
from gap_bioimage.validation.dynamic import DYNAMIC_CHECKS, formats_agree
from gap_bioimage.validation.facts import Facts
from gap_bioimage.validation.measures import core_tolerance, mismatched_ppm, wrong_versions
from gap_bioimage.validation.quiet import quiet, untouched_randomness
from gap_bioimage.validation.runner import Runner
from gap_bioimage.validation.shapes import is_stochastic
from gap_bioimage.validation.torchscript import read_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gap_bioimage.validation.archive import Package
    from gap_bioimage.validation.description import Description

_RUNS_CODE = {"pytorch_state_dict", "keras_hdf5", "keras_v3", "tensorflow_saved_model_bundle"}
"""Formats whose loading executes code of the package, or graphs that may read and write files."""
_NEEDS = {
    "onnx": "onnxruntime",
    "keras_hdf5": "tensorflow",
    "keras_v3": "keras",
    "tensorflow_saved_model_bundle": "tensorflow",
}
_UNTESTED = {"tensorflow_js"}


def run_checks(package: Package, description: Description, *, run_code: bool, device: str) -> Iterator[Check]:
    """Everything that needs the model to run: the only way in, so that a subprocess can be put behind it.

    Parameters
    ----------
    package, description
        The opened package and its valid description, all files local.
    run_code
        Allow Python code of the package to run.
    device
        Torch device name.

    Yields
    ------
    Checks of the consumers ``core``, ``run`` and ``fiji``. What a model raises becomes a failed check.
    """
    yield negative_control(package, description)
    blocked = {name: why for name in description.weights if (why := _why_not(name, package, run_code))}
    for name, outcome in blocked.items():
        yield to_check(f"run.{name}", "run", outcome)
    runnable = [name for name in description.weights if name not in blocked]
    if not runnable:
        text = f"none of the weights ({', '.join(description.weights) or 'none given'}) was run"
        fix = "--run-code" if any(found.fix == "--run-code" for found in blocked.values()) else ""
        yield Check("core.test", "core", "skipped", text, fix)
        return
    with untouched_randomness():
        found = ((name, core_test(description.as_written, name, device)) for name in runnable)
        yield to_check("core.test", "core", merge_outcomes(found))
        yield from _dynamic_checks(description, runnable, device)


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


def core_test(descr: Any, weights_format: str, device: str) -> Outcome:
    """bioimageio.core's test of one weights format; only its status ``passed`` counts.

    A failed inference gives the status ``valid-format``, which reads as if all were well.
    """
    from bioimageio.core import test_description

    before = len(descr.validation_summary.details)
    try:
        with quiet():
            summary = test_description(
                descr,
                weight_format=cast("Any", weights_format),
                devices=[device],
                expected_type=None,
                determinism="seed_only",
            )
    except Exception as error:  # whatever a model raises
        return Outcome("failed", one_sentence(error), "Run `bioimageio test` for the whole story.")
    errors = [entry.msg for detail in summary.details[before:] for entry in detail.errors]
    if summary.status == "passed" and not errors:
        runs = len(summary.details) - before
        return Outcome("passed", f"bioimageio.core's test passed in {runs} runs")
    text = one_sentence(errors[0] if errors else f"its status is {summary.status!r} instead of 'passed'", 240)
    fix = "Export the test outputs again with these weights, and see that the declared sizes are accepted."
    return Outcome("failed", f"bioimageio.core's test: {text}", fix)


def negative_control(package: Package, description: Description) -> Check:
    """Whether bioimageio.core's tolerance would notice a wrong output: a flipped expectation must fail.

    Values that are small against the absolute tolerance pass its test whatever they are.
    """
    from bioimageio.core.digest_spec import get_test_output_sample

    fix = "Export values on a larger scale (photons, not fractions), or a test image with structure."
    try:
        with quiet():
            sample = get_test_output_sample(description.as_written)
    except Exception as error:  # unreadable or missing test tensors
        text = f"the expected outputs cannot be read: {one_sentence(error)}"
        return Check("run.negative_control", "run", "skipped", text, "Give every output a test_tensor.")
    blind: list[str] = []
    constant: list[str] = []
    seen: list[str] = []
    for name, tensor in sample.members.items():
        wrong = list(wrong_versions(tensor.to_numpy(), tuple(map(str, tensor.dims))))
        tolerance = core_tolerance(package.rdf, str(name), None)
        accepted = [
            how for how, values in wrong if mismatched_ppm(values, tensor.to_numpy(), tolerance) <= tolerance.ppm
        ]
        (constant if not wrong else blind if accepted else seen).append(
            f"{name!r} {accepted[0]}" if accepted else f"{name!r}"
        )
    if blind and not seen:
        text = f"core's test accepts a wrong expected output ({', '.join(blind)}), so it proves nothing"
        return Check("run.negative_control", "run", "failed", text, fix)
    if blind or constant:
        text = f"the test cannot tell right from wrong for {', '.join(blind + constant)}"
        return Check("run.negative_control", "run", "warning", text, fix)
    return Check("run.negative_control", "run", "passed", "a flipped expected output fails the test, as it must")


def _dynamic_checks(description: Description, runnable: list[str], device: str) -> Iterator[Check]:
    """Load each weights format once and put all of them through every check."""
    descr = description.upgraded or description.as_written
    with ExitStack() as stack:
        runners, broken = [], []
        for name in runnable:
            try:
                runners.append(stack.enter_context(Runner(descr, name, device)))
            except Exception as error:  # whatever loading raises
                broken.append((name, Outcome("failed", one_sentence(error), "See that the weights load.")))
        loaded = [(runner.weights_format, Outcome("passed", "loads")) for runner in runners]
        yield to_check("run.loads", "run", merge_outcomes([*broken, *loaded]))
        agreement = _guarded(lambda: formats_agree(runners)) if len(runners) > 1 else None
        if agreement is not None:
            yield to_check("run.formats_agree", "run", agreement)
        for entry in DYNAMIC_CHECKS:
            subjects = [runner for runner in runners if entry.only in (None, runner.weights_format)]
            # samplers run their network many times for each output
            once = entry.once or any(is_stochastic(runner) for runner in subjects)
            if once and agreement is not None and agreement.status == "passed":
                subjects = subjects[-1:]
            if subjects:
                outcome = merge_outcomes(_each(entry.judge, subjects))
                yield to_check(entry.id, entry.consumer, outcome)


def _each(judge: Callable[[Runner], Outcome], runners: Iterable[Runner]) -> Iterator[tuple[str, Outcome]]:
    for runner in runners:
        yield runner.weights_format, _guarded(lambda runner=runner: judge(runner))  # type: ignore[misc]


def _guarded(judge: Callable[[], Outcome]) -> Outcome:
    try:
        return judge()
    except Exception as error:  # whatever the model raises is its failure, not ours
        kind = type(error).__name__
        return Outcome("failed", f"raised {kind}: {one_sentence(error, 200)}", "See that the model accepts this input.")
