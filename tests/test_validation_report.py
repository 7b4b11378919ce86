"""The report: its verdict, its contract with scripts, its table."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import zips

from gap_bioimage.errors import ConfigError, UnreadableModelError
from gap_bioimage.validation.checks import Check, Outcome, merge_outcomes
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
    assert [check.id for check in report.checks if check.status in ("failed", "warning")] == []
    assert tuple(seen) == report.checks
    assert capfd.readouterr() == ("", "")  # the libraries' logs and bars are silenced
    ids = [check.id for check in report.checks]
    assert len(ids) == len(set(ids))


def test_json_is_the_contract(tmp_path: Path) -> None:
    report = Report("m.zip", (Check("fiji.id", "fiji", "warning", "id is empty", "Give one."),))
    assert json.loads(json.dumps(report.to_dict())) == {
        "status": "passed",
        "model": "m.zip",
        "checks": [
            {
                "id": "fiji.id",
                "consumer": "fiji",
                "status": "warning",
                "message": "id is empty",
                "fix": "Give one.",
            }
        ],
    }


def test_json_says_whether_the_model_was_run(tmp_path: Path) -> None:
    unrun = validate(zips.make_zip(tmp_path, no_id))
    assert (unrun.to_dict()["status"], unrun.to_dict()["was_run"], unrun.word) == ("passed", False, "not run")


def test_partners_fail_a_model_on_request_only(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, no_id)
    everybody = validate(path)
    assert everybody.status == "passed"
    assert {c.id: c.status for c in everybody.checks}["fiji.id"] == "warning"
    fiji = validate(path, consumers=["fiji"])
    assert fiji.status == "failed"
    assert {c.id for c in fiji.checks if c.status == "failed"} == {"fiji.id", "fiji.weights_format"}
    zoo = validate(path, consumers=["zoo"])
    assert zoo.status == "passed"
    assert not any(check.consumer == "fiji" for check in zoo.checks)


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
    assert scores["broken"].parts["metadata"] == pytest.approx(scores["good"].parts["metadata"], abs=0.05)
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


def test_merging_keeps_the_worst_and_all_messages() -> None:
    merged = merge_outcomes([("torchscript", Outcome("passed", "fine")), ("onnx", Outcome("failed", "off", "mend"))])
    assert merged == Outcome("failed", "torchscript: fine; onnx: off", "mend")


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, gap_bioimage.validation.report; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'bioimageio.core', 'bioimageio.spec')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
