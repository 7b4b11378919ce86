"""The folder of a run: made once, resumed by the same settings and images, with pieces of the counts for export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_training_fit import config_of, run, stripes

from gap_bioimage.errors import CheckpointError, OutputError
from gap_bioimage.training import run_folder
from gap_bioimage.training.run_folder import checkpoint_in, fingerprint, open_run
from gap_bioimage.training.stacks import as_stacks, split_held_out

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr


def test_a_folder_of_other_things_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="no training run to resume"):
        run(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the run folder"):
        run(tmp_path / "file" / "run")


def test_large_images_are_cut_for_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(run_folder._PIECE_PX, 2, (20, 100))
    run(tmp_path / "run", config=config_of(steps=1))
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "example.npy")[0], stripes().values[22:42])


def test_leftovers_of_killed_writers_go_when_a_run_is_resumed(tmp_path: Path) -> None:
    assert open_run(tmp_path / "run", config_of(), resume=False, start=None) is None
    leftover = tmp_path / "run" / ".last.tmp-01234567.ckpt"
    leftover.write_bytes(b"half of a checkpoint")
    assert open_run(tmp_path / "run", config_of(), resume=True, start=None) is None  # no step was stored
    assert not leftover.exists()


def test_a_cut_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path, config=config_of(steps=2))
    last = tmp_path / "last.ckpt"
    assert checkpoint_in(tmp_path, resume=True) == last
    assert checkpoint_in(tmp_path, resume=False) is None
    whole = last.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:10], b""):
        last.write_bytes(part)
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            run(tmp_path, config=config_of(steps=4), resume=True)
    last.write_bytes((tmp_path / "held_out.npy").read_bytes())
    with pytest.raises(CheckpointError):
        run(tmp_path, config=config_of(steps=4), resume=True)


def test_fingerprints_tell_images_apart() -> None:
    def of(*images: xr.DataArray) -> str:
        return fingerprint(split_held_out(as_stacks(list(images), 2), 0.1, 0))

    image = stripes()
    assert of(image) == of(image.copy())
    assert len({of(image), of(image, image), of(image + 1), of(image.astype(np.int32)), of(stripes(seed=1))}) == 5
