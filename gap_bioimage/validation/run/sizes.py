"""Which sizes of images a model runs: every declared one, those below min, and those between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import NotApplicable, Outcome, Severity, run_check
from gap_bioimage.validation.run.runner import MAX_VOXELS, ModelError, voxels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.run.runner import Runner, Sizes

_FIXED = "the input size is fixed"
_TOO_LARGE = "the smallest declared input is too large to be run here"
_PAD = "programs pad images to min + n step"


@run_check(
    "run.sizes",
    Severity.BLOCKS,
    breaks="images of some sizes fail",
    fix="Correct min, step or the output's size in the description.",
)
def sizes(runner: Runner) -> Outcome:
    """Declared sizes run and give the declared output shape: the smallest, and larger ones along each axis."""
    if not runner.steps:
        raise NotApplicable(_FIXED)
    done = []
    for ns in _size_parameters(runner):
        wanted, promised = runner.sizes(ns)
        if voxels(wanted) > MAX_VOXELS:
            continue
        if problem := _wrong_shape(runner, wanted, promised):
            return Outcome("failed", problem)
        done.append(runner.shape_of(wanted))
    if not done:
        raise NotApplicable(_TOO_LARGE)
    return Outcome("passed", f"{len(done)} sizes from {min(done)} to {max(done)} run")


def _size_parameters(runner: Runner) -> Iterator[dict[tuple[str, str], int]]:
    """Size parameters n: none, one along each axis alone, two along all (equal ones are bioimageio.core's test)."""
    axes = list(dict.fromkeys(axis for _, axis in runner.steps))
    yield dict.fromkeys(runner.steps, 0)
    for longer in axes[:1] if runner.is_stochastic else axes:
        yield {key: int(key[1] == longer) for key in runner.steps}
    if not runner.is_stochastic:
        yield dict.fromkeys(runner.steps, 2)


def _wrong_shape(runner: Runner, wanted: Sizes, promised: dict[str, Any]) -> str | None:
    shape = runner.shape_of(wanted)
    try:
        smallest = wanted == runner.sizes(0)[0]
        produced = runner.small_outputs if smallest else runner.run(runner.inputs_of(wanted))
    except ModelError as error:
        return f"input size {shape} raised {error}"
    for name, declared in promised.items():
        got = dict(zip(runner.axes(name), produced[name].shape, strict=True))
        for axis, size in declared.items():
            if not _fits(got[axis], size):
                return f"input size {shape} gives {name!r} {got[axis]} along {axis}, declared is {size}"
    return None


def _fits(size: int, declared: Any) -> bool:
    if isinstance(declared, int):
        return size == declared
    upper = declared.max  # a size that depends on the data has bounds
    return bool(size >= declared.min and (upper is None or size <= upper))


@run_check("run.odd_sizes", Severity.STYLE, breaks="users have to crop their images",
           fix="Pad to a multiple of step in the network, and crop again.", once=True)  # fmt: skip
def odd_sizes(runner: Runner) -> Outcome:
    """Sizes off the declared grid, such as odd ones, run too, so that users need not crop."""
    flexible = {key: step for key, step in runner.steps.items() if step > 1}
    if not runner.steps:
        raise NotApplicable(_FIXED)
    if not flexible:
        return Outcome("passed", "every size from min on is declared")
    wanted, _ = runner.sizes(0)
    for tensor, axis in flexible:
        wanted[tensor][axis] += 1
    if voxels(wanted) > MAX_VOXELS:
        raise NotApplicable(_TOO_LARGE)
    shape = runner.shape_of(wanted)
    try:
        outputs = runner.run(runner.inputs_of(wanted))
    except ModelError as error:
        raise NotApplicable(f"size {shape} is not declared, and raises {error}; {_PAD}") from error
    for name, array in outputs.items():
        changed = {axis for _, axis in flexible} & set(runner.axes(name))
        pairs = zip(runner.axes(name), array.shape, runner.small_outputs[name].shape, strict=True)
        if any(axis in changed and size == smallest for axis, size, smallest in pairs):
            text = f"size {shape} is not declared, and gives {name!r} of size {array.shape}: pixels are lost"
            raise NotApplicable(f"{text}; {_PAD}")
    return Outcome("passed", f"size {shape} runs, though it is not declared")


@run_check("fiji.below_min", Severity.DEGRADES, breaks="small images fail in Fiji",
           fix="Make the network accept every multiple of step.", weights=("torchscript",))  # fmt: skip
def below_min(runner: Runner) -> Outcome:
    """Multiples of step below min run too: deepImageJ's engine does not enforce min."""
    if not runner.steps:
        raise NotApplicable(_FIXED)
    minimal, _ = runner.sizes(0)
    fitting = {(t, a): (minimal[t][a] - 1) // step for (t, a), step in runner.steps.items()}
    highest = max(fitting.values())
    tried = []
    for k in sorted({1, highest // 2, highest} & set(range(1, highest + 1))):
        wanted: Sizes = {tensor: dict(found) for tensor, found in minimal.items()}
        for (tensor, axis), step in runner.steps.items():
            wanted[tensor][axis] = step * max(1, min(k, fitting[tensor, axis]))
        if voxels(wanted) > MAX_VOXELS:
            continue
        try:
            runner.run(runner.inputs_of(wanted))
        except ModelError as error:
            return Outcome("failed", f"input size {runner.shape_of(wanted)}, below min, raised {error}")
        tried.append(runner.shape_of(wanted))
        if runner.is_stochastic:
            break
    if not tried:
        raise NotApplicable("no multiple of step lies below min")
    return Outcome("passed", f"{len(tried)} sizes below min run, from {tried[0]}")
