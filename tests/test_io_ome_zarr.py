import itertools
import shutil
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
import xarray as xr
from made_images import CHANNELS, DIMS, LENGTHS, STEPS, assert_same, counts, one_sentence

from gap_bioimage.errors import AxesError, UnreadableImageError
from gap_bioimage.io import pixel_size_um, read_photons, write_image

zarr = pytest.importorskip("zarr")

KINDS = {"t": {"type": "time", "unit": "millisecond"}, "c": {"type": "channel"}}
SIZES = {"t": 2500.0, "c": 1.0, "z": 300.0, "y": 65.0, "x": 108.0}  # milliseconds and nanometres


def new_group(path, version):
    return zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)


def describe(group, words, version):
    if version == "0.4":
        group.attrs.update(words)
    else:
        group.attrs["ome"] = {"version": version, **words}


def store(group, image, version="0.5", levels=1, names=None, steps=None, **array):
    """Write an image as other programs do: units other than ours, a scale of all levels; 0.6 has coordinate systems."""
    names = list(names or image.dims)
    axes = [{"name": name, **KINDS.get(name, {"type": "space", "unit": "nanometer"})} for name in names]
    datasets = []
    for level in range(levels):
        values = image.values[tuple(slice(None, None, 2**level if dim in "yx" else 1) for dim in image.dims)]
        group.create_array(f"s{level}", data=np.ascontiguousarray(values), **array)
        scale = [2.0**level if name in "yx" else 1.0 for name in names]
        own = steps or [{"type": "scale", "scale": scale}, {"type": "translation", "translation": [0.5] * len(names)}]
        datasets.append({"path": f"s{level}", "coordinateTransformations": own})
    every = [{"type": "scale", "scale": [SIZES[name] for name in names]}]
    entry = {"name": "cell", "axes": axes, "datasets": datasets, "coordinateTransformations": every}
    if version >= "0.6":
        output = "own" if version == "0.6" else {"name": "own"}  # both are in use
        own = [{"type": "sequence", "transformations": [*every, *own], "input": "s0", "output": output}]
        datasets[0]["coordinateTransformations"] = own
        entry = {"coordinateSystems": [{"name": "world", "axes": []}, {"name": "own", "axes": axes}]}
        entry["datasets"] = datasets
    else:
        entry["version"] = version
    omero = {"channels": [{"label": label} for label in CHANNELS]} if "c" in image.dims else {}
    describe(group, {"multiscales": [entry], "omero": omero}, version)


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6", "0.6.dev3"])
@pytest.mark.parametrize("dims", ["yx", "zyx", "tcyx", "tczyx", "ctzyx", "xyt"])
def test_other_programs_images_are_read(tmp_path, dims, version):
    image = counts("tczyx").isel({axis: 0 for axis in "tcz" if axis not in dims}, drop=True)
    levels = 1 if version >= "0.6" else 2
    root = new_group(tmp_path / "a.zarr", version)
    store(root, image.transpose(*dims), version, levels)
    store(root.create_group("labels").create_group("cells"), counts("yx", seed=1), version)  # no image
    assert_same(read_photons(tmp_path / "a.zarr"), image)
    if levels == 2:
        half = read_photons(tmp_path / "a.zarr", level=1)
        np.testing.assert_array_equal(half, image[..., ::2, ::2])
        assert pixel_size_um(half)["x"] == pytest.approx(2 * STEPS["x"])


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_bioformats2raw_images_are_series(tmp_path, version, listed):
    root = new_group(tmp_path / "a.zarr", version)
    describe(root, {"bioformats2raw.layout": 3}, version)
    for name in (names := ["2", "10"]):
        store(root.create_group(name), counts("yx", seed=int(name)), version)
    describe(root.create_group("OME"), {"series": names} if listed else {}, version)
    assert_same(read_photons(tmp_path / "a.zarr", series=1), counts("yx", seed=10))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_fields_of_a_plate_are_series_without_what_it_lists_and_lacks(tmp_path, version):
    root = new_group(tmp_path / "plate.zarr", version)
    describe(root, {"plate": {"wells": [{"path": well} for well in ("A/1", "A/2", "B/1")]}}, version)
    for well in ("A/1", "B/1"):
        group = root.create_group(well)
        describe(group, {"well": {"images": [{"path": "0"}, {"path": "1"}]}}, version)
        store(group.create_group("0"), counts("yx", seed=ord(well[0])), version, levels=3)
    shutil.rmtree(tmp_path / "plate.zarr" / "B" / "1" / "0" / "s2")
    field = read_photons(tmp_path / "plate.zarr", series="B/1/0")
    assert_same(field, counts("yx", seed=ord("B")))
    assert field.attrs["series"] == "B/1/0"
    with pytest.raises(UnreadableImageError, match=r"2 images: 0 'A/1/0' \(17, 12\).*missing: A/1/1, A/2, B/1/1\)"):
        read_photons(tmp_path / "plate.zarr")
    for absent in ("A/2", "A/1/1"):
        with pytest.raises(AxesError, match="A/2"):
            read_photons(tmp_path / "plate.zarr", series=absent)
    with pytest.raises(AxesError, match="level 2"):
        read_photons(tmp_path / "plate.zarr", series="B/1/0", level=2)


