"""The weights of a zip: TorchScript for every consumer, the state_dict with its source, ONNX on request."""

import copy
import importlib
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

import gap_bioimage.anchor as anchor_source
import gap_bioimage.filters as filters_source
import gap_bioimage.network as network_source
import gap_bioimage.sampler as sampler_source
from gap_bioimage.errors import ExportError
from gap_bioimage.graphs import CHANNELS_LAST
from gap_bioimage.inference.reach import conservation_box_px
from gap_bioimage.model import Model
from gap_bioimage.network import PhotonDenoiser
from gap_bioimage.sampler import GAIN, WINDOW_PX, PosteriorSampler

TORCHSCRIPT, STATE_DICT, ONNX = "weights_torchscript.pt", "weights.pt", "weights.onnx"
SAMPLER_WEIGHTS = "sampler_weights.pt"
"""The state_dict of a sampler that is not listed among the weights, since it runs as postprocessing."""
NETWORK_FILE = "network.py"
"""The architecture of a zip: filters.py, anchor.py and network.py joined, and sampler.py in sampling zips."""
OPSET = 17
"""deepImageJ's engine reads opset 18 and IR version 8 at most."""
_Module = TypeVar("_Module", PhotonDenoiser, PosteriorSampler)


def denoiser_of(model: Model, **intake: Any) -> PhotonDenoiser:
    """Return a denoising zip's module, on the CPU, in evaluation mode; ``intake``: arguments of its `Intake`."""
    return _filled(PhotonDenoiser(conservation_box_px(model.network), **intake, **model.config.model_dump()), model)


def sampler_of(model: Model, arguments: dict[str, Any]) -> PosteriorSampler:
    """Return the module that a sampling zip runs, on the CPU and in evaluation mode."""
    return _filled(PosteriorSampler(**arguments), model)


def _filled(module: _Module, model: Model) -> _Module:
    module.network.load_state_dict({name: value.cpu() for name, value in model.network.state_dict().items()})
    return module.eval().requires_grad_(False)


def sampler_arguments(model: Model, n_samples: int, n_steps: int, seed: int) -> dict[str, Any]:
    """Return the arguments of ``PosteriorSampler``, as plain values."""
    return {
        "box_px": conservation_box_px(model.network), "n_samples": n_samples, "n_steps": n_steps, "seed": seed,
        "gain": GAIN, "brightest": model.brightest, "window_px": list(WINDOW_PX[model.config.dim]),
        **model.config.model_dump(mode="json"),
    }  # fmt: skip


def architecture_source(*, sampling: bool = False) -> str:
    """Return the source of the architecture in one file: the network, followed by the sampler in sampling zips."""
    modules = [filters_source, anchor_source, network_source, *([sampler_source] if sampling else [])]
    source = "\n\n".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules)
    return re.sub(r"(?m)^from gap_bioimage\.\w+ import (\([^)]*\)|.*)\n", "", source)


def write_state(path: Path, module: nn.Module) -> None:
    """Write a state_dict."""
    # via memory: torch's own file writer ends the process if the disk is full
    state = io.BytesIO()
    torch.save(module.state_dict(), state)
    path.write_bytes(state.getvalue())


def torchscript_of(module: nn.Module) -> bytes:
    """Return a module as a TorchScript archive without debug records.

    Denoisers store their weights in channels_last order, which survives in the archive: on the CPU newer engines run
    1.7 times as fast with it in 2D, 1.2 times in 3D, older ones as fast as without, and results agree to 1e-6.
    Samplers do not: a change of the last bit moves a photon, and the result is another sample.
    """
    archive, stored = io.BytesIO(), copy.deepcopy(module)
    for parameter in stored.parameters():
        order = CHANNELS_LAST.get(parameter.dim() - 2)  # None for biases
        if order is not None and not isinstance(module, PosteriorSampler):
            parameter.data = parameter.data.contiguous(memory_format=order)
    torch.jit.save(torch.jit.script(stored), archive)
    return without_debug_records(archive.getvalue())


def without_debug_records(archive: bytes) -> bytes:
    """Return a TorchScript archive without its debug records, which hold the paths of the machine it was made on."""
    core: Any = torch._C
    target = io.BytesIO()
    reader, writer = core.PyTorchFileReader(io.BytesIO(archive)), core.PyTorchFileWriter(target)
    for name in reader.get_all_records():
        # the writer adds the last three itself
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return target.getvalue()


def check_onnx(kind: str) -> None:
    """Raise `ExportError` if this kind of zip cannot have ONNX weights, or the packages are missing."""
    if kind != "denoise":
        why = "other engines round differently and draw other samples, which no test can distinguish from wrong ones"
        raise ExportError(f"kind {kind!r} has no ONNX weights, only 'denoise' has: {why}; leave onnx out")
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ExportError(f"ONNX needs onnx and onnxruntime ({error}); pip install 'gap-bioimage[onnx]'") from None


def write_onnx(folder: Path, denoiser: nn.Module, channels: int, size: Sequence[int]) -> None:
    """Write ONNX weights, traced with an example of this size; `ExportError` if torch cannot convert the network."""
    axes = {0: "b"} | {number + 2: name for number, name in enumerate("zyx"[-len(size) :])}
    # traced with one image, the graph would keep a workaround for torch (network.paired)
    example = torch.poisson(torch.full((2, channels, *size), 2.0), torch.Generator().manual_seed(0))
    target, export = io.BytesIO(), cast("Any", torch.onnx.export)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes that become constants, which multiples of step do not
        try:
            export(
                denoiser, (example,), target, opset_version=OPSET,
                dynamo=False,  # the newer exporter writes versions that the consumers cannot read
                input_names=["photons"], output_names=["rate"], dynamic_axes={"photons": axes, "rate": axes},
            )  # fmt: skip
        except Exception as error:  # the type differs between versions of torch
            reason = " ".join(str(error).split())[:200]
            raise ExportError(f"torch could not convert the network to ONNX ({reason}); leave onnx out") from error
    onnx = importlib.import_module("onnx")
    model: Any = onnx.load_from_string(target.getvalue())
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Transpose" and attribute.name == "perm":  # torch counts axes from the end
                attribute.ints[:] = [axis % len(attribute.ints) for axis in attribute.ints]
    onnx.checker.check_model(model)
    (folder / ONNX).write_bytes(model.SerializeToString())
