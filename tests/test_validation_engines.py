"""Other interpreters: what they run, what they refuse, and what they may not see."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zips
from gap_bioimage.validation.running.engines import _ask, check_engines

from gap_bioimage.errors import ConfigError
from gap_bioimage.validation.report import validate

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.running.process import ModelProcess

    from gap_bioimage.validation.checks import Check


def run(path: Path, process: ModelProcess, *engines: str, **options: Any) -> dict[str, Check]:
    report = validate(path, consumers=["fiji"], engines=engines, process=process, **options)
    return {check.id: check for check in report.checks}


def test_the_same_engine_agrees(tmp_path: Path, model_process: ModelProcess) -> None:
    checks = run(zips.make_zip(tmp_path, zips.torchscript_only), model_process, sys.executable)
    assert checks["fiji.older_engine"].status == "passed"
    assert checks["fiji.older_engine"].message.startswith("torch 2.")
    assert checks["core.other_versions"].status == "passed"
    assert "bioimageio.core 0.11" in checks["core.other_versions"].message


def test_an_older_engine_runs_it(tmp_path: Path, model_process: ModelProcess, old_python: str) -> None:
    checks = run(zips.make_zip(tmp_path, zips.torchscript_only), model_process, old_python)
    assert checks["fiji.older_engine"].status == "passed", checks["fiji.older_engine"]
    assert checks["core.other_versions"].status == "skipped"


def test_what_an_older_engine_does_not_know_fails(tmp_path: Path, model_process: ModelProcess, old_python: str) -> None:
    body = "rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)"
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=zips.tiny(body))
    check = run(path, model_process, old_python)["fiji.older_engine"]
    assert check.status == "failed"
    assert "scaled_dot_product_attention" in check.message
    assert check.fix


def test_engines_that_compute_something_else_are_told(tmp_path: Path, model_process: ModelProcess) -> None:
    # random numbers differ between processes, as another version's operators may
    source = zips.tiny("rate = rate + torch.rand([1])")
    path = zips.make_zip(tmp_path, zips.torchscript_only, source=source)
    check = run(path, model_process, sys.executable, keep=tmp_path / "kept")["fiji.older_engine"]
    assert check.status == "failed"
    assert "1000000 ppm" in check.message
    kept = sorted(file.name for file in (tmp_path / "kept").iterdir() if file.name.startswith("fiji.older_engine"))
    assert [name.rsplit("_", 1)[-1] for name in kept if name.endswith(".npy")] == ["expected.npy", "got.npy"]
    assert sum(name.endswith(".png") for name in kept) == 1


def test_what_an_engine_raises_is_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "torchscript.pt"
    path.write_bytes(zips.model_files()["torchscript.pt"])
    (tmp_path / "inputs.json").write_text("[[8]]")  # the convolution wants four axes
    np.zeros(8, np.float32).tofile(tmp_path / "input_0.bin")
    answer = _ask(sys.executable, "run", str(path), str(tmp_path))
    assert answer["error"].startswith("RuntimeError")


def test_python_code_stays_where_it_may_run(tmp_path: Path, model_process: ModelProcess) -> None:
    marker = tmp_path / "ran"
    path = zips.make_zip(tmp_path, source=f"open({str(marker)!r}, 'w').close()\n" + zips.BLUR)
    marker.unlink()  # made when the zip was written
    run(path, model_process, sys.executable)
    assert not marker.exists()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false", "/bin/echo"])
def test_what_is_no_interpreter_is_refused(python: str) -> None:
    with pytest.raises(ConfigError, match=r"--engine .* does not run as a Python interpreter"):
        check_engines([python])


def test_an_engine_needs_torch(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -I -S "$@"\n')  # -S: no packages
    python.chmod(0o755)
    with pytest.raises(ConfigError, match="has no torch"):
        check_engines([str(python)])


def test_engines_are_isolated_from_our_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("__version__ = 'ours'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert _ask(sys.executable, "versions")["torch"] != "ours"


def test_tensors_cross_over_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    weights = tmp_path / "torchscript.pt"
    weights.write_bytes(zips.model_files(zips.tiny("rate = photons"))["torchscript.pt"])
    values.tofile(tmp_path / "input_0.bin")
    (tmp_path / "inputs.json").write_text("[[1, 1, 32, 32]]")
    assert _ask(sys.executable, "run", str(weights), str(tmp_path)) == {"outputs": 1}
    assert np.array_equal(np.fromfile(tmp_path / "output_0.bin", np.float32), values.ravel())
