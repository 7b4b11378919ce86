"""Output of the command line: sentences, tables, JSON, progress."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import xarray as xr
    from rich.progress import Progress, TaskID

# typer bundles its own click and does not export the base class of its errors
_CLICK_ERRORS: Any = typer.BadParameter.__mro__[2]
# options as they appear in messages of the library: axes="zyx", series=0, planes=True
_OPTION = re.compile(
    r"\b(axes|series|channel|time|level|planes|time_as_z|separate_channels|resume|camera|saturation|multiplying)="
    r'(?:True|"([^"]*)"|(\d+|None))'
)


def complain(text: str) -> None:
    """Print an error."""
    print(f"error: {text}", file=sys.stderr)


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print the package's own warnings as sentences; drop all others."""
    from gap_bioimage.errors import GapWarning

    if issubclass(category, GapWarning):
        print(f"warning: {with_flags(str(message))}", file=sys.stderr)


def show_log(quiet: bool) -> None:
    """Print the package's log, such as the choices of training; when quiet only its warnings."""
    log = logging.getLogger("gap_bioimage")
    log.handlers[:] = [logging.StreamHandler()]
    log.setLevel(logging.WARNING if quiet else logging.INFO)


def say(quiet: bool, text: str) -> None:
    """Print a result, unless quiet."""
    if not quiet:
        print(text, flush=True)


def sizes(image: xr.DataArray) -> str:
    """Return the sizes of an image as text."""
    return ", ".join(f"{axis} {size}" for axis, size in image.sizes.items())


def write_json(path: Path | None, reports: list[Any], *, as_list: bool = False) -> None:
    """Write one report as an object unless ``as_list``, several as a list."""
    if path is not None:
        write_text(path, json.dumps(reports if as_list or len(reports) != 1 else reports[0], indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename; ``-`` is standard output."""
    from gap_bioimage.files import replacing

    if str(path) == "-":
        sys.stdout.write(text)
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def print_table(report: dict[str, Any]) -> None:
    """Print one report as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in report.items():
        if value not in (None, {}):
            value = ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else value
            text = escape(f"{value:.4g}" if isinstance(value, float) else str(value))
            table.add_row(key.replace("_", " "), text, style="bold" if key in ("verdict", "next") else None)
    Console().print(table)


@contextmanager
def progress_bar(quiet: bool, text: str) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar, unless quiet or not in a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        yield bar, bar.add_task(escape(text), total=None)


def with_flags(message: str) -> str:
    """Return a message of the library with its Python arguments as options of the command line."""
    message = re.sub(r"sum_frames\(movie, (\d+)\)", r"--sum-frames \1", message)

    def flag(match: re.Match[str]) -> str:
        return f"--{match[1].replace('_', '-')} {match[2] or (match[3] or '').lower()}".rstrip()

    return _OPTION.sub(flag, message)


def report_error(error: Exception) -> int:
    """Print an error as a sentence and return the exit code."""
    from gap_bioimage.errors import GapError

    text = " ".join(str(error).split())
    if isinstance(error, typer.Abort):
        return 130
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return 2
    if isinstance(error, _CLICK_ERRORS):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "gap-bioimage"
        text = " ".join(error.format_message().replace("Value error, ", "").split())
        text = f"{text.removeprefix('Invalid value: ').rstrip('.')}; see `{command} --help`"
    elif isinstance(error, OSError) and not isinstance(error, GapError):
        text = f"{error.filename or 'a file'}: {error.strerror or error}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory: {text}; give a smaller image or shape, or fewer samples"
    elif isinstance(error, (GapError, ValueError)):
        text = with_flags(str(error))
    else:
        text = f"{type(error).__name__}: {text[:300]} (run again with --debug to see where; please report it)"
    complain(text)
    return 2


@contextmanager
def left_out(image: Path, n_images: int, failed: list[Path]) -> Iterator[None]:
    """Report an error that concerns one of several images, which is left out and joins ``failed``."""
    from gap_bioimage.errors import ConfigError, GapError

    try:
        yield
    except (GapError, OSError, ValueError) as error:
        if n_images == 1 or isinstance(error, ConfigError):
            raise
        report_error(error)
        complain(f"{image} was left out")
        failed.append(image)


def keep_memory() -> None:
    """Let the process keep freed memory: requesting it again took a quarter of a network's time (glibc).

    Not for volumes, whose memory is limited: fragmentation would come on top.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(-4, 0)  # M_MMAP_MAX: no array gets its own mapping, which would be returned when freed
        mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD
        mallopt(-8, 1)  # M_ARENA_MAX: threads share freed memory
