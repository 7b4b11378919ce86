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
from gap_bioimage.exporting.card import LONGEST_DESCRIPTION
from gap_bioimage.exporting.weights import ONNX, OPSET, STATE_DICT, TORCHSCRIPT

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.exporting.card import Card
    from gap_bioimage.exporting.kinds import Product
    from gap_bioimage.exporting.measures import Measured, Sizes
    from gap_bioimage.model import Model

FORMAT_VERSION, FORMAT_WITH_CUSTOM = "0.5.9", "0.5.10"
TEST_INPUT, COVER, README = "test_photons.npy", "cover.png", "README.md"
ONLY_CORE = "Runs in bioimageio.core >= 0.10.3 only; not in Fiji, not in ilastik."
"""What users of a zip with custom postprocessing must know."""
_TAGS = ("denoising", "photon-counting", "poisson", "gap", "unet", "pytorch")
_FLUORESCENCE = "fluorescence-light-microscopy"
_LINKS = ["deepimagej/deepimagej", "ilastik/ilastik"]
"""The programs in the zoo that a portable zip runs in."""


def describe(folder: Path, model: Model, card: Card, product: Product, measured: Measured) -> dict[str, Any]:
    """Return the RDF of a model whose files lie in ``folder``.

    Parameters
    ----------
    folder
        Holds weights, architecture, test tensors, cover and README.
    model, card, product, measured
        What is exported, and what was measured on it.
    """
    sizes = measured.sizes
    people = [author.model_dump(mode="json", exclude_none=True) for author in card.authors]
    described = {
        "format_version": FORMAT_WITH_CUSTOM if product.operations else FORMAT_VERSION,
        "type": "model",
        "id": card.identifier,
        "name": card.name,
        "description": description_of(card, custom=bool(product.operations)),
        "authors": people,
        "maintainers": [person.model_dump(mode="json", exclude_none=True) for person in card.maintainers],
        "packaged_by": people[:1],
        "uploader": card.uploader and card.uploader.model_dump(mode="json", exclude_none=True),
        "cite": card.citations,
        "license": card.license,
        "tags": tags_of(model, card, sampling=product.sampling is not None),
        "links": [] if product.operations else _LINKS,
        "version": card.version,
        "version_comment": card.version_comment,
        "git_repo": card.git_repo,
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "documentation": README,
        "covers": [COVER],
        "attachments": [_file(folder, name) for name in product.attachments],
        "training_data": card.dataset and {"id": card.dataset},
        "inputs": [_input(folder, model, sizes, product)],
        "outputs": [_output(folder, sizes, product)],
        "weights": _weights(folder, product, people),
        "config": {
            "bioimageio": _without_nothing(_model_facts(model, card, product) | {"inference_time": measured.speed}),
            "gap_bioimage": {**product.facts, "measured": measured.facts},
        },
    }
    return _without_nothing(described)


def _without_nothing(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, [], (), {})}


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
    if len(text) > LONGEST_DESCRIPTION:
        raise CardError(
            f"the card's description has {len(card.description)} characters; with the note on who can run this model "
            f"it is {len(text)}, at most {LONGEST_DESCRIPTION} are allowed: shorten it"
        )
    return text


def output_file(output: str) -> str:
    """Return the name of the file that holds the expected output."""
    return f"test_{output}.npy"


def tags_of(model: Model, card: Card, *, sampling: bool = False) -> list[str]:
    """Return the tags that the zoo and its partners search for, and the card's own."""
    tags = [*_TAGS, *(("posterior-sampling", "uncertainty") if sampling else ()), f"{model.config.dim}d"]
    if "fluorescence" in (card.modality or "").lower():
        tags.append(_FLUORESCENCE)
    return list(dict.fromkeys([*tags, *card.tags]))


