"""What models remember of their images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fixtures_model import random_model

from gap_bioimage.camera.camera import Detector, write_camera
from gap_bioimage.config import Camera
from gap_bioimage.errors import CheckpointError
from gap_bioimage.training.recorded import ceiling_of, detector_of

if TYPE_CHECKING:
    from pathlib import Path

CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5, maps="camera_maps.tif")


def zip_like(section: dict[str, Any]) -> dict[str, Any]:
    return {"rdf": {"config": {"gap_bioimage": section}}}


def test_models_of_counts_have_neither() -> None:
    for details in ({}, {"config": {}}, {"config": {"camera": None, "thinning": {"ceiling": None}}}, zip_like({})):
        model = replace(random_model(), details=details)
        assert detector_of(model) is None
        assert ceiling_of(model) is None


@pytest.mark.parametrize("told", [CAMERA.model_dump(), {**CAMERA.model_dump(), "shift": 2.4, "background": 2.3}])
def test_checkpoints_and_zips_tell_their_camera(told: dict[str, Any]) -> None:
    for details in ({"config": {"camera": told}}, zip_like({"camera": told})):
        detector = detector_of(replace(random_model(), details=details))
        # the maps of another place are not there
        assert detector == Detector(CAMERA.model_copy(update={"maps": None}))


def test_runs_keep_their_camera_beside_them(tmp_path: Path) -> None:
    camera = CAMERA.model_copy(update={"maps": None, "gain": 3.0})
    write_camera(tmp_path / "camera.yaml", Detector(camera))
    model = replace(random_model(), source=tmp_path / "best.ckpt", origin="run")
    assert detector_of(model) == Detector(camera)
    assert detector_of(replace(model, origin="checkpoint")) is None


def test_one_bit_frames_are_told() -> None:
    for details in ({"config": {"thinning": {"ceiling": 8}}}, zip_like({"ceiling": 8})):
        assert ceiling_of(replace(random_model(), details=details)) == 8


@pytest.mark.parametrize("told", [{"gain": -1, "offset": 0}, {"offset": 3}, {"gain": "x", "offset": 0}])
def test_descriptions_of_no_camera_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="description of its camera that is none"):
        detector_of(replace(random_model(), details=zip_like({"camera": told})))
