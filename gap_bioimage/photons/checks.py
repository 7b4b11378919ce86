"""Whether an image holds photon counts, and whether its axes fit a model."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.photons.statistics import Noise, Statistics, estimate_noise, scan

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray as xr

Verdict = Literal["photon counts", "counts times k", "camera image", "processed", "not usable"]

_CEILINGS = (255, 1023, 4095, 16383, 65535)
_QUIET = 0.5  # variance / mean that no photon counter falls below in the dark
_LOUD = 1.5  # and that photon counts do not reach in their smoothest part
_SURE = 4.0  # standard errors
_TO_PHOTONS = "subtract the camera offset, divide by the gain and round to get photons first"


@dataclass(frozen=True)
class Finding:
    """What an image is, in a sentence, and whether it is refused as photon counts."""

    verdict: Verdict
    message: str
    refused: bool = True


def check_photon_counts(photons: xr.DataArray, *, name: str, saturation: float = 1e-4) -> None:
    """Refuse values that cannot be photon counts.

    Parameters
    ----------
    photons
        Any dims that end in y, x. Whole numbers in floats and booleans are counts too.
    name
        What to call the image in the message.
    saturation
        Largest accepted share of pixels at the detector's ceiling; 1 accepts all.

    Raises
    ------
    NotPhotonCountsError
        If values are negative, fractional, not finite, all zero, saturated, all multiples of a number, or
        less noisy than photons are (a camera's offset, smoothing).

    Warns
    -----
    UserWarning
        If the noise is larger than that of photons, as with a gain or a camera.
    """
    statistics, noise = measure(photons)
    finding = judge(photons.dtype, statistics, noise, name, saturation)
    if finding.refused:
        raise NotPhotonCountsError(finding.message)
    if finding.verdict != "photon counts":
        warnings.warn(finding.message, UserWarning, stacklevel=2)


def check_dim(photons: xr.DataArray, dim: int, *, plane_by_plane: bool) -> None:
    """Refuse an image whose axes do not fit a 2D or 3D model.

    Parameters
    ----------
    photons
        Dims out of ``t c z y x``.
    dim
        Spatial dimensions of the model, 2 or 3.
    plane_by_plane
        Whether a 2D model may treat the planes of a stack one by one.

    Raises
    ------
    AxesError
        If a 2D model meets a stack without that permission, or a 3D model an image without z.
    """
    axes = " ".join(str(d) for d in photons.dims)
    if dim == 2 and "z" in photons.dims and not plane_by_plane:
        raise AxesError(
            f"the image has axes {axes} but the model is 2D, expected no z; add --planes to treat the stack "
            "plane by plane, or use a 3D model"
        )
    if dim == 3 and "z" not in photons.dims:
        raise AxesError(
            f"the image has axes {axes} but the model is 3D, expected z; use a 2D model, or name the axes "
            "with --axes if one of them is z"
        )


def measure(photons: xr.DataArray) -> tuple[Statistics, Noise | None]:
    """Return the statistics and, where there is enough to see, the noise of an image."""
    values: npt.NDArray[Any] = photons.data if isinstance(photons.data, np.ndarray) else photons.values
    if values.dtype.kind not in "biuf":
        empty = Statistics(values.size, values.size, 0, 0, math.nan, math.nan, 0.0, 1, 0, 0.0)
        return empty, None
    statistics = scan(values)
    return statistics, None if statistics.nonfinite or not statistics.total else estimate_noise(values)


def judge(dtype: np.dtype[Any], statistics: Statistics, noise: Noise | None, name: str, saturation: float) -> Finding:
    """Say what an image is; ``saturation`` is the accepted share of pixels at the ceiling."""
    return (
        _impossible(dtype, statistics, name)
        or _wrong_noise(statistics, noise, name)
        or _saturated(dtype, statistics, name, saturation)
        or _too_noisy(statistics, noise, name)
        or _good(statistics, noise, name)
    )


def _impossible(dtype: np.dtype[Any], statistics: Statistics, name: str) -> Finding | None:
    """Look for values that no counter returns."""
    if dtype.kind not in "biuf":
        return Finding("not usable", f"{name} holds {dtype}, expected whole numbers of photons; save it as integers")
    if not statistics.pixels:
        return Finding("not usable", f"{name} has no pixels, expected photon counts; export it again")
    if statistics.nonfinite:
        return Finding(
            "not usable",
            f"{name} has {statistics.nonfinite} pixels that are NaN or infinite, expected whole numbers of "
            "photons; use the raw counts",
        )
    if statistics.minimum < 0:
        return Finding(
            "processed",
            f"{name} has negative values (minimum {statistics.minimum:g}), expected photon counts from 0 up; "
            "use the counts before any background was subtracted",
        )
    if statistics.fractional:
        share = statistics.fractional / statistics.pixels
        return Finding(
            "processed",
            f"{name} has fractional values ({share:.0%} of the pixels, mean {statistics.mean:.3g}), expected "
            f"whole numbers of photons; use the raw counts, or for a camera image {_TO_PHOTONS}",
        )
    if not statistics.total:
        return Finding("not usable", f"{name} is all zero, expected some photons; choose another image or channel")
    return None


def _wrong_noise(statistics: Statistics, noise: Noise | None, name: str) -> Finding | None:
    """Look for noise weaker than that of photons, and for counts that somebody multiplied."""
    k = statistics.lattice
    nonzero = statistics.pixels - statistics.zeros
    multiplied = k > 1 and nonzero >= 20  # fewer may share a divisor by chance
    fano = noise.dark if noise else 1.0
    limit = _QUIET / (1 + _SURE * noise.relative_error) if noise else 0.0
    if fano < limit * (k if multiplied else 1):
        levels = f"minimum {statistics.minimum:g}, mean {statistics.mean:.4g}"
        numbers = f"{levels}, variance/mean {fano:.2g} in the dark"
        if statistics.minimum > 0:
            return Finding(
                "camera image",
                f"{name} looks like a camera image with an offset ({numbers}), expected photon counts, whose "
                f"variance/mean is 1; {_TO_PHOTONS}",
            )
        return Finding(
            "processed",
            f"{name} looks smoothed or rescaled ({numbers}), expected photon counts, whose variance/mean is "
            "1; use the raw counts",
        )
    if multiplied and noise and noise.smallest / (1 + _SURE * noise.relative_error) > _LOUD * k:
        return Finding(
            "processed",
            f"every value of {name} is a multiple of {k}, and its variance/mean {noise.smallest:.3g} fits "
            f"neither photon counts nor counts times {k} (mean {statistics.mean:.4g}); use the raw counts "
            "before any rescaling",
        )
    if multiplied:
        return Finding(
            "counts times k",
            f"every value of {name} is a multiple of {k} (mean {statistics.mean:.4g}, variance/mean "
            f"{fano:.3g}), expected photon counts; divide by {k}",
        )
    return None


def piled_up(dtype: np.dtype[Any], statistics: Statistics) -> bool:
    """Whether the maximum is a ceiling: more pixels there than the values just below lead one to expect."""
    known = statistics.maximum in _CEILINGS or (dtype.kind in "iu" and statistics.maximum == np.iinfo(dtype).max)
    if known:
        return statistics.at_maximum >= 5 and statistics.at_maximum > 2 * statistics.below_maximum
    pile = statistics.at_maximum > 5 * statistics.below_maximum
    return statistics.maximum >= 20 and statistics.at_maximum >= 10 and pile


def _saturated(dtype: np.dtype[Any], statistics: Statistics, name: str, accepted: float) -> Finding | None:
    share = statistics.at_maximum / statistics.pixels
    if share <= accepted or not piled_up(dtype, statistics):
        return None
    return Finding(
        "not usable",
        f"{name} is saturated ({share:.2%} of the pixels at the maximum {statistics.maximum:g}), expected "
        "counts below the detector's ceiling; use a shorter exposure or crop the bright part away",
    )


def _too_noisy(statistics: Statistics, noise: Noise | None, name: str) -> Finding | None:
    if noise is None or noise.smallest / (1 + _SURE * noise.relative_error) < _LOUD:
        return None
    return Finding(
        "camera image",
        f"{name} is noisier than photon counts (minimum {statistics.minimum:g}, mean {statistics.mean:.4g}, "
        f"variance/mean {noise.smallest:.3g} where it is smoothest, expected 1), so the network would "
        f"copy noise; unless these are counts, {_TO_PHOTONS}",
        refused=False,
    )


def _good(statistics: Statistics, noise: Noise | None, name: str) -> Finding:
    text = f"{name} holds photon counts, {statistics.mean:.3g} per pixel"
    if noise is not None:
        text += f", with variance/mean {noise.dark:.2f} in the dark and {noise.bright:.2f} where it is bright"
    return Finding("photon counts", text, refused=False)
