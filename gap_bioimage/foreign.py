"""Third-party weights: checkpoints of the original GAP and bare state_dicts, whose tensors determine the settings.

Code in a file is never run. Checkpoints hold more than tensors: stand-in classes read the known objects of Lightning
and of the original code as plain values, and torch refuses every other global. Settings that do not follow from the
names and shapes of the tensors are read from ``weights.yaml`` next to ``weights.pt``.
"""

import io
import json
import pickle
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gap_bioimage.anchor import Anchor
from gap_bioimage.config import NetworkConfig, read_yaml
from gap_bioimage.errors import CheckpointError, ConfigError

RANGE = "trained_range_db"
ORIGINAL_RANGE_DB = (-40.0, 10.0)  # published settings of the original; its checkpoints do not record it
_SETTINGS = tuple(NetworkConfig.model_fields)
_LAST = "conv_final.weight"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
_DTYPES |= {"BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
_LOCK = threading.Lock()  # torch has one global list of allowed classes


class _Attributes:
    """Stand-in for an object, such as argparse's Namespace, of which only the attributes are read."""

    def __init__(self, *_: Any) -> None: ...


def _stand_in(name: str, **more: Any) -> type:
    """Return a class without behaviour that torch accepts as the global ``name``."""
    module, _, last = name.rpartition(".")
    return type(last, (_Attributes,), {"__module__": module, "__qualname__": last, **more})


def _allowed_globals() -> list[Any]:
    lightning = ("pytorch_lightning", "lightning.pytorch", "lightning")
    settings = [f"{package}.utilities.parsing.AttributeDict" for package in lightning]
    settings += [f"{package}.utilities.data.AttributeDict" for package in ("lightning.fabric", "lightning_fabric")]
    callbacks = ["model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping", "lr_monitor.LearningRateMonitor"]
    callbacks += ["progress.ProgressBar", "progress.TQDMProgressBar"]
    paths = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    scalar: Any = np.float64(0).__reduce__()[0]  # numpy's constructor of a scalar from dtype and bytes
    return [
        *(_stand_in(name, __new__=lambda *_: OrderedDict()) for name in settings),
        *(_stand_in(f"{package}.callbacks.{name}") for package in lightning[:2] for name in callbacks),
        *(_stand_in(f"pathlib.{name}") for name in paths),
        _stand_in("argparse.Namespace"),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *(np.dtype, *{type(np.dtype(letter)) for letter in "?bBhHiIlLqQefd"}),
    ]


_ALLOWED = _allowed_globals()


def read_weights(source: Path | io.BytesIO, name: str) -> dict[Any, Any]:
    """Read a dictionary written by torch.save without running code from it; errors call it ``name``."""
    try:
        with _LOCK, torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _, names, rest = str(error).partition("GLOBAL ")
        unsafe = rest.split(" ")[0].rstrip(".")
        reason = f", but it names {unsafe}, which may run code: save the network's state_dict() alone" if names else ""
        expected = "; expected a run folder, a checkpoint or a model zip as the model"
        raise CheckpointError(f"{name} is not a checkpoint that can be read safely{reason or expected}") from None
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, AttributeError, LookupError, zipfile.BadZipFile):
        problem = f"{name} is not a checkpoint, or is incomplete"
        raise CheckpointError(f"{problem}; expected a run, checkpoint or zip of gap-bioimage or of GAP") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, expected a checkpoint's dictionary")
    return content


def read_safetensors(path: Path) -> dict[Any, Any]:
    """Read a safetensors file: the length of the header, the header (JSON), the numbers."""
    try:
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        return {name: _tensor(entry, content[start:]) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError):
        raise CheckpointError(f"{path} is not a complete safetensors file; copy or save it again") from None


