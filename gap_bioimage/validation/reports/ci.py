"""Reports for programs: SARIF 2.1.0, GitHub annotations, and the schema of the JSON report."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from gap_bioimage import __version__
from gap_bioimage.validation.check import STYLE, Check, registry
from gap_bioimage.validation.report import Report, Status
from gap_bioimage.validation.verdicts import Score, Verdict

Level = Literal["error", "warning", "note"]
# GitHub's escapes
_IN_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_IN_PROPERTIES = _IN_DATA | str.maketrans({":": "%3A", ",": "%2C"})
_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def _findings(report: Report) -> Iterator[tuple[Level, str, str]]:
    """Yield the findings that need action: the level, the id of the check, and a text."""
    for check in report.for_ci.checks:
        text = f"{check.message}. To do: {check.fix}" if check.fix else check.message
        if check.status in ("failed", "error"):
            yield "error", check.id, text
        elif check.status == "warning":
            definition = registry().get(check.id)
            yield "note" if definition is not None and definition.severity == STYLE else "warning", check.id, text


def render_sarif(reports: Sequence[Report]) -> str:
    """Return one run of SARIF with all findings, each at the first line of its model."""
    results = []
    for report in reports:
        path = Path(report.model)
        uri = path.as_uri() if path.is_absolute() else quote(path.as_posix(), errors="replace")
        place = [{"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}]
        for level, check_id, text in _findings(report):
            results.append({"ruleId": check_id, "level": level, "message": {"text": text}, "locations": place})
    rules = [
        {"id": entry.id, "shortDescription": {"text": entry.asks}, "fullDescription": {"text": entry.breaks},
         "help": {"text": entry.fix or entry.asks}} for entry in registry().values()
    ]  # fmt: skip
    driver = {"name": "gap-bioimage", "version": __version__, "rules": rules}
    runs = [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}]
    return json.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": runs}, indent=2) + "\n"


def render_github(reports: Sequence[Report]) -> str:
    """Return workflow commands that GitHub shows as annotations, the worst first, since it shows only ten."""
    lines: dict[str, list[str]] = {"error": [], "warning": [], "note": []}
    for report in reports:
        for level, check_id, text in _findings(report):
            command = "notice" if level == "note" else level
            file, title = (name.translate(_IN_PROPERTIES) for name in (Path(report.model).as_posix(), check_id))
            lines[level].append(f"::{command} file={file},title={title}::{text.translate(_IN_DATA)}\n")
    return "".join(line for level_lines in lines.values() for line in level_lines)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of ``validate --json`` for one model; for several models, it writes a list of these."""
    from pydantic import create_model

    optional: dict[str, Any] = {"was_run": (bool, True), "description_only": (bool, False)}
    model = create_model(
        "Report", status=(Status, ...), model=(str, ...), checks=(list[Check], ...),
        verdicts=(list[Verdict], ...), consumers=(list[Verdict], ...), score=(Score | None, ...), **optional,
    )  # fmt: skip
    schema = model.model_json_schema()
    del schema["$defs"]["Check"]["properties"]["concerns"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
