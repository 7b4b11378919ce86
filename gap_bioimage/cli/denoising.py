"""Verbs that run a model on images: denoise, sample, generate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gap_bioimage.cli.console import Bar, say, sizes, write_json
from gap_bioimage.cli.options import (
    Camera,
    Device,
    Layout,
    ModelPath,
    Out,
    Quiet,
    Seed,
    Selection,
    SumFrames,
    Tiles,
    camera_asked,
    parse_pixels,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from gap_bioimage.config import SamplingConfig
    from gap_bioimage.inference.sampling import Progress

ImagePath = Annotated[Path, typer.Argument(help="Photon counts, or a camera image with its camera.")]
Samples = Annotated[int, typer.Option(min=1, help="How many.")]
Beta = Annotated[float | None, typer.Option(help="Growth per step of the geometric schedule; 0.1 when not given.")]
StopDb = Annotated[float | None, typer.Option(help="Stop at this many dB, 10 log10 of the mean photons per pixel.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples per run of the network; chosen when not given.")]


@dataclass(frozen=True)
class Steps:
    """How photons are added."""

    steps: Annotated[
        int | None, typer.Option(min=1, help="Network evaluations per sample of the sqrt schedule; 16 when not given.")
    ] = None
    schedule: Annotated[
        str | None, typer.Option(help="sqrt (few steps, the default for samples) or geometric (the paper's).")
    ] = None
    beta: Beta = None
    stop_db: StopDb = None

    def settings(self) -> SamplingConfig:
        """Return the library's settings."""
        geometric = self.schedule == "geometric"
        option, other = ("steps", "sqrt") if geometric else ("beta", "geometric")
        if getattr(self, option) is not None:
            raise typer.BadParameter(f"--{option} belongs to --schedule {other}")
        return _sampling(**asdict(self))


def _sampling(**given: Any) -> SamplingConfig:
    from gap_bioimage.config import SamplingConfig

    return SamplingConfig.from_dict({key: value for key, value in given.items() if value is not None})


def denoise(
    model: ModelPath,
    image: ImagePath,
    out: Out,
    selection: Selection,
    layout: Layout,
    tiles: Tiles,
    camera: Camera = None,
    sum_frames: SumFrames = None,
    regions: Annotated[
        Path | None, typer.Option(help="Label image: print the photons of each region and their standard deviation.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the estimate for --regions.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the regions to this file; - prints.")] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Denoise photon counts: the expected photons per pixel (MMSE)."""
    import gap_bioimage as gap
    from gap_bioimage.inference.files import read_for_model
    from gap_bioimage.io import check_output

    if layout.planes and regions is not None:
        raise typer.BadParameter("--regions takes one image of the model's own dimensions, without --planes")
    check_output(out, image)
    loaded = gap.load_model(model)
    detector = loaded.camera_for(camera_asked(camera))
    counts = read_for_model(loaded, image, detector, sum_frames, **asdict(selection))
    where: dict[str, Any] = {"camera": detector, "device": device, **tiles.pixels()}
    found = []
    if regions is not None:
        axes = selection.axes
        labels = gap.read_photons(regions, axes if axes and "c" not in axes else None, check=False)
        found = gap.region_uncertainty(loaded, counts, labels, seed=seed, **where)
    with Bar(quiet, "denoising") as (bar, task):
        rate = gap.denoise(
            loaded,
            counts,
            on_tile=lambda done, total: bar.update(task, completed=done, total=total),
            **asdict(layout),
            **where,
        )
    gap.write_image(out, rate)
    if regions is not None:
        write_json(json_out, [[region.to_dict() for region in found]])
        for region in found:
            say(quiet or str(json_out) == "-", str(region))
    say(quiet, f"{out}: {sizes(rate)}, {float(rate.mean()):.3g} photons per pixel")


def sample(
    model: ModelPath,
    image: ImagePath,
    out: Annotated[
        Path,
        typer.Argument(help="Samples (.tif, .ome.tif, .ome.zarr, .h5, .npy); _mean, _std, _figure.png beside it."),
    ],
    samples: Samples,
    seed: Seed,
    how: Steps,
    selection: Selection,
    layout: Layout,
    tiles: Tiles,
    states: Annotated[bool, typer.Option("--states", help="Write the counts after every step, too.")] = False,
    check_coverage: Annotated[
        bool,
        typer.Option("--check-coverage", help="Hold half of the photons out and see whether samples predict them."),
    ] = False,
    camera: Camera = None,
    sum_frames: SumFrames = None,
    batch: Batch = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Draw clean images that the counts may have come from (posterior samples), their mean and standard deviation.

    From two samples on, a figure shows them beside the counts.
    Images, frames, planes and channels without any photons are generated, with a warning.
    The same command continues an interrupted run.
    """
    import gap_bioimage as gap
    from gap_bioimage.inference.files import beside, read_for_model, sample_to_files
    from gap_bioimage.io import check_output
    from gap_bioimage.pictures import save_figure

    settings = how.settings()
    check_output(out, image)
    loaded = gap.load_model(model)
    detector = loaded.camera_for(camera_asked(camera))
    counts = read_for_model(loaded, image, detector, sum_frames, may_be_empty=True, **asdict(selection))
    with Bar(quiet, "sampling") as bar:
        drawn, files = sample_to_files(
            loaded,
            counts,
            out,
            samples,
            states=states,
            seed=seed,
            settings=settings,
            batch=batch,
            on_step=_reporter(*bar),
            camera=detector,
            device=device,
            **tiles.pixels(),
            **asdict(layout),
        )
    if check_coverage:
        files.append(beside(out, "coverage", ".png"))
        where: dict[str, Any] = {"camera": detector, "device": device, **tiles.pixels(), **asdict(layout)}
        with Bar(quiet, "checking") as bar:
            found = gap.coverage(
                loaded, counts, max(samples, 2), seed=seed, settings=settings, on_step=_reporter(*bar), **where
            )
        save_figure(found.draw(), files[-1])
        say(quiet, str(found))
    say(quiet, "\n".join(f"{file}" for file in files))
    say(quiet, f"{sizes(drawn)}, {float(drawn.mean()):.3g} photons per pixel")


def generate(
    model: ModelPath,
    out: Out,
    shape: Annotated[str, typer.Option(help="Pixels, such as 256,256 or 16,128,128.")],
    seed: Seed,
    tiles: Tiles,
    samples: Samples = 1,
    beta: Beta = None,
    stop_db: StopDb = None,
    movie: Annotated[
        Path | None, typer.Option(help="Photons beside the denoised state as they grow (.gif, .mp4).")
    ] = None,
    batch: Batch = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Generate images from nothing, photon by photon, as the model imagines them."""
    import gap_bioimage as gap
    from gap_bioimage.inference.files import generate_to_file
    from gap_bioimage.io import check_output

    settings = _sampling(schedule="geometric", beta=beta, stop_db=stop_db)
    check_output(out)
    with Bar(quiet, "generating") as bar:
        images = generate_to_file(
            gap.load_model(model),
            out,
            parse_pixels(shape, "--shape") or (),
            samples,
            movie=movie,
            seed=seed,
            settings=settings,
            batch=batch,
            device=device,
            on_step=_reporter(*bar),
            **tiles.pixels(),
        )
    say(quiet, f"{out}: {sizes(images)}, {float(images.mean()):.3g} photons per pixel")


def _reporter(bar: RichProgress, task: TaskID) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        text = f"sample {progress.samples.start + 1}: {progress.photons:.3g} photons per pixel, {progress.db:.1f} dB"
        bar.update(task, completed=progress.done, total=progress.total, description=text)

    return report
