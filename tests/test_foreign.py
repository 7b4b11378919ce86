"""Weights of others: what their files tell, what must be told, and what is refused."""

import argparse
import io
import json
import pathlib
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_model import random_network
from original_gap import HYPER, Call, OriginalGap, lightning_checkpoint, original_gap

from gap_bioimage.config import NetworkConfig
from gap_bioimage.errors import CheckpointError
from gap_bioimage.foreign import ORIGINAL_RANGE_DB, read_safetensors, read_weights
from gap_bioimage.model import Model, load_model

KINDS: dict[str, dict[str, Any]] = {
    "2d": {"dim": 2},
    "rgb": {"dim": 2, "channels": 3},
    "3d": {"dim": 3},
    "3d-2-channels": {"dim": 3, "channels": 2},
    "anisotropic-1": {"dim": 3, "z_conv_stage": 1},
    "anisotropic-2": {"dim": 3, "z_conv_stage": 2},
}
"""Kinds of original networks; with three levels, z takes part in all, in two or in one of them."""


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def found_in(model: Model) -> dict[str, str]:
    assert model.history.settings_from is not None
    return model.history.settings_from


def assert_same_log_rates(network: OriginalGap, path: Path, channels: int, dim: int, **more: Any) -> None:
    """Compare with sizes that are odd multiples of the step, and no two axes alike."""
    model = load_model(path, **more)
    photons = torch.poisson(torch.full((2, channels, *(12, 20, 28)[-dim:]), 3.0), torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model.network(photons), network(photons), rtol=0, atol=1e-5)