@pytest.mark.parametrize(
    ("version", "axes", "given"),
    [
        ("0.1", {}, None),
        ("0.2", {}, None),
        ("0.3", {"axes": list("tczyx")}, None),
        ("0.4", {}, "tczyx"),
        ("0.4", {"axes": [{"type": "space"}] * 5}, "tczyx"),
    ],
)
def test_old_versions_have_axes_and_no_sizes_and_newer_ones_without_axes_are_asked_for_them(
    tmp_path, version, axes, given
):
    root = new_group(tmp_path / "a.zarr", "0.4")
    root.create_array("0", data=counts("tczyx").values)
    omero = {"channels": None} if axes else None
    root.attrs.update({"multiscales": [{"version": version, "datasets": [{"path": "0"}], **axes}], "omero": omero})
    with pytest.raises(AxesError, match='axes="tczyx"') if given else nullcontext():
        read_photons(tmp_path / "a.zarr")
    assert_same(read_photons(tmp_path / "a.zarr", axes=given), counts("tczyx", calibrated=False))


@pytest.mark.parametrize(
    ("scale", "unit", "told"),
    [
        ([1.0, 1.0], {}, None),
        ([0.5, 1.0], {}, "y 0.5"),
        ([2, 0.25], {}, "y 2, x 0.25"),
        ([2, 0.25], {"unit": "micrometer"}, None),
        (None, {"unit": "micrometer"}, None),
    ],
)
def test_a_scale_without_a_unit_is_not_believed(tmp_path, recwarn, scale, unit, told):
    root = new_group(tmp_path / "a.zarr", "0.5")
    root.create_array("0", data=counts("yx").values)
    steps = [{"type": "scale", "scale": scale}] if scale else [{"type": "translation", "translation": [1, 2]}]
    axes = [{"name": name, "type": "space", **unit} for name in ("height", "X")]
    entry = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    describe(root, {"multiscales": [entry]}, "0.5")
    known = dict(zip("yx", scale, strict=True)) if scale and unit else {}
    assert pixel_size_um(read_photons(tmp_path / "a.zarr")) == known
    assert [f"({told})" in str(each.message) for each in recwarn] == ([] if told is None else [True])


def test_bare_arrays_are_read(tmp_path):
    values = counts("zyx").values
    zarr.create_array(tmp_path / "named.zarr", data=values, dimension_names=["z", "y", "x"])
    root = zarr.open_group(tmp_path / "two.zarr", mode="w")
    root.create_array("first", data=values)
    root.create_array("second", data=values + 1)
    root.create_array("x", data=np.arange(12))  # no image
    np.testing.assert_array_equal(read_photons(tmp_path / "named.zarr"), values)
    with pytest.raises(AxesError, match="zyx"):
        read_photons(tmp_path / "two.zarr", series="first")
    with pytest.raises(UnreadableImageError, match="2 images"):
        read_photons(tmp_path / "two.zarr")
    np.testing.assert_array_equal(read_photons(tmp_path / "two.zarr", axes="zyx", series="second"), values + 1)


@pytest.mark.parametrize("damage", ["version 0.7", "version 0.10", "nothing in it", "level", "json", "words", "chunk"])
def test_stores_that_cannot_be_read_are_refused(tmp_path, damage):
    path = tmp_path / "a.zarr"
    root = new_group(path, "0.5")
    if damage != "nothing in it":
        store(root, counts("yx"), damage.partition("version ")[2] or "0.5")
    if damage == "level":
        shutil.rmtree(path / "s0")
    elif damage == "words":
        describe(root, {"multiscales": [{"axes": 3}]}, "0.5")
    elif damage in ("json", "chunk"):
        file = path / {"json": "zarr.json", "chunk": "s0/c/0/0"}[damage]
        file.write_bytes(file.read_bytes()[:3])
    with pytest.raises(UnreadableImageError) as error:
        read_photons(path)
    assert "a.zarr" in one_sentence(error)


