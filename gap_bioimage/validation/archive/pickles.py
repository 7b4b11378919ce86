"""What a pickle would import when it is loaded, as torch's own scan of it tells; nothing is loaded.

A pickle is a program: it names functions and classes and calls them. What ``torch.load(weights_only=True)`` accepts is
a short list of names, and a subset of the pickle language; anything else in weights is code, or does not load.
"""

from __future__ import annotations

import io
import pickletools
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gap_bioimage.validation.archive.entries import few, open_zip, shown
from gap_bioimage.validation.check import Outcome, Severity, archive_check, one_sentence

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.archive.package import Package

MAX_PICKLE_BYTES = 64 * 2**20
_MAX_PICKLES = 100
"""In a file."""
_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
_LEGACY_PICKLES = 5
"""Files of torch before 1.6 are five pickles in a row, followed by raw numbers."""
_MAGIC = re.compile(rb"\x80[\x02-\x05]")
_NUMPY = re.compile(r"numpy\.(dtype|ndarray|dtypes\.\w+|_?core\.multiarray\.(_reconstruct|scalar))|_codecs\.encode")
_TORCHSCRIPT = re.compile(r"__torch__(\.\w+)+|torch\.jit\._pickle\.\w+")
"""Types of a TorchScript archive's own code, which libtorch's reader looks up there only."""

_FIX_CODE = (
    "Save a plain state_dict with torch.save(model.state_dict(), ...), not the model, an optimizer or arguments."
)
_FIX_DAMAGED = "Download the file again, or write it again"


