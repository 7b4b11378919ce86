from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_images import CHANNELS, DIMS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_images, read_photons, write_image

zarr = pytest.importorskip("zarr")

UNITS = {"t": ("time", "millisecond", 2500.0), "c": ("channel", None, 1.0)}
NANOMETRES = {"z": 300.0, "y": 65.0, "x": 108.0}


def store_image(group, image, version="0.5", levels=1, name="cell", **words):
    """Write an image as other programs do: units other than ours, a scale of all levels, other chunks."""
    axes = []
    for dim in image.dims:
        kind, unit, _ = UNITS.get(dim, ("space", "nanometer", None))
        axes.append({"name": dim, "type": kind} | ({"unit": unit} if unit else {}))
    steps = [UNITS[d][2] if d in UNITS else NANOMETRES[d] for d in image.dims]
    datasets = []
    for level in range(levels):
        every = tuple(slice(None, None, 2**level if d in "yx" else 1) for d in image.dims)
        group.create_array(
            f"s{level}",
            data=np.ascontiguousarray(image.values[every]),
            chunks=tuple(min(n, 10) for n in image.values[every].shape),
        )
        scale = [2.0**level if d in "yx" else 1.0 for d in image.dims]
        transformations = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": [0.5] * image.ndim},
        ]
        datasets.append({"path": f"s{level}", "coordinateTransformations": transformations})
    multiscale = {"name": name, "axes": axes, "datasets": datasets}
    multiscale["coordinateTransformations"] = [{"type": "scale", "scale": steps}]
    words["omero"] = {"channels": [{"label": label} for label in CHANNELS]} if "c" in image.dims else {}
    describe(group, {"multiscales": [multiscale], **words}, version)


def describe(group, words, version):
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", **words}
    else:
        for entry in words.get("multiscales", []):
            entry["version"] = version
        group.attrs.update(words)


def new_group(path, version):
    return zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dims", DIMS)
def test_other_programs_images_are_read(tmp_path, dims, version):
    image = counts(dims)
    store_image(new_group(tmp_path / "a.zarr", version), image, version)
    assert_same(read_photons(tmp_path / "a.zarr"), image)


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_are_chosen(tmp_path, version):
    image = counts("zyx")
    store_image(new_group(tmp_path / "a.zarr", version), image, version, levels=3)
    assert_same(read_photons(tmp_path / "a.zarr"), image)
    for level in range(3):
        chosen = read_photons(tmp_path / "a.zarr", level=level)
        np.testing.assert_array_equal(chosen, image[:, :: 2**level, :: 2**level])
        size = {"z": 0.3, "y": 0.065 * 2**level, "x": 0.108 * 2**level}
        assert pixel_size_um(chosen) == pytest.approx(size)
    with pytest.raises(AxesError, match=r"level 3 .* 0 \(4, 17, 12\), 1 \(4, 9, 6\), 2 \(4, 5, 3\)") as error:
        read_photons(tmp_path / "a.zarr", level=3)
    one_sentence(error)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_fields_of_a_plate_are_series(tmp_path, version):
    root = new_group(tmp_path / "plate.zarr", version)
    wells = ["A/1", "B/2"]
    describe(root, {"plate": {"wells": [{"path": well} for well in wells]}}, version)
    for number, well in enumerate(wells):
        group = root.create_group(well)
        describe(group, {"well": {"images": [{"path": "0"}, {"path": "1"}]}}, version)
        for field in ("0", "1"):
            store_image(group.create_group(field), counts("yx", seed=10 * number + int(field)), version)
    with pytest.raises(UnreadableImageError, match=r"4 images: 0 'A/1/0' \(17, 12\).*series=0") as error:
        read_photons(tmp_path / "plate.zarr")
    one_sentence(error)
    field = read_photons(tmp_path / "plate.zarr", series="B/2/1")
    assert_same(field, counts("yx", seed=11))
    assert field.attrs["series"] == "B/2/1"
    assert_same(read_photons(tmp_path / "plate.zarr", series=2), counts("yx", seed=10))
    assert_same(read_photons(tmp_path / "plate.zarr", series="1"), counts("yx", seed=1))
    with pytest.raises(AxesError, match="series C/1/0 was asked for"):
        read_photons(tmp_path / "plate.zarr", series="C/1/0")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_bioformats2raw_images_are_series(tmp_path, version, listed):
    root = new_group(tmp_path / "a.zarr", version)
    describe(root, {"bioformats2raw.layout": 3}, version)
    names = [str(number) for number in range(11)]
    for name in names:
        store_image(root.create_group(name), counts("yx", seed=int(name)), version)
    describe(root.create_group("OME"), {"series": names} if listed else {}, version)
    assert_same(read_photons(tmp_path / "a.zarr", series=10), counts("yx", seed=10))
    with pytest.raises(UnreadableImageError, match="and 3 more"):
        read_photons(tmp_path / "a.zarr")


def test_labels_are_no_images(tmp_path):
    root = new_group(tmp_path / "a.zarr", "0.5")
    store_image(root, counts("yx"))
    store_image(root.create_group("labels").create_group("cells"), counts("yx", seed=1))
    assert_same(read_photons(tmp_path / "a.zarr"), counts("yx"))


