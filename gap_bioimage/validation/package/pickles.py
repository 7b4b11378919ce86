"""Read what a pickle would import when it is loaded, without loading it.

A pickle is a program: it names functions and classes (its globals) and calls them. What torch.load accepts with
``weights_only=True`` is a short list of globals; anything else in a model's weights is code.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.package.entries import none_of, open_zip, shown
from gap_bioimage.validation.package.references import files_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gap_bioimage.validation.checks import Check
    from gap_bioimage.validation.package.archive import Package

MAX_PICKLE_BYTES = 64 * 2**20
MAX_OPCODES = 1_000_000
"""In all pickles of a package together; a state_dict takes about 60 per tensor."""
_MAX_PICKLES = 100

_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle")
_SHARED_SUFFIXES = (".ckpt", ".bin")
"""Of pickles, and of other programs' files too."""
_LEGACY_PICKLES = 5
"""Files of torch before 1.6 are five pickles in a row, followed by raw numbers."""
_NO_ZIP = "is damaged: it cannot be unpacked"
_BREAKS_OFF = "is a pickle that breaks off"
_FIX_PICKLE = (
    "Save a plain state_dict with torch.save(model.state_dict(), ...), not the model, an optimizer or arguments."
)
_FIX_DAMAGED = "Download the file again, or write it again with torch.save(model.state_dict(), ...)."
_FIX_TORCHSCRIPT = "Download the file again, or write it again with torch.jit.save."

_PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
_ZIP_MAGIC = b"PK\x03\x04"

_SAFE = re.compile(
    r"""
      collections\.(OrderedDict|Counter)
    | (builtins|__builtin__)\.(set|frozenset|list|dict|tuple|int|float|bool|str|bytes|bytearray|complex|slice|range)
    | _codecs\.encode
    | torch\.(cuda\.)?(sparse\.)?[A-Z]\w*(Storage|Tensor)
    | torch\.(Tensor|Size|device|dtype|nn\.parameter\.(Parameter|Buffer))
    | torch\.(b?float\d+\w*|complex\d+|q?u?int\d+(x\d)?|bits\d+(x\d)?|bool|half|double|float|long|short|int|strided)
    | torch\.per_(tensor|channel)_(affine|symmetric|affine_float_qparams)
    | torch\.storage\.[A-Z]\w*Storage
    | torch\._tensor\._rebuild_from_type_v2
    | torch\.serialization\._get_layout
    | torch\._utils\._rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?|(q|sparse_|nested_)tensor|wrapper_subclass
        |meta_tensor_no_storage|device_tensor_from_(cpu_tensor|numpy))
    | numpy\.(dtype|ndarray|dtypes\.\w+DType|_?core\.multiarray\.(_reconstruct|scalar))
    """,
    re.VERBOSE,
)
"""What ``torch.load(weights_only=True)`` builds by itself, and what arrays and numbers of numpy are built from."""

_TORCHSCRIPT = re.compile(r"__torch__(\.\w+)+|torch\.jit\._pickle\.\w+")
"""Names in TorchScript archives: types of the archive's own code, which libtorch's reader looks up there only."""


class DamagedPickleError(ValueError):
    """A pickle that ends early, or that does what no unpickler could follow."""


class EndlessPickleError(ValueError):
    """Pickles that are too long to be looked through."""


@dataclass
class Scan:
    """Globals found so far, and how much may still be looked at.

    Parameters
    ----------
    opcodes_left, pickles_left
        Budget.
    globals
        ``module.name`` of everything that would be imported, in order; ``?`` where that cannot be told.
    """

    opcodes_left: int = MAX_OPCODES
    pickles_left: int = _MAX_PICKLES
    globals: dict[str, None] = field(default_factory=dict)


def scan_pickle(file: io.BytesIO, scan: Scan) -> None:
    """Add the globals of one pickle to a scan, and leave the file behind its end.

    The pickle machine's stack is followed with strings in it, since newer protocols take the names from there.

    Raises
    ------
    DamagedPickleError
        If it breaks off; what it names up to there would already have been imported.
    EndlessPickleError
        If the budget is spent.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            scan.opcodes_left -= 1
            if scan.opcodes_left < 0:
                raise EndlessPickleError(f"its pickles have more than {MAX_OPCODES} steps")
            for name in machine.step(opcode, argument):
                scan.globals[name] = None
    except EndlessPickleError:
        raise
    # pickletools raises many kinds, and an empty stack is an IndexError
    except Exception as error:
        raise DamagedPickleError(str(error)) from None


class _Mark:
    """The stack's own kind of bracket."""


