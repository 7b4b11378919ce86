"""Sections of ``results.md``; each script replaces its own."""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS = Path(__file__).parent / "results.md"
HEADER = "# Results\n\nWritten by the scripts in this folder; ratios and scores come from one run each.\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, f"|{'---|' * len(head)}", *others])


def write_section(title: str, doc: str | None, body: str, machine: str | None = None) -> None:
    """Replace or add the section ``title``: the command from the script's docstring, the machine, the body."""
    command = re.search(r"^    (python .*)$", doc or "", re.M)
    machine = machine or f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    origin = f"`{command.group(1)}` ({machine}, {today})\n\n" if command else ""
    section = f"## {title}\n\n{origin}{body.strip()}\n"
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEADER
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    text = pattern.sub(lambda _: section + "\n", text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}"
    RESULTS.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(section)
