"""Validate a model the way its consumers will, and show what was found."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.checks import BASE_CONSUMERS, CONSUMERS, Check
from gap_bioimage.validation.old_rules import all_rules
from gap_bioimage.validation.reports.score import (
    Completeness,
    completeness_as_written,
    completeness_of,
    score_of,
    verdicts_of,
)
from gap_bioimage.validation.running.engines import check_device, check_engines
from gap_bioimage.validation.running.evidence import read_pictures
from gap_bioimage.validation.running.process import ModelProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.checks import Picture
    from gap_bioimage.validation.reports.score import Score, Verdict


@dataclass(frozen=True)
class Report:
    """What a validation found.

    Parameters
    ----------
    model
        The path that was validated, as given.
    checks
        All checks, in the order in which they were made.
    verdicts
        For each program that reads such models: will it run this one?
    score
        The score that the zoo will give it.
    pictures
        What the model was given and made of it, where pictures were asked for.
    """

    model: str
    checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...] = ()
    score: Score | None = None
    pictures: tuple[Picture, ...] = ()

    @property
    def status(self) -> Literal["passed", "failed"]:
        """``failed`` if any check failed; warnings and skipped checks do not fail a model."""
        return "failed" if any(check.status == "failed" for check in self.checks) else "passed"

    @property
    def was_run(self) -> bool:
        """Whether the model itself was run; else ``passed`` speaks of its files only."""
        return any(check.id == "core.test" and check.status != "skipped" for check in self.checks)

    @property
    def word(self) -> Literal["passed", "failed", "not run"]:
        """The status for people, who would take ``passed`` for a model that works."""
        return "not run" if self.status == "passed" and not self.was_run else self.status

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by status."""
        return dict(Counter(check.status for check in self.checks))

    def to_dict(self) -> dict[str, object]:
        """The report as ``validate --json`` prints it; ``was_run`` is there, and false, only where nothing was run."""
        report: dict[str, object] = {
            "status": self.status,
            "model": self.model,
            "checks": [check.to_dict() for check in self.checks],
        }
        if self.verdicts:
            report["consumers"] = [asdict(verdict) for verdict in self.verdicts]
        if self.score is not None:
            report["score"] = asdict(self.score)
        if self.verdicts and self.word == "not run":
            report["was_run"] = False
        return report


def validate(
    path: str | Path,
    *,
    consumers: Sequence[str] | None = None,
    run_code: bool = False,
    device: str = "cpu",
    engines: Sequence[str] = (),
    keep: str | Path | None = None,
    pictures: bool = False,
    process: ModelProcess | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> Report:
    """Check a bioimage.io model: its archive, format, files, behaviour when run, and its consumers' rules.

    What makes a model valid at all (consumers ``archive``, ``format``, ``core``, ``run``) is always checked
    and always fails the report. What breaks one partner (``zoo``, ``fiji``, ``ilastik``, ...) is a warning, and a
    failure where that partner is asked for. Models run in a process of their own: one that hangs or takes all
    memory is a failed check. No network is used.

    Parameters
    ----------
    path
        A model zip, a folder that holds a description, or the description's yaml itself.
    consumers
        Names out of `CONSUMERS`: those partners' rules are checked and must hold. None checks all of them,
        and warns.
    run_code
        Allow Python code of the package to run (architecture sources, custom processing). Without it, weights
        that need it are skipped; TorchScript and ONNX are run.
    device
        Torch device to run on.
    engines
        Other Python interpreters, such as ``/usr/bin/python3``, in whose torch the TorchScript is run too.
    keep
        Folder for the tensors and pictures of failed checks; nothing is kept without it.
    pictures
        Return pictures of inputs, outputs and differences with the report.
    process
        The process in which models run, with its limits, to be shared by several calls; a new one if None.
    on_check
        Called with every check as soon as it is made.

    Raises
    ------
    UnreadableModelError
        If the path is no zip, folder or yaml, or holds no description.
    ConfigError
        If a consumer's name is unknown, an engine has no torch, or there is no such device.
    """
    _refuse_unknown(consumers or ())
    check_engines(engines)
    check_device(device)
    with ExitStack() as stack:
        package, archive_checks = stack.enter_context(open_package(path))
        findings = _Findings(consumers, on_check)
        for check in archive_checks:
            findings.add(check)
        if package is not None:
            from gap_bioimage.validation.running.worker import Job

            runs = process or stack.enter_context(ModelProcess())
            job = Job.of(
                package,
                run_code=run_code,
                device=device,
                engines=tuple(engines),
                keep=None if keep is None else str(Path(keep).absolute()),
                pictures=str(package.scratch / "pictures") if pictures else None,
            )
            _check_package(package, findings, lambda: runs.run(job))
        return findings.report(str(path), pictures)


class _Findings:
    """What was found so far."""

    def __init__(self, consumers: Sequence[str] | None, on_check: Callable[[Check], None] | None) -> None:
        self._consumers, self._on_check = consumers, on_check
        self._raw: list[Check] = []
        self._judged: list[Check] = []
        self.drawn: list[tuple[str, str, Path]] = []
        self.completeness: Completeness | None = None

    def add(self, check: Check) -> None:
        """Take a check, and tell of it if its consumer was asked for."""
        self._raw.append(check)
        judged = _judged(check, self._consumers)
        if judged is not None:
            self._judged.append(judged)
            if self._on_check is not None:
                self._on_check(judged)

    def report(self, model: str, pictures: bool) -> Report:
        """Make the report of all."""
        verdicts = verdicts_of(self._raw)
        score = score_of(self._raw, verdicts, self.completeness)
        return Report(model, tuple(self._judged), verdicts, score, read_pictures(self.drawn) if pictures else ())


def _refuse_unknown(consumers: Sequence[str]) -> None:
    unknown = sorted(set(consumers) - set(CONSUMERS))
    if unknown:
        raise ConfigError(f"Unknown consumer {', '.join(unknown)}; expected some of {', '.join(CONSUMERS)}.")


def _judged(check: Check, consumers: Sequence[str] | None) -> Check | None:
    """Drop partners that were not asked for; soften to a warning where nobody in particular was."""
    if check.consumer in BASE_CONSUMERS:
        return check
    if consumers is None:
        return replace(check, status="warning") if check.status == "failed" else check
    return check if check.consumer in consumers else None


def _check_package(
    package: Package, findings: _Findings, run: Callable[[], Iterator[Check | tuple[str, str, Path]]]
) -> None:
    from gap_bioimage.validation.archive.examine import examine
    from gap_bioimage.validation.archive.facts import Facts

    examined = examine(package)
    for check in examined.checks:
        findings.add(check)
    if not examined.is_model:
        return
    description = examined.description
    findings.completeness = (
        completeness_as_written(package.rdf) if description is None else completeness_of(description.as_written)
    )
    if examined.why_not_run:
        findings.add(Check("core.test", "core", "skipped", examined.why_not_run))
    else:
        for item in run():
            if isinstance(item, Check):
                findings.add(item)
            else:
                findings.drawn.append(item)
    facts = Facts(package)
    for rule in all_rules():
        findings.add(rule.judge(facts))
