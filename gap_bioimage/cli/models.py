"""Verbs that make and describe models: demo, train, export, info."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from gap_bioimage.cli import options
from gap_bioimage.cli.console import print_table, say, write_json
from gap_bioimage.cli.options import Camera, Json, ModelPath, Quiet, Seed, Selection, camera_option

_DEMO = "Folder to write to, without an earlier demo."
_CAMERA = "Camera file from calibrate, or none for photon counts; by default that of the settings, if any."
_INIT = "Start from the weights of this run, checkpoint (ours or the original GAP's) or zip."
_KIND = "denoise, sample (posterior samples in the graph) or sample-hook (in a Python file; bioimageio.core >= 0.10.3)."
_OPERATION = "Your own Python function for the output; bioimageio.core only."
_KWARGS = "Arguments of NAME, such as '{threshold: 2.5}'."


def demo(
    folder: Annotated[Path, Argument(help=_DEMO)] = Path("gap-bioimage-demo"), seed: Seed = 0, quiet: Quiet = False
) -> None:
    """Run everything on simulated photons, in 2D and 3D, with pictures; takes under five minutes on two cores."""
    from gap_bioimage.demo import run_demo

    run_demo(folder, seed, progress=not quiet)


@dataclass(frozen=True)
class Training:
    """Options for the network, its training, the images and the machine."""

    dim: Annotated[int | None, Option(min=2, max=3, help="Dimensions of the network; by default the images'.")] = None
    config: Annotated[Path | None, Option(help="Settings file (yaml).")] = None
    set_: Annotated[list[str] | None, Option("--set", help="A setting, such as train.steps=500; repeatable.")] = None
    seed: Annotated[int | None, Option(min=0, help="Same as --set train.seed.")] = None
    purpose: Annotated[str | None, Option("--for", help="Range of brightness for: denoise, sample or generate.")] = None
    size: Annotated[str | None, Option(help="Network: small (fast on laptops and in Fiji), base or large.")] = None
    camera: Annotated[str | None, Option(metavar="YAML", help=_CAMERA)] = None
    sum_frames: options.SumFrames = None
    time_as_z: options.TimeAsZ = False
    separate_channels: options.SeparateChannels = False
    repeats: Annotated[str | None, Option(help="t if frames repeat one scene: the nearest are the target.")] = None
    init: Annotated[Path | None, Option(help=_INIT)] = None
    resume: Annotated[bool, Option("--resume", help="Resume the run in --out.")] = False
    device: options.Device = "auto"
    devices: Annotated[str, Option(help="Number of devices, or auto.")] = "1"
    num_nodes: Annotated[int, Option(min=1, help="Number of machines.")] = 1
    strategy: Annotated[str, Option(help="Lightning strategy, such as ddp.")] = "auto"

    def options(self) -> dict[str, Any]:
        """Return the arguments of the library other than the settings."""
        if self.devices != "auto" and not self.devices.isdecimal():
            raise typer.BadParameter(f"--devices is {self.devices!r}, expected a number or auto")
        names = ("separate_channels", "init", "resume", "device", "num_nodes", "strategy")
        devices = "auto" if self.devices == "auto" else int(self.devices)
        camera = None if self.camera is None else camera_option(self.camera)
        return {**{name: getattr(self, name) for name in names}, "devices": devices, "camera": camera}


def train(
    images: Annotated[list[Path], Argument(help="Images or folders of photon counts.")],
    out: Annotated[Path, Option(help="Run folder to write.")],
    selection: Selection,
    training: Training,
    quiet: Quiet = False,
) -> None:
    """Train a network on photon counts alone."""
    import gap_bioimage as gap
    from gap_bioimage.config import RunConfig
    from gap_bioimage.io.image import time_as_z
    from gap_bioimage.training.run_folder import check_run_folder

    check_run_folder(out, training.resume)
    resumed = training.resume and training.config is None and (out / "config.yaml").exists()
    shorthands: dict[str, Any] = {"network.dim": training.dim, "train.seed": training.seed}
    shorthands |= {"thinning.ceiling": training.sum_frames, "train.purpose": training.purpose}
    shorthands |= {"train.size": training.size, "train.repeats": training.repeats}
    arguments = training.options()
    shorthands["camera"] = "null" if training.camera is not None and arguments["camera"] is None else None
    overrides = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    settings = RunConfig.read(out / "config.yaml" if resumed else training.config, overrides + (training.set_ or []))
    are_counts = arguments["camera"] is None and settings.camera is None and settings.thinning.ceiling is None
    counts = gap.read_images(images, check=are_counts, on_disk=training.sum_frames is None, **asdict(selection))
    if (n := training.sum_frames) is not None:
        counts = [gap.sum_frames(image, n, name=image.attrs.get("source", "the movie")) for image in counts]
    if training.time_as_z:
        counts = [time_as_z(image) for image in counts]
    elif arguments["camera"] is None and any(image.sizes.get("t", 1) > 8 and "z" not in image.dims for image in counts):
        say(quiet, "frames will be denoised one by one; where little moves, --time-as-z is far better: it uses several")
    model = gap.train(counts, out, settings, progress=not quiet, **arguments)
    low, high = model.trained_range_db
    say(quiet, f"{out}: trained for inputs of {low:g} to {high:g} dB; look at {out / 'preview.png'}")


@dataclass(frozen=True)
class Graph:
    """Options for what a zip computes."""

    kind: Annotated[str, Option(help=_KIND)] = "denoise"
    n_samples: Annotated[int, Option("--samples", help="Number of samples, for kinds that sample.")] = 4
    n_steps: Annotated[int, Option("--steps", help="Network evaluations per sample.")] = 8
    seed: Annotated[int, Option(help="Seed of the samples' noise.")] = 0
    postprocessing: Annotated[str | None, Option(metavar="FILE.py:NAME", help=_OPERATION)] = None
    postprocessing_kwargs: Annotated[str | None, Option(metavar="YAML", help=_KWARGS)] = None
    onnx: Annotated[bool, Option("--onnx", help="Add ONNX weights; for kind denoise only.")] = False


def export(
    graph: Graph,
    model: Annotated[Path | None, Argument(help="Run folder, checkpoint or zip.")] = None,
    out: Annotated[Path | None, Argument(help="Zip to write.")] = None,
    card: Annotated[Path | None, Option(help="Model card (yaml); --init-card writes a template.")] = None,
    camera: Camera = None,
    test_image: Annotated[Path | None, Option(help="Image of real counts to test with, if the model has none.")] = None,
    device: Annotated[str, Option(help="Device for the validation: cpu, cuda, ...")] = "cpu",
    init_card: Annotated[Path | None, Option(help="Write a commented card to fill in, and stop.")] = None,
    quiet: Quiet = False,
) -> None:
    """Export a model as a bioimage.io zip for Fiji, ilastik and the zoo, if it passes every check."""
    from gap_bioimage.exporting.card import write_template

    if init_card is not None:
        write_template(init_card)
        say(quiet, f"{init_card}: written; fill in the fields, then export with --card {init_card}")
        return
    if model is None or out is None or card is None:
        raise typer.BadParameter("export needs MODEL, OUT.zip and --card card.yaml (or --init-card card.yaml alone)")
    if graph.postprocessing_kwargs is not None and graph.postprocessing is None:
        raise typer.BadParameter("--postprocessing-kwargs needs --postprocessing FILE.py:NAME")
    import yaml

    import gap_bioimage as gap
    from gap_bioimage.validation.reports.terminal import print_report

    arguments = asdict(graph) | {"test_image": test_image, "device": device, "camera": camera_option(camera)}
    with contextlib.suppress(yaml.YAMLError):  # invalid yaml stays text, which the library refuses
        arguments["postprocessing_kwargs"] = yaml.safe_load(graph.postprocessing_kwargs or "{}")
    report = gap.export(model, out, card, on_stage=lambda stage: say(quiet, f"{stage} ..."), **arguments)
    if not quiet:
        print_report(report)
    say(quiet, f"{out}: written, {out.stat().st_size / 1e6:.1f} MB")


def info(model: ModelPath, json_out: Json = None, quiet: Quiet = False) -> None:
    """Describe a model: its kind, its network, the brightness it was trained for, its receptive field."""
    import gap_bioimage as gap

    report = gap.load_model(model).describe()
    write_json(json_out, [report])
    if not quiet and str(json_out) != "-":
        print_table(report)
