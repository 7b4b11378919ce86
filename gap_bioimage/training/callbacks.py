"""What happens around the training steps: checkpoints by rename, metrics, an early end, progress."""

from __future__ import annotations

import csv
import math
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.fabric.plugins import TorchCheckpointIO
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from gap_bioimage.errors import CheckpointError
from gap_bioimage.files import replacing
from gap_bioimage.model import CHECKPOINT_KEY
from gap_bioimage.training.module import GapModule

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.config import TrainConfig

COLUMNS = ("step", "train_loss", "validation_loss", "learning_rate", "mean_input_db")
_REFRESH_S = 0.5


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either the old file or the new one, never half of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the target and rename."""
        with replacing(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class RunFolder(pl.Callback):
    """Writes best.ckpt, last.ckpt and metrics.csv after every validation, and ends runs that get no better.

    The rows of metrics.csv travel in the checkpoint, so that the file of a resumed run is the same as
    if it had never stopped.

    Parameters
    ----------
    folder
        The run's.
    fingerprint
        Of the images; a resumed run must have the same.
    init
        Record of the model that the run started from, if any.
    """

    def __init__(self, folder: Path, fingerprint: str, init: dict[str, Any] | None = None) -> None:
        self.folder, self.fingerprint, self.init = folder, fingerprint, init
        self.rows: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not go on with a run that had ended early."""
        assert isinstance(pl_module, GapModule)  # noqa: S101
        self._end_early(trainer, pl_module.config.train)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row of metrics and save."""
        assert isinstance(pl_module, GapModule)  # noqa: S101
        row = {
            "step": trainer.global_step,
            "train_loss": pl_module.train_loss(),
            "validation_loss": pl_module.validation_loss(),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "mean_input_db": pl_module.mean_input_db(),
        }
        earlier = [r["validation_loss"] for r in self.rows if not math.isnan(r["validation_loss"])]
        self.rows.append(row)
        if trainer.logger is not None:
            trainer.logger.log_metrics(row, step=trainer.global_step)
        if not earlier or row["validation_loss"] <= min(earlier):
            trainer.save_checkpoint(self.folder / "best.ckpt")
        # last, so that a kill between the two repeats this stretch and makes the same best again
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            self._write_metrics()
        self._end_early(trainer, pl_module.config.train)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what ``load_model`` and a resumed run need."""
        assert isinstance(pl_module, GapModule)  # noqa: S101
        checkpoint[CHECKPOINT_KEY] = {
            "config": pl_module.config.model_dump(mode="json"),
            "trained_range_db": list(pl_module.trained_range_db),
            "images": self.fingerprint,
            "metrics": self.rows,
            **({} if self.init is None else {"init": self.init}),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the metrics up again, if the images are the same, and count what is left to do."""
        assert isinstance(pl_module, GapModule)  # noqa: S101
        stored = checkpoint[CHECKPOINT_KEY]
        if stored["images"] != self.fingerprint:
            raise CheckpointError(
                f"the run in {self.folder} was trained on other images than given now; resume with the same images"
            )
        self.rows = list(stored["metrics"])
        # with more steps than at first, the last stretch may have been shorter than the others
        train, done = pl_module.config.train, checkpoint["global_step"]
        left = -(-train.steps // train.validate_every) - done // train.validate_every if done < train.steps else 0
        trainer.fit_loop.max_epochs = len(self.rows) + left
        if trainer.is_global_zero:
            self._write_metrics()  # a kill may have come between the checkpoint and this file

    def _end_early(self, trainer: pl.Trainer, train: TrainConfig) -> None:
        """Stop after ``patience`` validations without a better one."""
        losses = [row["validation_loss"] for row in self.rows]
        known = [loss for loss in losses if not math.isnan(loss)]
        if train.patience is not None and known:
            trainer.should_stop = len(losses) - 1 - losses.index(min(known)) >= train.patience

    def _write_metrics(self) -> None:
        with (
            replacing(self.folder / "metrics.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


class Progress(pl.Callback):
    """One bar for the whole run, with losses, input brightness and time left."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.validation_loss = math.nan
        self.shown_at = -math.inf
        self.bar = ProgressBar(
            TextColumn("training"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        if trainer.is_global_zero:
            self.task = self.bar.add_task("", total=self.config.steps, completed=trainer.global_step)
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; the loss is read from the device twice a second only."""
        finished = trainer.global_step >= self.config.steps
        if not trainer.is_global_zero or (time.monotonic() - self.shown_at < _REFRESH_S and not finished):
            return
        assert isinstance(pl_module, GapModule)  # noqa: S101
        self.shown_at = time.monotonic()
        low, high = pl_module.trained_range_db
        text = f"loss {float(pl_module.train_losses[-1]):.3f}"
        if not math.isnan(self.validation_loss):
            text += f" | held out {self.validation_loss:.3f}"
        text += f" | {low:.0f}..{high:.0f} dB"
        self.bar.update(self.task, completed=trainer.global_step, description=text)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the validation loss."""
        assert isinstance(pl_module, GapModule)  # noqa: S101
        total, count = (float(value) for value in sum(pl_module.validation))  # type: ignore[union-attr]
        self.validation_loss = total / count if count else math.nan

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar, also after Ctrl-C."""
        self.bar.stop()
