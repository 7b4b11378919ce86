"""The training losses: negative Poisson log-likelihoods of the target photons.

Both losses take log-rates and target photons (b, c, [z,] y, x) and return one value per image, (b,), which is zero
without target photons. With ``weight``, of the same shape, the probability that a photon lands in a pixel is
proportional to ``weight exp(log_rate)``: 0 excludes the pixel (saturated or hot); for one-bit cameras it is the number
of frames in which the pixel can still detect a photon.
"""

import torch
from torch import Tensor


def photon_loss(log_rate: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of the target photons under softmax(log_rate) over channels and pixels, nats per photon.

    Source: arXiv 2307.06607, equation 6; written with logsumexp, which cannot overflow.
    """
    flat, photons = _flat(log_rate, target, weight)
    total = photons.sum(1)
    log_likelihood = (photons * flat).sum(1) - total * torch.logsumexp(flat, 1)
    return -log_likelihood / total.clamp(min=1.0)


def total_loss(log_rate: Tensor, target: Tensor, exposure: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the negative log-likelihood of the number of target photons, nats per photon above its minimum.

    ``(L - T - T log(L / T)) / T`` for T photons where ``L = exposure sum(weight exp(log_rate))`` are expected. The sum
    with ``photon_loss``, which covers where photons land, is the Poisson likelihood of all pixels. ``exposure`` (b,):
    expected target photons per expected input photon and unit of weight; (1 - p) / p for counts thinned with p.
    """
    flat, photons = _flat(log_rate, target, weight)
    total = photons.sum(1)
    log_expected = torch.logsumexp(flat, 1) + torch.log(exposure.float())
    excess = torch.exp(log_expected.clamp(max=80.0)) - total - total * log_expected + torch.xlogy(total, total)
    return excess / total.clamp(min=1.0)


def without_dark(log_rate: Tensor, dark: Tensor | None) -> Tensor:
    """Return log-rates less the ``dark`` counts per pixel, (b, 1, ..., 1), that were added to the inputs.

    Thinning with p also reduces the variance of a camera's read noise to p of it, but an image with less light has all
    of it. The difference, (1 - p) shift, is therefore added to the input alone, and subtracted here from the rate that
    the target is compared with. At least a fiftieth of the rate remains.
    """
    if dark is None:
        return log_rate
    rate = torch.exp(log_rate.float())
    return torch.log(torch.maximum(rate - dark, 0.02 * rate))


def _flat(log_rate: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return unnormalised log-probabilities and target photons, one row per image; excluded pixels hold none."""
    flat, photons = log_rate.float().flatten(1), target.float().flatten(1)
    if weight is None:
        return flat, photons
    allowed = weight.float().flatten(1)
    flat = (flat + torch.log(allowed.clamp(min=1e-6))).masked_fill(allowed == 0, -1e30)
    return flat, photons * (allowed > 0)
