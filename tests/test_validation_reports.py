"""Reports as a page, in the terminal and as JUnit XML, and the list of all checks."""

import io
import re
from base64 import b64encode
from collections import Counter
from html import unescape
from pathlib import Path
from xml.etree import ElementTree as ET

import zips
from rich.console import Console

from gap_bioimage.validation.check import RUN_CODE, Check, Picture, consumers, definition, registry
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.html import render_html
from gap_bioimage.validation.reports.terminal import as_markdown, print_report, render_junit
from gap_bioimage.validation.verdicts import Score, Verdict

PAGE = Path(__file__).parent.parent / "docs" / "checks.md"
CHECKS = (
    Check("archive.files", "archive", "passed", "every file is there"),
    Check("zoo.cover", "zoo", "warning", "there is no cover", "Add a cover."),
    Check("biapy.kwargs", "biapy", "warning", "the kwargs are [empty]", "Write the kwargs."),
    Check("run.onnx", "run", "skipped", "onnx was not run", "Install onnxruntime."),
    Check("run.pytorch_state_dict", "run", "skipped", "code was not allowed", RUN_CODE),
    Check("core.test", "core", "skipped", "nothing was run", RUN_CODE),
    Check("fiji.frozen", "fiji", "skipped", "no torchscript weights"),
    Check("run.zero", "run", "failed", "values are <1> & more", 'Guard "divisions".'),
)
VERDICTS = (
    Verdict("core", "works", "its test passes"),
    Verdict("fiji", "works", "keeps all of its rules"),
    Verdict("biapy", "fails", "the kwargs are [empty]"),
    Verdict("qupath", "unknown", "no rules were checked"),
    Verdict("bioengine", "unknown", "no rules were checked"),
)
PARTS = {"format": 1.0, "inference": 2.0, "reproduces": 0.0, "metadata": 0.5}
SCORE = Score(3.5, PARTS, ("+4.00: export [again]", "+0.3: b", "+0.2: c", "+0.1: d"))
REPORT = Report("m.zip", CHECKS, VERDICTS, SCORE)
HOSTILE = "</style><script>alert(1)</script><img src=https://evil.invalid/x onerror=alert(2)>\" onload='x' {{ 7 * 7 }}"


def page(*reports: Report) -> str:
    """The page, of which every tag is closed."""
    html = render_html(reports)
    opened = Counter(re.findall(r"<(\w+)(?=[\s>])(?![^>]*/>)", tags_of(html)))
    void = ("meta", "img", "br", "link")
    assert {tag: n for tag, n in opened.items() if tag not in void} == Counter(re.findall(r"</(\w+)>", html))
    return html


def tags_of(html: str) -> str:
    """The page without the values of attributes."""
    return re.sub(r'"[^"]*"', "", html)


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL)).split())


def values(html: str, attribute: str) -> list[str]:
    return [unescape(value) for value in re.findall(rf' {attribute}="([^"]*)"', html)]


def printed(report: Report) -> list[str]:
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def test_the_headline_says_who_will_run_it() -> None:
    text = text_of(page(REPORT))
    assert "works in bioimageio.core and Fiji (deepImageJ). It fails in BiaPy: the kwargs are [empty]." in text
    assert "in QuPath and BioEngine is not known: no rules were checked." in text


def test_a_model_that_was_not_run_has_not_passed() -> None:
    unrun = (CHECKS[0], Check("core.test", "core", "skipped", "none of the weights was run", RUN_CODE))
    report = Report("m.zip", unrun, (Verdict("core", "unknown", "it was not run"),))
    ran = Report("r.zip", (Check("core.test", "core", "passed", "its test passed"),), VERDICTS[:1])
    html = page(report, ran)
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r'class="badge (\w+)"', table) == ["unknown", "mixed", "works", "passed"]
    assert "not run m.zip (1 passed, 1 skipped)" in printed(report)
    assert printed(ran)[-1] == "passed r.zip (1 passed)"
    for text in (text_of(page(report)), " ".join(printed(report))):
        assert "Validate with --run-code" in text


def test_what_to_do_is_sorted_by_need_and_told_in_words() -> None:
    html = page(REPORT)
    todo = html[html.index("What to do") : html.index("<details>")]
    fixes = re.findall(r'class="fix quoted">([^<]*)', todo)
    assert [fix.split()[0] for fix in fixes] == ["Guard", "Write", "Add", "Install", "Validate"]
    words = re.findall(r"failed|needed|advice|not checked", text_of(todo[todo.index("<ol") : todo.index("</ol>")]))
    assert words == ["failed", "needed", "advice", "not checked", "not checked"]


def test_all_checks_are_in_the_pages_table_and_what_matters_in_the_terminal() -> None:
    html = page(REPORT)
    table = text_of(html[html.index("<details>") : html.index("</details>")])
    assert "All 8 checks: 1 failed, 2 warnings, 1 passed, 4 not checked" in table
    assert all(check.id in table and check.message in table for check in CHECKS)
    text = " ".join(printed(REPORT))
    assert "kwargs are [empty]" in text and "Write the kwargs." in text and "1 failed" in text
    assert "every file is there" not in text and "no torchscript weights" not in text  # what passed is only counted
    assert "BiaPy fails the kwargs are [empty] QuPath unknown no rules were checked BioEngine unknown" in text
    assert printed(REPORT)[-1].startswith("failed m.zip")


