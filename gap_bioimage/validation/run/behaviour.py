"""Checks beyond the test output: other images, sizes, dtypes, batches and devices."""

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from gap_bioimage.validation.check import Evidence, NotApplicable, Outcome, Severity, counted, one_sentence, run_check
from gap_bioimage.validation.run import reference
from gap_bioimage.validation.run.runner import MAX_VOXELS, SHARED_SEED, Arrays, Axis, ModelError, Runner, voxels

_SAME = 1e-4
_DEVICES = 1e-3
_COST_VOXELS = 2**18
_DTYPES = ("uint16", "int32", "float64")
_GRAPH_DTYPES = ("uint8", "int32", "int64", "float64")  # engines older than torch 2.3 convert uint16 to int32
_TO_FLOAT = {"scale_linear", "scale_range", "sigmoid", "zero_mean_unit_variance", "fixed_zero_mean_unit_variance"}
_GUARD = "Guard divisions and logarithms in the model with a small constant."
_DESCRIBE = "Describe every tensor that the model returns, in order, and no others."
_FIXED, _TOO_LARGE = "the input size is fixed", "the smallest declared input is too large to run here"
_NO_TENSORS = "the outputs cannot be compared, see run.output_kind"


@run_check("run.output_kind", Severity.BLOCKS, weights=("torchscript",), breaks="programs find no image in the result",
           fix="Return a tensor, or a tuple of tensors in the order of the outputs.")  # fmt: skip
def output_kind(runner: Runner) -> Outcome:
    """The TorchScript returns a tensor, or a tuple or list of tensors, one per described output, never a dict."""
    try:
        outputs, n_described = runner.script.as_saved, len(runner.descr.outputs)
    except ModelError:
        raise NotApplicable(reference.DOES_NOT_RUN) from None
    if isinstance(outputs, str):
        return Outcome("failed", f"the model returns a {outputs}, which programs cannot read")
    if len(outputs) != n_described:  # bioimageio.core ignores surplus tensors
        text = f"the model returns {counted(len(outputs), 'tensor')} instead of the {n_described} described"
        return Outcome("warning" if len(outputs) > n_described else "failed", text, _DESCRIBE)
    return Outcome("passed", f"the model returns as many tensors as described ({n_described})")


@run_check("fiji.as_loaded", Severity.BLOCKS, breaks="Fiji's results differ",
           fix="Call eval() on the network before torch.jit.script or torch.jit.trace, and save it again.",
           weights=("torchscript",), compares=True)  # fmt: skip
def as_loaded(runner: Runner) -> Outcome:
    """The TorchScript as saved computes the same as in evaluation mode: Fiji's engine does not call eval()."""
    expected, got = runner.run_seeded(runner.small_inputs, postprocess=False), runner.script.as_saved
    if isinstance(got, str):
        raise NotApplicable(_NO_TENSORS)
    if len(expected) < (n := len(runner.descr.outputs)):
        raise NotApplicable(f"the {n} described outputs have {len(expected)} names, see format.recommended")
    if len(got) != n:  # JDLL's PytorchInterface.fillOutputTensors
        text = f"Fiji's engine throws, since the model returns {counted(len(got), 'tensor')} instead of {n}"
        return Outcome("failed", text, _DESCRIBE)
    outputs = [(name, array, made) for made, (name, array) in zip(got, expected.items(), strict=True)]
    worst = max(reference.mismatched_ppm(made, array, *reference.ZOO_DEEPIMAGEJ) for _, array, made in outputs)
    training = runner.script.training
    state = f"in training mode ({', '.join(training[:2])}, ...)" if training else "in evaluation mode"
    text = f"saved {state}; as loaded {worst:.0f} ppm of the output differ from evaluation mode"
    evidence = tuple(Evidence(f"{name}, as loaded", runner.axes(name), array, made) for name, array, made in outputs)
    return Outcome("failed", text, "", evidence) if worst else Outcome("passed", text)


@run_check("run.deterministic", Severity.DEGRADES, breaks="nobody gets the same image twice", compares=True,
           fix="Take random numbers from a hash of the pixel position, not from torch's global generator.")  # fmt: skip
