"""Posterior samples of the clean image: photons are added where the network expects the next ones.

    p_k     = softmax(network(x_k))             E[s / sum(s) | x_k]: where the next photon falls
    x_(k+1) = x_k + Poisson(dn_k f_k p_k)       dn_k photons at once; x_0 are the observed counts
    sample  = n_0 f_K p_K                       in the observed exposure, after n_K = sum(x_K) = N photons

The paper uses dn_k = max(beta n_k, 1) and f_k = 1. By default dn_k gives equal steps in 1 / sqrt(n), and f_k restores
the variance that is lost while p_k is frozen. Source: Krull et al., "Image Denoising and the Generative Accumulation of
Photons", arXiv 2307.06607, section 3.3.

``Sampler.draw`` is the only sampling loop: the Python functions, the exported graphs and their postprocessing share it.
Besides torch only the files that travel with it are imported (``filters.py``, ``network.py``), and everything compiles
with ``torch.jit.script``: zips that sample carry them joined.
"""

from typing import Any, List, Tuple

import torch
from torch import Tensor, nn

from gap_bioimage.filters import network_counts, whole_counts, without_hot_pixels
from gap_bioimage.network import UNet, box_mean, odd_box, photons_of

GAIN = 100.0  # largest N / n_0: 20 dB omit 1 % of the variance of the posterior
LEAST_GAIN = 10.0  # N / n_0 that anchored networks always reach: they are good 10 dB beyond their training, not 20
CUT = 0.7184  # standard deviation of a standard normal number that is clipped at -1 and 1: sqrt(1 - 2 phi(1))
WINDOW_PX = {2: (63, 63), 3: (15, 63, 63)}  # similar to training windows: brightness is compared with theirs


class Sampler(nn.Module):
    """The sampling loop, for any network or exact predictor of log-rates from counts (b, c, [z,] y, x); same shape.

    ``beta`` 0 gives equal steps in 1 / sqrt(n). See ``photon_budget`` and ``restore_variance`` for other arguments.
    """

    def __init__(
        self,
        network: Any,
        brightest: float,
        window_px: List[int],
        beta: float = 0.0,
        restored: bool = True,
        least_gain: float = 1.0,
        cut: float = CUT,
    ) -> None:
        super().__init__()
        self.network, self.beta, self.restored = network, float(beta), restored
        self.brightest, self.least_gain, self.cut = float(brightest), float(least_gain), float(cut)
        self.window_px: List[int] = list(window_px)

    def draw(self, x: Tensor, log_p: Tensor, stop: Tensor, keys: Tensor, n_steps: int) -> Tuple[Tensor, Tensor, Tensor]:
        """Add photons to x, whose log-rates are ``log_p``, until there are ``stop`` (b,); return x_K, log p_K and f_K.

        The noise is a function of ``keys`` (b, 2) from ``sample_keys``. Items of a batch are independent.
        """
        n = n_0 = total_photons(x)
        brightest = torch.clamp(self.least_gain * brightest_mean(x, self.window_px), min=self.brightest)
        k, f = torch.zeros_like(keys[:, 0]), torch.ones_like(log_p.flatten(1).double())
        previous, growth = log_p, torch.zeros_like(n)
        dn, active = self.next_photons(x, n_0, n, stop, brightest, k, n_steps)
        while bool(torch.any(active)):
            x = accumulate(x, log_p, dn, step_keys(keys, k), f)
            n_before, n = n, total_photons(x)
            # items that are finished no longer change, nor do their factors
            growth = torch.where(active, n / torch.clamp(n_before, min=1.0) - 1.0, growth)
            previous = torch.where(active.reshape([-1] + [1] * (x.dim() - 1)), log_p, previous)
            k = k + active.long()
            log_p = self.network(x)
            if self.restored:
                f = restore_variance(log_p, previous, growth, n, step_keys(keys, k), self.cut)
            dn, active = self.next_photons(x, n_0, n, stop, brightest, k, n_steps)
        return x, log_p, f.float().reshape(x.shape)

    def next_photons(
        self, x: Tensor, n_0: Tensor, n: Tensor, stop: Tensor, brightest: Tensor, k: Tensor, n_steps: int
    ) -> Tuple[Tensor, Tensor]:
        """Return dn (b,) by the schedule, within the trained range, and which items continue."""
        headroom = brightest / torch.clamp(brightest_mean(x, self.window_px), min=1e-12)
        limit = n * torch.clamp(headroom.double(), min=1.0)
        # an image without photons has no brightest window yet
        target = torch.where(n > 0, torch.minimum(stop, limit), stop)
        if self.beta > 0:
            dn = geometric_step(self.beta, target, n)
            return dn, dn > 0
        dn = torch.minimum(equal_root_step(k, n_steps, n_0, stop, n), target - n)
        active = (k < n_steps) & (n < 0.999 * target)
        return torch.where(active, torch.clamp(dn, min=0.0), torch.zeros_like(dn)), active


