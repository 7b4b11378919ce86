"""Refuse descriptions that are traps for a parser or for whoever walks what it returns."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from datetime import date
from io import StringIO
from typing import Any

MAX_NODES = 20_000
"""Values that a description may expand to; the zoo's longest descriptions have a few hundred."""
MAX_DEPTH = 50
_MAX_INTEGER = 2**64
_NO_ALIASES = "Write the description without aliases: write out what each * stands for, and leave out the &."
_KEYS = (str, int, float, date, type(None))


class TrapError(ValueError):
    """A description that would cost too much to be read, or that holds what no description does.

    Parameters
    ----------
    text
        What is wrong with it.
    fix
        What to do about it.
    """

    def __init__(self, text: str, fix: str = "Write the description again, in plain texts, numbers and lists.") -> None:
        super().__init__(text)
        self.fix = fix


@dataclass
class _Expansion:
    """Counts what a stream of parser events expands to, aliases included, without expanding it."""

    sizes: dict[str, int] = field(default_factory=dict)
    open: list[tuple[str | None, int]] = field(default_factory=list)
    total: int = 0

    def add(self, anchor: str | None, size: int = 1) -> None:
        self.total += size
        if anchor is not None:
            self.sizes[anchor] = size
        if self.total > MAX_NODES:
            raise TrapError(f"it expands to more than {MAX_NODES} values (aliases multiply)", _NO_ALIASES)

    def alias(self, anchor: str) -> None:
        if any(name == anchor for name, _ in self.open):
            raise TrapError(f"the alias {anchor[:40]!r} contains itself", _NO_ALIASES)
        self.add(None, self.sizes.get(anchor, 1))  # an unknown anchor is the parser's to report

    def begin(self, anchor: str | None) -> None:
        self.open.append((anchor, self.total))
        self.add(None)
        if len(self.open) > MAX_DEPTH:
            raise TrapError(f"it is nested more than {MAX_DEPTH} levels deep")

    def end(self) -> None:
        anchor, before = self.open.pop()
        if anchor is not None:
            self.sizes[anchor] = self.total - before


def refuse_expensive_yaml(text: str) -> None:
    """Look at a yaml's events, of which the parser makes one at a time, before anything is built from them.

    Building is recursive, copies what merge keys (``<<``) name, and what is built is walked and copied again:
    a few hundred bytes of aliases would fill any memory.

    Raises
    ------
    TrapError
        If it is nested too deeply, expands to too many values, or contains itself.
    """
    from ruyaml import YAML
    from ruyaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    expansion = _Expansion()
    for event in YAML(typ="safe").parse(StringIO(text)):
        if isinstance(event, AliasEvent):
            expansion.alias(str(event.anchor))
        elif isinstance(event, CollectionStartEvent):
            expansion.begin(event.anchor and str(event.anchor))
        elif isinstance(event, CollectionEndEvent):
            expansion.end()
        elif isinstance(event, ScalarEvent):
            expansion.add(event.anchor and str(event.anchor))


def refuse_strange_values(content: Any) -> None:
    """Refuse values that a description has no use for, and that break programs which handle it.

    Raises
    ------
    TrapError
        If there are control or broken characters, endless integers, or keys and values of odd types.
    """
    pending: list[tuple[Any, int]] = [(content, 0)]
    seen = 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise TrapError(f"it expands to more than {MAX_NODES} values or {MAX_DEPTH} levels")
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, _KEYS):
                    raise TrapError(f"a key is a {type(key).__name__}; keys are strings or numbers")
                pending += [(key, depth + 1), (item, depth + 1)]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        else:
            _refuse_strange_scalar(value)


def _refuse_strange_scalar(value: Any) -> None:
    if isinstance(value, str):
        # Tabs and line breaks aside, control characters steer terminals, and half characters cannot be encoded.
        odd = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r\x85"), None)
        if odd is not None:
            raise TrapError(f"it holds the control character {odd!r}; write plain text")
    elif isinstance(value, int) and abs(value) >= _MAX_INTEGER:
        raise TrapError(f"it holds an integer of {value.bit_length()} bits, at most 64 are expected")
    elif not isinstance(value, int | float | date | type(None)):
        raise TrapError(f"it holds a value of type {type(value).__name__}; write strings, numbers, lists and mappings")
