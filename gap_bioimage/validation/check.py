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
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Unpack

    from numpy.typing import NDArray

Status = Literal["passed", "failed", "warning", "skipped", "error"]
"""``error``: the check itself raised, so that nothing is known."""

Kind = Literal["rule", "archive", "run"]

PLUGINS = ["gap_bioimage.exporting.checks"]
"""Names of modules outside this package that declare checks; a module that is not installed is left out."""

_PACKAGES = ("archive", "run", "rules")
_LONGEST_TEXT = 900
_REPAIRED = "`gap-bioimage repair` does this."
_RANK: dict[Status, int] = {"skipped": 0, "passed": 1, "warning": 2, "error": 3, "failed": 4}


class Severity(StrEnum):
    """What a violated check means for its consumer."""

    BLOCKS = "blocks"
    """It does not run there: the check fails, and so does the verdict."""
    DEGRADES = "degrades"
    """It runs, with worse results or at a cost: a warning."""
    STYLE = "style"
    """It runs as well; people would find, cite or trust it more: a warning."""


BLOCKS, DEGRADES, STYLE = Severity.BLOCKS, Severity.DEGRADES, Severity.STYLE


class NotApplicable(Exception):
    """Raised by a check that says nothing about a model; its text says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule is known from: a project, a file or text in it, its version, and when it was read or run."""

    project: str
    file: str
    version: str
    date: str

    def __str__(self) -> str:
        return f"{' '.join(filter(None, (self.project, self.version)))}, {self.file} ({self.date})"


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


class Details(TypedDict, total=False):
    """What a check says of itself, besides its id and severity."""

    asks: str
    """What is asked of a model; the first line of the function's docstring if not given."""
    breaks: str
    """What happens where it is violated."""
    fix: str | Callable[[Any], str]
    """What the author does about it; a function of the check's subject where that depends on what was found."""
    weights: tuple[str, ...]
    """Only models with weights in one of these formats; for a run check: only those weights."""
    dims: int | None
    """Only images of 2 or of 3 dimensions."""
    versions: str
    """Only descriptions written in a format that begins so, e.g. ``"0.5"``."""
    repair: str
    """Name of the function in ``validation/repair`` that mends it."""
    once: bool
    """Of a run check: where the weights formats agree, one stands for all (for what costs much)."""
    compares: bool
    """Of a run check: it compares outputs, which says nothing where they are no numbers."""
    order: int
    """Place among the checks of its consumer, 0 first; those with the same number keep the order of the source."""


@dataclass(frozen=True)
class Definition:
    """A declared check; the fields are those of `Details`."""

    id: str
    kind: Kind
    severity: Severity
    function: Callable[[Any], Outcome | str | None] | None = None
    asks: str = ""
    breaks: str = ""
    fix: str | Callable[[Any], str] = ""
    source: Source | None = None
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


def declare(
    check_id: str, kind: Kind, severity: Severity, source: Source | None = None, **details: Unpack[Details]
) -> Definition:
    """Declare a check that no single function makes; report through what is returned."""
    return _register(Definition(check_id, kind, severity, source=source, **details))


def _register(made: Definition) -> Definition:
    if made.id in _REGISTERED:
        raise ValueError(f"the check {made.id} is declared twice")
    _REGISTERED[made.id] = made
    return made


def _decorator(kind: Kind) -> Decorator:
    def decorator(
        check_id: str, severity: Severity, source: Source | None = None, **details: Unpack[Details]
    ) -> Callable[[_Function], _Function]:
        def register(function: _Function) -> _Function:
            made = Definition(check_id, kind, severity, function, source=source, **details)
            _register(made if made.asks else replace(made, asks=(function.__doc__ or "").strip().partition("\n")[0]))
            return function

        return register

    return decorator


class Decorator(Protocol):
    """Declares a function as a check: its id, severity and source, and the other `Details`."""

    def __call__(
        self, check_id: str, severity: Severity, source: Source | None = None, **details: Unpack[Details]
    ) -> Callable[[_Function], _Function]:
        """Return a decorator."""


rule: Decorator = _decorator("rule")
"""Of a function of a `model.Model`."""
archive_check: Decorator = _decorator("archive")
"""Of a function of an opened package."""
run_check: Decorator = _decorator("run")
"""Of a function of a running model."""


def definition(check_id: str) -> Definition:
    """A declared check by its id.

    Raises
    ------
    KeyError
        If there is none.
    """
    return _REGISTERED[check_id] if check_id in _REGISTERED else registry()[check_id]


def registry() -> Mapping[str, Definition]:
    """All declared checks by id, in the order of a report: by consumer, then by `Details.order`, then as declared."""
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
