"""The registry: what a check and a consumer are, how they are declared, and all that are known.

A check is one function with a decorator that says what people should know of it (see ``rules/``). It returns None where
all is well, a text with what was found where it is not, or an `Outcome`; it raises `NotApplicable` where the question
makes no sense for a model. `--list`, docs/checks.md, the reports and the order of checks follow from the declarations.
Every module of the packages ``rules``, ``archive`` and ``run`` is imported for them, in the process that runs models
too, and so are the modules named in `PLUGINS`.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray

from gap_bioimage.errors import ConfigError

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


Kind = Literal["rule", "archive", "run"]

PLUGINS = ["gap_bioimage.exporting.checks"]
"""Names of modules outside this package that declare checks."""


class Severity(StrEnum):
    """What a violated check means for its consumer."""

    BLOCKS = "blocks"  # it does not run there: the check fails, and so does the verdict
    DEGRADES = "degrades"  # it runs, with worse results or at a cost: a warning
    STYLE = "style"  # it runs as well; people would find, cite or trust it more: a warning


BLOCKS, DEGRADES, STYLE = Severity.BLOCKS, Severity.DEGRADES, Severity.STYLE


@dataclass(frozen=True)
class Definition:
    """A declared check."""

    id: str
    kind: Kind  # what the function is of: a `model.Model`, an opened package, or a running model (a ``Runner``)
    severity: Severity
    function: Callable[[Any], Outcome | str | None] | None = None
    source: str = ""  # where a rule is known from: a project with its version, a file or text in it (when it was read)
    asks: str = ""  # what is asked of a model; the first line of the function's docstring if not given
    breaks: str = ""  # what happens without it
    fix: str = ""  # what the author does about it
    # scope: weights in these formats and not in those, descriptions whose format begins so
    weights: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    versions: str = ""
    repair: str = ""  # the function in ``validation/repair`` that mends it
    once: bool = False  # of a run check that costs much: where the weights formats agree, one stands for all
    compares: bool = False  # of a run check that compares outputs, which says nothing where they are no numbers
    order: int = 0  # place among the checks of its consumer, 0 first; the same number keeps the order of the source

    @property
    def consumer(self) -> str:
        """Who needs it: the id up to the dot."""
        return self.id.split(".", 1)[0]

    def passed(self, message: str = "kept") -> Check:
        """All is well."""
        return self.check(Outcome("passed", message))

    def violated(self, message: str, fix: str = "") -> Check:
        """Something was found: failed or a warning, as the severity says."""
        return self.check(Outcome("failed", message, fix))

    def skipped(self, message: str) -> Check:
        """Nothing was found out."""
        return self.check(Outcome("skipped", message))

    def check(self, outcome: Outcome) -> Check:
        """The line of the report; what does not block is never more than a warning."""
        softened = outcome.status == "failed" and self.severity != BLOCKS
        status, fix = "warning" if softened else outcome.status, outcome.fix
        if status in ("failed", "warning"):
            mended = " `gap-bioimage repair` does this where it can." if self.repair else ""
            fix = f"{fix or self.fix}{mended}".strip()
        return Check(self.id, self.consumer, status, outcome.message, fix)

    def why_not(self, model: Any) -> str:
        """Why a rule says nothing about a model (its ``weights`` and ``version``); empty if it does."""
        if self.weights and not set(self.weights) & set(model.weights):
            return f"no {' or '.join(self.weights)} weights are given"
        if others := [name for name in self.unless if name in model.weights]:
            return f"there are {' and '.join(others)} weights"
        return "" if model.version.startswith(self.versions) else f"is about descriptions of format {self.versions}"

    def judge(self, subject: Any) -> Check:
        """Ask a rule of a `model.Model`, an archive check of a package; where it raises, nothing is known."""
        try:
            if self.kind == "rule" and (why := self.why_not(subject)):
                return self.skipped(why)
            return self.check(self.outcome_of(subject))
        except Exception as error:  # anybody's description may hold anything anywhere
            if isinstance(error, OSError) and error.filename is not None:  # the user's file, no fault of the check
                return self.violated(f"{error.filename} cannot be read: {error.strerror}")
            if self.kind == "rule" and subject.valid is None:  # it fails for everybody, and format.valid says why
                return self.skipped(f"the description could not be understood here: {raised(error).message}")
            return self.check(raised(error))

    def outcome_of(self, subject: Any) -> Outcome:
        """Call the function, and make an outcome of what it returns; what it raises is passed on."""
        if self.function is None:
            raise TypeError(f"{self.id} is declared without a function")
        try:
            found = self.function(subject)
        except NotApplicable as reason:
            return Outcome("skipped", one_sentence(reason), reason.fix)
        if isinstance(found, str):
            return Outcome("failed", f"{one_sentence(found)}: {self.breaks}" if self.breaks else found)
        return found or Outcome("passed", "kept")


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that reads models, or a part of a model that every program rests on."""

    id: str  # first part of the ids of its checks
    title: str  # what people call it
    about: str  # two sentences for who does not know it
    place: int  # in reports, lowest first
    base: bool = False  # what it needs makes a model valid at all: a violation fails the report for everybody
    reads: tuple[str, ...] = ()  # weights formats; empty for those that bioimageio.core reads


