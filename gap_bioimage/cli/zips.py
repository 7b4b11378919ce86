"""Verbs for anybody's model zips: validate, submit-check, repair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gap_bioimage.cli.console import complain, progress_bar, say, write_json, write_text
from gap_bioimage.cli.options import Json, Quiet, RunCode

_Device = Annotated[str, typer.Option(help="Device to run models on: cpu, cuda, ...")]
_SELECT = "Count only these checks, such as fiji or zoo.cover; repeatable."
_IGNORE = "Ignore these checks; repeatable."
_CONFIGURED = {"select": "select", "ignore": "ignore", "profile": "consumer", "format": "form",
               "description-only": "description_only", "timeout": "timeout", "memory": "memory"}  # fmt: skip
_DESCRIPTION = "Check only the description; run nothing."
_ENGINE = "Run TorchScript also in the torch of this Python; repeatable."
_MEMORY = "GiB that a model may take; by default 80 % of the machine's memory."
_CONSUMER = "Require the rules of this consumer (fiji, ilastik, zoo, ...); repeatable."

if TYPE_CHECKING:
    from gap_bioimage.validation.check import Check
    from gap_bioimage.validation.repair.repairing import Repaired
    from gap_bioimage.validation.report import Report


class Format(StrEnum):
    """Format of the printed report."""

    TABLE, JSON, JUNIT, HTML, SARIF, GITHUB = "table", "json", "junit", "html", "sarif", "github"


@dataclass(frozen=True)
class Pages:
    """Options for printing and writing reports."""

    form: Annotated[Format, typer.Option("--format", help="Format of the printed report.")] = Format.TABLE
    json_out: Json = None
    html: Annotated[Path | None, typer.Option(help="Write an HTML page with pictures to this file.")] = None
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML for CI to this file.")] = None

    def write(self, reports: list[Report], unread: list[Report]) -> None:
        """Print and write the reports as the options say; JSON alone does not name models that could not be read."""
        from gap_bioimage.validation.reports import ci, html, terminal

        for path in (Path("-") if self.form == Format.JSON else None, self.json_out) if reports else ():
            write_json(path, [report.to_dict() for report in reports], as_list=bool(unread))
        every, sentences = [*reports, *unread], [report.checks[0].message for report in unread]
        renderers: dict[Format, Callable[[], str]] = {
            Format.HTML: partial(html.render_html, reports, sentences),
            Format.JUNIT: partial(terminal.render_junit, every),
            Format.SARIF: partial(ci.render_sarif, every), Format.GITHUB: partial(ci.render_github, every),
        }  # fmt: skip
        for page, form in ((self.html, Format.HTML), (self.junit, Format.JUNIT), (Path("-"), self.form)):
            if page is not None and form in renderers:
                write_text(page, renderers[form]())


@dataclass(frozen=True)
class Checks:
    """Options that select checks and required rules."""

    select: Annotated[list[str] | None, typer.Option(metavar="CHECK", help=_SELECT)] = None
    ignore: Annotated[list[str] | None, typer.Option(metavar="CHECK", help=_IGNORE)] = None
    consumer: Annotated[list[str] | None, typer.Option("--consumer", "--profile", help=_CONSUMER)] = None
    description_only: Annotated[bool, typer.Option("--description-only", help=_DESCRIPTION)] = False


@dataclass(frozen=True)
class Listing:
    """Options that print something instead of validating."""

    list_checks: Annotated[bool, typer.Option("--list", help="Print all checks, and stop.")] = False
    markdown: Annotated[bool, typer.Option("--markdown", help="With --list: print a Markdown page.")] = False
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of reports, and stop.")] = False

    def printed(self) -> bool:
        """Print a list or the schema if an option asks for it; return whether one did."""
        from rich.console import Console

        from gap_bioimage.validation.reports import ci, terminal

        if self.list_checks and self.markdown:
            sys.stdout.write(terminal.as_markdown())
        elif self.list_checks:
            Console().print(terminal.as_table())
        elif self.schema:
            write_json(Path("-"), [ci.json_schema()])
        return self.list_checks or self.schema


def _names(values: list[str] | None) -> list[str]:
    return [name for value in values or () for name in value.split(",") if name]


@dataclass(frozen=True)
class Running:
    """Options for running models: code, engines, limits, device."""

    run_code: RunCode = False
    engine: Annotated[list[str] | None, typer.Option(metavar="PYTHON", help=_ENGINE)] = None
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a check may take.")] = 600.0
    memory: Annotated[float | None, typer.Option(min=0.5, help=_MEMORY)] = None
    device: _Device = "cpu"


def validate(
    checks: Checks,
    pages: Pages,
    running: Running,
    listing: Listing,
    zips: Annotated[list[Path] | None, typer.Argument(metavar="ZIP...", help="Zips, folders or yaml files.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for tensors and pictures of failed checks.")] = None,
    quiet: Quiet = False,
) -> None:
    """Check models as bioimageio.core, Fiji, ilastik and the zoo will.

    Exit codes: 0 passed, 1 failed, 2 could not run.
    """
    from gap_bioimage.validation.check import known

    if listing.printed():
        return
    if not zips:
        raise typer.BadParameter("validate needs at least one ZIP (or --list alone)")
    known(_names(checks.consumer), [*_names(checks.select), *_names(checks.ignore)])
    if keep is not None and keep.is_file():
        raise typer.BadParameter(f"--keep {keep} is a file, expected a folder")
    options = {"consumers": _names(checks.consumer) or None, "description_only": checks.description_only}
    options |= {"pictures": pages.html is not None or pages.form == Format.HTML}
    folders = _keep_folders(zips, keep)
    _spare(zips, [pages.json_out, pages.html, pages.junit])
    silent = quiet or pages.form != Format.TABLE or "-" in map(str, (pages.json_out, pages.html, pages.junit))
    results = list(_reports(folders, running, checks, silent, options))
    reports = [report for report, is_read in results if is_read]
    pages.write(reports, [report for report, is_read in results if not is_read])
    if code := _exit_code(reports, len(folders)):
        raise typer.Exit(code)


def configured() -> dict[str, Any]:
    """Return options from .gap-bioimage.toml, else pyproject.toml; refuse those that could run or write anything."""
    import tomllib

    from gap_bioimage.errors import ConfigError

    own, project = Path(".gap-bioimage.toml"), Path("pyproject.toml")
    path = own if own.is_file() else project
    try:
        section: Any = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    for name in ("tool", "gap-bioimage") if path == project else ():
        section = section.get(name, {}) if isinstance(section, dict) else section
    if not isinstance(section, dict):
        raise ConfigError(f"{path} sets tool.gap-bioimage to {section!r}, expected a table of options")
    if unknown := sorted(section.keys() - _CONFIGURED.keys()):
        raise ConfigError(f"{path} sets {', '.join(unknown)}, expected options out of {', '.join(_CONFIGURED)}")
    lists = ("select", "ignore", "profile")
    return {_CONFIGURED[k]: [v] if k in lists and isinstance(v, str) else v for k, v in section.items()}


def _reports(
    folders: dict[Path, Path | None], running: Running, checks: Checks, silent: bool, options: dict[str, Any]
) -> Iterator[tuple[Report, bool]]:
    """Yield the report of each model, and whether it could be read; if not, print the error, which is the report."""
    from gap_bioimage.errors import OutputError, UnreadableModelError
    from gap_bioimage.validation.check import Check
    from gap_bioimage.validation.report import Report
    from gap_bioimage.validation.report import validate as validate_model
    from gap_bioimage.validation.reports.terminal import print_report
    from gap_bioimage.validation.run.sandbox import Limits, Sandbox

    options |= {"run_code": running.run_code, "device": running.device, "engines": running.engine or ()}
    with Sandbox(Limits(running.timeout, running.memory)) as process:
        for path, keep in folders.items():
            try:
                with _progress(silent, path.name, f"validating {path.name}") as on_check:
                    report = validate_model(path, keep=keep, process=process, on_check=on_check, **options)
                report = report.selected(_names(checks.select), _names(checks.ignore))
            except (UnreadableModelError, OutputError) as error:
                complain(str(error))
                yield Report(str(path), (Check("archive.rdf", "archive", "error", str(error)),)), False
                continue
            if not silent:
                print_report(report)
            yield report, True


def _spare(models: list[Path], pages: list[Path | None]) -> None:
    """Refuse pages that would overwrite a file of a model that is given as a folder or yaml."""
    from gap_bioimage.errors import OutputError, UnreadableModelError
    from gap_bioimage.validation.archive.package import open_package

    present = [page for page in pages if page is not None and page.is_file()]
    loose = [path for path in models if path.is_dir() or path.suffix.lower() in (".yaml", ".yml")]
    for model in loose if present else ():  # opening a model reads its description and lists its files
        with suppress(UnreadableModelError), open_package(model) as (package, _):
            if own := [page for page in present if package is not None and package.holds(page)]:
                raise OutputError(f"cannot write {own[0]}: it is a file of the model {model}; choose another name")


@contextmanager
def _progress(silent: bool, name: str, title: str) -> Iterator[Callable[[Check], None]]:
    """Show a progress bar that names the latest check."""
    with progress_bar(silent, title) as (bar, task):
        yield lambda check: bar.update(task, advance=1, description=f"{name}: {check.id}")


def _exit_code(reports: list[Report], n_models: int) -> int:
    """Return 0 for passed, 1 for failed, 2 if something could not be read, run or judged; print the reasons."""
    not_run = [report for report in reports if report.status == "not-run"]
    for report in not_run:
        reason = next((f": {verdict.reason}" for verdict in report.verdicts if verdict.consumer == "core"), "")
        complain(f"{report.model}: the model was not run{reason}")
    raised = [(report.model, check) for report in reports for check in report.raised]
    for model, check in raised:
        complain(f"{model}: {check.id} {check.message}")
    if len(reports) == n_models and any(report.status == "failed" for report in reports):
        return 1
    return 2 if len(reports) < n_models or not_run or raised else 0


def _keep_folders(paths: list[Path], keep: Path | None) -> dict[Path, Path | None]:
    """Return a folder for each model's tensors and pictures, named after it and distinct."""
    from gap_bioimage.validation.repair.editor import numbered

    names: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        names[path] = numbered(path.stem if path.is_file() else path.name, "", {*map(str.casefold, names.values())})
    return {path: keep and keep / name for path, name in names.items()}


