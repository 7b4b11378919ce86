"""Trained models from run folders, checkpoints (ours and the original GAP's) and bioimage.io zips."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gap_bioimage.errors import CheckpointError
from gap_bioimage.network import UNet
from gap_bioimage.training.inferred import (
    GIVEN,
    SIDECAR,
    STORED,
    check_names,
    find_network,
    network_config,
    read_sidecar,
    settle,
)
from gap_bioimage.training.reading import plain_settings, read_safetensors, read_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from gap_bioimage.config import NetworkConfig

ORIGINAL_RANGE_DB = (-40.0, 10.0)
"""Pseudo-PSNR range of the original's published training settings; its checkpoints do not tell."""
_NOT_OF_THE_NETWORK = (
    *("box_px", "rounded", "background", "ceiling"),
    *("n_samples", "n_steps", "seed", "gain", "brightest", "window_px"),
)
"""What the modules of our zips are made with besides."""


@dataclass(frozen=True)
class Model:
    """A trained network.

    Attributes
    ----------
    network
        Counts (b, c, [z,] y, x) float32 to log-rate of the same shape, in evaluation mode.
    config
        The network's settings.
    trained_range_db
        Pseudo-PSNR of the inputs it was trained on, darkest and brightest.
    source
        Where it was read from.
    origin
        "run", "checkpoint" (ours), "original GAP checkpoint", "state_dict" (weights of others without a description)
        or "bioimage.io zip".
    details
        Training settings and metrics, and "init", the model that training started from, where a file of ours holds
        them; of others' files "found_in" (where each setting was found), "range_from" (who told
        ``trained_range_db``, or "assumed"), their "hyper_parameters", "epoch" and "step".
    """

    network: UNet
    config: NetworkConfig
    trained_range_db: tuple[float, float]
    source: Path
    origin: str
    details: dict[str, Any]


def load_model(path: str | Path, hyper_parameters: Mapping[str, Any] | None = None) -> Model:
    """Load a model from a run folder, a checkpoint (ours or the original GAP's), bare weights or one of our zips.

    Files are read weights-only: no code in them is run. Weights that do not describe themselves (a state_dict, as
    .pt, .pth, .ckpt or .safetensors) are described by the names and shapes of their tensors; what these do not tell
    is looked for in ``weights.yaml`` beside ``weights.pt``, and in ``hyper_parameters``.

    Parameters
    ----------
    path
        The folder or file.
    hyper_parameters
        For weights that are not ours: settings of ``NetworkConfig``, and ``trained_range_db``. They win over what
        stands beside or in the file, and must agree with the weights.

    Raises
    ------
    CheckpointError
        If the path holds no such model, its settings are not known or contradict its weights, or
        ``hyper_parameters`` were given for a model that describes itself.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (path / name).is_file():
                return _from_checkpoint(path / name, "run", hyper_parameters)
        raise CheckpointError(f"{path} is a folder without best.ckpt or last.ckpt; expected a training run")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a run folder, a checkpoint or a model zip")
    if _is_bioimageio_zip(path):
        _refuse(hyper_parameters, path)
        return _from_zip(path)
    return _from_checkpoint(path, "checkpoint", hyper_parameters)


def _from_checkpoint(path: Path, origin: str, hyper_parameters: Mapping[str, Any] | None) -> Model:
    safetensors = path.suffix == ".safetensors"
    content = read_safetensors(path) if safetensors else read_weights(path, str(path))
    ours = content.get("gap_bioimage")
    if ours is None:
        return _from_weights(path, content, hyper_parameters or {})
    _refuse(hyper_parameters, path)
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not any(str(key).endswith("conv_final.weight") for key in weights):
        raise CheckpointError(f"{path} holds no GAP network (no conv_final.weight); expected a GAP checkpoint")
    try:
        described, (low, high) = ours["config"]["network"], ours["trained_range_db"]
        details = {name: ours[name] for name in ("config", "metrics")}
        details |= {name: ours[name] for name in ("init",) if name in ours}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"the section gap_bioimage of {path} is not one that gap-bioimage wrote") from None
    prefix = "average.module." if any(key.startswith("average.module.") for key in weights) else "network."
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    config = network_config(described, path)
    return Model(_network(config, own, path), config, (low, high), path, origin, details)


def _from_weights(path: Path, content: dict[Any, Any], hyper_parameters: Mapping[str, Any]) -> Model:
    """Read what others wrote: the original GAP's checkpoints, and bare weights."""
    weights = find_network(content, path)
    stored = plain_settings(content.get("hyper_parameters"))
    check_names(hyper_parameters, "hyper_parameters")
    told = [(GIVEN, hyper_parameters), (SIDECAR, read_sidecar(path)), (STORED, stored)]
    found = settle(weights, told, path)
    lightning = isinstance(content.get("state_dict"), dict) and not found.config.log1p
    details = {
        "hyper_parameters": stored,
        "found_in": found.found_in,
        "range_from": found.range_from or "assumed",
        "epoch": _counted(content.get("epoch")),
        "step": _counted(content.get("global_step")),
    }
    return Model(
        _network(found.config, weights, path),
        found.config,
        found.trained_range_db or ORIGINAL_RANGE_DB,
        path,
        "original GAP checkpoint" if lightning else "state_dict",
        details,
    )


def _counted(number: Any) -> int | None:
    """Return how far training went; a checkpoint saved without training holds zeros."""
    return number if isinstance(number, int) and number > 0 else None


def _refuse(hyper_parameters: Mapping[str, Any] | None, path: Path) -> None:
    if hyper_parameters:
        raise CheckpointError(
            f"hyper_parameters are for weights that do not describe themselves, {path} does; leave them out"
        )


def _network(config: NetworkConfig, weights: dict[str, Any], path: Path) -> UNet:
    network = UNet(**config.model_dump())
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"the weights in {path} do not fit the network they describe: {first}") from None
    return network.eval().requires_grad_(False)


def _is_bioimageio_zip(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name in archive.namelist() for name in ("rdf.yaml", "bioimageio.yaml"))
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is a damaged zip; copy or download it again") from None


def _from_zip(path: Path) -> Model:
    """Read our own zips: the state_dict, and the network's arguments from the RDF."""
    with zipfile.ZipFile(path) as archive:
        try:
            rdf = yaml.safe_load(archive.read("rdf.yaml"))
            ours, entry = rdf["config"]["gap_bioimage"], rdf["weights"]["pytorch_state_dict"]
            # where postprocessing samples, the weights of the zip only copy photons
            sampler = ours.get("sampler") or {**entry["architecture"], "source": entry["source"]}
            arguments = {k: v for k, v in sampler["kwargs"].items() if k not in _NOT_OF_THE_NETWORK}
            low, high = ours["trained_range_db"]
            weights = read_weights(io.BytesIO(archive.read(sampler["source"])), str(path))
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, zlib.error, RuntimeError):  # the last is an encrypted zip
            raise CheckpointError(f"{path} is damaged or encrypted; copy or download it again") from None
        except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError):
            raise CheckpointError(
                f"{path} is a bioimage.io zip, but not one that gap-bioimage exported; expected config.gap_bioimage "
                "and pytorch_state_dict weights in its rdf.yaml"
            ) from None
    config = network_config(arguments, path)
    own = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
    return Model(_network(config, own, path), config, (low, high), path, "bioimage.io zip", {"rdf": rdf})


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())
