"""QuPath, which runs 2D models through Deep Java Library, tile by tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.old_rules import tensors
from gap_bioimage.validation.old_rules.rule import Rule

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.facts import Facts

_RUNS = {"torchscript", "onnx"}
_WHOLE_IMAGE = {"scale_range", "scale_mean_variance", "zero_mean_unit_variance"}


def _axes(facts: Facts) -> str | None:
    """Axes batch, channel, y, x only."""
    for tensor in [*facts.inputs, *facts.outputs]:
        if sorted(tensor.axis_ids) != ["batch", "channel", "x", "y"]:
            return f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)} instead of batch, channel, y, x"
    return None


def _statistics(facts: Facts) -> str | None:
    """Processing without statistics of the whole image."""
    used = sorted({str(step.get("id")) for step in tensors.processing(facts)} & _WHOLE_IMAGE)
    return f"processing uses {', '.join(used)}" if used else None


RULES = (
    Rule(
        "qupath.weights_format",
        "QuPath runs torchscript and onnx",
        "Add torchscript weights.",
        tensors.needs_weights(_RUNS),
    ),
    Rule("qupath.axes", "QuPath's images are 2D", "Offer a 2D model for QuPath.", _axes, formats="0.5"),
    Rule(
        "qupath.single_io",
        "QuPath takes one image and shows one",
        "Use one input and one output; put several results into channels.",
        tensors.single_io,
    ),
    Rule(
        "qupath.image_statistics",
        "QuPath sees a tile at a time, so each tile would be scaled by itself",
        "Normalise with fixed numbers, or inside the network from each pixel's neighbourhood.",
        _statistics,
        formats="0.5",
    ),
    Rule(
        "qupath.custom_ops",
        "QuPath runs no Python code",
        "Put the step into the network's graph.",
        tensors.custom_processing,
        formats="0.5",
    ),
)
"""What QuPath needs."""
