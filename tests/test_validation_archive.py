"""Zips that must not be trusted are refused before anything is written, and nothing is left behind."""

from __future__ import annotations

import stat
import zipfile
from typing import TYPE_CHECKING

import pytest
import zips

from gap_bioimage.errors import UnreadableModelError
from gap_bioimage.validation import archive
from gap_bioimage.validation.archive import open_package, unsafe_path

if TYPE_CHECKING:
    from pathlib import Path


def statuses(path: Path) -> dict[str, str]:
    with open_package(path) as (_, checks):
        return {check.id: check.status for check in checks}


def write(path: Path, *names: str, content: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("rdf.yaml", "type: model")
        for name in names:
            packed.writestr(name, content)
    return path


def test_good_zip_opens_and_is_cleaned_up(tmp_path: Path) -> None:
    with open_package(zips.make_zip(tmp_path)) as (package, checks):
        assert package is not None
        assert package.is_zip
        assert package.rdf["name"] == "Tiny blur"
        assert "weights.pt" in package.names
        assert package.file("input.npy") is not None
        root = package.root
    assert {check.status for check in checks} == {"passed"}
    assert not root.exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "C:/x", "C:x", "\\\\host\\x", "..\\x", "a\0b", ""])
def test_dangerous_paths_are_named(name: str) -> None:
    assert unsafe_path(name) is not None


@pytest.mark.parametrize("name", ["x", "a/b.pt", "a..b", "./x", "weights (1).pt"])
def test_harmless_paths_pass(name: str) -> None:
    assert unsafe_path(name) is None


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "C:/evil.txt", "a/../../evil.txt"])
def test_entries_outside_are_not_unpacked(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.zip", name)
    with open_package(path) as (package, checks):
        assert package is None
        failed = [check for check in checks if check.status == "failed"]
    assert [check.id for check in failed] == ["archive.paths"]
    assert "evil" in failed[0].message
    assert failed[0].fix
    assert not list(tmp_path.parent.rglob("evil.txt"))


def test_links_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip")
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(link, "/etc/passwd")
    assert statuses(path)["archive.paths"] == "failed"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.npy", "a.npy"), ("README.md", "readme.md")])
def test_duplicates_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    assert statuses(write(tmp_path / "m.zip", *names))["archive.duplicates"] == "failed"


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip")
    entry = zipfile.ZipInfo("secret")
    entry.flag_bits = 0x1
    checks = {check.id: check.status for check in archive.entry_checks([entry])}
    assert checks["archive.encrypted"] == "failed"
    assert statuses(path)["archive.encrypted"] == "passed"


def test_bombs_are_refused_before_unpacking(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip", "zeros", content=bytes(archive.RATIO_FREE_BYTES + 1))
    with open_package(path) as (package, checks):
        assert package is None
    assert next(check for check in checks if check.id == "archive.bomb").status == "failed"


def test_size_and_number_of_entries_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zipfile.ZipInfo("a")
    entry.file_size = entry.compress_size = archive.MAX_TOTAL_BYTES + 1
    assert {c.id: c.status for c in archive.entry_checks([entry])}["archive.bomb"] == "failed"
    monkeypatch.setattr(archive, "MAX_ENTRIES", 1)
    entries = [zipfile.ZipInfo("a"), zipfile.ZipInfo("b")]
    assert {c.id: c.status for c in archive.entry_checks(entries)}["archive.bomb"] == "failed"


def test_a_small_file_of_zeros_is_no_bomb(tmp_path: Path) -> None:
    assert statuses(write(tmp_path / "m.zip", "zeros", content=bytes(2**22)))["archive.bomb"] == "passed"


def test_damaged_entries_fail(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    assert statuses(path)["archive.intact"] == "failed"


def test_a_file_that_is_also_a_folder_fails(tmp_path: Path) -> None:
    assert statuses(write(tmp_path / "m.zip", "a", "a/b"))["archive.intact"] == "failed"


@pytest.mark.parametrize("text", ["- a list", "a: [", "1: x"])
def test_descriptions_that_are_no_mapping_fail(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("rdf.yaml", text)
    assert statuses(path)["archive.rdf"] == "failed"


@pytest.mark.parametrize("name", ["rdf.yaml", "bioimageio.yaml", "Dummy.model.yaml", "v0_4.bioimageio.yaml"])
def test_folders_and_yaml_paths_open(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("type: model")
    for path in (tmp_path, tmp_path / name):
        with open_package(path) as (package, _):
            assert package is not None
            assert package.rdf == {"type": "model"}
            assert not package.is_zip


def test_what_is_no_model_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as packed:
        packed.writestr("folder/rdf.yaml", "type: model")
    for name in ("text.zip", "empty", "nested.zip", "missing.zip"):
        with pytest.raises(UnreadableModelError), open_package(tmp_path / name):
            pass


def test_files_outside_are_not_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "secret.npy").write_text("secret")
    model = tmp_path / "model"
    model.mkdir()
    (model / "rdf.yaml").write_text("type: model")
    (model / "link.npy").symlink_to(tmp_path / "secret.npy")
    with open_package(model) as (package, _):
        assert package is not None
        assert package.file("link.npy") is None
        assert package.file("../secret.npy") is None
