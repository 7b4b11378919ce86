"""Reports as text: a table in the terminal, JUnit XML for continuous integration, and the list of all checks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from gap_bioimage.validation.check import Check, Definition, Status, consumers, registry
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.verdicts import HIGHEST, PARTS, Score, Verdict, how_to_run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {
    "passed": "green", "failed": "bold red", "warning": "yellow", "skipped": "dim", "error": "bold magenta",
    "not-run": "yellow", "works": "green", "fails": "bold red", "unknown": "yellow",
}  # fmt: skip
_MARKS = {"passed": "ok", "failed": "FAILED", "warning": "warning", "skipped": "skipped", "error": "UNKNOWN"}
_ADVICE_SHOWN = 3
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UPLOAD = """
Before the upload, {remove} rdf.yaml in a copy of the zip: the zoo gives ids itself.
Keep the id in zips that you hand to people, since Fiji needs one.

Then
1. Sign in at https://bioimage.io, choose Upload, and drop the copy; look through the form that it fills in.
2. The zoo stages the model under a name of its own, and tests it: bioimageio.core in BioEngine, then the partners.
3. Ask for a review; reviewers read description, README and licence, and publish the model or say what to change.
4. Later changes are uploaded as a new version of the same model."""
_HEAD = """\
# What `gap-bioimage validate` checks

<!-- written by: gap-bioimage validate --list --markdown > docs/checks.md -->

A model zip that works in Python may still fail in Fiji. Each check below stands for something that breaks
in a program that reads such zips. What *blocks* keeps the model from running there: of the zip itself, its format,
bioimageio.core and running the model it must hold; of one program it is a warning, and must hold where you ask for
that program, e.g. with `--consumer fiji`. What *degrades* lets it run with worse results or at a cost, and *style* is
what helps people find, cite and trust it; neither ever fails.

Checks marked *run* run the model; the others look at its files. *Repaired* ones are what `gap-bioimage repair` mends.

In a repository, `action.yml` at the top of this project is a step of GitHub's workflows (`uses:` with the inputs
`models` and `arguments`), whose findings GitHub shows as annotations, and `.pre-commit-hooks.yaml` holds two hooks for
pre-commit. Elsewhere `--format` prints `json` (`--schema` describes it), `junit`, `sarif`, `github` or `html`. Options
that hold for all models stand in `.gap-bioimage.toml`, or in `pyproject.toml`; an id, or its part before a dot, names
checks, and those that are left out change no verdict:

    [tool.gap-bioimage]
    profile = ["fiji", "ilastik"]  # what blocks these must hold
    ignore = ["zoo.id", "qupath"]
"""
_COLUMNS = ("check", "it asks for", "without it", "what to do", "known from")


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report as a table, one group per consumer; what passed takes one line per group."""
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

    table = _empty_table(3)
    for consumer in consumers():
        group = [check for check in checks if check.consumer == consumer]
        if group:
            table.add_row(f"[bold]{consumer}[/]", "", _summary(group))
        for check in group:
            if not _is_dull(check):
                fix = f"\n[dim]to do:[/] {escape(check.fix)}" if check.fix else ""
                mark = f"[{_STYLES[check.status]}]{_MARKS[check.status]}[/]"
                table.add_row(f"  {check.id.split('.', 1)[1]}", mark, f"{escape(check.message)}{fix}")
    return table


def _table_of_verdicts(verdicts: Sequence[Verdict]) -> Table:
    from rich.markup import escape

    table = _empty_table(3)
    above = ""
    for entry in verdicts:
        reason = "" if entry.reason == above else entry.reason  # what everybody shares is said once
        above = entry.reason
        mark = f"[{_STYLES[entry.verdict]}]{entry.verdict}[/]"
        table.add_row(consumers()[entry.consumer].title, mark, escape(reason))
    return table


def _print_score(score: Score, console: Console) -> None:
    from rich.markup import escape

    parts = "   ".join(f"{PARTS.get(name, name)} {value:.2f}" for name, value in score.parts.items())
    console.print(f"[bold]score in the zoo[/]  {score.total:.2f} of {HIGHEST}, as predicted ({escape(parts)})")
    for advice in score.raise_it[:_ADVICE_SHOWN]:
        console.print(f"  {escape(advice)}")


def _empty_table(n_columns: int) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(n_columns - 1):
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


