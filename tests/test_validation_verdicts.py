"""Who will run a model, as it follows from the checks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gap_bioimage.validation.check import Check
from gap_bioimage.validation.verdicts import how_to_run, programs, verdicts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gap_bioimage.validation.check import Status

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


def test_the_programs_are_those_that_people_know() -> None:
    assert programs() == ["core", "zoo", "fiji", "ilastik", "biapy", "qupath", "bioengine"]


def test_a_good_model_works_everywhere() -> None:
    assert verdicts(good()) == dict.fromkeys(programs(), "works")


@pytest.mark.parametrize("check_id", ["archive.files", "format.valid", "core.test"])
def test_a_broken_model_fails_for_everybody(check_id: str) -> None:
    checks = changed(good(), check_id, "failed", "weights.pt is not there", "Add it.")
    assert set(verdicts(checks).values()) == {"fails"}
    assert set(reasons(checks).values()) == {"the model itself fails: weights.pt is not there"}


def test_what_core_does_not_test_fails_the_partners_only() -> None:
    checks = changed(good(), "run.reproduces", "failed", "values differ")
    assert verdicts(checks) == {"core": "works", **dict.fromkeys(PARTNERS, "fails")}


def test_a_broken_rule_fails_its_partner_only() -> None:
    checks = changed(good(), "fiji.rule", "failed", "id is empty: Fiji stops", "Give it an id.")
    assert [name for name, verdict in verdicts(checks).items() if verdict == "fails"] == ["fiji"]
    assert reasons(checks)["fiji"] == "id is empty: Fiji stops"


def test_many_reasons_are_counted() -> None:
    more = [Check(f"fiji.{n}", "fiji", "failed", f"reason {n}") for n in range(5)]
    assert reasons([*good(), *more])["fiji"] == "reason 0; reason 1 (and 3 more)"


def test_what_degrades_fails_nobody() -> None:
    checks = changed(good(), "ilastik.rule", "warning", "tiles shrink")
    assert verdicts(checks)["ilastik"] == "works"
    assert "tiles shrink" in reasons(checks)["ilastik"]
    assert set(verdicts(changed(good(), "run.reproduces", "warning", "a seam of 2 %")).values()) == {"works"}


def test_a_check_that_raised_leaves_it_open() -> None:
    checks = changed(good(), "fiji.rule", "error", "this check itself raised KeyError")
    assert [name for name, verdict in verdicts(checks).items() if verdict == "unknown"] == ["fiji"]
    assert "fiji.rule" in reasons(checks)["fiji"]
    assert set(verdicts(changed(good(), "format.valid", "error", "raised")).values()) == {"unknown"}
    # what is known to fail fails nevertheless
    failed = [*checks, Check("fiji.id", "fiji", "failed", "id is empty")]
    assert verdicts(failed)["fiji"] == "fails"


def test_partners_without_rules_are_unknown() -> None:
    assert verdicts([check for check in good() if check.consumer != "qupath"])["qupath"] == "unknown"


def test_untested_models_are_unknown_and_the_way_out_is_named() -> None:
    assert set(verdicts(untested()).values()) == {"unknown"}
    assert all("--run-code" in reason for reason in reasons(untested()).values())
    assert "--run-code" in how_to_run(untested())


def test_of_a_description_alone_nothing_has_to_run() -> None:
    checks = [check for check in good() if check.id not in ("core.test", "run.reproduces")]
    checks.append(Check("core.output_channel", "core", "passed", "kept"))
    found = {entry.consumer: entry.verdict for entry in verdicts_of(checks, description_only=True)}
    assert set(found.values()) == {"works"}
    assert set(verdicts(checks).values()) == {"unknown"}


def test_a_broken_rule_counts_before_an_unknown_test() -> None:
    checks = changed(untested(), "fiji.rule", "failed", "two inputs")
    assert verdicts(checks)["fiji"] == "fails"
    assert verdicts(checks)["biapy"] == "unknown"


def test_biapy_is_unknown_where_its_weights_were_not_run() -> None:
    checks = changed(good(), "core.test", "passed", "torchscript: bioimageio.core's test passed in 7 runs")
    checks.append(Check("run.pytorch_state_dict", "run", "skipped", NOT_ALLOWED, "--run-code"))
    assert [name for name, verdict in verdicts(checks).items() if verdict == "unknown"] == ["biapy"]


def test_fiji_needs_one_of_its_formats_only() -> None:
    checks = [*good(), Check("run.onnx", "run", "skipped", "onnx needs onnxruntime", "Install onnxruntime.")]
    assert verdicts(checks)["fiji"] == "works"
