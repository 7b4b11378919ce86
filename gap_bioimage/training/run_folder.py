"""The folder of a training run, and exact resumption of interrupted runs.

``RUN/`` holds config.yaml, best.ckpt, last.ckpt, metrics.csv, loss.png and preview.png; camera.yaml if the images have
a camera; init.ckpt if the run started from another model; and two pieces of the counts for export: example.npy for test
tensors and cover, held_out.npy for measurements.
"""

import csv
import hashlib
import logging
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from gap_bioimage.camera.camera import Detector, write_camera
from gap_bioimage.config import RunConfig, TrainConfig, differences
from gap_bioimage.errors import CheckpointError, ConfigError, CountsWarning, NetworkWarning, OutputError
from gap_bioimage.files import output_errors, replacing
from gap_bioimage.foreign import network_config, read_weights
from gap_bioimage.io.image import middle_slice
from gap_bioimage.model import CAMERA_FILE, CHECKPOINT_KEY, History, Model, check_model, load_model
from gap_bioimage.network import UNet
from gap_bioimage.pictures import draw_grid, in_rows, new_figure, save_figure
from gap_bioimage.training.choices import SIZES
from gap_bioimage.training.patches import Split, Stack

COLUMNS = ("step", "train_loss", "validation_loss", "learning_rate", "mean_input_db", "waiting_share")
INIT = "init.ckpt"
log = logging.getLogger(__name__)
_PIECE_PX = {2: (512, 512), 3: (32, 128, 128)}  # largest piece of an image stored for export


def start_of(init: Model | str | Path | None, run: Path, resume: bool) -> Model | None:
    """Return the model that a run starts from or, if resumed, started from; None for a new network.

    Its ``history.init`` records name, origin, trained range and the sha256 of the weights.
    """
    initial = None
    if init is not None:
        check_model(model := load_model(init) if isinstance(init, (str, Path)) else init)
        # only the part of the path that is meaningful on other machines
        name = "/".join(model.source.parts[-2:] if model.origin == "run" else model.source.parts[-1:])
        record = {"name": name, "origin": model.origin, "trained_range_db": list(model.trained_range_db)}
        initial = replace(model, history=History(init={**record, "sha256": weights_sha256(model.network)}))
    if not resume:
        return initial
    if not (run / "config.yaml").exists():
        log.info("%s holds no run to resume yet: a new one starts", run)
        return initial
    stored = load_model(run / INIT) if (run / INIT).exists() else None
    if initial is not None and (stored is None or init_of(initial)["sha256"] != init_of(stored)["sha256"]):
        origin = "no other model" if stored is None else f"the weights of {init_of(stored)['name']}"
        problem = f"the run in {run} was started from {origin}, but init is {init_of(initial)['name']}"
        raise ConfigError(f"{problem}; leave init out to resume it")
    return stored


def init_of(start: Model) -> dict[str, Any]:
    """Return the record of the model that a run starts from."""
    return start.history.init or {}


def settings_from(start: Model, config: RunConfig) -> RunConfig:
    """Return the settings with the network of the model to start from; refuse settings of another network."""
    own, name = start.config, init_of(start)["name"]
    for key, stored in own:
        value = getattr(config.network, key)
        if key in config.network.model_fields_set and value != stored:
            problem = f"network.{key} is {value}, but the model to start from, {name}, has {stored}"
            raise ConfigError(f"{problem}; leave it out, or train without init")
    if (size := config.train.size) is not None and not SIZES[own.dim][size].items() <= own.model_dump().items():
        problem = f"train.size={size} is for new networks only, and that of {name} keeps its size"
        warnings.warn(f"{problem}; leave train.size out, or train without init", NetworkWarning, stacklevel=3)
    # marked as set, so that no choice for new weights replaces them
    values, train = config.model_dump(exclude_unset=True), config.train
    fixed = {"optimizer": train.optimizer, "learning_rate": train.learning_rate}
    values |= {"network": own.model_dump(), "train": {**values.get("train", {}), **fixed}}
    return RunConfig.from_dict(values)


def _store_initial(start: Model, run: Path) -> None:
    """Copy the initial weights into the run folder, where a killed run finds them again."""
    section = {"trained_range_db": list(start.trained_range_db), "metrics": [], "init": start.history.init}
    section |= {"config": {"network": start.config.model_dump(mode="json")}}
    weights = {f"network.{name}": value for name, value in start.network.state_dict().items()}
    with replacing(run / INIT) as temporary:
        torch.save({"state_dict": weights, CHECKPOINT_KEY: section}, temporary)


