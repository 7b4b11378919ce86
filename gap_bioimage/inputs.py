"""Images as the verbs of the command line take them: of counts, of a camera, of one-bit frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gap_bioimage.errors import ConfigError
from gap_bioimage.io import read_images, read_photons, sum_frames

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

    from gap_bioimage.camera.camera import Detector
    from gap_bioimage.model import CameraLike, Model

NO_CAMERA = "none"
"""What to give as a camera for images that are counts, to a model that was trained with a camera."""


def camera_asked(option: str | None) -> CameraLike:
    """Return what ``--camera`` asks for: a yaml, no camera ("none"), or the model's when not given."""
    if option is None:
        return "model"
    return None if option.lower() == NO_CAMERA else Path(option)


def camera_of(option: str | None, model: Model) -> Detector | None:
    """Return the camera of ``--camera``.

    Raises
    ------
    ConfigError
        If the yaml does not describe a camera.
    """
    return model.camera_for(camera_asked(option))


def read_input(
    path: Path, select: Mapping[str, Any], model: Model, detector: Detector | None, frames: int | None
) -> xr.DataArray:
    """Read an image for a model; what a camera wrote, or the sum of one-bit frames, is not judged as counts.

    Parameters
    ----------
    path
        The file.
    select
        ``axes``, ``channel``, ``time``, ``series``, ``level`` of ``read_photons``.
    model
        What it is for.
    detector
        Its camera, if it holds no counts.
    frames
        One-bit frames to sum, if any.

    Raises
    ------
    ConfigError
        If a model that was trained on other sums, or on counts, is given summed frames.
    """
    ceiling = model.n_frames
    if frames is not None and frames != ceiling:
        trained = "photon counts" if ceiling is None else f"sums of {ceiling} one-bit frames"
        raise ConfigError(
            f"--sum-frames is {frames}, but the model was trained on {trained}; "
            + ("leave it out" if ceiling is None else f"give --sum-frames {ceiling}")
        )
    image = read_photons(path, check=detector is None and ceiling is None, **select)
    return image if frames is None else sum_frames(image, frames, name=path.name)


def read_training_images(
    paths: Sequence[Path], select: Mapping[str, Any], *, counts: bool, frames: int | None
) -> list[xr.DataArray]:
    """Read images to train on.

    Parameters
    ----------
    paths
        Files and folders.
    select
        As for ``read_input``.
    counts
        Whether they must be photon counts: not those of a camera, nor sums of one-bit frames.
    frames
        One-bit frames to sum, if any.
    """
    images = read_images(paths, check=counts and frames is None, **select)
    if frames is None:
        return images
    return [sum_frames(image, frames, name=str(image.attrs.get("source", "the movie"))) for image in images]
