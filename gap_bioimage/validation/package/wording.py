"""What bioimageio.spec and pydantic find wrong with a description, in words for whoever wrote it.

Kinds of errors that are not known here are told in the library's own words, without its jargon.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import one_sentence
from gap_bioimage.validation.package.references import is_url, references, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gap_bioimage.validation.package.archive import Package

_EXPECTED = {
    "int": "a whole number", "float": "a number", "string": "a text", "bool": "true or false", "list": "a list",
    "dict": "a mapping of names to values", "model": "a mapping of names to values", "dataclass": "a mapping",
    "date": "a date", "datetime": "a date and time",
}  # fmt: skip
_KINDS = ("type", "parsing", "from_float", "from_datetime_inexact", "from_date_parsing", "attributes_type")
_WRONG_ALTERNATIVE = re.compile(r".*_(type|parsing)|literal_error|url_scheme|path_not_file|is_instance_of")
"""Errors of a value that was never meant as this alternative."""
_NO_FILE = "does not point to an existing file"


@dataclass(frozen=True)
class Finding:
    """One error or warning.

    Parameters
    ----------
    where
        The field as one reads it in the description, e.g. ``inputs[0].axes[2].size``; empty for the whole.
    field
        The same, up to where the library tried alternatives.
    alternative
        The alternative that it tried, or empty.
    kind, text
        Its kind and text in the library's own words.
    value
        What the description says there.
    """

    where: str
    field: str
    alternative: str
    kind: str
    text: str
    value: Any


def finding(package: Package, loc: Iterable[int | str], kind: str, text: str) -> Finding:
    """An error as the library reports it, located in the description as it was written."""
    parts: list[int | str] = []
    value: Any = package.rdf
    alternative, n_field = "", 0
    for part in loc:
        step = _step(value, part, kind)
        if step == "other":
            if not alternative:
                alternative, n_field = str(part), len(parts)
            continue
        if step == "tag":
            continue
        parts.append(part)
        value = _child(value, part)
    if value is None and "architecture" in parts and isinstance(package.rdf.get("source"), str):
        parts, n_field, value = ["source"], 1, package.rdf["source"]  # where format 0.3 has it
    field = _path(parts[:n_field] if alternative else parts)
    clean = re.sub(r"^(Value|Assertion) error, ", "", text.replace(f"{package.root}{os.sep}", ""))
    clean = re.sub(r"source=RelativePath\(('[^']*')\)( sha256=\S+?(?=\.?$|\s))?", r"\1", clean)
    clean = re.sub(r"(For further information visit|, see) https?://\S+( for details)?|\[type=.*?\](?=\s|$)", "", clean)
    return Finding(_path(parts), field, alternative, kind, clean.strip(), value)


def _step(value: Any, part: int | str, kind: str) -> str:
    """Whether a part of a location is a ``field``, a ``tag`` that chose among mappings, or names an ``other`` thing."""
    if isinstance(part, int) or (isinstance(value, dict) and part in value):
        return "field"
    if not re.fullmatch(r"[a-z]\w*", part):
        return "other"  # 'ParameterizedSize', 'constrained-int', 'function-after[...]'
    if isinstance(value, dict) and part in (value.get("type"), value.get("id"), value.get("name")):
        return "tag"
    return "field" if value is None or isinstance(value, dict) or kind == "missing" else "other"


def _child(value: Any, part: int | str) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None


def _path(parts: list[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def one_per_field(findings: Iterable[Finding]) -> list[Finding]:
    """Of a field that matched none of several alternatives, keep what is wrong with the likeliest."""
    by_field: dict[str, dict[str, list[Finding]]] = {}
    for found in findings:
        by_field.setdefault(found.field, {}).setdefault(found.alternative, []).append(found)
    kept = []
    for alternatives in by_field.values():
        kept += alternatives.pop("", [])  # what holds whichever alternative is meant
        if alternatives:
            likeliest = min(alternatives.values(), key=_unlikely)
            kept += likeliest
    # Outputs refer to inputs: once an input is wrong, so are all references to it.
    if any(found.where.startswith("inputs") for found in kept):
        kept = [found for found in kept if not found.text.startswith("Invalid tensor axis reference")]
    return kept


def _unlikely(group: list[Finding]) -> tuple[bool, int]:
    """How far a value is from an alternative: of another kind altogether, and in how many ways."""
    is_other = any(found.where == found.field and _WRONG_ALTERNATIVE.fullmatch(found.kind) for found in group)
    return is_other, len(group)


def explained_by(package: Package, found: Finding) -> str | None:
    """The check of the archive that has already told of an error, or None."""
    written = found.value.get("source") if isinstance(found.value, dict) else found.value
    if not isinstance(written, str) or is_url(written):
        return None
    path = package.file(written)
    if _NO_FILE in found.text or found.kind in ("path_not_file", "url_parsing"):
        named = {reference.source for reference in references(package.rdf)} & {written, written.rsplit(":", 1)[0]}
        return "archive.files" if named and all(package.file(name) is None for name in named) else None
    if "sha256 mismatch" in found.text.lower() and path is not None and isinstance(found.value, dict):
        stated = found.value.get("sha256")
        return "archive.hashes" if isinstance(stated, str) and sha256_of(path) != stated.lower() else None
    return None


def told(found: Finding) -> str:
    """An error or warning as ``where: what``, in plain words."""
    text = one_sentence(_what(found), 200)
    return text if text.startswith(found.where) else f"{one_sentence(found.where, 80)}: {text}"


def _what(found: Finding) -> str:
    if found.field == "license" and isinstance(found.value, str):
        return f"{_shown(found.value)} is no SPDX identifier, such as CC-BY-4.0 or MIT"
    if re.search(r"^source$|\.architecture$", found.field) and isinstance(found.value, str) and "::" in found.value:
        return _two_colons(found.value)
    if found.kind in _BY_KIND:
        return _BY_KIND[found.kind](found)
    name = re.sub(rf"_({'|'.join(_KINDS)})$", "", found.kind)
    if name == "url":
        return f"{_shown(found.value)} is no web address, such as https://example.org"
    if name != found.kind and name in _EXPECTED:
        return f"is {_shown(found.value)}, but should be {_expected(found, name)}"
    for pattern, words in _BY_TEXT:
        if match := re.search(pattern, found.text):
            return match.expand(words).replace("<value>", _shown(found.value))
    return found.text or "is not as the format asks"


def _two_colons(written: str) -> str:
    one = re.sub(":{2,}", ":", written)
    return f"{_shown(written)} has two colons, one is expected between the file and what it defines: {_shown(one)}"


def _expected(found: Finding, name: str) -> str:
    return "a file, written as {source: ..., sha256: ...}" if "FileDescr" in found.text else _EXPECTED[name]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a mapping"
    return "empty" if value is None else one_sentence(repr(value), 60)


def _literal(found: Finding) -> str:
    return f"is {_shown(found.value)}, but should be {found.text.removeprefix('Input should be ')}"


def _tag(found: Finding) -> str:
    key = re.search(r"using '(\w+)'", found.text)
    expected = found.text.rsplit("expected tags: ", 1)[-1].replace("'", "")
    given = found.value.get(key[1]) if key and isinstance(found.value, dict) else found.value
    return f"its {key[1] if key else 'type'} {_shown(given)} is unknown, expected is one of {expected}"


def _length(found: Finding) -> str:
    limit = re.search(r"at (least|most) (\d+)", found.text)
    if limit is None or not isinstance(found.value, str | list):
        return found.text
    n, (one, many) = (
        len(found.value),
        ("character", "characters") if isinstance(found.value, str) else ("entry", "entries"),
    )
    return f"has {n} {one if n == 1 else many}, expected are at {limit[1]} {limit[2]}"


def _pattern(found: Finding) -> str:
    if found.field.endswith("doi"):
        return f"{_shown(found.value)} is no DOI, such as 10.1234/abc"
    return f"{_shown(found.value)} is not written as the format asks"


_BY_KIND: dict[str, Callable[[Finding], str]] = {
    "missing": lambda found: "is missing",
    "extra_forbidden": lambda found: "is no field that this format knows here",
    "literal_error": _literal,
    "union_tag_invalid": _tag,
    "union_tag_not_found": lambda found: "does not say of which type it is",
    "too_short": _length, "too_long": _length, "string_too_short": _length, "string_too_long": _length,
    "string_pattern_mismatch": _pattern,
    "url_scheme": lambda found: f"{_shown(found.value)} is no web address, such as https://example.org",
    "path_not_file": lambda found: f"{_shown(found.value)} is no file of the package",
}  # fmt: skip

_BY_TEXT = (
    ("instance of Sequence", "is <value>, but should be a list"),
    ("^Input should be (.*)", r"is <value>, but should be \1"),
    ("is not restricted to", "<value> may hold letters, digits, spaces and the characters _ + - ( ) only"),
    (r"(?:^|, |/)([^/,]*) does not point to an existing file", r"\1 is no file of the package"),
    ("codec can't decode", "is not written in UTF-8; save it as UTF-8 text"),
    ("valid email address", "<value> is no email address, such as ada@example.org"),
    (r"^Self-referencing not allowed for (\S+):", r"\1 refers to its own tensor, an input's axis is expected"),
    (r"^Invalid version: (.*)", r"\1 is no version, such as 2.5.0"),
    (r"^ISO string|isoformat", "<value> is no date and time, such as 2024-05-31T12:00:00"),
    (r"parent=(\w+) not in specified weight formats", r"a parent is \1, but there are no such weights"),
    (r"^Invalid tensor axis reference at (.*?): tensor_id='(.*?)' axis_id='(.*?)'",
     r"\1 refers to axis '\3' of tensor '\2', which does not exist"),
    (r"^axis (\w+) with minimum size (\d+) is too small for halo (\d+)",
     r"axis \1 may be \2 long, which is too little for a halo of \3 on either side"),
    ("^Needs to be filled", "is missing"),
    (r"^No '# Validation' \(sub\)section found in (.*?)\.?$", r"\1 has no section with the heading '# Validation'"),
    (r"^Description longer than (\d+)", r"is longer than \1 characters"),
    (r"^missing\. Please specify", "is missing"),
)  # fmt: skip
