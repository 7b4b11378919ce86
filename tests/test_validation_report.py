"""The report: its verdict, its contract with scripts, its table."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import yaml
import zips

from gap_bioimage.errors import ConfigError, UnreadableModelError
from gap_bioimage.validation.check import Check, Definition, Severity
from gap_bioimage.validation.report import Report, validate

if TYPE_CHECKING:
    from pathlib import Path


def no_id(rdf: dict[str, Any]) -> None:
    del rdf["id"]
    del rdf["weights"]["torchscript"]  # nothing runs, which is quick


def test_the_good_zip_passes_for_everybody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = zips.make_zip(tmp_path)
    seen: list[Check] = []
    report = validate(path, consumers=["zoo", "fiji", "ilastik", "biapy"], run_code=True, on_check=seen.append)
    assert report.status == "passed"
    assert {check.id for check in report.checks if check.status != "passed" and check.status != "skipped"} == {
        "zoo.id",
        "fiji.off_grid",
    }
    assert {entry.verdict for entry in report.verdicts} == {"works"}
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


def test_what_was_not_run_has_not_passed(tmp_path: Path) -> None:
    unrun = validate(zips.make_zip(tmp_path, no_id))
    assert (unrun.to_dict()["status"], unrun.to_dict()["was_run"]) == ("not-run", False)


def test_partners_fail_a_model_on_request_only(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, no_id)
    everybody = validate(path)
    assert everybody.status == "not-run"
    assert {c.id: c.status for c in everybody.checks}["fiji.id"] == "warning"
    fiji = validate(path, consumers=["fiji"])
    assert fiji.status == "failed"
    assert {c.id for c in fiji.checks if c.status == "failed"} == {"fiji.id", "fiji.state_dict_values"}
    zoo = validate(path, consumers=["zoo"])
    assert zoo.status == "not-run"
    assert not any(check.consumer == "fiji" for check in zoo.checks)


@pytest.mark.parametrize("kind", ["yaml", "folder", "zip"])
def test_a_description_alone_is_judged_without_its_files(tmp_path: Path, kind: str) -> None:
    rdf = zips.description(zips.model_files())
    for entry in rdf["weights"].values():
        entry["source"] = f"gone_{entry['source']}"
    path = tmp_path / "rdf.yaml"
    path.write_text(yaml.safe_dump(rdf))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
            archive.write(path, "rdf.yaml")
    report = validate({"yaml": path, "folder": tmp_path, "zip": tmp_path / "m.zip"}[kind], description_only=True)
    assert report.status == "passed"
    assert {entry.verdict for entry in report.verdicts} == {"works"}
    assert report.to_dict()["description_only"] is True
    assert "core.test" not in {check.id for check in report.checks}


def test_what_speaks_against_a_description_is_told_of_it_alone(tmp_path: Path) -> None:
    rdf = zips.description(zips.model_files()) | {"tags": ["2d"]}
    del rdf["id"]
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    found = {e.consumer: e.verdict for e in validate(tmp_path / "rdf.yaml", description_only=True).verdicts}
    assert [name for name, verdict in found.items() if verdict == "fails"] == ["fiji", "biapy"]


def test_a_rule_that_raises_shows_and_leaves_the_verdict_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any) -> None:
        raise ZeroDivisionError("by zero")

    made = Definition("ilastik.broken", "rule", Severity.STYLE, broken)
    monkeypatch.setattr("gap_bioimage.validation.report.definitions", lambda kind: [made])
    report = validate(zips.make_zip(tmp_path), description_only=True)
    assert [check.id for check in report.raised] == ["ilastik.broken"]
    assert {e.consumer: e.verdict for e in report.verdicts}["ilastik"] == "unknown"


def test_a_dataset_gets_no_advice_for_programs(tmp_path: Path) -> None:
    (tmp_path / "rdf.yaml").write_text("type: dataset\nformat_version: 0.3.0\nname: Images\n")
    report = validate(tmp_path / "rdf.yaml")
    assert report.status == "failed"
    assert {check.consumer for check in report.checks} <= {"archive", "format", "core"}


def test_broken_packages_fail_without_being_run(tmp_path: Path) -> None:
    report = validate(zips.make_zip(tmp_path, files={"weights.pt": None}))
    assert report.status == "failed"
    assert {c.id: c.status for c in report.checks}["core.test"] == "skipped"


def test_a_broken_zip_is_not_scored_better_than_a_good_one(tmp_path: Path) -> None:
    scores = {}
    for name, files in (("good", {}), ("broken", {"README.md": None})):
        (tmp_path / name).mkdir()
        score = validate(zips.make_zip(tmp_path / name, no_id, files=files)).score
        assert score is not None
        scores[name] = score
    assert scores["broken"].total < scores["good"].total


def test_references_outside_are_never_opened(tmp_path: Path) -> None:
    def leave(rdf: dict[str, Any]) -> None:
        rdf["inputs"][0]["test_tensor"] = {"source": "/etc/hostname"}

    report = validate(zips.make_zip(tmp_path, leave))
    assert report.status == "failed"
    assert "format.valid" not in {check.id for check in report.checks}


def test_remote_files_are_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a request was made")

    for name in ("get", "request", "stream"):
        monkeypatch.setattr(httpx, name, refuse)

    def remote(rdf: dict[str, Any]) -> None:
        rdf["weights"]["torchscript"]["source"] = "https://unreachable.invalid/weights.pt"

    statuses = {c.id: c.status for c in validate(zips.make_zip(tmp_path, remote)).checks}
    assert statuses["archive.remote"] == "warning"
    assert statuses["format.valid"] == "passed"
    assert statuses["core.test"] == "skipped"


def test_unknown_consumers_and_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imagej"):
        validate(tmp_path, consumers=["imagej"])
    with pytest.raises(UnreadableModelError, match="does not exist"):
        validate(tmp_path / "missing.zip")


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, gap_bioimage.validation.report; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'bioimageio.core', 'bioimageio.spec')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
