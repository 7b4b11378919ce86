"""What users expect of a model besides its test output: other images, number types and batches, other devices."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.check import Evidence, NotApplicable, Outcome, Severity, one_sentence, run_check
from gap_bioimage.validation.run.compare import ZOO_DEEPIMAGEJ, mismatched_ppm, relative_rms
from gap_bioimage.validation.run.runner import SHARED_SEED, ModelError, Runner, voxels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gap_bioimage.validation.run.runner import Arrays, Sizes

SAME = 1e-4
DEVICES = 1e-3
COST_VOXELS = 2**18
"""The cost is measured on an image of about that size, and given per megapixel."""
DTYPES = ("uint16", "int32", "float64")
GRAPH_DTYPES = ("uint8", "int32", "int64", "float64")
"""What programs hand to a graph: engines older than torch 2.3 have no uint16, and make int32 of it."""

_TO_FLOAT = frozenset(
    ("scale_linear", "scale_range", "sigmoid", "zero_mean_unit_variance", "fixed_zero_mean_unit_variance")
)
_GUARD = "Guard divisions and logarithms in the model with a small constant."


@run_check(
    "run.output_kind",
    Severity.BLOCKS,
    breaks="programs find no image in what it returns",
    fix="Return a tensor, or a tuple of tensors in the order of the outputs.",
    weights=("torchscript",),
)
def output_kind(runner: Runner) -> Outcome:
    """The TorchScript returns a tensor, a tuple or a list of tensors, as many as are described, never a dict."""
    outputs, wanted = runner.script.as_saved, len(runner.test_outputs)
    if isinstance(outputs, str):
        return Outcome("failed", f"the model returns a {outputs}, which no program reads")
    if len(outputs) != wanted:
        fix = "Describe every tensor that the model returns, in its order, and no other."
        return Outcome("failed", f"the model returns {len(outputs)} tensors, {wanted} are described", fix)
    return Outcome("passed", f"{len(outputs)} tensors are returned, as described")


@run_check(
    "fiji.as_loaded",
    Severity.BLOCKS,
    breaks="Fiji's results differ",
    fix="Call eval() on the network before torch.jit.script or torch.jit.trace, and save it again.",
    weights=("torchscript",),
    compares=True,
)
def as_loaded(runner: Runner) -> Outcome:
    """The TorchScript gives the same in the state in which it was saved: Fiji's engine does not switch it to eval."""
    expected, got = list(runner.graph_outputs.items()), runner.script.as_saved
    if isinstance(got, str) or len(got) != len(expected):
        raise NotApplicable("the outputs cannot be compared, see run.output_kind")
    if any(a.shape != b.shape for a, (_, b) in zip(got, expected, strict=True)):
        return Outcome("failed", "the shapes differ from those in evaluation mode")
    worst = max(mismatched_ppm(a, b, ZOO_DEEPIMAGEJ) for a, (_, b) in zip(got, expected, strict=True))
    training = runner.script.training
    state = f"in training mode ({', '.join(training[:2])}, ...)" if training else "in evaluation mode"
    text = f"saved {state}; as it is loaded {worst:.0f} ppm of the output differ from evaluation mode"
    if worst == 0:
        return Outcome("passed", text)
    evidence = tuple(
        Evidence(f"{name}, as loaded", runner.axes(name), array, made)
        for made, (name, array) in zip(got, expected, strict=True)
    )
    return Outcome("failed", text, "", evidence)


@run_check(
    "run.deterministic",
    Severity.DEGRADES,
    breaks="nobody gets the same image twice",
    fix="Take random numbers from a hash of the pixel's position, not from torch's global generator.",
    compares=True,
)
def deterministic(runner: Runner) -> Outcome:
    """The same input gives the same output again and again, whatever torch's random state."""
    import torch

    first, worst = runner.small_outputs, 0.0
    for run in (1, 2):  # engines optimise a graph while it runs for the second time
        torch.manual_seed(SHARED_SEED + run)
        again = runner.run(runner.small_inputs)
        worst = max(worst, *(relative_rms(again[name], first[name]) for name in first))
    if worst == 0:
        return Outcome("passed", "three runs give identical outputs")
    return Outcome("passed" if worst <= SAME else "failed", f"three runs differ by {worst:.1e} of the scale")


