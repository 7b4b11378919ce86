"""TIFF of Zeiss, MetaMorph, Micro-Manager and ScanImage."""

import json
import struct

import numpy as np
import pytest
import tifffile
from made_images import MOVIE, cut, pages

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons


def test_zeiss_lsm_and_metamorph_stk_say_their_voxel_sizes(tmp_path):
    words = np.zeros(1, tifffile.TIFF.CZ_LSMINFO)
    for name, value in {"MagicNumber": 67127628, "StructureSize": words.nbytes, "VoxelSizeX": 1.08e-7,
                        "VoxelSizeY": 6.5e-8, "VoxelSizeZ": 3e-7, "DimensionX": 12, "DimensionY": 17,
                        "DimensionZ": 3, "DimensionChannels": 1, "DimensionTime": 1}.items():  # fmt: skip
        words[name] = value
    with tifffile.TiffWriter(tmp_path / "a.lsm", byteorder="<") as writer:
        for number, plane in enumerate(MOVIE[:3]):
            tag = [(34412, "B", words.nbytes, words.tobytes(), True)] if not number else []
            writer.write(plane, contiguous=False, metadata=None, extratags=tag)
            writer.write(plane[::4, ::4], contiguous=False, metadata=None, subfiletype=1)  # a thumbnail
    calibration = struct.pack("<8I", 5, 500, 4, 500, 6, 508, 3, 1)  # offsets of two fractions and a text
    described = struct.pack("<18I", *[3, 10, 0, 0, 0, 0] * 3)
    tags = [(256, 4, 1, 12), (257, 4, 1, 17), (258, 4, 1, 16), (259, 4, 1, 1), (262, 4, 1, 1), (273, 4, 1, 600),
            (277, 4, 1, 1), (278, 4, 1, 17), (279, 4, 1, 408), (33628, 4, 4, 300), (33629, 5, 3, 340)]  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    file = (head.ljust(300, b"\0") + calibration).ljust(340, b"\0") + described
    file = file.ljust(500, b"\0") + struct.pack("<3I3s", 65, 1000, 3, b"um\0")
    (tmp_path / "a.stk").write_bytes(file.ljust(600, b"\0") + MOVIE[:3].tobytes())
    for name, across in (("a.lsm", 0.108), ("a.stk", 0.065)):
        image = read_photons(tmp_path / name)
        np.testing.assert_array_equal(image, MOVIE[:3])
        assert image.dims == ("z", "y", "x")
        assert pixel_size_um(image) == pytest.approx({"z": 0.3, "y": 0.065, "x": across})


