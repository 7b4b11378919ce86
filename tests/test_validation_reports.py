"""Reports as a page, in the terminal and as JUnit XML, and the list of all checks."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import zips
from rich.console import Console

from gap_bioimage.validation.check import Check, Picture, consumers, definition, registry
from gap_bioimage.validation.outcome import RUN_CODE
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.html import render_html
from gap_bioimage.validation.reports.terminal import as_markdown, as_table, print_report, render_junit
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
UNRUN = (CHECKS[0], Check("core.test", "core", "skipped", "none of the weights was run", RUN_CODE))
RAN = Check("core.test", "core", "passed", "its test passed")
VOID = {"meta", "img", "path", "circle", "br", "link"}
HOSTILE = "</style><script>alert(1)</script><img src=https://evil.invalid/x onerror=alert(2)>\" onload='x' {{ 7 * 7 }}"


class Page(HTMLParser):
    """A page's tags with their attributes, and its text; complains about tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(*reports: Report) -> Page:
    return Page(render_html(reports))


def printed(report: Report) -> list[str]:
    out = io.StringIO()
    print_report(report, Console(file=out, width=100))
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (VERDICTS, "works in bioimageio.core and Fiji (deepImageJ). It fails in BiaPy: the kwargs are [empty]. "
         "Whether it works in QuPath and BioEngine is not known: no rules were checked."),
        ((), "Which programs will run this model was not judged; 1 checks failed."),
        ((Verdict("core", "fails", "it is broken"),), "It fails in bioimageio.core: it is broken."),
        ((Verdict("core", "unknown", "it was not run"),), "No program is known to run this model."),
    ],
)  # fmt: skip
def test_the_headline_says_who_will_run_it(verdicts: tuple[Verdict, ...], expected: str) -> None:
    assert expected in page(Report("m.zip", CHECKS, verdicts)).text


def test_a_model_that_was_not_run_has_not_passed() -> None:
    report = Report("m.zip", UNRUN, (Verdict("core", "unknown", "it was not run"),))
    assert "The model was not run: only its files were looked at. Validate with --run-code" in page(report).text
    ran = Report("r.zip", (RAN,), (Verdict("core", "works", "its test passes"),))
    html = render_html([report, ran])
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r'class="badge (\w+)"', table) == ["unknown", "mixed", "works", "passed"]
    assert "was not run" not in page(ran).text
    found = printed(report)
    assert "not run m.zip (1 passed, 1 skipped)" in found
    assert "the model was not run. Validate with --run-code" in " ".join(found)
    assert printed(ran)[-1] == "passed r.zip (1 passed)"
    other = Check("core.test", "core", "skipped", "onnx needs onnxruntime", "Install onnxruntime.")
    assert printed(Report("m.zip", (other,)))[-1].endswith("the model was not run. Install onnxruntime.")


def test_what_to_do_is_sorted_by_need_and_told_in_words() -> None:
    html = render_html([Report("m.zip", CHECKS, VERDICTS)])
    todo = html[html.index("What to do") : html.index("<details>")]
    fixes = re.findall(r'class="fix said">([^<]*)', todo)
    assert [fix.split()[0] for fix in fixes] == ["Guard", "Write", "Add", "Install", "Validate"]
    words = Page(todo[todo.index("<ol") : todo.index("</ol>") + 5]).text
    assert re.findall(r"failed|needed|advice|not checked", words) == [
        "failed", "needed", "advice", "not checked", "not checked",
    ]  # fmt: skip
    assert "Nothing: every check passed" in page(Report("m.zip", CHECKS[:1], VERDICTS[:1])).text


def test_all_checks_are_in_the_pages_table_and_what_matters_in_the_terminal() -> None:
    html = render_html([Report("m.zip", CHECKS, VERDICTS)])
    table = Page(html[html.index("<details>") : html.index("</details>") + len("</details>")]).text
    assert "All 8 checks: 1 failed, 2 warning, 1 passed, 4 not checked" in table
    assert all(check.id in table and check.message in table for check in CHECKS)
    text = " ".join(printed(Report("m.zip", CHECKS, VERDICTS)))
    assert "kwargs are [empty]" in text and "Write the kwargs." in text and "1 failed" in text
    assert "every file is there" not in text and "no torchscript weights" not in text
    assert "BiaPy fails the kwargs are [empty] QuPath unknown no rules were checked BioEngine unknown" in text
    assert printed(Report("m.zip", CHECKS))[-1].startswith("failed m.zip")


def test_the_score_has_bars_numbers_and_remedies() -> None:
    report = Report("m.zip", CHECKS, VERDICTS, SCORE)
    assert re.findall(r'style="width: ([\d.]+)%"', render_html([report])) == ["100.0", "100.0", "0.0", "50.0"]
    for text in (page(report).text, " ".join(printed(report))):
        assert "valid format 1.00 runs 2.00 reproduces its test 0.00 metadata 0.50" in text
        assert "3.50 of 8" in text and "+4.00: export [again]" in text
    assert [line for line in printed(report) if line.startswith("+")] == list(SCORE.raise_it[:3])


