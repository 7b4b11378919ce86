"""The HTML page: what it says, that it is self-contained, that a model's texts cannot change it."""

from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest
import zips
from gap_bioimage.validation.reports.score import Score, Verdict

from gap_bioimage.validation.checks import Check, Picture
from gap_bioimage.validation.report import Report
from gap_bioimage.validation.reports.html import render_html

CHECKS = (
    Check("archive.files", "archive", "passed", "every file is there"),
    Check("zoo.cover", "zoo", "warning", "there is no cover", "Add a cover."),
    Check("biapy.kwargs", "biapy", "warning", "the kwargs are empty", "Write the kwargs."),
    Check("run.onnx", "run", "skipped", "onnx was not run", "Install onnxruntime."),
    Check("run.pytorch_state_dict", "run", "skipped", "code was not allowed", "--run-code"),
    Check("core.test", "core", "skipped", "nothing was run", "--run-code"),
    Check("run.batch", "run", "skipped", "the batch size is fixed"),
    Check("run.zero", "run", "failed", "values are not finite", "Guard divisions."),
)
VERDICTS = (
    Verdict("core", "works", "its test passes"),
    Verdict("fiji", "works", "keeps all of its rules"),
    Verdict("biapy", "fails", "the kwargs are empty"),
    Verdict("qupath", "unknown", "no rules were checked"),
    Verdict("bioengine", "unknown", "no rules were checked"),
)
SCORE = Score(0.625, {"format": 1.0, "metadata": 0.5, "core": 1.0, "partners": 0.0}, ("+0.08 with BiaPy: kwargs",))
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


def test_the_headline_says_who_will_run_it() -> None:
    text = page(Report("m.zip", CHECKS, VERDICTS)).text
    assert "This model works in bioimageio.core and Fiji (deepImageJ)." in text
    assert "It fails in BiaPy because the kwargs are empty." in text
    assert "Whether it works in QuPath and BioEngine is not known: no rules were checked." in text


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), "One check failed. Which programs will run this model was not judged."),
        (
            (Verdict("core", "fails", "it is broken"),),
            "works in none of these programs. It fails because it is broken.",
        ),
        ((Verdict("core", "unknown", "it was not run"),), "No program is known to run this model yet."),
        (VERDICTS[::2], "This model works in bioimageio.core only."),
        ((Verdict("zoo", "works", "keeps all"),), "This model works in the bioimage.io zoo."),
    ],
)
def test_other_headlines(verdicts: tuple[Verdict, ...], expected: str) -> None:
    checks = CHECKS if not verdicts else ()
    assert expected in page(Report("m.zip", tuple(checks), verdicts)).text


def test_a_model_that_was_not_run_has_not_passed() -> None:
    skipped = Check("core.test", "core", "skipped", "none of the weights was run", "--run-code")
    report = Report("m.zip", (CHECKS[0], skipped), (Verdict("core", "unknown", "it was not run"),))
    text = page(report).text
    assert "The model was not run: only its files were looked at. Validate again with --run-code" in text
    tested = Check("core.test", "core", "passed", "its test passed")
    ran = Report("r.zip", (tested,), (Verdict("core", "works", "its test passes"),))
    html = render_html([report, ran])
    table = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r'class="badge (\w+)"', table) == ["unknown", "mixed", "works", "passed"]
    assert "not run" in table
    assert "was not run" not in page(ran).text


def test_a_long_reason_of_many_stands_above_the_cards_once() -> None:
    reason = "the model itself fails: " + "a file is missing, " * 5
    verdicts = tuple(Verdict(name, "fails", reason) for name in ("core", "fiji", "ilastik", "biapy"))
    text = page(Report("m.zip", (), verdicts)).text
    assert text.count("the model itself fails") == 1
    assert text.count("for the reason above") == 4


def test_what_to_do_is_sorted_by_need_and_told_in_words() -> None:
    html = render_html([Report("m.zip", CHECKS, VERDICTS)])
    todo = html[html.index("What to do") : html.index("<details>")]
    fixes = re.findall(r'class="fix said">([^<]*)', todo)
    assert fixes == [
        "Guard divisions.",
        "Write the kwargs.",
        "Add a cover.",
        "Install onnxruntime.",
        "Validate again with --run-code, which allows the Python code inside this model to run on your computer.",
    ]
    words = Page(todo[todo.index("<ol") : todo.index("</ol>") + 5]).text
    assert re.findall(r"failed|needed|advice|not checked", words) == [
        "failed",
        "needed",
        "advice",
        "not checked",
        "not checked",
    ]


