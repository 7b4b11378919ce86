"""What training minimises: the cross-entropy of photons that were set aside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def photon_loss(log_rate: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of the target photons under softmax(log_rate), nats per photon, of each image.

    Source: arXiv 2307.06607, equation 6; written with logsumexp, which cannot overflow.

    Parameters
    ----------
    log_rate, target
        (b, c, [z,] y, x); the softmax runs over channels and pixels.
    weight
        Same shape: photons land with the chance ``weight exp(log_rate)``. 0 leaves pixels out (saturated ones);
        of one-bit cameras the number of frames in which a pixel could still detect one.

    Returns
    -------
    Tensor
        (b,); zero for images without target photons.
    """
    flat, photons = log_rate.float().flatten(1), target.float().flatten(1)
    if weight is not None:
        allowed = weight.float().flatten(1)
        flat = (flat + torch.log(allowed.clamp(min=1e-6))).masked_fill(allowed == 0, -1e30)
        photons = photons * (allowed > 0)
    total = photons.sum(1)
    log_likelihood = (photons * flat).sum(1) - total * torch.logsumexp(flat, 1)
    return -log_likelihood / total.clamp(min=1.0)


def total_loss(log_rate: Tensor, photons: Tensor) -> Tensor:
    """Deviation of the total rate from the photons in the input, per image (b,).

    The Poisson likelihood of the total, per photon, is a^2 / 2 to second order in the log-ratio a of the two
    totals; beyond |a| = 1 it goes on as a straight line, for the first steps of training.
    """
    seen = photons.float().flatten(1).sum(1).clamp(min=1.0)
    ratio = torch.logsumexp(log_rate.float().flatten(1), 1) - torch.log(seen)
    return F.smooth_l1_loss(ratio, torch.zeros_like(ratio), reduction="none")
