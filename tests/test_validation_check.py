"""The registry: what is declared, how it is judged, what others may add."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import gap_bioimage.validation
from gap_bioimage.validation import check as registry_module
from gap_bioimage.validation.check import (
    BLOCKS,
    DEGRADES,
    STYLE,
    Check,
    Definition,
    NotApplicable,
    Outcome,
    Severity,
    declare,
    definition,
    definitions,
    merge_outcomes,
    one_sentence,
    registry,
    rule,
)
from gap_bioimage.validation.consumers import consumers

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = Path(gap_bioimage.validation.__file__).parent
MODEL = SimpleNamespace(weights={"torchscript": {}}, n_dims=2, version="0.5.9", is_valid=True)


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry to write into."""
    registry()  # what is imported from now on is declared elsewhere
    monkeypatch.setattr(registry_module, "_REGISTERED", {})
    yield


def raising(error: Exception) -> Any:
    def function(model: Any) -> None:
        raise error

    return function


def test_every_check_says_what_it_is_about() -> None:
    for made in registry().values():
        assert made.consumer in consumers(), made.id
        assert made.asks.endswith("."), made.id
        assert made.breaks and not made.breaks.endswith("."), made.id
        assert callable(made.fix) or made.fix.endswith("."), made.id
        assert isinstance(made.severity, Severity)


def test_every_rule_is_known_from_somewhere() -> None:
    assert [made.id for made in definitions("rule") if made.source is None] == []
    assert all(str(made.source).endswith(")") for made in definitions("rule"))


def test_checks_come_by_consumer() -> None:
    order = list(dict.fromkeys(made.consumer for made in registry().values()))
    assert order == [name for name in consumers() if name in order]


@pytest.mark.usefixtures("empty")
def test_a_decorated_function_is_a_check_and_stays_a_function() -> None:
    @rule("fiji.size", BLOCKS, breaks="it stops", fix="Mend it.", repair="mend")
    def size(model: Any) -> str | None:
        """Sizes.

        More.
        """
        return "it is too large"

    assert size(MODEL) == "it is too large"
    made = definition("fiji.size")
    assert (made.consumer, made.asks, made.kind) == ("fiji", "Sizes.", "rule")
    found = made.judge(MODEL)
    assert (found.status, found.message) == ("failed", "it is too large: it stops")
    assert found.fix.startswith("Mend it.") and "repair" in found.fix
    with pytest.raises(ValueError, match=r"fiji\.size"):
        rule("fiji.size", STYLE)(size)


@pytest.mark.parametrize(("severity", "status"), [(BLOCKS, "failed"), (DEGRADES, "warning"), (STYLE, "warning")])
def test_only_what_blocks_fails(severity: Severity, status: str) -> None:
    made = Definition("fiji.x", "rule", severity, lambda model: "found")
    assert made.judge(MODEL).status == status
    assert made.check(Outcome("warning", "mild")).status == "warning"
    assert made.violated("found").status == status
    assert (made.passed().status, made.skipped("why").status) == ("passed", "skipped")


@pytest.mark.parametrize(
    ("scope", "word"),
    [({"weights": ("onnx",)}, "onnx"), ({"dims": 3}, "3D"), ({"versions": "0.4"}, "0.4")],
)
def test_checks_outside_their_scope_are_skipped(scope: dict[str, Any], word: str) -> None:
    made = Definition("fiji.x", "rule", BLOCKS, lambda model: "found", **scope)
    assert made.judge(MODEL).status == "skipped"
    assert word in made.judge(MODEL).message


def test_what_a_rule_raises_is_never_a_pass() -> None:
    assert Definition("fiji.x", "rule", STYLE, raising(NotApplicable("no image"))).judge(MODEL).status == "skipped"
    broken = Definition("fiji.x", "rule", STYLE, raising(KeyError("y")))
    assert broken.judge(MODEL).status == "error"
    assert "KeyError" in broken.judge(MODEL).message
    invalid = SimpleNamespace(**{**vars(MODEL), "is_valid": False})
    assert broken.judge(invalid).status == "skipped"  # the format's check tells of it


def test_a_fix_may_depend_on_what_was_found() -> None:
    made = Definition("fiji.x", "rule", BLOCKS, lambda model: "found", fix=lambda model: f"Leave {model.version}.")
    assert made.judge(MODEL).fix == "Leave 0.5.9."
    assert made.fix_text == ""


@pytest.mark.usefixtures("empty")
def test_modules_anywhere_may_declare_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checks_of_mine.py").write_text(
        "from gap_bioimage.validation.check import STYLE, declare\n"
        "declare('zoo.mine', 'rule', STYLE, asks='Mine.', breaks='x', fix='Y.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry_module, "PLUGINS", ["checks_of_mine", "there.is.no.such_module"])
    registry_module.import_checks.cache_clear()
    try:
        assert "zoo.mine" in registry()
    finally:
        sys.modules.pop("checks_of_mine", None)


@pytest.mark.usefixtures("empty")
def test_a_plugin_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_checks.py").write_text("import there_is_no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry_module, "PLUGINS", ["broken_checks"])
    registry_module.import_checks.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_library"):
        registry()


@pytest.mark.usefixtures("empty")
def test_a_declared_check_has_no_function_to_call() -> None:
    made = declare("archive.x", "archive", BLOCKS, asks="X.", breaks="y", fix="Z.")
    with pytest.raises(TypeError):
        made.outcome_of(None)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] == "gap_bioimage"}


def test_the_room_imports_nothing_of_the_others() -> None:
    allowed = ("gap_bioimage.validation", "gap_bioimage.errors", "gap_bioimage.files")
    for path in ROOM.rglob("*.py"):
        others = {name for name in imported(path) if name != "gap_bioimage" and not name.startswith(allowed)}
        assert others == set(), path
        assert "photons" not in path.stem


@pytest.mark.parametrize("text", ["one\ntwo", "a\x1b[31mred", "x" * 2000])
def test_a_check_says_what_it_has_to_on_one_printable_line(text: str) -> None:
    check = Check("fiji.id", "fiji", "failed", text, text)
    assert check.message.isprintable() and len(check.message) <= 900 and check.message == check.fix


def test_the_worst_of_several_outcomes_is_told_with_all_their_texts() -> None:
    merged = merge_outcomes([("torchscript", Outcome("passed", "fine")), ("onnx", Outcome("failed", "off", "mend"))])
    assert merged == Outcome("failed", "torchscript: fine; onnx: off", "mend")


def test_of_a_torchscript_error_the_last_line_counts() -> None:
    assert one_sentence("The following in the TorchScript interpreter\ncode\nRuntimeError: sizes") == (
        "RuntimeError: sizes"
    )
