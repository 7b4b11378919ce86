"""The command line: one function per verb that parses, calls and prints."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from gap_bioimage.cli_camera import calibrate
from gap_bioimage.cli_inspect import inspect_images
from gap_bioimage.cli_repair import repair
from gap_bioimage.cli_sampling import generate, sample
from gap_bioimage.cli_training import info, train
from gap_bioimage.cli_validation import validate
from gap_bioimage.console import (
    Bar,
    complain,
    parse_pixels,
    report_error,
    say,
    show_log,
    show_warning,
    sizes,
    write_json,
)
from gap_bioimage.options import (
    Axes,
    Camera,
    Channel,
    Device,
    Halo,
    Level,
    ModelPath,
    Planes,
    Quiet,
    Seed,
    SeparateChannels,
    Series,
    SumFrames,
    Tile,
    Time,
    TimeAsZ,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Photon counts in, a shareable denoiser out: train, denoise, export to bioimage.io, validate.",
    epilog="--debug, anywhere on the line, shows tracebacks.",
)


def _version(asked: bool) -> None:
    if asked:
        import gap_bioimage

        print(gap_bioimage.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
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


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Counts (.tif, .ome.tif, .ome.zarr, .h5, .npy).")],
    dim: Annotated[int, typer.Option(min=2, max=3, help="Spatial dimensions.")],
    photons: Annotated[float, typer.Option(help="Mean photons per pixel.")],
    seed: Seed,
    truth: Annotated[Path | None, typer.Option(help="Write the expected photons here.")] = None,
    shape: Annotated[str | None, typer.Option(help="Pixels, such as 512,512 or 32,128,128.")] = None,
    quiet: Quiet = False,
) -> None:
    """Simulate photon counts of cells."""
    from gap_bioimage.io import write_image
    from gap_bioimage.simulation import simulate as simulate_counts

    counts, rate = simulate_counts(dim, parse_pixels(shape, "--shape"), photons, seed)  # type: ignore[arg-type]
    write_image(out, counts)
    if truth is not None:
        write_image(truth, rate)
    say(quiet, f"{out}: {sizes(counts)}, {float(counts.mean()):.3g} photons per pixel")


app.command("inspect")(inspect_images)
app.command()(calibrate)


app.command()(train)


@app.command()
def denoise(
    model: ModelPath,
    image: Annotated[Path, typer.Argument(help="Photon counts, or a camera image with its camera.")],
    out: Annotated[Path, typer.Argument(help="Denoised image (.tif, .ome.tif, .ome.zarr, .h5, .npy).")],
    camera: Camera = None,
    sum_frames: SumFrames = None,
    planes: Planes = False,
    time_as_z: TimeAsZ = False,
    separate_channels: SeparateChannels = False,
    regions: Annotated[
        Path | None, typer.Option(help="Label image: print the photons of each region and their standard deviation.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the estimate for --regions.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the regions to this file; - prints.")] = None,
    tile: Tile = None,
    halo: Halo = None,
    axes: Axes = None,
    channel: Channel = None,
    time: Time = None,
    series: Series = None,
    level: Level = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Denoise photon counts: the expected photons per pixel (MMSE)."""
    from gap_bioimage.inference.denoising import denoise as run
    from gap_bioimage.inputs import camera_of, read_input
    from gap_bioimage.io import check_output, read_photons, write_image
    from gap_bioimage.model import load_model

    tiles: dict[str, Any] = {"tile_px": parse_pixels(tile, "--tile"), "halo_px": parse_pixels(halo, "--halo")}
    if planes and regions is not None:
        raise typer.BadParameter("--regions takes one image of the model's own dimensions, without --planes")
    check_output(out, image)
    loaded = load_model(model)
    detector = camera_of(camera, loaded)
    select = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    counts = read_input(image, select, loaded, detector, sum_frames)
    found = []
    if regions is not None:
        from gap_bioimage.inference.regions import region_uncertainty

        labels = read_photons(regions, axes if axes and "c" not in axes else None, check=False)
        found = region_uncertainty(loaded, counts, labels, seed=seed, camera=detector, device=device, **tiles)
    with Bar(quiet, "denoising") as (bar, task):
        rate = run(
            loaded,
            counts,
            planes=planes,
            camera=detector,
            time_as_z=time_as_z,
            separate_channels=separate_channels,
            device=device,
            on_tile=lambda done, total: bar.update(task, completed=done, total=total),
            **tiles,
        )
    write_image(out, rate)
    if regions is not None:
        write_json(json_out, [[region.to_dict() for region in found]])
        for region in found:
            say(quiet or str(json_out) == "-", str(region))
    say(quiet, f"{out}: {sizes(rate)}, {float(rate.mean()):.3g} photons per pixel")


app.command()(sample)
app.command()(generate)


@app.command()
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
    from gap_bioimage.exporting.archive import export as write_zip
    from gap_bioimage.exporting.operation import parse_kwargs
    from gap_bioimage.inputs import camera_asked
    from gap_bioimage.validation.reports.terminal import print_report

    report = write_zip(
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


app.command()(validate)
app.command()(repair)


app.command()(info)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors are one sentence and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    warnings.showwarning = show_warning
    if "--quiet" not in arguments:
        show_log()
    try:
        code = app([a for a in arguments if a != "--debug"], standalone_mode=False, prog_name="gap-bioimage")
    except Exception as error:
        if debug:
            raise
        code = report_error(error)
    except KeyboardInterrupt:
        code = 130
    if code == 130:  # newer typer returns it after Ctrl-C, without a word
        complain("stopped; training continues with --resume, sampling with the same command")
    sys.exit(code if isinstance(code, int) else 0)
