"""Checks of a running model about sizes: every declared one, and those below min."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import Outcome, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.running.runner import Runner, Sizes

MAX_VOXELS = 2**22
"""Larger inputs (channels included) are not made: a U-Net needs some hundred bytes for each."""
MIXED_SECONDS = 10.0
"""Sizes that differ over the axes are tried for so long."""

FIXED = Outcome("skipped", "the input size is fixed")
_TOO_LARGE = Outcome("skipped", "the smallest declared input is too large to be run here")


def sizes(runner: Runner) -> Outcome:
    """Every declared size runs and gives the declared output shape: n = 0, 1, 2, also mixed over the axes."""
    if not runner.steps:
        return FIXED
    start, done = time.monotonic(), []
    for ns in _size_parameters(list(runner.steps)):
        if len(set(ns.values())) > 1 and time.monotonic() - start > MIXED_SECONDS:
            break
        wanted, promised = runner.sizes(ns)
        if voxels(wanted) > MAX_VOXELS:
            continue
        if problem := _wrong_shape(runner, wanted, promised):
            return Outcome("failed", problem, "Correct min, step or the output's size in the description.")
        done.append(shape_of(runner, wanted))
    if not done:
        return _TOO_LARGE
    return Outcome("passed", f"{len(done)} sizes from {min(done)} to {max(done)} run")


def _size_parameters(axes: list[tuple[str, str]]) -> Iterator[dict[tuple[str, str], int]]:
    """Size parameters n by (tensor, axis): equal ones first, then every mixture over the axes' names."""
    names = sorted({axis for _, axis in axes})
    mixtures = itertools.product(range(3), repeat=len(names))
    for chosen in sorted(mixtures, key=lambda ns: (len(set(ns)) > 1, sum(ns))):
        by_name = dict(zip(names, chosen, strict=True))
        yield {(tensor, axis): by_name[axis] for tensor, axis in axes}


def _wrong_shape(runner: Runner, wanted: Sizes, promised: dict[str, Any]) -> str | None:
    shape = shape_of(runner, wanted)
    try:
        smallest = wanted == runner.sizes(0)[0]
        produced = runner.small_outputs if smallest else runner.run(runner.inputs_of(wanted))
    except Exception as error:  # whatever the model raises at this size
        return f"input size {shape} raised {type(error).__name__}: {one_sentence(error, 160)}"
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


def voxels(wanted: Sizes) -> int:
    """Number of elements of the largest input."""
    return max(math.prod(axes.values()) for axes in wanted.values())


def shape_of(runner: Runner, wanted: Sizes) -> tuple[int, ...]:
    """Sizes of the first flexible input along its flexible axes, in pixels."""
    first = next(iter(runner.steps))[0]
    return tuple(wanted[tensor][axis] for tensor, axis in runner.steps if tensor == first)


def below_min(runner: Runner) -> Outcome:
    """Multiples of step below min run too: deepImageJ's engine does not enforce min."""
    if not runner.steps:
        return FIXED
    minimal, _ = runner.sizes(0)
    fitting = {(t, a): (minimal[t][a] - 1) // step for (t, a), step in runner.steps.items()}
    highest = max(fitting.values())
    tried = []
    for k in sorted({1, 2, highest} & set(range(1, highest + 1))):
        wanted: Sizes = {tensor: dict(found) for tensor, found in minimal.items()}
        for (tensor, axis), step in runner.steps.items():
            wanted[tensor][axis] = step * max(1, min(k, fitting[tensor, axis]))
        try:
            runner.run(runner.inputs_of(wanted))
        except Exception as error:  # whatever the model raises at this size
            text = f"input size {shape_of(runner, wanted)}, below min, raised {one_sentence(error, 160)}"
            return Outcome("failed", text, "Make the network accept every multiple of step.")
        tried.append(shape_of(runner, wanted))
    if not tried:
        return Outcome("skipped", "no multiple of step lies below min")
    return Outcome("passed", f"{len(tried)} sizes below min run, from {tried[0]}")


def is_stochastic(runner: Runner) -> bool:
    """Whether a model is declared to draw samples, others in each tile."""
    return declared(runner.descr, "stochastic") is True


def declared(descr: Any, key: str) -> Any:
    """A value of ``config.gap_bioimage`` in a description, None if it is absent."""
    config = descr.config
    extra = config if isinstance(config, dict) else getattr(config, "model_extra", None)
    section = (extra or {}).get("gap_bioimage")
    return section.get(key) if isinstance(section, dict) else None
