"""Start a run from the weights of another model.

The run keeps a copy of them, ``init.ckpt``, so that a run that was killed before its first checkpoint starts again
from the same weights, wherever the other model has gone. All checkpoints of the run tell where it started.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gap_bioimage.config import NetworkConfig, RunConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.files import replacing
from gap_bioimage.model import CHECKPOINT_KEY, load_model

if TYPE_CHECKING:
    from gap_bioimage.model import Model
    from gap_bioimage.network import UNet
    from gap_bioimage.training.module import GapModule

INIT = "init.ckpt"


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

    @classmethod
    def of(cls, model: Model) -> Start:
        """Describe a model; of its path only what means something on other machines."""
        name = "/".join(model.source.parts[-2:] if model.origin == "run" else model.source.parts[-1:])
        record = {
            "name": name,
            "origin": model.origin,
            "trained_range_db": list(model.trained_range_db),
            "sha256": weights_sha256(model.network),
        }
        return cls(model, record)

    def settings(self, config: RunConfig) -> RunConfig:
        """Return the settings of a run with the network of this model.

        Raises
        ------
        ConfigError
            If settings of the network were given, and are others.
        """
        own = self.model.config
        for name in NetworkConfig.model_fields:
            given, stored = getattr(config.network, name), getattr(own, name)
            if name in config.network.model_fields_set and given != stored:
                raise ConfigError(
                    f"network.{name} is {given}, but the model to start from, {self.record['name']}, has {stored}; "
                    f"{'give the same' if name == 'dim' else 'leave it out'}, or start from nothing"
                )
        return config.model_copy(update={"network": own})

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
                "init": self.record,
            },
        }
        with replacing(run / INIT) as temporary:
            torch.save(content, temporary)

    def load_into(self, module: GapModule) -> None:
        """Give the weights to a network that is about to be trained, and to its average."""
        module.network.load_state_dict(self.model.network.state_dict())
        if module.average is not None:
            module.average.module.load_state_dict(self.model.network.state_dict())


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
        If ``init`` is not a model.
    ConfigError
        If the resumed run was started from other weights.
    """
    given = None if init is None else Start.of(load_model(init) if isinstance(init, (str, Path)) else init)
    if not resume or not (run / "config.yaml").exists():
        return given
    kept = load_model(run / INIT) if (run / INIT).exists() else None
    start = None if kept is None else Start(kept, kept.history.init or Start.of(kept).record)
    if given is not None and (start is None or given.record["sha256"] != start.record["sha256"]):
        started = "no other model" if start is None else f"the weights of {start.record['name']}, which are others"
        raise ConfigError(
            f"the run in {run} was started from {started}, not from {given.record['name']}; leave out init to resume it"
        )
    return start


def weights_sha256(network: UNet) -> str:
    """Return a hash of names, shapes and values of a network's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
