"""What training minimises: the Poisson likelihood of photons that were set aside.

Both losses take log-rates and target photons (b, c, [z,] y, x) and return one value for each image, (b,), zero without
target photons. With ``weight``, of the same shape, photons land with the chance ``weight exp(log_rate)``: 0 leaves
pixels out (saturated ones); of one-bit cameras it is the number of frames in which a pixel could still detect one.
"""

import torch
from torch import Tensor


def photon_loss(log_rate: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of the target photons under softmax(log_rate) over channels and pixels, nats per photon.

    Source: arXiv 2307.06607, equation 6; written with logsumexp, which cannot overflow.
    """
    flat, photons = _flat(log_rate, target, weight)
    total = photons.sum(1)
    log_likelihood = (photons * flat).sum(1) - total * torch.logsumexp(flat, 1)
    return -log_likelihood / total.clamp(min=1.0)


def total_loss(log_rate: Tensor, target: Tensor, exposure: Tensor, weight: Tensor | None = None) -> Tensor:
    """Poisson likelihood of the number of target photons, nats per photon above its best.

    ``(L - T - T log(L / T)) / T`` for T photons where ``L = exposure sum(weight exp(log_rate))`` were expected.
    Together with ``photon_loss`` it is the Poisson likelihood of all pixels: the first tells where photons land, this
    one how many. ``exposure`` (b,): expected target photons per expected input photon and unit of weight, (1 - p) / p
    of counts that were thinned with p.
    """
    flat, photons = _flat(log_rate, target, weight)
    total = photons.sum(1)
    log_expected = torch.logsumexp(flat, 1) + torch.log(exposure.float())
    excess = torch.exp(log_expected.clamp(max=80.0)) - total - total * log_expected + torch.xlogy(total, total)
    return excess / total.clamp(min=1.0)


def without_dark(log_rate: Tensor, dark: Tensor | None) -> Tensor:
    """Return the log-rates of the light of inputs to which counts were added, ``dark`` per pixel, (b, 1, ..., 1).

    Thinning with p leaves p of a camera's read noise as well, but an image of less light has all of it. So the rest,
    (1 - p) shift, is added to the input alone, and the target's photons follow from what is expected beside it. At
    least a fiftieth of the rate is left.
    """
    if dark is None:
        return log_rate
    rate = torch.exp(log_rate.float())
    return torch.log(torch.maximum(rate - dark, 0.02 * rate))


def _flat(log_rate: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return log-chances and photons of each image in a row, of pixels that are left out none."""
    flat, photons = log_rate.float().flatten(1), target.float().flatten(1)
    if weight is None:
        return flat, photons
    allowed = weight.float().flatten(1)
    flat = (flat + torch.log(allowed.clamp(min=1e-6))).masked_fill(allowed == 0, -1e30)
    return flat, photons * (allowed > 0)
