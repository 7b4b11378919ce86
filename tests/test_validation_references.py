"""References of a description: inside the package, present, unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
import zips

from gap_bioimage.validation.package.archive import open_package
from gap_bioimage.validation.package.references import TooManyNodesError, is_url, reference_checks, references

if TYPE_CHECKING:
    from pathlib import Path


def judged(path: Path) -> tuple[dict[str, str], bool]:
    with open_package(path) as (package, _):
        assert package is not None
        checks, loadable = reference_checks(package)
    return {check.id: check.status for check in checks}, loadable


def test_all_files_of_a_description_are_found() -> None:
    files = zips.model_files()
    found = {reference.source for reference in references(zips.description(files))}
    assert found == set(files)


def test_format_0_4_names_files_elsewhere() -> None:
    rdf: dict[str, Any] = {
        "covers": ["c.png"],
        "documentation": "d.md",
        "icon": "🔬",
        "test_inputs": ["i.npy"],
        "attachments": {"files": ["a.txt"]},
        "weights": {
            "pytorch_state_dict": {
                "source": "w.pt",
                "sha256": "1",
                "architecture": "u.py:UNet",
                "architecture_sha256": "2",
            }
        },
        "config": {"other": {"source": "ignored.txt"}},
    }
    found = {reference.source: reference.sha256 for reference in references(rdf)}
    assert found == {
        "c.png": None, "d.md": None, "i.npy": None, "a.txt": None, "w.pt": "1", "u.py": "2"
    }  # fmt: skip


def test_a_good_package_is_loadable(tmp_path: Path) -> None:
    statuses, loadable = judged(zips.make_zip(tmp_path))
    assert set(statuses.values()) == {"passed"}
    assert loadable


def test_changed_files_fail(tmp_path: Path) -> None:
    def stale(rdf: dict[str, Any]) -> None:
        rdf["weights"]["torchscript"]["sha256"] = "0" * 64

    path = zips.make_zip(tmp_path, stale)
    statuses, loadable = judged(path)
    assert statuses["archive.hashes"] == "failed"
    assert not loadable
    with open_package(path) as (package, _):
        assert package is not None
        (check,) = [check for check in reference_checks(package)[0] if check.id == "archive.hashes"]
    assert check.fix.startswith("Download it again; if you changed the file on purpose")


def test_missing_files_fail(tmp_path: Path) -> None:
    statuses, loadable = judged(zips.make_zip(tmp_path, files={"weights.pt": None}))
    assert statuses["archive.files"] == "failed"
    assert not loadable


@pytest.mark.parametrize("source", ["/etc/passwd", "../outside.npy", "C:\\x.npy"])
def test_references_out_of_the_package_fail(tmp_path: Path, source: str) -> None:
    def leave(rdf: dict[str, Any]) -> None:
        rdf["inputs"][0]["test_tensor"] = {"source": source}

    statuses, loadable = judged(zips.make_zip(tmp_path, leave))
    assert statuses["archive.references"] == "failed"
    assert not loadable


def test_remote_files_are_a_warning_and_are_not_loaded(tmp_path: Path) -> None:
    def remote(rdf: dict[str, Any]) -> None:
        rdf["weights"]["torchscript"]["source"] = "https://example.invalid/weights.pt"

    statuses, loadable = judged(zips.make_zip(tmp_path, remote))
    assert statuses["archive.remote"] == "warning"
    assert not loadable


def test_alias_bombs_are_noticed() -> None:
    bomb: Any = "x"
    for _ in range(30):
        bomb = [bomb, bomb]
    with pytest.raises(TooManyNodesError):
        references({"inputs": bomb})
    with pytest.raises(TooManyNodesError):
        references({"config": bomb})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training_data", {"id": "x", "documentation": "../secret.md"}),
        ("badges", [{"label": "x", "icon": "../secret.md", "url": "https://example.invalid"}]),
        ("weights", {"pytorch_state_dict": {"architecture": "../secret.md:Net"}}),
        ("weights", {"pytorch_state_dict": {"dependencies": "conda:../secret.md"}}),
        ("license", "../secret.md"),
        ("config", {"anything": ["../secret.md"]}),
    ],
)
def test_files_outside_are_noticed_wherever_they_are_named(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "secret.md").write_text("secret")
    model = tmp_path / "model"
    model.mkdir()

    def problems() -> tuple[str, str, bool]:
        (model / "rdf.yaml").write_text(yaml.safe_dump({"type": "model", key: value}))
        with open_package(model / "rdf.yaml") as (package, _):
            assert package is not None
            checks, loadable = reference_checks(package)
        return checks[0].id, checks[0].status, loadable

    assert problems() == ("archive.references", "failed", False)
    (tmp_path / "secret.md").unlink()
    assert problems()[1] == "passed"


@pytest.mark.parametrize(
    "text",
    [
        "http://x.invalid/a",
        "HTTPS://x.invalid/a",
        "http:/x.invalid/a",
        "http:x.invalid",
        " ht\ntp://x",
        "file:///etc/x",
    ],
)
def test_whatever_may_be_taken_for_a_url_is_remote(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["README.md", "a/b.py:Net", "conda:environment.yaml", "", "the http: protocol"])
def test_paths_are_not_remote(text: str) -> None:
    assert not is_url(text)


def test_an_endless_documentation_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zips.make_zip(tmp_path)
    assert judged(path)[0]["archive.references"] == "passed"
    monkeypatch.setattr("gap_bioimage.validation.package.references._MAX_DOCUMENTATION_BYTES", 10)
    statuses, loadable = judged(path)
    assert statuses["archive.references"] == "failed"
    assert not loadable


def test_names_are_shown_short_and_plain(tmp_path: Path) -> None:
    def long(rdf: dict[str, Any]) -> None:
        rdf["covers"] = [f"{'x' * 5000}{i}.png" for i in range(9)]

    with open_package(zips.make_zip(tmp_path, long)) as (package, _):
        assert package is not None
        checks, _ = reference_checks(package)
    assert {check.id: check.status for check in checks}["archive.references"] == "failed"
    assert all(len(check.message) < 1000 for check in checks)
