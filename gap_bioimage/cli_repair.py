"""The verb that repairs anybody's model zip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap_bioimage.console import Bar, say, write_json
from gap_bioimage.options import Device, Json, Quiet

if TYPE_CHECKING:
    from rich.console import Console

    from gap_bioimage.validation.repair.repairing import Repaired


def repair(
    model: Annotated[Path, typer.Argument(metavar="ZIP", help="Model zip, folder or yaml file; it stays as it is.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="The repaired zip.")],
    run_code: Annotated[bool, typer.Option("--run-code", help="Allow Python code of the model to run.")] = False,
    device: Device = "cpu",
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Mend what needs no judgement in a copy of a model, and list it. Exit 0 passes now, 1 fails, 2 could not run."""
    from gap_bioimage.validation.repair.repairing import repair as mend

    quiet = quiet or str(json_out) == "-"
    with Bar(quiet, f"repairing {model.name}") as (bar, task):
        repaired = mend(
            model,
            out,
            run_code=run_code,
            device=device,
            on_check=lambda made: bar.update(task, advance=1, description=f"validating: {made.id}"),
        )
    write_json(json_out, [repaired.to_dict()])
    if not quiet:
        _print(repaired)
    say(quiet, f"{out}: written, {out.stat().st_size / 1e6:.1f} MB, {repaired.after.status}")
    if repaired.after.status != "passed":
        raise typer.Exit(2 if repaired.after.status == "not-run" else 1)


def _print(repaired: Repaired) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    rows = [(change.what, f"{_short(change.before)}\n-> {_short(change.after)}") for change in repaired.changes]
    _table(console, f"{len(rows)} repairs" if rows else "nothing to repair", rows)
    turned = [
        (check, f"{before} -> {after}")
        for check, (before, after) in repaired.turned.items()
        if {before, after} & {"failed", "warning"}  # what could not be asked before says nothing
    ]
    _table(console, "checks that changed", turned)
    left = [(check.id, f"{check.status}: {check.message}" + _to_do(check.fix)) for check in repaired.left]
    _table(console, "left to its authors", left)
    for note in repaired.notes:
        console.print(f"[dim]left alone:[/] {escape(note)}")


def _to_do(fix: str) -> str:
    return f"\nto do: {fix}" if fix else ""


def _short(text: str) -> str:
    """A text, or the first digits of a hash, which nobody reads to its end."""
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text


def _table(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not rows and title != "nothing to repair":
        return
    console.print(f"[bold]{title}[/]")
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(overflow="fold", max_width=48)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(escape(name), escape(text))
    if rows:
        console.print(table)
