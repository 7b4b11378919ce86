"""Images of other number types than float32: through the declared preprocessing, and in the bare graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.checks import Evidence, Outcome, one_sentence
from gap_bioimage.validation.running.loading import load_script, outputs_of
from gap_bioimage.validation.running.measures import relative_rms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gap_bioimage.validation.running.runner import Runner

DTYPES = ("uint16", "int32", "float64")
GRAPH_DTYPES = ("uint8", "int32", "int64", "float64")
"""What programs hand to a graph: engines older than torch 2.3 have no uint16, and make int32 of it."""
SAME = 1e-4

_TO_FLOAT = frozenset(
    ("scale_linear", "scale_range", "sigmoid", "zero_mean_unit_variance", "fixed_zero_mean_unit_variance")
)


def dtypes(runner: Runner) -> Outcome:
    """Images of other number types give what the same values as float32 give, through the declared preprocessing."""
    counts = {name: as_counts(array) for name, array in runner.small_inputs.items()}
    expected = runner.run({name: array.astype(np.float32) for name, array in counts.items()})
    refused, wrong, evidence = [], [], []
    for dtype, got in _answers(runner.run, counts, DTYPES):
        if isinstance(got, Exception):
            refused.append(f"{dtype} ({one_sentence(got, 100)})")
            continue
        worst = max(relative_rms(got[name], expected[name]) for name in expected)
        if worst > SAME:
            wrong.append(f"{dtype} differs by {worst:.1e} of the scale")
            evidence += [
                Evidence(f"{name} of {dtype}", runner.axes(name), expected[name], got[name]) for name in expected
            ]
    fix = "Begin the preprocessing with ensure_dtype float32, or convert in the network: x.float()."
    if wrong:
        return Outcome("failed", f"the same values as {'; '.join(wrong)}", fix, tuple(evidence))
    if refused:
        return Outcome("warning", f"images are refused as {', '.join(refused)}", fix)
    names = ", ".join(DTYPES)
    return Outcome("passed", f"through the declared preprocessing, in bioimageio.core, {names} give what float32 gives")


def graph_dtypes(runner: Runner) -> Outcome:
    """The TorchScript itself takes images of other number types: nothing converts them where no step is declared."""
    if runner.rdf is not None and all(map(_makes_float, runner.rdf["inputs"])):
        return Outcome("skipped", "the declared preprocessing makes float32 of every image")
    counts = {name: np.minimum(as_counts(array), 255) for name, array in runner.small_inputs.items()}
    module = load_script(runner).eval()
    expected = outputs_of(module, [array.astype(np.float32) for array in counts.values()])
    if isinstance(expected, str):
        return Outcome("skipped", "the outputs cannot be compared, see run.output_kind")
    refused: dict[str, list[str]] = {}
    wrong = []
    for dtype, got in _answers(lambda arrays: outputs_of(module, list(arrays.values())), counts, GRAPH_DTYPES):
        if isinstance(got, Exception):
            refused.setdefault(one_sentence(got, 140).removeprefix("RuntimeError: "), []).append(dtype)
            continue
        worst = max(relative_rms(a.numpy(), b.numpy()) for a, b in zip(got, expected, strict=True))
        if worst > SAME:
            wrong.append(f"{dtype} differs by {worst:.1e} of the scale")
    fix = "Begin forward with x = x.float(), or declare ensure_dtype float32 as the first step."
    if wrong:
        return Outcome("failed", f"in the graph itself, the same values as {'; '.join(wrong)}", fix)
    if refused:
        parts = [f"{', '.join(names)} ({why})" for why, names in refused.items()]
        return Outcome("warning", f"the graph itself refuses images as {'; '.join(parts)}", fix)
    return Outcome("passed", f"the graph itself takes {', '.join(GRAPH_DTYPES)}, and gives what float32 gives")


def _answers(
    run: Callable[[dict[str, NDArray[Any]]], Any], counts: Mapping[str, NDArray[Any]], dtypes: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """What comes out for the same values as each number type, or the error that comes instead."""
    for dtype in dtypes:
        try:
            answer = run({name: array.astype(dtype) for name, array in counts.items()})
        except Exception as error:  # whatever the model raises
            answer = error
        yield dtype, answer


def _makes_float(tensor: Any) -> bool:
    """Whether a step that the author wrote turns an input of any type into float32, in every program."""
    steps = tensor.get("preprocessing") or []
    return any(
        step.get("id") in _TO_FLOAT
        or (step.get("id") == "ensure_dtype" and (step.get("kwargs") or {}).get("dtype") == "float32")
        for step in steps
    )


def as_counts(array: NDArray[Any]) -> NDArray[np.float64]:
    """Whole numbers within 0 to 1000 that every number type holds: the values themselves where they are such."""
    values = np.nan_to_num(array.astype(np.float64))
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < 0 or high > 1000 or high < 2:
        values = (values - low) * (1000 / (high - low) if high > low else 1)
    rounded: NDArray[np.float64] = np.round(values)
    return rounded