def print_submission(report: Report) -> None:
    """What the zoo asks of a model as a list with ticks, and the way of a model into the zoo."""
    print(f"{report.model} for the bioimage.io zoo\n")
    for name in [*(name for name, entry in consumers().items() if entry.base), "zoo", "bioengine"]:
        group = [check for check in report.checks if check.consumer == name and check.id != "zoo.id"]
        bad = [check for check in group if check.status in ("failed", "warning", "error")]
        if not bad and name != "zoo":
            print(f"- [x] {consumers()[name].title}: {_summary(group) or 'nothing was checked'}")
        for check in group if name == "zoo" else bad:
            is_good = check.status in ("passed", "skipped")
            told = registry()[check.id].asks if is_good else f"{check.message}. To do: {check.fix}"
            print(f"- [{'x' if is_good else ' '}] {check.id}: {told}")
    if report.score is not None:
        print(f"\nThe zoo's score: {report.score.total:.2f} of {HIGHEST}, as predicted.")
        print("\n".join(f"  {advice}" for advice in report.score.raise_it[:_ADVICE_SHOWN]))
    has_id = any(check.id == "zoo.id" and check.status == "warning" for check in report.checks)
    print(_UPLOAD.format(remove="remove the line `id` from" if has_id else "nothing is to be removed from"))


def printable(text: str) -> str:
    """The text with a replacement sign for every character that XML 1.0 forbids, lone surrogates among them."""
    return _FORBIDDEN.sub("\ufffd", text)


def render_junit(reports: Sequence[Report]) -> str:
    """One test suite per model, one test case per check, as XML with its declaration.

    Failed checks are failures, checks that raised are errors, skipped ones are skipped; warnings pass, and say what
    they found in ``system-out``.
    """
    every = [check for report in reports for check in report.checks]
    root = ET.Element("testsuites", {"name": "gap-bioimage validate", **_counts(every)})
    for report in reports:
        suite = ET.SubElement(root, "testsuite", {"name": printable(report.model), **_counts(report.checks)})
        for check in report.checks:
            case = ET.SubElement(suite, "testcase", {"classname": check.consumer, "name": printable(check.id)})
            message, fix = printable(check.message), printable(check.fix)
            text = f"{message}\nto do: {fix}" if fix else message
            if check.status in ("failed", "error"):
                tag = "failure" if check.status == "failed" else "error"
                ET.SubElement(case, tag, {"message": message, "type": check.status}).text = text
            elif check.status == "skipped":
                ET.SubElement(case, "skipped", {"message": text.replace("\n", "; ")})
            elif check.status == "warning":
                ET.SubElement(case, "system-out").text = f"warning: {text}"
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(checks: Sequence[Check]) -> dict[str, str]:
    counts = Counter(check.status for check in checks)
    names: dict[str, Status] = {"failures": "failed", "errors": "error", "skipped": "skipped"}
    return {"tests": str(len(checks)), **{name: str(counts[status]) for name, status in names.items()}}


def as_markdown() -> str:
    """The page ``docs/checks.md``: every check, grouped by who needs it."""
    return "\n".join([_HEAD.rstrip(), *(line for name in consumers() for line in _section(name))]) + "\n"


def as_table() -> Table:
    """The same for a terminal."""
    from rich.markup import escape

    table = _empty_table(2)
    for made in registry().values():
        asks, *more = map(escape, _texts(made))
        told = [f"[dim]{title}:[/] {text}" for title, text in zip(_COLUMNS[2:], more, strict=True) if text]
        table.add_row(escape(made.id), "\n".join([asks, *told]))
    return table


def _texts(made: Definition) -> tuple[str, str, str, str]:
    repaired = " Repaired." if made.repair else ""
    source = str(made.source) if made.source else ""
    return f"{made.asks} ({made.severity}.)", made.breaks, f"{made.fix_text}{repaired}".strip(), source


def _section(name: str) -> Iterator[str]:
    yield from ("", f"## {name}", "", consumers()[name].about, "")
    yield from (f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS))
    for made in registry().values():
        if made.consumer == name:
            mark = " *run*" if made.kind == "run" else ""
            cells = [text.replace("|", "\\|").replace("<", "&lt;") for text in _texts(made)]
            yield f"| `{made.id}`{mark} | {' | '.join(cells)} |"