class _PickleError(ValueError):
    """What is wrong with a file, and what to do about it."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.fix = fix


@archive_check("archive.pickles", Severity.BLOCKS, order=12, breaks="loading the weights could run anything",
               fix=f"{_FIX_CODE} Save TorchScript with torch.jit.save.")  # fmt: skip
def pickles(package: Package) -> Outcome:
    """Weights that are numbers, without code."""
    weights = _weights(package)
    problems: list[str] = []
    others: list[str] = []
    fixes: dict[str, None] = {}
    n_scanned = 0
    for name in package.named:
        path, weights_format = package.file(name), weights.get(PurePosixPath(name), "")
        if path is None:
            continue
        try:
            n_scanned += scan(path, weights_format)
        except _PickleError as error:
            (problems if weights_format else others).append(f"{shown(name)} {error}")
            fixes[error.fix] = None
        except OSError as error:
            problems.append(f"{shown(name)} cannot be read: {error.strerror or error}")
            fixes[f"{_FIX_DAMAGED}."] = None
    if problems or others:
        return Outcome("failed" if problems else "warning", few(problems + others), " ".join(fixes))
    good = "1 file with pickles holds" if n_scanned == 1 else f"{n_scanned} files with pickles hold"
    return Outcome("passed", f"{good} plain weights" if n_scanned else "there are no pickles")


def _weights(package: Package) -> dict[PurePosixPath, str]:
    """Formats of the weights files, by their names."""
    parts = ((reference.where.split("."), reference) for reference in package.references)
    return {
        PurePosixPath(reference.path): where[1]
        for where, reference in parts
        if len(where) == 3 and where[0] == "weights" and where[2] == "source"
    }


def scan(path: Path, weights_format: str) -> bool:
    """Whether a file holds pickles, all harmless; raises `_PickleError` where they are not, or say nothing."""
    with path.open("rb") as file:
        start = file.read(4)
    if weights_format == "torchscript" and start != b"PK\x03\x04":
        raise _damaged(weights_format, "it is not a zip")
    if start == b"PK\x03\x04":
        return _scan_zip(path, weights_format)
    is_pickle = _MAGIC.match(start) is not None
    if not is_pickle and (weights_format or path.suffix.lower() not in _SUFFIXES):
        if weights_format == "pytorch_state_dict":
            raise _damaged(weights_format, "it does not begin as torch.save writes it")
        return False
    with path.open("rb") as opened:
        content = io.BytesIO(opened.read(MAX_PICKLE_BYTES))
    for index in range(_LEGACY_PICKLES):
        if index and not _MAGIC.match(content.getvalue()[content.tell() : content.tell() + 2]):
            break
        _scan_pickle(content, weights_format, torchscript=False)
    return True


def _scan_zip(path: Path, weights_format: str) -> bool:
    try:
        with open_zip(path) as archive:
            names = archive.namelist()
            entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".pkl")]
            if any(entry.file_size > MAX_PICKLE_BYTES for entry in entries) or len(entries) > _MAX_PICKLES:
                raise _PickleError(f"holds more than {_MAX_PICKLES} pickles, or one that is too large", _FIX_CODE)
            contents = [archive.read(entry) for entry in entries]
    except (_PickleError, OSError):
        raise
    except Exception as error:  # zipfile and the decompressors raise whatever they stumble over
        if weights_format or path.suffix.lower() in _SUFFIXES:
            raise _damaged(weights_format, str(error)) from None
        return False
    is_script = any(name.endswith("/constants.pkl") for name in names)
    if weights_format == "torchscript" and contents and not is_script:
        text = "is a checkpoint saved by torch.save (a state_dict), not TorchScript, as which it is described"
        fix = (
            "Describe it under weights.pytorch_state_dict with its architecture, or save TorchScript (torch.jit.save)."
        )
        raise _PickleError(text, fix)
    if weights_format == "pytorch_state_dict" and is_script:
        text = "is TorchScript, not a state_dict, as which it is described"
        raise _PickleError(text, "Describe it under weights.torchscript, or save model.state_dict() with torch.save.")
    for content in contents:
        _scan_pickle(io.BytesIO(content), weights_format, torchscript=is_script)
    return bool(contents)


def _damaged(weights_format: str, why: str) -> _PickleError:
    if weights_format == "torchscript":
        return _PickleError("is damaged, or not a TorchScript file", f"{_FIX_DAMAGED} with torch.jit.save.")
    how = " with torch.save(model.state_dict(), ...)" if weights_format in ("", "pytorch_state_dict") else ""
    return _PickleError(f"is damaged: {one_sentence(why, 120)}", f"{_FIX_DAMAGED}{how}.")


def _scan_pickle(file: io.BytesIO, weights_format: str, *, torchscript: bool) -> None:
    from torch._weights_only_unpickler import _get_allowed_globals, get_globals_in_pkl

    start = file.tell()
    try:
        names = get_globals_in_pkl(file)
    except Exception as error:  # whatever it stumbles over: nobody can tell what such a pickle does
        if "Unsupported operand" in str(error):
            text = "is a pickle that torch.load(weights_only=True) does not read, so that it may hold anything"
            fix = "Save a plain state_dict with torch.save(model.state_dict(), ...), without pickle_protocol."
            raise _PickleError(text, fix) from None
        raise _damaged(weights_format, "its pickle breaks off") from None
    unknown = sorted(names - _get_allowed_globals().keys())
    unknown = [name for name in unknown if not (torchscript and _TORCHSCRIPT.fullmatch(name))]
    if unknown and all(map(_NUMPY.fullmatch, unknown)):
        if weights_format:
            held = "holds NumPy numbers or arrays beside the tensors, which torch.load(weights_only=True) refuses"
            raise _PickleError(held, f"Save the tensors alone: torch.save({_key_of_tensors(file, start)}, ...).")
    elif unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        named = ", ".join(map(shown, unknown[:3])) + more
        raise _PickleError(f"is a pickle that calls or builds {named}, which is code and not weights", _FIX_CODE)


def _key_of_tensors(file: io.BytesIO, start: int) -> str:
    """How one gets at the tensors of a checkpoint: the first key whose value is a mapping."""
    key = ""
    for opcode, argument, _ in pickletools.genops(file.getvalue()[start:]):
        if opcode.name == "BINUNICODE":
            key = str(argument)
        elif key and (opcode.name == "EMPTY_DICT" or argument == "collections OrderedDict"):
            return f"checkpoint[{key!r}]"
        elif "PUT" not in opcode.name:
            key = ""
    return "model.state_dict()"
