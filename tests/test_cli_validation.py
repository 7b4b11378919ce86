"""The verb ``validate`` from the command line: its pages, its options, its list of checks."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zips
from command_line import one_sentence, subprocess_run

from gap_bioimage.cli.zips import _kept


def wrong_output(folder: Path) -> Path:
    """A zip whose expected output is mirrored."""
    folder.mkdir(exist_ok=True)
    files = zips.model_files()
    with (folder / "output.npy").open("wb") as file:
        file.write(files["output.npy"])
    mirrored = np.load(folder / "output.npy")[..., ::-1].copy()
    return zips.make_zip(folder, zips.torchscript_only, files={"output.npy": zips.npy(mirrored)})


def test_several_models_at_once_with_every_page(run: Any, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    good = zips.make_zip(tmp_path / "good", zips.torchscript_only)
    bad = wrong_output(tmp_path / "bad")
    pages = {name: tmp_path / f"report.{name}" for name in ("json", "html", "xml")}
    kept = tmp_path / "kept"
    result = run(
        "validate", good, bad, "--json", pages["json"], "--html", pages["html"], "--junit", pages["xml"], "--keep", kept
    )
    assert result.code == 1
    assert "works" in result.out
    assert "zoo score" in result.out.lower() or "score" in result.out.lower()
    reports = json.loads(pages["json"].read_text())
    assert [report["status"] for report in reports] == ["passed", "failed"]
    assert {key for report in reports for key in report} == {
        "status", "model", "checks", "verdicts", "consumers", "score"
    }  # fmt: skip
    page = pages["html"].read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http-equiv" in page
    suites = ET.parse(pages["xml"]).getroot()
    assert [int(suite.attrib["failures"]) > 0 for suite in suites] == [False, True]
    # only what failed is kept, with arrays to look at
    assert [path.name for path in kept.iterdir()] == ["tiny_2"]
    names = {path.name for path in (kept / "tiny_2").iterdir()}
    assert {f"run.reproduces_rate_torchscript_{what}.npy" for what in ("expected", "got")} <= names
    assert "run.reproduces_rate_torchscript.png" in names


def test_limits_are_options(run: Any, tmp_path: Path) -> None:
    source = zips.tiny("while bool(photons.sum() == 0):\n            rate = rate + 1.0")
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=source)
    result = run("validate", path, "--timeout", "5", "--memory", "8", "--json", "-")
    assert result.code == 1
    checks = {check["id"]: check for check in json.loads(result.out)["checks"]}
    assert "did not finish within 5 s" in checks["run.zero"]["message"]
    assert "--timeout" in checks["run.zero"]["fix"]


def test_engines_are_an_option(run: Any, tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, zips.torchscript_only)
    result = run("validate", path, "--engine", sys.executable, "--json", "-")
    checks = {check["id"]: check for check in json.loads(result.out)["checks"]}
    assert checks["fiji.older_engine"]["status"] == "passed"
    assert "--engine" in one_sentence(run("validate", path, "--engine", "/nowhere/python"))


def test_all_checks_are_listed(run: Any) -> None:
    result = run("validate", "--list")
    assert result.code == 0
    for text in (
        "archive.paths",
        "fiji.id",
        "run.tiled",
        "core.test",
        "22 of 22 reports",
        "bioimage.io collection 2026",
    ):
        assert text in " ".join(result.out.split())
    page = run("validate", "--list", "--markdown").out
    assert page == (Path(__file__).parent.parent / "docs" / "checks.md").read_text(encoding="utf-8")


def test_something_must_be_named(run: Any) -> None:
    assert "--list" in one_sentence(run("validate"))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.zip"], ["a"]),
        (["x/a.zip", "y/a.zip", "a_2.zip"], ["a", "a_2", "a_2_2"]),
    ],
)
def test_folders_for_what_is_kept_differ(paths: list[str], names: list[str], tmp_path: Path) -> None:
    made = [tmp_path / path for path in paths]
    for path in made:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list(_kept(made, tmp_path / "kept").values()) == [tmp_path / "kept" / name for name in names]


def test_torch_is_not_imported_for_a_description_alone(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    script = (
        "import sys; from gap_bioimage.validation.report import validate; "
        f"validate({str(path)!r}, description_only=True); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    source = zips.tiny("while True:\n            rate = rate + 1.0")
    path = zips.make_zip(tmp_path, zips.torchscript_only, files={"torchscript.pt": endless(source)})
    script = (
        "import signal, threading, os, sys; from gap_bioimage.cli import main; "
        "threading.Timer(15, lambda: os.kill(os.getpid(), signal.SIGINT)).start(); "
        f"main(['validate', {str(path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def endless(source: str) -> bytes:
    """TorchScript of a network that never returns, which cannot be run to make its test output."""
    import importlib.util
    import io
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "endless.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location("endless", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        scripted = torch.jit.script(module.Tiny().eval())
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    return buffer.getvalue()


def test_it_works_from_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess_run("validate", zips.make_zip(tmp_path, zips.torchscript_only), "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_was_not_run_is_no_success(run: Any, tmp_path: Path) -> None:
    def state_dict_only(rdf: dict[str, Any]) -> None:
        del rdf["weights"]["torchscript"]

    path = zips.make_zip(tmp_path, state_dict_only)
    result = run("validate", path, "--quiet")
    assert result.code == 2
    assert "nothing was run" in one_sentence(result)
    assert run("validate", path, "--run-code", "--quiet").code == 0


def test_a_description_alone_is_enough(run: Any, tmp_path: Path) -> None:
    import yaml

    rdf = zips.description(zips.model_files())
    path, out = tmp_path / "rdf.yaml", tmp_path / "out.json"
    path.write_text(yaml.safe_dump(rdf))
    result = run("validate", path, "--description-only", "--json", out)
    assert result.code == 0
    report = json.loads(out.read_text())
    assert (report["status"], report["model"]) == ("passed", str(path))
    assert {entry["verdict"] for entry in report["verdicts"]} == {"works"}
    path.write_text(yaml.safe_dump(rdf | {"weights": {}}))
    assert run("validate", path, "--description-only", "--quiet").code == 1


def test_unknown_programs_are_one_sentence(run: Any, tmp_path: Path) -> None:
    told = one_sentence(run("validate", zips.make_zip(tmp_path), "--consumer", "imagej"))
    assert "imagej" in told and "fiji" in told


def test_a_check_that_raised_is_no_success(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gap_bioimage.validation import check

    broken = replace(check.definition("ilastik.grid"), function=lambda model: 1 / 0)
    monkeypatch.setitem(check._CHECKS, "ilastik.grid", broken)
    result = run("validate", zips.make_zip(tmp_path), "--description-only", "--quiet")
    assert result.code == 2
    assert "ilastik.grid" in result.err and "ZeroDivisionError" in result.err


def test_a_device_that_is_not_there_is_not_the_models_fault(run: Any, tmp_path: Path) -> None:
    assert "--device tpu cannot be used here" in one_sentence(
        run("validate", zips.make_zip(tmp_path), "--device", "tpu")
    )


def test_pages_are_looked_at_before_the_work(run: Any, tmp_path: Path) -> None:
    source = zips.tiny("while bool(photons.sum() == 0):\n            rate = rate + 1.0")
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=source)  # would take its whole time
    for option in ("--json", "--html", "--junit"):
        assert "its folder does not exist" in one_sentence(run("validate", path, option, tmp_path / "no" / "x"))


def test_a_zip_without_its_end_is_told(run: Any, tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "has no end" in one_sentence(run("validate", path))
