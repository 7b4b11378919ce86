"""A folder for work that takes long: what is finished in it need not be done again."""

import hashlib
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
    """Named arrays in a folder that belongs to one piece of work; what other work left there is thrown away.

    The folder is made when something is saved; None keeps nothing. One that holds other things is an OutputError.
    """

    def __init__(self, folder: str | Path | None, work: dict[str, Any]) -> None:
        self.folder, self._label = None if folder is None else Path(folder), json.dumps(work, sort_keys=True)
        if self.folder is None or not self.folder.exists() or (self.folder / _LABEL).is_file():
            return
        # of ours a crash leaves hidden files alone
        if not self.folder.is_dir() or any(not path.name.startswith(".") for path in self.folder.iterdir()):
            told = f"{self.folder} is there already and holds other things than unfinished work"
            raise OutputError(f"{told}, which would be removed; give a new folder")

    def _file(self, name: str) -> Path | None:
        """Return where something is saved; None where nothing is, or by other work."""
        label = None if self.folder is None else self.folder / _LABEL
        ours = label is not None and label.is_file() and label.read_text(errors="replace") == self._label
        return None if label is None or not ours else label.with_name(f"{name}.npz")

    @property
    def begun(self) -> bool:
        """Whether anything of this work was saved."""
        return self._file("") is not None

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Return what was saved under a name, None if nothing was or it cannot be read any more."""
        if (file := self._file(name)) is None:
            return None
        try:
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None  # what a crash of the machine leaves is made again, and is the same

    def save(self, name: str, **arrays: NDArray[Any]) -> None:
        """Save arrays under a name, by rename."""
        if self.folder is None:
            return
        if self._file(name) is None:
            self.remove()
            self.folder.mkdir(parents=True)
            with replacing(self.folder / _LABEL) as temporary:
                temporary.write_text(self._label)
        with replacing(self.folder / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # mypy takes them for its flag

    def count(self, prefix: str) -> int:
        """Return how many of ``prefix1``, ``prefix2``, ... were saved, up to the first that is missing."""
        number = 0
        while (file := self._file(f"{prefix}{number + 1}")) is not None and file.exists():
            number += 1
        return number

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
