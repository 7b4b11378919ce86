import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from command_line import python
from kill_and_resume import MOMENTS
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_flatten

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera, NetworkConfig, RunConfig, ThinningConfig, TrainConfig
from gap_bioimage.errors import AxesError, CheckpointError, ConfigError, NotPhotonCountsError
from gap_bioimage.model import Model, load_model
from gap_bioimage.training.fit import train
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.patches import PairBatches
from gap_bioimage.training.run_folder import RunFolder
from gap_bioimage.training.run_folder import read_metrics as metrics

FILES = set("config.yaml best.ckpt last.ckpt metrics.csv loss.png preview.png example.npy held_out.npy".split())
SETTINGS: dict[str, Any] = {
    "steps": 12, "validate_every": 5, "batch_size": 4, "patch_px": (16, 16), "warmup_steps": 3, "validation_windows": 8,
    "learning_rate": 3e-3,
}  # fmt: skip


def config_of(dim: int = 2, thinning: ThinningConfig | None = None, **settings: Any) -> RunConfig:
    network = NetworkConfig(dim=dim, depth=2, start_filts=4, levels=3)
    train = TrainConfig(**{**SETTINGS, **settings})
    return RunConfig(network=network, thinning=thinning or ThinningConfig(), train=train)


def stripes(dims: str = "yx", seed: int = 0, frames: int = 2) -> xr.DataArray:
    sizes = {"t": frames, "c": 2, "z": 8, "y": 64, "x": 48}
    rate = np.where(np.arange(sizes["x"]) // 4 % 2, 12.0, 0.2)
    counts = np.random.default_rng(seed).poisson(rate, [sizes[axis] for axis in dims])
    return xr.DataArray(counts.astype(np.uint16), dims=tuple(dims))


def run(out: Path, images: Any = None, config: RunConfig | TrainConfig | None = None, **more: Any) -> Model:
    given = stripes() if images is None else images
    return train(given, out, config or config_of(), progress=False, device="cpu", **more)


@contextmanager
def interrupted_at(position: int) -> Iterator[None]:
    """Let Ctrl-C be pressed in the step of that number."""
    step = GapModule.training_step

    def interrupted(self: GapModule, *arguments: Any) -> Any:
        if self.global_step == position:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of scripts ignore the signal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GapModule, "training_step", interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)