def submit_check(
    model: Annotated[Path, typer.Argument(metavar="ZIP", help="Model zip, folder or yaml file.")],
    run_code: RunCode = False,
    device: _Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Check a model against what the zoo requires of an upload, and list the steps to submit it."""
    from gap_bioimage.validation.report import validate as validate_model
    from gap_bioimage.validation.reports.terminal import print_submission

    with _progress(quiet, model.name, f"validating {model.name}") as on_check:
        report = validate_model(model, run_code=run_code, device=device, on_check=on_check)
    if not quiet:
        print_submission(report)
    if code := _exit_code([report], 1):
        raise typer.Exit(code)


def repair(
    model: Annotated[Path, typer.Argument(metavar="ZIP", help="Model zip, folder or yaml file; not changed.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="Repaired zip to write.")],
    run_code: RunCode = False,
    device: _Device = "cpu",
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Apply the mechanical fixes to a copy of a model, and list them.

    Exit codes: 0 the copy passes, 1 it fails, 2 it could not run.
    """
    from gap_bioimage.validation.repair.repairing import repair as repair_model

    quiet = quiet or str(json_out) == "-"
    _spare([model], [json_out])
    with _progress(quiet, "validating", f"repairing {model.name}") as on_check:
        repaired = repair_model(model, out, run_code=run_code, device=device, on_check=on_check)
    write_json(json_out, [repaired.to_dict()])
    if not quiet:
        _print(repaired)
    say(quiet, f"{out}: written, {out.stat().st_size / 1e6:.1f} MB, {repaired.after.status}")
    if repaired.after.status != "passed":
        raise typer.Exit(1 if repaired.after.status == "failed" else 2)


def _print(repaired: Repaired) -> None:
    changed = [f"{change.what}: {_short(change.before)} -> {_short(change.after)}" for change in repaired.changes]
    # other changes, such as from absent to passed, are not results of the repair
    turned = {check: turn for check, turn in repaired.turned.items() if {*turn} & {"failed", "warning"}}
    left = [f"{c.id} {c.status}: {c.message}" + (f"\n    to do: {c.fix}" if c.fix else "") for c in repaired.left]
    groups = {
        f"{len(changed)} repair{'s' if len(changed) > 1 else ''}" if changed else "nothing to repair": changed,
        "checks that changed": [f"{check}: {' -> '.join(turn)}" for check, turn in turned.items()],
        "left to the authors": left,
        "left alone": repaired.notes,
    }
    for title, lines in groups.items():
        if lines or title == "nothing to repair":
            print("\n  ".join([title, *lines]))


def _short(text: str) -> str:
    """Return a text; of a hash, only its first digits."""
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text
