"""Figures as PNG, drawn without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gap_bioimage.files import replacing

if TYPE_CHECKING:
    from pathlib import Path


def draw_row(path: Path, images: dict[str, np.ndarray], shared_scale: bool = True) -> None:
    """Draw images ``(y, x)`` side by side on one grey scale, with their titles."""
    last = list(images.values())[-1]
    limits = (0.0, float(np.percentile(last, 99.8)) or 1.0) if shared_scale else (None, None)
    height, width = last.shape
    longest = max(height, width)
    figure = Figure(
        (4 * len(images) * max(0.5, width / longest), 4 * height / longest + 0.5), layout="constrained"
    )
    for position, (title, image) in enumerate(images.items(), 1):
        axes = figure.add_subplot(1, len(images), position)
        axes.imshow(image, cmap="magma", vmin=limits[0], vmax=limits[1], interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG by rename."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
