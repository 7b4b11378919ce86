"""The weights of a zip: TorchScript for every consumer, and the state_dict with its source."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, Any

import torch

import gap_bioimage.network as network_source
from gap_bioimage.network import PhotonDenoiser

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.training.checkpoint import Model

TORCHSCRIPT, STATE_DICT, ARCHITECTURE = "weights_torchscript.pt", "weights.pt", "network.py"


def denoiser_of(model: Model, box_px: list[int]) -> PhotonDenoiser:
    """Return the module that a denoising zip runs, on the CPU and in evaluation mode."""
    denoiser = PhotonDenoiser(box_px, **model.config.model_dump())
    denoiser.network.load_state_dict({k: v.cpu() for k, v in model.network.state_dict().items()})
    return denoiser.eval().requires_grad_(False)


def write_weights(folder: Path, module: torch.nn.Module) -> None:
    """Write TorchScript, state_dict and the architecture's source into a folder."""
    script = torch.jit.script(module)
    # by way of memory: torch's own file writer ends the process when the disk is full
    archive, state = io.BytesIO(), io.BytesIO()
    torch.jit.save(script, archive)
    (folder / TORCHSCRIPT).write_bytes(without_debug_records(archive.getvalue()))
    torch.save(module.state_dict(), state)
    (folder / STATE_DICT).write_bytes(state.getvalue())
    shutil.copyfile(network_source.__file__, folder / ARCHITECTURE)


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
