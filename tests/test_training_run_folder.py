"""The folder of a run: made once, resumed by the same settings and images, maybe from the weights of another model."""

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fixtures_model import random_model
from original_gap import HYPER, lightning_checkpoint, original_gap
from test_training_fit import FILES, SETTINGS, assert_same, assert_same_run, config_of, interrupted_at, run, stripes

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera, NetworkConfig, RunConfig, TrainConfig
from gap_bioimage.errors import CheckpointError, ConfigError, CountsWarning, NetworkWarning, OutputError
from gap_bioimage.model import Model, load_model
from gap_bioimage.training import run_folder
from gap_bioimage.training.fit import train
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.patches import as_stacks, split_held_out
from gap_bioimage.training.run_folder import RunFolder, weights_sha256

CONFIG = RunConfig(network=NetworkConfig(depth=1, start_filts=2, levels=2), train=TrainConfig(steps=40))


def test_folders_that_are_no_run_are_not_resumed_or_made_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="no training run to resume"):
        run(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match="not a directory"):
        run(tmp_path / "notes.txt" / "run")


def test_large_images_are_cut_for_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(run_folder._PIECE_PX, 2, (20, 100))
    run(tmp_path / "run", config=config_of(steps=1))
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "example.npy")[0], stripes().values[22:42])


def test_a_cut_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path, config=config_of(steps=2))
    last = tmp_path / "last.ckpt"
    assert run_folder.checkpoint_in(tmp_path, resume=True) == last
    assert run_folder.checkpoint_in(tmp_path, resume=False) is None
    whole = last.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:10], b"", (tmp_path / "held_out.npy").read_bytes()):
        last.write_bytes(part)
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            run(tmp_path, config=config_of(steps=4), resume=True)
    content = torch.load(io.BytesIO(whole), weights_only=True)
    for weights in ({key: of for key, of in content.items() if key != "optimizer_states"}, content["state_dict"]):
        torch.save(weights, last)  # from which no training can go on
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            run(tmp_path, config=config_of(steps=4), resume=True)
    last.write_bytes(whole)
    changed = (tmp_path / "config.yaml").read_text().replace("start_filts: 4", "start_filts: 5")
    (tmp_path / "config.yaml").write_text(changed)
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        run(tmp_path, config=TrainConfig(steps=4), resume=True)


def test_fingerprints_tell_images_apart() -> None:
    def of(*images: xr.DataArray) -> str:
        return run_folder.fingerprint(split_held_out(as_stacks(list(images), 2), 0.1, 0))

    image = stripes()
    assert of(image) == of(image.copy())
    assert len({of(image), of(image, image), of(image + 1), of(image.astype(np.int32)), of(stripes(seed=1))}) == 5


# What is written after each validation


class FakeTrainer:
    is_global_zero, logger, should_stop = True, None, False
    optimizers = (SimpleNamespace(param_groups=[{"lr": 0.01}]),)
    train_dataloader = SimpleNamespace(waiting_share=0.25)

    def __init__(self) -> None:
        self.global_step = 0
        self.saved: list[tuple[int, str]] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append((self.global_step, path.name))


@pytest.fixture
def module() -> GapModule:
    return GapModule(CONFIG, (-20.0, 3.0))


def validate(callback: Any, trainer: Any, module: GapModule, losses: list[float]) -> None:
    for loss in losses:
        trainer.global_step += 10
        module.validation_loss = lambda loss=loss: loss  # type: ignore[method-assign, misc]
        callback.on_train_epoch_end(trainer, module)


def test_best_is_saved_when_it_is_and_last_always_after_it(tmp_path: Path, module: GapModule) -> None:
    trainer = FakeTrainer()
    validate(RunFolder(tmp_path, "x"), trainer, module, [3.0, 4.0, 2.0, 2.0, math.nan, 2.5, 1.0])
    assert [step for step, name in trainer.saved if name == "best.ckpt"] == [10, 30, 40, 70]
    assert [step for step, name in trainer.saved if name == "last.ckpt"] == [10, 20, 30, 40, 50, 60, 70]
    assert trainer.saved.index((30, "best.ckpt")) < trainer.saved.index((30, "last.ckpt"))
    with pytest.warns(CountsWarning):  # nothing tells which is the best
        validate(RunFolder(tmp_path, "x"), trainer, module, [math.nan])


