"""ilastik, whose server tiktorch 26.5 runs bioimageio.core 0.10.2 on torch 2.7."""

from __future__ import annotations

from gap_bioimage.validation.old_rules import tensors
from gap_bioimage.validation.old_rules.rule import Rule

_RUNS = {"torchscript", "pytorch_state_dict", "onnx"}

RULES = (
    Rule(
        "ilastik.format_version",
        "ilastik's bioimageio.core 0.10.2 refuses it",
        "Write format_version 0.5.9.",
        tensors.format_version,
    ),
    Rule(
        "ilastik.plain_strings",
        "ilastik's bioimageio.core 0.10.2 refuses it",
        "Write file names as plain strings, as format 0.5.9 does.",
        tensors.plain_strings,
    ),
    Rule(
        "ilastik.weights_format",
        "ilastik has torch and ONNX only",
        "Add torchscript weights.",
        tensors.needs_weights(_RUNS),
    ),
    Rule(
        "ilastik.single_io",
        "ilastik takes one image and shows one",
        "Use one input and one output; put several results into channels.",
        tensors.single_io,
    ),
    Rule(
        "ilastik.axis_ids",
        "ilastik knows no other axes",
        "Name the axes batch, channel, (z,) y, x.",
        tensors.axis_ids,
        formats="0.5",
    ),
    Rule(
        "ilastik.channel_names",
        "ilastik needs a channel axis on both sides",
        "Add a channel axis with channel_names.",
        tensors.channel_names,
        formats="0.5",
    ),
    Rule(
        "ilastik.custom_ops",
        "bioimageio.core before 0.10.3 refuses the whole model",
        "Put the step into the network's graph.",
        tensors.custom_processing,
        formats="0.5",
    ),
    Rule(
        "ilastik.grid",
        "ilastik uses the smallest n for all axes, so its tiles shrink and overlap",
        "Choose min and step so that n agrees.",
        tensors.uneven_grid,
        advice=True,
        formats="0.5",
    ),
    Rule(
        "ilastik.archive_ops",
        "ilastik's torch 2.7 may not load it",
        "Rewrite it with older operators.",
        tensors.torchscript_portability,
        advice=True,
    ),
)
"""What ilastik needs."""
