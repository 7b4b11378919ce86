"""A raw camera movie, from calibration to a zip that takes raw frames.

    python benchmarks/telomeres.py ../shared/data WORK

Every step is a command that a user would type. Denoised frames are compared with the next raw frame, whose noise is
independent: the mean squared difference minus the noise variance estimates the error without a known truth.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from bioimageio.core import Tensor, predict
from matplotlib.figure import Figure
from results import write_section
from scipy import ndimage

import gap_bioimage as gap
from gap_bioimage.camera.camera import read_camera
from gap_bioimage.io import write_image
from gap_bioimage.pictures import save_figure

if TYPE_CHECKING:
    from gap_bioimage.config import Camera

HERE = Path(__file__).parent
PICTURES = HERE.parent / "docs" / "images"
SIGMAS_PX = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
FRAMES = (0, 60, 120, 180)


def run_cli(*arguments: object) -> str:
    """Run a command of the package, and return its output."""
    command = [sys.executable, "-m", "gap_bioimage", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def relative_error(estimate: np.ndarray, electrons: np.ndarray) -> float:
    """Return the squared error of estimates (t, y, x) over the scene's variance, from the next frames.

    The noise variance is half that of the difference of two frames. Where objects move it is slightly too large,
    by the same amount for all estimates.
    """
    noise = np.square(electrons[1:] - electrons[:-1]).mean() / 2
    error = np.square(electrons[1:] - estimate[:-1]).mean() - noise
    return float(error / electrons.mean(0).var())


def predict_in_core(zip_path: Path, frame: np.ndarray) -> np.ndarray:
    """Run bioimageio.core on a raw frame (y, x)."""
    photons = Tensor(frame[None, None], dims=("batch", "channel", "y", "x"))
    (output,) = predict(model=zip_path, inputs={"photons": photons}).members.values()
    return np.asarray(output.data.values[0, 0])


def draw(path: Path, whole: tuple[np.ndarray, ...], half: tuple[np.ndarray, ...]) -> None:
    """Draw a frame of the movie as stored, and of every second pixel: raw, denoised, mean of all frames."""
    titles = ["raw frame (electrons)", "denoised", "zip in bioimageio.core", "mean of 200 frames"]
    figure = Figure((12.5, 5.6), layout="constrained")
    grid = figure.subplots(2, 4)
    sparse = [f"every second pixel: {title}" for title in (titles[0], titles[1], titles[3])]
    for row, images, names in ((grid[0], whole, titles), (grid[1], half, sparse)):
        low, high = np.percentile(images[1], [1, 99.8])
        for axes in row:
            axes.set_axis_off()
        for axes, title, image in zip(row, names, images, strict=False):
            picture = axes.imshow(image, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(title, fontsize=9)
        figure.colorbar(picture, ax=row, shrink=0.8, label="photons per pixel")
    save_figure(figure, path)


class Processed(NamedTuple):
    """A movie, its electrons, its denoised frames, and the run and camera behind them."""

    raw: np.ndarray
    electrons: np.ndarray
    denoised: np.ndarray
    run: Path
    camera: Camera


def process(movie: Path, work: Path, plot: Path, *settings: str) -> Processed:
    """Calibrate, train with more ``settings`` (options of ``train``), and denoise."""
    work.mkdir(parents=True, exist_ok=True)
    camera, run, out = work / "camera.yaml", work / "run", work / "denoised.tif"
    run_cli("calibrate", movie, "--out", camera, "--plot", plot)
    if not (run / "preview.png").exists():
        more = ["--resume"] if run.exists() else ["--config", HERE / "telomeres_2d.yaml"]
        run_cli("train", movie, "--dim", 2, "--out", run, "--camera", camera, "--quiet", *more, *settings)
    run_cli("denoise", run, movie, out, "--camera", camera, "--quiet")
    raw, denoised = (np.asarray(gap.read_photons(path, check=False).values) for path in (movie, out))
    numbers = read_camera(camera).camera
    return Processed(raw, (raw.astype(float) - numbers.offset) / numbers.gain, denoised, run, numbers)


def table(name: str, movie: Processed) -> str:
    """Return the table row with the errors of one movie."""
    blurred = {s: np.stack([ndimage.gaussian_filter(frame, s) for frame in movie.electrons]) for s in SIGMAS_PX}
    errors = {sigma: relative_error(image, movie.electrons) for sigma, image in blurred.items()}
    sigma = min(errors, key=lambda s: errors[s])
    raw, denoised = (relative_error(image, movie.electrons) for image in (movie.electrons, movie.denoised))
    return f"| {name} | {raw:.2f} | {errors[sigma]:.2f} ({sigma:g} px) | {denoised:.2f} |"


def export_and_validate(movie: Processed, work: Path) -> tuple[np.ndarray, list[float], list[str]]:
    """Export and validate; return the results in bioimageio.core, their deviations, and the check statuses."""
    path = work / "telomeres.zip"
    run_cli("export", movie.run, path, "--card", HERE / "telomeres_card.yaml", "--quiet")
    checks = json.loads(run_cli("validate", path, "--json", "-"))
    from_zip = np.stack([predict_in_core(path, movie.raw[frame]) for frame in FRAMES])
    chosen = movie.denoised[list(FRAMES)]
    inner = (slice(None), slice(20, -20), slice(20, -20))
    agreement = [
        float(np.sqrt(np.square(from_zip - chosen)[cut].mean() / np.square(chosen)[cut].mean()))
        for cut in (inner, (...,))
    ]
    return from_zip, agreement, [checks["status"], *(check["status"] for check in checks["checks"])]


def main(data: Path, work: Path) -> None:
    """Process the movie and every second pixel of it; write the section and the pictures."""
    work.mkdir(parents=True, exist_ok=True)
    movie, sparse = data / "telomeres_camera_tyx.tif", work / "every_second_pixel.tif"
    inspection = json.loads(run_cli("inspect", movie, "--json", "-", "--plot", PICTURES / "inspection.png"))
    whole = process(movie, work / "whole", PICTURES / "calibration.png")
    single = process(movie, work / "single_frames", work / "calibration.png", "--set", "train.repeats=null")
    from_zip, agreement, statuses = export_and_validate(whole, work)
    write_image(sparse, gap.read_photons(movie, check=False)[:, ::2, ::2])
    half = process(sparse, work / "half", work / "calibration.png")
    rows = [(whole.electrons[60], whole.denoised[60], from_zip[1], whole.electrons.mean(0))]
    draw(PICTURES / "telomeres.png", rows[0], (half.electrons[60], half.denoised[60], half.electrons.mean(0)))
    camera = whole.camera
    gain, offset = (" to ".join(f"{end:.4g}" for end in camera.measured[f"{name}_95"]) for name in ("gain", "offset"))
    body = f"""
