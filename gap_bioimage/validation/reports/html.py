"""Reports as one web page for people who make, choose or use models."""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING

from gap_bioimage import __version__
from gap_bioimage.validation.check import Severity, registry
from gap_bioimage.validation.consumers import consumers
from gap_bioimage.validation.reports.junit import printable
from gap_bioimage.validation.score import HIGHEST, PARTS, POINTS
from gap_bioimage.validation.verdicts import RUN_CODE, how_to_run, programs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gap_bioimage.validation.check import Check
    from gap_bioimage.validation.report import Report
    from gap_bioimage.validation.verdicts import Verdict

_PACKAGE = "gap_bioimage.validation.reports"
_TEMPLATE = "report.html.j2"

_MANY = 3
_LONG = 60

_WORDS = {
    "passed": "passed", "failed": "failed", "warning": "warning", "skipped": "not checked", "error": "unknown",
}  # fmt: skip

_GLOSSARY = {
    "axes": "the directions of an image array: y and x in the plane, z in depth, channel, and batch (several images)",
    "batch": "several images that go through the network together",
    "citation": "the publication that users of the model are asked to cite",
    "format_version": "the edition of the bioimage.io format that the description follows",
    "github_user": "the name of somebody's account at github.com",
    "graph": "the network as it is written into the weights file, step by step",
    "halo": "pixels at the edge of a tile whose result is thrown away, because they lack neighbours",
    "JDLL": "the part of Fiji that loads and runs networks",
    "kwargs": "the settings with which a network is built, such as its number of layers",
    "libtorch": "PyTorch for programs that are not written in Python, such as Fiji",
    "onnx": "a file format for networks that many programs read",
    "ppm": "parts per million, here of the pixels",
    "pytorch_state_dict": "a file with the network's numbers; it needs the network's Python code",
    "rdf.yaml": "the text file that describes the model",
    "sha256": "a fingerprint of a file, which shows whether it was changed",
    "tensor": "an image as an array of numbers",
    "test_tensor": "an example image that comes with the model, or what the model should make of it",
    "torchscript": "a file with the whole network, which runs without Python",
    "weights": "the file with what the network has learnt",
}


@dataclass(frozen=True)
class _ToDo:
    """One thing to do: how bad (a colour's name), the same in words, and what to do about it."""

    mood: str
    word: str
    check: Check
    fix: str


@dataclass(frozen=True)
class _Picture:
    """A picture with the check it belongs to, if that is in the report."""

    title: str
    check: Check | None
    uri: str


@dataclass(frozen=True)
class _Page:
    """What the template shows of one report, besides the report itself."""

    anchor: str
    title: str
    report: Report
    mood: str
    headline: str
    sentences: list[str]
    reasons: dict[str, str]
    todo: list[_ToDo]
    pictures: list[_Picture]
    groups: list[tuple[str, list[Check]]]


