from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gap_bioimage.config import NetworkConfig, RunConfig, ThinningConfig, TrainConfig, read_yaml
from gap_bioimage.errors import ConfigError

FULL: dict[str, Any] = {
    "network": {
        "dim": 3, "channels": 2, "anchor": False, "anchor_version": 1, "levels": 4, "log1p": False, "depth": 3,
        "start_filts": 8, "stem": 2,
        "up_mode": "upsample", "merge_mode": "concat", "z_conv_stage": 1,
    },
    "thinning": {"min_db": -20.0, "max_db": 5.5, "max_fraction": 0.9, "read_noise": True, "binned": 0.0, "ceiling": 16},
    "train": {
        "steps": 7, "patience": 5, "batch_size": 2, "patch_px": [8, 16, 32], "min_photons": 0,
        "optimizer": "muon", "learning_rate": 2e-4,
        "warmup_steps": 0, "gradient_clip": 1.5, "total_weight": 0.1, "brightness_power": 0.5,
        "ema_decay": 0.99, "precision": "bf16-mixed",
        "channels_last": False, "validate_every": 3, "validation_share": 0.25, "validation_windows": 5,
        "purpose": "sample", "size": "small", "repeats": "t", "tensorboard": True, "seed": 11,
    },
    "camera": {
        "gain": 2.2, "offset": 100.5, "read_noise": 1.5, "saturation": 4095.0, "multiplying": True,
        "maps": "camera_maps.tif", "measured": {"method": "photon transfer", "frames": 200},
    },
}  # fmt: skip


