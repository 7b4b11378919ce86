"""The verbs that draw samples: parse, call, print."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gap_bioimage.console import Bar, parse_pixels, say, sizes
from gap_bioimage.errors import AxesError, EmptyImageWarning, HotPixelWarning
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

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from gap_bioimage.config import SamplingConfig
    from gap_bioimage.inference.sampling import Progress

Samples = Annotated[int, typer.Option(min=1, help="How many.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Network evaluations per sample of the sqrt schedule; 16 when not given.")
]
Schedule = Annotated[
    str | None,
    typer.Option(help="sqrt (few steps, the default for samples) or geometric (the paper's)."),
]
Beta = Annotated[float | None, typer.Option(help="Growth per step of the geometric schedule; 0.1 when not given.")]
StopDb = Annotated[float | None, typer.Option(help="Stop at this many dB, 10 log10 of the mean photons per pixel.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Samples per run of the network; chosen when not given.")]


def sample(
    model: ModelPath,
    image: Annotated[Path, typer.Argument(help="Photon counts.")],
    out: Annotated[
        Path,
        typer.Argument(help="Samples (.tif, .ome.tif, .ome.zarr, .h5, .npy); _mean, _std, _figure.png beside it."),
    ],
    samples: Samples,
    seed: Seed,
    steps: Steps = None,
    schedule: Schedule = None,
    beta: Beta = None,
    stop_db: StopDb = None,
    states: Annotated[bool, typer.Option("--states", help="Write the counts after every step, too.")] = False,
    camera: Camera = None,
    sum_frames: SumFrames = None,
    planes: Planes = False,
    time_as_z: TimeAsZ = False,
    separate_channels: SeparateChannels = False,
    tile: Tile = None,
    halo: Halo = None,
    batch: Batch = None,
    axes: Axes = None,
    channel: Channel = None,
    time: Time = None,
    series: Series = None,
    level: Level = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Draw clean images that the counts may have come from (posterior samples), their mean and standard deviation.

    From two samples on, a figure shows them beside the counts.
    Images, frames, planes and channels without any photons are generated, with a warning.
    The same command continues an interrupted run.
    """
    from gap_bioimage.inference.denoising import denoise
    from gap_bioimage.inference.resume import Unfinished
    from gap_bioimage.inference.sampling import sample as draw
    from gap_bioimage.inference.trained_range import warn_if_samples_disagree
    from gap_bioimage.inputs import camera_of, read_input
    from gap_bioimage.io import check_output
    from gap_bioimage.model import load_model
    from gap_bioimage.sample_files import write_samples, write_states

    settings = _settings(schedule=schedule, steps=steps, beta=beta, stop_db=stop_db)
    check_output(out, image)
    loaded = load_model(model)
    detector = camera_of(camera, loaded)
    select = {"axes": axes, "channel": channel, "time": time, "series": series, "level": level}
    if detector is None and sum_frames is None and loaded.n_frames is None:
        counts = _counts_or_nothing(image, select)
    else:
        counts = read_input(image, select, loaded, detector, sum_frames)
    where: dict[str, Any] = {"tile_px": parse_pixels(tile, "--tile"), "halo_px": parse_pixels(halo, "--halo")}
    where |= {"planes": planes, "device": device, "camera": detector}
    where |= {"time_as_z": time_as_z, "separate_channels": separate_channels}
    if states and (("t" in counts.dims and not time_as_z) or (planes and "z" in counts.dims)):
        raise AxesError(
            f"--states takes one image, {image.name} holds several ({sizes(counts)}); give one frame or plane"
        )
    made_of = _made_of(model, image, samples=samples, seed=seed, settings=settings, planes=planes, select=select)
    kept = Unfinished(out.with_name(f".{out.name}.states") if states else None, made_of)
    with Bar(quiet, "sampling") as bar:
        report = _reporter(*bar)

        def on_step(progress: Progress) -> None:
            report(progress)
            if states:
                for number, counted in zip(progress.samples, progress.counts.cpu().numpy(), strict=True):
                    kept.save(f"sample{number}_step{progress.step}", counts=counted)

        drawn = draw(
            loaded,
            counts,
            samples,
            seed=seed,
            settings=settings,
            batch=batch,
            unfinished=out.with_name(f".{out.name}.unfinished"),
            on_step=on_step,
            **where,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmptyImageWarning)  # sampling has said so
        warnings.simplefilter("ignore", HotPixelWarning)
        mmse = denoise(loaded, counts, **where)
    warn_if_samples_disagree(drawn, mmse)
    files = write_samples(out, counts if detector is None else detector.electrons(counts), mmse, drawn)
    if states:
        files += write_states(out, kept, samples, counts)
        kept.remove()
    say(quiet, "\n".join(f"{file}" for file in files))
    say(quiet, f"{sizes(drawn)}, {float(drawn.mean()):.3g} photons per pixel")


