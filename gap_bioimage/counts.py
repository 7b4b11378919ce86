"""Photon counts: thinning into independent parts, and checks whether an image holds counts and fits a model.

If x ~ Poisson(s), then Binomial(x, p) and the remainder are independent Poisson variables with means p s and (1 - p) s.
So noisy counts alone give the input and the target of training (Krull et al., arXiv 2307.06607, section 3.2).
"""

import math
import warnings
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from gap_bioimage.errors import AxesError, CountsWarning, NotPhotonCountsError

Counts = NDArray[np.integer]
Image = TypeVar("Image", xr.DataArray, Counts)


def pseudo_psnr_db(photons: xr.DataArray | NDArray[np.generic]) -> float:
    """Return 10 log10 of the mean photons per pixel, in dB; -inf for an empty image.

    Raises
    ------
    ValueError
        If there are no pixels.
    """
    if photons.size == 0:
        raise ValueError("an image without pixels has no pseudo-PSNR")
    mean = float(photons.mean(dtype=np.float64))
    return 10.0 * math.log10(mean) if mean > 0 else -math.inf


def thin(photons: Image, fraction: float, seed: int | np.random.Generator) -> tuple[Image, Image]:
    """Split counts at random: each photon goes into the first part with probability ``fraction``.

    Parameters
    ----------
    photons
        Counts of any shape; whole numbers of an integer or float dtype, or booleans.
    fraction
        Expected share of the first part, 0 to 1.
    seed
        A seed or a generator.

    Returns
    -------
    kept, rest
        Counts of the same dtype and shape; ``kept + rest`` equals ``photons``.

    Raises
    ------
    NotPhotonCountsError
        If a value is negative, fractional, not finite, masked, or too large for its float dtype.
    AxesError
        If ``photons`` is a Dataset.
    ValueError
        If ``fraction`` is outside 0..1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the fraction of photons to keep is {fraction}, expected 0 to 1")
    if isinstance(photons, Mapping):
        raise AxesError(f"the counts are a {type(photons).__name__}, expected one image; choose one by its name")
    if np.ma.is_masked(photons):
        raise NotPhotonCountsError("expected a count in each pixel, but some are masked; fill them, or crop the image")
    values = np.asarray(photons)
    counts = as_integers(values)
    part = np.asarray(np.random.default_rng(seed).binomial(counts.astype(np.int64), fraction), counts.dtype)
    kept, rest = part.astype(values.dtype, copy=False), (counts - part).astype(values.dtype, copy=False)
    if isinstance(photons, xr.DataArray):
        return photons.copy(data=kept), photons.copy(data=rest)
    return kept, rest


def as_integers(values: NDArray[np.generic]) -> Counts:
    """Return whole, non-negative numbers as integers, without a copy if they are; refuse other values."""
    counts: Counts = values  # type: ignore[assignment]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise NotPhotonCountsError(f"expected photon counts, but the values are of type {values.dtype}")
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            counts = values.astype(np.int64)
        if not np.array_equal(counts, values):
            raise NotPhotonCountsError("expected whole photon counts, but the values have fractions or are not finite")
        exact = 2 ** (np.finfo(values.dtype.name).nmant + 1)
        if (highest := int(counts.max(initial=0))) > exact:
            problem = f"the largest value is {highest}, but {values.dtype} skips whole numbers above {exact}"
            raise NotPhotonCountsError(f"{problem}; give integers")
    if counts.dtype == np.uint64 and (highest := int(counts.max(initial=0))) > np.iinfo(np.int64).max:
        raise NotPhotonCountsError(f"the largest value is {highest:.3g}, expected photon counts below 2**63")
    if counts.dtype.kind != "u" and counts.size and int(counts.min()) < 0:
        raise NotPhotonCountsError(f"expected photon counts, but the smallest value is {int(counts.min())}")
    return counts


def check_photon_counts(photons: xr.DataArray, *, name: str, saturation: float = 1e-4) -> None:
    """Refuse values that cannot be photon counts, and warn of doubtful ones.

    Booleans and whole numbers of a float dtype are counts, too. The fraction ``saturation`` of the pixels may be at the
    ceiling of the detector.
    """
    from gap_bioimage.judging import judge_image

    _, finding = judge_image(photons, name, saturation)
    if finding.refused:
        raise NotPhotonCountsError(finding.message)
    if finding.verdict != "photon counts" or finding.kind == "one-bit frames":
        warnings.warn(finding.message, CountsWarning, stacklevel=2)


def check_whole_numbers(photons: xr.DataArray, *, name: str) -> None:
    """Refuse values that are not whole, non-negative numbers, whether or not they are photons."""
    if not photons.size:
        raise NotPhotonCountsError(f"{name}: expected photon counts, but there are no pixels")
    try:
        for part in photons.values if photons.ndim > 2 else [photons.values]:  # part by part: floats are copied
            as_integers(part)
    except NotPhotonCountsError as error:
        raise NotPhotonCountsError(f"{name}: {error}") from None


def check_dim(photons: xr.DataArray, dim: int, *, plane_by_plane: bool, name: str = "the image") -> None:
    """Refuse an image whose axes do not fit a 3D model, or a 2D one, which may process a stack plane by plane."""
    axes = f"{name} has axes {' '.join(map(str, photons.dims))}"
    if dim == 2 and "z" in photons.dims and not plane_by_plane:
        raise AxesError(f"{axes}, expected no z for a 2D model; give planes=True for each plane, or use a 3D model")
    if dim == 3 and "z" not in photons.dims:
        time = "take time as z with time_as_z=True, " if "t" in photons.dims else ""
        raise AxesError(f"{axes}, expected z for a 3D model; {time}use a 2D model, or name the axes if one is z")
