"""The verbs inspect and calibrate: what they print, draw, write and advise."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_line import Result, one_sentence
from PIL import Image

from benchmarks.cameras import simulate_camera
from gap_bioimage.camera.camera import read_camera
from gap_bioimage.io import write_image
from gap_bioimage.simulation import simulate_truth


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


BITS = (np.random.default_rng(0).random((40, 32, 32)) < 0.2).astype(np.uint8)
NEXT: dict[str, tuple[Any, str, str]] = {
    "counts": (poisson(), "photon counts", "gap-bioimage train PATH --dim 2 --out RUN"),
    "one-bit": (BITS, "photon counts", "gap-bioimage train PATH --dim 2 --out RUN --sum-frames 16"),
    "camera": (poisson() + 100, "camera image", "gap-bioimage calibrate PATH --out camera.yaml"),
    "times 3": (
        3 * poisson(),
        "counts times k",
        "echo '{gain: 3, offset: 0}' > 'my cells_camera.yaml' && "
        "gap-bioimage train PATH --dim 2 --out RUN --camera 'my cells_camera.yaml'",
    ),
}


@pytest.mark.parametrize("name", NEXT)
def test_the_next_command_can_be_typed(run: Any, tmp_path: Path, name: str) -> None:
    values, verdict, command = NEXT[name]
    path = write(tmp_path / "my cells.tif", values, "TYX"[-values.ndim :])
    found = report(run, path)
    assert found["verdict"] == verdict
    assert found["next"] == command.replace("PATH", shlex.quote(str(path)))
    np.save(tmp_path / "a.npy", poisson(shape=(2, 3, 64, 64)))
    found = report(run, tmp_path / "a.npy", "--axes", "tcyx", "--channel", "1", "--time", "0")
    assert found["next"].endswith("--axes tcyx --channel 1 --time 0")


def test_pictures_are_told_apart_without_failing(run: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((32, 32, 3), np.uint8), photometric="rgb")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(poisson(20).astype(np.uint8)).save(tmp_path / "jpeg.tif", compression="jpeg", quality=95)
    write(tmp_path / "MAX_cells.tif", poisson())
    keys = set(report(run, write(tmp_path / "counts.tif", poisson())))
    for name in ("rgb.tif", "a.png", "jpeg.tif", "MAX_cells.tif"):
        found = report(run, tmp_path / name)
        assert (found["verdict"], found["source_kind"]) == ("processed", "processed")
        assert "gap-bioimage" not in found["next"]
        assert set(found) == keys


def test_a_plot_each(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    images = [write(tmp_path / name, poisson()) for name in ("a.tif", "b.tif", "in/a.tif")]
    for plot, count in (("one.png", 1), ("two.png", 2), ("three.png", 3)):
        assert run("inspect", *images[:count], "--plot", tmp_path / plot, "--quiet").code == 0
    expected = {"one.png", "two_a.png", "two_b.png", "three_0_a.png", "three_1_b.png", "three_2_a.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == expected
    whole = json.loads(run("inspect", tmp_path / "in", images[0], "--json", "-").out)  # a folder, and an image
    assert [part["verdict"] for part in whole] == ["photon counts"] * 2
    assert Image.open(tmp_path / "two_b.png").size == (1650, 1275)
    before = write(tmp_path / "x_b.tif", poisson()).read_bytes()
    assert run("inspect", images[1], tmp_path / "x_b.tif", "--plot", tmp_path / "x.tif").code == 2
    assert (tmp_path / "x_b.tif").read_bytes() == before


def test_people_read_no_dictionaries_and_errors_of_files_that_are_no_images(run: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "film.tif", simulate_camera(np.full((64, 64), 20.0) * np.linspace(0.1, 3, 64), n_frames=6))
    printed = run("inspect", tmp_path / "film.tif").out
    assert "gain guess" in printed
    assert not {"{", "fano"} & {*printed, *printed.split()}
    write(tmp_path / "bad.tif", np.full((32, 32), -1, np.int16), photometric="minisblack")
    assert "processed, not usable as counts" in " ".join(run("inspect", tmp_path / "bad.tif").out.split())
    (tmp_path / "a.tif").write_text("no image")
    assert "a.tif" in one_sentence(run("inspect", tmp_path / "a.tif", "--plot", tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "stack.tif", simulate_camera(simulate_truth(2, (64, 64)) * 30))
    return tmp_path / "stack.tif"


def test_numbers_yaml_plot_and_the_next_command(run: Any, stack: Path) -> None:
    result: Result = run("calibrate", stack)
    assert result.code == 0, result
    assert "gain        2." in result.out
    assert result.out.splitlines()[-1] == f"next: gap-bioimage train {stack} --dim 2 --out RUN --camera camera.yaml"
    camera = read_camera(stack.parent / "camera.yaml").camera
    assert camera.gain == pytest.approx(2.2, rel=0.03)
    assert camera.measured["images"] == "stack.tif"
    assert (stack.parent / "camera.png").read_bytes().startswith(b"\x89PNG")


def test_dark_frames_maps_json_and_other_names(run: Any, stack: Path) -> None:
    dark = stack.parent / "dark.npy"  # whose axes are those of the frames
    write_image(dark, simulate_camera(np.zeros((64, 64)), n_frames=16, seed=3))
    options = "--out c.yaml --plot p.png --json - --not-multiplying --axes tyx --time 0:12".split()
    result: Result = run("calibrate", stack, "--dark", dark, *options)
    report = json.loads(result.out)
    assert read_camera(stack.parent / "c.yaml").camera.measured["frames"] == 12
    assert report["offset_from"] == "dark frames"
    assert report["next"].endswith("--camera c.yaml --axes tyx --time 0:12")
    assert (stack.parent / "p.png").exists()
    assert tifffile.imread(stack.parent / "c_maps.tif").shape == (2, 64, 64)


def test_counts_warnings_and_errors(run: Any, stack: Path) -> None:
    counts = np.random.default_rng(0).poisson(3 * simulate_truth(2, (64, 64)).values, (20, 64, 64)).astype(np.uint16)
    tifffile.imwrite(stack.parent / "counts.tif", counts, imagej=True, metadata={"axes": "TYX"})
    assert "--camera" not in run("calibrate", stack.parent / "counts.tif").out
    assert not (stack.parent / "camera.yaml").exists()
    assert "warning: the result rests on one image" in run("calibrate", stack, "--time", 0).err
    (stack.parent / "camera.yaml").unlink()
    assert "does not exist" in one_sentence(run("calibrate", stack, "--out", "nowhere/camera.yaml"))
    assert "give the dark frames alone" in one_sentence(run("calibrate", stack, "--dark", stack, "--offset", 1))
    assert not (stack.parent / "camera.yaml").exists()
