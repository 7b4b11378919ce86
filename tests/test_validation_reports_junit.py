"""JUnit XML: its structure, its counts, characters that XML forbids."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from gap_bioimage.validation.checks import Check
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.junit import printable, render_junit

CHECKS = (
    Check("archive.files", "archive", "passed", "every file is there"),
    Check("core.test", "core", "failed", "differs by <1> & more", 'Export "again".'),
    Check("fiji.id", "fiji", "warning", "id is empty", "Give one."),
    Check("run.onnx", "run", "skipped", "onnx was not run", "Install onnxruntime."),
    Check("fiji.frozen", "fiji", "skipped", "no torchscript weights"),
)


def test_one_suite_per_model_and_one_case_per_check() -> None:
    root = ET.fromstring(render_junit([Report("a.zip", CHECKS), Report("b.zip", CHECKS[:1])]).encode())
    assert root.tag == "testsuites"
    assert [suite.get("name") for suite in root] == ["a.zip", "b.zip"]
    counts = ("tests", "failures", "errors", "skipped")
    assert [root.get(name) for name in counts] == ["6", "1", "0", "2"]
    assert [[suite.get(name) for name in counts] for suite in root] == [["5", "1", "0", "2"], ["1", "0", "0", "0"]]
    cases = [(case.get("classname"), case.get("name")) for case in root[0]]
    assert cases == [(check.consumer, check.id) for check in CHECKS]
    assert not any("time" in element.attrib for element in root.iter())  # it is not measured


def test_what_happened_is_inside_the_case() -> None:
    passed, failed, warned, skipped, dull = ET.fromstring(render_junit([Report("a.zip", CHECKS)]).encode())[0]
    assert list(passed) == []
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "differs by <1> & more"
    assert failure.text == 'differs by <1> & more\nto do: Export "again".'
    assert warned.findtext("system-out") == "warning: id is empty\nto do: Give one."
    assert [element.tag for element in warned] == ["system-out"]
    assert [element.attrib for element in skipped] == [{"message": "onnx was not run; to do: Install onnxruntime."}]
    assert [element.attrib for element in dull] == [{"message": "no torchscript weights"}]


def test_forbidden_characters_are_replaced() -> None:
    hostile = "a\x00b\x1b[31mc\ud800d\uffffe\U0001f600"
    check = Check("run.zero", "run", "failed", hostile, hostile)
    text = render_junit([Report(f"{hostile}.zip", (check,))])
    suite = ET.fromstring(text.encode())[0]
    assert suite.get("name") == "a\ufffdb\ufffd[31mc\ufffdd\ufffde\U0001f600.zip"


@pytest.mark.parametrize("text", ["plain", "tab\tline\n", "\xe9\u4e2d\U0001f600"])
def test_allowed_characters_stay(text: str) -> None:
    assert printable(text) == text


def test_no_models_are_no_suites() -> None:
    root = ET.fromstring(render_junit([]).encode())
    assert list(root) == []
    assert root.get("tests") == "0"
