"""Samples and generated images: reproducible, independent of batches and tiles, within the trained range."""

import itertools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from fixtures_model import random_model
from test_inference_denoising import counts

from gap_bioimage.config import SamplingConfig
from gap_bioimage.errors import ConfigError, NetworkWarning, TrainedRangeError, TrainedRangeWarning
from gap_bioimage.inference.sampling import Progress, generate, sample
from gap_bioimage.model import History

FEW = SamplingConfig(steps=3)


@pytest.mark.parametrize(
    ("dims", "dim"), [*((dims, 2) for dims in ("zyx", "tcyx", "yxc")), *((dims, 3) for dims in ("tzyx", "czyx"))]
)
def test_samples_keep_photons_axes_and_coordinates(dims: str, dim: int) -> None:
    image = counts(dims)
    model = random_model(dim=dim, channels=2 if "c" in dims else 1)
    samples = sample(model, image, 3, seed=0, settings=FEW, planes="z" in dims)
    assert samples.dims == ("sample", *image.dims)
    assert samples.dtype == np.float32
    for axis in image.coords:
        assert samples.coords[axis].equals(image.coords[axis])
    together = [axis for axis in "czyx" if axis in dims and (axis != "z" or dim == 3)]
    expected = image.sum(together, dtype=float).broadcast_like(samples.sum(together))
    # the restored variance is bounded alike on both sides, pixel by pixel: totals move a little
    np.testing.assert_allclose(samples.sum(together, dtype=float), expected, rtol=0.02)
    assert float(samples.min()) >= 0
    assert float(samples.std("sample").min()) > 0


def test_samples_in_bfloat16_are_about_those_in_float32() -> None:
    model, image = random_model(anchor=True, anchor_version=4), counts(photons=20.0)
    exact, rough, again = (sample(model, image, 4, seed=1, precision=kind) for kind in ("auto", "bf16", "bf16"))
    xr.testing.assert_identical(rough, again)
    assert not np.array_equal(rough, exact)
    spread = exact.std("sample", ddof=1)
    assert float(abs(rough.mean("sample") - exact.mean("sample")).mean()) < 0.5 * float(spread.mean())
    np.testing.assert_allclose(rough.std("sample", ddof=1).mean(), spread.mean(), rtol=0.1)


@pytest.mark.parametrize("schedule", ["sqrt", "geometric"])
def test_a_sample_is_a_function_of_seed_number_and_counts(schedule: Any) -> None:
    model, settings = random_model(), SamplingConfig(schedule=schedule, steps=4, beta=0.5)
    image = counts("tyx")
    drawn = sample(model, image, 5, seed=7, settings=settings)
    xr.testing.assert_identical(drawn, sample(model, image, np.int64(5), seed=np.uint8(7), settings=settings))
    np.testing.assert_array_equal(drawn, sample(model, image, 5, seed=7, settings=settings, batch=3))
    if schedule == "geometric":
        totals = drawn.sum(("y", "x"), dtype=float)
        np.testing.assert_allclose(totals, image.sum(("y", "x"), dtype=float).broadcast_like(totals), rtol=1e-5)
    fewer = sample(model, image.isel(t=[1]), 2, seed=7, settings=settings)
    np.testing.assert_array_equal(drawn.isel(sample=slice(2), t=[1]), fewer)
    other = sample(model, image, 5, seed=8, settings=settings)
    everything = [*drawn.values.reshape(15, -1), *other.values.reshape(15, -1)]
    assert all(not np.allclose(a, b, rtol=1e-3) for a, b in itertools.combinations(everything, 2))


def test_tiles_do_not_show() -> None:
    model = random_model()
    image = xr.DataArray(np.random.default_rng(0).poisson(1.0, (150, 130)).astype("uint16"), dims=["y", "x"])
    whole = sample(model, image, 2, seed=1, settings=FEW)
    tiled = sample(model, image, 2, seed=1, settings=FEW, tile_px=(64, 48))
    np.testing.assert_allclose(tiled, whole, rtol=2e-2, atol=2e-2)
    assert np.mean(np.isclose(tiled, whole, rtol=1e-4)) > 0.99


def test_progress_counts_steps_photons_and_decibels() -> None:
    seen: list[Progress] = []
    image = counts("tyx")
    model = random_model(trained_range_db=(-40, 30))
    sample(model, image, 2, seed=0, settings=SamplingConfig(steps=5), on_step=seen.append)
    assert [(p.item, p.samples.start, p.step) for p in seen] == [*itertools.product(range(3), range(2), range(1, 6))]
    assert [(p.done, p.total) for p in seen] == [(n, 30) for n in range(1, 31)]
    last = seen[4]
    assert last.photons == pytest.approx(float(last.counts.mean()))
    assert last.db == pytest.approx(10 * np.log10(last.photons))
    # 20 dB above the frame
    assert last.photons == pytest.approx(100 * float(image.isel(t=0).mean()), rel=0.01)


