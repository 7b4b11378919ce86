"""Verbs that make models and tell about them: demo, train, export, info."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gap_bioimage.cli.console import print_table, say, write_json
from gap_bioimage.cli.options import (
    Camera,
    Device,
    Json,
    ModelPath,
    Quiet,
    Seed,
    Selection,
    SeparateChannels,
    SumFrames,
    TimeAsZ,
    camera_asked,
)


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not hold an earlier demo.")] = Path(
        "gap-bioimage-demo"
    ),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Everything on simulated photons, in 2D and 3D, with pictures; under five minutes on two cores."""
    from gap_bioimage.demo import run_demo

    run_demo(folder, seed, progress=not quiet)


def train(
    images: Annotated[list[Path], typer.Argument(help="Images or folders of photon counts.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    selection: Selection,
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
    purpose: Annotated[
        str | None, typer.Option("--for", help="denoise, sample or generate: decides the range of brightness.")
    ] = None,
    repeats: Annotated[
        str | None, typer.Option(help="t where frames repeat a still scene: others of them become the target.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start from the weights of this run, checkpoint (ours, the original's) or zip.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    device: Device = "auto",
    devices: Annotated[str, typer.Option(help="Number of devices, or auto.")] = "1",
    num_nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning strategy, such as ddp.")] = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="The same as --set train.seed.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a network on photon counts alone."""
    import gap_bioimage as gap
    from gap_bioimage.config import RunConfig
    from gap_bioimage.io.image import time_as_z as as_stack

    if resume and config is None and (out / "config.yaml").exists():
        config = out / "config.yaml"
    shorthands: dict[str, object] = {"network.dim": dim, "train.seed": seed, "thinning.ceiling": sum_frames}
    shorthands |= {"train.purpose": purpose, "train.repeats": repeats}
    overrides = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    settings = RunConfig.read(config, overrides + (set_ or []))
    counting = camera is None and settings.camera is None and settings.thinning.ceiling is None
    counts = gap.read_images(images, check=counting, **asdict(selection))
    if sum_frames is not None:
        counts = [gap.sum_frames(image, sum_frames, name=image.attrs.get("source", "the movie")) for image in counts]
    model = gap.train(
        [as_stack(image) for image in counts] if time_as_z else counts,
        out,
        settings,
        init=init,
        camera=camera,
        separate_channels=separate_channels,
        resume=resume,
        progress=not quiet,
        device=device,
        devices=_devices(devices),
        num_nodes=num_nodes,
        strategy=strategy,
    )
    low, high = model.trained_range_db
    say(quiet, f"{out}: trained for inputs of {low:g} to {high:g} dB; look at {out / 'preview.png'}")


def _devices(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise typer.BadParameter(f"--devices is {text!r}, expected a number or auto")


def export(
    model: Annotated[Path | None, typer.Argument(help="Run folder, checkpoint or zip.")] = None,
    out: Annotated[Path | None, typer.Argument(help="The zip to write.")] = None,
    card: Annotated[Path | None, typer.Option(help="Model card (yaml); --init-card writes a template.")] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="denoise, sample (posterior samples, drawn in the graph), or sample-hook (drawn by a "
            "postprocessing file, for bioimageio.core 0.10.3 or newer only)."
        ),
    ] = "denoise",
    samples: Annotated[int, typer.Option(help="Samples to draw, by kinds that sample.")] = 4,
    steps: Annotated[int, typer.Option(help="Network evaluations per sample.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the samples' noise.")] = 0,
    postprocessing: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="Own Python that changes the output; bioimageio.core only."),
    ] = None,
    postprocessing_kwargs: Annotated[
        str | None, typer.Option(metavar="YAML", help="What NAME is called with, such as '{threshold: 2.5}'.")
    ] = None,
    camera: Camera = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add ONNX weights; of kind denoise only.")] = False,
    test_image: Annotated[Path | None, typer.Option(help="Real counts to test with, if the model has none.")] = None,
    device: Annotated[str, typer.Option(help="Where to validate the zip: cpu, cuda, ...")] = "cpu",
    init_card: Annotated[Path | None, typer.Option(help="Write a commented card to fill in, and stop.")] = None,
    quiet: Quiet = False,
) -> None:
    """Export a model as a bioimage.io zip for Fiji, ilastik and the zoo, if it passes every check."""
    from gap_bioimage.exporting.card import write_template

    if init_card is not None:
        write_template(init_card)
        say(quiet, f"{init_card}: fill in the fields, then give it as --card")
        return
    if model is None or out is None or card is None:
        raise typer.BadParameter("export needs MODEL, OUT.zip and --card card.yaml (or --init-card card.yaml alone)")
    if postprocessing_kwargs is not None and postprocessing is None:
        raise typer.BadParameter("--postprocessing-kwargs needs --postprocessing FILE.py:NAME")
    import gap_bioimage as gap
    from gap_bioimage.exporting.operation import parse_kwargs
    from gap_bioimage.validation.reports.terminal import print_report

    report = gap.export(
        model,
        out,
        card,
        kind,  # type: ignore[arg-type]
        n_samples=samples,
        n_steps=steps,
        seed=seed,
        postprocessing=postprocessing,
        postprocessing_kwargs=parse_kwargs(postprocessing_kwargs),
        camera=camera_asked(camera),
        onnx=onnx,
        test_image=test_image,
        device=device,
        on_stage=lambda stage: say(quiet, f"{stage} ..."),
    )
    if not quiet:
        print_report(report)
    say(quiet, f"{out}: written, {out.stat().st_size / 1e6:.1f} MB")


def info(model: ModelPath, json_out: Json = None, quiet: Quiet = False) -> None:
    """Describe a model: what kind it is, its network, the brightness it was trained for, its reach."""
    import gap_bioimage as gap
    from gap_bioimage.model import table_of

    report = gap.load_model(model).describe()
    write_json(json_out, [report])
    if not quiet and str(json_out) != "-":
        print_table(table_of(report))
