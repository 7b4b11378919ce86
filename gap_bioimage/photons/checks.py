"""Whether an image holds photon counts, and whether its axes fit a model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.evidence import Evidence, measure, scan
from gap_bioimage.judging import judge
from gap_bioimage.photons.selection import AXES


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
        less noisy than photons are (a camera's offset, smoothing); if neighbouring pixels share noise
        (interpolation, sharpening), levels are missing (a change of contrast), or JPEG or colours show.

    Warns
    -----
    UserWarning
        If the noise is larger than that of photons, as with a gain or a camera, or may be shared by neighbours.
    """
    finding = judge(measure(photons), name, saturation)
    if finding.refused:
        raise NotPhotonCountsError(finding.message)
    if finding.verdict != "photon counts" or finding.kind == "one-bit frames":
        warnings.warn(finding.message, UserWarning, stacklevel=2)


def check_whole_numbers(photons: xr.DataArray, *, name: str) -> None:
    """Refuse values that no counter returns; whether they come from photons is not asked.

    Parameters
    ----------
    photons
        Any dims; read piece by piece, and not at all where the type alone tells.
    name
        What to call the image in the message.

    Raises
    ------
    NotPhotonCountsError
        If values are negative, fractional or not finite, or there are none.
    """
    if photons.dtype.kind in "bu" and photons.size:
        return
    if photons.dtype.kind not in "biuf":
        finding = judge(measure(photons), name, 1.0)
        raise NotPhotonCountsError(finding.message)
    values = photons.data if isinstance(photons.data, np.ndarray) else photons.values
    found = scan(values)
    if not found.pixels or found.nonfinite or found.minimum < 0 or found.fractional:
        raise NotPhotonCountsError(judge(Evidence(values.dtype, (2, 2), found), name, 1.0).message)


def check_axes(image: Any, *, what: str = "the image") -> None:
    """Refuse what is no image with named axes.

    Parameters
    ----------
    image
        What was given as one.
    what
        What to call it in the message.

    Raises
    ------
    AxesError
        If it is no ``xarray.DataArray``, or its dims are not out of ``t c z y x`` with y and x.
    """
    if not isinstance(image, xr.DataArray):
        example = ", ".join(repr(axis) for axis in AXES[-min(max(getattr(image, "ndim", 2), 2), 5) :])
        raise AxesError(
            f"{what} is of type {type(image).__name__}, expected an xarray.DataArray with dims out of t c z y x, as "
            f"read_photons returns; wrap it with xarray.DataArray(a, dims=[{example}])"
        )
    if not {"y", "x"} <= set(image.dims) <= set(AXES):
        raise AxesError(
            f"{what} has axes {' '.join(map(str, image.dims))}, expected y and x, and others out of t c z; name them "
            "with xarray.DataArray(a, dims=['y', 'x'])"
        )


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
            f"the image has axes {axes} but the model is 3D, expected z; "
            + ("take time as z with --time-as-z, " if "t" in photons.dims else "")
            + "use a 2D model, or name the axes with --axes if one of them is z"
        )
