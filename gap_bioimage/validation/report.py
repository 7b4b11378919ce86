"""Validate a model the way its consumers will, and gather what was found."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import Check, definition, definitions
from gap_bioimage.validation.consumers import consumers as all_consumers
from gap_bioimage.validation.consumers import known
from gap_bioimage.validation.model import Model, with_infinities
from gap_bioimage.validation.run.compare import read_pictures
from gap_bioimage.validation.run.engines import check_device, find_engines
from gap_bioimage.validation.run.sandbox import Sandbox
from gap_bioimage.validation.run.session import Job
from gap_bioimage.validation.score import Completeness, completeness_of, score_of
from gap_bioimage.validation.verdicts import verdicts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gap_bioimage.validation.archive.examine import Examined
    from gap_bioimage.validation.archive.package import Package
    from gap_bioimage.validation.check import Picture
    from gap_bioimage.validation.score import Score
    from gap_bioimage.validation.verdicts import Verdict


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
    description_only
        Nothing but the description was looked at, as asked for.
    """

    model: str
    checks: tuple[Check, ...]
    verdicts: tuple[Verdict, ...] = ()
    score: Score | None = None
    pictures: tuple[Picture, ...] = ()
    description_only: bool = False

    @property
    def status(self) -> Literal["passed", "failed", "not-run"]:
        """``failed`` if any check failed, which warnings and skipped checks are not.

        ``not-run`` if none failed and the model was not run either, although it was to be; of a description alone
        (`description_only`) ``passed`` speaks of the description.
        """
        if any(check.status == "failed" for check in self.checks):
            return "failed"
        return "passed" if self.was_run or self.description_only else "not-run"

    @property
    def was_run(self) -> bool:
        """Whether the model itself was run."""
        return any(check.id == "core.test" and check.status != "skipped" for check in self.checks)

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by status."""
        return dict(Counter(check.status for check in self.checks))

    @property
    def raised(self) -> list[Check]:
        """The checks that themselves raised, which leaves a verdict unknown."""
        return [check for check in self.checks if check.status == "error"]

    def to_dict(self) -> dict[str, object]:
        """The report as ``validate --json`` prints it; ``consumers`` is the older name of ``verdicts``."""
        verdicts = [asdict(verdict) for verdict in self.verdicts]
        report: dict[str, object] = {
            "status": self.status,
            "model": self.model,
            "checks": [check.to_dict() for check in self.checks],
            "verdicts": verdicts,
            "consumers": verdicts,
            "score": None if self.score is None else asdict(self.score),
        }
        if self.description_only:
            report["description_only"] = True
        if not self.was_run:
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
    process: Sandbox | None = None,
    on_check: Callable[[Check], None] | None = None,
    description_only: bool = False,
) -> Report:
    """Check a bioimage.io model: its archive, format, files, behaviour when run, and its consumers' rules.

    What makes a model valid at all (consumers ``archive``, ``format``, ``core``, ``run``) is always checked
    and always fails the report. What blocks one partner (``zoo``, ``fiji``, ``ilastik``, ...) is a warning, and a
    failure where that partner is asked for. Models run in a process of their own: one that hangs or takes all
    memory is a failed check. No network is used.

    Parameters
    ----------
    path
        A model zip, a folder that holds a description, or the description's yaml itself.
    consumers
        Ids of consumers: those partners' rules are checked and must hold. None checks all of them, and warns.
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
    description_only
        Judge the description alone: no other file is needed, nothing is run, and a verdict says ``works`` where
        nothing in the description speaks against it.

    Raises
    ------
    UnreadableModelError
        If the path is no zip, folder or yaml, or holds no description.
    ConfigError
        If a consumer's name is unknown, an engine has no torch, or there is no such device.
    """
    known(consumers or ())
    found_engines = find_engines(engines)
    check_device(device)
    with ExitStack() as stack:
        runs = process or stack.enter_context(Sandbox())
        if not description_only and Path(path).exists():
            runs.start()  # the libraries are imported there while the files are looked at
        package, archive_checks = stack.enter_context(open_package(path))
        findings = _Findings(consumers, on_check, description_only)
        findings.add(archive_checks)
        if package is not None:
            if description_only:
                package = replace(package, rdf=with_infinities(package.rdf))
            examined = examine(package, description_only=description_only)
            findings.add(examined.checks)
            if examined.description is not None and not examined.why_not_run:
                kept = None if keep is None else Path(keep).absolute()
                drawn = package.scratch / "pictures" if pictures else None
                job = Job(package, examined.description, run_code, device, found_engines, kept, drawn)
                findings.add(runs.run(job))
            elif examined.is_model and not description_only:
                findings.add([definition("core.test").skipped(examined.why_not_run)])
            findings.add_rules(package, examined)
        return findings.report(str(path), pictures)


class _Findings:
    """What was found so far."""

    def __init__(
        self, asked: Sequence[str] | None, on_check: Callable[[Check], None] | None, description_only: bool
    ) -> None:
        self._asked, self._on_check, self._description_only = asked, on_check, description_only
        self._raw: list[Check] = []
        self._judged: list[Check] = []
        self._drawn: list[tuple[str, str, Path]] = []
        self._completeness: Completeness | None = None

    def add(self, found: Iterable[Check | tuple[str, str, Path]]) -> None:
        """Take checks and pictures, and tell of the checks whose consumer was asked for."""
        for item in found:
            if not isinstance(item, Check):
                self._drawn.append(item)
                continue
            self._raw.append(item)
            judged = self._softened(item)
            if judged is not None:
                self._judged.append(judged)
                if self._on_check is not None:
                    self._on_check(judged)

    def add_rules(self, package: Package, examined: Examined) -> None:
        """Apply every rule; what is no model's description is not judged as one."""
        description = examined.description
        if examined.is_model:
            upgraded = None if description is None else description.upgraded
            model = Model(package, upgraded, with_files=not self._description_only)
            self.add(made.judge(model) for made in definitions("rule"))
        if description is not None:
            self._completeness = completeness_of(description.as_written)

    def _softened(self, check: Check) -> Check | None:
        """Drop partners that were not asked for; soften to a warning where nobody in particular was."""
        if all_consumers()[check.consumer].base:
            return check
        if self._asked is None:
            return replace(check, status="warning") if check.status == "failed" else check
        return check if check.consumer in self._asked else None

    def report(self, model: str, pictures: bool) -> Report:
        """Make the report of all."""
        return Report(
            model,
            tuple(self._judged),
            verdicts_of(self._raw, description_only=self._description_only),
            score_of(self._raw, self._completeness),
            read_pictures(self._drawn) if pictures else (),
            self._description_only,
        )
