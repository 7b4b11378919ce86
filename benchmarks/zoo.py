"""Verdicts on the zoo's models, from their descriptions alone, against the zoo's own test reports.

    python benchmarks/zoo.py ../shared/zoo/zoo_models.json

The file holds descriptions (``rdf``) and reports of bioimageio.core, deepImageJ, ilastik and BiaPy. One confusion
matrix per program is printed and written, with each disagreement and its cause.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from results import write_section

from gap_bioimage.validation.report import validate

PROGRAMS = {"biapy": "biapy", "ilastik": "ilastik", "deepimagej": "fiji", "bioimageio.core": "core"}
"""The zoo's tools, and our consumers."""

MACHINE = {
    "deepimagej": (
        # the test asks an online list for the model, which did not hold it
        r"does not correspond to an existing model",
        # the macro's own command (model_path=...) ended, and the log shows Fiji's launcher only, no error of a model;
        # twins of models that pass are among them
        r"^error running the model \|(?!.*(Exception|Error):)",
        # the description had been downloaded without its files
        r"^unable to read the yaml file.*does not correspond to a Numpy file",
        # engines that are newer than the machine's Java
        r"UnsupportedClassVersionError",
    ),
    "ilastik": (r"Client error '404",),  # a file of the model was gone from the server that day
    "bioimageio.core": (r"'conda', 'env', 'create'", r"Client error '404"),  # its environment could not be made
    "biapy": (),
}
"""What a report says of the test machine rather than of the model; all other failures are the model's own."""


@dataclass(frozen=True)
class Case:
    """A report beside our verdict."""

    model: str
    said: str
    reason: str
    status: str
    why: str
    own: bool

    @property
    def agrees(self) -> bool:
        """Whether we said what came."""
        return (self.said == "works") == (self.status == "passed")


def judge(models: list[dict[str, Any]]) -> dict[str, list[Case]]:
    """Judge every description, and pair the verdicts with the reports by program."""
    cases: dict[str, list[Case]] = {tool: [] for tool in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rdf.yaml")
        for model in models:
            path.write_text(yaml.safe_dump(model["rdf"], allow_unicode=True), encoding="utf-8")
            verdicts = {entry.consumer: entry for entry in validate(path, description_only=True).verdicts}
            for tool, consumer in PROGRAMS.items():
                report = model["reports"].get(tool)
                if report is None or report["status"] not in ("passed", "failed"):
                    continue  # not-applicable and the like say nothing about running it
                why, found = " ".join((report.get("why") or "").split()), verdicts[consumer]
                own = report["status"] == "failed" and not any(re.search(text, why) for text in MACHINE[tool])
                cases[tool].append(Case(model["model"], found.verdict, found.reason, report["status"], why, own))
    return cases


def figures(cases: list[Case]) -> dict[str, float]:
    """Count, shares of 0 to 1: agreement with the reports; passes said to work; own failures said to work."""
    passed = [case for case in cases if case.status == "passed"]
    own = [case for case in cases if case.own]
    return {
        "n": len(cases),
        "right": sum(case.agrees for case in cases) / max(len(cases), 1),
        "passes_said_to_work": sum(case.said == "works" for case in passed) / max(len(passed), 1),
        "own_failures_said_to_work": sum(case.said == "works" for case in own) / max(len(own), 1),
    }


def matrix(cases: list[Case]) -> str:
    """Return the confusion matrix as a table."""
    kinds = {
        "passed": lambda case: case.status == "passed",
        "failed, the model's own": lambda case: case.own,
        "failed, the test machine's": lambda case: case.status == "failed" and not case.own,
    }
    lines = ["| the zoo's report | we say works | fails | unknown |", "|---|---|---|---|"]
    for title, is_kind in kinds.items():
        said = Counter(case.said for case in cases if is_kind(case))
        lines.append(f"| {title} | {said['works']} | {said['fails']} | {said['unknown']} |")
    return "\n".join(lines)


def disagreements(cases: list[Case]) -> str:
    """Return a line for each, those of a kind together."""
    grouped: dict[str, list[str]] = {}
    for case in cases:
        if not case.agrees:
            whose = "" if case.status == "passed" else "its own, " if case.own else "the machine's, "
            why = re.sub(r"artifacts/\S+|--name=\S*|--file=\S*|envs/\S*", "...", case.why)
            text = f"we say {case.said}; report {case.status}: {whose}{short(why) or short(case.reason)}"
            grouped.setdefault(text, []).append(case.model)
    return "\n".join(f"- {', '.join(models)}: {text}" for text, models in sorted(grouped.items())) or "- none"


def short(text: str, limit: int = 150) -> str:
    """Return a text that fits a line; reports tell the cause last where they quote a log."""
    clean = text.replace("|", "/")
    return clean if len(clean) <= limit else f"{clean[: limit // 3]} ... {clean[-limit // 2 :]}"


def main() -> None:
    """Judge, compare, write the section."""
    models = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    parts = [
        f"{len(models)} models of the zoo, judged by their descriptions alone (`validate --description-only`); reports "
        "that are neither passed nor failed are left out. Own failures of a model are those whose report names no "
        "cause in the test machine; how they are told apart stands in the script.",
    ]
    for tool, cases in judge(models).items():
        found = figures(cases)
        parts.append(
            f"### {tool}\n\nRight on {found['right']:.1%} of {found['n']:.0f}; of those that pass, "
            f"{found['passes_said_to_work']:.0%} are said to work, of those that fail for a reason of their own "
            f"{found['own_failures_said_to_work']:.0%}.\n\n{matrix(cases)}\n\n{disagreements(cases)}"
        )
    write_section("Verdicts against the zoo's reports", __doc__, "\n\n".join(parts))


if __name__ == "__main__":
    main()
