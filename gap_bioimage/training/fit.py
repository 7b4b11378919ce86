"""Train a GAP network on photon counts alone."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
import xarray as xr
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from gap_bioimage.camera.camera import Detector, check_camera_image, write_camera
from gap_bioimage.config import Camera, NetworkConfig, RunConfig, ThinningConfig, TrainConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.io import as_images
from gap_bioimage.model import CAMERA_FILE, load_model
from gap_bioimage.training.callbacks import AtomicCheckpoints, Progress, RunFolder
from gap_bioimage.training.choices import choose_dim, choose_sizes
from gap_bioimage.training.module import GapModule
from gap_bioimage.training.patches import PairBatches, WindowDrawer
from gap_bioimage.training.run_folder import (
    checkpoint_in,
    draw_loss,
    draw_preview,
    fingerprint,
    open_run,
    stored_settings,
    write_examples,
)
from gap_bioimage.training.stacks import Split, as_stacks, split_held_out
from gap_bioimage.training.start import Start, start_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from gap_bioimage.model import Model


log = logging.getLogger(__name__)

_VALIDATION_RANK = 1_000_000  # keeps the random numbers of validation apart from every device's


class PairData(pl.LightningDataModule):
    """Training batches by step number, and the same validation batches every time."""

    def __init__(self, split: Split, config: RunConfig) -> None:
        super().__init__()
        patch = config.window_px
        self.train_config = config.train
        self.drawer = WindowDrawer(split.training, patch, config.thinning, config.train.min_photons)
        self.held_out = WindowDrawer(split.held_out, patch, config.thinning, config.train.min_photons, augment=False)

    def _loader(self, drawer: WindowDrawer, rank: int, numbers: range) -> DataLoader[Any]:
        train = self.train_config
        batches = PairBatches(drawer, train.batch_size, train.seed, rank)
        return DataLoader(batches, batch_size=None, sampler=numbers, num_workers=train.workers)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the current epoch, the stretch between two validations."""
        assert self.trainer is not None  # noqa: S101
        start, every = self.trainer.global_step, self.train_config.validate_every
        stop = min((start // every + 1) * every, self.train_config.steps)
        # Lightning asks before it sees that a resumed run is finished, and wants a batch even then
        return self._loader(self.drawer, self.trainer.global_rank, range(min(start, stop - 1), stop))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        assert self.trainer is not None  # noqa: S101
        count = -(-self.train_config.validation_windows // self.train_config.batch_size)
        return self._loader(self.held_out, _VALIDATION_RANK + self.trainer.global_rank, range(count))


def train(
    images: xr.DataArray | NDArray[Any] | Sequence[xr.DataArray | NDArray[Any]],
    out: str | Path,
    config: RunConfig | TrainConfig | None = None,
    *,
    dims: str | None = None,
    network: NetworkConfig | None = None,
    thinning: ThinningConfig | None = None,
    init: Model | str | Path | None = None,
    camera: Detector | Camera | str | Path | None = None,
    separate_channels: bool = False,
    resume: bool = False,
    progress: bool = True,
    device: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
) -> Model:
    """Train on photon counts alone and return the best model.

    Parameters
    ----------
    images
        One image or several, dims out of ``t c z y x``; 2D networks train on every plane.
    dims
        The axes of ``images`` that are plain arrays, such as ``"zyx"``.
    out
        Run folder, made by this function.
    config
        All settings, or those of section ``train`` with the others in ``network`` and ``thinning``. What is not set
        is chosen from the images and the machine, and logged.
    init
        Start from this model's weights, with a new optimizer: a model, or what ``load_model`` takes. The network's
        settings are its own; the trained range is that of ``images``, whatever the model had seen before.
    camera
        The camera of the images, or its yaml, where they are not counts; each window is turned into counts anew.
    separate_channels
        Train a network of one channel on all channels, instead of one that denoises them jointly.
    resume
        Continue the run in ``out``; its stored settings hold, but for a larger number of steps.
    progress
        Show a progress bar.
    device, devices, num_nodes, strategy
        Passed to the Lightning trainer (``device`` as accelerator).

    Raises
    ------
    OutputError
        If ``out`` holds a run and ``resume`` is false, or cannot be written.
    ConfigError
        If a resumed run was given other settings, or settings of the network contradict ``init``.
    CheckpointError
        If a resumed run was trained on other images, or ``init`` is no model.
    KeyboardInterrupt
        On Ctrl-C; resume continues from the last checkpoint.
    """
    out = Path(out)
    start = start_of(init, out, resume)
    if isinstance(config, TrainConfig) or config is None:
        sections = {"network": network, "thinning": thinning, "train": config}
        config = RunConfig(**{name: section for name, section in sections.items() if section is not None})
    resumed = resume and (out / "config.yaml").exists()
    if resumed:
        config = stored_settings(out, config)
    images = as_images(images, dims)
    config = choose_dim(config if start is None else start.settings(config), images)
    detector = _detector(camera, config, out, resume)
    if detector is not None:
        for image in images:
            check_camera_image(image, detector, name=str(image.attrs.get("source", "the image")))
    stacks = as_stacks(images, config.network.dim, detector, separate_channels=separate_channels)
    split = split_held_out(stacks, config.train.validation_share, config.train.seed)
    _check_channels(stacks[0].shape[0], config, start, out if resumed else None)
    config = _resolve(config, stacks[0].shape[0], split, detector, device)
    callbacks: list[pl.Callback] = [RunFolder(out, fingerprint(split), None if start is None else start.record)]
    if progress:
        callbacks.append(Progress(config.train))
    with _quiet():
        # first, so that a device that is not there leaves no run behind
        trainer = _trainer(out, config.train, callbacks, device, devices, num_nodes, strategy)
        # Lightning starts the processes of the other devices with the same command: only the first one writes
        first = getattr(rank_zero_only, "rank", 0) == 0
        checkpoint = open_run(out, config, resume, start) if first else checkpoint_in(out, resume)
        if first:
            if detector is not None:
                write_camera(out / CAMERA_FILE, detector)
            write_examples(out, stacks, split, config.network.dim)
        data = PairData(split, config)
        _log_rejected(data.drawer, config.train.seed)
        pl.seed_everything(config.train.seed, verbose=False)
        assert config.thinning.max_db is not None  # noqa: S101
        module = GapModule(config, (config.thinning.min_db, config.thinning.max_db))
        if start is not None:
            start.load_into(module)
        with _interruptible():
            trainer.fit(module, data, ckpt_path=checkpoint)
    model = load_model(out)
    if first:
        draw_loss(out)
        draw_preview(out, model, np.load(out / "held_out.npy"))
    return model


def _check_channels(channels: int, config: RunConfig, start: Start | None, resumed: Path | None) -> None:
    """Refuse images with other channels than the network has that training goes on with."""
    if channels == config.network.channels or (resumed is None and start is None):
        return
    name = f"the run in {resumed}" if start is None else f"the model to start from, {start.record['name']},"
    own = config.network.channels
    raise ConfigError(
        f"the images have {channels} channels, but {name} has {own}; give images with {own}"
        + (", or one of their channels" if own == 1 else "")
    )


def _trainer(
    out: Path,
    config: TrainConfig,
    callbacks: list[pl.Callback],
    device: str,
    devices: int | str,
    num_nodes: int,
    strategy: str,
) -> pl.Trainer:
    logger: Any = False
    if config.tensorboard:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "train.tensorboard is on, but tensorboard is not installed; pip install 'gap-bioimage[tensorboard]'"
            )
        from lightning.pytorch.loggers import TensorBoardLogger

        logger = TensorBoardLogger(out, name="tensorboard", version="")
    try:
        return pl.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=config.precision,
            max_epochs=-(-config.steps // config.validate_every),
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            gradient_clip_val=config.gradient_clip,
            callbacks=callbacks,
            plugins=[AtomicCheckpoints()],
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
        )
    except (MisconfigurationException, ValueError) as error:
        asked = f"--device {device} --devices {devices} --strategy {strategy}"
        raise ConfigError(f"cannot train with {asked} here: {' '.join(str(error).split())}") from None


def _detector(
    camera: Detector | Camera | str | Path | None, config: RunConfig, out: Path, resume: bool
) -> Detector | None:
    """Return the camera that was given, or that of the settings or of the run to resume."""
    if camera is not None:
        return Detector.of(camera)
    if resume and (out / CAMERA_FILE).exists():
        return Detector.of(out / CAMERA_FILE)
    return None if config.camera is None else Detector(config.camera)


def _resolve(config: RunConfig, channels: int, split: Split, detector: Detector | None, device: str) -> RunConfig:
    """Fill in what data, machine and the model to start from decide."""
    if detector is not None:
        if config.thinning.ceiling is not None:
            raise ConfigError(
                "a camera and thinning.ceiling were both given; one-bit frames need no camera: leave it out"
            )
        config = config.model_copy(update={"camera": detector.camera.model_copy(update={"maps": None})})
    config = config.model_copy(update={"network": config.network.model_copy(update={"channels": channels})})
    faster = torch.cuda.is_available() or torch.backends.mps.is_available()
    return choose_sizes(config, split, accelerator=device not in ("auto", "cpu") or (device == "auto" and faster))


def _log_rejected(drawer: WindowDrawer, seed: int) -> None:
    share = drawer.rejected_share(seed)
    if share:
        log.info(
            "%.0f %% of random windows hold fewer than train.min_photons=%d photons and are drawn anew",
            100 * share,
            drawer.min_photons,
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C arrive as KeyboardInterrupt: Lightning exits instead, and leaves the signal ignored."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as error:
        # between two loaders, Lightning's own handling of Ctrl-C raises a RuntimeError
        if isinstance(error, SystemExit) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Lightning's advice that does not apply, and its banner."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                ".*does not have many workers.*",
                ".*is not overridden.*",
                ".*isinstance.treespec.*",
            ):
                warnings.filterwarnings("ignore", text)
            yield
    finally:
        logger.setLevel(level)