def test_the_score_has_bars_numbers_and_remedies() -> None:
    assert re.findall(r'style="width: ([\d.]+)%"', page(REPORT)) == ["100.0", "100.0", "0.0", "50.0"]
    for text in (text_of(page(REPORT)), " ".join(printed(REPORT))):
        assert "valid format 1.00 runs 2.00 reproduces its test 0.00 metadata 0.50" in text
        assert "3.50 of 8" in text and "+4.00: export [again]" in text
    assert [line for line in printed(REPORT) if line.startswith("+")] == list(SCORE.raise_it[:3])


def test_pictures_travel_inside_with_a_text_and_several_models_have_a_table_with_anchors() -> None:
    png = zips.png(8, 4)
    pictures = (Picture("run.zero", "rate: expected, made", png), Picture("run.gone", "of no check", png))
    gone = Check("zoo.gone", "zoo", "warning", "nobody declares it")
    html = page(Report("a.zip", (*CHECKS, gone), VERDICTS, SCORE, pictures), Report("b/c.zip", CHECKS[:1]))
    assert values(html, "alt") == ["rate: expected, made", "of no check"]
    assert values(html, "src") == [f"data:image/png;base64,{b64encode(png).decode()}"] * 2
    assert re.findall(r'<section class="model" id="([^"]*)"', html) == ["model-1", "model-2"]
    links = values(html, "href")
    assert links[:2] == ["#model-1", "#model-2"] and {"#model-1-biapy.kwargs", "#model-1-zoo.gone"} <= {*links}
    assert {link[1:] for link in links} <= {*values(html, "id")}
    assert "not judged" in html and registry()["biapy.kwargs"].asks in text_of(html)


def test_hostile_texts_stay_texts_and_nothing_is_loaded_or_run() -> None:
    check = Check("run.zero", "run", "failed", HOSTILE, HOSTILE)
    picture = Picture("run.zero", HOSTILE, zips.png(2, 2))
    verdict, score = Verdict("fiji", "fails", HOSTILE), Score(0.0, {HOSTILE: 0.0}, (HOSTILE,))
    report = Report(f"{HOSTILE}\udc80\x00", (check,), (verdict,), score, (picture,))
    html = page(report, report)
    assert not re.search(r"<script|<link|@import|<[^>]*\son\w+\s*=", tags_of(html)) and html.count("<style") == 1
    assert {source[:10] for source in values(html, "src")} == {"data:image"}
    assert "{{ 7 * 7 }}" in text_of(html) and html.encode("utf-8") and "\ufffd\ufffd" in html
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in values(html, "content")


def test_junit_has_a_suite_per_model_and_a_case_per_check() -> None:
    checks = (*CHECKS, Check("fiji.id", "fiji", "error", "this check itself raised", "Report it."))
    reports = [Report("a.zip", checks), Report("b.zip", CHECKS[:1]), Report("not run.zip", CHECKS[5:6])]
    root = ET.fromstring(render_junit(reports).encode())
    assert [suite.get("name") for suite in root] == ["a.zip", "b.zip", "not run.zip"]
    counts = ("tests", "failures", "errors", "skipped")
    assert [[element.get(name) for name in counts] for element in (root, *root)] == [
        ["11", "1", "2", "4"], ["9", "1", "1", "4"], ["1", "0", "0", "0"], ["1", "0", "1", "0"],
    ]  # fmt: skip
    assert [(case.get("classname"), case.get("name")) for case in root[0]] == [(c.consumer, c.id) for c in checks]
    inside = {str(case.get("name")): [(e.tag, e.text) for e in case] for case in root[0]}
    assert (inside["archive.files"], inside["fiji.id"][0][0]) == ([], "error")
    assert inside["fiji.frozen"] == [("skipped", None)]
    assert inside["run.zero"] == [("failure", 'values are <1> & more\nto do: Guard "divisions".')]
    assert inside["zoo.cover"] == [("system-out", "warning: there is no cover\nto do: Add a cover.")]


def test_characters_that_xml_forbids_are_replaced_and_others_kept() -> None:
    hostile = "a\x00b\x1b[31mc\ud800d\uffffe\U0001f600\xe9"
    text = render_junit([Report(f"{hostile}.zip", (Check("run.zero", "run", "failed", hostile, hostile),))])
    assert ET.fromstring(text.encode())[0].get("name") == "a\ufffdb\ufffd[31mc\ufffdd\ufffde\U0001f600\xe9.zip"


def test_the_list_of_checks_is_up_to_date_and_tells_each_in_one_row() -> None:
    text = as_markdown()
    again = "write it again: gap-bioimage validate --list --markdown > docs/checks.md"
    assert PAGE.read_text(encoding="utf-8") == text, again
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("| `")]
    assert [row.count("|") for row in rows] == [6] * len(registry())
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(consumers())
    row = next(row for row in rows if row.startswith("| `fiji.id`"))
    assert "(blocks.)" in row and "Repaired." in row and definition("fiji.id").source in row


def test_models_that_cannot_be_read_are_on_the_page_and_backticks_are_code() -> None:
    report = Report("m.zip", (Check("zoo.id", "zoo", "warning", "<b>", "Run `gap-bioimage repair`."),))
    page = render_html([report], ["bad.zip <i> is not a zip"])
    assert "bad.zip &lt;i&gt; is not a zip" in page and "&lt;b&gt;" in page
    assert "<code>gap-bioimage repair</code>" in page and "`" not in page
