from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import xarray as xr
from made_images import CHANNELS, DIMS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, OutputError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

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
    with pytest.raises(UnreadableImageError) as error:
        read_photons(path)
    assert "a.zarr" in one_sentence(error)


def test_an_empty_group_holds_no_image(tmp_path):
    new_group(tmp_path / "a.zarr", "0.5")
    with pytest.raises(UnreadableImageError, match="holds no image"):
        read_photons(tmp_path / "a.zarr")


def described_image(path, image, version="0.6", names=None, steps=None, store=True, **array):
    """Write an image of 0.6 (coordinate systems) or earlier, in its own order of axes."""
    group = new_group(path, version if version in ("0.4", "0.5") else "0.5")
    names = list(image.dims) if names is None else list(names)
    if store:
        group.create_array("0", data=image.values, **array)
    kinds = {"t": ("time", "second"), "c": ("channel", None)}
    axes = [{"name": n, "type": kinds.get(n, ("space", ""))[0]} for n in names]
    for axis, name in zip(axes, names, strict=True):
        axis |= {"unit": kinds.get(name, ("", "micrometer"))[1]} if name != "c" else {}
    sizes = {"t": 2.5, "z": 0.3, "y": 0.065, "x": 0.108}
    steps = steps or [{"type": "scale", "scale": [sizes.get(n, 1.0) for n in names]}]
    dataset = {"path": "0", "coordinateTransformations": steps}
    entry = {"axes": axes, "datasets": [dataset]}
    if version not in ("0.4", "0.5"):
        entry = {"coordinateSystems": [{"name": "world", "axes": []}, {"name": "own", "axes": axes}]}
        own = [step | {"input": "0", "output": "own"} for step in steps]
        entry["datasets"] = [dataset | {"coordinateTransformations": own}]
    if version == "0.4":
        describe(group, {"multiscales": [entry]}, version)
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [entry]}


@pytest.mark.parametrize("version", ["0.6", "0.6.dev3"])
@pytest.mark.parametrize("order", ["tczyx", "ctzyx", "zcyx", "yx", "xyt"])
def test_axes_and_scale_of_0_6_in_any_order(tmp_path, order, version):
    image = counts("tczyx").drop_vars("c").isel({axis: 0 for axis in "tcz" if axis not in order}, drop=True)
    described_image(tmp_path / "a.zarr", image.transpose(*order), version)
    assert_same(read_photons(tmp_path / "a.zarr"), image)


