"""What stands between an image and the counts that a network sees, and between its rates and photons.

Cameras (ADU to counts), one-bit frames (their ceiling), movies as stacks, channels one by one: each changes the image
on the way in and is undone on the way out, here and nowhere else.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from gap_bioimage.counts import check_axes, check_whole_numbers
from gap_bioimage.errors import ConfigError, NotPhotonCountsError
from gap_bioimage.network import photons_of
from gap_bioimage.photons.cameras.camera import check_camera_image
from gap_bioimage.photons.layout import time_as_z as as_stack
from gap_bioimage.training.recorded import ceiling_of, chosen_camera

if TYPE_CHECKING:
    from gap_bioimage.photons.cameras.camera import Detector
    from gap_bioimage.training.checkpoint import Model
    from gap_bioimage.training.recorded import CameraLike

_BRIGHT_FRAMES = 0.95  # detections per frame above which the photons are hardly known


@dataclass(frozen=True)
class Prepared:
    """Counts for a network.

    Attributes
    ----------
    counts
        Dims out of ``t c z y x``, as the network is to see them.
    detector
        Where the counts come from camera values.
    ceiling
        Where they are sums of that many one-bit frames.
    time_as_z
        Whether z of the counts is time.
    """

    counts: xr.DataArray
    detector: Detector | None = None
    ceiling: int | None = None
    time_as_z: bool = False

    def photons(self, rates: xr.DataArray) -> xr.DataArray:
        """Return the photons of the sample from expected counts, with dims of ``counts`` and maybe ``sample``."""
        if self.detector is not None:
            background = self.detector.background()
            rates = rates - (background if isinstance(background, float) else xr.DataArray(background, dims=["y", "x"]))
            rates = rates.astype(np.float32)
        elif self.ceiling is not None:
            import torch

            rates = rates.copy(data=photons_of(torch.from_numpy(rates.values), 0.0, self.ceiling).numpy())
        return rates.rename(z="t") if self.time_as_z else rates


def prepare(model: Model, image: xr.DataArray, *, camera: CameraLike = "model", time_as_z: bool = False) -> Prepared:
    """Turn an image into the counts that a model expects.

    Parameters
    ----------
    model
        From ``load_model`` or ``train``.
    image
        Counts, or values of the camera; dims out of ``t c z y x``.
    camera
        A camera or its yaml; "model" for the one that the model was trained with, if any; None for counts.
    time_as_z
        Let a 3D model see a movie as a stack.

    Raises
    ------
    NotPhotonCountsError
        If the image cannot come from that camera, holds more photons than one-bit frames can, or values that are no
        counts: negative, fractional or not finite. Whether counts come from photons is judged where they are read.
    ConfigError
        If the camera's yaml describes none, or the model was trained on one-bit frames.
    AxesError
        If the image has no named axes, time cannot be taken as z, or the camera's maps have other sizes.
    """
    check_axes(image)
    source = as_stack(image) if time_as_z else image
    detector = chosen_camera(model, camera)
    name = str(image.attrs.get("source", "the image"))
    if detector is not None and ceiling_of(model) is not None:
        raise ConfigError(
            "the model was trained on one-bit frames, which need no camera; leave --camera out, or use a model "
            "that was trained with a camera"
        )
    if detector is not None:
        check_camera_image(source, detector, name=name)
        return Prepared(_counted(source, detector, name), detector, None, time_as_z)
    check_whole_numbers(source, name=name)
    ceiling = ceiling_of(model)
    if ceiling is not None:
        _check_ceiling(source, ceiling, name)
    return Prepared(source, None, ceiling, time_as_z)


def _counted(image: xr.DataArray, detector: Detector, name: str) -> xr.DataArray:
    """Return the counts of camera values, plane by plane, so that only they are in memory."""
    ordered = image.transpose(..., "y", "x")
    planes = ordered.data.reshape(-1, *ordered.shape[-2:])
    counts = np.empty(planes.shape, np.int32)
    for plane, counted in zip(planes, counts, strict=True):
        if not np.isfinite(plane).all():
            raise NotPhotonCountsError(f"{name} has values that are not finite, expected a camera's numbers")
        counted[:] = detector.counts(np.asarray(plane))
    return ordered.copy(data=counts.reshape(ordered.shape)).transpose(*image.dims)


def _check_ceiling(image: xr.DataArray, ceiling: int, name: str) -> None:
    highest = float(image.max())
    if highest > ceiling:
        raise NotPhotonCountsError(
            f"{name} holds up to {highest:g} photons in a pixel, but the model was trained on sums of {ceiling} "
            f"one-bit frames, which hold at most {ceiling}; sum the frames with --sum-frames {ceiling}"
        )
    if highest == 1 and ceiling > 1:
        warnings.warn(
            f"{name} holds 0 and 1 only, but the model was trained on sums of {ceiling} one-bit frames; sum the frames "
            f"with --sum-frames {ceiling}",
            stacklevel=3,
        )
    full = float((image >= _BRIGHT_FRAMES * ceiling).mean())
    if ceiling > 1 and full > 1e-3:
        warnings.warn(
            f"{full:.1%} of the pixels of {name} detected a photon in nearly every frame: how many there were is "
            "hardly known; use shorter frames",
            stacklevel=3,
        )
