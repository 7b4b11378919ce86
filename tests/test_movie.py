"""Movies: readable files of the right length, or a sentence."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gap_bioimage.errors import OutputError
from gap_bioimage.inference.resume import Unfinished
from gap_bioimage.inference.sampling import Progress
from gap_bioimage.movie import Recorder, check_movie


def state(photons: float, shape: tuple[int, ...] = (2, 1, 20, 30), step: int = 1) -> Progress:
    rng = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full(shape, photons), rng)
    rate = counts.mean() * torch.ones(shape)
    return Progress(0, range(1), step, step, step, counts, rate)


@pytest.mark.parametrize(("steps", "frames"), [(1, 1 + 18), (30, 12 + 18)])
def test_long_climbs_are_thinned_out_and_the_end_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, frames: int
) -> None:
    monkeypatch.setattr("gap_bioimage.movie._MAX_FRAMES", 12)
    recorder = Recorder(Unfinished(tmp_path / "frames", {}))
    for step in range(steps):
        recorder.add(state(0.1 * step, step=step + 1))
    recorder.write(tmp_path / "m.gif")
    with Image.open(tmp_path / "m.gif") as movie:
        durations, shown = 0.0, 0
        for number in range(movie.n_frames):
            movie.seek(number)
            durations += movie.info["duration"]
            shown += 1
    # equal frames are joined in the file and shown longer
    assert shown <= frames
    assert durations == pytest.approx(frames * 1000 / 12, rel=0.05)
    assert {p.name for p in tmp_path.iterdir()} == {"m.gif", "frames"}


@pytest.mark.parametrize("shape", [(1, 2, 12, 14), (1, 1, 5, 12, 14)])
def test_channels_are_summed_and_stacks_shown_by_their_middle(tmp_path: Path, shape: tuple[int, ...]) -> None:
    recorder = Recorder(Unfinished(tmp_path / "frames", {}))
    recorder.add(state(3.0, shape))
    frame = recorder.store.load("frame1")
    assert frame is not None
    photons, rate = frame["photons"], frame["rate"]
    counts = state(3.0, shape).counts[0].numpy().sum(0)
    np.testing.assert_array_equal(photons, counts if counts.ndim == 2 else counts[2])
    assert rate.shape == (12, 14)
    recorder.write(tmp_path / "m.gif")


@pytest.mark.parametrize(
    ("name", "message"), [("m.avi", "use .gif or .mp4"), ("no/m.gif", "create"), ("m.mp4", r"gap-bioimage\[video\]")]
)
def test_impossible_movies_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(OutputError, match=message):
        check_movie(tmp_path / name)


def test_damaged_frames_are_left_out(tmp_path: Path) -> None:
    recorder = Recorder(Unfinished(tmp_path / "frames", {}))
    for step in (1, 2, 3):
        recorder.add(state(float(step), step=step))
    for step in (1, 3):
        (tmp_path / "frames" / f"frame{step}.npz").write_bytes(b"PK")
    recorder.write(tmp_path / "m.gif")
    (tmp_path / "frames" / "frame2.npz").write_bytes(b"PK")
    with pytest.raises(OutputError, match="damaged; delete"):
        recorder.write(tmp_path / "m.gif")
