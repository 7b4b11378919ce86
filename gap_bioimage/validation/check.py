"""The registry of checks and consumers: their types, how to declare them, and how to look them up.

A check is a function whose decorator holds its severity, source, fix and scope (see ``rules/``). It returns None if the
model passes, the problem as a text if it does not, or an `Outcome`; it raises `NotApplicable` if the question makes no
sense for a model. `--list`, docs/checks.md, the reports and the order of checks follow from the declarations. To
collect them, every module of the packages ``rules``, ``archive`` and ``run`` and every module named in `PLUGINS` is
imported, also in the process that runs models.
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray

from gap_bioimage.errors import ConfigError

Status = Literal["passed", "failed", "warning", "skipped", "error"]  # error: the check itself raised an exception

# fix of checks that need the package's Python code
RUN_CODE = "Validate with --run-code, which allows the model's Python code to run on your computer."
# fix of checks during which the model raised an exception
RUNS = "Make sure that the model runs in Python on its own, with its test inputs and with all sizes that it declares."
_LONGEST_TEXT = 900
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|\[ONNXRuntimeError\] : \d+ : \w+ : ")
_RANK: dict[Status, int] = {"skipped": 0, "passed": 1, "warning": 2, "error": 3, "failed": 4}


class NotApplicable(Exception):
    """A check does not apply to a model. With a ``fix`` that would make it apply, the verdict is unknown until then."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two arrays that should be equal, and the model input that led to them if it can be shown."""

    title: str  # e.g. "rate, torchscript"
    axes: tuple[str, ...]
    expected: NDArray[Any]
    got: NDArray[Any]
    given: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one check: a status, one sentence, a fix, and the arrays as evidence."""

    status: Status
    message: str
    fix: str = ""
    evidence: tuple[Evidence, ...] = field(default=(), compare=False, repr=False)
    concerns: Sequence[str] = ()  # weights formats; empty if it concerns the whole model


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report."""

    id: str  # "consumer.name"; scripts may rely on it
    consumer: str
    status: Status
    message: str  # what was found and what was expected
    fix: str = ""  # empty if there is nothing to do
    concerns: Sequence[str] = ()  # as for `Outcome`; not part of the JSON report

    def __post_init__(self) -> None:
        """Put both texts on one printable line of limited length, since they quote third-party files."""
        for name in ("message", "fix"):
            text = one_sentence(getattr(self, name), _LONGEST_TEXT)
            object.__setattr__(self, name, "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))

    def to_dict(self) -> dict[str, str]:
        """Return the check as plain strings, in the order of the JSON report."""
        return {name: text for name, text in asdict(self).items() if name != "concerns"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture for the report: a model's input, the expected output and the actual one."""

    check_id: str
    title: str
    png: bytes = field(repr=False)


def raised(error: Exception) -> Outcome:
    """Return the outcome of a check that itself raised an exception."""
    text = f"this check itself raised {type(error).__name__}: {one_sentence(error, 120)}"
    return Outcome("error", text, "Report this error together with your model.")


def merge_outcomes(outcomes: Iterable[tuple[str, Outcome]]) -> Outcome:
    """Merge one check's outcomes for several formats: the worst status, and each message (of failures) once."""
    pairs = list(outcomes)
    worst = max((outcome for _, outcome in pairs), key=lambda outcome: _RANK[outcome.status])
    kept = [(name, o.message) for name, o in pairs if o.status == "failed" or worst.status != "failed"]
    texts = dict.fromkeys(text for _, text in kept)
    message = "; ".join(f"{', '.join(name for name, told in kept if told == text)}: {text}" for text in texts)
    evidence = tuple(item for _, outcome in pairs for item in outcome.evidence)
    return Outcome(worst.status, message, worst.fix, evidence, [name for name, _ in kept])


def one_sentence(text: object, limit: int = 300) -> str:
    """Shorten an error text to one line of ``limit`` characters; of a TorchScript traceback, keep the exception."""
    plain = _DECORATION.sub("", str(text))
    if "TorchScript interpreter" in plain and (found := re.search(r"^[\w.]+(Error|Exception): .*", plain, re.M)):
        plain = found[0]
    flat = " ".join(plain.split())
    return flat if len(flat) <= limit else flat[: limit - 4] + " ..."


def counted(n: int, noun: str) -> str:
    """Return a number and its noun, whose plural ends in s."""
    return f"{n} {noun}{'s' * (n != 1)}"


Kind = Literal["rule", "archive", "run"]
PLUGINS = ["gap_bioimage.exporting.checks"]  # modules outside this package that declare checks


class Severity(StrEnum):
    """The effect of a violated check on its consumer."""

    BLOCKS = "blocks"  # the model does not run there: the check fails, and so does the verdict
    DEGRADES = "degrades"  # the model runs, with worse results or at a cost: a warning
    STYLE = "style"  # the model runs just as well, but is harder to find, cite or trust: a warning


BLOCKS, DEGRADES, STYLE = Severity.BLOCKS, Severity.DEGRADES, Severity.STYLE


@dataclass(frozen=True)
class Definition:
    """A declared check."""

    id: str
    kind: Kind  # decides the function's argument: a `model.Model`, an opened package, or a running model (a ``Runner``)
    severity: Severity
    function: Callable[[Any], Outcome | str | None] | None = None
    source: str = ""  # origin of a rule: a project with its version, and a file or text in it (when it was read)
    asks: str = ""  # the requirement; by default the first line of the function's docstring
    breaks: str = ""  # the consequence of a violation
    fix: str = ""  # what the author can do
    # scope: weights formats that must be there, those that must not, and a prefix of the description's format version
    weights: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    versions: str = ""
    repair: str = ""  # the function in ``validation/repair`` that fixes it
    once: bool = False  # for expensive run checks: if the outputs of all weights formats agree, only one is checked
    compares: bool = False  # for run checks that compare outputs, which do not apply if these are not numbers
    order: int = 0  # position among the checks of its consumer, 0 first; equal numbers keep the order of the source

    @property
    def consumer(self) -> str:
        """The consumer's id: the part of the check's id before the dot."""
        return self.id.split(".", 1)[0]

    def passed(self, message: str = "no problem found") -> Check:
        """Return a passed check."""
        return self.check(Outcome("passed", message))

    def violated(self, message: str, fix: str = "") -> Check:
        """Return a failed check, or a warning if the severity is not ``blocks``."""
        return self.check(Outcome("failed", message, fix))

    def skipped(self, message: str) -> Check:
        """Return a skipped check."""
        return self.check(Outcome("skipped", message))

    def check(self, outcome: Outcome) -> Check:
        """Turn an outcome into a line of the report; failures that do not block become warnings."""
        softened = outcome.status == "failed" and self.severity != BLOCKS
        status, fix = "warning" if softened else outcome.status, outcome.fix
        if status in ("failed", "warning"):
            repair = " `gap-bioimage repair` does this where possible." if self.repair else ""
            fix = f"{fix or self.fix}{repair}".strip()
        return Check(self.id, self.consumer, status, outcome.message, fix, outcome.concerns)

    def why_not(self, model: Any) -> str:
        """Return why a rule does not apply to a model (its ``weights`` and ``version``); empty if it does."""
        if self.weights and not set(self.weights) & set(model.weights):
            return f"there are no {' or '.join(self.weights)} weights"
        if excluded := [name for name in self.unless if name in model.weights]:
            return f"there are {' and '.join(excluded)} weights"
        return "" if model.version.startswith(self.versions) else f"only for descriptions of format {self.versions}"

    def judge(self, subject: Any) -> Check:
        """Run a rule on a `model.Model`, or an archive check on a package; exceptions become lines of the report."""
        try:
            if self.kind == "rule" and (why := self.why_not(subject)):
                return self.skipped(why)
            return self.check(self.outcome_of(subject))
        except Exception as error:  # third-party descriptions may hold anything anywhere
            if isinstance(error, OSError) and error.filename is not None:  # the fault of the file, not of the check
                return self.violated(f"{error.filename} cannot be read: {error.strerror}")
            if self.kind == "rule" and subject.valid is None:  # format.valid fails, with the reason
                return self.skipped(f"the description has an unexpected form: {raised(error).message}")
            return self.check(raised(error))

    def outcome_of(self, subject: Any) -> Outcome:
        """Call the function, and turn its result into an outcome; exceptions propagate."""
        if self.function is None:
            raise TypeError(f"{self.id} is declared without a function")
        try:
            result = self.function(subject)
        except NotApplicable as reason:
            return Outcome("skipped", one_sentence(reason), reason.fix)
        if isinstance(result, str):
            return Outcome("failed", f"{one_sentence(result)}: {self.breaks}" if self.breaks else result)
        return result or Outcome("passed", "no problem found")


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that reads models, or a part of a model that every program depends on."""

    id: str  # first part of the ids of its checks
    title: str  # its usual name
    about: str  # two sentences for readers who do not know it
    place: int  # position in reports, lowest first
    base: bool = False  # a model that violates its checks is not valid at all: the report fails for every consumer
    reads: tuple[str, ...] = ()  # weights formats; empty if it reads those of bioimageio.core


_CHECKS: dict[str, Definition] = {}
_CONSUMERS: dict[str, Consumer] = {}
_Function = TypeVar("_Function", bound=Callable[[Any], Outcome | str | None])


def consumer(name: str, title: str, about: str, place: int, **details: Any) -> None:
    """Declare a `Consumer`."""
    _CONSUMERS[name] = Consumer(name, title, about, place, **details)


def declare(check_id: str, kind: Kind, severity: Severity, source: str = "", **details: Any) -> Definition:
    """Declare a check; one without a function is reported through the returned `Definition`."""
    declared = Definition(check_id, kind, severity, source=source, **details)
    if check_id in _CHECKS:
        raise ValueError(f"the check {check_id} is declared twice")
    if not declared.asks:
        docstring = getattr(declared.function, "__doc__", None) or ""
        declared = replace(declared, asks=docstring.strip().partition("\n")[0])
    return _CHECKS.setdefault(check_id, declared)


def _declaring(
    kind: Kind, check_id: str, severity: Severity, source: str = "", **details: Any
) -> Callable[[_Function], _Function]:
    """Return a decorator that declares a function as a check of a kind; the arguments are those of `declare`."""

    def register(function: _Function) -> _Function:
        declare(check_id, kind, severity, source, function=function, **details)
        return function

    return register


rule, archive_check = functools.partial(_declaring, "rule"), functools.partial(_declaring, "archive")
run_check = functools.partial(_declaring, "run")


def consumers() -> Mapping[str, Consumer]:
    """Return all consumers by id, in the order of reports."""
    import_checks()
    return dict(sorted(_CONSUMERS.items(), key=lambda entry: entry[1].place))


def known(names: Iterable[str], checks: Iterable[str] = ()) -> None:
    """Raise a ConfigError if a name is not a consumer's, or neither a check's id nor its beginning up to a dot."""
    if unknown := sorted(set(names) - set(consumers())):
        raise ConfigError(f"There is no consumer {', '.join(unknown)}; choose from {', '.join(consumers())}.")
    for name in checks:
        if not any(matches(check_id, [name]) for check_id in registry()):
            raise ConfigError(f"There is no check {name}; gap-bioimage validate --list shows all of them.")


def matches(check_id: str, names: Iterable[str]) -> bool:
    """Return whether a check's id is one of the names, or begins with one up to a dot."""
    return any(f"{check_id}.".startswith(f"{name}.") for name in names)


def definition(check_id: str) -> Definition:
    """Return a declared check by its id; KeyError if there is none."""
    return _CHECKS[check_id] if check_id in _CHECKS else registry()[check_id]


def registry() -> Mapping[str, Definition]:
    """Return all declared checks by id, in the order of reports: by consumer, ``order``, module and line."""
    places = {name: place for place, name in enumerate(consumers())}

    def key(entry: Definition) -> tuple[int, int, str]:
        # modules import each other, so the order in which they declare their checks is arbitrary
        return places.get(entry.consumer, len(places)), entry.order, getattr(entry.function, "__module__", "")

    return {entry.id: entry for entry in sorted(_CHECKS.values(), key=key)}


def definitions(kind: Kind) -> list[Definition]:
    """Return all declared checks of a kind that have a function, in the order of reports."""
    return [entry for entry in registry().values() if entry.kind == kind and entry.function is not None]


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


consumer("archive", "the zip file", "Whether the zip itself is complete, and safe to unpack and to load.", 0, base=True)
consumer("format", "the description", "The description, `rdf.yaml`, in the bioimage.io format.", 1, base=True)
consumer(
    "run", "running the model", "Whether the weights load, and run on other sizes, dark images and tiles.", 3, base=True
)
