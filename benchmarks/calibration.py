"""Calibration of simulated cameras: errors of gain, offset and read noise, and coverage of their intervals.

    python benchmarks/calibration.py

All combinations of gain, offset and read noise, for scenes with many and few photons, with and without electron
multiplication; from stacks, two frames and one image.
"""

import itertools
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from cameras import simulate_camera
from results import write_section

from gap_bioimage.camera.calibration import calibrate
from gap_bioimage.simulation import simulate_truth

GAINS = (0.2, 1.0, 2.2, 30.0)  # ADU per electron
OFFSETS = (0.0, 100.0, 500.0)  # ADU
READ = (0.0, 1.6, 3.0)  # electrons
ELECTRONS = (5.0, 50.0)  # mean per pixel
SIZE_PX = 192
FRAMES = (50, 2, 1)
REPEATS = 4  # scenes per camera
Case = tuple[float, float, float, bool, float, int, int]
Row = list[float]


def measure(case: Case) -> Row | str:
    """Return the errors and interval coverage for one camera and scene, or the reason for a refusal."""
    gain, offset, read, em, electrons, frames, seed = case
    scene = simulate_truth(2, (SIZE_PX, SIZE_PX), seed) * electrons
    images = simulate_camera(
        scene, gain=gain, offset=offset, read_noise=read, em=em, n_frames=frames, seed=seed + hash(case) % 1000
    )
    try:
        result = calibrate(images if frames > 1 else images.isel(t=0), multiplying=None if frames > 2 else em)
    except ValueError as error:
        return str(error)
    factor = 2 if em else 1
    noise = np.hypot(read / factor, (1 / 12) ** 0.5 / (factor * gain)) if factor * gain < 0.9 or read else 0.0
    truth = (factor * gain, offset, float(noise))
    estimates = (result.gain, result.offset, result.read_noise)
    covered = [
        float(estimate.low <= value * (1 + 1e-9) and value * (1 - 1e-9) <= estimate.high)
        for estimate, value in zip(estimates, truth, strict=True)
    ]
    near = abs(result.offset.value - offset) <= 1 or bool(covered[1])
    warned = any("one ADU" in text or "clipped" in text for text in result.warnings)
    errors = (result.gain.value / truth[0] - 1, result.offset.value - offset, result.read_noise.value - truth[2])
    return [*errors, *covered, float(near), float(warned), float(result.detector.camera.multiplying == em)]


def line(name: str, rows: list[Row]) -> str:
    """Return one line of the table."""
    if not rows:
        return ""
    values = np.array(rows)
    error = np.abs(values[:, :3])
    return (
        f"| {name} | {len(rows)} | {100 * np.median(error[:, 0]):.2f} | {100 * np.mean(error[:, 0] < 0.03):.0f} | "
        f"{np.median(error[:, 1]):.2f} | {100 * values[:, 6].mean():.0f} | {np.median(error[:, 2]):.2f} | "
        + " / ".join(f"{100 * share:.0f}" for share in values[:, 3:6].mean(0))
        + f" | {100 * values[:, 8].mean():.0f} |"
    )


def main() -> None:
    """Measure and write the table."""
    lines = [
        "| frames, electrons per pixel, detector | cameras | gain error, % | within 3 %, % | offset error, ADU "
        "| within 1 ADU or its interval, % | read noise error, e | coverage of gain / offset / read noise, % "
        "| EM identified, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    refused: dict[str, int] = {}
    warned: list[Row] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for frames, electrons, em in itertools.product(FRAMES, ELECTRONS, (False, True)):
            cameras = itertools.product(GAINS, OFFSETS, READ, range(REPEATS))
            cases: list[Case] = [(g, o, r, em, electrons, frames, seed) for g, o, r, seed in cameras]
            rows = []
            for row in pool.map(measure, cases, chunksize=4):
                if isinstance(row, str):
                    refused[row] = refused.get(row, 0) + 1
                elif row[7]:
                    warned.append(row)
                else:
                    rows.append(row)
            lines.append(line(f"{frames}, {electrons:g}, {'EM' if em else 'Poisson'}", rows))
            print(lines[-1], flush=True)
    if warned:
        lines.append(line("not in the rows above, with a warning: noise of barely one ADU, or clipped at zero", warned))
    lines += [
        "",
        f"All combinations of gains {GAINS} ADU per electron, offsets {OFFSETS} ADU and read noise {READ} electrons, "
        f"{REPEATS} scenes of {SIZE_PX} x {SIZE_PX} px each; medians of absolute errors. Without dark frames; for one "
        f"and two frames, the multiplying detector type is given. Refused: {sum(refused.values())}.",
    ]
    write_section("Calibration: simulated cameras", __doc__, "\n".join(lines))


if __name__ == "__main__":
    main()
