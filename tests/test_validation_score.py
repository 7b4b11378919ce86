"""The zoo's score: 1 for the format, 2 for running, 4 for reproducing, up to 1 for metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import zips
from test_validation_verdicts import changed, good, untested

from gap_bioimage.validation.check import Check
from gap_bioimage.validation.score import Completeness, completeness_of, score_of

if TYPE_CHECKING:
    from pathlib import Path

HALF = Completeness(frozenset({"name", "tags"}), frozenset({"name", "tags", "version", "icon"}))


def test_a_good_model_gets_all_but_what_its_metadata_lack() -> None:
    found = score_of(good(), HALF)
    assert found.total == 7.5
    assert found.parts == {"format": 1.0, "inference": 2.0, "reproduces": 4.0, "metadata": 0.5}
    assert found.raise_it == ("+0.25: fill in version",)


def test_a_model_that_runs_and_gives_other_values_keeps_two() -> None:
    checks = changed(good(), "core.test", "failed", "outputs differ", "Export them again.")
    checks = changed(checks, "run.reproduces", "failed", "outputs differ", "Export them again.")
    found = score_of(checks, HALF)
    assert (found.total, found.parts["inference"], found.parts["reproduces"]) == (3.5, 2.0, 0.0)
    assert found.raise_it[0] == "+4.00: export them again (core.test, run.reproduces)"


def test_a_model_that_does_not_run_keeps_the_format() -> None:
    checks = [check for check in good() if check.id != "run.reproduces"]
    assert score_of(changed(checks, "core.test", "failed", "does not load", "Mend it."), HALF).total == 1.5


def test_what_was_not_run_counts_nothing_and_the_way_out_is_named() -> None:
    checks = [check for check in untested() if check.id != "run.reproduces"]
    found = score_of(checks, HALF)
    assert found.total == 1.5
    assert found.raise_it[0] == "+6.00 if its test passes: validate with --run-code"


@pytest.mark.parametrize("check_id", ["format.valid", "archive.files"])
def test_an_invalid_description_scores_nothing_at_all(check_id: str) -> None:
    checks = changed(good(), check_id, "failed", "license is missing", "State it.")
    assert score_of(checks).total == 0
    unrun = changed(checks, "core.test", "skipped", "not run, since its description is broken")
    unrun = [check for check in unrun if check.id != "run.reproduces"]
    assert score_of(unrun).raise_it == (f"+1.00, and 6.00 more if its test passes then: state it ({check_id})",)


def test_partners_do_not_enter() -> None:
    assert score_of(changed(good(), "fiji.rule", "failed", "no id", "Give one."), HALF) == score_of(good(), HALF)


def test_nothing_readable_scores_nothing() -> None:
    found = score_of([Check("archive.rdf", "archive", "failed", "rdf.yaml is no mapping")])
    assert found.total == 0
    assert found.parts == dict.fromkeys(("format", "inference", "reproduces", "metadata"), 0.0)


def test_filling_in_fills_sections_too() -> None:
    counted = Completeness(frozenset({"name"}), frozenset({"name", "config", "config.bioimageio"}))
    assert counted.filled(["config.bioimageio"]).share == 1.0


def test_fields_are_counted_as_bioimageio_spec_counts_them(tmp_path: Path) -> None:
    from bioimageio.spec import ValidationContext, load_description

    with ValidationContext(perform_io_checks=False):
        descr = load_description(zips.make_zip(tmp_path))
    assert completeness_of(descr).share == descr.validation_summary.metadata_completeness