def test_pictures_travel_inside_with_a_text() -> None:
    png = zips.png(8, 4)
    pictures = (Picture("run.zero", "rate: expected, made", png), Picture("run.gone", "of no check", png))
    found = page(Report("m.zip", CHECKS, VERDICTS, None, pictures))
    assert [image["alt"] for image in found.named("img")] == ["rate: expected, made", "of no check"]
    for image in found.named("img"):
        kind, _, data = str(image["src"]).partition(",")
        assert (kind, b64decode(data)) == ("data:image/png;base64", png)
    assert "rate: expected, made failed values are" in found.text


def test_several_models_have_a_table_with_anchors() -> None:
    found = page(Report("a.zip", CHECKS, VERDICTS, SCORE), Report("b/c.zip", CHECKS[:1]))
    assert [link["href"] for link in found.named("a")][:2] == ["#model-1", "#model-2"]
    assert [section["id"] for section in found.named("section")] == ["model-1", "model-2"]
    assert "Report on 2 models" in found.text and "not judged" in found.text


def test_findings_lead_to_the_rules_that_they_are_about() -> None:
    found = page(Report("a.zip", (*CHECKS, Check("zoo.gone", "zoo", "warning", "nobody declares it"))))
    links = [str(link["href"]) for link in found.named("a")]
    assert links and {link[1:] for link in links} <= {str(attributes.get("id")) for _, attributes in found.tags}
    assert {"#model-1-biapy.kwargs", "#model-1-zoo.gone"} <= {*links}
    assert registry()["biapy.kwargs"].asks in found.text


def test_hostile_texts_stay_texts_and_nothing_is_loaded_or_run() -> None:
    check = Check("run.zero", "run", "failed", HOSTILE, HOSTILE)
    picture = Picture("run.zero", HOSTILE, zips.png(2, 2))
    verdict, score = Verdict("fiji", "fails", HOSTILE), Score(0.0, {HOSTILE: 0.0}, (HOSTILE,))
    report = Report(f"{HOSTILE}\udc80\x00", (check,), (verdict,), score, (picture,))
    html = render_html([report, report])
    found = Page(html)
    assert found.named("script") == found.named("link") == []
    assert len(found.named("style")) == 1 and "@import" not in html
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert {str(image["src"])[:10] for image in found.named("img")} == {"data:image"}
    assert "{{ 7 * 7 }}" in found.text
    policies = [str(meta["content"]) for meta in found.named("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert html.encode("utf-8") and "\ufffd\ufffd" in html


def test_junit_has_a_suite_per_model_and_a_case_per_check() -> None:
    checks = (*CHECKS, Check("fiji.id", "fiji", "error", "this check itself raised", "Report it."))
    root = ET.fromstring(render_junit([Report("a.zip", checks), Report("b.zip", CHECKS[:1])]).encode())
    assert [suite.get("name") for suite in root] == ["a.zip", "b.zip"]
    counts = ("tests", "failures", "errors", "skipped")
    assert [[element.get(name) for name in counts] for element in (root, *root)] == [
        ["10", "1", "1", "4"], ["9", "1", "1", "4"], ["1", "0", "0", "0"],
    ]  # fmt: skip
    assert [(case.get("classname"), case.get("name")) for case in root[0]] == [(c.consumer, c.id) for c in checks]
    inside = {str(case.get("name")): [(e.tag, e.attrib, e.text) for e in case] for case in root[0]}
    assert inside["archive.files"] == []
    message = {"message": "values are <1> & more", "type": "failed"}
    assert inside["run.zero"] == [("failure", message, 'values are <1> & more\nto do: Guard "divisions".')]
    assert inside["fiji.id"][0][0] == "error"
    assert inside["zoo.cover"] == [("system-out", {}, "warning: there is no cover\nto do: Add a cover.")]
    assert inside["run.onnx"] == [("skipped", {"message": "onnx was not run; to do: Install onnxruntime."}, None)]
    assert inside["fiji.frozen"] == [("skipped", {"message": "no torchscript weights"}, None)]
    assert ET.fromstring(render_junit([]).encode()).get("tests") == "0"


def test_characters_that_xml_forbids_are_replaced_and_others_kept() -> None:
    hostile = "a\x00b\x1b[31mc\ud800d\uffffe\U0001f600\xe9"
    text = render_junit([Report(f"{hostile}.zip", (Check("run.zero", "run", "failed", hostile, hostile),))])
    assert ET.fromstring(text.encode())[0].get("name") == "a\ufffdb\ufffd[31mc\ufffdd\ufffde\U0001f600\xe9.zip"


def test_the_list_of_checks_is_up_to_date_and_tells_each_in_one_row() -> None:
    text = as_markdown()
    again = "write it again: gap-bioimage validate --list --markdown > docs/checks.md"
    assert PAGE.read_text(encoding="utf-8") == text, again
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(registry())
    assert all(row.replace("\\|", "").count("|") == 6 for row in rows)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(consumers())
    row = next(row for row in rows if row.startswith("| `fiji.id`"))
    assert "(blocks.)" in row and "Repaired." in row and str(definition("fiji.id").source) in row
    out = io.StringIO()
    Console(file=out, width=400).print(as_table())
    assert all(check_id in out.getvalue() for check_id in registry())
