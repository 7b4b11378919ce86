"""Networks whose files do not describe them: what names and shapes of their weights tell, and what they must be told.

The names are those of the original GAP code, in 2D, 3D and anisotropic 3D, with one channel or several.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from gap_bioimage.config import NetworkConfig, error_sentence, read_yaml
from gap_bioimage.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

RANGE = "trained_range_db"
SETTINGS = tuple(NetworkConfig.model_fields)
"""What describes a network; besides it a user may give ``trained_range_db``."""
GIVEN, SIDECAR, STORED, WEIGHTS = "given", "sidecar", "hyper_parameters", "weights"
"""Where a setting was found, from what wins to what fills in."""
_LAST = "conv_final.weight"


@dataclass(frozen=True)
class Described:
    """A network as found.

    Attributes
    ----------
    config
        Its settings.
    found_in
        Where each of them was found: "given", "sidecar", "hyper_parameters", "weights", or "default" where it
        makes no difference.
    trained_range_db
        Darkest and brightest input in dB, if that was told.
    range_from
        Where.
    """

    config: NetworkConfig
    found_in: dict[str, str]
    trained_range_db: tuple[float, float] | None
    range_from: str | None


def find_network(content: Mapping[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the one GAP network in a file, in their order, under the names of the original code.

    They may lie in the file's dictionary itself or one below, with a prefix such as ``model.`` or ``module.``.

    Raises
    ------
    CheckpointError
        If there is none, or more than one.
    """
    groups = [content, *(value for value in content.values() if isinstance(value, dict))]
    found = [
        (group, key.removesuffix(_LAST))
        for group in groups
        for key in group
        if isinstance(key, str) and (key == _LAST or key.endswith(f".{_LAST}"))
    ]
    if not found:
        raise CheckpointError(f"{path} holds no GAP network (no {_LAST}); expected a GAP checkpoint or state_dict")
    if len(found) > 1:
        names = ", ".join(repr(prefix) for _, prefix in found)
        raise CheckpointError(
            f"{path} holds {len(found)} networks (under {names}); expected one: save the state_dict() of the one to use"
        )
    [(group, prefix)] = found
    own = {k.removeprefix(prefix): v for k, v in group.items() if isinstance(k, str) and k.startswith(prefix)}
    if not all(isinstance(value, torch.Tensor) for value in own.values()) or own[_LAST].ndim not in (4, 5):
        raise CheckpointError(
            f"{path} holds no GAP network ({prefix}{_LAST} is no convolution's kernel, or stands among other things "
            "than tensors); expected a GAP checkpoint or state_dict"
        )
    return own


def sidecar_of(path: Path) -> Path:
    """Return where settings of a file of weights are looked for: ``weights.yaml`` beside ``weights.pt``."""
    return path.with_suffix(".yaml")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the settings beside a file of weights; empty if there is no such file, or if it is about something else.

    Raises
    ------
    CheckpointError
        If it cannot be read, or holds a setting that networks do not have.
    """
    sidecar = sidecar_of(path)
    if sidecar == path or not sidecar.is_file():
        return {}
    try:
        values = read_yaml(sidecar)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not any(name in values for name in (*SETTINGS, RANGE)):
        return {}  # a model card may have the same name
    check_names(values, str(sidecar))
    return values


def check_names(values: Mapping[Any, Any], source: str) -> None:
    """Refuse settings that networks do not have.

    Raises
    ------
    CheckpointError
        If there is one; it names the nearest that exists.
    """
    known = (*SETTINGS, RANGE)
    for name in values:
        if name not in known:
            [near] = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            raise CheckpointError(
                f"{source}: unknown key {name!r}; did you mean {near!r}? (expected of {', '.join(known)})"
            )


def settle(weights: Mapping[str, torch.Tensor], told: Sequence[tuple[str, Mapping[Any, Any]]], path: Path) -> Described:
    """Settle what a network is, from what was told and from its weights.

    Parameters
    ----------
    weights
        From ``find_network``.
    told
        Settings by source; the first that names one wins.
    path
        The file, for errors.

    Raises
    ------
    CheckpointError
        If something is missing, or what was told contradicts the weights.
    """
    values, found = _first_told(told)
    limits = _range(values.pop(RANGE, None), path)
    range_from = found.pop(RANGE, None)
    facts, per_channel = _facts(weights, path)
    stage = values.get("z_conv_stage")
    if facts["dim"] == 3 and facts["z_conv_stage"] is None and isinstance(stage, int) and stage >= facts["depth"]:
        facts["z_conv_stage"] = stage  # any number that large means all of them
    for name, fact in facts.items():
        if name not in values:
            values[name], found[name] = fact, WEIGHTS
        elif values[name] != fact:
            raise CheckpointError(_contradiction(path, found[name], name, values[name], fact))
    _encoding(values, found, per_channel, _original_order(weights), path)
    config = network_config(values, path)
    return Described(config, {name: found.get(name, "default") for name in SETTINGS}, limits, range_from)


def _first_told(told: Sequence[tuple[str, Mapping[Any, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings that were told, and by which source."""
    values: dict[str, Any] = {}
    found: dict[str, str] = {}
    silent: set[str] = set()
    for source, settings in told:
        for name in (*SETTINGS, RANGE):
            if name not in settings or name in values or name in silent:
                continue
            if settings[name] is not None:
                values[name], found[name] = settings[name], source
            elif source != STORED:
                silent.add(name)  # what a user leaves to the weights, no stored setting decides
    return values, found


