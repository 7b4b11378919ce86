"""Start a run from the weights of another model.

The run keeps a copy of them, ``init.ckpt``, so that a run that was killed before its first checkpoint starts again
from the same weights, wherever the other model has gone. All checkpoints of the run tell where it started.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from gap_bioimage.config import NetworkConfig, RunConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.files import replacing
from gap_bioimage.model import load_model
from gap_bioimage.training.callbacks import CHECKPOINT_KEY

if TYPE_CHECKING:
    from gap_bioimage.model import Model
    from gap_bioimage.network import UNet
    from gap_bioimage.training.module import GapModule

INIT = "init.ckpt"
RECORD = "init"
"""Section of a checkpoint of ours that tells where the run started."""


@dataclass(frozen=True)
class Start:
    """The model that a run starts from.

    Attributes
    ----------
    model
        Its network and settings.
    record
        Name, origin and trained range of the model, and the sha256 of its weights.
    """

    model: Model
    record: dict[str, Any]

    def settings(self, config: RunConfig) -> RunConfig:
        """Return the settings of a run with the network of this model.

        Raises
        ------
        ConfigError
            If settings of the network were given, and are others.
        """
        network = self.model.config
        for name in NetworkConfig.model_fields:
            given, own = getattr(config.network, name), getattr(network, name)
            if name in config.network.model_fields_set and given != own:
                told = "--dim" if name == "dim" else f"network.{name}"
                raise ConfigError(
                    f"{told} is {given}, but the model to start from, {self.record['name']}, has {own}; "
                    f"{'give the same' if name == 'dim' else 'leave it out'}, or start without --init"
                )
        return RunConfig.from_dict({**config.model_dump(), "network": network.model_dump()})

    def check_channels(self, channels: int) -> None:
        """See that images have as many channels as the model.

        Raises
        ------
        ConfigError
            If they have not.
        """
        own = self.model.config.channels
        if channels != own:
            raise ConfigError(
                f"the images have {channels} channels, but the model to start from, {self.record['name']}, has {own}; "
                f"give images with {own}" + (", or one of their channels with --channel" if own == 1 else "")
            )

    def write(self, run: Path) -> None:
        """Keep a copy of the weights in the run folder.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        content = {
            "state_dict": {f"network.{name}": value for name, value in self.model.network.state_dict().items()},
            CHECKPOINT_KEY: {
                "config": {"network": self.model.config.model_dump(mode="json")},
                "trained_range_db": list(self.model.trained_range_db),
                "metrics": [],
                RECORD: self.record,
            },
        }
        with replacing(run / INIT) as temporary:
            torch.save(content, temporary)

    def load_into(self, module: GapModule) -> None:
        """Give the weights to a network that is about to be trained, and to its average."""
        module.network.load_state_dict(self.model.network.state_dict())
        if module.average is not None:
            module.average.module.load_state_dict(self.model.network.state_dict())


class StartRecord(pl.Callback):
    """Writes where the run started into its checkpoints; stands after ``RunFolder``, which makes the section."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the record."""
        checkpoint[CHECKPOINT_KEY][RECORD] = self.record


def start_of(init: Model | str | Path | None, run: Path, resume: bool) -> Start | None:
    """Return the model that a run starts from, or has started from; None where that is nothing.

    Parameters
    ----------
    init
        A model, or what ``load_model`` takes.
    run
        The run folder; its own copy counts if the run is resumed, and ``init`` may then be left out.
    resume
        Whether the run goes on, if there is one.

    Raises
    ------
    CheckpointError
        If ``init`` is no model.
    ConfigError
        If the resumed run was started from other weights.
    """
    given = None if init is None else _start(load_model(init) if isinstance(init, (str, Path)) else init)
    if not resume or not (run / "config.yaml").exists():
        return given
    if not (run / INIT).exists():
        if given is not None:
            raise ConfigError(f"the run in {run} was not started from another model; with --resume leave out --init")
        return None
    kept = load_model(run / INIT)
    start = Start(kept, kept.history.init or _start(kept).record)
    if given is not None and given.record["sha256"] != start.record["sha256"]:
        raise ConfigError(
            f"the run in {run} was started from the weights of {start.record['name']}, those of {given.record['name']} "
            "are others; with --resume leave out --init"
        )
    return start


def _start(model: Model) -> Start:
    # the last part of the path, or two where the first is the run: folders of this machine mean nothing elsewhere
    name = "/".join(model.source.parts[-2:] if model.origin == "run" else model.source.parts[-1:])
    record = {
        "name": name,
        "origin": model.origin,
        "trained_range_db": list(model.trained_range_db),
        "sha256": weights_sha256(model.network),
    }
    return Start(model, record)


def weights_sha256(network: UNet) -> str:
    """Return a hash of names, shapes and values of a network's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
