"""What a model's file tells about the images that it was trained on: their camera, and one-bit frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gap_bioimage.camera.camera import Detector, read_camera
from gap_bioimage.config import Camera
from gap_bioimage.errors import CheckpointError

if TYPE_CHECKING:
    from gap_bioimage.training.checkpoint import Model

CameraLike = Detector | Camera | str | Path | None
"""A camera, its yaml, "model" for the one that the model was trained with, or None where images are counts."""
FROM_MODEL = "model"
CAMERA_FILE = "camera.yaml"
"""The camera in a run folder, with its maps beside it."""


def detector_of(model: Model) -> Detector | None:
    """Return the camera whose images the model was trained on; None where these were counts.

    Raises
    ------
    CheckpointError
        If the model's file describes no possible camera.
    """
    if model.origin == "run" and (model.source.parent / CAMERA_FILE).is_file():
        return read_camera(model.source.parent / CAMERA_FILE)
    told = _settings(model).get("camera")
    if told is None:
        return None
    try:
        # zips also tell what follows from the camera's numbers
        camera = Camera.model_validate({name: told[name] for name in Camera.model_fields if name in told})
        return Detector(camera.model_copy(update={"maps": None}))
    except (ValidationError, TypeError):
        raise CheckpointError(
            f"{model.source} holds a description of its camera that is none; export it again"
        ) from None


def chosen_camera(model: Model, camera: CameraLike) -> Detector | None:
    """Return the camera that was asked for; None where images are counts.

    Raises
    ------
    ConfigError
        If a camera's yaml does not describe one.
    """
    if camera == FROM_MODEL:
        return detector_of(model)
    return None if camera is None else Detector.of(camera)


def ceiling_of(model: Model) -> int | None:
    """Return how many one-bit frames the images were sums of; None where counts have no such limit."""
    settings = _settings(model)
    ceiling = settings.get("ceiling", (settings.get("thinning") or {}).get("ceiling"))
    return None if ceiling is None else int(ceiling)


def _settings(model: Model) -> dict[str, Any]:
    if "rdf" in model.details:
        return dict(model.details["rdf"]["config"]["gap_bioimage"])
    return dict(model.details.get("config") or {})
