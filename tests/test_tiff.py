from __future__ import annotations

import numpy as np
import pytest
import tifffile
from made_images import CHANNELS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

POSITIONS = ["left", "right", "middle"]


def write_positions(path, dims="tczyx", names=POSITIONS, **options):
    """Write an OME-TIFF with an image per stage position, each with pixels of its own size."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        for number, name in enumerate(names):
            words = {"axes": dims.upper(), "Name": name, "PhysicalSizeX": 0.1 * (number + 1)}
            words |= {"PhysicalSizeXUnit": "µm", "TimeIncrement": 500.0, "TimeIncrementUnit": "ms"}
            words |= {"Channel": {"Name": CHANNELS}} if "c" in dims else {}
            writer.write(counts(dims, seed=number).values, metadata=words, photometric="minisblack", **options)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dims", ["yx", "tyx", "tczyx"])
def test_positions_are_series_by_number_or_name(tmp_path, dims, compression):
    path = tmp_path / "a.ome.tif"
    write_positions(path, dims, compression=compression)
    for number, name in enumerate(POSITIONS):
        for series in (number, str(number), name):
            image = read_photons(path, series=series)
            assert image.dims == tuple(dims)
            np.testing.assert_array_equal(image, counts(dims, seed=number))
            assert pixel_size_um(image) == pytest.approx({"x": 0.1 * (number + 1)})
            if "t" in dims:
                np.testing.assert_allclose(image.t, [0, 0.5, 1])
            if "c" in dims:
                assert image.c.values.tolist() == CHANNELS
            assert image.attrs["series"] == name


def test_the_name_of_a_series_is_kept(tmp_path):
    write_positions(tmp_path / "a.ome.tif", "yx")
    write_image(tmp_path / "b.ome.tif", read_photons(tmp_path / "a.ome.tif", series="right"))
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        assert tif.series[0].name == "right"
    assert read_photons(tmp_path / "b.ome.tif", series="right").attrs["series"] == "right"


def test_several_images_are_listed_and_none_is_guessed(tmp_path):
    path = tmp_path / "a.ome.tif"
    write_positions(path, "yx")
    with pytest.raises(UnreadableImageError, match=r"3 images: 0 'left' \(17, 12\), 1 'right'.*series=0") as error:
        read_photons(path)
    one_sentence(error)
    for series in (3, "-1", "Left", "up"):
        with pytest.raises(AxesError, match=f"series {series} was asked for, but a.ome.tif holds 0 'left'") as error:
            read_photons(path, series=series)
        one_sentence(error)
    write_positions(path, "yx", ["same", "same"])
    with pytest.raises(AxesError, match=r"2 images named 'same'.*series=0"):
        read_photons(path, series="same")


def test_images_of_other_shapes_in_a_plain_tiff_are_series(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(np.ones((8, 8), np.uint8))
        writer.write(np.random.default_rng(0).poisson(5, (9, 9)).astype(np.uint8))
    assert read_photons(tmp_path / "a.tif", series=1).sizes == {"y": 9, "x": 9}


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_levels_of_a_pyramid(tmp_path, compression):
    path = tmp_path / "a.ome.tif"
    values = np.random.default_rng(0).poisson(5, (2, 65, 130)).astype(np.uint16)
    words = {"axes": "CYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "Channel": {"Name": CHANNELS}}
    options = {"photometric": "minisblack", "compression": compression, "tile": (16, 16)}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(values, subifds=2, metadata=words, **options)
        writer.write(values[:, ::2, ::2], subfiletype=1, **options)
        writer.write(values[:, ::4, ::4], subfiletype=1, **options)
    for level in range(3):
        image = read_photons(path, level=level)
        np.testing.assert_array_equal(image, values[:, :: 2**level, :: 2**level])
        assert pixel_size_um(image) == pytest.approx({"y": 0.2 * 2**level, "x": 0.1 * 2**level})
        assert image.c.values.tolist() == CHANNELS
    np.testing.assert_array_equal(read_photons(path), values)
    with pytest.raises(AxesError, match=r"level 3 .*0 \(2, 65, 130\), 1 \(2, 33, 65\), 2 .*full resolution") as error:
        read_photons(path, level=3)
    one_sentence(error)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy"])
def test_files_without_a_pyramid_have_level_0(tmp_path, suffix):
    write_image(tmp_path / f"a{suffix}", counts("yx"))
    np.testing.assert_array_equal(read_photons(tmp_path / f"a{suffix}", level=0, series=0), counts("yx"))
    with pytest.raises(AxesError, match="level 1 was asked for"):
        read_photons(tmp_path / f"a{suffix}", level=1)
    with pytest.raises(AxesError, match="series 1 was asked for"):
        read_photons(tmp_path / f"a{suffix}", series=1)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
@pytest.mark.parametrize("dims", ["tyx", "tczyx"])
def test_frames_and_channels_are_chosen(tmp_path, dims, suffix):
    path, image = tmp_path / f"a{suffix}", counts(dims)
    write_image(path, image)
    assert_same(read_photons(path, time=1), image.isel(t=1, drop=True))
    assert_same(read_photons(path, time="-1"), image.isel(t=2, drop=True))
    assert_same(read_photons(path, time="1:"), image.isel(t=slice(1, None)))
    assert_same(read_photons(path, time="::2"), image.isel(t=slice(None, None, 2)))
    if "c" in dims:
        for channel in (1, "1", "DNA", "dna"):
            assert_same(read_photons(path, channel=channel, time=0), image.isel(c=1).isel(t=0, drop=True))


def test_imagej_hyperstacks_of_other_programs(tmp_path):
    values = counts("tczyx").values.transpose(0, 2, 1, 3, 4)
    words = {"axes": "TZCYX", "unit": "um", "spacing": 0.3, "finterval": 2.5}
    words["Labels"] = CHANNELS * 12
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(1 / 0.108, 1 / 0.065), metadata=words)
    assert_same(read_photons(tmp_path / "a.tif"), counts("tczyx"))


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_only_the_planes_that_were_chosen_are_decoded(tmp_path, monkeypatch, suffix):
    image, keys, whole = counts("tczyx"), [], tifffile.TiffFile.asarray
    write_image(tmp_path / f"a{suffix}", image, compression="zlib")
    monkeypatch.setattr(tifffile.TiffFile, "asarray", lambda tif, key, **k: keys.append(key) or whole(tif, key, **k))
    assert_same(read_photons(tmp_path / f"a{suffix}", time=1, channel=0), image.isel(c=0).isel(t=1, drop=True))
    assert len(keys[0]) == 4
