"""What zips are given."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fixtures_model import Trained, random_model

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera, SamplingConfig
from gap_bioimage.errors import ExportError, NotPhotonCountsError
from gap_bioimage.exporting.intake import Intake, brightest_piece, example_values, sparse_counts
from gap_bioimage.exporting.kinds import Sampling, product_of
from gap_bioimage.exporting.weights import torchscript_of
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.inference.sampling import sample
from gap_bioimage.model import Model, load_model

CAMERAS = [Camera(gain=g, offset=o, read_noise=r) for g, o, r in ((2.2, 100.37, 1.4), (0.5, 99.0, 2.0), (1, 100, 1))]


def model_of(camera: dict[str, Any] | None = None, n_frames: int | None = None) -> Model:
    detector = None if camera is None else Detector(Camera(**camera))
    return replace(random_model(), camera=detector, n_frames=n_frames)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: f"gain {camera.gain:g}")
def test_preprocessing_gives_the_counts_of_the_driver(camera: Camera) -> None:
    intake = Intake.of(model_of(camera=camera.model_dump()))
    adu = np.arange(60, 3000, dtype=np.float32)
    scale = intake.scale
    assert scale is not None
    assert {type(value) for value in scale.values()} == {float}
    as_core = adu.astype(np.float64) * scale["gain"] + scale["offset"]
    counts = Detector(camera).counts(adu)
    for computed in (as_core, intake.preprocess(adu)):
        rounded = np.clip(np.rint(computed), 0, None)
        # a value halfway between two counts may go either way in single precision
        assert np.mean(rounded != counts) < 2e-3
        assert np.abs(rounded - counts).max() <= 1
    few = np.arange(200)
    np.testing.assert_allclose(intake.preprocess(intake.values_of(few).astype(np.float32)), few, atol=2e-3)


def test_counts_go_as_they_are() -> None:
    intake = Intake.of(random_model())
    counts = np.arange(5, dtype=np.float32)
    assert (intake.scale, intake.arguments, intake.facts) == (None, {}, {})
    assert intake.preprocess(counts) is intake.counts(counts) is intake.values_of(counts) is counts


def test_another_camera_may_be_given_and_none() -> None:
    model = model_of(camera=CAMERAS[0].model_dump())
    assert Intake.of(model).detector == Detector(CAMERAS[0])
    assert Intake.of(model, CAMERAS[1]).detector == Detector(CAMERAS[1])
    assert Intake.of(model, None) == Intake()
    with pytest.raises(ExportError, match="need no camera"):
        Intake.of(model_of(n_frames=4), CAMERAS[0])


@pytest.mark.parametrize(
    ("values", "n_frames", "error"),
    [(2.5, None, NotPhotonCountsError), (-1, None, NotPhotonCountsError), (0, None, ExportError), (5, 4, ExportError)],
)
def test_a_test_image_in_memory_is_looked_at_too(values: float, n_frames: int | None, error: type[Exception]) -> None:
    model, image = model_of(n_frames=n_frames), xr.DataArray(np.full((32, 32), values), dims=["y", "x"])
    with pytest.raises(error):
        example_values(model, Intake.of(model), image)
    good, held_out = example_values(model, Intake.of(model), image * 0 + 3)
    assert held_out is None and np.array_equal(good, np.full((1, 32, 32), 3))


def test_the_examples_of_a_run_become_what_another_camera_would_have_recorded(trained_2d: Trained) -> None:
    model = load_model(trained_2d.run)
    intake = Intake.of(model, CAMERAS[0])
    for values, name in zip(example_values(model, intake, None), ("example.npy", "held_out.npy"), strict=True):
        assert values is not None
        counts = np.rint(intake.preprocess(values.astype(np.float32)))
        np.testing.assert_array_equal(counts, np.load(trained_2d.run / name))


@pytest.mark.parametrize("kind", ["denoise", "sample", "sample-hook"])
def test_modules_round_subtract_and_compile(kind: Any) -> None:
    camera = CAMERAS[0]
    models = (model_of(camera=camera.model_dump()), random_model())
    product, plain = (product_of(kind, model, Sampling(2, 2, 0)) for model in models)
    counts = np.random.default_rng(0).poisson(6, (1, 1, 24, 24)).astype(np.float32)
    near = counts + np.random.default_rng(1).uniform(-0.4, 0.4, counts.shape).astype(np.float32)
    background = float(Detector(camera).background())
    expected = plain.run(counts)
    channels = [0] if kind == "denoise" else [0, 2, 3]  # mean and samples, not the standard deviation
    expected[:, channels] -= background
    np.testing.assert_allclose(product.run(near), expected, rtol=1e-4, atol=1e-4)
    assert torchscript_of(product.module)
    assert product.facts["camera"]["background"] == background


def test_zips_of_anchored_networks_see_counts_like_photons_and_draw_the_samples_of_the_driver() -> None:
    model = random_model(anchor=True, trained_range_db=(-20.0, 30.0))
    model = replace(model, camera=Detector(CAMERAS[0]))
    adu = np.rint(100 + 2.2 * np.random.default_rng(0).normal(1.0, 1.5, (32, 40))).astype(np.uint16)
    values = Intake.of(model).preprocess(adu[None, None].astype(np.float32))
    denoised = product_of("denoise", model, Sampling(2, 2, 0)).run(values)[0, 0]
    np.testing.assert_allclose(denoised, denoise(model, adu, dims="yx"), rtol=1e-4, atol=1e-4)
    product = product_of("sample", model, Sampling(2, 2, 7))
    settings = SamplingConfig(steps=2)
    drawn = sample(model, adu, 2, seed=7, settings=settings, dims="yx")
    differ = np.abs(product.run(values)[0, 2:] - drawn.values) > 1e-3
    assert differ.mean() < 0.01  # rounding may move one photon in thousands
    assert product.arguments["shift"] == product.facts["camera"]["background"] > 2
    assert torchscript_of(product.module)


def test_the_brightest_piece_is_mirrored_up_where_the_image_is_too_small() -> None:
    image = np.zeros((1, 3, 40), int)
    image[0, 1, 30] = 7
    piece = brightest_piece(image, (8, 10))
    assert piece.shape == (1, 8, 10)
    assert np.argwhere(piece[0])[:, 0].tolist() == [1, 4, 7]  # back and forth


@pytest.mark.parametrize(("n_samples", "expected"), [(1, 100), (4, 25), (50, 20)])
def test_the_test_input_has_few_photons_off_the_middle(n_samples: int, expected: int) -> None:
    image = np.random.default_rng(0).poisson(5.0, (1, 120, 100))
    sparse = sparse_counts(image, n_samples, lambda photons: photons)
    assert sparse.shape == image.shape
    assert sparse.sum() == pytest.approx(expected, abs=4 * expected**0.5)
    assert not sparse[:, 60:].any() and not sparse[:, :, 50:].any()


def test_the_test_input_has_as_many_photons_as_it_takes_to_see_them() -> None:
    image = np.random.default_rng(0).poisson(50.0, (1, 120, 100))
    seen = sparse_counts(image, 4, lambda photons: torch.full_like(photons, float(photons.mean()))).mean()
    assert 0.02 < seen < 0.05
    assert sparse_counts(image, 4, lambda photons: 0 * photons).sum() > 50 * 64  # the brightest region
    volume = np.random.default_rng(0).poisson(5.0, (2, 3, 20, 6))
    assert sparse_counts(volume, 4, lambda photons: photons).shape == volume.shape
    assert not sparse_counts(np.zeros((1, 20, 20), np.int64), 4, lambda photons: photons).any()
