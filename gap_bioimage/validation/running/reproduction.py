"""Whether the packaged test outputs come out of the packaged test inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.checks import Evidence, Outcome
from gap_bioimage.validation.running.measures import ZOO_DEEPIMAGEJ, mismatched_ppm, not_finite, relative_rms

if TYPE_CHECKING:
    from gap_bioimage.validation.running.runner import Arrays, Runner

REPRODUCED = 1e-3

_EXPORT_AGAIN = "Export the test outputs again with these weights and this preprocessing."
_EXCHANGE = "Exchange the files of the test tensors, with their hashes."


def reproduces(runner: Runner) -> Outcome:
    """The test outputs come out, measured on their own scale (core's tolerance is absolute)."""
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, runner.weights_format)
    for name, expected in runner.test_outputs.items():
        got = runner.produced[name]
        if got.shape != expected.shape:
            text = f"{name!r} has shape {got.shape}, expected {expected.shape}"
            return Outcome("failed", text, _EXPORT_AGAIN, evidence)
    if problem := _not_comparable(runner):
        return Outcome("failed", *problem, evidence)
    worst = max(relative_rms(runner.produced[name], expected) for name, expected in runner.test_outputs.items())
    text = f"test outputs differ by {worst:.1e} of their scale (at most {REPRODUCED:.0e})"
    if worst <= REPRODUCED:
        return Outcome("passed", text, "", evidence)
    exchanged = _exchanged(runner)
    return Outcome("failed", text + exchanged, _EXCHANGE if exchanged else _EXPORT_AGAIN, evidence)


def _not_comparable(runner: Runner) -> tuple[str, str] | None:
    """What is not finite, in words, and what to do."""
    if broken := not_finite(runner.test_outputs):
        return f"nothing can be compared: of the expected outputs {broken}", (
            "See why the model gave these values, and export test outputs that are numbers."
        )
    if broken := not_finite(runner.produced):
        return f"of what the model gives for the test input {broken}", (
            "Guard divisions and logarithms in the model, and see that its weights are numbers."
        )
    return None


def _exchanged(runner: Runner) -> str:
    """Which test tensors would agree if they were exchanged, as the end of a sentence; empty if none would."""
    made, wanted, given = runner.produced, runner.test_outputs, runner.test_inputs
    pairs = [(a, b) for a in wanted for b in wanted if a < b]
    for a, b in pairs:
        if max(relative_rms(made[a], wanted[b]), relative_rms(made[b], wanted[a])) <= REPRODUCED:
            return f"; the test tensors of {a!r} and {b!r} look exchanged"
    if len(given) == len(wanted) == 1:
        (first, image), (second, result) = next(iter(given.items())), next(iter(wanted.items()))
        if image.shape == result.shape and image.dtype == result.dtype:
            try:
                backwards = runner.run({first: result})[second]
            except Exception:  # not an input that it takes, whatever it raises
                return ""
            if relative_rms(backwards, image) <= REPRODUCED:
                return "; the test tensors of input and output look exchanged"
    return ""


def evidence_of(runner: Runner, got: Arrays, expected: Arrays, what: str) -> tuple[Evidence, ...]:
    """Outputs beside the expected ones, and beside the test input where there is only one."""
    inputs = list(runner.test_inputs.values())
    given = inputs[0] if len(inputs) == 1 else None
    fits = {name: given is not None and given.ndim == array.ndim for name, array in expected.items()}
    return tuple(
        Evidence(f"{name}, {what}", runner.axes(name), array, got[name], given if fits[name] else None)
        for name, array in expected.items()
    )


def every_pixel(runner: Runner) -> Outcome:
    """Every pixel of the test output comes out as closely as the zoo's deepImageJ check wants it."""
    if broken := not_finite(runner.test_outputs):
        return Outcome("skipped", f"nothing can be compared: of the expected outputs {broken}")
    worst = max(
        mismatched_ppm(runner.produced[name], expected, ZOO_DEEPIMAGEJ)
        for name, expected in runner.test_outputs.items()
    )
    text = f"{worst:.0f} ppm of the test output differ by more than 1.5e-4 + 1e-4 of the value"
    if worst == 0:
        return Outcome("passed", text)
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, "every pixel")
    return Outcome("failed", text, _EXPORT_AGAIN, evidence)
