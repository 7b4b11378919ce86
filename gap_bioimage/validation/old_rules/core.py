"""bioimageio.core, the Python library: what it does with a model beyond its own test, and what older ones refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.old_rules import tensors
from gap_bioimage.validation.old_rules.rule import Rule

if TYPE_CHECKING:
    from gap_bioimage.validation.archive.facts import Facts

_MAX_RTOL = 0.01
_MAX_ATOL_SHARE = 0.01
_MAX_PPM = 5000
_MAX_PPM_0_9 = 1000


def _tolerance(facts: Facts) -> str | None:
    """A tolerance of the test, if one is stated, that is small."""
    for entry in _tolerance_entries(facts):
        rtol, ppm = _number(entry, "relative_tolerance"), _number(entry, "mismatched_elements_per_million")
        if rtol > _MAX_RTOL:
            return f"relative_tolerance is {rtol:g}, at most {_MAX_RTOL:g} is allowed"
        if ppm > _MAX_PPM_0_9:
            limits = f"at most {_MAX_PPM_0_9} are allowed by bioimageio.core 0.9 and {_MAX_PPM} by newer ones"
            return f"mismatched_elements_per_million is {ppm:g}, {limits}"
        if problem := _absolute(facts, entry):
            return problem
    return None


def _tolerance_entries(facts: Facts) -> list[dict[str, Any]]:
    section = (facts.rdf.get("config") or {}).get("bioimageio") or {}
    listed = section.get("reproducibility_tolerance") or []
    return [entry for entry in listed if isinstance(entry, dict)]


def _number(entry: dict[str, Any], key: str) -> float:
    return float(entry.get(key) or 0)


def _absolute(facts: Facts, entry: dict[str, Any]) -> str | None:
    """Compare an absolute tolerance with the outputs that it is for."""
    import numpy as np

    atol, ids = _number(entry, "absolute_tolerance"), entry.get("output_ids") or []
    for tensor in facts.outputs:
        path = facts.file_of(tensor.written.get("test_tensor"))
        if not atol or path is None or path.suffix != ".npy" or (ids and tensor.id not in ids):
            continue
        largest = float(np.abs(np.load(path, mmap_mode="r", allow_pickle=False)).max())
        if atol > _MAX_ATOL_SHARE * largest:
            return f"absolute_tolerance is {atol:g}, above 1 % of the largest value {largest:g} of {tensor.id!r}"
    return None


def _output_channel(facts: Facts) -> str | None:
    """An axis with the id channel on every output."""
    without = [repr(tensor.id) for tensor in facts.outputs if "channel" not in tensor.axis_ids]
    return f"{', '.join(without)} has no axis with the id channel" if without else None


RULES = (
    Rule(
        "core.reproducibility_tolerance",
        "the test proves less than it should, and some versions of bioimageio.core refuse the model",
        "State the smallest tolerance with which the test passes, in config.bioimageio.reproducibility_tolerance.",
        _tolerance,
        advice=True,
    ),
    Rule(
        "core.output_channel",
        "predicting large images block by block fails",
        "Keep an axis with the id channel on every output, also for a single channel.",
        _output_channel,
        advice=True,
        formats="0.5",
    ),
    Rule(
        "core.custom_ops",
        "bioimageio.core before 0.10.3 refuses the whole model",
        "Put the step into the network's graph, or tell users which version they need.",
        tensors.custom_processing,
        advice=True,
        formats="0.5",
    ),
)
"""What bioimageio.core advises; what it needs is found by running it."""