class _Machine:
    """Follows a pickle's stack as far as the strings on it matter; all other values are None."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> Iterator[str]:
        """Do one step, and yield the globals that it imports."""
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield "?"  # a number that some other program registered
        elif name == "STACK_GLOBAL":
            module, attribute = self.stack[-2:]
            yield f"{module}.{attribute}" if isinstance(module, str) and isinstance(attribute, str) else "?"
        self._move(opcode, argument)

    def _move(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "MARK":
            self.stack.append(_Mark)
        else:
            before = opcode.stack_before
            if pickletools.markobject in before:
                while self.stack.pop() is not _Mark:
                    pass
                before = before[: before.index(pickletools.markobject)]
            for _ in before:
                self.stack.pop()
            self.stack += [argument if isinstance(argument, str) else None] * len(opcode.stack_after)


def pickle_check(package: Package) -> Check:
    """Whether all pickles of a package hold plain weights: the check ``archive.pickles``."""
    scan, problems, n_scanned = Scan(), [], 0
    torchscript = _torchscript_names(package.rdf)
    fixes: dict[str, None] = {}
    for name in files_of(package):
        path = package.file(name)
        if path is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickletools, about odd texts
                found = _problems_of(path, scan)
        except EndlessPickleError as error:
            problems.append(f"{shown(name)}: {error}")
            fixes[_FIX_PICKLE] = None
            break
        except OSError as error:
            problems.append(f"{shown(name)} cannot be read: {error.strerror or error}")
            fixes[_FIX_DAMAGED] = None
            continue
        n_scanned += found is not None
        for problem, fix in _told(found or [], PurePosixPath(name) in torchscript):
            problems.append(f"{shown(name)} {problem}")
            fixes[fix] = None
    good = f"{n_scanned} files with pickles hold plain weights" if n_scanned else "there are no pickles"
    return none_of("archive.pickles", problems, good, " ".join(fixes))


def _torchscript_names(rdf: dict[str, Any]) -> set[PurePosixPath]:
    weights = rdf.get("weights")
    entry = weights.get("torchscript") if isinstance(weights, dict) else None
    source = entry.get("source") if isinstance(entry, dict) else None
    return {PurePosixPath(source)} if isinstance(source, str) else set()


def _told(problems: list[str], is_torchscript: bool) -> Iterator[tuple[str, str]]:
    """Problems of one file with their fixes; a damaged file is to be downloaded again, whatever was in it."""
    for problem in problems:
        if not problem.startswith((_NO_ZIP, _BREAKS_OFF)):
            yield problem, _FIX_PICKLE
        elif is_torchscript:
            yield "is damaged, or no TorchScript file", _FIX_TORCHSCRIPT
        else:
            yield problem, _FIX_DAMAGED


def _problems_of(path: Path, scan: Scan) -> list[str] | None:
    """What is wrong with a file's pickles; None if it holds none."""
    suffix = path.suffix.lower()
    is_weights = suffix in (*_SUFFIXES, *_SHARED_SUFFIXES)
    with path.open("rb") as file:
        start = file.read(len(_ZIP_MAGIC))
    if start == _ZIP_MAGIC:
        return _problems_of_zip(path, scan, is_weights)
    is_pickle = _PICKLE_MAGIC.match(start) is not None
    if not is_pickle and not is_weights:
        return None
    with path.open("rb") as file:
        content = file.read(MAX_PICKLE_BYTES + 1)
    here = Scan(scan.opcodes_left, scan.pickles_left)
    broken = _scan_in_a_row(content, here)
    scan.opcodes_left, scan.pickles_left = here.opcodes_left, here.pickles_left
    problems = _named(here.globals, torchscript=False)
    # Old pickles begin like any text. Where pickletools gives up, an unpickler might still go on.
    if broken and (suffix in _SUFFIXES or (is_pickle and is_weights)):
        problems.append(f"{_BREAKS_OFF} ({shown(broken)})")
    return problems if is_pickle or here.globals or suffix in _SUFFIXES else None


def _scan_in_a_row(content: bytes, scan: Scan) -> str | None:
    """Scan a file's pickles; the reason why the first one breaks off, or None."""
    file = io.BytesIO(content)
    for index in range(_LEGACY_PICKLES):
        if index and not _PICKLE_MAGIC.match(content[file.tell() : file.tell() + 2]):
            break  # raw numbers follow
        try:
            _scan_one(file, scan)
        except DamagedPickleError as error:
            return None if index else str(error)
    return None


def _scan_one(file: io.BytesIO, scan: Scan) -> None:
    scan.pickles_left -= 1
    if scan.pickles_left < 0:
        raise EndlessPickleError(f"there are more than {_MAX_PICKLES} pickles in the package")
    scan_pickle(file, scan)


def _problems_of_zip(path: Path, scan: Scan, is_weights: bool) -> list[str] | None:
    try:
        with open_zip(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
            pickled = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".pkl")]
            torchscript = any("/code/" in name for name in names) and any(n.endswith("/constants.pkl") for n in names)
            here = Scan(scan.opcodes_left, scan.pickles_left)
            for entry in pickled:
                with archive.open(entry) as file:
                    content = file.read(MAX_PICKLE_BYTES + 1)
                if len(content) > MAX_PICKLE_BYTES:
                    return [f"holds {shown(entry.filename)} of more than {MAX_PICKLE_BYTES >> 20} MiB"]
                _scan_one(io.BytesIO(content), here)
    except (EndlessPickleError, OSError):
        raise
    except Exception as error:  # zipfile and the decompressors raise whatever they stumble over
        return [f"{_NO_ZIP} ({shown(str(error))})"] if is_weights else None
    scan.opcodes_left, scan.pickles_left = here.opcodes_left, here.pickles_left
    return _named(here.globals, torchscript=torchscript) if pickled else None


def _named(found: dict[str, None], *, torchscript: bool) -> list[str]:
    unsafe = [
        name for name in found if not _SAFE.fullmatch(name) and not (torchscript and _TORCHSCRIPT.fullmatch(name))
    ]
    if not unsafe:
        return []
    more = f" and {len(unsafe) - 3} more" if len(unsafe) > 3 else ""
    named = ", ".join("names that cannot be told" if name == "?" else shown(name) for name in unsafe[:3])
    return [f"is a pickle that calls or builds {named}{more}, which is code and not weights"]
