"""The verbs that make networks and tell about them: parse, call, print."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gap_bioimage.console import parse_devices, print_table, say, write_json
from gap_bioimage.options import (
    Axes,
    Channel,
    Device,
    Json,
    Level,
    ModelPath,
    Quiet,
    SeparateChannels,
    Series,
    SumFrames,
    Time,
    TimeAsZ,
)


def train(
    images: Annotated[list[Path], typer.Argument(help="Images or folders of photon counts.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    dim: Annotated[
        int | None, typer.Option(min=2, max=3, help="Dimensions of the network, where the images shall not tell.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings (yaml).")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting, such as train.steps=500.")] = None,
    camera: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="The camera of the images, from calibrate, if they are no counts."),
    ] = None,
    sum_frames: SumFrames = None,
    time_as_z: TimeAsZ = False,
    separate_channels: SeparateChannels = False,
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of this run, checkpoint (ours, the original's) or zip.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    axes: Axes = None,
    channel: Channel = None,
    time: Time = None,
    series: Series = None,
    level: Level = None,
    device: Device = "auto",
    devices: Annotated[str, typer.Option(help="Number of devices, or auto.")] = "1",
    num_nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning strategy, such as ddp.")] = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="The same as --set train.seed.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a network on photon counts alone."""
    from gap_bioimage.config import RunConfig
    from gap_bioimage.inputs import read_training_images
    from gap_bioimage.io.image import time_as_z as as_stack
    from gap_bioimage.training.fit import train as fit

    stored = out / "config.yaml"
    if resume and config is None and stored.exists():
        config = stored
    overrides = [*([] if dim is None else [f"network.dim={dim}"]), *([] if seed is None else [f"train.seed={seed}"])]
    overrides += [*([] if sum_frames is None else [f"thinning.ceiling={sum_frames}"]), *(set_ or [])]
    settings = RunConfig.read(config, overrides)
    select = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    counting = camera is None and settings.camera is None and settings.thinning.ceiling is None
    counts = read_training_images(images, select, counts=counting, frames=sum_frames)
    counts = [as_stack(image) for image in counts] if time_as_z else counts
    model = fit(
        counts,
        out,
        settings,
        init=init,
        camera=camera,
        separate_channels=separate_channels,
        resume=resume,
        progress=not quiet,
        device=device,
        devices=parse_devices(devices),
        num_nodes=num_nodes,
        strategy=strategy,
    )
    low, high = model.trained_range_db
    say(quiet, f"{out}: trained for inputs of {low:g} to {high:g} dB; look at {out / 'preview.png'}")


def info(model: ModelPath, json_out: Json = None, quiet: Quiet = False) -> None:
    """Describe a model: what kind it is, its network, the brightness it was trained for, its reach."""
    from gap_bioimage.inference.tiling import receptive_field_px
    from gap_bioimage.model import load_model, table_of

    loaded = load_model(model)
    camera = loaded.camera
    report: dict[str, Any] = {
        "source": str(loaded.source),
        "origin": loaded.origin,
        "kind": loaded.kind,
        **loaded.config.model_dump(mode="json"),
        "parameters": loaded.parameter_count,
        "receptive_field_px": receptive_field_px(loaded.network),
        "step_px": list(loaded.network.step_px),
        "trained_range_db": list(loaded.trained_range_db),
        "camera": None if camera is None else camera.camera.model_dump(mode="json", exclude={"measured"}),
        "one_bit_frames": loaded.n_frames,
        **{name: value for name, value in asdict(loaded.history).items() if name != "training"},
    }
    write_json(json_out, [report])
    if not quiet and str(json_out) != "-":
        print_table(table_of(report))
