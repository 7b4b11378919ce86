"""Atomic writing: results appear complete or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gap_bioimage.errors import GapError, OutputError


def check_output_path(path: Path, *, folder: bool = False) -> None:
    """Check that a file, or a folder, can be written to ``path``, before computing its content."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder does not exist; create {path.parent} first")
    if path.exists() and not path.is_file() and not (folder and path.is_dir()):  # a rename would replace even /dev/null
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError(f"cannot write {path}: it is {kind}, expected the name of a file; add a file name")


@contextmanager
def replacing(path: Path | str, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, with the same suffix, that is renamed to ``path`` if the block succeeds.

    Until then an existing ``path`` is left untouched, even if the block fails or is killed. No system replaces a full
    ``folder`` in one step: an existing one is moved aside just before, and moved back if the new one cannot take its
    place. Errors of the system (disk full, no permission) become an OutputError.
    """
    path = Path(path)
    check_output_path(path, folder=folder)
    token = secrets.token_hex(4)
    temporary, previous = (path.with_name(f".{path.stem}.{word}-{token}{path.suffix}") for word in ("tmp", "old"))
    try:
        with output_errors(path):
            yield temporary
            if path.is_dir():
                os.rename(path, previous)
            try:
                os.replace(temporary, path)
            except OSError:
                if previous.exists():
                    os.rename(previous, path)
                raise
            remove(previous)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; of a symbolic link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def output_errors(path: Path, hint: str = "free some space or choose a folder that you can write to") -> Iterator[None]:
    """Turn an error of the system while ``path`` is written into an OutputError of one sentence."""
    try:
        yield
    except GapError:
        raise  # may be an OSError too, and already states what to do
    except OSError as error:
        # numpy's short writes have no error number and mean a full disk; HDF5 errors have a number and a page of text
        reason = os.strerror(error.errno).lower() if error.errno else f"no space left ({' '.join(str(error).split())})"
        raise OutputError(f"cannot write {path}: {reason}; {hint}") from error
