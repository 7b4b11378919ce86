"""The photon-transfer plot of a calibration."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from gap_bioimage.pictures import save_figure

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from gap_bioimage.photons.cameras.calibration import Calibration

    Floats = npt.NDArray[np.float64]

_WIDE = 20.0  # ratio of signals from which on axes are logarithmic
_BLUE, _RED, _GREY = "#1f5f99", "#c8442c", "0.72"
_SHOWN_RESIDUAL = 0.6  # largest relative residual that is shown


def draw_calibration(path: Path, found: Calibration) -> None:
    """Draw variance against mean with the line, the offset, the read-noise floor and the residuals.

    Parameters
    ----------
    path
        The PNG to write.
    found
        From :func:`gap_bioimage.calibrate`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    figure = Figure((7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
    goodness = found.goodness
    signal = goodness.mean - found.offset.value
    logarithmic = bool(signal.min() > 0 and signal.max() > _WIDE * signal.min())
    away = found.offset.value if logarithmic else 0.0
    _draw_curve(upper, found, away, logarithmic)
    _draw_residuals(lower, found, away)
    lower.set_xlabel("mean - offset (ADU)" if logarithmic else "mean (ADU)")
    figure.suptitle(_title(found), fontsize=10)
    save_figure(figure, path)


def _title(found: Calibration) -> str:
    unit = "effective photon" if found.detector.camera.multiplying else "electron"
    source = "given" if found.offset_from == "given" else f"from {found.offset_from.replace('noise', 'the noise')}"
    numbers = (
        f"gain {found.gain} ADU per {unit}\noffset {found.offset} ADU ({source})\nread noise {found.read_noise} {unit}s"
    )
    frames = f"{found.frames} frames" if found.frames > 1 else "one image"
    title = "\n".join(textwrap.wrap(f"{found.images}, {frames}", 80))
    return f"{title}{': photon counts already' if found.counts else ''}\n{numbers}"


def _draw_curve(axes: Axes, found: Calibration, away: float, logarithmic: bool) -> None:
    goodness, line = found.goodness, found.line
    offset = found.offset
    low = goodness.mean.min() if logarithmic else min(offset.low, goodness.mean.min())
    x = np.linspace(low, goodness.mean.max(), 400)
    if logarithmic:
        x = away + np.geomspace(0.5 * (low - away), goodness.mean.max() - away, 400)
    axes.plot(found.cloud[0] - away, found.cloud[1], ".", ms=2, color=_GREY, label="blocks of pixels", zorder=1)
    axes.plot(
        x - away, line.intercept + line.gain * x, color=_RED, label="line: gain (mean - offset) + floor", zorder=2
    )
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
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(0.5 * min(goodness.variance.min(), max(floor, 0.1 * goodness.variance.min())), None)
    else:
        axes.axvspan(offset.low, offset.high, color=_RED, alpha=0.15, lw=0)
        axes.axvline(
            offset.value, color=_RED, ls="--", lw=1, label=f"offset, 95 %: {offset.low:.4g} to {offset.high:.4g}"
        )
        top = max(1.3 * goodness.variance.max(), floor)
        axes.set_ylim(min(0.0, 1.1 * goodness.variance.min()), top)
        margin = 0.04 * (goodness.mean.max() - low)
        axes.set_xlim(low - margin, goodness.mean.max() + 2 * margin)
    axes.set_ylabel("variance of the noise (ADU$^2$)")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_residuals(axes: Axes, found: Calibration, away: float) -> None:
    goodness = found.goodness
    expected = found.line.at(goodness.mean)
    residual, error = 100 * (goodness.variance / expected - 1), 200 * goodness.error / expected
    axes.axhline(0, color=_RED, lw=1)
    axes.errorbar(goodness.mean - away, residual, error, fmt="o", ms=4, color=_BLUE, capsize=2)
    reach = min(100 * _SHOWN_RESIDUAL, 1.2 * float(np.max(np.abs(residual) + error)))
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("off the line (%)")
    axes.text(
        0.99,
        0.04,
        f"chi-square {goodness.chi_square:.2f} per degree of freedom ({goodness.freedom})",
        transform=axes.transAxes,
        ha="right",
        fontsize=8,
    )
    axes.spines[["top", "right"]].set_visible(False)
