"""What is written is found by other programs, and read again: values, types, axes, calibration and names."""

import errno
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import xarray as xr
from fixtures_model import random_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_images import CHANNELS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, OutputError
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.sampling import sample
from gap_bioimage.io import check_output, pixel_size_um, read_photons, write_image

LIBRARIES = {"h5": "h5py", "zarr": "zarr"}
COMPRESSIONS = {"tif": [None, "zlib"], "tiff": [None, "zlib"], "h5": [None, "gzip"], "zarr": [None]}
FORMATS = [".tif", ".ome.tif", ".h5", ".zarr"]
NARROWED = {np.float64: np.float32, bool: np.uint8}
TYPES = [np.uint8, np.uint16, np.uint32, np.int32, np.int64, np.float32, np.float64, bool]
NAMES = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=9)


def kind_of(suffix):
    """Return the kind of a suffix; the test is skipped where its library is missing."""
    kind = suffix.lower().split(".")[-1]
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind])
    return kind


@pytest.mark.parametrize("suffix", [".tif", ".ome.TIFF", ".h5", ".ome.zarr"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations("tczyx"),
    drop=st.sets(st.sampled_from("tcz")),
    dtype=st.sampled_from(TYPES),
    calibrated=st.booleans(),
    names=st.none() | st.tuples(NAMES, NAMES),
    data=st.data(),
)
@example(order="tczyx", drop=set("tcz"), dtype=np.uint16, calibrated=True, names=("01", "1,5"), data=None)
@example(order="tczyx", drop=set("tz"), dtype=np.uint32, calibrated=True, names=("01", "1,5"), data=None)
@example(order="tczyx", drop=set("c"), dtype=np.float32, calibrated=True, names=('a&<b> "c"', "True"), data=None)
def test_any_order_type_and_names(tmp_path, suffix, order, drop, dtype, calibrated, names, data):
    dims = [d for d in order if d not in drop]
    image = counts(dims, dtype, calibrated).drop_vars("c", errors="ignore")
    if names is not None:
        image = image.assign_coords(c=list(names) if "c" in dims else names[0])
    compression = data.draw(st.sampled_from(COMPRESSIONS[kind_of(suffix)])) if data else None
    write_image(tmp_path / f"a{suffix}", image, compression=compression)
    again = read_photons(tmp_path / f"a{suffix}", check=False)
    wide = NARROWED | ({np.int64: np.uint32} if kind_of(suffix).startswith("tif") else {})
    expected = image.transpose(*again.dims).astype(wide.get(dtype, dtype))
    assert_same(again, expected)
    assert again.attrs["source"] == f"a{suffix}"
    if "c" in dims:
        for place in (0, 1):
            chosen = read_photons(tmp_path / f"a{suffix}", channel=place, check=False)
            assert_same(chosen, expected.isel(c=place))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_channel_without_a_name_leaves_the_others_theirs(tmp_path, suffix):
    kind_of(suffix)
    write_image(tmp_path / f"a{suffix}", counts("cyx").assign_coords(c=["", "DNA"]))
    assert read_photons(tmp_path / f"a{suffix}").c.values.tolist() == ["", "DNA"]


def test_numpy_keeps_values_and_type(tmp_path):
    write_image(tmp_path / "a.npy", counts("zyx", np.float64))
    assert_same(read_photons(tmp_path / "a.npy", axes="zyx"), counts("zyx", np.float64, calibrated=False))


@pytest.mark.parametrize("suffix", FORMATS)
def test_samples_are_frames_and_the_name_of_a_chosen_channel_reaches_what_is_made_of_it(tmp_path, suffix):
    kind_of(suffix)
    samples = counts("tzyx", np.float32, calibrated=False).rename(t="sample")
    write_image(tmp_path / f"s{suffix}", samples)
    assert_same(read_photons(tmp_path / f"s{suffix}"), samples.rename(sample="t"))
    write_image(tmp_path / f"a{suffix}", counts("tcyx"))
    chosen = read_photons(tmp_path / f"a{suffix}", channel="dna")
    assert str(chosen.c.values) == CHANNELS[1]
    for made in (denoise(random_model(), chosen), sample(random_model(), chosen[0], 2, seed=0)):
        write_image(tmp_path / f"b{suffix}", made)
        again = read_photons(tmp_path / f"b{suffix}", check=False)
        assert again.dims == ("t", "y", "x")
        assert str(again.c.values) == CHANNELS[1]


def test_fiji_finds_its_axes_and_calibration_and_the_name_of_a_single_channel(tmp_path):
    write_image(tmp_path / "b.tif", counts("cyx").assign_coords(c=["two\nlines", "DNA"]))
    assert read_photons(tmp_path / "b.tif").c.values.tolist() == ["two lines", "DNA"]
    write_image(tmp_path / "a.tif", counts("tczyx"))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        words = tif.imagej_metadata
        assert tif.series[0].axes == "TZCYX"
        assert (words["frames"], words["slices"], words["channels"]) == (3, 4, 2)
        assert (words["unit"], words["spacing"], words["finterval"]) == ("micron", 0.3, 2.5)
        assert words["Labels"][:3] == ["actin", "DNA", "actin"]
        across, per = tif.pages[0].tags["XResolution"].value
        assert across / per == pytest.approx(1 / 0.108)
    for name in ("b.tif", "b.ome.tif"):
        write_image(tmp_path / name, counts("czyx").isel(c=1))
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.imagej_metadata["Labels"] == ["DNA"] * 4
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tif:
        assert tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]["Channel"]["Name"] == "DNA"


