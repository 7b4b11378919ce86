"""The MMSE denoiser conserves photons and keeps the axes, whatever the image and the tiles."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xarray as xr
from fixtures_model import broken_model, random_model

from gap_bioimage.errors import AxesError, BrokenNetworkError, NotPhotonCountsError, TrainedRangeWarning
from gap_bioimage.inference.denoising import denoise, region_uncertainty, split_counts
from gap_bioimage.inference.sampling import sample

if TYPE_CHECKING:
    from gap_bioimage.model import Model

VERBS: list[Any] = [
    denoise,
    lambda *a: sample(*a, 1, seed=0),
    lambda *a: region_uncertainty(*a, a[1], seed=0),
]
LENGTHS = {"t": 3, "c": 2, "z": 5, "y": 23, "x": 18}


def counts(dims: str, photons: float = 3.0, dtype: str = "uint16") -> xr.DataArray:
    shape = [LENGTHS[d] for d in dims]
    rng = np.random.default_rng(0)
    values = rng.poisson(2 * photons * rng.random(shape)).astype(dtype)
    coords = {d: np.arange(LENGTHS[d]) * 0.1 for d in dims if d != "c"}
    if "c" in dims:
        coords["c"] = np.array(["actin", "DNA"])
    return xr.DataArray(values, dims=list(dims), coords=coords, name="photons")


def model_for(dims: str, dim: int) -> Model:
    return random_model(dim=dim, channels=2 if "c" in dims else 1)


@pytest.mark.parametrize(
    ("dims", "dim"),
    [
        *((dims, 2) for dims in ("yx", "zyx", "tyx", "cyx", "tczyx", "yxc", "xyzt")),
        *((dims, 3) for dims in ("zyx", "tzyx", "czyx", "tczyx", "zcyx")),
    ],
)
def test_photons_axes_and_coordinates_are_kept(dims: str, dim: int) -> None:
    image = counts(dims)
    before = image.copy(deep=True)
    rate = denoise(model_for(dims, dim), image, planes="z" in dims)
    assert rate.dims == image.dims
    assert rate.dtype == np.float32
    assert rate.coords.equals(image.coords)
    assert float(rate.min()) >= 0
    together = [axis for axis in "czyx" if axis in dims and (axis != "z" or dim == 3)]
    expected = image.sum(together, dtype=float)
    np.testing.assert_allclose(rate.sum(together, dtype=float), expected, rtol=1e-5)
    xr.testing.assert_identical(image, before)


@pytest.mark.parametrize(("dims", "dim", "axis"), [("tyx", 2, "t"), ("zyx", 2, "z"), ("tzyx", 3, "t")])
def test_items_are_denoised_independently(dims: str, dim: int, axis: str) -> None:
    image, model = counts(dims), model_for(dims, dim)
    together = denoise(model, image, planes=True)
    for i in range(image.sizes[axis]):
        alone = denoise(model, image.isel({axis: i}), planes=True)
        np.testing.assert_allclose(together.isel({axis: i}), alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("dims", "dim", "channels", "message"),
    [
        ("zyx", 2, 1, "planes"),
        ("yx", 3, 1, "expected z"),
        ("tyx", 3, 1, "expected z"),
        ("cyx", 2, 1, "2 channels, the model expects 1"),
        ("cyx", 2, 3, "2 channels, the model expects 3"),
        ("yx", 2, 2, "1 channels, the model expects 2"),
    ],
)
def test_axes_that_do_not_fit_are_refused(dims: str, dim: int, channels: int, message: str) -> None:
    with pytest.raises(AxesError, match=message):
        denoise(random_model(dim=dim, channels=channels), counts(dims))


@pytest.mark.parametrize("tile", [(30, 30), (34, 64), (96, 30), (200, 200)])
def test_tiles_do_not_change_the_result_in_2d(tile: tuple[int, int]) -> None:
    model = random_model(seed=4)
    image = xr.DataArray(np.random.default_rng(2).poisson(2.0, (3, 91, 77)), dims=["t", "y", "x"])
    steps: list[tuple[int, int]] = []
    tiled = denoise(model, image, tile_px=tile, on_tile=lambda *done: steps.append(done))
    whole = denoise(model, image)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-4 * float(whole.max()))
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    assert len(steps) >= 3


@pytest.mark.parametrize("dim", [2, 3])
def test_no_photons_give_zeros(dim: int) -> None:
    image = xr.zeros_like(counts("zyx"))
    what = "the image holds" if dim == 3 else r"plane 0 and \d+ more of \d+ \(counted from 0\) hold"
    with pytest.warns(UserWarning, match=f"{what} no photons"):
        rate = denoise(random_model(dim=dim), image, planes=True)
    np.testing.assert_array_equal(rate, 0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (float("nan"), "the image has 1 pixels that are NaN or infinite"),
        (float("inf"), "the image has 1 pixels that are NaN or infinite"),
        (-2, r"the image has negative values \(minimum -2\)"),
        (0.5, "the image has fractional values"),
    ],
)
@pytest.mark.parametrize("draw", VERBS)
def test_what_is_no_count_is_refused_and_the_network_not_blamed(draw: Any, bad: float, message: str) -> None:
    image = counts("yx", dtype="float32")
    image[2, 3] = bad
    with pytest.raises(NotPhotonCountsError, match=message):
        draw(random_model(), image)


def test_an_array_without_names_of_axes_is_refused_with_what_to_type() -> None:
    plain = counts("zyx").values
    for draw in VERBS:
        with pytest.raises(AxesError, match=r"ndarray, expected an xarray.DataArray .*dims=\['z', 'y', 'x'\]\)"):
            draw(random_model(), plain)
    with pytest.raises(AxesError, match="the image has axes dim_0 dim_1 dim_2, expected y and x"):
        denoise(random_model(), xr.DataArray(plain))
    with pytest.raises(AxesError, match="the label image is of type ndarray"):
        region_uncertainty(random_model(), counts("yx"), counts("yx").values, seed=0)


def test_one_photon_is_spread_not_lost() -> None:
    image = xr.zeros_like(counts("tyx"))
    image[1, 5, 6] = 1
    with pytest.warns(UserWarning, match="frame 0 and 1 more of 3"):
        rate = denoise(random_model(), image)
    np.testing.assert_allclose(rate.sum(["y", "x"], dtype=float), [0, 1, 0], rtol=1e-6)
    assert float(rate[1].min()) > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3)])
def test_images_of_a_few_pixels_run(shape: tuple[int, int]) -> None:
    image = xr.DataArray(np.full(shape, 7, np.uint8), dims=["y", "x"])
    rate = denoise(random_model(depth=3), image)
    assert float(rate.sum()) == pytest.approx(7 * image.size, rel=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int64", "float32", "float64"])
def test_the_type_of_the_counts_does_not_matter(dtype: str) -> None:
    model = random_model()
    expected = denoise(model, counts("yx"))
    np.testing.assert_array_equal(denoise(model, counts("yx", dtype=dtype)), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_network_gives_an_error_and_no_image(value: float) -> None:
    with pytest.raises(BrokenNetworkError, match=r"log-rates that are not finite.*train it again"):
        denoise(broken_model(value), counts("yx"))


def test_the_brightest_frame_of_a_plain_network_is_split_into_parts() -> None:
    movie = xr.DataArray(np.random.default_rng(0).poisson(1, (4, 16, 16)).astype(np.uint16), dims=["t", "y", "x"])
    movie[2] = np.random.default_rng(1).poisson(100, (16, 16))
    model, seen = random_model(trained_range_db=(-40, 10)), []
    model.network.register_forward_hook(lambda _, inputs, __: seen.append(float(inputs[0].mean())))
    steps: list[tuple[int, int]] = []
    with pytest.warns(TrainedRangeWarning, match=r"frame 2 of 4 .* is 1[01] dB brighter .*split into 1[01] parts"):
        rate = denoise(model, movie, on_tile=lambda *done: steps.append(done))
    assert max(seen) < 11
    assert len(seen) == len(steps) == steps[-1][1]
    np.testing.assert_allclose(rate.sum(("y", "x")), movie.sum(("y", "x")), rtol=1e-5)
    with pytest.warns(TrainedRangeWarning):
        np.testing.assert_array_equal(rate, denoise(model, movie))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoise(random_model(trained_range_db=(-40, 21)), movie)
        denoise(random_model(trained_range_db=(-40, 0), anchor=True), movie)


@pytest.mark.parametrize("parts", [1, 3, 200])
def test_parts_are_independent_poisson_counts_alike_in_brightness(parts: int) -> None:
    photons = torch.from_numpy(np.random.default_rng(0).poisson(500, (1, 1, 40, 40)).astype(np.float32))
    found = torch.cat(list(split_counts(photons, parts))).flatten(1)
    assert len(found) == min(parts, 64)
    if parts <= 64:
        assert torch.equal(found.sum(0), photons.flatten())
    np.testing.assert_allclose(found.mean(1), 500 / parts, rtol=0.06)
    if parts > 1:
        np.testing.assert_allclose(found.var(1) / found.mean(1), 1, atol=0.15)
        assert abs(np.corrcoef(found[0], found[1])[0, 1]) < 0.1
