"""Files of microscopes' makers, written as their libraries read them."""

import struct
import sys

import numpy as np
import pytest
from made_images import CHANNELS, DIMS, LENGTHS, STEPS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, vendors

IDS = {"x": 1, "y": 2, "z": 3, "t": 4, "m": 10}
FRAMES, LINES, PIXELS, DETECTORS, BINS = 3, 17, 12, 2, 8


@pytest.mark.parametrize(
    ("suffix", "module"),
    [("czi", "czifile"), ("lif", "liffile"), ("ptu", "ptufile"), ("sdt", "sdtfile"), ("h5", "h5py"), ("nd2", "nd2")],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, suffix, module):
    (tmp_path / f"a.{suffix}").write_bytes(bytes(100))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'gap-bioimage\[formats\]'") as error:
        read_photons(tmp_path / f"a.{suffix}")
    one_sentence(error)


# -- Zeiss ------------------------------------------------------------------------------------------------------------


def write_czi(path, image, scenes=1, tile=None, **options):
    """Write planes, scene by scene 40 pixels apart, each in tiles of ``tile`` pixels where given."""
    writing = pytest.importorskip("pylibCZIrw.czi")  # Zeiss's own writer
    full = image.expand_dims([dim for dim in "tcz" if dim not in image.dims]).transpose(*"tczyx")
    with writing.create_czi(str(path), **options) as file:
        for scene in range(scenes):
            for (t, c, z), _ in np.ndenumerate(full[..., 0, 0]):
                plane = full.values[t, c, z] + scene
                step = tile or max(plane.shape)
                for y in range(0, plane.shape[0], step):
                    for x in range(0, plane.shape[1], step):
                        part = np.ascontiguousarray(plane[y : y + step, x : x + step])[..., None]
                        place = (x + 40 * scene, y)
                        file.write(part, location=place, plane={"T": t, "C": c, "Z": z}, scene=scene)
        names = dict(enumerate(CHANNELS)) if "c" in image.dims else {}
        scales = {f"scale_{axis}": um * 1e-6 for axis, um in {"z": 0.3, "y": 0.065, "x": 0.108}.items()}
        file.write_metadata(document_name="made", channel_names=names, **scales)


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("dims", ["yx", "zyx", "tyx", "czyx", "tczyx"])
def test_czi_every_axis_and_calibration_is_read(tmp_path, dims, tile):
    image = counts(dims).drop_vars("t", errors="ignore")  # the writer has no frame intervals
    write_czi(tmp_path / "a.czi", image, tile=tile)
    assert_same(read_photons(tmp_path / "a.czi"), image)
    if dims == "tczyx":
        chosen = read_photons(tmp_path / "a.czi", time="::2", channel="DNA")
        assert_same(chosen, image[::2].isel(c=1))


def test_scenes_are_series(tmp_path):
    write_czi(tmp_path / "a.czi", counts("zyx"), scenes=3)
    for scene in range(3):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.czi", series=scene), counts("zyx") + scene)
    with pytest.raises(UnreadableImageError, match=r"3 images: 0 .*series=0"):
        read_photons(tmp_path / "a.czi")
    with pytest.raises(AxesError):
        read_photons(tmp_path / "a.czi", series=0, level=1)


@pytest.mark.parametrize("compression", ["zstd0:ExplicitLevel=1", "zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack"])
def test_compressed_files_are_read_or_refused_in_words(tmp_path, compression):
    import czifile

    write_czi(tmp_path / "a.czi", counts("yx"), compression_options=compression)
    if hasattr(czifile.CziFile, "scenes"):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.czi"), counts("yx"))
        return
    with pytest.raises(UnreadableImageError, match=r"use Python 3\.12 or later"):
        read_photons(tmp_path / "a.czi")


# -- Leica ------------------------------------------------------------------------------------------------------------


