"""A folder for work that takes long: what is finished in it need not be done again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

_SECONDS_BETWEEN = 20.0


class Unfinished:
    """Named arrays in a folder that belongs to one piece of work.

    Parameters
    ----------
    folder
        Made when something is saved; None keeps nothing.
    work
        What the work consists of; what other work left in the folder is thrown away then.

    Attributes
    ----------
    found
        Whether an earlier call left something of the same work.
    """

    def __init__(self, folder: Path | None, work: dict[str, Any]) -> None:
        self.folder = folder
        self._saved_at = time.monotonic()
        self._label = json.dumps(work, sort_keys=True)
        self.found = folder is not None and self._is_ours(folder) and any(folder.glob("*.npz"))

    def _is_ours(self, folder: Path) -> bool:
        return _read(folder / "work.json") == self._label

    def _made(self, folder: Path) -> Path:
        """Return the folder, which is there and holds this work."""
        if not self._is_ours(folder):
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            with replacing(folder / "work.json") as temporary:
                temporary.write_text(self._label)
        return folder

    def load(self, name: str) -> Arrays | None:
        """Return what was saved under a name, None if nothing was or it cannot be read any more."""
        if self.folder is None or not self._is_ours(self.folder):
            return None
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None  # what a crash of the machine leaves is made again, and is the same

    def save(self, name: str, **arrays: NDArray[Any]) -> None:
        """Save arrays under a name, by rename."""
        if self.folder is None:
            return
        with replacing(self._made(self.folder) / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # mypy takes them for its flag
        self._saved_at = time.monotonic()

    def count(self, prefix: str) -> int:
        """Return how many of ``prefix1``, ``prefix2``, ... were saved, up to the first that is missing."""
        number = 0
        if self.folder is None or not self._is_ours(self.folder):
            return number
        while (self.folder / f"{prefix}{number + 1}.npz").exists():
            number += 1
        return number

    def is_time(self) -> bool:
        """Whether the last saving is long enough ago to save again."""
        return self.folder is not None and time.monotonic() - self._saved_at > _SECONDS_BETWEEN

    def remove(self) -> None:
        """Remove the folder, because all is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def fingerprint(*tensors: Tensor) -> str:
    """Return a hash of tensors' values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> str | None:
    return path.read_text(errors="replace") if path.is_file() else None
