import re
import shutil

import numpy as np
import pytest
import tifffile
from made_images import CHANNELS, MOVIE, assert_same, counts, cut, one_sentence, pages

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_images, read_photons, write_image
from gap_bioimage.io.read import image_files, open_volume

POSITIONS = ["left", "right", "same", "same"]
CZT = np.random.default_rng(1).poisson(5, (4, 3, 2, 48, 64)).astype(np.uint16)
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{3}">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZTC" Type="uint16" SizeX="12" SizeY="17" SizeZ="1" '
    'SizeT="{1}" SizeC="{2}">{0}</Pixels></Image></OME>'
)


@pytest.mark.parametrize(("dims", "compression"), [("yx", None), ("tczyx", "zlib")])
def test_positions_are_series_by_number_or_name(tmp_path, dims, compression):
    path, options = tmp_path / "a.ome.tif", {"photometric": "minisblack", "compression": compression}
    with tifffile.TiffWriter(path, ome=True) as writer:
        for number, name in enumerate(POSITIONS):
            words = {"axes": dims.upper(), "Name": name, "PhysicalSizeX": 0.1 * (number + 1)}
            writer.write(counts(dims, seed=number).values, metadata=words, **options)
    with pytest.raises(UnreadableImageError, match=r"4 images: 0 'left' \(.*, 1 'right'.*series=0"):
        read_photons(path)
    for series in (4, "-1", "Left", "same"):
        with pytest.raises(AxesError, match=f"series {series} .* 0 'left'"):
            read_photons(path, series=series)
    for number, name in enumerate(POSITIONS):
        for series in (number, str(number), *([name] if number < 2 else [])):
            image = read_photons(path, series=series)
            assert image.dims == tuple(dims)
            np.testing.assert_array_equal(image, counts(dims, seed=number))
            assert pixel_size_um(image) == pytest.approx({"x": 0.1 * (number + 1)})
            assert image.attrs["series"] == name


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
def test_levels_of_a_pyramid(tmp_path):
    path = tmp_path / "a.ome.tif"
    values = np.random.default_rng(0).poisson(5, (2, 65, 130)).astype(np.uint16)
    words = {"axes": "CYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "Channel": {"Name": CHANNELS}}
    options = {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16)}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(values, subifds=2, metadata=words, **options)
        writer.write(values[:, ::2, ::2], subfiletype=1, **options)
        writer.write(values[:, ::4, ::4], subfiletype=1, **options)
    for level in range(3):
        image = read_photons(path, level=level)
        np.testing.assert_array_equal(image, values[:, :: 2**level, :: 2**level])
        assert pixel_size_um(image) == pytest.approx({"y": 0.2 * 2**level, "x": 0.1 * 2**level})
        assert image.c.values.tolist() == CHANNELS
    with pytest.raises(AxesError, match=r"level 3 .*0 \(2, 65, 130\), 1 "):
        read_photons(path, level=3)


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif"])
def test_only_the_planes_that_were_chosen_are_decoded(tmp_path, monkeypatch, suffix):
    image, keys, whole = counts("tczyx"), [], tifffile.TiffFile.asarray
    write_image(tmp_path / f"a{suffix}", image, compression="zlib")
    monkeypatch.setattr(tifffile.TiffFile, "asarray", lambda tif, key, **k: keys.append(key) or whole(tif, key, **k))
    assert_same(read_photons(tmp_path / f"a{suffix}", time=1, channel=0), image.isel(c=0).isel(t=1, drop=True))
    assert [len(each) for each in keys] == [4]


def test_imagej_hyperstacks_of_other_programs(tmp_path):
    values = counts("tczyx").values.transpose(0, 2, 1, 3, 4)
    words = {"axes": "TZCYX", "unit": "um", "spacing": 0.3, "finterval": 2.5, "Labels": CHANNELS * 12}
    options = {"resolution": (1 / 0.108, 1 / 0.065), "byteorder": ">"}  # as Java writes
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata=words, **options)
    assert_same(read_photons(tmp_path / "a.tif"), counts("tczyx"))
    for labels in (["slice 1", "slice 2", "slice 3", "slice 4"], ["cell.dcm\n0002 Header"] * 4):  # of planes
        words = {"axes": "ZYX", "Labels": labels}
        tifffile.imwrite(tmp_path / "a.tif", counts("zyx").values, imagej=True, metadata=words)
        assert "c" not in read_photons(tmp_path / "a.tif").coords


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("a.tif", {"resolution": (72, 72), "resolutionunit": "inch"}, {}),
        ("a.tif", {"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, {}),
        ("a.tif", {"imagej": True, "metadata": {"spacing": 0.3}}, {}),
        ("a.ome.tif", {"metadata": {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}}, {}),
        ("a.tif", {"imagej": True, "resolution": (28, 28), "metadata": {"unit": "cm"}}, {}),
        ("a.ome.tif", {"metadata": {"PhysicalSizeX": 108, "PhysicalSizeXUnit": "nm"}}, {"x": 0.108}),
    ],
)
def test_sizes_in_units_of_length_are_believed_and_those_of_printers_are_not(tmp_path, name, options, sizes):
    words = {"axes": "TYX", **options.pop("metadata", {}), "TimeIncrement": 500, "TimeIncrementUnit": "ms"}
    tifffile.imwrite(tmp_path / name, counts("tyx").values, metadata=words, photometric="minisblack", **options)
    image = read_photons(tmp_path / name)
    assert pixel_size_um(image) == pytest.approx(sizes)
    assert "ome" not in name or float(image.t[1]) == 0.5


