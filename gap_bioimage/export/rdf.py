"""The model description (RDF) of a zip: the only place that makes one.

Written in format 0.5.9 with plain strings, not through bioimageio.spec's writer: newer formats name files
as objects, which Fiji's engine and bioimageio.core up to 0.10.4 cannot read.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gap_bioimage.export.weights import ARCHITECTURE, STATE_DICT, TORCHSCRIPT
from gap_bioimage.inference.tiling import round_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gap_bioimage.export.card import Card
    from gap_bioimage.training.checkpoint import Model

FORMAT_VERSION = "0.5.9"
TEST_INPUT, TEST_OUTPUT, COVER, README = "test_photons.npy", "test_rate.npy", "cover.png", "README.md"


@dataclass(frozen=True)
class Sizes:
    """Input sizes that a model accepts, per spatial axis: ``min_px + n step_px``, and the halo."""

    min_px: tuple[int, ...]
    step_px: tuple[int, ...]
    halo_px: tuple[int, ...]

    @classmethod
    def of(cls, step_px: Sequence[int], halo_px: Sequence[int]) -> Sizes:
        """Choose the smallest size as a multiple of the step that holds two halos and as much again as block.

        A tile of the smallest size then spends at most three quarters of an axis on its halo.
        """
        minimum = []
        for step, halo in zip(step_px, halo_px, strict=True):
            block = max(step, 2 * halo // 3)
            minimum.append(round_up(2 * halo + block, step))
        return cls(tuple(minimum), tuple(step_px), tuple(halo_px))


def describe(folder: Path, model: Model, card: Card, sizes: Sizes, box_px: list[int]) -> dict[str, Any]:
    """Return the RDF of a denoising model whose files lie in ``folder``.

    Parameters
    ----------
    folder
        Holds weights, architecture, test tensors, cover and README.
    """
    channels = model.config.channels
    names = ["photons"] if channels == 1 else [f"photons{i}" for i in range(channels)]
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "id": card.identifier,
        "name": card.name,
        "description": card.description,
        "authors": [author.model_dump(exclude_none=True) for author in card.authors],
        "maintainers": [person.model_dump(exclude_none=True) for person in card.maintainers],
        "cite": card.citations,
        "license": card.license,
        "tags": tags_of(model, card),
        "version": card.version,
        **({"git_repo": card.git_repo} if card.git_repo else {}),
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "documentation": README,
        "covers": [COVER],
        "inputs": [_input(folder, names, sizes)],
        "outputs": [_output(folder, names, sizes)],
        "weights": _weights(folder, model, box_px),
        "config": {
            "gap_bioimage": {
                "kind": "denoise",
                "conserves_photons": True,
                "trained_range_db": list(model.trained_range_db),
            }
        },
    }


def tags_of(model: Model, card: Card) -> list[str]:
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
    return list(dict.fromkeys([*fixed, f"{model.config.dim}d", *card.tags]))


def _input(folder: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    space = [
        {"type": "space", "id": axis, "size": {"min": minimum, "step": step}}
        for axis, minimum, step in zip(_space(sizes), sizes.min_px, sizes.step_px, strict=True)
    ]
    return {
        "id": "photons",
        "description": "photon counts per pixel, as recorded; no normalisation is needed",
        "axes": [*_batch_and_channel(names), *space],
        "data": {"type": "float32", "range": [0.0, None]},
        "test_tensor": _file(folder, TEST_INPUT),
    }


def _output(folder: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    space = [
        {
            "type": "space",
            "id": axis,
            "size": {"tensor_id": "photons", "axis_id": axis, "offset": 0},
            "halo": halo,
        }
        for axis, halo in zip(_space(sizes), sizes.halo_px, strict=True)
    ]
    return {
        "id": "rate",
        "description": "expected photons per pixel (posterior mean)",
        "axes": [*_batch_and_channel([name.replace("photons", "rate") for name in names]), *space],
        "data": {"type": "float32", "range": [0.0, None]},
        "test_tensor": _file(folder, TEST_OUTPUT),
    }


def _batch_and_channel(names: list[str]) -> list[dict[str, Any]]:
    return [{"type": "batch"}, {"type": "channel", "id": "channel", "channel_names": names}]


def _space(sizes: Sizes) -> str:
    return "zyx"[-len(sizes.min_px) :]


def _weights(folder: Path, model: Model, box_px: list[int]) -> dict[str, Any]:
    version = torch.__version__.split("+")[0]
    arguments = {"box_px": list(box_px), **model.config.model_dump(mode="json")}
    architecture = {**_file(folder, ARCHITECTURE), "callable": "PhotonDenoiser", "kwargs": arguments}
    return {
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
