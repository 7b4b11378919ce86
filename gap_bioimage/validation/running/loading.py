"""Checks of a running model about how it is loaded: as engines load it, other devices, its cost."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.checks import Evidence, Outcome
from gap_bioimage.validation.running.measures import ZOO_DEEPIMAGEJ, mismatched_ppm, relative_rms
from gap_bioimage.validation.running.runner import Runner
from gap_bioimage.validation.running.shapes import MAX_VOXELS, is_stochastic, voxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gap_bioimage.validation.running.runner import Sizes

DEVICES = 1e-3
COST_VOXELS = 2**20
"""The cost is measured on an image of about a megapixel, or the largest that can be run here."""


def as_loaded(runner: Runner) -> Outcome:
    """The TorchScript gives the same in the state in which it was saved: Fiji's engine does not switch it to eval."""
    expected = list(runner.run(runner.small_inputs, postprocess=False).items())
    module = load_script(runner)
    training = [name or "the module" for name, part in module.named_modules() if getattr(part, "training", False)]
    outputs = _outputs_of(module, runner)
    if not isinstance(outputs, list) or len(outputs) != len(expected):
        return Outcome("skipped", "the outputs cannot be compared, see run.output_kind")
    got = [output.numpy() for output in outputs]
    if any(a.shape != b.shape for a, (_, b) in zip(got, expected, strict=True)):
        return Outcome("failed", "the shapes differ from those in evaluation mode", "Call eval() before saving it.")
    worst = max(mismatched_ppm(a, b, ZOO_DEEPIMAGEJ) for a, (_, b) in zip(got, expected, strict=True))
    state = f"in training mode ({', '.join(training[:2])}, ...)" if training else "in evaluation mode"
    text = f"saved {state}; as it is loaded {worst:.0f} ppm of the output differ from evaluation mode"
    if worst == 0:
        return Outcome("passed", text)
    evidence = tuple(
        Evidence(f"{name}, as loaded", runner.axes(name), array, made)
        for made, (name, array) in zip(got, expected, strict=True)
    )
    return Outcome("failed", text, "Call eval() on the network before torch.jit.save.", evidence)


def output_kind(runner: Runner) -> Outcome:
    """The TorchScript returns a tensor, a tuple or a list of tensors, as many as are described, never a dict."""
    outputs = _outputs_of(load_script(runner).eval(), runner)
    wanted = len(runner.test_outputs)
    if not isinstance(outputs, list):
        fix = "Return a tensor, or a tuple of tensors in the order of the outputs."
        return Outcome("failed", f"the model returns a {outputs}, which no program reads", fix)
    if len(outputs) != wanted:
        fix = "Describe every tensor that the model returns, in its order, and no other."
        return Outcome("failed", f"the model returns {len(outputs)} tensors, {wanted} are described", fix)
    return Outcome("passed", f"{len(outputs)} tensors are returned, as described")


def load_script(runner: Runner) -> Any:
    """The TorchScript, as an engine loads it: no `eval`."""
    import torch

    return torch.jit.load(str(runner.file), map_location="cpu")  # type: ignore[no-untyped-call]


def _outputs_of(module: Any, runner: Runner) -> list[Any] | str:
    return outputs_of(module, list(runner.preprocess(runner.small_inputs).values()))


def outputs_of(module: Any, inputs: list[NDArray[Any]]) -> list[Any] | str:
    """The tensors that a module returns for some inputs, or the name of the type that it returns instead."""
    import torch

    with torch.no_grad():
        returned = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
    outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    strange = [type(output).__name__ for output in outputs if not isinstance(output, torch.Tensor)]
    return strange[0] if strange else outputs


def cuda(runner: Runner) -> Outcome:
    """A GPU gives what the CPU gives."""
    import torch

    if not torch.cuda.is_available():
        return Outcome("skipped", "there is no CUDA device here")
    return other_device(runner, "cpu" if runner.device.startswith("cuda") else "cuda:0")


def other_device(runner: Runner, device: str) -> Outcome:
    """Compare the test outputs on another device with those on the runner's."""
    with Runner(runner.descr, runner.weights_format, device, runner.file) as other:
        got = other.produced
    worst = max(relative_rms(got[name], array) for name, array in runner.produced.items())
    text = f"{device} differs from {runner.device} by {worst:.1e} of the scale (at most {DEVICES:.0e})"
    if worst <= DEVICES:
        return Outcome("passed", text)
    evidence = tuple(Evidence(f"{n}, {device}", runner.axes(n), array, got[n]) for n, array in runner.produced.items())
    return Outcome("failed", text, "See that no device is written into the model, and no order is random.", evidence)


def cost(runner: Runner) -> Outcome:
    """Time and memory that the model takes for each megapixel (or megavoxel) of input."""
    image = runner.small_inputs if is_stochastic(runner) else runner.inputs_of(_costly(runner))
    inputs = runner.preprocess(image)
    n_voxels = max(array.size for array in inputs.values())
    forget_peak()
    before, start = peak_memory(), time.monotonic()
    runner.run(inputs, preprocessed=True)
    seconds, after = time.monotonic() - start, peak_memory()
    per_mega = 1e6 / n_voxels
    memory = "" if after is None or before is None else f" and {(after - before) * per_mega / 1e6:.0f} MB"
    return Outcome("passed", f"{seconds * per_mega:.2g} s{memory} per megapixel on {runner.device}")


def _costly(runner: Runner) -> Sizes:
    """The largest declared sizes of at most about a megapixel."""
    if not runner.steps:
        return {name: dict(zip(runner.axes(name), a.shape, strict=True)) for name, a in runner.test_inputs.items()}
    n = 0
    chosen, _ = runner.sizes(0)
    while n < 10_000:
        n = max(n + 1, math.ceil(1.3 * n))
        larger, _ = runner.sizes(n)
        if voxels(larger) > min(COST_VOXELS, MAX_VOXELS):
            break
        chosen = larger
    return chosen


def peak_memory() -> int | None:
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


def forget_peak() -> None:
    """Let the peak begin anew at the present memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