def accumulate(x: Tensor, log_p: Tensor, dn: Tensor, keys: Tensor, f: Tensor) -> Tensor:
    """Return x + Poisson(softmax(log_p) f dn), with the softmax over each whole image; f is (b, n), dn (b,)."""
    flat = log_p.flatten(1).double()
    # in pieces that stay in the cache: drawing takes ten times the memory of the result
    n_pixels, size = flat.shape[1], 1 << 18
    log_total = torch.logsumexp(flat, 1, keepdim=True)
    pieces: List[Tensor] = []
    for start in range(0, n_pixels, size):
        stop = min(start + size, n_pixels)
        rate = torch.exp(flat[:, start:stop] - log_total) * f[:, start:stop] * dn.unsqueeze(1)
        pieces.append(poisson(rate, keys, torch.arange(start, stop, device=x.device)).float())
    return x + torch.cat(pieces, 1).reshape(x.shape)


def restore_variance(
    log_p: Tensor, before: Tensor, growth: Tensor, n: Tensor, keys: Tensor, cut: float = CUT, fine_px: int = 17
) -> Tensor:
    """Return f (b, n), one on average, which restores the variance that a frozen rate loses.

    Let P_k be the posterior covariance of s / sum(s) given x_k, and g = n_(k+1) / n_k - 1. An exact draw of the next dn
    photons has the covariance dn diag(p) + dn^2 P; with the rate frozen at p it is only dn diag(p). By the law of total
    variance Cov(p_(k+1) - p_k | x_k) = P_k - E P_(k+1) = g P_(k+1) where P falls as 1 / n. So the last change of the
    rate, times a random sign and 1 / sqrt(g), has the mean 0 and the missing covariance P_(k+1), to first order in g.
    The first step has no predecessor: its g is 0, and f is 1.

    Bound and box are empirical. The rates of a network that is not an exact posterior mean also change for other
    reasons, smoothly over many pixels. So the change of a pixel is bounded by the error of its own photons alone, and
    moves photons only within an odd box of ``fine_px``. Where only its own photons determine the rate of a pixel, the
    bound clips normal changes at one standard deviation, which leaves ``CUT`` of it. Where its neighbours contribute, P
    falls more slowly than 1 / n, and about as much is missing. So changes are divided by ``cut``, which is 1 for plain
    networks: they change too much from pixel to pixel. Both signs are treated equally, which preserves the mean.
    """
    after = torch.log_softmax(log_p.flatten(1).double(), 1)
    before = torch.log_softmax(before.flatten(1).double(), 1)
    strength = torch.where(growth > 0, torch.rsqrt(torch.clamp(growth, min=1e-6)), torch.zeros_like(growth))
    sign = 1.0 - 2.0 * (mix(keys[:, :1]) & 1).double()
    change = sign * strength.unsqueeze(1) * (1.0 - torch.exp(torch.clamp(before - after, max=60.0)))
    p = torch.exp(after)
    bound = torch.rsqrt(1.0 + p * n.unsqueeze(1))
    change = torch.clamp(torch.minimum(torch.maximum(change, -bound), bound) / cut, min=-1.0, max=1.0)
    box = odd_within(log_p, [fine_px] * (log_p.dim() - 2))
    excess = box_mean(torch.sum((p * change).reshape(log_p.shape), 1, keepdim=True), box)
    total = box_mean(torch.sum(p.reshape(log_p.shape), 1, keepdim=True), box)
    change = change - (excess / torch.clamp(total, min=1e-300)).expand_as(log_p).flatten(1)
    change = change - torch.sum(p * change, 1, keepdim=True)
    return 1.0 + torch.clamp(change, min=-1.0, max=1.0)


