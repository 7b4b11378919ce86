"""Verbs about images: simulate, inspect, calibrate."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from gap_bioimage.cli.console import Bar, print_table, say, sizes, with_flags, write_json
from gap_bioimage.cli.options import Json, Out, Quiet, Seed, Selection, check_places, parse_pixels
from gap_bioimage.errors import GapWarning

if TYPE_CHECKING:
    from gap_bioimage.camera.calibration import Calibration

_PLOT = "Draw image, histogram, variance against mean and correlation of the noise; several images add their names."
_MULTIPLYING = "Whether electrons are multiplied (EMCCD, photomultiplier); told by the noise when not given."
_NOT_PRINTED = ("variance_curve", "channel_names")
_WORDS = {"processed": "processed, not usable as counts", "not usable": "not usable as counts"}
_NAMES = {"fano": "variance/mean in the dark", "fano_bright": "variance/mean where bright", "lattice": "multiples of"}


def simulate(
    out: Out,
    dim: Annotated[int, Option(min=2, max=3, help="Spatial dimensions.")],
    photons: Annotated[float, Option(help="Mean photons per pixel.")],
    seed: Seed,
    truth: Annotated[Path | None, Option(help="Write the expected photons here.")] = None,
    shape: Annotated[str | None, Option(help="Pixels, such as 512,512 or 32,128,128.")] = None,
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
    images: Annotated[list[Path], Argument(help="Images.")],
    selection: Selection,
    plot: Annotated[Path | None, Option(metavar="PNG", help=_PLOT)] = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Describe images: axes, counts, brightness, whether they are photon counts, and what to do next."""
    import gap_bioimage as gap

    names = [image.stem for image in images]
    if len(set(names)) < len(names):  # such as from several folders
        names = [f"{number}_{name}" for number, name in enumerate(names)]
    places: list[Any] = [plot and plot.with_name(f"{plot.stem}_{name}{plot.suffix}") for name in names]
    places = places if len(images) > 1 else [plot]
    check_places({"images": images, "plot": places, "json_out": json_out})
    both = zip(images, places, strict=True)
    reports = [gap.inspect(image, **asdict(selection), plot=place).to_dict() for image, place in both]
    write_json(json_out, reports)
    for report in [] if quiet or str(json_out) == "-" else reports:
        print_table(_in_words(report))


def _in_words(report: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a report that are worth printing."""
    shown = {key: value for key, value in report.items() if key not in _NOT_PRINTED and value not in ([], 1.0, 0.0)}
    verdict = _WORDS.get(report["verdict"], report["verdict"])
    shown |= {"verdict": verdict, "message": with_flags(report["message"])}
    return {_NAMES.get(key, key): value for key, value in shown.items()}


@dataclass(frozen=True)
class Known:
    """Options for known properties of the camera."""

    offset: Annotated[float | None, Option(help="ADU without light, if known.")] = None
    read_noise: Annotated[float | None, Option(help="Electrons RMS, if known instead of the offset.")] = None
    saturation: Annotated[float | None, Option(help="ADU from which on pixels are saturated.")] = None
    multiplying: Annotated[bool | None, Option("--multiplying/--not-multiplying", help=_MULTIPLYING)] = None


def calibrate(
    stack: Annotated[Path, Argument(metavar="STACK", help="Raw frames of one field (t), one image or a z-stack.")],
    selection: Selection,
    known: Known,
    out: Annotated[Path, Option(metavar="YAML", help="The camera file to write.")] = Path("camera.yaml"),
    dark: Annotated[Path | None, Option(help="Frames without light: offset and read noise of every pixel.")] = None,
    plot: Annotated[Path | None, Option(metavar="PNG", help="The plot; beside the yaml when not given.")] = None,
    seed: Seed = 0,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Measure the gain, offset and read noise of a camera from its own images, with intervals and a plot."""
    import gap_bioimage as gap
    from gap_bioimage.camera.plots import plot_calibration
    from gap_bioimage.files import check_place
    from gap_bioimage.pictures import save_figure

    plot = plot or out.with_suffix(".png")
    check_place(out)
    check_places({"stack": stack, "out": out, "plot": plot})
    image = gap.read_photons(stack, check=False, **asdict(selection))
    quiet = quiet or str(json_out) == "-"
    unlit = None if dark is None else gap.read_photons(dark, selection.axes, check=False)
    if dark is not None and unlit is not None and unlit.sizes.get("c", 1) > 1:
        unlit = gap.read_photons(dark, selection.axes, channel=selection.channel, check=False)
    with Bar(quiet, f"calibrating on {stack.name}"):
        found = gap.calibrate(image, dark=unlit, seed=seed, **asdict(known))
    if not found.counts:  # counts need no camera file
        found.save(out)
    save_figure(plot_calibration(found), plot)
    options = {"camera": None if found.counts else out, **asdict(selection)}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    dim = "3" if "z" in image.dims else "2"
    command = shlex.join(["gap-bioimage", "train", str(stack), "--dim", dim, "--out", "RUN", *words])
    write_json(json_out, [{**found.to_dict(), "next": command}])
    for warning in found.warnings:
        warnings.warn(warning, GapWarning, stacklevel=1)
    say(quiet, _summary(found))
    maps = f" with {out.stem}_maps.tif" if found.detector.maps is not None else ""
    say(quiet, f"plot {plot}" if found.counts else f"{out}: written{maps}; plot {plot}")
    say(quiet, f"next: {command}")


def _summary(found: Calibration) -> str:
    """Return the calibration as lines of text."""
    fit = f"chi-square {found.goodness.chi_square:.2f} per degree of freedom ({found.goodness.freedom})"
    lines = [
        f"gain        {found.gain} ADU per {found.unit}",
        f"offset      {found.offset} ADU, from {found.offset_from.replace('noise', 'the noise')}",
        f"read noise  {found.read_noise} {found.unit}s",
        f"fit         {fit}, {f'{found.frames} frames' if found.frames > 1 else 'one image'}",
    ]
    if found.detector.camera.multiplying:
        lines.append("multiplying photons are effective ones: fewer than were detected, with the same noise")
    return "\n".join([*lines, *([found.message] if found.counts else [])])
