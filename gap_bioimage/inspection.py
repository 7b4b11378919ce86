"""What an image is, and what to do about it: one table of rules over what was measured."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.evidence import Evidence, measure
from gap_bioimage.io.image import as_image, metadata_of
from gap_bioimage.judging import Finding, judge, processed

if TYPE_CHECKING:
    import numpy.typing as npt

_JPEG_TAGS = (6, 7)
_SURE = 4.0  # standard errors
_SMALL = 0.03  # correlation of thinned halves that costs nothing
_RAW = "look for the file as the detector's software saved it, and inspect that one"


@dataclass(frozen=True, kw_only=True)
class Inspection(Mapping[str, Any]):
    """What an image is; it reads like the dictionary that ``to_dict`` returns, too. Unknown numbers are None.

    Attributes
    ----------
    fano, fano_bright
        Variance / mean of the noise in the darker part and in the brightest, 1 for photon counts.
    lattice
        The number that divides all values.
    hot_pixels
        How many hold more than photons can where the neighbours are so dark.
    noise_correlation_y, noise_correlation_x
        Of neighbouring pixels, 0 for raw images, with ``_error`` and ``_method`` ("repeats", "single image", "none").
    thinning_correlation
        Of the noise of two halves of the photons, 0 where GAP's training is valid; ``thinning`` the same in words.
    variance_curve
        Points of mean, variance and its error.
    gain_guess
        ``gain`` and ``offset`` of the line through them, for camera images.
    verdict
        "photon counts", "counts times k", "camera image", "processed" or "not usable"; ``message`` gives the reason.
    source_kind
        "counts", "one-bit frames", "camera", "processed", "mask" (labels and classes, too) or "no image".
    next
        A command to type, or for images that are of no use, what to look for.
    """

    image: str
    axes: str | None
    shape: list[int] | None
    dtype: str | None
    pixel_size_um: dict[str, float]
    size_um: dict[str, float]
    interval_s: float | None
    frames: int | None
    planes: int | None
    channels: int | None
    channel_names: list[str]
    min: float | None
    max: float | None
    mean: float | None
    total: float | None
    zero_share: float | None
    pseudo_psnr_db: float | None
    lattice: float
    saturated_share: float | None
    hot_pixels: int | None
    fano: float | None
    fano_bright: float | None
    noise_correlation_y: float | None
    noise_correlation_x: float | None
    noise_correlation_error: float | None
    noise_correlation_method: str
    variance_curve: list[list[float]]
    gain_guess: dict[str, float] | None
    thinning_correlation: float | None
    thinning_correlation_error: float | None
    thinning: str | None
    source_kind: str
    verdict: str
    message: str
    next: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(fields(self))


def inspect(
    image: Path | str | xr.DataArray | npt.NDArray[Any],
    axes: str | None = None,
    *,
    channel: int | str | None = None,
    time: int | str | None = None,
    series: int | str | None = None,
    level: int | None = None,
    dims: str | None = None,
    plot: Path | str | None = None,
) -> Inspection:
    """Tell what an image is and what to do with it; bad values are reported, not raised.

    Parameters
    ----------
    image
        A file, a DataArray with dims out of ``t c z y x``, or an array.
    axes, channel, time, series, level
        As in :func:`gap_bioimage.read_photons`, for files.
    dims
        The axes of an array, such as "tyx"; "yx" when not given.
    plot
        A PNG to write: :func:`gap_bioimage.camera.plots.plot_inspection`.

    Raises
    ------
    UnreadableImageError, AxesError
        If the file cannot be read, or its axes are unknown.
    """
    from gap_bioimage.io import read_photons

    given: dict[str, Any] = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    known = {key: value for key, value in given.items() if value is not None}
    photons, file = None, isinstance(image, (str, Path))
    try:
        if isinstance(image, (str, Path)):
            photons, typed, name = read_photons(image, check=False, **given), str(image), Path(image).name
        else:
            photons = as_image(image, dims or axes).transpose(..., "y", "x")
            typed = name = str(photons.attrs.get("source", photons.name or "the image"))
        evidence = measure(photons)
        finding = judge(evidence, name)
        if file and finding.verdict != "not usable":
            finding = _of_file(typed, photons.dtype) or finding
        report = _report(typed, photons, evidence, finding, known if file else {})
    except NotPhotonCountsError as error:
        report = _picture(str(image) if file else "the image", str(error))
    if plot is not None:
        from gap_bioimage.camera.plots import plot_inspection
        from gap_bioimage.pictures import save_figure

        save_figure(plot_inspection(photons, report), Path(plot))
    return report


def _of_file(path: str, dtype: np.dtype[Any]) -> Finding | None:
    """Judge by what a file says of itself: compression by JPEG, which keeps 16 bits only, and Fiji's projections."""
    name = Path(path).name
    if name.upper().startswith(("MAX_", "MED_", "MIN_", "AVG_", "STD_")):
        return processed(f"{name} is named as Fiji names projections of stacks", "use the stack")
    if not path.lower().endswith((".tif", ".tiff")) or dtype.itemsize > 1:
        return None
    import tifffile

    with tifffile.TiffFile(path) as tif:
        if int(tif.pages.first.compression) not in _JPEG_TAGS:
            return None
    return processed(f"{name} is compressed by JPEG, which changes values", "save it without compression")


