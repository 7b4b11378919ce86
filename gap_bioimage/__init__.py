"""GAP denoising for photon counts: train, denoise, export to bioimage.io, validate.

The public names below are imported when first used, so that ``import gap_bioimage`` and the command
line's ``--help`` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gap_bioimage.errors import *  # noqa: F403

__version__ = "0.1.0"

# fmt: off
__all__ = [  # noqa: F405, RUF022
    "AxesError", "BrokenNetworkError", "CardError", "CheckpointError", "ConfigError", "CountsWarning",
    "EmptyImageWarning", "ExportError", "GapError", "GapWarning", "HotPixelWarning", "NetworkWarning",
    "NotPhotonCountsError", "OutputError", "TrainedRangeError", "TrainedRangeWarning", "UnreadableImageError",
    "UnreadableModelError",
    "Calibration", "Camera", "Coverage", "Detector", "History", "Model", "NetworkConfig", "Progress", "Region",
    "RunConfig", "SamplingConfig", "ThinningConfig", "TrainConfig", "Unfinished", "VolumeStatus",
    "__version__", "calibrate", "coverage", "denoise", "denoise_volume", "export", "generate", "inspect", "load_model",
    "pseudo_psnr_db", "read_camera", "read_images", "read_photons", "region_uncertainty", "sample", "simulate",
    "sum_frames", "thin", "train", "validate", "volume_status", "write_camera", "write_image",
]
# fmt: on

# Public names by module; errors and warnings are imported above.
_MODULES = {
    "io": "read_images read_photons sum_frames write_image",
    "simulation": "simulate",
    "camera.camera": "Detector read_camera write_camera",
    "camera.calibration": "Calibration calibrate",
    "counts": "pseudo_psnr_db thin",
    "config": "Camera NetworkConfig RunConfig SamplingConfig ThinningConfig TrainConfig",
    "training.fit": "train",
    "model": "History Model load_model",
    "inference.denoising": "Region denoise region_uncertainty",
    "inference.held_out": "Coverage coverage",
    "inference.resume": "Unfinished",
    "inference.sampling": "Progress generate sample",
    "inference.volumes": "denoise_volume",
    "io.blocks": "VolumeStatus volume_status",
    "exporting.archive": "export",
    "validation.report": "validate",
    "inspection": "inspect",
}

if TYPE_CHECKING:
    from gap_bioimage.camera.calibration import Calibration, calibrate
    from gap_bioimage.camera.camera import Detector, read_camera, write_camera
    from gap_bioimage.config import Camera, NetworkConfig, RunConfig, SamplingConfig, ThinningConfig, TrainConfig
    from gap_bioimage.counts import pseudo_psnr_db, thin
    from gap_bioimage.exporting.archive import export
    from gap_bioimage.inference.denoising import Region, denoise, region_uncertainty
    from gap_bioimage.inference.held_out import Coverage, coverage
    from gap_bioimage.inference.resume import Unfinished
    from gap_bioimage.inference.sampling import Progress, generate, sample
    from gap_bioimage.inference.volumes import denoise_volume
    from gap_bioimage.inspection import inspect
    from gap_bioimage.io import read_images, read_photons, sum_frames, write_image
    from gap_bioimage.io.blocks import VolumeStatus, volume_status
    from gap_bioimage.model import History, Model, load_model
    from gap_bioimage.simulation import simulate
    from gap_bioimage.training.fit import train
    from gap_bioimage.validation.report import validate


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
