"""What becomes of the checks: who will run the model, and how the zoo will score it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from gap_bioimage.validation.checks import BASE_CONSUMERS, PARTNER_CONSUMERS, Check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

NAMES = {
    "archive": "the zip file",
    "format": "the description",
    "core": "bioimageio.core",
    "run": "running the model",
    "zoo": "bioimage.io zoo",
    "fiji": "Fiji (deepImageJ)",
    "ilastik": "ilastik",
    "biapy": "BiaPy",
    "qupath": "QuPath",
    "bioengine": "BioEngine",
}
"""What people call the consumers."""

PARTS = {
    "format": "format",
    "metadata": "metadata",
    "core": "bioimageio.core",
    "partners": "partner tools",
}
"""What people call the parts of the score."""

SCORED_PARTNERS = ("fiji", "ilastik", "biapy")
"""Partner tools that are checked here and that the zoo scores. It also scores Icy and CAREamics, which are not
checked here; it does not score QuPath and BioEngine."""

METADATA_RULES = (
    "zoo.name",
    "zoo.description",
    "zoo.authors",
    "zoo.license",
    "zoo.documentation",
    "zoo.cover",
    "zoo.cite",
    "zoo.tags",
    "zoo.maintainers",
    "zoo.test_hashes",
)
"""The zoo's rules about what the description should say."""

_READS = {
    "fiji": ("torchscript", "onnx"),
    "qupath": ("torchscript", "onnx"),
    "biapy": ("pytorch_state_dict",),
}
"""Weights formats that a partner reads; the others take what bioimageio.core takes."""

_FIELDS = (
    "version",
    "git_repo",
    "packaged_by",
    "links",
    "timestamp",
    "config.bioimageio.modality",
    "config.bioimageio.target_structure",
    "config.bioimageio.task",
    "config.bioimageio.architecture_type",
    "config.bioimageio.model_parameter_count",
    "config.bioimageio.out_of_scope_use",
)
"""Fields that any author can fill in. Many that bioimageio.spec counts are for other kinds of weights."""

_TESTS = {"core.test"} | {f"run.{name}" for names in _READS.values() for name in names}
"""Checks that decide what is known."""

_REASON_LENGTH = 240
_SHOWN = 2
RUN_CODE = "--run-code"
"""The fix of checks that need Python code of the package."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one program will run the model.

    Parameters
    ----------
    consumer
        ``core`` or one of `PARTNER_CONSUMERS`.
    verdict
        ``works``, ``fails``, or ``unknown`` where what decides it was not run.
    reason
        One sentence.
    """

    consumer: str
    verdict: Literal["works", "fails", "unknown"]
    reason: str


