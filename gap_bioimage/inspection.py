"""Inspection of an image: its metadata, noise and verdict, and the command to run next."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.evidence import Evidence
from gap_bioimage.io.image import as_image, metadata_of
from gap_bioimage.judging import Finding, judge_image, processed

_JPEG_TAGS = (6, 7)  # TIFF compression
_SURE = 4.0  # standard errors above which an effect is significant
_SMALL = 0.03  # correlation of thinned halves that is harmless
_RAW = "find the file that the detector's software saved, and inspect that one"


@dataclass(frozen=True, kw_only=True)
class Inspection(Mapping[str, Any]):
    """The result of ``inspect``, which can also be read like a dictionary. Unknown numbers are None.

    Attributes
    ----------
    fano, fano_bright
        Variance/mean of the noise in the darker part and in the brightest, 1 for photon counts.
    lattice
        Largest number of which all values are multiples.
    hot_pixels
        Number of pixels brighter than photons can be next to dark neighbours.
    noise_correlation_y, noise_correlation_x
        Of neighbouring pixels, 0 for raw images, with ``_error`` and ``_method`` ("repeats", "single image", "none").
    thinning, thinning_correlation
        Noise correlation of two halves of the photons, in words and as a number: 0 if GAP's training is valid.
    variance_curve, gain_guess
        Points (mean, variance, its standard error), and for camera images ``gain`` and ``offset`` of their line.
    verdict
        "photon counts", "counts times k", "camera image", "processed" or "not usable"; ``message`` gives the reason.
    source_kind
        "counts", "one-bit frames", "camera", "processed", "mask" (or labels, classes) or "no image".
    next
        A command to run or, for unusable images, what to look for.
    """

    image: str
    axes: str | None = None
    shape: list[int] | None = None
    dtype: str | None = None
    pixel_size_um: dict[str, float] = field(default_factory=dict)
    size_um: dict[str, float] = field(default_factory=dict)
    interval_s: float | None = None
    frames: int | None = None
    planes: int | None = None
    channels: int | None = None
    channel_names: list[str] = field(default_factory=list)
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    total: float | None = None
    zero_share: float | None = None
    pseudo_psnr_db: float | None = None
    lattice: float = 0
    saturated_share: float | None = None
    hot_pixels: int | None = None
    fano: float | None = None
    fano_bright: float | None = None
    noise_correlation_y: float | None = None
    noise_correlation_x: float | None = None
    noise_correlation_error: float | None = None
    noise_correlation_method: str = "none"
    variance_curve: list[list[float]] = field(default_factory=list)
    gain_guess: dict[str, float] | None = None
    thinning_correlation: float | None = None
    thinning_correlation_error: float | None = None
    thinning: str | None = None
    source_kind: str
    verdict: str
    message: str
    next: str

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

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
    """Classify an image and name the next step. Bad values are reported, not raised.

    Parameters
    ----------
    image
        A file, a DataArray with dims out of ``t c z y x``, or an array.
    axes, channel, time, series, level
        As in :func:`gap_bioimage.read_photons`, for files.
    dims
        Axes of a plain array, such as "tyx".
    plot
        PNG to write: :func:`gap_bioimage.camera.plots.plot_inspection`.

    Raises
    ------
    UnreadableImageError, AxesError
        If the file cannot be read, or its axes are unknown.
    """
    from gap_bioimage.io import read_photons

    selection: dict[str, Any] = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    options = {key: value for key, value in selection.items() if value is not None}
    photons, path = None, Path(image) if isinstance(image, (str, Path)) else None
    source = "the image" if path is None else str(path)
    try:
        if path is not None:
            photons, name = read_photons(path, check=False, **selection), path.name
        else:
            photons, options = as_image(image, dims or axes).transpose(..., "y", "x"), {}
            source, name = (str(photons.attrs.get("source", photons.name or other)) for other in ("IMAGE", source))
        evidence, finding = judge_image(photons, name)
        if path is not None and finding.verdict != "not usable":
            finding = _judge_file(path, photons.dtype) or finding
        report = _report(source, photons, evidence, finding, options)
    except NotPhotonCountsError as error:  # the reader refused a picture
        report = Inspection(image=source, source_kind="processed", verdict="processed", message=str(error), next=_RAW)
    if plot is not None:
        from gap_bioimage.camera.plots import plot_inspection
        from gap_bioimage.pictures import save_figure

        save_figure(plot_inspection(photons, report), Path(plot))
    return report


def _judge_file(path: Path, dtype: np.dtype[Any]) -> Finding | None:
    """Judge by file name and compression: Fiji's projections, and JPEG, which is lossless for 16 bits only."""
    if path.name.upper().startswith(("MAX_", "MED_", "MIN_", "AVG_", "STD_")):
        return processed(f"{path.name} is named like a projection made in Fiji", "use the stack")
    if path.suffix.lower() not in (".tif", ".tiff") or dtype.itemsize > 1:
        return None
    import tifffile

    with tifffile.TiffFile(path) as tif:
        if int(tif.pages.first.compression) not in _JPEG_TAGS:
            return None
    return processed(f"{path.name} is compressed by JPEG, which changes values", "save it without compression")


