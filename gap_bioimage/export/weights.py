"""The weights of a zip: TorchScript for every consumer, and the state_dict with its source."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gap_bioimage.network as network_source
import gap_bioimage.sampler as sampler_source
from gap_bioimage.network import PhotonDenoiser
from gap_bioimage.sampler import GAIN, WINDOW_PX, PosteriorSampler

if TYPE_CHECKING:
    from torch import nn

    from gap_bioimage.model import Model

TORCHSCRIPT, STATE_DICT = "weights_torchscript.pt", "weights.pt"
SAMPLER_WEIGHTS = "sampler_weights.pt"
"""The state_dict of a sampler that is not among the weights."""
NETWORK_FILE = "network.py"
"""The architecture of a zip: network.py as it is, or with sampler.py joined."""


def denoiser_of(model: Model, box_px: list[int], **intake: Any) -> PhotonDenoiser:
    """Return the module that a denoising zip runs, on the CPU and in evaluation mode.

    ``intake`` are the arguments of ``PhotonDenoiser`` that tell what its input is; without them it is counts.
    """
    denoiser = PhotonDenoiser(box_px, **intake, **model.config.model_dump())
    denoiser.network.load_state_dict({k: v.cpu() for k, v in model.network.state_dict().items()})
    return denoiser.eval().requires_grad_(False)


def sampler_of(model: Model, arguments: dict[str, Any]) -> PosteriorSampler:
    """Return the module that a sampling zip runs, on the CPU and in evaluation mode."""
    sampler = PosteriorSampler(**arguments)
    sampler.network.load_state_dict({k: v.cpu() for k, v in model.network.state_dict().items()})
    return sampler.eval().requires_grad_(False)


def sampler_arguments(model: Model, box_px: list[int], n_samples: int, n_steps: int, seed: int) -> dict[str, Any]:
    """Return what ``PosteriorSampler`` is made with, in plain values."""
    return {
        "box_px": list(box_px),
        "n_samples": n_samples,
        "n_steps": n_steps,
        "seed": seed,
        "gain": GAIN,
        "brightest": brightest_of(model),
        "window_px": list(WINDOW_PX[model.config.dim]),
        **model.config.model_dump(mode="json"),
    }


def brightest_of(model: Model) -> float:
    """Return the top of the trained range, in mean photons per pixel."""
    return float(10 ** (model.trained_range_db[1] / 10))


def architecture_source(*, sampling: bool = False) -> str:
    """Return the source of the architecture in one file: the network, and after it the sampler where that is needed."""
    source = Path(network_source.__file__).read_text(encoding="utf-8")
    if not sampling:
        return source
    sampler = Path(sampler_source.__file__).read_text(encoding="utf-8")
    return source + "\n\n" + re.sub(r"(?m)^from gap_bioimage\.network import (\([^)]*\)|.*)\n", "", sampler)


def write_weights(folder: Path, module: nn.Module, source: str, name: str = NETWORK_FILE) -> None:
    """Write TorchScript, state_dict and the architecture's source into a folder."""
    (folder / TORCHSCRIPT).write_bytes(torchscript_of(module))
    write_state(folder / STATE_DICT, module)
    (folder / name).write_text(source, encoding="utf-8")


def write_state(path: Path, module: nn.Module) -> None:
    """Write a state_dict."""
    # by way of memory: torch's own file writer ends the process when the disk is full
    state = io.BytesIO()
    torch.save(module.state_dict(), state)
    path.write_bytes(state.getvalue())


def torchscript_of(module: nn.Module) -> bytes:
    """Return a module as a TorchScript archive without debug records."""
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(module), archive)
    return without_debug_records(archive.getvalue())


def without_debug_records(archive: bytes) -> bytes:
    """Return a TorchScript archive without its debug records, which hold the paths of the machine it was made on."""
    core: Any = torch._C
    target = io.BytesIO()
    reader, writer = core.PyTorchFileReader(io.BytesIO(archive)), core.PyTorchFileWriter(target)
    for name in reader.get_all_records():
        # the writer makes the last three itself
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return target.getvalue()