@pytest.mark.parametrize("name", [False, True])
def test_sequences_and_named_systems_of_0_6(tmp_path, name):
    image = counts("zyx")
    scale = {"type": "scale", "scale": [0.3, 0.065, 0.108]}
    steps = [{"type": "sequence", "transformations": [scale, {"type": "translation", "translation": [0, 1, 2]}]}]
    described_image(tmp_path / "a.zarr", image, steps=steps)
    if name:
        root = zarr.open_group(tmp_path / "a.zarr")
        words = root.attrs["ome"]
        words["multiscales"][0]["datasets"][0]["coordinateTransformations"][0] |= {"output": {"name": "own"}}
        root.attrs["ome"] = words
    assert_same(read_photons(tmp_path / "a.zarr"), image)


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
@pytest.mark.parametrize(
    "step",
    [
        {"type": "scale", "scale": [0.065, 0.108]},
        {"type": "affine", "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
        {"type": "rotation", "rotation": [[1, 0], [0, 1]]},
    ],
)
def test_sizes_that_are_not_a_scale_for_each_axis_are_left_out_in_words(tmp_path, version, step):
    described_image(tmp_path / "a.zarr", counts("zyx"), version, steps=[step])
    with pytest.warns(UserWarning, match=r"a\.zarr has 3 axes.*pixel sizes are left out"):
        image = read_photons(tmp_path / "a.zarr")
    assert pixel_size_um(image) == {}


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
@pytest.mark.parametrize("names", ["zyx", "yx", "tzcyx"])
def test_axes_that_are_not_as_many_as_those_of_the_array(tmp_path, version, names):
    described_image(tmp_path / "a.zarr", counts("czyx"), version, names=names)
    with pytest.raises(AxesError, match=rf'a\.zarr .*{" ".join(names)}.*\(2, 4, 17, 12\).*axes="czyx"') as error:
        read_photons(tmp_path / "a.zarr")
    one_sentence(error)
    np.testing.assert_array_equal(read_photons(tmp_path / "a.zarr", axes="czyx"), counts("czyx"))


@pytest.mark.parametrize("version", ["0.7", "1.0", "0.10"])
def test_versions_that_are_not_known_are_refused(tmp_path, version):
    described_image(tmp_path / "a.zarr", counts("zyx"), version)
    with pytest.raises(UnreadableImageError, match=f"OME-Zarr {version}") as error:
        read_photons(tmp_path / "a.zarr")
    one_sentence(error)


def test_sharded_arrays_are_read(tmp_path):
    described_image(tmp_path / "a.zarr", counts("tzyx"), "0.5", chunks=(1, 2, 17, 12), shards=(3, 4, 17, 12))
    assert_same(read_photons(tmp_path / "a.zarr"), counts("tzyx"))


def test_zipped_stores_are_read(tmp_path):
    write_image(tmp_path / "a.zarr", counts("tczyx"))
    with zipfile.ZipFile(tmp_path / "a.ozx", "w") as packed:
        for file in (tmp_path / "a.zarr").rglob("*"):
            packed.write(file, file.relative_to(tmp_path / "a.zarr"))
        packed.comment = b'{"ome": {"version": "0.5"}}'
    assert_same(read_photons(tmp_path / "a.ozx"), counts("tczyx"))
    (tmp_path / "b.ozx").write_bytes((tmp_path / "a.ozx").read_bytes()[:300])
    with pytest.raises(UnreadableImageError, match=r"b\.ozx"):
        read_photons(tmp_path / "b.ozx")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_a_plate_lists_and_lacks_does_not_keep_the_others_from_opening(tmp_path, version):
    root = new_group(tmp_path / "plate.zarr", version)
    describe(root, {"plate": {"wells": [{"path": well} for well in ("A/1", "A/2", "B/1")]}}, version)
    for well in ("A/1", "B/1"):
        group = root.create_group(well)
        describe(group, {"well": {"images": [{"path": "0"}, {"path": "1"}]}}, version)
        store_image(group.create_group("0"), counts("yx", seed=ord(well[0])), version, levels=3)
    shutil.rmtree(tmp_path / "plate.zarr" / "B" / "1" / "0" / "s2")
    assert_same(read_photons(tmp_path / "plate.zarr", series="B/1/0"), counts("yx", seed=ord("B")))
    with pytest.raises(UnreadableImageError, match=r"2 images: 0 'A/1/0'.*lacks, A/1/1, A/2, B/1/1\)"):
        read_photons(tmp_path / "plate.zarr")
    for absent in ("A/2", "A/2/0", "A/1/1"):
        with pytest.raises(AxesError, match="A/2"):
            read_photons(tmp_path / "plate.zarr", series=absent)
    with pytest.raises(AxesError, match="level 2"):
        read_photons(tmp_path / "plate.zarr", series="B/1/0", level=2)


@pytest.mark.parametrize("dims", DIMS)
def test_what_is_written_is_valid(tmp_path, dims):
    yaozarrs = pytest.importorskip("yaozarrs")
    write_image(tmp_path / "a.ome.zarr", counts(dims))
    yaozarrs.validate_zarr_store(str(tmp_path / "a.ome.zarr"))


def test_the_words_are_those_of_ome_0_5(tmp_path):
    write_image(tmp_path / "cell 1.ome.zarr", counts("tczyx"))
    words = zarr.open_group(tmp_path / "cell 1.ome.zarr", mode="r").attrs["ome"]
    assert words["version"] == "0.5"
    (multiscale,) = words["multiscales"]
    assert multiscale["name"] == "cell 1"
    assert [axis["name"] for axis in multiscale["axes"]] == list("tczyx")
    assert [axis["type"] for axis in multiscale["axes"]] == ["time", "channel", "space", "space", "space"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == ["second", None, *["micrometer"] * 3]
    (dataset,) = multiscale["datasets"]
    assert dataset["coordinateTransformations"] == [{"type": "scale", "scale": [2.5, 1.0, 0.3, 0.065, 0.108]}]
    assert [channel["label"] for channel in words["omero"]["channels"]] == ["actin", "DNA"]
    for number, channel in enumerate(words["omero"]["channels"]):
        assert channel["window"]["end"] == counts("tczyx").values[:, number].max()
    array = zarr.open_array(tmp_path / "cell 1.ome.zarr" / dataset["path"], mode="r")
    assert array.metadata.dimension_names == tuple("tczyx")
    assert array.chunks == (1, 1, 4, 17, 12)


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
@pytest.mark.parametrize(
    ("z_um", "shapes"),
    [
        (None, [(5, 601, 300), (5, 301, 150), (5, 151, 75)]),
        (0.1, [(5, 601, 300), (3, 301, 150), (2, 151, 75)]),
        (0.2, [(5, 601, 300), (5, 301, 150), (3, 151, 75)]),
        (2.0, [(5, 601, 300), (5, 301, 150), (5, 151, 75)]),
    ],
)
def test_pyramids_halve_what_is_close(tmp_path, z_um, shapes):
    values = np.random.default_rng(0).poisson(5, shapes[0]).astype(np.uint16)
    image = xr.DataArray(values, dims=list("zyx"), coords={d: np.arange(n) * 0.1 for d, n in (("y", 601), ("x", 300))})
    if z_um:
        image = image.assign_coords(z=np.arange(5) * z_um)
    write_image(tmp_path / "a.zarr", image)
    levels = [read_photons(tmp_path / "a.zarr", level=level, check=False) for level in range(3)]
    assert [level.shape for level in levels] == shapes
    with pytest.raises(AxesError, match="level 3"):
        read_photons(tmp_path / "a.zarr", level=3)
    np.testing.assert_array_equal(levels[0], values)
    for before, after in itertools.pairwise(levels):
        halved = [axis for axis in "zyx" if after.sizes[axis] < before.sizes[axis]]
        for axis, size in pixel_size_um(after).items():
            assert size == pytest.approx(pixel_size_um(before)[axis] * (2 if axis in halved else 1))
        padded = np.pad(before, [(0, before.sizes[a] % 2 if a in halved else 0) for a in "zyx"], mode="edge")
        blocks = padded.reshape([n for a in "zyx" for n in (after.sizes[a], 2 if a in halved else 1)])
        np.testing.assert_array_equal(after, np.rint(blocks.mean(axis=(1, 3, 5))))
    assert [float(level.mean()) for level in levels] == pytest.approx([5] * 3, rel=0.01)


def test_a_store_is_replaced_when_the_new_one_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    write_image(path, counts("zyx"))
    write_image(path, counts("yx", seed=1))
    assert_same(read_photons(path), counts("yx", seed=1))
    assert list(tmp_path.iterdir()) == [path]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OutputError, match="no space left on device") as error:
        write_image(path, counts("yx", seed=2))
    one_sentence(error)
    monkeypatch.undo()
    assert_same(read_photons(path), counts("yx", seed=1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_swap_brings_the_old_store_back(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    write_image(path, counts("yx"))
    rename = os.rename

    def refuse(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OutputError, match="permission denied"):
        write_image(path, counts("yx", seed=1))
    assert_same(read_photons(path), counts("yx"))
    assert list(tmp_path.iterdir()) == [path]


def test_writing_without_the_library_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(OutputError, match=r"pip install 'gap-bioimage\[zarr\]'") as error:
        write_image(tmp_path / "a.zarr", counts("yx"))
    one_sentence(error)
    assert list(tmp_path.iterdir()) == []
