"""What a model must do beyond reproducing its test output; each check takes a loaded model, gives an outcome.

To add one: write a function from `Runner` to `Outcome` and add it to `DYNAMIC_CHECKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.checks import Outcome
from gap_bioimage.validation.running import loading, number_types, reproduction, shapes, tile_runs, tiles
from gap_bioimage.validation.running.measures import not_finite, relative_rms
from gap_bioimage.validation.running.runner import SHARED_SEED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gap_bioimage.validation.running.runner import Arrays, Runner

BATCH = 1e-4
AGREE = 1e-3
CONSERVED = 0.05


@dataclass(frozen=True)
class DynamicCheck:
    """One check of a running model.

    Parameters
    ----------
    id
        As in `Check`; the consumer is its first part.
    judge
        The check itself; the first line of its docstring says what is asked.
    only
        The weights format it is about; None for all.
    once
        Where the formats agree, one of them stands for all: for what costs much.
    compares
        It compares outputs, which says nothing where they are no numbers.
    """

    id: str
    judge: Callable[[Runner], Outcome]
    only: str | None = None
    once: bool = False
    compares: bool = False

    def judged(self, runner: Runner) -> Outcome:
        """Make the check, where the model gives numbers to compare."""
        if self.compares and (broken := not_finite(runner.produced)):
            return Outcome("skipped", f"nothing can be compared: of what the model gives for the test input {broken}")
        return self.judge(runner)


def zero(runner: Runner) -> Outcome:
    """An empty image gives finite numbers."""
    inputs = {name: np.zeros_like(array) for name, array in runner.small_inputs.items()}
    return _finite(runner, inputs, "an all-zero input")


def single_photon(runner: Runner) -> Outcome:
    """An image with a single count gives finite numbers."""
    inputs = {name: np.zeros_like(array) for name, array in runner.small_inputs.items()}
    for array in inputs.values():
        array[tuple(size // 2 for size in array.shape)] = 1
    return _finite(runner, inputs, "a single count of 1")


def _finite(runner: Runner, inputs: Arrays, what: str) -> Outcome:
    for name, array in runner.run(inputs).items():
        broken = int(np.count_nonzero(~np.isfinite(array)))
        if broken:
            text = f"{what} gives {broken} values of {name!r} that are not finite"
            return Outcome("failed", text, "Guard divisions and logarithms in the model with a small constant.")
    return Outcome("passed", f"{what} gives finite outputs")


def batch(runner: Runner) -> Outcome:
    """An image's output does not depend on the images that share its batch."""
    if not runner.batch_is_free:
        return Outcome("skipped", "the batch size is fixed")
    single = {name: array[:1] for name, array in _batch_first(runner, runner.small_inputs).items()}
    # The mates are brighter, mirrored and empty: any statistics over the batch would change.
    mates = {name: [array, 2 * array[..., ::-1], np.zeros_like(array)] for name, array in single.items()}
    together = {name: np.concatenate(items).astype(single[name].dtype) for name, items in mates.items()}
    # the small inputs usually hold one image, whose output is there already
    is_small = all(array.shape[0] == 1 for array in _batch_first(runner, runner.small_inputs).values())
    alone = _batch_first(runner, runner.small_outputs if is_small else runner.run(_batch_back(runner, single)))
    mixed = _batch_first(runner, runner.run(_batch_back(runner, together)))
    worst = max(relative_rms(mixed[name][:1], alone[name]) for name in alone)
    text = f"alone and in a batch of 3 differ by {worst:.1e} of the scale (at most {BATCH:.0e})"
    fix = "Compute statistics per image, never over the batch axis."
    return Outcome("passed", text) if worst <= BATCH else Outcome("failed", text, fix)


def _batch_first(runner: Runner, arrays: Arrays) -> Arrays:
    axes = {name: runner.axes(name) for name in arrays}
    return {n: np.moveaxis(a, axes[n].index("batch"), 0) for n, a in arrays.items() if "batch" in axes[n]}


def _batch_back(runner: Runner, arrays: Arrays) -> Arrays:
    return {name: np.moveaxis(array, 0, runner.axes(name).index("batch")) for name, array in arrays.items()}


def deterministic(runner: Runner) -> Outcome:
    """The same input twice gives the same output, whatever torch's random state."""
    import torch

    first = runner.small_outputs
    torch.manual_seed(SHARED_SEED + 1)
    second = runner.run(runner.small_inputs)
    worst = max(relative_rms(second[name], first[name]) for name in first)
    if worst == 0:
        return Outcome("passed", "two runs give identical outputs")
    text = f"two runs differ by {worst:.1e} of the scale"
    if worst <= BATCH:
        return Outcome("passed", text)
    fix = "Take random numbers from a hash of the pixel's position, not from torch's global generator."
    return Outcome("warning", text, fix)