_CHECKS: dict[str, Definition] = {}
_CONSUMERS: dict[str, Consumer] = {}
_Function = TypeVar("_Function", bound=Callable[[Any], Outcome | str | None])


def consumer(name: str, title: str, about: str, place: int, **details: Any) -> None:
    """Declare a `Consumer`."""
    _CONSUMERS[name] = Consumer(name, title, about, place, **details)


def declare(check_id: str, kind: Kind, severity: Severity, source: str = "", **details: Any) -> Definition:
    """Declare a check that no single function makes; report through what is returned."""
    made = Definition(check_id, kind, severity, source=source, **details)
    if check_id in _CHECKS:
        raise ValueError(f"the check {check_id} is declared twice")
    if not made.asks:
        made = replace(made, asks=(getattr(made.function, "__doc__", None) or "").strip().partition("\n")[0])
    return _CHECKS.setdefault(check_id, made)


def _declared(
    kind: Kind, check_id: str, severity: Severity, source: str = "", **details: Any
) -> Callable[[_Function], _Function]:
    """A decorator that declares a function as a check of a kind; its arguments are those of `declare`."""

    def register(function: _Function) -> _Function:
        declare(check_id, kind, severity, source, function=function, **details)
        return function

    return register


rule, archive_check = functools.partial(_declared, "rule"), functools.partial(_declared, "archive")
run_check = functools.partial(_declared, "run")


def consumers() -> Mapping[str, Consumer]:
    """All consumers by id, in the order of reports."""
    import_checks()
    return dict(sorted(_CONSUMERS.items(), key=lambda entry: entry[1].place))


def known(names: Iterable[str], checks: Iterable[str] = ()) -> None:
    """Refuse names that are not consumers', or no checks' nor their beginnings, with a ConfigError."""
    if unknown := sorted(set(names) - set(consumers())):
        raise ConfigError(f"There is no consumer {', '.join(unknown)}; give some of {', '.join(consumers())}.")
    for name in checks:
        if not any(is_of(check_id, [name]) for check_id in registry()):
            raise ConfigError(f"There is no check {name}; see gap-bioimage validate --list.")


def is_of(check_id: str, names: Iterable[str]) -> bool:
    """Whether a check is called so, or its id begins so up to a dot."""
    return any(f"{check_id}.".startswith(f"{name}.") for name in names)


def definition(check_id: str) -> Definition:
    """A declared check by its id; KeyError if there is none."""
    return _CHECKS[check_id] if check_id in _CHECKS else registry()[check_id]


def registry() -> Mapping[str, Definition]:
    """All declared checks by id, in the order of a report: by consumer, then by its ``order``, module and line."""
    places = {name: place for place, name in enumerate(consumers())}

    def key(made: Definition) -> tuple[int, int, str]:
        # modules import each other, so that the order in which they declare their checks is nobody's choice
        return places.get(made.consumer, len(places)), made.order, getattr(made.function, "__module__", "")

    return {made.id: made for made in sorted(_CHECKS.values(), key=key)}


def definitions(kind: Kind) -> list[Definition]:
    """All declared checks of a kind that have a function, in the order of a report."""
    return [made for made in registry().values() if made.kind == kind and made.function is not None]


@functools.cache
def import_checks() -> None:
    """Import every module that declares checks or consumers, once."""
    root = __name__.rpartition(".")[0]
    for name in ("archive", "run", "rules"):
        package = importlib.import_module(f"{root}.{name}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{root}.{name}.{module.name}")
    for name in PLUGINS:
        importlib.import_module(name)


# fmt: off
consumer("archive", "the zip file", "The zip itself: whether it is whole, and safe to unpack and to load.", 0,
         base=True)
consumer("format", "the description", "The description, `rdf.yaml`, as the bioimage.io format defines it.", 1,
         base=True)
consumer("run", "running the model",
         "What everybody expects of a model: its weights are loaded and run on images of other sizes, dark ones, "
         "tiles.", 3, base=True)
