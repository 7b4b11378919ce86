"""The complete workflow on simulated photons, in 2D and 3D, with pictures."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gap_bioimage.errors import OutputError
from gap_bioimage.exporting.archive import export
from gap_bioimage.exporting.measures import gaussian_filters
from gap_bioimage.files import replacing
from gap_bioimage.inference.denoising import denoise
from gap_bioimage.io import write_image
from gap_bioimage.pictures import draw_grid
from gap_bioimage.recipe import Recipe, packaged
from gap_bioimage.simulation import simulate
from gap_bioimage.training.fit import train

SIGMAS_PX = tuple(np.arange(0.4, 4.01, 0.2).round(2).tolist())


def run_demo(folder: Path, seed: int = 0, progress: bool = True) -> None:
    """Simulate, train, denoise, export and validate the two demo models in a new folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty; give the demo another folder")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(quiet=not progress)
    models = [_one_model(folder, name, seed, console, progress) for name in ("demo_2d", "demo_3d")]
    results, pictures = zip(*models, strict=True)
    draw_grid(folder / "demo.png", pictures)
    with replacing(folder / "demo.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    table = Table("model", "counts", "best Gaussian", "denoised", "zip", "time", title="PSNR against the truth")
    for result in results:
        model, *decibels, validation, seconds = result.values()
        table.add_row(model, *(f"{value:.1f} dB" for value in decibels), validation, f"{seconds:.0f} s")
    console.print(table)
    console.print(f"Look at {folder / 'demo.png'}; the zips in {folder} open in Fiji and ilastik.")


def _one_model(
    folder: Path, name: str, seed: int, console: Console, progress: bool
) -> tuple[dict[str, Any], dict[str, NDArray[np.floating]]]:
    """Return PSNR against the truth in dB, the zip's validation status and the time taken; and pictures by title."""
    start = time.monotonic()
    source = packaged(name)
    recipe = Recipe.read(source / "recipe.yaml")
    assert recipe.simulate is not None  # noqa: S101
    console.print(f"[bold]{name}[/]: simulating {recipe.simulate.images} images")
    counts, truth = simulate(recipe.network.dim, recipe.simulate.shape, recipe.simulate.photons, seed=1_000_000 + seed)
    model = train(recipe.photons(source), folder / f"{name}_run", recipe.settings, progress=progress)
    rate = denoise(model, counts)
    for kind, image in (("counts", counts), ("truth", truth), ("denoised", rate)):
        write_image(folder / f"{name}_{kind}.tif", image)
    console.print("exporting and validating")
    report = export(model, folder / f"{name}.zip", source / "card.yaml")
    # the width of the Gaussian filter is the best against the truth
    filtered = (image[0] for image in gaussian_filters(counts.values[None], SIGMAS_PX))
    gaussian = min(filtered, key=lambda image: float(np.square(image - truth.values).mean()))
    peak = float(truth.max()) ** 2
    compared = {"counts": counts.values, "gaussian": gaussian, "denoised": rate.values}
    errors = {name: np.mean((image.astype(float) - truth.values) ** 2) for name, image in compared.items()}
    decibels = {f"{name}_db": float(10 * np.log10(peak / error)) for name, error in errors.items()}
    seconds = round(time.monotonic() - start, 1)
    result = {"model": name, **decibels, "validation": report.status, "seconds": seconds}
    images = {"counts": counts, "best Gaussian filter": counts.copy(data=gaussian), "denoised": rate, "truth": truth}
    planes = {title: image[len(image) // 2] if image.ndim == 3 else image for title, image in images.items()}
    return result, {title: np.asarray(plane, float) for title, plane in planes.items()}