@pytest.mark.parametrize(
    ("dtype", "limit", "imagej"),
    [(np.uint16, 10**9, True), (np.uint16, 100, False), (np.uint32, 10**9, False), (np.int32, 10**9, False)],
)
def test_what_imagejs_format_cannot_hold_becomes_ome_bigtiff(tmp_path, monkeypatch, dtype, limit, imagej):
    monkeypatch.setattr("gap_bioimage.io.write._IMAGEJ_LIMIT_BYTES", limit)
    write_image(tmp_path / "a.tif", counts("zyx", dtype))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (tif.is_imagej, tif.is_ome, tif.is_bigtiff) == (imagej, not imagej, not imagej)
        assert tif.series[0].dtype == dtype
    assert pixel_size_um(read_photons(tmp_path / "a.tif")) == pytest.approx({"z": 0.3, "y": 0.065, "x": 0.108})


@pytest.mark.parametrize(
    ("name", "values", "compression", "message"),
    [
        ("a.tif", np.ones((4, 4), complex), None, "expected real numbers"),
        ("a.tif", np.full((4, 4), 2**40), None, "do not fit into 32 bits"),
        ("a.png", np.ones((4, 4)), None, "unknown suffix"),
        ("a.zarr", np.ones((0, 4)), None, "in at least one pixel"),
        ("no/a.tif", np.ones((4, 4)), None, "folder does not exist"),
        ("", np.ones((4, 4)), None, "unknown suffix"),
        ("a.tif", np.ones((4, 4)), "nonsense", "without compression"),
        ("a.h5", np.ones((4, 4)), "nonsense", "without compression"),
        ("h5py.h5", np.ones((4, 4)), None, r"pip install 'gap-bioimage\[formats\]'"),
        ("zarr.zarr", np.ones((4, 4)), None, r"pip install 'gap-bioimage\[zarr\]'"),
    ],
)
def test_impossible_outputs_are_refused(tmp_path, monkeypatch, name, values, compression, message):
    if "pip" in message:
        monkeypatch.setitem(sys.modules, name.split(".")[0], None)
    with pytest.raises(OutputError, match=message) as error:
        write_image(tmp_path / name, xr.DataArray(values, dims=["y", "x"]), compression=compression)
    one_sentence(error)
    for dims in (("y",), ("z", "y"), ("sample", "t", "y", "x"), ("a", "y", "x")):
        with pytest.raises(AxesError):
            write_image(tmp_path / "a.tif", xr.DataArray(np.ones([2] * len(dims)), dims=dims))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".ome.zarr", ".h5"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, suffix):
    kind_of(suffix)
    path = tmp_path / f"a{suffix}"
    write_image(path, counts("zyx"))
    write_image(path, counts("yx"))

    def full(file, *_, **__):
        if hasattr(file, "write"):
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=9))
        for place in ("tifffile.imwrite", "numpy.save", *(["zarr.Array.__setitem__"] if "zarr" in suffix else [])):
            patch.setattr(place, full)
        with pytest.raises(OutputError, match="no space left on device"):
            write_image(path, counts("yx", seed=1))
    np.testing.assert_array_equal(read_photons(path), counts("yx"))
    assert list(tmp_path.iterdir()) == [path]


def test_inputs_and_folders_are_not_overwritten(tmp_path):
    write_image(tmp_path / "a.tif", counts("yx"))
    (tmp_path / "b.tif").symlink_to(tmp_path / "a.tif")
    with pytest.raises(OutputError, match="is the input itself"):
        check_output(tmp_path / "b.tif", tmp_path / "a.tif")
    for name, told in (("a.h5", "it is a folder"), ("c.tif", "it is a folder"), ("a.zarr", "not a Zarr store")):
        (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match=told):
            write_image(tmp_path / name, counts("yx"))
