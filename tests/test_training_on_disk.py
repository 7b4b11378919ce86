from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import counts

from gap_bioimage.config import NetworkConfig, ThinningConfig, TrainConfig
from gap_bioimage.io import read_images, write_image
from gap_bioimage.training.fit import train
from gap_bioimage.training.patches import WindowDrawer, as_stacks, split_held_out

zarr = pytest.importorskip("zarr")


@pytest.fixture
def too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))


def drawn(images: Any, dim: int, separate: bool) -> WindowDrawer:
    stacks = split_held_out(as_stacks(images, dim, separate_channels=separate), 0.1, 0).training
    return WindowDrawer(stacks, (2, 6, 6)[-dim:], ThinningConfig(min_db=-10, max_db=5))


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
@pytest.mark.parametrize(
    ("dims", "dim", "separate"),
    [("zyx", 3, False), ("zyx", 2, False), ("tczyx", 3, False), ("czyx", 3, True), ("tcyx", 2, True)],
)
def test_windows_from_the_disk_are_those_from_memory(
    tmp_path: Path, request: pytest.FixtureRequest, dims: str, dim: int, separate: bool, suffix: str
) -> None:
    write_image(tmp_path / f"a.{suffix}", counts(dims))
    expected = drawn(read_images(tmp_path / f"a.{suffix}"), dim, separate).batch([1], 4)
    request.getfixturevalue("too_little_memory")
    found = drawn(read_images(tmp_path / f"a.{suffix}", on_disk=True), dim, separate).batch([1], 4)
    for one, other in zip(found[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("too_little_memory")
def test_training_reads_windows_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).poisson(3, (40, 96, 96)).astype(np.uint16)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(8, 32, 32), dimension_names=["z", "y", "x"])
    read, whole = [], zarr.Array.__getitem__

    def reading(array: Any, index: Any) -> Any:
        read.append(whole(array, index).size)
        return whole(array, index)

    monkeypatch.setattr(zarr.Array, "__getitem__", reading)
    network = NetworkConfig(dim=3, depth=2, start_filts=2, anchor_version=4)
    sections: Any = {"network": network, "thinning": ThinningConfig(max_db=3.0)}
    settings = TrainConfig(steps=2, batch_size=1, patch_px=(4, 16, 16), validation_windows=1)
    images = read_images(tmp_path / "a.zarr", on_disk=True)
    model = train(images, tmp_path / "run", settings, **sections, progress=False, device="cpu")
    assert model.trained_range_db[1] == pytest.approx(3.0)
    assert (tmp_path / "run" / "example.npy").exists()
    # but for the piece that is judged, and the examples
    assert sorted(read)[-10] < values.size / 10
