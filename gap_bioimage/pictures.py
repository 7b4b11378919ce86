"""Figures as PNG, drawn without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; matplotlib, which takes half a second to import, is imported here only."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def draw_grid(path: Path, rows: Sequence[Mapping[str, NDArray[np.generic]]]) -> None:
    """Draw rows of images ``(y, x)`` with titles; the last image of a row sets its brightness scale."""
    height, width = next(iter(rows[0].values())).shape
    scale = 4 / max(height, width)
    figure = new_figure(len(rows[0]) * max(2.0, scale * width), len(rows) * (scale * height + 0.4))
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for row, images in zip(grid, rows, strict=True):
        top = brightest(list(images.values())[-1])
        for axes, (title, image) in zip(row, images.items(), strict=True):
            show(axes, title, image, top)
    save_figure(figure, path)


def in_rows(strip: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cut a strip, such as the held-out part of a single image, into rows, NaN between them, of a squarer picture."""
    strip = strip.T if strip.shape[0] > strip.shape[1] else strip
    height, width = strip.shape
    count = max(1, round((width / height) ** 0.5))
    rows = strip[:, : width // count * count].reshape(height, count, -1).swapaxes(0, 1)
    return np.pad(rows, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, width // count)[:-1]


def brightest(image: NDArray[np.generic]) -> float:
    """Return the upper end of the display range: the 99.8th percentile, or 1 if that is 0."""
    return float(np.nanpercentile(image.astype(float), 99.8)) or 1.0


def show(axes: Any, title: str, image: NDArray[np.generic], top: float, **look: Any) -> Any:
    """Draw an image with a title, without axes."""
    axes.set_title(title)
    axes.set_axis_off()
    return axes.imshow(image, **{"cmap": "magma", "vmin": 0.0, "vmax": top, "interpolation": "nearest", **look})


def draw_posterior(path: Path, photons: Mapping[str, NDArray[np.generic]], std: NDArray[np.generic]) -> None:
    """Draw images ``(y, x)`` in photons, scaled to the second one, and their standard deviation on its own scale."""
    height, width = std.shape
    scale = 3 / max(height, width)
    figure = new_figure((len(photons) + 1) * max(1.6, scale * width), scale * height + 1.25)
    *left, right = figure.subplots(1, len(photons) + 1)
    denoised, *samples = list(photons.values())[1:]
    top = brightest(denoised if denoised.any() else np.stack(samples))
    drawn = [show(axes, title, image, top) for axes, (title, image) in zip(left, photons.items(), strict=True)]
    figure.colorbar(drawn[-1], ax=left, location="bottom", shrink=0.4, label="photons per pixel")
    drawn_std = show(right, "standard deviation", std, brightest(std), cmap="viridis", interpolation=None)
    figure.colorbar(drawn_std, ax=right, location="bottom", label="photons per pixel")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG by rename."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
