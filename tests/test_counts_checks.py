"""Whether an image holds counts and fits a model; how counts are told from other values is tested with inspection."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr

from gap_bioimage.counts import check_dim, check_photon_counts, check_whole_numbers
from gap_bioimage.errors import AxesError, CountsWarning, NotPhotonCountsError


def image(values: object, dims: str = "tczyx") -> xr.DataArray:
    array = np.asarray(values)
    return xr.DataArray(array, dims=list(dims)[-array.ndim :])


def poisson(mean: float = 5.0, shape: tuple[int, ...] = (64, 64)) -> np.ndarray:
    return np.random.default_rng(0).poisson(mean, shape)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int64", "float32"])
def test_whole_numbers_of_any_type_are_counts(dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_photon_counts(image(poisson().astype(dtype)), name="cells.tif")


WRONG = {
    "nan": np.full((9, 9), np.nan),
    "negative": np.eye(9) - 1,
    "fractions": np.eye(9) / 2,
    "signed": np.eye(9, dtype=np.int8) - 1,
    "no pixels": np.zeros((0, 9), np.uint8),
    "text": np.full((9, 9), "a"),
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_what_no_counter_returns_is_refused(values: np.ndarray) -> None:
    for check in (check_whole_numbers, check_photon_counts):
        with pytest.raises(NotPhotonCountsError, match=r"^[^\n]*cells\.tif[^\n]*$"):
            check(image(values), name="cells.tif")


@pytest.mark.parametrize(
    "values",
    [np.zeros((64, 64), int), 3 * poisson(), poisson(40) + 500, np.minimum(poisson(), 5)],
    ids=["empty", "times three", "offset", "saturated"],
)
def test_what_photons_do_not_give_is_refused(values: np.ndarray) -> None:
    with pytest.raises(NotPhotonCountsError):
        check_photon_counts(image(values), name="cells.tif")
    check_whole_numbers(image(values), name="cells.tif")  # where they come from is not asked


def test_more_noise_than_that_of_photons_is_warned_of() -> None:
    rng = np.random.default_rng(0)
    with pytest.warns(CountsWarning):
        check_photon_counts(image(rng.poisson(rng.gamma(3.0, 3.0, (128, 128)))), name="cells.tif")


def test_saturation_can_be_allowed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CountsWarning)
        check_photon_counts(image(np.minimum(poisson(), 12)), name="cells.tif", saturation=1.0)


FITTING = [("yx", 2, False), ("zyx", 2, True), ("tzyx", 3, False)]


@pytest.mark.parametrize(
    ("dims", "dim", "planes", "fits"),
    [*((*case, True) for case in FITTING), ("zyx", 2, False, False), ("tyx", 3, False, False)],
)
def test_dimensions_must_fit_the_model(dims: str, dim: int, planes: bool, fits: bool) -> None:
    photons = image(np.ones((3,) * len(dims), np.uint8), dims)
    if fits:
        check_dim(photons, dim, plane_by_plane=planes)
    else:
        with pytest.raises(AxesError, match="planes=True" if dim == 2 else "time_as_z=True"):
            check_dim(photons, dim, plane_by_plane=planes)
