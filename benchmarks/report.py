"""Tables and the picture of the quality benchmark, from the results files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from results import write_section

from gap_bioimage.pictures import draw_grid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scenes import Scene

COSTS = {"steps": 0, "minutes": 1, "parameters": 0, "seconds per megapixel": 2}  # with the number of digits
Rows = dict[str, list[dict[str, Any]]]  # for each method, the results of its seeds


def read_rows(folder: Path, middle: float) -> Rows:
    """Read all results of a data set, sorted by the score at the middle level, best first."""
    rows: Rows = {}
    for path in sorted(folder.glob("*.json")):
        rows.setdefault(path.stem.rpartition("_")[0].replace("_", " "), []).append(json.loads(path.read_text()))

    def rank(name: str) -> float:
        return -float(np.mean([next(iter(row["levels"][f"{middle:g}"].values())) for row in rows[name]]))

    return {name: rows[name] for name in sorted(rows, key=rank)}


def interval(values: list[float], digits: int) -> str:
    """Return the mean, and for several values half the width of its 95 % interval (Student's t)."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{np.mean(values):,.{digits}f} ± {half:.{digits}f}"


def table(rows: Rows, columns: dict[str, tuple[Callable[[dict[str, Any]], Any], int]]) -> str:
    """Return a markdown table; each column is a function from a row to a number or None."""
    text = f"\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"
    for name, results in rows.items():
        cells = []
        for title, (take, digits) in columns.items():
            found = [value for value in map(take, results) if value is not None]
            cells.append(interval([float(np.mean(found))] if found and title in COSTS else found, digits))
        if any(cells):
            text += f"| {name} | {' | '.join(cells)} |\n"
    return text


def score(name: str, level: float, number: int | None = None) -> Callable[[dict[str, Any]], Any]:
    """Return a function that reads a score at a level from a row."""

    def take(row: dict[str, Any]) -> Any:
        value = row["levels"].get(f"{level:g}", {}).get(name)
        return value if value is None or number is None else 100 * value[number]

    return take


def tables(scene: Scene, rows: Rows, middle: float) -> str:
    """Return all tables of a data set."""
    text = f"{seeds(rows)}\n"
    names = {"nats": 4, "residual": 2}
    if scene.real is None:
        text += "\nPSNR in dB by photons per pixel, with the maximum of the truth as peak.\n"
        text += table(rows, {f"{level:g}": (score("PSNR", level), 2) for level in scene.levels})
        names = {"scaled PSNR": 2, "SSIM": 3, **names}
    at = "On the next frame" if scene.real is not None else f"At {middle:g} photons per pixel"
    text += f"\n{at}. nats: per photon of independent counts. residual: ratio of the power of counts - image at low "
    text += "frequencies to that at high ones (Poisson noise: 1).\n"
    text += table(
        rows,
        {name: (score(name, middle), digits) for name, digits in names.items()}
        | {name: (lambda row, name=name: row.get(name), digits) for name, digits in COSTS.items()},
    )
    if scene.real is None:
        text += f"\nBias in % at {middle:g} photons, by deciles of the truth, darkest first.\n"
        single = {name: results[:1] for name, results in rows.items()}
        text += table(single, {f"{10 * n + 10} %": (score("bias", middle, n), 1) for n in range(10)})
    return text


def seeds(rows: Rows) -> str:
    """List the number of seeds and the machine of each method."""
    groups: dict[tuple[int, str], list[str]] = {}
    for name, results in rows.items():
        groups.setdefault((len(results), results[0]["machine"]), []).append(name)
    runs = [f"{', '.join(names)}: {count} seed{'s' * (count > 1)}, {where}" for (count, where), names in groups.items()]
    return ". ".join(runs) + ". Means ± half of the 95 % interval over seeds (of counts and training)."


def write_tables(scene: Scene, about: str, folder: Path, doc: str | None, *, to_results: bool) -> None:
    """Write the section of a data set, or print it."""
    middle = scene.levels[len(scene.levels) // 2]
    if not (rows := read_rows(folder, middle)):
        return
    body = f"{about}\n\n{tables(scene, rows, middle)}"
    if to_results:
        write_section(f"Quality: {folder.name}", doc, body, "machines below")
    else:
        print(f"\n## {folder.name}\n\n{body}")


def draw_picture(path: Path, scene: Scene, folder: Path, parts: tuple[Any, ...]) -> None:
    """Draw parts of the test scene at 1 photon per pixel beside the denoised results."""
    rows = []
    for number, part in enumerate(parts):
        counts = scene.test(0, 1, 0)[part]
        row = {f"counts, mean {counts.mean():.2g} per pixel": counts}
        for title, stem in SHOWN.items():
            if (folder / f"{stem}_0.npz").exists():
                row[title] = np.load(folder / f"{stem}_0.npz")[f"arr_{number}"]
        rows.append({**row, "truth": scene.tests[0][part]})
    draw_grid(path, rows)


SHOWN = {
    "original's recipe": "original's_recipe",
    "best Gaussian": "best_Gaussian",
    "Anscombe + BM3D": "Anscombe_+_BM3D",
    "gap-bioimage": "anchored",
    "supervised": "supervised",
}
