"""Verbs that run a model on images: denoise, sample, generate."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from typer import Argument, Option

from gap_bioimage.cli import options
from gap_bioimage.cli.console import keep_memory, left_out, progress_bar, say, sizes, write_json
from gap_bioimage.cli.options import Detector, Layout, ModelPath, Quiet, Running, Selection, camera_option
from gap_bioimage.files import check_output_path

if TYPE_CHECKING:
    from gap_bioimage.config import SamplingConfig
    from gap_bioimage.inference.sampling import Progress
    from gap_bioimage.model import Model

_SAMPLES = "Samples to write (.tif, .ome.tif, .ome.zarr, .h5, .npy), with _mean, _std and _figure.png beside them."
_STEPS = "Network evaluations per sample with the sqrt schedule; by default 10."
_STOP_DB = (
    "Stop at this 10 log10 of mean photons per pixel; by default the training's, at most 20 dB more than an image."
)
_COVERAGE = "Hold out half of the photons, and check whether samples predict them."
_REGIONS = "Label image: print the photons of each region with their standard deviation."
_PART = "Process only part I of N of a volume, counted from 1, as in job arrays."
_SCHEDULER = "Process a volume on the workers of this dask scheduler, such as tcp://node:8786."
_BLOCK = "Size of the blocks in which a volume is processed and stored, such as 64,512,512; by default automatic."
Samples = Annotated[int, Option(min=1, help="Number of samples.")]
Batch = Annotated[int | None, Option(min=1, help="Samples per run of the network; by default automatic.")]


@dataclass(frozen=True)
class Regions:
    """Options for regions of a denoised image."""

    regions: Annotated[Path | None, Option(help=_REGIONS)] = None
    seed: Annotated[int, Option(min=0, help="Seed of the estimate for --regions.")] = 0
    json_out: Annotated[Path | None, Option("--json", help="Write the regions to this file; - prints them.")] = None


@dataclass(frozen=True)
class Drawing:
    """Options for the samples to draw."""

    samples: Samples
    seed: options.Seed
    states: Annotated[bool, Option("--states", help="Also write the counts after every step.")] = False
    batch: Batch = None
    check_coverage: Annotated[bool, Option("--check-coverage", help=_COVERAGE)] = False


@dataclass(frozen=True)
class GeometricSchedule:
    """Schedule options of ``generate``, which starts without photons."""

    beta: Annotated[float | None, Option(help="Growth per step of the geometric schedule; by default 0.1.")] = None
    stop_db: Annotated[float | None, Option(help=_STOP_DB)] = None

    def settings(self, **others: Any) -> SamplingConfig:
        """Return the settings as the library takes them."""
        from gap_bioimage.config import SamplingConfig

        settings = asdict(self) | others
        return SamplingConfig.from_dict({key: value for key, value in settings.items() if value is not None})


@dataclass(frozen=True)
class Schedule(GeometricSchedule):
    """Schedule options of ``sample``, which starts with the photons of an image."""

    steps: Annotated[int | None, Option(min=1, help=_STEPS)] = None
    schedule: Annotated[str | None, Option(help="sqrt (few steps, the default) or geometric (the paper's).")] = None

    def settings(self, **others: Any) -> SamplingConfig:
        """Refuse an option of the other schedule."""
        option, other = ("steps", "sqrt") if self.schedule == "geometric" else ("beta", "geometric")
        if getattr(self, option) is not None:
            raise typer.BadParameter(f"--{option} belongs to --schedule {other}")
        return super().settings(**others)


@dataclass(frozen=True)
class Volumes(Running):
    """Options for running a network, and for volumes that are written to OME-Zarr block by block."""

    part: Annotated[str | None, Option(metavar="I/N", help=_PART)] = None
    scheduler: Annotated[str | None, Option(metavar="ADDRESS", help=_SCHEDULER)] = None
    status: Annotated[bool, Option("--status", help="Print how much of a volume is done, and stop.")] = False
    verify: Annotated[bool, Option("--verify", help="Process damaged blocks of a volume again.")] = False
    block: Annotated[str | None, Option(help=_BLOCK)] = None
    ome_zarr: Annotated[Literal["0.5", "0.4"], Option(help="OME-Zarr version of a volume; 0.5 has shards.")] = "0.5"

    def has_volume_options(self, out: Path) -> bool:
        """Whether any volume option was given; refuse them unless ``out`` ends in .zarr."""
        given = self != Volumes(self.tile, self.halo, self.device, self.precision)
        if given and out.suffix.lower() != ".zarr":
            raise typer.BadParameter(
                f"--part, --block and other options of volumes are for .zarr outputs, not for {out}"
            )
        return given

    def volume_options(self) -> dict[str, Any]:
        """Return the options as arguments of the library."""
        part = re.fullmatch(r"(\d+)/(\d+)", self.part or "1/1")
        if part is None:
            raise typer.BadParameter(f"--part is {self.part!r}, expected a part such as 3/16")
        block = options.parse_pixels(self.block, "--block")
        volume = {"scheduler": self.scheduler, "verify": self.verify, "version": self.ome_zarr, "block_px": block}
        return {"part": (int(part[1]), int(part[2])), **volume, **self.options()}


class How(NamedTuple):
    """The options of ``denoise``, the same for all images."""

    selection: Selection
    layout: Layout
    running: Volumes
    detector: Detector
    region: Regions
    quiet: bool


def denoise(
    model: ModelPath,
    images: options.Images,
    out: options.OutOrFolder,
    selection: Selection,
    layout: Layout,
    running: Volumes,
    detector: Detector,
    region: Regions,
    quiet: Quiet = False,
) -> None:
    """Denoise photon counts: estimate the expected photons per pixel (MMSE).

    Several images, or those of a folder, are written into a folder under their own names; bad ones are left out.
    Outputs that end in .zarr are written block by block, from images of any size. To resume, run the command again.
    """
    import gap_bioimage as gap
    from gap_bioimage.io import check_output

    images, outputs = _pairs(images, out)
    if running.has_volume_options(outputs[0]) and region.regions is not None:
        raise typer.BadParameter("--regions takes an image that fits into memory, without options such as --block")
    if region.json_out is not None and region.regions is None:
        raise typer.BadParameter("--json is the file for the results of --regions; give both")
    if running.status:
        print(gap.volume_status(out))
        return
    if region.regions is not None and (layout != Layout() or len(images) > 1):
        flags = " ".join(f"--{name.replace('_', '-')}" for name, value in asdict(layout).items() if value)
        problem = f"without {flags}" if flags else f"not {len(images)} images"
        raise typer.BadParameter(f"--regions takes one image of the model's own dimensions, {problem}")
    if outputs != [out]:
        check_output_path(out, folder=True)
        out.mkdir(exist_ok=True)
    for image, path in zip(images, outputs, strict=True):
        check_output(path, image)
    loaded, how, failed = gap.load_model(model), How(selection, layout, running, detector, region, quiet), list[Path]()
    for image, path in zip(images, outputs, strict=True):
        with left_out(image, len(images), failed):
            _denoise_one(loaded, image, path, how)
    if failed:
        raise typer.Exit(2)


def _pairs(images: list[Path], out: Path) -> tuple[list[Path], list[Path]]:
    """Return images and where to write each: ``out``, or a file in it if it is a folder or has no suffix."""
    from gap_bioimage.io.read import image_files
    from gap_bioimage.io.write import SUFFIXES

    files = images if out.suffix.lower() == ".zarr" else image_files(*images)
    if files == images[:1] and out.suffix and (out.suffix.lower() == ".zarr" or not out.is_dir()):
        return images, [out]
    if out.suffix.lower() in SUFFIXES:
        raise typer.BadParameter(f"{out} is one file, and several images need a folder; add the name of one")
    outputs = [out / (file.name if file.suffix.lower() in SUFFIXES else f"{file.stem}.tif") for file in files]
    if twice := [path.name for number, path in enumerate(outputs) if path in outputs[:number]]:
        raise typer.BadParameter(f"two images would be written to {twice[0]}; denoise them into different folders")
    return files, outputs


def _denoise_one(model: Model, image: Path, out: Path, how: How) -> None:
    import gap_bioimage as gap
    from gap_bioimage.inference.files import read_for_model

    selection, layout, running, detector, region, quiet = how
    camera = model.camera_for(camera_option(detector.camera))
    if out.suffix.lower() == ".zarr" and region.regions is None:
        arguments = running.volume_options() | asdict(layout) | {"camera": camera}
        _run_blockwise(model, image, out, detector.sum_frames, selection, quiet, **arguments)
        return
    keep_memory()
    counts = read_for_model(model, image, camera, detector.sum_frames, **asdict(selection))
    arguments = {"camera": camera, **running.options()}
    if region.regions is not None:
        axes = selection.axes
        labels = gap.read_photons(region.regions, axes if axes and "c" not in axes else None, check=False)
        exact = {name: value for name, value in arguments.items() if name != "precision"}  # small differences of rates
        estimates = gap.region_uncertainty(model, counts, labels, seed=region.seed, **exact)
        write_json(region.json_out, [[estimate.to_dict() for estimate in estimates]])
        for estimate in estimates:
            say(quiet or str(region.json_out) == "-", str(estimate))
    with progress_bar(quiet, "denoising") as (bar, task):
        arguments["on_tile"] = lambda done, total: bar.update(task, completed=done, total=total)
        rate = gap.denoise(model, counts, **asdict(layout), **arguments)
    gap.write_image(out, rate)
    say(quiet, f"{out}: {sizes(rate)}, {float(rate.mean()):.3g} photons per pixel")


def sample(
    model: ModelPath,
    image: options.Image,
    out: Annotated[Path, Argument(help=_SAMPLES)],
    drawing: Drawing,
    sampling: Schedule,
    selection: Selection,
    layout: Layout,
    running: Volumes,
    detector: Detector,
    quiet: Quiet = False,
) -> None:
    """Draw clean images that fit the counts (posterior samples), with their mean and standard deviation.

    With two samples or more, a figure shows them beside the counts.
    Images, frames, planes and channels without any photons are generated, with a warning.
    The same command resumes an interrupted run.
    For images larger than memory, and with options such as --block, the output is only mean and std, as OME-Zarr.
    """
    import gap_bioimage as gap
    from gap_bioimage.inference.files import beside, read_for_model, sample_to_files
    from gap_bioimage.inference.preparation import refuse_one_bit
    from gap_bioimage.inference.volumes import exceeds_memory
    from gap_bioimage.io import check_output

    blockwise = running.has_volume_options(out)
    if running.status:
        print(gap.volume_status(beside(out, "mean")))
        return
    settings = sampling.settings()
    for path in (out, beside(out, "mean"), beside(out, "std")):
        check_output(path, image)
    loaded = gap.load_model(model)
    camera = loaded.camera_for(camera_option(detector.camera))
    if drawing.check_coverage:
        refuse_one_bit(loaded, "coverage")
    if blockwise or (out.suffix.lower() == ".zarr" and exceeds_memory(image, asdict(selection), drawing.samples)):
        if drawing.states or drawing.check_coverage:
            raise typer.BadParameter("--states and --check-coverage take an image that fits into memory")
        arguments = running.volume_options() | asdict(layout) | {"settings": settings, "camera": camera}
        arguments |= {"n_samples": drawing.samples, "seed": drawing.seed, "batch": drawing.batch}
        _run_blockwise(loaded, image, out, detector.sum_frames, selection, quiet, **arguments)
        return
    keep_memory()
    counts = read_for_model(loaded, image, camera, detector.sum_frames, may_be_empty=True, **asdict(selection))
    suffix = re.search(r"_((?:states_)?\d{3,})\.", image.name)  # as in names of results for movies and --states
    if suffix and (drawing.states if suffix[1].startswith("states") else "t" in counts.dims):
        check_output(beside(out, suffix[1]), image)
    arguments = asdict(layout) | running.options() | {"settings": settings, "camera": camera}
    arguments |= {"seed": drawing.seed, "batch": drawing.batch}
    with progress_bar(quiet, "sampling") as bar:
        arguments["on_step"] = _reporter(*bar)
        drawn, files = sample_to_files(loaded, counts, out, drawing.samples, states=drawing.states, **arguments)
    if drawing.check_coverage:
        files.append(beside(out, "coverage", ".png"))
        _check_coverage(files[-1], quiet, loaded, counts, max(drawing.samples, 2), **arguments)
    say(quiet, "\n".join(f"{file}" for file in files))
    say(quiet, f"{sizes(drawn)}, {float(drawn.mean()):.3g} photons per pixel")


def _check_coverage(figure: Path, quiet: bool, *inputs: Any, **arguments: Any) -> None:
    from gap_bioimage.inference.held_out import coverage
    from gap_bioimage.pictures import save_figure

    with progress_bar(quiet, "checking") as bar:
        arguments["on_step"] = _reporter(*bar)
        measured = coverage(*inputs, **arguments)
    save_figure(measured.draw(), figure)
    say(quiet, str(measured))


def generate(
    model: ModelPath,
    out: options.Out,
    shape: Annotated[str, Option(help="Size in pixels, such as 256,256 or 16,128,128.")],
    seed: options.Seed,
    growth: GeometricSchedule,
    running: Running,
    samples: Samples = 1,
    movie: Annotated[Path | None, Option(help="Movie of the photons beside their denoised state (.gif, .mp4).")] = None,
    batch: Batch = None,
    quiet: Quiet = False,
) -> None:
    """Generate new images like those of the training, photon by photon, without an input image."""
    import gap_bioimage as gap
    from gap_bioimage.inference.files import generate_to_file
    from gap_bioimage.io import check_output

    settings = growth.settings(schedule="geometric")
    check_output(out)
    arguments = {"movie": movie, "seed": seed, "settings": settings, "batch": batch, **running.options()}
    pixels = options.parse_pixels(shape, "--shape") or ()
    with progress_bar(quiet, "generating") as bar:
        images = generate_to_file(gap.load_model(model), out, pixels, samples, on_step=_reporter(*bar), **arguments)
    say(quiet, f"{out}: {sizes(images)}, {float(images.mean()):.3g} photons per pixel")


def _run_blockwise(
    model: Model, image: Path, out: Path, n_frames: int | None, selection: Selection, quiet: bool, **arguments: Any
) -> None:
    from gap_bioimage.inference.volumes import denoise_volume

    start = time.monotonic()
    with progress_bar(quiet, "blocks") as (bar, task):

        def report(done: int, total: int) -> None:
            speed = f"{done / 1e6 / max(time.monotonic() - start, 1e-9):.3g} Mvoxel/s"
            bar.update(task, completed=done, total=total, description=speed)

        arguments |= {"selection": asdict(selection), "sum_frames": n_frames, "on_block": report}
        status = denoise_volume(model, image, out, **arguments)
    say(quiet, f"{out}: {status}")


def _reporter(bar: Any, task: Any) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        text = f"sample {progress.samples.start + 1}: {progress.photons:.3g} photons per pixel, {progress.db:.1f} dB"
        bar.update(task, completed=progress.done, total=progress.total, description=text)

    return report
