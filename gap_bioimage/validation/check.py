"""The registry: what a check is, how it is declared, and all that are known.

A check is one plain function; its decorator carries what people should know of it::

    @rule("fiji.id", BLOCKS, JDLL, versions="0.5", repair="fill_id", breaks="JDLL ends with a NullPointerException",
          fix="Give the model a non-empty id.")
    def model_id(model: Model) -> str | None:
        \"\"\"A non-empty id.\"\"\"
        return None if model.rdf.get("id") else "id is empty"

A question that several consumers ask is declared for each: ``rule("qupath.custom_ops", ...)(custom_processing)``.
``--list``, docs/checks.md, the reports and the order of checks follow from it. There are three kinds:

`rule`
    A function of the `model.Model` (description and files).
`archive_check`
    A function of an opened package.
`run_check`
    A function of a running model (a ``Runner``).

Each returns None where all is well, a text with what was found where it is not, or an `Outcome`; it raises
`NotApplicable` where the question makes no sense for a model. What severity makes of it stands in `Severity`. Checks
that no single function makes (unpacking a zip makes several) are declared by `declare`, and report through the
`Definition` that it returns.

Every module of the packages ``rules``, ``archive`` and ``run`` is imported for the checks in it, and so are the modules
named in `PLUGINS`: a module anywhere declares checks by being named there. They are imported by name in the
process that runs models too, and must do nothing else when imported.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from gap_bioimage.validation.outcome import (
    Check,
    Evidence,
    NotApplicable,
    Outcome,
    Picture,
    Status,
    merge_outcomes,
    one_sentence,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


__all__ = [
    "BLOCKS", "DEGRADES", "PLUGINS", "STYLE", "Check", "Definition", "Evidence", "NotApplicable", "Outcome", "Picture",
    "Severity", "Source", "Status", "archive_check", "declare", "definition", "definitions", "import_checks",
    "merge_outcomes", "one_sentence", "registry", "rule", "run_check",
]  # fmt: skip

Kind = Literal["rule", "archive", "run"]

PLUGINS = ["gap_bioimage.exporting.checks"]
"""Names of modules outside this package that declare checks; a module that is not installed is left out."""

_PACKAGES = ("archive", "run", "rules")
_REPAIRED = "`gap-bioimage repair` does this."


class Severity(StrEnum):
    """What a violated check means for its consumer."""

    BLOCKS = "blocks"
    """It does not run there: the check fails, and so does the verdict."""
    DEGRADES = "degrades"
    """It runs, with worse results or at a cost: a warning."""
    STYLE = "style"
    """It runs as well; people would find, cite or trust it more: a warning."""


BLOCKS, DEGRADES, STYLE = Severity.BLOCKS, Severity.DEGRADES, Severity.STYLE


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule is known from: a project, a file or text in it, its version, and when it was read or run."""

    project: str
    file: str
    version: str
    date: str

    def __str__(self) -> str:
        return f"{' '.join(filter(None, (self.project, self.version)))}, {self.file} ({self.date})"


@dataclass(frozen=True)
class Definition:
    """A declared check.

    Parameters
    ----------
    id, kind, severity, function, source
        Its name, what it is a function of, what a violation means, the function (if one makes it) and where it is
        known from.
    asks, breaks, fix
        What is asked of a model (the first line of the function's docstring if not given), what happens without it, and
        what the author does about it; a fix may be a function of the check's subject.
    weights, dims, versions
        Scope: only weights in one of these formats, images of 2 or of 3 dimensions, descriptions written in a format
        that begins so (``"0.5"``).
    repair
        Name of the function in ``validation/repair`` that mends it.
    once, compares
        Of a run check: where the weights formats agree, one stands for all (for what costs much); it compares outputs,
        which says nothing where they are no numbers.
    order
        Place among the checks of its consumer, 0 first; the same number keeps the order of the source.
    """

    id: str
    kind: Kind
    severity: Severity
    function: Callable[[Any], Outcome | str | None] | None = None
    source: Source | None = None
    asks: str = ""
    breaks: str = ""
    fix: str | Callable[[Any], str] = ""
    weights: tuple[str, ...] = ()
    dims: int | None = None
    versions: str = ""
    repair: str = ""
    once: bool = False
    compares: bool = False
    order: int = 0

    @property
    def consumer(self) -> str:
        """Who needs it: the id up to the dot."""
        return self.id.split(".", 1)[0]

    @property
    def fix_text(self) -> str:
        """The fix, where it does not depend on what was found."""
        return self.fix if isinstance(self.fix, str) else ""

    def passed(self, message: str = "kept") -> Check:
        """All is well."""
        return self.check(Outcome("passed", message))

    def violated(self, message: str, fix: str = "") -> Check:
        """Something was found: failed or a warning, as the severity says."""
        return self.check(Outcome("failed", message, fix or self.fix_text))

    def skipped(self, message: str, fix: str = "") -> Check:
        """Nothing was found out."""
        return self.check(Outcome("skipped", message, fix))

    def check(self, outcome: Outcome) -> Check:
        """The line of the report; what does not block is never more than a warning."""
        softened = outcome.status == "failed" and self.severity != Severity.BLOCKS
        status: Status = "warning" if softened else outcome.status
        mended = self.repair and status in ("failed", "warning")
        fix = f"{outcome.fix} {_REPAIRED}".strip() if mended else outcome.fix
        return Check(self.id, self.consumer, status, outcome.message, fix)

    def why_not(self, model: Any) -> str:
        """Why a rule says nothing about a model (its ``weights``, ``n_dims`` and ``version``); empty if it does."""
        if self.weights and not set(self.weights) & set(model.weights):
            return f"no {' or '.join(self.weights)} weights are given"
        if self.dims is not None and model.n_dims != self.dims:
            return f"is about {self.dims}D images"
        if not model.version.startswith(self.versions):
            return f"is about descriptions of format {self.versions}"
        return ""

    def judge(self, model: Any) -> Check:
        """Apply a rule to a `model.Model`. One that raises tells of itself: then nothing is known."""
        try:
            if why := self.why_not(model):
                return self.skipped(why)
            return self.check(self.outcome_of(model))
        except Exception as error:  # anybody's description may hold anything anywhere
            told = f"{type(error).__name__}: {one_sentence(error, 120)}"
            if not model.is_valid:
                return self.skipped(f"the description could not be understood here: {told}")
            return self.check(Outcome("error", f"this check itself raised {told}", "Report it with your model."))

    def outcome_of(self, subject: Any) -> Outcome:
        """Call the function, and make an outcome of what it returns; what it raises is raised, but `NotApplicable`."""
        if self.function is None:
            raise TypeError(f"{self.id} is declared without a function")
        try:
            found = self.function(subject)
        except NotApplicable as reason:
            return Outcome("skipped", one_sentence(reason))
        if isinstance(found, Outcome):
            return found
        if found is None:
            return Outcome("passed", "kept")
        fix = self.fix if isinstance(self.fix, str) else self.fix(subject)
        return Outcome("failed", f"{one_sentence(found)}: {self.breaks}" if self.breaks else found, fix)


