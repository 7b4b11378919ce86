"""Train a GAP network on photon counts alone."""

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import xarray as xr
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from rich import progress as bars

from gap_bioimage.camera.camera import Detector, check_camera_image
from gap_bioimage.config import Camera, NetworkConfig, RunConfig, ThinningConfig, TrainConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.io import as_images
from gap_bioimage.model import CAMERA_FILE, CAMERA_MAPS, Model, load_model
from gap_bioimage.training import run_folder
from gap_bioimage.training.choices import choose_dim, choose_repeats, choose_sizes
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.pairs import check_ceiling
from gap_bioimage.training.patches import PairBatches, Split, Stack, WindowDrawer, as_stacks, split_held_out

_VALIDATION_RANK = 1_000_000  # gives validation other random numbers than any training device
_REFRESH_S = 0.5


def train(
    images: xr.DataArray | NDArray[Any] | Sequence[xr.DataArray | NDArray[Any]],
    out: str | Path,
    config: RunConfig | TrainConfig | None = None,
    *,
    dims: str | None = None,
    network: NetworkConfig | None = None,
    thinning: ThinningConfig | None = None,
    purpose: str | None = None,
    repeats: str | None = None,
    init: Model | str | Path | None = None,
    camera: Detector | Camera | str | Path | None = None,
    separate_channels: bool = False,
    resume: bool = False,
    progress: bool = True,
    device: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    callbacks: Sequence[pl.Callback] = (),
) -> Model:
    """Train on photon counts alone and return the best model.

    Parameters
    ----------
    images
        One image or several, dims out of ``t c z y x``; 2D networks train on every plane.
    out
        Run folder, made by this function.
    config
        All settings, or those of section ``train``. What neither it, ``network`` nor ``thinning`` sets is chosen.
    dims
        Axes of ``images`` that are plain arrays, such as ``"zyx"``.
    purpose, repeats
        Shorthands for the settings ``train.purpose`` ("denoise", "sample", "generate") and ``train.repeats`` ("t").
    init
        Model, or argument of ``load_model``, that provides the network and its initial weights; not its trained range.
    camera
        Camera of the images, or its yaml, if they are not counts. Each window is converted to counts when it is drawn.
    separate_channels
        Train a network of one channel on all channels, instead of one that denoises them jointly.
    resume
        Continue the run in ``out`` with its stored settings; only the number of steps may be raised.
    progress
        Show a progress bar.
    device, devices, num_nodes, strategy, callbacks
        Passed to the Lightning trainer (``device`` as accelerator).

    Raises
    ------
    OutputError
        If ``out`` holds a run and ``resume`` is false, or cannot be written.
    ConfigError, CheckpointError
        If a resumed run is given other settings or images, or ``init`` is not a model or contradicts the settings.
    KeyboardInterrupt
        On Ctrl-C, after the current step, or at once if it is pressed twice; ``resume`` continues from there.
    """
    run_folder.check_run_folder(out := Path(out), resume)
    start, resumed = run_folder.start_of(init, out, resume), resume and (out / "config.yaml").exists()
    config = _merge(config, {"network": network, "thinning": thinning}, {"purpose": purpose, "repeats": repeats})
    config = run_folder.stored_settings(out, config) if resumed else config
    images = as_images(images, dims)
    config = choose_dim(config if start is None else run_folder.settings_from(start, config), images)
    detector = _detector(camera, config, out if resumed else None, images)
    config = config if resumed else choose_repeats(config, images, detector)
    stacks = as_stacks(images, config.network.dim, detector, separate_channels, config.train.repeats)
    split = split_held_out(stacks, config.train.validation_share, config.train.seed)
    config = _with_images(config, stacks, start, detector)
    available = torch.cuda.is_available() or torch.backends.mps.is_available()
    config = config if resumed else choose_sizes(config, split, available if device == "auto" else device != "cpu")
    machine = {"accelerator": device, "devices": devices, "num_nodes": num_nodes, "strategy": strategy}
    folder = run_folder.RunFolder(out, run_folder.fingerprint(split), None if start is None else start.history.init)
    with _quiet(), _progress_bar(progress) as bar, _interruptible(folder, alone=devices == num_nodes == 1):
        # created first: an unavailable device then leaves no run folder behind
        trainer = _trainer(out, config.train, machine, [folder, Progress(folder, bar), *callbacks])
        run_folder.open_run(out, config, start)
        run_folder.write_examples(out, stacks, split, detector)
        _fit(trainer, config, split, start, run_folder.checkpoint_in(out, resume))
    run_folder.draw(out, model := load_model(out))
    return model


