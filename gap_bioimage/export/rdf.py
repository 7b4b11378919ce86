"""The model description (RDF) of a zip: the only place that makes one.

Written in format 0.5.9 with plain strings, not through bioimageio.spec's writer: newer formats name files
as objects, which Fiji's engine and bioimageio.core up to 0.10.4 cannot read. Custom postprocessing came with 0.5.10.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gap_bioimage.errors import CardError
from gap_bioimage.export.onnx_weights import ONNX, OPSET
from gap_bioimage.export.weights import STATE_DICT, TORCHSCRIPT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gap_bioimage.export.card import Card
    from gap_bioimage.export.halo import Sizes
    from gap_bioimage.export.kinds import Product
    from gap_bioimage.training.checkpoint import Model

FORMAT_VERSION, FORMAT_WITH_CUSTOM = "0.5.9", "0.5.10"
TEST_INPUT, COVER, README = "test_photons.npy", "cover.png", "README.md"
ONLY_CORE = "Runs in bioimageio.core >= 0.10.3 only; not in Fiji, not in ilastik."
"""What users of a zip with custom postprocessing must know."""
_LONGEST_DESCRIPTION = 512


def describe(folder: Path, model: Model, card: Card, sizes: Sizes, product: Product) -> dict[str, Any]:
    """Return the RDF of a model whose files lie in ``folder``.

    Parameters
    ----------
    folder
        Holds weights, architecture, test tensors, cover and README.
    """
    channels = model.config.channels
    names = ["photons"] if channels == 1 else [f"photons{i}" for i in range(channels)]
    attached = [_file(folder, name) for name in product.attachments]
    return {
        "format_version": FORMAT_WITH_CUSTOM if product.operations else FORMAT_VERSION,
        "type": "model",
        "id": card.identifier,
        "name": card.name,
        "description": description_of(card, custom=bool(product.operations)),
        "authors": [author.model_dump(exclude_none=True) for author in card.authors],
        "maintainers": [person.model_dump(exclude_none=True) for person in card.maintainers],
        "cite": card.citations,
        "license": card.license,
        "tags": tags_of(model, card, product.tags),
        "version": card.version,
        **({"git_repo": card.git_repo} if card.git_repo else {}),
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "documentation": README,
        "covers": [COVER],
        **({"attachments": attached} if attached else {}),
        "inputs": [_input(folder, names, sizes, product)],
        "outputs": [_output(folder, sizes, product)],
        "weights": _weights(folder, product),
        "config": {"gap_bioimage": product.facts},
    }


def description_of(card: Card, *, custom: bool) -> str:
    """Return the card's description, and who can run the model where not everybody can.

    Raises
    ------
    CardError
        If there is no room for that.
    """
    said = card.description.rstrip()
    stop = "" if said.endswith((".", "!", "?")) else "."
    text = f"{said}{stop} {ONLY_CORE}" if custom else card.description
    if len(text) > _LONGEST_DESCRIPTION:
        raise CardError(
            f"the card's description has {len(card.description)} characters; with the note on who can run this model "
            f"it is {len(text)}, at most {_LONGEST_DESCRIPTION} are allowed: shorten it"
        )
    return text


def output_file(output: str) -> str:
    """Return the name of the file that holds the expected output."""
    return f"test_{output}.npy"


def tags_of(model: Model, card: Card, more: Sequence[str] = ()) -> list[str]:
    """Return the tags that the zoo and its partners search for, and the card's own."""
    fixed = [
        "denoising",
        "photon-counting",
        "poisson",
        "gap",
        "unet",
        "pytorch",
        "fluorescence-light-microscopy",
    ]
    return list(dict.fromkeys([*fixed, *more, f"{model.config.dim}d", *card.tags]))


def _input(folder: Path, names: list[str], sizes: Sizes, product: Product) -> dict[str, Any]:
    space = [
        {"type": "space", "id": axis, "size": {"min": minimum, "step": step}}
        for axis, minimum, step in zip(_space(sizes), sizes.min_px, sizes.step_px, strict=True)
    ]
    steps = product.intake.preprocessing
    return {
        "id": "photons",
        "description": product.intake.description,
        "axes": [*_batch_and_channel(names), *space],
        "data": {"type": "float32", "range": [0.0, None]},
        "test_tensor": _file(folder, TEST_INPUT),
        **({"preprocessing": steps} if steps else {}),
    }


def _output(folder: Path, sizes: Sizes, product: Product) -> dict[str, Any]:
    space = [
        {
            "type": "space",
            "id": axis,
            "size": {"tensor_id": "photons", "axis_id": axis, "offset": 0},
            "halo": halo,
        }
        for axis, halo in zip(_space(sizes), sizes.halo_px, strict=True)
    ]
    expected = folder / output_file(product.output)
    custom = [
        {"id": "custom", "callable": operation.callable, "kwargs": operation.kwargs}
        | _file(folder, operation.file_name)
        for operation in product.operations
    ]
    # what the user's own postprocessing returns may be negative, and dark pixels of a camera
    lowest = {"range": [0.0, None]} if product.own is None and product.intake.detector is None else {}
    return {
        "id": product.output,
        "description": product.description + ("" if product.own is None else f"; then {product.own.callable}"),
        "axes": [*_batch_and_channel(product.channel_names), *space],
        "data": {"type": _dtype(expected), **lowest},
        "test_tensor": _file(folder, expected.name),
        **({"postprocessing": custom} if custom else {}),
    }


def _dtype(path: Path) -> str:
    return str(np.load(path, mmap_mode="r").dtype.name)


def _batch_and_channel(names: list[str]) -> list[dict[str, Any]]:
    return [{"type": "batch"}, {"type": "channel", "id": "channel", "channel_names": names}]


def _space(sizes: Sizes) -> str:
    return "zyx"[-len(sizes.min_px) :]


def _weights(folder: Path, product: Product) -> dict[str, Any]:
    version = torch.__version__.split("+")[0]
    architecture = {
        **_file(folder, product.source_file),
        "callable": type(product.module).__name__,
        "kwargs": product.arguments,
    }
    onnx: dict[str, Any] = {}
    if (folder / ONNX).exists():
        onnx["onnx"] = {**_file(folder, ONNX), "parent": "pytorch_state_dict", "opset_version": OPSET}
    return {
        **onnx,
        "pytorch_state_dict": {
            **_file(folder, STATE_DICT),
            "architecture": architecture,
            "pytorch_version": version,
        },
        "torchscript": {
            **_file(folder, TORCHSCRIPT),
            "parent": "pytorch_state_dict",
            "pytorch_version": version,
        },
    }


def _file(folder: Path, name: str) -> dict[str, str]:
    with open(folder / name, "rb") as file:
        return {"source": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
