"""The verb calibrate: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from command_line import one_sentence

from benchmarks.cameras import simulate_camera
from gap_bioimage.camera.camera import read_camera
from gap_bioimage.io import write_image
from gap_bioimage.simulation import simulate_truth

if TYPE_CHECKING:
    from pathlib import Path

    from command_line import Result


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "stack.tif", simulate_camera(simulate_truth(2, (64, 64)) * 30))
    return tmp_path / "stack.tif"


def test_numbers_yaml_plot_and_the_next_command(run: Any, stack: Path) -> None:
    result: Result = run("calibrate", stack)
    assert result.code == 0, result
    for text in ("gain        2.", "offset      ", "read noise  ", "chi-square", "24 frames", "camera.yaml: written"):
        assert text in result.out
    assert result.out.splitlines()[-1] == (f"next: gap-bioimage train {stack} --dim 2 --out RUN --camera camera.yaml")
    camera = read_camera(stack.parent / "camera.yaml").camera
    assert camera.gain == pytest.approx(2.2, rel=0.03)
    assert camera.measured["images"] == "stack.tif"
    assert (stack.parent / "camera.png").read_bytes().startswith(b"\x89PNG")


def test_dark_frames_maps_json_and_other_names(run: Any, stack: Path) -> None:
    dark = stack.parent / "dark.tif"
    write_image(dark, simulate_camera(np.zeros((64, 64)), n_frames=16, seed=3))
    options = "--out c.yaml --plot p.png --json - --not-multiplying --time 0:12".split()
    result: Result = run("calibrate", stack, "--dark", dark, *options)
    report = json.loads(result.out)
    assert read_camera(stack.parent / "c.yaml").camera.measured["frames"] == 12
    assert report["offset_from"] == "dark frames"
    assert report["next"].endswith("--camera c.yaml --time 0:12")
    assert (stack.parent / "p.png").exists()
    assert tifffile.imread(stack.parent / "c_maps.tif").shape == (2, 64, 64)


def test_counts_and_warnings(run: Any, stack: Path) -> None:
    counts = np.random.default_rng(0).poisson(3 * simulate_truth(2, (64, 64)).values, (20, 64, 64)).astype(np.uint16)
    tifffile.imwrite(stack.parent / "counts.tif", counts, imagej=True, metadata={"axes": "TYX"})
    assert "--camera" not in run("calibrate", stack.parent / "counts.tif").out
    assert not (stack.parent / "camera.yaml").exists()
    assert "warning: this rests on one image" in run("calibrate", stack, "--time", 0).err


def test_errors_are_one_sentence(run: Any, stack: Path) -> None:
    assert "does not exist" in one_sentence(run("calibrate", stack, "--out", "nowhere/camera.yaml"))
    assert "give the dark frames alone" in one_sentence(run("calibrate", stack, "--dark", stack, "--offset", 1))
    assert not (stack.parent / "camera.yaml").exists()
