"""Comparisons: on the output's own scale, as bioimageio.core does it, as pictures, and with other interpreters."""

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zips
from PIL import Image
from running import judged, ran

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.check import Evidence, Outcome
from gap_bioimage.validation.run import engine_script, engines, reference
from gap_bioimage.validation.run.engines import find_engines, other_cores, other_engines
from gap_bioimage.validation.run.reference import keep_evidence, mismatched_ppm, not_finite, relative_rms

RAMP = np.linspace(0, 1, 64).reshape(1, 1, 8, 8)
BCYX = ("batch", "channel", "y", "x")


def test_relative_rms_depends_neither_on_scale_nor_on_offset() -> None:
    noisy = RAMP + 0.01 * np.random.default_rng(0).standard_normal(RAMP.shape)
    assert relative_rms(noisy, RAMP) == pytest.approx(relative_rms(1e-9 * noisy, 1e-9 * RAMP))
    assert relative_rms(noisy, RAMP) == pytest.approx(relative_rms(noisy + 1e3, RAMP + 1e3), rel=1e-6)
    assert relative_rms(np.full(9, 1.1), np.ones(9)) == pytest.approx(0.1)  # of a constant
    pairs = ((RAMP[..., :4], RAMP), (np.full_like(RAMP, np.nan), RAMP), (np.ones(3), np.zeros(3)))
    assert {relative_rms(*pair) for pair in pairs} == {np.inf}
    assert relative_rms(np.zeros(3), np.zeros(3)) == 0


def test_numbers_agree_with_numbers_only() -> None:
    assert mismatched_ppm(np.flip(1e-4 * RAMP), 1e-4 * RAMP, 1e-3, 1e-3) == 0  # core accepts anything small
    assert mismatched_ppm(np.flip(RAMP), RAMP, 1e-3, 1e-3) > 5e5
    broken = RAMP.copy()
    one = pytest.approx(1e6 / RAMP.size)
    for value in (np.nan, np.inf):
        broken.flat[0] = value
        assert mismatched_ppm(broken, RAMP, 1e-3, 1e-3) == mismatched_ppm(RAMP, broken, 1e-3, 1e-3) == one
        assert mismatched_ppm(broken, broken, 1e-3, 1e-3) == 0
    assert mismatched_ppm(broken, -broken, 3, 1e-3) == one
    assert mismatched_ppm(RAMP[..., :4], RAMP, 1e-3, 1e-3) == 1e6


def test_values_that_are_no_numbers_are_counted() -> None:
    array = np.array([0.0, np.nan, np.inf, -np.inf])
    assert not_finite({"a": array[:1], "n": np.arange(3)}) == ""
    assert not_finite({"a": array, "b": array[:2]}) == "3 of 4 values of 'a', 1 of 2 values of 'b' are NaN or infinite"


@pytest.mark.parametrize(("stated", "status"), [([], "failed"), ([{"relative_tolerance": 1e-2}], "warning")])
def test_where_a_tolerance_is_stated_the_test_of_core_decides(tmp_path: Path, stated: Any, status: str) -> None:
    with zipfile.ZipFile(zips.make_zip(tmp_path)) as archive:
        off = np.load(io.BytesIO(archive.read("output.npy"))) * np.float32(1.005)
    tolerate = zips.put("config", "bioimageio", "reproducibility_tolerance", value=stated)
    path = zips.make_zip(tmp_path, zips.both(zips.torchscript_only, tolerate), files={"output.npy": zips.npy(off)})
    checks = ran(path)
    assert (checks["run.reproduces"].status, checks["core.test"].status) == (status, "passed" if stated else "failed")


def test_what_failed_is_kept_and_what_passed_is_drawn_on_request(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).random((1, 1, 8, 12))
    item = Evidence("../rate, é", BCYX, expected, expected + 1, expected * 2)
    failed, passed = (Outcome(status, "x", "", (item,)) for status in ("failed", "passed"))
    keep_evidence("run.reproduces", failed, keep=tmp_path / "new", pictures=None)
    stem = "run.reproduces_.._rate_"  # names stay inside the folder
    names = sorted(path.name.removeprefix(stem) for path in (tmp_path / "new").iterdir())
    assert names == [".png", "_expected.npy", "_given.npy", "_got.npy"]
    assert np.array_equal(np.load(tmp_path / "new" / f"{stem}_got.npy"), item.got)
    assert keep_evidence("run.reproduces", passed, keep=tmp_path / "a", pictures=None) == []
    (drawn,) = keep_evidence("run.reproduces", passed, keep=tmp_path / "a", pictures=tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert (drawn[0], drawn[1].read_bytes()[:4]) == (item.title, b"\x89PNG")


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (np.full((1, 1, 8, 8), np.nan), np.full((1, 1, 8, 8), np.inf)),
        (np.ones((1, 1, 8, 8), np.uint8), np.zeros((1, 1, 9, 7), np.uint8)),
        (np.ones((1, 3, 5, 8, 400)), np.ones((1, 3, 5, 8, 400))),
        (np.ones(()), np.ones(())),
    ],
)
def test_anything_can_be_drawn(tmp_path: Path, expected: np.ndarray, got: np.ndarray) -> None:
    reference.draw_evidence(tmp_path / "x.png", Evidence("x", BCYX, expected, got))
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > image.height > 100