def write_micromanager(path, planes, positions=1, lost=(), ndtiff=False):
    """Write a Micro-Manager stack: a header with its summary, pages 162 bytes before their data, and the index."""
    words = {"MicroManagerVersion": "2.0.0", "Frames": len(planes) // positions, "Slices": 1, "Channels": 1}
    words |= {"Positions": positions, "TimeFirst": True, "SlicesFirst": True, "PixelSize_um": 0.065, "Interval_ms": 500}
    summary, place = json.dumps(words).encode(), 28 if ndtiff else 40
    start, size = place + len(summary) + len(summary) % 2, 162 + planes[0].nbytes
    body = index = b""
    for n, plane in enumerate(planes):
        offset = start + size * n
        tags = [(256, 12), (257, 17), (258, 16), (259, 1), (262, 1), (273, offset + 162), (277, 1), (278, 17)]
        head = struct.pack("<H", len(tags) + 2)
        head += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, plane.nbytes)])
        head += struct.pack("<HHII", 51123, 2, len(summary), place)  # Micro-Manager's own tag
        following = offset + size if n + 1 < len(planes) and n + 1 not in lost else 0
        if n not in lost:
            body += (head + struct.pack("<I", following)).ljust(162, b"\0") + plane.tobytes()
        if ndtiff:
            for word in (json.dumps({"time": n}).encode(), path.name.encode()):
                index += struct.pack("<I", len(word)) + word
            index += struct.pack("<8i", offset + 162, 12, 17, 1, 0, 0, 0, 0)
        else:
            index += struct.pack("<5I", 0, 0, n // positions, n % positions, offset if n not in lost else 100_000_000)
    head = (54773648, start + len(body), 0, 0, 0, 0, 2355492, len(summary))
    if ndtiff:
        head = (483729, 3, 3, 2355492, len(summary))
        (path.parent / "NDTiff.index").write_bytes(index)
    file = struct.pack(f"<2sHI{len(head)}I", b"II", 42, start, *head) + summary
    path.write_bytes(file.ljust(start, b"\0") + body + struct.pack("<II", 3453623, len(planes)) + index)


@pytest.mark.parametrize("ndtiff", [False, True])
def test_frames_that_micromanager_indexed_and_the_file_lacks(tmp_path, ndtiff):
    path = tmp_path / "a_MMStack_Pos0.ome.tif"
    write_micromanager(path, MOVIE, ndtiff=ndtiff)
    whole = read_photons(path)
    np.testing.assert_array_equal(whole, MOVIE)
    assert pixel_size_um(whole) == {"y": 0.065, "x": 0.065}
    assert float(whole.t[1]) == 0.5
    if ndtiff:
        path.write_bytes(path.read_bytes()[: 7 * 570])
    else:
        write_micromanager(path, MOVIE, lost=range(6, 10))
    for time in (None, 7):
        with pytest.raises(UnreadableImageError, match='holds 6 of 10 frames; read them with time="0:6"'):
            read_photons(path, time=time)
    np.testing.assert_array_equal(read_photons(path, time="0:6"), MOVIE[:6])


def test_stage_positions_of_micromanager_are_series(tmp_path):
    path = tmp_path / "a_MMStack_1.ome.tif"
    write_micromanager(path, MOVIE, positions=2, lost=[9])
    with pytest.raises(UnreadableImageError, match=r"2 images: 0 'position 0' \(5, 17, 12\)"):
        read_photons(path)
    np.testing.assert_array_equal(read_photons(path, series=0), MOVIE[::2])
    np.testing.assert_array_equal(read_photons(path, series=1, time="0:4"), MOVIE[1:8:2])
    with pytest.raises(UnreadableImageError, match="holds 4 of 5 frames"):
        read_photons(path, series=1)


# -- ScanImage --------------------------------------------------------------------------------------------------------


def write_scanimage(path, count, **words):
    """Write pages that hold their own number, with ScanImage's words."""
    told = {"channelSave": 1, "framesPerSlice": 1, "numSlices": 5, "actualNumSlices": 5, "numVolumes": 6} | words
    homes = {"channelSave": "hChannels", "logAverageFactor": "hScan2D"}
    software = "\n".join(f"SI.{homes.get(key, 'hStackManager')}.{key} = {value}" for key, value in told.items())
    pages(path, [np.full((8, 9), n, np.int16) for n in range(count)], software=software, bigtiff=True)


def recorded(shape, order):  # which page each plane is: as recorded, and its axes in the order of images
    return np.arange(np.prod(shape)).reshape(shape).transpose(order)


FLYBACK = recorded((2, 6), (0, 1))[:, :5]
RECORDINGS = [
    (30, {}, "tz", recorded((6, 5), (0, 1)), None),
    (20, {"numVolumes": 2, "channelSave": "[1;2]"}, "tcz", recorded((2, 5, 2), (0, 2, 1)), None),
    (20, {"numVolumes": 2, "framesPerSlice": 2}, "tz", recorded((2, 5, 2), (0, 2, 1)).reshape(4, 5), None),
    (40, {"numVolumes": 1, "framesPerSlice": 4, "channelSave": "[1;2]"}, "tcz", recorded((5, 4, 2), (1, 2, 0)), None),
    (15, {"numVolumes": 3, "framesPerSlice": 4, "logAverageFactor": 4}, "tz", recorded((3, 5), (0, 1)), None),
    (12, {"numVolumes": 2, "numFramesPerVolumeWithFlyback": 6}, "tz", FLYBACK, None),
    (5, {"numVolumes": 1}, "z", np.arange(5), None),
    (12, {"numVolumes": 1, "actualNumSlices": 1, "framesPerSlice": "Inf"}, "t", np.arange(12), None),
    (12, {"numVolumes": 6, "enable": "false", "framesPerSlice": 2}, "t", np.arange(12), None),
    # those that stopped early are read as far as complete
    (23, {}, "tz", recorded((4, 5), (0, 1)), "4 complete volumes of 6, and 3 planes"),
    (12, {"numVolumes": "[]", "hFastZ.numVolumes": 3, "hFastZ.numFramesPerVolume": 6}, "tz", FLYBACK,
     "2 complete volumes of 3"),
    (51, {"numVolumes": 1, "framesPerSlice": 8, "channelSave": "[1;2]"}, "tcz", recorded((3, 8, 2), (1, 2, 0)),
     "3 complete slices of 5, and 3 planes"),
    (7, {"numVolumes": 20, "actualNumSlices": 1, "channelSave": "[1;2]"}, "tc", recorded((3, 2), (0, 1)),
     "3 complete frames of 20, and 1 planes"),
]  # fmt: skip


@pytest.mark.parametrize(("count", "words", "dims", "expected", "told"), RECORDINGS)
def test_volumes_of_scanimage_are_those_of_its_header(tmp_path, recwarn, count, words, dims, expected, told):
    write_scanimage(tmp_path / "a.tif", count, **words)
    image = read_photons(tmp_path / "a.tif", check=False)
    assert image.dims == (*dims, "y", "x")
    np.testing.assert_array_equal(image[..., 0, 0], expected)
    assert [told in str(warning.message) for warning in recwarn] == ([True] if told else [])


def test_recordings_that_were_cut_are_read_as_far_as_complete(tmp_path):
    write_scanimage(tmp_path / "a.tif", 30)
    cut(tmp_path / "a.tif", 0.6)
    with pytest.warns(UserWarning, match="3 complete volumes of 6"):
        assert read_photons(tmp_path / "a.tif", check=False).sizes["t"] == 3
    write_scanimage(tmp_path / "b.tif", 7, framesPerSlice=8, channelSave="[1;2]")
    with pytest.raises(UnreadableImageError, match="no complete slice"):
        read_photons(tmp_path / "b.tif")
