"""Volumes whose processes are killed; run as a script, this file fills one in children that kill themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures_model import Trained, random_model
from test_inference_volumes import counts, stored

from gap_bioimage.inference.volumes import denoise_volume
from gap_bioimage.io import write_image
from gap_bioimage.model import load_model

pytest.importorskip("zarr")


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
        # 25 blocks of the full resolution, and 13 of smaller levels
        denoise_volume(random_model(dim=2, start_filts=2), image, out, block_px=(128, 128), halo_px=(16, 16))
    except BaseException as error:
        print(type(error).__name__, error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main(image: Path, whole: Path, interrupted: Path) -> None:
    """Fill once without and once with kills, and print how every process ended."""
    print(killed_at(0, image, whole))
    for number in range(20):
        # the renames are those of a block and of its record, and of those of smaller levels
        print(killed_at(number % 5 + 1, image, interrupted))
    print(killed_at(0, image, interrupted))


@pytest.mark.slow
def test_kills_at_any_moment_change_no_byte(tmp_path: Path) -> None:
    write_image(tmp_path / "in.tif", counts("yx", size=600))
    whole, out = tmp_path / "whole" / "a.zarr", tmp_path / "a.zarr"
    whole.parent.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, __file__, tmp_path / "in.tif", whole, out]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.stdout.split() == ["0", *["-9"] * 20, "0"], done.stderr
    assert stored(out) == stored(whole)


@pytest.mark.slow
def test_a_cluster_whose_worker_is_killed_gives_the_same_bytes(tmp_path: Path, trained_2d: Trained) -> None:
    distributed = pytest.importorskip("distributed")
    (tmp_path / "one").mkdir()
    write_image(tmp_path / "in.tif", counts("yx", size=600))
    how: dict[str, Any] = {"block_px": (128, 128)}
    model, whole, out = load_model(trained_2d.run), tmp_path / "one" / "a.zarr", tmp_path / "a.zarr"
    denoise_volume(model, tmp_path / "in.tif", whole, **how)
    killed: list[int] = []
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):

        def kill_one(done: int, total: int) -> None:
            if not killed and done > total / 4:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

        how |= {"scheduler": cluster.scheduler_address, "on_block": kill_one}
        status = denoise_volume(model, tmp_path / "in.tif", out, **how)
    assert killed
    assert status.complete
    assert stored(out) == stored(whole)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
