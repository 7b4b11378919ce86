"""The report in the terminal: its table, verdicts and score."""

from __future__ import annotations

import io

from rich.console import Console

from gap_bioimage.validation.check import Check
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.terminal import print_report
from gap_bioimage.validation.score import Score
from gap_bioimage.validation.verdicts import Verdict

CHECKS = (
    Check("archive.paths", "archive", "passed", "all paths stay inside"),
    Check("fiji.id", "fiji", "failed", "id is [empty]", "Give the model an id."),
    Check("fiji.frozen", "fiji", "skipped", "no torchscript weights"),
)
VERDICTS = (
    Verdict("core", "works", "its test passes"),
    Verdict("fiji", "fails", "id is [empty]"),
    Verdict("biapy", "unknown", "weights were not run"),
    Verdict("qupath", "unknown", "weights were not run"),
)


def printed(report: Report) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    return out.getvalue()


def lines(report: Report) -> list[str]:
    return [" ".join(line.split()) for line in printed(report).splitlines() if line.strip()]


def test_the_table_names_what_to_do() -> None:
    text = printed(Report("m.zip", CHECKS))
    assert "id is [empty]" in text
    assert "Give the model an id." in text
    assert "all paths stay inside" not in text
    assert "no torchscript weights" not in text
    assert "1 failed" in text


def test_without_verdicts_there_is_only_the_table() -> None:
    text = printed(Report("m.zip", CHECKS))
    assert "score" not in text
    assert "BiaPy" not in text
    ran = Check("core.test", "core", "passed", "its test passed")
    assert lines(Report("m.zip", (ran,)))[-1] == "passed m.zip (1 passed)"


def test_a_model_that_was_not_run_has_not_passed() -> None:
    skipped = Check("core.test", "core", "skipped", "none of the weights was run", "--run-code")
    found = lines(Report("m.zip", (CHECKS[0], skipped)))
    assert "not run m.zip (1 passed, 1 skipped)" in found
    assert "the model was not run. Validate again with --run-code, which allows the Python code" in " ".join(found)
    other = Check("core.test", "core", "skipped", "onnx needs onnxruntime", "Install onnxruntime.")
    assert lines(Report("m.zip", (other,)))[-1].endswith("the model was not run. Install onnxruntime.")
    assert lines(Report("m.zip", CHECKS))[-1].startswith("failed m.zip")  # what failed has failed, run or not


def test_every_program_has_its_line_and_a_shared_reason_is_said_once() -> None:
    found = lines(Report("m.zip", CHECKS, VERDICTS))
    start = found.index("bioimageio.core works its test passes")
    assert found[start + 1 : start + 4] == [
        "Fiji (deepImageJ) fails id is [empty]",
        "BiaPy unknown weights were not run",
        "QuPath unknown",
    ]


def test_the_score_shows_its_parts_and_three_remedies() -> None:
    parts = {"format": 1.0, "inference": 2.0, "reproduces": 0.0, "metadata": 1 / 3}
    remedies = tuple(f"+0.0{9 - n}: remedy [{n}]" for n in range(5))
    found = lines(Report("m.zip", CHECKS, VERDICTS, Score(3.33, parts, remedies)))
    line = next(n for n, text in enumerate(found) if "3.33 of 8" in text)
    told = " ".join(found[line : line + 2])
    assert "valid format 1.00 runs 2.00 reproduces its test 0.00 metadata 0.33" in told
    assert [text for text in found if "remedy" in text] == list(remedies[:3])
