"""Verbs about images: simulate, inspect, calibrate."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from gap_bioimage.cli.console import left_out, print_table, progress_bar, say, sizes, with_flags, write_json
from gap_bioimage.cli.options import Json, Out, Quiet, Seed, Selection, check_paths, parse_pixels
from gap_bioimage.errors import GapWarning

if TYPE_CHECKING:
    from gap_bioimage.camera.calibration import Calibration

_PLOT = "Plot image, histogram, variance against mean and noise correlation; one file per image if there are several."
_MULTIPLYING = "Whether the detector multiplies electrons (EMCCD, photomultiplier); by default inferred from the noise."
_NOT_PRINTED = ("variance_curve", "channel_names")
_VERDICTS = {"processed": "processed, not usable as counts", "not usable": "not usable as counts"}
_LABELS = {"fano": "variance/mean in the dark", "fano_bright": "variance/mean where bright", "lattice": "multiples of"}


def simulate(
    out: Out,
    dim: Annotated[int, Option(min=2, max=3, help="Spatial dimensions.")],
    photons: Annotated[float, Option(help="Mean photons per pixel.")],
    seed: Seed,
    truth: Annotated[Path | None, Option(help="Also write the expected photons, to this file.")] = None,
    shape: Annotated[str | None, Option(help="Size in pixels, such as 512,512 or 32,128,128.")] = None,
    quiet: Quiet = False,
) -> None:
    """Simulate photon counts of cells."""
    import gap_bioimage as gap

    counts, rate = gap.simulate(dim, parse_pixels(shape, "--shape"), photons, seed)  # type: ignore[arg-type]
    gap.write_image(out, counts)
    if truth is not None:
        gap.write_image(truth, rate)
    say(quiet, f"{out}: {sizes(counts)}, {float(counts.mean()):.3g} photons per pixel")


def inspect(
    images: Annotated[list[Path], Argument(help="Images or folders to inspect.")],
    selection: Selection,
    plot: Annotated[Path | None, Option(metavar="PNG", help=_PLOT)] = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Describe images: axes, counts, brightness, whether they are photon counts, and what to do next.

    Of several images, those that cannot be read are left out.
    """
    import gap_bioimage as gap
    from gap_bioimage.io.read import image_files

    images = image_files(*images)
    names = [image.stem for image in images]
    if len(set(names)) < len(names):  # such as from several folders
        names = [f"{number}_{name}" for number, name in enumerate(names)]
    named = [plot and plot.with_name(f"{plot.stem}_{name}{plot.suffix}") for name in names]
    plots = named if len(images) > 1 else [plot]
    check_paths({"images": images, "plot": plots, "json_out": json_out})
    reports, failed = list[dict[str, Any]](), list[Path]()
    for image, image_plot in zip(images, plots, strict=True):
        with left_out(image, len(images), failed):
            reports.append(gap.inspect(image, **asdict(selection), plot=image_plot).to_dict())
    write_json(json_out, reports, as_list=len(images) > 1)
    for report in [] if quiet or str(json_out) == "-" else reports:
        print_table(_printed(report))
    if failed:
        raise typer.Exit(2)


def _printed(report: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a report that are worth printing."""
    shown = {key: value for key, value in report.items() if key not in _NOT_PRINTED and value not in ([], 1.0, 0.0)}
    verdict = _VERDICTS.get(report["verdict"], report["verdict"])
    shown |= {"verdict": verdict, "message": with_flags(report["message"])}
    return {_LABELS.get(key, key): value for key, value in shown.items()}


@dataclass(frozen=True)
class Known:
    """Options for known properties of the camera."""

    offset: Annotated[float | None, Option(help="Signal without light in ADU, if known.")] = None
    read_noise: Annotated[float | None, Option(help="Read noise in electrons RMS, if known (without --offset).")] = None
    saturation: Annotated[float | None, Option(help="ADU at which pixels saturate.")] = None
    multiplying: Annotated[bool | None, Option("--multiplying/--not-multiplying", help=_MULTIPLYING)] = None


def calibrate(
    stack: Annotated[Path, Argument(metavar="STACK", help="Raw frames of one field (t), one image or a z-stack.")],
    selection: Selection,
    known: Known,
    out: Annotated[Path, Option(metavar="YAML", help="Camera file to write.")] = Path("camera.yaml"),
    dark: Annotated[Path | None, Option(help="Frames without light, for offset and read noise of every pixel.")] = None,
    plot: Annotated[Path | None, Option(metavar="PNG", help="Plot to write; by default beside the yaml.")] = None,
    seed: Seed = 0,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure the gain, offset and read noise of a camera from its own images, with intervals and a plot."""
    import gap_bioimage as gap
    from gap_bioimage.camera.plots import plot_calibration
    from gap_bioimage.files import check_output_path
    from gap_bioimage.pictures import save_figure

    plot = plot or out.with_suffix(".png")
    check_output_path(out)
    check_paths({"stack": stack, "out": out, "plot": plot})
    image = gap.read_photons(stack, check=False, **asdict(selection))
    quiet = quiet or str(json_out) == "-"
    dark_image = None if dark is None else gap.read_photons(dark, selection.axes, check=False)
    if dark is not None and dark_image is not None and dark_image.sizes.get("c", 1) > 1:
        dark_image = gap.read_photons(dark, selection.axes, channel=selection.channel, check=False)
    with progress_bar(quiet, f"calibrating on {stack.name}"):
        result = gap.calibrate(image, dark=dark_image, seed=seed, **asdict(known))
    if not result.counts:  # counts need no camera file
        result.save(out)
    save_figure(plot_calibration(result), plot)
    options = {"camera": None if result.counts else out, **asdict(selection)}
    flags = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    dim = "3" if "z" in image.dims else "2"
    command = shlex.join(["gap-bioimage", "train", str(stack), "--dim", dim, "--out", "RUN", *flags])
    write_json(json_out, [{**result.to_dict(), "next": command}])
    for warning in result.warnings:
        warnings.warn(warning, GapWarning, stacklevel=1)
    say(quiet, _summary(result))
    maps = f" with {out.stem}_maps.tif" if result.detector.maps is not None else ""
    say(quiet, f"plot {plot}" if result.counts else f"{out}: written{maps}; plot {plot}")
    say(quiet, f"next: {command}")


def _summary(result: Calibration) -> str:
    fit = f"chi-square {result.goodness.chi_square:.2f} per degree of freedom ({result.goodness.freedom})"
    lines = [
        f"gain        {result.gain} ADU per {result.unit}",
        f"offset      {result.offset} ADU, from {result.offset_from.replace('noise', 'the noise')}",
        f"read noise  {result.read_noise} {result.unit}s",
        f"fit         {fit}, {f'{result.frames} frames' if result.frames > 1 else 'one image'}",
    ]
    if result.detector.camera.multiplying:
        lines.append("multiplying photons are effective ones: fewer than were detected, with the same noise")
    return "\n".join([*lines, *([result.message] if result.counts else [])])
