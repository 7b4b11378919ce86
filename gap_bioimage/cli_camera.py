"""The verb that measures a camera."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap_bioimage.console import Bar, say, write_json
from gap_bioimage.options import Axes, Channel, Json, Level, Quiet, Seed, Series, Time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gap_bioimage.camera.calibration import Calibration


def calibrate(
    stack: Annotated[
        Path,
        typer.Argument(metavar="STACK", help="Raw frames of the same field (t); one image, or a z-stack, does too."),
    ],
    out: Annotated[Path, typer.Option(metavar="YAML", help="The camera file to write.")] = Path("camera.yaml"),
    dark: Annotated[
        Path | None, typer.Option(help="Frames without light: offset and read noise, of every pixel too.")
    ] = None,
    offset: Annotated[float | None, typer.Option(help="ADU without light, if known.")] = None,
    read_noise: Annotated[float | None, typer.Option(help="Electrons RMS, if known instead of the offset.")] = None,
    saturation: Annotated[float | None, typer.Option(help="ADU from which on pixels are saturated.")] = None,
    multiplying: Annotated[
        bool | None,
        typer.Option(
            "--multiplying/--not-multiplying",
            help="Whether electrons are multiplied (EMCCD, photomultiplier); told by the noise when not given.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="The plot; beside the yaml when not given.")] = None,
    seed: Seed = 0,
    json_out: Json = None,
    axes: Axes = None,
    channel: Channel = None,
    time: Time = None,
    series: Series = None,
    level: Level = None,
    quiet: Quiet = False,
) -> None:
    """Measure gain, offset and read noise of a camera on its own images, with intervals and a plot."""
    from gap_bioimage.camera.calibration import calibrate as measure
    from gap_bioimage.camera.plots import plot_calibration
    from gap_bioimage.files import check_place
    from gap_bioimage.io import read_photons
    from gap_bioimage.pictures import save_figure

    plot = plot or out.with_suffix(".png")
    for place in (out, plot):
        check_place(place)
    image = read_photons(stack, axes, channel=channel, time=time, series=series, level=level, check=False)
    with Bar(quiet or str(json_out) == "-", f"calibrating on {stack.name}"):
        found = measure(
            image,
            dark=dark,
            offset=offset,
            read_noise=read_noise,
            saturation=saturation,
            multiplying=multiplying,
            seed=seed,
        )
    if not found.counts:  # which need none
        found.save(out)
    save_figure(plot_calibration(found), plot)
    given = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    command = _next(stack, out, found, "3" if "z" in image.dims else "2", given)
    write_json(json_out, [{**found.to_dict(), "next": command}])
    for warning in found.warnings:
        warnings.warn(warning, stacklevel=1)
    _report(quiet or str(json_out) == "-", found, out, plot, command)


def _report(quiet: bool, found: Calibration, out: Path, plot: Path, command: str) -> None:
    camera, goodness = found.detector.camera, found.goodness
    say(quiet, f"gain        {found.gain} ADU per {found.unit}")
    say(quiet, f"offset      {found.offset} ADU, from {found.offset_from.replace('noise', 'the noise')}")
    say(quiet, f"read noise  {found.read_noise} {found.unit}s")
    said = f"chi-square {goodness.chi_square:.2f} per degree of freedom ({goodness.freedom})"
    say(quiet, f"fit         {said}, {found.frames} frames" if found.frames > 1 else f"fit         {said}, one image")
    if camera.multiplying:
        say(quiet, "multiplying photons are effective ones: fewer than were detected, with the same noise")
    if found.counts:
        say(quiet, found.message)
    maps = f" with {out.stem}_maps.tif" if found.detector.maps is not None else ""
    say(quiet, f"plot {plot}" if found.counts else f"{out}: written{maps}; plot {plot}")
    say(quiet, f"next: {command}")


def _next(stack: Path, out: Path, found: Calibration, dim: str, given: Mapping[str, object]) -> str:
    options = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    camera = [] if found.counts else ["--camera", str(out)]
    return shlex.join(["gap-bioimage", "train", str(stack), "--dim", dim, "--out", "RUN", *camera, *options])
