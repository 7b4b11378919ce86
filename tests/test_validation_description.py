"""The format check needs no network and leaves nothing behind."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import zips

from gap_bioimage.validation.package.archive import open_package
from gap_bioimage.validation.package.description import Description, format_checks

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.checks import Check


def judged(path: Path) -> tuple[Description | None, dict[str, Check]]:
    with open_package(path) as (package, _):
        assert package is not None
        description, checks = format_checks(package)
    return description, {check.id: check for check in checks}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a request was made")

    for name in ("get", "request", "stream", "head"):
        monkeypatch.setattr(httpx, name, refuse)


def test_good_description(tmp_path: Path, no_network: None) -> None:
    description, checks = judged(zips.make_zip(tmp_path))
    assert {check.status for check in checks.values()} == {"passed"}
    assert description is not None
    assert description.upgraded is description.as_written
    assert list(description.weights) == ["pytorch_state_dict", "torchscript"]


def test_unlisted_people_are_a_warning_without_a_network(tmp_path: Path, no_network: None) -> None:
    from bioimageio.spec._internal.constants import KNOWN_GITHUB_USERS

    def unlisted(rdf: dict[str, Any]) -> None:
        rdf["maintainers"][0]["github_user"] = "nobody-knows-this-one"
        rdf["cite"][0]["url"] = "https://unreachable.invalid/paper"

    before = set(KNOWN_GITHUB_USERS)
    description, checks = judged(zips.make_zip(tmp_path, unlisted))
    assert description is not None
    assert checks["format.github_user"].status == "warning"
    assert "nobody-knows-this-one" in checks["format.github_user"].message
    assert before == KNOWN_GITHUB_USERS


def test_invalid_fields_are_named(tmp_path: Path) -> None:
    def broken(rdf: dict[str, Any]) -> None:
        rdf["inputs"][0]["axes"][2]["size"] = {"min": 16}
        del rdf["weights"]["torchscript"]["pytorch_version"]

    description, checks = judged(zips.make_zip(tmp_path, broken))
    assert description is None
    assert checks["format.valid"].status == "failed"
    assert "inputs.0" in checks["format.valid"].message
    assert "pytorch_version" in checks["format.valid"].message


@pytest.mark.parametrize("version", ["0.9.0", "latest", None])
def test_unknown_formats_fail(tmp_path: Path, version: str | None) -> None:
    def change(rdf: dict[str, Any]) -> None:
        rdf["format_version"] = version

    _, checks = judged(zips.make_zip(tmp_path, change))
    assert checks["format.version"].status == "failed"


def test_other_resources_are_no_models(tmp_path: Path) -> None:
    def dataset(rdf: dict[str, Any]) -> None:
        for key in ("inputs", "outputs", "weights"):
            del rdf[key]
        rdf.update(type="dataset", format_version="0.3.0")

    description, checks = judged(zips.make_zip(tmp_path, dataset))
    assert description is None
    assert checks["format.valid"].status == "failed"


def test_absent_covers_leave_no_temp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(rdf: dict[str, Any]) -> None:
        rdf["covers"] = []

    path = zips.make_zip(tmp_path, without)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    description, _ = judged(path)
    assert description is not None
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["HTTP://unreachable.invalid/x", "http:/unreachable.invalid/x", "https:unreachable.invalid"]
)
def test_urls_in_any_spelling_are_not_requested(tmp_path: Path, no_network: None, url: str) -> None:
    def spelled(rdf: dict[str, Any]) -> None:
        rdf["cite"][0]["url"] = url
        rdf["git_repo"] = url

    _, checks = judged(zips.make_zip(tmp_path, spelled))
    assert "a request was made" not in checks["format.valid"].message


@pytest.mark.parametrize("field", ["documentation", "covers"])
def test_files_that_are_no_text_or_picture_do_not_crash(tmp_path: Path, field: str) -> None:
    huge_picture = zips.png(64, 32).replace((64).to_bytes(4, "big"), (2**31 - 1).to_bytes(4, "big"), 1)
    files: dict[str, bytes | None] = (
        {"README.md": b"\xff\xfe # Validation"} if field == "documentation" else {"cover.png": huge_picture}
    )
    _, checks = judged(zips.make_zip(tmp_path, files=files))
    assert checks["format.valid"].status == ("failed" if field == "documentation" else "passed")
    assert "\n" not in checks["format.valid"].message


@pytest.mark.parametrize("value", [[], {}, 3, None, True, float("nan"), [[[]]], {"source": 3}, "x" * 100_000])
@pytest.mark.parametrize("field", ["license", "type", "format_version", "maintainers", "covers", "name", "weights"])
def test_values_of_any_type_give_short_sentences(tmp_path: Path, field: str, value: Any) -> None:
    path = zips.make_zip(tmp_path, lambda rdf: rdf.update({field: value}))
    _, checks = judged(path)
    assert "format.valid" in checks
    assert all("\n" not in check.message and 0 < len(check.message) < 1000 for check in checks.values())
