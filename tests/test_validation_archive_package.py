"""Zips and descriptions that must not be trusted are refused before they are unpacked or built."""

import os
import stat
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
import zips
from bioimageio.spec.utils import read_yaml

from gap_bioimage.errors import UnreadableModelError
from gap_bioimage.validation.archive import package as module
from gap_bioimage.validation.archive.package import entry_checks, open_package, unsafe_path
from gap_bioimage.validation.archive.rdf import MAX_NODES, MAX_RDF_BYTES, is_url, read_rdf, references
from gap_bioimage.validation.repair.editor import to_yaml


def entry(name: str, *, offset: int = 0, size: int = 0, mode: int = 0) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.header_offset = offset
    made.file_size = made.compress_size = size
    made.external_attr = mode << 16
    return made


def failed(*made: zipfile.ZipInfo) -> set[str]:
    return {check.id for check in entry_checks(list(made)) if check.status == "failed"}


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a/../../x", "C:/x", "C:x", "\\\\host\\x", "..\\x", "a\0b", "", "a\\b", "a\x1b[2Jb", "a\nb",
     "a\ud800", "CON", "nul.npy", "a/Com1.txt", "a.", "a /b", "file:stream", "x" * 256, "\u00fc" * 200, "a/" * 600],
)  # fmt: skip
def test_paths_that_lead_out_or_mean_another_file_somewhere_are_named(name: str) -> None:
    assert unsafe_path(name) is not None
    harmless = ("x", "a/b.pt", "a..b", "./x", "weights (1).pt", "console.txt", "\u00fc.npy", "a/" * 200)
    assert [good for good in harmless if unsafe_path(good)] == []


def test_links_devices_and_encrypted_entries_are_refused() -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK):
        assert failed(entry("x", mode=kind | 0o644)) == {"archive.paths"}
    assert failed(entry("x", mode=stat.S_IFREG | 0o644), entry("y/", mode=stat.S_IFDIR, offset=99)) == set()
    secret = entry("secret")
    secret.flag_bits = 0x1
    assert failed(secret) == {"archive.encrypted"}


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("README.md", "readme.md"), ("a", "./a"), ("a//b", "a/b"), ("\u00e9", "e\u0301"), ("a", "a/b"),
     ("A", "a/"), ("a/b/c", "a")],
)  # fmt: skip
def test_names_that_collide_are_refused(names: tuple[str, str]) -> None:
    assert failed(*(entry(name, offset=99 * index) for index, name in enumerate(names))) == {"archive.duplicates"}


def test_size_and_number_of_entries_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(entry("a", size=module.MAX_TOTAL_BYTES)) == set()
    assert failed(entry("a", size=module.MAX_TOTAL_BYTES + 1)) == {"archive.bomb"}
    assert failed(entry("a", size=100), entry("b", offset=130)) == set()
    assert failed(entry("a", size=100), entry("b", offset=129)) == {"archive.bomb"}  # they share bytes
    many = next(entry_checks([entry(f"../{'x' * 200}{i}", offset=99 * i) for i in range(9)]))
    assert "6 more" in many.message and len(many.message) < 1000
    monkeypatch.setattr(module, "MAX_ENTRIES", 1)
    assert failed(entry("a"), entry("b", offset=99)) == {"archive.bomb"}


def statuses(path: Path) -> dict[str, str]:
    with open_package(path) as (package, checks):
        found = {check.id: check.status for check in checks}
        assert (package is None) == ("failed" in found.values())
        return found


