"""Parse the description, unless it is harmful, and find the files that it names."""

import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from gap_bioimage.validation.check import BLOCKS, Check, declare, one_sentence

MAX_RDF_BYTES = 2**19  # the parser needs some seconds for this size
_MAX_MERGES = 10  # of mappings into others (<<), each of which may double the size
MAX_NODES = 20_000  # values that a description may expand to; the zoo's longest have a few hundred
MAX_DEPTH = 50
_LISTS = ("covers", "test_inputs", "test_outputs", "sample_inputs", "sample_outputs", "files")  # of file names
_FREE_FIELDS = ("config", "cite", "badges", "training_data", "parent")  # of free content, or about other resources
_UTF_8 = "Save the description as UTF-8 text."
_PLAIN = "Write the description again, with plain texts, numbers and lists."
_NO_ALIASES = "Write the description without aliases: replace each * by the value that it refers to, and remove each &."
_NESTED = f"is refused: it is nested more than {MAX_DEPTH} levels deep, or an alias contains itself"

RDF = declare(
    "archive.rdf", "archive", BLOCKS, order=6, asks="A description that can be read.",
    breaks="programs cannot tell what the package is",
    fix="Correct the named line, or write the description again.",
)  # fmt: skip


class _TrapError(ValueError):
    """A problem with a description that is not the parser's, such as its size, and its fix."""


