"""What is written is read again: values, types, axes, calibration and names, in every format that knows them."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures_model import random_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_images import CHANNELS, assert_same, counts

from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.sampling import sample
from gap_bioimage.io import read_photons, write_image

LIBRARIES = {"h5": "h5py", "hdf5": "h5py", "zarr": "zarr"}
COMPRESSIONS = {"tif": [None, "zlib"], "tiff": [None, "zlib"], "h5": [None, "gzip"], "hdf5": [None, "gzip"]}
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
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    compressions = COMPRESSIONS.get(kind_of(suffix), [None])
    compression = data.draw(st.sampled_from(compressions)) if data else None
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
def test_posterior_samples_are_frames(tmp_path, suffix):
    kind_of(suffix)
    samples = counts("tzyx", np.float32, calibrated=False).rename(t="sample")
    write_image(tmp_path / f"a{suffix}", samples)
    assert_same(read_photons(tmp_path / f"a{suffix}"), samples.rename(sample="t"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_name_of_a_chosen_channel_reaches_what_is_made_of_it(tmp_path, suffix):
    kind_of(suffix)
    write_image(tmp_path / f"a{suffix}", counts("tcyx"))
    chosen = read_photons(tmp_path / f"a{suffix}", channel="dna")
    assert str(chosen.c.values) == CHANNELS[1]
    for made in (denoise(random_model(), chosen), sample(random_model(), chosen[0], 2, seed=0)):
        write_image(tmp_path / f"b{suffix}", made)
        again = read_photons(tmp_path / f"b{suffix}", check=False)
        assert again.dims == ("t", "y", "x")
        assert str(again.c.values) == CHANNELS[1]
