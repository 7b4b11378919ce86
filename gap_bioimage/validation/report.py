"""Validate a model the way its consumers will, and collect the results in a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from gap_bioimage.validation import check as registry
from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, Picture, matches
from gap_bioimage.validation.model import Model, with_infinities
from gap_bioimage.validation.run.engines import check_device, find_engines
from gap_bioimage.validation.run.sandbox import Sandbox
from gap_bioimage.validation.run.session import Job
from gap_bioimage.validation.verdicts import Score, Verdict, empty_fields, score_of, verdicts_of

Status = Literal["passed", "failed", "not-run", "unknown"]


@dataclass(frozen=True)
class Report:
    """The result of a validation: all checks, in the order in which they were made, and what follows from them."""

    model: str  # the path that was validated, as given
    checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...] = ()
    score: Score | None = None
    pictures: tuple[Picture, ...] = ()
    description_only: bool = False  # only the description was validated, on request
    ran: bool = False  # the model was run, even if core.test was left out of the checks

    @property
    def status(self) -> Status:
        """``failed`` if a check failed, ``not-run`` if a requested run did not happen, ``unknown`` if one raised."""
        if any(check.status == "failed" for check in self.checks):
            return "failed"
        if not (self.was_run or self.description_only):
            return "not-run"
        return "unknown" if self.raised else "passed"

    @property
    def was_run(self) -> bool:
        """Whether the model itself was run."""
        return self.ran or any(check.id == "core.test" and check.status != "skipped" for check in self.checks)

    def selected(self, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> Report:
        """Return the report with some checks only, by ids or their beginnings up to a dot; verdicts and score stay."""
        registry.known((), (*select, *ignore))
        checks = [c for c in self.checks if (not select or matches(c.id, select)) and not matches(c.id, ignore)]
        return replace(self, checks=tuple(checks), ran=self.was_run)

    @property
    def for_ci(self) -> Report:
        """The report for continuous integration: a model that was not run is an error, as in the exit code."""
        missed = "core.test" if self.status == "not-run" else ""
        return replace(self, checks=tuple(replace(c, status="error") if c.id == missed else c for c in self.checks))

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by status."""
        return dict(Counter(check.status for check in self.checks))

    @property
    def raised(self) -> list[Check]:
        """The checks that themselves raised an exception, which leaves a verdict unknown."""
        return [check for check in self.checks if check.status == "error"]

    def to_dict(self) -> dict[str, object]:
        """Return the report as ``validate --json`` prints it; ``consumers`` is the older name of ``verdicts``."""
        verdicts = [asdict(verdict) for verdict in self.verdicts]
        report: dict[str, object] = {
            "status": self.status, "model": self.model, "checks": [check.to_dict() for check in self.checks],
            "verdicts": verdicts, "consumers": verdicts, "score": None if self.score is None else asdict(self.score),
        }  # fmt: skip
        scope = {"description_only": True} if self.description_only else {}
        return report | scope | ({} if self.was_run else {"was_run": False})


def validate(
    path: str | Path,
    *,
    consumers: Sequence[str] | None = None,
    run_code: bool = False,
    device: str = "cpu",
    engines: Sequence[str] = (),
    keep: str | Path | None = None,
    pictures: bool = False,
    process: Sandbox | None = None,
    on_check: Callable[[Check], None] | None = None,
    description_only: bool = False,
) -> Report:
    """Check a bioimage.io model: its archive, format, files, behaviour when run, and its consumers' rules.

    A failed check that concerns every program (consumers ``archive``, ``format``, ``core``, ``run``) always fails the
    report. A problem that blocks one partner (``zoo``, ``fiji``, ``ilastik``, ...) is a warning, and a failure if that
    partner is listed in ``consumers``. Models run in a separate process: one that hangs or takes all memory is a failed
    check. No network is used.

    Parameters
    ----------
    path
        A model zip, a folder that holds a description, or the description's yaml itself.
    consumers
        Ids of consumers: the rules of these partners are checked and must hold. None checks all partners, and warns.
    run_code
        Allow the package's Python code to run (architecture sources, custom processing). Without it, weights that
        need such code are skipped; TorchScript and ONNX are run.
    device
        Torch device to run on.
    engines
        Other Python interpreters, such as ``/usr/bin/python3``, whose torch runs the TorchScript, too.
    keep
        Folder for the tensors and pictures of failed checks; without it, none are kept.
    pictures
        Return pictures of inputs, outputs and differences with the report.
    process
        The process in which models run, with its limits, which several calls can share; a new one if None.
    on_check
        Called with every check as soon as it is made.
    description_only
        Validate the description alone, and run nothing. A verdict is ``works`` if nothing in the description speaks
        against it, ``unknown`` if only the files or a run can decide.

    Raises
    ------
    UnreadableModelError
        If the path is not a zip, folder or yaml, or holds no description.
    ConfigError
        If a consumer is unknown, an engine has no torch, or the device does not exist.
    """
    registry.known(consumers or ())
    check_device(device)
    folder = None if keep is None else Path(keep).absolute()
    job = partial(Job, run_code=run_code, device=device, engines=find_engines(engines), keep=folder)
    with nullcontext(process) if process is not None else Sandbox() as runs:
        if not description_only and Path(path).exists():
            runs.start()  # imports the libraries there while the files are examined
        with open_package(path) as (package, checks):
            valid, results = None, chain[Check | Picture](checks)
            if package is not None:
                if description_only:
                    package = replace(package, rdf=with_infinities(package.rdf))
                examined = examine(package, description_only=description_only)
                valid, drawings = examined.description, package.scratch / "pictures" if pictures else None
                may_run = not (description_only or examined.why_not_run)
                ran = runs.run(job(package, valid, pictures=drawings)) if valid is not None and may_run else ()
                model = Model(package, valid, with_files=not description_only)
                rules = registry.definitions("rule") if examined.is_model else []
                results = chain(checks, examined.checks, ran, (rule.judge(model) for rule in rules))
            raw, reported, shown = _collect(results, consumers, on_check)
    verdicts = verdicts_of(raw, description_only=description_only)
    descr = None if valid is None else valid.as_written
    metadata = () if descr is None else (descr.validation_summary.metadata_completeness or 0.0, empty_fields(descr))
    is_model = package is None or package.rdf.get("type") == "model"  # others, such as datasets, have no score
    score = score_of(raw, *metadata) if is_model else None
    return Report(str(path), tuple(reported), verdicts, score, tuple(shown), description_only)


def _collect(
    results: Iterable[Check | Picture], consumers: Sequence[str] | None, on_check: Callable[[Check], None] | None
) -> tuple[list[Check], list[Check], list[Picture]]:
    """Return all checks, those of the report (each passed to ``on_check`` as soon as it is made), and pictures."""
    raw, reported, drawn = list[Check](), list[Check](), list[Picture]()
    for item in results:
        if not isinstance(item, Check):
            drawn.append(item)
            continue
        raw.append(item)
        must_hold = registry.consumers()[item.consumer].base or item.consumer in (consumers or ())
        if must_hold or consumers is None:
            softened = item.status == "failed" and not must_hold  # this partner was not requested
            reported.append(replace(item, status="warning") if softened else item)
            if on_check is not None:
                on_check(reported[-1])
    return raw, reported, drawn