@pytest.mark.parametrize("told", ["all", "nothing", "some", "namespace", "wrapped", "parallel"])
@pytest.mark.parametrize(("up_mode", "merge_mode"), [("transpose", "add"), ("upsample", "concat")])
@pytest.mark.parametrize("kind", KINDS)
def test_originals_of_every_kind_load(tmp_path: Path, kind: str, merge_mode: str, up_mode: str, told: str) -> None:
    settings = {**HYPER, **KINDS[kind], "merge_mode": merge_mode, "up_mode": up_mode}
    network = original_gap(**settings)
    hyper: Any = {k: v for k, v in settings.items() if k != "dim"}
    content = lightning_checkpoint(network, hyper)
    if told == "nothing":
        del content["hyper_parameters"]
    elif told == "some":
        content["hyper_parameters"] = {"levels": 3, "optimizer": "adam", "z_conv_stage": None}
    elif told == "namespace":
        content["hyper_parameters"] = argparse.Namespace(**hyper)
    elif told in ("wrapped", "parallel"):
        prefix = {"wrapped": "model.", "parallel": "module."}[told]
        weights = OrderedDict((prefix + name, value) for name, value in network.state_dict().items())
        weights["loss.weight"] = torch.ones(2)
        content |= {"state_dict": weights, "hyper_parameters": {}}
    path = save(tmp_path / "original.ckpt", content)
    model = load_model(path)
    assert model.config == NetworkConfig(**settings, log1p=False)
    assert (model.origin, model.trained_range_db) == ("original GAP checkpoint", ORIGINAL_RANGE_DB)
    assert (model.history.epochs, model.history.steps, model.history.range_from) == (41, 4200, "assumed")
    found = found_in(model)
    assert found["dim"] == "weights"
    assert found["depth"] == ("hyper_parameters" if told in ("all", "namespace") else "weights")
    assert set(found) == set(NetworkConfig.model_fields)
    assert_same_log_rates(network, path, settings["channels"], settings["dim"])


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(("dim", "up_mode", "merge_mode"), [(2, "upsample", "concat"), (3, "transpose", "add")])
def test_real_originals_need_not_be_described(
    shared_data: Path, tmp_path: Path, dim: int, up_mode: str, merge_mode: str, bare: bool
) -> None:
    content = torch.load(shared_data / f"original_gap_{dim}d.ckpt", weights_only=True)
    del content["hyper_parameters"]
    model = load_model(save(tmp_path / "weights.ckpt", content["state_dict"] if bare else content))
    assert model.config == NetworkConfig(
        dim=dim, depth=3, start_filts=8, log1p=False, up_mode=up_mode, merge_mode=merge_mode
    )
    stored = np.load(shared_data / f"original_gap_{dim}d.npz")
    log_rate = model.network.double()(torch.from_numpy(stored["input"].astype(np.float64)))
    np.testing.assert_allclose(log_rate.numpy(), stored["log_rate"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("depth", "found"), [(1, {}), (2, {"up_mode": "upsample"}), (5, {"up_mode": "upsample"})])
def test_every_depth_is_found(tmp_path: Path, depth: int, found: dict[str, Any]) -> None:
    network = original_gap(depth=depth, start_filts=1, levels=1, up_mode="upsample").half()
    model = load_model(save(tmp_path / "weights.pt", network.state_dict()))
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert model.config == NetworkConfig(depth=depth, start_filts=1, levels=1, log1p=False, **found)
    assert found_in(model)["up_mode"] == ("weights" if found else "default")


OURS: dict[str, Any] = {"dim": 3, "levels": 4, "z_conv_stage": 1, "merge_mode": "concat", "stem": 2}


@pytest.mark.parametrize("order", ["ours", "sorted"])
def test_the_encoding_of_other_weights_must_be_told(tmp_path: Path, order: str) -> None:
    network = random_network(**OURS)
    weights = dict(network.state_dict()) if order == "ours" else dict(sorted(network.state_dict().items()))
    path = save(tmp_path / "weights.pt", weights)
    told = r"5 sines \(original GAP\) or 4 sines and a logarithm .* write `log1p: false`(.*) into weights\.yaml"
    with pytest.raises(CheckpointError, match=told):
        load_model(path)
    expected = NetworkConfig(depth=2, start_filts=4, **OURS)
    for given in ({"log1p": True}, {"levels": 4, "log1p": True}):
        assert load_model(path, given).config == expected
    for given in ({"log1p": False}, {"levels": 5}):
        assert load_model(path, given).config == expected.model_copy(update={"log1p": False, "levels": 5})
    (tmp_path / "weights.yaml").write_text("log1p: true\ntrained_range_db: [-20, 7.5]\n")
    model = load_model(path)
    assert (model.config, model.trained_range_db) == (expected, (-20.0, 7.5))
    assert model.history.range_from == found_in(model)["log1p"] == "sidecar"
    photons = torch.poisson(torch.full((1, 1, 3, 7, 9), 2.0))
    assert torch.equal(model.network(photons), network(photons))


@pytest.mark.parametrize(("version", "stem"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (5, 1), (7, 1)])
@pytest.mark.parametrize(("dim", "channels"), [(2, 1), (3, 2)])
def test_anchored_weights_describe_themselves(tmp_path: Path, dim: int, channels: int, version: int, stem: Any) -> None:
    config = NetworkConfig(dim=dim, channels=channels, depth=2, start_filts=4, anchor_version=version, stem=stem)
    network = random_network(**config.model_dump())
    model = load_model(save(tmp_path / "weights.pt", network.state_dict()))
    assert model.config == config.model_copy(
        update={"anchor_version": 3 if (dim, version) == (2, 2) else version}
    )  # the same
    photons = torch.poisson(torch.full((1, channels, *(8, 24, 16)[-dim:]), 2.0))
    assert torch.equal(model.network(photons), network(photons))


def test_what_is_given_wins_over_beside_over_stored(tmp_path: Path) -> None:
    content = lightning_checkpoint(original_gap(), HYPER | {"levels": 9, "depth": 7})
    path = save(tmp_path / "original.ckpt", content)
    beside = tmp_path / "original.yaml"
    for stored in ("", "depth: 3\nlevels: 4\n"):
        beside.write_text(stored)
        with pytest.raises(CheckpointError, match="do not fit"):
            load_model(path)
    model = load_model(path, {"levels": 3, "trained_range_db": (-5, 6)})
    assert model.config.levels == 3
    assert (model.trained_range_db, model.history.range_from) == ((-5.0, 6.0), "given")
    assert {found_in(model)[name] for name in ("levels", "depth", "channels")} == {
        "given", "sidecar", "hyper_parameters",
    }  # fmt: skip


def test_nothing_beside_a_file_leaves_a_stored_setting_to_the_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "original.ckpt", lightning_checkpoint(original_gap(3), HYPER | {"z_conv_stage": 1}))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(path)
    (tmp_path / "original.yaml").write_text("z_conv_stage: null\n")
    assert load_model(path).config.z_conv_stage is None


