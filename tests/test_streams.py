from __future__ import annotations

import numpy as np
import pytest
from made_images import one_sentence

from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

FRAMES, LINES, PIXELS, DETECTORS, BINS = 3, 17, 12, 2, 8


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


def test_a_ptu_of_one_frame_and_detector_is_a_plane(tmp_path):
    histogram = photons(1, 1)
    write_ptu(tmp_path / "a.ptu", histogram)
    image = read_photons(tmp_path / "a.ptu", check=False)
    np.testing.assert_array_equal(image, histogram.sum(axis=-1)[0, :, :, 0])
    write_image(tmp_path / "a.tif", image)
    assert pixel_size_um(read_photons(tmp_path / "a.tif", check=False)) == pytest.approx({"y": 0.065, "x": 0.065})
    with pytest.raises(AxesError, match="series 1"):
        read_photons(tmp_path / "a.ptu", series=1)


def test_damaged_ptu_are_refused(tmp_path):
    write_ptu(tmp_path / "a.ptu", photons())
    (tmp_path / "b.ptu").write_bytes((tmp_path / "a.ptu").read_bytes()[:500])
    with pytest.raises(UnreadableImageError, match=r"b\.ptu cannot be read") as error:
        read_photons(tmp_path / "b.ptu")
    one_sentence(error)


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


def test_sdt_blocks_of_one_shape_are_channels(tmp_path):
    blocks = list(photons(1)[0].transpose(2, 0, 1, 3).copy())
    write_sdt(tmp_path / "a.sdt", blocks)
    image = read_photons(tmp_path / "a.sdt", check=False)
    assert image.dims == ("c", "y", "x")
    np.testing.assert_array_equal(image, np.sum(blocks, axis=-1))
    np.testing.assert_array_equal(read_photons(tmp_path / "a.sdt", channel=1, check=False), blocks[1].sum(axis=-1))
    assert pixel_size_um(image) == {}


def test_sdt_blocks_of_other_shapes_are_series(tmp_path):
    block = photons(1, 1)[0, :, :, 0]
    write_sdt(tmp_path / "a.sdt", [block, block[:9].copy()])
    with pytest.raises(UnreadableImageError, match="2 images") as error:
        read_photons(tmp_path / "a.sdt")
    one_sentence(error)
    image = read_photons(tmp_path / "a.sdt", series=1, check=False)
    np.testing.assert_array_equal(image, block[:9].sum(axis=-1))


def test_sdt_decays_and_damaged_files_are_refused(tmp_path):
    block = photons(1, 1)[0, :, :, 0]
    write_sdt(tmp_path / "decay.sdt", [block[:1, :1].copy()])
    with pytest.raises(UnreadableImageError, match="decay curves") as error:
        read_photons(tmp_path / "decay.sdt")
    one_sentence(error)
    write_sdt(tmp_path / "a.sdt", [block])
    for size in (20, 150):
        (tmp_path / "b.sdt").write_bytes((tmp_path / "a.sdt").read_bytes()[:size])
        with pytest.raises(UnreadableImageError, match="cannot be read") as error:
            read_photons(tmp_path / "b.sdt")
        one_sentence(error)


@pytest.mark.parametrize(("suffix", "module"), [("ptu", "ptufile"), ("sdt", "sdtfile")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, suffix, module):
    (tmp_path / f"a.{suffix}").write_bytes(bytes(100))
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'gap-bioimage\[formats\]'") as error:
        read_photons(tmp_path / f"a.{suffix}")
    one_sentence(error)
