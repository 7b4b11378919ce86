"""Descriptions that are traps are refused before they are built; what they name is found in one walk."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import zips

from gap_bioimage.validation.archive.rdf import MAX_RDF_BYTES, is_url, read_rdf, references

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstu"))
MERGED = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise("abcdefghijklmnopqrstu"))


@pytest.mark.parametrize(
    ("text", "why", "fix"),
    [
        pytest.param(LAUGHS, "is refused: it expands to more than", "without aliases", id="billion laughs"),
        pytest.param(MERGED, "expands to more than", "", id="merge keys"),
        pytest.param("a: &x [*x]", "the alias 'x' contains itself", "without aliases", id="circle"),
        pytest.param("[" * MAX_RDF_BYTES, "nested", "", id="brackets"),
        pytest.param("- " * (MAX_RDF_BYTES // 2), "nested", "", id="dashes"),
        pytest.param("a: [" + "1," * (MAX_RDF_BYTES // 3) + "]", "expands to more than", "", id="long list"),
        pytest.param("a" * (MAX_RDF_BYTES + 1), "bytes", "", id="long file"),
        pytest.param("a: !!python/object/apply:os.system [id]", "not valid yaml", "", id="python tag"),
        pytest.param("a: 1\na: 2", "is not valid yaml: line 2: found duplicate key", "that line", id="duplicate key"),
        pytest.param("a: 1\nb: c: d", "line 2: mapping values are not allowed here", "that line", id="colon"),
        pytest.param("a: [", "line 1: expected the node content, but found the end", "that line", id="no end"),
        pytest.param("a: b".encode("utf-16"), "not UTF-8", "UTF-8", id="utf-16"),
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
