from __future__ import annotations

import csv
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from gap_bioimage.config import NetworkConfig, RunConfig, TrainConfig
from gap_bioimage.errors import CheckpointError, OutputError
from gap_bioimage.model import CHECKPOINT_KEY
from gap_bioimage.training.callbacks import COLUMNS, AtomicCheckpoints, Progress, RunFolder
from gap_bioimage.training.module import GapModule

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = RunConfig(network=NetworkConfig(depth=1, start_filts=2, levels=2), train=TrainConfig(steps=40))


class FakeTrainer:
    def __init__(self, rank: int = 0) -> None:
        self.global_step = 0
        self.is_global_zero = rank == 0
        self.world_size = 1
        self.optimizers = [SimpleNamespace(param_groups=[{"lr": 0.01}])]
        self.logger: Any = None
        self.fit_loop = SimpleNamespace(max_epochs=4)
        self.saved: list[tuple[int, str]] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append((self.global_step, path.name))


@pytest.fixture
def module() -> GapModule:
    return GapModule(CONFIG, (-20.0, 3.0))


def validate(callback: Any, trainer: Any, module: GapModule, losses: list[float]) -> None:
    for loss in losses:
        trainer.global_step += 10
        module._trainer = trainer
        module.train_losses += [torch.tensor(loss), torch.tensor(loss + 1)]
        module.input_db = torch.tensor([-7.0])
        if not math.isnan(loss):
            module.validation.append(torch.tensor([2 * loss, 2.0], dtype=torch.float64))
        callback.on_train_epoch_end(trainer, module)


def read(path: Path) -> list[dict[str, float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(tuple(row) == COLUMNS for row in rows)
    return [{name: float(value) for name, value in row.items()} for row in rows]


def test_every_validation_adds_a_row(tmp_path: Path, module: GapModule) -> None:
    validate(RunFolder(tmp_path, "x"), FakeTrainer(), module, [3.0, 2.5])
    assert read(tmp_path / "metrics.csv") == [
        dict(zip(COLUMNS, values, strict=True)) for values in ((10, 3.5, 3.0, 0.01, -7.0), (20, 3.0, 2.5, 0.01, -7.0))
    ]
    assert module.train_losses == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_best_is_saved_when_it_is_and_last_always_after_it(tmp_path: Path, module: GapModule) -> None:
    trainer = FakeTrainer()
    validate(RunFolder(tmp_path, "x"), trainer, module, [3.0, 4.0, 2.0, 2.0, math.nan, 2.5, 1.0])
    assert [step for step, name in trainer.saved if name == "best.ckpt"] == [10, 30, 40, 70]
    assert [step for step, name in trainer.saved if name == "last.ckpt"] == [10, 20, 30, 40, 50, 60, 70]
    assert trainer.saved.index((30, "best.ckpt")) < trainer.saved.index((30, "last.ckpt"))


def test_runs_that_get_no_better_end(tmp_path: Path, module: GapModule) -> None:
    module.config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"patience": 2})})
    trainer: Any = FakeTrainer()
    stopped = []
    callback = RunFolder(tmp_path, "x")
    for loss in (3.0, 2.0, 2.5, 1.5, 1.6, 1.7):
        validate(callback, trainer, module, [loss])
        stopped.append(trainer.should_stop)
    assert stopped == [False] * 5 + [True]
    again: Any = FakeTrainer()
    callback.on_train_start(again, module)  # a resumed run that had ended
    assert again.should_stop


def test_other_devices_write_no_metrics(tmp_path: Path, module: GapModule) -> None:
    trainer = FakeTrainer(rank=1)
    validate(RunFolder(tmp_path, "x"), trainer, module, [3.0])
    assert not list(tmp_path.iterdir())
    # saving is collective, so that they take part in it
    assert [name for _, name in trainer.saved] == ["best.ckpt", "last.ckpt"]


def test_rows_go_to_the_logger(tmp_path: Path, module: GapModule) -> None:
    trainer, logged = FakeTrainer(), []
    trainer.logger = SimpleNamespace(log_metrics=lambda row, step: logged.append((step, row)))
    validate(RunFolder(tmp_path, "x"), trainer, module, [3.0])
    assert logged == [(10, read(tmp_path / "metrics.csv")[0])]


