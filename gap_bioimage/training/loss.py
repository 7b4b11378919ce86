"""The training loss: the negative Poisson log-likelihood of the target photons."""

import torch
from torch import Tensor


def photon_loss(
    log_rate: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    exposure: Tensor | None = None,
    total_weight: float = 0.0,
) -> Tensor:
    """Return a loss per image, (b,), in nats per photon; it is zero without target photons and ``total_weight``.

    The first part is the cross-entropy of the target photons under softmax(log_rate) over channels and pixels: where
    photons land. It is written with logsumexp, which cannot overflow. ``total_weight`` multiplies the second part, how
    many there are: ``(L - T - T log(L / T)) / T`` for T photons where ``L = exposure sum(weight exp(log_rate))`` are
    expected. With weight 1 the sum is the Poisson likelihood of all pixels.

    Parameters
    ----------
    log_rate, target
        Log-rates and target photons, (b, c, [z,] y, x).
    weight
        The probability that a photon lands in a pixel is proportional to ``weight exp(log_rate)``: 0 excludes the pixel
        (saturated or hot); for one-bit cameras it is the number of frames in which it can still detect a photon.
    exposure
        Expected target photons per expected input photon and unit of weight, (b,); (1 - p) / p if thinned with p.

    Source: arXiv 2307.06607, equation 6, for the first part.
    """
    flat, photons = log_rate.float().flatten(1), target.float().flatten(1)
    if weight is not None:
        allowed = weight.float().flatten(1)
        flat, photons = flat + torch.log(allowed).clamp(min=-1e30), photons * (allowed > 0)
    total, log_sum = photons.sum(1), torch.logsumexp(flat, 1)
    loss = total * log_sum - (photons * flat).sum(1)
    if total_weight and exposure is not None:
        log_expected = log_sum + torch.log(exposure.float())
        excess = torch.exp(log_expected.clamp(max=80.0)) - total - total * log_expected + torch.xlogy(total, total)
        loss = loss + total_weight * excess
    return loss / total.clamp(min=1.0)


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
