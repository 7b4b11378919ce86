"""Who will run the model, the score that the zoo will give it, and what would raise it, as they follow from checks."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gap_bioimage.validation.check import Check, consumers, one_sentence
from gap_bioimage.validation.outcome import RUN_CODE

HIGHEST = 8
PARTS = {"format": "valid format", "inference": "runs", "reproduces": "reproduces its test", "metadata": "metadata"}
POINTS = {"format": 1, "inference": 2, "reproduces": 4, "metadata": 1}

_REASON_LENGTH = 240
_SHOWN = 2
# fields that any author can fill in; many that bioimageio.spec counts are for other kinds of weights
_FIELDS = (
    "version", "git_repo", "packaged_by", "links", "timestamp", "config.bioimageio.modality",
    "config.bioimageio.target_structure", "config.bioimageio.task", "config.bioimageio.architecture_type",
    "config.bioimageio.model_parameter_count", "config.bioimageio.out_of_scope_use",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one program will run the model, and why, in one sentence."""

    consumer: str
    verdict: Literal["works", "fails", "unknown"]
    reason: str


def programs() -> list[str]:
    """Ids of the consumers that verdicts are about: bioimageio.core and all that are not `Consumer.base`."""
    return [name for name, entry in consumers().items() if name == "core" or not entry.base]


def verdicts_of(checks: Sequence[Check], *, description_only: bool = False) -> tuple[Verdict, ...]:
    """Judge every program from all checks, with the status that they have for the consumer itself.

    A program fails where the model itself is broken (a failed check of a `Consumer.base`) or one of its own checks
    failed. It is unknown where a check raised or could not find out what it should, and where bioimageio.core's test,
    or the weights that it reads, were not run; of a description alone nothing is meant to be run.
    """
    return tuple(Verdict(name, *_verdict(name, checks, description_only)) for name in programs())


def _verdict(
    name: str, checks: Sequence[Check], description_only: bool
) -> tuple[Literal["works", "fails", "unknown"], str]:
    # bioimageio.core runs its own test and no more, so what "run" finds beyond it is for the others
    base = [entry.id for entry in consumers().values() if entry.base and (name, entry.id) != ("core", "run")]
    own = [check for check in checks if check.consumer == name]
    if broken := [check for check in checks if check.consumer in base and check.status == "failed"]:
        return "fails", f"the model itself fails: {_messages(broken)}"
    if failed := [check for check in own if check.status == "failed"]:
        return "fails", _messages(failed)
    if raised := [check for check in checks if check.status == "error" and check.consumer in (*base, name)]:
        return "unknown", f"{raised[0].id}: {_messages(raised)}"
    if not own:
        return "unknown", "its test was not reached" if name == "core" else "no rules were checked"
    if untested := "" if description_only else _untested(name, checks):
        return "unknown", untested
    if not_known := [check for check in own if check.status == "skipped" and check.fix]:
        return "unknown", _why_untested(not_known[0])
    if advice := [check for check in own if check.status == "warning"]:
        return "works", f"advice: {_messages(advice)}"
    if description_only:
        return "works", "nothing in the description speaks against it"
    return "works", "its test passes" if name == "core" else "keeps all of its rules"


def _messages(checks: Sequence[Check]) -> str:
    shown = "; ".join(dict.fromkeys(check.message for check in checks[:_SHOWN]))
    more = f" (and {len(checks) - _SHOWN} more)" if len(checks) > _SHOWN else ""
    return one_sentence(shown, _REASON_LENGTH) + more


def _untested(name: str, checks: Sequence[Check]) -> str:
    """Why it cannot be known whether the weights that a consumer reads run; empty if they were run."""
    test = next((check for check in checks if check.id == "core.test"), None)
    if test is None or test.status == "skipped":
        return "the model was not run" if test is None else _why_untested(test)
    reads = consumers()[name].reads
    if any(re.search(rf"\b{weights}\b", test.message) for weights in reads):  # core.test names the formats that it ran
        return ""
    skipped = [check for check in checks if check.status == "skipped" and check.id in {f"run.{n}" for n in reads}]
    return _why_untested(skipped[0]) if skipped else ""


def _why_untested(check: Check) -> str:
    hint = f"to allow the model's Python code, validate with {RUN_CODE}" if check.fix == RUN_CODE else check.fix
    return check.message + (f"; {inside(hint)}" if hint else "")


def decides_what_is_known(check: Check) -> bool:
    """Whether a check, where it was skipped, leaves open what the model does."""
    return check.id in {"core.test", *(f"run.{name}" for entry in consumers().values() for name in entry.reads)}


