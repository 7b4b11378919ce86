"""Movies of arriving photons next to their denoised images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.animation import FFMpegWriter, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gap_bioimage.errors import OutputError
from gap_bioimage.files import check_output_path, replacing
from gap_bioimage.inference.resume import Unfinished
from gap_bioimage.inference.sampling import Progress
from gap_bioimage.pictures import brightest, new_figure, show

_FRAMES_PER_SECOND = 12
_MAX_FRAMES = 120
_HOLD_FRAMES = 18  # the last frame is shown for longer


def check_movie(path: Path) -> None:
    """Check that a movie can be written, before computing it."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise OutputError(f"cannot write {path}: unknown suffix {path.suffix!r}; use .gif or .mp4")
    check_output_path(path)
    _ffmpeg(path)


class Recorder:
    """Stores frames of the first image of a batch: one plane, channels summed."""

    def __init__(self, store: Unfinished) -> None:
        self.store = store  # on disk, so that an interrupted run loses no frames

    def add(self, progress: Progress) -> None:
        """Store counts and denoised counts of a step."""
        photons, rate = (_plane(image[0].cpu().numpy()) for image in (progress.counts, progress.rate))
        self.store.save(f"frame{progress.step}", photons=photons, rate=rate)

    def write(self, path: Path) -> None:
        """Write the movie by rename."""
        first = next(self._frames(), None)
        if first is None:
            raise OutputError("the frames of the movie are damaged; delete their hidden folder and generate again")
        figure, draw = _canvas(**first)
        with replacing(path) as temporary, rc_context({"animation.ffmpeg_path": _ffmpeg(path)}):
            writer_type: Any = PillowWriter if path.suffix.lower() == ".gif" else FFMpegWriter
            writer = writer_type(fps=_FRAMES_PER_SECOND)
            with writer.saving(figure, str(temporary), dpi=80):
                for frame in self._frames():
                    draw(**frame)
                    writer.grab_frame()

    def _frames(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield about ten seconds of frames, the last one repeated; damaged ones are left out."""
        numbers = np.unique(np.linspace(1, self.store.count("frame"), _MAX_FRAMES).round().astype(int)).tolist()
        for number in (*numbers, *([numbers[-1]] * _HOLD_FRAMES)):
            if (frame := self.store.load(f"frame{number}")) is not None:
                yield frame


def _plane(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (y, x): the sum of the channels, the middle plane of a stack."""
    summed: NDArray[np.float32] = image.sum(0)
    return summed if summed.ndim == 2 else summed[summed.shape[0] // 2]


def _canvas(photons: NDArray[np.float32], rate: NDArray[np.float32]) -> tuple[Figure, Any]:
    height, width = photons.shape
    scale = 4 / max(height, width)
    figure = new_figure(2 * max(2.0, scale * width) + 0.2, scale * height + 0.5)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    artists = [show(left, "", rate, 1.0), show(right, "denoised", rate, 1.0)]

    def draw(photons: NDArray[np.float32], rate: NDArray[np.float32]) -> None:
        # scaled to the brightness of each frame, which grows by a factor of up to a million
        top = brightest(rate)
        for artist, image, limit in zip(artists, (photons, rate), (max(1.0, 1.5 * top), top), strict=True):
            artist.set_data(image)
            artist.set_clim(0, limit)
        left.set_title(f"{photons.sum():,.0f} photons")

    return figure, draw


def _ffmpeg(path: Path) -> str:
    if path.suffix.lower() == ".gif":
        return "ffmpeg"
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        hint = "pip install 'gap-bioimage[video]', or write .gif"
        raise OutputError(f"cannot write {path}: .mp4 needs the video extra; {hint}") from None
    return str(get_ffmpeg_exe())
