"""Verbs about model zips of anybody: validate, repair."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap_bioimage.cli.console import Bar, complain, say, write_json, write_text
from gap_bioimage.cli.options import Device, Json, Quiet, RunCode

if TYPE_CHECKING:
    from rich.console import Console

    from gap_bioimage.validation.repair.repairing import Repaired
    from gap_bioimage.validation.report import Report


def validate(
    zips: Annotated[
        list[Path] | None, typer.Argument(metavar="ZIP...", help="Model zips, folders or yaml files.")
    ] = None,
    json_out: Json = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with pictures for people to this file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML for CI to this file.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep tensors and pictures of failed checks in this folder.")
    ] = None,
    consumer: Annotated[list[str] | None, typer.Option(help="This partner's rules must hold; repeatable.")] = None,
    description_only: Annotated[
        bool, typer.Option("--description-only", help="Judge the description alone; nothing is run.")
    ] = False,
    run_code: RunCode = False,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="PYTHON", help="Run the TorchScript in this interpreter's torch too; repeatable."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a check may take.")] = 600.0,
    memory: Annotated[
        float | None, typer.Option(min=0.5, help="GiB that a model may take; 80 % of the machine's if not given.")
    ] = None,
    device: Device = "cpu",
    list_checks: Annotated[bool, typer.Option("--list", help="Print all checks, and stop.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --list: as a page.")] = False,
    quiet: Quiet = False,
) -> None:
    """Check models as bioimageio.core, Fiji, ilastik and the zoo will. Exit 0 passed, 1 failed, 2 could not run."""
    if list_checks:
        _print_checks(markdown)
        return
    if not zips:
        raise typer.BadParameter("validate needs at least one ZIP (or --list alone)")
    from gap_bioimage.files import check_place
    from gap_bioimage.validation.reports.terminal import print_report
    from gap_bioimage.validation.run.sandbox import Limits, Sandbox

    for page in (json_out, html, junit):
        if page is not None and str(page) != "-":
            check_place(page)
    silent = quiet or str(json_out) == "-"
    reports: list[Report] = []
    with Sandbox(Limits(timeout, memory)) as process:
        for path in zips:
            report = _one(
                path,
                silent,
                consumers=consumer,
                description_only=description_only,
                run_code=run_code,
                device=device,
                engines=engine or (),
                keep=None if keep is None else keep / _names(zips)[path],
                pictures=html is not None,
                process=process,
            )
            if report is not None:
                reports.append(report)
                if not silent:
                    print_report(report)
    if reports:
        write_json(json_out, [report.to_dict() for report in reports])
        _write_pages(reports, html, junit)
    unrun = [report.model for report in reports if report.status == "not-run"]
    for model in unrun:
        complain(f"{model}: nothing is wrong with its files, but nothing was run either; see its check core.test")
    raised = [(report.model, check) for report in reports for check in report.raised]
    for model, check in raised:
        complain(f"{model}: {check.id} {check.message}")
    if len(reports) < len(zips):
        raise typer.Exit(2)
    if any(report.status == "failed" for report in reports):
        raise typer.Exit(1)
    if unrun or raised:
        raise typer.Exit(2)


def _one(path: Path, silent: bool, **options: object) -> Report | None:
    """Validate one model; None, and a sentence, where it cannot be read: the others' reports are not lost for it."""
    from gap_bioimage.errors import OutputError, UnreadableModelError
    from gap_bioimage.validation.report import validate as check

    with Bar(silent, f"validating {path.name}") as (bar, task):
        try:
            return check(
                path,
                on_check=lambda made: bar.update(task, advance=1, description=f"{path.name}: {made.id}"),
                **options,  # type: ignore[arg-type]
            )
        except (UnreadableModelError, OutputError) as error:
            complain(str(error))
            return None


def _names(paths: list[Path]) -> dict[Path, str]:
    """A folder name for each model: its own, made different from the others'."""
    names: dict[Path, str] = {}
    for path in paths:
        stem = path.stem if path.is_file() else path.name
        taken = set(names.values())
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        names.setdefault(path, name)
    return names


def _write_pages(reports: list[Report], html: Path | None, junit: Path | None) -> None:
    if html is not None:
        from gap_bioimage.validation.reports.html import render_html

        write_text(html, render_html(reports))
    if junit is not None:
        from gap_bioimage.validation.reports.junit import render_junit

        write_text(junit, render_junit(reports))


def _print_checks(markdown: bool) -> None:
    from gap_bioimage.validation.reports.listing import as_markdown, as_table

    if markdown:
        sys.stdout.write(as_markdown())
        return
    from rich.console import Console

    Console().print(as_table())


def repair(
    model: Annotated[Path, typer.Argument(metavar="ZIP", help="Model zip, folder or yaml file; it stays as it is.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="The repaired zip.")],
    run_code: RunCode = False,
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