def _merge(config: RunConfig | TrainConfig | None, sections: dict[str, Any], train: dict[str, str | None]) -> RunConfig:
    """Merge settings given as a whole, by section and one by one; later ones take precedence."""
    whole: dict[str, Any] = {"train": config}
    if isinstance(config, RunConfig):
        whole = {name: getattr(config, name) for name in config.model_fields_set}
    values: dict[str, Any] = {}
    shorthands = {name: value for name, value in train.items() if value is not None}
    for name, section in [*whole.items(), *sections.items(), ("train", shorthands)]:
        if section not in (None, {}):
            given = RunConfig.from_dict({name: section}).model_dump(exclude_unset=True)[name]
            values[name] = {**values.get(name, {}), **given}
    return RunConfig.from_dict(values)


def _detector(camera: Any, config: RunConfig, run: Path | None, images: Sequence[xr.DataArray]) -> Detector | None:
    """Return the camera given, or else that of the resumed run or of the settings; check that it fits the images."""
    own: Any = config.camera if run is None or not (run / CAMERA_FILE).exists() else run / CAMERA_FILE
    if camera is None and own is None:
        return None
    detector = Detector.of(own if camera is None else camera)
    if detector.camera.maps is not None and detector.maps is None:
        problem = f"camera.maps is {detector.camera.maps!r}, but maps are only read next to a camera's yaml"
        raise ConfigError(f"{problem}; give the path of the yaml as the camera, or leave maps out")
    if run is not None and (own is None or _numbers(detector) != _numbers(Detector.of(own))):
        stored = "without a camera" if own is None else "with another camera than the one given"
        raise ConfigError(f"the run in {run} was started {stored}; leave the camera out to resume it")
    for image in images:
        check_camera_image(image, detector, name=str(image.attrs.get("source", "the image")))
    return detector


def _numbers(detector: Detector) -> dict[str, Any]:
    return detector.camera.model_dump(exclude={"maps", "measured"})


def _with_images(config: RunConfig, stacks: list[Stack], start: Model | None, detector: Detector | None) -> RunConfig:
    """Add number of channels and camera to the settings; refuse settings that contradict the images."""
    channels, expected = stacks[0].shape[0], config.network.channels
    if channels != expected and (start is not None or "channels" in config.network.model_fields_set):
        owner = "network.channels is" if start is None else f"init, {run_folder.init_of(start)['name']}, has"
        problem = f"the images have {channels} channels, but {owner} {expected}"
        raise ConfigError(f"{problem}; give images with {expected}, or channel=0")
    if detector is not None:
        if config.thinning.ceiling is not None:
            raise ConfigError("a camera and thinning.ceiling were given; leave out the camera for one-bit frames")
        # named in config.yaml, so that other runs with its settings are not trained without them
        maps = detector.maps and CAMERA_MAPS
        config = config.model_copy(update={"camera": detector.camera.model_copy(update={"maps": maps})})
    if config.thinning.ceiling is not None:
        check_ceiling(map(run_folder.loaded_part, stacks), config.thinning.ceiling)
    return config.model_copy(update={"network": config.network.model_copy(update={"channels": channels})})


def _fit(trainer: pl.Trainer, config: RunConfig, split: Split, start: Model | None, checkpoint: Path | None) -> None:
    pl.seed_everything(config.train.seed, verbose=False)
    assert config.thinning.max_db is not None  # noqa: S101
    limits = config.thinning.min_db, config.thinning.max_db
    module = GapModule(config, limits, None if start is None else start.network)
    trainer.fit(module, PairData(split, config), ckpt_path=checkpoint)


