"""GAP denoising for photon counts: train, denoise, export to bioimage.io, validate.

The public names below are imported when first used, so that ``import gap_bioimage`` and the command
line's ``--help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "read_photons": "io",
    "read_images": "io",
    "write_image": "io",
    "sum_frames": "io",
    "simulate": "simulation",
    "inspect": "inspection",
    "calibrate": "camera.calibration",
    "thin": "counts",
    "pseudo_psnr_db": "counts",
    "TrainConfig": "config",
    "train": "training.fit",
    "load_model": "model",
    "SamplingConfig": "config",
    "denoise": "inference.denoising",
    "sample": "inference.sampling",
    "generate": "inference.sampling",
    "export": "export.archive",
    "validate": "validation.report",
}

__all__ = [
    "SamplingConfig",
    "TrainConfig",
    "__version__",
    "calibrate",
    "denoise",
    "export",
    "generate",
    "inspect",
    "load_model",
    "pseudo_psnr_db",
    "read_images",
    "read_photons",
    "sample",
    "simulate",
    "sum_frames",
    "thin",
    "train",
    "validate",
    "write_image",
]

if TYPE_CHECKING:
    from gap_bioimage.camera.calibration import calibrate
    from gap_bioimage.config import SamplingConfig, TrainConfig
    from gap_bioimage.counts import pseudo_psnr_db, thin
    from gap_bioimage.export.archive import export
    from gap_bioimage.inference.denoising import denoise
    from gap_bioimage.inference.sampling import generate, sample
    from gap_bioimage.inspection import inspect
    from gap_bioimage.io import read_images, read_photons, sum_frames, write_image
    from gap_bioimage.model import load_model
    from gap_bioimage.simulation import simulate
    from gap_bioimage.training.fit import train
    from gap_bioimage.validation.report import validate


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
