"""Files of weights, read as data: no code in them is run.

Checkpoints hold more than tensors: settings, paths, numbers of numpy, the names of callbacks. Those that Lightning and
the original GAP code are known to leave behind are read as plain values by what stands in for them here; nothing of
the named packages is imported. Every other global is refused by torch.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import threading
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from gap_bioimage.errors import CheckpointError

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

_LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning")
_SETTINGS = (
    *(f"{package}.utilities.parsing.AttributeDict" for package in _LIGHTNING),
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)
_CALLBACKS = (
    "model_checkpoint.ModelCheckpoint",
    "early_stopping.EarlyStopping",
    "lr_monitor.LearningRateMonitor",
    "progress.ProgressBar",
    "progress.TQDMProgressBar",
)
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_NUMBERS = {
    f"{kind}{size}": code
    for kind, codes in (("i", "bhiq"), ("u", "BHIQ"))
    for size, code in zip((1, 2, 4, 8), codes, strict=True)
} | {"b1": "?", "f2": "e", "f4": "f", "f8": "d"}
"""Names of numpy's types, and of the same ones in ``struct``."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
"""Names of types in safetensors."""
_LOCK = threading.Lock()  # torch keeps one list of what is allowed


class _Values:
    """An object with attributes, such as argparse's Namespace."""


class _NumberType:
    """A dtype of numpy, of which only name and byte order matter."""

    def __init__(self, name: str = "", *_: Any) -> None:
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def _number(kind: Any = None, data: Any = b"") -> Any:
    """Read a number of numpy from its bytes."""
    code = _NUMBERS.get(kind.name) if isinstance(kind, _NumberType) else None
    data = data.encode("latin1") if isinstance(data, str) else data
    if code is None or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a number of numpy that is none")
    return struct.unpack(kind.order + code, data)[0]


def _stand_in(name: str, like: type, make: Callable[..., Any] | None = None) -> type:
    """Return a class that torch takes for the global ``name``; ``make`` returns plain values instead of instances."""
    module, _, last = name.rpartition(".")
    space: dict[str, Any] = {"__module__": module, "__qualname__": last}
    if make is not None:
        space["__new__"] = lambda cls, *arguments: make(*arguments)
    return type(last, (like,), space)


def _stand_ins() -> list[Any]:
    settings = [_stand_in(name, object, lambda *_: OrderedDict()) for name in _SETTINGS]
    callbacks = [_stand_in(f"{package}.callbacks.{name}", object) for package in _LIGHTNING[:2] for name in _CALLBACKS]
    paths = [_stand_in(f"pathlib.{name}", object, lambda *parts: "/".join(map(str, parts))) for name in _PATHS]
    numbers = [
        _stand_in(f"numpy.{core}.multiarray.scalar", object, lambda *arguments: _number(*arguments))
        for core in ("core", "_core")
    ]
    return [
        *settings,
        *callbacks,
        *paths,
        *numbers,
        _stand_in("argparse.Namespace", _Values),
        _stand_in("numpy.dtype", _NumberType),
    ]


_ALLOWED = _stand_ins()


def read_weights(source: Path | io.BytesIO, name: str) -> dict[Any, Any]:
    """Read a dictionary written by torch.save without running code from it.

    Parameters
    ----------
    source
        The file.
    name
        What errors call it.

    Raises
    ------
    CheckpointError
        If it is not one, or holds objects that could run code.
    """
    serialization: Any = torch.serialization
    try:
        with _LOCK:
            serialization.add_safe_globals(_ALLOWED)
            try:
                content = torch.load(source, map_location="cpu", weights_only=True)
            finally:
                _forget()
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
        OSError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(_refusal(name, error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, expected a checkpoint's dictionary")
    return content


def plain_settings(settings: Any) -> dict[Any, Any]:
    """Return stored hyper_parameters, a dictionary or a Namespace, as a dictionary; empty if they are neither."""
    if isinstance(settings, _Values):
        return dict(vars(settings))
    return dict(settings) if isinstance(settings, dict) else {}


def _forget() -> None:
    """Take the stand-ins off torch's list, and leave what others have put there."""
    serialization: Any = torch.serialization
    others = [item for item in serialization.get_safe_globals() if item not in _ALLOWED]
    serialization.clear_safe_globals()
    serialization.add_safe_globals(others)


def _refusal(name: str, error: Exception) -> str:
    text = (
        f"{name} is not a checkpoint that can be read safely; expected one written by gap-bioimage or the "
        "original GAP code"
    )
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return text
    return f"{text}, but it names {found[1]}, which may run code: save the network's state_dict() alone"


def read_safetensors(path: Path) -> dict[Any, Any]:
    """Read a file of the safetensors format: the length of a header, the header (JSON), the numbers.

    Raises
    ------
    CheckpointError
        If it is not one.
    """
    try:
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        return {name: _tensor(entry, content[start:]) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError):
        raise CheckpointError(f"{path} is not a whole file of the safetensors format; copy or save it again") from None


def _tensor(entry: Any, numbers: bytes) -> torch.Tensor:
    dtype = _DTYPES[entry["dtype"]]
    first, stop = entry["data_offsets"]
    if not 0 <= first < stop <= len(numbers):
        raise ValueError
    return torch.frombuffer(bytearray(numbers[first:stop]), dtype=dtype).reshape(entry["shape"])
