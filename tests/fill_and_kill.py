"""Fill a volume in child processes that are killed at chosen moments, for test_inference_volumes."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fixtures_model import random_model

from gap_bioimage.inference.volumes import denoise_volume


def fill(image: Path, out: Path, **options: Any) -> None:
    """Denoise one volume of 25 blocks in the full resolution, and 13 in smaller levels."""
    denoise_volume(random_model(dim=2, start_filts=2), image, out, block_px=(128, 128), **options)


def killed_at(moment: int, image: Path, out: Path) -> int:
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
        fill(image, out)
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(image: Path, whole: Path, interrupted: Path) -> None:
    """Fill once without and once with kills, and print how every process ended."""
    print(killed_at(0, image, whole))
    for number in range(20):
        print(killed_at(number % 5 + 1, image, interrupted))  # the renames are those of a block and of its record
    print(killed_at(0, image, interrupted))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
