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
Channel = Annotated[int | None, typer.Option(min=0, help="Use this channel only, counted from 0.")]
ModelPath = Annotated[Path, typer.Argument(help="Run folder, checkpoint (ours or the original GAP's) or zip.")]
Planes = Annotated[bool, typer.Option("--planes", help="Run a 2D model on a stack plane by plane.")]
Tile = Annotated[str | None, typer.Option(help="Tile with halo, such as 512,512; chosen when not given.")]
Halo = Annotated[str | None, typer.Option(help="Halo; the receptive field when not given.")]
