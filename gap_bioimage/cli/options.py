"""Options that several verbs share, one by one and in groups."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON to this file; - prints it.")]
Out = Annotated[Path, typer.Argument(help="The image to write (.tif, .ome.tif, .ome.zarr, .h5, .npy).")]
RunCode = Annotated[bool, typer.Option("--run-code", help="Allow Python code of the model to run.")]
ModelPath = Annotated[
    Path, typer.Argument(help="Run folder, checkpoint (ours or the original GAP's), state_dict or zip.")
]
Camera = Annotated[
    str | None,
    typer.Option(
        metavar="YAML",
        help="The camera of the images, from calibrate; the model's own when not given, none for counts.",
    ),
]
SumFrames = Annotated[
    int | None, typer.Option(min=1, help="Sum so many successive frames t of a one-bit (single-photon) camera.")
]
TimeAsZ = Annotated[bool, typer.Option("--time-as-z", help="Let a 3D model see a movie as a stack.")]
SeparateChannels = Annotated[
    bool, typer.Option("--separate-channels", help="Let a model of one channel see each channel by itself.")
]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which part of a file, and what its axes are."""

    axes: Annotated[str | None, typer.Option(help="Axes of the stored array, such as zyx, for files without them.")] = (
        None
    )
    channel: Annotated[str | None, typer.Option(help="Use this channel only, counted from 0, or by its name.")] = None
    time: Annotated[
        str | None, typer.Option(help="Use this frame only, counted from 0, or a range such as 0:50 or ::2.")
    ] = None
    series: Annotated[
        str | None, typer.Option(help="Which image of a file that holds several, counted from 0, or its name.")
    ] = None
    level: Annotated[
        int | None, typer.Option(min=0, help="Level of an image pyramid; 0, the full resolution, when not given.")
    ] = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model sees an image that has more axes than the model."""

    planes: Annotated[bool, typer.Option("--planes", help="Run a 2D model on a stack plane by plane.")] = False
    time_as_z: TimeAsZ = False
    separate_channels: SeparateChannels = False


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles that the network runs on."""

    tile: Annotated[str | None, typer.Option(help="Tile with halo, such as 512,512; chosen when not given.")] = None
    halo: Annotated[str | None, typer.Option(help="Halo; the receptive field when not given.")] = None

    def pixels(self) -> dict[str, tuple[int, ...] | None]:
        """Return both as the library takes them."""
        return {"tile_px": parse_pixels(self.tile, "--tile"), "halo_px": parse_pixels(self.halo, "--halo")}


def camera_asked(option: str | None) -> Path | str | None:
    """Return what ``--camera`` asks for: a yaml, no camera ("none"), or the model's own when not given."""
    if option is None:
        return "model"
    return None if option.lower() == "none" else Path(option)


def parse_pixels(text: str | None, option: str) -> tuple[int, ...] | None:
    """Read sizes per axis, such as 512,512."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} is {text!r}, expected pixels such as 512,512") from None


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Show the fields of a verb's dataclass parameters as options of their own, in the place of the group."""
    hints = typing.get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        if name in groups:
            of_group = typing.get_type_hints(groups[name], include_extras=True)
            shown += [
                inspect.Parameter(
                    f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=of_group[f.name]
                )
                for f in dataclasses.fields(groups[name])
            ]
        else:
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(verb)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group)})
        verb(**given)

    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return call