def test_interrupted_work_continues_to_the_same_end(tmp_path: Path) -> None:
    model, image, folder = random_model(), counts("tyx"), tmp_path / "unfinished"
    expected = sample(model, image, 3, seed=4, settings=FEW)
    steps = 0

    def interrupt(progress: Progress) -> None:
        nonlocal steps
        steps += 1
        if steps == 11:  # within the first sample of the second frame
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, image, 3, seed=4, settings=FEW, unfinished=str(folder), on_step=interrupt)
    done: list[Progress] = []
    got = sample(model, image, 3, seed=4, settings=FEW, unfinished=folder, on_step=done.append)
    np.testing.assert_array_equal(got, expected)
    assert [(p.item, p.samples.start) for p in done] == [(i, n) for i in (1, 2) for n in range(3) for _ in range(3)]
    assert not folder.exists()


def test_models_that_learned_to_denoise_a_camera_s_images_warn_of_their_samples() -> None:
    told = replace(random_model(), history=History(thinning={"read_noise": True}))
    with pytest.warns(NetworkWarning, match='purpose="sample"'):
        sample(told, counts(), 1, seed=0, settings=FEW)


def test_an_empty_frame_is_generated_beside_others() -> None:
    model, image = random_model(trained_range_db=(-40, 12)), counts("tyx")[:2]
    image[1] = 0
    settings = SamplingConfig(steps=3, beta=0.5)
    seen: list[Progress] = []
    with pytest.warns(UserWarning, match=r"1 of 2 .* t 1, .*generated instead"):
        samples = sample(model, image, 2, seed=3, settings=settings, on_step=seen.append)
    np.testing.assert_array_equal(samples.isel(t=0), sample(model, image.isel(t=0), 2, seed=3, settings=settings))
    np.testing.assert_array_equal(samples.isel(t=1), generate(model, (23, 18), 2, seed=3, settings=settings))
    assert [p.done for p in seen[:6]] == [1, 2, 3, 4, 5, 6]
    assert all(a.done <= b.done for a, b in itertools.pairwise(seen))
    assert seen[-1].done <= seen[-1].total


@pytest.mark.parametrize(("dim", "shape", "channels"), [(2, (17, 20), 1), (3, (5, 12, 9), 1), (2, (12, 12), 2)])
def test_generation_stops_at_the_trained_brightness(dim: int, shape: tuple[int, ...], channels: int) -> None:
    model = random_model(trained_range_db=(-40, 6), dim=dim, channels=channels)
    states: list[Progress] = []
    images = generate(model, shape, seed=1, on_step=states.append)
    assert images.shape == (1, *((channels,) if channels > 1 else ()), *shape)
    assert np.isfinite(images).all()
    photons = [p.photons for p in states]
    assert all(a <= b for a, b in itertools.pairwise(photons))
    # images of one window: their mean is that of the brightest window, but for an even size
    assert 0.6 * 10**0.6 < photons[-1] < 1.1 * 10**0.6
    np.testing.assert_allclose(float(images.mean()), photons[-1], rtol=1e-4)


@pytest.mark.parametrize(("darkest", "warned"), [(-20, 1), (-40, 0)])
def test_generation_with_a_model_that_never_saw_the_dark_warns(darkest: float, warned: int) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        generate(random_model(trained_range_db=(darkest, 3)), (8, 8), seed=1)
    assert [one.category for one in told] == [TrainedRangeWarning] * warned


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_samples", [0, 2.5]),
        ("seed", ["a", -1, 2**63]),
        ("batch", [0]),
        ("settings", [{"steps": 8}]),
        ("camera", [{"gain": 2}]),
        ("model", ["run"]),
        ("device", ["abacus"]),
        ("shape", [(8, 8, 8), (0, 8), 8]),
    ],
)
def test_impossible_arguments_are_refused(name: str, values: list[Any]) -> None:
    verb, image = (generate, {"shape": (8, 8)}) if name == "shape" else (sample, {"photons": counts()})
    for value in values:
        with pytest.raises(ConfigError):
            verb(**{"model": random_model(), **image, "n_samples": 2, "seed": 0, name: value})


def test_anchored_networks_gain_10_db_wherever_they_were_trained() -> None:
    model, image = random_model(trained_range_db=(-40, -10), anchor=True), counts(photons=2)
    seen: list[Progress] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = sample(model, image, 2, seed=0, settings=SamplingConfig(steps=6), on_step=seen.append)
    # more photons, but for what the brightest window stops
    assert 5 < seen[-1].photons / float(image.mean()) < 12
    assert np.isfinite(drawn).all()
    with pytest.raises(TrainedRangeError):
        sample(model, image, 1, seed=0, settings=SamplingConfig(stop_db=25))
