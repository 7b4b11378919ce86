"""The registry: what is declared, how it is judged, what others may add; what a check may say, and a rule see."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
import zips
from running import ran

import gap_bioimage.validation
from gap_bioimage.validation import check as registry_module
from gap_bioimage.validation.archive.description import format_checks
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import BLOCKS, DEGRADES, STYLE, Check, NotApplicable, Outcome, definition, rule
from gap_bioimage.validation.model import Axis, Model, with_infinities
from gap_bioimage.validation.report import validate

ROOM = Path(gap_bioimage.validation.__file__).parent
MODEL = SimpleNamespace(weights={"torchscript": {}}, version="0.5.9", valid=True)
MINE = '''
from gap_bioimage.validation.check import BLOCKS, DEGRADES, archive_check, consumer, rule, run_check

consumer("mine", "My program", "It is mine. It runs models.", 20, reads=("torchscript",))

@rule("mine.name", BLOCKS, breaks="it stops", fix="Name it so.")
def name(model):
    """A name with mine."""
    return None if "mine" in model.rdf["name"] else "it has another name"

@archive_check("mine.small", DEGRADES, breaks="it is slow", fix="Leave files out.")
def small(package):
    """At most two files."""
    return f"there are {len(package.names)} files"

@run_check("mine.runs", DEGRADES, breaks="it is empty", fix="Train it.")
def runs(runner):
    """An output."""
    return None if runner.produced else "it gives nothing"

@run_check("mine.broken", DEGRADES, asks="X.", breaks="y")
def broken(runner):
    raise IndexError("3")
'''
STATE_DICT = {"source": "w.pt", "architecture": "unet.py:UNet", "kwargs": {"depth": 4}, "architecture_sha256": "0" * 64}
PERCENTILES = {"mode": "per_sample", "axes": "yx", "min_percentile": 1, "max_percentile": 99}
OLD = zips.description(zips.model_files())
zips.to_format_0_4("0.4.10", weights={"pytorch_state_dict": STATE_DICT | {"sha256": "0" * 64}, "onnx": None})(OLD)
OLD["inputs"][0] |= {"shape": {"min": [1, 1, 32, 32], "step": [0, 0, 16, 16]},
                     "preprocessing": [{"name": "scale_range", "kwargs": PERCENTILES}]}  # fmt: skip


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the registry to write into."""
    registry_module.registry()
    for name in ("_CHECKS", "_CONSUMERS"):
        monkeypatch.setattr(registry_module, name, dict(getattr(registry_module, name)))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None) -> Any:
    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(registry_module, "PLUGINS", [name])
        registry_module.import_checks.cache_clear()

    return write


def raising(error: Exception) -> Any:
    def function(subject: Any) -> None:
        raise error

    return function


def test_every_check_says_what_it_is_about_and_rules_where_they_are_known_from() -> None:
    for made in registry_module.registry().values():
        assert made.asks.endswith(".") and made.breaks and not made.breaks.endswith("."), made.id
        assert callable(made.fix) or not made.fix or made.fix.endswith("."), made.id
        assert made.kind != "rule" or made.source.endswith(")"), made.id
        # what core and the zoo need is found by bioimageio.spec and by running the model, what core lacks aside
        is_found = made.kind == "rule" and made.consumer in ("core", "zoo") and made.id != "core.scale_linear"
        assert not is_found or made.severity != BLOCKS, made.id
    order = list(dict.fromkeys(made.consumer for made in registry_module.registry().values()))
    assert order == [name for name in registry_module.consumers() if name in order]


@pytest.mark.usefixtures("own_registry")
def test_a_decorated_function_is_a_check_and_stays_a_function() -> None:
    @rule("fiji.size", BLOCKS, breaks="it stops", fix="Mend it.", repair="mend")
    def size(model: Any) -> str | None:
        """Sizes."""
        return "it is too large"

    assert size(MODEL) == "it is too large"
    made = definition("fiji.size")
    assert (made.consumer, made.asks, made.kind) == ("fiji", "Sizes.", "rule")
    found = made.judge(MODEL)
    assert (found.status, found.message) == ("failed", "it is too large: it stops")
    assert found.fix.startswith("Mend it.") and "repair" in found.fix
    with pytest.raises(ValueError, match=r"fiji\.size"):
        rule("fiji.size", STYLE)(size)
    with pytest.raises(TypeError):
        registry_module.declare("archive.x", "archive", BLOCKS, asks="X.", breaks="y", fix="Z.").outcome_of(None)


