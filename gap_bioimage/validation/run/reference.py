"""Comparison with the test outputs, by bioimageio.core and on their own scale, with pictures of the difference.

``archive.tensors`` has checked before any run that the test tensors are finite.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gap_bioimage.files import replacing
from gap_bioimage.pictures import new_figure, save_figure, show
from gap_bioimage.validation import check as registry
from gap_bioimage.validation import quiet
from gap_bioimage.validation.check import Evidence, NotApplicable, Outcome, Severity, counted, one_sentence, run_check
from gap_bioimage.validation.model import Model
from gap_bioimage.validation.rules import tolerances
from gap_bioimage.validation.run.runner import Arrays, ModelError, Runner, of_the_model

_MAX_SHOWN_PX = 1024
_CORE_TOLERANCE = {"relative_tolerance": 1e-3, "absolute_tolerance": 1e-3, "mismatched_elements_per_million": 100.0}
SAME = 1e-3
"""Largest acceptable difference of outputs, as relative RMS."""
_EXPORT_AGAIN = "Export the test outputs again with these weights and this preprocessing."
_UPDATE = "Update the description to format 0.5 (`gap-bioimage repair` does this), or leave axes out of scale_linear."
_GUARD = "Guard divisions and logarithms in the model, and make sure that its weights are finite."
DOES_NOT_RUN = "the model does not run on its test input, see run.reproduces"
ONE_IMAGE = "Export the weights with a batch axis of any size, or declare a batch size of 1."

CONTROL = registry.declare(
    "run.negative_control", "run", Severity.DEGRADES, asks="A test that rejects a wrong output.",
    breaks="the test proves nothing",
    fix="Export values on a larger scale (photons, not fractions), or a test image with structure.", order=-9,
)  # fmt: skip
CORE_TEST = registry.declare(
    "core.test", "run", Severity.BLOCKS, asks="bioimageio.core's own test.",
    breaks="bioimageio.core gives other results, or none", fix=registry.RUNS, order=-9,
)  # fmt: skip
AGREEMENT = registry.declare(
    "run.formats_agree", "run", Severity.DEGRADES, asks="The same results from all weights formats.",
    breaks="users of different programs get different images", fix="Convert the weights again.", order=-1,
)  # fmt: skip


ZOO_DEEPIMAGEJ = 1e-4, 1.5e-4
"""Tolerance of the zoo's deepImageJ check at every pixel: rtol and atol of `mismatched_ppm`."""


