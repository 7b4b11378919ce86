"""Write a model zip, if it passes its checks."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from gap_bioimage.camera.camera import share_noise
from gap_bioimage.errors import ExportError
from gap_bioimage.exporting import documents, measures, weights
from gap_bioimage.exporting.card import Card
from gap_bioimage.exporting.intake import Examples, Intake, brightest_piece, example_values, sparse_counts
from gap_bioimage.exporting.kinds import Kind, Operation, Product, Sampling, product_of
from gap_bioimage.files import output_errors, replacing
from gap_bioimage.inference.reach import HaloReport, measured_halo
from gap_bioimage.inference.tiling import TiledNetwork
from gap_bioimage.inference.trained_range import warn_of_headroom
from gap_bioimage.model import CameraLike, Model, load_model
from gap_bioimage.network import PhotonDenoiser
from gap_bioimage.validation import report as validation
from gap_bioimage.validation.repair.editor import RDF_NAME, to_yaml
from gap_bioimage.validation.run.sandbox import Sandbox
from gap_bioimage.validation.verdicts import Score

if TYPE_CHECKING:
    import xarray as xr


def export(
    model: Model | str | Path, out: str | Path, card: Card | str | Path, kind: Kind = "denoise", *,
    n_samples: int = 4, n_steps: int = 8, seed: int = 0,
    postprocessing: str | None = None, postprocessing_kwargs: Mapping[str, Any] | None = None,
    camera: CameraLike = "model", onnx: bool = False, test_image: xr.DataArray | str | Path | None = None,
    device: str = "cpu", on_stage: Callable[[str], None] | None = None,
) -> validation.Report:  # fmt: skip
    """Export a model as a bioimage.io zip in the portable profile (Fiji, ilastik, the zoo, ...).

    Nothing is written unless every check of ``validate`` passes.

    Parameters
    ----------
    model, out, card
        A model, or its path; the zip, replaced only by a complete and valid one; the author's card, or its yaml.
    kind
        "denoise": the output is the expected photons per pixel. "sample": its channels are mean and standard
        deviation of posterior samples, then the samples, drawn in the graph. "sample-hook": the same, drawn by
        custom postprocessing, for bioimageio.core 0.10.3 or newer only.
    n_samples, n_steps, seed
        Of kinds that sample: number of samples, steps per sample, and seed of their noise.
    postprocessing, postprocessing_kwargs
        Custom postprocessing of the output, "FILE.py:NAME": ``NAME(**kwargs)``, kwargs plain values, is called with
        numpy arrays and keeps their shape. Only bioimageio.core 0.10.3 or newer runs the zip.
    camera
        The camera whose raw images the zip accepts, or its yaml; "model": that of the training; None: counts.
    onnx
        Add ONNX weights; kind "denoise" only. They accept multiples of the pooling only, so the zip declares these.
    test_image
        Real counts (or images of the camera) for test tensors and measurements; by default those of the run folder.
    device, on_stage
        Device on which the zip is validated; callback, called with a word or two before each stage.

    Returns
    -------
    Report
        The result of the validation.

    Raises
    ------
    CardError, ExportError, BrokenNetworkError, OutputError
        If the card or an option is wrong, there are no counts to test with, a check fails, the network's values are not
        finite, or the zip cannot be written.
    """
    _check_arguments(kind, Path(out), onnx)
    sampling, card = Sampling(n_samples, n_steps, seed), card if isinstance(card, Card) else Card.read(card)
    documents.description_of(card, custom=kind == "sample-hook" or postprocessing is not None)  # raises if too long
    own = None if postprocessing is None else Operation.read(postprocessing, postprocessing_kwargs)
    model = load_model(model) if isinstance(model, (str, Path)) else model
    examples = example_values(model, intake := Intake.of(model, camera), test_image)
    model.network.cpu()
    product, begin = product_of(kind, model, sampling, own, intake), on_stage or (lambda stage: None)
    with Sandbox() as process, tempfile.TemporaryDirectory(prefix="gap-bioimage-") as name, replacing(Path(out)) as new:
        process.start()  # imports its libraries while the zip is made
        with output_errors(Path(name), "free some space there, or set TMPDIR to another folder"):
            _write_files(Path(name), product, card, examples, begin, onnx=onnx)
        _zip(Path(name), new)
        begin("validating")
        report = validation.validate(new, run_code=True, device=device, process=process)
        _refuse_failed(report, out)
    return replace(report, model=str(out), score=report.score and _for_card(report.score))


def _for_card(score: Score) -> Score:
    """Name the fields as the card does, where those of config.bioimageio stand at the top."""
    return replace(score, raise_it=tuple(way.replace("config.bioimageio.", "") for way in score.raise_it))


def _check_arguments(kind: str, out: Path, onnx: bool) -> None:
    if kind not in (kinds := get_args(Kind)):
        raise ExportError(f"kind {kind!r} cannot be exported; expected one of {', '.join(kinds)}")
    if out.suffix.lower() != ".zip":
        raise ExportError(f"{out} lacks the suffix that programs look for; give a path that ends in .zip")
    if onnx:
        weights.check_onnx(kind)


def _refuse_failed(report: validation.Report, out: str | Path) -> None:
    if report.status != "passed":
        failed = [check for check in report.checks if check.status == "failed"] or report.raised
        failed = failed or [check for check in report.checks if check.id == "core.test"]  # which was not run
        problems = "; ".join(f"{check.id}: {check.message}" for check in failed)
        raise ExportError(f"{out} was not written, because its checks failed: {problems}")


def _write_files(
    folder: Path, product: Product, card: Card, examples: Examples, begin: Callable[[str], None], *, onnx: bool
) -> None:
    model, intake = product.model, product.intake
    example = intake.counts(examples[0])
    photons = torch.from_numpy(example.astype(np.float32))[None]
    TiledNetwork(model.network)(photons)  # raises if values are not finite
    begin("measuring the halo")
    denoiser = weights.denoiser_of(model)
    halo = measured_halo(model.network, denoiser, measures.MOST_HALO_PX[model.config.dim])
    depth = example.shape[1] if example.ndim == 4 else None
    sizes = measures.Sizes.of(model.network.step_px, halo.halo_px, depth, any_size=not onnx)
    begin("making the test tensors")
    product.write(folder)
    if onnx:
        weights.write_onnx(folder, product.module, model.config.channels, sizes.min_px)
    values = brightest_piece(examples[0], sizes.min_px)
    if product.sampler is not None:
        values = intake.values_of(sparse_counts(intake.counts(values), product.sampler.n_samples, denoiser))
    test_input = values.astype(np.float32)[None]
    preprocessed = intake.preprocess(test_input)
    np.save(folder / documents.TEST_INPUT, test_input)
    np.save(folder / f"test_{product.output}.npy", product.run(preprocessed))
    with torch.inference_mode():
        label = "counts" if intake.detector is None else "camera image"
        documents.draw_cover(folder / documents.COVER, example, denoiser(photons)[0].numpy(), label)
    begin("measuring scores")
    speed = measures.speed_of(product.sampler or product.module, preprocessed)
    measured = _measured(product, denoiser, examples, sizes, halo, speed)
    documents.write_readme(folder / documents.README, card, product, measured)
    rdf = documents.describe(folder, card, product, measured)
    (folder / RDF_NAME).write_bytes(to_yaml(rdf))


def _measured(
    product: Product, denoiser: PhotonDenoiser, examples: Examples, sizes: measures.Sizes, halo: HaloReport,
    speed: str,
) -> measures.Measured:  # fmt: skip
    (example, held_out), detector, sampler = examples, product.intake.detector, product.sampler
    # as in training, so that the two halves of the photons are independent
    counts = product.intake.counts(example if held_out is None else held_out, np.random.default_rng(0))
    correlated = detector is not None and share_noise(*detector.correlations)
    scores, samples, headroom = measures.score_on_halves(denoiser, counts, correlated=correlated), None, 0.0
    if sampler is not None:
        headroom = measures.headroom_db(product.intake.counts(example), sampler)
        warn_of_headroom(headroom, "in images like the example")
        arguments = weights.sampler_arguments(product.model, sampler.n_samples, sampler.n_steps, sampler.seed)
        # scored on counts, which need no intake
        samples = measures.score_samples(weights.sampler_of(product.model, arguments), denoiser, counts)
    return measures.Measured(sizes, halo, denoiser.box_px, scores, held_out is not None, speed, samples, headroom)


def _zip(folder: Path, target: Path) -> None:
    """Zip the files of a folder, its description first."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != RDF_NAME, name))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
