"""The format check needs no network and leaves nothing behind."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
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
    assert "inputs[0].axes[2].size.step: is missing" in checks["format.valid"].message
    assert "pytorch_version" in checks["format.valid"].message


@pytest.mark.parametrize("version", ["0.9.0", "0.6.0", "latest", None])
def test_unknown_formats_fail(tmp_path: Path, version: str | None) -> None:
    def change(rdf: dict[str, Any]) -> None:
        rdf["format_version"] = version

    _, checks = judged(zips.make_zip(tmp_path, change))
    assert checks["format.version"].status == "failed"
    assert list(checks) == ["format.version", "format.valid"]
    assert checks["format.valid"].status == "skipped"
    assert "see format.version" in checks["format.valid"].message


@pytest.mark.parametrize(
    ("version", "given"),
    [("99.0.0", "'99.0.0'"), ("banana", "'banana'"), (5, "5"), ([1, 2], "[1, 2]"), ("", "empty"), (None, "absent")],
)
def test_a_wrong_version_is_told_in_a_sentence(tmp_path: Path, version: object, given: str) -> None:
    _, checks = judged(zips.make_zip(tmp_path, zips.put("format_version", value=version)))
    text = f"format_version is {given}, expected is a version such as 0.5.9 (0.4.x or 0.5.x)"
    assert checks["format.version"].message == text


def test_other_resources_are_no_models(tmp_path: Path) -> None:
    def dataset(rdf: dict[str, Any]) -> None:
        for key in ("inputs", "outputs", "weights"):
            del rdf[key]
        rdf.update(type="dataset", format_version="0.3.0")

    description, checks = judged(zips.make_zip(tmp_path, dataset))
    assert description is None
    assert list(checks) == ["format.valid"]
    assert checks["format.valid"].status == "failed"
    assert checks["format.valid"].message == "the type is 'dataset', expected is model"


@pytest.mark.parametrize("name", ["output.npy", "torchscript.pt"])
def test_missing_files_are_told_by_the_archive_only(tmp_path: Path, name: str) -> None:
    description, checks = judged(zips.make_zip(tmp_path, files={name: None}))
    assert description is None
    assert checks["format.valid"].status == "skipped"
    assert checks["format.valid"].message == "nothing else is wrong, see archive.files"


def test_changed_files_are_told_by_the_archive_only(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.put("outputs", 0, "test_tensor", "sha256", value="0" * 64))
    _, checks = judged(path)
    assert checks["format.valid"].message == "nothing else is wrong, see archive.hashes"


def test_what_the_archive_does_not_explain_is_told(tmp_path: Path) -> None:
    _, checks = judged(zips.make_zip(tmp_path, zips.put("name", value="x"), files={"output.npy": None}))
    assert checks["format.valid"].status == "failed"
    assert checks["format.valid"].message == "name: has 1 character, expected are at least 5"


def test_objects_with_missing_files_are_told_by_the_archive_only(tmp_path: Path) -> None:
    def objects(rdf: dict[str, Any]) -> None:
        rdf.update(format_version="0.5.12", covers=[{"source": "cover.png"}])
        rdf["documentation"] = {"source": "README.md"}

    _, checks = judged(zips.make_zip(tmp_path, objects, files={"README.md": None, "cover.png": None}))
    assert checks["format.valid"].message == "nothing else is wrong, see archive.files"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((1, 1, 32, 32)), "holds only zeros, which test nothing"),
        (np.full((1, 1, 32, 32), 3e-5), "holds only values up to 3e-05, too small to test anything"),
        (np.ones((1, 1, 32, 44)), "is 44 long along axis x, expected is 32, from axis x of 'photons'"),
        (np.ones((1, 2, 32, 32)), "is 2 long along axis channel, expected is 1"),
        (np.ones((1, 32, 32)), "has 3 axes, but 4 are declared (batch, channel, y, x)"),
    ],
)
def test_test_tensors_that_do_not_fit_are_named(tmp_path: Path, values: np.ndarray[Any, Any], told: str) -> None:
    _, checks = judged(zips.make_zip(tmp_path, files={"output.npy": zips.npy(values.astype(np.float32))}))
    assert checks["format.valid"].message == f"the test tensor of output 'rate' (output.npy) {told}"


def test_an_input_of_wrong_size_is_named_without_its_consequences(tmp_path: Path) -> None:
    values = np.ones((1, 1, 33, 32), np.float32)
    _, checks = judged(zips.make_zip(tmp_path, files={"input.npy": zips.npy(values)}))
    where = "the test tensor of input 'photons' (input.npy)"
    assert checks["format.valid"].message == f"{where} is 33 long along axis y, expected is 16 plus a multiple of 4"


def test_a_missing_section_names_the_file(tmp_path: Path) -> None:
    _, checks = judged(zips.make_zip(tmp_path, files={"README.md": b"# Tiny\n"}))
    text = "documentation: 'README.md' has no section with the heading '# Validation'"
    assert checks["format.recommended"].message == text


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