def relative_rms(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """RMS difference over the standard deviation of the expected values: a large offset hides no structure.

    For constants the divisor is their magnitude. Infinite for other shapes and for values that are not finite.
    """
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    difference, rms = (float(np.sqrt(np.mean(np.square(values)))) for values in (a - b, b))
    scale = float(b.std()) or rms
    return 0.0 if difference == 0 else difference / scale if scale > 0 else float("inf")


def worst_rms(actual: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """The largest `relative_rms` of several outputs."""
    return max((relative_rms(actual[name], array) for name, array in expected.items()), default=0.0)


def mismatched_ppm(actual: NDArray[Any], expected: NDArray[Any], rtol: float, atol: float) -> float:
    """Elements per million that differ by more than ``atol + rtol |expected|``.

    The count is that of bioimageio.core, except that finite and non-finite values never match: its own comparison
    accepts NaN for any value. Arrays of other shapes differ in every element.
    """
    if actual.shape != expected.shape:
        return 1e6
    a, b = actual.astype(np.float32), expected.astype(np.float32)
    return float((~np.isclose(a, b, rtol, atol, equal_nan=True)).mean() * 1e6)


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Describe how many values of which arrays are NaN or infinite; empty if there are none."""
    floats = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.inexact)}
    counts = {name: int(np.count_nonzero(~np.isfinite(array))) for name, array in floats.items()}
    parts = [f"{n} of {arrays[name].size} values of {name!r}" for name, n in counts.items() if n]
    return f"{', '.join(parts)} {'is' if sum(counts.values()) == 1 else 'are'} NaN or infinite" if parts else ""


def core_test(descr: Any, weights_format: str, device: str) -> Outcome:
    """Run bioimageio.core's test on one weights format; only its status ``passed`` counts.

    A failed inference has the misleading status ``valid-format``. The test accepts outputs that are not finite; they
    fail here.
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
                    working_dir=folder,  # where it writes the model's outputs
                )  # fmt: skip
        finally:
            torch.use_deterministic_algorithms(False)  # users run without it
        files = [path for path in Path(folder).rglob("actual_output_*.npy") if "_not_postprocessed_" not in path.name]
        names = [path.stem.removeprefix("actual_output_").removesuffix(f"_{weights_format}") for path in files]
        outputs = {name: np.load(path, allow_pickle=False) for name, path in zip(names, files, strict=True)}
    details = summary.details[before:]
    failed = [detail for detail in details if detail.errors]
    if failed or summary.status != "passed":
        first = (failed[0].errors[0].msg or failed[0].errors[0].type) if failed else f"status {summary.status}"
        first = re.sub(r"(?:Frozen|np\.\w+)\(([^()]*)\)", r"\1", first).replace("\\|", "|")  # Python's notation
        if failed and all("batch_size: 2 " in detail.name for detail in failed):
            text = "every single image runs, two at once do not, though any batch size is declared: the test fails"
            return Outcome("warning", f"{text}, and so does the zoo's ({one_sentence(first, 120)})", ONE_IMAGE)
        fixes = {"updating the model to v0_5": _UPDATE, "disagree": _EXPORT_AGAIN, "has shape": _EXPORT_AGAIN}
        fix = next((fix for words, fix in fixes.items() if words in first), "")
        return Outcome("failed", f"bioimageio.core's test: {one_sentence(first, 240)}", fix)
    if broken := not_finite(outputs):
        text = f"for the test input, {broken}, which bioimageio.core's test accepts for any value"
        return Outcome("failed", text, _GUARD)
    return Outcome("passed", f"bioimageio.core's test passed in {counted(len(details), 'run')}")


def negative_control(model: Model) -> Outcome:
    """Check that the tolerance, which accepts any small output, rejects shuffled pixels or a doubled single value."""
    accepted = []
    for tensor in model.outputs:
        expected = model.test_array(tensor)
        if expected is None:
            raise NotApplicable("the expected outputs are not .npy files in the package")
        shuffled = np.random.default_rng(0).permutation(expected.ravel()).reshape(expected.shape)
        wrong = shuffled if expected.size > 1 else 2 * expected
        stated = (e for e in tolerances(model.rdf) if tensor.id in (e.get("output_ids") or [tensor.id]))
        limits = _CORE_TOLERANCE | next(stated, {})
        rtol, atol, ppm = (float(limits[name]) for name in _CORE_TOLERANCE)
        if mismatched_ppm(wrong, expected, rtol, atol) <= ppm:
            accepted.append(f"{tensor.id!r} {'shuffled' if expected.size > 1 else 'doubled'}")
    if not accepted:
        return Outcome("passed", "the test rejects a wrong output")
    return Outcome("failed", f"the test accepts a wrong output ({', '.join(accepted)}) and so proves nothing for it")


def non_finite_outputs(runner: Runner) -> str:
    """Describe non-finite outputs for the test input; `NotApplicable` if the model does not run on it."""
    try:
        return not_finite(runner.produced)
    except ModelError:
        raise NotApplicable(DOES_NOT_RUN) from None


def formats_agree(runners: Sequence[Runner]) -> Outcome:
    """Compare the outputs of all weights formats."""
    for runner in runners:
        if broken := non_finite_outputs(runner):
            raise NotApplicable(f"nothing can be compared: with {runner.weights_format}, {broken}")
    first, *others = runners
    reference = first.weights_format
    off = {runner.weights_format: worst_rms(runner.produced, first.produced) for runner in others}
    differences = [f"{name} differs from {reference} by {difference:.1e}" for name, difference in off.items()]
    text = f"{'; '.join(differences)} of the scale (at most {SAME:.0e})"
    if max(off.values()) <= SAME:
        return Outcome("passed", text)
    pairs = (evidence_of(r, r.produced, first.produced, f"{r.weights_format} against {reference}") for r in others)
    return Outcome("failed", text, "", tuple(chain.from_iterable(pairs)))


@run_check("run.reproduces", Severity.BLOCKS, breaks="users cannot tell whether it works for them", fix=_EXPORT_AGAIN)
def reproduces(runner: Runner) -> Outcome:
    """The model reproduces its test outputs, on their own scale (core's tolerance is partly absolute)."""
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, runner.weights_format)
    for name, expected in runner.test_outputs.items():
        if (got := runner.produced[name].shape) != expected.shape:
            return Outcome("failed", f"{name!r} has shape {got}, expected {expected.shape}", "", evidence)
    if broken := not_finite(runner.produced):
        return Outcome("failed", f"for the test input, {broken}", _GUARD, evidence)
    worst = worst_rms(runner.produced, runner.test_outputs)
    text = f"test outputs differ by {worst:.1e} of their scale (at most {SAME:.0e})"
    if worst > SAME and tolerances(runner.rdf):  # bioimageio.core's own test applies the stated tolerance
        return Outcome("warning", f"{text}, and a tolerance is stated", "", evidence)
    return Outcome("passed" if worst <= SAME else "failed", text, "", evidence)