def network_config(values: Any, path: Path) -> NetworkConfig:
    """Return the settings of a network from plain values.

    Raises
    ------
    CheckpointError
        If they are none.
    """
    try:
        return NetworkConfig.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(error_sentence(NetworkConfig, e) for e in error.errors())
        raise CheckpointError(f"{path} does not describe a GAP network: {wrong}") from None


def _facts(weights: Mapping[str, torch.Tensor], path: Path) -> tuple[dict[str, Any], int]:
    """Return the settings that shapes tell, and the number of encodings per channel."""
    first, last = _kernel(weights, "down_convs.0.conv1.weight", path), weights[_LAST]
    depth = 1
    while f"down_convs.{depth}.conv1.weight" in weights:
        depth += 1
    channels, inputs = last.shape[0], first.shape[1]
    if inputs % channels:
        raise CheckpointError(
            f"{path} holds no GAP network: its first convolution takes {inputs} inputs, expected a multiple of its "
            f"{channels} channels"
        )
    facts: dict[str, Any] = {
        "dim": first.ndim - 2,
        "channels": channels,
        "depth": depth,
        "start_filts": first.shape[0],
        "z_conv_stage": None,
    }
    if first.ndim == 5:
        kernels = [_kernel(weights, f"down_convs.{stage}.conv1.weight", path) for stage in range(depth)]
        stages = [kernel.shape[2] > 1 for kernel in kernels]
        facts["z_conv_stage"] = None if all(stages) else stages.index(False)
    if depth > 1:
        facts["up_mode"] = "transpose" if "up_convs.0.upconv.weight" in weights else "upsample"
        merged = _kernel(weights, "up_convs.0.conv1.weight", path)
        facts["merge_mode"] = "concat" if merged.shape[1] == 2 * merged.shape[0] else "add"
    return facts, inputs // channels


def _kernel(weights: Mapping[str, torch.Tensor], name: str, path: Path) -> torch.Tensor:
    kernel = weights.get(name)
    if kernel is None or kernel.ndim != weights[_LAST].ndim or 0 in kernel.shape or 0 in weights[_LAST].shape:
        what = "no" if kernel is None else f"shape {tuple(kernel.shape)} in"
        raise CheckpointError(f"{path} holds no GAP network ({what} {name}); expected a GAP checkpoint or state_dict")
    return kernel


def _original_order(weights: Mapping[str, torch.Tensor]) -> bool:
    """Tell the original code's weights from ours and from sorted ones: it makes its last layer first."""
    return list(weights)[:2] == ["conv_final.weight", "conv_final.bias"]


def _encoding(values: dict[str, Any], found: dict[str, str], inputs: int, original: bool, path: Path) -> None:
    """Fill in ``levels`` and ``log1p``, of which the weights tell the sum only."""
    sidecar = sidecar_of(path).name
    if "log1p" not in values and "levels" not in values and not original:
        raise CheckpointError(
            f"{path} does not tell its levels: its {inputs} encodings per channel are {inputs} sines (original GAP) or "
            f"{inputs - 1} sines and a logarithm (gap-bioimage); write `log1p: false` or `log1p: true` into {sidecar} "
            "beside it, or give hyper_parameters in Python"
        )
    if "log1p" not in values:
        values["log1p"], found["log1p"] = False, WEIGHTS
    logarithms = int(values["log1p"] is True)
    if "levels" not in values:
        values["levels"], found["levels"] = inputs - logarithms, WEIGHTS
    if values["levels"] == inputs - logarithms:
        return
    raise CheckpointError(
        f"{path}: levels is {values['levels']!r}, {'with' if logarithms else 'without'} log1p, according to "
        f"{_named(found['levels'], path)}, but the weights take {inputs} encodings per channel; write "
        f"`levels: {inputs}` into {sidecar} beside it, or `levels: {inputs - 1}` and `log1p: true` if the network is "
        "one of gap-bioimage"
    )


def _range(limits: Any, path: Path) -> tuple[float, float] | None:
    if limits is None:
        return None
    try:
        low, high = (float(limit) for limit in limits)
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    raise CheckpointError(
        f"{RANGE} of {path} is given as {limits!r}, expected the darkest and the brightest input in dB, such as "
        "[-40, 10]"
    )


def _contradiction(path: Path, source: str, name: str, value: Any, fact: Any) -> str:
    right = f"`{name}: {'null' if fact is None else fact}`"
    fix = {
        GIVEN: "correct hyper_parameters or leave it out",
        SIDECAR: f"write {right} there or leave it out",
        STORED: f"if the weights are right, write {right} into {sidecar_of(path).name} beside it",
    }[source]
    return f"{path}: {name} is {value!r} according to {_named(source, path)}, but {fact!r} by its weights; {fix}"


def _named(source: str, path: Path) -> str:
    return {GIVEN: "what was given", SIDECAR: sidecar_of(path).name}.get(source, f"its {source}")
