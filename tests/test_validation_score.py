"""Who will run a model, and the zoo's score: from checks to verdicts, numbers and advice."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml
import zips
from gap_bioimage.validation.old_rules import all_rules
from gap_bioimage.validation.reports.score import (
    METADATA_RULES,
    NAMES,
    SCORED_PARTNERS,
    Completeness,
    Score,
    completeness_as_written,
    completeness_of,
    score_of,
    verdicts_of,
)

from gap_bioimage.validation.checks import PARTNER_CONSUMERS, Check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gap_bioimage.validation.checks import Status

TESTED = "pytorch_state_dict, torchscript: bioimageio.core's test passed in 7 runs"
NOT_ALLOWED = "pytorch_state_dict runs code from the package, which was not allowed"


def good() -> list[Check]:
    """Checks of a model that everybody runs, with one rule of each partner."""
    partners = [Check(f"{name}.rule", name, "passed", "kept") for name in PARTNER_CONSUMERS if name != "zoo"]
    return [
        Check("archive.files", "archive", "passed", "every referenced file is there"),
        Check("format.valid", "format", "passed", "a valid model description of format 0.5.9"),
        Check("core.test", "core", "passed", TESTED),
        Check("run.zero", "run", "passed", "an all-zero input gives finite outputs"),
        *(Check(name, "zoo", "passed", "kept") for name in METADATA_RULES),
        *partners,
    ]


def changed(checks: Sequence[Check], check_id: str, status: Status, message: str, fix: str = "") -> list[Check]:
    """The checks with another outcome of one of them."""
    assert any(check.id == check_id for check in checks)
    return [
        replace(check, status=status, message=message, fix=fix) if check.id == check_id else check for check in checks
    ]


def verdicts(checks: Sequence[Check]) -> dict[str, str]:
    return {entry.consumer: entry.verdict for entry in verdicts_of(checks)}


def reasons(checks: Sequence[Check]) -> dict[str, str]:
    return {entry.consumer: entry.reason for entry in verdicts_of(checks)}


def score(checks: Sequence[Check], completeness: Completeness | None = None) -> Score:
    return score_of(checks, verdicts_of(checks), completeness)


def untested() -> list[Check]:
    """A model with state_dict weights only, whose code was not allowed to run."""
    skipped = Check("run.pytorch_state_dict", "run", "skipped", NOT_ALLOWED, "--run-code")
    return [*changed(good(), "core.test", "skipped", "none of the weights was run", "--run-code"), skipped]


def test_the_names_of_rules_and_programs_exist() -> None:
    assert set(METADATA_RULES) <= {rule.id for rule in all_rules()}
    assert set(SCORED_PARTNERS) <= set(PARTNER_CONSUMERS) <= set(NAMES)


def test_a_good_model_works_everywhere_and_scores_one() -> None:
    assert verdicts(good()) == dict.fromkeys(("core", *PARTNER_CONSUMERS), "works")
    assert score(good()) == Score(1.0, {"format": 1.0, "metadata": 1.0, "core": 1.0, "partners": 1.0}, ())


@pytest.mark.parametrize("check_id", ["archive.files", "format.valid", "core.test"])
def test_a_broken_model_fails_for_everybody(check_id: str) -> None:
    checks = changed(good(), check_id, "failed", "weights.pt is not there", "Add it.")
    assert set(verdicts(checks).values()) == {"fails"}
    assert set(reasons(checks).values()) == {"the model itself fails: weights.pt is not there"}


def test_what_core_does_not_test_fails_the_partners_only() -> None:
    checks = changed(good(), "run.zero", "failed", "values are not finite")
    assert verdicts(checks) == {"core": "works", **dict.fromkeys(PARTNER_CONSUMERS, "fails")}
    assert score(checks).parts == {"format": 1.0, "metadata": 1.0, "core": 1.0, "partners": 0.0}


def test_a_broken_rule_fails_its_partner_only() -> None:
    checks = changed(good(), "fiji.rule", "failed", "id is empty: Fiji stops", "Give it an id.")
    assert [name for name, verdict in verdicts(checks).items() if verdict == "fails"] == ["fiji"]
    assert reasons(checks)["fiji"] == "id is empty: Fiji stops"


def test_many_reasons_are_counted() -> None:
    more = [Check(f"fiji.{n}", "fiji", "failed", f"reason {n}") for n in range(5)]
    assert reasons([*good(), *more])["fiji"] == "reason 0; reason 1 (and 3 more)"


def test_advice_fails_nobody() -> None:
    checks = changed(good(), "ilastik.rule", "warning", "tiles shrink")
    assert verdicts(checks)["ilastik"] == "works"
    assert reasons(checks)["ilastik"] == "advice: tiles shrink"


def test_partners_without_rules_are_unknown() -> None:
    checks = [check for check in good() if check.consumer != "qupath"]
    assert verdicts(checks)["qupath"] == "unknown"


def test_untested_models_are_unknown_and_the_way_out_is_named() -> None:
    checks = untested()
    assert set(verdicts(checks).values()) == {"unknown"}
    assert all("--run-code" in reason for reason in reasons(checks).values())
    found = score(checks)
    assert found.total == pytest.approx(0.5)
    assert found.raise_it == ("+0.50 if its test passes: validate with --run-code",)


def test_a_broken_rule_counts_before_an_unknown_test() -> None:
    checks = changed(untested(), "fiji.rule", "failed", "weights are given as pytorch_state_dict only")
    assert verdicts(checks)["fiji"] == "fails"
    assert verdicts(checks)["biapy"] == "unknown"


def test_biapy_is_unknown_where_its_weights_were_not_run() -> None:
    checks = changed(good(), "core.test", "passed", "torchscript: bioimageio.core's test passed in 7 runs")
    checks.append(Check("run.pytorch_state_dict", "run", "skipped", NOT_ALLOWED, "--run-code"))
    unknown = [name for name, verdict in verdicts(checks).items() if verdict == "unknown"]
    assert unknown == ["biapy"]
    assert score(checks).raise_it == ("+0.08 if its test passes: validate with --run-code",)


def test_fiji_needs_one_of_its_formats_only() -> None:
    checks = [*good(), Check("run.onnx", "run", "skipped", "onnx needs onnxruntime", "Install onnxruntime.")]
    assert verdicts(checks)["fiji"] == "works"


def test_the_score_is_a_quarter_of_each_part() -> None:
    checks = changed(good(), "zoo.maintainers", "failed", "nobody", "Give a maintainer with a github_user.")
    checks = changed(checks, "zoo.cover", "warning", "no cover", "Add one.")
    checks = changed(checks, "biapy.rule", "failed", "kwargs are empty", "Write all keyword arguments.")
    found = score(checks)
    assert found.parts == {"format": 1.0, "metadata": 0.8, "core": 1.0, "partners": pytest.approx(2 / 3)}
    assert found.total == pytest.approx(0.25 * (1 + 0.8 + 1 + 2 / 3))
    assert found.raise_it == (
        "+0.08 with BiaPy: write all keyword arguments (biapy.rule)",
        "+0.03: add one (zoo.cover)",
        "+0.03: give a maintainer with a github_user (zoo.maintainers)",
    )


def test_gains_are_what_mending_brings() -> None:
    broken = changed(good(), "ilastik.rule", "failed", "two outputs", "Use one.")
    broken.append(Check("ilastik.other", "ilastik", "failed", "strange axes", "Rename them."))
    mended = [replace(check, status="passed") if check.consumer == "ilastik" else check for check in broken]
    gain = score(mended).total - score(broken).total
    assert score(broken).raise_it == (f"+{gain:.2f} with ilastik: use one; rename them (ilastik.rule, ilastik.other)",)


def test_partners_that_the_zoo_does_not_score_gain_nothing() -> None:
    checks = changed(good(), "qupath.rule", "failed", "3D", "Give 2D weights.")
    assert score(checks) == score(good())


def test_a_broken_description_promises_the_test_separately() -> None:
    checks = changed(good(), "format.valid", "failed", "license is missing", "State it.")
    checks = changed(checks, "core.test", "skipped", "not run, since its description is broken")
    found = score(checks)
    assert found.total == pytest.approx(0.25)
    assert found.raise_it == ("+0.25, and 0.50 more if its test passes then: state it (format.valid)",)


def test_nothing_readable_scores_nothing() -> None:
    found = score([Check("archive.rdf", "archive", "failed", "rdf.yaml is no mapping")])
    assert found.total == 0
    assert found.parts == {"format": 0.0, "metadata": 0.0, "core": 0.0, "partners": 0.0}


def test_counted_fields_replace_the_share_of_rules() -> None:
    counted = Completeness(frozenset({"name"}), frozenset({"name", "version", "license", "icon"}))
    found = score(changed(good(), "zoo.cover", "warning", "no cover", "Add one."), counted)
    assert found.parts["metadata"] == 0.25
    assert found.raise_it == ("+0.06: fill in version",)


def test_filling_in_fills_sections_too() -> None:
    counted = Completeness(frozenset({"name"}), frozenset({"name", "config", "config.bioimageio"}))
    assert counted.filled(["config.bioimageio"]).share == 1.0


def test_fields_are_counted_as_bioimageio_spec_counts_them(tmp_path: Path) -> None:
    from bioimageio.spec import ValidationContext, load_description

    with ValidationContext(perform_io_checks=False):
        path = zips.make_zip(tmp_path)
        descr = load_description(path)
    assert completeness_of(descr).share == descr.validation_summary.metadata_completeness
    # without bioimageio.spec's object nearly as many fields are known
    with zipfile.ZipFile(path) as archive:
        written = completeness_as_written(yaml.safe_load(archive.read("rdf.yaml")))
    assert written.share == pytest.approx(completeness_of(descr).share, abs=0.05)
