"""The verbs ``validate`` and ``repair`` from the command line: pages, options, lists, and how they end."""

import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zips
from command_line import one_sentence
from running import static_validate

from gap_bioimage.validation.check import registry
from gap_bioimage.validation.repair import repairing
from gap_bioimage.validation.run.sandbox import Limits, Sandbox


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch, model_process: Sandbox) -> list[Limits]:
    """Let models run in the process of all tests; return the limits that the command line asks for."""
    seen: list[Limits] = []

    def shared(asked: Limits) -> Any:
        seen.append(asked)
        return nullcontext(model_process)

    monkeypatch.setattr("gap_bioimage.validation.run.sandbox.Sandbox", shared)
    return seen


HANGS = zips.tiny("while bool(photons.sum() == 0):\n            rate = rate + 1.0")  # on dark images


def test_several_models_at_once_with_every_page(run: Any, tmp_path: Path, limits: list[Limits]) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good = zips.make_zip(tmp_path / "good", zips.torchscript_only)
    mirrored = np.load(io.BytesIO(zips.model_files()["output.npy"]))[..., ::-1].copy()
    files: dict[str, bytes | None] = {"output.npy": zips.npy(mirrored)}
    bad = zips.make_zip(tmp_path / "bad", zips.torchscript_only, files=files)
    pages = [tmp_path / f"report.{name}" for name in ("json", "html", "xml")]
    options = [item for pair in zip(("--json", "--html", "--junit"), pages, strict=True) for item in pair]
    options += ["--timeout", "50", "--memory", "8"]
    result = run("validate", good, bad, *options, "--keep", tmp_path / "kept")
    assert (result.code, limits) == (1, [Limits(50, 8)])
    assert "works" in result.out and "score" in result.out
    reports = json.loads(pages[0].read_text())
    assert [report["status"] for report in reports] == ["passed", "failed"]
    keys = {"status", "model", "checks", "verdicts", "consumers", "score"}
    assert {key for report in reports for key in report} == keys
    page = pages[1].read_text()
    assert page.count("data:image/png;base64,") >= 2 and "http-equiv" in page
    assert [int(suite.attrib["failures"]) > 0 for suite in ET.parse(pages[2]).getroot()] == [False, True]
    # only what failed is kept, with arrays to look at
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["tiny_2"]
    names = {path.name for path in (tmp_path / "kept" / "tiny_2").iterdir()}
    stem = "run.reproduces_rate_torchscript"
    assert {f"{stem}_expected.npy", f"{stem}_got.npy", f"{stem}.png"} <= names


