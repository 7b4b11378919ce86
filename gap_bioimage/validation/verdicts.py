"""Derive from the checks which programs will run the model, its score in the zoo, and how to raise this score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gap_bioimage.validation.check import Check, consumers, one_sentence

HIGHEST = 8
PARTS = {"format": "valid format", "inference": "runs", "reproduces": "reproduces its test", "metadata": "metadata"}
POINTS = {"format": 1, "inference": 2, "reproduces": 4, "metadata": 1}

_REASON_LENGTH = 240
_SHOWN = 2
# fields that any author can fill in; many others that bioimageio.spec counts belong to particular weights formats
_FIELDS = (
    "version", "git_repo", "packaged_by", "links", "timestamp", "config.bioimageio.modality",
    "config.bioimageio.target_structure", "config.bioimageio.task", "config.bioimageio.architecture_type",
    "config.bioimageio.model_parameter_count", "config.bioimageio.out_of_scope_use",
)  # fmt: skip
_Word = Literal["works", "fails", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one program will run the model, and why, in one sentence."""

    consumer: str
    verdict: _Word
    reason: str


def programs() -> list[str]:
    """Return the ids of consumers that get a verdict: bioimageio.core and all that are not `Consumer.base`."""
    return [name for name, entry in consumers().items() if name == "core" or not entry.base]


def verdicts_of(checks: Sequence[Check], *, description_only: bool = False) -> tuple[Verdict, ...]:
    """Judge every program from all checks, with the status that they have for the consumer itself.

    The verdict is ``fails`` if the model itself is broken (a failed check of a `Consumer.base`, unless of weights that
    the program does not read) or one of the program's own checks failed. It is ``unknown`` if a check raised an
    exception or could not be made, or if bioimageio.core's test or the weights that the program reads were not run;
    with ``description_only``, nothing has to be run.
    """
    return tuple(Verdict(name, *_verdict(name, checks, description_only)) for name in programs())


def _verdict(name: str, checks: Sequence[Check], description_only: bool) -> tuple[_Word, str]:
    # bioimageio.core only runs its own test, not the checks of "run"; other programs only depend on that test of it
    base = [entry.id for entry in consumers().values() if entry.base and (name, entry.id) != ("core", "run")]
    own = [check for check in checks if check.consumer == name]
    failures = [check for check in checks if check.consumer in base and check.status == "failed"]
    decisive = [check for check in failures if check.consumer != "core" or check.id == "core.test"]
    reads = {*consumers()[name].reads}  # failures may concern other weights only
    if broken := [check for check in decisive if not (reads and check.concerns) or reads & {*check.concerns}]:
        return "fails", f"the model itself fails: {_messages(broken)}"
    if failed := [check for check in own if check.status == "failed"]:
        return "fails", _messages(failed)
    if raised := [check for check in checks if check.status == "error" and check.consumer in (*base, name)]:
        return "unknown", f"{raised[0].id}: {_messages(raised)}"
    if not own:
        return "unknown", "its test was not reached" if name == "core" else "no rules were checked"
    if untested := "" if description_only else _untested(reads, checks):
        return "unknown", untested
    if undecided := [check for check in own if check.status == "skipped" and check.fix]:
        return "unknown", _with_fix(undecided[0])
    advice = _messages([check for check in own if check.status == "warning"])
    good = "its test passes" if name == "core" else "follows all of its rules"
    good = "nothing in the description speaks against it" if description_only else good
    return "works", f"advice: {advice}" if advice else good


def _messages(checks: Sequence[Check]) -> str:
    shown = "; ".join(dict.fromkeys(check.message for check in checks[:_SHOWN]))
    more = f" (and {len(checks) - _SHOWN} more)" if len(checks) > _SHOWN else ""
    return one_sentence(shown, _REASON_LENGTH) + more


def _untested(reads: set[str], checks: Sequence[Check]) -> str:
    """Return why it is unknown whether weights in one of these formats run; empty if they were run."""
    test = next((check for check in checks if check.id == "core.test"), None)
    if test is None or test.status == "skipped":
        return "the model was not run" if test is None else _with_fix(test)
    ids = set[str]() if reads & {*test.concerns} else {f"run.{weights}" for weights in reads}
    return next((_with_fix(check) for check in checks if check.status == "skipped" and check.id in ids), "")


def _with_fix(check: Check) -> str:
    return f"{check.message}. {check.fix}".removesuffix(". ")


def _unrun(checks: Sequence[Check]) -> list[Check]:
    """Return the skipped checks without which the model's behaviour is unknown."""
    deciding = {"core.test", *(f"run.{name}" for entry in consumers().values() for name in entry.reads)}
    return [check for check in checks if check.status == "skipped" and check.id in deciding]


def how_to_run(checks: Sequence[Check]) -> str:
    """Return what to do to get a model run that was not run, in sentences."""
    unrun = _unrun(checks)
    fixes = " ".join(dict.fromkeys(check.fix for check in unrun if check.fix))
    return fixes or (f"The reason: {unrun[0].message}." if unrun else "")


@dataclass(frozen=True, slots=True)
class Score:
    """The predicted score in the zoo."""

    total: float  # 0 to 8
    parts: dict[str, float]  # each from 0 to its `POINTS`
    raise_it: tuple[str, ...]  # ways to raise the score, each with its gain, the largest first


def empty_fields(descr: Any) -> list[str]:
    """Return the fields that any author can fill in and that a description loaded by bioimageio.spec leaves empty."""
    written = descr.model_dump(mode="json", exclude_unset=True)

    def is_filled(name: str) -> bool:
        value = written
        for part in name.split("."):  # a config of format 0.4 may hold anything
            value = value.get(part) if isinstance(value, dict) else None
        return bool(value)

    return [name for name in _FIELDS if not is_filled(name)]


def score_of(checks: Sequence[Check], metadata: float = 0.0, empty: Sequence[str] = ()) -> Score:
    """Predict the zoo's score, as BioEngine (apps/model-runner, 2026-08-22) computes it.

    The score is 0 unless the description is valid; then it is 1, + 2 if the model runs, + 4 if it reproduces its test
    outputs, + the completeness of its metadata (0 to 1, from bioimageio.spec). Unknown parts count as 0. Filling in the
    ``empty`` fields would raise the completeness.
    """
    statuses, parts = {check.id: check.status for check in checks}, dict.fromkeys(POINTS, 0.0)
    invalid = any(check.status == "failed" for check in checks if check.consumer in ("archive", "format"))
    if not invalid and statuses.get("format.valid") == "passed":
        passed = statuses.get("core.test") == "passed"
        ran = passed or statuses.get("run.reproduces") in ("passed", "warning", "failed")  # it gave outputs
        parts = {"format": 1.0, "inference": 2.0 * ran, "reproduces": 4.0 * passed, "metadata": metadata}
    base = [name for name, entry in consumers().items() if entry.base]
    broken = [check for check in checks if check.consumer in base and check.status == "failed"]
    fixes = " ".join(dict.fromkeys(check.fix or f"{check.message}." for check in broken or _unrun(checks)))
    ids = f" ({', '.join(check.id for check in broken)})" if broken else ""
    missing = sum(POINTS[name] - parts[name] for name in ("format", "inference", "reproduces"))
    gains = [(missing, f"if its test passes: {fixes}{ids}")] if fixes else []
    if parts["format"] and empty:
        gains.append((1 - metadata, f"at most: fill in {', '.join(empty)}"))
    ordered = sorted((gain for gain in gains if round(gain[0], 2) > 0), reverse=True)
    return Score(sum(parts.values()), parts, tuple(f"+{gain:.2f} {how}" for gain, how in ordered))