def write(path: Path, *names: str, content: bytes = b"x", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("rdf.yaml", "type: model")
        for name in names:
            packed.writestr(name, content)
    return path


def patched(path: Path, old: bytes, new: bytes, count: int = -1) -> Path:
    data = path.read_bytes()
    assert len(old) == len(new) and old in data
    path.write_bytes(data.replace(old, new, count))
    return path


def test_good_zip_opens_and_is_cleaned_up(tmp_path: Path) -> None:
    with open_package(zips.make_zip(tmp_path)) as (package, checks):
        assert package is not None and package.is_zip and package.rdf["name"] == "Tiny blur"
        assert "weights.pt" in package.names and package.file("input.npy") is not None
    assert {check.status for check in checks} == {"passed"} and not package.root.exists()


def shared_bytes(path: Path) -> Path:
    write(path, "a", "b", content=bytes(range(256)))
    with zipfile.ZipFile(path) as packed:
        first, second = (packed.getinfo(name).header_offset.to_bytes(4, "little") for name in "ab")
    data = path.read_bytes()
    place = data.rindex(second)
    path.write_bytes(data[:place] + first + data[place + 4 :])
    return path


@pytest.mark.parametrize(
    ("check", "make"),
    [
        ("intact", lambda p: patched(write(p, "a", content=b"right", method=0), b"right", b"wrong")),
        ("intact", lambda p: patched(write(p, "na\u00efve"), "\u00ef".encode(), b"\xff\xfe")),
        ("intact", lambda p: patched(write(p, "a", content=bytes(99_999)), (99_999).to_bytes(4, "little"), bytes(4))),
        ("compression", lambda p: write(p, "a", method=zipfile.ZIP_BZIP2)),
        ("bomb", shared_bytes),
        *(("paths", lambda p, name=name: write(p, name)) for name in ("../evil", "/evil", "C:/evil", "a/../../evil")),
        ("bomb", lambda p: write(p, "zeros", content=bytes(module.RATIO_FREE_BYTES + 1))),
    ],
)
def test_broken_and_hostile_zips_are_refused(tmp_path: Path, check: str, make: Callable[[Path], Path]) -> None:
    found = statuses(make(tmp_path / "m.zip"))
    assert "failed" in (found.get(f"archive.{check}"), found.get("archive.bomb"))
    assert not list(tmp_path.parent.rglob("evil"))


def test_odd_but_harmless_zips_open(tmp_path: Path) -> None:
    assert statuses(write(tmp_path / "m.zip", "zeros", content=bytes(2**22)))["archive.bomb"] == "passed"
    path = zips.make_zip(tmp_path)
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    assert statuses(path)["archive.intact"] == "passed"
    with zipfile.ZipFile(path, "a") as packed, packed.open("large", "w", force_zip64=True) as file:
        file.write(b"not so large")
    assert statuses(path)["archive.intact"] == "passed"
    inner = write(tmp_path / "inner.zip", "../evil.txt").read_bytes()
    with open_package(write(tmp_path / "m.zip", "inner.zip", content=inner)) as (package, _):
        assert package is not None and package.names == ("inner.zip", "rdf.yaml")


def test_a_huge_directory_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._ShortReads, "limit", 200)
    assert statuses(write(tmp_path / "m.zip", *(f"file{i}" for i in range(9)))) == {"archive.intact": "failed"}


def test_a_second_description_that_differs_is_a_warning(tmp_path: Path) -> None:
    for content, status in ((b"type: model", None), (b"type: other", "warning")):
        path = write(tmp_path / "m.zip", "bioimageio.yaml", content=content)
        assert statuses(path).get("archive.one_rdf") == status


def test_what_is_no_model_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "empty.zip").write_bytes(b"")
    for name in ("folder", "piped"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "piped" / "rdf.yaml")  # nobody waits for it
    for name, inner in (("nested.zip", "folder/rdf.yaml"), ("hollow.zip", "only/"), ("RDF.zip", "RDF.yaml")):
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            packed.writestr(inner, "")
    zipped = ("folder", "piped", "hollow.zip", "nested.zip", "RDF.zip")
    told = {"text.zip": "not a zip", "empty.zip": "not a zip", "piped/rdf.yaml": "plain file", "x": "does not exist"}
    told |= {"nested.zip": "folder/rdf.yaml", "RDF.zip": "RDF.yaml"}  # what is inside is named
    for name, words in {**dict.fromkeys(zipped, "top level"), **told, "https://x.invalid/m.zip": "not exist"}.items():
        with pytest.raises(UnreadableModelError, match=words), open_package(tmp_path / name):
            pass


