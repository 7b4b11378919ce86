"""The table of all checks, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zips

from gap_bioimage.validation.archive.facts import Facts
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.catalogue import as_markdown, catalogue
from gap_bioimage.validation.checks import CONSUMERS
from gap_bioimage.validation.old_rules import all_rules
from gap_bioimage.validation.report import validate
from gap_bioimage.validation.running.dynamic import DYNAMIC_CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parent.parent / "docs" / "checks.md"


def test_the_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == as_markdown(), "write it again: gap-bioimage validate --list --markdown > docs/checks.md"


def test_ids_are_unique_and_belong_to_a_consumer() -> None:
    ids = [entry.id for entry in catalogue()]
    assert len(ids) == len(set(ids))
    for entry in catalogue():
        assert entry.consumer == entry.id.split(".")[0]
        assert entry.consumer in CONSUMERS


def test_every_entry_says_what_it_is_about() -> None:
    for entry in catalogue():
        assert entry.asks.endswith((".", ".)")), entry.id
        assert entry.breaks and not entry.breaks.endswith("."), entry.id
        assert entry.fix.endswith("."), entry.id


def test_rules_and_checks_of_a_running_model_are_in_it() -> None:
    entries = {entry.id: entry for entry in catalogue()}
    for rule in all_rules():
        assert entries[rule.id].how == "static"
        assert entries[rule.id].fix == rule.fix
    for check in DYNAMIC_CHECKS:
        assert entries[check.id].how == "run"
        assert entries[check.id].asks in (check.judge.__doc__ or "")


def other_files(rdf: dict[str, Any]) -> None:
    rdf["documentation"] = "https://example.org/README.md"
    rdf["maintainers"][0]["github_user"] = "nobody-known"


def keras(rdf: dict[str, Any]) -> None:
    rdf["weights"]["tensorflow_js"] = {**rdf["weights"]["torchscript"], "tensorflow_version": "2.0"}


@pytest.mark.parametrize("mutate", [None, other_files, keras, lambda rdf: rdf.pop("inputs")])
@pytest.mark.parametrize("run_code", [False, True])
def test_every_check_of_a_report_is_in_it(
    tmp_path: Path, mutate: Callable[[dict[str, Any]], None] | None, run_code: bool
) -> None:
    report = validate(zips.make_zip(tmp_path, mutate), run_code=run_code)
    order = [entry.id for entry in catalogue()]
    found = [check.id for check in report.checks]
    assert set(found) <= set(order)
    known = [check_id for check_id in order if check_id in found]
    sections = [list(dict.fromkeys(check_id.split(".")[0] for check_id in ids)) for ids in (found, known)]
    assert sections[0] == sections[1]


def test_the_page_tells_every_check_in_one_row() -> None:
    rows = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(catalogue())
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)
    assert [line[3:] for line in as_markdown().splitlines() if line.startswith("## ")] == list(CONSUMERS)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"id": "custom", "callable": "Op"}, "custom Python code"),
        ({"id": "softmax", "kwargs": {"axis": "channel"}}, "Compute softmax inside the network's graph"),
        ({"id": "clip", "kwargs": {"min": 0}}, "both a min and a max"),
        ({"id": "scale_linear", "kwargs": {"gain": [1, 2], "offset": 0}}, "one gain for all channels"),
    ],
)
def test_what_to_do_about_a_processing_step_depends_on_the_step(
    tmp_path: Path, step: dict[str, Any], words: str
) -> None:
    path = zips.make_zip(tmp_path, zips.put("outputs", 0, "postprocessing", value=[step]))
    with open_package(path) as (package, _):
        assert package is not None
        rule = next(rule for rule in all_rules() if rule.id == "fiji.processing_ops")
        check = rule.judge(Facts(package))
    assert check.status == "failed"
    assert words in check.fix
    assert "normalisation" not in check.fix