@pytest.mark.parametrize(("version", "axes"), [("0.1", None), ("0.2", None), ("0.3", list("tczyx"))])
def test_old_versions_have_axes_and_no_sizes(tmp_path, version, axes):
    root = new_group(tmp_path / "a.zarr", version)
    root.create_array("0", data=counts("tczyx").values)
    root.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}]} | ({"axes": axes} if axes else {})]
    again = read_photons(tmp_path / "a.zarr")
    assert_same(again, counts("tczyx", calibrated=False))


@pytest.mark.parametrize(("scale", "told"), [([1.0, 1.0], None), ([0.5, 1.0], "y 0.5"), ([2, 0.25], "y 2, x 0.25")])
def test_a_scale_without_a_unit_is_not_believed(tmp_path, recwarn, scale, told):
    root = new_group(tmp_path / "a.zarr", "0.5")
    root.create_array("0", data=counts("yx").values)
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    describe(root, {"multiscales": [{"axes": axes, "datasets": datasets}]}, "0.5")
    assert pixel_size_um(read_photons(tmp_path / "a.zarr")) == {}
    found = [f"its pixel sizes ({told}), so that" in str(each.message) for each in recwarn]
    assert found == ([] if told is None else [True])


def test_bare_arrays_are_read(tmp_path):
    values = counts("zyx").values
    zarr.create_array(tmp_path / "named.zarr", data=values, dimension_names=["z", "y", "x"])
    zarr.create_array(tmp_path / "bare.zarr", data=values)
    root = zarr.open_group(tmp_path / "two.zarr", mode="w")
    root.create_array("first", data=values)
    root.create_array("second", data=values + 1)
    np.testing.assert_array_equal(read_photons(tmp_path / "named.zarr"), values)
    with pytest.raises(AxesError, match="zyx"):
        read_photons(tmp_path / "bare.zarr")
    np.testing.assert_array_equal(read_photons(tmp_path / "bare.zarr", axes="zyx"), values)
    np.testing.assert_array_equal(read_photons(tmp_path / "two.zarr", axes="zyx", series="second"), values + 1)


def test_only_what_was_chosen_is_read(tmp_path, monkeypatch):
    image = counts("tczyx")
    store_image(new_group(tmp_path / "a.zarr", "0.5"), image)
    read = []
    whole = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda array, index: read.append(index) or whole(array, index))
    chosen = read_photons(tmp_path / "a.zarr", channel="dna", time=2)
    assert_same(chosen, image.isel(c=1).isel(t=2, drop=True))
    assert read == [(2, 1, slice(None), slice(None), slice(None))]


def test_folders_of_stores_are_expanded_and_stores_are_not(tmp_path):
    for name in ("b10.ome.zarr", "b2.zarr"):
        store_image(new_group(tmp_path / name, "0.4"), counts("yx", seed=len(name)), "0.4")
    write_image(tmp_path / "c.tif", counts("yx"))
    (tmp_path / "empty.zarr").mkdir()
    names = [image.attrs["source"] for image in read_images(tmp_path)]
    assert names == ["b2.zarr", "b10.ome.zarr", "c.tif"]
    assert len(read_images(tmp_path / "b2.zarr")) == 1
    with pytest.raises(UnreadableImageError, match="is a folder"):
        read_photons(tmp_path / "empty.zarr")


@pytest.mark.parametrize("damage", ["level", "json", "words", "chunk"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_damaged_stores_are_refused(tmp_path, version, damage):
    path = tmp_path / "a.zarr"
    store_image(new_group(path, version), counts("yx"), version)
    described = path / ("zarr.json" if version == "0.5" else ".zattrs")
    if damage == "level":
        shutil.rmtree(path / "s0")
    elif damage == "json":
        described.write_text(described.read_text()[:-20])
    elif damage == "words":
        words = json.loads(described.read_text())
        (words["attributes"]["ome"] if version == "0.5" else words)["multiscales"] = [{"axes": 3}]
        described.write_text(json.dumps(words))
    else:
        chunk = path / "s0" / ("c/0/0" if version == "0.5" else "0.0")
        chunk.write_bytes(chunk.read_bytes()[:3])
    with pytest.raises(UnreadableImageError, match="cannot be read as an image|holds no image") as error:
        read_photons(path)
    assert "a.zarr" in one_sentence(error)


def test_an_empty_group_holds_no_image(tmp_path):
    new_group(tmp_path / "a.zarr", "0.5")
    with pytest.raises(UnreadableImageError, match="holds no image"):
        read_photons(tmp_path / "a.zarr")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    store_image(new_group(tmp_path / "a.zarr", "0.5"), counts("yx"))
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'gap-bioimage\[zarr\]'") as error:
        read_photons(tmp_path / "a.zarr")
    one_sentence(error)


def test_images_larger_than_memory_are_refused_with_a_way_out(tmp_path, monkeypatch):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(1000, 100_000, 100_000), chunks=(1, 1000, 1000), dtype="u2", dimension_names="tyx"
    )
    array[3, :10, :10] = 5
    with pytest.raises(UnreadableImageError, match=r"takes 2e\+04 GB .*time=.0:10") as error:
        read_photons(tmp_path / "a.zarr")
    one_sentence(error)
