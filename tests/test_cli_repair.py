"""The verb repair: what it prints and how it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import zips
from command_line import one_sentence
from test_validation_repair import static_validate

from gap_bioimage.validation.repair import repairing

if TYPE_CHECKING:
    from pathlib import Path

    from command_line import Result


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validate without running the models."""
    monkeypatch.setattr(repairing, "validate", static_validate)
    monkeypatch.setenv("COLUMNS", "160")


def break_it(rdf: dict[str, Any]) -> None:
    rdf["format_version"] = "0.5.12"
    rdf["documentation"] = {"source": "README.md"}
    rdf["covers"] = []
    rdf["weights"]["torchscript"]["sha256"] = "0" * 64
    del rdf["id"]


@pytest.mark.usefixtures("static")
def test_repairs_are_listed(run: Any, tmp_path: Path) -> None:
    path, out = zips.make_zip(tmp_path, break_it), tmp_path / "out.zip"
    result: Result = run("repair", path, out, "--run-code", "--json", tmp_path / "report.json")
    assert result.code == 0, result
    assert result.out.startswith("4 repairs")
    for text in ("-> 0.5.9", "tiny-blur", "WRONG HASH", "fiji.id", "warning -> passed", f"{out}: written"):
        assert text in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "passed"
    assert report["turned"]["fiji.id"] == ["warning", "passed"]
    assert {"id": "id", "what": "id", "before": "none", "after": "tiny-blur"} in report["changes"]
    assert json.loads(run("repair", path, out, "--json", "-").out)["status"] == "passed"
    assert run("repair", path, out, "--quiet").out == ""
    assert "nothing to repair" in run("repair", out, tmp_path / "again.zip", "--run-code").out


@pytest.mark.usefixtures("static")
def test_what_stays_broken_ends_with_1(run: Any, tmp_path: Path) -> None:
    result: Result = run("repair", zips.make_zip(tmp_path, zips.put("authors", value="x")), tmp_path / "out.zip")
    assert result.code == 1, result
    assert "left to its authors" in result.out
    assert "format.valid" in result.out
    assert (tmp_path / "out.zip").exists()


def test_what_cannot_be_repaired_is_one_sentence(run: Any, tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    assert "choose another name" in one_sentence(run("repair", path, path))
    assert "does not exist" in one_sentence(run("repair", tmp_path / "no.zip", tmp_path / "out.zip"))
