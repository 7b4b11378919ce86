"""What an image is, and what to do about it."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import xarray as xr

from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.io import as_image, read_photons
from gap_bioimage.io.image import metadata_of
from gap_bioimage.photons.judging.evidence import Evidence, measure
from gap_bioimage.photons.judging.variance import thinning_correlation
from gap_bioimage.photons.judging.verdicts import Finding, judge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gap_bioimage.photons.judging.statistics import Statistics
    from gap_bioimage.photons.judging.variance import Curve

_JPEG_TAGS = (6, 7)
_SURE = 4.0  # standard errors
_SMALL = 0.03  # correlation of thinned halves that costs nothing
_OF_ARRAYS = ("axes", "shape", "dtype", "frames", "planes", "channels", "zero_share", "saturated_share", "thinning")
_RAW = "look for the file as the detector's software saved it, and inspect that one"


def inspect(
    image: Path | str | xr.DataArray | NDArray[Any],
    axes: str | None = None,
    *,
    dims: str | None = None,
    channel: int | str | None = None,
    time: int | str | None = None,
    series: int | str | None = None,
    level: int | None = None,
    plot: Path | str | None = None,
) -> dict[str, Any]:
    """Tell what an image is and what to do with it; bad values are reported, not raised.

    Parameters
    ----------
    image
        A file, or dims out of ``t c z y x``.
    dims
        The axes of ``image`` where it is a plain array, such as ``"zyx"``.
    axes, channel, time, series, level
        As in :func:`gap_bioimage.read_photons`, for files.
    plot
        A PNG to write: image, histogram, variance against mean, correlation of the noise.

    Returns
    -------
    dict
        Ready for JSON; unknown numbers are None.

        - ``fano`` is variance / mean of the noise in the darker part, 1 for photon counts; ``fano_bright`` the same in
          the brightest part.
        - ``lattice`` is the number that divides all values.
        - ``noise_correlation_y``, ``_x``: of neighbouring pixels, 0 for raw images, with ``_error`` and ``_method``
          ("repeats", "single image", "none").
        - ``thinning_correlation`` of the noise of two halves of the photons, 0 where GAP's training is valid, with
          ``_error``; ``thinning`` the same in words.
        - ``variance_curve``: points of mean, variance and its error. ``gain_guess``: ``gain`` and ``offset`` of the
          line through them, for camera images.
        - ``verdict`` is one of "photon counts", "counts times k", "camera image", "processed", "not usable";
          ``source_kind`` says more; ``message`` is a sentence.
        - ``next`` is a command to type, or for images that are of no use, what to look for.

    Raises
    ------
    UnreadableImageError, AxesError
        If the file cannot be read, or its axes are unknown.
    """
    image = image if isinstance(image, (str, Path)) else as_image(image, dims)
    given = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    photons, report = _look_at(image, {key: value for key, value in given.items() if value is not None})
    if plot is not None:
        from gap_bioimage.photons.judging.inspection_figure import draw_inspection

        draw_inspection(Path(plot), photons, report)
    return report


def _look_at(image: Path | str | xr.DataArray, given: dict[str, Any]) -> tuple[xr.DataArray | None, dict[str, Any]]:
    """Return the image, None if it is a picture that holds no array of photons, and what there is to tell of it."""
    if isinstance(image, xr.DataArray):
        photons, typed, name = image, None, str(image.attrs.get("source", image.name or "the image"))
    else:
        typed, name = str(image), Path(image).name
        try:
            photons = read_photons(image, check=False, **given)
        except NotPhotonCountsError as error:
            return _picture(typed, str(error))
    evidence = measure(photons)
    finding = judge(evidence, name, saturation=1e-4)
    if typed is not None and finding.verdict != "not usable" and _compressed_by_jpeg(typed, photons.dtype):
        finding = Finding(
            "processed",
            "jpeg-compressed",
            f"{name} is compressed by JPEG, which changes values, expected photon counts; save it without compression",
        )
    report = {
        "image": typed or name,
        **_sizes(photons),
        **_numbers(evidence),
        **_noise(evidence),
        **_thinning(photons, evidence),
        "source_kind": finding.kind,
        "verdict": finding.verdict,
        "message": finding.message,
        "next": _next(finding, typed or name, given, photons),
    }
    return photons, report


def _sizes(photons: xr.DataArray) -> dict[str, Any]:
    """Axes, and how far they reach."""
    known = metadata_of(photons)
    return {
        "axes": "".join(str(d) for d in photons.dims),
        "shape": list(photons.shape),
        "dtype": photons.dtype.name,
        "pixel_size_um": known.pixel_size_um,
        "size_um": {axis: float(f"{size * photons.sizes[axis]:.6g}") for axis, size in known.pixel_size_um.items()},
        "interval_s": known.interval_s,
        "frames": photons.sizes.get("t", 1),
        "planes": photons.sizes.get("z", 1),
        "channels": photons.sizes.get("c", 1),
        "channel_names": list(known.channels),
    }


def _numbers(evidence: Evidence) -> dict[str, Any]:
    """Statistics of all pixels."""
    found = evidence.statistics
    return {
        "min": _number(found.minimum),
        "max": _number(found.maximum),
        "mean": _number(found.mean),
        "total": _number(found.total),
        "zero_share": found.zeros / max(found.pixels, 1),
        "pseudo_psnr_db": _number(10 * math.log10(found.mean)) if found.total > 0 else None,
        "lattice": found.lattice if evidence.traces.step is None else float(f"{evidence.traces.step:.6g}"),
        "saturated_share": found.at_maximum / found.pixels if evidence.piled_up else 0.0,
    }


def _noise(evidence: Evidence) -> dict[str, Any]:
    """Variance against mean, and between neighbours."""
    noise, correlation, curve = evidence.noise, evidence.correlation, evidence.curve
    points = [] if curve is None else np.stack([curve.mean, curve.variance, curve.error], 1).tolist()
    return {
        "fano": _number(noise.dark) if noise else None,
        "fano_bright": _number(noise.bright) if noise else None,
        "noise_correlation_y": _number(correlation.y),
        "noise_correlation_x": _number(correlation.x),
        "noise_correlation_error": _number(correlation.error),
        "noise_correlation_method": correlation.method,
        "variance_curve": [[float(f"{value:.6g}") for value in point] for point in points],
        "gain_guess": _gain(curve, evidence.statistics),
    }


def _gain(curve: Curve | None, found: Statistics) -> dict[str, float] | None:
    """Return the camera that a line of variance against mean tells of, if there is such a line."""
    if curve is None or curve.slope < _SURE * curve.slope_error or found.minimum < 0:
        return None
    if not curve.intercept < -_SURE * curve.intercept_error:
        return None
    return {"gain": float(f"{curve.slope:.3g}"), "offset": float(f"{curve.offset:.4g}")}


def _thinning(photons: xr.DataArray, evidence: Evidence) -> dict[str, Any]:
    """Say whether halves of the photons are independent, on which GAP rests."""
    found = evidence.statistics
    usable = evidence.dtype.kind in "biuf" and not (found.nonfinite or found.fractional or found.minimum < 0)
    values = photons.data if isinstance(photons.data, np.ndarray) else photons.values
    halves = thinning_correlation(values) if usable and found.total > 0 else None
    if halves is None:
        words = "not tested: too few photons" if usable else "not possible: these are no whole numbers from 0 up"
        return {"thinning_correlation": None, "thinning_correlation_error": None, "thinning": words}
    value, error = halves
    if abs(value) <= max(_SMALL, _SURE * error):
        words = "valid: the halves are independent"
    elif value > 0:
        words = "not valid: the halves share noise, which the network would copy"
    else:
        words = "not valid: there is less noise than photons have, and the halves exclude one another"
    return {"thinning_correlation": value, "thinning_correlation_error": error, "thinning": words}


def _next(finding: Finding, typed: str, given: dict[str, Any], photons: xr.DataArray) -> str:
    """Return the command to type, or what to look for."""
    dim = "3" if "z" in photons.dims else "2"
    options = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    train = ["gap-bioimage", "train", typed, "--dim", dim, "--out", "RUN", *options]
    if finding.verdict == "camera image":
        return shlex.join(["gap-bioimage", "calibrate", typed, "--out", "camera.yaml", *options])
    if finding.verdict == "counts times k":
        name = f"{Path(typed).name.split('.')[0]}_camera.yaml"  # not that of a camera that was measured
        made = f"echo '{{gain: {finding.factor:.6g}, offset: 0}}' > {shlex.quote(name)}"
        return f"{made} && {shlex.join([*train, '--camera', name])}"
    if finding.kind == "one-bit frames" and photons.sizes.get("t", 1) > 1:
        return shlex.join([*train, "--sum-frames", str(min(16, photons.sizes["t"]))])
    if finding.verdict == "photon counts":
        return shlex.join(train)
    if finding.kind == "saturated":
        return "record it again with a shorter exposure, or crop the bright part away"
    return _RAW


def _compressed_by_jpeg(path: str, dtype: np.dtype[Any]) -> bool:
    """Whether a TIFF says that its values went through JPEG; with 16 bits that is lossless."""
    if not path.lower().endswith((".tif", ".tiff")) or dtype.itemsize > 1:
        return False
    with tifffile.TiffFile(path) as tif:
        return int(tif.pages.first.compression) in _JPEG_TAGS


def _picture(typed: str, message: str) -> tuple[None, dict[str, Any]]:
    """Report a file that holds no photons, by its own kind of error."""
    nothing = xr.DataArray(np.zeros((0, 0), np.uint8), dims=["y", "x"])
    evidence = measure(nothing)
    unknown: dict[str, Any] = {
        **_sizes(nothing),
        **_numbers(evidence),
        **_noise(evidence),
        **_thinning(nothing, evidence),
    }
    unknown |= dict.fromkeys(_OF_ARRAYS)
    kind = "rgb" if "RGB" in message else "picture"
    said = {"source_kind": kind, "verdict": "processed", "message": message, "next": _RAW}
    return None, {"image": typed, **unknown, **said}


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
