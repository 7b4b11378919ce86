"""Reports as JUnit XML, which continuous integration services show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gap_bioimage.validation.check import Check
    from gap_bioimage.validation.report import Report

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """The text with a replacement sign for every character that XML 1.0 forbids, lone surrogates among them."""
    return _FORBIDDEN.sub("\ufffd", text)


def render_junit(reports: Sequence[Report]) -> str:
    """One test suite per model, one test case per check.

    Failed checks are failures, checks that raised are errors, skipped ones are skipped; warnings pass, and say what
    they found in ``system-out``.

    Parameters
    ----------
    reports
        What `validate` returned, for each model.

    Returns
    -------
    The document, with its declaration.
    """
    root = ET.Element("testsuites", {"name": "gap-bioimage validate"})
    checks = [check for report in reports for check in report.checks]
    root.attrib.update(_counts(checks))
    for report in reports:
        suite = ET.SubElement(root, "testsuite", {"name": printable(report.model), **_counts(report.checks)})
        for check in report.checks:
            _add_case(suite, check)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _counts(checks: Sequence[Check]) -> dict[str, str]:
    statuses = [check.status for check in checks]
    return {
        "tests": str(len(statuses)),
        "failures": str(statuses.count("failed")),
        "errors": str(statuses.count("error")),
        "skipped": str(statuses.count("skipped")),
    }


def _add_case(suite: ET.Element, check: Check) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": check.consumer, "name": printable(check.id)})
    message, fix = printable(check.message), printable(check.fix)
    text = f"{message}\nto do: {fix}" if fix else message
    if check.status == "failed":
        ET.SubElement(case, "failure", {"message": message, "type": "failed"}).text = text
    elif check.status == "error":
        ET.SubElement(case, "error", {"message": message, "type": "error"}).text = text
    elif check.status == "skipped":
        ET.SubElement(case, "skipped", {"message": f"{message}; to do: {fix}" if fix else message})
    elif check.status == "warning":
        ET.SubElement(case, "system-out").text = f"warning: {text}"