@pytest.mark.parametrize("version", ["0.4", "0.6"])
@pytest.mark.parametrize(
    "step", [{"type": "scale", "scale": [0.065, 0.108]}, {"type": "rotation", "rotation": [[1, 0], [0, 1]]}]
)
def test_sizes_that_are_not_a_scale_for_each_axis_are_left_out_in_words(tmp_path, version, step):
    store(new_group(tmp_path / "a.zarr", version), counts("zyx"), version, steps=[step])
    with pytest.warns(UserWarning, match=r"a\.zarr has 3 axes.*pixel sizes are left out"):
        assert pixel_size_um(read_photons(tmp_path / "a.zarr")) == {}


@pytest.mark.parametrize("version", ["0.5", "0.6"])
@pytest.mark.parametrize("names", ["zyx", "yx", "tzcyx"])
def test_axes_that_are_not_as_many_as_those_of_the_array(tmp_path, version, names):
    store(new_group(tmp_path / "a.zarr", version), counts("czyx"), version, names=names)
    with pytest.raises(AxesError, match=rf'a\.zarr .*{" ".join(names)}.*2, 4, 17, 12.*axes="czyx"'):
        read_photons(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read_photons(tmp_path / "a.zarr", axes="czyx"), counts("czyx"))


@pytest.mark.parametrize(("name", "within"), [("a.ozx", "a.zarr"), ("a.zarr.zip", "a.zarr"), ("a.zip", "")])
def test_zipped_stores_are_read(tmp_path, name, within):
    write_image(tmp_path / "a.zarr", counts("tczyx"))
    with zipfile.ZipFile(tmp_path / name, "w") as packed:
        for file in (tmp_path / "a.zarr").rglob("*"):
            packed.write(file, file.relative_to(tmp_path / within))
        packed.comment = b'{"ome": {"version": "0.5"}}'
    assert_same(read_photons(tmp_path / name), counts("tczyx"))
    (tmp_path / f"b{name}").write_bytes((tmp_path / name).read_bytes()[:300])
    with pytest.raises(UnreadableImageError, match=f"b{name}"):
        read_photons(tmp_path / f"b{name}")


@pytest.mark.parametrize("dims", DIMS)
def test_what_is_written_is_valid(tmp_path, dims):
    yaozarrs = pytest.importorskip("yaozarrs")
    write_image(tmp_path / "cell 1.ome.zarr", counts(dims))
    image = yaozarrs.validate_zarr_store(str(tmp_path / "cell 1.ome.zarr")).ome_metadata()
    (multiscale,) = image.multiscales
    assert (image.version, multiscale.name) == ("0.5", "cell 1")
    assert [axis.name for axis in multiscale.axes] == list(dims)
    (dataset,) = multiscale.datasets
    assert dataset.scale_transform.scale == [STEPS.get(axis, 1.0) for axis in dims]
    for number, channel in enumerate(image.omero.channels):
        assert channel.label == (CHANNELS[number] if "c" in dims else None)
        assert channel.window.end == (counts(dims).isel(c=number) if "c" in dims else counts(dims)).max()
    array = zarr.open_array(tmp_path / "cell 1.ome.zarr" / dataset.path, mode="r")
    assert array.metadata.dimension_names == tuple(dims)
    assert array.chunks == tuple({"t": 1, "c": 1}.get(axis, LENGTHS[axis]) for axis in dims)


@pytest.mark.filterwarnings("ignore:level . of an image pyramid")
@pytest.mark.parametrize(("z_um", "planes"), [(None, (5, 5, 5)), (0.1, (5, 3, 2)), (0.2, (5, 5, 3)), (2.0, (5, 5, 5))])
def test_pyramids_halve_what_is_close(tmp_path, z_um, planes):
    values = np.random.default_rng(0).poisson(5, (5, 601, 300)).astype(np.uint16)
    steps = {"z": z_um, "y": 0.1, "x": 0.1}
    coords = {dim: np.arange(n) * steps[dim] for dim, n in zip("zyx", values.shape, strict=True) if steps[dim]}
    write_image(tmp_path / "a.zarr", xr.DataArray(values, dims=list("zyx"), coords=coords))
    levels = [read_photons(tmp_path / "a.zarr", level=level, check=False) for level in range(3)]
    assert [level.shape for level in levels] == [*zip(planes, (601, 301, 151), (300, 150, 75), strict=True)]
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