def deterministic(runner: Runner) -> Outcome:
    """The same input always gives the same output, whatever torch's random state."""
    import torch

    worst = 0.0
    for run in (1, 2):  # engines optimise a graph in its second run
        torch.manual_seed(SHARED_SEED + run)
        worst = max(worst, reference.worst_rms(runner.run(runner.small_inputs), runner.small_outputs))
    text = f"three runs differ by {worst:.1e} of the scale" if worst else "three runs give identical outputs"
    return Outcome("passed" if worst <= _SAME else "failed", text)


@run_check("run.batch", Severity.DEGRADES, breaks="an image's result depends on its neighbours",
           fix="Compute statistics per image, never over the batch axis: name the axes of processing steps, such as "
               "axes: [channel, y, x].", compares=True)  # fmt: skip
def batch(runner: Runner) -> Outcome:
    """The output for an image does not depend on other images in its batch."""
    batches = [[axis for axis in t.axes if getattr(axis, "type", "") == "batch"] for t in runner.descr.inputs]
    if not all(axes and axes[0].size is None for axes in batches):
        raise NotApplicable("the batch size is fixed")

    def first(arrays: Arrays) -> Arrays:
        axes = {name: runner.axes(name).index("batch") for name in arrays if "batch" in runner.axes(name)}
        return {name: arrays[name].take([0], axis) for name, axis in axes.items()}

    single, batched = first(runner.small_inputs), Arrays()
    for name, array in single.items():  # beside a brighter mirror image and an empty one, all batch statistics change
        flipped = np.flip(array, runner.axes(name).index("x")) if "x" in runner.axes(name) else array
        images = [array, 2 * flipped, np.zeros_like(array)]
        batched[name] = np.concatenate(images, runner.axes(name).index("batch")).astype(array.dtype)
    expected = runner.run(single)
    try:
        got = runner.run(batched)
    except ModelError as error:
        text = f"takes one image at a time, though any batch size is declared: {error}"
        return Outcome("failed", text, reference.ONE_IMAGE)
    worst = reference.worst_rms(first(got), first(expected))
    text = f"outputs alone and in a batch of 3 differ by {worst:.1e} of the scale (at most {_SAME:.0e})"
    return Outcome("passed" if worst <= _SAME else "failed", text)


@run_check("run.dtypes", Severity.DEGRADES, breaks="images in the dtype of the camera give other results, or none",
           fix="Begin the preprocessing with ensure_dtype float32, or convert in the network: x.float().", once=True,
           compares=True)  # fmt: skip
def dtypes(runner: Runner) -> Outcome:
    """Images of other dtypes give the same results as float32, through the declared preprocessing."""
    counts = {name: as_counts(array) for name, array in runner.small_inputs.items()}
    dtypes = _DTYPES[: 1 if runner.is_stochastic else None]
    problem = _other_dtypes(lambda arrays: list(runner.run(arrays).values()), counts, dtypes)
    good = f"{', '.join(dtypes)} give the same as float32, through the declared preprocessing, in bioimageio.core"
    return Outcome("failed" if problem else "passed", problem or good)


@run_check("fiji.dtypes", Severity.DEGRADES, breaks="programs that do not convert images cannot run it",
           fix="Begin forward with x = x.float(), or declare ensure_dtype float32 as the first step.",
           weights=("torchscript",), compares=True)  # fmt: skip
def graph_dtypes(runner: Runner) -> Outcome:
    """The TorchScript itself accepts images of other dtypes: without a declared step nothing converts them."""
    tensors = runner.rdf.get("inputs") or []
    if tensors and all(map(_makes_float, tensors)):
        raise NotApplicable("the declared preprocessing converts every image to float32")
    script = runner.script
    if isinstance(script.as_saved, str):
        raise NotApplicable(_NO_TENSORS)
    counts = {name: np.minimum(as_counts(array), 255) for name, array in runner.small_inputs.items()}
    dtypes = _GRAPH_DTYPES[1:2] if runner.is_stochastic else _GRAPH_DTYPES
    problem = _other_dtypes(lambda arrays: script.run(list(arrays.values())), counts, dtypes)
    good = f"the graph itself takes {', '.join(dtypes)}, with the same results as for float32"
    return Outcome("failed", f"in the graph itself, {problem}") if problem else Outcome("passed", good)


