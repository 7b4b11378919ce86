"""The verb inspect: what it prints, draws and advises."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from command_line import one_sentence
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, values: Any, axes: str = "YX", **options: Any) -> Path:
    tifffile.imwrite(path, values, imagej=not options, metadata={"axes": axes}, **options)
    return path


def poisson(mean: float = 3.0, shape: tuple[int, ...] = (64, 64)) -> Any:
    return np.random.default_rng(0).poisson(mean, shape).astype(np.uint16)


def report(run: Any, *arguments: object) -> dict[str, Any]:
    result = run("inspect", *arguments, "--json", "-")
    assert result.code == 0, result
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_counts_lead_to_training(run: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "my cells.tif", poisson(), resolution=(10, 10))
    found = report(run, path)
    assert found["verdict"] == "photon counts"
    assert shlex.split(found["next"]) == ["gap-bioimage", "train", str(path), "--dim", "2", "--out", "RUN"]
    assert found["thinning"].startswith("valid")


def test_options_are_part_of_the_next_command(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", poisson(shape=(2, 3, 64, 64)))
    found = report(run, tmp_path / "a.npy", "--axes", "tcyx", "--channel", "1", "--time", "0")
    assert found["next"].endswith("--axes tcyx --channel 1 --time 0")


def test_multiplied_counts_lead_to_a_camera_that_divides(run: Any, tmp_path: Path) -> None:
    found = report(run, write(tmp_path / "a.tif", 3 * poisson()))
    assert found["verdict"] == "counts times k"
    assert found["next"].startswith("echo '{gain: 3, offset: 0}' > a_camera.yaml && gap-bioimage train ")
    assert found["next"].endswith("--camera a_camera.yaml")


def test_a_camera_leads_to_its_calibration(run: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", poisson() + 100)
    found = report(run, path)
    assert found["verdict"] == "camera image"
    assert found["next"] == f"gap-bioimage calibrate {path} --out camera.yaml"


def test_one_bit_frames_lead_to_their_sum(run: Any, tmp_path: Path) -> None:
    frames = (np.random.default_rng(0).random((40, 32, 32)) < 0.2).astype(np.uint8)
    found = report(run, write(tmp_path / "a.tif", frames, "TYX"))
    assert found["source_kind"] == "one-bit frames"
    assert found["next"].endswith("--sum-frames 16")


def test_pictures_are_told_apart_without_failing(run: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((32, 32, 3), np.uint8), photometric="rgb")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(poisson(20).astype(np.uint8)).save(tmp_path / "jpeg.tif", compression="jpeg", quality=95)
    kinds = {"rgb.tif": "rgb", "a.png": "picture", "jpeg.tif": "jpeg-compressed"}
    keys = set(report(run, write(tmp_path / "counts.tif", poisson())))
    for name, kind in kinds.items():
        found = report(run, tmp_path / name)
        assert (found["verdict"], found["source_kind"]) == ("processed", kind)
        assert "gap-bioimage" not in found["next"]
        assert set(found) == keys


def test_the_printed_verdict_reads_well(run: Any, tmp_path: Path) -> None:
    write(tmp_path / "bad.tif", np.full((32, 32), -1, np.int16), photometric="minisblack")
    result = run("inspect", tmp_path / "bad.tif")
    assert "processed, not usable as counts" in " ".join(result.out.split())


def test_a_plot_each(run: Any, tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, poisson()) for name in ("a.tif", "b.tif"))
    assert run("inspect", a, "--plot", tmp_path / "one.png", "--quiet").code == 0
    assert run("inspect", a, b, "--plot", tmp_path / "two.png", "--quiet").code == 0
    for name in ("one.png", "two_a.png", "two_b.png"):
        assert Image.open(tmp_path / name).size == (1650, 1275)
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 1), np.uint8),
        np.zeros((64, 64), np.uint16),
        np.full((64, 64), np.nan, np.float32),
        np.zeros((0, 8)),
        np.zeros((16, 16), complex),
        np.ones((32, 32), bool),
        poisson(5, (2, 2, 2, 20, 20)).astype(np.float32) / 4,
        -poisson(5, (40, 40)).astype(float),
        255 * (poisson(1, (40, 40)) > 0).astype(np.uint8),
    ],
)
def test_any_image_is_reported_and_drawn(run: Any, tmp_path: Path, values: Any) -> None:
    np.save(tmp_path / "a.npy", values)
    found = report(run, tmp_path / "a.npy", "--axes", "tczyx"[-values.ndim :], "--plot", tmp_path / "a.png")
    assert found["message"]
    assert (tmp_path / "a.png").exists()


def test_files_that_are_no_images_stay_errors(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("no image")
    assert "a.tif" in one_sentence(run("inspect", tmp_path / "a.tif", "--plot", tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()
