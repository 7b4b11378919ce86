import json

import numpy as np
import pytest
from made_images import CHANNELS, assert_same, counts

from gap_bioimage.errors import UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

h5py = pytest.importorskip("h5py")


def test_ilastik_and_fiji_find_axes_and_sizes(tmp_path):
    write_image(tmp_path / "a.h5", counts("tczyx"))
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file) == ["data"]
        data = file["data"]
        tags = json.loads(data.attrs["axistags"])["axes"]
        assert [tag["key"] for tag in tags] == list("tczyx")
        assert [tag["typeFlags"] for tag in tags] == [8, 1, 2, 2, 2]
        assert [tag["resolution"] for tag in tags] == pytest.approx([2.5, 0, 0.3, 0.065, 0.108])
        assert json.loads(data.attrs["axis_units"]) == {"t": "s", "z": "um", "y": "um", "x": "um"}
        assert [dimension.label for dimension in data.dims] == list("tczyx")
        np.testing.assert_allclose(data.attrs["element_size_um"], [0.3, 0.065, 0.108])
        assert data.attrs["interval_s"] == 2.5
        assert list(data.attrs["channels"]) == CHANNELS


def test_ilastiks_own_sizes_are_read(tmp_path):
    steps = {"t": (2500.0, "ms"), "z": (300, "nm"), "y": (0.065, "um"), "x": (1.08e-7, "m"), "c": (0, "")}
    tags = [{"key": key, "typeFlags": 2, "resolution": steps[key][0], "description": ""} for key in "tzyxc"]
    image = counts("tczyx").drop_vars("c")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("exported_data", data=image.transpose(*"tzyxc").values)
        data.attrs["axistags"] = json.dumps({"axes": tags})
        data.attrs["axis_units"] = json.dumps({key: unit for key, (_, unit) in steps.items()})
    assert_same(read_photons(tmp_path / "a.h5"), image)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"axistags": [2.0, 0.5, 0.25]}, "z 2, y 0.5, x 0.25"),
        ({"axistags": [0.0, 0.5, 1.0]}, "y 0.5"),
        ({"axistags": [0.0, 1.0, 1.0]}, None),
        ({"axistags": [2.0, 0.5, 0.25], "element_size_um": [0.3, 0.1, 0.1]}, None),
        ({"axes": "zyx", "voxel_size": [40, 4, 4], "axis_units": "um"}, None),
    ],
)
def test_sizes_without_a_unit_are_left_out_in_words(tmp_path, recwarn, attributes, told):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", data=counts("zyx").values)
        data.attrs.update(attributes)
        if "axistags" in attributes:
            tags = zip("zyx", attributes["axistags"], strict=True)
            data.attrs["axistags"] = json.dumps({"axes": [{"key": key, "resolution": step} for key, step in tags]})
    known = {"z": 0.3, "y": 0.1, "x": 0.1} if "element_size_um" in attributes else {}
    assert pixel_size_um(read_photons(tmp_path / "a.h5")) == known
    assert [f"a.h5 does not state the unit of its pixel sizes ({told})" in str(each.message) for each in recwarn] == (
        [] if told is None else [True]
    )


@pytest.mark.parametrize(
    "kind",
    ["axistags", "ZYXT", "z, y, x, t", "depth y x time", list("zyxt"), ["z", "y", "x", "time"], "labels", "scales"],
)
def test_axes_of_other_programs_are_read_whatever_their_files_are_called(tmp_path, kind):
    image = counts("tzyx", calibrated=False)
    with h5py.File(tmp_path / "a.ims", "w") as file:
        data = file.create_dataset("volume/raw", data=image.transpose("z", "y", "x", "t").values)
        if kind == "axistags":
            data.attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "zyxt"]})
        elif kind not in ("labels", "scales"):
            data.attrs["axes"] = np.array(kind, "S") if kind == list("zyxt") else kind
        for dimension, label in zip(data.dims, "zyxt", strict=True):
            if kind == "labels":
                dimension.label = label
            elif kind == "scales":
                dimension.attach_scale(file.create_dataset(label, data=np.arange(image.sizes[label])))
        data.attrs["element_size_um"] = [0.3, 0.065, 0.108]
    again = read_photons(tmp_path / "a.ims")
    assert again.dims == tuple("tzyx")
    np.testing.assert_array_equal(again, image)
    assert pixel_size_um(again) == {"z": 0.3, "y": 0.065, "x": 0.108}


def test_imaris_gives_the_ends_of_axes_and_fills_its_chunks_with_zeros(tmp_path):
    image, steps, ends = counts("zyx"), {"z": 0.3, "y": 0.065, "x": 0.108}, {"Unit": "um"}
    for number, axis in enumerate("xyz"):
        ends |= {f"ExtMin{number}": "-3.5", f"ExtMax{number}": f"{image.sizes[axis] * steps[axis] - 3.5:.6f}"}
    with h5py.File(tmp_path / "a.ims", "w") as file:
        channel = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        channel["Data"] = np.pad(image.values, ((0, 4), (0, 15), (0, 20)))
        sizes = {f"ImageSize{axis.upper()}": str(image.sizes[axis]) for axis in "zyx"}
        for group, texts in ((channel, sizes), (file.create_group("DataSetInfo/Image"), ends)):
            group.attrs.update({name: np.array(list(text), "S1") for name, text in texts.items()})
    assert_same(read_photons(tmp_path / "a.ims"), image)
    with h5py.File(tmp_path / "a.ims", "a") as file:
        del file["DataSetInfo"]
    assert_same(read_photons(tmp_path / "a.ims"), counts("zyx", calibrated=False))


def test_one_of_several_datasets_is_chosen(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number, name in enumerate(["cells/a", "cells/b", "zoo"]):
            file[name] = counts("yx", seed=number).values
        file["note"] = "no image"
        file["curve"] = np.arange(5)
    with pytest.raises(UnreadableImageError, match=r"3 images: 0 'cells/a' \(17, 12\), .*series=0"):
        read_photons(tmp_path / "a.h5")
    for series, seed in (("/cells/b", 1), ("cells/a", 0), ("2", 2)):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.h5", series=series), counts("yx", seed=seed))


def test_what_lies_in_another_file_is_read_where_that_is_there(tmp_path):
    other, virtual = tmp_path / "other.h5", h5py.VirtualLayout((17, 12), np.uint16)
    virtual[...] = h5py.VirtualSource("other.h5", "data", (17, 12))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("other.h5", "/data")
        file.create_virtual_dataset("virtual", virtual)
    write_image(other, counts("yx"))
    for name in ("linked", "virtual"):
        np.testing.assert_array_equal(read_photons(tmp_path / "a.h5", series=name), counts("yx"))
    other.unlink()
    with pytest.raises(UnreadableImageError, match="missing: virtual, linked"):
        read_photons(tmp_path / "a.h5", series="virtual")


def test_files_without_images_and_damaged_ones_are_refused(tmp_path):
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.create_group("empty")
    with pytest.raises(UnreadableImageError, match="holds no image"):
        read_photons(tmp_path / "none.h5")
    write_image(tmp_path / "a.h5", counts("tczyx"))
    whole = (tmp_path / "a.h5").read_bytes()
    for share in (0.9, 0.5, 0.05):
        (tmp_path / "b.h5").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UnreadableImageError, match="cannot be read as an image"):
            read_photons(tmp_path / "b.h5")
