"""Inspect a TorchScript archive without loading it: operators, parameters, devices, and support by old engines."""

import ast
import functools
import re
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gap_bioimage.validation.archive.package import open_zip
from gap_bioimage.validation.check import NotApplicable

ENGINE = "libtorch 1.13"  # the oldest engine that consumers still run
_TABLE = Path(__file__).with_name("operators_1_13.txt")
# operators that take one axis in the old engine, and a list of axes in newer ones
_ONE_AXIS = {"aten::all", "aten::any", "aten::squeeze", "aten::squeeze_"}
# newer torch.stft passes its last argument in another position than the old one, with the same number of arguments
_STFT_IN_PYTHON = ("aten::stft", 9)
# dtypes that the old engine lacks, by their numbers in the code; it loads the code, but cannot run it
_NEW_DTYPES = {
    23: "float8_e5m2", 24: "float8_e4m3fn", 25: "float8_e5m2fnuz", 26: "float8_e4m3fnuz", 27: "uint16", 28: "uint32",
    29: "uint64",
}  # fmt: skip
_TAKES_DTYPE = {"aten::to", "aten::view"}  # as a positional argument
# norms over all pixels; layer_norm is not among them: over pixels it needs a fixed size, else it covers channels only
_NORMS = {"aten::group_norm", "aten::instance_norm"}
_MAX_BYTES = 8 * 2**20  # of code, and of pickles
_PARAMETERS = re.compile(r"^\s*__parameters__ = \[\s*[^\]\s]", re.MULTILINE)
_GENERATOR = re.compile(r"(?:: |\[|, |-> )Generator(?![\w(])")  # in annotations: classes may have this name
# any mention, since malicious code need not look like code written by torch
_FILES = re.compile(r"\b(?:save|from_file)\b|\bgetattr\s*\([^)]*\\")
# a text in a pickle: its length, and the name of a device
_ACCELERATOR = re.compile(rb"X(.)\0\0\0((?:cuda|mps|xpu|hip)(?::\d+)?)", re.DOTALL)


def operator_of(call: ast.Call) -> str:
    """Return the operator of a call, with its namespace (``aten::conv2d``); empty if something else is called."""
    match call.func:
        case ast.Attribute(ast.Name("torch"), name) | ast.Attribute(ast.Attribute(ast.Name("torch"), "autograd"), name):
            return f"aten::{name}"
        case ast.Attribute(ast.Attribute(ast.Name("ops"), namespace), name):
            return f"{namespace}::{name}"
    return ""


@functools.cache
def known_operators() -> dict[str, tuple[tuple[float, frozenset[str]], ...]]:
    """Return the old engine's operators by name: the number of arguments and the keywords of each overload."""
    operators = {}
    for line in _TABLE.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            name, *written = line.split()
            overloads = (overload.split("+") for overload in written)
            operators[name] = tuple((float(n.replace("*", "inf")), frozenset(keys)) for n, *keys in overloads)
    return operators


def _accepts(name: str, call: ast.Call) -> bool:
    """Return whether the old engine has a variant of an operator for this call.

    Numbers of arguments and keywords are compared. Types are not, so a model may, in rare cases, still not load.
    """
    keywords = {keyword.arg for keyword in call.keywords}
    lists_axes = name in _ONE_AXIS and any(isinstance(axes, ast.List) for axes in call.args[1:2])
    fits = any(len(call.args) <= most and keywords <= accepted for most, accepted in known_operators()[name])
    return fits and not lists_axes and (name, len(call.args)) != _STFT_IN_PYTHON


@dataclass(frozen=True)
class TorchScriptCode:
    """The code of a TorchScript archive."""

    text: str  # all its serialised Python, concatenated
    n_constants: int  # tensors stored as constants
    saved_on: tuple[str, ...] = ()  # accelerators that hold its tensors, e.g. cuda:0

    @property
    def has_parameters(self) -> bool:
        """Whether any module has parameters; ``torch.jit.freeze`` turns them all into constants."""
        return _PARAMETERS.search(self.text) is not None

    @cached_property
    def _calls(self) -> list[tuple[str, ast.Call]]:
        """All calls of operators; torch writes its code as Python that is never deeply nested."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about invalid escapes
                tree = ast.parse(self.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            text = "the TorchScript code cannot be parsed, unlike code written by torch"
            raise NotApplicable(text, "Save it again with torch.jit.save.") from None
        named = [(operator_of(node), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        return [(name, call) for name, call in named if name]

    @cached_property
    def unportable(self) -> dict[str, str]:
        """Problems of the code with the oldest engine, in dead branches too, by the name of the operator or dtype."""
        problems: dict[str, str] = {}
        for name, call in self._calls:
            python = name.replace("aten::", "torch.").replace("::", ".")
            if name not in known_operators():
                problems[python] = f"the code uses {python}, which {ENGINE} does not have"
            elif not _accepts(name, call):
                problems[python] = f"the code calls {python} with arguments that {ENGINE} does not accept"
            dtypes = [keyword.value for keyword in call.keywords if keyword.arg == "dtype"]
            dtypes += call.args[1:3] if name in _TAKES_DTYPE else []
            numbers = [value.value for value in dtypes if isinstance(value, ast.Constant)]
            for dtype in (_NEW_DTYPES[n] for n in numbers if isinstance(n, int) and n in _NEW_DTYPES):
                problems[dtype] = f"the code creates {dtype} tensors, which {ENGINE} does not have"
        if _GENERATOR.search(self.text):
            problems["Generator"] = f"the code takes a random generator, which {ENGINE} cannot read"
        return problems

    @property
    def norms(self) -> list[str]:
        """Operators that normalise over all pixels of their input."""
        return sorted({name.removeprefix("aten::") for name, _ in self._calls if name in _NORMS})

    @property
    def touches_files(self) -> bool:
        """Whether the code may call TorchScript's operators that read or write files."""
        return _FILES.search(self.text) is not None

    @property
    def devices(self) -> list[str]:
        """Devices written into the code, e.g. ``cuda:0``."""
        return sorted(set(re.findall(r'torch\.device\("([^"]+)"\)', self.text)))


def read_code(path: Path) -> TorchScriptCode:
    """Read a TorchScript file's code as text, without unpickling; `ValueError` if it is not a TorchScript archive."""
    try:
        with open_zip(path) as archive:
            entries = archive.infolist()
            code = [entry for entry in entries if "/code/" in entry.filename and entry.filename.endswith(".py")]
            if not code:
                raise ValueError(f"{path.name} holds no TorchScript code; save it with torch.jit.save.")
            if sum(entry.file_size for entry in code) > _MAX_BYTES:
                raise ValueError(f"{path.name} holds more than {_MAX_BYTES >> 20} MiB of code.")
            text = "\n".join(archive.read(entry).decode("utf-8", "replace") for entry in code)
            pickles = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
            saved = [archive.read(entry) for entry in pickles if entry.file_size <= _MAX_BYTES]
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path.name} is not a TorchScript archive; save it with torch.jit.save.") from error
    n_constants = sum(re.search(r"/constants/\d+$", entry.filename) is not None for entry in entries)
    places = {name for pickle in saved for length, name in _ACCELERATOR.findall(pickle) if ord(length) == len(name)}
    return TorchScriptCode(text, n_constants, tuple(sorted(name.decode() for name in places)))
