from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import tifffile
import xarray as xr
from made_images import STEPS, counts, one_sentence

from gap_bioimage.errors import AxesError, NotPhotonCountsError, OutputError, UnreadableImageError
from gap_bioimage.files import replacing
from gap_bioimage.io import check_output, pixel_size_um, read_images, read_photons, write_image


def bases(array):
    while array is not None:
        yield array
        array = getattr(array, "base", None)


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


@pytest.mark.parametrize(
    ("labels", "name"),
    [(["DNA"] * 4, "DNA"), (["slice 1", "slice 2", "slice 3", "slice 4"], None), (["cell.dcm\n0002 Header"] * 4, None)],
)
def test_labels_of_planes_are_no_names_of_channels(tmp_path, labels, name):
    tifffile.imwrite(tmp_path / "a.tif", counts("zyx").values, imagej=True, metadata={"axes": "ZYX", "Labels": labels})
    again = read_photons(tmp_path / "a.tif")
    assert (str(again.c.values) if "c" in again.coords else None) == name


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


def test_doubles_become_float32(tmp_path):
    write_image(tmp_path / "a.tif", counts("yx", np.float64) + 0.5)
    assert read_photons(tmp_path / "a.tif", check=False).dtype == np.float32


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy"])
def test_opening_does_not_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, counts("tczyx"))
    opened = read_photons(path, axes="tczyx" if suffix == ".npy" else None, check=False)
    assert any(isinstance(base, np.memmap) for base in bases(opened.data))


def test_swapped_bytes_are_native_after_reading(tmp_path):
    values = counts("zyx").values
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=">", imagej=True, metadata={"axes": "ZYX"})
    again = read_photons(tmp_path / "a.tif")
    assert again.dtype.isnative
    np.testing.assert_array_equal(again, values)


def test_length_one_axes_go_unless_named(tmp_path):
    values = counts("yx").values
    tifffile.imwrite(tmp_path / "a.ome.tif", values[None, None, None], metadata={"axes": "TCZYX"})
    assert read_photons(tmp_path / "a.ome.tif").dims == ("y", "x")
    assert read_photons(tmp_path / "a.ome.tif", axes="tczyx").dims == ("t", "c", "z", "y", "x")
    assert read_photons(tmp_path / "a.ome.tif", axes="zyx").sizes == {"z": 1, "y": 17, "x": 12}
    np.save(tmp_path / "a.npy", values[None])
    assert read_photons(tmp_path / "a.npy", axes="zyx").dims == ("z", "y", "x")
    write_image(tmp_path / "line.tif", counts("yx")[:1])
    assert read_photons(tmp_path / "line.tif", axes="yx").sizes == {"y": 1, "x": 12}


def test_a_single_plane_keeps_its_z_step(tmp_path):
    write_image(tmp_path / "a.ome.tif", counts("zyx"))
    assert pixel_size_um(read_photons(tmp_path / "a.ome.tif").isel(z=slice(1)))["z"] == pytest.approx(0.3)


def test_unknown_axes_are_asked_for_and_then_used(tmp_path):
    values = counts("zyx").values
    tifffile.imwrite(tmp_path / "stack.tif", values, metadata=None, photometric="minisblack")
    np.save(tmp_path / "stack.npy", values)
    for name in ("stack.tif", "stack.npy"):
        with pytest.raises(AxesError, match=r"shape \(4, 17, 12\).*axes=.zyx") as error:
            read_photons(tmp_path / name)
        one_sentence(error)
        assert read_photons(tmp_path / name, axes="zyx").dims == ("z", "y", "x")
        turned = read_photons(tmp_path / name, axes="xyz")
        assert turned.dims == ("z", "y", "x")
        np.testing.assert_array_equal(turned.values, values.T)


@pytest.mark.parametrize("axes", ["zy", "zzyx", "qyx", "tzyx", "", "yx"])
def test_axes_that_do_not_fit_are_refused(tmp_path, axes):
    np.save(tmp_path / "stack.npy", counts("zyx").values)
    with pytest.raises(AxesError) as error:
        read_photons(tmp_path / "stack.npy", axes=axes)
    one_sentence(error)


