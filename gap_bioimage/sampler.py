"""Posterior samples of the clean image: photons are added, each where the network expects the next one.

Only torch and ``network.py`` are imported, and everything compiles with ``torch.jit.script``: models that sample
carry both files, joined, as their architecture source. One loop draws the samples of the Python functions, of
exported graphs and of their postprocessing.

Source: Krull et al., "Image Denoising and the Generative Accumulation of Photons", arXiv 2307.06607.
"""

from typing import Any, List, Tuple

import torch
from torch import Tensor, nn

from gap_bioimage.network import UNet, box_mean, odd_box, photons_of, whole_counts, without_hot_pixels

GAIN = 100.0
"""Photons at the end per observed photon, at most: 20 dB leave 1 % of the posterior's variance out."""
WINDOW_PX = {2: (63, 63), 3: (15, 63, 63)}
"""Windows, about those of the training, in which brightness is held against the trained range."""
LEAST_GAIN = 10.0
"""Photons that anchored networks may always gain: 10 dB beyond their trained range they are nearly as good, not 20."""


class Sampler(nn.Module):
    """Samples of the posterior: x <- x + Poisson(p(x) dn f), with p = softmax(network(x)).

    Parameters
    ----------
    network
        Counts x (b, c, [z,] y, x) to log-rates of the next photon: a network, or an exact predictor.
    brightest, window_px
        Photons per pixel that the brightest window may have (see ``photon_budget``).
    beta
        Growth per step of the paper's geometric schedule; 0 for steps that are equal in 1 / sqrt(photons).
    restored
        Whether f restores the variance that is lost while p is frozen (``restore_variance``); the paper has f = 1.
    least_gain
        Photons at the end per observed photon that are allowed in any case.
    """

    def __init__(
        self,
        network: Any,
        brightest: float,
        window_px: List[int],
        beta: float = 0.0,
        restored: bool = True,
        least_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.network, self.least_gain = network, float(least_gain)
        self.brightest, self.beta, self.restored = float(brightest), float(beta), restored
        self.window_px: List[int] = list(window_px)

    def climb(
        self, x: Tensor, log_rate: Tensor, stop: Tensor, keys: Tensor, n_steps: int
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Add photons until there are ``stop`` (b,), or ``n_steps`` steps are done where beta is 0.

        The noise is a function of ``keys`` (b, 2) from ``sample_keys``. Returns the counts x, the log-rates of the
        next photon, and the factor f, all of one shape: a sample is f softmax(log_rate) in the exposure asked for.
        Items of a batch know nothing of each other; an item that is finished stays as it is.
        """
        n = n_start = total_photons(x)
        brightest = torch.clamp(self.least_gain * brightest_mean(x, self.window_px), min=self.brightest)
        before, factor = log_rate, torch.ones_like(log_rate.flatten(1).double())
        growth, step = torch.zeros_like(n), torch.zeros_like(keys[:, 0])
        n_new, goes_on = self.next_photons(x, n_start, n, stop, brightest, step, n_steps)
        while bool(torch.any(goes_on)):
            x = accumulate(x, log_rate, n_new, step_keys(keys, step), factor)
            n_before, n = n, total_photons(x)
            growth = torch.where(goes_on, n / torch.clamp(n_before, min=1.0) - 1.0, growth)
            before = torch.where(goes_on.reshape([-1] + [1] * (x.dim() - 1)), log_rate, before)
            step = step + goes_on.long()
            log_rate = self.network(x)
            if self.restored:
                factor = restore_variance(log_rate, before, growth, n, step_keys(keys, step))
            n_new, goes_on = self.next_photons(x, n_start, n, stop, brightest, step, n_steps)
        return x, log_rate, factor.float().reshape(x.shape)

    def next_photons(
        self, x: Tensor, n_start: Tensor, n: Tensor, stop: Tensor, brightest: Tensor, step: Tensor, n_steps: int
    ) -> Tuple[Tensor, Tensor]:
        """Return the photons (b,) of the next step by the schedule, within the trained range, and who goes on."""
        room = brightest / torch.clamp(brightest_mean(x, self.window_px), min=1e-12)
        limit = n * torch.clamp(room.double(), min=1.0)
        # without photons there is no brightest window yet
        nearest = torch.where(n > 0, torch.minimum(stop, limit), stop)
        if self.beta > 0:
            n_new = geometric_step(self.beta, nearest, n)
            return n_new, n_new > 0
        n_new = torch.minimum(equal_root_step(step, n_steps, n_start, stop, n), nearest - n)
        goes_on = (step < n_steps) & (n < 0.999 * nearest)
        return torch.where(goes_on, torch.clamp(n_new, min=0.0), torch.zeros_like(n_new)), goes_on


class PosteriorSampler(Sampler):
    """Counts in; mean, standard deviation and samples of the posterior out: what a sampling zip runs.

    Each sample adds photons in ``n_steps`` steps up to ``gain`` times the observed ones, or to the top of the
    trained range, and is the network's expectation then, in the observed exposure.

    Parameters
    ----------
    box_px
        Odd box, per spatial axis, in which photons are conserved (see ``conserve_photons``).
    n_samples, n_steps, seed
        What ``forward`` draws.
    gain, brightest, window_px
        See ``photon_budget``.
    rounded, background, ceiling
        As for ``PhotonDenoiser``.
    network
        Arguments of ``UNet``.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self,
        box_px: List[int],
        n_samples: int,
        n_steps: int,
        seed: int,
        gain: float,
        brightest: float,
        window_px: List[int],
        rounded: bool = False,
        background: float = 0.0,
        ceiling: int = 0,
        **network,
    ) -> None:
        super().__init__(UNet(**network), brightest, window_px)
        self.least_gain = LEAST_GAIN if self.network.anchored else 1.0
        self.box_px: List[int] = odd_box(box_px, self.network.dim)
        if n_samples < 1 or n_steps < 1 or seed < 0:
            raise ValueError(f"n_samples={n_samples}, n_steps={n_steps}, seed={seed}: expected at least 1, 1 and 0")
        self.n_samples, self.n_steps, self.seed, self.gain = n_samples, n_steps, seed, float(gain)
        self.rounded, self.background, self.ceiling = rounded, float(background), ceiling

    @torch.jit.export
    def sample(self, photons: Tensor, n_samples: int, n_steps: int, seed: int) -> Tensor:
        """Draw samples of the clean image.

        Parameters
        ----------
        photons
            Counts (b, c, [z,] y, x), of any type.
        n_samples, n_steps, seed
            At least 1, 1 and 0. The noise depends on the seed and on each image's own counts.

        Returns
        -------
        Tensor
            Expected photons per pixel in the observed exposure, (n_samples, b, c, [z,] y, x).
        """
        if n_samples < 1 or n_steps < 1 or seed < 0:
            raise ValueError("expected at least 1 sample, 1 step and a seed of at least 0")
        photons = without_hot_pixels(whole_counts(self.network.fitting(photons), self.rounded))
        items: List[Tensor] = []
        # one by one: convolutions of a batch round otherwise, which may move a photon
        for item in range(photons.shape[0]):
            observed = photons[item : item + 1]
            log_rate = self.network(observed)
            stop = photon_budget(observed, self.gain, self.brightest, self.window_px, self.least_gain)
            samples: List[Tensor] = []
            for number in range(n_samples):
                keys = sample_keys(observed, seed, torch.full([1], number, dtype=torch.long, device=photons.device))
                x, last, factor = self.climb(observed, log_rate, stop, keys, n_steps)
                rate = self.network.rate(x, last, self.box_px) * factor
                samples.append(photons_of(in_exposure(rate, x, observed), self.background, self.ceiling))
            items.append(torch.stack(samples))
        return torch.cat(items, 1)

    def forward(self, photons: Tensor) -> Tensor:
        """Return mean, standard deviation and samples along the channels, (b, (2 + n_samples) c, [z,] y, x)."""
        samples = self.sample(photons, self.n_samples, self.n_steps, self.seed)
        # in this form the mean of equal samples is exactly theirs
        mean = samples[0] + torch.mean(samples - samples[0], 0)
        square = torch.sum(torch.square(samples - mean), 0) / max(self.n_samples - 1, 1)
        return torch.cat([mean, torch.sqrt(square), samples.transpose(0, 1).flatten(1, 2)], 1)


def in_exposure(rate: Tensor, photons: Tensor, observed: Tensor) -> Tensor:
    """Return expected counts given ``photons`` in the exposure of the observed ones, all (b, c, [z,] y, x)."""
    share = total_photons(observed) / torch.clamp(total_photons(photons), min=1e-12)
    return rate * share.float().reshape([-1] + [1] * (rate.dim() - 1))


def accumulate(photons: Tensor, log_rate: Tensor, n_new: Tensor, keys: Tensor, factor: Tensor) -> Tensor:
    """Add photons where the network expects the next ones: the sampling step.

    ``x + Poisson(softmax(log_rate) factor n_new)``, each image by itself; an image with ``n_new = 0`` stays as
    it is. Source: arXiv 2307.06607, section 3.3, where the factor is 1.

    Parameters
    ----------
    photons, log_rate
        (b, c, [z,] y, x); log-rates of whole images.
    n_new
        Photons to add on average, (b,).
    keys
        From ``step_keys``.
    factor
        From ``restore_variance``, (b, n).
    """
    flat = log_rate.flatten(1).double()
    # in pieces that stay in the cache: random numbers take ten times the memory of what they make
    n_pixels, size = flat.shape[1], 1 << 18
    log_total = torch.logsumexp(flat, 1, keepdim=True)
    pieces: List[Tensor] = []
    for start in range(0, n_pixels, size):
        stop = min(start + size, n_pixels)
        rate = torch.exp(flat[:, start:stop] - log_total) * factor[:, start:stop] * n_new.unsqueeze(1)
        index = torch.arange(start, stop, device=photons.device)
        pieces.append(poisson(rate, keys, index).float())
    return photons + torch.cat(pieces, 1).reshape(photons.shape)


def equal_root_step(step: Tensor, n_steps: int, start: Tensor, stop: Tensor, now: Tensor) -> Tensor:
    """Return the photons (b,) to add in a step of the schedule that is equidistant in 1 / sqrt(photons).

    After step k of K an image that began with n0 photons and ends with N has
    ``n0 / (1 - k/K (1 - sqrt(n0/N)))^2``. Equal steps lose the least of the posterior's variance.

    Parameters
    ----------
    step, n_steps
        Which one, (b,), counted from 0, of how many.
    start, stop, now
        Photons of each image at the start, at the end and now, (b,) float64.
    """
    climbed = (step.double() + 1.0) / n_steps * (1.0 - torch.sqrt(start / torch.clamp(stop, min=1.0)))
    return torch.clamp(start / torch.square(torch.clamp(1.0 - climbed, min=1e-9)) - now, min=0.0)


def geometric_step(beta: float, stop: Tensor, now: Tensor) -> Tensor:
    """Return the photons (b,) to add in a step of the paper's schedule: max(beta n, 1), until ``stop``.

    Source: arXiv 2307.06607, section 3.3; counted for each image by itself. An image that has 99 % of its
    photons is finished.
    """
    wanted = torch.minimum(torch.clamp(beta * now, min=1.0), stop - now)
    return torch.where(now < 0.99 * stop, wanted, torch.zeros_like(wanted))


def photon_budget(
    photons: Tensor, gain: float, brightest: float, window_px: List[int], least_gain: float = 1.0
) -> Tensor:
    """Return the photons (b,) that sampling may climb to: ``gain`` times those given, within the trained range.

    The range is kept where an image's brightest window has at most ``brightest`` photons per pixel; images
    beyond it may gain ``least_gain``.
    """
    room = brightest / torch.clamp(brightest_mean(photons, window_px).double(), min=1e-12)
    return total_photons(photons) * torch.clamp(room, min=least_gain, max=gain)


def brightest_mean(photons: Tensor, window_px: List[int]) -> Tensor:
    """Return the mean photons per pixel of each image's brightest window, (b,); small images are one window."""
    box: List[int] = []
    for axis in range(len(window_px)):
        size = photons.shape[axis + 2]
        box.append(min(window_px[axis], size - 1 + size % 2))
    return torch.amax(box_mean(torch.mean(photons, 1, keepdim=True), box).flatten(1), 1)


def total_photons(photons: Tensor) -> Tensor:
    """Return the photons of each image, (b,) float64."""
    return torch.sum(photons.flatten(1).double(), 1)


def restore_variance(
    log_rate: Tensor, previous: Tensor, growth: Tensor, now: Tensor, keys: Tensor, fine_px: int = 17
) -> Tensor:
    """Return factors (b, n), one on average, that restore the variance which a frozen rate loses.

    Let p_k = E[s / sum(s) | x_k] with posterior covariance P_k, and g = n_(k+1) / n_k - 1. An exact draw of the next
    dn photons has the covariance dn diag(p) + dn^2 P; with the rate frozen at p it has dn diag(p) only. By the law of
    total variance Cov(p_(k+1) - p_k | x_k) = P_k - E P_(k+1) = g P_(k+1) where P falls as 1 / n. So the rate's last
    change, times a random sign and 1 / sqrt(g), has the mean 0 and the covariance P_(k+1) that is missing, to first
    order in g (P falls more slowly where the prior decides, and then less is restored than was lost). The first step
    has no predecessor.

    Bound and box are empirical. A network that is not an exact posterior mean also changes for other reasons, smoothly
    over many pixels: a pixel changes by no more than the error that its own photons alone leave, and only against its
    neighbours, so that the photons of a box of ``fine_px`` around it stay. All of this is alike for both signs, so
    that the mean stays.

    Parameters
    ----------
    log_rate, previous
        Log-rates now and one step before, (b, c, [z,] y, x).
    growth
        g of the last step, (b,); 0 where there was none.
    now
        Photons of each image, (b,).
    keys
        (b, 2), for the sign.
    fine_px
        Odd box, along every axis.
    """
    after, before = log_rate.flatten(1).double(), previous.flatten(1).double()
    after, before = torch.log_softmax(after, 1), torch.log_softmax(before, 1)
    strength = torch.where(growth > 0, torch.rsqrt(torch.clamp(growth, min=1e-6)), torch.zeros_like(growth))
    sign = 1.0 - 2.0 * (mix(keys[:, :1]) & 1).double()
    change = sign * strength.unsqueeze(1) * (1.0 - torch.exp(torch.clamp(before - after, max=60.0)))
    share = torch.exp(after)
    bound = torch.rsqrt(1.0 + share * now.unsqueeze(1))
    change = torch.minimum(torch.maximum(change, -bound), bound)
    box: List[int] = []
    for size in log_rate.shape[2:]:
        box.append(min(fine_px, size - 1 + size % 2))
    moved = box_mean(torch.sum((share * change).reshape(log_rate.shape), 1, keepdim=True), box)
    there = box_mean(torch.sum(share.reshape(log_rate.shape), 1, keepdim=True), box)
    change = change - (moved / torch.clamp(there, min=1e-300)).expand_as(log_rate).flatten(1)
    change = change - torch.sum(share * change, 1, keepdim=True)
    return 1.0 + torch.clamp(change, min=-1.0, max=1.0)


def poisson(rate: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    """Draw Poisson counts that are a function of key and pixel number, on every device and engine.

    Up to a rate of 18 by inversion with 52 random bits (more than 48 photons have a probability of 1e-9 there),
    above from a normal z by the expansion ``rate + sqrt(rate) z + 1/3 + z^2/6 - ...`` of the inverse distribution,
    rounded down. Source: M. Giles, ACM Trans. Math. Softw. 42(1), 2016, algorithm 955, the terms up to 1 / rate.

    Parameters
    ----------
    rate
        (b, n) float64.
    keys
        (b, 2), from ``step_keys``.
    index
        Pixel numbers (n,).

    Returns
    -------
    Tensor
        Counts (b, n) float64.
    """
    first, second = random_words(keys, index)
    small = torch.clamp(rate, max=18.0)
    # 52 bits and a half are exact in float64, and never round up to 1
    uniform = (first.double() * 1048576.0 + (second >> 12).double() + 0.5) * 2.0**-52
    term = torch.exp(-small)
    below = term
    inverted = torch.zeros_like(rate)
    count = 1
    while count < 49:  # a for loop is unrolled, and torch 2.0's fuser then compiles it for minutes
        inverted = inverted + (uniform > below).double()
        term = term * small / count
        below = below + term
        count += 1
    angle = (second.double() + 0.5) * (2.0**-31 * 3.141592653589793)
    z = torch.sqrt(-2.0 * torch.log((first.double() + 0.5) * 2.0**-32)) * torch.cos(angle)
    large = torch.clamp(rate, min=18.0)
    root, square = torch.sqrt(large), z * z
    inverse = large + root * z + (2.0 + square) / 6.0 - z * (2.0 + square) / (72.0 * root)
    inverse = inverse + (square * (3.0 * square + 7.0) - 16.0) / (810.0 * large)
    return torch.where(rate > 18.0, torch.clamp(torch.floor(inverse), min=0.0), inverted)


def sample_keys(counts: Tensor, seed: int, samples: Tensor) -> Tensor:
    """Return the source of noise of samples, keys (b, 2).

    Parameters
    ----------
    counts
        The observed photons (1 or b, c, [z,] y, x): different images, and different tiles, draw different noise.
    seed
        Not negative.
    samples
        Number of the sample that each item of the batch is, (b,) int64.
    """
    keys = mix(torch.bitwise_xor(hash_counts(counts), seed & 0xFFFFFFFF))
    keys = mix(torch.bitwise_xor(keys, (seed >> 32) & 0xFFFFFFFF))
    return mix(torch.bitwise_xor(keys, samples.unsqueeze(1)))


def step_keys(keys: Tensor, step: Tensor) -> Tensor:
    """Return the keys (b, 2) of a step, (b,) counted from 0."""
    return mix(torch.bitwise_xor(keys, step.unsqueeze(1)))


def hash_counts(photons: Tensor) -> Tensor:
    """Return a hash of the counts of each image, (b, 2)."""
    values = torch.round(photons.flatten(1)).long() & 0xFFFFFFFF
    index = torch.arange(values.shape[1], device=photons.device)
    lanes: List[Tensor] = []
    for salt in (0x2545F491, 0x6C078965):
        lanes.append(torch.sum(mix(torch.bitwise_xor(mix(torch.bitwise_xor(index & 0xFFFFFFFF, salt)), values)), 1))
    return mix(torch.stack(lanes, 1) & 0xFFFFFFFF)


def random_words(keys: Tensor, index: Tensor) -> Tuple[Tensor, Tensor]:
    """Return two random 32-bit integers for each key (b, 2) and pixel number (n,), both (b, n)."""
    low, high = index & 0xFFFFFFFF, index >> 32
    first, second = keys[:, :1], keys[:, 1:]
    return (
        mix(torch.bitwise_xor(mix(torch.bitwise_xor(low, first)), torch.bitwise_xor(high, second))),
        mix(torch.bitwise_xor(mix(torch.bitwise_xor(low, second)), torch.bitwise_xor(high, first))),
    )


def mix(x: Tensor) -> Tensor:
    """Mix 32-bit integers, held in int64, into 32-bit integers that look random; one to one.

    The constants are those that C. Wellons found by search (hash-prospector, public domain); both are below
    2^31, so that no product leaves int64.
    """
    x = (torch.bitwise_xor(x, x >> 16) * 0x21F0AAAD) & 0xFFFFFFFF
    x = (torch.bitwise_xor(x, x >> 15) * 0x735A2D97) & 0xFFFFFFFF
    return torch.bitwise_xor(x, x >> 15)