def test_pages_do_not_overwrite_files_of_the_model(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gap_bioimage.validation.report.validate", static_validate)
    with zipfile.ZipFile(zips.make_zip(tmp_path)) as archive:
        archive.extractall(tmp_path / "model")
    model = tmp_path / "model"
    for given, option, name in ((model, "--json", "rdf.yaml"), (model / "rdf.yaml", "--html", "cover.png")):
        before = (model / name).read_bytes()
        result = run("validate", given, option, model / name)
        assert (result.code, name in one_sentence(result), (model / name).read_bytes() == before) == (2, True, True)
    for _ in range(2):  # pages of its own it does
        assert run("validate", model, "--json", model / "report.json").code in (0, 2)
    assert json.loads((model / "report.json").read_text())["model"] == str(model)


def test_pages_name_models_that_cannot_be_read(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gap_bioimage.validation.report.validate", static_validate)
    good, absent = zips.make_zip(tmp_path, zips.torchscript_only), tmp_path / "absent.zip"
    pages = [tmp_path / f"report.{name}" for name in ("html", "xml", "json")]
    options = [item for pair in zip(("--html", "--junit", "--json"), pages, strict=True) for item in pair]
    for models in ([absent], [good, absent]):
        assert run("validate", *models, *options).code == 2
        assert "absent.zip" in pages[0].read_text()
        *_, last = ET.parse(pages[1]).getroot()
        assert (last.attrib["name"], last.attrib["errors"]) == (str(absent), "1")
    assert [report["model"] for report in json.loads(pages[2].read_text())] == [str(good)]
    assert "absent.zip" in run("validate", absent, "--format", "github").out
    assert run("validate", good, "--description-only", "--junit", "-").out.startswith("<")


def test_all_checks_are_listed(run: Any) -> None:
    listed = run("validate", "--list").out.split()
    assert {*registry()} <= {*listed}
    assert run("validate", "--list", "--markdown").out.startswith("# ")


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=HANGS)
    script = (
        "import os, psutil, signal, threading, time; from gap_bioimage.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which shells may have turned off
        "def press():\n"
        "    while not any(worker.children() for worker in psutil.Process().children()):\n"
        "        time.sleep(0.2)\n"  # until the process of the model is there, which hangs
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=press, daemon=True).start()\n"
        f"main(['validate', {str(path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=500, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)


@pytest.mark.usefixtures("limits")
def test_what_was_not_run_or_raised_is_no_success(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = (zips.drop("weights", "torchscript"), "--run-code"), (zips.put("name", value="x"), "at least 5")
    for mutate, why in reasons:  # where the check that tells of it is left out, too
        result = run("validate", zips.make_zip(tmp_path, mutate), "--quiet", "--select", "fiji")
        assert result.code == 2 and why in one_sentence(result)
    from gap_bioimage.validation import check

    broken = replace(check.definition("ilastik.grid"), function=lambda model: 1 / 0)
    monkeypatch.setitem(check._CHECKS, "ilastik.grid", broken)
    result = run("validate", zips.make_zip(tmp_path), "--description-only", "--quiet", "--json", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "unknown"
    assert result.code == 2 and "ilastik.grid" in result.err and "ZeroDivisionError" in result.err


def test_mistakes_are_one_sentence_before_the_work(run: Any, tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=HANGS)  # would take its whole time
    for option in ("--json", "--html", "--junit"):
        assert "its folder does not exist" in one_sentence(run("validate", path, option, tmp_path / "no" / "x"))
    assert "--list" in one_sentence(run("validate"))
    assert "--device tpu cannot be used here" in one_sentence(run("validate", path, "--device", "tpu"))
    assert "--engine" in one_sentence(run("validate", path, "--engine", "/nowhere/python"))
    told = one_sentence(run("validate", path, "--consumer", "imagej"))
    assert "imagej" in told and "fiji" in told
    assert "no check fijis" in one_sentence(run("validate", path, "--select", "fiji,fijis"))
    for more in (path, "--consumer", "fiji,ilastik"), (path, path):
        assert run("validate", *more, "--description-only", "--quiet").code == 0
    path.write_bytes(path.read_bytes()[:1000])
    assert "has no end" in one_sentence(run("validate", path))


def break_it(rdf: dict[str, Any]) -> None:
    rdf["format_version"] = "0.5.12"
    rdf["documentation"] = {"source": "README.md"}
    rdf["covers"] = []
    rdf["weights"]["torchscript"]["sha256"] = "0" * 64
    del rdf["id"]


def test_repairs_are_listed_and_what_stays_broken_ends_with_1(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairing, "validate", static_validate)
    monkeypatch.setenv("COLUMNS", "160")
    path, out = zips.make_zip(tmp_path, break_it), tmp_path / "out.zip"
    result = run("repair", path, out, "--run-code", "--json", tmp_path / "report.json")
    assert result.code == 0, result
    assert result.out.startswith("4 repairs")
    for text in ("-> 0.5.9", "tiny-blur", "WRONG HASH", "fiji.id", "warning -> passed", f"{out}: written"):
        assert text in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["turned"]["fiji.id"]) == ("passed", ["warning", "passed"])
    assert {"id": "id", "what": "id", "before": "none", "after": "tiny-blur"} in report["changes"]
    assert json.loads(run("repair", path, out, "--json", "-").out)["status"] == "passed"
    assert run("repair", path, out, "--quiet").out == ""
    assert "nothing to repair" in run("repair", out, tmp_path / "again.zip", "--run-code").out
    result = run("repair", zips.make_zip(tmp_path, zips.put("authors", value="x")), out)
    assert result.code == 1 and "left to the authors" in result.out and "format.valid" in result.out
    assert "choose another name" in one_sentence(run("repair", out, out))
    assert "does not exist" in one_sentence(run("repair", tmp_path / "no.zip", tmp_path / "new.zip"))
