"""Repairs of axes: channel names, pixel sizes, and the sizes that an input may have.

Sizes are only ever narrowed to some of those that were allowed, so that the network accepts all of them, and never
so far that the test tensor's own size is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.repairing.work import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.archive.facts import Axis, TensorFacts
    from gap_bioimage.validation.repairing.work import Work

_LONGEST_AXIS_DESCRIPTION = 128
_LARGEST_FACTOR = 8
"""How many times its step an axis may be coarsened for the sake of ilastik's grid."""


def channel_names(work: Work) -> list[Change]:
    """Name channels channel0, channel1, ... where they have no names."""
    if not work.facts.is_05:
        return []
    changes = []
    for tensor in [*work.facts.inputs, *work.facts.outputs]:
        for index, axis in enumerate(tensor.axes):
            if axis.kind != "channel" or axis.written.get("channel_names"):
                continue
            array, stated = work.test_array(tensor), axis.written.get("size")
            count = int(array.shape[index]) if array is not None else stated if isinstance(stated, int) else 0
            if not count:
                work.notes.append(f"channel_names of {tensor.id} stay empty: no test tensor says how many there are")
                continue
            if isinstance(stated, int):
                del axis.written["size"]  # it follows from the names, and the format forbids it
            names = [f"channel{i}" for i in range(count)]
            axis.written["channel_names"] = names
            changes.append(Change("channel_names", f"channels of {tensor.id}", "no names", ", ".join(names)))
    return changes


def axis_scale(work: Work) -> list[Change]:
    """Leave scales out of input axes, and divide those of the outputs that refer to them, so that sizes stay."""
    facts = work.facts
    if not facts.is_05:
        return []
    scales = {(t.id, axis.id): axis.scale for t in facts.inputs for axis in t.axes if axis.scale not in (0, 1)}
    scales = {key: scale for key, scale in scales.items() if not _is_resized_input(work, facts.inputs, key)}
    changes = []
    for tensor in facts.outputs:
        for axis in tensor.axes:
            scale = scales.get(_referred(axis))
            if scale is not None:
                before = f"{axis.scale:g} {axis.written.pop('unit', '')}".strip()
                ratio = round(axis.scale / scale, 9)
                axis.written.pop("scale", None)
                if ratio != 1:
                    axis.written["scale"] = ratio
                changes.append(Change("axis_scale", f"scale of output {tensor.id}, {axis.id}", before, f"{ratio:g}"))
    for tensor in facts.inputs:
        for axis in tensor.axes:
            if (tensor.id, axis.id) in scales:
                unit = axis.written.pop("unit", None) or "(no unit)"
                before = f"{axis.written.pop('scale')} {unit}"
                _describe(axis, f"pixel size {before}")
                what = f"scale of input {tensor.id}, {axis.id}"
                changes.append(Change("axis_scale", what, before, "1; told in the axis' description"))
    return changes


def _referred(axis: Axis) -> tuple[str, str]:
    size = axis.written.get("size")
    return (str(size.get("tensor_id")), str(size.get("axis_id"))) if isinstance(size, dict) else ("", "")


def _is_resized_input(work: Work, inputs: list[TensorFacts], key: tuple[str, str]) -> bool:
    """Whether an input axis takes part in a change of size between inputs, which its scale then expresses."""
    scales = {(tensor.id, axis.id): axis.scale for tensor in inputs for axis in tensor.axes}
    for tensor in inputs:
        for axis in tensor.axes:
            ends = (tensor.id, axis.id), _referred(axis)
            if key in ends and ends[1] in scales and scales[ends[0]] != scales[ends[1]]:
                work.notes.append(f"scale of input {key[0]}, {key[1]} stays: it relates the sizes of two inputs")
                return True
    return False


def _describe(axis: Axis, text: str) -> None:
    before = str(axis.written.get("description") or "")
    joined = f"{before}; {text}" if before else text
    if len(joined) <= _LONGEST_AXIS_DESCRIPTION:
        axis.written["description"] = joined


@dataclass(frozen=True)
class _Sized:
    """An input axis with a choice of sizes, its halo in pixels, and the test tensor's size along it (if known)."""

    tensor: str
    axis: Axis
    halo: int
    test: int | None
    min_step: tuple[int, int]

    def keeps_test(self, minimum: int, step: int) -> bool:
        """Whether new sizes keep the test tensor's, with or without its halo, as the old ones did."""
        if self.test is None:
            return False
        fits = [_fits(self.test + pad, minimum, step) for pad in (0, 2 * self.halo)]
        return fits[0] or (fits[1] and not _fits(self.test, *self.min_step))

    def set(self, minimum: int, step: int, repair: str) -> Change:
        """Write new sizes."""
        before = "min {}, step {}".format(*self.min_step)
        self.axis.written["size"] = {**self.axis.written["size"], "min": minimum, "step": step}
        return Change(repair, f"size of {self.tensor}, {self.axis.id}", before, f"min {minimum}, step {step}")


