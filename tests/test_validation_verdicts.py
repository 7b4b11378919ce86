"""Who will run a model, and its score in the zoo, as they follow from the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zips

from gap_bioimage.validation.check import Check, Status
from gap_bioimage.validation.verdicts import empty_fields, how_to_run, programs, score_of, verdicts_of

TESTED = "pytorch_state_dict, torchscript: bioimageio.core's test passed in 7 runs"
NOT_ALLOWED = "pytorch_state_dict runs code from the package, which was not allowed"
PARTNERS = [name for name in programs() if name != "core"]


def good() -> list[Check]:
    """Checks of a model that everybody runs, with one rule of each partner."""
    return [
        Check("archive.files", "archive", "passed", "every referenced file is there"),
        Check("format.valid", "format", "passed", "a valid model description of format 0.5.9"),
        Check("core.test", "core", "passed", TESTED),
        Check("run.reproduces", "run", "passed", "test outputs come out"),
        *(Check(f"{name}.rule", name, "passed", "kept") for name in PARTNERS),
    ]


def changed(checks: Sequence[Check], check_id: str, status: Status, message: str, fix: str = "") -> list[Check]:
    """The checks with another outcome of one of them."""
    assert any(check.id == check_id for check in checks)
    return [
        replace(check, status=status, message=message, fix=fix) if check.id == check_id else check for check in checks
    ]


def untested() -> list[Check]:
    """A model with state_dict weights only, whose code was not allowed to run."""
    skipped = Check("run.pytorch_state_dict", "run", "skipped", NOT_ALLOWED, "--run-code")
    return [*changed(good(), "core.test", "skipped", "none of the weights was run", "--run-code"), skipped]


def verdicts(checks: Sequence[Check]) -> dict[str, str]:
    return {entry.consumer: entry.verdict for entry in verdicts_of(checks)}


def reasons(checks: Sequence[Check]) -> dict[str, str]:
    return {entry.consumer: entry.reason for entry in verdicts_of(checks)}


ALL = dict.fromkeys(programs(), "fails")
OPEN = dict.fromkeys(programs(), "unknown")
BIAPY = Check("run.pytorch_state_dict", "run", "skipped", NOT_ALLOWED, "--run-code")
ONNX = Check("run.onnx", "run", "skipped", "onnx needs onnxruntime", "Install onnxruntime.")


@pytest.mark.parametrize(
    ("check_id", "status", "others"),
    [
        ("core.test", "passed", {}),
        # a broken model fails for everybody, what core does not test fails the partners only
        ("archive.files", "failed", ALL),
        ("format.valid", "failed", ALL),
        ("core.test", "failed", ALL),
        ("run.reproduces", "failed", {**ALL, "core": "works"}),
        ("fiji.rule", "failed", {"fiji": "fails"}),
        # what degrades fails nobody
        ("ilastik.rule", "warning", {}),
        ("run.reproduces", "warning", {}),
        # what raised leaves it open
        ("fiji.rule", "error", {"fiji": "unknown"}),
        ("format.valid", "error", OPEN),
        ("run.reproduces", "error", {**OPEN, "core": "works"}),
    ],
)
def test_verdicts_follow_from_the_checks(check_id: str, status: Status, others: dict[str, str]) -> None:
    checks = changed(good(), check_id, status, "something was found", "Mend it.")
    assert verdicts(checks) == dict.fromkeys(programs(), "works") | others
    told = reasons(checks)
    assert all("something was found" in told[name] for name, verdict in others.items() if verdict != "works")
    if others == ALL:
        assert set(told.values()) == {"the model itself fails: something was found"}


def test_what_is_known_to_fail_fails_whatever_is_unknown() -> None:
    more = [Check(f"fiji.{n}", "fiji", "failed", f"reason {n}") for n in range(5)]
    for checks in (changed(good(), "fiji.rule", "error", "raised"), untested()):
        assert verdicts([*checks, *more])["fiji"] == "fails"
        assert reasons([*checks, *more])["fiji"] == "reason 0; reason 1 (and 3 more)"


def test_what_could_not_be_found_out_leaves_it_open() -> None:
    checks = changed(good(), "fiji.rule", "skipped", "the files are not here", "Validate them too.")
    assert [name for name, verdict in verdicts(checks).items() if verdict == "unknown"] == ["fiji"]
    assert reasons(checks)["fiji"] == "the files are not here. Validate them too."
    assert verdicts(changed(good(), "fiji.rule", "skipped", "no torchscript weights"))["fiji"] == "works"
    assert verdicts([check for check in good() if check.consumer != "qupath"])["qupath"] == "unknown"


def test_untested_models_are_unknown_and_the_way_out_is_named() -> None:
    assert verdicts(untested()) == OPEN
    assert all("--run-code" in reason for reason in reasons(untested()).values())
    assert "--run-code" in how_to_run(untested())


def test_of_a_description_alone_nothing_has_to_run() -> None:
    checks = [check for check in good() if check.id not in ("core.test", "run.reproduces")]
    checks.append(Check("core.output_channel", "core", "passed", "kept"))
    assert {entry.verdict for entry in verdicts_of(checks, description_only=True)} == {"works"}
    assert verdicts(checks) == OPEN


def test_a_program_is_unknown_where_none_of_its_weights_was_run() -> None:
    checks = changed(good(), "core.test", "passed", "torchscript: bioimageio.core's test passed in 7 runs")
    assert [name for name, verdict in verdicts([*checks, BIAPY]).items() if verdict == "unknown"] == ["biapy"]
    assert verdicts([*good(), ONNX])["fiji"] == "works"


HALF = (0.5, ["version"])


def test_a_good_model_gets_all_but_what_its_metadata_lack() -> None:
    found = score_of(good(), *HALF)
    assert found.total == 7.5
    assert found.parts == {"format": 1.0, "inference": 2.0, "reproduces": 4.0, "metadata": 0.5}
    assert found.raise_it == ("+0.50 at most: fill in version",)


def test_a_model_that_runs_and_gives_other_values_keeps_two() -> None:
    checks = changed(good(), "core.test", "failed", "outputs differ", "Export them again.")
    checks = changed(checks, "run.reproduces", "failed", "outputs differ", "Export them again.")
    found = score_of(checks, *HALF)
    assert (found.total, found.parts["inference"], found.parts["reproduces"]) == (3.5, 2.0, 0.0)
    assert found.raise_it[0] == "+4.00 if its test passes: Export them again. (core.test, run.reproduces)"


def test_what_was_not_run_counts_nothing_and_the_way_out_is_named() -> None:
    found = score_of([check for check in untested() if check.id != "run.reproduces"], *HALF)
    assert (found.total, found.raise_it[0]) == (1.5, "+6.00 if its test passes: --run-code")


@pytest.mark.parametrize("check_id", ["format.valid", "archive.files"])
def test_an_invalid_description_scores_nothing_at_all(check_id: str) -> None:
    found = score_of(changed(good(), check_id, "failed", "license is missing", "State it."))
    assert (found.total, found.raise_it) == (0, (f"+7.00 if its test passes: State it. ({check_id})",))


def test_the_fields_that_are_empty_are_named(tmp_path: Path) -> None:
    from bioimageio.spec import ValidationContext, load_description

    config = {"bioimageio": {"modality": "light", "task": ""}}
    with ValidationContext(perform_io_checks=False):
        descr = load_description(zips.make_zip(tmp_path, zips.put("config", value=config)))
    found = empty_fields(descr)
    assert {"version", "config.bioimageio.task"} <= {*found}
    assert {"git_repo", "config.bioimageio.modality"}.isdisjoint(found)