def _other_dtypes(run: Callable[[Arrays], Any], counts: Arrays, dtypes: Sequence[str]) -> str:
    """Describe the first dtype that is refused or differs from float32; empty if there is none."""
    expected = run({name: array.astype(np.float32) for name, array in counts.items()})
    for dtype in dtypes:
        try:
            got = run({name: array.astype(dtype) for name, array in counts.items()})
        except ModelError as error:
            return f"images of dtype {dtype} are refused ({one_sentence(error, 140)})"
        worst = max((reference.relative_rms(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)
        if worst > _SAME:
            return f"results for {dtype} differ by {worst:.1e} of the scale from those for float32"
    return ""


def _makes_float(tensor: Any) -> bool:
    """Whether a declared preprocessing step converts inputs of any dtype to float32, in every program."""
    steps = [(step.get("id", step.get("name")), step.get("kwargs") or {}) for step in tensor.get("preprocessing") or []]
    return any(name in _TO_FLOAT or (name, k.get("dtype")) == ("ensure_dtype", "float32") for name, k in steps)


def as_counts(array: NDArray[Any]) -> NDArray[np.float64]:
    """Round to whole numbers from 0 to 1000; values outside, or all below 2, are first rescaled to that range."""
    values = np.nan_to_num(array.astype(np.float64))
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if low < 0 or high > 1000 or high < 2:
        values = (values - low) * (1000 / (high - low) if high > low else 1)
    return np.asarray(np.round(values))


run_check("run.zero", Severity.DEGRADES, asks="An empty image gives finite numbers.", fix=_GUARD,
          breaks="empty images give no numbers")(lambda runner: _finite(runner, 0, "an all-zero input"))  # fmt: skip
run_check("run.single_photon", Severity.DEGRADES, asks="An image with a single count gives finite numbers.", fix=_GUARD,
          breaks="nearly empty images give no numbers",
)(lambda runner: _finite(runner, 1, "a single count of 1"))  # fmt: skip


def _finite(runner: Runner, n_photons: int, description: str) -> Outcome:
    inputs = {name: np.zeros_like(array) for name, array in runner.small_inputs.items()}
    for array in inputs.values():
        array[tuple(size // 2 for size in array.shape)] = n_photons
    broken = reference.not_finite(runner.run(inputs))
    text = f"for {description}, {broken}" if broken else f"{description} gives finite outputs"
    return Outcome("failed" if broken else "passed", text)


@run_check("run.cuda", Severity.DEGRADES, breaks="users with a GPU get other results",
           fix="Write no device into the model: create tensors on the input's device.", once=True,
           compares=True, order=1)  # fmt: skip
def cuda(runner: Runner) -> Outcome:
    """A GPU gives the same results as the CPU."""
    import torch

    if not torch.cuda.is_available():
        raise NotApplicable("no CUDA device is available")
    return other_device(runner, "cpu" if runner.device.startswith("cuda") else "cuda:0")


def other_device(runner: Runner, device: str) -> Outcome:
    """Compare the test outputs on another device with those on the runner's."""
    try:
        with Runner(runner.descr, runner.weights_format, device, runner.file, runner.rdf) as other:
            got = other.produced
    except ModelError as error:
        return Outcome("failed", f"the model does not run on {device}: {error}")
    worst = reference.worst_rms(got, runner.produced)
    text = f"{device} differs from {runner.device} by {worst:.1e} of the scale (at most {_DEVICES:.0e})"
    if worst <= _DEVICES:
        return Outcome("passed", text)
    return Outcome("failed", text, "", reference.evidence_of(runner, got, runner.produced, device))


@run_check("run.cost", Severity.STYLE, breaks="large images do not fit, or take too long",
           fix="Make the network smaller, or declare smaller tiles.", once=True, order=1)  # fmt: skip
def cost(runner: Runner) -> Outcome:
    """Time and memory per megapixel (or megavoxel) of input."""
    inputs = runner.small_inputs
    if runner.steps and not runner.is_stochastic:
        larger = (runner.sizes(2**k)[0] for k in reversed(range(10)))
        if fitting := next((candidate for candidate in larger if voxels(candidate) <= _COST_VOXELS), None):
            inputs = runner.inputs_of(fitting)
    inputs = runner.preprocess(inputs)
    per_mega = 1e6 / max(array.size for array in inputs.values())
    with contextlib.suppress(OSError):  # only Linux can reset the peak memory and report it
        Path("/proc/self/clear_refs").write_text("5")
    before, start = psutil.Process().memory_info().rss, time.monotonic()
    runner.run(inputs, preprocessed=True)
    text = f"{(time.monotonic() - start) * per_mega:.2g} s"
    with contextlib.suppress(OSError):
        if peak := re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()):
            text += f" and {max(0, int(peak[1]) * 1024 - before) * per_mega / 1e6:.0f} MB"
    return Outcome("passed", f"{text} per megapixel on {runner.device}")


@run_check("run.sizes", Severity.BLOCKS, breaks="images of some sizes fail",
           fix="Correct min, step or the output's size in the description.")  # fmt: skip
def sizes(runner: Runner) -> Outcome:
    """Declared sizes run and give the declared output shape: the smallest, and larger ones along each axis."""
    if not runner.steps:
        raise NotApplicable(_FIXED)
    done = []
    for ns in _size_parameters(runner):
        inputs, outputs = runner.sizes(ns)
        if voxels(inputs) > MAX_VOXELS:
            continue
        shape = runner.shape_of(inputs)
        try:
            is_known = not any(ns.values()) and runner.takes_declared_sizes
            produced = runner.small_outputs if is_known else runner.run(runner.inputs_of(inputs))
        except ModelError as error:
            return Outcome("failed", f"input size {shape} raised {error}")
        for name, axis, size in ((name, *pair) for name, axes in outputs.items() for pair in axes.items()):
            got = produced[name].shape[runner.axes(name).index(axis)]
            low, high = (size, size) if isinstance(size, int) else (size.min, size.max)  # data-dependent: bounds
            if got < low or (high is not None and got > high):
                return Outcome("failed", f"for input size {shape}, {name!r} is {got} along {axis}, declared is {size}")
        done.append(shape)
    if not done:
        raise NotApplicable(_TOO_LARGE)
    return Outcome("passed", f"{counted(len(done), 'size')} from {min(done)} to {max(done)} tried")


def _size_parameters(runner: Runner) -> list[dict[Axis, int]]:
    """Return size parameters n: 0, then 1 along one axis at a time, then 2 (bioimageio.core's test uses equal ones)."""
    axes = dict.fromkeys(axis for _, axis in runner.steps)
    single = [{key: int(key[1] == longer) for key in runner.steps} for longer in axes]
    parameters = [dict.fromkeys(runner.steps, 0), *single, dict.fromkeys(runner.steps, 2)]
    return parameters[:2] if runner.is_stochastic else parameters


@run_check("fiji.below_min", Severity.DEGRADES, breaks="small images fail in Fiji",
           fix="Make the network accept every multiple of step.", weights=("torchscript",))  # fmt: skip
def below_min(runner: Runner) -> Outcome:
    """Multiples of step below min run too: deepImageJ's engine does not enforce min."""
    if not runner.steps or runner.has_linked_sizes:
        raise NotApplicable(_FIXED if not runner.steps else "input sizes refer to those of other inputs")
    minimum, _ = runner.sizes(0)
    multiples = {(tensor, axis): (minimum[tensor][axis] - 1) // step for (tensor, axis), step in runner.steps.items()}
    highest, tried = max(multiples.values()), list[tuple[int, ...]]()
    for k in [1, highest][: min(highest, 1 if runner.is_stochastic else 2)]:
        smaller = {tensor: dict(axes) for tensor, axes in minimum.items()}
        for (tensor, axis), step in runner.steps.items():
            smaller[tensor][axis] = step * max(1, min(k, multiples[tensor, axis]))
        if voxels(smaller) > MAX_VOXELS:
            raise NotApplicable(_TOO_LARGE)
        tried.append(runner.shape_of(smaller))
        try:
            runner.run(runner.inputs_of(smaller))
        except ModelError as error:
            return Outcome("failed", f"input size {tried[-1]}, below min, raised {error}")
    if not tried:
        raise NotApplicable("no multiple of step is below min")
    return Outcome("passed", f"{counted(len(tried), 'size')} below min tried, from {tried[0]}")