def weights_sha256(network: UNet) -> str:
    """Return a hash of names, dtypes, shapes and values of a network's weights, independent of their file."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def stored_settings(out: Path, given: RunConfig) -> RunConfig:
    """Return the settings of the run in ``out``; those given now may only raise the number of steps."""
    stored = RunConfig.read(out / "config.yaml")
    own = stored.model_dump()
    for section, values in given.model_dump(exclude_unset=True).items():
        own[section] = {**own[section], **values} if isinstance(values, dict) and own[section] else values
    # values that the images decided: not given, or a max_db above theirs
    max_db, stored_db = own["thinning"]["max_db"], stored.thinning.max_db
    if max_db is None or (stored_db is not None and max_db > stored_db):
        own["thinning"]["max_db"] = stored_db
    own["train"]["patch_px"] = own["train"]["patch_px"] or stored.train.patch_px
    merged = RunConfig.from_dict(own)
    changed = differences(stored.model_dump(), merged.model_dump())
    if changed and (set(changed) != {"train.steps"} or merged.train.steps < stored.train.steps):
        problem = f"the run in {out} was started with other settings than given now ({'; '.join(changed.values())})"
        advice = f"leave them out to resume it (only train.steps may change, to more than {stored.train.steps})"
        raise ConfigError(f"{problem}; {advice}")
    return merged


# Lightning starts one process per device with the same command; only the first one checks and writes
@rank_zero_only
def check_run_folder(out: Path, resume: bool) -> None:
    """Check that ``out`` can become or continue a run, before images are read."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file, expected a folder for the run; give another name")
    if (out / "config.yaml").exists():
        if not resume:
            raise OutputError(f"{out} already holds a training run; give resume=True to continue it, or another folder")
    elif resume and out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} holds no training run to resume (no config.yaml); start a new one")


@rank_zero_only
def open_run(out: Path, config: RunConfig, start: Model | None) -> None:
    """Create the run folder, or reopen the run that it holds."""
    stored = out / "config.yaml"
    if not stored.exists():
        with output_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        if start is not None:
            _store_initial(start, out)  # before config.yaml, which makes the folder a run
    for leftover in out.glob(".*.tmp-*"):  # from killed processes
        leftover.unlink(missing_ok=True)
    with replacing(stored) as temporary:
        temporary.write_text(config.to_yaml(), encoding="utf-8")


def checkpoint_in(out: Path, resume: bool) -> Path | None:
    """Return the checkpoint that a resumed run continues from, or None."""
    last = out / "last.ckpt"
    if not resume or not last.exists():
        return None
    advice = f"start a new run in another folder, with {out / 'best.ckpt'} as init or from scratch"
    try:
        content = read_weights(last, str(last))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {advice}") from None
    ours = CHECKPOINT_KEY in content and "optimizer_states" in content
    own = network_config(content[CHECKPOINT_KEY]["config"]["network"], last) if ours else None
    if own != RunConfig.read(out / "config.yaml").network:
        raise CheckpointError(f"{last} is not a checkpoint of the network in config.yaml; {advice}")
    return last


@rank_zero_only
def write_examples(out: Path, stacks: Sequence[Stack], split: Split, detector: Detector | None) -> None:
    """Store the camera, and small pieces of the brightest image and of the brightest held-out one."""
    if detector is not None:
        write_camera(out / CAMERA_FILE, detector)
    for name, candidates in (("example.npy", stacks), ("held_out.npy", split.held_out)):
        if (out / name).exists():
            continue
        stack = candidates[int(np.argmax([float(loaded_part(stack).mean()) for stack in candidates]))]
        piece = np.asarray(stack[_middle(stack)].values)
        with replacing(out / name) as temporary:
            np.save(temporary, np.ascontiguousarray(piece[0] if stack.repeated else piece))


def loaded_part(stack: Stack) -> NDArray[Any]:
    """Return the values of an image; for an image on disk, those of its middle."""
    return np.asarray(stack.values if isinstance(stack.values, np.ndarray) else stack[_middle(stack)].values)


def _middle(stack: Stack) -> tuple[slice, ...]:
    return slice(None), *map(middle_slice, stack.shape[1:], _PIECE_PX[len(stack.shape) - 1])