def test_a_channel_is_chosen(tmp_path):
    image = counts("tczyx")
    write_image(tmp_path / "a.tif", image)
    chosen = read_photons(tmp_path / "a.tif", channel=1)
    assert chosen.dims == ("t", "z", "y", "x")
    np.testing.assert_array_equal(chosen, image.isel(c=1))
    assert str(chosen.c.values) == "DNA"
    with pytest.raises(AxesError, match=r"channel 2 was asked for, but a.* has 2"):
        read_photons(tmp_path / "a.tif", channel=2)


def test_printer_resolution_is_not_believed(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", counts("yx").values, resolution=(72, 72), resolutionunit="inch")
    tifffile.imwrite(
        tmp_path / "b.tif", counts("yx").values, imagej=True, resolution=(72, 72), metadata={"unit": "inch"}
    )
    tifffile.imwrite(tmp_path / "c.tif", counts("zyx").values, imagej=True, metadata={"axes": "ZYX", "spacing": 0.3})
    for name in "abc":
        assert pixel_size_um(read_photons(tmp_path / f"{name}.tif")) == {}


@pytest.mark.parametrize(
    ("unit", "size"), [("micron", 0.1), ("\\u00B5m", 0.1), ("um", 0.1), ("nm", 1e-4), ("mm", 100.0)]
)
def test_imagej_units_become_micrometres(tmp_path, unit, size):
    tifffile.imwrite(
        tmp_path / "a.tif",
        counts("zyx").values,
        imagej=True,
        resolution=(10, 10),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 0.2},
    )
    found = pixel_size_um(read_photons(tmp_path / "a.tif"))
    assert found == pytest.approx({"z": 2 * size, "y": size, "x": size})


def test_ome_units_become_micrometres(tmp_path):
    words = {"PhysicalSizeX": 108, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.108, "PhysicalSizeZ": 0.0}
    words |= {"TimeIncrement": 500, "TimeIncrementUnit": "ms"}
    tifffile.imwrite(tmp_path / "a.ome.tif", counts("tyx").values, metadata={"axes": "TYX", **words})
    image = read_photons(tmp_path / "a.ome.tif")
    assert pixel_size_um(image) == pytest.approx({"x": 0.108, "y": 0.108})
    assert float(image.t[1]) == 0.5


