"""Files read for a model and written of samples; what is kept of long work, and for whom."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import xarray as xr
from fixtures_model import random_model

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera, SamplingConfig
from gap_bioimage.errors import ConfigError, NotPhotonCountsError, OutputError
from gap_bioimage.inference.files import beside, read_for_model, write_samples, write_states
from gap_bioimage.inference.resume import Unfinished
from gap_bioimage.inference.sampling import sample
from gap_bioimage.io import read_photons

SIZES = {"c": 2, "z": 3, "y": 8, "x": 10}


def image(dims: str, **sizes: int) -> xr.DataArray:
    sizes = {**SIZES, **sizes}
    rng = np.random.default_rng(0)
    return xr.DataArray(rng.random([sizes[d] for d in dims]).astype(np.float32), dims=list(dims))


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("a.tif", "a_std.tif"),
        ("a.b.tif", "a.b_std.tif"),
        ("a.ome.tif", "a_std.ome.tif"),
        ("a.ome.zarr", "a_std.ome.zarr"),
        ("a.npy", "a_std.npy"),
    ],
)
def test_names_beside(out: str, expected: str) -> None:
    assert beside(Path("folder") / out, "std") == Path("folder") / expected
    assert beside(Path(out), "figure", ".png").name == expected.split("_")[0] + "_figure.png"


@pytest.mark.parametrize("dims", ["yx", "czyx"])
def test_every_kind_of_image_is_written(tmp_path: Path, dims: str) -> None:
    counts = image(dims)
    samples = xr.concat([counts + n for n in range(4)], "sample")
    files = write_samples(tmp_path / "s.tif", counts, counts, samples)
    assert [file.name for file in files] == ["s.tif", "s_mean.tif", "s_std.tif", "s_figure.png"]
    stored = read_photons(files[0], check=False)
    assert set(stored.dims) == {"t", *dims}
    np.testing.assert_allclose(stored.transpose("t", *dims), samples, rtol=1e-6)
    np.testing.assert_allclose(read_photons(files[2], check=False), samples.std("sample", ddof=1), rtol=1e-5)
    # those of an earlier run would be taken for those of the one sample
    assert write_samples(tmp_path / "s.tif", counts, counts, samples[:1]) == [*tmp_path.iterdir()] == files[:1]


@pytest.mark.parametrize("dims", ["zyx", "cyx"])
def test_states_keep_the_axes(tmp_path: Path, dims: str) -> None:
    counts = image(dims)
    counts = counts.assign_coords(y=np.arange(8) * 0.5, x=np.arange(10) * 0.5)
    counts = counts if "c" in dims else counts.assign_coords(c="DNA")
    full = counts if "c" in dims else counts.expand_dims("c")
    steps = [np.round(full.values * 10 * n).astype(np.float32) for n in (1, 2, 3)]
    kept = Unfinished(tmp_path / "kept", {})
    for number, step in enumerate(steps, 1):
        kept.save(f"sample0_step{number}", counts=step)
    (file,) = write_states(tmp_path / "s.tif", kept, 1, counts)
    assert file.name == "s_states_001.tif"
    stored = read_photons(file, check=False)
    np.testing.assert_array_equal(stored.isel(t=2).transpose(*counts.dims), steps[2].reshape(counts.shape))
    assert float(stored.y[1]) == pytest.approx(0.5)
    assert "c" in dims or str(stored.c.values) == "DNA"


CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5)


def test_what_a_camera_wrote_is_not_judged_as_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    adu = np.rint(100 + 2 * (rng.poisson(5, (48, 48)) + rng.normal(0, 1.5, (48, 48))))
    tifffile.imwrite(tmp_path / "raw.tif", adu.astype(np.uint16), imagej=True)
    assert read_for_model(random_model(), tmp_path / "raw.tif", Detector(CAMERA)).shape == (48, 48)
    tifffile.imwrite(tmp_path / "dark.tif", np.zeros((32, 32), np.uint16), imagej=True)  # to generate from
    assert not read_for_model(random_model(), tmp_path / "dark.tif", None, may_be_empty=True).any()
    for name, empty in (("raw.tif", False), ("raw.tif", True), ("dark.tif", False)):
        with pytest.raises(NotPhotonCountsError):
            read_for_model(random_model(), tmp_path / name, None, may_be_empty=empty)


def test_frames_are_summed_as_in_training(tmp_path: Path) -> None:
    movie = (np.random.default_rng(0).random((8, 32, 32)) < 0.3).astype(np.uint8)
    bits = tmp_path / "bits.tif"
    tifffile.imwrite(bits, movie, imagej=True, metadata={"axes": "TYX"})
    model = replace(random_model(), n_frames=4)
    assert read_for_model(model, bits, None, 4, time="0:4").sizes == {"y": 32, "x": 32}
    for other in (model, random_model()):
        with pytest.raises(ConfigError, match="2 frames"):
            read_for_model(other, bits, None, 2)


def test_the_same_work_finds_what_was_saved_and_other_work_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    Unfinished(folder, {"seed": 1}).save("a", x=np.arange(3), y=np.ones(2))
    same, other = Unfinished(folder, {}), Unfinished(folder, {"seed": 2})
    same.begin(seed=1)
    assert {name: len(values) for name, values in (same.load("a") or {}).items()} == {"x": 3, "y": 2}
    assert same.load("b") is None
    other.begin()
    assert (other.load("a"), other.count("a")) == (None, 0)
    other.save("b1", x=np.arange(3))
    assert other.count("b") == 1
    assert [path.name for path in folder.glob("*.npz")] == ["b1.npz"]
    nothing = Unfinished(None, {})
    nothing.save("a", x=np.arange(3))
    assert nothing.load("a") is None
    nothing.remove()


@pytest.mark.parametrize("kind", ["file", "folder", "crashed"])
def test_what_others_keep_in_a_folder_is_never_removed(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "mine"
    inside = folder / (".work.tmp-1.json" if kind == "crashed" else "results.csv")
    (folder if kind == "file" else inside).parent.mkdir(exist_ok=True)
    (folder if kind == "file" else inside).write_text("kept")
    given = {"seed": 0, "unfinished": folder, "settings": SamplingConfig(steps=1)}
    if kind == "crashed":  # before anything was saved
        sample(random_model(), image("yx").astype(np.uint8) + 1, 1, **given)
        assert not folder.exists()
        return
    with pytest.raises(OutputError):
        sample(random_model(), image("yx").astype(np.uint8) + 1, 1, **given)
    assert (folder if kind == "file" else inside).read_text() == "kept"


@pytest.mark.parametrize("damage", ["", "PK no zip", "truncated", "inside"])
def test_what_cannot_be_read_was_not_saved(tmp_path: Path, damage: str) -> None:
    kept = Unfinished(tmp_path / "work", {})
    kept.save("a", x=np.arange(300))
    file = tmp_path / "work" / "a.npz"
    content = file.read_bytes()
    broken = {"truncated": content[:-30], "inside": content[:900] + b"damage" + content[906:]}
    file.write_bytes(broken.get(damage, damage.encode()))
    assert kept.load("a") is None