@pytest.mark.parametrize(("severity", "status"), [(BLOCKS, "failed"), (DEGRADES, "warning"), (STYLE, "warning")])
def test_only_what_blocks_fails(severity: registry_module.Severity, status: str) -> None:
    made = registry_module.Definition("fiji.x", "rule", severity, lambda model: "found", fix="Leave it.")
    assert (made.judge(MODEL).status, made.judge(MODEL).fix) == (status, "Leave it.")
    assert made.check(Outcome("warning", "mild")).status == "warning"


def test_checks_outside_their_scope_are_skipped() -> None:
    for scope, word in (({"weights": ("onnx",)}, "onnx"), ({"versions": "0.4"}, "0.4")):
        found = registry_module.Definition("fiji.x", "rule", BLOCKS, lambda model: "found", **scope).judge(MODEL)
        assert found.status == "skipped" and word in found.message


def test_what_a_rule_raises_is_never_a_pass() -> None:
    skipped = registry_module.Definition(
        "fiji.x", "rule", STYLE, raising(NotApplicable("no image", "Give one."))
    ).judge(MODEL)
    assert (skipped.status, skipped.message, skipped.fix) == ("skipped", "no image", "Give one.")
    broken = registry_module.Definition("fiji.x", "rule", STYLE, raising(KeyError("y")))
    assert broken.judge(MODEL).status == "error" and "KeyError" in broken.judge(MODEL).message
    invalid = SimpleNamespace(**{**vars(MODEL), "valid": None})
    assert broken.judge(invalid).status == "skipped"  # the format's check tells of it


@pytest.mark.usefixtures("own_registry")
def test_a_rule_that_raises_leaves_the_verdict_of_its_consumer_open(tmp_path: Path) -> None:
    rule("fiji.broken", STYLE, asks="X.")(raising(ZeroDivisionError("by zero")))
    report = validate(zips.make_zip(tmp_path), description_only=True)
    assert [check.id for check in report.raised] == ["fiji.broken"]
    (unknown,) = [entry for entry in report.verdicts if entry.verdict == "unknown"]
    assert unknown.consumer == "fiji" and "ZeroDivisionError" in unknown.reason


@pytest.mark.usefixtures("own_registry")
def test_an_archive_check_that_raises_leaves_every_verdict_open(tmp_path: Path) -> None:
    broken = replace(definition("archive.references"), function=raising(RecursionError()))
    registry_module._CHECKS["archive.references"] = broken
    report = validate(zips.make_zip(tmp_path), description_only=True)
    assert [check.id for check in report.raised] == ["archive.references"]
    assert {entry.verdict for entry in report.verdicts} == {"unknown"}


def test_a_program_with_its_checks_of_every_kind_is_one_file(plugin: Any, tmp_path: Path) -> None:
    plugin("checks_of_mine", MINE)
    path = zips.make_zip(tmp_path, zips.torchscript_only)
    report = validate(path, description_only=True, consumers=["mine"])
    found = {check.id: check for check in report.checks}
    assert (found["mine.name"].status, found["mine.name"].message) == ("failed", "it has another name: it stops")
    assert {entry.consumer: entry.verdict for entry in report.verdicts}["mine"] == "fails"
    assert registry_module.registry()["mine.small"].asks == "At most two files."
    with open_package(path) as (package, _):
        assert definition("mine.small").judge(package).status == "warning"
    made = ran(path)
    assert [made[name].status for name in ("mine.runs", "mine.broken", "core.test")] == ["passed", "error", "passed"]
    assert "this check itself raised IndexError" in made["mine.broken"].message


