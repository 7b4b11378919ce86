"""Whether the packaged test outputs come out of the packaged test inputs, for bioimageio.core and for us.

That they are finite numbers, ``archive.tensors`` has seen before anything is run.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from gap_bioimage.validation.check import Severity, declare, run_check
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.outcome import RUNS, Evidence, NotApplicable, Outcome, one_sentence
from gap_bioimage.validation.quiet import quiet
from gap_bioimage.validation.rules import tolerances
from gap_bioimage.validation.run.compare import ZOO_DEEPIMAGEJ, Tolerance, mismatched_ppm, not_finite, worst_rms
from gap_bioimage.validation.run.runner import Arrays, ModelError, Runner, of_the_model

SAME = 1e-3
"""How far outputs may be off, as relative RMS."""
_EXPORT_AGAIN = "Export the test outputs again with these weights and this preprocessing."
_UPDATE = "Update the description to format 0.5. `gap-bioimage repair` does this."
_GUARD = "Guard divisions and logarithms in the model, and see that its weights are numbers."
ONE_IMAGE = "Export the weights with a batch axis of any size, or declare a batch size of 1."

CONTROL = declare(
    "run.negative_control", "run", Severity.DEGRADES, asks="A test that a wrong output fails.",
    breaks="the test proves nothing",
    fix="Export values on a larger scale (photons, not fractions), or a test image with structure.", order=-9,
)  # fmt: skip
CORE_TEST = declare(
    "core.test", "run", Severity.BLOCKS, asks="bioimageio.core's own test.",
    breaks="bioimageio.core gives other results, or none",
    fix=RUNS, order=-9,
)  # fmt: skip
AGREEMENT = declare(
    "run.formats_agree", "run", Severity.DEGRADES, asks="Weights in several formats that compute the same.",
    breaks="users of different programs get different images", fix="Convert the weights again.", order=-1,
)  # fmt: skip


def core_test(descr: Any, weights_format: str, device: str) -> Outcome:
    """bioimageio.core's test of one weights format; only its status ``passed`` counts.

    A failed inference gives the status ``valid-format``, which reads as if all were well. Its comparison lets values
    pass that are not finite, so that these fail here.
    """
    import torch
    from bioimageio.core import test_description

    before = len(descr.validation_summary.details)
    with tempfile.TemporaryDirectory(prefix="gap-core-") as folder, of_the_model():
        try:
            with quiet():
                summary = test_description(
                    descr, weight_format=cast("Any", weights_format), devices=[device], expected_type=None,
                    determinism="full",  # as the zoo tests
                    working_dir=folder,  # where it leaves what the model gave
                )  # fmt: skip
        finally:
            torch.use_deterministic_algorithms(False)  # users run without
        left = [path for path in Path(folder).rglob("actual_output_*.npy") if "_not_postprocessed_" not in path.name]
        names = [path.stem.removeprefix("actual_output_").removesuffix(f"_{weights_format}") for path in left]
        made = {name: np.load(path, allow_pickle=False) for name, path in zip(names, left, strict=True)}
    details = summary.details[before:]
    failed = [detail for detail in details if detail.errors]
    if failed or summary.status != "passed":
        first = (failed[0].errors[0].msg or failed[0].errors[0].type) if failed else f"status {summary.status}"
        if failed and all("batch_size: 2 " in detail.name for detail in failed):
            text = "every single image runs, two at once do not, though any batch is declared: the test fails"
            return Outcome("warning", f"{text}, and so does the zoo's ({one_sentence(first, 120)})", ONE_IMAGE)
        fix = _UPDATE if "updating the model to v0_5" in first else _EXPORT_AGAIN if "disagree" in first else ""
        first = re.sub(r"(elements disagree with expected values \(.*?\)).*", r"\1", first, flags=re.DOTALL)
        return Outcome("failed", f"bioimageio.core's test: {one_sentence(first, 240)}", fix)
    if broken := not_finite(made):
        text = f"of what the model gives for the test input {broken}"
        return Outcome("failed", f"{text}, which bioimageio.core's test lets pass for any value", _GUARD)
    return Outcome("passed", f"bioimageio.core's test passed in {len(details)} run{'s' * (len(details) != 1)}")


def negative_control(model: Model) -> Outcome:
    """Whether core's tolerance notices shuffled pixels: values that are small against it pass whatever they are."""
    accepted = []
    for tensor in model.outputs:
        expected = model.test_array(tensor)
        if expected is None:
            raise NotApplicable("the expected outputs are not npy files of the package")
        wrong = np.random.default_rng(0).permutation(expected.ravel()).reshape(expected.shape)
        limit = _core_tolerance(model, tensor.id)
        if mismatched_ppm(wrong, expected, limit) <= limit.ppm:
            is_constant = expected.size and expected.min() == expected.max()
            accepted.append(f"{tensor.id!r}, which is constant" if is_constant else f"{tensor.id!r} shuffled")
    if not accepted:
        return Outcome("passed", "a shuffled expected output fails the test, as it must")
    return Outcome("failed", f"core's test accepts a wrong output ({', '.join(accepted)}), so it proves nothing there")