def _fits(size: int, minimum: int, step: int) -> bool:
    return size >= minimum and (size - minimum) % step == 0


def _sized(work: Work) -> Iterator[_Sized]:
    facts = work.facts
    for tensor in facts.inputs if facts.is_05 else []:
        array = work.test_array(tensor)
        for index, axis in enumerate(tensor.axes):
            sizes = axis.min_step
            if sizes is not None and sizes[1] > 0:
                halo = math.ceil(facts.halo_of_input.get((tensor.id, axis.id), 0))
                yield _Sized(tensor.id, axis, halo, None if array is None else int(array.shape[index]), sizes)


def min_of_step(work: Work) -> list[Change]:
    """Choose min as a multiple of step.

    All sizes change with that: it is the author's slip only where the test tensor agrees with the new sizes.
    """
    changes = []
    for sized in _sized(work):
        minimum, step = sized.min_step
        if not minimum % step:
            continue
        new = _multiple_above(minimum - 1, step)
        if sized.keeps_test(new, step):
            changes.append(sized.set(new, step, "min_of_step"))
        else:
            work.notes.append(f"min {minimum} of {sized.tensor}, {sized.axis.id} stays: the test tensor needs it")
    return changes


def min_halo(work: Work) -> list[Change]:
    """Raise min above twice the halo."""
    changes = []
    for sized in _sized(work):
        minimum, step = sized.min_step
        if minimum > 2 * sized.halo:
            continue
        new = minimum + _multiple_above(2 * sized.halo - minimum, step)
        if sized.keeps_test(new, step):
            changes.append(sized.set(new, step, "min_halo"))
        else:
            work.notes.append(f"min {minimum} of {sized.tensor}, {sized.axis.id} stays: the test tensor is no larger")
    return changes


def _multiple_above(size: int, step: int) -> int:
    """The smallest multiple of step that is larger than a size."""
    return step * (size // step + 1)


def grid(work: Work) -> list[Change]:
    """Narrow the sizes so that ilastik's size parameter n agrees over the axes of an input."""
    by_tensor: dict[str, list[_Sized]] = {}
    for sized in _sized(work):
        if sized.axis.kind == "space":
            by_tensor.setdefault(sized.tensor, []).append(sized)
    changes = []
    for axes in by_tensor.values():
        target = 64 if any(sized.axis.id == "z" for sized in axes) else 512
        if len({_steps_to(target, *sized.min_step) for sized in axes}) > 1:
            best = _best_grid(axes, target)
            changes += [
                sized.set(*size, "grid") for sized, size in zip(axes, best, strict=True) if size != sized.min_step
            ]
    return changes


def _steps_to(target: int, minimum: int, step: int) -> int:
    return max(0, math.ceil((target - minimum) / step))


def _best_grid(axes: list[_Sized], target: int) -> list[tuple[int, int]]:
    """The least change that makes n agree; none where there is no such change."""
    choices: list[dict[int, tuple[tuple[int, int], tuple[int, int]]]] = []
    for sized in axes:
        found: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        for minimum, step in _narrower(sized):
            cost = step // sized.min_step[1], minimum - sized.min_step[0]
            n = _steps_to(target, minimum, step)
            if n not in found or cost < found[n][0]:
                found[n] = cost, (minimum, step)
        choices.append(found)
    common = set.intersection(*(set(found) for found in choices))
    if not common:
        return [sized.min_step for sized in axes]

    def cost_of(n: int) -> tuple[Any, ...]:
        costs = [found[n][0] for found in choices]
        return sum(factor for factor, _ in costs), sum(raised for _, raised in costs), n

    best = min(common, key=cost_of)
    return [found[best][1] for found in choices]


def _narrower(sized: _Sized) -> Iterator[tuple[int, int]]:
    """Sizes among those that are allowed, with the test tensor's."""
    minimum, step = sized.min_step
    if sized.test is None:
        return
    # an axis of step 1 takes every size, which is worth more to users than ilastik's speed
    for factor in range(1, 2 if step == 1 else _LARGEST_FACTOR + 1):
        coarse = factor * step
        for new in range(minimum, sized.test + 1, step):
            if new % coarse == 0 and sized.keeps_test(new, coarse):
                yield new, coarse
