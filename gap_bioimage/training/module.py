"""The Lightning module that minimises the photon loss."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gap_bioimage.config import RunConfig
from gap_bioimage.graphs import CHANNELS_LAST, record_training
from gap_bioimage.network import UNet
from gap_bioimage.training.loss import photon_loss, without_dark
from gap_bioimage.training.muon import Muon
from gap_bioimage.training.pairs import Pairs


class GapModule(pl.LightningModule):
    """A GAP U-Net in training, with the weights of ``start`` if given; its trained range is stored with the weights."""

    def __init__(self, config: RunConfig, trained_range_db: tuple[float, float], start: UNet | None = None) -> None:
        super().__init__()
        self.config = config
        self.trained_range_db = trained_range_db
        self.network = UNet(**config.network.model_dump())
        self.network.anchor.brightest.zero_()
        if start is not None:
            self.network.load_state_dict(start.state_dict())
        self.network.anchor.per_frame.fill_(1 / (config.thinning.ceiling or math.inf))
        train = config.train
        if train.channels_last:
            self.network.to(memory_format=CHANNELS_LAST[config.network.dim])  # type: ignore[call-overload]
        average = get_ema_multi_avg_fn(train.ema_decay) if train.ema_decay else None  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.network, multi_avg_fn=average) if average else None
        # kept as tensors until they are shown or written: reading a number makes the device wait
        self.train_losses: list[Tensor | float] = []
        self.validation: list[Tensor] = []
        self.input_db = torch.tensor(math.nan)
        self.recorded: list[Tensor] | None = None

    def forward(self, photons: Tensor) -> Tensor:
        """Return log-rates for counts (b, c, [z,] y, x)."""
        network = self.network if self.average is None or self.training else self.average.module
        log_rate: Tensor = network(photons)
        return log_rate

    def training_step(self, batch: Pairs, batch_index: int) -> Tensor:
        """Return the loss of a batch; that of totals is by default part of it for anchored networks only."""
        if self.recorded is None and self.device.type == "cuda" and not torch.distributed.is_initialized():
            self.recorded = record_training(self.network, batch.photons)
        losses, importance, has_target = self._losses(batch)
        weights = importance * has_target
        self.train_losses.append((losses.detach() * weights).sum() / weights.sum().clamp(min=1e-12))
        self.input_db = batch.db
        return (importance * losses).sum() / has_target.sum().clamp(min=1)

    def _losses(self, batch: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, importance and whether there are target photons, (b,) each; the loss is in nats per photon."""
        log_rate = without_dark(self(batch.photons), batch.dark)
        total_weight = self.config.train.total_weight
        if total_weight is None:
            total_weight = float(self.network.anchored)
        losses = photon_loss(log_rate, batch.target, batch.weight, batch.exposure, total_weight)
        importance = self._importance(batch.photons if batch.dark is None else batch.photons - batch.dark)
        return losses, importance, batch.target.flatten(1).sum(1) > 0

    def _importance(self, photons: Tensor) -> Tensor:
        """Return a weight per image, (b,), 1 for the brightest.

        The fewer photons an image has, the more nats each contributes: unweighted, the darkest would dominate the loss.
        """
        power = self.config.train.brightness_power
        if power is None:
            power = 0.7 if self.network.anchored and self.network.anchor.fits else 0.0
        brightest = 10 ** (self.trained_range_db[1] / 10) / (4 if self.config.thinning.binned else 1)  # before binning
        return ((photons.flatten(1).mean(1) + 0.03) / brightest).clamp(max=1.0) ** power

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Set gradients that are not finite to zero, and clip large ones."""
        parameters = list(self.network.parameters())
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        torch.nn.utils.clip_grad_norm_(parameters, self.config.train.gradient_clip)

    def on_train_batch_end(self, outputs: Any, batch: Pairs, batch_idx: int) -> None:
        """Update the average of the weights."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def validation_step(self, batch: Pairs, batch_index: int) -> None:
        """Collect the loss of held-out windows, weighted as in training, and the weights."""
        losses, importance, has_target = self._losses(batch)
        weights = (importance * has_target).double()
        self.validation.append(torch.stack([(losses.detach() * weights).sum(), weights.sum()]).cpu())

    def train_loss(self) -> float:
        """Return the mean loss of the training steps since the last call."""
        losses = [float(loss) for loss in self.train_losses]
        self.train_losses.clear()
        return math.fsum(losses) / max(1, len(losses))

    def mean_input_db(self) -> float:
        """Return the mean brightness in dB of the last batch's inputs, empty ones excluded."""
        return float(self.input_db[self.input_db.isfinite()].mean())

    def validation_loss(self) -> float:
        """Return the mean loss of the validation steps since the last call, over all devices."""
        sums = torch.stack(self.validation).sum(0) if self.validation else torch.zeros(2, dtype=torch.float64)
        self.validation.clear()
        if self.trainer.world_size > 1:
            gathered: Any = self.all_gather(sums.to(self.device, torch.float32))
            sums = gathered.sum(0)
        return float(sums[0] / sums[1]) if sums[1] else math.nan

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule: warm-up, constant rate, linear decay to 1 % over the second half."""
        train = self.config.train
        if train.optimizer == "muon":
            groups: tuple[list[Any], list[Any]] = ([], [])
            for name, parameter in self.network.named_parameters():
                groups[parameter.dim() == 1 or name.startswith("conv_final")].append(parameter)
            optimizer: torch.optim.Optimizer = Muon(*groups, lr=train.learning_rate)
        else:
            # with float16, a fused step unscales the gradients only after they were clipped
            fused = train.precision != "16-mixed"
            optimizer = torch.optim.Adam(self.network.parameters(), lr=train.learning_rate, fused=fused)

        def factor(step: int) -> float:
            warmup, decay = (step + 1) / max(1, train.warmup_steps), 0.01 + 1.98 * max(0.0, 1 - step / train.steps)
            return min(1.0, warmup, decay)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
