"""No library writes ND2: our reading is tested against a stand-in with the library's interface."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from made_images import CHANNELS, DIMS, STEPS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.photons.image_io import read_photons

POINTS = ["left", "right"]


class StandIn:
    """An ND2 file with the attributes that are read of one."""

    def __init__(self, image):
        self.sizes = {str(dim).upper(): length for dim, length in image.sizes.items()}
        self.dtype = image.dtype
        self._values = image.values
        self.experiment = []
        if "t" in image.dims:
            spent = SimpleNamespace(avg=1000 * STEPS["t"])
            loop = SimpleNamespace(periodDiff=spent, periodMs=1.0)
            self.experiment.append(SimpleNamespace(type="TimeLoop", parameters=loop))
        if "p" in image.dims:
            points = SimpleNamespace(points=[SimpleNamespace(name=name) for name in POINTS])
            self.experiment.append(SimpleNamespace(type="XYPosLoop", parameters=points))
        names = CHANNELS if "c" in image.dims else ["only"]
        channels = [SimpleNamespace(channel=SimpleNamespace(name=name)) for name in names]
        self.metadata = SimpleNamespace(channels=channels)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def voxel_size(self):
        return (STEPS["x"], STEPS["y"], STEPS["z"])

    def to_dask(self):
        return self._values


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a function that makes a file which the library would open as an image."""

    def make(image):
        module = ModuleType("nd2")
        module.ND2File = lambda path: StandIn(image)
        monkeypatch.setitem(sys.modules, "nd2", module)
        (tmp_path / "a.nd2").write_bytes(b"stand-in")
        return tmp_path / "a.nd2"

    return make


@pytest.mark.parametrize("dims", DIMS)
def test_every_axis_and_calibration_is_read(made, dims):
    image = counts(dims)
    assert_same(read_photons(made(image)), image if "c" in dims else image.assign_coords(c="only"))


def test_positions_are_series(made):
    image = counts("tczyx")
    both = np.stack([image.values, image.values + 1], axis=1)
    path = made(type(image)(both, dims=["t", "p", "c", "z", "y", "x"]))
    assert_same(right := read_photons(path, series="right"), image + np.uint16(1))
    assert right.attrs["series"] == "right"
    assert_same(read_photons(path, series=0, time=2, channel="DNA"), image.isel(c=1).isel(t=2, drop=True))
    with pytest.raises(UnreadableImageError, match="2 images: 0 'left'") as error:
        read_photons(path)
    one_sentence(error)
    with pytest.raises(AxesError, match="level 1"):
        read_photons(path, series=0, level=1)


def test_photographs_are_refused(made):
    image = counts("tyx", calibrated=False).rename(t="s").transpose("y", "x", "s")
    with pytest.raises(NotPhotonCountsError, match="RGB"):
        read_photons(made(image))


def test_the_library_has_what_the_stand_in_has():
    library = pytest.importorskip("nd2").ND2File
    for name in ("sizes", "dtype", "experiment", "metadata", "voxel_size", "to_dask", "__enter__"):
        assert hasattr(library, name)


def test_damaged_files_are_refused(tmp_path):
    pytest.importorskip("nd2")
    for content in (b"\xda\xce\xbe\x0a" + bytes(200), b"not an image at all"):
        (tmp_path / "a.nd2").write_bytes(content)
        with pytest.raises(UnreadableImageError, match=r"a\.nd2 cannot be read") as error:
            read_photons(tmp_path / "a.nd2")
        one_sentence(error)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.nd2").write_bytes(bytes(100))
    monkeypatch.setitem(sys.modules, "nd2", None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'gap-bioimage\[formats\]'") as error:
        read_photons(tmp_path / "a.nd2")
    one_sentence(error)