def _report(
    source: str, photons: xr.DataArray, evidence: Evidence, finding: Finding, options: dict[str, Any]
) -> Inspection:
    metadata, statistics = metadata_of(photons), evidence.statistics
    curve, correlation = evidence.curve, evidence.correlation
    halves, halves_error, words = _thinning(evidence, finding)
    points = [] if curve is None else np.stack([curve.mean, curve.variance, curve.error], 1).tolist()
    numbers = {"min": statistics.minimum, "max": statistics.maximum, "mean": statistics.mean, "total": statistics.total}
    numbers |= {f"noise_correlation_{name}": getattr(correlation, name) for name in ("y", "x", "error")}
    numbers |= {} if curve is None else {"fano": curve.dark, "fano_bright": curve.bright}
    numbers |= {"pseudo_psnr_db": 10 * math.log10(statistics.mean)} if statistics.total > 0 else {}
    return Inspection(
        image=source,
        axes="".join(map(str, photons.dims)),
        shape=list(photons.shape),
        dtype=photons.dtype.name,
        pixel_size_um=dict(metadata.pixel_size_um),
        size_um={axis: float(f"{size * photons.sizes[axis]:.6g}") for axis, size in metadata.pixel_size_um.items()},
        interval_s=metadata.steps.get("t"),
        frames=photons.sizes.get("t", 1),
        planes=photons.sizes.get("z", 1),
        channels=photons.sizes.get("c", 1),
        channel_names=list(metadata.channels),
        zero_share=statistics.zeros / max(statistics.pixels, 1),
        lattice=0 if statistics.lattice == 0 else float(f"{evidence.unit or 1:.6g}"),
        saturated_share=evidence.saturated,
        hot_pixels=len(evidence.hot) if finding.verdict == "photon counts" else 0,
        noise_correlation_method="repeats" if evidence.repeats else "single image" if correlation.blocks else "none",
        variance_curve=[[float(f"{value:.6g}") for value in point] for point in points],
        gain_guess=_gain(evidence),
        thinning_correlation=halves,
        thinning_correlation_error=halves_error,
        thinning=words,
        source_kind=finding.kind,
        verdict=finding.verdict,
        message=finding.message,
        next=_next(finding, source, options, photons),
        **{key: _number(value) for key, value in numbers.items()},
    )


def _gain(evidence: Evidence) -> dict[str, float] | None:
    """Return gain and offset of the line of variance against mean, if it is significant and not that of counts."""
    curve = evidence.curve
    if curve is None or not curve.slope[0] >= _SURE * curve.slope[1]:
        return None
    if curve.intercept[0] >= -_SURE * curve.intercept[1] and evidence.statistics.minimum >= 0:
        return None
    return {"gain": float(f"{curve.slope[0]:.3g}"), "offset": float(f"{curve.offset:.4g}")}


def _thinning(evidence: Evidence, finding: Finding) -> tuple[float | None, float | None, str]:
    """Return the noise correlation of two random halves of the photons, its error, and both in words.

    GAP requires independent halves. Their noise has the covariance (variance - mean) / 4 and hence the correlation
    (F - 1) / (F + 1), F being variance over mean, so the halves need not be drawn.
    """
    statistics, curve, counts = evidence.statistics, evidence.curve, finding.verdict == "photon counts"
    if evidence.dtype.kind not in "biuf" or statistics.nonfinite or statistics.fractional or statistics.minimum < 0:
        return None, None, "not possible: values are not whole numbers of at least 0"
    if curve is None or not statistics.total > 0 or finding.verdict == "not usable":
        return None, None, "not tested: too few photons" if counts else "not tested"
    value = (curve.dark - 1) / (curve.dark + 1)
    error = 2 * curve.dark * curve.dark_error / (curve.dark + 1) ** 2
    if abs(value) <= max(_SMALL, _SURE * error):
        words = "valid: the halves are independent" if counts else "not valid: these are not photon counts"
    elif counts and value < 0:
        words = "not tested: the detector counts too few photons where it is bright"
    elif counts:
        words = "not tested: fine structure hides the noise"
    else:
        words = f"not valid: with {'more' if value > 0 else 'less'} noise than photons the halves are correlated"
    return value, error, words


def _next(finding: Finding, source: str, options: dict[str, Any], photons: xr.DataArray) -> str:
    dim = "3" if "z" in photons.dims else "2"
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    train = ["gap-bioimage", "train", source, "--dim", dim, "--out", "RUN", *flags]
    if finding.verdict == "camera image":
        return shlex.join(["gap-bioimage", "calibrate", source, "--out", "camera.yaml", *flags])
    if finding.verdict == "counts times k":
        camera = f"{Path(source).name.split('.')[0]}_camera.yaml"  # does not overwrite a measured camera.yaml
        write = f"echo '{{gain: {finding.factor:.6g}, offset: 0}}' > {shlex.quote(camera)}"
        return f"{write} && {shlex.join([*train, '--camera', camera])}"
    if finding.kind == "one-bit frames" and photons.sizes.get("t", 1) > 1:
        return shlex.join([*train, "--sum-frames", str(min(16, photons.sizes["t"]))])
    if finding.verdict == "photon counts":
        return shlex.join(train)
    return finding.advice or _RAW


def _number(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
