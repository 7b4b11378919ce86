from __future__ import annotations

import errno
import itertools
import os

import numpy as np
import pytest
import xarray as xr
from made_images import assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, OutputError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

zarr = pytest.importorskip("zarr")


def test_the_words_are_those_of_ome_0_5(tmp_path):
    write_image(tmp_path / "cell 1.ome.zarr", counts("tczyx"))
    words = zarr.open_group(tmp_path / "cell 1.ome.zarr", mode="r").attrs["ome"]
    assert words["version"] == "0.5"
    (multiscale,) = words["multiscales"]
    assert multiscale["name"] == "cell 1"
    assert [axis["name"] for axis in multiscale["axes"]] == list("tczyx")
    assert [axis["type"] for axis in multiscale["axes"]] == ["time", "channel", "space", "space", "space"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == ["second", None, *["micrometer"] * 3]
    (dataset,) = multiscale["datasets"]
    assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [2.5, 1.0, 0.3, 0.065, 0.108]}]
    assert [channel["label"] for channel in words["omero"]["channels"]] == ["actin", "DNA"]
    for number, channel in enumerate(words["omero"]["channels"]):
        assert channel["window"]["end"] == counts("tczyx").values[:, number].max()
    array = zarr.open_array(tmp_path / "cell 1.ome.zarr" / dataset["path"], mode="r")
    assert array.metadata.dimension_names == tuple("tczyx")
    assert array.chunks == (1, 1, 4, 17, 12)


def test_a_single_channel_has_its_name(tmp_path):
    write_image(tmp_path / "a.zarr", counts("cyx").isel(c=1))
    words = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]
    assert [axis["name"] for axis in words["multiscales"][0]["axes"]] == ["y", "x"]
    (channel,) = words["omero"]["channels"]
    assert (channel["label"], channel["color"]) == ("DNA", "FFFFFF")
    assert channel["window"]["end"] == counts("cyx").values[1].max()


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
@pytest.mark.parametrize(
    ("z_um", "shapes"),
    [
        (None, [(5, 601, 300), (5, 301, 150), (5, 151, 75)]),
        (0.1, [(5, 601, 300), (3, 301, 150), (2, 151, 75)]),
        (0.2, [(5, 601, 300), (5, 301, 150), (3, 151, 75)]),
        (2.0, [(5, 601, 300), (5, 301, 150), (5, 151, 75)]),
    ],
)
def test_pyramids_halve_what_is_close(tmp_path, z_um, shapes):
    values = np.random.default_rng(0).poisson(5, shapes[0]).astype(np.uint16)
    image = xr.DataArray(values, dims=list("zyx"), coords={d: np.arange(n) * 0.1 for d, n in (("y", 601), ("x", 300))})
    if z_um:
        image = image.assign_coords(z=np.arange(5) * z_um)
    write_image(tmp_path / "a.zarr", image)
    levels = [read_photons(tmp_path / "a.zarr", level=level, check=False) for level in range(3)]
    assert [level.shape for level in levels] == shapes
    with pytest.raises(AxesError, match="level 3"):
        read_photons(tmp_path / "a.zarr", level=3)
    np.testing.assert_array_equal(levels[0], values)
    for before, after in itertools.pairwise(levels):
        halved = [axis for axis in "zyx" if after.sizes[axis] < before.sizes[axis]]
        for axis, size in pixel_size_um(after).items():
            assert size == pytest.approx(pixel_size_um(before)[axis] * (2 if axis in halved else 1))
        padded = np.pad(before, [(0, before.sizes[a] % 2 if a in halved else 0) for a in "zyx"], mode="edge")
        blocks = padded.reshape([n for a in "zyx" for n in (after.sizes[a], 2 if a in halved else 1)])
        np.testing.assert_array_equal(after, np.rint(blocks.mean(axis=(1, 3, 5))))
    assert [float(level.mean()) for level in levels] == pytest.approx([5] * 3, rel=0.01)


def test_a_store_is_replaced_when_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    write_image(path, counts("zyx"))
    write_image(path, counts("yx", seed=1))
    assert_same(read_photons(path), counts("yx", seed=1))
    assert list(tmp_path.iterdir()) == [path]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OutputError, match="no space left on device") as error:
        write_image(path, counts("yx", seed=2))
    one_sentence(error)
    monkeypatch.undo()
    assert_same(read_photons(path), counts("yx", seed=1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_swap_brings_the_old_store_back(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    write_image(path, counts("yx"))
    rename = os.rename

    def refuse(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="permission denied"):
        write_image(path, counts("yx", seed=1))
    assert_same(read_photons(path), counts("yx"))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("empty", [True, False])
def test_folders_that_are_no_stores_are_kept(tmp_path, empty):
    path = tmp_path / "a.zarr"
    path.mkdir()
    if not empty:
        (path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="no Zarr store") as error:
        write_image(path, counts("yx"))
    one_sentence(error)
    assert path.is_dir()


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(OutputError, match=r"pip install 'gap-bioimage\[zarr\]'") as error:
        write_image(tmp_path / "a.zarr", counts("yx"))
    one_sentence(error)
    assert list(tmp_path.iterdir()) == []
