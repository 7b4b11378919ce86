"""Photon counts: thinning into independent parts, and whether an image holds counts and fits a model.

If x ~ Poisson(s), then Binomial(x, p) and the remainder are independent Poisson variables with means
p s and (1 - p) s: from noisy counts alone this makes the input and the target of training (Krull et al.,
arXiv 2307.06607, section 3.2).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, TypeVar, overload

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from gap_bioimage.errors import AxesError, CountsWarning, NotPhotonCountsError
from gap_bioimage.io.image import as_image

Counts = NDArray[np.integer]
Scalar = TypeVar("Scalar", bound=np.integer)

# Photons that one look into the table draws; brighter pixels are drawn in parts, and by numpy beyond the last.
_TABLE_MAX = 63
_PARTS = 8
# Random bits that pick a table column; what one column leaves undecided gets 53 more bits.
_GUIDE_BITS = 8
_CHUNK_PX = 1 << 16  # keeps the temporaries of a chunk in the processor's cache


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


@overload
def thin(
    photons: xr.DataArray, fraction: float, seed: int | np.random.Generator
) -> tuple[xr.DataArray, xr.DataArray]: ...
@overload
def thin(photons: Counts, fraction: float, seed: int | np.random.Generator) -> tuple[Counts, Counts]: ...
def thin(
    photons: xr.DataArray | Counts, fraction: float, seed: int | np.random.Generator
) -> tuple[xr.DataArray | Counts, xr.DataArray | Counts]:
    """Split counts at random: each photon goes to the first part with probability ``fraction``.

    Parameters
    ----------
    photons
        Counts of any shape, of an integer dtype or whole numbers.
    fraction
        Expected share of the first part, 0 to 1.
    seed
        A seed or a generator.

    Returns
    -------
    kept, rest
        Counts of the same type and shape; ``kept + rest`` is ``photons``.

    Raises
    ------
    NotPhotonCountsError
        If a value is negative or fractional, or too large for its float type to tell from its neighbours.
    ValueError
        If ``fraction`` is outside 0..1.
    """
    values = np.asarray(photons)
    counts = as_integers(values)
    part = binomial(counts, fraction, np.random.default_rng(seed))
    kept, rest = part.astype(values.dtype, copy=False), (counts - part).astype(values.dtype, copy=False)
    if isinstance(photons, xr.DataArray):
        return photons.copy(data=kept), photons.copy(data=rest)
    return kept, rest


def binomial(counts: NDArray[Scalar], fraction: float, rng: np.random.Generator) -> NDArray[Scalar]:
    """Draw Binomial(counts, fraction) for every pixel, exact to about 2^-47.

    Inversion with a guide table: one random byte and the count look up the result; the few bytes that leave two
    results possible are refined with a further uniform number. Brighter pixels are drawn in parts of 63 photons, whose
    results add up, and above 504 photons by numpy's own generator.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the fraction of photons to keep is {fraction}, expected 0 to 1")
    if fraction in (0.0, 1.0) or counts.size == 0:
        return counts.copy() if fraction else np.zeros_like(counts)
    flat = np.ascontiguousarray(counts).reshape(-1)
    cumulative = binomial_cdf(min(int(flat.max()), _TABLE_MAX), fraction)
    guide, result = _guide_table(cumulative), np.empty_like(flat)
    for start in range(0, flat.size, _CHUNK_PX):
        chunk = slice(start, start + _CHUNK_PX)
        result[chunk] = _draw_in_parts(flat[chunk], fraction, cumulative, guide, rng)
    return result.reshape(counts.shape)