def generate(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="Generated images (.tif, .ome.tif, .ome.zarr, .h5, .npy).")],
    shape: Annotated[str, typer.Option(help="Pixels, such as 256,256 or 16,128,128.")],
    seed: Seed,
    samples: Samples = 1,
    beta: Beta = None,
    stop_db: StopDb = None,
    movie: Annotated[
        Path | None, typer.Option(help="Photons beside the denoised state as they grow (.gif, .mp4).")
    ] = None,
    tile: Tile = None,
    halo: Halo = None,
    batch: Batch = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Generate images from nothing, photon by photon, as the model imagines them."""
    from gap_bioimage.inference.resume import Unfinished
    from gap_bioimage.inference.sampling import generate as draw
    from gap_bioimage.io import check_output, write_image
    from gap_bioimage.model import load_model
    from gap_bioimage.movie import Recorder, check_movie

    settings = _settings(schedule="geometric", beta=beta, stop_db=stop_db)
    check_output(out)
    if movie is not None:
        check_movie(movie)
    loaded = load_model(model)
    made_of = _made_of(model, shape=shape, seed=seed, settings=settings)
    frames = Unfinished(None if movie is None else movie.with_name(f".{movie.name}.frames"), made_of)
    recorder = Recorder(frames)
    with Bar(quiet, "generating") as bar:
        report = _reporter(*bar)

        def on_step(progress: Progress) -> None:
            report(progress)
            if movie is not None and 0 in progress.samples:
                recorder.add(progress)

        images = draw(
            loaded,
            parse_pixels(shape, "--shape") or (),
            samples,
            seed=seed,
            settings=settings,
            tile_px=parse_pixels(tile, "--tile"),
            halo_px=parse_pixels(halo, "--halo"),
            batch=batch,
            device=device,
            unfinished=out.with_name(f".{out.name}.unfinished"),
            on_step=on_step,
        )
    write_image(out, images.isel(sample=0) if samples == 1 else images)
    if movie is not None:
        recorder.write(movie)
        frames.remove()
    say(quiet, f"{out}: {sizes(images)}, {float(images.mean()):.3g} photons per pixel")


def _counts_or_nothing(image: Path, select: dict[str, Any]) -> xr.DataArray:
    """Read photon counts, or an image that is all zero: from that one samples are generated."""
    from gap_bioimage.counts import check_photon_counts
    from gap_bioimage.io import read_photons

    counts = read_photons(image, check=False, **select)
    if not counts.size or counts.dtype.kind not in "biuf" or bool(counts.any()):
        check_photon_counts(counts, name=image.name)
    return counts


def _settings(**given: Any) -> SamplingConfig:
    from pydantic import ValidationError

    from gap_bioimage.config import SamplingConfig, error_sentence
    from gap_bioimage.errors import ConfigError

    geometric = given.get("schedule") == "geometric"
    for option in ("steps",) if geometric else ("beta",):
        if given.get(option) is not None:
            other = "sqrt" if geometric else "geometric"
            raise typer.BadParameter(f"--{option} belongs to --schedule {other}")
    try:
        return SamplingConfig(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(error_sentence(SamplingConfig, e) for e in error.errors())) from None


def _made_of(*files: Path, **values: Any) -> dict[str, str]:
    """Return what results depend on, so that those of other work are told apart."""
    stamps = {str(file): str(file.stat().st_mtime_ns) for file in files if file.exists()}
    return {**stamps, **{key: str(value) for key, value in values.items()}}


def _reporter(bar: RichProgress, task: TaskID) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        text = f"sample {progress.samples.start + 1}: {progress.photons:.3g} photons per pixel, {progress.db:.1f} dB"
        bar.update(task, completed=progress.done, total=progress.total, description=text)

    return report
