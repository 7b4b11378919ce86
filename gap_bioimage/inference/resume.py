"""A folder for work that takes long: what is finished in it need not be done again."""

import hashlib
import itertools
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.errors import OutputError
from gap_bioimage.files import remove, replacing

_LABEL = "work.json"


class Unfinished:
    """Named arrays in a folder that belongs to one piece of work.

    The folder is made when something is saved; None keeps nothing. One that holds other things is an OutputError.
    """

    def __init__(self, folder: str | Path | None, work: dict[str, Any]) -> None:
        self.folder, self.work = None if folder is None else Path(folder), work
        if self.folder is None or not self.folder.exists() or (self.folder / _LABEL).is_file():
            return
        # of ours a crash leaves hidden files alone
        if not self.folder.is_dir() or any(not path.name.startswith(".") for path in self.folder.iterdir()):
            told = f"{self.folder} is there already and holds other things than unfinished work"
            raise OutputError(f"{told}, which would be removed; give a new folder")

    def begin(self, **more: Any) -> None:
        """Tell more of the work; throw away what other work left."""
        self.work |= more
        label = None if self.folder is None else self.folder / _LABEL
        if label is not None and label.is_file() and label.read_text(errors="replace") != self._told():
            self.remove()

    def _told(self) -> str:
        return json.dumps(self.work, sort_keys=True)

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Return what was saved under a name, None if nothing was or it cannot be read any more."""
        if self.folder is None:
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
        if not (self.folder / _LABEL).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / _LABEL) as temporary:
                temporary.write_text(self._told())
        with replacing(self.folder / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # mypy takes them for its flag

    def count(self, prefix: str) -> int:
        """Return how many of ``prefix1``, ``prefix2``, ... were saved, up to the first that is missing."""
        saved = set() if self.folder is None else {path.stem for path in self.folder.glob(f"{prefix}*.npz")}
        return next(number for number in itertools.count() if f"{prefix}{number + 1}" not in saved)

    def remove(self) -> None:
        """Remove the folder, because all is done."""
        if self.folder is not None:
            remove(self.folder)


def fingerprint(*tensors: Tensor) -> str:
    """Return a hash of tensors' values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
