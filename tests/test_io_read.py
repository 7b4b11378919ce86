import numpy as np
import pytest
import tifffile
from made_images import STEPS, counts, one_sentence

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io import read_images, read_photons, write_image


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy"])
def test_opening_does_not_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, counts("tczyx"))
    opened = read_photons(path, axes="tczyx" if suffix == ".npy" else None, check=False)
    assert isinstance(opened.data.base, np.memmap)


def test_length_one_axes_go_unless_named(tmp_path):
    values = counts("yx").values
    tifffile.imwrite(tmp_path / "a.ome.tif", values[None, None, None], metadata={"axes": "TCZYX"})
    assert read_photons(tmp_path / "a.ome.tif").dims == ("y", "x")
    assert read_photons(tmp_path / "a.ome.tif", axes="tczyx").dims == ("t", "c", "z", "y", "x")
    assert read_photons(tmp_path / "a.ome.tif", axes="zyx").sizes == {"z": 1, "y": 17, "x": 12}
    np.save(tmp_path / "a.npy", values[None])
    assert read_photons(tmp_path / "a.npy", axes="zyx").dims == ("z", "y", "x")
    np.testing.assert_array_equal(read_photons(tmp_path / "a.npy", axes="xyz", check=False), values[None].T)
    write_image(tmp_path / "line.tif", counts("yx")[:1])
    assert read_photons(tmp_path / "line.tif", axes="yx", check=False).sizes == {"y": 1, "x": 12}


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
@pytest.mark.parametrize("written", ["b.tif", "b.npy"])
def test_content_counts_more_than_the_name(tmp_path, written, name):
    write_image(tmp_path / written, counts("yx"))
    (tmp_path / written).rename(tmp_path / name)
    np.testing.assert_array_equal(read_photons(tmp_path / name), counts("yx"))


@pytest.mark.parametrize("name", ["a.tif", "a.npy", "a.czi"])
def test_files_that_are_no_images_are_refused(tmp_path, name):
    for content in (b"", b"not an image at all, just text", b"II*\x00", b"\x93NUMPY\x01\x00"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImageError) as error:
            read_photons(tmp_path / name)
        assert name in one_sentence(error)
    for magic in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        (tmp_path / name).write_bytes(magic + bytes(50))
        with pytest.raises(NotPhotonCountsError):
            read_photons(tmp_path / name)


def test_compressed_images_larger_than_memory_are_refused(tmp_path, monkeypatch):
    write_image(tmp_path / "a.tif", counts("tczyx"), compression="zlib")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(UnreadableImageError, match=r"a\.tif takes .* GB .*time=.0:10"):
        read_photons(tmp_path / "a.tif")
    write_image(tmp_path / "b.tif", counts("tczyx"))
    assert read_photons(tmp_path / "b.tif", check=False).sizes["t"] == 3


def test_missing_files_and_folders_are_refused(tmp_path):
    for read, path, told in (
        (read_photons, tmp_path / "no.tif", "there is no file"),
        (read_photons, tmp_path, "is a folder"),
        (read_images, tmp_path, "holds no images"),
        (read_images, [], "no images were given"),
    ):
        with pytest.raises(UnreadableImageError, match=told):
            read(path)


def test_folders_are_read_in_natural_order_and_choices_reach_every_image(tmp_path):
    pytest.importorskip("zarr")
    for name in ("cell10.ome.zarr", "cell2.zarr", "cell1.ome.tif"):
        write_image(tmp_path / name, counts("tczyx"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.tif").write_text("no image")
    (tmp_path / "empty.zarr").mkdir()
    images = read_images([tmp_path, tmp_path / "cell2.zarr"], channel="DNA", time="1:", series=0, level=0)
    names = ["cell1.ome.tif", "cell2.zarr", "cell10.ome.zarr", "cell2.zarr"]
    assert [image.attrs["source"] for image in images] == names
    for image in images:
        np.testing.assert_array_equal(image, counts("tczyx").isel(c=1, t=slice(1, None)))
        assert float(image.t[0]) == STEPS["t"]


def test_errors_in_a_folder_name_the_file(tmp_path):
    write_image(tmp_path / "a.tif", counts("yx"))
    np.save(tmp_path / "b2.npy", counts("zyx").values)
    with pytest.raises(AxesError, match=r"b2\.npy"):
        read_images(tmp_path)
    write_image(tmp_path / "b2.npy", counts("yx") + 0.5)
    with pytest.raises(NotPhotonCountsError, match=r"b2\.npy has fractional values"):
        read_images(tmp_path)
    assert len(read_images(tmp_path, check=False)) == 2


def test_levels_are_warned_about_once(tmp_path, recwarn):
    values = counts("yx").values
    for name in ("a", "b"):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif", ome=True) as writer:
            writer.write(values, subifds=1)
            writer.write(values[::2, ::2], subfiletype=1)
    read_images(tmp_path, level=0)
    assert not list(recwarn)
    assert read_images(tmp_path, level=1, check=False)[1].shape == (9, 6)
    assert len(recwarn) == 1