@pytest.mark.parametrize("kept", [10, 0.5, -1])
def test_a_zip_that_is_cut_off_is_called_so_whatever_it_holds(tmp_path: Path, kept: float) -> None:
    data = zips.make_zip(tmp_path).read_bytes()  # its weights are zips, which have an end
    (tmp_path / "cut.zip").write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(UnreadableModelError, match="has no end"), open_package(tmp_path / "cut.zip"):
        pass


def test_links_that_lead_outside_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.md").write_text("secret: [")  # reading it would show as a broken archive.rdf
    model = tmp_path / "model"
    model.mkdir()
    (model / "rdf.yaml").write_text("{type: model, documentation: link.md}")
    (model / "link.md").symlink_to(tmp_path / "secret.md")
    assert statuses(model) == {"archive.paths": "failed"}
    with open_package(model / "rdf.yaml") as (package, _):
        assert package is not None
        assert [package.file(name) for name in ("link.md", "../secret.md", "x" * 300)] == [None] * 3
        assert package.names_outside("link.md") and package.names_outside("../secret.md")
        assert not package.names_outside("../absent.md")
    (model / "link.md").unlink()
    (model / "rdf.yaml").unlink()
    (model / "rdf.yaml").symlink_to(tmp_path / "secret.md")
    assert statuses(model) == {"archive.paths": "failed"}


def test_links_inside_a_folder_are_followed_and_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Dummy.model.yaml").write_text("type: model")
    (tmp_path / "weights.pt").write_text("x")
    (tmp_path / "link.pt").symlink_to(tmp_path / "weights.pt")
    for path in (tmp_path, tmp_path / "Dummy.model.yaml"):
        with open_package(path) as (package, _):
            assert package is not None and package.rdf == {"type": "model"} and not package.is_zip
            assert package.file("link.pt") is not None
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert statuses(tmp_path)["archive.paths"] == "failed"


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstu"))
MERGED = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise("abcdefghijklmnopqrstu"))