Camera: gain {camera.gain:.3g} ADU per electron ({gain}), offset {camera.offset:.4g} ADU ({offset}), read noise
{camera.read_noise:.3g} electrons (95 % intervals). The verdict of `inspect` is "{inspection["verdict"]}", with a noise
correlation between neighbouring pixels of {inspection["noise_correlation_y"]:.2f} along y and
{inspection["noise_correlation_x"]:.2f} along x: the movie was shifted by a fraction of a pixel before it was stored.
A network that learns from single frames copies such noise. Frames do not share theirs, so `train` takes the nearest
frames as targets. Every second pixel along y and x has independent noise; there single frames suffice.

Squared error over the scene's variance, estimated from the next frame (lower is better):

| movie | raw frame | best Gaussian filter (selected on the result) | `gap-bioimage denoise` |
|---|---|---|---|
{table("as stored", whole)}
{table("as stored, trained on single frames (`train.repeats=null`)", single)}
{table("every second pixel along y and x", half)}

The zip takes raw frames. Verdict of `validate`: {statuses[0]} ({statuses.count("warning")} warning,
{statuses.count("failed")} failed). In bioimageio.core its result differs from `gap-bioimage denoise --camera` by
{100 * agreement[0]:.2f} % (RMS over RMS) more than 20 px from the border, and by {100 * agreement[1]:.2f} % in whole
frames, since programs mirror the image at the border.

![raw, denoised, from the zip, mean of all frames](../docs/images/telomeres.png)

![photon-transfer curve of the movie](../docs/images/calibration.png)
"""
    write_section("A camera's movie: calibrated, denoised, shared", __doc__, body)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
