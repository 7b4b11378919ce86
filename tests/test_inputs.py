"""Images as the verbs take them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from fixtures_model import random_model

from gap_bioimage.camera.camera import Detector, write_camera
from gap_bioimage.config import Camera
from gap_bioimage.errors import ConfigError, NotPhotonCountsError
from gap_bioimage.inputs import camera_of, read_input, read_training_images

if TYPE_CHECKING:
    from pathlib import Path

CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5)
WITH_CAMERA: dict[str, Any] = {"config": {"camera": CAMERA.model_dump()}}
ONE_BIT: dict[str, Any] = {"config": {"thinning": {"ceiling": 4}}}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    adu = np.rint(100 + 2 * (rng.poisson(5, (48, 48)) + rng.normal(0, 1.5, (48, 48))))
    tifffile.imwrite(tmp_path / "raw.tif", adu.astype(np.uint16), imagej=True)
    return tmp_path / "raw.tif"


@pytest.fixture
def bits(tmp_path: Path) -> Path:
    movie = (np.random.default_rng(0).random((8, 32, 32)) < 0.3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "bits.tif", movie, imagej=True, metadata={"axes": "TYX"})
    return tmp_path / "bits.tif"


def test_the_camera_is_the_one_given_or_the_models(tmp_path: Path) -> None:
    model = replace(random_model(), details=WITH_CAMERA)
    assert camera_of(None, model) == Detector(CAMERA)
    assert camera_of(None, random_model()) is None
    assert camera_of("none", model) is None
    other = CAMERA.model_copy(update={"gain": 3.0})
    write_camera(tmp_path / "camera.yaml", Detector(other))
    assert camera_of(str(tmp_path / "camera.yaml"), model) == Detector(other)
    with pytest.raises(ConfigError, match="cannot read"):
        camera_of(str(tmp_path / "gone.yaml"), model)


def test_what_a_camera_wrote_is_not_judged_as_counts(raw: Path) -> None:
    assert read_input(raw, {}, random_model(), Detector(CAMERA), None).shape == (48, 48)
    with pytest.raises(NotPhotonCountsError):
        read_input(raw, {}, random_model(), None, None)
    assert len(read_training_images([raw], {}, counts=False, frames=None)) == 1
    with pytest.raises(NotPhotonCountsError):
        read_training_images([raw], {}, counts=True, frames=None)


def test_frames_are_summed_as_in_training(bits: Path) -> None:
    model = replace(random_model(), details=ONE_BIT)
    assert read_input(bits, {}, model, None, 4).sizes == {"t": 2, "y": 32, "x": 32}
    assert read_input(bits, {"time": "0:4"}, model, None, 4).sizes == {"y": 32, "x": 32}
    assert read_training_images([bits], {}, counts=True, frames=2)[0].sizes["t"] == 4
    with pytest.raises(ConfigError, match="give --sum-frames 4"):
        read_input(bits, {}, model, None, 2)
    with pytest.raises(ConfigError, match="trained on photon counts; leave it out"):
        read_input(bits, {}, random_model(), None, 2)