def described(name, image, block):
    """Return the XML of an image as LAS X writes it, channels between the planes and what varies slower."""
    order = [d for d in image.dims if d != "c"]
    size = image.dtype.itemsize
    increments, step = {}, size
    for dim in [*reversed(order[-2:]), "c", *reversed(order[:-2])]:
        increments[dim] = step
        step *= image.sizes.get(dim, 1)
    channels = ""
    for number in range(image.sizes.get("c", 1)):
        dye = f"<ChannelProperty><Key>DyeName</Key><Value>{CHANNELS[number]}</Value></ChannelProperty>"
        channels += (
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{8 * size}" NameOfMeasuredQuantity="" '
            f'Min="0" Max="255" Unit="" LUTName="Green" IsLUTInverted="0" '
            f'BytesInc="{number * increments["c"]}" BitInc="0">{dye}</ChannelDescription>'
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


def write_lif(path, images):
    """Write a LIF file: a header in XML, and a block of memory per image."""
    pytest.importorskip("liffile")
    elements = "".join(described(name, image, f"Block{number}") for number, (name, image) in enumerate(images))
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
def test_lif_every_axis_and_calibration_is_read(tmp_path, dims, dtype):
    image = counts(dims, dtype)
    write_lif(tmp_path / "a.lif", [("cell", image)])
    image = image if "c" in dims else image.assign_coords(c=CHANNELS[0])
    assert_same(read_photons(tmp_path / "a.lif"), image)
    if "t" in dims:
        assert_same(read_photons(tmp_path / "a.lif", time="::2"), image[::2])


def test_images_of_lif_and_positions_of_a_tile_scan_are_series(tmp_path):
    scan = counts("tzyx", calibrated=False).rename(t="m")
    write_lif(tmp_path / "a.lif", [("one", counts("zyx")), ("scan", scan)])
    one = read_photons(tmp_path / "a.lif", series="one")
    assert_same(one, counts("zyx").assign_coords(c=CHANNELS[0]))
    assert one.attrs["series"] == "one"
    for place in range(LENGTHS["t"]):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.lif", series=f"scan/{place}"), scan[place])
    with pytest.raises(UnreadableImageError, match=r"4 images: 0 'one' \(4, 17, 12\), 1 'scan/0'.*series=0"):
        read_photons(tmp_path / "a.lif")


# -- photon streams ---------------------------------------------------------------------------------------------------


def photons(frames=FRAMES, detectors=DETECTORS):
    """Return a histogram of arrival times (t, y, x, c, h)."""
    shape = (frames, LINES, PIXELS, detectors, BINS)
    histogram = np.random.default_rng(0).poisson(0.7, shape).astype(np.uint16)
    histogram[..., 0, :, 0] += 1  # both detectors and the last bin see light, so that no axis is trimmed
    histogram[..., -1] += 1
    return histogram


def write_ptu(path, histogram, um=0.065):
    ptufile = pytest.importorskip("ptufile")
    ptufile.imwrite(path, histogram, 25e-9, 25e-9 / 16, pixel_time=25e-9 * 100, pixel_resolution=um)


def test_ptu_frames_and_detectors_hold_every_photon(tmp_path):
    histogram = photons()
    write_ptu(tmp_path / "a.ptu", histogram)
    image = read_photons(tmp_path / "a.ptu", check=False)
    assert image.dims == ("t", "c", "y", "x")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, histogram.sum(axis=-1).transpose(0, 3, 1, 2))
    assert pixel_size_um(image) == pytest.approx({"y": 0.065, "x": 0.065})
    assert float(image.t[1]) > 0
    one = read_photons(tmp_path / "a.ptu", time="1:", channel=1, check=False)
    np.testing.assert_array_equal(one, histogram.sum(axis=-1)[1:, ..., 1])


