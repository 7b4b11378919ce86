"""What rules see: the description as written or upgraded, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
import zips

from gap_bioimage.validation.archive.description import format_checks
from gap_bioimage.validation.archive.package import open_package
from gap_bioimage.validation.check import NotApplicable
from gap_bioimage.validation.model import Axis, Model, with_infinities

OLD: dict[str, Any] = {
    "type": "model", "format_version": "0.4.10", "name": "An old model", "description": "Old.", "license": "MIT",
    "authors": [{"name": "Ada"}], "cite": [{"text": "A paper", "url": "https://example.org"}], "tags": ["2d"],
    "documentation": "README.md", "timestamp": "2022-01-01T00:00:00",
    "inputs": [{"name": "raw", "axes": "bczyx", "data_type": "float32", "data_range": [float("-inf"), float("inf")],
                "shape": {"min": [1, 1, 8, 32, 32], "step": [0, 0, 4, 16, 16]},
                "preprocessing": [{"name": "scale_range", "kwargs": {
                    "mode": "per_sample", "axes": "zyx", "min_percentile": 1, "max_percentile": 99}}]}],
    "outputs": [{"name": "out", "axes": "bczyx", "data_type": "float32", "data_range": [0.0, 1.0],
                 "halo": [0, 0, 2, 8, 8], "shape": {"reference_tensor": "raw", "scale": [1, 1, 1, 1, 1],
                                                    "offset": [0, 0, 0, 0, 0]}}],
    "test_inputs": ["in.npy"], "test_outputs": ["out.npy"],
    "weights": {"pytorch_state_dict": {"source": "w.pt", "architecture": "unet.py:UNet", "kwargs": {"depth": 4},
                                       "architecture_sha256": "0" * 64, "sha256": "0" * 64},
                "onnx": None},
}  # fmt: skip


def model_of(path: Path, rdf: dict[str, Any]) -> Model:
    path.write_text(yaml.safe_dump(rdf))
    with open_package(path) as (package, _):
        assert package is not None
        return Model(package, format_checks(package, with_files=False)[0], with_files=False)


def test_an_old_description_is_seen_as_format_05(tmp_path: Path) -> None:
    model = model_of(tmp_path / "rdf.yaml", OLD)
    assert (model.version, model.version_numbers) == ("0.4.10", (0, 4, 10))
    assert model.inputs[0].axis_ids == ["batch", "channel", "z", "y", "x"]
    assert model.inputs[0].axes[3].min_step == (32, 16)
    assert "scale_range" in [step["id"] for step in model.steps]
    assert model.halo_of_input == {("raw", "z"): 2.0, ("raw", "y"): 8.0, ("raw", "x"): 8.0}
    assert list(model.weights) == ["pytorch_state_dict"]
    assert model.architecture == {"callable": "UNet", "source": "unet.py", "kwargs": {"depth": 4}}
    with pytest.raises(NotApplicable):  # there is the description only
        model.file_of("README.md")
    # where it cannot be upgraded, it is told in the same words
    scale = {"name": "scale_linear", "kwargs": {"gain": 2.0, "offset": 0.0, "axes": "yx"}}
    other = model_of(tmp_path / "rdf.yaml", OLD | {"inputs": [OLD["inputs"][0] | {"preprocessing": [scale]}]})
    assert other.valid is not None and other.valid.upgraded is None
    for key in ("axis_ids", "id", "data_type"):
        assert [getattr(t, key) for t in other.tensors] == [getattr(t, key) for t in model.tensors]
    assert [a.min_step for a in other.inputs[0].axes[2:]] == [a.min_step for a in model.inputs[0].axes[2:]]
    assert [a.halo for a in other.outputs[0].axes] == [0, 0, 2, 8, 8]
    assert ("scale_linear", scale["kwargs"]) in [(step["id"], step["kwargs"]) for step in other.steps]
    # and invalid, it answers no question about tensors
    invalid = model_of(tmp_path / "rdf.yaml", OLD | {"outputs": []})
    assert invalid.valid is None
    with pytest.raises(NotApplicable, match="format"):
        _ = invalid.inputs


def test_what_got_lost_in_json_is_restored(tmp_path: Path) -> None:
    copied = json.loads(json.dumps(OLD).replace("-Infinity", "null").replace("Infinity", "null"))
    assert copied["inputs"][0]["data_range"] == [None, None]
    assert with_infinities(copied) == OLD
    assert model_of(tmp_path / "rdf.yaml", with_infinities(copied)).valid is not None


def test_a_new_description_is_seen_as_written(tmp_path: Path) -> None:
    with open_package(zips.make_zip(tmp_path)) as (package, _):
        assert package is not None
        model = Model(package)
        assert model.descr is package.rdf
        assert model.test_array(model.inputs[0]).shape == (1, 1, 32, 32)
        assert model.file_of({"source": "README.md"}) is not None
        assert model.file_of("../outside") is None
    for written, smallest in (
        ({"type": "batch", "size": 4}, 1), ({"type": "channel", "channel_names": ["a", "b"]}, 2),
        ({"type": "space", "size": 80}, 80), ({"type": "space", "size": {"min": 16, "step": 8}}, 16),
        ({"type": "space", "size": {"tensor_id": "a", "axis_id": "x"}}, 1),
    ):  # fmt: skip
        axis = Axis.of(written)
        assert (axis.smallest, axis.id) == (smallest, {"space": "x"}.get(axis.kind, axis.kind))


@pytest.mark.parametrize("version", [None, "banana", 0.5, [1], "0.5.9.9.9", "\u0660.\u0665"])
def test_strange_versions_are_none_or_numbers(tmp_path: Path, version: Any) -> None:
    model = model_of(tmp_path / "rdf.yaml", OLD | {"format_version": version})
    assert model.version_numbers in ((), (0, 5), (0, 5, 9, 9, 9))
