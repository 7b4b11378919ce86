"""Write a model zip, if it passes its checks."""

from __future__ import annotations

import platform
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from gap_bioimage.errors import ExportError, OutputError
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.intake import Intake, brightest_piece, example_values, sparse_counts
from gap_bioimage.exporting.kinds import Kind, Sampling, check_kind, counts_sampler, product_of
from gap_bioimage.exporting.measures import (
    Measured,
    Sizes,
    box_of,
    check_room,
    measure_halo,
    score_on_halves,
    score_samples,
    seconds_per_megapixel,
)
from gap_bioimage.exporting.operation import read_operation
from gap_bioimage.exporting.rdf import COVER, README, TEST_INPUT, describe, description_of, output_file
from gap_bioimage.exporting.readme import draw_cover, write_readme
from gap_bioimage.exporting.weights import check_onnx, denoiser_of, write_onnx
from gap_bioimage.files import replacing
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.model import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import xarray as xr

    from gap_bioimage.exporting.operation import Operation
    from gap_bioimage.model import CameraLike, Model
    from gap_bioimage.validation.report import Report


def export(
    model: Model | str | Path,
    out: str | Path,
    card: Card | str | Path,
    kind: Kind = "denoise",
    *,
    n_samples: int = 4,
    n_steps: int = 8,
    seed: int = 0,
    postprocessing: str | None = None,
    postprocessing_kwargs: Mapping[str, Any] | None = None,
    camera: CameraLike = "model",
    onnx: bool = False,
    test_image: xr.DataArray | str | Path | None = None,
    device: str = "cpu",
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Export a model as a bioimage.io zip in the portable profile (Fiji, ilastik, the zoo, ...).

    Nothing is written unless every check of ``validate`` passes.

    Parameters
    ----------
    model
        A model, or what ``load_model`` takes.
    out
        The zip; replaced only when the new one is complete and valid.
    card
        The author's card, or its yaml.
    kind
        "denoise": the output is the expected photons per pixel. "sample": its channels are mean and standard
        deviation of posterior samples, then the samples, drawn in the graph. "sample-hook": the same, drawn by
        custom postprocessing, for bioimageio.core 0.10.3 or newer only.
    n_samples, n_steps, seed
        What is drawn, by kinds that sample: how many, in how many steps each, with which noise.
    postprocessing
        Custom postprocessing of the output, "FILE.py:NAME": ``NAME(**kwargs)`` is called with numpy arrays and
        keeps their shape. Only bioimageio.core 0.10.3 or newer runs such a zip.
    postprocessing_kwargs
        Its kwargs, plain values.
    camera
        The camera whose raw images the zip is for, or its yaml; "model" for the one of the training, if any;
        None for counts.
    onnx
        Add ONNX weights; kind "denoise" only. They take sizes in steps of the pooling only, so the zip declares these.
    test_image
        Real counts (or images of the camera) for the test tensors and the measured numbers. Models from a run
        folder bring theirs.
    device
        Where the finished zip is validated.
    on_stage
        Called with a word or two before each stage.

    Returns
    -------
    Report
        Of the validation.

    Raises
    ------
    CardError
        Listing all missing and wrong fields.
    ExportError
        If there are no counts to test with, an option or the postprocessing cannot be used, or a check fails.
    BrokenNetworkError
        If the network returns values that are not finite.
    OutputError
        If the zip cannot be written.
    """
    from gap_bioimage.validation.report import validate

    check_kind(kind)
    sampling = Sampling(n_samples, n_steps, seed)
    if onnx:
        check_onnx(kind)
    card = card if isinstance(card, Card) else Card.read(card)
    own = None if postprocessing is None else read_operation(postprocessing, postprocessing_kwargs)
    description_of(card, custom=kind == "sample-hook" or own is not None)
    model = load_model(model) if isinstance(model, (str, Path)) else model
    intake = Intake.of(model, camera)
    example, held_out = example_values(model, intake, test_image)
    tell = on_stage or (lambda stage: None)
    order = _Order(kind, model, card, sampling, own, intake, onnx, example, held_out, tell)
    out = Path(out)
    with tempfile.TemporaryDirectory(prefix="gap-bioimage-") as name, replacing(out) as temporary:
        folder = Path(name)
        try:
            _fill(folder, order)
        except OSError as error:
            raise OutputError(f"cannot write to the temporary folder {name}: {error.strerror or error}") from None
        _zip(folder, temporary)
        order.tell("validating")
        report = replace(validate(temporary, run_code=True, device=device), model=str(out))
        if report.status != "passed":
            bad = [check for check in report.checks if check.status == "failed"]
            bad = bad or [check for check in report.checks if check.id == "core.test"]  # which was not run
            problems = "; ".join(f"{check.id}: {check.message}" for check in bad)
            raise ExportError(f"{out} was not written, because its checks failed: {problems}")
    return report


@dataclass(frozen=True)
class _Order:
    """What is to be exported."""

    kind: Kind
    model: Model
    card: Card
    sampling: Sampling
    own: Operation | None
    intake: Intake
    onnx: bool
    example: np.ndarray
    held_out: np.ndarray | None
    tell: Callable[[str], None]


def _fill(folder: Path, order: _Order) -> None:
    """Make the files of a zip in a folder."""
    model, intake = order.model, order.intake
    network = model.network.cpu()
    example = intake.counts(order.example)
    photons = torch.from_numpy(example.astype(np.float32))[None]
    TiledNetwork(network)(photons)  # raises where values are not finite
    order.tell("measuring the halo")
    box_px = box_of(network)
    denoiser = denoiser_of(model, box_px)
    halo = measure_halo(denoiser, example)
    sizes = Sizes.of(network.step_px, halo.halo_px, any_size=not order.onnx)
    order.tell("making the test tensors")
    product = product_of(order.kind, model, box_px, order.sampling, order.own, intake)
    product.write(folder)
    if order.onnx:
        write_onnx(folder, denoiser, model.config.channels, sizes)
    values = brightest_piece(order.example, sizes.min_px)
    if product.sampling is not None:
        values = intake.values_of(sparse_counts(intake.counts(values), product.sampling.n_samples, denoiser))
    test_input = values.astype(np.float32)[None]
    given = intake.preprocess(test_input)
    np.save(folder / TEST_INPUT, test_input)
    np.save(folder / output_file(product.output), product.run(given))
    with torch.inference_mode():
        draw_cover(folder / COVER, example, denoiser(photons)[0].numpy())
    order.tell("measuring scores")
    # as in training, so that the two halves of the photons are independent
    scored = intake.counts(order.example if order.held_out is None else order.held_out, np.random.default_rng(0))
    scores = score_on_halves(denoiser, scored)
    speed = _speed(seconds_per_megapixel(product.sampler or product.module, given), model.config.dim)
    measured = Measured(sizes, halo, box_px, scores, order.held_out is not None, speed)
    if product.sampler is not None:
        room = check_room(example, product.sampler.brightest, product.sampler.least_gain)
        sampler = counts_sampler(model, box_px, order.sampling)
        measured = replace(measured, samples=score_samples(sampler, denoiser, scored), room_db=room)
    write_readme(folder / README, model, order.card, product, measured)
    rdf = describe(folder, model, order.card, product, measured)
    text = yaml.safe_dump(rdf, sort_keys=False, allow_unicode=True, width=100)
    (folder / "rdf.yaml").write_text(text, encoding="utf-8")


def _speed(seconds: float, dim: int) -> str:
    cores = f"{threads} cores" if (threads := torch.get_num_threads()) > 1 else "1 core"
    what = "megapixel" if dim == 2 else "10^6 voxels"
    return f"{seconds:.2g} s per {what} on the machine that made this file ({cores}, {platform.machine()}, no GPU)"


def _zip(folder: Path, target: Path) -> None:
    """Zip the files of a folder, its description first."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != "rdf.yaml", name))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
