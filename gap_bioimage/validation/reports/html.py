"""Reports as one web page for people who make, choose or use models."""

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from gap_bioimage import __version__
from gap_bioimage.validation.check import BLOCKS, Check, consumers, counted, registry
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports import render
from gap_bioimage.validation.verdicts import HIGHEST, PARTS, POINTS, Verdict, how_to_run, programs

_LABELS = {"passed": "passed", "failed": "failed", "warning": "warning", "skipped": "not checked", "error": "unknown"}
# kinds of findings, the worst first: the colour's class, and the label
_TODO = {
    "failed": ("fails", "failed"), "needed": ("fails", "needed"), "error": ("unknown", "unknown"),
    "warning": ("warning", "advice"), "skipped": ("unknown", "not checked"),
}  # fmt: skip


def render_html(reports: Sequence[Report], unread: Sequence[str] = ()) -> str:
    """Return one page that explains the reports and what was ``unread``; it loads nothing, and escapes all texts."""
    judged = {entry.consumer for report in reports for entry in report.verdicts}
    page = render(
        "report.html.j2", pages=[_page(report, f"model-{number}") for number, report in enumerate(reports, 1)],
        columns=[name for name in programs() if name in judged], consumers=consumers(), parts=PARTS, points=POINTS,
        highest=HIGHEST, labels=_LABELS, unread=unread, version=__version__, registry=registry(),
    )  # fmt: skip
    return re.sub("`([^`<>\n]+)`", r"<code>\1</code>", page)


def _page(report: Report, anchor: str) -> dict[str, Any]:
    """Return what the template needs for one report, including the report itself."""
    groups = [(name, [check for check in report.checks if check.consumer == name]) for name in consumers()]
    checks = {check.id: check for check in report.checks}
    verdicts, (headline, *sentences) = {entry.verdict for entry in report.verdicts}, _sentences(report)
    fails = report.status == "failed" or verdicts == {"fails"}
    pictures = [(p.title, checks.get(p.check_id), b64encode(p.png).decode()) for p in report.pictures]
    return {
        "anchor": anchor, "title": PurePath(report.model).name or report.model, "report": report,
        "kind": "fails" if fails else "works" if "works" in verdicts and "fails" not in verdicts else "mixed",
        "headline": headline, "sentences": sentences, "todo": _todo(report), "pictures": pictures,
        "groups": [(name, group) for name, group in groups if group],
    }  # fmt: skip


def _sentences(report: Report) -> Iterator[str]:
    """Yield the headline, which names the programs that run the model, and one sentence per reason against others."""
    if works := [entry for entry in report.verdicts if entry.verdict == "works"]:
        yield f"This model works in {_names(works)}."
    elif report.verdicts:
        yield "No program is known to run this model."
    else:
        yield f"No verdicts were reached; {counted(report.counts.get('failed', 0), 'check')} failed."
    for verdict, sentence in (("fails", "It fails in {}: {}"), ("unknown", "Whether it works in {} is not known: {}")):
        entries = [entry for entry in report.verdicts if entry.verdict == verdict]
        for reason in dict.fromkeys(entry.reason for entry in entries):
            names = _names([entry for entry in entries if entry.reason == reason])
            yield f"{sentence.format(names, reason).rstrip('.')}."
    if report.description_only:
        yield "Only the description was validated: the model was not run, and its files were not read."
    elif report.status == "not-run":
        yield f"The model was not run: only its files were checked. {how_to_run(report.checks)}".strip()


def _names(verdicts: Sequence[Verdict]) -> str:
    *titles, last = (consumers()[entry.consumer].title for entry in verdicts)
    return f"{', '.join(titles)} and {last}" if titles else last


def _todo(report: Report) -> list[tuple[str, str, Check]]:
    """Return failures, then unmet needs of partners, raised checks, advice, and checks that can still be made."""
    fails = {entry.consumer for entry in report.verdicts if entry.verdict == "fails"}
    todo: dict[str, list[Check]] = {kind: [] for kind in _TODO}
    for check in report.checks:
        definition, kind = registry().get(check.id), str(check.status)
        if kind == "warning" and check.consumer in fails and not consumers()[check.consumer].base:
            # a failed check of a partner that was not requested is reported as a warning
            kind = "needed" if definition is None or definition.severity == BLOCKS else kind
        is_redundant = kind == "skipped" and check.fix in {"", *(other.fix for other in todo["skipped"])}
        if kind != "passed" and not is_redundant:
            todo[kind].append(check)
    return [(*_TODO[kind], check) for kind, checks in todo.items() for check in checks]