def how_to_run(checks: Sequence[Check]) -> str:
    """What to do so that a model is run that was not, as a sentence."""
    untested = [c for c in checks if c.status == "skipped" and (c.fix == RUN_CODE or decides_what_is_known(c))]
    fixes = dict.fromkeys(check.fix for check in untested if check.fix)
    if RUN_CODE in fixes:
        return f"Validate again with {RUN_CODE}, which allows the model's Python code to run on your computer."
    return " ".join(fixes) or (f"The reason: {untested[0].message}." if untested else "")


def inside(text: str) -> str:
    """For use inside a sentence; names such as TorchScript keep their capital."""
    return text[:1].lower() + text[1:] if re.match(r"[A-Z][a-z]+\b(?!')", text) else text


@dataclass(frozen=True, slots=True)
class Score:
    """The zoo's score, predicted."""

    total: float  # 0 to 8
    parts: dict[str, float]  # each from 0 to its `POINTS`
    raise_it: tuple[str, ...]  # what would raise the score, and by how much, the largest gain first


def empty_fields(descr: Any) -> list[str]:
    """Fields that any author can fill in, and the author of a description that bioimageio.spec has loaded has not."""
    written = descr.model_dump(mode="json", exclude_unset=True)

    def is_given(name: str) -> bool:
        *sections, field = name.split(".")
        holder = functools.reduce(lambda found, section: found.get(section) or {}, sections, written)
        return bool(holder.get(field))

    return [name for name in _FIELDS if not is_given(name)]


def score_of(checks: Sequence[Check], metadata: float = 0.0, empty: Sequence[str] = ()) -> Score:
    """Predict the zoo's score, which BioEngine (apps/model-runner, 2026-08-22) computes.

    0 unless the description is valid; then 1, + 2 if the model runs, + 4 if it reproduces its test outputs, + the
    completeness of its metadata (0 to 1, from bioimageio.spec). What is unknown counts as 0. ``empty`` fields are those
    that would raise the completeness.
    """
    parts = _parts(checks, metadata)
    gains = list(_gains(checks, parts, metadata))
    if parts["format"] and empty:
        gains.append((1 - metadata, f" at most: fill in {', '.join(empty)}"))
    ordered = sorted((entry for entry in gains if round(entry[0], 2) > 0), key=lambda entry: -entry[0])
    return Score(sum(parts.values()), parts, tuple(f"+{gain:.2f}{text}" for gain, text in ordered))


def _parts(checks: Sequence[Check], metadata: float) -> dict[str, float]:
    statuses = {check.id: check.status for check in checks}
    broken = any(check.status == "failed" for check in checks if check.consumer in ("archive", "format"))
    if broken or statuses.get("format.valid") != "passed":
        return dict.fromkeys(POINTS, 0.0)
    passed = statuses.get("core.test") == "passed"
    ran = passed or statuses.get("run.reproduces") in ("passed", "warning", "failed")  # it has given some outputs
    return {"format": 1.0, "inference": 2.0 * ran, "reproduces": 4.0 * passed, "metadata": metadata}


def _gains(checks: Sequence[Check], parts: Mapping[str, float], metadata: float) -> Iterator[tuple[float, str]]:
    """Each remedy's gain, from the score computed again with its checks passed, and the text that follows it."""

    def gain(mended: Collection[Check]) -> float:
        after = [replace(check, status="passed") if check in mended else check for check in checks]
        return sum(_parts(after, metadata).values()) - sum(parts.values())

    base = [name for name, entry in consumers().items() if entry.base]
    broken = [check for check in checks if check.consumer in base and check.status == "failed"]
    untested = [check for check in checks if check.status == "skipped" and decides_what_is_known(check)]
    if broken:
        further = gain([*broken, *untested]) - gain(broken)
        then = f", and {further:.2f} more if its test passes then" if round(further, 2) > 0 else ""
        remedies = dict.fromkeys(inside(check.fix or check.message).rstrip(".") for check in broken)
        yield gain(broken), f"{then}: {'; '.join(remedies)} ({', '.join(check.id for check in broken)})"
    elif untested:
        fixes = dict.fromkeys(check.fix for check in untested if check.fix)
        ways = [f"validate with {RUN_CODE}" if fix == RUN_CODE else inside(fix).rstrip(".") for fix in fixes]
        yield gain(untested), f" if its test passes: {'; '.join(ways) or untested[0].message}"
