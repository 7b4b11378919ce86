"""The model description: readable by every consumer, true to its files."""

from __future__ import annotations

import hashlib
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from fixtures_model import CARD, random_model
from hypothesis import given
from hypothesis import strategies as st

from gap_bioimage.export.card import Card
from gap_bioimage.export.rdf import COVER, TEST_INPUT, TEST_OUTPUT, Sizes, describe, tags_of
from gap_bioimage.export.weights import denoiser_of, write_weights

if TYPE_CHECKING:
    from pathlib import Path


def card(**changes: Any) -> Card:
    return Card.model_validate({**yaml.safe_load(CARD), **changes})


def rdf_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        content: dict[str, Any] = yaml.safe_load(archive.read("rdf.yaml"))
    return content


@pytest.fixture(params=["unchecked_zip_2d", "unchecked_zip_3d"])
def any_zip(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


AXES = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(0, 12)), min_size=2, max_size=3)


@given(AXES)
def test_sizes_hold_two_halos_and_a_block(axes: list[tuple[int, int]]) -> None:
    step, halo = zip(*((s, s * n) for s, n in axes), strict=True)
    sizes = Sizes.of(step, halo)
    assert (sizes.step_px, sizes.halo_px) == (step, halo)
    for low, s, h in zip(sizes.min_px, step, halo, strict=True):
        assert low % s == 0
        assert low > 2 * h
        assert 2 * h <= 0.75 * low + 1
        assert low <= 2 * h + 2 * h // 3 + 2 * s


def test_bioimageio_reads_it_without_errors(any_zip: Path) -> None:
    from bioimageio.spec import InvalidDescr, ValidationContext, load_model_description
    from bioimageio.spec.model.v0_5 import ModelDescr

    with ValidationContext(perform_io_checks=True):
        descr = load_model_description(any_zip)
    assert not isinstance(descr, InvalidDescr)
    assert isinstance(descr, ModelDescr)
    assert descr.validation_summary.status == "valid-format"
    assert not [error for detail in descr.validation_summary.details for error in detail.errors]


def test_what_older_readers_need_is_a_plain_string(any_zip: Path) -> None:
    rdf = rdf_of(any_zip)
    assert rdf["format_version"] == "0.5.9"
    assert rdf["type"] == "model"
    assert rdf["id"] == "tiny-photon-denoiser"
    assert isinstance(rdf["documentation"], str)
    assert isinstance(rdf["license"], str)
    assert all(isinstance(cover, str) for cover in rdf["covers"])
    assert isinstance(rdf["timestamp"], str)


def test_hashes_are_those_of_the_files(any_zip: Path) -> None:
    found: dict[str, str] = {}

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if "sha256" in node:
                found[node["source"]] = node["sha256"]
            for value in node.values():
                collect(value)
        elif isinstance(node, list):
            for value in node:
                collect(value)

    rdf = rdf_of(any_zip)
    collect(rdf)
    with zipfile.ZipFile(any_zip) as archive:
        assert found == {name: hashlib.sha256(archive.read(name)).hexdigest() for name in found}
        assert {*found, "rdf.yaml", rdf["documentation"], *rdf["covers"]} == set(archive.namelist())
    assert len(found) == 5


def test_axes_sizes_and_test_tensors_agree(any_zip: Path) -> None:
    rdf = rdf_of(any_zip)
    (given_,), (made,) = rdf["inputs"], rdf["outputs"]
    assert (given_["id"], made["id"]) == ("photons", "rate")
    axes = [axis.get("id", axis["type"]) for axis in given_["axes"]]
    assert axes in (["batch", "channel", "y", "x"], ["batch", "channel", "z", "y", "x"])
    assert axes == [axis.get("id", axis["type"]) for axis in made["axes"]]
    assert all("scale" not in axis for axis in given_["axes"])
    with zipfile.ZipFile(any_zip) as archive:
        tensors = [np.load(archive.open(t["test_tensor"]["source"])) for t in (given_, made)]
    assert tensors[0].shape == tensors[1].shape
    assert all(tensor.dtype == np.float32 for tensor in tensors)
    for size, axis, out in zip(tensors[0].shape[2:], given_["axes"][2:], made["axes"][2:], strict=True):
        low, step = axis["size"]["min"], axis["size"]["step"]
        assert (size - low) % step == 0
        assert low % step == 0
        assert low > 2 * out["halo"]
        assert out["size"] == {"tensor_id": "photons", "axis_id": axis["id"], "offset": 0}
    assert "preprocessing" not in given_
    assert "postprocessing" not in made


def test_the_description_says_what_the_model_is(any_zip: Path) -> None:
    rdf = rdf_of(any_zip)
    ours = rdf["config"]["gap_bioimage"]
    assert (ours["kind"], ours["conserves_photons"]) == ("denoise", True)
    assert ours["trained_range_db"][0] == -40.0
    architecture = rdf["weights"]["pytorch_state_dict"]["architecture"]
    assert architecture["callable"] == "PhotonDenoiser"
    assert rdf["weights"]["torchscript"]["parent"] == "pytorch_state_dict"
    assert "git_repo" not in rdf


def files_of(folder: Path, channels: int) -> tuple[Any, list[int]]:
    model, box = random_model(channels=channels), [9, 9]
    write_weights(folder, denoiser_of(model, box))
    for name in (TEST_INPUT, TEST_OUTPUT):
        np.save(folder / name, np.zeros((1, channels, 16, 16), np.float32))
    (folder / COVER).write_bytes(b"")
    return model, box


def test_channels_and_repository_are_named(tmp_path: Path) -> None:
    model, box = files_of(tmp_path, channels=2)
    own = card(git_repo="https://github.com/ada/x", id="mine", tags=["confocal", "unet"])
    rdf = describe(tmp_path, model, own, Sizes.of((2, 2), (4, 4)), box)
    assert rdf["git_repo"] == "https://github.com/ada/x"
    assert rdf["id"] == "mine"
    assert rdf["inputs"][0]["axes"][1]["channel_names"] == ["photons0", "photons1"]
    assert rdf["outputs"][0]["axes"][1]["channel_names"] == ["rate0", "rate1"]
    assert rdf["weights"]["pytorch_state_dict"]["architecture"]["kwargs"]["channels"] == 2
    assert rdf == yaml.safe_load(yaml.safe_dump(rdf))


@pytest.mark.parametrize("dim", [2, 3])
def test_tags_are_those_that_partners_search_for_once_each(dim: int) -> None:
    tags = tags_of(random_model(dim=dim), card(tags=["confocal", "unet"]))
    assert len(tags) == len(set(tags))
    assert {"denoising", "confocal", "unet", f"{dim}d"} <= set(tags)
    assert f"{5 - dim}d" not in tags
