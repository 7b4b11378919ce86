"""Volumes whose processes are killed; run as a script, this file fills one in children that kill themselves."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import python
from fixtures_model import Trained, random_model
from kill_and_resume import killed_at
from test_inference_volumes import counts, stored

from gap_bioimage.inference.volumes import denoise_volume
from gap_bioimage.io import write_image
from gap_bioimage.model import load_model

pytest.importorskip("zarr")


def main(image: Path, whole: Path, interrupted: Path) -> None:
    """Fill once without and once with kills, and print how every process ended."""
    model, how = random_model(dim=2, start_filts=2), {"block_px": (128, 128), "halo_px": (16, 16)}
    # 25 blocks and 13 of smaller levels; the renames are those of a block and of its record
    for moment, out in ((0, whole), *((n % 5 + 1, interrupted) for n in range(20)), (0, interrupted)):
        print(killed_at(moment, lambda: denoise_volume(model, image, out, **how)))  # type: ignore[arg-type]  # noqa: B023


@pytest.mark.slow
def test_kills_at_any_moment_change_no_byte(tmp_path: Path) -> None:
    write_image(tmp_path / "in.tif", counts("yx", size=600))
    whole, out = tmp_path / "whole" / "a.zarr", tmp_path / "a.zarr"
    whole.parent.mkdir()
    done = python(__file__, tmp_path / "in.tif", whole, out)
    assert done.out.split() == ["0", *["-9"] * 20, "0"], done.err
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