def assert_same(a: Any, b: Any) -> None:
    (mine, structure), (others, other_structure) = tree_flatten(a), tree_flatten(b)
    assert structure == other_structure
    for one, other in zip(mine, others, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other or one != one


def assert_same_run(a: Path, b: Path) -> None:
    assert {path.name for path in a.iterdir()} == {path.name for path in b.iterdir()} == FILES
    assert_same(repeatable(metrics(a)), repeatable(metrics(b)))
    for name in ("config.yaml", "example.npy", "held_out.npy"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        for checkpoint in (first, second):
            checkpoint["gap_bioimage"]["metrics"] = repeatable(checkpoint["gap_bioimage"]["metrics"])
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "gap_bioimage"):
            assert_same(first[part], second[part])


def repeatable(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "waiting_share"} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"
    run(folder)
    return folder


def test_a_run_leaves_its_files_and_nothing_else(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    rows = metrics(finished)
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    best = torch.load(finished / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(rows, key=lambda row: row["validation_loss"])["step"]
    assert torch.load(finished / "last.ckpt", weights_only=True)["global_step"] == 12


def test_stored_settings_are_resolved_and_the_models(finished: Path) -> None:
    stored = RunConfig.read(finished / "config.yaml")
    held_out, example = np.load(finished / "held_out.npy"), np.load(finished / "example.npy")
    counts = stripes().values
    # a tenth of the longest axis, at least 8 pixels, from its end
    np.testing.assert_array_equal(held_out, counts[None, -8:])
    np.testing.assert_array_equal(example, counts[None])
    brightest = stored.thinning.max_db
    assert brightest is not None
    # no window is all bright: half of the stripes, 6.1 photons per pixel
    assert 10 * math.log10(5.5) < brightest < 10 * math.log10(8)
    assert stored == config_of(thinning=ThinningConfig(min_db=round(brightest - 40, 2), max_db=brightest))
    model = load_model(finished)
    assert model.trained_range_db == (round(brightest - 40, 2), brightest)
    assert model.config == stored.network


def test_loss_falls_to_the_entropy_of_an_easy_image(tmp_path: Path) -> None:
    config = config_of(thinning=ThinningConfig(min_db=0), steps=200, validate_every=40, learning_rate=1e-2)
    model = run(tmp_path / "run", config=config)
    losses = [row["validation_loss"] for row in metrics(tmp_path / "run")]
    # held-out windows are 8 x 16 pixels, half of them bright; some 3000 photons tell their loss to 0.01
    rate = np.repeat([0.2, 12.0], 64)
    share = rate / rate.sum()
    assert losses[-1] < losses[0] < math.log(128)
    assert losses[-1] == pytest.approx(-np.sum(share * np.log(share)), abs=0.05)
    counts = torch.from_numpy(stripes(seed=9).values.astype(np.float32))[None, None]
    predicted = torch.softmax(model.network(counts).flatten(), 0).reshape(64, 48)
    assert float(predicted[:, np.arange(48) // 4 % 2 == 1].sum()) == pytest.approx(12 / 12.2, abs=0.02)


@pytest.mark.parametrize(
    ("change", "images", "error"),
    [
        ({"seed": 3}, stripes(), ConfigError),
        ({"steps": 11}, stripes(), ConfigError),
        (None, stripes(seed=1), CheckpointError),
        (None, stripes("cyx"), ConfigError),
    ],
)
def test_resuming_with_something_else_is_refused(
    finished: Path, change: dict[str, Any] | None, images: Any, error: type[Exception]
) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(error):
        train(images, finished, config_of(**change) if change else None, resume=True, progress=False, device="cpu")
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("more", [{"max_db": 50.0}, {"max_db": None}])
def test_the_settings_of_a_run_resume_it_though_the_images_decided_some(tmp_path: Path, more: dict[str, Any]) -> None:
    config = config_of(thinning=ThinningConfig(**more), steps=2, patch_px=None)
    ranges = [run(tmp_path / "run", config=config, resume=resume).trained_range_db for resume in (False, True)]
    assert ranges[0] == ranges[1] and ranges[0][1] < 10


def test_a_run_is_not_resumed_with_another_camera(tmp_path: Path) -> None:
    config, camera = config_of(steps=1, learning_rate=1e-3), Camera(gain=0.5, offset=0.0)
    with pytest.raises(ConfigError, match="yaml"):  # numbers alone tell no maps
        run(tmp_path / "camera", config=config, camera=camera.model_copy(update={"maps": "camera_maps.tif"}))
    run(tmp_path / "camera", config=config, camera=camera)
    assert run(tmp_path / "camera", config=config, camera=camera, resume=True).camera == Detector(camera)
    run(tmp_path / "counts", config=config)
    for name in ("camera", "counts"):
        before = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        with pytest.raises(ConfigError):
            run(tmp_path / name, config=config, camera=Camera(gain=0.4, offset=0.0), resume=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == before


def test_resuming_a_finished_run_changes_nothing_and_makes_again_what_a_kill_lost(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    model = train(stripes(), finished, resume=True, progress=False, device="cpu")
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert_same(dict(model.network.state_dict()), dict(load_model(finished).network.state_dict()))
    for lost in ("metrics.csv", "loss.png", "preview.png"):
        (finished / lost).unlink()
    (finished / ".last.tmp-01234567.ckpt").write_bytes(b"half of a checkpoint")
    run(finished, resume=True)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("steps", [(12, 23), (3, 17)])
def test_more_steps_use_every_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, int]
) -> None:
    seen: dict[int, list[int]] = {}
    draw = PairBatches.__getitem__

    def recorded(self: PairBatches, number: int) -> Any:
        seen.setdefault(self.rank, []).append(number)
        return draw(self, number)

    monkeypatch.setattr(PairBatches, "__getitem__", recorded)
    run(tmp_path / "run", config=config_of(steps=steps[0]))
    assert seen.pop(0) == list(range(steps[0]))
    run(tmp_path / "run", config=config_of(steps=steps[1]), resume=True)
    assert seen.pop(0) == list(range(*steps))
    assert [row["step"] for row in metrics(tmp_path / "run")][-1] == steps[1]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == steps[1]
    # validation sees the same two batches each time, and no random numbers of training
    [(rank, numbers)] = seen.items()
    assert rank >= 1_000_000
    assert numbers == [0, 1] * len(metrics(tmp_path / "run"))


@pytest.mark.parametrize(
    ("images", "config", "error", "told"),
    [
        ([], config_of(), AxesError, "no image"),
        (np.ones((4, 9, 9)), config_of(), AxesError, "dims='zyx'"),
        ([torch.ones(4, 9, 9)], config_of(), AxesError, "dims='zyx'"),
        (stripes(), config_of(dim=3, patch_px=(4, 8, 8)), AxesError, "expected z"),
        (stripes()[:12, :12], config_of(), AxesError, "too small"),
        (0 * stripes(), config_of(), NotPhotonCountsError, "no photon"),
        (stripes() + 0.5, config_of(), NotPhotonCountsError, "fractions"),
        (stripes().astype(np.int32) - 1, config_of(), NotPhotonCountsError, "-1"),
        (stripes(), config_of(thinning=ThinningConfig(min_db=15)), ConfigError, "thinning.min_db"),
        (stripes(), config_of(thinning=ThinningConfig(ceiling=8)), NotPhotonCountsError, "thinning.ceiling"),
        (stripes(), RunConfig(network={"z_conv_stage": 1}, train=SETTINGS), ConfigError, "dim 3"),
        (stripes(), RunConfig(network={"channels": 2}, train=SETTINGS), ConfigError, "is 2"),
    ],
)
def test_what_cannot_be_trained_on_leaves_no_folder(
    tmp_path: Path, images: Any, config: RunConfig, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        run(tmp_path / "run", images, config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("dims", "dim", "patch"), [("tczyx", 2, (16, 12)), ("czyx", 3, (4, 16, 16))])
def test_channels_and_volumes(tmp_path: Path, dims: str, dim: int, patch: tuple[int, ...]) -> None:
    config = config_of(dim, steps=4, validate_every=2, patch_px=patch, ema_decay=0.5, total_weight=0.1)
    model = run(tmp_path / "run", stripes(dims), config)
    assert model.config == config.network.model_copy(update={"channels": 2})
    assert torch.isfinite(model.network(torch.ones((1, 2, *(5, 9, 7)[-dim:])))).all()
    assert np.load(tmp_path / "run" / "example.npy").shape[0] == 2


def test_sections_can_be_given_one_by_one(tmp_path: Path, finished: Path) -> None:
    config = config_of()
    sections: dict[str, Any] = {"network": config.network, "thinning": config.thinning}
    run(tmp_path / "run", [stripes()], config.train, **sections, resume=True)  # where nothing is, a run is started
    assert_same_run(tmp_path / "run", finished)
    both = RunConfig(network=NetworkConfig(depth=1, start_filts=3), train=config.train)
    assert run(tmp_path / "both", [stripes()], both, network=NetworkConfig(depth=2)).config.depth == 2
    assert RunConfig.read(tmp_path / "both" / "config.yaml").network.start_filts == 3
    with pytest.raises(ConfigError):
        run(tmp_path / "other", config={"stpes": 3})  # type: ignore[arg-type]


def test_several_images_and_a_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [stripes(seed=seed)[: 40 + seed] for seed in range(9)]
    train(images, tmp_path / "run", config_of(steps=4), device="cpu")
    # one of nine images is held out whole
    assert np.load(tmp_path / "run" / "held_out.npy").shape[1:] in [image.shape for image in images]
    assert "training" in capsys.readouterr().out


def test_repeats_of_a_still_scene_train_and_resume(tmp_path: Path) -> None:
    movie, config = stripes("tyx", frames=6).values, config_of(steps=8, validate_every=8, learning_rate=1e-2)
    model = run(tmp_path / "run", movie, config, purpose="denoise", dims="tyx", repeats="t")
    stored = RunConfig.read(tmp_path / "run" / "config.yaml")
    assert (stored.train.purpose, stored.train.repeats) == ("denoise", "t")
    assert model.trained_range_db[1] - model.trained_range_db[0] == pytest.approx(20)
    run(tmp_path / "run", movie, TrainConfig(steps=24), dims="tyx", resume=True)
    first, *_, last = metrics(tmp_path / "run")
    assert last["step"] == 24 and last["validation_loss"] < first["validation_loss"]
    assert np.load(tmp_path / "run" / "example.npy").shape == (1, 64, 48)
    with pytest.raises(ConfigError):
        run(tmp_path / "run", movie, None, dims="tyx", purpose="generate", resume=True)


def test_tensorboard_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path / "run", config=config_of(tensorboard=True))
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = python(Path(__file__).with_name("kill_and_resume.py"), whole, killed)
    assert result.code == 0, result.err
    ends = [line for line in result.out.splitlines() if line in ("0", "-9")]
    assert ends == ["0", *["-9"] * len(MOMENTS), "0"], result
    assert_same_run(whole, killed)


DISTRIBUTED = """
import sys
from test_training_fit import config_of, stripes
from gap_bioimage.training.fit import train
if __name__ == "__main__":
    options = {"progress": False, "device": "cpu", "devices": 2, "strategy": "ddp"}
    train(stripes(), sys.argv[1], config_of(steps=6), **options)
    print("trained")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs gloo")
def test_two_devices_share_a_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(DISTRIBUTED)
    result = python(tmp_path / "script.py", tmp_path / "run")
    assert result.code == 0, result.err
    assert result.out.count("trained") == 2
    assert metrics(tmp_path / "run")[-1]["step"] == 6
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("owner", "method"),
    [(GapModule, "training_step"), (CombinedLoader, "__iter__"), (RunFolder, "_write_metrics")],
    ids=["in a step", "between loaders", "while saving"],
)
def test_ctrl_c_is_a_keyboard_interrupt_and_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(owner, method, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("device", "devices"), [("warp", 1), ("tpu", 1), ("cpu", "x")])
def test_a_device_that_is_not_there_leaves_nothing_behind(tmp_path: Path, device: str, devices: int | str) -> None:
    with pytest.raises(ConfigError, match=f"--device {device} --devices {devices}"):
        train(stripes(), tmp_path / "run", config_of(), progress=False, device=device, devices=devices)
    assert not (tmp_path / "run").exists()
