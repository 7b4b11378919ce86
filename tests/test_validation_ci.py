"""Reports for programs: SARIF, annotations of GitHub, the schema of the JSON report, and which checks count."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
import zips
from command_line import one_sentence

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.check import Check, registry
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.ci import SHOWN_BY_GITHUB, json_schema, render_github, render_sarif
from gap_bioimage.validation.reports.terminal import print_submission
from gap_bioimage.validation.verdicts import Score, Verdict

CHECKS = (
    Check("core.test", "core", "passed", "its test passed"),
    Check("archive.files", "archive", "failed", "100 %: a, b", "Add it."),
    Check("fiji.norms", "fiji", "warning", "norms"),
    Check("zoo.cover", "zoo", "warning", "no cover", "Add one."),
    Check("zoo.tags", "zoo", "passed", "kept"),
    Check("mine.own", "mine", "error", "this check itself raised"),
)
REPORT = Report("models/a b.zip", CHECKS, (Verdict("fiji", "works", "fine"),), Score(7.0, {"format": 1.0}, ("+1: x",)))


def test_sarif_has_what_its_schema_requires() -> None:
    log = json.loads(render_sarif([REPORT, Report("/tmp/b.zip", CHECKS[1:2])]))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] and [rule["id"] for rule in driver["rules"]] == list(registry())
    assert all(rule["shortDescription"]["text"] and rule["help"]["text"] for rule in driver["rules"])
    results = run["results"]
    assert [result["level"] for result in results] == ["error", "warning", "note", "error", "error"]
    for result in results:
        assert result["message"]["text"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["region"]["startLine"] >= 1
        assert re.fullmatch(
            r"models/a%20b\.zip|file:///tmp/b\.zip", place["physicalLocation"]["artifactLocation"]["uri"]
        )
        if "ruleIndex" in result:
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert "ruleIndex" not in results[3]  # a rule that is not declared here


def test_annotations_are_escaped_and_no_more_than_github_shows() -> None:
    lines = render_github([Report("a,b:c.zip", CHECKS)]).splitlines()
    assert lines == [
        "::error file=a%2Cb%3Ac.zip,title=archive.files::100 %25: a, b. To do: Add it.",
        "::error file=a%2Cb%3Ac.zip,title=mine.own::this check itself raised",
        "::warning file=a%2Cb%3Ac.zip,title=fiji.norms::norms",
        "::notice file=a%2Cb%3Ac.zip,title=zoo.cover::no cover. To do: Add one.",
    ]
    lines = render_github([REPORT] * 12).splitlines()
    for command, n_found in (("error", 24), ("warning", 12), ("notice", 12)):
        shown = [line for line in lines if line.startswith(f"::{command} ")]
        assert len(shown) == SHOWN_BY_GITHUB
        assert f"{n_found - SHOWN_BY_GITHUB + 1} more" in shown[-1]


@pytest.mark.parametrize("report", [REPORT, Report("b.zip", CHECKS[1:], description_only=True)])
def test_the_schema_names_what_reports_hold(report: Report) -> None:
    schema, found = json_schema(), report.to_dict()
    assert {*schema["required"]} <= {*found} <= {*schema["properties"]}
    assert found["status"] in schema["properties"]["status"]["enum"]
    fields = schema["$defs"]["Check"]["properties"]
    assert all({*check.to_dict()} == {*fields} for check in report.checks)


@pytest.mark.parametrize(
    ("select", "ignore", "status", "left"),
    [
        ((), (), "failed", 6),
        ((), ("archive.files",), "passed", 5),
        (("fiji", "zoo.cover"), (), "passed", 2),
        (("zoo",), ("zoo.cover",), "passed", 1),
    ],
)
def test_checks_that_do_not_count_decide_nothing(select: Any, ignore: Any, status: str, left: int) -> None:
    found = REPORT.selected(select, ignore)
    assert (found.status, len(found.checks), found.verdicts) == (status, left, REPORT.verdicts)
    assert found.was_run
    with pytest.raises(ConfigError, match=r"zoo\.cov"):
        REPORT.selected(["zoo.cov"])


def test_the_command_line_takes_them_and_a_section_of_a_file(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rdf = zips.description(zips.model_files()) | {"covers": [], "tags": []}
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    options = ("validate", "rdf.yaml", "--description-only")
    assert json.loads(run(*options, "--format", "json").out)["status"] == "passed"
    assert "<testsuites" in run(*options, "--format", "junit").out
    assert json.loads(run(*options, "--format", "sarif", "--select", "zoo.tags").out)["runs"][0]["results"]
    assert run(*options, "--format", "github", "--ignore", "zoo,fiji,biapy,format").out == ""
    section = 'select = ["zoo.tags"]\nformat = "github"\ndescription-only = true\n'
    (tmp_path / "pyproject.toml").write_text(f"[tool.gap-bioimage]\n{section}")
    found = run("validate", "rdf.yaml").out.splitlines()
    assert len(found) == 1 and "title=zoo.tags" in found[0]
    (tmp_path / ".gap-bioimage.toml").write_text('ignore = "zoo"\ndescription-only = true\n')
    assert not re.search(r"^zoo ", run("validate", "rdf.yaml").out, re.MULTILINE)
    for text, word in (("run-code = true", "run-code"), ("select", "cannot be read"), ("timeout = 'x'", "--timeout")):
        (tmp_path / ".gap-bioimage.toml").write_text(text)
        assert word in one_sentence(run("validate", "rdf.yaml"))


def test_what_the_zoo_asks_for_is_a_list_with_ticks(capsys: pytest.CaptureFixture[str]) -> None:
    given = Check("zoo.id", "zoo", "warning", "id is given", "Remove it.")
    print_submission(Report("m.zip", (*CHECKS, given), score=REPORT.score))
    text = capsys.readouterr().out
    assert "- [x] zoo.tags: Tags." in text
    assert "- [ ] zoo.cover: no cover. To do: Add one." in text
    assert "- [ ] archive.files: 100 %: a, b. To do: Add it." in text
    assert "- [x] bioimageio.core: 1 passed" in text
    assert "zoo.id" not in text and "remove the line `id`" in text and "7.00 of 8" in text
    print_submission(Report("m.zip", CHECKS))
    assert "nothing is to be removed" in capsys.readouterr().out
