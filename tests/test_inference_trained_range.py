"""Budgets and room within the trained range, per image."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import xarray as xr

from gap_bioimage.errors import TrainedRangeError, TrainedRangeWarning
from gap_bioimage.inference.trained_range import check_headroom, photons_to_stop_at, warn_if_samples_disagree


def names(numbers: Sequence[int]) -> str:
    return f"images {list(numbers)}"


def flat(value: float, size: int = 63, channels: int = 1) -> torch.Tensor:
    return torch.full((1, channels, size, size), value)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("value", "brightest", "gain"), [(1.0, 1000.0, 100.0), (1.0, 8.0, 8.0), (9.0, 8.0, 1.0)])
def test_the_default_is_20_db_more_within_the_range(value: float, brightest: float, gain: float, channels: int) -> None:
    item = flat(value, channels=channels)
    stop = photons_to_stop_at(item, None, brightest)
    assert float(stop) == pytest.approx(gain * float(item.sum()), rel=1e-5)


def test_a_wish_is_followed_within_the_range() -> None:
    for value, stop_db, mean in ((1.0, 10.0, 10.0), (0.0, None, 11.0), (0.0, 0.0, 1.0)):
        assert float(photons_to_stop_at(flat(value), stop_db, 11.0)) == pytest.approx(mean * 63 * 63)
    for stop_db in (10.5, 0.0, -1.0):
        with pytest.raises(TrainedRangeError, match=r"has 0\.0 dB .* up to 10\.4 dB"):
            photons_to_stop_at(flat(1.0), stop_db, 11.0)
    for stop_db, brightest in ((-100.0, 8.0), (None, 1e-9)):  # nothing would ever come
        with pytest.raises(TrainedRangeError, match="63x63 px"):
            photons_to_stop_at(flat(0.0), stop_db, brightest)
    with pytest.raises(TrainedRangeError, match=r"stop_db is 12, but the model was trained for up to 9\.0 dB"):
        photons_to_stop_at(flat(0.0), 12.0, 8.0)


def test_room_is_that_of_the_best_and_the_worst_image() -> None:
    bright, dark = flat(9.0), flat(1.0)
    stops = [photons_to_stop_at(item, None, 10.0) for item in (bright, dark)]
    with pytest.warns(TrainedRangeWarning, match=r"10\.0 dB.*photons grow by 0\.5 dB only.* 10% of the"):
        check_headroom([bright, dark], stops, 10.0, names)
    for others in ([], [flat(0.0)]):
        with pytest.raises(TrainedRangeError):
            check_headroom([bright, *others], [stops[0] * 0 + bright.sum(), stops[1]][: 1 + len(others)], 10.0, names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_headroom([dark, flat(0.0)], [stops[1], stops[1]], 10.0, names)
        check_headroom([flat(0.0)], [stops[1]], 10.0, names)


def images(dims: str = "yx") -> tuple[xr.DataArray, xr.DataArray]:
    """A denoised image, and eight samples whose pixels vary by as much as they hold."""
    rng = np.random.default_rng(0)
    shape = [{"y": 70, "x": 50}.get(dim, 2) for dim in dims]
    mmse = xr.DataArray(1 + rng.random(shape).astype(np.float32), dims=list(dims))
    factors = rng.exponential(size=(8, *shape)).astype(np.float32)
    if "t" in dims:
        mmse = mmse.assign_coords(t=range(2))
    return mmse, xr.DataArray(factors * mmse.values, dims=["sample", *dims], coords=mmse.coords)


@pytest.mark.parametrize("dims", ["yx", "tczyx", "yxc"])
def test_noise_of_single_pixels_is_no_contradiction(dims: str) -> None:
    mmse, samples = images(dims)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_samples_disagree(samples, mmse)
        warn_if_samples_disagree(samples.isel(sample=[0]) * 2, mmse)  # one sample has no spread
        warn_if_samples_disagree(samples * 0, mmse * 0)
        if "t" in dims:  # planes without light were generated
            warn_if_samples_disagree(samples.where(samples.t > 0, 50), mmse.where(mmse.t > 0, 0))


def test_a_mean_that_moved_is_named_with_what_the_spread_explains() -> None:
    mmse, samples = images()
    factor = xr.DataArray(np.repeat([0.8, 1.2], [32, 18]), dims="x")
    with pytest.warns(UserWarning, match=r"denoised image by 2\d% \(their spread explains [1-4]%\).*train longer"):
        warn_if_samples_disagree(samples * factor, mmse)
