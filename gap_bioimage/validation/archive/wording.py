"""What bioimageio.spec and pydantic find wrong with a description, in words for whoever wrote it.

Their messages are shortened, with what the description says in their place; kinds that are not known here are told in
the library's own words.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.check import one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gap_bioimage.validation.archive.package import Package

_WRONG_ALTERNATIVE = re.compile(r".*_(type|parsing)|literal_error|url_scheme|path_not_file|is_instance_of|sequence_str")
"""Errors of a value that was never meant as this alternative."""
_NOISE = re.compile(
    r"^(Value|Assertion) error, |(For further information visit|, see) https?://\S+( for details)?|\[type=.*?\](?=\s|$)"
    r"| \(with or without (padding|cropping) \w+ halo\)"
)
_AXIS = r"(\w+\[.*?\])\.axes\[(.*?)\]: test_tensor axis "
_LONG = r"\1: its test tensor is \3 long along axis \2, expected"
_TO_INPUT = "a size that refers to an input, such as {tensor_id: INPUT, axis_id: y}"

_WORDS: tuple[tuple[str, str], ...] = (
    # what is found in 'kind: message', and what is said instead; <value> is what the description holds there
    (r"^missing:|Needs to be filled|: missing(\. Please specify|$)", "is missing"),
    (r"^KeyError: '(.*)'", r"'\1' is referred to, but there is nothing of that name"),
    (r"^extra_forbidden:", "is not a field that this format knows here; remove it, or move it into config"),
    (r"^union_tag_not_found:.*'(\w+)'", r"its \1 is missing"),
    (r"^union_tag_invalid:.*using '(\w+)'.*expected tags: (.*)", r"its \1 <tag> is unknown, expected is one of \2"),
    (r"instance of (Author|Maintainer|Uploader)$",
     "is <value>, but should be a mapping with a name, such as {name: Ada Example}"),
    (r"instance of SizeReference$", f"is <value>, but an axis with a halo needs {_TO_INPUT}; or leave out the halo"),
    (r"instance of Architecture\w+$", "is <value>, but should be a mapping, such as {source: net.py, callable: Net}"),
    (r"instance of \w*(FileDescr|Descr_\w+)$", "is <value>, but should be a file, written as {source: NAME}"),
    (r"^(dict|model|dataclass)_(attributes_)?type:|valid dictionary",
     "is <value>, but should be a mapping of names to values"),
    (r"valid string$", "is <value>, but should be a text"),
    (r"valid integer", "is <value>, but should be a whole number"),
    (r"valid number", "is <value>, but should be a number"),
    (r"valid boolean", "is <value>, but should be true or false"),
    (r"valid (list|tuple|set)|instance of Sequence|as a Sequence value", "is <value>, but should be a list"),
    (r"^datetime|valid datetime|ISO string|isoformat",
     "<value> is not a date and time, such as 2024-05-31T12:00:00"),
    (r"'micrometer'", "is <value>, but should be a unit in full, such as micrometer"),
    (r"valid date\b", "<value> is not a date, such as 2024-05-31"),
    (r"^url_\w+:", "<value> is not a web address, such as https://example.org"),
    (r"^path_not_file:", "<value> is not a file of the package"),
    (r"^(?:string_)?too_(?:short|long):.*at (least|most) (\d+)", r"has <length>, expected are at \1 \2"),
    (r"Input should be (.*)", r"is <value>, but should be \1"),
    (r"Predicate '_is_batch' failed", "is <value>, but should be batch"),
    (r"Predicate .* failed", "<value> is not written as the format asks"),
    (r"valid \(Python\) identifier", "<value> should be a name of letters, digits and underscores"),
    (r"Expected (?:a )?suffix(?: from)? (.*), but got",
     r"<value> is a file of another kind, expected is one that ends in \1"),
    (r"Missing weights entry", "there are none; give at least one, such as torchscript"),
    (r"Either 'doi' or 'url' is required", "has neither doi nor url, one of them is needed"),
    (r"Duplicate axis ids: \{(.*)\}", r"several axes have the id \1"),
    (r"kwargs\.axes` needs to be subset", "a processing step names axes that this tensor has not"),
    (r"[Rr]edund\w* linear scaling", "a gain of 1 and an offset of 0 change nothing; remove this step"),
    (r"(\w+) ([\d.]+) >= (\w+) ([\d.]+)", r"\1 is \2 and not below \3, which is \4"),
    (r"`reference_tensor`s \[(.*)\] not found.*: \{(.*)\}", r"reference_tensor \1 is not an input; the inputs are \2"),
    (r"Unknown tensor axis reference '(\w+)\.",
     r"the input '\1' has no test_tensor, to which the outputs are compared"),
    (r"halo (\[.*?\]) has to have same length", r"its halo \1 should have one number for each axis"),
    (r"is not restricted to '?(\w+)'?\W*$", r"<value> may hold the letters \1 only"),
    (r"is not restricted to", "<value> may hold letters, digits, spaces and the characters _ + - ( ) only"),
    (r"(?:^\w+: |, |/)([^/,:]*?):? does not point to an existing file", r"\1 is not a file of the package"),
    (r"codec can't decode", "is not written in UTF-8; save it as UTF-8 text"),
    (r"valid email address", "<value> is not an email address, such as ada@example.org"),
    (r"Invalid version: (.*)", r"\1 is not a version, such as 2.5.0"),
    (r"Self-referencing not allowed for (\S+):", r"\1 refers to its own tensor, an input's axis is expected"),
    (r"Invalid tensor axis reference at (.*?): tensor_id='(.*?)' axis_id='(.*?)'",
     r"\1 refers to axis '\3' of tensor '\2', which does not exist"),
    (r"parent=(\w+) not in specified weight", r"a parent is \1, but there are no such weights"),
    (r"axis (\w+) with minimum size (\d+) is too small for halo (\d+)",
     r"axis \1 may be \2 long, which is too little for a halo of \3 on either side"),
    (_AXIS + r"has incompatible size \{([\d or]+)\}, expected (\d+)", rf"{_LONG} is \4"),
    (r"(\w+\[.*?\])\.test_tensor: axis '(.*?)' of size \{([\d or]+)\} invalid for referenced size (\d+); "
     r"expected ([\d.]+?)(?:\.0)?$", rf"{_LONG} is \5 (it refers to an axis \4 long)"),
    (r"(\w+\[.*?\]) Dimension mismatch: array shape (\(.*?\)) .*incompatible with (\d+) axes",
     r"\1: its test tensor has the shape \2, but \3 axes are declared"),
    (r"too small for reliable testing", "a test tensor holds only values below 0.0001, too small to test anything"),
    (r"(\w+) data type '(\w+)' does not match described (\w+\[.*?\])\.dtype '(\w+)'",
     r"\3: its test tensor is stored as \2, declared is \4"),
    (r"output axis with halo and fixed size \(here (\d+)\) not allowed",
     rf"outputs: an axis of fixed size \1 has a halo, which needs {_TO_INPUT}"),
    (r"No '# Validation' \(sub\)section found in (.*?)\.?$", r"\1 has no section with the heading '# Validation'"),
    (r"Description longer than (\d+)", r"is longer than \1 characters"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One error or warning.

    ``where`` is the field as one reads it in the description, e.g. ``inputs[0].axes[2].size`` (empty for the whole);
    ``field`` the same, up to where the library tried alternatives, of which ``alternative`` is the one; ``kind`` and
    ``text`` are the library's own words; ``value`` is what the description says there.
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
    listed = list(loc)
    for place, part in enumerate(listed):
        is_last = place == len(listed) - 1
        if part == "architecture" and isinstance(package.rdf.get("source"), str):
            parts, value = ["source"], package.rdf["source"]  # where format 0.3 has it
            continue
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            value = value[part]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        elif (
            is_last and isinstance(value, dict) and re.fullmatch(r"[a-z]\w*", str(part)) and part not in value.values()
        ):
            value = None  # absent, and wanted
        else:  # the name of an alternative, such as 'ParameterizedSize' or 'function-after[...]'
            if not alternative and not (isinstance(value, dict) and part in value.values()):
                alternative, n_field = str(part), len(parts)
            continue
        parts.append(part)
    text = text.replace(f"{package.root}{os.sep}", "")
    text = re.sub(r"source=RelativePath\(('[^']*')\)( sha256=\S+?(?=\.?$|\s))?", r"\1", text)
    text = re.sub(r"\{(\d+), (\d+)\}", r"{\1 or \2}", text)  # without and with the halo
    field = _path(parts[:n_field] if alternative else parts)
    return Finding(_path(parts), field, alternative, kind, _NOISE.sub("", text).strip(), value)


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
            kept += sorted(alternatives.values(), key=_unlikely)[0]
    # Outputs refer to inputs: once an input is wrong, so are all references to it.
    if any(found.where.startswith("inputs") for found in kept):
        kept = [found for found in kept if "Invalid tensor axis reference" not in found.text]
    return kept


def _unlikely(group: list[Finding]) -> tuple[bool, int]:
    """How far a value is from an alternative: of another kind altogether, and in how many ways."""
    is_other = any(found.where == found.field and _WRONG_ALTERNATIVE.fullmatch(found.kind) for found in group)
    return is_other, len(group)


def told(found: Finding) -> str:
    """An error or warning as ``where: what``, in plain words."""
    text = one_sentence(_what(found), 240)
    return text if text.startswith(found.where) else f"{one_sentence(found.where, 80)}: {text}"


def _what(found: Finding) -> str:
    value = found.value
    if found.field == "license" and isinstance(value, str):
        return f"{_shown(value)} is not an SPDX identifier, such as CC-BY-4.0 or MIT"
    if found.kind == "string_pattern_mismatch":
        hint = "a DOI, such as 10.1234/abc" if found.where.endswith("doi") else "written as the format asks"
        return f"{_shown(value)} is not {hint}"
    if re.search(r"^source$|\.architecture$", found.field) and isinstance(value, str) and "::" in value:
        one = re.sub(":{2,}", ":", value)
        return f"{_shown(value)} has two colons, one is expected between the file and what it defines: {_shown(one)}"
    if found.field == "timestamp" and isinstance(value, str):
        return f"{_shown(value)} is not a date and time, such as 2024-05-31T12:00:00"
    if found.kind == "string_type" and isinstance(value, str) and found.where.endswith("].name"):  # as spec converts it
        return f"format 0.3.0 lists people by name alone: write {_shown(value)} without name:, or state version 0.3.2"
    subject = f"{found.kind}: {found.text}"
    for pattern, words in _WORDS:
        if match := re.search(pattern, subject):
            text = match.expand(words)
            if "<tag>" in text:
                text = text.replace("<tag>", _shown(value.get(match[1]) if isinstance(value, dict) else value))
            return text.replace("<value>", _shown(value)).replace("<length>", _length(value))
    return found.text or "is not as the format asks"


def _length(value: Any) -> str:
    if not isinstance(value, str | list):
        return "another length"
    unit = ("character", "characters") if isinstance(value, str) else ("entry", "entries")
    return f"{len(value)} {unit[len(value) != 1]}"


def _shown(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("source"), str):
        value = value["source"]
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a mapping"
    return "empty" if value is None else one_sentence(repr(value), 60)