@pytest.mark.parametrize("stage", [3, 5])
def test_more_stages_along_z_than_there_are_mean_all(tmp_path: Path, stage: int) -> None:
    network = original_gap(3, z_conv_stage=stage)
    path = save(tmp_path / "original.ckpt", lightning_checkpoint(network, HYPER | {"z_conv_stage": stage}))
    assert load_model(path).config.z_conv_stage == stage
    assert_same_log_rates(network, path, 1, 3)


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ("levels: 3\nfilters: 4\n", "unknown key 'filters'; did you mean 'start_filts'"),
        ("depth: deep\n", "depth: .*given 'deep'"),
        *((f"{wrong}\n", "do not fit") for wrong in ("dim: 3", "channels: 3", "up_mode: upsample", "levels: 2")),
        *((f"{wrong}\n", "do not fit") for wrong in ("merge_mode: concat", "levels: 3\nlog1p: true", "start_filts: 8")),
        ("log1p: maybe\n", "log1p: .*maybe"),
        ("levels: 3\ntrained_range_db: 10\n", "given as 10, expected the darkest and the brightest"),
        ("levels: 3\ntrained_range_db: [10, -40]\n", r"given as \[10, -40\]"),
        ("levels: [\n", "is not yaml"),
        ("- levels\n", "holds a list"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, beside: str, told: str) -> None:
    path = save(tmp_path / "weights.pt", original_gap().state_dict())
    (tmp_path / "weights.yaml").write_text(beside)
    with pytest.raises(CheckpointError, match=told):
        load_model(path)


def without(name: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in original_gap().state_dict().items() if k != name}


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**original_gap().state_dict(), name: value}


TWICE = {f"{p}.{k}": v for p in ("network", "average") for k, v in original_gap().state_dict().items()}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (TWICE, r"holds 2 networks \(under 'network\.', 'average\.'\); expected one"),
        ({"a": original_gap().state_dict(), "b": original_gap().state_dict()}, "holds 2 networks"),
        (without("down_convs.0.conv1.weight"), r"no GAP network \(no down_convs\.0\.conv1\.weight\)"),
        (without("up_convs.0.conv1.weight"), r"no up_convs\.0\.conv1\.weight"),
        (without("up_convs.1.conv3.bias"), "do not fit the network they describe"),
        (without("down_convs.1.conv1.weight"), "do not fit|no GAP network"),
        (changed("up_convs.1.norm.weight", torch.ones(4)), "do not fit the network they describe: .*norm"),
        (changed("down_convs.0.conv1.weight", torch.ones(4, 3, 3)), "no GAP network"),
        (changed("down_convs.0.conv1.weight", torch.ones(0, 3, 3, 3)), "start_filts: "),
        (changed("down_convs.0.conv1.weight", torch.ones(4)), "no GAP network"),
        (changed("conv_final.weight", torch.ones(0, 4, 1, 1)), "no GAP network"),
        (changed("conv_final.weight", torch.ones(2, 4, 1, 1)), "do not fit"),
        (changed("down_convs.0.conv1.bias", [1, 2]), "stored with objects that are not tensors"),
        (original_gap(3, z_conv_stage=0).state_dict(), "z_conv_stage"),
    ],
    ids=range(14),
)
def test_networks_of_others_are_refused(tmp_path: Path, weights: Any, told: str) -> None:
    path = save(tmp_path / "weights.pt", weights)
    with pytest.raises(CheckpointError, match=told):
        load_model(path)


def safetensors(header: bytes, numbers: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + numbers


def test_safetensors_load_once_the_encoding_is_told(tmp_path: Path) -> None:
    network, header, numbers = original_gap(channels=3), {"__metadata__": {"format": "pt"}}, b""
    for name, value in sorted(network.state_dict().items()):
        offsets = [len(numbers), len(numbers) + 4 * value.numel()]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
        numbers += value.numpy().tobytes()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors(json.dumps(header).encode(), numbers))
    with pytest.raises(CheckpointError, match=r"`log1p: true` into weights\.yaml"):
        load_model(path)
    (tmp_path / "weights.yaml").write_text("levels: 3\n")
    assert load_model(path).origin == "state_dict"
    assert_same_log_rates(network, path, 3, 2)


# What is in files


def stored(content: Any, legacy: bool = False) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    return file


def foreign_class(monkeypatch: pytest.MonkeyPatch, name: str, base: type = object) -> Any:
    """Make a class that pickles under the name of a package that need not be installed."""
    module, _, last = name.rpartition(".")
    made = type(last, (base,), {"__module__": module})
    for end in range(1, module.count(".") + 2):
        parent = ".".join(module.split(".")[:end])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    setattr(sys.modules[module], last, made)
    return made


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value", [np.int64(-3), np.float32(2.5), np.float16(0.5), np.bool_(True), np.array([7], ">i4")[0]]
)
def test_numbers_and_paths_are_read(value: Any, legacy: bool) -> None:
    assert read_weights(stored({"x": value, "at": pathlib.PurePosixPath("runs/a")}, legacy), "stream")["x"] == value


def test_settings_become_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"levels": 10, "depth": np.int64(5)}
    for name in (
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ):
        with monkeypatch.context() as patch:
            file = stored({"hyper_parameters": foreign_class(patch, name, dict)(given)})
        assert read_weights(file, name)["hyper_parameters"] == {"levels": 10, "depth": 5}
    with monkeypatch.context() as patch:
        callback = foreign_class(patch, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
        file = stored({"callbacks": {callback: {"best_model_score": torch.tensor(0.5)}}})
    assert list(read_weights(file, "stream")["callbacks"].values()) == [{"best_model_score": torch.tensor(0.5)}]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", ["bare", "settings", "key", "number", "path"])
def test_what_could_run_code_is_refused_by_name(tmp_path: Path, wrapped: str, legacy: bool) -> None:
    call: Any = Call(exec, f"open({str(tmp_path / 'executed')!r}, 'w')")
    content = {
        "bare": {"x": call},
        "settings": {"hyper_parameters": argparse.Namespace(levels=call)},
        "key": {("a", call): 1},
        "number": {"x": Call(np.dtype, call)},
        "path": {"x": Call(pathlib.PurePosixPath, call)},
    }[wrapped]
    with pytest.raises(CheckpointError, match=r"cannot|can be read safely.*names exec, which may run code: save"):
        read_weights(stored(content, legacy), "stream")
    assert not (tmp_path / "executed").exists()


def test_whole_modules_are_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"names torch\.nn\.modules\.linear\.Linear, .* state_dict\(\) alone"):
        read_weights(stored(torch.nn.Linear(1, 1)), "stream")


WRONG: list[Any] = [3]
for wrong in ([2], [0, 16]), ([3], [-8, 8]), ([3], [0, 8]), ("2", [0, 8]):
    WRONG.append({"dtype": "F32", "shape": wrong[0], "data_offsets": wrong[1]})
WRONG.append({"dtype": "X", "shape": [2], "data_offsets": [0, 8]})


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, *(safetensors(json.dumps({"a": entry}).encode(), bytes(8)) for entry in WRONG)],
    ids=range(8),
)
def test_broken_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_safetensors(path)
