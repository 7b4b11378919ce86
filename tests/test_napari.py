"""The plugin for napari: what its buttons do without a window, and the window in a real viewer."""

import itertools
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

import gap_bioimage as gap
from gap_bioimage.napari import layers, work

COUNTS = gap.simulate(2, (64, 64), 2.0, seed=3)[0]


def layer_of(data, **settings):
    plain = {
        "axis_labels": [str(n - data.ndim) for n in range(data.ndim)],
        "translate": [0.0] * data.ndim,
        "rgb": False,
        "multiscale": False,
        "metadata": {},
    }
    plain |= {"scale": [1.0] * data.ndim, "units": ["pixel"] * data.ndim, "name": "a layer", "ndim": data.ndim}
    return SimpleNamespace(data=data, **{**plain, **settings})


def done(what, **given):
    job = work.Job(lambda job: what(job, **given))
    job.run()
    return job


# layers


def test_each_channel_of_a_file_becomes_a_layer_in_micrometres(tmp_path):
    both = xr.concat([COUNTS, COUNTS + 1], "c").assign_coords(c=["DNA", "actin"])
    gap.write_image(tmp_path / "two.ome.tif", both)
    assert layers.reader_of(["a.tif", "b.docx"]) is None
    read = layers.reader_of(str(tmp_path / "two.ome.tif"))
    (first, settings, kind), (second, others, _) = read([str(tmp_path / "two.ome.tif")])
    assert (settings["name"], others["name"], kind) == ("two DNA", "two actin", "image")
    assert (
        settings["scale"] == [0.1, 0.1] and settings["units"] == ["um", "um"] and settings["axis_labels"] == ["y", "x"]
    )
    np.testing.assert_array_equal(second, first + 1)


def test_an_image_keeps_its_place_on_the_way_through_a_layer():
    _, settings, _ = layers.layers_of(COUNTS, "counts")[0]
    layer = layer_of(COUNTS.values, **{**settings, "units": ["micrometer"] * 2, "translate": [5.0, 6.0]})
    image = layers.image_of(layer, layers.axes_of(layer))
    xr.testing.assert_allclose(image, COUNTS)
    _, beside, _ = layers.layer_beside(layer, image.expand_dims(sample=3), "samples")
    assert beside["scale"] == [1.0, 0.1, 0.1] and beside["translate"] == [0.0, 5.0, 6.0]
    assert beside["axis_labels"] == ["sample", "y", "x"] and beside["name"] == "counts samples"


@pytest.mark.parametrize(("ndim", "axes"), [(2, "yx"), (3, "zyx"), (4, "tzyx")])
def test_axes_that_a_layer_does_not_name_are_guessed(ndim, axes):
    assert layers.axes_of(layer_of(np.zeros((2,) * ndim))) == axes


@pytest.mark.parametrize("layer", [None, layer_of(np.zeros((4, 4)), rgb=True), layer_of(np.zeros((2, 4, 4)))])
@pytest.mark.parametrize("axes", ["yx", "zx", "zab"])
def test_layers_that_are_no_such_image_are_refused(layer, axes):
    with pytest.raises(gap.AxesError):
        layers.image_of(layer, axes)


def test_of_pyramids_the_full_resolution_is_taken():
    layer = layer_of(COUNTS.values, multiscale=True)
    layer.data = [COUNTS.values, COUNTS.values[::2, ::2]]
    np.testing.assert_array_equal(layers.image_of(layer, "yx"), COUNTS)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """The layer of a channel of an image that is taken for a large one."""
    gap.write_image(tmp_path / "two.ome.zarr", xr.concat([COUNTS + 1, COUNTS], "c").assign_coords(c=["DNA", "actin"]))
    monkeypatch.setattr(layers, "_LARGE", 10**12)
    _, (data, settings, _) = layers.read(str(tmp_path / "two.ome.zarr"))
    return layer_of(data, **settings)


