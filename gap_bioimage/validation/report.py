"""Validate a model the way its consumers will, and show what was found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.archive import open_package
from gap_bioimage.validation.checks import BASE_CONSUMERS, CONSUMERS, Check
from gap_bioimage.validation.consumers import all_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from gap_bioimage.validation.archive import Package
    from gap_bioimage.validation.checks import Status

__all__ = ["Check", "Report", "all_rules", "print_report", "validate"]


@dataclass(frozen=True)
class Report:
    """What a validation found.

    Parameters
    ----------
    model
        The path that was validated, as given.
    checks
        All checks, in the order in which they were made.
    """

    model: str
    checks: tuple[Check, ...]

    @property
    def status(self) -> Literal["passed", "failed"]:
        """``failed`` if any check failed; warnings and skipped checks do not fail a model."""
        return "failed" if any(check.status == "failed" for check in self.checks) else "passed"

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by status."""
        return dict(Counter(check.status for check in self.checks))

    def to_dict(self) -> dict[str, object]:
        """The report as ``validate --json`` prints it."""
        return {
            "status": self.status,
            "model": self.model,
            "checks": [check.to_dict() for check in self.checks],
        }


def validate(
    path: str | Path,
    *,
    consumers: Sequence[str] | None = None,
    run_code: bool = False,
    device: str = "cpu",
    on_check: Callable[[Check], None] | None = None,
) -> Report:
    """Check a bioimage.io model: its archive, format, files, behaviour when run, and its consumers' rules.

    What makes a model valid at all (consumers ``archive``, ``format``, ``core``, ``run``) is always checked
    and always fails the report. What breaks one partner (``zoo``, ``fiji``, ``ilastik``, ``biapy``) is a
    warning, and a failure where that partner is asked for. Nothing is written, and no network is used.

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
    on_check
        Called with every check as soon as it is made.

    Raises
    ------
    UnreadableModelError
        If the path is no zip, folder or yaml, or holds no description.
    ConfigError
        If a consumer's name is unknown.
    """
    _refuse_unknown(consumers or ())
    made: list[Check] = []
    with open_package(path) as (package, archive_checks):
        for check in _all_checks(package, archive_checks, run_code, device):
            judged = _judged(check, consumers)
            if judged is None:
                continue
            made.append(judged)
            if on_check is not None:
                on_check(judged)
    return Report(str(path), tuple(made))


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


def _all_checks(package: Package | None, archive_checks: list[Check], run_code: bool, device: str) -> Iterator[Check]:
    from gap_bioimage.validation.description import format_checks
    from gap_bioimage.validation.facts import Facts
    from gap_bioimage.validation.references import reference_checks

    yield from archive_checks
    if package is None:
        return
    found, loadable = reference_checks(package)
    yield from found
    broken = {check.id for check in found if check.status != "passed"}
    description = None
    if "archive.references" not in broken:  # else bioimageio.spec would read files outside the package
        description, found = format_checks(package, with_files="archive.remote" not in broken)
        yield from found
    if description is None or not loadable:
        yield Check("core.test", "core", "skipped", "not run, since the package or its description is broken")
    else:
        from gap_bioimage.validation.execution import run_checks

        yield from run_checks(package, description, run_code=run_code, device=device)
    facts = Facts(package)
    for rule in all_rules():
        yield rule.judge(facts)


_STYLES = {"passed": "green", "failed": "bold red", "warning": "yellow", "skipped": "dim"}
_MARKS = {"passed": "ok", "failed": "FAILED", "warning": "warning", "skipped": "skipped"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report as a table, one group per consumer; what passed takes one line per group.

    Parameters
    ----------
    report
        What `validate` returned.
    console
        Where to; a new one on standard output if None.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for consumer in CONSUMERS:
        checks = [check for check in report.checks if check.consumer == consumer]
        if not checks:
            continue
        table.add_row(f"[bold]{consumer}[/]", "", _summary(checks))
        for check in checks:
            if _is_dull(check):
                continue
            style = _STYLES[check.status]
            fix = f"\n[dim]to do:[/] {escape(check.fix)}" if check.fix else ""
            text = f"{escape(check.message)}{fix}"
            table.add_row(f"  {check.id.split('.', 1)[1]}", f"[{style}]{_MARKS[check.status]}[/]", text)
    console.print(table)
    style = _STYLES[report.status]
    console.print(f"[{style}]{report.status}[/]  {escape(report.model)}  ({_summary(list(report.checks))})")


def _is_dull(check: Check) -> bool:
    """What the table only counts: rules that are kept, or that do not apply to this model."""
    if check.consumer in ("core", "run"):
        return False
    return check.status == "passed" or (check.status == "skipped" and not check.fix)


def _summary(checks: list[Check]) -> str:
    counts = Counter(check.status for check in checks)
    names: tuple[Status, ...] = ("failed", "warning", "passed", "skipped")
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name])
