"""Figures of calibrations and inspections; the caller saves them."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.camera.moments import FEW_PIXELS, as_stack, looks_at
from gap_bioimage.pictures import new_figure

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gap_bioimage.camera.calibration import Calibration
    from gap_bioimage.camera.moments import Floats
    from gap_bioimage.inspection import Inspection

_BLUE, _RED, _GREY = "#1f5f99", "#c8442c", "0.72"
_WIDE = 20.0  # ratio of signals from which on axes are logarithmic
_LAGS = 3
_BARS = 400  # more levels than this are drawn as a line over bins


def plot_calibration(found: Calibration) -> Figure:
    """Draw variance against signal with the line, the read-noise floor and the residuals."""
    figure, goodness, away = new_figure(7, 6), found.goodness, found.offset.value
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
    signal = goodness.mean - away
    _draw_line(upper, found, signal)
    expected = found.line.at(goodness.mean)
    lower.axhline(0, color=_RED, lw=1)
    _draw_points(lower, signal, 100 * (goodness.variance / expected - 1), 200 * goodness.error / expected)
    lower.set_ylim(*np.clip(lower.get_ylim(), -60, 60))
    lower.set(ylabel="off the line (%)", xlabel="mean - offset (ADU)")
    told = f"chi-square {goodness.chi_square:.2f} per degree of freedom ({goodness.freedom})"
    lower.text(0.99, 0.04, told, transform=lower.transAxes, ha="right", fontsize=8)
    counts = ": photon counts already" if found.counts else ""
    title = [*textwrap.wrap(f"{found.images}, {found.frames} frames{counts}", 80)]
    title += [f"gain {found.gain} ADU per {found.unit}", f"offset {found.offset} ADU (from: {found.offset_from})"]
    figure.suptitle("\n".join([*title, f"read noise {found.read_noise} {found.unit}s"]), fontsize=10)
    return figure


def _draw_points(axes: Axes, x: Floats, y: Floats, error: Floats, label: str = "") -> None:
    axes.errorbar(x, y, error, fmt="o", ms=4, color=_BLUE, capsize=2, zorder=3, label=label)


def _draw_line(axes: Axes, found: Calibration, signal: Floats) -> None:
    goodness, low, high = found.goodness, float(signal.min()), float(signal.max())
    logarithmic = low > 0 and high > _WIDE * low
    x = np.geomspace(0.5 * low, high, 400) if logarithmic else np.linspace(min(low, 0), high, 400)
    axes.plot(found.cloud[0] - found.offset.value, found.cloud[1], ".", ms=2, color=_GREY, label="blocks of pixels")
    axes.plot(x, found.line.at(x + found.offset.value), color=_RED, label="line: gain (mean - offset) + floor")
    _draw_points(axes, signal, goodness.variance, 2 * goodness.error, "blocks of like brightness (2 standard errors)")
    floor = (found.line.gain * found.read_noise.value) ** 2
    axes.axhline(floor, color="0.35", ls=":", label=f"floor, read noise alone: {floor:.3g} ADU$^2$")
    if logarithmic:
        axes.set(xscale="log", yscale="log", ylim=(0.5 * float(goodness.variance.min()), None))
    axes.set_ylabel("variance of the noise (ADU$^2$)")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)


def plot_inspection(image: xr.DataArray | None, report: Inspection) -> Figure:
    """Draw the brightest plane, the histogram, variance against mean and the correlation of the noise.

    Without an array of photons only the verdict is written.
    """
    figure = new_figure(11, 8.5)
    title = f"{Path(report.image).name}: {report.verdict} ({report.source_kind})"
    figure.suptitle("\n".join([title, *textwrap.wrap(report.message, 150)[:4]]), fontsize=9)
    if image is None or image.ndim < 2 or not image.size or image.dtype.kind not in "biuf":
        figure.text(0.1, 0.5, "no values that could be drawn")
        return figure
    panels = figure.subplots(2, 2)
    values = image.data if isinstance(image.data, np.ndarray) else image.values
    values = values.astype(np.uint8) if values.dtype == bool else values
    planes = [np.nan_to_num(look.mean) for look in looks_at(as_stack(values), FEW_PIXELS, False)]
    stack = as_stack(values, image.dims.index("t") if "t" in image.dims else None)
    noise = [np.nan_to_num(look.noise) for look in looks_at(stack, FEW_PIXELS, stack.shape[1] > 1)]
    brightest = max(planes, key=lambda plane: float(plane.mean()))
    top = float(np.percentile(brightest, 99.8))
    _draw_image(panels[0, 0], brightest, f"brightest plane ({image.dtype})", "magma", (float(brightest.min()), top))
    _draw_histogram(panels[0, 1], np.concatenate([plane.ravel() for plane in planes]), report)
    _draw_curve(panels[1, 0], report)
    lags = noise_autocorrelation(noise)
    lags[_LAGS, _LAGS] = np.nan
    reach = float(np.nanmax([0.1, *np.abs(lags).ravel()]))
    y, x = report.noise_correlation_y, report.noise_correlation_x
    told = "too few pixels" if y is None or x is None else f"neighbours {y:.2f} along y, {x:.2f} along x"
    title = f"noise up to {_LAGS} pixels apart: {told} (expected 0)"
    _draw_image(panels[1, 1], lags, title, "RdBu_r", (-reach, reach))
    return figure


def _draw_image(axes: Axes, image: Floats, title: str, colours: str, limits: tuple[float, float]) -> None:
    low, high = limits
    top = high if high > low else low + 1
    shown = axes.imshow(image, cmap=colours, vmin=low, vmax=top, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)


def _draw_histogram(axes: Axes, values: Floats, report: Inspection) -> None:
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    width = math.ceil((high - low + 1) / _BARS) if whole else max(high - low, 1e-12) / _BARS
    axes.hist(values, bins=np.arange(low - 0.5 * whole, high + 1.5 * width, width).tolist(), color="0.4")
    axes.set(yscale="log", xlabel="value", ylabel="pixels")
    axes.set_ylim(bottom=0.7)
    notes = [f"all values are multiples of {report.lattice:g}"] if report.lattice not in (0, 1) else []
    if report.saturated_share:
        axes.axvline(high, color="tab:red", linestyle="--")
        notes.append(f"{report.saturated_share:.2%} of the pixels at the maximum")
    axes.set_title("histogram: " + ", ".join([*notes, f"{report.zero_share or 0:.1%} zeros"]), fontsize=9)


def _draw_curve(axes: Axes, report: Inspection) -> None:
    """Draw the points, the line of photon counts and, for a camera, its own."""
    axes.set(xlabel="mean", ylabel="variance of the noise")
    fano = "" if report.fano is None else f", variance/mean {report.fano:.3g} in the dark"
    axes.set_title(f"variance against mean{fano or ': too few pixels'}", fontsize=9)
    points, guess = np.array(report.variance_curve).reshape(-1, 3), report.gain_guess
    if not len(points):
        return
    mean, variance, error = points.T
    low, high = float(mean.min()), float(mean.max())
    _draw_points(axes, mean, variance, error, "image")
    if guess is not None:
        label = f"gain {guess['gain']:g}, offset {guess['offset']:g}"
        axes.plot(mean, guess["gain"] * (mean - guess["offset"]), "--", color="tab:orange", label=label)
    if low <= 4 * variance.max():  # else a camera: the line of photon counts is far away
        axes.plot(*[[min(0.0, low), high]] * 2, color="0.4", label="photon counts")
    if low >= 0 and variance.max() > 0 and guess is None and high > _WIDE * max(low, 1e-9):
        floor = float(max(min(variance[variance > 0].min(), mean[mean > 0].min()), 1e-4))
        axes.set_xscale("symlog", linthresh=floor)
        axes.set_yscale("symlog", linthresh=floor)
    axes.legend(fontsize=8)


def noise_autocorrelation(noise: list[Any]) -> Floats:
    """Return the autocorrelation of noise (y, x) for lags -3 to 3, both axes, from its power spectrum.

    Frequencies below half of the highest hold structure; white noise of the same strength stands in for them.
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
        middle = spread[rows // 2 - _LAGS :, columns // 2 - _LAGS :][: 2 * _LAGS + 1, : 2 * _LAGS + 1]
        total += middle / max(float(middle[_LAGS, _LAGS]), 1e-300)
    return total / len(noise)