def fingerprint(split: Split) -> str:
    """Return a checksum of shapes, dtypes and first rows of the training data, without reading all of it."""
    crc = 0
    for stack in split.training:
        values = stack.values
        crc = zlib.crc32(repr((stack.shape, values.dtype.str)).encode(), crc)
        plane = values[(0,) * (values.ndim - 2)]
        crc = zlib.crc32(np.ascontiguousarray(plane[:64]).tobytes(), crc)
    return f"{crc:08x}"


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear by rename: a killed process never leaves an incomplete file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a temporary file and rename it."""
        with replacing(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class RunFolder(pl.Callback):
    """Writes best.ckpt, last.ckpt and metrics.csv after every validation, and ends runs that no longer improve.

    The checkpoint holds the rows of metrics.csv: after resuming, the file is the same as without interruption.
    """

    def __init__(self, folder: Path, fingerprint: str, init: dict[str, Any] | None = None) -> None:
        self.folder, self.fingerprint, self.init = folder, fingerprint, init
        self.rows: list[dict[str, float]] = []
        self.stopping = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Do not continue a run that had ended early."""
        self._end_early(trainer, pl_module.config.train)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop if asked to."""
        if self.stopping:
            raise KeyboardInterrupt

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save a run that is stopped between two steps; several devices may not be between the same two."""
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if trainer.world_size == 1 and 0 < batches.completed == batches.started < trainer.num_training_batches:
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add a row of metrics and save the checkpoints."""
        row = {
            "step": trainer.global_step,
            "train_loss": pl_module.train_loss(),
            "validation_loss": pl_module.validation_loss(),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "mean_input_db": pl_module.mean_input_db(),
            "waiting_share": trainer.train_dataloader.waiting_share,  # type: ignore[union-attr]
        }
        if math.isnan(row["validation_loss"]) and not self.rows:
            problem = "the images held out for validation have no photons, and the best model cannot be chosen"
            warnings.warn(f"{problem}; give more images", CountsWarning, stacklevel=2)
        self.rows.append(row)
        if trainer.logger is not None:
            trainer.logger.log_metrics(row, step=trainer.global_step)
        if self._best in (None, len(self.rows) - 1):
            trainer.save_checkpoint(self.folder / "best.ckpt")
        # after best.ckpt: a run killed between the two repeats this epoch and writes the same best.ckpt again
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if trainer.is_global_zero:
            self._write_metrics()
        self._end_early(trainer, pl_module.config.train)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add what ``load_model`` and a resumed run need."""
        checkpoint[CHECKPOINT_KEY] = {
            "config": pl_module.config.model_dump(mode="json"),
            "trained_range_db": list(pl_module.trained_range_db),
            "images": self.fingerprint,
            "metrics": self.rows,
            "train_losses": [float(loss) for loss in pl_module.train_losses],  # since the last validation
            **({} if self.init is None else {"init": self.init}),
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics if the images are the same, and compute how many epochs are left."""
        stored = checkpoint[CHECKPOINT_KEY]
        if stored["images"] != self.fingerprint:
            problem = f"the run in {self.folder} was trained on other images than given now"
            raise CheckpointError(f"{problem}; resume with the same images")
        self.rows, pl_module.train_losses = list(stored["metrics"]), list(stored.get("train_losses", ()))
        # if the number of steps was raised, the last epoch may have been shorter than the others
        train, done = pl_module.config.train, checkpoint["global_step"]
        left = -(-train.steps // train.validate_every) - done // train.validate_every if done < train.steps else 0
        loop: Any = trainer.fit_loop
        loop.max_epochs = len(self.rows) + left
        # an epoch that was interrupted goes on as a new one of the steps left, which Lightning's own counts forbid
        del checkpoint["loops"]
        loop.epoch_progress.current.processed = loop.epoch_progress.current.completed = len(self.rows)
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = done
        if trainer.is_global_zero:
            self._write_metrics()  # the process may have been killed after the checkpoint

    @property
    def _best(self) -> int | None:
        """Index of the row with the lowest validation loss, the last of equal ones; None if no loss is known."""
        known = [(loss, -n) for n, row in enumerate(self.rows) if not math.isnan(loss := row["validation_loss"])]
        return -min(known)[1] if known else None

    def _end_early(self, trainer: pl.Trainer, train: TrainConfig) -> None:
        if train.patience is not None and (best := self._best) is not None:
            first_half = sum(2 * row["step"] <= train.steps for row in self.rows)  # much is learned as the rate falls
            waited = len(self.rows) - max(best + 1, first_half)
            if waited >= train.patience:
                trainer.should_stop = True
                message = "training ended at step %d: the last %d validations did not improve on that of step %d"
                log.info(message, self.rows[-1]["step"], waited, self.rows[best]["step"])

    def _write_metrics(self) -> None:
        with replacing(self.folder / "metrics.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval=math.nan)  # older runs lack columns
            writer.writeheader()
            writer.writerows(self.rows)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def preview(run: Path, model: Model, most_px: int = 512) -> dict[str, NDArray[Any]]:
    """Return a plane (y, x) of held-out counts and its denoised image, by title; strips are cut into rows."""
    counts, detector = np.load(run / "held_out.npy"), None if model.camera is None else model.camera.scalar
    counts = counts[(..., *(middle_slice(size, most_px) for size in counts.shape[-2:]))]
    counts = torch.from_numpy(counts.astype(np.float32)) if detector is None else detector.seen(detector.values(counts))
    rate = model.network.rate(counts[None], model.network(counts[None]), [])[0].numpy()
    background = 0 if detector is None else detector.background()
    planes = [(a[0] if a.ndim == 3 else a[0, a.shape[1] // 2]) - background for a in (counts.numpy(), rate)]
    titles = "held-out counts" if detector is None else "held-out electrons", "denoised"
    return {title: in_rows(plane) for title, plane in zip(titles, planes, strict=True)}


@rank_zero_only
def draw(run: Path, model: Model) -> None:
    """Draw loss.png, the held-out loss against steps, and preview.png, a held-out image next to the denoised one."""
    rows = read_metrics(run)
    figure = new_figure(6, 4)
    axes = figure.add_subplot()  # without the training loss, whose changes from batch to batch would hide the fall
    axes.plot([row["step"] for row in rows], [row["validation_loss"] for row in rows], marker=".")
    axes.set(xlabel="step", ylabel="loss on held-out photons (nats per photon)")
    axes.ticklabel_format(useOffset=False)
    save_figure(figure, run / "loss.png")
    draw_grid(run / "preview.png", [preview(run, model)])
