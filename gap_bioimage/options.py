"""Options and arguments that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the report as JSON to this file; - prints it.")]
Axes = Annotated[str | None, typer.Option(help="Axes of the stored array, such as zyx, for files without them.")]
Channel = Annotated[str | None, typer.Option(help="Use this channel only, counted from 0, or by its name.")]
Time = Annotated[str | None, typer.Option(help="Use this frame only, counted from 0, or a range such as 0:50 or ::2.")]
Series = Annotated[
    str | None, typer.Option(help="Which image of a file that holds several, counted from 0, or its name.")
]
Level = Annotated[
    int | None, typer.Option(min=0, help="Level of an image pyramid; 0, the full resolution, when not given.")
]
ModelPath = Annotated[
    Path, typer.Argument(help="Run folder, checkpoint (ours or the original GAP's), state_dict or zip.")
]
Planes = Annotated[bool, typer.Option("--planes", help="Run a 2D model on a stack plane by plane.")]
Tile = Annotated[str | None, typer.Option(help="Tile with halo, such as 512,512; chosen when not given.")]
Halo = Annotated[str | None, typer.Option(help="Halo; the receptive field when not given.")]
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