def free_slots(
    counts: NDArray[Scalar], part: NDArray[Scalar], fraction: float, ceiling: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Return how many of ``ceiling`` one-bit frames of each pixel are left for the rest of its counts.

    A pixel that sums T frames has T slots, each with a photon or without. Thinning gives every slot to the first part
    with the same chance, empty ones too; then the rest is Binomial(slots left, q) with the pixel's own q, independent
    of the first part. Without this a pixel whose photon went into the first part would seem to be one where none can
    land.
    """
    highest = int(counts.max(initial=0))
    if highest > ceiling:
        raise NotPhotonCountsError(
            f"a pixel holds {highest} photons, but {ceiling} one-bit frames hold at most {ceiling}; give the number of "
            "frames that were summed (thinning.ceiling, or --sum-frames for the frames themselves)"
        )
    taken = part + rng.binomial((ceiling - counts).astype(np.int64), fraction)
    return (ceiling - taken).astype(np.int32)


def binomial_cdf(n_max: int, p: float) -> NDArray[np.float64]:
    """Return P(Binomial(n, p) <= k) for n and k up to ``n_max``, shape (n_max + 1, n_max + 1)."""
    n, k = np.arange(n_max + 1)[:, None], np.arange(n_max + 1)[None, :]
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n_max + 1)))])
    rest = np.maximum(n - k, 0)
    log_pmf = log_factorial[n] - log_factorial[k] - log_factorial[rest] + k * math.log(p) + rest * math.log1p(-p)
    cdf = np.cumsum(np.where(k <= n, np.exp(log_pmf), 0.0), axis=1)
    cdf[k >= n] = 1.0
    limited: NDArray[np.float64] = np.minimum(cdf, 1.0)
    return limited


def _guide_table(cumulative: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Result for each (count, byte), or 255 where the byte does not decide it; shape (n * 256,)."""
    rows, columns = len(cumulative), 1 << _GUIDE_BITS
    scaled = cumulative * columns
    start = (np.arange(rows) * (columns + 1))[:, None]

    def steps_up_to_each_column(column: NDArray[np.float64]) -> NDArray[np.intp]:
        places = (column.astype(np.intp) + start).reshape(-1)
        counted = np.bincount(places, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
        return np.cumsum(counted, axis=1)[:, :columns]

    # inversion: the smallest k with u < cdf[k], that is the number of k with cdf[k] <= u, at both ends of a byte
    first, last = steps_up_to_each_column(np.ceil(scaled)), steps_up_to_each_column(np.floor(scaled))
    return np.where(first == last, first, 255).astype(np.uint8).reshape(-1)


def _draw_in_parts(
    counts: NDArray[Scalar],
    p: float,
    cumulative: NDArray[np.float64],
    guide: NDArray[np.uint8],
    rng: np.random.Generator,
) -> NDArray[Scalar]:
    """Draw for a flat chunk of counts of any brightness: Binomial(a + b, p) is Binomial(a, p) + Binomial(b, p)."""
    table_max = len(cumulative) - 1
    result = _draw(np.minimum(counts, table_max), cumulative, guide, rng)
    bright = np.flatnonzero(counts > table_max)
    rest = counts[bright] - table_max
    for _ in range(_PARTS - 1):
        if not bright.size:
            return result
        result[bright] += _draw(np.minimum(rest, table_max), cumulative, guide, rng)
        more = rest > table_max
        bright, rest = bright[more], rest[more] - table_max
    if bright.size:
        result[bright] += rng.binomial(rest.astype(np.int64), p).astype(counts.dtype)
    return result


def _draw(
    counts: NDArray[Scalar], cumulative: NDArray[np.float64], guide: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[Scalar]:
    """Draw for flat counts that are all in the table."""
    byte, row = np.frombuffer(rng.bytes(counts.size), np.uint8), counts.astype(np.uint16)
    drawn = guide[(row << _GUIDE_BITS) | byte]
    result: NDArray[Scalar] = drawn.astype(counts.dtype)
    undecided = np.flatnonzero(drawn == 255)
    if undecided.size:
        uniform = (byte[undecided] + rng.random(undecided.size)) / (1 << _GUIDE_BITS)
        rows = row[undecided].astype(np.intp)
        # one ascending array: row n holds n + cdf, so that one search serves all rows
        ladder = (cumulative + np.arange(len(cumulative))[:, None]).reshape(-1)
        found = np.searchsorted(ladder, rows + uniform, side="right") - rows * len(cumulative)
        result[undecided] = np.minimum(found, rows)
    return result


def as_integers(values: NDArray[np.generic]) -> Counts:
    """View whole, non-negative numbers as integers."""
    counts: Counts = values  # type: ignore[assignment]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            counts = values.astype(np.int64)
        if not np.array_equal(counts, values):
            raise NotPhotonCountsError("expected whole photon counts, but the values have fractions or are not finite")
        exact = 2 ** (np.finfo(values.dtype.name).nmant + 1)
        if (highest := int(counts.max(initial=0))) > exact:
            raise NotPhotonCountsError(
                f"the largest value is {highest}, but {values.dtype} skips whole numbers above {exact}; give integers"
            )
    if counts.size and int(counts.min()) < 0:
        raise NotPhotonCountsError(f"expected photon counts, but the smallest value is {int(counts.min())}")
    return counts


def check_photon_counts(photons: xr.DataArray, *, name: str, saturation: float = 1e-4) -> None:
    """Refuse values that cannot be photon counts, and warn of doubtful ones.

    Whole numbers in floats and booleans are counts too; up to ``saturation`` of the pixels may be at the detector's
    ceiling.
    """
    from gap_bioimage.evidence import measure
    from gap_bioimage.judging import judge

    finding = judge(measure(photons), name, saturation)
    if finding.refused:
        raise NotPhotonCountsError(finding.message)
    if finding.verdict != "photon counts" or finding.kind == "one-bit frames":
        warnings.warn(finding.message, CountsWarning, stacklevel=2)


def check_whole_numbers(photons: xr.DataArray, *, name: str) -> None:
    """Refuse values that no counter returns; whether they come from photons is not asked."""
    from gap_bioimage.camera.moments import scan
    from gap_bioimage.evidence import Evidence, measure
    from gap_bioimage.judging import judge

    if photons.dtype.kind in "bu" and photons.size:
        return
    if photons.dtype.kind not in "biuf":
        raise NotPhotonCountsError(judge(measure(photons), name, 1.0).message)
    found = scan(photons.data if isinstance(photons.data, np.ndarray) else photons.values)
    if not found.pixels or found.nonfinite or found.minimum < 0 or found.fractional:
        evidence = Evidence(photons.dtype, (2, 2), found, None if found.fractional else 1.0)
        raise NotPhotonCountsError(judge(evidence, name, 1.0).message)


def check_axes(image: Any, *, what: str = "the image") -> None:
    """Refuse what is no ``xarray.DataArray`` with dims out of ``t c z y x`` with y and x."""
    as_image(image, what=what)


def check_dim(photons: xr.DataArray, dim: int, *, plane_by_plane: bool) -> None:
    """Refuse an image whose axes do not fit a 2D model, which may see a stack plane by plane, or a 3D one."""
    axes = " ".join(str(d) for d in photons.dims)
    if dim == 2 and "z" in photons.dims and not plane_by_plane:
        raise AxesError(
            f"the image has axes {axes} but the model is 2D, expected no z; give planes=True to treat the stack plane "
            "by plane, or use a 3D model"
        )
    if dim == 3 and "z" not in photons.dims:
        time = "take time as z with time_as_z=True, " if "t" in photons.dims else ""
        raise AxesError(
            f"the image has axes {axes} but the model is 3D, expected z; {time}use a 2D model, or name the axes if one "
            "of them is z"
        )