@dataclass(frozen=True, slots=True)
class Score:
    """The zoo's score, predicted: a quarter each for format, metadata, bioimageio.core and partner tools.

    Parameters
    ----------
    total
        0 to 1.
    parts
        Each part by name (``format``, ``metadata``, ``core``, ``partners``), 0 to 1.
    raise_it
        What would raise the score, and by how much: one sentence each, the largest gain first.
    """

    total: float
    parts: dict[str, float]
    raise_it: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completeness:
    """Which fields of a description are filled in, counted as bioimageio.spec counts them.

    Parameters
    ----------
    given
        Dotted names of the fields that the author wrote.
    known
        Those of all fields of the format, with the ones given.
    """

    given: frozenset[str]
    known: frozenset[str]

    @property
    def share(self) -> float:
        """0 to 1."""
        return len(self.given) / len(self.known) if self.known else 0.0

    def filled(self, names: Iterable[str]) -> Completeness:
        """The same with these fields, and the sections they are in, filled in."""
        parts = [name.split(".") for name in names]
        more = {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
        return Completeness(self.given | more, self.known | more)


def completeness_of(descr: Any) -> Completeness:
    """Count the fields of a description that bioimageio.spec has loaded.

    Parameters
    ----------
    descr
        bioimageio.spec's description object.
    """
    given = descr.model_dump(mode="json", exclude_unset=True)
    known = descr.model_dump(mode="json")
    return Completeness(frozenset(_dotted(given)), frozenset(_dotted(known)))


def completeness_as_written(rdf: Mapping[str, Any]) -> Completeness:
    """Count the fields of a description that bioimageio.spec refuses: nearly what it would count if it did not.

    Parameters
    ----------
    rdf
        The description as parsed.
    """
    from bioimageio.spec.model.v0_5 import Config, ModelDescr, WeightsDescr

    given = frozenset(_dotted(rdf))
    known = {*_dotted(dict.fromkeys(ModelDescr.model_fields)), *_dotted(Config().model_dump(), "config.")}
    known |= {f"weights.{name}" for name in WeightsDescr.model_fields}
    return Completeness(given, given | known)


def _dotted(fields: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in fields.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{key}.")


def verdicts_of(checks: Sequence[Check]) -> tuple[Verdict, ...]:
    """Judge every consumer.

    A partner fails where the model itself is broken (`BASE_CONSUMERS`) or one of its own checks failed. It is
    unknown where bioimageio.core's test, or the weights that this partner reads, were not run.

    Parameters
    ----------
    checks
        All checks, with the status that they have for the consumer itself: a partner's broken rule is ``failed``.
    """
    return tuple(_verdict(consumer, checks) for consumer in ("core", *PARTNER_CONSUMERS))


def _verdict(consumer: str, checks: Sequence[Check]) -> Verdict:
    # bioimageio.core runs its own test and no more, so what "run" finds beyond it is for the others.
    base = [name for name in BASE_CONSUMERS if consumer != "core" or name != "run"]
    broken = [check for check in checks if check.consumer in base and check.status == "failed"]
    own = [check for check in checks if check.consumer == consumer]
    failed = [check for check in own if check.status == "failed"]
    if broken:
        return Verdict(consumer, "fails", f"the model itself fails: {_messages(broken)}")
    if failed:
        return Verdict(consumer, "fails", _messages(failed))
    if not own:
        nothing = "its test was not reached" if consumer == "core" else "no rules were checked"
        return Verdict(consumer, "unknown", nothing)
    untested = _untested(consumer, checks)
    if untested:
        return Verdict(consumer, "unknown", untested)
    advice = [check for check in own if check.status == "warning"]
    if advice:
        return Verdict(consumer, "works", f"advice: {_messages(advice)}")
    return Verdict(consumer, "works", "its test passes" if consumer == "core" else "keeps all of its rules")


def _messages(checks: Sequence[Check]) -> str:
    shown = "; ".join(dict.fromkeys(check.message for check in checks[:_SHOWN]))
    more = f" (and {len(checks) - _SHOWN} more)" if len(checks) > _SHOWN else ""
    return one_sentence(shown, _REASON_LENGTH) + more


def _untested(consumer: str, checks: Sequence[Check]) -> str:
    """Why it cannot be known whether the weights that a consumer reads run; empty if they were run."""
    test = next((check for check in checks if check.id == "core.test"), None)
    if test is None or test.status == "skipped":
        return _why_untested(test)
    reads = _READS.get(consumer, ())
    # core.test names the formats that it ran
    if any(re.search(rf"\b{name}\b", test.message) for name in reads):
        return ""
    skipped = [check for check in checks if check.status == "skipped" and check.id in {f"run.{n}" for n in reads}]
    return _why_untested(skipped[0]) if skipped else ""


def _why_untested(check: Check | None) -> str:
    if check is None:
        return "the model was not run"
    hint = check.fix
    if hint == RUN_CODE:
        hint = f"to allow the model's Python code, validate with {RUN_CODE}"
    return check.message + (f"; {_lower(hint)}" if hint else "")


def score_of(checks: Sequence[Check], verdicts: Sequence[Verdict], completeness: Completeness | None = None) -> Score:
    """Predict the zoo's score: 0.25 x (format + metadata + core + its three best partner tools / 3).

    The zoo takes the metadata's completeness from bioimageio.spec: fields filled in, of all fields that the format
    knows. Without ``completeness`` it is replaced by the share of `METADATA_RULES` that are kept, which is usually
    far higher, as most fields are optional; how these rules weigh in the zoo's own number is nowhere stated.
    What is unknown counts as 0.

    Parameters
    ----------
    checks, verdicts
        As in `verdicts_of`, and what it returned.
    completeness
        What `completeness_of` counted.

    References
    ----------
    ``CompatibilityScores`` in https://github.com/bioimage-io/collection, which calls its scheme subject to change.
    """
    parts = _parts(checks, verdicts, completeness)
    gains = [entry for entry in _gains(checks, parts, completeness) if round(entry[0], 2) > 0]
    ordered = sorted(gains, key=lambda entry: -entry[0])
    return Score(_total(parts), parts, tuple(f"+{gain:.2f}{text}" for gain, text in ordered))


def _parts(checks: Sequence[Check], verdicts: Sequence[Verdict], completeness: Completeness | None) -> dict[str, float]:
    statuses = {check.id: check.status for check in checks}
    broken = any(check.status == "failed" for check in checks if check.consumer in ("archive", "format"))
    rules = [statuses[name] for name in METADATA_RULES if statuses.get(name, "skipped") != "skipped"]
    kept = rules.count("passed") / len(rules) if rules else 0.0
    works = sum(entry.verdict == "works" for entry in verdicts if entry.consumer in SCORED_PARTNERS)
    return {
        "format": float(statuses.get("format.valid") == "passed" and not broken),
        "metadata": kept if completeness is None else completeness.share,
        "core": float(statuses.get("core.test") == "passed"),
        "partners": min(works, 3) / 3,
    }


def _total(parts: Mapping[str, float]) -> float:
    return sum(parts.values()) / len(parts)


def _gains(
    checks: Sequence[Check], parts: Mapping[str, float], completeness: Completeness | None
) -> Iterator[tuple[float, str]]:
    """Each remedy's gain, from the score computed again with its checks passed, and the text that follows it."""

    def gain(mended: Collection[Check]) -> float:
        after = [replace(check, status="passed") if check in mended else check for check in checks]
        return _total(_parts(after, verdicts_of(after), completeness)) - _total(parts)

    broken = [check for check in checks if check.consumer in BASE_CONSUMERS and check.status == "failed"]
    untested = [check for check in checks if check.id in _TESTS and check.status == "skipped"]
    if broken:
        further = gain([*broken, *untested]) - gain(broken)
        then = f", and {further:.2f} more if its test passes then" if round(further, 2) > 0 else ""
        yield gain(broken), f"{then}: {_remedy(broken)}"
    elif untested:
        yield gain(untested), f" if its test passes: {_how_to_test(untested)}"
    for consumer in SCORED_PARTNERS:
        failed = [check for check in checks if check.consumer == consumer and check.status == "failed"]
        if failed:
            yield gain(failed), f" with {NAMES[consumer]}: {_remedy(failed)}"
    if completeness is not None:
        empty = [name for name in _FIELDS if name in completeness.known - completeness.given]
        yield (completeness.filled(empty).share - completeness.share) / len(parts), f": fill in {', '.join(empty)}"
        return
    for check in checks:
        if check.id in METADATA_RULES and check.status in ("failed", "warning"):
            yield gain([check]), f": {_remedy([check])}"


def _remedy(checks: Sequence[Check]) -> str:
    fixes = dict.fromkeys(_lower(check.fix or check.message).rstrip(".") for check in checks)
    return f"{'; '.join(fixes)} ({', '.join(check.id for check in checks)})"


def _how_to_test(untested: Sequence[Check]) -> str:
    fixes = dict.fromkeys(check.fix for check in untested if check.fix)
    if not fixes:
        return untested[0].message
    return "; ".join(f"validate with {RUN_CODE}" if fix == RUN_CODE else _lower(fix).rstrip(".") for fix in fixes)


def how_to_run(checks: Sequence[Check]) -> str:
    """What to do so that a model is run that was not, as a sentence."""
    untested = [
        check for check in checks if check.status == "skipped" and (check.fix == RUN_CODE or check.id in _TESTS)
    ]
    fixes = dict.fromkeys(check.fix for check in untested if check.fix)
    if RUN_CODE in fixes:
        return (
            f"Validate again with {RUN_CODE}, which allows the Python code inside this model to run on your computer."
        )
    return " ".join(fixes) or (f"The reason: {untested[0].message}." if untested else "")


def _lower(text: str) -> str:
    """For use inside a sentence; names such as TorchScript keep their capital."""
    return text[:1].lower() + text[1:] if re.match(r"[A-Z][a-z]+\b(?!')", text) else text