def _trainer(out: Path, config: TrainConfig, machine: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
    device = machine["accelerator"]
    try:
        return pl.Trainer(
            **{**machine, "accelerator": "gpu" if device == "cuda" else device},
            precision=config.precision,
            max_epochs=-(-config.steps // config.validate_every),
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            plugins=[run_folder.AtomicCheckpoints()],
            logger=TensorBoardLogger(out, name="tensorboard", version="") if config.tensorboard else False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
    except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
        options = f"--device {device} --devices {machine['devices']} --strategy {machine['strategy']}"
        raise ConfigError(f"cannot train with {options} here: {' '.join(str(error).split())}") from None


class PairData(pl.LightningDataModule):
    """Training batches by step number, and validation batches that are the same every time."""

    trainer: pl.Trainer

    def __init__(self, split: Split, config: RunConfig) -> None:
        super().__init__()
        settings = (config.window_px, config.thinning, config.train.min_photons)
        self.train_config = config.train
        self.drawer = WindowDrawer(split.training, *settings)
        self.held_out = WindowDrawer(split.held_out, *settings, augment=False)

    def _batches(self, drawer: WindowDrawer, rank: int, numbers: range) -> PairBatches:
        train, device = self.train_config, self.trainer.strategy.root_device
        # torch draws binomial numbers on the CPU and on CUDA devices only
        device = device if device.type == "cuda" else torch.device("cpu")
        return PairBatches(drawer, train.batch_size, train.seed, rank, numbers, device)

    def train_dataloader(self) -> PairBatches:
        """Return the batches of the current epoch: the steps between two validations."""
        start, every = self.trainer.global_step, self.train_config.validate_every
        stop = min((start // every + 1) * every, self.train_config.steps)
        # Lightning asks for a batch even when a resumed run is already finished
        return self._batches(self.drawer, self.trainer.global_rank, range(min(start, stop - 1), stop))

    def val_dataloader(self) -> PairBatches:
        """Return the validation batches."""
        count = -(-self.train_config.validation_windows // self.train_config.batch_size)
        return self._batches(self.held_out, _VALIDATION_RANK + self.trainer.global_rank, range(count))


def _progress_bar(progress: bool) -> bars.Progress:
    """Return a progress bar, hidden without ``progress`` and on all devices but the first."""
    columns = (bars.BarColumn(bar_width=10), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
    first = getattr(rank_zero_only, "rank", 0) == 0
    return bars.Progress("training", *columns, "{task.description}", disable=not (progress and first))


class Progress(pl.Callback):
    """One bar for the whole run, with losses, range of input brightness and time left."""

    def __init__(self, folder: run_folder.RunFolder, bar: bars.Progress) -> None:
        self.folder, self.bar, self.refreshed_at = folder, bar, -math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the bar at the current step of the run."""
        self.task = self.bar.add_task("", total=pl_module.config.train.steps, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the bar; the loss is read from the device at most twice a second."""
        finished = trainer.global_step >= pl_module.config.train.steps
        if self.bar.disable or (time.monotonic() - self.refreshed_at < _REFRESH_S and not finished):
            return
        self.refreshed_at = time.monotonic()
        low, high = pl_module.trained_range_db
        held_out = f" | held out {rows[-1]['validation_loss']:.3f}" if (rows := self.folder.rows) else ""
        text = f"loss {float(pl_module.train_losses[-1]):.3f}{held_out} | {low:.0f}..{high:.0f} dB"
        self.bar.update(self.task, completed=trainer.global_step, description=text)


@contextmanager
def _interruptible(folder: run_folder.RunFolder, *, alone: bool) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, on one device after the step; Lightning would exit, and ignore the signal."""
    handler, in_main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()

    def stop(*_: Any) -> None:
        folder.stopping = True
        signal.signal(signal.SIGINT, handler)  # the second time at once

    if in_main and alone and callable(handler):
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    except BaseException as error:
        # between two loaders, Lightning's own handling of Ctrl-C raises a RuntimeError
        if isinstance(error, SystemExit) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's banner and the advice that does not apply."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in ("not have many workers", "is not overridden", "isinstance.treespec", "The AccumulateGrad"):
                warnings.filterwarnings("ignore", f".*{text}.*")
            yield
    finally:
        logger.setLevel(level)
