"""Write a model zip, if it passes its checks."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import yaml

from gap_bioimage.camera.camera import CORRELATED
from gap_bioimage.errors import ExportError, OutputError
from gap_bioimage.exporting import documents, measures, weights
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.intake import Intake, brightest_piece, example_values, sparse_counts
from gap_bioimage.exporting.kinds import Kind, Operation, Product, Sampling, product_of
from gap_bioimage.files import replacing
from gap_bioimage.inference.tiling import TiledNetwork, box_of
from gap_bioimage.model import CameraLike, Model, load_model
from gap_bioimage.network import PhotonDenoiser

if TYPE_CHECKING:
    import xarray as xr

    from gap_bioimage.validation.report import Report


def export(
    model: Model | str | Path, out: str | Path, card: Card | str | Path, kind: Kind = "denoise", *,
    n_samples: int = 4, n_steps: int = 8, seed: int = 0,
    postprocessing: str | None = None, postprocessing_kwargs: Mapping[str, Any] | None = None,
    camera: CameraLike = "model", onnx: bool = False, test_image: xr.DataArray | str | Path | None = None,
    device: str = "cpu", on_stage: Callable[[str], None] | None = None,
) -> Report:  # fmt: skip
    """Export a model as a bioimage.io zip in the portable profile (Fiji, ilastik, the zoo, ...).

    Nothing is written unless every check of ``validate`` passes.

    Parameters
    ----------
    model, out
        A model, or what ``load_model`` takes; the zip, replaced only when the new one is complete and valid.
    card
        The author's card, or its yaml.
    kind
        "denoise": the output is the expected photons per pixel. "sample": its channels are mean and standard
        deviation of posterior samples, then the samples, drawn in the graph. "sample-hook": the same, drawn by
        custom postprocessing, for bioimageio.core 0.10.3 or newer only.
    n_samples, n_steps, seed
        What is drawn, by kinds that sample: how many, in how many steps each, with which noise.
    postprocessing, postprocessing_kwargs
        Custom postprocessing of the output, "FILE.py:NAME": ``NAME(**kwargs)``, kwargs being plain values, is called
        with numpy arrays and keeps their shape. Only bioimageio.core 0.10.3 or newer runs such a zip.
    camera
        The camera whose raw images the zip is for, or its yaml; "model" for that of the training; None for counts.
    onnx
        Add ONNX weights; kind "denoise" only. They take sizes in steps of the pooling only, so the zip declares these.
    test_image
        Real counts (or images of the camera) for test tensors and measured numbers; a run folder brings its own.
    device, on_stage
        Where the finished zip is validated; called with a word or two before each stage.

    Returns
    -------
    Report
        Of the validation.

    Raises
    ------
    CardError, ExportError, BrokenNetworkError, OutputError
        If fields of the card are missing or wrong, an option cannot be used, there are no counts to test with or a
        check fails, the network returns values that are not finite, or the zip cannot be written.
    """
    if kind not in (kinds := get_args(Kind)):
        raise ExportError(f"kind {kind!r} is not one that can be exported; expected one of {', '.join(kinds)}")
    if Path(out).suffix.lower() != ".zip":
        raise ExportError(f"{out} has another suffix than programs look for, expected one that ends in .zip")
    if onnx:
        weights.check_onnx(kind)
    sampling, card = Sampling(n_samples, n_steps, seed), card if isinstance(card, Card) else Card.read(card)
    documents.description_of(card, custom=kind == "sample-hook" or postprocessing is not None)  # may be too long
    own = None if postprocessing is None else Operation.read(postprocessing, postprocessing_kwargs)
    model = load_model(model) if isinstance(model, (str, Path)) else model
    intake = Intake.of(model, camera)
    example, held_out = example_values(model, intake, test_image)
    model.network.cpu()
    product = product_of(kind, model, box_of(model.network), sampling, own, intake)
    order = _Order(model, card, product, onnx, example, held_out, on_stage or (lambda stage: None))
    return _checked(order, Path(out), device)


@dataclass(frozen=True)
class _Order:
    """What is to be exported."""

    model: Model
    card: Card
    product: Product
    onnx: bool
    example: np.ndarray
    held_out: np.ndarray | None
    tell: Callable[[str], None]


def _checked(order: _Order, out: Path, device: str) -> Report:
    """Write the zip if its validation passes."""
    from gap_bioimage.validation.report import validate
    from gap_bioimage.validation.run.sandbox import Sandbox

    with Sandbox() as process, tempfile.TemporaryDirectory(prefix="gap-bioimage-") as name, replacing(out) as new:
        process.start()  # its libraries are imported while the rest is made
        try:
            _fill(Path(name), order)
        except OSError as error:
            raise OutputError(f"cannot write to the temporary folder {name}: {error.strerror or error}") from None
        _zip(Path(name), new)
        order.tell("validating")
        report = replace(validate(new, run_code=True, device=device, process=process), model=str(out))
        if report.status != "passed":
            bad = [check for check in report.checks if check.status == "failed"] or report.raised
            bad = bad or [check for check in report.checks if check.id == "core.test"]  # which was not run
            problems = "; ".join(f"{check.id}: {check.message}" for check in bad)
            raise ExportError(f"{out} was not written, because its checks failed: {problems}")
    return report


def _fill(folder: Path, order: _Order) -> None:
    """Make the files of the zip in a folder."""
    model, product, intake = order.model, order.product, order.product.intake
    example = intake.counts(order.example)
    photons = torch.from_numpy(example.astype(np.float32))[None]
    TiledNetwork(model.network)(photons)  # raises where values are not finite
    order.tell("measuring the halo")
    denoiser = weights.denoiser_of(model, box_of(model.network))
    halo = measures.measure_halo(denoiser, example)
    depth = example.shape[1] if example.ndim == 4 else None
    sizes = measures.Sizes.of(model.network.step_px, halo.halo_px, depth, any_size=not order.onnx)
    order.tell("making the test tensors")
    product.write(folder)
    if order.onnx:
        weights.write_onnx(folder, denoiser, model.config.channels, sizes.min_px)
    values = brightest_piece(order.example, sizes.min_px)
    if product.sampling is not None:
        values = intake.values_of(sparse_counts(intake.counts(values), product.sampling.n_samples, denoiser))
    test_input = values.astype(np.float32)[None]
    given = intake.preprocess(test_input)
    np.save(folder / documents.TEST_INPUT, test_input)
    np.save(folder / f"test_{product.output}.npy", product.run(given))
    with torch.inference_mode():
        label = "counts" if intake.detector is None else "camera image"
        documents.draw_cover(folder / documents.COVER, example, denoiser(photons)[0].numpy(), label)
    order.tell("measuring scores")
    measured = _measured(order, denoiser, sizes, halo, measures.speed_of(product.sampler or product.module, given))
    documents.write_readme(folder / documents.README, model, order.card, product, measured)
    rdf = documents.describe(folder, model, order.card, product, measured)
    text = yaml.safe_dump(rdf, sort_keys=False, allow_unicode=True, width=100)
    (folder / "rdf.yaml").write_text(text, encoding="utf-8")


def _measured(
    order: _Order, denoiser: PhotonDenoiser, sizes: measures.Sizes, halo: measures.HaloReport, speed: str
) -> measures.Measured:
    product, held_out = order.product, order.held_out
    # as in training, so that the two halves of the photons are independent
    values = order.example if held_out is None else held_out
    counts = product.intake.counts(values, np.random.default_rng(0))
    detector = product.intake.detector
    correlated = detector is not None and detector.correlation >= CORRELATED
    scores = replace(measures.score_on_halves(denoiser, counts), correlated=correlated)
    measured = measures.Measured(sizes, halo, denoiser.box_px, scores, held_out is not None, speed)
    if product.sampling is None or product.sampler is None:
        return measured
    room = measures.check_room(product.intake.counts(order.example), product.sampler)
    # what is scored are counts, without further ado
    arguments = weights.sampler_arguments(order.model, denoiser.box_px, **asdict(product.sampling))
    samples = measures.score_samples(weights.sampler_of(order.model, arguments), denoiser, counts)
    return replace(measured, samples=samples, room_db=room)


def _zip(folder: Path, target: Path) -> None:
    """Zip the files of a folder, its description first."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != "rdf.yaml", name))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
