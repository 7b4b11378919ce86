"""Reports as text: a table in the terminal, JUnit XML for continuous integration, and the list of all checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gap_bioimage.validation.check import Check, Definition, Status, consumers, registry
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports import render
from gap_bioimage.validation.verdicts import HIGHEST, PARTS, how_to_run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {
    "passed": "green", "failed": "bold red", "warning": "yellow", "skipped": "dim", "error": "bold magenta",
    "not-run": "yellow", "works": "green", "fails": "bold red", "unknown": "yellow",
}  # fmt: skip
_MARKS = {"passed": "ok", "failed": "FAILED", "warning": "warning", "skipped": "skipped", "error": "UNKNOWN"}
_ADVICE_SHOWN = 3
_COLUMNS = ("check", "requirement", "if violated", "what to do", "source")


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report as a table, one group per consumer; passed checks are only counted."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    table = _table(3)
    for name in consumers():
        group = [check for check in report.checks if check.consumer == name]
        if group:
            table.add_row(f"[bold]{name}[/]", "", _summary(group))
        for check in (check for check in group if not _is_only_counted(check)):
            fix = f"\n[dim]to do:[/] {escape(check.fix)}" if check.fix else ""
            mark = f"[{_STYLES[check.status]}]{_MARKS[check.status]}[/]"
            table.add_row(f"  {check.id.split('.', 1)[1]}", mark, f"{escape(check.message)}{fix}")
    if report.verdicts:
        table.add_row()
    previous = ""
    for entry in report.verdicts:
        reason = "" if entry.reason == previous else escape(entry.reason)  # a shared reason is printed once
        previous = entry.reason
        table.add_row(consumers()[entry.consumer].title, f"[{_STYLES[entry.verdict]}]{entry.verdict}[/]", reason)
    console.print(table)
    if report.score is not None and not report.description_only:
        parts = "   ".join(f"{PARTS.get(name, name)} {value:.2f}" for name, value in report.score.parts.items())
        score = f"{report.score.total:.2f} of {HIGHEST}, as predicted ({escape(parts)})"
        advice = "".join(f"\n  {escape(text)}" for text in report.score.raise_it[:_ADVICE_SHOWN])
        console.print(f"\n[bold]score in the zoo[/]  {score}{advice}")
    scope = ", of its description alone" if report.description_only else ""
    status = f"[{_STYLES[report.status]}]{report.status.replace('-', ' ')}[/]"
    console.print(f"\n{status}  {escape(report.model)}  ({_summary(report.checks) or 'no check'}{scope})")
    if report.status == "not-run":
        console.print(escape(f"The model was not run. {how_to_run(report.checks)}".strip()))


def _table(n_columns: int) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(n_columns - 1):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _is_only_counted(check: Check) -> bool:
    """Return whether the table only counts a check: it passed, or does not apply to this model."""
    if check.consumer in ("core", "run") or check.id == "fiji.older_engine":  # these ran, the last one on request
        return False
    return check.status == "passed" or (check.status == "skipped" and not check.fix)


def _summary(checks: Sequence[Check]) -> str:
    counts = Counter(check.status for check in checks)
    names: tuple[Status, ...] = ("failed", "error", "warning", "passed", "skipped")
    plural = {"warning": "warnings"} if counts["warning"] > 1 else {}
    return ", ".join(f"{counts[name]} {plural.get(name, name)}" for name in names if counts[name])


def print_submission(report: Report) -> None:
    """Print the zoo's requirements as a list with ticks, and the steps of a submission."""
    names = [*(name for name, entry in consumers().items() if entry.base), "zoo", "bioengine"]
    checks = [check for check in report.checks if check.id != "zoo.id"]
    groups = [(name, [check for check in checks if check.consumer == name]) for name in names]
    # checks that were skipped for good reason have no fix; but without core.test, nothing is known about the model
    skipped = {check.id for check in checks if check.status == "skipped" and not check.fix} - {"core.test"}
    good = skipped | {check.id for check in checks if check.status == "passed"}
    has_id = any(check.id == "zoo.id" and check.status == "warning" for check in report.checks)
    print(render("submission.txt.j2", report=report, groups=groups, good=good, has_id=has_id, consumers=consumers(),
                 registry=registry(), summary=_summary, highest=HIGHEST), end="")  # fmt: skip


def render_junit(reports: Sequence[Report]) -> str:
    """Return XML: a suite per model, a case per check, of which warnings pass; a model not run is an error."""
    return render("junit.xml.j2", reports=[report.for_ci for report in reports])


def as_markdown() -> str:
    """Return the page ``docs/checks.md``: every check, grouped by consumer."""
    return render("checks.md.j2", consumers=consumers(), checks=registry().values(), columns=_COLUMNS, texts=_texts)


def as_table() -> Table:
    """Return the same list for a terminal."""
    from rich.markup import escape

    table = _table(2)
    for entry in registry().values():
        requirement, *texts = map(escape, _texts(entry))
        lines = [f"[dim]{title}:[/] {text}" for title, text in zip(_COLUMNS[2:], texts, strict=True) if text]
        table.add_row(escape(entry.id), "\n".join([requirement, *lines]))
    return table


def _texts(entry: Definition) -> tuple[str, str, str, str]:
    repaired = " Repaired." if entry.repair else ""
    return f"{entry.asks} ({entry.severity}.)", entry.breaks, f"{entry.fix}{repaired}".strip(), entry.source
