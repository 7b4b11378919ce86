"""The work behind the buttons, without a window: each function calls the library and reports to a `Job`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

import gap_bioimage as gap
from gap_bioimage.counts import check_photon_counts
from gap_bioimage.napari.layers import in_memory, middle_of, opened

_CROP_PX = 160
_NEXT = {
    "photon counts": "Train on it, or denoise it with an existing model.",
    "counts times k": "In Train, give a camera yaml with the lines `gain: K` and `offset: 0`, where K is that number.",
    "camera image": "Measure the camera (gap-bioimage calibrate MOVIE --out camera.yaml); give camera.yaml in Train.",
}


class StoppedError(Exception):
    """The user pressed Stop."""


class Job:
    """Work that another thread can watch and stop."""

    def __init__(self, work: Callable[[Job], Any]) -> None:
        self.work = work
        self.stop_requested: Callable[[], bool] = lambda: False
        self.done, self.total, self.text = 0, 0, ""
        self.news: Any = None  # progress of training: the losses, and a held-out crop before and after denoising
        self.result, self.succeeded, self.failure = None, False, ""

    def run(self) -> None:
        """Run the work; Stop and errors that users can fix become a sentence, other errors are raised."""
        try:
            self.result, self.succeeded = self.work(self), True
        except StoppedError:
            self.failure = "Stopped."
        except (gap.GapError, MemoryError) as error:
            self.failure = str(error)

    def report(self, done: int, total: int, text: str = "") -> None:
        """Report progress; raise `StoppedError` if the job is to stop."""
        if self.stop_requested():
            raise StoppedError
        self.done, self.total, self.text = done, total, text

    def __str__(self) -> str:
        """Return the progress as text."""
        text = "Stopping ..." if self.stop_requested() else self.text
        return ", ".join(filter(None, (text, f"{self.done} of {self.total}" if self.total else "")))


def inspect(job: Job, image: xr.DataArray) -> str:
    """Return what kind of image this is, and what to do next."""
    report = gap.inspect(middle_of(image))
    return f"{report.verdict}: {report.message}\n\n{_NEXT.get(report.verdict, report.next)}"


def train(job: Job, image: xr.DataArray, run: Path, steps: int | None, **new: Any) -> Path:
    """Train with the settings in ``new``, or continue the run in the folder with its own settings."""
    resume = (run / "config.yaml").is_file()
    if not (new["camera"] or (run / "camera.yaml").is_file()):
        check_photon_counts(middle_of(image), name=image.attrs["source"])
    job.report(0, 0, "choosing the settings")
    config = None if steps is None else gap.TrainConfig(steps=steps)
    from lightning.pytorch.callbacks import LambdaCallback

    from gap_bioimage.training.run_folder import preview, read_metrics

    def show(*_: Any) -> None:
        job.news = read_metrics(run), preview(run, gap.load_model(run), _CROP_PX)

    watch = LambdaCallback(
        on_train_batch_start=lambda trainer, module, *_: job.report(trainer.global_step, module.config.train.steps),
        on_train_epoch_end=show,
    )
    gap.train(image, run, config, **({} if resume else new), resume=resume, progress=False, callbacks=[watch])
    return run


def _model_for(job: Job, model: str, image: xr.DataArray) -> tuple[gap.Model, dict[str, Any]]:
    """Load a model; return it with options: planes one by one if it is 2D, channels separately if it has only one."""
    job.report(0, 0, "loading the model")
    loaded = gap.load_model(model)
    if loaded.camera is None and loaded.n_frames is None:
        check_photon_counts(middle_of(image), name=image.attrs["source"])
    return loaded, {"planes": loaded.config.dim == 2, "separate_channels": loaded.config.channels == 1}


def denoise(job: Job, image: xr.DataArray, model: str, folder: Path | None = None) -> xr.DataArray:
    """Denoise; a large image block by block into an OME-Zarr, in ``folder`` or next to its file."""
    loaded, options = _model_for(job, model, image)
    if (file := image.attrs.get("file")) is None:
        return gap.denoise(loaded, image, on_tile=job.report, **options)
    name = re.sub(r"[^\w-]+", "_", image.attrs["source"])
    out = (folder or file.parent) / f"{name}_denoised.ome.zarr"
    options |= {"selection": {"channel": image.attrs.get("channel")}}
    gap.denoise_volume(loaded, file, out, on_block=partial(job.report, text=f"into {out}"), **options)
    return opened(out)


def sample(job: Job, image: xr.DataArray, model: str, n_samples: int, seed: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Draw samples; return them and their standard deviation."""
    from gap_bioimage.inference.files import mean_and_std

    loaded, options = _model_for(job, model, image)
    options |= {"seed": seed, "on_step": lambda p: job.report(p.done, p.total)}
    samples = gap.sample(loaded, in_memory(image), n_samples, **options)
    return samples, mean_and_std(samples)[1]


def regions(job: Job, image: xr.DataArray, model: str, labels: Any) -> list[gap.Region]:
    """Measure the photons of labelled regions, and their standard deviations."""
    loaded, _ = _model_for(job, model, image)
    label_image = xr.DataArray(labels, dims=list("zyx"[-labels.ndim :]))
    return gap.region_uncertainty(loaded, in_memory(image), label_image, seed=0, on_region=job.report)


def export(job: Job, model: str, out: Path, card: dict[str, Any]) -> str:
    """Write a zip if it passes every check; return its report as text: verdicts per program and what to improve."""
    from gap_bioimage.exporting.card import Card

    report = gap.export(model, out, Card.from_dict(card), on_stage=lambda stage: job.report(0, 0, stage))
    lines = [f"{v.consumer}: {v.verdict}{f' ({v.reason})' if v.reason else ''}" for v in report.verdicts]
    todo = [f"{check.id}: {check.message}" for check in report.checks if check.status == "warning"]
    return "\n".join([f"{report.model}: {report.status}", *lines, "", *(["recommended", *todo] if todo else [])])
