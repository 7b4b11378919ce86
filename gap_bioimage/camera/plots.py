"""Figures of calibrations and inspections. The caller saves them."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.camera.moments import FEW_PIXELS, as_stack, snapshots_of
from gap_bioimage.pictures import new_figure, show

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gap_bioimage.camera.calibration import Calibration
    from gap_bioimage.camera.moments import Floats
    from gap_bioimage.inspection import Inspection

_BLUE, _RED, _GREY = "#1f5f99", "#c8442c", "0.72"
# ratios of brightest to darkest signal between which axes are logarithmic; dark frames have none but by chance
_WIDE, _WIDEST = 20.0, 1000.0
_BARS = 400  # of a histogram


def plot_calibration(found: Calibration) -> Figure:
    """Draw variance against signal, with the fitted line, the read-noise floor and the residuals."""
    figure, curve, offset = new_figure(7, 6), found.goodness, found.offset.value
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
    signal, expected = curve.mean - offset, found.line.at(curve.mean)
    low, high = float(signal.min()), float(signal.max())
    wide = _WIDE * low < high < _WIDEST * low
    x = np.geomspace(0.5 * low, high, 400) if wide else np.linspace(min(low, 0), high, 400)
    upper.plot(found.cloud[0] - offset, found.cloud[1], ".", ms=2, color=_GREY, label="blocks of pixels")
    upper.plot(x, found.line.at(x + offset), color=_RED, label="line: gain (mean - offset) + floor")
    _draw_points(upper, signal, curve.variance, 2 * curve.error, "groups of equal brightness (2 standard errors)")
    floor = (found.line.gain * found.read_noise.value) ** 2
    upper.axhline(floor, color="0.35", ls=":", label=f"floor, read noise alone: {floor:.3g} ADU$^2$")
    if wide:
        _make_logarithmic(upper)
        upper.set_ylim(0.5 * float(curve.variance.min()), None)
    upper.set_ylabel("variance of the noise (ADU$^2$)")
    upper.legend(loc="upper left", fontsize=8, framealpha=0.9)
    lower.axhline(0, color=_RED, lw=1)
    _draw_points(lower, signal, 100 * (curve.variance / expected - 1), 200 * curve.error / expected)
    lower.set_ylim(*np.clip(lower.get_ylim(), -60, 60))
    quality = f"chi-square {curve.chi_square:.2f} per degree of freedom ({curve.freedom})"
    lower.set(ylabel="deviation (%)", xlabel=f"mean - offset (ADU); {quality}")
    counts = ": already photon counts" if found.counts else ""
    title = [*textwrap.wrap(f"{found.images}, {found.frames} frames{counts}", 80)]
    title += [f"gain {found.gain} ADU per {found.unit}", f"offset {found.offset} ADU (from: {found.offset_from})"]
    figure.suptitle("\n".join([*title, f"read noise {found.read_noise} {found.unit}s"]), fontsize=10)
    return figure


def _make_logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):  # powers of ten alone are too few labels, all minor ticks too many
        axis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())


def _draw_points(axes: Axes, x: Floats, y: Floats, error: Floats, label: str = "") -> None:
    axes.errorbar(x, y, error, fmt="o", ms=4, color=_BLUE, capsize=2, zorder=3, label=label)


def plot_inspection(image: xr.DataArray | None, report: Inspection) -> Figure:
    """Draw the brightest plane or frame, the histogram, variance against mean and the correlation of the noise.

    Without an image of real numbers the figure shows the verdict alone.
    """
    figure = new_figure(11, 8.5)
    kind = "" if report.source_kind in report.verdict else f" ({report.source_kind})"
    title = f"{Path(report.image).name}: {report.verdict}{kind}"
    figure.suptitle("\n".join([title, *textwrap.wrap(report.message, 150)[:4]]), fontsize=9)
    if image is None or image.ndim < 2 or not image.size or image.dtype.kind not in "biuf":
        figure.text(0.1, 0.5, "no values to draw")
        return figure
    panels = figure.subplots(2, 2)
    values = image.values.astype(np.uint8) if image.dtype == bool else image.data
    planes = [np.nan_to_num(s.mean) for s in snapshots_of(as_stack(values), FEW_PIXELS, False)]
    plane = max(planes, key=np.mean)
    low, high = float(plane.min()), float(np.percentile(plane, 99.8))
    part = "brightest plane" if "z" in image.dims else "brightest frame" if "t" in image.dims else "image"
    shown = show(panels[0, 0], f"{part} ({image.dtype})", plane, max(high, low + 1e-6), vmin=low)
    figure.colorbar(shown, shrink=0.8)
    _draw_histogram(panels[0, 1], np.concatenate(planes, axis=None), report)
    _draw_curve(panels[1, 0], report)
    _draw_correlation(panels[1, 1], report)
    for axes in panels.flat:
        axes.title.set_fontsize(9)
    return figure


def _draw_histogram(axes: Axes, values: Floats, report: Inspection) -> None:
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())  # a bar then holds one level, or several whole ones
    width = math.ceil((high - low + 1) / _BARS) if whole else max(high - low, 1e-12) / _BARS
    axes.hist(values, bins=np.arange(low - 0.5 * whole, high + 1.5 * width, width).tolist(), color="0.4")
    title = f"histogram: {report.zero_share or 0:.1%} zeros, {report.saturated_share or 0:.2%} saturated"
    axes.set(yscale="log", xlabel="value", ylabel="pixels", title=title)


def _draw_curve(axes: Axes, report: Inspection) -> None:
    fano = ": too few pixels" if report.fano is None else f", variance/mean {report.fano:.3g} in the dark"
    axes.set(xlabel="mean", ylabel="variance of the noise", title=f"variance against mean{fano}")
    if not report.variance_curve:
        return
    mean, variance, error = np.array(report.variance_curve).T
    low, high, guess = float(mean.min()), float(mean.max()), report.gain_guess
    _draw_points(axes, mean, variance, error, "image")
    if guess is not None:
        label = f"gain {guess['gain']:g}, offset {guess['offset']:g}"
        axes.plot(mean, guess["gain"] * (mean - guess["offset"]), "--", color="tab:orange", label=label)
    if low <= 4 * variance.max():  # otherwise, for a camera, the line of photon counts is far away
        axes.plot(*[[min(0.0, low), high]] * 2, color="0.4", label="photon counts")
    if 0 < _WIDE * low < high and variance.min() > 0 and guess is None:
        _make_logarithmic(axes)
    axes.legend(fontsize=8)


def _draw_correlation(axes: Axes, report: Inspection) -> None:
    y, x, error = report.noise_correlation_y, report.noise_correlation_x, report.noise_correlation_error
    title = f"noise correlation of neighbours ({report.noise_correlation_method}), expected 0"
    axes.set(title=title, ylabel="correlation (5 standard errors)")
    axes.axhline(0, color="0.4", lw=1)
    if y is not None and x is not None and error is not None:
        bars = axes.bar(["along y", "along x"], [y, x], yerr=5 * error, color=_BLUE, width=0.5, capsize=4)
        axes.bar_label(bars, fmt="%.3f", padding=4)
        axes.margins(0.3)
