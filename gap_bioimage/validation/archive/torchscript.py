"""Look into a TorchScript archive without loading it: operators, parameters, devices and modes, and old engines."""

import functools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gap_bioimage.validation.archive.entries import open_zip

ENGINE = "libtorch 1.13"  # the oldest engine that consumers still run
_TABLE = Path(__file__).with_name("operators_1_13.txt")
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[()\[\]{},]|[^\s()\[\]{},"]+', re.DOTALL)
_OPERATOR = re.compile(r"torch(?:\.autograd)?\.(?P<aten>\w+)|ops\.(?P<namespace>\w+)\.(?P<name>\w+)")
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_HINTS = {  # what an author wrote, where the operator's name does not say it
    "aten::_upsample_lanczos2d_aa": "F.interpolate or nn.Upsample, scripted by a recent torch",
    "aten::rms_norm": "RMSNorm",
    "aten::scaled_dot_product_attention": "attention",
}
# they take one axis in the old engine, and a list of axes in newer ones
_ONE_AXIS = {"aten::all", "aten::any", "aten::squeeze", "aten::squeeze_"}
# newer torch.stft passes its last argument by another position than the old one, with as many arguments
_STFT_IN_PYTHON = ("aten::stft", 9)
# types of tensors, as the code numbers them, that the old engine lacks; it loads the code, but cannot run it
_NEW_DTYPES = {
    "23": "float8_e5m2", "24": "float8_e4m3fn", "25": "float8_e5m2fnuz", "26": "float8_e4m3fnuz", "27": "uint16",
    "28": "uint32", "29": "uint64",
}  # fmt: skip
_TAKES_DTYPE = {"aten::to", "aten::view"}  # as a positional argument
# norms over all pixels; a layer_norm over pixels needs a fixed size, and any other sees the channels only
_NORMS = {"aten::group_norm": "group_norm", "aten::instance_norm": "instance_norm"}
_MAX_CODE_BYTES = 32 * 2**20
_MAX_PICKLE_BYTES = 8 * 2**20
_PARAMETERS = re.compile(r"^\s*__parameters__ = \[\s*[^\]\s]", re.MULTILINE)
_GENERATOR = re.compile(r"(?:: |\[|, |-> )Generator(?![\w(])")  # in annotations: a network may well have such a class
# any mention, since code that means harm need not be written the way that torch writes it
_FILES = re.compile(r"\b(?:save|from_file)\b|\bgetattr\s*\([^)]*\\")
# a text in a pickle: its length, and the name of a device
_ACCELERATOR = re.compile(rb"X(.)\0\0\0((?:cuda|mps|xpu|hip)(?::\d+)?)", re.DOTALL)


@dataclass
class Call:
    """One call of an operator: its name with namespace (``aten::conv2d``), and the first word of each argument."""

    name: str
    arguments: list[str] = field(default_factory=list)
    keywords: dict[str, str] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """The name as TorchScript code writes it."""
        return self.name.replace("aten::", "torch.").replace("::", ".")


def calls(text: str) -> Iterator[Call]:
    """Every call of an operator in serialised TorchScript.

    A small reader rather than Python's own parser, which anybody's deeply nested code could bring down. Strings
    are skipped: an error message may well quote an operator.
    """
    stack: list[tuple[str, Call]] = [("", Call(""))]  # what closes a bracket, and whose arguments it holds
    is_new, keyword, word, end = True, "", "", -1
    for match in _PART.finditer(text):
        part = match[0]
        if part == ",":
            is_new, word = True, ""
            continue
        if part == stack[-1][0]:
            _, call = stack.pop()
            is_new, word = False, ""
            if call.name:
                yield call
            continue
        if is_new:
            keyword, first = _split_keyword(part)
            call = stack[-1][1]
            if keyword:
                call.keywords[keyword] = first
            else:
                call.arguments.append(first)
        if part in _CLOSES:
            # an opening bracket right after a name is a call: torch.add(
            name = _operator(word) if part == "(" and match.start() == end else ""
            stack.append((_CLOSES[part], Call(name)))
            is_new, word = True, ""
            continue
        is_new, word, end = False, part, match.end()


def _split_keyword(part: str) -> tuple[str, str]:
    keyword, equals, value = part.partition("=")
    return (keyword, value) if equals and keyword.isidentifier() and not value.startswith("=") else ("", part)


def _operator(word: str) -> str:
    """The operator that a word names, with its namespace; empty if it names something else."""
    match = _OPERATOR.fullmatch(_split_keyword(word)[1])
    if match is None:
        return ""
    return f"aten::{match['aten']}" if match["aten"] else f"{match['namespace']}::{match['name']}"


@functools.cache
def known_operators() -> dict[str, tuple[tuple[float, frozenset[str]], ...]]:
    """The old engine's operators, by name: of each way to call it the number of arguments, and the keywords."""
    found = {}
    for line in _TABLE.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            name, *written = line.split()
            ways = (way.split("+") for way in written)
            found[name] = tuple((float(count.replace("*", "inf")), frozenset(keys)) for count, *keys in ways)
    return found


def problem_of(call: Call) -> str:
    """Why the old engine does not load code with this call; empty if it does.

    The engine compiles all code when it loads it, dead branches too. Names, numbers of arguments and keywords are
    compared; types are not, so that a rare model still does not load.
    """
    signatures = known_operators().get(call.name)
    if signatures is None:
        hint = f" ({_HINTS[call.name]})" if call.name in _HINTS else ""
        return f"the code uses {call.written}{hint}, which {ENGINE} does not have"
    lists_axes = call.name in _ONE_AXIS and call.arguments[1:2] == ["["]
    is_new_stft = (call.name, len(call.arguments)) == _STFT_IN_PYTHON
    fits = any(len(call.arguments) <= most and call.keywords.keys() <= keywords for most, keywords in signatures)
    if lists_axes or is_new_stft or not fits:
        return f"the code calls {call.written} with arguments that {ENGINE} does not take"
    return ""


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
    def unportable(self) -> dict[str, str]:
        """What the oldest engine does not know, though the code may never reach it: by name, what that means."""
        found: dict[str, str] = {}
        for call in calls(self.text):
            if problem := problem_of(call):
                found.setdefault(call.written, problem)
            given = [call.keywords.get("dtype", ""), *(call.arguments[1:3] if call.name in _TAKES_DTYPE else [])]
            for dtype in (_NEW_DTYPES[number] for number in given if number in _NEW_DTYPES):
                found[dtype] = f"the code makes {dtype} tensors, which {ENGINE} does not have"
        if _GENERATOR.search(self.text):
            found["Generator"] = f"the code takes a random generator, which {ENGINE} cannot read"
        return found

    @cached_property
    def _operators(self) -> set[str]:
        return {call.name for call in calls(self.text)}

    @property
    def norms(self) -> list[str]:
        """Operators that normalise over all pixels of what they are given."""
        return sorted(_NORMS[name] for name in self._operators & _NORMS.keys())

    @property
    def touches_files(self) -> bool:
        """Whether it may call operators that read or write files; TorchScript has some."""
        return _FILES.search(self.text) is not None

    @property
    def devices(self) -> list[str]:
        """Devices that are written into the code, e.g. ``cuda:0``."""
        return sorted(set(re.findall(r'torch\.device\("([^"]+)"\)', self.text)))


def read_code(path: Path) -> TorchScriptCode:
    """Read a TorchScript file's code as text, without unpickling; `ValueError` if it is no TorchScript archive."""
    try:
        with open_zip(path) as archive:
            entries = archive.infolist()
            code = [entry for entry in entries if "/code/" in entry.filename and entry.filename.endswith(".py")]
            if not code:
                raise ValueError(f"{path.name} holds no TorchScript code; save it with torch.jit.save.")
            if sum(entry.file_size for entry in code) > _MAX_CODE_BYTES:
                raise ValueError(f"{path.name} holds more than {_MAX_CODE_BYTES >> 20} MiB of code.")
            text = "\n".join(archive.read(entry).decode("utf-8", "replace") for entry in code)
            pickles = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
            saved = [archive.read(entry) for entry in pickles if entry.file_size <= _MAX_PICKLE_BYTES]
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path.name} is not a TorchScript archive; save it with torch.jit.save.") from error
    n_constants = sum(re.search(r"/constants/\d+$", entry.filename) is not None for entry in entries)
    places = {name for pickle in saved for length, name in _ACCELERATOR.findall(pickle) if ord(length) == len(name)}
    return TorchScriptCode(text, n_constants, tuple(sorted(name.decode() for name in places)))
