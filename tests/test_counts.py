"""Thinning, pseudo-PSNR and one-bit slots; whether an image holds counts and fits a model."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_images import image, poisson

from gap_bioimage.counts import check_dim, check_photon_counts, check_whole_numbers, pseudo_psnr_db, thin
from gap_bioimage.errors import AxesError, CountsWarning, NotPhotonCountsError

DTYPES = ["bool", "u1", "<u2", ">u2", "<i4", "i8", "u8", "f2", "f4", "f8"]


@st.composite
def counts(draw: st.DrawFn) -> np.ndarray:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    brightest = draw(st.sampled_from([0, 1, 3, 63, 64, 100, 2000]))
    limit = {"b": 1, "f": 2 ** (np.finfo(dtype).nmant + 1) if dtype.kind == "f" else 0}.get(
        dtype.kind, np.iinfo(dtype).max if dtype.kind in "iu" else 0
    )
    return draw(hnp.arrays(np.int64, shape, elements=st.integers(0, min(brightest, limit)))).astype(dtype)


@settings(max_examples=60)
@given(photons=counts(), fraction=st.floats(0, 1), seed=st.integers(0, 2**32), labelled=st.booleans())
def test_no_photon_is_lost_or_made(photons: np.ndarray, fraction: float, seed: int, labelled: bool) -> None:
    before = photons.copy()
    image = xr.DataArray(photons) if labelled else photons
    kept, rest = thin(image, fraction, seed)
    np.testing.assert_array_equal(photons, before)
    for part in (kept, rest):
        assert part.shape == photons.shape
        assert part.dtype == photons.dtype
        assert np.all((part >= 0) & (part <= photons))
    np.testing.assert_array_equal(
        np.asarray(kept).astype(np.int64) + np.asarray(rest).astype(np.int64), photons.astype(np.int64)
    )


@pytest.mark.parametrize("mean", [0.05, 2.0, 300.0])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_halves_of_poisson_data_are_independent_poisson(mean: float, fraction: float) -> None:
    size = 300_000
    photons = np.random.default_rng(5).poisson(mean, size)
    kept, rest = thin(photons, fraction, 6)
    assert abs(np.corrcoef(kept, rest)[0, 1]) < 4.5 / math.sqrt(size)
    for part, share in ((kept, fraction), (rest, 1 - fraction)):
        expected = share * mean
        assert abs(part.mean() - expected) < 4.5 * math.sqrt(expected / size)
        assert abs(part.var() - expected) < 4.5 * math.sqrt((expected + 2 * expected**2) / size)


def test_same_seed_same_result_and_another_seed_another_and_labels_stay() -> None:
    photons = np.random.default_rng(7).poisson(4, (50, 40)).astype(np.uint16)
    labelled = xr.DataArray(photons, dims=("y", "x"), coords={"y": np.arange(50)}, name="cells", attrs={"a": 1})
    first, _ = thin(photons, 0.5, 8)
    np.testing.assert_array_equal(first, thin(photons.astype(np.float64), 0.5, 8)[0])
    xr.testing.assert_identical(thin(labelled, 0.5, np.random.default_rng(8))[0], labelled.copy(data=first))
    assert not np.array_equal(first, thin(photons, 0.5, 9)[0])
    assert sum(map(int, thin(np.array(7, np.uint16), 0.5, 0))) == 7


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([3, -1], np.int16), "-1"),
        (np.array([3.0, 0.5]), "fractions"),
        (np.array([3.0, np.nan]), "finite"),
        (np.array([3.0, np.inf], np.float32), "finite"),
        (np.array([1e300]), "fractions|finite|large"),
        # these types skip whole numbers from here on
        (np.array([60000.0], np.float16), "60000"),
        (np.array([2.0**26], np.float32), "67108864"),
        (np.ma.masked_equal([3, 4], 4), "masked"),
        (np.array([2**63], np.uint64), "9.22e"),
        (np.array(["3"]), "type"),
        (np.array([3 + 1j]), "type"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_counts_is_refused(values: np.ndarray, told: str) -> None:
    with pytest.raises(NotPhotonCountsError, match=told):
        thin(values, 0.5, 0)
    with pytest.raises(NotPhotonCountsError):
        thin(xr.DataArray(values), 0.5, 0)
    with pytest.raises(AxesError):
        thin(xr.Dataset({"photons": ("x", values)}), 0.5, 0)  # type: ignore[type-var]
    for fraction in (-0.01, 1.01, math.nan):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            thin(values, fraction, 0)


@pytest.mark.parametrize(
    ("values", "db"),
    [([1], 0.0), ([[10, 10]], 10.0), ([0, 200], 20.0), ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], -10.0), ([0, 0], -math.inf)],
)
def test_pseudo_psnr(values: list[int], db: float) -> None:
    assert pseudo_psnr_db(np.array(values, "u1")) == db
    assert pseudo_psnr_db(xr.DataArray(np.array(values, "f4"))) == db
    with pytest.raises(ValueError, match="without pixels"):
        pseudo_psnr_db(np.zeros((0, 3)))


# whether they are whole numbers, and whether they are photon counts: None where that is doubtful
KINDS: dict[str, tuple[np.ndarray, bool, bool | None]] = {
    **{dtype: (poisson().astype(dtype), True, True) for dtype in ("uint8", ">u2", "int64", "float32")},
    "clumped": (poisson(np.random.default_rng(0).gamma(3.0, 3.0, (128, 128)), (128, 128)), True, None),
    "empty": (np.zeros((64, 64), int), True, False),
    "times three": (3 * poisson(), True, False),
    "offset": (poisson(40) + 500, True, False),
    "saturated": (np.minimum(poisson(), 5), True, False),
    "nan": (np.full((9, 9), np.nan), False, False),
    "negative": (np.eye(9) - 1, False, False),
    "fractions": (np.eye(9) / 2, False, False),
    "signed": (np.eye(9, dtype=np.int8) - 1, False, False),
    "too large": (np.full((9, 9), 1e30), False, False),
    "no pixels": (np.zeros((0, 9), np.uint8), False, False),
    "text": (np.full((9, 9), "a"), False, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_what_is_no_count_is_refused_and_what_may_be_none_warned_of(kind: str) -> None:
    values, whole, counted = KINDS[kind]
    with nullcontext() if whole else pytest.raises(NotPhotonCountsError, match=r"^[^\n]*cells\.tif[^\n]*$"):
        check_whole_numbers(image(values), name="cells.tif")
    told = pytest.warns(CountsWarning) if counted is None else pytest.raises(NotPhotonCountsError, match=r"cells\.tif")
    with nullcontext() if counted else told:
        check_photon_counts(image(values), name="cells.tif")


def test_saturation_can_be_allowed() -> None:
    check_photon_counts(image(np.minimum(poisson(), 12)), name="cells.tif", saturation=1.0)


def test_dimensions_must_fit_the_model() -> None:
    for dims, dim, planes in (("yx", 2, False), ("zyx", 2, True), ("tzyx", 3, False)):
        check_dim(image(np.ones((3,) * len(dims)), dims), dim, plane_by_plane=planes)
    for dims, dim, told in (("zyx", 2, "planes=True"), ("tyx", 3, "time_as_z=True")):
        with pytest.raises(AxesError, match=told):
            check_dim(image(np.ones((3, 3, 3)), dims), dim, plane_by_plane=False)
