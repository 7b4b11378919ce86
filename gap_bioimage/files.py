"""Results that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gap_bioimage.errors import GapError, OutputError


def check_place(path: Path, *, folder: bool = False) -> None:
    """See that a file, or a folder, can be written there, before the work that fills it."""
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder does not exist; create {path.parent} first")
    if path.exists() and not path.is_file() and not (folder and path.is_dir()):  # a rename would replace /dev/null, too
        told = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError(f"cannot write {path}: it is {told}, expected the name of a file; add a file name")


@contextmanager
def replacing(path: Path | str, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, of the same suffix, that becomes ``path`` when the block succeeds.

    Whatever stood at ``path`` stays untouched until then, also when the block fails or is killed. No system replaces a
    full ``folder`` in one step: one that stood there is moved aside in the instant before, and back if the new one
    cannot take its place. What the system refuses (disk full, no permission) is an OutputError.
    """
    path = Path(path)
    check_place(path, folder=folder)
    token = secrets.token_hex(4)
    temporary, aside = (path.with_name(f".{path.stem}.{word}-{token}{path.suffix}") for word in ("tmp", "old"))
    try:
        with refusals_told(path):
            yield temporary
            if path.is_dir():
                os.rename(path, aside)
            try:
                os.replace(temporary, path)
            except OSError:
                if aside.exists():
                    os.rename(aside, path)
                raise
            remove(aside)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def refusals_told(path: Path, hint: str = "free some space or choose a folder that you can write to") -> Iterator[None]:
    """Tell in a sentence, as an OutputError, what the system refuses while ``path`` is written."""
    try:
        yield
    except GapError:
        raise  # some of ours are OSErrors too, and already say what to do
    except OSError as error:
        # numpy's short writes have no error number; the disk is then full. HDF5 has a page of text for each number
        reason = os.strerror(error.errno).lower() if error.errno else f"no space left ({' '.join(str(error).split())})"
        raise OutputError(f"cannot write {path}: {reason}; {hint}") from error
