"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gap_bioimage.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
    mark = secrets.token_hex(4)
    temporary = path.with_name(f".{path.stem}.tmp-{mark}{path.suffix}")
    aside = path.with_name(f".{path.stem}.old-{mark}{path.suffix}")
    try:
        yield temporary
        if path.is_dir():
            os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            if aside.exists():
                os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    except OutputError:
        raise
    except OSError as error:
        reason = (error.strerror or " ".join(str(error).split())).lower()
        raise OutputError(
            f"cannot write {path}: {reason}; free some space or choose a folder that you can write to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
