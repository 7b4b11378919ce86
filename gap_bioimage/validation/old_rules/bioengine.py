"""BioEngine, the server that runs models for the zoo's web pages."""

from __future__ import annotations

from gap_bioimage.validation.old_rules import tensors
from gap_bioimage.validation.old_rules.rule import Rule

_RUNS = {"torchscript", "onnx", "pytorch_state_dict"}

RULES = (
    Rule(
        "bioengine.weights_format",
        "BioEngine runs torchscript, onnx and pytorch_state_dict",
        "Add torchscript weights.",
        tensors.needs_weights(_RUNS),
    ),
    Rule(
        "bioengine.archive_ops",
        "BioEngine's torch may be too old to load it",
        "Rewrite it with older operators.",
        tensors.torchscript_portability,
    ),
    Rule(
        "bioengine.custom_ops",
        "BioEngine runs no Python code for processing",
        "Put the step into the network's graph.",
        tensors.custom_processing,
        formats="0.5",
    ),
)
"""What BioEngine needs."""