_REGISTERED: dict[str, Definition] = {}
_Function = TypeVar("_Function", bound="Callable[[Any], Outcome | str | None]")


def declare(check_id: str, kind: Kind, severity: Severity, source: Source | None = None, **details: Any) -> Definition:
    """Declare a check that no single function makes; report through what is returned."""
    return _register(Definition(check_id, kind, severity, source=source, **details))


def _register(made: Definition) -> Definition:
    if made.id in _REGISTERED:
        raise ValueError(f"the check {made.id} is declared twice")
    if not made.asks:
        made = replace(made, asks=(getattr(made.function, "__doc__", None) or "").strip().partition("\n")[0])
    return _REGISTERED.setdefault(made.id, made)


def _decorator(*declared: Any, **details: Any) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        kind, check_id, severity, source = declared
        _register(Definition(check_id, kind, severity, function, source, **details))
        return function

    return register


def rule(
    check_id: str, severity: Severity, source: Source | None = None, **details: Any
) -> Callable[[_Function], _Function]:
    """Declare a function of a `model.Model` as a rule; see `Definition` for the details."""
    return _decorator("rule", check_id, severity, source, **details)


def archive_check(
    check_id: str, severity: Severity, source: Source | None = None, **details: Any
) -> Callable[[_Function], _Function]:
    """Declare a function of an opened package as a check."""
    return _decorator("archive", check_id, severity, source, **details)


def run_check(
    check_id: str, severity: Severity, source: Source | None = None, **details: Any
) -> Callable[[_Function], _Function]:
    """Declare a function of a running model as a check."""
    return _decorator("run", check_id, severity, source, **details)


def definition(check_id: str) -> Definition:
    """A declared check by its id.

    Raises
    ------
    KeyError
        If there is none.
    """
    return _REGISTERED[check_id] if check_id in _REGISTERED else registry()[check_id]


def registry() -> Mapping[str, Definition]:
    """All declared checks by id, in the order of a report: by consumer, then by its ``order``, then as declared."""
    from gap_bioimage.validation.consumers import consumers

    places = {name: place for place, name in enumerate(consumers())}
    unplaced = len(places)
    ordered = sorted(_REGISTERED.values(), key=lambda made: (places.get(made.consumer, unplaced), made.order))
    return {made.id: made for made in ordered}


def definitions(kind: Kind) -> list[Definition]:
    """All declared checks of a kind that have a function, in the order of a report."""
    return [made for made in registry().values() if made.kind == kind and made.function is not None]


@functools.cache
def import_checks() -> None:
    """Import every module that declares checks or consumers, once."""
    root = __name__.rpartition(".")[0]
    for name in _PACKAGES:
        package = _imported(f"{root}.{name}")
        for module in pkgutil.iter_modules(package.__path__) if package is not None else ():
            importlib.import_module(f"{root}.{name}.{module.name}")
    for name in PLUGINS:
        _imported(name)


def _imported(name: str) -> Any:
    """A module, or None where there is none of that name; what is wrong inside it is raised."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise
