import io
import zipfile
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures_model import random_network
from original_gap import HYPER, Call, lightning_checkpoint, original_gap

from gap_bioimage.camera.camera import Detector, write_camera
from gap_bioimage.config import Camera, NetworkConfig, RunConfig
from gap_bioimage.errors import CheckpointError
from gap_bioimage.model import History, load_model
from gap_bioimage.network import UNet
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.run_folder import RunFolder

NETWORK = NetworkConfig(depth=2, start_filts=2, levels=3, merge_mode="concat")


def network_of(seed: int = 0) -> UNet:
    return random_network(seed, **NETWORK.model_dump())


def original(**change: Any) -> dict[str, Any]:
    return {**lightning_checkpoint(original_gap(), HYPER), **change}


def checkpoint_of(seed: int = 0, **train: Any) -> dict[str, Any]:
    config = RunConfig.from_dict({"network": NETWORK.model_dump(), "train": train})
    module = GapModule(config, (-30.0, 4.5))
    module.network.load_state_dict(network_of(seed).state_dict())
    if module.average is not None:
        module.average.module.load_state_dict(network_of(seed + 1).state_dict())
    checkpoint: dict[str, Any] = {"state_dict": dict(module.state_dict())}
    RunFolder(Path(), "images").on_save_checkpoint(None, module, checkpoint)  # type: ignore[arg-type]
    return checkpoint


def zip_of(path: Path, rdf: Any, weights: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", rdf if isinstance(rdf, str) else yaml.safe_dump(rdf))
        archive.writestr("weights.pt", weights)
    return path


def our_rdf() -> dict[str, Any]:
    kwargs = {**NETWORK.model_dump(), "box_px": [5, 5]}
    entry = {"source": "weights.pt", "architecture": {"source": "network.py", "kwargs": kwargs}}
    return {"weights": {"pytorch_state_dict": entry}, "config": {"gap_bioimage": {"trained_range_db": [-30.0, 4.5]}}}


def our_weights() -> bytes:
    file = io.BytesIO()
    torch.save({f"network.{name}": value for name, value in network_of().state_dict().items()}, file)
    return file.getvalue()


def refused(path: Path, told: str = "") -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def assert_network(network: UNet, expected: UNet) -> None:
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    photons = torch.arange(49.0).reshape(1, 1, 7, 7)
    assert torch.equal(network(photons), expected(photons))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_our_checkpoints_load_and_of_moving_averages_these(tmp_path: Path, ema_decay: float | None) -> None:
    path = tmp_path / "best.ckpt"
    torch.save(checkpoint_of(ema_decay=ema_decay), path)
    model = load_model(path)
    assert (model.origin, model.source, model.config) == ("checkpoint", path, NETWORK)
    assert model.trained_range_db == (-30.0, 4.5)
    assert (model.camera, model.n_frames, replace(model.history, training=None)) == (None, None, History())
    assert_network(model.network, network_of(0 if ema_decay is None else 1))


@pytest.mark.parametrize(("names", "seed"), [(("best", "last"), 0), (("last",), 5)])
def test_a_run_folder_gives_its_best(tmp_path: Path, names: tuple[str, ...], seed: int) -> None:
    for name in names:
        torch.save(checkpoint_of(seed=0 if name == "best" else 5), tmp_path / f"{name}.ckpt")
    model = load_model(tmp_path)
    assert (model.origin, model.source.name) == ("run", f"{names[0]}.ckpt")
    assert_network(model.network, network_of(seed))


@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_files_is_not_run(tmp_path: Path, zipped: bool) -> None:
    bomb, path, file = Call(Path.touch, tmp_path / "executed"), tmp_path / "model.ckpt", io.BytesIO()
    torch.save({"network.conv_final.weight": bomb} if zipped else original(extra=bomb), file)
    path.write_bytes(file.getvalue())
    if zipped:
        zip_of(path, our_rdf(), file.getvalue())
    refused(path, "is not a checkpoint that can be read safely")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_files_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.ckpt"
    if zipped:
        zip_of(path, our_rdf(), our_weights())
    else:
        torch.save(checkpoint_of(), path)
    content = path.read_bytes()
    for share in (0.01, 0.6, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "not a checkpoint")
    if zipped:
        path.write_bytes(content[:900] + bytes([content[900] ^ 0xFF]) + content[901:])
        refused(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds a list"),
        ({}, "no GAP network"),
        ({"state_dict": None}, "no GAP network"),
        ({"state_dict": {"fc.weight": torch.ones(2, 2)}, "hyper_parameters": HYPER}, "no GAP network"),
        ({"state_dict": {"model.conv_final.weight": torch.ones(1, 2, 1, 1)}, "hyper_parameters": HYPER}, "GAP"),
        (original(hyper_parameters=HYPER | {"z_conv_stage": 1}), "z_conv_stage"),
        (original(state_dict={"conv_final.weight": 3}), "do not fit|no GAP network"),
        (checkpoint_of() | {"gap_bioimage": {}}, "gap_bioimage"),
        (checkpoint_of() | {"gap_bioimage": 3}, "gap_bioimage"),
    ],
    ids=range(9),
)
def test_dictionaries_of_something_else_are_refused(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    refused(path, told)


def change_of(keys: str, value: Any = None) -> dict[str, Any]:
    rdf, (*sections, last) = our_rdf(), keys.split("/")
    inner = reduce(dict.__getitem__, sections, rdf)
    inner[last] = value
    if value is None:
        del inner[last]
    return rdf


@pytest.mark.parametrize(
    "rdf",
    [
        *("- a list", "a: [1", {"type": "model"}),
        change_of("config/gap_bioimage"),
        change_of("config/gap_bioimage/trained_range_db"),
        change_of("config/gap_bioimage/sampler", {"source": "weights.pt"}),
        change_of("config/gap_bioimage/sampler", {"source": "weights.pt", "kwargs": [1]}),
        change_of("config/gap_bioimage", [1]),
        change_of("weights/pytorch_state_dict"),
        change_of("weights/pytorch_state_dict/source", "missing.pt"),
        change_of("weights/pytorch_state_dict/architecture/kwargs/levels"),
        change_of("weights/pytorch_state_dict/architecture/kwargs/depth", "deep"),
        change_of("weights/pytorch_state_dict/architecture/kwargs/mystery", 1),
    ],
    ids=range(13),
)
def test_zips_of_others_are_refused(tmp_path: Path, rdf: Any) -> None:
    refused(zip_of(tmp_path / "model.zip", rdf, our_weights()))


def test_archives_and_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"\xff\xd8\xff")
    torch.jit.save(torch.jit.script(network_of()), tmp_path / "script.pt")
    for name, content in {"empty": b"", "notes": b"just some notes\n" * 50, "pickle": b"\x80\x02K\x05."}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("photos.zip", "script.pt", "empty", "notes", "pickle"):
        refused(tmp_path / name, "checkpoint")
    refused(tmp_path, "folder without best.ckpt or last.ckpt")
    refused(tmp_path / "missing.ckpt", "does not exist; expected a run folder")


def test_models_that_describe_themselves_are_told_nothing(tmp_path: Path) -> None:
    torch.save(checkpoint_of(), tmp_path / "best.ckpt")
    path = zip_of(tmp_path / "model.zip", our_rdf(), our_weights())
    for own in (path, tmp_path, tmp_path / "best.ckpt"):
        with pytest.raises(CheckpointError, match="leave them out"):
            load_model(own, {"levels": 3})
    (tmp_path / "best.yaml").write_text("levels: 5\n")
    assert load_model(tmp_path).config == NETWORK


def described(tmp_path: Path, **section: Any) -> Path:
    """Save a checkpoint whose section tells more."""
    content = checkpoint_of()
    content["gap_bioimage"] |= section
    torch.save(content, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_history_is_that_of_the_training(tmp_path: Path) -> None:
    metrics = [{"step": 5, "validation_loss": 2.0}, {"step": 10, "validation_loss": float("nan")}]
    init = {"name": "a.ckpt", "origin": "checkpoint", "sha256": "ab", "trained_range_db": [-40.0, 1.0]}
    model = load_model(described(tmp_path, metrics=metrics, init=init))
    assert replace(model.history, training=None) == History(steps=10, validation_loss=2.0, init=init)
    assert model.history.training is not None
    assert model.history.training["ema_decay"] is None


CAMERA = {"gain": 2.0, "offset": 100.0, "read_noise": 1.5}


@pytest.mark.parametrize("more", [{}, {"maps": "camera_maps.tif"}, {"shift": 2.4, "background": 2.3}], ids=str)
def test_checkpoints_and_zips_tell_their_camera_and_frames(tmp_path: Path, more: dict[str, Any]) -> None:
    told, expected = {**CAMERA, **more}, Detector(Camera(**CAMERA))  # the maps of another place are not there
    path = described(tmp_path, config={"network": NETWORK.model_dump(), "camera": told})
    assert load_model(path).camera == expected
    rdf = our_rdf()
    rdf["config"]["gap_bioimage"] |= {"camera": told}
    assert load_model(zip_of(tmp_path / "model.zip", rdf, our_weights())).camera == expected
    path = described(tmp_path, config={"network": NETWORK.model_dump(), "thinning": {"ceiling": 8}})
    rdf["config"]["gap_bioimage"] = {"trained_range_db": [-30.0, 4.5], "ceiling": 8}
    for source in (path, zip_of(tmp_path / "frames.zip", rdf, our_weights())):
        model = load_model(source)
        assert (model.camera, model.n_frames) == (None, 8)


def test_runs_keep_their_camera_beside_them(tmp_path: Path) -> None:
    beside = Detector(Camera(gain=3.0, offset=100.0))
    write_camera(tmp_path / "camera.yaml", beside)
    path = described(tmp_path, config={"network": NETWORK.model_dump(), "camera": CAMERA})
    assert load_model(tmp_path).camera == beside
    model = load_model(path)
    assert model.camera == Detector(Camera(**CAMERA))
    assert model.camera_for("model") == model.camera
    assert model.camera_for(None) is None
    assert model.camera_for(tmp_path / "camera.yaml") == beside


@pytest.mark.parametrize("told", [{"gain": -1, "offset": 0}, {"offset": 3}, {"gain": "x", "offset": 0}, [1]], ids=str)
def test_descriptions_of_no_camera_are_refused(tmp_path: Path, told: Any) -> None:
    refused(described(tmp_path, config={"network": NETWORK.model_dump(), "camera": told}))
