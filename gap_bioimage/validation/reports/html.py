"""Reports as one web page for people who make, choose or use models."""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from gap_bioimage import __version__
from gap_bioimage.validation.check import BLOCKS, Check, consumers, registry
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.terminal import printable
from gap_bioimage.validation.verdicts import HIGHEST, PARTS, POINTS, RUN_CODE, Verdict, how_to_run, programs

_MANY, _LONG = 3, 60  # a reason that so many programs share, and of so many characters, is said once

_WORDS = {"passed": "passed", "failed": "failed", "warning": "warning", "skipped": "not checked", "error": "unknown"}

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


# what is to be done, the worst first: how bad (a colour's name), and the same in words
_TODO = {
    "failed": ("fails", "failed"), "needed": ("fails", "needed"), "error": ("unknown", "unknown"),
    "warning": ("warning", "advice"), "skipped": ("unknown", "not checked"),
}  # fmt: skip


def render_html(reports: Sequence[Report]) -> str:
    """One page that explains the reports: who will run each model, what to do, pictures, score, all checks.

    The page loads nothing and runs nothing: styles and pictures are inside. Texts from models are escaped, and
    UTF-8 can encode it.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("gap_bioimage.validation.reports").joinpath("report.html.j2").read_text(encoding="utf-8")
    judged = {entry.consumer for report in reports for entry in report.verdicts}
    html = environment.from_string(template).render(
        pages=[_page(report, f"model-{number}") for number, report in enumerate(reports, 1)],
        columns=[name for name in programs() if name in judged],
        glossary=_glossary(reports),
        consumers=consumers(),
        parts=PARTS,
        points=POINTS,
        highest=HIGHEST,
        words=_WORDS,
        version=__version__,
    )
    return printable(html)


def _page(report: Report, anchor: str) -> dict[str, Any]:
    """What the template shows of one report, besides the report itself."""
    groups = [(name, [check for check in report.checks if check.consumer == name]) for name in consumers()]
    headline, *sentences = _sentences(report)
    checks = {check.id: check for check in report.checks}
    uris = [f"data:image/png;base64,{b64encode(picture.png).decode('ascii')}" for picture in report.pictures]
    return {
        "anchor": anchor,
        "title": PurePath(report.model).name or report.model,
        "report": report,
        "mood": _mood(report),
        "headline": headline,
        "sentences": sentences,
        "reasons": _reasons(report),
        "todo": _todo(report),
        "pictures": [
            {"title": picture.title, "check": checks.get(picture.check_id), "uri": uri}
            for picture, uri in zip(report.pictures, uris, strict=True)
        ],
        "groups": [(name, made) for name, made in groups if made],
    }


def _mood(report: Report) -> str:
    """``works``, ``fails`` or, where it depends on the program or was not found out, ``mixed``."""
    found = {entry.verdict for entry in report.verdicts}
    if report.status == "failed" or found == {"fails"}:
        return "fails"
    return "works" if "works" in found and "fails" not in found else "mixed"


def _sentences(report: Report) -> list[str]:
    """Who will run the model and who will not, and why: the headline, then one sentence for each reason."""
    groups: dict[str, dict[str, list[Verdict]]] = {"works": {}, "fails": {}, "unknown": {}}
    for entry in report.verdicts:
        groups[entry.verdict].setdefault("" if entry.verdict == "works" else entry.reason, []).append(entry)
    works, n_fails = groups["works"].get("", []), sum(map(len, groups["fails"].values()))
    if not report.verdicts:
        failed = report.counts.get("failed", 0)
        found = f"{failed} checks failed." if failed > 1 else "One check failed." if failed else "No check failed."
        sentences = [found, "Which programs will run this model was not judged."]
    elif works:
        sentences = [f"This model works in {_names(works)}{' only' if len(works) == 1 and n_fails else ''}."]
    elif n_fails == len(report.verdicts):
        sentences = ["This model works in none of these programs."]
    else:
        sentences = ["No program is known to run this model yet."]
    for reason, group in groups["fails"].items():
        who = "It fails" if len(group) == len(report.verdicts) else f"It fails in {_names(group)}"
        sentences.append(f"{who} because {_ended(reason)}")
    for reason, group in groups["unknown"].items():
        sentences.append(f"Whether it works in {_names(group)} is not known: {_ended(reason)}")
    if report.description_only:
        sentences.append("Only the description was looked at: the model was not run, nor were its files read.")
    elif report.status == "not-run":
        told = f"The model was not run: only its files were looked at. {how_to_run(report.checks)}"
        sentences.append(told.strip())
    return sentences


def _names(found: Sequence[Verdict]) -> str:
    names = [consumers()[entry.consumer].title for entry in found]
    *most, last = (f"the {name}" if name.endswith("zoo") else name for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _reasons(report: Report) -> dict[str, str]:
    """The reason on each program's card; a long one that many share stands above the cards already."""
    counts = Counter(entry.reason for entry in report.verdicts)
    said = {reason for reason, count in counts.items() if count >= _MANY and len(reason) > _LONG}
    return {e.consumer: "for the reason above" if e.reason in said else e.reason for e in report.verdicts}


def _todo(report: Report) -> list[dict[str, Any]]:
    """What failed, then what a partner needs, then advice, then what was not checked but can be."""
    fails = {entry.consumer for entry in report.verdicts if entry.verdict == "fails"}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _TODO}
    for check in report.checks:
        kind = str(check.status)
        # a partner's broken rule is reported as a warning where nobody asked for that partner
        if kind == "warning" and check.consumer in fails and _blocks(check) and not consumers()[check.consumer].base:
            kind = "needed"
        known = {item["check"].fix for item in found["skipped"]} | {""}
        if kind != "passed" and not (kind == "skipped" and check.fix in known):
            mood, word = _TODO[kind]
            fix = how_to_run([check]) if check.fix == RUN_CODE else check.fix
            found[kind].append({"mood": mood, "word": word, "check": check, "fix": fix})
    return [item for items in found.values() for item in items]


def _blocks(check: Check) -> bool:
    made = registry().get(check.id)
    return made is None or made.severity == BLOCKS


def _glossary(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Technical words that what is to be done uses, with their meaning."""
    shown = [check for report in reports for check in report.checks if check.status != "passed"]
    text = " ".join(f"{check.message} {check.fix}" for check in shown).lower()
    found = [word for word in _GLOSSARY if re.search(rf"(?<![\w.]){re.escape(word.lower())}(?!\w)", text)]
    return [(word, _GLOSSARY[word]) for word in sorted(found, key=str.lower)]
