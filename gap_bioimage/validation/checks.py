"""Names of `check`, for modules that have not moved yet."""

from __future__ import annotations

from gap_bioimage.validation.check import (
    Check,
    Evidence,
    Outcome,
    Picture,
    Status,
    merge_outcomes,
    one_sentence,
)

BASE_CONSUMERS = ("archive", "format", "core", "run")
PARTNER_CONSUMERS = ("zoo", "fiji", "ilastik", "biapy", "qupath", "bioengine")
CONSUMERS = (*BASE_CONSUMERS, *PARTNER_CONSUMERS)

__all__ = [
    "BASE_CONSUMERS",
    "CONSUMERS",
    "PARTNER_CONSUMERS",
    "Check",
    "Evidence",
    "Outcome",
    "Picture",
    "Status",
    "merge_outcomes",
    "one_sentence",
    "to_check",
]


def to_check(check_id: str, consumer: str, outcome: Outcome) -> Check:
    """Name an outcome."""
    return Check(check_id, consumer, outcome.status, outcome.message, outcome.fix)