def write_sdt(path, blocks):
    """Write an SDT file from its library's own records: a histogram (y, x, h) of uint16 per block."""
    sdtfile = pytest.importorskip("sdtfile").sdtfile
    info = b"*IDENTIFICATION\r\n  ID        : SPC Setup & Data File\r\n  Revision  : 1\r\n*END\r\n"
    header = np.zeros(1, np.dtype(sdtfile.FILE_HEADER))
    described = np.dtype(sdtfile.record_dtype(sdtfile.MEASURE_INFO, np.dtype(sdtfile.MEASURE_INFO).itemsize))
    measure = np.zeros(len(blocks), described)
    start = header.itemsize + len(info)
    first = start + measure.nbytes
    header["revision"], header["header_valid"], header["chksum"] = 15, 0x5555, 0x55AA
    header["info_offs"], header["info_length"] = header.itemsize, len(info)
    header["meas_desc_block_offs"], header["meas_desc_block_length"] = start, described.itemsize
    header["no_of_meas_desc_blocks"] = header["no_of_data_blocks"] = len(blocks)
    header["data_block_offs"] = first
    parts, offset = [], first
    for number, block in enumerate(blocks):
        measure[number]["scan_y"], measure[number]["scan_x"], measure[number]["adc_re"] = block.shape
        measure[number]["tac_r"], measure[number]["tac_g"] = 5e-8, 4
        head = np.zeros(1, np.dtype(sdtfile.BLOCK_HEADER))
        head["data_offs"] = offset + head.itemsize
        head["next_block_offs"] = offset + head.itemsize + block.nbytes
        head["block_type"], head["meas_desc_block_no"], head["block_length"] = 0x01, number, block.nbytes
        parts += [head.tobytes(), block.tobytes()]
        offset += head.itemsize + block.nbytes
    path.write_bytes(header.tobytes() + info + measure.tobytes() + b"".join(parts))


def test_sdt_blocks_of_one_shape_are_channels_and_those_of_others_series(tmp_path):
    blocks = list(photons(1)[0].transpose(2, 0, 1, 3).copy())
    write_sdt(tmp_path / "a.sdt", blocks)
    image = read_photons(tmp_path / "a.sdt", check=False)
    assert image.dims == ("c", "y", "x")
    np.testing.assert_array_equal(image, np.sum(blocks, axis=-1))
    assert pixel_size_um(image) == {}
    write_sdt(tmp_path / "b.sdt", [blocks[0], blocks[1][:9].copy()])
    with pytest.raises(UnreadableImageError, match="2 images"):
        read_photons(tmp_path / "b.sdt")
    image = read_photons(tmp_path / "b.sdt", series=1, check=False)
    np.testing.assert_array_equal(image, blocks[1][:9].sum(axis=-1))
    write_sdt(tmp_path / "decay.sdt", [blocks[0][:1, :1].copy()])
    with pytest.raises(UnreadableImageError, match="decay curves"):
        read_photons(tmp_path / "decay.sdt")


@pytest.mark.parametrize(
    ("name", "write", "shares"),
    [
        ("a.czi", lambda path: write_czi(path, counts("tczyx")), (0.9, 0.1, 0.001)),
        ("a.lif", lambda path: write_lif(path, [("cell", counts("tczyx"))]), (0.9, 0.05)),
        ("a.ptu", lambda path: write_ptu(path, photons()), (0.03,)),
        ("a.sdt", lambda path: write_sdt(path, [photons(1, 1)[0, :, :, 0]]), (0.02,)),
    ],
)
def test_cut_files_are_noticed(tmp_path, name, write, shares):
    write(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in shares:
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UnreadableImageError, match=name):
            read_photons(tmp_path / name, check=False)


# -- bioio ------------------------------------------------------------------------------------------------------------


def test_deltavision_files_are_read_and_files_that_nobody_reads_are_named(tmp_path, monkeypatch):
    mrc = pytest.importorskip("mrc")
    pytest.importorskip("bioio")
    image = counts("czyx").drop_vars("c")
    mrc.imsave(tmp_path / "cells.dv", image.values, metadata={"dx": 0.108, "dy": 0.065, "dz": 0.3})
    assert_same(read_photons(tmp_path / "cells.dv"), image)
    assert_same(read_photons(tmp_path / "cells.dv", channel=1, series=0, level=0), image[1])
    (tmp_path / "notes.xyz").write_text("no image")
    (tmp_path / "cut.dv").write_bytes(b"no image at all" * 10)
    for name in ("notes.xyz", "cut.dv", "cells.dv"):
        if name == "cells.dv":
            monkeypatch.setattr(vendors, "find_spec", lambda name: None)  # as if bioio was not there
        with pytest.raises(UnreadableImageError, match=f"{name} cannot be read as an image"):
            read_photons(tmp_path / name)