def test_samples_are_channels_where_they_are_stored(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", MOVIE[:3], photometric="rgb", planarconfig="separate")
    with pytest.raises(NotPhotonCountsError, match='axes="cyx"'):
        read_photons(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_photons(tmp_path / "a.tif", axes="cyx"), MOVIE[:3])


# -- files that lack planes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_cut_hyperstacks_tell_their_whole_frames(tmp_path, paged, share):
    path = tmp_path / "a.tif"
    if paged:
        pages(path, CZT.reshape(-1, 48, 64), "ImageJ=1.53t\nimages=24\nchannels=2\nslices=3\nframes=4\n")
    else:
        tifffile.imwrite(path, CZT, imagej=True, metadata={"axes": "TZCYX"})
    cut(path, share)
    with pytest.raises(UnreadableImageError) as error:
        read_photons(path)
    held = int(re.search(r'holds (\d) of 4 frames; read them with time="0:\1"', one_sentence(error))[1])
    assert 4 * share - 1.2 <= held <= 4 * share
    image = read_photons(path, axes="tzcyx", time=f"0:{held}")
    np.testing.assert_array_equal(image, CZT[:held].transpose(0, 2, 1, 3, 4))
    np.testing.assert_array_equal(read_photons(path, time=0, channel=1), CZT[0, :, 1])
    for time in (held, "1:4", -1):
        with pytest.raises(UnreadableImageError, match=r"a\.tif"):
            read_photons(path, time=time)


@pytest.mark.parametrize(("bigtiff", "compression"), [(False, None), (True, "zlib")])
@pytest.mark.parametrize("kind", ["pages", "strips", "bare", "shaped", "ome"])
def test_cut_files_offer_the_whole_ones_of_planes_that_they_promise(tmp_path, kind, bigtiff, compression):
    path, options = tmp_path / "a.tif", {"bigtiff": bigtiff, "compression": compression}
    if kind in ("pages", "strips"):
        pages(path, MOVIE, rowsperstrip=17 if kind == "pages" else 4, **options)
    else:
        words = None if kind == "bare" else {"axes": "TYX"}
        tifffile.imwrite(path, MOVIE, ome=kind == "ome", metadata=words, **options)
    with tifffile.TiffFile(path) as tif:
        ends = [max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) for page in tif.pages]
        if (start := tif.series[0].dataoffset) is not None:
            ends = [start + MOVIE[0].nbytes * (number + 1) for number in range(len(MOVIE))]
    file = path.read_bytes()
    # within the first, in the middle of a plane, before its last byte, behind it, and within what describes the next
    for size in (9, 60, ends[0] - 1, len(file) // 2, ends[4] - 1, ends[4], ends[4] + 7, ends[6] + 99):
        path.write_bytes(file[:size])
        whole = sum(end <= size for end in ends)
        offered = kind == "shaped" and whole  # the words of OME are at the end, and those of others are none
        told = f'holds {whole} of 10 frames; read them with time="0:{whole}"' if offered else r"a\.tif"
        with pytest.raises(UnreadableImageError, match=told) as error:
            read_photons(path, axes="tyx")
        one_sentence(error)
        if offered:
            np.testing.assert_array_equal(read_photons(path, axes="tyx", time=f"0:{whole}"), MOVIE[:whole])


PROMISES = [f"ImageJ=1.53t\nimages=10\n{words}" for words in ("", "slices=10\n", "frames=10\n")]
PROMISES.append('{"shape": [10, 17, 12], "axes": "TYX"}')
EACH = "".join(f'<TiffData IFD="{n}" FirstT="{n}" PlaneCount="1"/>' for n in range(10))
PROMISES += [OME.format(data, 10, 1, "") for data in ("", "<TiffData/>", '<TiffData IFD="0" PlaneCount="10"/>', EACH)]


@pytest.mark.parametrize("words", PROMISES, ids=range(len(PROMISES)))
@pytest.mark.parametrize("held", [1, 4])
def test_files_that_promise_ten_planes_never_read_as_fewer(tmp_path, words, held):
    path = tmp_path / "a.ome.tif"
    pages(path, MOVIE[:held], words.encode())
    with pytest.raises((UnreadableImageError, AxesError), match="10"):
        read_photons(path)
    with pytest.raises(UnreadableImageError, match=f'holds {held} of 10 frames; read them with time="0:{held}"'):
        read_photons(path, axes="tyx")
    np.testing.assert_array_equal(read_photons(path, axes="tyx", time=f"0:{held}"), MOVIE[:held])


def test_planes_that_a_description_does_not_name_are_told(tmp_path):
    data = '<TiffData IFD="0" FirstT="0" PlaneCount="4"/>'
    pages(tmp_path / "a.ome.tif", MOVIE, OME.format(data, 4, 1, "").encode())
    with pytest.warns(UserWarning, match="holds 10 planes, but its description names only 4"):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.ome.tif"), MOVIE[:4])


def test_one_file_of_a_set_opens_where_its_channel_is_there(tmp_path):
    names = ["urn:uuid:0", "urn:uuid:1"]
    data = "".join(f'<Channel ID="Channel:0:{c}" Name="{name}"/>' for c, name in enumerate(CHANNELS))
    for c, t in np.ndindex(2, 5):
        data += f'<TiffData IFD="{t}" FirstC="{c}" FirstT="{t}" PlaneCount="1">'
        data += f'<UUID FileName="c{c}.ome.tif">{names[c]}</UUID></TiffData>'
    for c in range(2):
        pages(tmp_path / f"c{c}.ome.tif", MOVIE[5 * c : 5 * c + 5], OME.format(data, 5, 2, names[c]).encode())
    assert image_files(tmp_path) == image_files(tmp_path / "c0.ome.tif", tmp_path / "c1.ome.tif")
    (whole,) = read_images(tmp_path)  # once, whatever the number of its files
    np.testing.assert_array_equal(whole.transpose("c", "t", "y", "x"), MOVIE.reshape(2, 5, 17, 12))
    np.testing.assert_array_equal(open_volume(tmp_path).transpose(*whole.dims), whole)
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(tmp_path / "c1.ome.tif", tmp_path / "alone")
    np.testing.assert_array_equal(read_photons(alone, channel="DNA"), MOVIE[5:])
    for channel, told in ((None, "holds 1 of 2 channels; .* channel=1"), ("actin", "0 of 5 planes")):
        with pytest.raises(UnreadableImageError, match=told):
            read_photons(alone, channel=channel)
    cut(tmp_path / "c0.ome.tif", 0.7)
    for file in ("c0.ome.tif", "c1.ome.tif"):
        with pytest.raises(UnreadableImageError, match='holds 2 of 5 frames; read them with time="0:2"'):
            read_photons(tmp_path / file)
        np.testing.assert_array_equal(read_photons(tmp_path / file, channel="DNA"), MOVIE[5:])
        np.testing.assert_array_equal(read_photons(tmp_path / file, channel="actin", time="0:2"), MOVIE[:2])


def test_frames_that_were_appended_one_by_one_are_one_image(tmp_path):
    for frame in MOVIE:
        tifffile.imwrite(tmp_path / "film.tif", frame, append=True)
    np.testing.assert_array_equal(read_photons(tmp_path / "film.tif", "tyx"), MOVIE)
    np.testing.assert_array_equal(read_photons(tmp_path / "film.tif", "tyx", time=3), MOVIE[3])
    tifffile.imwrite(tmp_path / "film.tif", MOVIE[0, :9], append=True)
    np.testing.assert_array_equal(read_photons(tmp_path / "film.tif", series=1), MOVIE[0, :9])


def test_series_keep_their_axes_whatever_the_shape_of_the_first(tmp_path):
    path, plane, stack = tmp_path / "a.tif", counts("yx").values, counts("zyx", seed=1).values
    with tifffile.TiffWriter(path) as writer:
        writer.write(plane, metadata={"axes": "YX"})
        writer.write(stack, metadata={"axes": "ZYX"}, photometric="minisblack")
    np.testing.assert_array_equal(read_photons(path, series=0), plane)
    image = read_photons(path, series=1)
    assert image.dims == ("z", "y", "x")
    np.testing.assert_array_equal(image, stack)
