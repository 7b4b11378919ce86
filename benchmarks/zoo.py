"""Verdicts on the zoo's models from their descriptions alone, compared with the zoo's own test reports.

    python benchmarks/zoo.py ../shared/zoo/zoo_models.json

The file holds descriptions (``rdf``) and reports of bioimageio.core, deepImageJ, ilastik and BiaPy. One confusion
matrix per program is printed and written, with all disagreements and their causes.
"""

import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from results import table, write_section

from gap_bioimage.validation.report import validate

PROGRAMS = {"biapy": "biapy", "ilastik": "ilastik", "deepimagej": "fiji", "bioimageio.core": "core"}
"""The zoo's tools, and the corresponding consumers."""

MACHINE = {
    "deepimagej": (
        # the test looks up the model in an online list that did not contain it
        r"does not correspond to an existing model",
        # the macro's own command (model_path=...) ended, and the log shows only Fiji's launcher, no error of a model;
        # this happened to copies of passing models too
        r"^error running the model \|(?!.*(Exception|Error):)",
        # JDLL reads the test tensors of StarDist models with the description, which was present without its files
        r"^unable to read the yaml file.*does not correspond to a Numpy file",
        # engines too new for the machine's Java
        r"UnsupportedClassVersionError",
    ),
    "ilastik": (r"Client error '404",),  # a file of the model was missing on the server that day
    # its environment could not be created, a file was missing, or its download was interrupted
    "bioimageio.core": (r"'conda', 'env', 'create'", r"Client error '404", r"operation timed out", r"^peer closed"),
    "biapy": (),
}
"""Report texts that point to the test machine; all other failures are the model's own."""


@dataclass(frozen=True)
class Case:
    """A report and our verdict."""

    model: str
    weights: tuple[str, ...]
    said: str
    reason: str
    status: str
    why: str
    own: bool

    @property
    def is_right(self) -> bool | None:
        """Whether our verdict agrees with the report; None if it is unknown."""
        return None if self.said == "unknown" else (self.said == "works") == (self.status == "passed")


def judge(models: list[dict[str, Any]]) -> dict[str, list[Case]]:
    """Judge every description, and pair the verdicts with the reports by program."""
    cases: dict[str, list[Case]] = {tool: [] for tool in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rdf.yaml")
        for model in models:
            path.write_text(yaml.safe_dump(model["rdf"], allow_unicode=True), encoding="utf-8")
            weights = tuple(name for name, entry in (model["rdf"].get("weights") or {}).items() if entry)
            verdicts = {entry.consumer: entry for entry in validate(path, description_only=True).verdicts}
            for tool, consumer in PROGRAMS.items():
                report = model["reports"].get(tool)
                if report is None or report["status"] not in ("passed", "failed"):
                    continue  # other statuses, such as not-applicable, are no result of a run
                why, found = " ".join((report.get("why") or "").split()), verdicts[consumer]
                own = report["status"] == "failed" and not any(re.search(text, why) for text in MACHINE[tool])
                said = found.verdict, found.reason
                cases[tool].append(Case(model["model"], weights, *said, report["status"], why, own))
    return cases


def figures(cases: list[Case]) -> dict[str, float]:
    """Return counts, and shares from 0 to 1.

    Our verdicts decide ``decided`` of ``n`` reports, and are correct for the share ``right`` of these; ``of_models``
    excludes failures of the test machine. The others are shares of the models that pass, or that fail on their own.
    """
    decided = [case for case in cases if case.is_right is not None]
    of_models = [case for case in decided if case.own or case.status == "passed"]
    passed = [case for case in cases if case.status == "passed"]
    own = [case for case in cases if case.own]
    return {
        "n": len(cases),
        "decided": len(decided),
        "right": sum(bool(case.is_right) for case in decided) / max(len(decided), 1),
        "n_of_models": len(of_models),
        "right_of_models": sum(bool(case.is_right) for case in of_models) / max(len(of_models), 1),
        "passes_said_to_work": sum(case.said == "works" for case in passed) / max(len(passed), 1),
        "passes_said_to_fail": sum(case.said == "fails" for case in passed) / max(len(passed), 1),
        "own_failures_said_to_work": sum(case.said == "works" for case in own) / max(len(own), 1),
    }


def matrix(cases: list[Case]) -> str:
    """Return the confusion matrix as a table."""
    kinds = {
        "passed": lambda case: case.status == "passed",
        "failed, the model's own": lambda case: case.own,
        "failed, the test machine's": lambda case: case.status == "failed" and not case.own,
    }
    rows = []
    for title, is_kind in kinds.items():
        said = Counter(case.said for case in cases if is_kind(case))
        rows.append([title, *(str(said[verdict]) for verdict in ("works", "fails", "unknown"))])
    return table(["the zoo's report", "our verdict: works", "fails", "unknown"], rows)


def disagreements(cases: list[Case]) -> str:
    """Return a list of disagreements, with equal ones grouped."""
    grouped: dict[str, list[str]] = {}
    for case in cases:
        if case.is_right is False:
            whose = "" if case.status == "passed" else "the model's own, " if case.own else "the machine's, "
            why = re.sub(r"artifacts/\S+|--name=\S*|--file=\S*|envs/\S*", "...", case.why)
            text = f"verdict {case.said}; report {case.status}: {whose}{short(why) or short(case.reason)}"
            grouped.setdefault(text, []).append(case.model)
    return "\n".join(f"- {', '.join(models)}: {text}" for text, models in sorted(grouped.items())) or "- none"


def short(text: str, limit: int = 150) -> str:
    """Shorten a text to one line, keeping its end: reports that quote a log give the cause last."""
    clean = text.replace("|", "/")
    return clean if len(clean) <= limit else f"{clean[: limit // 3]} ... {clean[-limit // 2 :]}"


def main() -> None:
    """Judge, compare, and write the section."""
    models = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    parts = [
        f"{len(models)} models of the zoo, judged by their descriptions alone (`validate --description-only`). Reports "
        "that are neither passed nor failed are excluded. A failure counts as the model's own unless its report points "
        "to the test machine (see the patterns in the script). Unknown verdicts, which need the files or a run, count "
        "neither as right nor as wrong; their number is given."
    ]
    for tool, cases in judge(models).items():
        shares = figures(cases)
        n_unknown = shares["n"] - shares["decided"]
        parts.append(
            f"### {tool}\n\n"
            f"Verdicts are right for {shares['right']:.1%} of the {shares['decided']:.0f} decided reports "
            f"({n_unknown:.0f} unknown), and for {shares['right_of_models']:.1%} of {shares['n_of_models']:.0f} "
            f"without the failures of the test machine. Passing models: {shares['passes_said_to_work']:.0%} predicted "
            f"to work, {shares['passes_said_to_fail']:.0%} to fail. Models with failures of their own: "
            f"{shares['own_failures_said_to_work']:.0%} predicted to work.\n\n{matrix(cases)}\n\n{disagreements(cases)}"
        )
    write_section("Verdicts against the zoo's reports", __doc__, "\n\n".join(parts))


if __name__ == "__main__":
    main()
