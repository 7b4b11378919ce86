"""Trained models from run folders, checkpoints (ours and the original GAP's) and bioimage.io zips."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import nn

from gap_bioimage.config import NetworkConfig, error_sentence
from gap_bioimage.errors import CheckpointError
from gap_bioimage.network import UNet

ORIGINAL_RANGE_DB = (-40.0, 10.0)
"""Pseudo-PSNR range of the original's published training settings; its checkpoints do not tell."""
_NOT_OF_THE_NETWORK = ("box_px", "n_samples", "n_steps", "seed", "gain", "brightest", "window_px")
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
        "run", "checkpoint", "original GAP checkpoint" or "bioimage.io zip".
    details
        Training settings and metrics where the file holds them.
    """

    network: UNet
    config: NetworkConfig
    trained_range_db: tuple[float, float]
    source: Path
    origin: str
    details: dict[str, Any]


def load_model(path: str | Path) -> Model:
    """Load a model from a run folder, a checkpoint (ours or the original GAP's) or one of our zips.

    Files are read weights-only: no code in them is run.

    Raises
    ------
    CheckpointError
        If the path holds no such model.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (path / name).is_file():
                return _from_checkpoint(path / name, "run")
        raise CheckpointError(f"{path} is a folder without best.ckpt or last.ckpt; expected a training run")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected a run folder, a checkpoint or a model zip")
    if _is_bioimageio_zip(path):
        return _from_zip(path)
    return _from_checkpoint(path, "checkpoint")


def read_weights(source: Path | io.BytesIO, name: str) -> dict[str, Any]:
    """Read a dictionary written by torch.save without running code from it.

    Raises
    ------
    CheckpointError
        If it is not one.
    """
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        OSError,
        zipfile.BadZipFile,
    ):
        raise CheckpointError(
            f"{name} is not a checkpoint that can be read safely; expected one written by gap-bioimage or the "
            "original GAP code"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, expected a checkpoint's dictionary")
    return content


def _from_checkpoint(path: Path, origin: str) -> Model:
    content = read_weights(path, str(path))
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not any(str(key).endswith("conv_final.weight") for key in weights):
        raise CheckpointError(f"{path} holds no GAP network (no conv_final.weight); expected a GAP checkpoint")
    ours = content.get("gap_bioimage")
    if ours is None:
        config, given = _original_config(path, content, weights)
        return Model(
            _network(config, weights, path),
            config,
            ORIGINAL_RANGE_DB,
            path,
            "original GAP checkpoint",
            {"hyper_parameters": given},
        )
    try:
        described, (low, high) = ours["config"]["network"], ours["trained_range_db"]
        details = {"config": ours["config"], "metrics": ours["metrics"]}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"the section gap_bioimage of {path} is not one that gap-bioimage wrote") from None
    prefix = "average.module." if any(key.startswith("average.module.") for key in weights) else "network."
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    config = _config(described, path)
    return Model(_network(config, own, path), config, (low, high), path, origin, details)


def _original_config(
    path: Path, content: dict[str, Any], weights: dict[str, Any]
) -> tuple[NetworkConfig, dict[str, Any]]:
    known = ("levels", "channels", "depth", "start_filts", "up_mode", "merge_mode", "z_conv_stage")
    final = weights.get("conv_final.weight")
    if not isinstance(final, torch.Tensor) or final.ndim not in (4, 5):
        raise CheckpointError(
            f"{path} holds no GAP network (conv_final.weight is no convolution's kernel); expected a GAP checkpoint"
        )
    hyper_parameters = content.get("hyper_parameters")
    given = dict(hyper_parameters) if isinstance(hyper_parameters, dict) else {}
    missing = [name for name in ("levels", "channels", "depth", "start_filts") if name not in given]
    if missing:
        raise CheckpointError(f"{path} does not tell its {', '.join(missing)}; expected hyper_parameters of GAP")
    # 2D and 3D files have the same keys: the kernels tell them apart
    values = {name: given[name] for name in known if name in given}
    return _config({"dim": final.ndim - 2, "log1p": False, **values}, path), given


def _config(values: Any, path: Path) -> NetworkConfig:
    try:
        return NetworkConfig.model_validate(values)
    except ValidationError as error:
        told = "; ".join(error_sentence(NetworkConfig, e) for e in error.errors())
        raise CheckpointError(f"{path} does not describe a GAP network: {told}") from None


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
    config = _config(arguments, path)
    own = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
    return Model(_network(config, own, path), config, (low, high), path, "bioimage.io zip", {"rdf": rdf})


def parameter_count(network: nn.Module) -> int:
    """Return the number of trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())
