"""Look into a TorchScript archive without loading it: its operators, parameters and devices."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAX_CODE_BYTES = 32 * 2**20
_PARAMETERS = re.compile(r"^\s*__parameters__ = \[\s*[^\]\s]", re.MULTILINE)

UNPORTABLE = {
    "_upsample_lanczos2d_aa": "F.interpolate or nn.Upsample, scripted by a recent torch",
    "rms_norm": "RMSNorm",
    "scaled_dot_product_attention": "scaled_dot_product_attention",
    "uint16": "uint16 tensors",
}
"""Operators and types that libtorch 2.0 and 1.13 do not know, though the code may never reach them."""


@dataclass(frozen=True)
class TorchScriptCode:
    """The code of a TorchScript archive.

    Parameters
    ----------
    text
        All its serialised Python, concatenated.
    n_constants
        Tensors stored as constants.
    """

    text: str
    n_constants: int

    @property
    def has_parameters(self) -> bool:
        """Whether any module has parameters; ``torch.jit.freeze`` turns them all into constants."""
        return _PARAMETERS.search(self.text) is not None

    @property
    def unportable(self) -> list[str]:
        """Names out of `UNPORTABLE` that the code mentions."""
        return [name for name in UNPORTABLE if re.search(rf"(?<![A-Za-z0-9]){name}\b", self.text)]

    @property
    def touches_files(self) -> bool:
        """Whether it calls operators that read or write files; TorchScript has some."""
        return re.search(r"\btorch\.(save|from_file)\(", self.text) is not None

    @property
    def devices(self) -> list[str]:
        """Devices that are written into the code, e.g. ``cuda:0``."""
        return sorted(set(re.findall(r'torch\.device\("([^"]+)"\)', self.text)))


def read_code(path: Path) -> TorchScriptCode:
    """Read a TorchScript file's code as text; nothing is executed or unpickled.

    Raises
    ------
    ValueError
        If the file is not a TorchScript archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            code = [entry for entry in entries if "/code/" in entry.filename and entry.filename.endswith(".py")]
            if not code:
                raise ValueError(f"{path.name} holds no TorchScript code; save it with torch.jit.save.")
            if sum(entry.file_size for entry in code) > _MAX_CODE_BYTES:
                raise ValueError(f"{path.name} holds more than {_MAX_CODE_BYTES >> 20} MiB of code.")
            text = "\n".join(archive.read(entry).decode("utf-8", "replace") for entry in code)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path.name} is not a TorchScript archive; save it with torch.jit.save.") from error
    constants = [entry for entry in entries if re.search(r"/constants/\d+$", entry.filename)]
    return TorchScriptCode(text, len(constants))
