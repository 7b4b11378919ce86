"""Write a model zip, if it passes its checks."""

from __future__ import annotations

import itertools
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml

from gap_bioimage.errors import ExportError, OutputError
from gap_bioimage.export.card import Card
from gap_bioimage.export.halo import default_box_px, measure_halo, mirrored
from gap_bioimage.export.rdf import COVER, README, TEST_INPUT, TEST_OUTPUT, Sizes, describe
from gap_bioimage.export.readme import draw_cover, score_on_halves, write_readme
from gap_bioimage.export.weights import denoiser_of, write_weights
from gap_bioimage.files import replacing
from gap_bioimage.inference.reach import receptive_field_px
from gap_bioimage.photons.image_io import read_photons
from gap_bioimage.training.checkpoint import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr

    from gap_bioimage.training.checkpoint import Model
    from gap_bioimage.validation.report import Report


def export(
    model: Model | str | Path,
    out: str | Path,
    card: Card | str | Path,
    kind: Literal["denoise"] = "denoise",
    *,
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
        "denoise": the output is the expected photons per pixel.
    test_image
        Real counts for the test tensors and the measured numbers. Models from a run folder bring theirs.
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
        If there are no counts to test with, or a check fails.
    OutputError
        If the zip cannot be written.
    """
    from gap_bioimage.validation.report import validate

    tell = on_stage or (lambda stage: None)
    if kind != "denoise":
        raise ExportError(f"kind {kind!r} is not one that can be exported; expected 'denoise'")
    card = card if isinstance(card, Card) else Card.read(card)
    model = load_model(model) if isinstance(model, (str, Path)) else model
    example, held_out = _counts_of(model, test_image)
    out = Path(out)
    with tempfile.TemporaryDirectory(prefix="gap-bioimage-") as name, replacing(out) as temporary:
        folder = Path(name)
        tell("measuring the halo")
        try:
            files = _fill(folder, model, card, example, held_out)
        except OSError as error:
            raise OutputError(f"cannot write to the temporary folder {name}: {error.strerror or error}") from None
        _zip(folder, files, temporary)
        tell("validating")
        report = replace(validate(temporary, run_code=True, device=device), model=str(out))
        failed = [check for check in report.checks if check.status == "failed"]
        if report.status != "passed":
            problems = "; ".join(f"{check.id}: {check.message}" for check in failed)
            raise ExportError(f"{out} was not written, because its checks failed: {problems}")
    return report


def _fill(folder: Path, model: Model, card: Card, example: np.ndarray, held_out: np.ndarray | None) -> list[str]:
    """Make the files of a denoising zip in a folder; return their names in the order of the archive."""
    network = model.network.cpu()
    box_px = default_box_px(receptive_field_px(network))
    denoiser = denoiser_of(model, box_px)
    halo = measure_halo(denoiser, example)
    sizes = Sizes.of(network.step_px, halo.halo_px)
    write_weights(folder, denoiser)
    photons = brightest_piece(mirrored(example, list(map(max, sizes.min_px, example.shape[1:]))), sizes.min_px)
    photons = photons.astype(np.float32)[None]
    with torch.inference_mode():
        rate = denoiser(torch.from_numpy(photons)).numpy()
        denoised = denoiser(torch.from_numpy(example.astype(np.float32))[None])[0].numpy()
    np.save(folder / TEST_INPUT, photons)
    np.save(folder / TEST_OUTPUT, rate)
    draw_cover(folder / COVER, example, denoised)
    scored = example if held_out is None else held_out
    scores = score_on_halves(denoiser, scored)
    write_readme(folder / README, model, card, sizes, halo, box_px, scores, held_out is not None)
    rdf = describe(folder, model, card, sizes, box_px)
    _write_yaml(folder / "rdf.yaml", rdf)
    names = sorted(path.name for path in folder.iterdir())
    return ["rdf.yaml", *(name for name in names if name != "rdf.yaml")]


def brightest_piece(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the piece of an image (c, [z,] y, x) with the most photons, out of pieces that overlap by half."""
    starts = itertools.product(
        *(range(0, have - want + 1, max(1, want // 2)) for have, want in zip(image.shape[1:], size, strict=True))
    )
    cuts = [tuple(slice(s, s + want) for s, want in zip(start, size, strict=True)) for start in starts]
    return max((image[(slice(None), *cut)] for cut in cuts), key=lambda piece: int(piece.sum(dtype=np.int64)))


def _counts_of(model: Model, test_image: xr.DataArray | str | Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return counts (c, [z,] y, x) for the test tensors, and held-out ones to score if the run kept them."""
    from gap_bioimage.training.patches import as_stacks

    if test_image is not None:
        image = read_photons(test_image) if isinstance(test_image, (str, Path)) else test_image
        stacks = as_stacks([image], model.config.dim)
        if stacks[0].shape[0] != model.config.channels:
            raise ExportError(
                f"the test image has {stacks[0].shape[0]} channels, the model expects {model.config.channels}"
            )
        return np.asarray(max(stacks, key=lambda stack: float(stack.mean()))), None
    folder = model.source.parent
    if not (folder / "example.npy").is_file():
        raise ExportError(
            f"{model.source} brings no counts for the test tensors; give an image of real counts with --test-image"
        )
    return np.load(folder / "example.npy"), np.load(folder / "held_out.npy")


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(text, encoding="utf-8")


def _zip(folder: Path, names: list[str], target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / name, name)
