"""One figure that shows why an image was judged as it was."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from gap_bioimage.photons.judging.correlation import noise_planes
from gap_bioimage.pictures import save_figure

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Image = NDArray[np.float64]

_LAGS = 3
_BARS = 400  # more levels than this are drawn as a line over bins
_SHOWN_PX = 1024


def draw_inspection(path: Path, image: xr.DataArray | None, report: dict[str, Any]) -> None:
    """Draw the brightest plane, the histogram, variance against mean and the correlation of the noise.

    Parameters
    ----------
    path
        The PNG to write.
    image
        What was inspected; without an array of photons only the verdict is written.
    report
        From :func:`gap_bioimage.inspect`.
    """
    figure = Figure((11, 8.5), layout="constrained")
    title = f"{Path(str(report['image'])).name}: {report['verdict']} ({report['source_kind']})"
    told = "\n".join(textwrap.wrap(report["message"], 150)[:4])
    figure.suptitle(f"{title}\n{told}", fontsize=9)
    panels = figure.subplots(2, 2)
    planes, noise = _planes(image)
    if not planes:
        for axes in panels.flat:
            axes.set_axis_off()
        panels[0, 0].text(0, 0.5, "no values that could be drawn")
    else:
        brightest = max(planes, key=lambda plane: float(plane.mean()))
        _draw_image(figure, panels[0, 0], brightest, str(image.dtype if image is not None else ""))
        _draw_histogram(panels[0, 1], planes, report)
        _draw_curve(panels[1, 0], report)
        _draw_correlation(figure, panels[1, 1], noise, report)
    save_figure(figure, path)


def _planes(image: xr.DataArray | None) -> tuple[list[Image], list[Image]]:
    """Return planes as they are, and what holds their noise."""
    if image is None or image.ndim < 2 or not image.size or image.dtype.kind not in "biuf":
        return [], []
    values: NDArray[Any] = image.data if isinstance(image.data, np.ndarray) else image.values
    in_time = noise_planes(values, image.dims.index("t") if "t" in image.dims else None)
    return [plane for plane, _ in noise_planes(values)], [residual for _, residual in in_time]


def _draw_image(figure: Figure, axes: Axes, plane: Image, dtype: str) -> None:
    plane = plane[:_SHOWN_PX, :_SHOWN_PX]
    low, high = float(plane.min()), float(np.percentile(plane, 99.8))
    shown = axes.imshow(plane, cmap="magma", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    axes.set_title(f"brightest plane ({dtype})", fontsize=9)
    axes.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.8)


def _draw_histogram(axes: Axes, planes: list[Image], report: dict[str, Any]) -> None:
    values = np.concatenate([plane.ravel() for plane in planes])
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if whole and high - low < _BARS:
        levels, pixels = np.unique(values, return_counts=True)
        axes.bar(levels, pixels, width=0.8, color="0.4")
    else:
        width = math.ceil((high - low + 1) / _BARS) if whole else max(high - low, 1e-12) / _BARS
        axes.hist(values, bins=np.arange(low - 0.5 * whole, high + 1.5 * width, width).tolist(), color="0.4")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlabel("value")
    axes.set_ylabel("pixels")
    notes = []
    if report["lattice"] not in (0, 1):
        notes.append(f"all values are multiples of {report['lattice']:g}")
    if report["saturated_share"]:
        axes.axvline(high, color="tab:red", linestyle="--")
        notes.append(f"{report['saturated_share']:.2%} of the pixels at the maximum")
    notes.append(f"{report['zero_share']:.1%} zeros")
    axes.set_title("histogram: " + ", ".join(notes), fontsize=9)


def _draw_curve(axes: Axes, report: dict[str, Any]) -> None:
    """Draw the points, the line of photon counts and, for a camera, its own."""
    axes.set_xlabel("mean")
    axes.set_ylabel("variance of the noise")
    points = np.array(report["variance_curve"]).reshape(-1, 3)
    if not len(points):
        axes.set_title("variance against mean: too few pixels", fontsize=9)
        return
    mean, variance, error = points.T
    axes.errorbar(mean, variance, error, fmt="o", color="tab:blue", markersize=4, label="image")
    reach = np.array([min(0.0, float(mean.min())), float(mean.max()) * 1.05])
    axes.plot(reach, reach, color="0.4", label="photon counts")
    guess = report["gain_guess"]
    if guess is not None:
        start = np.array([guess["offset"], max(reach[1], guess["offset"])])
        label = f"gain {guess['gain']:g}, offset {guess['offset']:g}"
        axes.plot(start, guess["gain"] * (start - guess["offset"]), "--", color="tab:orange", label=label)
    if mean.min() > 4 * variance.max():  # a camera: the line of photon counts is far away
        low, high = float(mean.min()), float(mean.max())
        axes.set_xlim(low - 0.2 * (high - low) - 1, high + 0.2 * (high - low) + 1)
        axes.set_ylim(0, 1.3 * float(variance.max() + error.max()))
    if mean.min() >= 0 and variance.max() > 0 and guess is None and mean.max() > 20 * max(mean.min(), 1e-9):
        floor = float(max(min(variance[variance > 0].min(), mean[mean > 0].min()), 1e-4))
        axes.set_xscale("symlog", linthresh=floor)
        axes.set_yscale("symlog", linthresh=floor)
    axes.legend(fontsize=8)
    fano = "" if report["fano"] is None else f", variance/mean {report['fano']:.3g} in the dark"
    axes.set_title(f"variance against mean{fano}", fontsize=9)


def _draw_correlation(figure: Figure, axes: Axes, noise: list[Image], report: dict[str, Any]) -> None:
    """Draw the autocorrelation of the noise for lags up to three pixels, its middle left out."""
    lags = noise_autocorrelation(noise)
    lags[_LAGS, _LAGS] = np.nan
    reach = max(0.1, float(np.nanmax(np.abs(lags))) if np.isfinite(lags).any() else 0.1)
    extent = (-_LAGS - 0.5, _LAGS + 0.5, _LAGS + 0.5, -_LAGS - 0.5)
    shown = axes.imshow(lags, cmap="RdBu_r", vmin=-reach, vmax=reach, extent=extent)
    figure.colorbar(shown, ax=axes, shrink=0.8)
    axes.set_xlabel("lag x (pixels)")
    axes.set_ylabel("lag y (pixels)")
    y, x = report["noise_correlation_y"], report["noise_correlation_x"]
    numbers = "too few pixels" if y is None or x is None else f"neighbours {y:.2f} along y, {x:.2f} along x"
    axes.set_title(f"noise: {numbers} (expected 0)", fontsize=9)


def noise_autocorrelation(noise: list[Image]) -> Image:
    """Return the autocorrelation of noise for lags -3 to 3, both axes, from its power spectrum.

    Frequencies below half of the highest hold structure; white noise of the same strength stands in for them, so that
    only what the rest tells is drawn: 0 for independent noise, whatever the structure.
    """
    total = np.zeros((2 * _LAGS + 1, 2 * _LAGS + 1))
    for residual in noise:
        rows, columns = residual.shape
        if min(rows, columns) < 4 * _LAGS:
            return np.full_like(total, np.nan)
        taper = np.outer(np.hanning(rows), np.hanning(columns))
        power = np.abs(np.fft.fft2((residual - residual.mean()) * taper)) ** 2
        low = np.hypot(*np.meshgrid(np.fft.fftfreq(rows), np.fft.fftfreq(columns), indexing="ij")) < 0.25
        power[low] = power[~low].mean()
        spread = np.fft.fftshift(np.fft.ifft2(power).real)
        top, left = rows // 2 - _LAGS, columns // 2 - _LAGS
        middle = spread[top : top + 2 * _LAGS + 1, left : left + 2 * _LAGS + 1]
        total += middle / max(float(middle[_LAGS, _LAGS]), 1e-300)
    return total / len(noise)
