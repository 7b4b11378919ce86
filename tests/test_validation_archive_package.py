"""Zips that must not be trusted are refused before anything is written, and nothing is left behind."""

from __future__ import annotations

import os
import zipfile
from typing import TYPE_CHECKING

import pytest
import zips

from gap_bioimage.errors import UnreadableModelError
from gap_bioimage.validation.archive import entries
from gap_bioimage.validation.archive.package import open_package

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


def test_bombs_are_refused_before_unpacking(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip", "zeros", content=bytes(entries.RATIO_FREE_BYTES + 1))
    with open_package(path) as (package, checks):
        assert package is None
    assert next(check for check in checks if check.id == "archive.bomb").status == "failed"


def test_a_small_file_of_zeros_is_no_bomb(tmp_path: Path) -> None:
    assert statuses(write(tmp_path / "m.zip", "zeros", content=bytes(2**22)))["archive.bomb"] == "passed"


def test_damaged_entries_fail(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    assert statuses(path)["archive.intact"] == "failed"


def patched(path: Path, old: bytes, new: bytes, *, count: int = -1) -> Path:
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new, count))
    return path


def test_wrong_checksums_fail(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip")
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("stored.txt", b"the right content")
    assert statuses(patched(path, b"right content", b"wrong content"))["archive.intact"] == "failed"


def test_a_directory_that_lies_about_names_fails(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip", "honest.txt")
    assert statuses(patched(path, b"honest.txt", b"secret.txt", count=1))["archive.intact"] == "failed"


def test_an_entry_longer_than_the_directory_says_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("long", bytes(123_456))
    lying = patched(path, (123_456).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with open_package(lying) as (package, checks):
        assert package is None
    assert {"archive.intact", "archive.bomb"} & {check.id for check in checks if check.status == "failed"}


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip", "a", "b", content=bytes(range(256)))
    with zipfile.ZipFile(path) as packed:
        first, second = (packed.getinfo(name).header_offset.to_bytes(4, "little") for name in "ab")
    data = path.read_bytes()
    place = data.rindex(second)
    path.write_bytes(data[:place] + first + data[place + 4 :])
    assert statuses(path)["archive.bomb"] == "failed"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_java_lacks_is_refused(tmp_path: Path, method: int) -> None:
    path = write(tmp_path / "m.zip")
    with zipfile.ZipFile(path, "a", method) as packed:
        packed.writestr("x", b"x" * 100)
    assert statuses(path)["archive.compression"] == "failed"


def test_broken_utf8_in_a_name_fails(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "m.zip", "na\u00efve"), "\u00ef".encode(), b"\xff\xfe")
    with open_package(path) as (package, checks):
        assert package is None
    assert "UTF-8" in checks[-1].message


def test_data_before_the_zip_and_zip64_are_read(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    assert statuses(path)["archive.intact"] == "passed"
    with zipfile.ZipFile(path, "a") as packed, packed.open("large", "w", force_zip64=True) as file:
        file.write(b"not so large")
    assert statuses(path)["archive.intact"] == "passed"


def test_zips_inside_stay_packed(tmp_path: Path) -> None:
    inner = write(tmp_path / "inner.zip", "../evil.txt").read_bytes()
    with open_package(write(tmp_path / "m.zip", "inner.zip", content=inner)) as (package, _):
        assert package is not None
        assert package.names == ("inner.zip", "rdf.yaml")


def test_a_huge_directory_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries._ShortReads, "limit", 200)
    path = write(tmp_path / "m.zip", *(f"file{i}" for i in range(9)))
    with open_package(path) as (package, checks):
        assert package is None
    assert "directory has" in checks[-1].message


def test_a_second_description_that_differs_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip", "bioimageio.yaml", content=b"type: model")
    assert "archive.one_rdf" not in statuses(path)
    path = write(tmp_path / "m.zip", "bioimageio.yaml", content=b"type: other")
    assert statuses(path)["archive.one_rdf"] == "warning"


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


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder that holds a link to a file outside, which is also its description's documentation."""
    (tmp_path / "secret.md").write_text("secret")
    model = tmp_path / "model"
    model.mkdir()
    (model / "rdf.yaml").write_text("{type: model, documentation: link.md}")
    (model / "link.md").symlink_to(tmp_path / "secret.md")
    return model


def test_folders_with_links_that_lead_outside_are_refused(linked: Path) -> None:
    with open_package(linked) as (package, checks):
        assert package is None
    assert [(check.id, check.status) for check in checks] == [("archive.paths", "failed")]
    assert "'link.md'" in checks[0].message


def test_a_description_that_is_a_link_outside_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("secret: [")  # reading it would show as a broken archive.rdf
    model = tmp_path / "model"
    model.mkdir()
    (model / "rdf.yaml").symlink_to(tmp_path / "secret.yaml")
    assert statuses(model) == {"archive.paths": "failed"}


def test_links_inside_a_folder_are_followed_and_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rdf.yaml").write_text("type: model")
    (tmp_path / "weights.pt").write_text("x")
    (tmp_path / "link.pt").symlink_to(tmp_path / "weights.pt")
    with open_package(tmp_path) as (package, _):
        assert package is not None
        assert package.file("link.pt") is not None
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert statuses(tmp_path)["archive.paths"] == "failed"


def test_files_outside_are_not_found_through_links(linked: Path) -> None:
    with open_package(linked / "rdf.yaml") as (package, _):
        assert package is not None
        assert package.file("link.md") is None
        assert package.file("../secret.md") is None
        assert package.file("x" * 300) is None
        assert package.names_outside("link.md")
        assert package.names_outside("../secret.md")
        assert not package.names_outside("../absent.md")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rdf.yaml")
    with pytest.raises(UnreadableModelError, match="plain file"), open_package(tmp_path / "rdf.yaml"):
        pass
    with pytest.raises(UnreadableModelError), open_package(tmp_path):
        pass


@pytest.mark.parametrize("kept", [10, 1000, 0.5, 0.9, -1])
def test_a_zip_that_is_cut_off_is_called_so_whatever_it_holds(tmp_path: Path, kept: float) -> None:
    data = zips.make_zip(tmp_path).read_bytes()  # its weights are zips, which have an end
    (tmp_path / "cut.zip").write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(UnreadableModelError, match="has no end"), open_package(tmp_path / "cut.zip"):
        pass


def test_empty_files_and_folders_are_called_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "hollow.zip", "w") as packed:
        packed.writestr("only/", "")
    for name, told in (("empty.zip", "is empty"), ("folder", "holds no files"), ("hollow.zip", "holds no files")):
        with pytest.raises(UnreadableModelError, match=told), open_package(tmp_path / name):
            pass


@pytest.mark.parametrize(
    ("text", "told", "fix"),
    [
        ("a: 1\nb: c: d", "is not valid yaml: line 2: mapping values are not allowed here", "Correct that line"),
        ("a: 1\na: 2", "is not valid yaml: line 2: found duplicate key", "Correct that line"),
        ("a: [", "is not valid yaml: line 1: expected the node content, but found the end", "Correct that line"),
        ("- a list", "is a list, a description is a mapping", "Write the description as lines such as"),
        ("1: x", "has names that are not texts", "Write the description as lines such as"),
        ("", "is empty, a description is a mapping", "Write the description as lines such as"),
        ("a: &x [*x]", "is refused: the alias 'x' contains itself", "Write the description without aliases"),
    ],
)
def test_what_is_wrong_with_a_description_has_its_own_fix(tmp_path: Path, text: str, told: str, fix: str) -> None:
    (tmp_path / "rdf.yaml").write_text(text)
    with open_package(tmp_path) as (package, checks):
        assert package is None
    (check,) = [check for check in checks if check.id == "archive.rdf"]
    assert check.message.startswith(f"rdf.yaml {told}")
    assert check.fix.startswith(fix)
    assert "<file>" not in check.message
