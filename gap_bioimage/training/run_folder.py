"""A training run's folder, without its checkpoints.

``RUN/`` holds config.yaml, best.ckpt, last.ckpt, metrics.csv, loss.png, preview.png, and two pieces of
the counts for export: example.npy for test tensors and cover, held_out.npy for measured numbers.
"""

from __future__ import annotations

import csv
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from gap_bioimage.config import RunConfig
from gap_bioimage.errors import CheckpointError, ConfigError, OutputError
from gap_bioimage.files import replacing
from gap_bioimage.foreign import read_weights
from gap_bioimage.model import CHECKPOINT_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gap_bioimage.model import Model
    from gap_bioimage.training.stacks import Split, Stack
    from gap_bioimage.training.start import Start

_PIECE_PX = {2: (512, 512), 3: (32, 128, 128)}  # largest piece of an image that is kept for export


def stored_settings(out: Path, given: RunConfig | None) -> RunConfig:
    """Return the settings of the run in a folder, with the number of steps that is asked for now.

    Raises
    ------
    ConfigError
        If other settings were given than stored, or fewer steps.
    """
    stored = RunConfig.read(out / "config.yaml")
    asked = {} if given is None else given.model_dump(exclude_unset=True)
    own = stored.model_dump()
    for section, values in asked.items():
        same = values if not isinstance(values, dict) or own[section] is None else {**own[section], **values}
        own[section] = same
    merged = RunConfig.from_dict(own)
    steps = {"train": stored.train.model_copy(update={"steps": merged.train.steps})}
    if stored.model_copy(update=steps).model_dump() != merged.model_dump():
        raise ConfigError(
            f"the run in {out} was started with other settings than given now; leave them out to resume it "
            "(only train.steps may change)"
        )
    if merged.train.steps < stored.train.steps:
        raise ConfigError(
            f"the run in {out} was started for {stored.train.steps} steps, now {merged.train.steps} are asked for; "
            "train.steps of a resumed run may only grow"
        )
    return merged


def open_run(out: Path, config: RunConfig, resume: bool, start: Start | None) -> Path | None:
    """Make the run folder, or take up the run that it holds; return the checkpoint to go on from.

    Raises
    ------
    OutputError
        If the folder holds a run that is not to be resumed, or cannot be made.
    CheckpointError
        If there is no run to resume in a folder that is not empty, or its last checkpoint is damaged.
    """
    stored = out / "config.yaml"
    if stored.exists() and not resume:
        raise OutputError(f"{out} already holds a training run; give resume=True to continue it, or another folder")
    if not stored.exists():
        if resume and out.exists() and any(out.iterdir()):
            raise CheckpointError(f"{out} holds no training run to resume (no config.yaml); start a new one")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the run folder {out}: {error.strerror}") from None
        if start is not None:
            start.write(out)  # before config.yaml, which makes the folder a run
    for leftover in out.glob(".*.tmp-*"):  # of writers that were killed
        leftover.unlink(missing_ok=True)
    with replacing(stored) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")
    return checkpoint_in(out, resume)


def checkpoint_in(out: Path, resume: bool) -> Path | None:
    """Return the checkpoint that a resumed run goes on from, None where there is none.

    Raises
    ------
    CheckpointError
        If it is cut off, or not one of this program.
    """
    last = out / "last.ckpt"
    if not resume or not last.exists():
        return None
    advice = f"remove it to go on from {out / 'best.ckpt'} as init of a new run, or train anew"
    try:
        content = read_weights(last, str(last))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {advice}") from None
    if CHECKPOINT_KEY not in content or "optimizer_states" not in content:
        raise CheckpointError(f"{last} is not a checkpoint of a training run; {advice}")
    return last


def write_examples(out: Path, stacks: Sequence[Stack], split: Split, dim: int) -> None:
    """Keep handy pieces of the brightest image, and of the brightest held-out one, for previews and export."""
    for name, candidates in (("example.npy", stacks), ("held_out.npy", split.held_out)):
        if (out / name).exists():
            continue
        stack = max(candidates, key=lambda s: s.mean())
        starts = [(n - min(n, size)) // 2 for n, size in zip(stack.shape[1:], _PIECE_PX[dim], strict=True)]
        cut = tuple(slice(s, s + size) for s, size in zip(starts, _PIECE_PX[dim], strict=True))
        with replacing(out / name) as temporary, open(temporary, "wb") as file:
            np.save(file, np.ascontiguousarray(stack.values[(slice(None), *cut)]))


def fingerprint(split: Split) -> str:
    """Tell the training data apart by shapes and the first rows, without reading all of it."""
    crc = 0
    for stack in split.training:
        values = stack.values
        crc = zlib.crc32(repr((stack.shape, values.dtype.str)).encode(), crc)
        plane = values[(0,) * (values.ndim - 2)]
        crc = zlib.crc32(np.ascontiguousarray(plane[:64]).tobytes(), crc)
    return f"{crc:08x}"


def draw_loss(run: Path) -> None:
    """Draw ``loss.png`` from ``metrics.csv``: losses against steps."""
    from matplotlib.figure import Figure

    from gap_bioimage.pictures import save_figure

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
    from gap_bioimage.pictures import draw_row

    detector = None if model.camera is None else model.camera.scalar
    counts = values if detector is None else detector.counts(values)
    photons = torch.from_numpy(counts.astype(np.float32))[None]
    rate = model.network.rate(photons, model.network(photons), [])[0].numpy()
    if detector is not None:
        counts, rate = (image - detector.background() for image in (counts, rate))
    planes = [array[0] if array.ndim == 3 else array[0, array.shape[1] // 2] for array in (counts, rate)]
    if planes[0].shape[0] > 1.5 * planes[0].shape[1]:  # slabs read better lying down
        planes = [plane.T for plane in planes]
    shown = "held-out counts" if detector is None else "held-out electrons"
    draw_row(run / "preview.png", {shown: planes[0], "denoised": planes[1]})
