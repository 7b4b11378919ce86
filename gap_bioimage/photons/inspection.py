"""What an image is, and what to do about it."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

import xarray as xr

from gap_bioimage.photons.checks import judge, measure, piled_up
from gap_bioimage.photons.image_io import pixel_size_um, read_photons

if TYPE_CHECKING:
    from pathlib import Path


def inspect(image: Path | str | xr.DataArray, axes: str | None = None, *, channel: int | None = None) -> dict[str, Any]:
    """Tell what an image is and what to do with it; bad values are reported, not raised.

    Parameters
    ----------
    image
        A file, or dims out of ``t c z y x``.
    axes, channel
        As in :func:`gap_bioimage.read_photons`, for files.

    Returns
    -------
    dict
        Ready for JSON. ``fano`` is variance / mean of the noise in the darker part, 1 for photon counts;
        ``fano_bright`` the same in the brightest part; ``lattice`` the number that divides all values;
        ``verdict`` one of "photon counts", "counts times k", "camera image", "processed", "not usable";
        ``message`` a sentence; ``next`` a command to type. Unknown numbers are None.

    Raises
    ------
    UnreadableImageError, AxesError, NotPhotonCountsError
        If the file cannot be read, its axes are unknown, or it is an RGB, PNG or JPEG picture.
    """
    photons = image if isinstance(image, xr.DataArray) else read_photons(image, axes, channel=channel, check=False)
    name = str(photons.attrs.get("source", photons.name or "the image"))
    statistics, noise = measure(photons)
    finding = judge(photons.dtype, statistics, noise, name, saturation=1e-4)
    typed = f"{image}" if not isinstance(image, xr.DataArray) else name
    options = [*([] if axes is None else ["--axes", axes]), *([] if channel is None else ["--channel", str(channel)])]
    dim = "3" if "z" in photons.dims else "2"
    usable = shlex.join(["gap-bioimage", "train", typed, "--dim", dim, "--out", "RUN", *options])
    positive = statistics.total > 0
    return {
        "image": typed,
        "axes": "".join(str(d) for d in photons.dims),
        "shape": list(photons.shape),
        "dtype": photons.dtype.name,
        "pixel_size_um": pixel_size_um(photons),
        "min": _number(statistics.minimum),
        "max": _number(statistics.maximum),
        "mean": _number(statistics.mean),
        "total": _number(statistics.total),
        "zero_share": statistics.zeros / max(statistics.pixels, 1),
        "pseudo_psnr_db": _number(10 * math.log10(statistics.mean)) if positive else None,
        "fano": _number(noise.dark) if noise else None,
        "fano_bright": _number(noise.bright) if noise else None,
        "lattice": statistics.lattice,
        "saturated_share": statistics.at_maximum / statistics.pixels if piled_up(photons.dtype, statistics) else 0.0,
        "verdict": finding.verdict,
        "message": finding.message,
        "next": usable if not finding.refused else "gap-bioimage inspect PHOTONS.tif",
    }


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
