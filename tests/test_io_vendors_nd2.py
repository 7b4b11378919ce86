"""Nikon files, written chunk by chunk as the library reads them."""

import struct

import numpy as np
import pytest
from made_images import CHANNELS, DIMS, STEPS, assert_same, counts

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons

nd2 = pytest.importorskip("nd2")

MAGIC = 0x0ABECEDA
LOOPS = {"t": 1, "p": 2, "z": 4}
POINTS = ["left", "right"]


def encoded(words):
    """Return a dictionary as Nikon's "CLX lite variant": type, length of the name, name, value."""
    parts = []
    for name, value in words.items():
        kind = {bool: 1, int: 3, float: 6, str: 8, dict: 11}[type(value)]
        head = struct.pack("BB", kind, len(name) + 1) + (name + "\0").encode("utf-16-le")
        if kind == 11:
            inner = encoded(value)
            body = struct.pack("<IQ", len(value), len(head) + 12 + len(inner)) + inner + bytes(8 * len(value))
        elif kind == 8:
            body = (value + "\0").encode("utf-16-le")
        else:
            body = struct.pack({1: "<B", 3: "<I", 6: "<d"}[kind], value)
        parts.append(head + body)
    return b"".join(parts)


def loop_of(dims, sizes):
    """Return the description of the outer loops, each in the one before."""
    dim, *rest = dims
    at = {"dPosX": 0.0, "dPosY": 0.0, "dPosZ": 0.0}
    words = {
        "t": {"dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0, "dAvgPeriodDiff": 1e3 * STEPS["t"]},
        "z": {"dZLow": 0.0, "dZHigh": 1.0, "dZStep": STEPS["z"], "dZHome": 0.0, "iType": 0},
        "p": {
            "bUseZ": False,
            "Points": {f"i{place:010}": {**at, "dPosName": name} for place, name in enumerate(POINTS)},
        },
    }
    loop = {"eType": LOOPS[dim], "uLoopPars": {"uiCount": sizes[dim], **words[dim]}}
    return loop | ({"ppNextLevelEx": {"i0000000000": loop_of(rest, sizes)}} if rest else {})


def write_nd2(path, image, calibrated=True):
    """Write frames (all channels of a plane), what describes them, and the map of all chunks."""
    outer = [d for d in image.dims if d in LOOPS]
    frames = image.transpose(*outer, "y", "x", *(d for d in "c" if d in image.dims))
    height, width, count = image.sizes["y"], image.sizes["x"], image.sizes.get("c", 1)
    flat = frames.values.reshape(-1, height, width, count)
    names = CHANNELS if "c" in image.dims else ["only"]
    told = {"uiCompCount": 1, "pFluorescentProbe": {"m_sName": "dye"}}
    planes = {f"a{n}": {"sDescription": name, **told} for n, name in enumerate(names)}
    pictures = {"bCalibrated": calibrated, "dCalibration": STEPS["x"] if calibrated else 0.0}
    bits = 8 * image.dtype.itemsize
    attributes = {"uiBpcInMemory": bits, "uiBpcSignificant": bits, "uiComp": count, "uiHeight": height}
    attributes |= {"uiSequenceCount": len(flat), "uiWidthBytes": width * count * bits // 8, "uiWidth": width}
    chunks = {
        b"ImageAttributesLV!": encoded({"SLxImageAttributes": attributes}),
        b"ImageMetadataSeqLV|0!": encoded(
            {"SLxPictureMetadata": pictures | {"sPicturePlanes": {"uiCount": count, "sPlaneNew": planes}}}
        ),
    }
    if outer:
        chunks[b"ImageMetadataLV!"] = encoded({"SLxExperiment": loop_of(outer, image.sizes)})
    chunks |= {f"ImageDataSeq|{n}!".encode(): bytes(8) + frame.tobytes() for n, frame in enumerate(flat)}
    signature = b"ND2 FILE SIGNATURE CHUNK NAME01!"
    file = struct.pack("<IIQ32s64s", MAGIC, 32, 64, signature, b"Ver3.0")
    places = b""
    for name, data in chunks.items():
        places += name + struct.pack("<QQ", len(file), len(data))
        file += struct.pack("<IIQ", MAGIC, 4072, len(data)) + name.ljust(4072, b"\0") + data
    places += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(file))
    head = struct.pack("<IIQ", MAGIC, 32, len(places)) + b"ND2 FILEMAP SIGNATURE NAME 0001!"
    path.write_bytes(file + head + places)
    return path


def expected(image):
    """Return an image with what a file says: pixels are square, and a single channel has a name."""
    image = image.assign_coords(y=np.arange(image.sizes["y"]) * STEPS["x"])
    return image if "c" in image.dims else image.assign_coords(c="only")


@pytest.mark.parametrize("dims", DIMS)
def test_every_axis_and_calibration_is_read(tmp_path, dims):
    image = counts(dims)
    assert_same(read_photons(write_nd2(tmp_path / "a.nd2", image)), expected(image))


def test_positions_are_series(tmp_path):
    image = counts("tczyx")
    both = type(image)(np.stack([image.values, image.values + 1], axis=1), dims=["t", "p", "c", "z", "y", "x"])
    path = write_nd2(tmp_path / "a.nd2", both)
    right = read_photons(path, series="right")
    assert_same(right, expected(image + np.uint16(1)))
    assert right.attrs["series"] == "right"
    chosen = read_photons(path, series=0, time=2, channel="DNA")
    assert_same(chosen, expected(image).isel(c=1).isel(t=2, drop=True))
    with pytest.raises(UnreadableImageError, match="2 images: 0 'left'"):
        read_photons(path)


def test_pixels_without_calibration_have_no_size(tmp_path):
    path = write_nd2(tmp_path / "a.nd2", counts("yx"), calibrated=False)
    assert pixel_size_um(read_photons(path)) == {}
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnreadableImageError, match=r"a\.nd2 cannot be read"):
        read_photons(path)