@run_check(
    "run.batch",
    Severity.DEGRADES,
    breaks="an image's result depends on its neighbours",
    fix="Compute statistics per image, never over the batch axis.",
    compares=True,
)
def batch(runner: Runner) -> Outcome:
    """An image's output does not depend on the images that share its batch."""
    if not runner.batch_is_free:
        raise NotApplicable("the batch size is fixed")
    small = _batch_first(runner, runner.small_inputs)
    single = {name: array[:1] for name, array in small.items()}
    # The mates are brighter, mirrored and empty: any statistics over the batch would change.
    mates = {name: [array, 2 * array[..., ::-1], np.zeros_like(array)] for name, array in single.items()}
    together = {name: np.concatenate(items).astype(single[name].dtype) for name, items in mates.items()}
    is_one = all(array.shape[0] == 1 for array in small.values())
    alone = _batch_first(runner, runner.small_outputs if is_one else runner.run(_batch_back(runner, single)))
    try:
        mixed = _batch_first(runner, runner.run(_batch_back(runner, together)))
    except ModelError as error:
        fix = "Export the weights with a batch axis of any size, or declare a batch size of 1."
        return Outcome("failed", f"takes one image at a time, though any batch is declared: {error}", fix)
    worst = max(relative_rms(mixed[name][:1], alone[name]) for name in alone)
    text = f"alone and in a batch of 3 differ by {worst:.1e} of the scale (at most {SAME:.0e})"
    return Outcome("passed" if worst <= SAME else "failed", text)


def _batch_first(runner: Runner, arrays: Arrays) -> Arrays:
    axes = {name: runner.axes(name) for name in arrays}
    return {n: np.moveaxis(a, axes[n].index("batch"), 0) for n, a in arrays.items() if "batch" in axes[n]}


def _batch_back(runner: Runner, arrays: Arrays) -> Arrays:
    return {name: np.moveaxis(array, 0, runner.axes(name).index("batch")) for name, array in arrays.items()}


@run_check(
    "run.dtypes",
    Severity.DEGRADES,
    breaks="images as cameras write them give other results, or none",
    fix="Begin the preprocessing with ensure_dtype float32, or convert in the network: x.float().",
    once=True,
    compares=True,
)
def dtypes(runner: Runner) -> Outcome:
    """Images of other number types give what the same values as float32 give, through the declared preprocessing."""
    counts = {name: as_counts(array) for name, array in runner.small_inputs.items()}
    names = tuple(runner.run({name: array.astype(np.float32) for name, array in counts.items()}))
    wanted = DTYPES[:1] if runner.is_stochastic else DTYPES
    refused, wrong = _compared(lambda arrays: list(runner.run(arrays).values()), counts, wanted)
    if wrong:
        return Outcome("failed", f"the same values as {'; '.join(wrong)}")
    if refused:
        parts = [f"{', '.join(kinds)} ({why})" for why, kinds in refused.items()]
        return Outcome("failed", f"images are refused as {'; '.join(parts)}")
    text = f"through the declared preprocessing, in bioimageio.core, {', '.join(wanted)} give what float32 gives"
    return Outcome("passed", text if names else "there is no output")


@run_check(
    "fiji.dtypes",
    Severity.DEGRADES,
    breaks="programs that hand over images as they are cannot run it",
    fix="Begin forward with x = x.float(), or declare ensure_dtype float32 as the first step.",
    weights=("torchscript",),
    compares=True,
)
def graph_dtypes(runner: Runner) -> Outcome:
    """The TorchScript itself takes images of other number types: nothing converts them where no step is declared."""
    tensors = runner.rdf.get("inputs") or []
    if tensors and all(map(_makes_float, tensors)):
        raise NotApplicable("the declared preprocessing makes float32 of every image")
    script = runner.script
    if isinstance(script.as_saved, str):
        raise NotApplicable("the outputs cannot be compared, see run.output_kind")
    counts = {name: np.minimum(as_counts(array), 255) for name, array in runner.small_inputs.items()}
    wanted = GRAPH_DTYPES[1:2] if runner.is_stochastic else GRAPH_DTYPES
    refused, wrong = _compared(lambda arrays: script.run(list(arrays.values())), counts, wanted)
    if wrong:
        return Outcome("failed", f"in the graph itself, the same values as {'; '.join(wrong)}")
    if refused:
        parts = [f"{', '.join(names)} ({why})" for why, names in refused.items()]
        return Outcome("failed", f"the graph itself refuses images as {'; '.join(parts)}")
    return Outcome("passed", f"the graph itself takes {', '.join(wanted)}, and gives what float32 gives")