def render_html(reports: Sequence[Report]) -> str:
    """One page that explains the reports: who will run each model, what to do, pictures, score, all checks.

    The page loads nothing and runs nothing: styles and pictures are inside. Texts from models are escaped.

    Parameters
    ----------
    reports
        What `validate` returned, for each model.

    Returns
    -------
    HTML, which UTF-8 can encode.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(_PACKAGE).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    html = template.render(
        pages=[_page(report, f"model-{number}") for number, report in enumerate(reports, 1)],
        columns=[
            name
            for name in programs()
            if any(entry.consumer == name for report in reports for entry in report.verdicts)
        ],
        glossary=_glossary(reports),
        consumers=consumers(),
        parts=PARTS,
        points=POINTS,
        highest=HIGHEST,
        words=_WORDS,
        version=__version__,
    )
    return printable(html)


def _page(report: Report, anchor: str) -> _Page:
    groups = [(name, [check for check in report.checks if check.consumer == name]) for name in consumers()]
    headline, *sentences = _sentences(report)
    if report.description_only:
        sentences.append("Only the description was looked at: the model was not run, nor were its files read.")
    elif report.status == "not-run":
        told = f"The model was not run: only its files were looked at. {how_to_run(report.checks)}"
        sentences.append(told.strip())
    return _Page(
        anchor,
        PurePath(report.model).name or report.model,
        report,
        _mood(report),
        headline,
        sentences,
        _reasons(report),
        _todo(report),
        _pictures(report),
        [(name, checks) for name, checks in groups if checks],
    )


def _mood(report: Report) -> str:
    """``works``, ``fails`` or, where it depends on the program or was not found out, ``mixed``."""
    verdicts = {entry.verdict for entry in report.verdicts}
    if report.status == "failed" or verdicts == {"fails"}:
        return "fails"
    return "works" if "works" in verdicts and "fails" not in verdicts else "mixed"


def _sentences(report: Report) -> list[str]:
    """Who will run the model and who will not, and why: the headline, then one sentence for each reason."""
    if not report.verdicts:
        failed = report.counts.get("failed", 0)
        found = f"{failed} checks failed." if failed > 1 else "One check failed." if failed else "No check failed."
        return [found, "Which programs will run this model was not judged."]
    works = [entry for entry in report.verdicts if entry.verdict == "works"]
    fails = [entry for entry in report.verdicts if entry.verdict == "fails"]
    if works:
        only = " only" if len(works) == 1 and fails else ""
        sentences = [f"This model works in {_names(works)}{only}."]
    elif len(fails) == len(report.verdicts):
        sentences = ["This model works in none of these programs."]
    else:
        sentences = ["No program is known to run this model yet."]
    for reason, group in _by_reason(report, "fails"):
        who = "It fails" if len(group) == len(report.verdicts) else f"It fails in {_names(group)}"
        sentences.append(f"{who} because {_ended(reason)}")
    for reason, group in _by_reason(report, "unknown"):
        sentences.append(f"Whether it works in {_names(group)} is not known: {_ended(reason)}")
    return sentences


def _reasons(report: Report) -> dict[str, str]:
    """The reason on each program's card; a long one that many share stands above the cards already."""
    counts = Counter(entry.reason for entry in report.verdicts)
    return {
        entry.consumer: "for the reason above"
        if counts[entry.reason] >= _MANY and len(entry.reason) > _LONG
        else entry.reason
        for entry in report.verdicts
    }


def _by_reason(report: Report, verdict: str) -> list[tuple[str, list[Verdict]]]:
    groups: dict[str, list[Verdict]] = {}
    for entry in report.verdicts:
        if entry.verdict == verdict:
            groups.setdefault(entry.reason, []).append(entry)
    return list(groups.items())


def _names(verdicts: Sequence[Verdict]) -> str:
    names = [consumers()[entry.consumer].title for entry in verdicts]
    *most, last = (f"the {name}" if name.endswith("zoo") else name for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _todo(report: Report) -> list[_ToDo]:
    """What failed, then what a partner needs, then advice, then what was not checked but can be."""
    fails = {entry.consumer for entry in report.verdicts if entry.verdict == "fails"}
    ranked: list[tuple[int, _ToDo]] = []
    remedies: set[str] = set()
    for check in report.checks:
        fix = how_to_run([check]) if check.fix == RUN_CODE else check.fix
        # a partner's broken rule is reported as a warning where nobody asked for that partner
        needed = check.consumer in fails and _blocks(check) and not consumers()[check.consumer].base
        if check.status == "failed":
            ranked.append((0, _ToDo("fails", "failed", check, fix)))
        elif check.status == "warning" and needed:
            ranked.append((1, _ToDo("fails", "needed", check, fix)))
        elif check.status == "error":
            ranked.append((2, _ToDo("unknown", "unknown", check, fix)))
        elif check.status == "warning":
            ranked.append((3, _ToDo("warning", "advice", check, fix)))
        elif check.status == "skipped" and check.fix and check.fix not in remedies:
            remedies.add(check.fix)
            ranked.append((4, _ToDo("unknown", "not checked", check, fix)))
    return [item for _, item in sorted(ranked, key=lambda entry: entry[0])]


def _blocks(check: Check) -> bool:
    made = registry().get(check.id)
    return made is None or made.severity == Severity.BLOCKS


def _pictures(report: Report) -> list[_Picture]:
    checks = {check.id: check for check in report.checks}
    return [
        _Picture(
            picture.title,
            checks.get(picture.check_id),
            f"data:image/png;base64,{b64encode(picture.png).decode('ascii')}",
        )
        for picture in report.pictures
    ]


def _glossary(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Technical words that what is to be done uses, with their meaning."""
    shown = [check for report in reports for check in report.checks if check.status != "passed"]
    text = " ".join(f"{check.message} {check.fix}" for check in shown).lower()
    found = [word for word in _GLOSSARY if re.search(rf"(?<![\w.]){re.escape(word.lower())}(?!\w)", text)]
    return [(word, _GLOSSARY[word]) for word in sorted(found, key=str.lower)]
