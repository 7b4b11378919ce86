"""Work in child processes that kill themselves; run as a script, a training that is killed and goes on."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

CONFIG = {
    "network": {"depth": 2, "start_filts": 4, "levels": 4},
    "train": {
        "steps": 58, "validate_every": 4, "batch_size": 4, "patch_px": [16, 16], "warmup_steps": 10,
        "validation_windows": 8, "ema_decay": 0.9, "learning_rate": 3e-3, "optimizer": "muon",
    },
}  # fmt: skip
# After and before the settings, the examples, the best, the last checkpoint and the metrics appear.
MOMENTS = (1, 2, 4, 5, 6, 3, 4, 5, 6, 7)


def killed_at(moment: int, work: Callable[[], Any]) -> int:
    """Fork a child that kills itself at its ``moment``-th rename, in odd moments just after it; return its status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    replace, seen = os.replace, 0

    def dying(source: Any, target: Any) -> None:
        nonlocal seen
        seen += 1
        if seen != moment or moment % 2:
            replace(source, target)
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = dying  # type: ignore[assignment]
    try:
        work()
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(whole: Path, interrupted: Path) -> None:
    """Train once without and once with kills, and print how every process ended."""
    from gap_bioimage.config import RunConfig
    from gap_bioimage.training.fit import train

    counts = np.random.default_rng(0).poisson(np.linspace(0.2, 5, 64), (2, 64, 64)).astype(np.uint16)
    images, how = xr.DataArray(counts, dims=("t", "y", "x")), {"resume": True, "progress": False, "device": "cpu"}
    for moment, out in ((0, whole), *((moment, interrupted) for moment in (*MOMENTS, 0))):
        print(killed_at(moment, lambda: train(images, out, RunConfig.from_dict(CONFIG), **how)))  # noqa: B023


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
