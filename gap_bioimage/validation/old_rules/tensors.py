"""Questions about tensors that several consumers ask."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.torchscript import read_code
from gap_bioimage.validation.old_rules.rule import NotApplicable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gap_bioimage.validation.archive.facts import Facts
    from gap_bioimage.validation.archive.torchscript import TorchScriptCode

_ORDER_2D = ["batch", "channel", "y", "x"]
_ORDER_3D = ["batch", "channel", "z", "y", "x"]
_SHOWN = 3


def single_io(facts: Facts) -> str | None:
    """One input and one output."""
    counts = len(facts.inputs), len(facts.outputs)
    return None if counts == (1, 1) else f"{counts[0]} inputs and {counts[1]} outputs instead of one each"


def axis_ids(facts: Facts) -> str | None:
    """Axes named batch, channel, (z,) y, x on every input and output."""
    for tensor in [*facts.inputs, *facts.outputs]:
        if sorted(tensor.axis_ids) not in (sorted(_ORDER_2D), sorted(_ORDER_3D)):
            return f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)} instead of batch, channel, (z,) y, x"
    return None


def axis_order(facts: Facts) -> str | None:
    """The same order of axes in and out."""
    orders = {tuple(tensor.axis_ids) for tensor in [*facts.inputs, *facts.outputs]}
    return None if len(orders) <= 1 else f"axis orders differ: {' and '.join(', '.join(o) for o in sorted(orders))}"


def channel_names(facts: Facts) -> str | None:
    """A channel axis with channel_names on every input and output."""
    for tensor in [*facts.inputs, *facts.outputs]:
        channels = [axis for axis in tensor.axes if axis.kind == "channel"]
        if not channels or not channels[0].written.get("channel_names"):
            return f"{tensor.id!r} has no channel axis with channel_names"
    return None


def processing(facts: Facts) -> list[dict[str, Any]]:
    """All processing steps, of inputs and outputs."""
    return [step for tensor in [*facts.inputs, *facts.outputs] for step in tensor.steps]


def custom_processing(facts: Facts) -> str | None:
    """No processing by Python code of the package."""
    is_custom = any(step.get("id") == "custom" for step in processing(facts))
    return "a processing step has the id custom" if is_custom else None


def needs_weights(formats: set[str]) -> Callable[[Facts], str | None]:
    """A rule that asks for weights in one of these formats."""

    def rule(facts: Facts) -> str | None:
        given = facts.weights.keys()
        return None if formats & given else f"weights are given as {', '.join(given) or 'nothing'} only"

    rule.__doc__ = f"Weights as {' or '.join(sorted(formats, reverse=True))}."
    return rule


def plain_strings(facts: Facts) -> str | None:
    """Documentation, covers and licence as plain strings."""
    values = [("documentation", facts.rdf.get("documentation")), ("license", facts.rdf.get("license"))]
    values += [("covers", cover) for cover in facts.rdf.get("covers") or []]
    objects = sorted({name for name, value in values if isinstance(value, dict)})
    return f"{', '.join(objects)} written as {{source, sha256}}" if objects else None


def format_version(facts: Facts) -> str | None:
    """A format_version of at most 0.5.10."""
    if not facts.version:
        raise NotApplicable("the description states no format_version")
    return f"format_version is {facts.rdf['format_version']}" if facts.version > (0, 5, 10) else None


def uneven_grid(facts: Facts) -> str | None:
    """Sizes min + n step that reach 512 pixels (64 in 3D) with the same n on all axes."""
    for tensor in facts.inputs:
        sizes = {axis.id: axis.min_step for axis in tensor.axes if axis.kind == "space"}
        target = 64 if "z" in sizes else 512
        ns = {name: max(0, math.ceil((target - size[0]) / size[1])) for name, size in sizes.items() if size is not None}
        if len(set(ns.values())) > 1:
            text = ", ".join(f"{name} {n}" for name, n in ns.items())
            return f"n to reach {target} pixels differs over the axes of {tensor.id!r} ({text})"
    return None


def torchscript_portability(facts: Facts) -> str | None:
    """TorchScript code that the oldest engine (libtorch 1.13) knows."""
    problems = list(torchscript_code(facts).unportable.values())
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more if problems else None


def torchscript_code(facts: Facts) -> TorchScriptCode:
    """The code of the packaged TorchScript weights.

    Raises
    ------
    NotApplicable
        If there are none, or they cannot be read.
    """
    entry = facts.weights.get("torchscript")
    path = facts.file_of(entry) if entry else None
    if path is None:
        raise NotApplicable("no torchscript weights in the package")
    try:
        changed = path.stat()
        return _read_once(path, changed.st_mtime_ns, changed.st_size)
    except ValueError as error:
        raise NotApplicable(str(error)) from error


@functools.lru_cache(maxsize=1)
def _read_once(path: Path, _mtime_ns: int, _n_bytes: int) -> TorchScriptCode:
    """Read a file for all rules that ask about it; a changed file is another one."""
    return read_code(path)
