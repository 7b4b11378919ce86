"""The report: its verdict, its contract with scripts, what is looked at and what is not."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
import zips

from gap_bioimage.errors import UnreadableModelError
from gap_bioimage.validation.check import Check, registry
from gap_bioimage.validation.report import Report, validate
from gap_bioimage.validation.run.sandbox import Sandbox


def no_id(rdf: dict[str, Any]) -> None:
    del rdf["id"]
    del rdf["weights"]["torchscript"]  # nothing runs, which is quick


def statuses(report: Report) -> dict[str, str]:
    return {check.id: check.status for check in report.checks}


def verdicts(report: Report) -> dict[str, str]:
    return {entry.consumer: entry.verdict for entry in report.verdicts}


def test_the_good_zip_passes_for_everybody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model_process: Sandbox
) -> None:
    seen: list[Check] = []
    options: Any = {"run_code": True, "on_check": seen.append, "process": model_process}
    report = validate(zips.make_zip(tmp_path), consumers=["zoo", "fiji", "ilastik", "biapy"], **options)
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
        "status": "passed",
        "model": "m.zip",
        "checks": [
            {"id": "core.test", "consumer": "core", "status": "passed", "message": "its test passes", "fix": ""},
            {"id": "fiji.id", "consumer": "fiji", "status": "warning", "message": "id is empty", "fix": "Give one."},
        ],
        "verdicts": [],
        "consumers": [],
        "score": None,
    }
    assert Report("m.zip", report.checks[1:], description_only=True).to_dict()["description_only"] is True


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


def outside(rdf: dict[str, Any]) -> None:
    rdf["inputs"][0]["test_tensor"] = {"source": "/etc/hostname"}


def other_files(rdf: dict[str, Any]) -> None:
    rdf["documentation"] = "https://example.org/README.md"
    rdf["maintainers"][0]["github_user"] = "nobody-known"


@pytest.mark.parametrize(
    ("mutate", "files", "status"),
    [
        (None, {"weights.pt": None}, "failed"),
        (outside, {}, "failed"),
        (no_id, {}, "not-run"),
        (other_files, {}, "passed"),
        (lambda rdf: rdf.pop("inputs"), {}, "failed"),
    ],
)
def test_every_check_of_a_report_is_declared_and_what_is_broken_is_not_run(
    tmp_path: Path, mutate: Callable[[dict[str, Any]], None] | None, files: Any, status: str, model_process: Sandbox
) -> None:
    report = validate(zips.make_zip(tmp_path, mutate, files=files), process=model_process)
    found = [check.id for check in report.checks]
    assert report.status == status and set(found) <= set(registry()) and len(found) == len(set(found))
    assert (statuses(report)["core.test"] == "passed") == (status == "passed")
    assert report.score is not None and (report.score.total == 0) == (status == "failed")


def test_paths_that_are_not_there_are_refused_and_importing_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModelError, match="does not exist"):
        validate(tmp_path / "missing.zip")
    code = (
        "import sys, gap_bioimage.validation.report; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'bioimageio.core', 'bioimageio.spec')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
