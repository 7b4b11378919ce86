"""bioimageio.core's own test, and whether it would notice a wrong output."""

from __future__ import annotations

import glob
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gap_bioimage.validation.checks import Outcome, one_sentence
from gap_bioimage.validation.quiet import quiet
from gap_bioimage.validation.running.measures import core_tolerance, mismatched_ppm, not_finite, wrong_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gap_bioimage.validation.archive.description import Description
    from gap_bioimage.validation.archive.package import Package

_COUNT = re.compile(r"Output '(?P<name>.*?)': (?P<wrong>\d+) of (?P<all>\d+) elements disagree")
_NUMBER = r"[-+\w.]+"
_WORST = re.compile(
    rf"Max absolute difference.*?\\?\|(?P<got>{_NUMBER}) - (?P<expected>{_NUMBER})\\?\|\)? at \{{(?P<place>.*?)\}}",
    re.DOTALL,
)
_PLACE = re.compile(r"'(\w+)'\)?: (?:np\.int64\()?(\d+)")


def core_test(descr: Any, weights_format: str, device: str) -> Outcome:
    """bioimageio.core's test of one weights format; only its status ``passed`` counts.

    A failed inference gives the status ``valid-format``, which reads as if all were well. Its comparison lets values
    pass that are not finite, so that these fail here.
    """
    import torch
    from bioimageio.core import test_description

    before = len(descr.validation_summary.details)
    with tempfile.TemporaryDirectory(prefix="gap-core-") as folder:
        try:
            with quiet():
                summary = test_description(
                    descr,
                    weight_format=cast("Any", weights_format),
                    devices=[device],
                    expected_type=None,
                    determinism="full",  # as the zoo tests
                    working_dir=folder,  # where it leaves what the model gave
                )
        except Exception as error:  # whatever a model raises
            return Outcome("failed", one_sentence(error), "Run `bioimageio test` for the whole story.")
        finally:
            torch.use_deterministic_algorithms(False)  # users run without
        details = summary.details[before:]
        errors = [entry.msg for detail in details for entry in detail.errors]
        if summary.status == "passed" and not errors:
            names = [str(getattr(output, "id", None) or output.name) for output in descr.outputs]  # format 0.5, 0.4
            return _passed(descr, len(details), {name: _made(Path(folder), name) for name in names})
    text = _plain(errors[0]) if errors else f"its status is {summary.status!r} instead of 'passed'"
    fix = "Export the test outputs again with these weights, and see that the declared sizes are accepted."
    return Outcome("failed", f"bioimageio.core's test: {text}", fix)


def _made(folder: Path, output_id: str) -> NDArray[Any]:
    """What the model gave for the test input; nothing where bioimageio.core did not leave it."""
    found = sorted(folder.glob(f"**/actual_output_{glob.escape(output_id)}_*.npy"))
    plain = [path for path in found if "_not_postprocessed_" not in path.name]
    return np.load(plain[0], allow_pickle=False) if plain else np.empty(0)


def _passed(descr: Any, runs: int, made: dict[str, NDArray[Any]]) -> Outcome:
    """What its passing means: little, where numbers are missing that could be compared."""
    text = "bioimageio.core's test passes, but lets any value pass where one is no number:"
    if broken := not_finite(_expected_outputs(descr)[0]):
        fix = "See why the model gave these values, and export test outputs that are numbers."
        return Outcome("failed", f"{text} of the expected outputs {broken}", fix)
    if broken := not_finite(made):
        fix = "Guard divisions and logarithms in the model, and see that its weights are numbers."
        return Outcome("failed", f"{text} of what the model gives for the test input {broken}", fix)
    return Outcome("passed", f"bioimageio.core's test passed in {runs} runs")


def _expected_outputs(descr: Any) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[str, ...]]]:
    """The packaged test outputs by output id, and their axes."""
    from bioimageio.core.digest_spec import get_test_output_sample

    with quiet():
        members = {str(name): tensor for name, tensor in get_test_output_sample(descr).members.items()}
    values = {name: tensor.to_numpy() for name, tensor in members.items()}
    return values, {name: tuple(map(str, tensor.dims)) for name, tensor in members.items()}


def _plain(error: str) -> str:
    """A disagreement in plain words; any other error of bioimageio.core as it is."""
    count, worst = _COUNT.search(error), _WORST.search(error)
    if count is None:
        return one_sentence(error, 240)
    text = f"{count['wrong']} of {count['all']} values of {count['name']!r} disagree with the expected ones"
    if worst is None:
        return text
    axes = [(axis, n) for axis, n in _PLACE.findall(worst["place"]) if axis not in ("batch", "channel") or n != "0"]
    place = " at " + ", ".join(f"{axis} {n}" for axis, n in axes) if axes else ""
    return f"{text}; the worst: expected {_short(worst['expected'])}, got {_short(worst['got'])}{place}"


def _short(number: str) -> str:
    try:
        return f"{float(number):.4g}"
    except ValueError:  # not written as it used to be
        return number


def negative_control(package: Package, description: Description) -> Outcome:
    """Whether bioimageio.core's tolerance would notice a wrong output: a flipped expectation must fail.

    Values that are small against the absolute tolerance pass its test whatever they are.
    """
    try:
        expected, axes = _expected_outputs(description.as_written)
    except Exception as error:  # unreadable or missing test tensors
        text = f"the expected outputs cannot be read: {one_sentence(error)}"
        return Outcome("skipped", text, "Give every output a test_tensor.")
    if broken := not_finite(expected):
        fix = "Export test outputs that are numbers."
        return Outcome("skipped", f"nothing can be compared: of the expected outputs {broken}", fix)
    return _control_of(package.rdf, expected, axes)


def _control_of(rdf: dict[str, Any], expected: dict[str, NDArray[Any]], axes: dict[str, tuple[str, ...]]) -> Outcome:
    """Which of the expected outputs could be exchanged for wrong ones."""
    blind: list[str] = []
    constant: list[str] = []
    seen: list[str] = []
    for name, values in expected.items():
        wrong = list(wrong_versions(values, axes[name]))
        tolerance = core_tolerance(rdf, name, None)
        accepted = [how for how, other in wrong if mismatched_ppm(other, values, tolerance) <= tolerance.ppm]
        (constant if not wrong else blind if accepted else seen).append(
            f"{name!r} {accepted[0]}" if accepted else f"{name!r}"
        )
    fix = "Export values on a larger scale (photons, not fractions), or a test image with structure."
    if blind and not seen:
        text = f"core's test accepts a wrong expected output ({', '.join(blind)}), so it proves nothing"
        return Outcome("failed", text, fix)
    if blind or constant:
        text = f"the test cannot tell right from wrong for {', '.join(blind + constant)}"
        return Outcome("warning", text, fix)
    return Outcome("passed", "a flipped expected output fails the test, as it must")
