"""A training run's folder, without its checkpoints and pictures.

``RUN/`` holds config.yaml, best.ckpt, last.ckpt, metrics.csv, loss.png, preview.png, and two pieces of
the counts for export: example.npy for test tensors and cover, held_out.npy for measured numbers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.config import RunConfig
from gap_bioimage.errors import CheckpointError, ConfigError, OutputError
from gap_bioimage.files import replacing
from gap_bioimage.training.stacks import values_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gap_bioimage.training.stacks import Split, Stack
    from gap_bioimage.training.start import Start

_PIECE_PX = {2: (512, 512), 3: (32, 128, 128)}  # largest piece of an image that is kept for export


def open_run(out: Path, config: RunConfig, resume: bool, start: Start | None) -> Path | None:
    """Make the run folder, or check that it holds the run to resume; return the checkpoint to start from."""
    stored_path = out / "config.yaml"
    if stored_path.exists() and not resume:
        raise OutputError(f"{out} already holds a training run; continue it with --resume or choose another --out")
    if not stored_path.exists():
        if resume and out.exists() and any(out.iterdir()):
            raise CheckpointError(f"{out} holds no training run to resume (no config.yaml); leave out --resume")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the run folder {out}: {error.strerror}") from None
        if start is not None:
            start.write(out)  # before config.yaml, which makes the folder a run
        with replacing(stored_path) as temporary:
            temporary.write_text(config.to_yaml(), encoding="utf-8")
        return None
    stored = RunConfig.read(stored_path)
    if stored.model_copy(update={"train": stored.train.model_copy(update={"steps": config.train.steps})}) != config:
        raise ConfigError(
            f"the run in {out} was started with other settings than given now; with --resume leave out "
            "--config, --set and --camera (only train.steps may change)"
        )
    if config.train.steps < stored.train.steps:
        raise ConfigError(
            f"the run in {out} was started for {stored.train.steps} steps, now {config.train.steps} are asked for; "
            "train.steps of a resumed run may only grow"
        )
    for leftover in out.glob(".*.tmp-*"):  # of writers that were killed
        leftover.unlink(missing_ok=True)
    with replacing(stored_path) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")
    return checkpoint_in(out, resume)


def checkpoint_in(out: Path, resume: bool) -> Path | None:
    """Return the checkpoint that a resumed run goes on from, None where there is none."""
    last = out / "last.ckpt"
    return last if resume and last.exists() else None


def write_examples(out: Path, stacks: Sequence[Stack], split: Split, dim: int) -> None:
    """Keep handy pieces of the brightest image, and of the brightest held-out one, for previews and export."""
    for name, candidates in (("example.npy", stacks), ("held_out.npy", split.held_out)):
        if (out / name).exists():
            continue
        stack = max(candidates, key=lambda s: float(s.mean()))
        starts = [(n - min(n, size)) // 2 for n, size in zip(stack.shape[1:], _PIECE_PX[dim], strict=True)]
        cut = tuple(slice(s, s + size) for s, size in zip(starts, _PIECE_PX[dim], strict=True))
        with replacing(out / name) as temporary, open(temporary, "wb") as file:
            np.save(file, np.ascontiguousarray(values_of(stack[(slice(None), *cut)])))


def fingerprint(split: Split) -> str:
    """Tell the training data apart by shapes and the first rows, without reading all of it."""
    crc = 0
    for stack in split.training:
        crc = zlib.crc32(repr((stack.shape, stack.dtype.str)).encode(), crc)
        values = values_of(stack)
        plane = values[(0,) * (values.ndim - 2)]
        crc = zlib.crc32(np.ascontiguousarray(plane[:64]).tobytes(), crc)
    return f"{crc:08x}"