def test_metrics_survive_in_the_checkpoint(tmp_path: Path, module: GapModule) -> None:
    first, trainer = RunFolder(tmp_path, "images"), FakeTrainer()
    validate(first, trainer, module, [3.0, 2.0])
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
    stored = checkpoint[CHECKPOINT_KEY]
    assert RunConfig.from_dict(stored["config"]) == CONFIG
    assert stored["trained_range_db"] == [-20.0, 3.0]
    torch.save(checkpoint | {"global_step": 20}, tmp_path / "c.pt")
    checkpoint = torch.load(tmp_path / "c.pt", weights_only=True)

    written = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").unlink()
    again = RunFolder(tmp_path, "images")
    again.on_load_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
    assert (tmp_path / "metrics.csv").read_bytes() == written
    trainer.saved.clear()
    validate(again, trainer, module, [2.5])
    assert [row["validation_loss"] for row in read(tmp_path / "metrics.csv")] == [3.0, 2.0, 2.5]
    # the best of before the stop still counts
    assert trainer.saved == [(30, "last.ckpt")]


@pytest.mark.parametrize(
    ("rows", "done", "steps", "every", "epochs"),
    [
        (2, 20, 50, 10, 5),
        (3, 25, 50, 10, 6),
        (3, 25, 25, 10, 3),
        (3, 12, 13, 5, 4),
        (1, 3, 17, 5, 5),
        (4, 20, 20, 5, 4),
    ],
)
def test_stretches_left_are_counted_from_where_the_run_stopped(
    tmp_path: Path, rows: int, done: int, steps: int, every: int, epochs: int
) -> None:
    train = CONFIG.train.model_copy(update={"steps": steps, "validate_every": every})
    module = GapModule(CONFIG.model_copy(update={"train": train}), (0.0, 1.0))
    trainer: Any = FakeTrainer()
    row = dict.fromkeys(COLUMNS, 1.0)
    stored = {"images": "x", "metrics": [row] * rows}
    RunFolder(tmp_path, "x").on_load_checkpoint(trainer, module, {CHECKPOINT_KEY: stored, "global_step": done})
    assert trainer.fit_loop.max_epochs == epochs


def test_other_images_are_refused(tmp_path: Path, module: GapModule) -> None:
    checkpoint: dict[str, Any] = {"global_step": 0}
    RunFolder(tmp_path, "images").on_save_checkpoint(FakeTrainer(), module, checkpoint)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="other images than given now; resume with the same images"):
        RunFolder(tmp_path, "others").on_load_checkpoint(FakeTrainer(), module, checkpoint)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_checkpoints_replace_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpoints()
    for value in (1, 2):
        writer.save_checkpoint({"value": value}, path)
        assert torch.load(path, weights_only=True) == {"value": value}
    with pytest.raises(Exception, match="pickle"):
        writer.save_checkpoint({"value": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"value": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoints_into_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="its folder does not exist"):
        AtomicCheckpoints().save_checkpoint({}, tmp_path / "none" / "last.ckpt")


def test_progress_tells_losses_and_brightness(module: GapModule) -> None:
    trainer: Any = FakeTrainer()
    progress = Progress(CONFIG.train)
    progress.bar.disable = True
    trainer.global_step = 15
    progress.on_train_start(trainer, module)
    task = progress.bar.tasks[0]
    assert (task.completed, task.total) == (15, 40)
    module.train_losses.append(torch.tensor(4.25))
    trainer.global_step = 16
    progress.on_train_batch_end(trainer, module, None, None, 0)
    assert task.completed == 16
    assert task.description == "loss 4.250 | -20..3 dB"
    module.validation = [torch.tensor([6.0, 2.0]), torch.tensor([1.0, 2.0])]
    progress.on_validation_end(trainer, module)
    trainer.global_step = 17
    progress.on_train_batch_end(trainer, module, None, None, 0)
    assert task.completed == 16  # shown a moment ago: the loss is not read again
    progress.shown_at = -math.inf
    progress.on_train_batch_end(trainer, module, None, None, 0)
    assert task.description == "loss 4.250 | held out 1.750 | -20..3 dB"
    module.validation = [torch.zeros(2)]
    progress.on_validation_end(trainer, module)
    assert math.isnan(progress.validation_loss)
    progress.teardown(trainer, module, "fit")
    assert not progress.bar.live.is_started


def test_progress_of_other_devices_is_not_shown(module: GapModule) -> None:
    trainer: Any = FakeTrainer(rank=1)
    progress = Progress(CONFIG.train)
    progress.on_train_start(trainer, module)
    progress.on_train_batch_end(trainer, module, None, None, 0)
    progress.teardown(trainer, module, "fit")
    assert not progress.bar.tasks
