"""Repairs of axes: ids, channel names, pixel sizes, and the sizes that an input may have.

Sizes are only ever narrowed to some of those that were allowed, so that the network accepts all of them, and never
so far that the test tensor's own size is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gap_bioimage.validation.model import Axis
    from gap_bioimage.validation.repair.editor import PackageEditor

_LONGEST_AXIS_DESCRIPTION = 128
_LARGEST_FACTOR = 8
"""How many times its step an axis may be coarsened for the sake of ilastik's grid."""


def axis_ids(editor: PackageEditor) -> None:
    """Write the id of every space axis, also where it is the default: JDLL reads no axis without."""
    for tensor in editor.model.tensors if editor.is_05 else []:
        for index, axis in enumerate(tensor.axes):
            if axis.kind == "space" and not axis.written.get("id"):
                tensor.written["axes"][index] = {"type": "space", "id": axis.id} | {
                    key: value for key, value in axis.written.items() if key not in ("type", "id")
                }
                editor.changed("axis_ids", f"id of a space axis of {tensor.id}", "none (x by default)", axis.id)


def channel_names(editor: PackageEditor) -> None:
    """Name channels channel0, channel1, ... where they have no names."""
    for tensor in editor.model.tensors if editor.is_05 else []:
        for index, axis in enumerate(tensor.axes):
            if axis.kind != "channel" or axis.written.get("channel_names"):
                continue
            array, stated = editor.test_array(tensor), axis.written.get("size")
            count = int(array.shape[index]) if array is not None else stated if isinstance(stated, int) else 0
            if not count:
                editor.notes.append(f"channel_names of {tensor.id} stay empty: no test tensor says how many there are")
                continue
            if isinstance(stated, int):
                del axis.written["size"]  # it follows from the names, and the format forbids it
            axis.written["channel_names"] = [f"channel{i}" for i in range(count)]
            editor.changed("channel_names", f"channels of {tensor.id}", "no names", axis.written["channel_names"])


def axis_scale(editor: PackageEditor) -> None:
    """Leave scales out of input axes, and divide those of the outputs that refer to them, so that sizes stay."""
    if not editor.is_05:
        return
    model = editor.model
    inputs = {(tensor.id, axis.id): axis for tensor in model.inputs for axis in tensor.axes}
    scales = {
        key: axis.scale
        for key, axis in inputs.items()
        if axis.scale not in (0, 1) and not _is_resized(editor, inputs, key)
    }
    for tensor in model.outputs:
        for axis in tensor.axes:
            scale = scales.get(_referred(axis))
            if scale is not None:
                before = f"{axis.scale:g} {axis.written.pop('unit', '')}".strip()
                ratio = round(axis.scale / scale, 9)
                axis.written.pop("scale", None)
                if ratio != 1:
                    axis.written["scale"] = ratio
                editor.changed("axis_scale", f"scale of output {tensor.id}, {axis.id}", before, f"{ratio:g}")
    for key in scales:
        axis = inputs[key]
        before = f"{axis.written.pop('scale')} {axis.written.pop('unit', None) or '(no unit)'}"
        said = str(axis.written.get("description") or "")
        text = f"{said}; pixel size {before}" if said else f"pixel size {before}"
        if len(text) <= _LONGEST_AXIS_DESCRIPTION:
            axis.written["description"] = text
        editor.changed("axis_scale", f"scale of input {key[0]}, {key[1]}", before, "1; told in the axis' description")


def _referred(axis: Axis) -> tuple[str, str]:
    size = axis.written.get("size")
    return (str(size.get("tensor_id")), str(size.get("axis_id"))) if isinstance(size, dict) else ("", "")


def _is_resized(editor: PackageEditor, inputs: dict[tuple[str, str], Axis], key: tuple[str, str]) -> bool:
    """Whether an input axis takes part in a change of size between inputs, which its scale then expresses."""
    for other, axis in inputs.items():
        ends = other, _referred(axis)
        if key in ends and ends[1] in inputs and axis.scale != inputs[ends[1]].scale:
            editor.notes.append(f"scale of input {key[0]}, {key[1]} stays: it relates the sizes of two inputs")
            return True
    return False


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

    def set(self, editor: PackageEditor, repair: str, minimum: int, step: int) -> None:
        """Write new sizes."""
        self.axis.written["size"] = {**self.axis.written["size"], "min": minimum, "step": step}
        before = "min {}, step {}".format(*self.min_step)
        editor.changed(repair, f"size of {self.tensor}, {self.axis.id}", before, f"min {minimum}, step {step}")


def _fits(size: int, minimum: int, step: int) -> bool:
    return size >= minimum and (size - minimum) % step == 0


def _sized(editor: PackageEditor) -> Iterator[_Sized]:
    model = editor.model
    for tensor in model.inputs if editor.is_05 else []:
        array = editor.test_array(tensor)
        for index, axis in enumerate(tensor.axes):
            sizes = axis.min_step
            if sizes is not None and sizes[1] > 0:
                halo = math.ceil(model.halo_of_input.get((tensor.id, axis.id), 0))
                yield _Sized(tensor.id, axis, halo, None if array is None else int(array.shape[index]), sizes)


def min_of_step(editor: PackageEditor) -> None:
    """Choose min as a multiple of step.

    All sizes change with that: it is the author's slip only where the test tensor agrees with the new sizes.
    """
    for sized in _sized(editor):
        minimum, step = sized.min_step
        if minimum % step:
            _raise_min(editor, "min_of_step", sized, _multiple_above(minimum - 1, step))


def min_halo(editor: PackageEditor) -> None:
    """Raise min above twice the halo."""
    for sized in _sized(editor):
        minimum, step = sized.min_step
        if minimum <= 2 * sized.halo:
            _raise_min(editor, "min_halo", sized, minimum + _multiple_above(2 * sized.halo - minimum, step))


def _raise_min(editor: PackageEditor, repair: str, sized: _Sized, minimum: int) -> None:
    if sized.keeps_test(minimum, sized.min_step[1]):
        sized.set(editor, repair, minimum, sized.min_step[1])
    else:
        why = "the test tensor needs it"
        editor.notes.append(f"min {sized.min_step[0]} of {sized.tensor}, {sized.axis.id} stays: {why}")


def _multiple_above(size: int, step: int) -> int:
    """The smallest multiple of step that is larger than a size."""
    return step * (size // step + 1)


def grid(editor: PackageEditor) -> None:
    """Narrow the sizes so that ilastik's size parameter n agrees over the axes of an input."""
    by_tensor: dict[str, list[_Sized]] = {}
    for sized in _sized(editor):
        if sized.axis.kind == "space":
            by_tensor.setdefault(sized.tensor, []).append(sized)
    for axes in by_tensor.values():
        target = 64 if any(sized.axis.id == "z" for sized in axes) else 512
        if len({_steps_to(target, *sized.min_step) for sized in axes}) > 1:
            for sized, size in zip(axes, _best_grid(axes, target), strict=True):
                if size != sized.min_step:
                    sized.set(editor, "grid", *size)


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

    def cost_of(n: int) -> tuple[int, int, int]:
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