def _report(
    name: str, photons: xr.DataArray, evidence: Evidence, finding: Finding, given: dict[str, Any]
) -> Inspection:
    known, found, noise = metadata_of(photons), evidence.statistics, evidence.noise
    correlation = evidence.correlation
    halves, halves_error, words = _thinning(evidence, finding)
    points = [] if noise is None else np.stack([noise.mean, noise.variance, noise.error], 1).tolist()
    return Inspection(
        image=name,
        axes="".join(str(d) for d in photons.dims),
        shape=list(photons.shape),
        dtype=photons.dtype.name,
        pixel_size_um=dict(known.pixel_size_um),
        size_um={axis: float(f"{size * photons.sizes[axis]:.6g}") for axis, size in known.pixel_size_um.items()},
        interval_s=known.interval_s,
        frames=photons.sizes.get("t", 1),
        planes=photons.sizes.get("z", 1),
        channels=photons.sizes.get("c", 1),
        channel_names=list(known.channels),
        min=_number(found.minimum),
        max=_number(found.maximum),
        mean=_number(found.mean),
        total=_number(found.total),
        zero_share=found.zeros / max(found.pixels, 1),
        pseudo_psnr_db=_number(10 * math.log10(found.mean)) if found.total > 0 else None,
        lattice=0 if found.lattice == 0 else float(f"{evidence.unit or 1:.6g}"),
        saturated_share=evidence.saturated if evidence.piled_up else 0.0,
        hot_pixels=len(evidence.hot) if finding.verdict == "photon counts" else 0,
        fano=None if noise is None else _number(noise.dark),
        fano_bright=None if noise is None else _number(noise.bright),
        noise_correlation_y=_number(correlation.y),
        noise_correlation_x=_number(correlation.x),
        noise_correlation_error=_number(correlation.error),
        noise_correlation_method=correlation.method,
        variance_curve=[[float(f"{value:.6g}") for value in point] for point in points],
        gain_guess=_gain(evidence),
        thinning_correlation=halves,
        thinning_correlation_error=halves_error,
        thinning=words,
        source_kind=finding.kind,
        verdict=finding.verdict,
        message=finding.message,
        next=_next(finding, name, given, photons),
    )


def _gain(evidence: Evidence) -> dict[str, float] | None:
    """Return the camera that a line of variance against mean tells of, if there is such a line."""
    noise = evidence.noise
    if noise is None or not noise.slope[0] >= _SURE * noise.slope[1]:
        return None
    if not noise.intercept[0] < -_SURE * noise.intercept[1] and evidence.statistics.minimum >= 0:
        return None
    return {"gain": float(f"{noise.slope[0]:.3g}"), "offset": float(f"{noise.offset:.4g}")}


def _thinning(evidence: Evidence, finding: Finding) -> tuple[float | None, float | None, str]:
    """Correlate the noise of two random halves of the photons, on whose independence GAP rests.

    The halves' noise has the covariance (variance - mean) / 4, and so the correlation (F - 1) / (F + 1) with F the
    variance over mean; it need not be drawn.
    """
    found, noise = evidence.statistics, evidence.noise
    if evidence.dtype.kind not in "biuf" or found.nonfinite or found.fractional or found.minimum < 0:
        return None, None, "not possible: these are no whole numbers from 0 up"
    if noise is None or not found.total > 0 or finding.verdict == "not usable":
        return None, None, "not tested: too few photons" if finding.verdict == "photon counts" else "not tested"
    value = (noise.dark - 1) / (noise.dark + 1)
    error = 2 * noise.dark * noise.dark_error / (noise.dark + 1) ** 2
    if finding.verdict == "photon counts":
        clear = abs(value) <= max(_SMALL, _SURE * error)
        words = "valid: the halves are independent" if clear else "not tested: fine structure hides the noise"
    elif abs(value) <= max(_SMALL, _SURE * error):
        words = "not valid: these are no photon counts"
    elif value > 0:
        words = "not valid: the halves share noise, which the network would copy"
    else:
        words = "not valid: there is less noise than photons have, and the halves exclude one another"
    return value, error, words


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
    return finding.advice or _RAW


def _picture(typed: str, message: str) -> Inspection:
    """Report a file that holds no photons, by its own kind of error."""
    nothing = xr.DataArray(np.zeros((0, 0), np.uint8), dims=["y", "x"])
    report = _report(typed, nothing, measure(nothing), Finding("processed", "processed", message), {})
    unknown = ("axes", "shape", "dtype", "frames", "planes", "channels", "zero_share", "saturated_share", "hot_pixels")
    return Inspection(**{**report.to_dict(), **dict.fromkeys(unknown), "thinning": None})


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
