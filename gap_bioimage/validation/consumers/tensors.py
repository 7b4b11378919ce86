"""Questions about tensors that several consumers ask."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gap_bioimage.validation.consumers.rule import NotApplicable
from gap_bioimage.validation.torchscript import UNPORTABLE, read_code

if TYPE_CHECKING:
    from gap_bioimage.validation.facts import Facts
    from gap_bioimage.validation.torchscript import TorchScriptCode

_ORDER_2D = ["batch", "channel", "y", "x"]
_ORDER_3D = ["batch", "channel", "z", "y", "x"]


def single_io(facts: Facts) -> str | None:
    """One input and one output."""
    counts = len(facts.inputs), len(facts.outputs)
    return None if counts == (1, 1) else f"{counts[0]} inputs and {counts[1]} outputs instead of one each"


def axis_ids(facts: Facts) -> str | None:
    """Axes named batch, channel, (z,) y, x on every tensor."""
    for tensor in [*facts.inputs, *facts.outputs]:
        if sorted(tensor.axis_ids) not in (sorted(_ORDER_2D), sorted(_ORDER_3D)):
            return f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)} instead of batch, channel, (z,) y, x"
    return None


def axis_order(facts: Facts) -> str | None:
    """The same order of axes in and out."""
    orders = {tuple(tensor.axis_ids) for tensor in [*facts.inputs, *facts.outputs]}
    return None if len(orders) <= 1 else f"axis orders differ: {' and '.join(', '.join(o) for o in sorted(orders))}"


def channel_names(facts: Facts) -> str | None:
    """Names for all channels."""
    for tensor in [*facts.inputs, *facts.outputs]:
        channels = [axis for axis in tensor.axes if axis.kind == "channel"]
        if not channels or not channels[0].written.get("channel_names"):
            return f"{tensor.id!r} has no channel axis with channel_names"
    return None


def custom_processing(facts: Facts) -> str | None:
    """No processing by Python code of the package."""
    steps = [step for tensor in [*facts.inputs, *facts.outputs] for step in tensor.steps]
    return "a processing step has the id custom" if any(step.get("id") == "custom" for step in steps) else None


def plain_strings(facts: Facts) -> str | None:
    """Documentation, covers and licence as plain strings."""
    values = [("documentation", facts.rdf.get("documentation")), ("license", facts.rdf.get("license"))]
    values += [("covers", cover) for cover in facts.rdf.get("covers") or []]
    objects = sorted({name for name, value in values if isinstance(value, dict)})
    return f"{', '.join(objects)} written as {{source, sha256}}" if objects else None


def format_version(facts: Facts) -> str | None:
    """A format between 0.5.0 and 0.5.10."""
    written = facts.rdf.get("format_version")
    return None if facts.version[:2] != (0, 5) or facts.version <= (0, 5, 10) else f"format_version is {written}"


def uneven_grid(facts: Facts) -> str | None:
    """The size parameter n at which a tile reaches ilastik's target is the same for all axes."""
    for tensor in facts.inputs:
        sizes = {axis.id: axis.min_step for axis in tensor.axes if axis.kind == "space"}
        target = 64 if "z" in sizes else 512
        ns = {name: max(0, math.ceil((target - size[0]) / size[1])) for name, size in sizes.items() if size is not None}
        if len(set(ns.values())) > 1:
            text = ", ".join(f"{name} {n}" for name, n in ns.items())
            return f"n to reach {target} pixels differs over the axes of {tensor.id!r} ({text})"
    return None


def torchscript_portability(facts: Facts) -> str | None:
    """Nothing in the TorchScript code that older engines do not know."""
    names = torchscript_code(facts).unportable
    return f"the code holds {', '.join(f'{n} ({UNPORTABLE[n]})' for n in names)}" if names else None


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
        return read_code(path)
    except ValueError as error:
        raise NotApplicable(str(error)) from error
