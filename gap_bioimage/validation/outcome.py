"""What a check found: the vocabulary that every part of the validation shares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray

Status = Literal["passed", "failed", "warning", "skipped", "error"]  # error: the check itself raised, nothing is known

# the fix of checks that need Python code of the package
RUN_CODE = "Validate with --run-code, which allows the model's Python code to run on your computer."
# and of those during which the model raised
RUNS = "See that the model runs in Python by itself, on its test inputs and all sizes that it declares."
_LONGEST_TEXT = 900
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|\[ONNXRuntimeError\] : \d+ : \w+ : ")
_RANK: dict[Status, int] = {"skipped": 0, "passed": 1, "warning": 2, "error": 3, "failed": 4}


class NotApplicable(Exception):
    """A check says nothing about a model, and why; a ``fix`` would let it speak: the verdict is unknown until then."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two arrays that should have been alike, and the input that they were made from where it can be shown."""

    title: str  # e.g. "rate, torchscript"
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
    """One line of a report."""

    id: str  # "consumer.what", which scripts may rely on
    consumer: str
    status: Status
    message: str  # what was found and what was expected
    fix: str = ""  # empty where nothing is to be done

    def __post_init__(self) -> None:
        """Put both texts on one printable line of bounded length: they quote what strangers wrote into their zips."""
        for name in ("message", "fix"):
            text = one_sentence(getattr(self, name), _LONGEST_TEXT)
            object.__setattr__(self, name, "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))

    def to_dict(self) -> dict[str, str]:
        """The check as plain strings, in the order that the JSON report prints them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture for the report: what a model was given, what it should have made of it and what it made."""

    check_id: str
    title: str
    png: bytes = field(repr=False)


def raised(error: Exception) -> Outcome:
    """What is known after a check itself has raised: nothing."""
    text = f"this check itself raised {type(error).__name__}: {one_sentence(error, 120)}"
    return Outcome("error", text, "Report it with your model.")


def merge_outcomes(outcomes: Iterable[tuple[str, Outcome]]) -> Outcome:
    """Join what one check found of each weights format: the worst status, and every message once."""
    found = list(outcomes)
    worst = max((outcome for _, outcome in found), key=lambda outcome: _RANK[outcome.status])
    grouped: dict[str, list[str]] = {}
    for weights_format, outcome in found:
        grouped.setdefault(outcome.message, []).append(weights_format)
    message = "; ".join(f"{', '.join(names)}: {text}" for text, names in grouped.items())
    return Outcome(worst.status, message, worst.fix, tuple(item for _, outcome in found for item in outcome.evidence))


def one_sentence(text: object, limit: int = 300) -> str:
    """An error text on one line of at most ``limit`` characters; TorchScript's reason stands after the code."""
    told = _DECORATION.sub("", str(text))
    if "TorchScript interpreter" in told and (raised := re.search(r"^[\w.]+(Error|Exception): .*", told, re.MULTILINE)):
        told = raised[0]
    flat = " ".join(told.split())
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."
