from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from fixtures_model import CARD, random_model
from original_gap import HYPER, lightning_checkpoint, original_gap
from test_training_fit import FILES, SETTINGS, assert_same, assert_same_run, config_of, run, stripes

from gap_bioimage.config import NetworkConfig, RunConfig, TrainConfig
from gap_bioimage.errors import CheckpointError, ConfigError
from gap_bioimage.model import load_model
from gap_bioimage.training.fit import train
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.patches import PairBatches
from gap_bioimage.training.start import start_of, weights_sha256

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.model import Model
    from gap_bioimage.network import UNet


def begin(out: Path, init: Any, images: Any = None, **train_settings: Any) -> Model:
    settings = TrainConfig(**{**SETTINGS, "steps": 6, **train_settings})
    given = stripes() if images is None else images
    return train(given, out, settings, init=init, progress=False, device="cpu")


def assert_same_weights(a: UNet, b: UNet) -> None:
    assert_same(dict(a.state_dict()), dict(b.state_dict()))


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
    stored = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert stored.network == model.config
    assert yaml.safe_load(stored.to_yaml()) == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    kept = load_model(tmp_path / "run" / "init.ckpt")
    assert_same_weights(kept.network, before.network)
    assert kept.trained_range_db == before.trained_range_db
    assert kept.history.init == model.history.init


def test_models_in_memory_runs_and_their_checkpoints_start_runs(tmp_path: Path, first_weights: list[Any]) -> None:
    model = random_model(levels=3)
    first = begin(tmp_path / "first", model)
    assert_same(first_weights.pop(), dict(model.network.state_dict()))
    for number, init in enumerate((str(tmp_path / "first"), tmp_path / "first" / "best.ckpt", first)):
        second = begin(tmp_path / f"second{number}", init)
        assert_same(first_weights.pop(), dict(first.network.state_dict()))
        assert second.history.init["name"] == ("best.ckpt" if number == 1 else "first/best.ckpt")
        assert second.history.init["sha256"] == weights_sha256(first.network)


def test_volumes_start_from_3d_models(tmp_path: Path) -> None:
    init = random_model(dim=3, levels=2, z_conv_stage=1, start_filts=2)
    model = begin(tmp_path / "run", init, stripes("zyx"), patch_px=(4, 8, 8), steps=1)
    assert model.config == init.config


@pytest.mark.parametrize("kind", ["denoise", "sample", "sample-hook"])
def test_training_goes_on_from_zips_of_every_kind(
    tmp_path: Path, kind: Any, first_weights: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gap_bioimage.exporting.archive import export
    from gap_bioimage.validation import report

    monkeypatch.setattr(report, "validate", lambda path, **_: report.Report(str(path), (), description_only=True))
    (tmp_path / "card.yaml").write_text(CARD)
    model = random_model(levels=3, merge_mode="concat", trained_range_db=(-30.0, 30.0))
    options: dict[str, Any] = {"n_samples": 2, "n_steps": 2}
    export(model, tmp_path / "model.zip", tmp_path / "card.yaml", kind, test_image=stripes(), **options)
    assert_same_weights(load_model(tmp_path / "model.zip").network, model.network)
    trained = begin(tmp_path / "run", tmp_path / "model.zip", steps=1)
    assert_same(first_weights[0], dict(model.network.state_dict()))
    assert trained.config == model.config
    assert trained.history.init["origin"] == "bioimage.io zip"


def test_settings_of_the_network_that_contradict_are_refused(tmp_path: Path, original: Path) -> None:
    for network, told in (
        ({"depth": 4}, "network.depth is 4, but the model to start from, original.ckpt, has 3; leave it out, or"),
        ({"log1p": True}, "network.log1p is True, .* has False"),
        ({"dim": 3}, "network.dim is 3, .* has 2"),
    ):
        patch = (16, 16) if "dim" not in network else (4, 16, 16)
        config = RunConfig(network=NetworkConfig(**network), train=TrainConfig(**{**SETTINGS, "patch_px": patch}))
        with pytest.raises(ConfigError, match=told):
            run(tmp_path / "run", config=config, init=original)
    with pytest.raises(ConfigError, match=r"images have 2 channels, .* original.ckpt, has 1"):
        begin(tmp_path / "run", original, stripes("cyx"))
    with pytest.raises(CheckpointError, match="does not exist"):
        begin(tmp_path / "run", tmp_path / "nothing.ckpt")
    assert not (tmp_path / "run").exists()
    # those that agree may be given
    agreeing = RunConfig(network=NetworkConfig(dim=2, depth=3), train=TrainConfig(**{**SETTINGS, "steps": 1}))
    assert run(tmp_path / "run", config=agreeing, init=original).config.levels == 3


@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize("again", [True, False])
def test_an_interrupted_run_goes_on_from_the_same_weights(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch, position: int, again: bool
) -> None:
    options: dict[str, Any] = {"steps": 8, "validate_every": 3}
    whole = tmp_path / "whole"
    begin(whole, original, **options)
    read = PairBatches.__getitem__

    def interrupted(self: PairBatches, number: int) -> Any:
        if self.rank == 0 and number == position:
            raise KeyboardInterrupt
        return read(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(PairBatches, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path / "run", original, **options)
    if not again:
        original.unlink()  # the run has its own copy
    resumed = train(
        stripes(), tmp_path / "run", init=original if again else None, resume=True, progress=False, device="cpu"
    )
    monkeypatch.setattr("test_training_fit.FILES", FILES | {"init.ckpt"})
    assert_same_run(whole, tmp_path / "run")
    assert resumed.history.init["name"] == "original.ckpt"


def test_a_run_is_not_resumed_from_other_weights(tmp_path: Path, original: Path) -> None:
    begin(tmp_path / "run", original, steps=1)
    with pytest.raises(ConfigError, match="original"):
        run(tmp_path / "run", config=None, init=random_model(levels=3), resume=True)
    run(tmp_path / "plain", config=config_of(steps=1))
    with pytest.raises(ConfigError, match="no other model"):
        run(tmp_path / "plain", config=config_of(steps=1), init=original, resume=True)


def test_a_run_without_a_start_keeps_its_files(tmp_path: Path) -> None:
    assert start_of(None, tmp_path, resume=True) is None
    model = run(tmp_path / "run", config=config_of(steps=1))
    assert model.history.init is None
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_kill_before_the_run_is_one_leaves_nothing_to_resume_wrongly(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunConfig, "to_yaml", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path / "run", original)
    with pytest.raises(CheckpointError, match="no training run to resume"):
        run(tmp_path / "run", resume=True)
    begin(tmp_path / "run", original, steps=1)


def test_the_hash_is_of_names_and_values_alone() -> None:
    network = random_model().network
    assert weights_sha256(network) == weights_sha256(random_model().network)
    assert weights_sha256(network) != weights_sha256(random_model(seed=1).network)
    assert weights_sha256(network) == weights_sha256(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