def _core_tolerance(model: Model, output_id: str) -> Tolerance:
    """The tolerance with which bioimageio.core tests an output."""
    applicable = (entry for entry in tolerances(model) if output_id in (entry.get("output_ids") or [output_id]))
    stated = next(applicable, dict[str, Any]())
    rtol, atol = stated.get("relative_tolerance", 1e-3), stated.get("absolute_tolerance", 1e-3)
    return Tolerance(float(rtol), float(atol), float(stated.get("mismatched_elements_per_million", 100)))


def numbers_or_why_not(runner: Runner) -> str:
    """Which outputs for the test input are no numbers; `NotApplicable` where the model does not run on it."""
    try:
        return not_finite(runner.produced)
    except ModelError:
        raise NotApplicable("the model does not run on its test input, see run.reproduces") from None


def formats_agree(runners: Sequence[Runner]) -> Outcome:
    """Whether all weights formats compute the same."""
    for runner in runners:
        if broken := numbers_or_why_not(runner):
            raise NotApplicable(f"nothing can be compared: of what {runner.weights_format} gives {broken}")
    first, *others = runners
    off = {runner.weights_format: worst_rms(runner.produced, first.produced) for runner in others}
    told = [f"{name} differs from {first.weights_format} by {difference:.1e}" for name, difference in off.items()]
    text = f"{'; '.join(told)} of the scale (at most {SAME:.0e})"
    if max(off.values()) <= SAME:
        return Outcome("passed", text)
    against = f"against {first.weights_format}"
    pairs = [evidence_of(r, r.produced, first.produced, f"{r.weights_format} {against}") for r in others]
    return Outcome("failed", text, "", tuple(item for found in pairs for item in found))


@run_check("run.reproduces", Severity.BLOCKS, breaks="users cannot tell whether it works for them", fix=_EXPORT_AGAIN)
def reproduces(runner: Runner) -> Outcome:
    """The test outputs come out, measured on their own scale (core's tolerance is absolute)."""
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, runner.weights_format)
    for name, expected in runner.test_outputs.items():
        if (got := runner.produced[name].shape) != expected.shape:
            return Outcome("failed", f"{name!r} has shape {got}, expected {expected.shape}", "", evidence)
    if broken := not_finite(runner.produced):
        return Outcome("failed", f"of what the model gives for the test input {broken}", _GUARD, evidence)
    worst = worst_rms(runner.produced, runner.test_outputs)
    text = f"test outputs differ by {worst:.1e} of their scale (at most {SAME:.0e})"
    return Outcome("passed" if worst <= SAME else "failed", text, "", evidence)


def evidence_of(runner: Runner, got: Arrays, expected: Arrays, what: str) -> tuple[Evidence, ...]:
    """Outputs beside the expected ones, and beside the test input where there is only one."""
    inputs = list(runner.test_inputs.values())
    return tuple(
        Evidence(f"{name}, {what}", runner.axes(name), array, got[name],
                 inputs[0] if len(inputs) == 1 and inputs[0].ndim == array.ndim else None)
        for name, array in expected.items()
    )  # fmt: skip


@run_check("zoo.deepimagej", Severity.DEGRADES, breaks="the zoo's deepImageJ check fails", fix=_EXPORT_AGAIN,
           weights=("torchscript",))  # fmt: skip
def every_pixel(runner: Runner) -> Outcome:
    """Every pixel of the test output comes out as closely as the zoo's deepImageJ check wants it."""
    pairs = [(runner.produced[name], expected) for name, expected in runner.test_outputs.items()]
    if any(got.shape != expected.shape for got, expected in pairs):
        raise NotApplicable("the shapes differ, see run.reproduces")
    worst = max(mismatched_ppm(got, expected, ZOO_DEEPIMAGEJ) for got, expected in pairs)
    text = f"{worst:.0f} ppm of the test output differ by more than 1.5e-4 + 1e-4 of the value"
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, "every pixel") if worst else ()
    return Outcome("failed" if worst else "passed", text, "", evidence)
