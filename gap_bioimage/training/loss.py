"""What training minimises: the cross-entropy of photons that were set aside."""

from __future__ import annotations

import torch
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


def total_loss(log_rate: Tensor, target: Tensor, exposure: Tensor, weight: Tensor | None = None) -> Tensor:
    """Poisson likelihood of the number of target photons, nats per photon above its best, of each image (b,).

    ``(L - T - T log(L / T)) / T`` for T photons where ``L = exposure sum(weight exp(log_rate))`` were expected.
    Together with ``photon_loss`` it is the Poisson likelihood of all pixels: the first tells where photons land, this
    one how many.

    Parameters
    ----------
    log_rate, target, weight
        As for ``photon_loss``.
    exposure
        Expected target photons per expected input photon and unit of weight, (b,): (1 - p) / p of counts that were
        thinned with p.
    """
    flat, photons = log_rate.float().flatten(1), target.float().flatten(1)
    if weight is not None:
        allowed = weight.float().flatten(1)
        flat = (flat + torch.log(allowed.clamp(min=1e-6))).masked_fill(allowed == 0, -1e30)
        photons = photons * (allowed > 0)
    total = photons.sum(1)
    log_expected = torch.logsumexp(flat, 1) + torch.log(exposure.float())
    excess = torch.exp(log_expected.clamp(max=80.0)) - total - total * log_expected + torch.xlogy(total, total)
    return excess / total.clamp(min=1.0)