def test_photographs_are_refused_unless_axes_are_named(tmp_path):
    colours = np.random.default_rng(0).poisson(5, (16, 20, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "photo.tif", colours, photometric="rgb")
    with pytest.raises(NotPhotonCountsError, match="RGB photograph") as error:
        read_photons(tmp_path / "photo.tif")
    one_sentence(error)
    channels = read_photons(tmp_path / "photo.tif", axes="yxc")
    np.testing.assert_array_equal(channels, colours.transpose(2, 0, 1))


@pytest.mark.parametrize(("magic", "kind"), [(b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff\xe0", "JPEG")])
def test_pictures_are_refused_whatever_their_name(tmp_path, magic, kind):
    (tmp_path / "a.tif").write_bytes(magic + bytes(50))
    with pytest.raises(NotPhotonCountsError, match=f"{kind} picture"):
        read_photons(tmp_path / "a.tif")


@pytest.mark.parametrize("share", [0.97, 0.6, 0.2, 0.02])
@pytest.mark.parametrize("kind", ["imagej", "zlib", "ome", "pages", "npy"])
def test_truncated_files_are_noticed(tmp_path, kind, share):
    image = counts("tczyx")
    path = tmp_path / {"ome": "a.ome.tif", "npy": "a.npy"}.get(kind, "a.tif")
    if kind == "pages":
        with tifffile.TiffWriter(path) as writer:
            for plane in image.values.reshape(-1, 17, 12):
                writer.write(plane, contiguous=False, metadata=None)
    else:
        write_image(path, image, compression="zlib" if kind == "zlib" else None)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    axes = {"npy": "tczyx", "pages": "zyx"}.get(kind)
    with pytest.raises(UnreadableImageError) as error:
        read_photons(path, axes=axes, check=False)
    assert path.name in one_sentence(error)


@pytest.mark.parametrize("content", [b"", b"not an image at all, just text", b"II*\x00", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["a.tif", "a.npy", "a.czi"])
def test_files_that_are_no_images_are_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImageError) as error:
        read_photons(tmp_path / name)
    assert name in one_sentence(error)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match="there is no file"):
        read_photons(tmp_path / "no.tif")
    with pytest.raises(UnreadableImageError, match="is a folder"):
        read_photons(tmp_path)
    with pytest.raises(UnreadableImageError, match="holds no images"):
        read_images(tmp_path)
    with pytest.raises(UnreadableImageError, match="no images were given"):
        read_images([])


def test_several_images_in_one_file_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.ones((8, 8), np.uint8))
        writer.write(np.ones((9, 9), np.uint8))
    with pytest.raises(UnreadableImageError, match="holds 2 images"):
        read_photons(tmp_path / "a.tif")


def test_folders_are_read_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        write_image(tmp_path / f"cell{number}.tif", counts("yx", seed=number))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.tif").write_text("no image")
    images = read_images([tmp_path, tmp_path / "cell2.tif"])
    assert [image.attrs["source"] for image in images] == [
        "cell1.tif",
        "cell2.tif",
        "cell10.tif",
        "cell2.tif",
    ]
    np.testing.assert_array_equal(images[2], counts("yx", seed=10))


def test_values_are_checked_unless_told_otherwise(tmp_path):
    write_image(tmp_path / "a.tif", counts("yx") + np.float32(0.5))
    with pytest.raises(NotPhotonCountsError, match=r"a\.tif has fractional values"):
        read_photons(tmp_path / "a.tif")
    assert read_photons(tmp_path / "a.tif", check=False).sizes == {"y": 17, "x": 12}


def test_shared_files_know_their_axes(shared_data):
    movie = read_photons(shared_data / "telomeres_camera_tyx.tif", check=False)
    assert movie.sizes == {"t": 200, "y": 133, "x": 162}
    stack = read_photons(shared_data / "hazelnut_photons_t0_zyx.tif")
    assert stack.sizes == {"z": 11, "y": 256, "x": 256}
    assert pixel_size_um(stack) == {}


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


def test_an_unknown_compression_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"COMPRESSION.*without compression"):
        write_image(tmp_path / "a.tif", counts("yx"), compression="nonsense")
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_without_an_error_number_is_a_full_disk(tmp_path):
    with pytest.raises(OutputError, match="no space left"), replacing(tmp_path / "a.bin"):
        raise OSError("100 requested and 7 written")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_that_is_full_is_reported(tmp_path):
    with pytest.raises(OutputError, match="no space left"), replacing(tmp_path / "a.bin") as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(bytes(100_000))
    assert list(tmp_path.iterdir()) == []


def test_replacing_renames_only_on_success(tmp_path):
    path = tmp_path / "a.ome.tif"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".tif")
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_moves_folders_and_passes_our_errors_on(tmp_path):
    with replacing(tmp_path / "store") as temporary:
        temporary.mkdir()
        (temporary / "chunk").write_text("1")
    assert (tmp_path / "store" / "chunk").read_text() == "1"
    with pytest.raises(OutputError, match="it is a folder"), replacing(tmp_path / "store"):
        pass
    with pytest.raises(UnreadableImageError, match="mine"), replacing(tmp_path / "b"):
        raise UnreadableImageError("mine")


def test_choices_reach_every_image(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.ome.tif", counts("tczyx"))
    images = read_images(tmp_path, channel="DNA", time="1:", series=0, level=0)
    for image in images:
        np.testing.assert_array_equal(image, counts("tczyx").isel(c=1, t=slice(1, None)))
        assert float(image.t[0]) == STEPS["t"]


def test_levels_are_warned_about_once(tmp_path, recwarn):
    values = counts("yx").values
    for name in ("a", "b"):
        with tifffile.TiffWriter(tmp_path / f"{name}.ome.tif", ome=True) as writer:
            writer.write(values, subifds=1)
            writer.write(values[::2, ::2], subfiletype=1)
    for level in (None, 0):
        read_images(tmp_path, level=level)
    assert not list(recwarn)
    assert read_images(tmp_path, level=1, check=False)[1].shape == (9, 6)
    (warning,) = recwarn
    assert "level 1 of an image pyramid holds averages" in str(warning.message)


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


def test_compressed_images_larger_than_memory_are_refused(tmp_path, monkeypatch):
    write_image(tmp_path / "a.tif", counts("tczyx"), compression="zlib")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(UnreadableImageError, match=r"a\.tif takes .* GB .*time=.0:10") as error:
        read_photons(tmp_path / "a.tif")
    one_sentence(error)
    write_image(tmp_path / "b.tif", counts("tczyx"))
    assert read_photons(tmp_path / "b.tif", check=False).sizes["t"] == 3