def _model_facts(model: Model, card: Card, product: Product) -> dict[str, Any]:
    """What ``config.bioimageio`` asks of every model, as far as it is known."""
    network, dim = model.network, model.config.dim
    parameters = sum(parameter.numel() for parameter in network.parameters())
    gigabytes = 32 * network.conv_final.in_channels / 1e3  # eight full-size maps of float32 at once
    return {
        "task": "denoising",
        "modality": card.modality,
        "target_structure": list(card.target_structure),
        "architecture_type": f"{dim}D U-Net",
        "architecture_description": f"Residual {dim}D U-Net of depth {model.config.depth} that predicts where the next "
        "photon lands (Generative Accumulation of Photons, arXiv 2307.06607).",
        "model_parameter_count": parameters,
        "memory_requirements_inference": f"about {gigabytes:.1f} GB per 10^6 {'pixels' if dim == 2 else 'voxels'}",
        "out_of_scope_use": card.out_of_scope_use,
        "funded_by": card.funded_by,
        "bias_risks_limitations": _without_nothing(
            {
                "known_biases": "It knows the structures, densities and exposures of its training images; others are "
                "denoised as if they were like those.",
                "risks": "A denoised image is the mean of all that could have been: what the photons do not support is "
                "smooth or absent, and what looks sharp may still be wrong.",
                "limitations": card.limitations,
                "recommendations": "Denoise one random half of your photons and compare with the other half; look at "
                "samples of the posterior before you trust a detail.",
            }
        ),
        "training": _training(model),
    }


def _training(model: Model) -> dict[str, Any]:
    """How the network was trained, where its file tells."""
    settings = model.history.training
    if not isinstance(settings, dict):
        return {}
    low, high = model.trained_range_db
    average = f", average of the weights with decay {settings['ema_decay']}" if settings.get("ema_decay") else ""
    return _without_nothing(
        {
            "training_preprocessing": "Each window's photons are split at random (binomial thinning) into an input of "
            f"{low:g} to {high:g} dB and an independent target; no normalisation.",
            "training_batch_size": settings.get("batch_size"),
            "initial_learning_rate": settings.get("learning_rate"),
            "learning_rate_schedule": f"linear warm-up over {settings.get('warmup_steps')} steps, cosine decay to 1 % "
            f"at step {settings.get('steps')}",
            "loss_function": "log-likelihood of the target's photons given the input's (arXiv 2307.06607)",
            "loss_function_kwargs": {"total_weight": settings.get("total_weight")},
            "optimizer": "torch.optim.Adam",
            "optimizer_kwargs": {"lr": settings.get("learning_rate")},
            "regularization": f"gradients clipped at {settings.get('gradient_clip')}{average}",
        }
    )


def _input(folder: Path, model: Model, sizes: Sizes, product: Product) -> dict[str, Any]:
    channels = model.config.channels
    space = [
        {"type": "space", "id": axis, "size": {"min": minimum, "step": step}}
        for axis, minimum, step in zip(_space(sizes), sizes.min_px, sizes.step_px, strict=True)
    ]
    steps = product.intake.preprocessing
    return {
        "id": "photons",
        "description": product.intake.description,
        "axes": [
            *_batch_and_channel(["photons"] if channels == 1 else [f"photons{i}" for i in range(channels)]),
            *space,
        ],
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
        "data": {"type": str(np.load(expected, mmap_mode="r").dtype.name), **lowest},
        "test_tensor": _file(folder, expected.name),
        **({"postprocessing": custom} if custom else {}),
    }


def _batch_and_channel(names: list[str]) -> list[dict[str, Any]]:
    return [{"type": "batch"}, {"type": "channel", "id": "channel", "channel_names": names}]


def _space(sizes: Sizes) -> str:
    return "zyx"[-len(sizes.min_px) :]


def _weights(folder: Path, product: Product, people: list[dict[str, Any]]) -> dict[str, Any]:
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
            "authors": people,
            "comment": "Needs torch only; gap-bioimage reads it back.",
        },
        "torchscript": {
            **_file(folder, TORCHSCRIPT),
            "parent": "pytorch_state_dict",
            "pytorch_version": version,
            "authors": people,
            "comment": "Runs in libtorch 1.13 and newer; pads images of any size by itself.",
        },
    }


def _file(folder: Path, name: str) -> dict[str, str]:
    with open(folder / name, "rb") as file:
        return {"source": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