def _compared(
    run: Callable[[Arrays], Any], counts: Mapping[str, NDArray[Any]], dtypes: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Number types that are refused, by the reason, and those that give something else than float32."""
    expected = run({name: array.astype(np.float32) for name, array in counts.items()})
    refused: dict[str, list[str]] = {}
    wrong: list[str] = []
    for dtype in dtypes:
        try:
            got = run({name: array.astype(dtype) for name, array in counts.items()})
        except ModelError as error:
            refused.setdefault(one_sentence(str(error).removeprefix("RuntimeError: "), 140), []).append(dtype)
            continue
        worst = max((relative_rms(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        if worst > SAME:
            wrong.append(f"{dtype} differs by {worst:.1e} of the scale")
    return refused, wrong


def _makes_float(tensor: Any) -> bool:
    """Whether a step that the author wrote turns an input of any type into float32, in every program."""
    steps = tensor.get("preprocessing") or []
    return any(
        step.get("id", step.get("name")) in _TO_FLOAT
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


@run_check("run.zero", Severity.DEGRADES, breaks="empty images give no numbers", fix=_GUARD)
def zero(runner: Runner) -> Outcome:
    """An empty image gives finite numbers."""
    return _finite(runner, {name: np.zeros_like(a) for name, a in runner.small_inputs.items()}, "an all-zero input")


@run_check("run.single_photon", Severity.DEGRADES, breaks="nearly empty images give no numbers", fix=_GUARD)
def single_photon(runner: Runner) -> Outcome:
    """An image with a single count gives finite numbers."""
    inputs = {name: np.zeros_like(array) for name, array in runner.small_inputs.items()}
    for array in inputs.values():
        array[tuple(size // 2 for size in array.shape)] = 1
    return _finite(runner, inputs, "a single count of 1")


def _finite(runner: Runner, inputs: Arrays, what: str) -> Outcome:
    for name, array in runner.run(inputs).items():
        if broken := int(np.count_nonzero(~np.isfinite(array))):
            return Outcome("failed", f"{what} gives {broken} values of {name!r} that are not finite")
    return Outcome("passed", f"{what} gives finite outputs")


@run_check(
    "run.cuda",
    Severity.DEGRADES,
    breaks="users with a GPU get other results",
    fix="See that no device is written into the model: create tensors on the input's device.",
    once=True,
    compares=True,
    order=1,
)
def cuda(runner: Runner) -> Outcome:
    """A GPU gives what the CPU gives."""
    import torch

    if not torch.cuda.is_available():
        raise NotApplicable("there is no CUDA device here")
    return other_device(runner, "cpu" if runner.device.startswith("cuda") else "cuda:0")


def other_device(runner: Runner, device: str) -> Outcome:
    """Compare the test outputs on another device with those on the runner's."""
    try:
        with Runner(runner.descr, runner.weights_format, device, runner.file, runner.rdf) as other:
            got = other.produced
    except ModelError as error:
        return Outcome("failed", f"does not run on {device}: {error}")
    worst = max(relative_rms(got[name], array) for name, array in runner.produced.items())
    text = f"{device} differs from {runner.device} by {worst:.1e} of the scale (at most {DEVICES:.0e})"
    if worst <= DEVICES:
        return Outcome("passed", text)
    evidence = tuple(Evidence(f"{n}, {device}", runner.axes(n), array, got[n]) for n, array in runner.produced.items())
    return Outcome("failed", text, "", evidence)


@run_check(
    "run.cost",
    Severity.STYLE,
    breaks="large images do not fit, or take too long",
    fix="Make the network smaller, or declare smaller tiles.",
    once=True,
    order=1,
)
def cost(runner: Runner) -> Outcome:
    """Time and memory that the model takes for each megapixel (or megavoxel) of input."""
    image = runner.small_inputs if runner.is_stochastic or not runner.steps else runner.inputs_of(_costly(runner))
    inputs = runner.preprocess(image)
    n_voxels = max(array.size for array in inputs.values())
    _forget_peak()
    before, start = _peak_memory(), time.monotonic()
    runner.run(inputs, preprocessed=True)
    seconds, after = time.monotonic() - start, _peak_memory()
    per_mega = 1e6 / n_voxels
    memory = "" if after is None or before is None else f" and {(after - before) * per_mega / 1e6:.0f} MB"
    return Outcome("passed", f"{seconds * per_mega:.2g} s{memory} per megapixel on {runner.device}")


def _costly(runner: Runner) -> Sizes:
    """The largest declared sizes of at most about the size at which the cost is measured."""
    n = 0
    chosen, _ = runner.sizes(0)
    while n < 10_000:
        n = max(n + 1, math.ceil(1.3 * n))
        larger, _ = runner.sizes(n)
        if voxels(larger) > COST_VOXELS:
            break
        chosen = larger
    return chosen


def _peak_memory() -> int | None:
    """The largest resident memory of this process so far, bytes; None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _forget_peak() -> None:
    """Let the peak begin anew at the present memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
