"""Parse a description (YAML 1.2), unless it is a trap for the parser or for whoever walks what it returns."""

from __future__ import annotations

import unicodedata
import warnings
from datetime import date
from io import StringIO
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import Severity, declare, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gap_bioimage.validation.check import Check

MAX_RDF_BYTES = 2**20
"""The parser needs some seconds for as much."""
MAX_NODES = 20_000
"""Values that a description may expand to; the zoo's longest descriptions have a few hundred."""
MAX_DEPTH = 50
_MAX_INTEGER = 2**64
_PLAIN = "Write the description again, in plain texts, numbers and lists."
_NO_ALIASES = "Write the description without aliases: write out what each * stands for, and leave out the &."

RDF = declare(
    "archive.rdf", "archive", Severity.BLOCKS, order=6, asks="A description that can be read.",
    breaks="no program knows what the package is",
    fix="Correct the line that is named, or write the description again.",
)  # fmt: skip


class TrapError(ValueError):
    """A description that would cost too much to be read, or that holds what no description does; and what to do."""

    def __init__(self, text: str, fix: str = _PLAIN) -> None:
        super().__init__(text)
        self.fix = fix


def read_rdf(path: Path) -> tuple[dict[str, Any] | None, Check]:
    """Parse a description as bioimageio.spec does, or say why that fails."""
    name = one_sentence(path.name, 80)
    try:
        content = _parse(path)
    except UnicodeDecodeError as error:
        place = f"byte {error.object[error.start]:#04x} at {error.start}"
        return None, RDF.violated(f"{name} is not UTF-8: {place}", "Save the description as UTF-8 text.")
    except TrapError as error:
        return None, RDF.violated(f"{name} is refused: {error}", error.fix)
    except Exception as error:  # the parser's errors have no common base
        fix = "Correct that line; a yaml checker shows it."
        return None, RDF.violated(f"{name} is not valid yaml: {_yaml_error(error)}", fix)
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        return content, RDF.passed(f"{name} is read")
    if isinstance(content, dict):
        held = "has names that are not texts"
    else:
        held = "is empty" if content is None else "is a list" if isinstance(content, list) else "is a single value"
    fix = "Write the description as lines such as 'name: My model'."
    return None, RDF.violated(f"{name} {held}, a description is a mapping of names to values", fix)


def _yaml_error(error: Exception) -> str:
    """What the parser stumbled over, and in which line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    text = one_sentence(problem or error).replace("'<stream end>'", "the end of the file")
    return text if mark is None else f"line {mark.line + 1}: {text}"


def _parse(path: Path) -> Any:
    from bioimageio.spec.utils import read_yaml

    size = path.stat().st_size
    if size > MAX_RDF_BYTES:
        raise TrapError(f"it has {size} bytes, a description has at most {MAX_RDF_BYTES}")
    # The parser takes a byte order mark for a character of the first key where it is given text.
    text = path.read_text(encoding="utf-8-sig")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one per anchor that is used twice
        _refuse_expensive(text)
        content: Any = read_yaml(StringIO(text))
    for value in walked(content):
        _refuse_strange(value)
    return content


def _refuse_expensive(text: str) -> None:
    """Count what a yaml's events expand to, aliases included, before anything is built from them.

    Building is recursive, copies what merge keys (``<<``) name, and what is built is walked and copied again:
    a few hundred bytes of aliases would fill any memory.
    """
    from ruyaml import YAML
    from ruyaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

    total = 0
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    for event in YAML(typ="safe", pure=True).parse(StringIO(text)):
        anchor = str(event.anchor) if getattr(event, "anchor", None) else None
        if isinstance(event, AliasEvent):
            if any(name == anchor for name, _ in opened):
                raise TrapError(f"the alias {str(anchor)[:40]!r} contains itself", _NO_ALIASES)
            total += sizes.get(str(anchor), 1)  # an unknown anchor is the parser's to report
        elif isinstance(event, NodeEvent):
            total += 1
            if isinstance(event, CollectionStartEvent):
                opened.append((anchor, total - 1))
            elif anchor is not None:
                sizes[anchor] = 1
        elif isinstance(event, CollectionEndEvent):
            name, before = opened.pop()
            if name is not None:
                sizes[name] = total - before
        if total > MAX_NODES:
            raise TrapError(f"it expands to more than {MAX_NODES} values (aliases multiply)", _NO_ALIASES)
        if len(opened) > MAX_DEPTH:
            raise TrapError(f"it is nested more than {MAX_DEPTH} levels deep")


def walked(value: Any) -> Iterator[Any]:
    """All values of a parsed description, keys included, down to texts and numbers."""
    pending = [value]
    while pending:
        value = pending.pop()
        yield value
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value


def _refuse_strange(value: Any) -> None:
    """Refuse values that a description has no use for, and that break programs which handle it."""
    if isinstance(value, str):
        # Tabs and line breaks aside, control characters steer terminals, and half characters cannot be encoded.
        odd = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r\x85"), None)
        if odd is not None:
            raise TrapError(f"it holds the control character {odd!r}; write plain text")
    elif isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise TrapError(f"it holds an integer of {value.bit_length()} bits, at most 64 are expected")
    elif not isinstance(value, dict | list | int | float | date | type(None)):
        raise TrapError(f"it holds a value of type {type(value).__name__}; write strings, numbers, lists and mappings")
