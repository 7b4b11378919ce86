"""One check and its outcome: the vocabulary that every part of the validation shares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Status = Literal["passed", "failed", "warning", "skipped"]

BASE_CONSUMERS = ("archive", "format", "core", "run")
"""What makes a zip valid at all; a broken check of these fails the report for everybody."""

PARTNER_CONSUMERS = ("zoo", "fiji", "ilastik", "biapy")
"""Who reads the zip besides bioimageio.core; a broken check of these fails the report on request only."""

CONSUMERS = (*BASE_CONSUMERS, *PARTNER_CONSUMERS)

_SEVERITY: dict[Status, int] = {"skipped": 0, "passed": 1, "warning": 2, "failed": 3}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found: a status, one sentence, and what to do about it."""

    status: Status
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report.

    Parameters
    ----------
    id
        Stable name, ``group.what``; scripts may rely on it.
    consumer
        Who is affected, one of `CONSUMERS`.
    status
        ``passed``, ``failed``, ``warning`` or ``skipped``.
    message
        One sentence: what was found and what was expected.
    fix
        What to do; empty where nothing is to be done.
    """

    id: str
    consumer: str
    status: Status
    message: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """The check as plain strings, in the order that the JSON report prints them."""
        return {key: str(value) for key, value in asdict(self).items()}


def to_check(check_id: str, consumer: str, outcome: Outcome) -> Check:
    """Name an outcome."""
    return Check(check_id, consumer, outcome.status, outcome.message, outcome.fix)


def merge_outcomes(outcomes: Iterable[tuple[str, Outcome]]) -> Outcome:
    """Join the outcomes of one check over several weights formats: the worst status, every message.

    Parameters
    ----------
    outcomes
        Pairs of a weights format and what was found with it; at least one.
    """
    found = list(outcomes)
    worst = max((outcome for _, outcome in found), key=lambda outcome: _SEVERITY[outcome.status])
    # Weights formats that agree say so once, so that the usual report stays short.
    grouped: dict[str, list[str]] = {}
    for weights_format, outcome in found:
        grouped.setdefault(outcome.message, []).append(weights_format)
    message = "; ".join(f"{', '.join(names)}: {text}" for text, names in grouped.items())
    return Outcome(worst.status, message, worst.fix)


def one_sentence(text: object, limit: int = 300) -> str:
    """The first lines of an error text, on one line and at most ``limit`` characters."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."
