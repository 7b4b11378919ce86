"""Figures of calibrations and inspections; the caller saves them."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from gap_bioimage.camera.moments import FEW_PIXELS, as_stack, looks_at

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from gap_bioimage.camera.calibration import Calibration
    from gap_bioimage.camera.moments import Floats
    from gap_bioimage.inspection import Inspection

_BLUE, _RED, _GREY = "#1f5f99", "#c8442c", "0.72"
_WIDE = 20.0  # ratio of signals from which on axes are logarithmic
_LAGS = 3
_BARS = 400  # more levels than this are drawn as a line over bins


def plot_calibration(found: Calibration) -> Figure:
    """Draw variance against mean with the line, the offset, the read-noise floor and the residuals."""
    figure = Figure((7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
    signal = found.goodness.mean - found.offset.value
    logarithmic = bool(signal.min() > 0 and signal.max() > _WIDE * signal.min())
    away = found.offset.value if logarithmic else 0.0
    _draw_line(upper, found, away)
    if logarithmic:
        upper.set_xscale("log")
        upper.set_yscale("log")
        upper.set_ylim(0.5 * float(found.goodness.variance.min()), None)
    else:
        _draw_offset(upper, found)
    _draw_residuals(lower, found, away)
    lower.set_xlabel("mean - offset (ADU)" if logarithmic else "mean (ADU)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    frames = f"{found.frames} frames" if found.frames > 1 else "one image"
    counts = ": photon counts already" if found.counts else ""
    figure.suptitle(
        "\n".join(textwrap.wrap(f"{found.images}, {frames}", 80))
        + f"{counts}\ngain {found.gain} ADU per {found.unit}\noffset {found.offset} ADU "
        f"({found.offset_from.replace('noise', 'from the noise', 1)})\nread noise {found.read_noise} {found.unit}s",
        fontsize=10,
    )
    return figure


def _draw_line(axes: Axes, found: Calibration, away: float) -> None:
    goodness, line = found.goodness, found.line
    low = goodness.mean.min() if away else min(found.offset.low, goodness.mean.min())
    x = np.linspace(low, goodness.mean.max(), 400)
    if away:
        x = away + np.geomspace(0.5 * (low - away), goodness.mean.max() - away, 400)
    axes.plot(found.cloud[0] - away, found.cloud[1], ".", ms=2, color=_GREY, label="blocks of pixels", zorder=1)
    axes.plot(x - away, line.intercept + line.gain * x, color=_RED, label="line: gain (mean - offset) + floor")
    axes.errorbar(
        goodness.mean - away,
        goodness.variance,
        2 * goodness.error,
        fmt="o",
        ms=4,
        color=_BLUE,
        capsize=2,
        label="blocks of like brightness (2 standard errors)",
        zorder=3,
    )
    floor = (line.gain * found.read_noise.value) ** 2
    axes.axhline(floor, color="0.35", ls=":", label=f"floor, read noise alone: {floor:.3g} ADU$^2$")
    axes.set_ylabel("variance of the noise (ADU$^2$)")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)


def _draw_offset(axes: Axes, found: Calibration) -> None:
    goodness, offset = found.goodness, found.offset
    label = f"offset, 95 %: {offset.low:.4g} to {offset.high:.4g}"
    axes.axvspan(offset.low, offset.high, color=_RED, alpha=0.15, lw=0)
    axes.axvline(offset.value, color=_RED, ls="--", lw=1, label=label)
    axes.set_ylim(min(0.0, 1.1 * goodness.variance.min()), 1.3 * goodness.variance.max())
    low, high = min(offset.low, goodness.mean.min()), goodness.mean.max()
    axes.set_xlim(low - 0.04 * (high - low), high + 0.08 * (high - low))
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)


def _draw_residuals(axes: Axes, found: Calibration, away: float) -> None:
    goodness = found.goodness
    expected = found.line.at(goodness.mean)
    residual, error = 100 * (goodness.variance / expected - 1), 200 * goodness.error / expected
    axes.axhline(0, color=_RED, lw=1)
    axes.errorbar(goodness.mean - away, residual, error, fmt="o", ms=4, color=_BLUE, capsize=2)
    reach = min(60.0, 1.2 * float(np.max(np.abs(residual) + error)))
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("off the line (%)")
    told = f"chi-square {goodness.chi_square:.2f} per degree of freedom ({goodness.freedom})"
    axes.text(0.99, 0.04, told, transform=axes.transAxes, ha="right", fontsize=8)


def plot_inspection(image: xr.DataArray | None, report: Inspection) -> Figure:
    """Draw the brightest plane, the histogram, variance against mean and the correlation of the noise.

    Parameters
    ----------
    image
        What was inspected; without an array of photons only the verdict is written.
    report
        From :func:`gap_bioimage.inspect`.
    """
    figure = Figure((11, 8.5), layout="constrained")
    title = f"{Path(report.image).name}: {report.verdict} ({report.source_kind})"
    figure.suptitle("\n".join([title, *textwrap.wrap(report.message, 150)[:4]]), fontsize=9)
    panels = figure.subplots(2, 2)
    if image is None or image.ndim < 2 or not image.size or image.dtype.kind not in "biuf":
        for axes in panels.flat:
            axes.set_axis_off()
        panels[0, 0].text(0, 0.5, "no values that could be drawn")
        return figure
    values = image.data if isinstance(image.data, np.ndarray) else image.values
    values = values.astype(np.uint8) if values.dtype == bool else values
    planes = [np.nan_to_num(look.mean) for look in looks_at(as_stack(values), FEW_PIXELS, False)]
    stack = as_stack(values, image.dims.index("t") if "t" in image.dims else None)
    noise = [np.nan_to_num(look.noise) for look in looks_at(stack, FEW_PIXELS, stack.shape[1] > 1)]
    _draw_image(figure, panels[0, 0], max(planes, key=lambda plane: float(plane.mean())), str(image.dtype))
    _draw_histogram(panels[0, 1], np.concatenate([plane.ravel() for plane in planes]), report)
    _draw_curve(panels[1, 0], report)
    _draw_correlation(figure, panels[1, 1], noise, report)
    return figure


def _draw_image(figure: Figure, axes: Axes, plane: Floats, dtype: str) -> None:
    low, high = float(plane.min()), float(np.percentile(plane, 99.8))
    shown = axes.imshow(plane, cmap="magma", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
    axes.set_title(f"brightest plane ({dtype})", fontsize=9)
    axes.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.8)


def _draw_histogram(axes: Axes, values: Floats, report: Inspection) -> None:
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
    notes = [f"all values are multiples of {report.lattice:g}"] if report.lattice not in (0, 1) else []
    if report.saturated_share:
        axes.axvline(high, color="tab:red", linestyle="--")
        notes.append(f"{report.saturated_share:.2%} of the pixels at the maximum")
    axes.set_title("histogram: " + ", ".join([*notes, f"{report.zero_share or 0:.1%} zeros"]), fontsize=9)


def _draw_curve(axes: Axes, report: Inspection) -> None:
    """Draw the points, the line of photon counts and, for a camera, its own."""
    axes.set_xlabel("mean")
    axes.set_ylabel("variance of the noise")
    points = np.array(report.variance_curve).reshape(-1, 3)
    if not len(points):
        axes.set_title("variance against mean: too few pixels", fontsize=9)
        return
    mean, variance, error = points.T
    axes.errorbar(mean, variance, error, fmt="o", color="tab:blue", markersize=4, label="image")
    reach = np.array([min(0.0, float(mean.min())), float(mean.max()) * 1.05])
    axes.plot(reach, reach, color="0.4", label="photon counts")
    guess = report.gain_guess
    if guess is not None:
        start = np.array([guess["offset"], max(reach[1], guess["offset"])])
        label = f"gain {guess['gain']:g}, offset {guess['offset']:g}"
        axes.plot(start, guess["gain"] * (start - guess["offset"]), "--", color="tab:orange", label=label)
    if mean.min() > 4 * variance.max():  # a camera: the line of photon counts is far away
        low, high = float(mean.min()), float(mean.max())
        axes.set_xlim(low - 0.2 * (high - low) - 1, high + 0.2 * (high - low) + 1)
        axes.set_ylim(0, 1.3 * float(variance.max() + error.max()))
    if mean.min() >= 0 and variance.max() > 0 and guess is None and mean.max() > _WIDE * max(mean.min(), 1e-9):
        floor = float(max(min(variance[variance > 0].min(), mean[mean > 0].min()), 1e-4))
        axes.set_xscale("symlog", linthresh=floor)
        axes.set_yscale("symlog", linthresh=floor)
    axes.legend(fontsize=8)
    fano = "" if report.fano is None else f", variance/mean {report.fano:.3g} in the dark"
    axes.set_title(f"variance against mean{fano}", fontsize=9)


def _draw_correlation(figure: Figure, axes: Axes, noise: list[Floats], report: Inspection) -> None:
    """Draw the autocorrelation of the noise for lags up to three pixels, its middle left out."""
    lags = noise_autocorrelation(noise)
    lags[_LAGS, _LAGS] = np.nan
    reach = max(0.1, float(np.nanmax(np.abs(lags))) if np.isfinite(lags).any() else 0.1)
    extent = (-_LAGS - 0.5, _LAGS + 0.5, _LAGS + 0.5, -_LAGS - 0.5)
    shown = axes.imshow(lags, cmap="RdBu_r", vmin=-reach, vmax=reach, extent=extent)
    figure.colorbar(shown, ax=axes, shrink=0.8)
    axes.set_xlabel("lag x (pixels)")
    axes.set_ylabel("lag y (pixels)")
    y, x = report.noise_correlation_y, report.noise_correlation_x
    numbers = "too few pixels" if y is None or x is None else f"neighbours {y:.2f} along y, {x:.2f} along x"
    axes.set_title(f"noise: {numbers} (expected 0)", fontsize=9)


def noise_autocorrelation(noise: list[Any]) -> Floats:
    """Return the autocorrelation of noise (y, x) for lags -3 to 3, both axes, from its power spectrum.

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