@pytest.mark.parametrize("losses", [(3.0, 2.0, 2.5, 1.5, 1.6, 1.7), (1.0, 1.5, 1.6, 1.7)])
def test_runs_that_get_no_better_end_in_their_second_half(
    tmp_path: Path, module: GapModule, losses: tuple[float, ...]
) -> None:
    module.config = RunConfig(network=CONFIG.network, train=TrainConfig(steps=40, patience=2))
    trainer, stopped, callback = FakeTrainer(), [], RunFolder(tmp_path, "x")
    for loss in losses:  # one each 10 of 40 steps
        validate(callback, trainer, module, [loss])
        stopped.append(trainer.should_stop)
    assert stopped == [False] * (len(losses) - 1) + [True]
    again: Any = FakeTrainer()
    callback.on_train_start(again, module)  # a resumed run that had ended
    assert again.should_stop


# Starting from the weights of another model


def begin(out: Path, init: Any, images: Any = None, **train_settings: Any) -> Model:
    settings = TrainConfig(**{**SETTINGS, "steps": 6, **train_settings})
    given = stripes() if images is None else images
    return train(given, out, settings, init=init, progress=False, device="cpu")


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Weights of the network, and of its average, before the first step."""
    seen: list[dict[str, torch.Tensor]] = []
    step = GapModule.training_step

    def recorded(self: GapModule, *arguments: Any) -> Any:
        if not seen:
            networks = [self.network, *([self.average.module] if self.average is not None else [])]
            seen.extend({k: v.clone() for k, v in network.state_dict().items()} for network in networks)
        return step(self, *arguments)

    monkeypatch.setattr(GapModule, "training_step", recorded)
    return seen


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "original.ckpt"
    path.parent.mkdir()
    torch.save(lightning_checkpoint(original_gap(), HYPER), path)
    return path


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_training_starts_from_the_original(
    tmp_path: Path, original: Path, first_weights: list[Any], ema_decay: float | None
) -> None:
    before = load_model(original)
    model = begin(tmp_path / "run", original, ema_decay=ema_decay)
    assert len(first_weights) == (1 if ema_decay is None else 2)
    for weights in first_weights:
        assert_same(weights, dict(before.network.state_dict()))
    assert model.config == before.config == NetworkConfig(**HYPER, log1p=False)
    assert weights_sha256(model.network) != weights_sha256(before.network)
    # of the new images, not of what the model had seen
    assert model.trained_range_db[1] != before.trained_range_db[1] == 10
    assert model.history.init == {
        "name": "original.ckpt",
        "origin": "original GAP checkpoint",
        "trained_range_db": [-40.0, 10.0],
        "sha256": weights_sha256(before.network),
    }
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES | {"init.ckpt"}
    assert RunConfig.read(tmp_path / "run" / "config.yaml").network == model.config
    kept = load_model(tmp_path / "run" / "init.ckpt")
    assert_same(dict(kept.network.state_dict()), dict(before.network.state_dict()))
    assert (kept.trained_range_db, kept.history.init) == (before.trained_range_db, model.history.init)


def test_models_in_memory_zips_runs_and_their_checkpoints_start_runs(
    tmp_path: Path, unchecked_zip_2d: Path, first_weights: list[Any]
) -> None:
    first = begin(tmp_path / "first", random_model(levels=3), steps=1)
    first_weights.clear()
    run_, names = tmp_path / "first", ("first/best.ckpt", "best.ckpt", "first/best.ckpt", "model.zip")
    for name, init in zip(names, (str(run_), run_ / "best.ckpt", first, unchecked_zip_2d), strict=True):
        model = init if isinstance(init, Model) else load_model(init)
        second = begin(tmp_path / f"from {name} {type(init)}", init, steps=1)
        assert_same(first_weights.pop(), dict(model.network.state_dict()))
        assert (second.history.init["name"], second.history.init["sha256"]) == (name, weights_sha256(model.network))


def test_settings_of_the_network_that_contradict_are_refused(tmp_path: Path, original: Path) -> None:
    for name, value, patch in (("depth", 4, (16, 16)), ("log1p", True, (16, 16)), ("dim", 3, (4, 16, 16))):
        config = RunConfig(network=NetworkConfig(**{name: value}), train=TrainConfig(**{**SETTINGS, "patch_px": patch}))
        with pytest.raises(ConfigError, match=rf"network\.{name} is"):
            run(tmp_path / "run", config=config, init=original)
    with pytest.raises(ConfigError, match="patch_px"):  # windows of a volume for a network of planes
        begin(tmp_path / "run", original, patch_px=(4, 16, 16))
    with pytest.raises(ConfigError, match=r"images have 2 channels, .* original.ckpt, .*has 1"):
        begin(tmp_path / "run", original, stripes("cyx"))
    with pytest.raises(CheckpointError, match="does not exist"):
        begin(tmp_path / "run", tmp_path / "nothing.ckpt")
    with pytest.raises(ConfigError, match="expected a Model"):
        begin(tmp_path / "run", torch.nn.Linear(1, 1))
    assert not (tmp_path / "run").exists()
    # those that agree may be given
    agreeing = RunConfig(network=NetworkConfig(dim=2, depth=3), train=TrainConfig(**{**SETTINGS, "steps": 1}))
    assert run(tmp_path / "run", config=agreeing, init=original).config.levels == 3


@pytest.mark.parametrize(("size", "told"), [("small", True), ("large", True), (None, False)])
def test_a_size_does_not_change_the_network_to_start_from(
    tmp_path: Path, original: Path, recwarn: pytest.WarningsRecorder, size: str | None, told: bool
) -> None:
    model = begin(tmp_path / "run", original, steps=1, size=size)  # which is a network of no such size
    assert model.config == load_model(original).config
    assert any(warning.category is NetworkWarning for warning in recwarn) == told


def test_an_interrupted_run_goes_on_from_the_same_weights(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_training_fit.FILES", FILES | {"init.ckpt"})
    options: dict[str, Any] = {"steps": 8, "validate_every": 3}
    begin(tmp_path / "whole", original, **options)
    for position in (4, 2, 0):  # after, just before and before the first validation
        with interrupted_at(position), pytest.raises(KeyboardInterrupt):
            begin(tmp_path / f"run{position}", original, **options)
        last = torch.load(tmp_path / f"run{position}" / "last.ckpt", weights_only=True)
        assert last["global_step"] == position + 1
        init = original if position else original.unlink()  # the run has its own copy
        resumed = train(stripes(), tmp_path / f"run{position}", init=init, resume=True, progress=False, device="cpu")
        assert_same_run(tmp_path / "whole", tmp_path / f"run{position}")
        assert resumed.history.init["name"] == "original.ckpt"


def test_a_run_is_not_resumed_from_other_weights(tmp_path: Path, original: Path) -> None:
    begin(tmp_path / "run", original, steps=1)
    with pytest.raises(ConfigError, match="original"):
        run(tmp_path / "run", config=None, init=random_model(levels=3), resume=True)
    plain = run(tmp_path / "plain", config=config_of(steps=1))
    assert plain.history.init is None
    with pytest.raises(ConfigError, match="no other model"):
        run(tmp_path / "plain", config=config_of(steps=1), init=original, resume=True)


def test_a_kill_before_the_run_is_one_leaves_nothing_to_resume_wrongly(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(RunConfig, "to_yaml")
        with pytest.raises(AttributeError):
            begin(tmp_path / "run", original)
    with pytest.raises(CheckpointError, match="no training run to resume"):
        run(tmp_path / "run", resume=True)
    begin(tmp_path / "run", original, steps=1)


def test_the_settings_of_a_run_with_camera_maps_name_them(tmp_path: Path) -> None:
    config, offset = config_of(steps=1), np.arange(64 * 48, dtype=np.float32).reshape(64, 48) / 1e4
    detector = Detector(Camera(gain=1.0, offset=0.0), PixelMaps(offset, np.full((64, 48), 0.1, np.float32)))
    model = run(tmp_path / "run", config=config, camera=detector)
    again = RunConfig.read(tmp_path / "run" / "config.yaml")
    with pytest.raises(ConfigError, match="maps"):  # not silently without them
        run(tmp_path / "again", config=again)
    repeated = run(tmp_path / "again", config=again, camera=tmp_path / "run" / "camera.yaml")
    assert_same(model.network.state_dict(), repeated.network.state_dict())
    run(tmp_path / "run", config=again, resume=True)
