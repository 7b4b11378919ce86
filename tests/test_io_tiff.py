from __future__ import annotations

import json
import re
import shutil
import struct
import uuid

import numpy as np
import pytest
import tifffile
from made_images import CHANNELS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

POSITIONS = ["left", "right", "middle"]
MOVIE = np.random.default_rng(0).poisson(5, (10, 17, 12)).astype(np.uint16)
CZT = np.random.default_rng(1).poisson(5, (4, 3, 2, 48, 64)).astype(np.uint16)
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{uuid}>'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZTC" Type="uint16" SizeX="12" SizeY="17" SizeZ="1" '
    'SizeT="{t}" SizeC="{c}">{channels}{data}</Pixels></Image></OME>'
)


def pages(path, planes, description=None, **options):
    """Write a page per plane, as most microscopes do."""
    with tifffile.TiffWriter(path, **{key: options.pop(key) for key in ("bigtiff",) if key in options}) as writer:
        for number, plane in enumerate(planes):
            words = None if number else description
            writer.write(plane, contiguous=False, metadata=None, description=words, **options)


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])


def write_positions(path, dims="tczyx", names=POSITIONS, **options):
    """Write an OME-TIFF with an image per stage position, each with pixels of its own size."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        for number, name in enumerate(names):
            words = {"axes": dims.upper(), "Name": name, "PhysicalSizeX": 0.1 * (number + 1)}
            words |= {"PhysicalSizeXUnit": "µm", "TimeIncrement": 500.0, "TimeIncrementUnit": "ms"}
            words |= {"Channel": {"Name": CHANNELS}} if "c" in dims else {}
            writer.write(counts(dims, seed=number).values, metadata=words, photometric="minisblack", **options)


@pytest.mark.parametrize(("dims", "compression"), [("yx", None), ("tczyx", "zlib")])
def test_positions_are_series_by_number_or_name(tmp_path, dims, compression):
    path = tmp_path / "a.ome.tif"
    write_positions(path, dims, compression=compression)
    for number, name in enumerate(POSITIONS):
        for series in (number, str(number), name):
            image = read_photons(path, series=series)
            assert image.dims == tuple(dims)
            np.testing.assert_array_equal(image, counts(dims, seed=number))
            assert pixel_size_um(image) == pytest.approx({"x": 0.1 * (number + 1)})
            assert image.attrs["series"] == name


def test_several_images_are_listed_and_none_is_guessed(tmp_path):
    path = tmp_path / "a.ome.tif"
    write_positions(path, "yx")
    with pytest.raises(UnreadableImageError, match=r"3 images: 0 'left' \(17, 12\), 1 'right'.*series=0") as error:
        read_photons(path)
    one_sentence(error)
    for series in (3, "-1", "Left", "up"):
        with pytest.raises(AxesError, match=f"series {series} .* 0 'left'") as error:
            read_photons(path, series=series)
        one_sentence(error)
    write_positions(path, "yx", ["same", "same"])
    with pytest.raises(AxesError, match="2 images named 'same'"):
        read_photons(path, series="same")


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
    with pytest.raises(AxesError, match=r"level 3 .*0 \(2, 65, 130\), 1 \(2, 33, 65\), 2 "):
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
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(1 / 0.108, 1 / 0.065), metadata=words)
    assert_same(read_photons(tmp_path / "a.tif"), counts("tczyx"))


@pytest.mark.parametrize(
    ("labels", "name"),
    [(["DNA"] * 4, "DNA"), (["slice 1", "slice 2", "slice 3", "slice 4"], None), (["cell.dcm\n0002 Header"] * 4, None)],
)
def test_labels_of_planes_are_no_names_of_channels(tmp_path, labels, name):
    tifffile.imwrite(tmp_path / "a.tif", counts("zyx").values, imagej=True, metadata={"axes": "ZYX", "Labels": labels})
    again = read_photons(tmp_path / "a.tif")
    assert (str(again.c.values) if "c" in again.coords else None) == name


NANOMETRES = {"PhysicalSizeX": 108, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.108, "PhysicalSizeZ": 0.0}


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("a.tif", {"resolution": (72, 72), "resolutionunit": "inch"}, {}),
        ("a.tif", {"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, {}),
        ("a.tif", {"imagej": True, "metadata": {"spacing": 0.3}}, {}),
        ("a.ome.tif", {"metadata": {"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}}, {}),
        ("a.tif", {"imagej": True, "resolution": (28, 28), "metadata": {"unit": "cm"}}, {}),
        ("a.ome.tif", {"metadata": {"PhysicalSizeX": 1e-5, "PhysicalSizeXUnit": "cm"}}, {"x": 0.1}),
        ("a.ome.tif", {"metadata": NANOMETRES}, {"x": 0.108, "y": 0.108}),
    ],
)
def test_sizes_in_units_of_length_are_believed_and_those_of_printers_are_not(tmp_path, name, options, sizes):
    words = {"axes": "TYX", **options.pop("metadata", {}), "TimeIncrement": 500, "TimeIncrementUnit": "ms"}
    tifffile.imwrite(tmp_path / name, counts("tyx").values, metadata=words, photometric="minisblack", **options)
    image = read_photons(tmp_path / name)
    assert pixel_size_um(image) == pytest.approx(sizes)
    assert "ome" not in name or float(image.t[1]) == 0.5


def test_swapped_bytes_are_native_after_reading(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", MOVIE, byteorder=">", imagej=True, metadata={"axes": "ZYX"})
    again = read_photons(tmp_path / "a.tif")
    assert again.dtype.isnative
    np.testing.assert_array_equal(again, MOVIE)


def test_samples_are_channels_where_they_are_stored(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", MOVIE[:3], photometric="rgb", planarconfig="separate")
    with pytest.raises(NotPhotonCountsError, match='axes="cyx"'):
        read_photons(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_photons(tmp_path / "a.tif", axes="cyx"), MOVIE[:3])
    tifffile.imwrite(tmp_path / "b.tif", np.moveaxis(MOVIE[:2], 0, -1), metadata={"axes": "YXS"})
    with pytest.raises(NotPhotonCountsError, match=r'2 samples .* axes="yxc"'):
        read_photons(tmp_path / "b.tif")
    np.testing.assert_array_equal(read_photons(tmp_path / "b.tif", axes="yxc"), MOVIE[:2])


# -- files that lack planes -------------------------------------------------------------------------------------------


def write_imagej(path):
    tifffile.imwrite(path, CZT, imagej=True, metadata={"axes": "TZCYX"})


def write_imagej_pages(path):
    words = "ImageJ=1.53t\nimages=24\nchannels=2\nslices=3\nframes=4\nhyperstack=true\n"
    pages(path, CZT.reshape(-1, 48, 64), words)


@pytest.mark.parametrize("write", [write_imagej, write_imagej_pages])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_cut_hyperstacks_tell_their_whole_frames(tmp_path, write, share):
    path = tmp_path / "a.tif"
    write(path)
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


def test_planes_behind_the_first_page_are_read(tmp_path):
    pages(tmp_path / "a.tif", MOVIE[:1], "ImageJ=1.53t\nimages=10\nframes=10\n")
    with (tmp_path / "a.tif").open("ab") as file:
        file.write(MOVIE[1:].tobytes())
    image = read_photons(tmp_path / "a.tif")
    np.testing.assert_array_equal(image[0], MOVIE[0])
    assert image.sizes["t"] == 10


def write_cut(path, kind, bigtiff, compression):
    """Write a movie in one of the ways of programs, and return where each plane ends."""
    if kind in ("pages", "strips"):
        pages(path, MOVIE, bigtiff=bigtiff, compression=compression, rowsperstrip=17 if kind == "pages" else 4)
    else:
        options = {"ome": kind == "ome", "metadata": None if kind == "bare" else {"axes": "TYX"}}
        tifffile.imwrite(path, MOVIE, bigtiff=bigtiff, compression=compression, **options)
    with tifffile.TiffFile(path) as tif:
        if (start := tif.series[0].dataoffset) is not None:
            return [start + MOVIE[0].nbytes * (number + 1) for number in range(len(MOVIE))]
        return [max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) for page in tif.pages]


@pytest.mark.parametrize(("bigtiff", "compression"), [(False, None), (True, "zlib")])
@pytest.mark.parametrize("kind", ["pages", "strips", "bare", "shaped", "ome"])
def test_whole_planes_of_cut_files_are_counted_and_offered(tmp_path, kind, bigtiff, compression):
    path = tmp_path / "a.tif"
    ends = write_cut(path, kind, bigtiff, compression)
    file = path.read_bytes()
    # in the middle of a plane, before its last byte, behind it, and within what describes the next one
    sizes = [int(share * len(file)) for share in (0.2, 0.3, 0.5)]
    for size in (*sizes, ends[4] - 1, ends[4], ends[4] + 7, ends[6] + 99):
        path.write_bytes(file[:size])
        whole = sum(end <= size for end in ends)
        with pytest.raises(UnreadableImageError, match=rf"a\.tif holds {whole} of (10|at least \d+) ") as error:
            read_photons(path)
        assert f'time="0:{whole}"' in one_sentence(error)
        with pytest.raises(UnreadableImageError, match=f"holds {whole} of"):
            read_photons(path, axes="tyx")
        np.testing.assert_array_equal(read_photons(path, axes="tyx", time=f"0:{whole}"), MOVIE[:whole])


@pytest.mark.parametrize("kind", ["pages", "shaped", "ome"])
def test_files_without_a_whole_plane_are_refused(tmp_path, kind):
    path = tmp_path / "a.tif"
    ends = write_cut(path, kind, False, None)
    file = path.read_bytes()
    for size in (9, 60, ends[0] - 1):
        path.write_bytes(file[:size])
        with pytest.raises(UnreadableImageError, match=r"a\.tif") as error:
            read_photons(path, axes="tyx")
        one_sentence(error)


PROMISES = [f"ImageJ=1.53t\nimages=10\n{words}" for words in ("", "slices=10\n", "frames=10\n")]
PROMISES.append('{"shape": [10, 17, 12], "axes": "TYX"}')
EACH = "".join(f'<TiffData IFD="{n}" FirstT="{n}" PlaneCount="1"/>' for n in range(10))
for data in ("<TiffData/>", '<TiffData IFD="0" PlaneCount="10"/>', EACH):
    PROMISES.append(OME.format(uuid="", t=10, c=1, channels="", data=data))


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
    pages(tmp_path / "a.ome.tif", MOVIE, OME.format(uuid="", t=4, c=1, channels="", data=data).encode())
    with pytest.warns(UserWarning, match="holds 10 planes, of which its description names 4"):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.ome.tif"), MOVIE[:4])


def test_files_that_another_one_describes_name_it(tmp_path):
    words = '<OME xmlns="http://www.openmicroscopy.org/"><BinaryOnly MetadataFile="a.companion.ome"/></OME>'
    pages(tmp_path / "a.ome.tif", MOVIE, words.encode())
    with pytest.raises(AxesError, match=r"set that a\.companion\.ome describes"):
        read_photons(tmp_path / "a.ome.tif")


def test_one_file_of_a_set_opens_where_its_channel_is_there(tmp_path):
    names = [f"urn:uuid:{uuid.uuid4()}" for _ in range(2)]
    channels = "".join(f'<Channel ID="Channel:0:{c}" Name="{name}"/>' for c, name in enumerate(CHANNELS))
    data = "".join(
        f'<TiffData IFD="{t}" FirstC="{c}" FirstT="{t}" PlaneCount="1"><UUID FileName="c{c}.ome.tif">{names[c]}</UUID>'
        "</TiffData>"
        for c in range(2)
        for t in range(5)
    )
    for c in range(2):
        words = OME.format(uuid=f' UUID="{names[c]}"', t=5, c=2, channels=channels, data=data)
        pages(tmp_path / f"c{c}.ome.tif", MOVIE[5 * c : 5 * c + 5], words.encode())
    whole = read_photons(tmp_path / "c0.ome.tif")
    np.testing.assert_array_equal(whole.transpose("c", "t", "y", "x"), MOVIE.reshape(2, 5, 17, 12))
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(tmp_path / "c1.ome.tif", tmp_path / "alone")
    np.testing.assert_array_equal(read_photons(alone, channel="DNA"), MOVIE[5:])
    with pytest.raises(UnreadableImageError, match=r"holds 1 of 2 channels; .* channel=1"):
        read_photons(alone)
    with pytest.raises(UnreadableImageError, match="0 of 5 planes"):
        read_photons(alone, channel="actin")
    cut(tmp_path / "c0.ome.tif", 0.7)
    for file in ("c0.ome.tif", "c1.ome.tif"):
        with pytest.raises(UnreadableImageError, match='holds 2 of 5 frames; read them with time="0:2"'):
            read_photons(tmp_path / file)
        np.testing.assert_array_equal(read_photons(tmp_path / file, channel="DNA"), MOVIE[5:])
        np.testing.assert_array_equal(read_photons(tmp_path / file, channel="actin", time="0:2"), MOVIE[:2])


def write_micromanager(path, frames, positions=1, lost=()):
    """Write a Micro-Manager stack: a header with its summary, pages 162 bytes before their data, and the index."""
    shape = (17, 12)
    words = {"MicroManagerVersion": "2.0.0", "Frames": len(frames), "Slices": 1, "Channels": 1, "Positions": positions}
    words |= {"TimeFirst": True, "SlicesFirst": True, "Prefix": "a", "PixelSize_um": 0.065, "Interval_ms": 500}
    summary = json.dumps(words).encode()
    start = 40 + len(summary) + len(summary) % 2
    entries, index, size = [], b"", 162 + frames[0].nbytes // positions
    offsets = [start + size * n for n in range(len(frames) * positions)]
    for n, (frame, offset) in enumerate(zip(frames.reshape(-1, *shape), offsets, strict=True)):
        tags = [(256, 12), (257, 17), (258, 16), (259, 1), (262, 1), (273, offset + 162), (277, 1), (278, 17)]
        tags.append((279, frame.nbytes))
        following = offsets[n + 1] if n + 1 < len(offsets) and n + 1 not in lost else 0
        head = struct.pack("<H", len(tags) + 1)
        head += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        head += struct.pack("<HHII", 51123, 2, len(summary), 40)  # Micro-Manager's own tag
        if n not in lost:
            entries.append((head + struct.pack("<I", following)).ljust(162, b"\0") + frame.tobytes())
        index += struct.pack("<5I", 0, 0, n // positions, n % positions, offset if n not in lost else 100_000_000)
    body = b"".join(entries)
    file = struct.pack("<2sHI", b"II", 42, start)
    file += struct.pack("<8I", 54773648, start + len(body), 0, 0, 0, 0, 2355492, len(summary)) + summary
    path.write_bytes(file.ljust(start, b"\0") + body + struct.pack("<II", 3453623, len(offsets)) + index)


def test_frames_that_micromanager_indexed_and_did_not_write(tmp_path):
    path = tmp_path / "a_MMStack_Pos0.ome.tif"
    write_micromanager(path, MOVIE)
    whole = read_photons(path)
    np.testing.assert_array_equal(whole, MOVIE)
    assert pixel_size_um(whole) == {"y": 0.065, "x": 0.065}
    assert float(whole.t[1]) == 0.5
    write_micromanager(path, MOVIE, lost=range(6, 10))
    with pytest.raises(UnreadableImageError, match='holds 6 of 10 frames; read them with time="0:6"'):
        read_photons(path)
    np.testing.assert_array_equal(read_photons(path, time="0:6"), MOVIE[:6])
    with pytest.raises(UnreadableImageError, match="6 of 10"):
        read_photons(path, time=7)


def test_stage_positions_of_micromanager_are_series(tmp_path):
    path = tmp_path / "a_MMStack_1.ome.tif"
    write_micromanager(path, MOVIE.reshape(5, 2, 17, 12), positions=2)
    with pytest.raises(UnreadableImageError, match=r"2 images: 0 'position 0' \(5, 17, 12\)"):
        read_photons(path)
    for position in (0, 1):
        np.testing.assert_array_equal(read_photons(path, series=position), MOVIE[position::2])
    write_micromanager(path, MOVIE.reshape(5, 2, 17, 12), positions=2, lost=[9])
    np.testing.assert_array_equal(read_photons(path, series=0), MOVIE[::2])
    with pytest.raises(UnreadableImageError, match="holds 4 of 5 frames"):
        read_photons(path, series=1)


# -- ScanImage --------------------------------------------------------------------------------------------------------


def write_scanimage(path, count, **words):
    """Write pages that hold their own number, with ScanImage's words."""
    told = {"channelSave": 1, "framesPerSlice": 1, "numSlices": 5, "actualNumSlices": 5, "numVolumes": 6} | words
    homes = {"channelSave": "hChannels", "logAverageFactor": "hScan2D"}
    software = "\n".join(f"SI.{homes.get(key, 'hStackManager')}.{key} = {value}" for key, value in told.items())
    pages(path, [np.full((8, 9), n, np.int16) for n in range(count)], software=software, bigtiff=True)


