"""What stands between images and counts."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from fixtures_model import random_model

from gap_bioimage.camera.camera import Detector, PixelMaps, write_camera
from gap_bioimage.config import Camera
from gap_bioimage.errors import AxesError, ConfigError, CountsWarning, HotPixelWarning, NotPhotonCountsError
from gap_bioimage.inference.denoising import denoise, region_uncertainty
from gap_bioimage.inference.preparation import Layout, prepare
from gap_bioimage.inference.sampling import sample
from gap_bioimage.model import Model

CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5)


def raw(*shape: int, dims: str = "tyx", signal: float = 8.0) -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = np.rint(100 + 2 * (rng.poisson(signal, shape) + rng.normal(0, 1.5, shape)))
    return xr.DataArray(values.astype(np.uint16), dims=list(dims[-len(shape) :]))


def camera_model(**config: int) -> Model:
    model = random_model(**config)
    return replace(model, camera=Detector(CAMERA))


def one_bit_model(ceiling: int) -> Model:
    return replace(random_model(), n_frames=ceiling)


def test_a_model_remembers_its_camera(tmp_path: Path) -> None:
    image = raw(16, 20)
    expected = denoise(random_model(), image, camera=CAMERA)
    np.testing.assert_array_equal(denoise(camera_model(), image), expected)
    write_camera(tmp_path / "camera.yaml", Detector(CAMERA))
    for camera in (Detector(CAMERA), tmp_path / "camera.yaml", str(tmp_path / "camera.yaml")):
        np.testing.assert_array_equal(denoise(random_model(), image, camera=camera), expected)
    counts = image.copy(data=Detector(CAMERA).counts(image.values))
    as_counts = denoise(camera_model(), counts, camera=None)
    np.testing.assert_allclose(expected, as_counts - Detector(CAMERA).background(), rtol=1e-5, atol=1e-5)


def test_an_anchored_network_finds_dark_camera_images_as_dark_as_they_are() -> None:
    image, truth = raw(200, 200, dims="yx", signal=0.3), 0.3
    found = denoise(camera_model(anchor=True), image).mean()
    assert float(found) == pytest.approx(truth, abs=0.03)
    labels = image.copy(data=np.pad(np.ones((190, 190), np.uint8), 5))
    (region,) = region_uncertainty(camera_model(anchor=True), image, labels, seed=0)
    assert region.photons == pytest.approx(190**2 * truth, rel=0.1)
    assert region.counted == pytest.approx(190**2 * truth, rel=0.1)


def test_with_a_generator_camera_values_become_counts_as_in_training() -> None:
    image = raw(30, 40, dims="yx")
    in_use, spread = (
        prepare(camera_model(), image, Layout(), rng=rng).items[0] for rng in (None, np.random.default_rng(3))
    )
    np.testing.assert_array_equal(in_use[0], Detector(CAMERA).counts(image.values))
    np.testing.assert_array_equal(spread[0], Detector(CAMERA).counts(image.values, np.random.default_rng(3)))
    assert (in_use != spread).any()


def test_each_pixel_gives_back_its_own_background() -> None:
    noise = np.full((32, 32), 1.0, np.float32)
    noise[:, 16:] = 4.0
    detector = Detector(CAMERA, PixelMaps(np.full((32, 32), 100, np.float32), noise))
    prepared = prepare(random_model(), raw(32, 32), Layout(camera=detector))
    zero = prepared.photons(np.zeros((1, 1, 32, 32), np.float32))
    left, right = float(-zero[0, 0]), float(-zero[0, -1])
    assert right - left == pytest.approx(15, abs=0.1)
    samples = prepared.photons(np.zeros((2, 1, 1, 32, 32), np.float32), 2)
    np.testing.assert_array_equal(samples.isel(sample=1), zero)


def test_a_movie_may_be_a_stack() -> None:
    movie = raw(6, 16, 20).assign_coords(t=("t", np.arange(6) * 0.5))
    model = camera_model(dim=3)
    found = denoise(model, movie, time_as_z=True)
    assert found.dims == ("t", "y", "x")
    np.testing.assert_array_equal(found.coords["t"], movie.coords["t"])
    np.testing.assert_array_equal(found.values, denoise(model, movie.rename(t="z")).values)
    assert sample(model, movie, 2, seed=0, time_as_z=True).dims == ("sample", "t", "y", "x")
    with pytest.raises(AxesError, match="expected a movie without z"):
        denoise(model, raw(6, 16, 20, dims="zyx"), time_as_z=True)
    with pytest.raises(AxesError, match="expected z"):
        denoise(model, movie)


@pytest.mark.parametrize("dims", ["cyx", "tcyx", "yxc"])
def test_channels_may_be_denoised_one_by_one(dims: str) -> None:
    sizes = {"t": 2, "c": 3, "y": 12, "x": 16}
    values = np.random.default_rng(0).poisson(3, [sizes[d] for d in dims]).astype(np.uint16)
    counts, model = xr.DataArray(values, dims=list(dims), coords={"c": ["red", "green", "blue"]}), random_model()
    found = denoise(model, counts, separate_channels=True)
    assert found.dims == counts.dims
    assert found.coords["c"].values.tolist() == ["red", "green", "blue"]
    for channel in range(3):
        alone = denoise(model, counts.isel(c=channel))
        np.testing.assert_array_equal(found.isel(c=channel).values, alone.values)
    with pytest.raises(AxesError, match="separate_channels"):
        denoise(model, counts)
    drawn = sample(model, counts, 2, seed=0, separate_channels=True)
    assert set(drawn.dims) == {"sample", *counts.dims}


def test_detections_become_photons() -> None:
    rng = np.random.default_rng(0)
    photons = np.linspace(0.2, 2.0, 40)
    bits = rng.binomial(8, 1 - np.exp(-np.tile(photons, (30, 1)))).astype(np.uint8)
    prepared = prepare(one_bit_model(8), xr.DataArray(bits, dims=["y", "x"]), Layout())
    exact = np.tile(8 * (1 - np.exp(-photons)), (30, 1)).astype(np.float32)[None, None]
    np.testing.assert_allclose(prepared.photons(exact)[0], 8 * photons, rtol=1e-4)
    assert np.isfinite(prepared.photons(exact * 0 + 9)).all()
    assert (denoise(one_bit_model(8), prepared.image) >= denoise(random_model(), prepared.image) - 1e-4).all()


def test_sums_of_other_frames_are_told_from_those_of_the_training() -> None:
    model = one_bit_model(4)
    image = xr.DataArray(np.full((8, 8), 5, np.uint8), dims=["y", "x"])
    with pytest.raises(NotPhotonCountsError, match="sums of 4 one-bit frames"):
        prepare(model, image, Layout())
    with pytest.warns(CountsWarning, match="holds 0 and 1 only"):
        prepare(model, image // 5, Layout())
    with pytest.warns(CountsWarning, match="nearly every frame"):
        prepare(model, image - 1, Layout())
    with pytest.raises(ConfigError, match="need no camera"):
        prepare(model, raw(16, 16), Layout(camera=CAMERA))


def test_regions_leave_the_background_out() -> None:
    image = raw(48, 48)
    labels = xr.DataArray(np.zeros((48, 48), np.uint8), dims=["y", "x"])
    labels[8:40, 8:40] = 1
    (region,) = region_uncertainty(camera_model(), image, labels, seed=0)
    electrons = (float(image[8:40, 8:40].mean()) - 100) / 2 * 1024
    assert region.counted == pytest.approx(electrons, rel=0.02)
    assert region.photons == pytest.approx(electrons, rel=0.1)


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize(("pixels", "value"), [([(20, 30)], 65535), ([(8 * i + 3, 5) for i in range(7)], 400)])
def test_hot_pixels_are_named_and_scale_nothing(pixels: list[tuple[int, int]], value: int, anchor: bool) -> None:
    plain = xr.DataArray(np.random.default_rng(1).poisson(5, (64, 64)).astype(np.uint16), dims=["y", "x"])
    hot = plain.copy(deep=True)
    for y, x in pixels:
        hot[y, x] = value
    model = random_model(anchor=anchor)
    expected = denoise(model, plain)
    with pytest.warns(HotPixelWarning, match=rf"{len(pixels)} hot pixel.* {value} at \(y {pixels[0][0]}, x"):
        found = denoise(model, hot)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.02)
    assert float(found.max()) < 2 * float(expected.max())
    with pytest.warns(HotPixelWarning):
        drawn = sample(model, hot, 1, seed=0)
    assert float(drawn.mean()) == pytest.approx(float(expected.mean()), rel=0.1)
    np.testing.assert_array_equal(hot[pixels[0]], value)  # the image of the caller is left as it was


def test_hot_pixels_of_every_plane_are_replaced_and_named_once() -> None:
    movie = xr.DataArray(np.ones((4, 9, 9), np.uint16), dims=["t", "y", "x"])
    movie[1:, 4, 4] = 900
    with pytest.warns(HotPixelWarning, match=r"1 hot pixel.* dark: 900 at \(y 4, x 4\); "):
        prepared = prepare(random_model(), movie, Layout())
    np.testing.assert_array_equal(prepared.items, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beads = xr.zeros_like(movie[0])
        beads[3:6, 3:6] = [[20, 200, 20], [200, 900, 200], [20, 200, 20]]  # sharp, but through optics
        prepare(random_model(), beads, Layout())