def test_pictures_have_y_down_and_x_to_the_right() -> None:
    volume = np.arange(24.0).reshape(1, 3, 4, 2)
    assert np.array_equal(reference._plane(volume, ("batch", "z", "y", "x")), volume[0, 1])
    assert np.array_equal(reference._plane(volume, ("batch", "x", "y", "z")), volume[0, :, :, 1].T)


# Other interpreters: what they run, what they refuse, and what they may not see


@pytest.fixture(autouse=True)
def _forget() -> None:
    engines._versions.cache_clear()


def in_engine(folder: Path, python: str, body: str = "", seconds: float = 300) -> Outcome:
    path = zips.make_zip(folder, zips.torchscript_only, source=zips.tiny(body))
    outcome: Outcome = judged(lambda runner: other_engines(runner, [python], seconds), path)
    return outcome


def script(folder: Path, answer: str = "", sleep: int = 0) -> str:
    """An interpreter that is torch 2.0.1, and sleeps after its answer."""
    python = folder / "python"
    told = json.dumps({"torch": "2.0.1", "core": "0.9"})
    python.write_text(
        f"#!/bin/sh\nif [ $3 = versions ]; then echo '{told}'; exit; fi\necho '{answer}'\nexec sleep {sleep}\n"
    )
    python.chmod(0o755)
    return str(python)


def test_an_older_engine_runs_what_it_knows(tmp_path: Path, old_python: str) -> None:
    attention = "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)"
    for body, status, words in (("", "passed", "torch "), (attention, "failed", "scaled_dot_product_attention")):
        outcome = in_engine(tmp_path, old_python, body)
        assert outcome.status == status and words in outcome.message


def test_engines_that_compute_something_else_are_told(tmp_path: Path) -> None:
    # as with operators of another version, results differ: the engine begins with the default seed of torch
    torch.manual_seed(0)
    outcome = in_engine(tmp_path, sys.executable, "rate = rate + torch.rand([1])")
    assert outcome.status == "failed"
    assert "1000000 ppm" in outcome.message
    assert len(outcome.evidence) == 1


def test_an_engine_that_takes_long_or_does_not_come_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = in_engine(tmp_path, script(tmp_path, sleep=30), seconds=2)
    assert outcome.status == "failed" and "torch 2.0.1: did not finish within 2 s" in outcome.message
    assert outcome.fix == engines._COMPILES
    outcome = in_engine(tmp_path, script(tmp_path, json.dumps({"error": "did not find the operator"})))
    assert outcome.status == "failed" and outcome.fix == ""  # by default that of the check

    def slow(python: str, job: str, *words: str, timeout: float) -> dict[str, Any]:
        return (engine_script.run(*words) if job == "run" else {}) | {"torch": "2.0.1", "took": [2.0, 704.0, 2.5]}

    monkeypatch.setattr(engines, "_ask", slow)
    outcome = in_engine(tmp_path, "compiles")
    assert outcome.status == "warning" and "2, 704, 2.5 s" in outcome.message


def test_other_versions_of_core_are_asked(tmp_path: Path) -> None:
    for errors, status, words in (([], "passed", "test passes"), (["onnx: no"], "failed", "test fails: onnx: no")):
        python = script(tmp_path, json.dumps({"errors": errors}))
        outcome = other_cores(tmp_path / "rdf.yaml", ["onnx"], [python], 60)
        assert (outcome.status, outcome.message) == (status, f"bioimageio.core 0.9: its {words}")


def test_an_engine_is_an_interpreter_that_has_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for python in ("/nowhere/python", "/bin/false", "/bin/echo"):
        with pytest.raises(ConfigError, match=r"--engine .* does not run as a Python interpreter"):
            find_engines([python])
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -I -S "$@"\n')  # -S: no packages
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match="has no torch"):
        find_engines([str(bare)])
    python = script(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_engines(["./python"]) == (python,)


def test_engines_are_isolated_and_take_tensors_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("__version__ = 'ours'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    inputs = [torch.randn(1, 1, 32, 32)]
    weights = tmp_path / "torchscript.pt"
    weights.write_bytes(zips.model_files(zips.tiny("rate = photons"))["torchscript.pt"])
    torch.save(inputs, tmp_path / "inputs.pt")
    answer = engines._ask(sys.executable, "run", str(weights), str(tmp_path), "3", timeout=300)
    assert len(answer["took"]) == 3
    assert torch.equal(torch.load(tmp_path / "outputs.pt")[0], inputs[0])
