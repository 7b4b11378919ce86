"""The MMSE denoiser keeps photons and axes, whatever the tiles; uncertainty of regions against exact posteriors."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fixtures_model import broken_model, random_model
from torch import Tensor

from gap_bioimage.errors import AxesError, BrokenNetworkError, ConfigError, NotPhotonCountsError, TrainedRangeWarning
from gap_bioimage.inference.denoising import denoise, region_uncertainty, region_variance, split_counts
from gap_bioimage.inference.sampling import sample
from gap_bioimage.model import Model
from gap_bioimage.network import rate_from_log_rate

VERBS: list[Any] = [denoise, lambda *a: sample(*a, 1, seed=0), lambda *a: region_uncertainty(*a, a[1], seed=0)]
LENGTHS = {"t": 3, "c": 2, "z": 5, "y": 23, "x": 18}


def counts(dims: str = "yx", photons: float = 3.0, dtype: str = "uint16") -> xr.DataArray:
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
    [*((dims, 2) for dims in ("yx", "tczyx", "yxc", "xyzt")), *((dims, 3) for dims in ("tzyx", "zcyx"))],
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
    if "t" in dims:  # frames are denoised one by one
        alone = denoise(model_for(dims, dim), image.isel(t=1), planes="z" in dims)
        np.testing.assert_allclose(rate.isel(t=1), alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("dims", "dim", "channels"),
    [("zyx", 2, 1), ("yx", 3, 1), ("tyx", 3, 1), ("cyx", 2, 1), ("cyx", 2, 3), ("yx", 2, 2)],
)
def test_axes_that_do_not_fit_are_refused(dims: str, dim: int, channels: int) -> None:
    for draw in VERBS:
        with pytest.raises(AxesError):
            draw(random_model(dim=dim, channels=channels), counts(dims))


@pytest.mark.parametrize("dim", [2, 3])
def test_no_photons_give_zeros(dim: int) -> None:
    image = xr.zeros_like(counts("zyx"))
    with pytest.warns(UserWarning, match="the image" if dim == 3 else r"5 of 5 images \(the first at z 0,"):
        rate = denoise(random_model(dim=dim), image, planes=True)
    np.testing.assert_array_equal(rate, 0)


@pytest.mark.parametrize("bad", [float("nan"), -2, 0.5])
@pytest.mark.parametrize("draw", VERBS)
def test_what_is_no_count_is_refused_and_the_network_not_blamed(draw: Any, bad: float) -> None:
    image = counts("yx", dtype="float32")
    image[2, 3] = bad
    with pytest.raises(NotPhotonCountsError):
        draw(random_model(), image)


def test_an_array_without_names_of_axes_is_refused_with_what_to_type() -> None:
    for draw in VERBS:
        with pytest.raises(AxesError, match="dims='zyx'"):
            draw(random_model(), counts("zyx").values)
    with pytest.raises(AxesError, match="label image"):
        region_uncertainty(random_model(), counts("yx"), counts("yx").values, seed=0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_images_of_a_few_pixels_run(shape: tuple[int, int]) -> None:
    image = xr.DataArray(np.full(shape, 7, np.uint8), dims=["y", "x"])
    rate = denoise(random_model(depth=3), image)
    assert float(rate.sum()) == pytest.approx(7 * image.size, rel=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float64"])
def test_neither_the_type_of_the_counts_matters_nor_where_they_are(dtype: str) -> None:
    model, image = random_model(), counts("yx", dtype=dtype)
    expected = denoise(model, counts("yx"))
    for same in (image, image.chunk(y=8)):
        np.testing.assert_array_equal(denoise(model, same), expected)


def test_a_broken_network_gives_an_error_and_no_image() -> None:
    with pytest.raises(BrokenNetworkError, match=r"log-rates that are not finite.*train it again"):
        denoise(broken_model(), counts("yx"))


def test_the_brightest_frame_of_a_plain_network_is_split_into_parts() -> None:
    movie = xr.DataArray(np.random.default_rng(0).poisson(1, (4, 16, 16)).astype(np.uint16), dims=["t", "y", "x"])
    movie[2] = np.random.default_rng(1).poisson(100, (16, 16))
    model, seen = random_model(trained_range_db=(-40, 10)), []
    model.network.register_forward_hook(lambda _, inputs, __: seen.append(float(inputs[0].mean())))
    steps: list[tuple[int, int]] = []
    with pytest.warns(TrainedRangeWarning, match=r"1 of 4 .* t 2, .*split into 1[01] parts"):
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


def dirichlet(alpha: float, counts: Tensor, width: int) -> tuple[Any, float]:
    """Independent pixels but for the total: estimate of the variance in a corner, and the exact one."""
    mask = torch.zeros(counts.shape, dtype=torch.bool)
    mask[..., :width, :width] = True
    weights = (counts + alpha).double()
    total = float(weights.sum())
    share = float(weights[mask].sum()) / total

    def expect(x: Tensor) -> Tensor:
        return rate_from_log_rate(torch.log(x + alpha), counts)

    exact = float(counts.sum()) ** 2 * share * (1 - share) / (total + 1)
    return partial(region_variance, expect, counts, expect(counts), mask), exact


@pytest.mark.parametrize(("alpha", "width"), [(0.3, 20), (5.0, 4)])
def test_dirichlet_pixels(alpha: float, width: int) -> None:
    counts = torch.from_numpy(np.random.default_rng(0).poisson(4.0, (1, 1, 40, 40)).astype(np.float32))
    variance, exact = dirichlet(alpha, counts, width)
    found = [variance(seed=seed, passes=10) for seed in range(8)]
    # the mean of 80 runs, against the exact variance, within 3 of its own standard errors and 3 % of nonlinearity
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 3 * error + 0.03 * exact
    assert error < 0.15 * exact


def test_regions_of_an_image() -> None:
    model = random_model()
    counts = xr.DataArray(np.random.default_rng(0).poisson(3.0, (30, 26)).astype("uint16"), dims=["y", "x"])
    labels = xr.zeros_like(counts)
    labels[2:12, 3:9] = 5
    labels[20:25, 20:25] = 2
    done: list[tuple[int, int]] = []
    found = region_uncertainty(model, counts, labels, seed=0, on_region=lambda *d: done.append(d))
    assert [(r.label, r.pixels, r.counted) for r in found] == [
        (2, 25, int(counts[20:25, 20:25].sum())),
        (5, 60, int(counts[2:12, 3:9].sum())),
    ]
    assert done == [(1, 2), (2, 2)]
    assert all(r.photons > 0 and (r.std is None or r.std > 0) for r in found)  # a random network may tell nothing
    assert found == region_uncertainty(model, counts, labels, seed=np.uint8(0))
    assert found == region_uncertainty(model, counts, labels.T, seed=0)  # axes count, and not their order
    turned = region_uncertainty(model, counts.values.T, labels.values.T, seed=0, dims="xy")
    assert [(r.label, r.counted) for r in turned] == [(r.label, r.counted) for r in found]
    assert [*found[0].to_dict()] == ["label", "pixels", "counted", "photons", "std"]


def test_regions_of_images_beyond_the_training_of_a_plain_network_are_warned_of() -> None:
    counts = xr.DataArray(np.random.default_rng(0).poisson(40.0, (24, 24)), dims=["y", "x"])
    labels = xr.zeros_like(counts)
    labels[4:20, 4:20] = 1
    with pytest.warns(TrainedRangeWarning):
        region_uncertainty(random_model(trained_range_db=(-40.0, 10.0)), counts, labels, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainedRangeWarning)
        region_uncertainty(random_model(trained_range_db=(-40.0, 10.0), anchor=True), counts, labels, seed=0)


@pytest.mark.parametrize(
    "values", [np.eye(5, 12, dtype=int), np.full((12, 12), 0.5), np.eye(12) - 1, np.zeros((12, 12)), np.ones((12, 12))]
)
def test_what_is_no_label_image_is_refused(values: np.ndarray) -> None:
    counts = xr.DataArray(np.ones((12, 12), np.uint16), dims=["y", "x"])
    values = values if values.flat[0] == 0.5 else values.astype(int)
    with pytest.raises(AxesError):
        region_uncertainty(random_model(), counts, xr.DataArray(values, dims=["y", "x"]), seed=0)
    with pytest.raises(AxesError, match="one frame"):
        region_uncertainty(random_model(), counts.expand_dims(t=2), counts, seed=0)
    with pytest.raises(ConfigError, match="passes"):
        region_uncertainty(random_model(), counts, counts, seed=0, passes=0)


def test_dim_regions_take_more_passes() -> None:
    counts = torch.zeros(1, 1, 20, 20)
    counts[..., ::3, ::3] = 1
    variance, exact = dirichlet(0.5, counts, 6)
    found = [variance(seed=seed) for seed in range(30)]
    assert min(found) > 0
    assert np.mean(found) == pytest.approx(exact, rel=0.2)


def test_a_region_whose_photons_the_network_denies_is_warned_of() -> None:
    flat = random_model()
    for parameter in flat.network.parameters():
        parameter.data.zero_()
    values = np.random.default_rng(0).poisson(4.0, (40, 40)).astype("uint16")
    labels = xr.DataArray(np.repeat([1, 2], 20)[:, None] * np.ones((40, 40), int), dims=["y", "x"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        region_uncertainty(flat, labels.copy(data=values), labels, seed=0)
    (nothing, _) = region_uncertainty(flat, labels.copy(data=0 * values), labels, seed=0)
    assert (nothing.photons, nothing.std) == (0, None)
    values[:20] *= 2
    with pytest.warns(UserWarning, match="region [12]: the network expects .* were counted") as found:
        region_uncertainty(flat, labels.copy(data=values), labels, seed=0)
    assert len(found) == 2