def refused(call: Callable[[], object], *told: str) -> str:
    """Return what an error says in one line of ours, which holds all that."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert all(part in message for part in told), message
    assert not [part for part in ("\n", "Value error", "valid tuple") if part in message], message
    return message


def test_yaml_round_trip_keeps_every_setting(tmp_path: Path) -> None:
    config = RunConfig.from_dict(FULL)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert RunConfig.read(path) == config
    assert yaml.safe_load(config.to_yaml()) == FULL
    assert config.train.patch_px == (8, 16, 32)
    assert TrainConfig.from_dict({"workers": 4, "steps": 7}) == TrainConfig(steps=7)  # as runs of before have it
    path.write_text("# nothing set\n")
    assert RunConfig.read(path) == RunConfig.read() == RunConfig.from_dict(yaml.safe_load(RunConfig().to_yaml()))


@pytest.mark.parametrize(
    ("values", "unknown", "nearest"),
    [
        ({"trian": {}}, "trian", "train"),
        ({"steps": 3}, "steps", "train.steps"),
        ({"train": {"step": 5}}, "train.step", "train.steps"),
        ({"network": {"start_filters": 5}}, "network.start_filters", "network.start_filts"),
        ({"train": {5: 5}}, "train.5", None),
    ],
)
def test_unknown_keys_name_the_nearest(values: dict[str, Any], unknown: str, nearest: str | None) -> None:
    message = refused(lambda: RunConfig.from_dict(values), unknown)
    assert not nearest or message == f"unknown key '{unknown}'; did you mean '{nearest}'?"


def test_all_errors_are_told_at_once() -> None:
    train = {"steps": 0, "ema_decay": 1.0, "seeds": 1}
    values = {"train": train, "network": {"dim": 4}, "thining": {"min_db": "x"}}
    told = ("train.steps", "train.ema_decay", "'train.seeds'", "'train.seed'", "network.dim", "'thinning'", "given 0")
    refused(lambda: RunConfig.from_dict(values), *told)


def test_overrides_parse_types() -> None:
    train = ["train.steps=500", "train.learning_rate=1e-4", "train.patch_px=[64, 32]", "train.tensorboard=true"]
    config = RunConfig.read(None, [*train, " thinning.max_db=7", "thinning.ceiling=null"])
    assert config.train == TrainConfig(steps=500, learning_rate=1e-4, patch_px=(64, 32), tensorboard=True)
    assert config.thinning == ThinningConfig(max_db=7.0, ceiling=None)


@pytest.mark.parametrize("text", ["train: {steps: 3, seed: 4}\n", "train:\n", ""])
def test_overrides_go_over_the_file_and_the_last_wins(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    config = RunConfig.read(path, ["train.steps=8", "train.steps=9", "network.depth=2"])
    assert (config.train, config.network.depth) == (TrainConfig(steps=9, seed=4 if "seed" in text else 0), 2)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps", "section.key=value"),
        ("train.=5", "section.key=value"),
        ("train.steps.deep=5", "train.steps"),
        ("train.steps=many", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.step=5", "'train.steps'"),
        ("steps=5", "unknown key 'steps'"),
        ("train.patch_px=[64", "train.patch_px"),
        ("train.patch_px=@", "train.patch_px"),
        ("train.patch_px=64", "train.patch_px: expected a list"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override: str, told: str) -> None:
    refused(lambda: RunConfig.read(None, [override]), told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"train: [1, 2", "is not yaml"),
        (b"\xff\xfe\x00\x81", "is not yaml"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"!!python/object/apply:os.system ['true']", "is not yaml"),
    ],
)
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.yaml"
    refused(lambda: RunConfig.read(path), "cannot read")
    path.write_bytes(content)
    refused(lambda: read_yaml(path), told, str(path))


@pytest.mark.parametrize(
    "values",
    [
        {"network": {"dim": 2, "z_conv_stage": 1}},
        {"network": {"depth": 9}},
        {"network": {"up_mode": "nearest"}},
        {"network": {"dim": 3}, "train": {"patch_px": [64, 64]}},
        {"thinning": {"min_db": 0, "max_db": 0}},
        {"thinning": {"max_db": float("inf")}},
        {"thinning": {"binned": 0.2, "ceiling": 4}},
        {"train": {"steps": 0}},
        {"train": {"seed": 2**32}},
        {"train": {"patch_px": [0, 64]}},
        {"train": {"patch_px": [1, 1]}},
        {"train": {"repeats": "z"}},
        {"train": None},
    ],
)
def test_impossible_values_are_refused_in_one_line(values: dict[str, Any]) -> None:
    section, settings_ = list(values.items())[-1]
    for make in (lambda: RunConfig.from_dict(values), lambda: RunConfig(**values)):
        refused(make, list(settings_)[-1] if settings_ else section)


def test_settings_written_and_read_again_are_the_same() -> None:
    rng = np.random.default_rng(0)
    choices: dict[str, list[Any]] = {
        "dim": [2, 3], "channels": [1, 3], "anchor": [True, False], "anchor_version": [1, 2, 3, 4], "levels": [3, 10],
        "log1p": [True, False], "depth": [1, 5], "stem": [1, 4], "z_conv_stage": [None, 2],
    }  # fmt: skip
    for _ in range(400):
        values = {name: rng.choice(np.array(of, object)) for name, of in choices.items() if rng.random() < 0.4}
        if values.get("dim") == 2:
            values.pop("z_conv_stage", None)
        train = TrainConfig(patch_px=[(8, 16, 16), (16, 16)][rng.integers(2)]) if "dim" not in values else TrainConfig()
        config = RunConfig(network=NetworkConfig(**values), train=train)
        assert NetworkConfig(**config.network.model_dump(exclude_unset=True)) == config.network, values
        assert RunConfig.from_dict(yaml.safe_load(config.to_yaml())) == config, values


@pytest.mark.parametrize(
    "override",
    ["train.batch_size=5000000", "train.steps=1000000000000", "train.validation_windows=10000000",
     "network.start_filts=1000000", "network.levels=100000"],
)  # fmt: skip
def test_sizes_with_which_training_would_never_end_are_refused(override: str) -> None:
    refused(lambda: RunConfig.read(None, [override]), *override.split("="))
