"""Who will run a model and its score in the zoo, as they follow from checks; held against the zoo's own reports."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zips

from gap_bioimage.validation.check import Check, Status
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.verdicts import empty_fields, how_to_run, programs, score_of, verdicts_of

ROOT = Path(__file__).parent.parent
ZOO = ROOT.parent / "shared" / "zoo" / "zoo_models.json"
TESTED, BOTH = "bioimageio.core's test passed in 7 runs", ("pytorch_state_dict", "torchscript")
NOT_ALLOWED = "pytorch_state_dict runs code from the package, which was not allowed"
PARTNERS = [name for name in programs() if name != "core"]


def good(*leave_out: str) -> list[Check]:
    """Checks of a model that everybody runs, with one rule of each partner."""
    checks = [
        Check("archive.files", "archive", "passed", "every referenced file is there"),
        Check("format.valid", "format", "passed", "a valid model description of format 0.5.9"),
        Check("core.test", "core", "passed", TESTED, "", BOTH),
        Check("run.reproduces", "run", "passed", "test outputs come out"),
        *(Check(f"{name}.rule", name, "passed", "kept") for name in PARTNERS),
    ]
    return [check for check in checks if check.id not in leave_out]


def changed(
    check_id: str, status: Status, message: str, fix: str = "", checks: Sequence[Check] = (), of: Sequence[str] = ()
) -> list[Check]:
    """The checks with another outcome of one of them."""
    made = {check.id: check for check in checks or good()}
    made[check_id] = replace(made[check_id], status=status, message=message, fix=fix, concerns=of)
    return [*made.values()]


def verdicts(checks: Sequence[Check]) -> dict[str, str]:
    return {entry.consumer: entry.verdict for entry in verdicts_of(checks)}


def reasons(checks: Sequence[Check]) -> dict[str, str]:
    return {entry.consumer: entry.reason for entry in verdicts_of(checks)}


def unknown(checks: Sequence[Check]) -> list[str]:
    return [name for name, verdict in verdicts(checks).items() if verdict == "unknown"]


ALL, OPEN = (dict.fromkeys(programs(), verdict) for verdict in ("fails", "unknown"))
STATE_DICT = Check("run.pytorch_state_dict", "run", "skipped", NOT_ALLOWED, "--run-code")
ONNX = Check("run.onnx", "run", "skipped", "onnx needs onnxruntime", "Install onnxruntime.")
# a model with state_dict weights only, whose code was not allowed to run
UNTESTED = [*changed("core.test", "skipped", "none of the weights was run", "--run-code"), STATE_DICT]


@pytest.mark.parametrize(
    ("check_id", "status", "others"),
    [
        ("core.test", "passed", {}),
        ("archive.files", "failed", ALL),
        ("format.valid", "failed", ALL),
        ("core.test", "failed", ALL),
        ("run.reproduces", "failed", {**ALL, "core": "works"}),
        ("fiji.rule", "failed", {"fiji": "fails"}),
        ("ilastik.rule", "warning", {}),
        ("run.reproduces", "warning", {}),
        ("fiji.rule", "error", {"fiji": "unknown"}),
        ("format.valid", "error", OPEN),
        ("run.reproduces", "error", {**OPEN, "core": "works"}),
    ],
)
def test_verdicts_follow_from_the_checks(check_id: str, status: Status, others: dict[str, str]) -> None:
    checks = changed(check_id, status, "something was found", "Mend it.")
    assert verdicts(checks) == dict.fromkeys(programs(), "works") | others
    told = reasons(checks)
    assert all("something was found" in told[name] for name, verdict in others.items() if verdict != "works")
    if others == ALL:
        assert set(told.values()) == {"the model itself fails: something was found"}


@pytest.mark.parametrize("check_id", ["core.test", "run.reproduces"])
def test_weights_that_fail_are_no_matter_to_programs_that_do_not_read_them(check_id: str) -> None:
    found = verdicts(changed(check_id, "failed", "parsing failed; torchscript: no", of=["onnx"]))
    assert {name for name, word in found.items() if word == "works"} == {"ilastik", "biapy"} | (
        set() if check_id == "core.test" else {"core"}
    )
    assert verdicts([*changed("core.test", "failed", "other values", of=["onnx"]), STATE_DICT])["biapy"] == "unknown"
    assert verdicts(changed("core.test", "failed", "other values", of=["onnx", "torchscript"]))["ilastik"] == "fails"


def test_what_is_known_to_fail_fails_whatever_is_unknown() -> None:
    more = [Check(f"fiji.{n}", "fiji", "failed", f"reason {n}") for n in range(5)]
    for checks in (changed("fiji.rule", "error", "raised"), UNTESTED):
        assert verdicts([*checks, *more])["fiji"] == "fails"
        assert reasons([*checks, *more])["fiji"] == "reason 0; reason 1 (and 3 more)"


def test_what_could_not_be_found_out_leaves_it_open_and_names_the_way_out() -> None:
    checks = changed("fiji.rule", "skipped", "the files are not here", "Validate them too.")
    assert unknown(checks) == ["fiji"]
    assert reasons(checks)["fiji"] == "the files are not here. Validate them too."
    assert unknown(changed("fiji.rule", "skipped", "no torchscript weights")) == []
    assert unknown(good("qupath.rule")) == ["qupath"]
    assert verdicts(UNTESTED) == OPEN
    assert all("--run-code" in told for told in (*reasons(UNTESTED).values(), how_to_run(UNTESTED)))
    assert unknown([*changed("core.test", "passed", TESTED, of=["torchscript"]), STATE_DICT]) == ["biapy"]
    assert verdicts([*good(), ONNX])["fiji"] == "works"


def test_of_a_description_alone_nothing_has_to_run() -> None:
    checks = [*good("core.test", "run.reproduces"), Check("core.output_channel", "core", "passed", "kept")]
    assert {entry.verdict for entry in verdicts_of(checks, description_only=True)} == {"works"}
    assert verdicts(checks) == OPEN


def differing() -> list[Check]:
    checks = changed("core.test", "failed", "outputs differ", "Export them again.")
    return changed("run.reproduces", "failed", "outputs differ", "Export them again.", checks)


@pytest.mark.parametrize(
    ("checks", "total", "raise_it"),
    [
        (good(), 7.5, "+0.50 at most: fill in version"),
        (differing(), 3.5, "+4.00 if its test passes: Export them again. (core.test, run.reproduces)"),
        ([check for check in UNTESTED if check.id != "run.reproduces"], 1.5, "+6.00 if its test passes: --run-code"),
        (changed("format.valid", "failed", "no", "Give it."), 0, "+7.00 if its test passes: Give it. (format.valid)"),
        (changed("archive.files", "failed", "no", "Add it."), 0, "+7.00 if its test passes: Add it. (archive.files)"),
    ],
)  # fmt: skip
def test_the_score_is_what_runs_and_reproduces_and_the_metadata(
    checks: list[Check], total: float, raise_it: str
) -> None:
    found = score_of(checks, 0.5, ["version"])
    assert (found.total, sum(found.parts.values()), found.raise_it[0]) == (total, total, raise_it)
    assert list(found.parts) == ["format", "inference", "reproduces", "metadata"]


def test_the_fields_that_are_empty_are_named(tmp_path: Path) -> None:
    from bioimageio.spec import ValidationContext, load_description

    config = {"bioimageio": {"modality": "light", "task": ""}}
    with ValidationContext(perform_io_checks=False):
        descr = load_description(zips.make_zip(tmp_path, zips.put("config", value=config)))
    found = empty_fields(descr)
    assert {"version", "config.bioimageio.task"} <= {*found}
    assert {"git_repo", "config.bioimageio.modality"}.isdisjoint(found)
    odd = zips.make_zip(tmp_path, zips.both(zips.to_format_0_4(), zips.put("config", value={"bioimageio": True})))
    assert validate(odd, description_only=True).status == "passed"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("zoo")


@pytest.fixture(scope="module")
def cases(benchmark: Any) -> Any:
    if not ZOO.exists():
        pytest.skip("the zoo's reports are not here")
    return benchmark.judge(json.loads(ZOO.read_text(encoding="utf-8")))


def test_verdicts_hold_against_the_zoos_reports(benchmark: Any, cases: Any) -> None:
    figures = {tool: benchmark.figures(found) for tool, found in cases.items()}
    assert figures["biapy"]["right"] >= 0.98
    assert figures["ilastik"]["right"] >= 0.88
    assert figures["deepimagej"]["passes_said_to_work"] == 1
    assert figures["deepimagej"]["own_failures_said_to_work"] <= 0.1
    left_open = {tool: sum(case.said == "unknown" for case in found) for tool, found in cases.items()}
    assert left_open == {"biapy": 0, "ilastik": 0, "deepimagej": 3, "bioimageio.core": 25}
    core = figures["bioimageio.core"]  # what it decides it may decide wrongly, but never against a model that passes
    assert core["passes_said_to_fail"] == 0 and core["right_of_models"] >= 0.8
    assert core["passes_said_to_work"] >= 0.75 and core["own_failures_said_to_work"] <= 0.25
