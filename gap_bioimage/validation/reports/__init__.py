"""What becomes of the checks: pages for people and machines, some from the templates that lie beside this."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap_bioimage.validation.report import Report

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """The text with a replacement sign for every character that XML 1.0 forbids, lone surrogates among them."""
    return _FORBIDDEN.sub("\ufffd", text)


def with_missed_test(report: Report) -> Report:
    """The report for continuous integration, where a model that was not run is an error, as the exit code says."""
    if report.status != "not-run":
        return report
    checks = (replace(check, status="error") if check.id == "core.test" else check for check in report.checks)
    return replace(report, checks=tuple(checks))


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in; what goes into HTML and XML is escaped, and UTF-8 can encode it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__, ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith((".html.j2", ".xml.j2")), keep_trailing_newline=True,
    )  # fmt: skip
    return printable(environment.get_template(template).render(**values))
