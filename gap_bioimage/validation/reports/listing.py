"""All checks that a report may contain, as a table in the terminal and as the page ``docs/checks.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gap_bioimage.validation.check import registry
from gap_bioimage.validation.consumers import consumers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from gap_bioimage.validation.check import Definition

_HEAD = """\
# What `gap-bioimage validate` checks

<!-- written by: gap-bioimage validate --list --markdown > docs/checks.md -->

A model zip that works in Python may still fail in Fiji. Each check below stands for something that breaks
in a program that reads such zips. What *blocks* keeps the model from running there: of the zip itself, its format,
bioimageio.core and running the model it must hold; of one program it is a warning, and must hold where you ask for
that program, e.g. with `--consumer fiji`. What *degrades* lets it run with worse results or at a cost, and *style* is
what helps people find, cite and trust it; neither ever fails.

Checks marked *run* run the model; the others look at its files. *Repaired* ones are what `gap-bioimage repair` mends.
"""
_COLUMNS = ("check", "it asks for", "without it", "what to do", "known from")


def as_markdown() -> str:
    """The page ``docs/checks.md``: every check, grouped by who needs it."""
    return "\n".join([_HEAD.rstrip(), *(line for name in consumers() for line in _section(name))]) + "\n"


def as_table() -> Table:
    """The same for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in _COLUMNS:
        table.add_column(title, overflow="fold", no_wrap=title == "check")
    for made in registry().values():
        table.add_row(escape(made.id), *map(escape, _texts(made)))
    return table


def _texts(made: Definition) -> tuple[str, str, str, str]:
    repaired = " Repaired." if made.repair else ""
    source = str(made.source) if made.source else ""
    return f"{made.asks} ({made.severity}.)", made.breaks, f"{made.fix_text}{repaired}".strip(), source


def _section(name: str) -> Iterator[str]:
    yield from ("", f"## {name}", "", consumers()[name].about, "")
    yield from (f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS))
    for made in registry().values():
        if made.consumer == name:
            mark = " *run*" if made.kind == "run" else ""
            yield f"| `{made.id}`{mark} | {' | '.join(map(_cell, _texts(made)))} |"


def _cell(text: str) -> str:
    """A text inside a table's cell, where a bar would begin the next one."""
    return text.replace("|", "\\|").replace("<", "&lt;")
