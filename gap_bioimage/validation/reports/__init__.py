"""Reports for people and machines, some of them from the templates in this folder."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap_bioimage.validation.report import Report

# every character that XML 1.0 forbids, including lone surrogates
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def with_missed_test(report: Report) -> Report:
    """Return the report for continuous integration: a model that was not run is an error, as in the exit code."""
    if report.status != "not-run":
        return report
    checks = (replace(check, status="error") if check.id == "core.test" else check for check in report.checks)
    return replace(report, checks=tuple(checks))


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; values are escaped for HTML and XML, and forbidden characters replaced."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__, ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=template.endswith((".html.j2", ".xml.j2")), keep_trailing_newline=True,
    )  # fmt: skip
    return _FORBIDDEN.sub("\ufffd", environment.get_template(template).render(**values))
