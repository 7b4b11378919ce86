"""Pictures of a training run."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from gap_bioimage.network import rate_from_log_rate
from gap_bioimage.pictures import draw_row, save_figure

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.model import Model


def draw_loss(run: Path) -> None:
    """Draw ``loss.png`` from ``metrics.csv``: losses against steps."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [float(row["step"]) for row in rows]
    figure = Figure((6, 4), layout="constrained")
    axes = figure.add_subplot()
    for column, label in (("train_loss", "training"), ("validation_loss", "held out")):
        axes.plot(steps, [float(row[column]) for row in rows], marker=".", label=label)
    axes.set(xlabel="step", ylabel="photon loss (nats per photon)")
    axes.legend()
    save_figure(figure, run / "loss.png")


def draw_preview(run: Path, model: Model, values: np.ndarray) -> None:
    """Draw ``preview.png``: a held-out image (c, [z,] y, x), counts or camera values, beside the denoised one."""
    detector = model.camera
    detector = None if detector is None else detector.scalar
    counts = values if detector is None else detector.counts(values)
    photons = torch.from_numpy(counts.astype(np.float32))[None]
    rate = rate_from_log_rate(model.network(photons), photons)[0].numpy()
    if detector is not None:
        counts, rate = (image - detector.background() for image in (counts, rate))
    planes = [array[0] if array.ndim == 3 else array[0, array.shape[1] // 2] for array in (counts, rate)]
    if planes[0].shape[0] > 1.5 * planes[0].shape[1]:  # slabs read better lying down
        planes = [plane.T for plane in planes]
    shown = "held-out counts" if detector is None else "held-out electrons"
    draw_row(run / "preview.png", {shown: planes[0], "denoised": planes[1]})