def read_rdf(path: Path) -> tuple[dict[str, Any] | None, Check]:
    """Parse a description (YAML 1.2) as bioimageio.spec does; None, and a failed check, if that is impossible."""
    name = one_sentence(path.name, 80)
    try:
        return _parse(path), RDF.passed(f"{name} can be read")
    except _TrapError as error:
        text, fix = error.args
    except RecursionError:
        text, fix = _NESTED, _PLAIN
    except UnicodeDecodeError as error:
        text = f"is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
        fix = _UTF_8
    except Exception as error:  # the parser's errors have no common base class
        problem, mark = getattr(error, "problem", None) or error, getattr(error, "problem_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        problem = one_sentence(problem).replace("'<stream end>'", "the end of the file")
        text, fix = f"is not valid yaml: {line}{problem}", "Correct that line; a yaml checker shows it."
    return None, RDF.violated(f"{name} {text}", fix)


def _parse(path: Path) -> dict[str, Any]:
    from bioimageio.spec.utils import read_yaml

    size = path.stat().st_size
    if size > MAX_RDF_BYTES:
        raise _TrapError(f"is refused: it has {size} bytes, a description has at most {MAX_RDF_BYTES}", _PLAIN)
    text = path.read_text(encoding="utf-8-sig")  # the parser takes a byte order mark for part of the first key
    if "\0" in text:
        raise _TrapError("is not UTF-8, since it holds zero bytes, as UTF-16 does", _UTF_8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one per anchor that is used twice
        if text.count("<<") > _MAX_MERGES:
            raise _TrapError(f"is refused: it merges more than {_MAX_MERGES} times with <<", _NO_ALIASES)
        content: Any = read_yaml(StringIO(text))
    # values shared by aliases multiply when they are copied, so each is visited as often as it is referred to
    for n_values, (value, depth) in enumerate(_walk(content), 1):
        if n_values > MAX_NODES:
            raise _TrapError(f"is refused: it expands to more than {MAX_NODES} values (aliases multiply)", _NO_ALIASES)
        if depth > MAX_DEPTH:
            raise _TrapError(_NESTED, _NO_ALIASES)
        if strange := _strange(value):
            raise _TrapError(f"is refused: it holds {strange}", _PLAIN)
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        return content
    kinds = {dict: "has names that are not texts", list: "is a list", type(None): "is empty"}
    text = f"{kinds.get(type(content), 'is a single value')}, a description is a mapping of names to values"
    raise _TrapError(text, "Write the description as lines such as 'name: My model'.")


def walked(value: Any) -> Iterator[Any]:
    """Iterate over all values of a parsed description, keys included, down to texts and numbers."""
    return (found for found, _ in _walk(value))


def _walk(value: Any) -> Iterator[tuple[Any, int]]:
    pending = [(value, 0)]
    while pending:
        value, depth = pending.pop()
        yield value, depth
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        pending += [(item, depth + 1) for item in items] if isinstance(items, list) else []


def texts(value: Any) -> list[str]:
    """Return all texts of a parsed description, keys included."""
    return [found for found in walked(value) if isinstance(found, str)]


def _strange(value: Any) -> str | None:
    """Describe a value that no description needs and that breaks programs; None for any other value."""
    if isinstance(value, str):
        # Control characters, except tabs and line breaks, steer terminals; lone surrogates cannot be encoded.
        odd = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r\x85"), None)
        return None if odd is None else f"the control character {odd!r}; write plain text"
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"an integer of {value.bit_length()} bits, at most 64 are expected"
    if not isinstance(value, dict | list | int | float | date | type(None)):
        return f"a value of type {type(value).__name__}; write strings, numbers, lists and mappings"
    return None


def mappings(listed: object) -> list[dict[str, Any]]:
    """Return the mappings in a list; an empty list for any other value."""
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


@dataclass(frozen=True, slots=True)
class FileReference:
    """A place in a description that names a file or a URL."""

    where: str  # the field, e.g. weights.onnx.source
    holder: Any  # the mapping or list that holds it
    key: Any  # its key there
    path: str  # the path or URL, without the manager or class that formats 0.3 and 0.4 add
    hash_key: str = ""  # the key in holder of the file's sha256; empty if the format has none

    @property
    def name(self) -> str:
        """The file's name inside the package, without ``./`` and with slashes as on Unix."""
        return PurePosixPath(self.path.replace("\\", "/")).as_posix()

    @property
    def sha256(self) -> str | None:
        """The stated sha256, if any."""
        stated = self.holder.get(self.hash_key) if self.hash_key else None
        return stated if isinstance(stated, str) else None

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL."""
        return is_url(self.path)

    @property
    def label(self) -> str:
        """The field and its path or URL, for a message."""
        return f"{self.where.removesuffix('.source')} ({one_sentence(self.path, 120)})"

    def point_to(self, name: str) -> None:
        """Name another file; a manager before the name and a class after it stay."""
        before, _, after = str(self.holder[self.key]).rpartition(self.path)
        self.holder[self.key] = before + name + after


def is_url(text: str) -> bool:
    """Return whether some reader may take a text for a URL: some ignore case, spaces and missing slashes."""
    return "://" in text or re.match(r"https?:", re.sub(r"\s", "", text), re.IGNORECASE) is not None


def references(rdf: dict[str, Any]) -> list[FileReference]:
    """Return all places of a description of format 0.3 to 0.5 that name a file."""
    return [found for key in rdf if key not in _FREE_FIELDS for found in _references(rdf, key, key)]


def _references(holder: Any, key: Any, where: str) -> Iterator[FileReference]:
    value = holder[key]
    if isinstance(value, list):
        for index in range(len(value)):
            yield from _references(value, index, f"{where}[{index}]")
    elif isinstance(value, dict) and key != "kwargs":
        for name in value:
            yield from _references(value, name, f"{where}.{name}")
    elif isinstance(value, str):
        field = where.rsplit(".", 1)[-1].split("[")[0]
        called = re.fullmatch(r"(?P<path>.*\.py)::?[^:/\\]*", value, re.DOTALL)  # formats 0.3 and 0.4: unet.py:UNet2d
        if isinstance(key, int):
            if field in _LISTS and (field != "files" or "attachments.files" in where):
                yield FileReference(where, holder, key, value)
        elif key == "source" and (where != "source" or called):  # format 0.3 may name a module there
            yield FileReference(where, holder, key, called["path"] if called else value, "sha256")
        elif key == "architecture" and called:
            yield FileReference(where, holder, key, called["path"], "architecture_sha256")
        elif key == "dependencies":  # format 0.4: conda:environment.yaml
            yield FileReference(where, holder, key, re.sub(r"^\w{2,}:(?!//)", "", value))
        # an icon may be an emoji; documentation may by mistake hold the text itself
        elif where in ("documentation", "icon") and len(value) < 1000 and re.search(r"\.\w+$|://", value):
            yield FileReference(where, holder, key, value)
