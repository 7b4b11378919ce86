"""Train in child processes that are killed at chosen moments, for test_fit; imports are paid once."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from lightning.fabric.plugins import TorchCheckpointIO

from gap_bioimage.config import RunConfig
from gap_bioimage.training.fit import train

CONFIG = {
    "network": {"depth": 2, "start_filts": 4, "levels": 4},
    "train": {
        "steps": 58, "validate_every": 4, "batch_size": 4, "patch_px": [16, 16], "warmup_steps": 10,
        "validation_windows": 8, "ema_decay": 0.9, "learning_rate": 3e-3, "optimizer": "muon",
    },
}  # fmt: skip


def start(out: Path, prepare: Callable[[], None] | None = None) -> int:
    """Fork a child that trains in ``out``, resuming what is there; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        if prepare:
            prepare()
        counts = np.random.default_rng(0).poisson(np.linspace(0.2, 5, 64), (2, 64, 64)).astype(np.uint16)
        images = xr.DataArray(counts, dims=("t", "y", "x"))
        train(images, out, RunConfig.from_dict(CONFIG), resume=True, progress=False, device="cpu")
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def status_of(child: int) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_rename(name: str, after: bool, times: int) -> Callable[[], None]:
    """Make a process kill itself before or after its ``times``-th rename to ``name``."""

    def prepare() -> None:
        rename, seen = os.replace, 0

        def replace(source: Any, target: Any) -> None:
            nonlocal seen
            seen += Path(target).name == name
            hit = seen == times and Path(target).name == name
            if hit and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            if hit:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace  # type: ignore[assignment]

    return prepare


def die_while_writing(times: int) -> Callable[[], None]:
    """Make a process kill itself when half of its ``times``-th checkpoint is on the disk."""

    def prepare() -> None:
        save, seen = TorchCheckpointIO.save_checkpoint, 0

        def write_half(self: TorchCheckpointIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            nonlocal seen
            seen += 1
            save(self, checkpoint, path, storage_options)
            if seen == times:
                os.truncate(path, Path(path).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        TorchCheckpointIO.save_checkpoint = write_half  # type: ignore[method-assign]

    return prepare


def main(reference: Path, interrupted: Path) -> None:
    """Train once whole and once with kills, and print how every process ended."""
    print("whole", status_of(start(reference)))
    # the first is always the best so far
    for name, times in (("best.ckpt", 1), ("last.ckpt", 2), ("metrics.csv", 2)):
        for after in (False, True):
            child = start(interrupted, die_at_rename(name, after, times))
            print("after" if after else "before", name, status_of(child))
    for times in (1, 4):
        print("writing", status_of(start(interrupted, die_while_writing(times))))
    # the last row is only in the checkpoint when the end is killed here
    print("end", status_of(start(interrupted, die_at_rename("loss.png", False, 1))))
    print("finished", status_of(start(interrupted)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