def conservation(runner: Runner) -> Outcome:
    """A photon model's output sums to as many photons as its input holds, over an image of several tiles."""
    if not claims_photons(runner.descr):
        return Outcome("skipped", "the description does not say that photons are conserved")
    image = tile_runs.tiled_sizes(runner)[0] if runner.steps else None
    if shapes.is_stochastic(runner):  # samplers take long, and their tiles are other samples
        inputs, outputs = runner.preprocess(runner.test_inputs), runner.produced
    elif image is None or shapes.voxels(image) > shapes.MAX_VOXELS:
        inputs = runner.preprocess(runner.test_inputs)
        outputs = runner.run(inputs, preprocessed=True)
    else:
        inputs = runner.preprocess(runner.inputs_of(image))
        outputs = runner.run(inputs, preprocessed=True, padded=True)
    (_, counts), (name, rate) = next(iter(inputs.items())), next(iter(outputs.items()))
    # A sampler's channels are mean, std, samples: the first ones, as many as there are inputs, are rates.
    channel = runner.axes(name).index("channel")
    rate = np.take(rate, range(min(rate.shape[channel], counts.shape[channel])), axis=channel)
    photons = float(counts.sum(dtype=np.float64))
    ratio = float(rate.sum(dtype=np.float64)) / photons if photons > 0 else float("nan")
    text = f"{ratio:.3f} photons out per photon in (1 within {CONSERVED:.0%} expected)"
    if abs(ratio - 1) <= CONSERVED:
        return Outcome("passed", text)
    return Outcome("failed", text, "Renormalise the rate by the local photon sum inside the model.")


def claims_photons(descr: Any) -> bool:
    """Whether a description declares photons in and their rate out.

    Either ``config.gap_bioimage.conserves_photons: true``, or an input ``photons`` with an output ``rate``.
    """
    declared = shapes.declared(descr, "conserves_photons")
    if declared is not None:
        return declared is True
    ids = [str(getattr(tensor, "id", "")) for tensor in (descr.inputs[0], descr.outputs[0])]
    return ids == ["photons", "rate"]


def formats_agree(runners: Sequence[Runner]) -> Outcome:
    """All weights formats compute the same."""
    for runner in runners:
        if broken := not_finite(runner.produced):
            return Outcome("skipped", f"nothing can be compared: of what {runner.weights_format} gives {broken}")
    first = runners[0]
    parts, worst = [], 0.0
    for runner in runners[1:]:
        difference = max(relative_rms(runner.produced[name], first.produced[name]) for name in first.produced)
        worst = max(worst, difference)
        parts.append(f"{runner.weights_format} differs from {first.weights_format} by {difference:.1e}")
    text = f"{'; '.join(parts)} of the scale (at most {AGREE:.0e})"
    if worst <= AGREE:
        return Outcome("passed", text)
    evidence = tuple(
        item
        for runner in runners[1:]
        for item in reproduction.evidence_of(
            runner, runner.produced, first.produced, f"{runner.weights_format} against {first.weights_format}"
        )
    )
    return Outcome("failed", text, "Convert the weights again.", evidence)


DYNAMIC_CHECKS = (
    DynamicCheck("run.reproduces", reproduction.reproduces),
    DynamicCheck("run.output_kind", loading.output_kind, only="torchscript"),
    DynamicCheck("run.deterministic", deterministic, compares=True),
    DynamicCheck("run.sizes", shapes.sizes),
    DynamicCheck("run.odd_sizes", tiles.odd_sizes, once=True),
    DynamicCheck("run.tiled", tiles.tiled, once=True, compares=True),
    DynamicCheck("run.padding", tiles.padding, once=True, compares=True),
    DynamicCheck("run.batch", batch, compares=True),
    DynamicCheck("run.dtypes", number_types.dtypes, once=True, compares=True),
    DynamicCheck("run.zero", zero),
    DynamicCheck("run.single_photon", single_photon),
    DynamicCheck("run.conservation", conservation, once=True, compares=True),
    DynamicCheck("run.cuda", loading.cuda, once=True, compares=True),
    DynamicCheck("run.cost", loading.cost, once=True),
    DynamicCheck("fiji.below_min", shapes.below_min, "torchscript"),
    DynamicCheck("fiji.as_loaded", loading.as_loaded, "torchscript"),
    DynamicCheck("fiji.dtypes", number_types.graph_dtypes, "torchscript", compares=True),
    DynamicCheck("zoo.deepimagej", reproduction.every_pixel, "torchscript"),
)
