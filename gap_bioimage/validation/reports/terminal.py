"""A report in the terminal: a table of checks, who will run the model, and its score."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gap_bioimage.validation.consumers import consumers
from gap_bioimage.validation.score import HIGHEST, PARTS
from gap_bioimage.validation.verdicts import how_to_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from gap_bioimage.validation.check import Check, Status
    from gap_bioimage.validation.report import Report
    from gap_bioimage.validation.score import Score
    from gap_bioimage.validation.verdicts import Verdict

_STYLES = {
    "passed": "green", "failed": "bold red", "warning": "yellow", "skipped": "dim", "error": "bold magenta",
    "not-run": "yellow", "works": "green", "fails": "bold red", "unknown": "yellow",
}  # fmt: skip
_MARKS = {"passed": "ok", "failed": "FAILED", "warning": "warning", "skipped": "skipped", "error": "UNKNOWN"}
_ADVICE_SHOWN = 3


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

    console = console or Console()
    console.print(_table_of(report.checks))
    if report.verdicts:
        console.print()
        console.print(_table_of_verdicts(report.verdicts))
    if report.score is not None and not report.description_only:
        console.print()
        _print_score(report.score, console)
    console.print()
    alone = ", of its description alone" if report.description_only else ""
    word = f"[{_STYLES[report.status]}]{report.status.replace('-', ' ')}[/]"
    console.print(f"{word}  {escape(report.model)}  ({_summary(report.checks)}{alone})")
    if report.status == "not-run":
        told = f"Nothing is wrong with its files, but the model was not run. {how_to_run(report.checks)}"
        console.print(escape(told.strip()))


def _table_of(checks: Sequence[Check]) -> Table:
    from rich.markup import escape

    table = _empty_table()
    for consumer in consumers():
        group = [check for check in checks if check.consumer == consumer]
        if not group:
            continue
        table.add_row(f"[bold]{consumer}[/]", "", _summary(group))
        for check in group:
            if _is_dull(check):
                continue
            style = _STYLES[check.status]
            fix = f"\n[dim]to do:[/] {escape(check.fix)}" if check.fix else ""
            text = f"{escape(check.message)}{fix}"
            table.add_row(f"  {check.id.split('.', 1)[1]}", f"[{style}]{_MARKS[check.status]}[/]", text)
    return table


def _table_of_verdicts(verdicts: Sequence[Verdict]) -> Table:
    from rich.markup import escape

    table = _empty_table()
    above = ""
    for entry in verdicts:
        # a broken model has one reason for everybody, which is said once
        reason = "" if entry.reason == above else entry.reason
        above = entry.reason
        title = consumers()[entry.consumer].title
        table.add_row(title, f"[{_STYLES[entry.verdict]}]{entry.verdict}[/]", escape(reason))
    return table


def _print_score(score: Score, console: Console) -> None:
    from rich.markup import escape

    parts = "   ".join(f"{PARTS.get(name, name)} {value:.2f}" for name, value in score.parts.items())
    console.print(f"[bold]score in the zoo[/]  {score.total:.2f} of {HIGHEST}, as predicted ({escape(parts)})")
    for advice in score.raise_it[:_ADVICE_SHOWN]:
        console.print(f"  {escape(advice)}")


def _empty_table() -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _is_dull(check: Check) -> bool:
    """What the table only counts: rules that are kept, or that do not apply to this model."""
    if check.consumer in ("core", "run") or check.id == "fiji.older_engine":  # what ran, the latter on request
        return False
    return check.status == "passed" or (check.status == "skipped" and not check.fix)


def _summary(checks: Sequence[Check]) -> str:
    counts = Counter(check.status for check in checks)
    names: tuple[Status, ...] = ("failed", "error", "warning", "passed", "skipped")
    return ", ".join(f"{counts[name]} {name}" for name in names if counts[name])
