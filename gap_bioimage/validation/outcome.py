"""What a check found: the vocabulary that every part of the validation shares."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

Status = Literal["passed", "failed", "warning", "skipped", "error"]
"""``error``: the check itself raised, so that nothing is known."""

_LONGEST_TEXT = 900
_RANK: dict[Status, int] = {"skipped": 0, "passed": 1, "warning": 2, "error": 3, "failed": 4}


class NotApplicable(Exception):
    """Raised by a check that says nothing about a model; its text says why."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two arrays that should have been alike.

    Parameters
    ----------
    title
        What they are, e.g. ``rate, torchscript``.
    axes
        Their axis ids.
    expected, got
        The arrays; their shapes may differ.
    given
        The input that they were made from, where it can be shown beside them.
    """

    title: str
    axes: tuple[str, ...]
    expected: NDArray[Any]
    got: NDArray[Any]
    given: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found: a status, one sentence, what to do about it, and the arrays that show it."""

    status: Status
    message: str
    fix: str = ""
    evidence: tuple[Evidence, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report.

    Parameters
    ----------
    id
        Stable name, ``consumer.what``; scripts may rely on it.
    consumer
        Who is affected.
    status
        See `Status`.
    message
        One sentence: what was found and what was expected. Control characters are escaped, line breaks become
        blanks, and what is longer than a screen is cut.
    fix
        What to do; empty where nothing is to be done.
    """

    id: str
    consumer: str
    status: Status
    message: str
    fix: str = ""

    def __post_init__(self) -> None:
        """Put both texts on one line of bounded length: they quote what strangers wrote into their zips."""
        for name in ("message", "fix"):
            object.__setattr__(self, name, _plain(one_sentence(getattr(self, name), _LONGEST_TEXT)))

    def to_dict(self) -> dict[str, str]:
        """The check as plain strings, in the order that the JSON report prints them."""
        return {key: str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture for the report: what a model was given, what it should have made of it and what it made.

    Parameters
    ----------
    check_id
        The check that it belongs to.
    title
        One line.
    png
        The file's content.
    """

    check_id: str
    title: str
    png: bytes = field(repr=False)


def merge_outcomes(outcomes: Iterable[tuple[str, Outcome]]) -> Outcome:
    """Join the outcomes of one check over several weights formats: the worst status, every message.

    Parameters
    ----------
    outcomes
        Pairs of a weights format and what was found with it; at least one.
    """
    found = list(outcomes)
    worst = max((outcome for _, outcome in found), key=lambda outcome: _RANK[outcome.status])
    # Weights formats that agree say so once, so that the usual report stays short.
    grouped: dict[str, list[str]] = {}
    for weights_format, outcome in found:
        grouped.setdefault(outcome.message, []).append(weights_format)
    message = "; ".join(f"{', '.join(names)}: {text}" for text, names in grouped.items())
    evidence = tuple(item for _, outcome in found for item in outcome.evidence)
    return Outcome(worst.status, message, worst.fix, evidence)


def one_sentence(text: object, limit: int = 300) -> str:
    """The first lines of an error text, on one line and at most ``limit`` characters.

    TorchScript tells the reason last, below the code that led to it.
    """
    lines = str(text).strip().splitlines()
    flat = " ".join(str(lines[-1] if "TorchScript interpreter" in str(text) else text).split())
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."


def _plain(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
