"""A raw camera movie, from calibration to a zip that takes raw frames.

    python benchmarks/telomeres.py ../shared/data WORK

Every step is the command that a user would type. Denoised frames are judged by the next raw frame, whose noise is
independent: its mean squared difference, less the noise's own variance, estimates the error without a known truth.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from bioimageio.core import Tensor, predict
from matplotlib.figure import Figure
from results import write_section
from scipy import ndimage

import gap_bioimage as gap
from gap_bioimage.photons.camera import read_camera
from gap_bioimage.pictures import save_figure

HERE = Path(__file__).parent
PICTURES = HERE.parent / "docs" / "images"
SIGMAS_PX = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
FRAMES = (0, 60, 120, 180)


def typed(*arguments: object) -> str:
    """Run a command of the package; return what it prints."""
    command = [sys.executable, "-m", "gap_bioimage", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def relative_error(estimate: np.ndarray, electrons: np.ndarray) -> float:
    """Return the squared error of estimates (t, y, x) over the light's variance, judged by the next frames.

    The noise's variance is half that of the difference of two frames; where objects move it is a little too large,
    alike for all estimates.
    """
    noise = np.square(electrons[1:] - electrons[:-1]).mean() / 2
    error = np.square(electrons[1:] - estimate[:-1]).mean() - noise
    return float(error / electrons.mean(0).var())


def in_core(zip_path: Path, frame: np.ndarray) -> np.ndarray:
    """Return what bioimageio.core makes of a raw frame (y, x)."""
    photons = Tensor(frame[None, None], dims=("batch", "channel", "y", "x"))
    (output,) = predict(model=zip_path, inputs={"photons": photons}).members.values()
    return np.asarray(output.data.values[0, 0])


def draw(path: Path, electrons: np.ndarray, denoised: np.ndarray, from_zip: np.ndarray, mean: np.ndarray) -> None:
    """Draw one frame: electrons, denoised, the zip's result, and the mean of the whole movie."""
    shown = {"raw frame (electrons)": electrons, "denoised": denoised, "zip in bioimageio.core": from_zip}
    shown["mean of 200 frames"] = mean
    figure = Figure((13, 3.3), layout="constrained")
    low, high = np.percentile(denoised, [1, 99.9])
    grid = figure.subplots(1, len(shown))
    for axes, (title, image) in zip(grid, shown.items(), strict=True):
        picture = axes.imshow(image, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    figure.colorbar(picture, ax=grid, shrink=0.7, label="photons per pixel")
    save_figure(figure, path)


def main(data: Path, work: Path) -> None:
    """Calibrate, inspect, train, denoise, export, validate and compare; write section and pictures."""
    movie, camera, run = data / "telomeres_camera_tyx.tif", work / "camera.yaml", work / "run"
    zip_path, denoised_path = work / "telomeres.zip", work / "denoised.tif"
    work.mkdir(parents=True, exist_ok=True)
    report = work / "camera.json"
    typed("calibrate", movie, "--out", camera, "--plot", PICTURES / "calibration.png", "--json", report)
    found = json.loads(typed("inspect", movie, "--json", "-", "--plot", PICTURES / "inspection.png"))
    if not (run / "preview.png").exists():
        resume = ["--resume"] if run.exists() else ["--config", HERE / "telomeres_2d.yaml"]
        typed("train", movie, "--dim", 2, "--out", run, "--camera", camera, "--quiet", *resume)
    typed("denoise", run, movie, denoised_path, "--camera", camera, "--quiet")
    typed("export", run, zip_path, "--card", HERE / "telomeres_card.yaml", "--quiet")
    checks = json.loads(typed("validate", zip_path, "--json", "-"))

    raw, denoised = (np.asarray(gap.read_photons(p, check=False).values) for p in (movie, denoised_path))
    detector = read_camera(camera)
    electrons = (raw.astype(float) - detector.camera.offset) / detector.camera.gain
    from_zip = np.stack([in_core(zip_path, raw[frame]) for frame in FRAMES])
    chosen = denoised[list(FRAMES)]
    agreement = [
        float(np.sqrt(np.square(from_zip - chosen)[cut].mean() / np.square(chosen)[cut].mean()))
        for cut in ((...,), (slice(None), slice(20, -20), slice(20, -20)))
    ]
    blurred = {s: np.stack([ndimage.gaussian_filter(frame, s) for frame in electrons]) for s in SIGMAS_PX}
    sigma = min(blurred, key=lambda s: relative_error(blurred[s], electrons))
    draw(PICTURES / "telomeres.png", electrons[60], denoised[60], from_zip[1], electrons.mean(0))

    camera_numbers = detector.camera
    statuses = [check["status"] for check in checks["checks"]]
    body = f"""
Camera: gain {camera_numbers.gain:.3g} ADU per electron, offset {camera_numbers.offset:.4g} ADU, read noise
{camera_numbers.read_noise:.3g} electrons. `inspect` says "{found["verdict"]}": {found["message"]}.

| estimate of a frame | squared error / variance of the scene |
|---|---|
| raw frame | {relative_error(electrons, electrons):.2f} |
| best Gaussian filter (sigma {sigma:g} px, chosen on the result) | {relative_error(blurred[sigma], electrons):.2f} |
| `gap-bioimage denoise --camera` | {relative_error(denoised, electrons):.2f} |

The zip takes raw frames: `validate` says {checks["status"]} ({statuses.count("warning")} warnings,
{statuses.count("failed")} failed). In bioimageio.core its result differs from `gap-bioimage denoise --camera` by
{100 * agreement[1]:.2f} % RMS of the result more than 20 px from the border, and {100 * agreement[0]:.2f} % in the
whole frame, where programs mirror the image.
"""
    write_section("A camera's movie: calibrated, denoised, shared", __doc__, body)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
