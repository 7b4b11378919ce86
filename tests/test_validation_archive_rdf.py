"""Descriptions that are traps are refused before they are built."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from gap_bioimage.validation.archive.rdf import MAX_RDF_BYTES, read_rdf

if TYPE_CHECKING:
    from pathlib import Path

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstu"))
MERGED = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise("abcdefghijklmnopqrstu"))


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "rdf.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rdf, check = read_rdf(path)
    assert rdf is None
    assert check.id == "archive.rdf"
    assert check.status == "failed"
    assert "\n" not in check.message
    assert len(check.message) < 500
    return check.message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(LAUGHS, "expands to more than", id="billion laughs"),
        pytest.param(MERGED, "expands to more than", id="merge keys"),
        pytest.param("a: &a [*a]", "contains itself", id="circle"),
        pytest.param("a: &a {b: *a}", "contains itself", id="circle of mappings"),
        pytest.param("a: " + "[" * 60 + "]" * 60, "nested", id="nested"),
        pytest.param("[" * MAX_RDF_BYTES, "nested", id="brackets"),
        pytest.param("{" * MAX_RDF_BYTES, "nested", id="braces"),
        pytest.param("- " * (MAX_RDF_BYTES // 2), "nested", id="dashes"),
        pytest.param("? " * (MAX_RDF_BYTES // 2), "nested", id="question marks"),
        pytest.param("a: [" + "1," * (MAX_RDF_BYTES // 3) + "]", "expands to more than", id="long list"),
        pytest.param("".join(f"{i}k: 1\n" for i in range(30_000)), "expands to more than", id="many keys"),
        pytest.param("a" * (MAX_RDF_BYTES + 1), "bytes", id="long file"),
        pytest.param("a: !!python/object/apply:os.system [id]", "not valid yaml", id="python tag"),
        pytest.param("a: !!python/name:os.system", "not valid yaml", id="python name"),
        pytest.param("a: 1\na: 2", "not valid yaml", id="duplicate key"),
        pytest.param("a:\n\t- 1", "not valid yaml", id="tab"),
        pytest.param("a: *b", "not valid yaml", id="unknown alias"),
        pytest.param("a: 1\n---\nb: 2", "not valid yaml", id="two documents"),
        pytest.param(b"a: \xff", "not UTF-8", id="broken utf-8"),
        pytest.param("a: b".encode("utf-16"), "not UTF-8", id="utf-16"),
        pytest.param("a: " + "9" * 5000, "not valid yaml", id="endless integer"),
        pytest.param("a: 0x1" + "0" * 5000, "integer of 20001 bits", id="endless hexadecimal"),
        pytest.param('a: "\\e[2J"', "control character", id="terminal"),
        pytest.param('a: "\\0"', "control character", id="null"),
        pytest.param('a: {"\\ud800": 1}', "control character", id="half a character"),
        pytest.param("a: !!binary aGk=", "of type bytes", id="bytes"),
        pytest.param("a: !!set {x, y}", "of type set", id="set"),
        pytest.param("a: {[1, 2]: 3}", "of type tuple", id="list as key"),
        pytest.param("1: x", "a mapping of names", id="number as key"),
        pytest.param("", "a mapping of names", id="empty"),
    ],
)
def test_traps_are_refused(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert why in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {y: 1}\nb:\n  <<: *x", {"a": {"y": 1}, "b": {"y": 1}}),
        ("a: &x 1\nb: &x 2\nc: *x", {"a": 1, "b": 2, "c": 2}),
        ("a: {1: x, null: y}", {"a": {1: "x", None: "y"}}),
        ("a: .inf", {"a": float("inf")}),
        ("a: yes", {"a": "yes"}),  # YAML 1.2
    ],
)
def test_odd_but_harmless_descriptions_are_read(tmp_path: Path, text: str, content: object) -> None:
    (tmp_path / "rdf.yaml").write_text(text, encoding="utf-8")
    rdf, check = read_rdf(tmp_path / "rdf.yaml")
    assert rdf == content
    assert check.status == "passed"
