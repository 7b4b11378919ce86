"""A folder that keeps finished parts of long computations, which need not be repeated after an interruption."""

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

    The folder is created by the first ``save``; None keeps nothing. A folder with other files raises an OutputError.
    """

    def __init__(self, folder: str | Path | None, work: dict[str, Any]) -> None:
        self.folder, self.work = None if folder is None else Path(folder), work
        if self.folder is None or not self.folder.exists() or (self.folder / _LABEL).is_file():
            return
        # a crash before the label was written leaves only hidden files
        if not self.folder.is_dir() or any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise OutputError(f"{self.folder} is not a folder of unfinished work and would be removed; give a new one")

    def begin(self, **more: Any) -> None:
        """Add to the description of the work; remove the results of other work."""
        self.work |= more
        label = None if self.folder is None else self.folder / _LABEL
        if label is not None and label.is_file() and label.read_text(errors="replace") != self._described():
            self.remove()

    def _described(self) -> str:
        return json.dumps(self.work, sort_keys=True)

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Return the arrays saved under a name; None if there are none or they cannot be read."""
        if self.folder is None:
            return None
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None  # a file damaged by a crash is recomputed, with the same result

    def save(self, name: str, **arrays: NDArray[Any]) -> None:
        """Save arrays under a name; the file appears by rename."""
        if self.folder is None:
            return
        if not (self.folder / _LABEL).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / _LABEL) as temporary:
                temporary.write_text(self._described())
        with replacing(self.folder / f"{name}.npz") as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]  # mypy takes arrays for the flag of savez

    def count(self, prefix: str) -> int:
        """Return how many of ``prefix1``, ``prefix2``, ... were saved before the first missing one."""
        saved = set() if self.folder is None else {path.stem for path in self.folder.glob(f"{prefix}*.npz")}
        return next(number for number in itertools.count() if f"{prefix}{number + 1}" not in saved)

    def remove(self) -> None:
        """Remove the folder."""
        if self.folder is not None:
            remove(self.folder)


def fingerprint(*tensors: Tensor) -> str:
    """Return a hash of the values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