def equal_root_step(k: Tensor, n_steps: int, n_0: Tensor, stop: Tensor, n: Tensor) -> Tensor:
    """Return dn (b,) after which there are n_0 / (1 - (k + 1/2) / (K - 1/2) (1 - sqrt(n_0 / N)))^2 photons, float64.

    Equal steps in 1 / sqrt(n) lose the least posterior variance; the first is half as long, since it restores none.
    """
    done = (k.double() + 0.5) / (n_steps - 0.5) * (1.0 - torch.sqrt(n_0 / torch.clamp(stop, min=1.0)))
    return torch.clamp(n_0 / torch.square(torch.clamp(1.0 - done, min=1e-9)) - n, min=0.0)


def geometric_step(beta: float, stop: Tensor, n: Tensor) -> Tensor:
    """Return the paper's dn (b,), max(beta n, 1), until there are 99 % of ``stop`` photons; 0 from then on."""
    dn = torch.minimum(torch.clamp(beta * n, min=1.0), stop - n)
    return torch.where(n < 0.99 * stop, dn, torch.zeros_like(dn))


def photon_budget(x: Tensor, gain: float, brightest: float, window_px: List[int], least_gain: float = 1.0) -> Tensor:
    """Return N (b,): ``gain`` n_0, or less to keep the brightest window below ``brightest`` photons per pixel.

    N is at least ``least_gain`` n_0, even beyond this trained range.
    """
    headroom = brightest / torch.clamp(brightest_mean(x, window_px).double(), min=1e-12)
    return total_photons(x) * torch.clamp(headroom, min=least_gain, max=gain)


def brightest_mean(x: Tensor, window_px: List[int]) -> Tensor:
    """Return the mean photons per pixel in the brightest window of each image, (b,); a small image is one window."""
    return torch.amax(box_mean(torch.mean(x, 1, keepdim=True), odd_within(x, window_px)).flatten(1), 1)


def odd_within(x: Tensor, box_px: List[int]) -> List[int]:
    """Return a box of odd sizes that fits into the image."""
    return [min(box_px[axis], x.shape[axis + 2] - 1 + x.shape[axis + 2] % 2) for axis in range(len(box_px))]


def total_photons(x: Tensor) -> Tensor:
    """Return the photons of each image, (b,) float64."""
    return torch.sum(x.flatten(1).double(), 1)


