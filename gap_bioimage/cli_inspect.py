"""The verb that tells what images are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gap_bioimage.console import print_table, write_json
from gap_bioimage.options import Axes, Channel, Json, Level, Quiet, Series, Time

_NOT_PRINTED = ("variance_curve", "channel_names", "noise_correlation_error", "thinning_correlation_error")
_WORDS = {"processed": "processed, not usable as counts", "not usable": "not usable as counts"}


def inspect_images(
    images: Annotated[list[Path], typer.Argument(help="Images.")],
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Draw the image, its histogram, variance against mean and the correlation of its noise; of several "
            "images each gets its name added.",
        ),
    ] = None,
    axes: Axes = None,
    channel: Channel = None,
    time: Time = None,
    series: Series = None,
    level: Level = None,
    json_out: Json = None,
    quiet: Quiet = False,
) -> None:
    """Tell what images are: axes, counts, brightness, whether they are photon counts, what to do about it."""
    from gap_bioimage.inspection import inspect

    select: dict[str, Any] = {"channel": channel, "time": time, "series": series, "level": level}
    reports = [
        inspect(image, axes, **select, plot=None if plot is None else _place(plot, image, len(images)))
        for image in images
    ]
    write_json(json_out, [report.to_dict() for report in reports])
    if not quiet and str(json_out) != "-":
        for report in reports:
            print_table(in_words(report.to_dict()))


def in_words(report: dict[str, Any]) -> dict[str, Any]:
    """Return what people want to read of a report."""
    shown = {key: value for key, value in report.items() if key not in _NOT_PRINTED and value not in ([], 1.0, 0.0)}
    for key in ("noise_correlation_y", "noise_correlation_x", "thinning_correlation"):
        error = report[key.removesuffix("_y").removesuffix("_x") + "_error"]
        if report[key] is not None and error is not None:
            shown[key] = f"{report[key]:.3f} +- {error:.3f}"
    shown["verdict"] = _WORDS.get(report["verdict"], report["verdict"])
    return shown


def _place(plot: Path, image: Path, count: int) -> Path:
    return plot if count == 1 else plot.with_name(f"{plot.stem}_{image.stem}{plot.suffix}")
