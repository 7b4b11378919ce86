"""Who will run the model, as it follows from the checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gap_bioimage.validation.check import one_sentence
from gap_bioimage.validation.consumers import consumers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gap_bioimage.validation.check import Check

RUN_CODE = "--run-code"
"""The fix of checks that need Python code of the package."""
_REASON_LENGTH = 240
_SHOWN = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one program will run the model.

    Parameters
    ----------
    consumer
        Id of a program.
    verdict
        ``works``, ``fails``, or ``unknown`` where what decides it was not run, or a check itself raised.
    reason
        One sentence.
    """

    consumer: str
    verdict: Literal["works", "fails", "unknown"]
    reason: str


def programs() -> list[str]:
    """Ids of the consumers that verdicts are about: bioimageio.core and all that are not `Consumer.base`."""
    return [name for name, entry in consumers().items() if name == "core" or not entry.base]


def verdicts_of(checks: Sequence[Check], *, description_only: bool = False) -> tuple[Verdict, ...]:
    """Judge every program.

    A program fails where the model itself is broken (a failed check of a `Consumer.base`) or one of its own checks
    failed. It is unknown where a check raised, or where bioimageio.core's test, or the weights that it reads, were
    not run; of a description alone nothing is run, and it works where nothing speaks against it.

    Parameters
    ----------
    checks
        All checks, with the status that they have for the consumer itself: what blocks a partner is ``failed``.
    description_only
        Nothing was meant to be run.
    """
    return tuple(_verdict(name, checks, description_only) for name in programs())


def _verdict(name: str, checks: Sequence[Check], description_only: bool) -> Verdict:
    # bioimageio.core runs its own test and no more, so what "run" finds beyond it is for the others.
    base = [entry.id for entry in consumers().values() if entry.base and (name, entry.id) != ("core", "run")]
    broken = [check for check in checks if check.consumer in base and check.status == "failed"]
    own = [check for check in checks if check.consumer == name]
    failed = [check for check in own if check.status == "failed"]
    if broken:
        return Verdict(name, "fails", f"the model itself fails: {_messages(broken)}")
    if failed:
        return Verdict(name, "fails", _messages(failed))
    raised = [check for check in checks if check.status == "error" and check.consumer in (*base, name)]
    if raised:
        return Verdict(name, "unknown", f"{raised[0].id}: {_messages(raised)}")
    if not own:
        return Verdict(name, "unknown", "its test was not reached" if name == "core" else "no rules were checked")
    untested = "" if description_only else _untested(name, checks)
    if untested:
        return Verdict(name, "unknown", untested)
    advice = [check for check in own if check.status == "warning"]
    if advice:
        return Verdict(name, "works", f"advice: {_messages(advice)}")
    if description_only:
        return Verdict(name, "works", "nothing in the description speaks against it")
    return Verdict(name, "works", "its test passes" if name == "core" else "keeps all of its rules")


def _messages(checks: Sequence[Check]) -> str:
    shown = "; ".join(dict.fromkeys(check.message for check in checks[:_SHOWN]))
    more = f" (and {len(checks) - _SHOWN} more)" if len(checks) > _SHOWN else ""
    return one_sentence(shown, _REASON_LENGTH) + more


def _untested(name: str, checks: Sequence[Check]) -> str:
    """Why it cannot be known whether the weights that a consumer reads run; empty if they were run."""
    test = next((check for check in checks if check.id == "core.test"), None)
    if test is None or test.status == "skipped":
        return _why_untested(test)
    reads = consumers()[name].reads
    # core.test names the formats that it ran
    if any(re.search(rf"\b{weights}\b", test.message) for weights in reads):
        return ""
    skipped = [check for check in checks if check.status == "skipped" and check.id in {f"run.{n}" for n in reads}]
    return _why_untested(skipped[0]) if skipped else ""


def _why_untested(check: Check | None) -> str:
    if check is None:
        return "the model was not run"
    hint = f"to allow the model's Python code, validate with {RUN_CODE}" if check.fix == RUN_CODE else check.fix
    return check.message + (f"; {inside(hint)}" if hint else "")


def decides_what_is_known(check: Check) -> bool:
    """Whether a check, where it was skipped, leaves open what the model does."""
    weights = {f"run.{name}" for entry in consumers().values() for name in entry.reads}
    return check.id == "core.test" or check.id in weights


def how_to_run(checks: Sequence[Check]) -> str:
    """What to do so that a model is run that was not, as a sentence."""
    untested = [c for c in checks if c.status == "skipped" and (c.fix == RUN_CODE or decides_what_is_known(c))]
    fixes = dict.fromkeys(check.fix for check in untested if check.fix)
    if RUN_CODE in fixes:
        return (
            f"Validate again with {RUN_CODE}, which allows the Python code inside this model to run on your computer."
        )
    return " ".join(fixes) or (f"The reason: {untested[0].message}." if untested else "")


def inside(text: str) -> str:
    """For use inside a sentence; names such as TorchScript keep their capital."""
    return text[:1].lower() + text[1:] if re.match(r"[A-Z][a-z]+\b(?!')", text) else text