def in_exposure(rate: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """Scale the expected counts given x to the exposure of the observed counts, all (b, c, [z,] y, x)."""
    share = total_photons(observed) / torch.clamp(total_photons(x), min=1e-12)
    return rate * share.float().reshape([-1] + [1] * (rate.dim() - 1))


class PosteriorSampler(Sampler):
    """The module of a sampling zip: counts in; mean, standard deviation and samples of the posterior out.

    ``forward`` draws ``n_samples`` with ``n_steps`` and ``seed`` up to ``gain``; ``box_px`` is the odd box in which
    photons are conserved; see ``PhotonDenoiser`` for ``rounded``, ``background``, ``ceiling`` and ``shift``.
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
        shift: float = 0.0,
        **network,
    ) -> None:
        super().__init__(UNet(**network), brightest, window_px)
        self.least_gain, self.cut = (LEAST_GAIN, CUT) if self.network.anchored else (1.0, 1.0)
        self.box_px: List[int] = odd_box(box_px, self.network.dim)
        if n_samples < 1 or n_steps < 1 or seed < 0:
            raise ValueError(f"n_samples={n_samples}, n_steps={n_steps}, seed={seed}: expected at least 1, 1 and 0")
        self.n_samples, self.n_steps, self.seed, self.gain = n_samples, n_steps, seed, float(gain)
        self.rounded, self.background, self.ceiling, self.shift = rounded, float(background), ceiling, float(shift)

    @torch.jit.export
    def sample(self, photons: Tensor, n_samples: int, n_steps: int, seed: int) -> Tensor:
        """Return expected photons in the observed exposure, (n_samples, b, c, [z,] y, x), for counts of any dtype."""
        if n_samples < 1 or n_steps < 1 or seed < 0:
            raise ValueError("expected at least 1 sample, 1 step and a seed of at least 0")
        photons = self.network.checked(photons)
        if self.shift > 0.0:
            photons = without_hot_pixels(photons)
        # keys depend on whole numbers, which are the same in every engine
        counts = without_hot_pixels(whole_counts(photons, self.rounded or self.shift > 0.0))
        photons = without_hot_pixels(network_counts(photons, self.rounded, self.shift))
        items: List[Tensor] = []
        # one by one: convolutions of a batch round differently, which may move a photon
        for item in range(photons.shape[0]):
            observed = photons[item : item + 1]
            log_p = self.network(observed)
            stop = photon_budget(observed, self.gain, self.brightest, self.window_px, self.least_gain)
            samples: List[Tensor] = []
            for number in range(n_samples):
                index = torch.full([1], number, dtype=torch.long, device=photons.device)
                keys = sample_keys(counts[item : item + 1], seed, index)
                x, last, f = self.draw(observed, log_p, stop, keys, n_steps)
                rate = self.network.rate(x, last, self.box_px) * f
                samples.append(photons_of(in_exposure(rate, x, observed), self.background, self.ceiling))
            items.append(torch.stack(samples))
        return torch.cat(items, 1)

    def forward(self, photons: Tensor) -> Tensor:
        """Return mean, standard deviation and samples along the channels, (b, (2 + n_samples) c, [z,] y, x)."""
        samples = self.sample(photons, self.n_samples, self.n_steps, self.seed)
        # written so that the mean of equal samples is exactly their value
        mean = samples[0] + torch.mean(samples - samples[0], 0)
        square = torch.sum(torch.square(samples - mean), 0) / max(self.n_samples - 1, 1)
        return torch.cat([mean, torch.sqrt(square), samples.transpose(0, 1).flatten(1, 2)], 1)


def poisson(rate: Tensor, keys: Tensor, index: Tensor) -> Tensor:
    """Draw Poisson counts (b, n) from keys (b, 2) and pixel numbers (n,), the same on every device and engine.

    Rates up to 18 use inversion with 52 random bits (more than 48 photons have a probability of 1e-9 there). Larger
    ones use the expansion ``rate + sqrt(rate) z + 1/3 + z^2/6 - ...`` of the inverse distribution for a normal z,
    rounded down. Source: M. Giles, ACM Trans. Math. Softw. 42(1), 2016, algorithm 955, the terms up to 1 / rate.
    """
    first, second = random_words(keys, index)
    small = torch.clamp(rate, max=18.0)
    # 52 bits plus one half are exact in float64, and never round up to 1
    uniform = (first.double() * 1048576.0 + (second >> 12).double() + 0.5) * 2.0**-52
    term = torch.exp(-small)
    below = term
    inverted = torch.zeros_like(rate)
    count = 1
    # not a for loop: it is unrolled, and the fuser of torch 2.0 compiles that for minutes
    while count < 49 and bool(torch.any(uniform > below)):
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
    """Return the keys (b, 2) of samples, numbered (b,) int64, of observed counts (1 or b, c, [z,] y, x).

    Different images, and different tiles of an image, draw different noise. The seed must not be negative.
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
    """Map 32-bit integers, held in int64, one to one to 32-bit integers that look random.

    The constants of C. Wellons (hash-prospector, public domain) are below 2^31, so products fit into int64.
    """
    x = (torch.bitwise_xor(x, x >> 16) * 0x21F0AAAD) & 0xFFFFFFFF
    x = (torch.bitwise_xor(x, x >> 15) * 0x735A2D97) & 0xFFFFFFFF
    return torch.bitwise_xor(x, x >> 15)
