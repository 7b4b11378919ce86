"""From nothing to a validated zip by typed commands alone, each in a process of its own."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from command_line import python

SHAPE = (20, 44, 40)
SETTINGS = {
    "network": {"depth": 2, "start_filts": 2, "z_conv_stage": 1},
    "thinning": {"min_db": -5.0},
    "train": {
        "patch_px": [8, 24, 24], "steps": 60, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 10,
        "validate_every": 20, "validation_windows": 4,
    },
}  # fmt: skip


@pytest.fixture
def gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Type a command in an empty folder; it must succeed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        result = python("-m", "gap_bioimage", *arguments)
        assert (result.code, result.err) == (0, ""), arguments
        return str(result.out)

    return call


def assert_opens_in_fiji(path: Path) -> None:
    """See that a file is an ImageJ hyperstack with the axes and pixel sizes of the simulation."""
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_imagej
        assert (tiff.series[0].axes, tiff.series[0].shape) == ("ZYX", SHAPE)
        words = tiff.imagej_metadata
        assert words["unit"] in ("um", "micron", "µm", "\\u00B5m")
        assert words["spacing"] == pytest.approx(0.3)
        for tag in ("XResolution", "YResolution"):
            pixels, micrometres = tiff.pages[0].tags[tag].value
            assert micrometres / pixels == pytest.approx(0.1, rel=1e-6)


def test_from_nothing_to_a_validated_zip(gap: Callable[..., str], tmp_path: Path) -> None:
    shape = ",".join(map(str, SHAPE))
    gap("simulate", "counts.tif", "--dim", 3, "--photons", 2, "--seed", 1, "--truth", "truth.tif", "--shape", shape)
    report = json.loads(gap("inspect", "counts.tif", "--json", "-"))
    assert report["verdict"] == "photon counts"
    assert report["axes"] == "zyx"
    assert report["next"] == "gap-bioimage train counts.tif --dim 3 --out RUN"

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    gap(
        "train", "counts.tif", "--dim", 3, "--out", "run", "--config", "config.yaml",
        "--set", "train.seed=3", "--device", "cpu", "--quiet",
    )  # fmt: skip
    info = json.loads(gap("info", "run", "--json", "-"))
    assert (info["dim"], info["depth"], info["origin"]) == (3, 2, "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == 60
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    assert info["steps"] == int(best["step"])
    assert info["validation_loss"] == pytest.approx(float(best["validation_loss"]))
    assert info["trained_range_db"][0] == -5

    out = gap("denoise", "run", "counts.tif", "rate.tif")
    assert "photons per pixel" in out
    counts, rate = tifffile.imread(tmp_path / "counts.tif"), tifffile.imread(tmp_path / "rate.tif")
    assert rate.dtype == np.float32
    assert rate.sum(dtype=float) == pytest.approx(counts.sum(), rel=0.05)  # what validate asks of a zip, too
    truth = tifffile.imread(tmp_path / "truth.tif").astype(float)
    assert np.square(rate - truth).mean() < 0.5 * np.square(counts - truth).mean()
    for name in ("counts.tif", "truth.tif", "rate.tif"):
        assert_opens_in_fiji(tmp_path / name)

    gap("export", "--init-card", "card.yaml")
    card = (tmp_path / "card.yaml").read_text()
    for placeholder, text in (
        ("My photon denoiser", "End to end"),
        ("photon counts of ... recorded with ...", "simulated cells"),
        ("Photon counts of ...", "Simulated cells."),
        ("Your Name", "Ada Example"),
    ):
        card = card.replace(placeholder, text)
    (tmp_path / "card.yaml").write_text(card)
    assert "written" in gap("export", "run", "model.zip", "--card", "card.yaml")  # where it passes every check
    gap("denoise", "model.zip", "counts.tif", "again.tif", "--quiet")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "again.tif"), rate)
    assert {path.name for path in tmp_path.iterdir()} == {
        "counts.tif", "truth.tif", "rate.tif", "again.tif", "config.yaml", "card.yaml", "run", "model.zip",
    }  # fmt: skip
