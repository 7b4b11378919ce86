from __future__ import annotations

import struct

import numpy as np
import pytest
from made_images import CHANNELS, DIMS, LENGTHS, STEPS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io import read_photons

pytest.importorskip("liffile")

IDS = {"x": 1, "y": 2, "z": 3, "t": 4, "m": 10}


def described(name, image, block, dyes=True):
    """Return the XML of an image as LAS X writes it, channels between the planes and what varies slower."""
    order = [d for d in image.dims if d != "c"]
    size = image.dtype.itemsize
    increments, step = {}, size
    for dim in [*reversed(order[-2:]), "c", *reversed(order[:-2])]:
        increments[dim] = step
        step *= image.sizes.get(dim, 1)
    channels = ""
    for number in range(image.sizes.get("c", 1)):
        dye = f"<ChannelProperty><Key>DyeName</Key><Value>{('actin', 'DNA')[number]}</Value></ChannelProperty>"
        channels += (
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{8 * size}" NameOfMeasuredQuantity="" '
            f'Min="0" Max="255" Unit="" LUTName="{("Green", "Red")[number]}" IsLUTInverted="0" '
            f'BytesInc="{number * increments["c"]}" BitInc="0">{dye if dyes else ""}</ChannelDescription>'
        )
    dimensions = ""
    for dim in reversed(order):
        n, unit = image.sizes[dim], "s" if dim == "t" else "m"
        length = STEPS.get(dim, 0) * (n - 1) * (1 if dim == "t" else 1e-6)
        dimensions += (
            f'<DimensionDescription DimID="{IDS[dim]}" NumberOfElements="{n}" Origin="0" Length="{length}" '
            f'Unit="{unit}" BytesInc="{increments[dim]}" BitInc="0"/>'
        )
    return (
        f'<Element Name="{name}" UniqueID="{block}"><Data><Image><ImageDescription>'
        f"<Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="{image.nbytes}" MemoryBlockID="{block}"/></Element>'
    )


def write_lif(path, images, **options):
    """Write a LIF file: a header in XML, and a block of memory per image."""
    elements = "".join(
        described(name, image, f"Block{number}", **options) for number, (name, image) in enumerate(images)
    )
    xml = f'<LMSDataContainerHeader Version="2"><Element Name="p"><Children>{elements}</Children></Element>'
    text = f"{xml}</LMSDataContainerHeader>".encode("utf-16-le")
    parts = [struct.pack("<IIBI", 0x70, len(text) + 5, 0x2A, len(text) // 2), text]
    for number, (_, image) in enumerate(images):
        name = f"Block{number}".encode("utf-16-le")
        order = [d for d in image.dims if d not in "cyx"] + [d for d in "cyx" if d in image.dims]
        head = struct.pack("<IIBQBI", 0x70, 14 + len(name), 0x2A, image.nbytes, 0x2A, len(name) // 2)
        parts += [head, name, np.ascontiguousarray(image.transpose(*order).values).tobytes()]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("dims", DIMS)
def test_every_axis_and_calibration_is_read(tmp_path, dims, dtype):
    image = counts(dims, dtype)
    write_lif(tmp_path / "a.lif", [("cell", image)])
    image = image if "c" in dims else image.assign_coords(c=CHANNELS[0])
    assert_same(read_photons(tmp_path / "a.lif"), image)
    if "t" in dims:
        assert_same(read_photons(tmp_path / "a.lif", time="::2"), image[::2])


def test_images_are_series(tmp_path):
    write_lif(tmp_path / "a.lif", [(name, counts("zyx", seed=n)) for n, name in enumerate(["one", "two"])])
    for number, name in enumerate(["one", "two"]):
        image = read_photons(tmp_path / "a.lif", series=name)
        assert_same(image, counts("zyx", seed=number).assign_coords(c=CHANNELS[0]))
        assert image.attrs["series"] == name
    assert_same(read_photons(tmp_path / "a.lif", series=0), read_photons(tmp_path / "a.lif", series="one"))
    with pytest.raises(UnreadableImageError, match=r"2 images: 0 'one' \(4, 17, 12\), 1 'two'.*series=0") as error:
        read_photons(tmp_path / "a.lif")
    one_sentence(error)
    with pytest.raises(AxesError, match="series three was asked for"):
        read_photons(tmp_path / "a.lif", series="three")
    with pytest.raises(AxesError, match="level 1"):
        read_photons(tmp_path / "a.lif", series=0, level=1)


def test_positions_of_a_tile_scan_are_series(tmp_path):
    scan = counts("tzyx", calibrated=False).rename(t="m")
    write_lif(tmp_path / "a.lif", [("scan", scan)])
    for place in range(LENGTHS["t"]):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.lif", series=f"scan/{place}"), scan[place])
    with pytest.raises(UnreadableImageError, match="3 images: 0 'scan/0'"):
        read_photons(tmp_path / "a.lif")


def test_colour_tables_name_channels_without_dyes(tmp_path):
    write_lif(tmp_path / "a.lif", [("cell", counts("cyx"))], dyes=False)
    assert read_photons(tmp_path / "a.lif").c.values.tolist() == ["Green", "Red"]
    np.testing.assert_array_equal(read_photons(tmp_path / "a.lif", channel="red"), counts("cyx")[1])


@pytest.mark.parametrize("share", [0.9, 0.5, 0.05])
def test_truncated_files_are_noticed(tmp_path, share):
    write_lif(tmp_path / "a.lif", [("cell", counts("tczyx"))])
    whole = (tmp_path / "a.lif").read_bytes()
    (tmp_path / "a.lif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImageError, match=r"a\.lif cannot be read") as error:
        read_photons(tmp_path / "a.lif", check=False)
    one_sentence(error)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.lif").write_bytes(bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "liffile", None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'gap-bioimage\[formats\]'") as error:
        read_photons(tmp_path / "a.lif")
    one_sentence(error)
