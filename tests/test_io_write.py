from __future__ import annotations

import errno
import os
import sys

import numpy as np
import pytest
import tifffile
import xarray as xr
from made_images import counts, one_sentence

from gap_bioimage.errors import AxesError, OutputError
from gap_bioimage.io import check_output, pixel_size_um, read_photons, write_image


def test_numpy_round_trip(tmp_path):
    write_image(tmp_path / "a.npy", counts("zyx", np.float64))
    again = read_photons(tmp_path / "a.npy", axes="zyx")
    np.testing.assert_array_equal(again, counts("zyx"))
    assert again.dtype == np.float64


def test_fiji_finds_its_axes_and_calibration(tmp_path):
    write_image(tmp_path / "a.tif", counts("tczyx"))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        words = tif.imagej_metadata
        assert tif.series[0].axes == "TZCYX"
        assert (words["frames"], words["slices"], words["channels"]) == (3, 4, 2)
        assert (words["unit"], words["spacing"], words["finterval"]) == ("micron", 0.3, 2.5)
        assert words["Labels"][:3] == ["actin", "DNA", "actin"]
        across, per = tif.pages[0].tags["XResolution"].value
        assert across / per == pytest.approx(1 / 0.108)


def test_other_programs_find_the_name_of_a_single_channel(tmp_path):
    chosen = counts("czyx").isel(c=1)
    write_image(tmp_path / "a.tif", chosen)
    write_image(tmp_path / "a.ome.tif", chosen)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.imagej_metadata["Labels"] == ["DNA"] * 4
        assert tif.series[0].axes == "ZYX"
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tif:
        assert tif.ome_metadata.count("<Channel ") == 1
        assert tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]["Channel"]["Name"] == "DNA"


@pytest.mark.parametrize(("dtype", "imagej"), [(np.uint16, True), (np.uint32, False), (np.int32, False)])
def test_types_that_imagej_lacks_become_ome(tmp_path, dtype, imagej):
    write_image(tmp_path / "a.tif", counts("zyx", dtype))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_imagej is imagej
        assert tif.is_ome is not imagej
        assert tif.is_bigtiff is not imagej
        assert tif.series[0].dtype == dtype


def test_large_images_become_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr("gap_bioimage.io.write._IMAGEJ_LIMIT_BYTES", 100)
    write_image(tmp_path / "a.tif", counts("zyx"))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff
        assert tif.is_ome
    assert pixel_size_um(read_photons(tmp_path / "a.tif")) == pytest.approx({"z": 0.3, "y": 0.065, "x": 0.108})


@pytest.mark.parametrize("dims", [("y",), ("z", "y"), ("sample", "t", "y", "x"), ("a", "y", "x")])
def test_images_without_known_dims_are_not_written(tmp_path, dims):
    with pytest.raises(AxesError, match="cannot write an image with dims"):
        write_image(tmp_path / "a.tif", xr.DataArray(np.ones([2] * len(dims)), dims=dims))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        (np.ones((4, 4), complex), "a.tif", "images hold real numbers"),
        (np.full((4, 4), 2**40), "a.tif", "do not fit into 32 bits"),
        (np.ones((4, 4)), "a.png", "unknown suffix"),
        (np.ones((4, 4)), "no/a.tif", "folder does not exist"),
        (np.ones((4, 4)), "", "unknown suffix"),
    ],
)
def test_impossible_outputs_are_refused(tmp_path, values, name, message):
    with pytest.raises(OutputError, match=message) as error:
        write_image(tmp_path / name, xr.DataArray(values, dims=["y", "x"]))
    one_sentence(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, counts("yx"))
    before = path.read_bytes()

    def full(file, *_, **__):
        (file.write_bytes if hasattr(file, "write_bytes") else file.write)(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tifffile, "imwrite", full)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OutputError, match="no space left on device") as error:
        write_image(path, counts("yx", seed=1))
    one_sentence(error)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".tif", ".h5"])
def test_an_unknown_compression_is_refused(tmp_path, suffix):
    with pytest.raises(OutputError, match="without compression") as error:
        write_image(tmp_path / f"a{suffix}", counts("yx"), compression="nonsense")
    one_sentence(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "library", "extra"), [(".h5", "h5py", "formats"), (".zarr", "zarr", "zarr")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, suffix, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OutputError, match=rf"pip install 'gap-bioimage\[{extra}\]'"):
        write_image(tmp_path / f"a{suffix}", counts("yx"))
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_not_overwritten_under_another_name(tmp_path):
    write_image(tmp_path / "a.tif", counts("yx"))
    (tmp_path / "b.tif").symlink_to(tmp_path / "a.tif")
    with pytest.raises(OutputError, match="is the input itself"):
        check_output(tmp_path / "b.tif", tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".h5", ".tif"])
def test_a_folder_is_not_overwritten_by_a_file(tmp_path, suffix):
    (tmp_path / f"a{suffix}").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        write_image(tmp_path / f"a{suffix}", counts("yx"))