@pytest.mark.parametrize(
    ("text", "why", "fix"),
    [
        pytest.param(LAUGHS, "is refused: it expands to more than", "without aliases", id="billion laughs"),
        pytest.param(MERGED, "merges more than", "without aliases", id="merge keys"),
        pytest.param("a: &x [*x]", "an alias contains itself", "without aliases", id="circle"),
        pytest.param("[" * (MAX_RDF_BYTES // 20), "nested", "", id="brackets"),
        pytest.param("- " * (MAX_RDF_BYTES // 2), "nested", "", id="dashes"),
        pytest.param("a: [" + "1," * MAX_NODES + "]", "expands to more than", "", id="long list"),
        pytest.param("a" * (MAX_RDF_BYTES + 1), "bytes", "", id="long file"),
        pytest.param("a: !!python/object/apply:os.system [id]", "not valid yaml", "", id="python tag"),
        pytest.param("a: 1\na: 2", "is not valid yaml: line 2: found duplicate key", "that line", id="duplicate key"),
        pytest.param("a: 1\nb: c: d", "line 2: mapping values are not allowed here", "that line", id="colon"),
        pytest.param("a: [", "line 1: expected the node content, but found the end", "that line", id="no end"),
        pytest.param("a: b".encode("utf-16"), "not UTF-8", "UTF-8", id="utf-16"),
        pytest.param("a: b".encode("utf-16-le"), "not UTF-8", "UTF-8", id="utf-16 without mark"),
        pytest.param("a: 0x1" + "0" * 5000, "integer of 20001 bits", "", id="endless hexadecimal"),
        pytest.param('a: "\\e[2J"', "control character", "", id="terminal"),
        pytest.param('a: {"\\ud800": 1}', "control character", "", id="half a character"),
        pytest.param("a: !!binary aGk=", "of type bytes", "", id="bytes"),
        pytest.param("a: {[1, 2]: 3}", "of type tuple", "", id="list as key"),
        pytest.param("1: x", "has names that are not texts", "lines such as", id="number as key"),
        pytest.param("- a list", "is a list, a description is a mapping", "lines such as", id="list"),
    ],
)
def test_traps_are_refused_with_what_to_do(tmp_path: Path, text: str | bytes, why: str, fix: str) -> None:
    path = tmp_path / "rdf.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rdf, check = read_rdf(path)
    assert (rdf, check.id, check.status) == (None, "archive.rdf", "failed")
    assert check.message.startswith("rdf.yaml ") and why in check.message
    assert check.fix and fix in check.fix
    assert "\n" not in check.message and "<file>" not in check.message and len(check.message) < 500


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x {y: 1}\nb:\n  <<: *x", {"a": {"y": 1}, "b": {"y": 1}}),
        ("a: &x 1\nb: &x 2\nc: *x", {"a": 1, "b": 2, "c": 2}),
        ("a: {1: x, null: y}", {"a": {1: "x", None: "y"}}),
        ("a: yes", {"a": "yes"}),  # YAML 1.2
    ],
)
def test_odd_but_harmless_descriptions_are_read(tmp_path: Path, text: str, content: object) -> None:
    (tmp_path / "rdf.yaml").write_text(text, encoding="utf-8")
    rdf, check = read_rdf(tmp_path / "rdf.yaml")
    assert (rdf, check.status) == (content, "passed")


def test_texts_stay_texts_in_both_versions_of_yaml() -> None:
    texts = ["1e5", "0o14", "1_000", "2022-01-01", "-.5e3", "0.5.9", "y", "on", "null", "~", ".inf"]
    given = {text: text for text in texts} | {"numbers": [1, 1e-5, float("inf"), None, True]}
    assert read_yaml(to_yaml(given).decode()) == yaml.safe_load(to_yaml(given)) == given


def test_all_files_of_a_description_are_found_where_older_formats_name_them_too() -> None:
    files = zips.model_files()
    assert {reference.path for reference in references(zips.description(files))} == set(files)
    rdf: dict[str, Any] = {
        "covers": ["c.png"], "documentation": "d.md", "icon": "\U0001f52c", "test_inputs": ["i.npy"],
        "attachments": {"files": ["a.txt"]}, "dependencies": "conda:environment.yaml",
        "source": "old.py::Net", "sha256": "3",
        "weights": {
            "pytorch_state_dict": {
                "source": "w.pt", "sha256": "1", "architecture": "u.py:UNet", "architecture_sha256": "2",
                "dependencies": "pip:requirements.txt", "kwargs": {"source": "not a file"},
            },
            "onnx": {"architecture": "module.Net"},
        },
        "config": {"other": {"source": "ignored.txt"}},
    }  # fmt: skip
    found = {reference.path: reference.sha256 for reference in references(rdf)}
    assert found == {
        "c.png": None, "d.md": None, "i.npy": None, "a.txt": None, "w.pt": "1", "u.py": "2", "old.py": "3",
        "environment.yaml": None, "requirements.txt": None,
    }  # fmt: skip


def test_a_reference_is_pointed_to_another_file() -> None:
    weights = {"dependencies": "conda:environment.yaml", "architecture": "net.py:Net", "source": "./a.npy"}
    for reference in references({"weights": {"onnx": weights}}):
        reference.point_to("new")
    assert weights == {"dependencies": "conda:new", "architecture": "new:Net", "source": "new"}


def test_whatever_may_be_taken_for_a_url_is_remote() -> None:
    for text in ("http://x.invalid/a", "HTTPS://x.invalid", "http:/x.invalid", "http:x", " ht\ntp://x", "file:///x"):
        assert is_url(text)
    for text in ("README.md", "a/b.py:Net", "conda:environment.yaml", "", "the http: protocol"):
        assert not is_url(text)