def test_nothing_to_do_is_said() -> None:
    assert "Nothing: every check passed" in page(Report("m.zip", CHECKS[:1], VERDICTS[:1])).text


def test_all_checks_are_in_the_table() -> None:
    html = render_html([Report("m.zip", CHECKS, VERDICTS)])
    table = Page(html[html.index("<details>") : html.index("</details>") + len("</details>")]).text
    assert "All 8 checks: 1 failed, 2 warning, 1 passed, 4 not checked" in table
    for check in CHECKS:
        assert check.id in table
        assert check.message in table


def test_the_score_has_bars_and_numbers() -> None:
    html = render_html([Report("m.zip", CHECKS, VERDICTS, SCORE)])
    assert re.findall(r'style="width: ([\d.]+)%"', html) == ["100.0", "50.0", "100.0", "0.0"]
    text = Page(html).text
    assert "format 1.00 metadata 0.50 bioimageio.core 1.00 partner tools 0.00" in text
    assert "What would raise it +0.08 with BiaPy: kwargs" in text


def test_pictures_travel_inside_with_a_text() -> None:
    png = zips.png(8, 4)
    pictures = (Picture("run.zero", "rate: expected, made", png), Picture("run.gone", "of no check", png))
    found = page(Report("m.zip", CHECKS, VERDICTS, None, pictures))
    images = found.named("img")
    assert [image["alt"] for image in images] == ["rate: expected, made", "of no check"]
    for image in images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64"
        assert b64decode(data) == png
    assert "rate: expected, made failed values are not finite" in found.text


def test_several_models_have_a_table_with_anchors() -> None:
    found = page(Report("a.zip", CHECKS, VERDICTS, SCORE), Report("b/c.zip", CHECKS[:1]))
    assert [link["href"] for link in found.named("a")] == ["#model-1", "#model-2"]
    assert [section["id"] for section in found.named("section")] == ["model-1", "model-2"]
    assert "Report on 2 models" in found.text
    assert "not judged" in found.text
    assert page(Report("a.zip", CHECKS)).named("a") == []


def test_hostile_texts_stay_texts() -> None:
    check = Check("run.zero", "run", "failed", HOSTILE, HOSTILE)
    picture = Picture("run.zero", HOSTILE, zips.png(2, 2))
    report = Report(HOSTILE, (check,), (Verdict("fiji", "fails", HOSTILE),), Score(0.0, {HOSTILE: 0.0}, (HOSTILE,)))
    hostile = page(Report(HOSTILE, report.checks, report.verdicts, report.score, (picture,)), report)
    assert hostile.named("script") == []
    assert len(hostile.named("style")) == 1
    assert not any(key.startswith("on") for _, attributes in hostile.tags for key in attributes)
    assert [str(image["src"])[:10] for image in hostile.named("img")] == ["data:image"]
    assert "{{ 7 * 7 }}" in hostile.text


def test_nothing_is_loaded_or_run() -> None:
    html = render_html([Report("m.zip", CHECKS, VERDICTS, SCORE)])
    found = Page(html)
    assert not found.named("script") and not found.named("link")
    assert "url(" not in html and "@import" not in html
    policies = [str(meta["content"]) for meta in found.named("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_broken_characters_can_be_written() -> None:
    html = render_html([Report("name\udc80\x00.zip", ())])
    assert "name\ufffd\ufffd.zip" in html
    assert html.encode("utf-8")


def test_technical_words_are_explained_where_they_occur() -> None:
    assert "the settings with which a network is built" in page(Report("m.zip", CHECKS)).text
    assert "Words used here" not in page(Report("m.zip", CHECKS[:1])).text


def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_texts_stand_out_from_their_background(theme: int) -> None:
    """WCAG 2 asks for a ratio of 4.5."""
    block = re.findall(r":root \{(.*?)\}", render_html([]), re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for text in ("ink", "soft", "good", "bad", "warn", "unknown", "link"):
        for back in ("page", "card"):
            light, dark = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)
