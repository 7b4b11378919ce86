"""The operators that an old engine has, and those that serialised TorchScript calls.

Run as a script by a Python with an old torch, this file prints that torch's operators; it needs nothing else::

    /usr/bin/python3 gap_bioimage/validation/package/operators.py > gap_bioimage/validation/package/operators_1_13.txt
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINE = "libtorch 1.13"
"""The oldest engine that consumers still run."""

_TABLE = Path(__file__).with_name("operators_1_13.txt")
_HEADER = """\
# Operators of torch {version}, as torch._C._jit_get_all_schemas() lists them: one per line, followed by the ways to
# call it, each as its number of positional arguments (* for any number) and its keywords. Made by
# python gap_bioimage/validation/package/operators.py
"""
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[()\[\]{},]|[^\s()\[\]{},"]+', re.DOTALL)
_OPERATOR = re.compile(r"torch(?:\.autograd)?\.(?P<aten>\w+)|ops\.(?P<namespace>\w+)\.(?P<name>\w+)")
_CLOSES = {"(": ")", "[": "]", "{": "}"}

HINTS = {
    "aten::_upsample_lanczos2d_aa": "F.interpolate or nn.Upsample, scripted by a recent torch",
    "aten::rms_norm": "RMSNorm",
    "aten::scaled_dot_product_attention": "attention",
}
"""What an author wrote, where the operator's name does not say it."""

_ONE_AXIS = {"aten::all", "aten::any", "aten::squeeze", "aten::squeeze_"}
"""Operators that take one axis in the old engine, and a list of axes in newer ones."""
_STFT_IN_PYTHON = ("aten::stft", 9)
"""Newer torch.stft passes its last argument by another position than the old one, with as many arguments."""


@dataclass
class Call:
    """One call of an operator.

    Parameters
    ----------
    name
        With its namespace, e.g. ``aten::conv2d``.
    arguments
        The first word of each positional argument: the argument itself if it is a number or a variable.
    keywords
        The first word of each keyword argument.
    """

    name: str
    arguments: list[str] = field(default_factory=list)
    keywords: dict[str, str] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """The name as TorchScript code writes it."""
        return self.name.replace("aten::", "torch.").replace("::", ".")


@dataclass(frozen=True)
class Signature:
    """One way to call an operator: how many positional arguments at most, and which keywords."""

    n_arguments: float
    keywords: frozenset[str]

    def accepts(self, call: Call) -> bool:
        """Whether a call has no more than these arguments; their types are not looked at."""
        return len(call.arguments) <= self.n_arguments and call.keywords.keys() <= self.keywords


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
            _add_argument(stack[-1][1], keyword, first)
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


def _add_argument(call: Call, keyword: str, first: str) -> None:
    if keyword:
        call.keywords[keyword] = first
    else:
        call.arguments.append(first)


def _operator(word: str) -> str:
    """The operator that a word names, with its namespace; empty if it names something else."""
    match = _OPERATOR.fullmatch(_split_keyword(word)[1])
    if match is None:
        return ""
    return f"aten::{match['aten']}" if match["aten"] else f"{match['namespace']}::{match['name']}"


@functools.cache
def known_operators() -> dict[str, tuple[Signature, ...]]:
    """The old engine's operators, by name."""
    found = {}
    for line in _TABLE.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            name, *written = line.split()
            found[name] = tuple(_signature(text) for text in written)
    return found


def _signature(text: str) -> Signature:
    count, *keywords = text.split("+")
    return Signature(float("inf") if count == "*" else int(count), frozenset(keywords))


def problem_of(call: Call) -> str:
    """Why the old engine does not load code with this call; empty if it does.

    The engine compiles all code when it loads it, dead branches too. Names, numbers of arguments and keywords are
    compared; types are not, so that a rare model still does not load.
    """
    signatures = known_operators().get(call.name)
    if signatures is None:
        hint = f" ({HINTS[call.name]})" if call.name in HINTS else ""
        return f"the code uses {call.written}{hint}, which {ENGINE} does not have"
    lists_axes = call.name in _ONE_AXIS and call.arguments[1:2] == ["["]
    is_new_stft = (call.name, len(call.arguments)) == _STFT_IN_PYTHON
    if lists_axes or is_new_stft or not any(signature.accepts(call) for signature in signatures):
        return f"the code calls {call.written} with arguments that {ENGINE} does not take"
    return ""


def list_operators() -> str:
    """The table of the torch that runs this."""
    import torch

    found: dict[str, set[tuple[str, frozenset[str]]]] = {}
    for schema in torch._C._jit_get_all_schemas():
        keywords = frozenset(argument.name for argument in schema.arguments if argument.kwarg_only)
        is_vararg = "..." in str(schema).split("->")[0]
        count = "*" if is_vararg else str(len(schema.arguments) - len(keywords))
        found.setdefault(schema.name, set()).add((count, keywords))
    lines = [
        " ".join([name, *sorted("+".join([count, *sorted(keywords)]) for count, keywords in found[name])])
        for name in sorted(found)
    ]
    return _HEADER.format(version=torch.__version__) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(list_operators(), end="")
