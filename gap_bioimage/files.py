"""Results that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gap_bioimage.errors import GapError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_place(path: Path) -> None:
    """See that a file can be written there, before the work that fills it.

    Raises
    ------
    OutputError
        If the folder does not exist, or ``path`` is a folder.
    """
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder does not exist; create {path.parent} first")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder, expected the name of a file; add a file name")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block succeeds.

    Whatever stood at ``path`` stays untouched until then, also when the block fails or is killed.

    Parameters
    ----------
    path
        The file to write. The temporary path has the same suffix, so that writers which look at it agree.

    Yields
    ------
    Path
        Where to write; it does not exist yet.

    Raises
    ------
    OutputError
        If the folder does not exist, ``path`` is a folder, or the system refuses to write (disk full, no
        permission).
    """
    path = Path(path)
    check_place(path)
    with _written(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes the folder ``path`` when the block succeeds.

    No system replaces a full folder in one step. A folder that stood there is moved aside in the instant before, back
    if the new one cannot take its place, and removed after it; when the block fails or is killed it stays.

    Parameters
    ----------
    path
        The folder to write, in a folder that exists.

    Yields
    ------
    Path
        Where to write; it does not exist yet.

    Raises
    ------
    OutputError
        If the system refuses to write (disk full, no permission).
    """
    with _written(path) as temporary:
        yield temporary
        aside = _beside(path, "old")
        if path.is_dir():
            os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            if aside.exists():
                os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{path.stem}.{word}-{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, gone afterwards; what the system refuses is told in a sentence."""
    temporary = _beside(path, "tmp")
    try:
        yield temporary
    except GapError:
        raise  # some of ours are OSErrors too, and already say what to do
    except OSError as error:
        # numpy's short writes have no error number; the disk is then full.
        reason = (error.strerror or f"no space left ({' '.join(str(error).split())})").lower()
        raise OutputError(
            f"cannot write {path}: {reason}; free some space or choose a folder that you can write to"
        ) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    path.unlink(missing_ok=True)
