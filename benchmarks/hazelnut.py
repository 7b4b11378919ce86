"""Real photon counts: train on one frame of a z-stack, denoise it, score on the independent next frame.

    python benchmarks/hazelnut.py ../shared/data WORK

Runs the command line as a user would, then both zips through ``examples/predict_with_bioimageio.py``.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
from results import table, write_section
from scipy import ndimage
from scores import FLOOR, nats

from gap_bioimage.pictures import draw_grid

HERE = Path(__file__).parent
SIGMAS_PX = np.arange(0.5, 2.01, 0.1)
Z_RATIOS = (0.0, 0.2, 0.35, 0.5)


def best_gaussian(counts: np.ndarray, photons: np.ndarray, ratios: tuple[float, ...]) -> tuple[float, str, np.ndarray]:
    """Return the best Gaussian filter, selected on the scoring frame itself."""
    candidates = []
    for z, sigma in ((ratio * sigma, sigma) for ratio in ratios for sigma in SIGMAS_PX):
        rate = ndimage.gaussian_filter(counts.astype(float), (z, sigma, sigma))
        candidates.append((nats(rate, photons), f"sigma {sigma:.1f} px, z {z:.2f}", rate))
    return max(candidates, key=lambda candidate: candidate[0])


def run(log: list[str], *arguments: str | Path) -> None:
    """Run a command, and log it with its time."""
    words = [str(argument) for argument in arguments]
    start = time.monotonic()
    subprocess.run([sys.executable, *words], check=True)
    seconds = time.monotonic() - start
    shown = [Path(word).name if "/" in word and not word.startswith("--") else word for word in words]
    log.append(
        f"{shlex.join(['python', *shown]).replace('python -m gap_bioimage', 'gap-bioimage')}    # {seconds:.0f} s"
    )


def denoise_and_export(dim: int, data: Path, work: Path, log: list[str]) -> dict[str, np.ndarray]:
    """Train, denoise, export, validate, and predict with only bioimageio.core."""
    counts, cli = data / "hazelnut_photons_t0_zyx.tif", ("-m", "gap_bioimage")
    run_dir, out, zip_file = work / f"run_{dim}d", work / f"denoised_{dim}d.tif", work / f"hazelnut_{dim}d.zip"
    predicted, config = work / f"predicted_{dim}d.tif", HERE / f"hazelnut_{dim}d.yaml"
    resume = ["--resume"] if (run_dir / "config.yaml").exists() else []
    run(log, *cli, "train", counts, "--dim", str(dim), "--out", run_dir, "--config", config, "--quiet", *resume)
    run(log, *cli, "denoise", run_dir, counts, out, *(["--planes"] if dim == 2 else []))
    run(log, *cli, "export", run_dir, zip_file, "--card", HERE / "hazelnut_card.yaml", "--quiet")
    run(log, *cli, "validate", zip_file, "--run-code", "--json", work / f"report_{dim}d.json", "--quiet")
    run(log, HERE.parent / "examples" / "predict_with_bioimageio.py", zip_file, counts, predicted)
    return {"gap-bioimage denoise": tifffile.imread(out), "zip, bioimageio.core.predict": tifffile.imread(predicted)}


def main() -> None:
    """Run both models and write the section."""
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    frame, next_frame = (tifffile.imread(data / f"hazelnut_photons_{t}_zyx.tif") for t in ("t0", "t1"))
    log: list[str] = []
    planar, stacked = (best_gaussian(frame, next_frame, ratios) for ratios in ((0.0,), Z_RATIOS))
    rows = [
        ("raw counts", nats(frame, next_frame)),
        (f"best Gaussian filter in the plane ({planar[1]})", planar[0]),
        (f"best Gaussian filter in 3D ({stacked[1]})", stacked[0]),
    ]
    pictures = {"counts": frame, "best Gaussian": planar[2]}
    reports = []
    for dim in (2, 3):
        rates = denoise_and_export(dim, data, work, log)
        rows += [(f"{dim}D model, {name}", nats(rate, next_frame)) for name, rate in rates.items()]
        pictures[f"{dim}D model"] = rates["gap-bioimage denoise"]
        direct, packed = rates.values()
        border = (slice(None), slice(64, -64), slice(64, -64))
        inner = np.sqrt(np.mean((direct - packed)[border] ** 2) / np.mean(direct[border] ** 2))
        report = json.loads((work / f"report_{dim}d.json").read_text())
        counts = {s: sum(check["status"] == s for check in report["checks"]) for s in ("passed", "warning", "failed")}
        reports.append(
            f"{dim}D zip: validation {report['status']} ({counts}); `predict` differs from `denoise` by "
            f"{100 * inner:.2f} % (relative RMS, away from the border)."
        )
    plane = frame.shape[0] // 2
    draw_grid(HERE.parent / "docs" / "images" / "hazelnut.png", [{k: v[plane] for k, v in pictures.items()}])
    scored = [(name, f"{value:.4f}") for name, value in rows]
    write_section(
        "Hazelnut: real counts, scored on the next frame",
        __doc__,
        "Mean of `x1 ln d - d` per photon x1 of frame t1, in nats per photon, for estimates d from frame t0 alone "
        f"(clipped below at {FLOOR:g} photons). The sigmas of the Gaussian filters were selected on t1 itself.\n\n"
        f"{table(['estimate from t0', 'nats per photon'], scored)}\n\n" + "\n".join(reports) + "\n\n"
        "![counts, best Gaussian filter, 2D and 3D model, middle plane](../docs/images/hazelnut.png)\n\n"
        "Commands and their run times:\n\n```\n" + "\n".join(log) + "\n```",
    )


if __name__ == "__main__":
    main()
