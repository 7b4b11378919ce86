"""The table of all checks, and its page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zips
from rich.console import Console

from gap_bioimage.validation.check import definition, registry
from gap_bioimage.validation.consumers import consumers
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.reports.listing import as_markdown, as_table

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parent.parent / "docs" / "checks.md"


def test_the_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == as_markdown(), "write it again: gap-bioimage validate --list --markdown > docs/checks.md"


def test_the_page_tells_every_check_in_one_row() -> None:
    rows = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(registry())
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
    assert [line[3:] for line in as_markdown().splitlines() if line.startswith("## ")] == list(consumers())


def test_every_row_says_how_severe_it_is_and_where_it_is_known_from() -> None:
    row = next(line for line in as_markdown().splitlines() if line.startswith("| `fiji.id`"))
    assert "(blocks.)" in row and "Repaired." in row
    assert str(definition("fiji.id").source) in row


def test_the_table_in_the_terminal_holds_every_check() -> None:
    out = io.StringIO()
    Console(file=out, width=400).print(as_table())
    assert all(check_id in out.getvalue() for check_id in registry())


def other_files(rdf: dict[str, Any]) -> None:
    rdf["documentation"] = "https://example.org/README.md"
    rdf["maintainers"][0]["github_user"] = "nobody-known"


@pytest.mark.parametrize("mutate", [None, other_files, lambda rdf: rdf.pop("inputs")])
def test_every_check_of_a_report_is_declared_and_in_its_place(
    tmp_path: Path, mutate: Callable[[dict[str, Any]], None] | None
) -> None:
    found = [check.id for check in validate(zips.make_zip(tmp_path, mutate)).checks]
    assert set(found) <= set(registry())
    assert len(found) == len(set(found))
