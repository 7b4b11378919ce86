"""Whether the packaged test outputs come out of the packaged test inputs, for bioimageio.core and for us.

That they are finite numbers, ``archive.tensors`` has seen before anything is run.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from gap_bioimage.validation.check import Severity, declare, run_check
from gap_bioimage.validation.outcome import Evidence, NotApplicable, Outcome, one_sentence
from gap_bioimage.validation.quiet import quiet
from gap_bioimage.validation.run import compare
from gap_bioimage.validation.run.compare import mismatched_ppm, not_finite, relative_rms
from gap_bioimage.validation.run.runner import Arrays, Runner, of_the_model

REPRODUCED = AGREE = 1e-3
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
    fix="Export the test outputs again with these weights, and see that the declared sizes are accepted.", order=-9,
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
        names = [str(getattr(output, "id", None) or output.name) for output in descr.outputs]  # format 0.5, 0.4
        made = {name: _made(Path(folder), name) for name in names}
    details = summary.details[before:]
    failed = [detail for detail in details if detail.errors]
    if failed or summary.status != "passed":
        first = failed[0].errors[0].msg if failed else f"status {summary.status}"
        if failed and all("batch_size: 2 " in detail.name for detail in failed):
            text = "every single image runs, two at once do not, though any batch is declared: the test fails"
            return Outcome("warning", f"{text}, and so does the zoo's ({one_sentence(first, 120)})", ONE_IMAGE)
        fix = _UPDATE if "updating the model to v0_5" in first else ""
        return Outcome("failed", f"bioimageio.core's test: {one_sentence(first, 240)}", fix)
    if broken := not_finite(made):
        text = f"of what the model gives for the test input {broken}"
        return Outcome("failed", f"{text}, which bioimageio.core's test lets pass for any value", _GUARD)
    return Outcome("passed", f"bioimageio.core's test passed in {len(details)} run{'s' * (len(details) != 1)}")


def _made(folder: Path, output_id: str) -> Any:
    """What the model gave for the test input; nothing where bioimageio.core did not leave it."""
    found = sorted(folder.glob(f"**/actual_output_{glob.escape(output_id)}_*.npy"))
    plain = [path for path in found if "_not_postprocessed_" not in path.name]
    return np.load(plain[0], allow_pickle=False) if plain else np.empty(0)


def expected_outputs(descr: Any) -> tuple[Arrays, dict[str, tuple[str, ...]]]:
    """The packaged test outputs by output id, and their axes."""
    from bioimageio.core.digest_spec import get_test_output_sample

    with quiet():
        members = {str(name): tensor for name, tensor in get_test_output_sample(descr).members.items()}
        values = {name: tensor.to_numpy() for name, tensor in members.items()}
    return values, {name: tuple(map(str, tensor.dims)) for name, tensor in members.items()}


def negative_control(rdf: dict[str, Any], descr: Any) -> Outcome:
    """Whether bioimageio.core's tolerance would notice a wrong output: a flipped expectation must fail.

    Values that are small against the absolute tolerance pass its test whatever they are.
    """
    try:
        expected, axes = expected_outputs(descr)
    except Exception as error:  # unreadable or missing test tensors
        raise NotApplicable(f"the expected outputs cannot be read: {one_sentence(error)}") from error
    accepted = []
    for name, values in expected.items():
        wrong, tolerance = list(compare.wrong_versions(values, axes[name])), compare.core_tolerance(rdf, name)
        passing = [how for how, other in wrong if mismatched_ppm(other, values, tolerance) <= tolerance.ppm]
        if passing or not wrong:
            accepted.append(f"{name!r} {passing[0]}" if passing else f"{name!r}, which is constant")
    if not accepted:
        return Outcome("passed", "a flipped expected output fails the test, as it must")
    if len(accepted) == len(expected):
        told = f"core's test accepts a wrong expected output ({', '.join(accepted)}), so it proves nothing"
        return Outcome("failed", told)
    return Outcome("failed", f"the test cannot tell right from wrong for {', '.join(accepted)}")


def formats_agree(runners: Sequence[Runner]) -> Outcome:
    """Whether all weights formats compute the same."""
    for runner in runners:
        if broken := not_finite(runner.produced):
            raise NotApplicable(f"nothing can be compared: of what {runner.weights_format} gives {broken}")
    first, *others = runners
    off = {runner.weights_format: _worst(runner.produced, first.produced) for runner in others}
    told = "; ".join(
        f"{name} differs from {first.weights_format} by {difference:.1e}" for name, difference in off.items()
    )
    text = f"{told} of the scale (at most {AGREE:.0e})"
    if max(off.values()) <= AGREE:
        return Outcome("passed", text)
    against = f"against {first.weights_format}"
    pairs = [evidence_of(r, r.produced, first.produced, f"{r.weights_format} {against}") for r in others]
    return Outcome("failed", text, "", tuple(item for found in pairs for item in found))


def _worst(got: Arrays, expected: Arrays) -> float:
    return max((relative_rms(got[name], array) for name, array in expected.items()), default=0.0)


@run_check("run.reproduces", Severity.BLOCKS, breaks="users cannot tell whether it works for them", fix=_EXPORT_AGAIN)
def reproduces(runner: Runner) -> Outcome:
    """The test outputs come out, measured on their own scale (core's tolerance is absolute)."""
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, runner.weights_format)
    for name, expected in runner.test_outputs.items():
        if (got := runner.produced[name].shape) != expected.shape:
            return Outcome("failed", f"{name!r} has shape {got}, expected {expected.shape}", "", evidence)
    if broken := not_finite(runner.produced):
        return Outcome("failed", f"of what the model gives for the test input {broken}", _GUARD, evidence)
    worst = _worst(runner.produced, runner.test_outputs)
    text = f"test outputs differ by {worst:.1e} of their scale (at most {REPRODUCED:.0e})"
    return Outcome("passed" if worst <= REPRODUCED else "failed", text, "", evidence)


def evidence_of(runner: Runner, got: Arrays, expected: Arrays, what: str) -> tuple[Evidence, ...]:
    """Outputs beside the expected ones, and beside the test input where there is only one."""
    inputs = list(runner.test_inputs.values())

    def beside(array: Any) -> Any:
        return inputs[0] if len(inputs) == 1 and inputs[0].ndim == array.ndim else None

    pairs = expected.items()
    return tuple(Evidence(f"{n}, {what}", runner.axes(n), array, got[n], beside(array)) for n, array in pairs)


@run_check(
    "zoo.deepimagej", Severity.DEGRADES, breaks="the zoo's deepImageJ check fails", fix=_EXPORT_AGAIN,
    weights=("torchscript",),
)  # fmt: skip
def every_pixel(runner: Runner) -> Outcome:
    """Every pixel of the test output comes out as closely as the zoo's deepImageJ check wants it."""
    pairs = [(runner.produced[name], expected) for name, expected in runner.test_outputs.items()]
    if any(got.shape != expected.shape for got, expected in pairs):
        raise NotApplicable("the shapes differ, see run.reproduces")
    worst = max(mismatched_ppm(got, expected, compare.ZOO_DEEPIMAGEJ) for got, expected in pairs)
    text = f"{worst:.0f} ppm of the test output differ by more than 1.5e-4 + 1e-4 of the value"
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, "every pixel") if worst else ()
    return Outcome("failed" if worst else "passed", text, "", evidence)