def evidence_of(runner: Runner, got: Arrays, expected: Arrays, title: str) -> tuple[Evidence, ...]:
    """Pair outputs with the expected ones, and with the test input if there is only one."""
    inputs = list(runner.test_inputs.values())
    return tuple(
        Evidence(f"{name}, {title}", runner.axes(name), array, got[name],
                 inputs[0] if len(inputs) == 1 and inputs[0].ndim == array.ndim else None)
        for name, array in expected.items()
    )  # fmt: skip


@run_check("zoo.deepimagej", Severity.DEGRADES, fix=_EXPORT_AGAIN, weights=("torchscript",),
           breaks="the zoo reports the model as failing in deepImageJ")  # fmt: skip
def every_pixel(runner: Runner) -> Outcome:
    """Every pixel of the test output is within the tolerance of the zoo's deepImageJ check."""
    pairs = runner.test_outputs.items()
    worst = max(mismatched_ppm(runner.produced[name], expected, *ZOO_DEEPIMAGEJ) for name, expected in pairs)
    text = f"{worst:.0f} ppm of the test output differ by more than 1.5e-4 + 1e-4 of the value"
    evidence = evidence_of(runner, runner.produced, runner.test_outputs, "every pixel") if worst else ()
    return Outcome("failed" if worst else "passed", text, "", evidence)


def keep_evidence(
    check_id: str, outcome: Outcome, *, keep: Path | None, pictures: Path | None
) -> list[tuple[str, Path]]:
    """Write arrays and pictures of failed checks, and pictures of others, into the folders; return titles and paths."""
    failed = outcome.status == "failed" and keep is not None
    folder = keep if failed else pictures
    if folder is None or not outcome.evidence:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for item in outcome.evidence:
        stem = re.sub(r"[^A-Za-z0-9_.]+", "_", f"{check_id}_{item.title}")[:120]
        arrays = {"given": item.given, "expected": item.expected, "got": item.got}
        for name, array in arrays.items() if failed else ():
            if array is not None:
                with replacing(folder / f"{stem}_{name}.npy") as temporary:
                    np.save(temporary, array)
        draw_evidence(folder / f"{stem}.png", item)
        drawings.append((item.title, folder / f"{stem}.png"))
    return drawings


def draw_evidence(path: Path, evidence: Evidence) -> None:
    """Draw input, expected, got and their difference side by side, one plane of each."""
    arrays = {"input": evidence.given, "expected": evidence.expected, "got": evidence.got}
    planes = {name: _plane(array, evidence.axes) for name, array in arrays.items() if array is not None}
    styles = {name: _limits(planes["input" if name == "input" else "expected"]) for name in planes}
    if planes["got"].shape == planes["expected"].shape:
        planes["got - expected"] = difference = planes["got"] - planes["expected"]
        top = float(np.abs(difference[np.isfinite(difference)]).max(initial=0)) or 1.0
        styles["got - expected"] = {"cmap": "RdBu_r", "vmin": -top, "top": top}
    figure = new_figure(3.2 * len(planes), 3.6)
    figure.suptitle(evidence.title, fontsize=10)
    for axes, (name, plane) in zip(np.ravel(figure.subplots(1, len(planes))), planes.items(), strict=True):
        title = name if "got - expected" in planes else f"{name}, {plane.shape}"
        figure.colorbar(show(axes, title, plane, **styles[name]), ax=axes, location="bottom")
    save_figure(figure, path)


def _limits(image: NDArray[Any]) -> dict[str, Any]:
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.1, 99.9]) if finite.size else (0.0, 1.0)
    return {"vmin": low, "top": high if high > low else low + 1.0}


def _plane(array: NDArray[Any], axes: Sequence[str]) -> NDArray[np.float64]:
    """Return one plane along y and x: the first of every other axis, the middle one along z."""
    names = axes if len(axes) == array.ndim and {"y", "x"} <= {*axes} else [*[""] * (array.ndim - 2), "y", "x"]
    sizes = zip(names, array.shape, strict=False)  # arrays of fewer than two axes have fewer sizes
    index = tuple(slice(_MAX_SHOWN_PX) if n in ("y", "x") else size // 2 if n == "z" else 0 for n, size in sizes)
    plane = np.atleast_2d(array[index].astype(np.float64))
    return plane.T if [name for name in names if name in ("y", "x")] == ["x", "y"] else plane  # y runs down
