"""The GAP network: photon counts in, log-rates (or rates) out.

Only torch is imported, and everything compiles with ``torch.jit.script``: this file travels unchanged in
every exported model as its architecture source, so what is tested here is what runs in Fiji.

Source: Krull et al., "Image Denoising and the Generative Accumulation of Photons", arXiv 2307.06607.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

from typing import Any, List, Optional, Tuple  # noqa: UP035  (TorchScript of older engines knows these)

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def encode(photons: Tensor, levels: int, log1p: bool) -> Tensor:
    """Encode counts as sin(x 10^-i), i < levels, and log(1 + x), along the channels.

    The sines are the original encoding; the logarithm keeps bright pixels apart, where the sines alone
    repeat themselves.
    """
    parts: List[Tensor] = []  # noqa: UP006
    for level in range(levels):
        parts.append(torch.sin(photons * (10.0**-level)))
    if log1p:
        parts.append(torch.log1p(photons))
    return torch.cat(parts, 1)


def pad_to_multiple(x: Tensor, step: List[int]) -> Tensor:  # noqa: UP006
    """Extend each spatial axis at its end to a multiple of ``step``, by mirroring.

    Works for every size, also for one pixel, unlike the reflection of ``torch.nn.functional.pad``.
    """
    for axis in range(len(step)):
        size = x.shape[axis + 2]
        extra = (step[axis] - size % step[axis]) % step[axis]
        if extra > 0:
            index = torch.arange(size + extra, device=x.device) % (2 * size)
            x = x.index_select(axis + 2, torch.minimum(index, 2 * size - 1 - index))
    return x


def box_mean(x: Tensor, box_px: List[int]) -> Tensor:  # noqa: UP006
    """Average over an odd box around each pixel, axis by axis; what lies outside counts as zero."""
    for axis in range(len(box_px)):
        size = box_px[axis]
        rows = x.movedim(axis + 2, -1)
        means = F.avg_pool1d(rows.reshape(-1, 1, rows.shape[-1]), size, 1, size // 2)
        x = means.reshape(rows.shape).movedim(-1, axis + 2)
    return x


def conserve_photons(photons: Tensor, log_rate: Tensor, box_px: List[int]) -> Tensor:  # noqa: UP006
    """Turn log-rates into expected photons per pixel that conserve the photons of every box.

    ``rate = exp(l) boxmean(photons) / boxmean(exp(l))``, both means over all channels: the softmax of a
    whole image is the limit of a large box, but this form depends on a neighbourhood only, so that tiles
    agree with each other.
    """
    dims = list(range(1, log_rate.dim()))
    # a constant cancels in the ratio; subtracting the largest keeps exp from overflowing
    weight = torch.exp(torch.clamp(log_rate - torch.amax(log_rate, dims, keepdim=True), min=-80.0))
    seen = box_mean(torch.sum(photons, 1, keepdim=True), box_px)
    expected = box_mean(torch.sum(weight, 1, keepdim=True), box_px)
    # in this order: the share is at most the box's size, while seen / expected may overflow
    return weight / expected * seen


def rate_from_log_rate(log_rate: Tensor, photons: Tensor) -> Tensor:
    """Turn the log-rates of whole images into expected photons: softmax times the photons of the input.

    Source: arXiv 2307.06607, section 3; the softmax runs over channels and pixels of each image.
    """
    total = torch.sum(photons.flatten(1).double(), 1, keepdim=True)
    rate = torch.softmax(log_rate.flatten(1).double(), 1) * total
    return rate.float().reshape(log_rate.shape)


def whole_counts(photons: Tensor, rounded: bool) -> Tensor:
    """Return counts as networks know them: not negative, and whole where they were computed from camera values."""
    photons = torch.clamp(photons, min=0.0)
    return torch.round(photons) if rounded else photons


def photons_of(rate: Tensor, background: float, ceiling: int) -> Tensor:
    """Return the photons of the sample from the expected counts.

    Parameters
    ----------
    rate
        Expected counts per pixel.
    background
        Counts that are there without light (a camera's read noise), subtracted.
    ceiling
        Largest count of a pixel, if it is the sum of that many one-bit frames: a frame that catches any photon counts
        one, with the chance ``q = 1 - exp(-s)``; solved for the photons s. 0 for none.
    """
    if ceiling > 0:
        return -ceiling * torch.log1p(-torch.clamp(rate / ceiling, max=0.999))
    return rate - background


def total_photons(photons: Tensor) -> Tensor:
    """Return the photons of each image, (b,) float64."""
    return torch.sum(photons.flatten(1).double(), 1)


def brightest_mean(photons: Tensor, window_px: List[int]) -> Tensor:  # noqa: UP006
    """Return the mean photons per pixel of each image's brightest window, (b,); small images are one window."""
    box: List[int] = []  # noqa: UP006
    for axis in range(len(window_px)):
        size = photons.shape[axis + 2]
        box.append(min(window_px[axis], size - 1 + size % 2))
    return torch.amax(box_mean(torch.mean(photons, 1, keepdim=True), box).flatten(1), 1)


def photon_budget(photons: Tensor, gain: float, brightest: float, window_px: List[int]) -> Tensor:  # noqa: UP006
    """Return the photons (b,) that sampling may climb to: ``gain`` times those given, within the trained range.

    The range is kept where an image's brightest window has at most ``brightest`` photons per pixel; images
    beyond it may not gain any.
    """
    room = brightest / torch.clamp(brightest_mean(photons, window_px).double(), min=1e-12)
    return total_photons(photons) * torch.clamp(room, min=1.0, max=gain)


def equal_root_step(step: int, n_steps: int, start: Tensor, stop: Tensor, now: Tensor) -> Tensor:
    """Return the photons (b,) to add in a step of the schedule that is equidistant in 1 / sqrt(photons).

    After step k of K an image that began with n0 photons and ends with N has
    ``n0 / (1 - k/K (1 - sqrt(n0/N)))^2``. Equal steps lose the least of the posterior's variance.

    Parameters
    ----------
    step, n_steps
        Which one, counted from 0, of how many.
    start, stop, now
        Photons of each image at the start, at the end and now, (b,) float64.
    """
    climbed = (step + 1) / n_steps * (1.0 - torch.sqrt(start / torch.clamp(stop, min=1.0)))
    return torch.clamp(start / torch.square(torch.clamp(1.0 - climbed, min=1e-9)) - now, min=0.0)


def geometric_step(beta: float, stop: Tensor, now: Tensor) -> Tensor:
    """Return the photons (b,) to add in a step of the paper's schedule: max(beta n, 1), until ``stop``.

    Source: arXiv 2307.06607, section 3.3; counted for each image by itself. An image that has 99 % of its
    photons is finished.
    """
    wanted = torch.minimum(torch.clamp(beta * now, min=1.0), stop - now)
    return torch.where(now < 0.99 * stop, wanted, torch.zeros_like(wanted))


def mix(x: Tensor) -> Tensor:
    """Mix 32-bit integers, held in int64, into 32-bit integers that look random; one to one.

    The constants are those that C. Wellons found by search (hash-prospector, public domain); both are below
    2^31, so that no product leaves int64.
    """
    x = (torch.bitwise_xor(x, x >> 16) * 0x21F0AAAD) & 0xFFFFFFFF
    x = (torch.bitwise_xor(x, x >> 15) * 0x735A2D97) & 0xFFFFFFFF
    return torch.bitwise_xor(x, x >> 15)


def random_words(keys: Tensor, index: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Return two random 32-bit integers for each key (b, 2) and pixel number (n,), both (b, n)."""
    low, high = index & 0xFFFFFFFF, index >> 32
    first, second = keys[:, :1], keys[:, 1:]
    return (
        mix(torch.bitwise_xor(mix(torch.bitwise_xor(low, first)), torch.bitwise_xor(high, second))),
        mix(torch.bitwise_xor(mix(torch.bitwise_xor(low, second)), torch.bitwise_xor(high, first))),
    )


def count_keys(photons: Tensor) -> Tensor:
    """Hash the counts of each image, (b, 2): different images, and different tiles, draw different noise."""
    values = torch.round(photons.flatten(1)).long() & 0xFFFFFFFF
    index = torch.arange(values.shape[1], device=photons.device)
    lanes: List[Tensor] = []  # noqa: UP006
    for salt in (0x2545F491, 0x6C078965):
        lanes.append(torch.sum(mix(torch.bitwise_xor(mix(torch.bitwise_xor(index & 0xFFFFFFFF, salt)), values)), 1))
    return mix(torch.stack(lanes, 1) & 0xFFFFFFFF)


def draw_keys(counts: Tensor, seed: int, samples: Tensor, step: int) -> Tensor:
    """Return the keys (b, 2) of one sampling step.

    Parameters
    ----------
    counts
        From ``count_keys``, of the observed photons.
    seed, step
        The seed, and the step counted from 0.
    samples
        Number of the sample that each item of the batch is, (b,) int64.
    """
    keys = mix(torch.bitwise_xor(counts, seed & 0xFFFFFFFF))
    keys = mix(torch.bitwise_xor(keys, (seed >> 32) & 0xFFFFFFFF))
    keys = mix(torch.bitwise_xor(keys, samples.unsqueeze(1)))
    return mix(torch.bitwise_xor(keys, step))


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
        (b, 2), from ``draw_keys``.
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
    for count in range(1, 49):
        inverted = inverted + (uniform > below).double()
        term = term * small / count
        below = below + term
    angle = (second.double() + 0.5) * (2.0**-31 * 3.141592653589793)
    z = torch.sqrt(-2.0 * torch.log((first.double() + 0.5) * 2.0**-32)) * torch.cos(angle)
    large = torch.clamp(rate, min=18.0)
    root, square = torch.sqrt(large), z * z
    inverse = large + root * z + (2.0 + square) / 6.0 - z * (2.0 + square) / (72.0 * root)
    inverse = inverse + (square * (3.0 * square + 7.0) - 16.0) / (810.0 * large)
    return torch.where(rate > 18.0, torch.clamp(torch.floor(inverse), min=0.0), inverted)


def spread(log_rate: Tensor, previous: Tensor, growth: Tensor, now: Tensor, keys: Tensor, fine_px: int = 17) -> Tensor:
    """Return factors (b, n), one on average, that restore the variance which a frozen rate loses.

    While a step's photons are drawn the rate stays what it was, so that they lack the covariance P of the
    posterior. The rate's last change is itself a draw whose covariance is P times the growth of the photons
    (P falls as 1 / photons; more slowly where the prior decides, and then less is restored than was lost).
    A random sign of it, divided by the root of the growth, has the covariance that is missing.

    A network that is no exact posterior mean also changes for other reasons, smoothly over many pixels. So a
    pixel changes by no more than the error that its own photons alone leave, and only against its neighbours:
    the photons of a box of ``fine_px`` around it stay. All of this is alike on both sides, so that the mean stays.

    Parameters
    ----------
    log_rate, previous
        Log-rates now and one step before, (b, c, [z,] y, x).
    growth
        Photons now per photon one step before, minus 1, (b,); 0 where there was no step before.
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
    box: List[int] = []  # noqa: UP006
    for size in log_rate.shape[2:]:
        box.append(min(fine_px, size - 1 + size % 2))
    moved = box_mean(torch.sum((share * change).reshape(log_rate.shape), 1, keepdim=True), box)
    there = box_mean(torch.sum(share.reshape(log_rate.shape), 1, keepdim=True), box)
    change = change - (moved / torch.clamp(there, min=1e-300)).expand_as(log_rate).flatten(1)
    change = change - torch.sum(share * change, 1, keepdim=True)
    return 1.0 + torch.clamp(change, min=-1.0, max=1.0)


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
        From ``draw_keys``.
    factor
        From ``spread``, (b, n), or ones (b, 1).
    """
    flat = log_rate.flatten(1).double()
    # in pieces that stay in the cache: random numbers take ten times the memory of what they make
    n_pixels, size = flat.shape[1], 1 << 18
    log_total = torch.logsumexp(flat, 1, keepdim=True)
    factor = factor.expand(-1, n_pixels)
    pieces: List[Tensor] = []  # noqa: UP006
    for start in range(0, n_pixels, size):
        stop = min(start + size, n_pixels)
        rate = torch.exp(flat[:, start:stop] - log_total) * factor[:, start:stop] * n_new.unsqueeze(1)
        index = torch.arange(start, stop, device=photons.device)
        pieces.append(poisson(rate, keys, index).float())
    return photons + torch.cat(pieces, 1).reshape(photons.shape)


class ConvBlock(nn.Module):
    """Three convolutions, the last two on a residual path."""

    def __init__(self, inputs: int, outputs: int, dim: int, along_z: bool) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dim == 2 else nn.Conv3d
        kernel = _per_axis(3, 1, dim, along_z)
        padding = _per_axis(1, 0, dim, along_z)
        self.conv1 = conv(inputs, outputs, kernel, padding=padding)
        self.conv2 = conv(outputs, outputs, kernel, padding=padding)
        self.conv3 = conv(outputs, outputs, kernel, padding=padding)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the three convolutions, (b, inputs, ...) to (b, outputs, ...)."""
        shortcut = self.conv1(x)
        x = torch.relu(self.conv2(shortcut))
        return torch.relu(self.conv3(x) + shortcut)


class DownConv(ConvBlock):
    """Encoder block."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of this level, (b, outputs, ...)."""
        return self.convolve(x)


class LinearUpsample(nn.Module):
    """Double the size of the pooled axes linearly.

    ``nn.Upsample`` is not used: scripted by recent torch it names operators that older engines lack,
    even in branches that never run.
    """

    def __init__(self, dim: int, along_z: bool) -> None:
        super().__init__()
        self.planar = dim == 2
        self.z_factor = 2 if along_z else 1

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (b, c, [z,] y, x)."""
        y, x_ = 2 * x.shape[-2], 2 * x.shape[-1]
        if self.planar:
            return torch._C._nn.upsample_bilinear2d(x, [y, x_], False)  # type: ignore[call-arg]
        return torch._C._nn.upsample_trilinear3d(  # type: ignore[call-arg]
            x, [self.z_factor * x.shape[2], y, x_], False
        )


class UpConv(ConvBlock):
    """Decoder block: double the size, merge with the encoder's features, convolve."""

    def __init__(self, inputs: int, outputs: int, dim: int, along_z: bool, up_mode: str, merge_mode: str) -> None:
        super().__init__(2 * outputs if merge_mode == "concat" else outputs, outputs, dim, along_z)
        self.concat = merge_mode == "concat"
        if up_mode == "transpose":
            transposed: Any = nn.ConvTranspose2d if dim == 2 else nn.ConvTranspose3d
            factor = _per_axis(2, 1, dim, along_z)
            self.upconv: nn.Module = transposed(inputs, outputs, factor, stride=factor)
        else:
            # as in the original checkpoints: 1x1 in 2D, 3x3x3 in 3D
            conv = nn.Conv2d(inputs, outputs, 1) if dim == 2 else nn.Conv3d(inputs, outputs, 3, padding=1)
            self.upconv = nn.Sequential(LinearUpsample(dim, along_z), conv)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the features of this level from the level below and the encoder's skip."""
        x = self.upconv(x)
        x = torch.cat([x, skip], 1) if self.concat else x + skip
        return self.convolve(x)


class UNet(nn.Module):
    """Residual U-Net from counts to log-rates, in 2D or 3D, for inputs of any size.

    Parameter names are those of the original code, so that its checkpoints load.

    Parameters
    ----------
    dim
        Spatial dimensions, 2 or 3.
    channels
        Image channels.
    levels
        Number of sines in the encoding.
    log1p
        Add log(1 + counts) to the encoding; the original has none.
    depth, start_filts
        Resolution levels, and filters of the first, doubled at each next one.
    up_mode, merge_mode
        "transpose" or "upsample"; "add" or "concat".
    z_conv_stage
        3D: number of levels that convolve and pool along z; None for all.
    """

    def __init__(
        self,
        dim: int = 2,
        channels: int = 1,
        levels: int = 10,
        log1p: bool = True,
        depth: int = 5,
        start_filts: int = 32,
        up_mode: str = "transpose",
        merge_mode: str = "add",
        z_conv_stage: Optional[int] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        if dim not in (2, 3) or up_mode not in ("transpose", "upsample") or merge_mode not in ("add", "concat"):
            raise ValueError(
                f"dim={dim}, up_mode={up_mode!r}, merge_mode={merge_mode!r}: expected dim 2 or 3, "
                "up_mode 'transpose' or 'upsample', merge_mode 'add' or 'concat'"
            )
        self.dim, self.channels, self.levels, self.log1p, self.depth = dim, channels, levels, log1p, depth
        z_stages = depth if z_conv_stage is None else z_conv_stage
        self.along_z = [stage < z_stages for stage in range(depth)]
        self.upsampled = up_mode == "upsample"
        filters = [start_filts * 2**stage for stage in range(depth)]
        inputs = [channels * (levels + int(log1p)), *filters[:-1]]
        self.down_convs = nn.ModuleList(
            DownConv(i, o, dim, along) for i, o, along in zip(inputs, filters, self.along_z, strict=False)
        )
        factors = [_per_axis(2, 1, dim, along) for along in self.along_z[:-1]]
        pool = nn.MaxPool2d if dim == 2 else nn.MaxPool3d
        self.pools = nn.ModuleList(pool(factor) for factor in factors)
        self.up_convs = nn.ModuleList(
            UpConv(filters[stage + 1], filters[stage], dim, self.along_z[stage], up_mode, merge_mode)
            for stage in reversed(range(depth - 1))
        )
        final = nn.Conv2d if dim == 2 else nn.Conv3d
        self.conv_final = final(filters[0], channels, 1)
        # inputs are extended to multiples of this, and tiles must start at multiples of it
        self.step_px: List[int] = [  # noqa: UP006
            int(torch.tensor([1, *(factor[axis] for factor in factors)]).prod()) for axis in range(dim)
        ]
        self._initialise()

    def _initialise(self) -> None:
        """He's initialisation; a zero last layer starts at the uniform distribution."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.conv_final.weight)

    def fitting(self, photons: Tensor) -> Tensor:
        """Return counts in the type of the weights.

        Raises
        ------
        ValueError
            If they are not (b, c, [z,] y, x), with the network's channels.
        """
        if photons.dim() != self.dim + 2 or photons.shape[1] != self.channels:
            axes = "batch, channel, y, x" if self.dim == 2 else "batch, channel, z, y, x"
            raise ValueError(
                f"the input has the shape {photons.shape}, expected ({axes}) with {self.channels} channels"
            )
        return photons.to(self.conv_final.weight.dtype)

    def forward(self, photons: Tensor) -> Tensor:
        """Return the log-rate of the next photon, up to one constant per image.

        Parameters
        ----------
        photons
            Counts (b, c, [z,] y, x), float32, any size.

        Returns
        -------
        log_rate
            Same shape; its softmax over channels and pixels is the distribution of the next photon.
        """
        x = encode(pad_to_multiple(photons, self.step_px), self.levels, self.log1p)
        skips: List[Tensor] = []  # noqa: UP006
        for down, pool in zip(self.down_convs, self.pools, strict=False):
            skips.append(down(x))
            x = pool(skips[-1])
        x = self.down_convs[-1](x)
        for up in self.up_convs:
            x = up(x, skips.pop())
        log_rate: Tensor = self.conv_final(x)
        for axis in range(len(self.step_px)):
            log_rate = log_rate.narrow(axis + 2, 0, photons.shape[axis + 2])
        return log_rate


class PhotonDenoiser(nn.Module):
    """Counts in, denoised photons out: what an exported model runs.

    Parameters
    ----------
    box_px
        Odd box, per spatial axis, in which photons are conserved (see ``conserve_photons``).
    rounded
        Round the input to whole counts, if it was computed from camera values.
    background, ceiling
        See ``photons_of``.
    network
        Arguments of ``UNet``.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self,
        box_px: List[int],  # noqa: UP006
        rounded: bool = False,
        background: float = 0.0,
        ceiling: int = 0,
        **network,
    ) -> None:
        super().__init__()
        self.network = UNet(**network)
        self.box_px: List[int] = _odd_box(box_px, self.network.dim)  # noqa: UP006
        self.rounded, self.background, self.ceiling = rounded, float(background), ceiling

    def forward(self, photons: Tensor) -> Tensor:
        """Return the expected photons per pixel, same shape as ``photons`` (b, c, [z,] y, x), counts of any type."""
        photons = whole_counts(self.network.fitting(photons), self.rounded)
        rate = conserve_photons(photons, self.network(photons), self.box_px)
        return photons_of(rate, self.background, self.ceiling)


class PosteriorSampler(nn.Module):
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
        box_px: List[int],  # noqa: UP006
        n_samples: int,
        n_steps: int,
        seed: int,
        gain: float,
        brightest: float,
        window_px: List[int],  # noqa: UP006
        rounded: bool = False,
        background: float = 0.0,
        ceiling: int = 0,
        **network,
    ) -> None:
        super().__init__()
        self.network = UNet(**network)
        self.box_px: List[int] = _odd_box(box_px, self.network.dim)  # noqa: UP006
        if n_samples < 1 or n_steps < 1 or seed < 0:
            raise ValueError(f"n_samples={n_samples}, n_steps={n_steps}, seed={seed}: expected at least 1, 1 and 0")
        self.n_samples, self.n_steps, self.seed = n_samples, n_steps, seed
        self.gain, self.brightest = float(gain), float(brightest)
        self.window_px: List[int] = list(window_px)  # noqa: UP006
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
        photons = self.network.fitting(photons)
        items: List[Tensor] = []  # noqa: UP006
        # one by one: convolutions of a batch round otherwise, which may move a photon
        for item in range(photons.shape[0]):
            items.append(self._sample_one(photons[item : item + 1], n_samples, n_steps, seed))
        return torch.cat(items, 1)

    def _sample_one(self, photons: Tensor, n_samples: int, n_steps: int, seed: int) -> Tensor:
        photons = whole_counts(photons, self.rounded)
        counts, start = count_keys(photons), total_photons(photons)
        stop = photon_budget(photons, self.gain, self.brightest, self.window_px)
        first = self.network(photons)
        samples: List[Tensor] = []  # noqa: UP006
        for number in range(n_samples):
            numbers = torch.full([1], number, dtype=torch.long, device=photons.device)
            x, log_rate, previous, growth = photons, first, first, torch.zeros_like(start)
            for step in range(n_steps + 1):
                keys, now = draw_keys(counts, seed, numbers, step), total_photons(x)
                factor = spread(log_rate, previous, growth, now, keys)
                if step == n_steps:
                    rate = conserve_photons(x, log_rate, self.box_px) * factor.float().reshape(x.shape)
                    seen = rate * (start / torch.clamp(now, min=1e-12)).float()
                    samples.append(photons_of(seen, self.background, self.ceiling))
                else:
                    n_new = equal_root_step(step, n_steps, start, stop, now)
                    x = accumulate(x, log_rate, n_new, keys, factor)
                    previous, log_rate = log_rate, self.network(x)
                    growth = total_photons(x) / torch.clamp(now, min=1.0) - 1.0
        return torch.stack(samples)

    def forward(self, photons: Tensor) -> Tensor:
        """Return mean, standard deviation and samples along the channels, (b, (2 + n_samples) c, [z,] y, x)."""
        samples = self.sample(photons, self.n_samples, self.n_steps, self.seed)
        # in this form the mean of equal samples is exactly theirs
        mean = samples[0] + torch.mean(samples - samples[0], 0)
        square = torch.sum(torch.square(samples - mean), 0) / max(self.n_samples - 1, 1)
        return torch.cat([mean, torch.sqrt(square), samples.transpose(0, 1).flatten(1, 2)], 1)


def _odd_box(box_px: List[int], dim: int) -> List[int]:  # noqa: UP006
    if len(box_px) != dim or any(size % 2 != 1 for size in box_px):
        raise ValueError(f"box_px={list(box_px)}: expected {dim} odd numbers")
    return list(box_px)


def _per_axis(planar: int, through_z: int, dim: int, along_z: bool) -> Tuple[int, ...]:  # noqa: UP006
    """Sizes per axis: ``planar`` everywhere, or ``through_z`` along z where z takes no part."""
    return (planar,) * dim if dim == 2 or along_z else (through_z, planar, planar)
