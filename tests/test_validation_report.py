"""The report: its verdict, its contract with scripts, which checks count, and its form for programs."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
import zips
from command_line import one_sentence

from gap_bioimage.errors import ConfigError, UnreadableModelError
from gap_bioimage.validation.check import Check, registry
from gap_bioimage.validation.report import Report, validate
from gap_bioimage.validation.reports.ci import json_schema, render_github, render_sarif
from gap_bioimage.validation.reports.terminal import print_submission
from gap_bioimage.validation.run.sandbox import Sandbox
from gap_bioimage.validation.verdicts import Score, Verdict, programs

CHECKS = (
    Check("core.test", "core", "passed", "its test passed"),
    Check("archive.files", "archive", "failed", "100 %: a, b", "Add it."),
    Check("fiji.norms", "fiji", "warning", "norms"),
    Check("zoo.cover", "zoo", "warning", "no cover", "Add one."),
    Check("zoo.tags", "zoo", "passed", "kept"),
    Check("mine.own", "mine", "error", "this check itself raised"),
)
REPORT = Report("models/a b.zip", CHECKS, (Verdict("fiji", "works", "fine"),), Score(7.0, {"format": 1.0}, ("+1: x",)))


no_id = zips.both(zips.drop("id"), zips.drop("weights", "torchscript"))  # nothing runs, which is quick


def statuses(report: Report) -> dict[str, str]:
    return {check.id: check.status for check in report.checks}


def verdicts(report: Report) -> dict[str, str]:
    return {entry.consumer: entry.verdict for entry in report.verdicts}


def test_the_good_zip_passes_for_everybody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model_process: Sandbox
) -> None:
    seen: list[Check] = []
    options: Any = {"run_code": True, "on_check": seen.append, "process": model_process}
    report = validate(zips.make_zip(tmp_path), consumers=["zoo", *programs()], **options)
    assert report.status == "passed"
    odd = {check_id for check_id, status in statuses(report).items() if status not in ("passed", "skipped")}
    assert odd == {"zoo.id", "fiji.off_grid"}
    assert set(verdicts(report).values()) == {"works"}
    assert tuple(seen) == report.checks
    assert capfd.readouterr() == ("", "")  # the libraries' logs and bars are silenced


def test_json_is_the_contract() -> None:
    ran = Check("core.test", "core", "passed", "its test passes")
    report = Report("m.zip", (ran, Check("fiji.id", "fiji", "warning", "id is empty", "Give one.")))
    found = json.loads(json.dumps(report.to_dict()))
    assert found == {
        "status": "passed", "model": "m.zip", "verdicts": [], "consumers": [], "score": None,
        "checks": [
            {"id": "core.test", "consumer": "core", "status": "passed", "message": "its test passes", "fix": ""},
            {"id": "fiji.id", "consumer": "fiji", "status": "warning", "message": "id is empty", "fix": "Give one."},
        ],
    }  # fmt: skip
    alone = Report("m.zip", report.checks[1:], description_only=True).to_dict()
    assert alone["description_only"] is True
    schema = json_schema()
    assert all({*schema["required"]} <= {*told} <= {*schema["properties"]} for told in (found, alone, REPORT.to_dict()))
    assert {*found["checks"][0]} == {*schema["$defs"]["Check"]["properties"]}


def test_partners_fail_a_model_on_request_only(tmp_path: Path, model_process: Sandbox) -> None:
    path = zips.make_zip(tmp_path, no_id)
    everybody = validate(path, process=model_process)
    assert (everybody.to_dict()["status"], everybody.to_dict()["was_run"]) == ("not-run", False)
    assert statuses(everybody)["fiji.id"] == "warning"
    fiji = validate(path, consumers=["fiji"], process=model_process)
    assert fiji.status == "failed"
    assert {c.id for c in fiji.checks if c.status == "failed"} == {"fiji.id", "fiji.state_dict_values"}
    zoo = validate(path, consumers=["zoo"], process=model_process)
    assert zoo.status == "not-run" and not any(check.consumer == "fiji" for check in zoo.checks)


def test_a_description_alone_is_judged_without_its_files(tmp_path: Path) -> None:
    rdf = zips.description(zips.model_files())
    for entry in rdf["weights"].values():
        entry["source"] = f"gone_{entry['source']}"
    path = tmp_path / "rdf.yaml"
    path.write_text(yaml.safe_dump(rdf))
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(path, "rdf.yaml")
    for given in (path, tmp_path, tmp_path / "m.zip"):
        report = validate(given, description_only=True)
        assert report.status == "passed" and set(verdicts(report).values()) == {"works"}
        assert "core.test" not in statuses(report)
    del rdf["id"]
    path.write_text(yaml.safe_dump(rdf | {"tags": ["2d"]}))
    found = verdicts(validate(path, description_only=True))
    assert [name for name, verdict in found.items() if verdict == "fails"] == ["fiji", "biapy"]


@pytest.mark.parametrize(
    ("mutate", "files", "status"),
    [
        (None, {"weights.pt": None}, "failed"),
        (zips.put("inputs", 0, "test_tensor", value={"source": "/etc/hostname"}), {}, "failed"),
        (no_id, {}, "not-run"),
        (zips.put("maintainers", 0, "github_user", value="nobody-known"), {}, "passed"),
        (zips.drop("inputs"), {}, "failed"),
    ],
)
def test_every_check_of_a_report_is_declared_and_what_is_broken_is_not_run(
    tmp_path: Path, mutate: Any, files: Any, status: str, model_process: Sandbox
) -> None:
    report = validate(zips.make_zip(tmp_path, mutate, files=files), process=model_process)
    found = [check.id for check in report.checks]
    assert report.status == status and set(found) <= set(registry()) and len(found) == len(set(found))
    assert (statuses(report)["core.test"] == "passed") == (status == "passed")
    assert report.score is not None and (report.score.total == 0) == (status == "failed")


def test_importing_costs_nothing_and_torch_is_not_needed_for_a_description_alone(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModelError, match="does not exist"):
        validate(tmp_path / "missing.zip")
    code = (
        "import sys; from gap_bioimage.validation.report import validate; "
        "assert {'torch', 'bioimageio.core', 'bioimageio.spec'}.isdisjoint(sys.modules); "
        f"validate({str(zips.make_zip(tmp_path))!r}, description_only=True); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sarif_has_what_its_schema_requires() -> None:
    log = json.loads(render_sarif([REPORT, Report("/tmp/b.zip", CHECKS[1:2])]))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    assert run["tool"]["driver"]["name"] and [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(registry())
    results = run["results"]
    assert [result["level"] for result in results] == ["error", "warning", "note", "error", "error"]
    assert results[2]["ruleId"] == "zoo.cover" and results[2]["message"]["text"] == "no cover. To do: Add one."
    missed = Report("a.zip", (Check("core.test", "core", "skipped", "none of the weights was run", "Allow it."),))
    (result,) = json.loads(render_sarif([missed]))["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("core.test", "error")
    assert render_github([missed]).startswith("::error file=a.zip,title=core.test::none of the weights was run")
    places = [result["locations"][0]["physicalLocation"] for result in results]
    assert {place["artifactLocation"]["uri"] for place in places} == {"models/a%20b.zip", "file:///tmp/b.zip"}
    assert all(place["region"]["startLine"] == 1 for place in places)


def test_annotations_are_escaped_and_the_worst_come_first() -> None:
    assert render_github([Report("a,b:c.zip", CHECKS[::-1])]).splitlines() == [
        "::error file=a%2Cb%3Ac.zip,title=mine.own::this check itself raised",
        "::error file=a%2Cb%3Ac.zip,title=archive.files::100 %25: a, b. To do: Add it.",
        "::warning file=a%2Cb%3Ac.zip,title=fiji.norms::norms",
        "::notice file=a%2Cb%3Ac.zip,title=zoo.cover::no cover. To do: Add one.",
    ]


@pytest.mark.parametrize(
    ("select", "ignore", "status", "left"),
    [
        ((), (), "failed", 6), ((), ("archive.files",), "unknown", 5),
        (("fiji", "zoo.cover"), (), "passed", 2), (("zoo",), ("zoo.cover",), "passed", 1),
    ],
)  # fmt: skip
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
    (tmp_path / ".gap-bioimage.toml").unlink()
    for text in ("tool = 3", "[tool]\ngap-bioimage = 3"):
        (tmp_path / "pyproject.toml").write_text(text)
        assert "expected a table" in one_sentence(run("validate", "rdf.yaml"))


def test_what_the_zoo_asks_for_is_a_list_with_ticks(capsys: pytest.CaptureFixture[str]) -> None:
    given = Check("zoo.id", "zoo", "warning", "id is given", "Remove it.")
    print_submission(Report("m.zip", (*CHECKS, given), score=REPORT.score))
    text = capsys.readouterr().out
    assert "- [x] zoo.tags: Tags." in text and "- [ ] zoo.cover: no cover. To do: Add one." in text
    assert "- [ ] archive.files: 100 %: a, b. To do: Add it." in text and "- [x] bioimageio.core: 1 passed" in text
    assert "zoo.id" not in text and "remove the line `id`" in text and "7.00 of 8" in text
    print_submission(Report("m.zip", (Check("core.test", "core", "skipped", "not run, see archive.files"),)))
    text = capsys.readouterr().out
    assert "- [ ] core.test: not run, see archive.files\n" in text and "- [ ] running the model: nothing" in text
