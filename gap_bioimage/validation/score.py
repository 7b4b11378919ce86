"""The score that the zoo will give, and what would raise it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.consumers import consumers
from gap_bioimage.validation.verdicts import RUN_CODE, decides_what_is_known, inside

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from gap_bioimage.validation.check import Check

HIGHEST = 8
PARTS = {"format": "valid format", "inference": "runs", "reproduces": "reproduces its test", "metadata": "metadata"}
"""What people call the parts of the score."""
POINTS = {"format": 1, "inference": 2, "reproduces": 4, "metadata": 1}
"""How much each part counts at most."""

_FIELDS = (
    "version", "git_repo", "packaged_by", "links", "timestamp", "config.bioimageio.modality",
    "config.bioimageio.target_structure", "config.bioimageio.task", "config.bioimageio.architecture_type",
    "config.bioimageio.model_parameter_count", "config.bioimageio.out_of_scope_use",
)  # fmt: skip
"""Fields that any author can fill in. Many that bioimageio.spec counts are for other kinds of weights."""


@dataclass(frozen=True, slots=True)
class Score:
    """The zoo's score, predicted.

    Parameters
    ----------
    total
        0 to 8.
    parts
        Each part by name, from 0 to its `POINTS`.
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
    """Count the fields of a description that bioimageio.spec has loaded."""
    given = descr.model_dump(mode="json", exclude_unset=True)
    known = descr.model_dump(mode="json")
    return Completeness(frozenset(_dotted(given)), frozenset(_dotted(known)))


def _dotted(fields: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in fields.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{key}.")


def score_of(checks: Sequence[Check], completeness: Completeness | None = None) -> Score:
    """Predict the zoo's score, which BioEngine computes.

    0 unless the description is valid; then 1, + 2 if the model runs, + 4 if it reproduces its test outputs, + the
    completeness of its metadata (0 to 1). What is unknown counts as 0.

    Parameters
    ----------
    checks
        All checks.
    completeness
        What `completeness_of` counted; None where the description is invalid.

    References
    ----------
    BioEngine, apps/model-runner, 2026-08-22.
    """
    parts = _parts(checks, completeness)
    gains = [entry for entry in _gains(checks, parts, completeness) if round(entry[0], 2) > 0]
    ordered = sorted(gains, key=lambda entry: -entry[0])
    return Score(sum(parts.values()), parts, tuple(f"+{gain:.2f}{text}" for gain, text in ordered))


def _parts(checks: Sequence[Check], completeness: Completeness | None) -> dict[str, float]:
    statuses = {check.id: check.status for check in checks}
    broken = any(check.status == "failed" for check in checks if check.consumer in ("archive", "format"))
    if broken or statuses.get("format.valid") != "passed":
        return dict.fromkeys(POINTS, 0.0)
    passed = statuses.get("core.test") == "passed"
    # it has given outputs, whatever they are
    ran = passed or statuses.get("run.reproduces") in ("passed", "warning", "failed")
    return {
        "format": 1.0,
        "inference": 2.0 * ran,
        "reproduces": 4.0 * passed,
        "metadata": completeness.share if completeness is not None else 0.0,
    }


def _gains(
    checks: Sequence[Check], parts: Mapping[str, float], completeness: Completeness | None
) -> Iterator[tuple[float, str]]:
    """Each remedy's gain, from the score computed again with its checks passed, and the text that follows it."""

    def gain(mended: Collection[Check]) -> float:
        after = [replace(check, status="passed") if check in mended else check for check in checks]
        return sum(_parts(after, completeness).values()) - sum(parts.values())

    base = [name for name, entry in consumers().items() if entry.base]
    broken = [check for check in checks if check.consumer in base and check.status == "failed"]
    untested = [check for check in checks if check.status == "skipped" and decides_what_is_known(check)]
    if broken:
        further = gain([*broken, *untested]) - gain(broken)
        then = f", and {further:.2f} more if its test passes then" if round(further, 2) > 0 else ""
        yield gain(broken), f"{then}: {_remedy(broken)}"
    elif untested:
        yield gain(untested), f" if its test passes: {_how_to_test(untested)}"
    if completeness is not None and parts["format"]:
        empty = [name for name in _FIELDS if name in completeness.known - completeness.given]
        yield completeness.filled(empty).share - completeness.share, f": fill in {', '.join(empty)}"


def _remedy(checks: Sequence[Check]) -> str:
    fixes = dict.fromkeys(inside(check.fix or check.message).rstrip(".") for check in checks)
    return f"{'; '.join(fixes)} ({', '.join(check.id for check in checks)})"


def _how_to_test(untested: Sequence[Check]) -> str:
    fixes = dict.fromkeys(check.fix for check in untested if check.fix)
    if not fixes:
        return untested[0].message
    return "; ".join(f"validate with {RUN_CODE}" if fix == RUN_CODE else inside(fix).rstrip(".") for fix in fixes)