def test_the_room_imports_nothing_of_the_others() -> None:
    rooms = r"from gap_bioimage\.(validation|errors|files|pictures|seams)\b[\w.]* import"
    allowed = rf"{rooms}|from gap_bioimage import __version__$"
    for path in ROOM.rglob("*.py"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        ours = [line for line in lines if re.match(r"(from|import) gap_bioimage\b", line)]
        assert [line for line in ours if not re.match(allowed, line)] == [] and "photons" not in path.stem


def test_a_check_says_what_it_has_to_on_one_printable_line() -> None:
    for text in ("one\ntwo", "a\x1b[31mred", "x" * 2000):
        check = Check("fiji.id", "fiji", "failed", text, text)
        assert check.message.isprintable() and len(check.message) <= 900 and check.message == check.fix
    merged = registry_module.merge_outcomes(
        [("torchscript", Outcome("passed", "fine")), ("onnx", Outcome("failed", "off", "mend"))]
    )
    assert merged == Outcome("failed", "onnx: off", "mend", (), ["onnx"])  # what fails, alone
    script = "The following in the TorchScript interpreter\ncode\nRuntimeError: sizes\nCPU: registered at x.cpp"
    assert registry_module.one_sentence(script) == "RuntimeError: sizes"


def model_of(path: Path, rdf: dict[str, Any]) -> Model:
    path.write_text(yaml.safe_dump(rdf))
    with open_package(path) as (package, _):
        assert package is not None
        return Model(package, format_checks(package, with_files=False)[0], with_files=False)


def test_an_old_description_is_seen_as_format_05(tmp_path: Path) -> None:
    model = model_of(tmp_path / "rdf.yaml", OLD)
    assert (model.version, model.version_numbers) == ("0.4.10", (0, 4, 10))
    assert model.inputs[0].axis_ids == ["batch", "channel", "y", "x"]
    assert model.inputs[0].axes[2].min_step == (32, 16)
    assert "scale_range" in [step["id"] for step in model.steps]
    assert model.halo_of_input == {("photons", "y"): 2.0, ("photons", "x"): 2.0}
    assert list(model.weights) == ["pytorch_state_dict"]
    assert model.architecture == {"callable": "UNet", "source": "unet.py", "kwargs": {"depth": 4}}
    with pytest.raises(NotApplicable):  # there is the description only
        model.file_of("README.md")
    # where it cannot be upgraded, it is told in the same words
    scale = {"name": "scale_linear", "kwargs": {"gain": 2.0, "offset": 0.0, "axes": "yx"}}
    other = model_of(tmp_path / "rdf.yaml", OLD | {"inputs": [OLD["inputs"][0] | {"preprocessing": [scale]}]})
    assert other.valid is not None and other.valid.upgraded is None
    for key in ("axis_ids", "id", "data_type"):
        assert [getattr(t, key) for t in other.tensors] == [getattr(t, key) for t in model.tensors]
    assert [a.min_step for a in other.inputs[0].axes[2:]] == [a.min_step for a in model.inputs[0].axes[2:]]
    assert [a.halo for a in other.outputs[0].axes] == [0, 0, 2, 2]
    assert ("scale_linear", scale["kwargs"]) in [(step["id"], step["kwargs"]) for step in other.steps]
    # and invalid, it answers no question about tensors
    invalid = model_of(tmp_path / "rdf.yaml", OLD | {"outputs": []})
    assert invalid.valid is None
    with pytest.raises(NotApplicable, match="format"):
        _ = invalid.inputs


def test_what_got_lost_in_json_is_restored(tmp_path: Path) -> None:
    copied = json.loads(json.dumps(OLD).replace("-Infinity", "null").replace("Infinity", "null"))
    assert copied["inputs"][0]["data_range"] == [None, None]
    assert with_infinities(copied) == OLD
    assert model_of(tmp_path / "rdf.yaml", with_infinities(copied)).valid is not None


def test_a_new_description_is_seen_as_written(tmp_path: Path) -> None:
    with open_package(zips.make_zip(tmp_path)) as (package, _):
        assert package is not None
        model = Model(package)
        assert model.descr is package.rdf
        assert model.test_array(model.inputs[0]).shape == (1, 1, 32, 32)
        assert model.file_of({"source": "README.md"}) is not None
        assert model.file_of("../outside") is None
    for written, smallest in (
        ({"type": "batch", "size": 4}, 1), ({"type": "channel", "channel_names": ["a", "b"]}, 2),
        ({"type": "space", "size": 80}, 80), ({"type": "space", "size": {"min": 16, "step": 8}}, 16),
        ({"type": "space", "size": {"tensor_id": "a", "axis_id": "x"}}, 1),
    ):  # fmt: skip
        axis = Axis.of(written)
        assert (axis.smallest, axis.id) == (smallest, {"space": "x"}.get(axis.kind, axis.kind))


@pytest.mark.parametrize("version", [None, "banana", 0.5, [1], "0.5.9.9.9", "\u0660.\u0665"])
def test_strange_versions_are_none_or_numbers(tmp_path: Path, version: Any) -> None:
    model = model_of(tmp_path / "rdf.yaml", OLD | {"format_version": version})
    assert model.version_numbers in ((), (0, 5), (0, 5, 9, 9, 9))
