"""BiaPy 3, which loads the state_dict with its architecture and keyword arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.old_rules.rule import NotApplicable, Rule

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.facts import Facts

_AXES = (["batch", "channel", "y", "x"], ["batch", "channel", "z", "y", "x"])


def _state_dict(facts: Facts) -> str | None:
    """Weights as pytorch_state_dict."""
    return None if "pytorch_state_dict" in facts.weights else "no pytorch_state_dict weights are given"


def _kwargs(facts: Facts) -> str | None:
    """The keyword arguments of the architecture."""
    entry = facts.weights.get("pytorch_state_dict")
    if entry is None:
        raise NotApplicable("no pytorch_state_dict weights are given")
    architecture = entry.get("architecture")
    kwargs = architecture.get("kwargs") if isinstance(architecture, dict) else entry.get("kwargs")
    return None if isinstance(kwargs, dict) and kwargs else "the architecture's kwargs are empty"


def _tag(facts: Facts) -> str | None:
    """The tag denoising on a denoiser."""
    return None if "denoising" in facts.texts("tags") else "the tag denoising is not among the tags"


def _axes(facts: Facts) -> str | None:
    """Axes in the order batch, channel, (z,) y, x."""
    for tensor in [*facts.inputs, *facts.outputs]:
        if tensor.axis_ids not in _AXES:
            return f"{tensor.id!r} has axes {', '.join(tensor.axis_ids)}"
    return None


RULES = (
    Rule("biapy.state_dict", "BiaPy loads nothing else", "Add pytorch_state_dict weights.", _state_dict),
    Rule(
        "biapy.kwargs",
        "BiaPy cannot build the network",
        "Write all keyword arguments of the architecture.",
        _kwargs,
    ),
    Rule(
        "biapy.axes",
        "BiaPy reads bcyx and bczyx",
        "Order the axes batch, channel, (z,) y, x.",
        _axes,
        formats="0.5",
    ),
    Rule("biapy.tag", "BiaPy finds a model's task by its tags", "Tag a denoiser denoising.", _tag, advice=True),
)
"""What BiaPy needs."""