def test_large_images_stay_in_their_files(large):
    assert not isinstance(large.data, np.ndarray) and large.scale == [0.1, 0.1]
    np.testing.assert_array_equal(large.data, COUNTS)
    with pytest.raises(gap.AxesError):
        layers.image_of(large, "xy")


def test_large_images_are_denoised_into_files(large, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    image = layers.image_of(large, "yx")
    assert "photon counts" in done(work.inspect, image=image).result
    result = done(work.denoise, image=image, model="nuclei", folder=tmp_path / "elsewhere").result
    data, settings, _ = layers.layer_beside(large, result, "denoised")
    assert not isinstance(data, np.ndarray) and settings["scale"] == large.scale
    np.testing.assert_allclose(data, gap.denoise(gap.load_model("nuclei"), COUNTS), rtol=1e-4)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["two_actin_denoised.ome.zarr"]
    drawn, _ = done(work.sample, image=image, model="nuclei", n_samples=2, seed=1).result
    np.testing.assert_array_equal(drawn, gap.sample(gap.load_model("nuclei"), COUNTS, 2, seed=1))


# jobs


def test_a_job_stops_at_its_next_word_and_says_so():
    job = work.Job(lambda job: [job.report(n, 10) for n in range(10)])
    job.stop_requested = lambda: True
    job.run()
    assert not job.succeeded and job.failure and job.result is None


def test_errors_that_users_can_mend_are_told_and_others_raised():
    assert "nowhere" in done(work.denoise, image=COUNTS.assign_attrs(source="counts"), model="nowhere").failure
    with pytest.raises(ZeroDivisionError):
        done(lambda job: 1 / 0)


@pytest.mark.parametrize("values", [COUNTS, COUNTS * 10 + 100, COUNTS * 0.5])
def test_inspecting_tells_the_verdict(values):
    assert gap.inspect(values).verdict in done(work.inspect, image=values).result


def test_what_cannot_be_done_is_told_and_leaves_nothing(tmp_path):
    half = (COUNTS * 0.5).assign_attrs(source="half")
    new = {"camera": None, "purpose": None, "init": None}
    assert done(work.train, image=half, run=tmp_path / "run", steps=20, **new).failure
    assert done(work.denoise, image=half, model="nuclei").failure
    assert "authors" in done(work.export, model="nuclei", out=tmp_path / "a.zip", card={"license": "MIT"}).failure
    assert not [*tmp_path.iterdir()]


def test_layers_are_denoised_plane_by_plane_sampled_and_measured():
    stack, image = xr.concat([COUNTS, COUNTS], "z").assign_attrs(source="a"), COUNTS.assign_attrs(source="a")
    result = done(work.denoise, image=stack, model="nuclei").result
    assert result.dims == ("z", "y", "x")
    np.testing.assert_array_equal(result[0], gap.denoise(gap.load_model("nuclei"), COUNTS))
    drawn, std = done(work.sample, image=image, model="nuclei", n_samples=2, seed=1).result
    np.testing.assert_allclose(std, drawn.std("sample", ddof=1), atol=1e-6)
    labels = np.zeros(COUNTS.shape, int)
    labels[8:24, 8:24] = 7
    (region,) = done(work.regions, image=image, model="nuclei", labels=labels).result
    assert region.label == 7 and region.pixels == 256 and region.std > 0


def test_a_training_shows_itself_stops_and_goes_on(tmp_path):
    image = gap.simulate(2, (64, 64), 5.0)[0].assign_attrs(source="counts")
    asked = {"image": image, "run": tmp_path / "run", "camera": None, "purpose": "denoise", "init": None}
    job = work.Job(lambda job: work.train(job, **asked, steps=40))

    job.stop_requested = lambda: job.done == 33
    job.run()
    losses, images = job.news
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 34
    assert losses[-1]["step"] == 20 and [*images] == ["held-out counts", "denoised"] and not job.succeeded
    job = done(work.train, **asked, steps=None)
    assert job.succeeded and (job.done, job.total) == (39, 40)
    assert [row["step"] for row in job.news[0]] == [20, 40]


# napari


@pytest.fixture(scope="session")
def display():
    """A display for Qt and OpenGL: the machine's own, or a virtual one."""
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        yield
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("no display, and no Xvfb to make one")
    reading, writing = os.pipe()
    screen = ["-displayfd", str(writing), "-screen", "0", "1400x1000x24"]
    server = subprocess.Popen(["Xvfb", *screen], pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    os.environ["DISPLAY"] = f":{os.fdopen(reading).readline().strip()}"
    yield
    del os.environ["DISPLAY"]
    server.terminate()
    server.wait()


@pytest.fixture
def window(request):
    """The docked widget, with the sample data open."""
    pytest.importorskip("napari")
    pytest.importorskip("pytestqt")
    request.getfixturevalue("display")
    manager = pytest.importorskip("npe2").PluginManager.instance()
    if "gap-bioimage" not in manager:
        manager.register(str(layers.__file__).replace("layers.py", "napari.yaml"))
    viewer = request.getfixturevalue("make_napari_viewer")()
    viewer.open_sample("gap-bioimage", "cells")
    _, widget = viewer.window.add_plugin_dock_widget("gap-bioimage", "Denoise photon counts")
    widget.wait = lambda: request.getfixturevalue("qtbot").waitUntil(lambda: widget.job is None, timeout=120_000)
    return widget


def test_the_manifest_names_what_is_there():
    manifest = yaml.safe_load(open(layers.__file__.replace("layers.py", "napari.yaml"), encoding="utf-8"))
    commands = {command["id"]: command["python_name"] for command in manifest["contributions"]["commands"]}
    parts = [manifest["contributions"][kind] for kind in ("readers", "widgets", "sample_data")]
    assert {part["command"] for part in itertools.chain(*parts)} == set(commands)
    names = [name.partition(":")[2] for name in commands.values() if ".layers:" in name]
    assert all(callable(getattr(layers, name)) for name in names)


def test_layers_are_inspected_denoised_and_measured_in_the_viewer(window):
    assert window.layer.value.name == "counts" and window.axes.value == "yx"
    window.inspect()
    window.wait()
    assert "photon counts" in window.message.value
    window.denoise()
    window.wait()
    counts, result = window.viewer.layers["counts"], window.viewer.layers["counts denoised"]
    assert result.data.shape == counts.data.shape and result.units == counts.units
    np.testing.assert_array_equal(result.scale, counts.scale)
    assert window.layer.value.name == "counts"
    window.n_samples.value = 2
    window.sample()
    window.wait()
    assert window.viewer.layers["counts samples"].data.shape == (2, 256, 256)
    assert window.viewer.layers["counts std"].axis_labels == ("y", "x")
    labels = np.zeros(counts.data.shape, int)
    labels[20:40, 20:40] = 1
    window.viewer.add_labels(labels)
    assert window.layer.value.name == "counts"
    window.labels.value = window.viewer.layers["labels"]
    window.measure()
    window.wait()
    assert window.table.data[0, 1] == "400"


def test_a_training_is_stopped_and_errors_are_sentences_in_the_widget(window, tmp_path):
    window.run.value, window.steps.value = tmp_path / "run", 10_000
    window.train()
    window.denoise()  # one at a time
    window.stop.native.click()
    window.wait()
    assert window.message.value == "Stopped." and not window.stop.enabled
    window.model.value = str(tmp_path / "nothing")
    window.denoise()
    window.wait()
    assert "nothing" in window.message.value
    window.viewer.layers.clear()
    window.inspect()
    window.wait()
    assert "no image layer" in window.message.value


@pytest.mark.slow
def test_a_model_is_exported_from_the_viewer(window, trained_2d, tmp_path):
    window.model.value = str(trained_2d.run)
    for name, text in (("name", "Cells"), ("description", "Cells."), ("author", "Ada Example")):
        window.card[name].value = text
    window.card["name"].value, window.zip.value = "Simulated cells", tmp_path / "cells.zip"
    window.export()
    window.wait()
    assert "passed" in window.report.value and (tmp_path / "cells.zip").is_file()