def recorded(shape, order):
    """Return which page each plane is: ``shape`` as recorded, and its axes in the order of images."""
    return np.arange(np.prod(shape)).reshape(shape).transpose(order)


@pytest.mark.parametrize(
    ("count", "words", "dims", "expected"),
    [
        (30, {}, "tz", recorded((6, 5), (0, 1))),
        (20, {"numVolumes": 2, "channelSave": "[1;2]"}, "tcz", recorded((2, 5, 2), (0, 2, 1))),
        (20, {"numVolumes": 2, "framesPerSlice": 2}, "tz", recorded((2, 5, 2), (0, 2, 1)).reshape(4, 5)),
        (40, {"numVolumes": 1, "framesPerSlice": 4, "channelSave": "[1;2]"}, "tcz", recorded((5, 4, 2), (1, 2, 0))),
        (15, {"numVolumes": 3, "framesPerSlice": 4, "logAverageFactor": 4}, "tz", recorded((3, 5), (0, 1))),
        (12, {"numVolumes": 2, "numFramesPerVolumeWithFlyback": 6}, "tz", recorded((2, 6), (0, 1))[:, :5]),
        (
            12,
            {"numVolumes": "[]", "hFastZ.numVolumes": 2, "hFastZ.numFramesPerVolume": 6},
            "tz",
            recorded((2, 6), (0, 1))[:, :5],
        ),
        (5, {"numVolumes": 1}, "z", np.arange(5)),
        (12, {"numVolumes": 1, "actualNumSlices": 1, "framesPerSlice": "Inf"}, "t", np.arange(12)),
        (12, {"numVolumes": 6, "enable": "false", "framesPerSlice": 2}, "t", np.arange(12)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_volumes_of_scanimage_are_those_of_its_header(tmp_path, count, words, dims, expected):
    write_scanimage(tmp_path / "a.tif", count, **words)
    image = read_photons(tmp_path / "a.tif", check=False)
    assert image.dims == (*dims, "y", "x")
    np.testing.assert_array_equal(image[..., 0, 0], expected)


@pytest.mark.parametrize(
    ("count", "words", "told", "expected"),
    [
        (23, {}, "4 complete volumes of 6, and 3 planes", recorded((4, 5), (0, 1))),
        (51, {"numVolumes": 1, "framesPerSlice": 8, "channelSave": "[1;2]"}, "3 complete slices of 5, and 3 planes",
         recorded((3, 8, 2), (1, 2, 0))),
        (7, {"numVolumes": 20, "actualNumSlices": 1, "channelSave": "[1;2]"}, "3 complete frames of 20, and 1 planes",
         recorded((3, 2), (0, 1))),
    ],
)  # fmt: skip
def test_recordings_that_stopped_early_are_read_as_far_as_complete(tmp_path, count, words, told, expected):
    write_scanimage(tmp_path / "a.tif", count, **words)
    with pytest.warns(UserWarning, match=told):
        image = read_photons(tmp_path / "a.tif", check=False)
    np.testing.assert_array_equal(image[..., 0, 0], expected)


def test_recordings_that_were_cut_are_read_as_far_as_complete(tmp_path):
    write_scanimage(tmp_path / "a.tif", 30)
    cut(tmp_path / "a.tif", 0.6)
    with pytest.warns(UserWarning, match="3 complete volumes of 6"):
        assert read_photons(tmp_path / "a.tif", check=False).sizes["t"] == 3
    write_scanimage(tmp_path / "b.tif", 7, framesPerSlice=8, channelSave="[1;2]")
    with pytest.raises(UnreadableImageError, match="no complete slice"):
        read_photons(tmp_path / "b.tif")
