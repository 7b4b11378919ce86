"""What a model's file tells about it besides the network, for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap_bioimage.config import NetworkConfig
    from gap_bioimage.training.checkpoint import Model

_ORIGINS = {"run": "training run", "checkpoint": "checkpoint of gap-bioimage", "state_dict": "state_dict"}


def kind_in_words(model: Model) -> str:
    """Return what a model is, such as "original GAP checkpoint, 3D anisotropic"."""
    return ", ".join([_ORIGINS.get(model.origin, model.origin), *_network_in_words(model.config)])


def facts_of(model: Model) -> dict[str, Any]:
    """Return what the model's file tells of its history.

    Returns
    -------
    dict
        ``settings_from``, where each setting was found, for weights of others; ``range_from``, "training" or who told
        the trained range, or "assumed"; ``epochs`` and ``steps`` of training; ``validation_loss``, the lowest;
        ``init``, the model that training started from.
    """
    details = model.details
    metrics = details.get("metrics") or [{}]
    losses = [x for row in metrics if (x := row.get("validation_loss", math.nan)) == x]
    return {
        "settings_from": details.get("found_in"),
        "range_from": details.get("range_from", "training"),
        "epochs": details.get("epoch"),
        "steps": metrics[-1].get("step", details.get("step")),
        "validation_loss": min(losses, default=None),
        "init": details.get("init"),
    }


def in_words(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts for a table: settings grouped by source, the first model as a phrase."""
    found, init = facts.get("settings_from") or {}, facts.get("init")
    groups = {source: [name for name, s in found.items() if s == source] for source in found.values()}
    words = "; ".join(f"{source}: {', '.join(names)}" for source, names in groups.items())
    start = f"{init['name']} ({init['origin']}, weights with sha256 {init['sha256']})" if init else None
    return {**facts, "settings_from": words or None, "init": start}


def _network_in_words(config: NetworkConfig) -> list[str]:
    stages = config.z_conv_stage
    anisotropic = stages is not None and stages < config.depth
    words = [f"{config.dim}D" + (" anisotropic" if anisotropic else "")]
    if config.channels > 1:
        words.append("RGB" if config.channels == 3 else f"{config.channels} channels")
    if anisotropic:
        words.append(f"z in {stages} of {config.depth} levels")
    return words