def _tensor(entry: Any, numbers: bytes) -> torch.Tensor:
    first, stop = entry["data_offsets"]
    if not 0 <= first < stop <= len(numbers):
        raise ValueError
    return torch.frombuffer(bytearray(numbers[first:stop]), dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def describe(
    content: Mapping[Any, Any], path: Path, given: Mapping[Any, Any]
) -> tuple[dict[str, torch.Tensor], NetworkConfig, tuple[float, float], dict[str, str], str]:
    """Find the only GAP network in a file, and determine its settings from metadata and weights.

    Returns its tensors under the names of the original code, its settings, its trained range, and where each setting
    and the range were found. Settings that are ``given`` override those of the ``.yaml`` next to the file ("sidecar"),
    and these the ``hyper_parameters`` in the file. Settings that contradict the weights fail when these are loaded.
    """
    weights = _network_tensors(content, path)
    stored = content.get("hyper_parameters")
    stored = vars(stored) if isinstance(stored, _Attributes) else stored if isinstance(stored, dict) else {}
    stored = {n: v.item() if isinstance(v, np.generic) else v for n, v in stored.items() if n in (*_SETTINGS, RANGE)}
    sources = {"hyper_parameters": stored, "sidecar": _read_sidecar(path), "given": given}
    settings = {name: (value, source) for source, values in sources.items() for name, value in values.items()}
    # a value of None leaves a setting to the weights, and also overrides stored settings
    settings = {name: (value, source) for name, (value, source) in settings.items() if value is not None}
    limits, range_from = settings.pop(RANGE, (None, "assumed"))
    facts, inputs = _settings_from_shapes(weights, path)
    if settings.keys().isdisjoint(("levels", "log1p")):
        stored = weights.get("anchor.version")  # since version 4
        # in 2D, versions 2 and 3 are the same
        versions = (1, 3, 2) if stored is None else (next((v for v in (5, 6, 7) if stored.eq(v).all()), 4),)
        facts |= _anchor_settings(facts["dim"], inputs, facts["channels"], versions)
    settings = {name: (fact, "weights") for name, fact in facts.items()} | settings
    if "anchor" not in facts:
        original = list(weights)[:2] == ["conv_final.weight", "conv_final.bias"]
        _fill_in_encoding(settings, inputs // facts["channels"], original, path)
    config = network_config({name: value for name, (value, _) in settings.items()}, path)
    settings_from = {name: settings[name][1] if name in settings else "default" for name in _SETTINGS}
    trained_range = ORIGINAL_RANGE_DB if limits is None else _trained_range(limits, path)
    return weights, config, trained_range, settings_from, range_from


def network_config(values: Any, path: Path) -> NetworkConfig:
    """Return the settings of a network from plain values."""
    try:
        return NetworkConfig.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{path} does not describe a GAP network: {error}") from None


def _network_tensors(content: Mapping[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the network, which may be in a nested dictionary, with a prefix such as ``model.``."""
    groups = [content, *(value for value in content.values() if isinstance(value, dict))]
    keys = [(group, key) for group in groups for key in group if isinstance(key, str)]
    found = [(group, key.removesuffix(_LAST)) for group, key in keys if f".{key}".endswith(f".{_LAST}")]
    if not found:
        raise _no_network(path, f"no {_LAST}")
    if len(found) > 1:
        problem = f"{path} holds {len(found)} networks (under {', '.join(repr(prefix) for _, prefix in found)})"
        raise CheckpointError(f"{problem}; expected one: save the state_dict() of the network to use")
    [(group, prefix)] = found
    tensors = {k.removeprefix(prefix): v for k, v in group.items() if isinstance(k, str) and k.startswith(prefix)}
    if not all(isinstance(value, torch.Tensor) for value in tensors.values()) or tensors[_LAST].ndim not in (4, 5):
        raise _no_network(path, f"{prefix}{_LAST} is not a kernel, or is stored with objects that are not tensors")
    return tensors


def _no_network(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} holds no GAP network ({reason}); expected a GAP checkpoint or state_dict")


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return the settings in the yaml next to the weights; empty if there is none, or it has other contents."""
    sidecar = path.with_suffix(".yaml")
    if sidecar == path or not sidecar.is_file():
        return {}
    try:
        values = read_yaml(sidecar)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    # a model card may have the same name
    return values if any(name in values for name in (*_SETTINGS, RANGE)) else {}


def _settings_from_shapes(weights: Mapping[str, torch.Tensor], path: Path) -> tuple[dict[str, Any], int]:
    """Return the settings of a plain network that follow from its shapes, and the input channels of its first level."""
    depth = 1
    while f"down_convs.{depth}.conv1.weight" in weights:
        depth += 1
    try:
        (filters, inputs, *kernel), last = weights["down_convs.0.conv1.weight"].shape, weights[_LAST].shape
        channels = last[0 if last[-1] == 1 else 1]  # with a stem the last layer is transposed: its inputs come first
        if not channels or len(kernel) not in (2, 3):
            raise ValueError
        # z is read from the second convolutions, since the very first one may be a stem
        shapes = [weights[f"down_convs.{stage}.conv2.weight"].shape for stage in range(depth)]
        planar = [stage for stage, shape in enumerate(shapes) if len(kernel) == 3 and shape[2] == 1]
        facts: dict[str, Any] = {"dim": len(kernel), "channels": channels, "depth": depth, "start_filts": filters}
        facts |= {"z_conv_stage": planar[0] if planar else None, "stem": last[-1]}
        if depth > 1:
            facts["up_mode"] = "transpose" if "up_convs.0.upconv.weight" in weights else "upsample"
            outs, ins = weights["up_convs.0.conv1.weight"].shape[:2]
            facts["merge_mode"] = "concat" if ins == 2 * outs else "add"
        return facts, inputs
    except KeyError as missing:
        raise _no_network(path, f"no {missing.args[0]}") from None
    except (IndexError, ValueError):
        raise _no_network(path, "its convolutions have unexpected shapes") from None


def _anchor_settings(dim: int, inputs: int, answers: int, versions: Sequence[int]) -> dict[str, Any]:
    """Return the settings of the anchored network with these numbers of inputs and answers; empty if there is none."""
    for version in versions:
        anchor = Anchor(dim, version)
        channels = answers // anchor.n_answers
        if channels and (inputs, answers) == (channels * anchor.n_features, channels * anchor.n_answers):
            return {"anchor": True, "anchor_version": version, "channels": channels}
    return {}


def _fill_in_encoding(settings: dict[str, tuple[Any, str]], inputs: int, original: bool, path: Path) -> None:
    """Fill in ``levels`` and ``log1p``, of which the weights determine only the sum; the original has no logarithm."""
    if settings.keys().isdisjoint(("levels", "log1p")) and not original:
        raise CheckpointError(
            f"the encoding of {path} is ambiguous: {inputs} inputs per channel are {inputs} sines (original GAP) or "
            f"{inputs - 1} sines and a logarithm (gap-bioimage); write `log1p: false` or `log1p: true` into "
            f"{path.with_suffix('.yaml').name} next to it, or give hyper_parameters in Python"
        )
    log1p = settings.setdefault("log1p", (False, "weights"))[0] is True
    settings.setdefault("levels", (inputs - log1p, "weights"))


def _trained_range(limits: Any, path: Path) -> tuple[float, float]:
    try:
        low, high = (float(limit) for limit in limits)
        if np.isfinite((low, high)).all() and low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    problem = f"{RANGE} of {path} is given as {limits!r}"
    raise CheckpointError(f"{problem}, expected the darkest and the brightest input in dB: [-40, 10]")
