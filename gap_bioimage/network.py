"""The GAP network: photon counts in, log-rates (or rates) out.

Besides torch only ``anchor.py`` and ``filters.py`` are imported, and everything compiles with ``torch.jit.script``.
Exported models carry the three files, joined, as their architecture source: the code tested here runs in Fiji.

An anchored network (the default in training) corrects locally smoothed counts, so its rates are in photons of the
input. The log-rates of a plain U-Net, such as the original, have an unknown additive constant per image.

Source: Krull et al., "Image Denoising and the Generative Accumulation of Photons", arXiv 2307.06607.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

import math
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gap_bioimage.anchor import FIT_POOL, Anchor
from gap_bioimage.filters import hot_pixels, network_counts, without_hot_pixels


def encode(photons: Tensor, levels: int, log1p: bool) -> Tensor:
    """Encode counts as sin(x 10^-i), i < levels, and log(1 + x), along the channels.

    The sines are the original encoding. They are periodic; the logarithm distinguishes bright pixels.
    """
    parts = [torch.sin(photons * (10.0**-level)) for level in range(levels)]
    if log1p:
        parts.append(torch.log1p(photons))
    return torch.cat(parts, 1)


def pad_to_multiple(x: Tensor, step: List[int]) -> Tensor:
    """Extend each spatial axis at its end to a multiple of ``step`` by mirroring; works down to one pixel."""
    for axis in range(len(step)):
        size = x.shape[axis + 2]
        extra = (step[axis] - size % step[axis]) % step[axis]
        if extra > 0:
            index = torch.arange(size + extra, device=x.device) % (2 * size)
            x = x.index_select(axis + 2, torch.minimum(index, 2 * size - 1 - index))
    return x


def box_mean(x: Tensor, box_px: List[int]) -> Tensor:
    """Average over an odd box around each pixel, axis by axis; pixels outside the image count as zero."""
    for axis in range(len(box_px)):
        size = box_px[axis]
        rows = x.movedim(axis + 2, -1)
        means = F.avg_pool1d(rows.reshape(-1, 1, rows.shape[-1]), size, 1, size // 2)
        x = means.reshape(rows.shape).movedim(-1, axis + 2)
    return x


def conserve_photons(photons: Tensor, log_rate: Tensor, box_px: List[int]) -> Tensor:
    """Turn log-rates into expected photons per pixel, conserving the photons in a box around each pixel.

    ``rate = exp(l) boxmean(photons) / boxmean(exp(l))``, both means over all channels and without hot pixels. In the
    limit of a large box this is the softmax of the whole image; a finite box uses a neighbourhood only, so tiles agree.
    """
    dims = list(range(1, log_rate.dim()))
    # a constant cancels in the ratio; subtracting the maximum prevents overflow of exp
    weight = torch.exp(torch.clamp(log_rate - torch.amax(log_rate, dims, keepdim=True), min=-80.0))
    cold = 1.0 - hot_pixels(photons).to(weight.dtype)
    observed = box_mean(torch.sum(photons * cold, 1, keepdim=True), box_px)
    expected = torch.clamp(box_mean(torch.sum(weight * cold, 1, keepdim=True), box_px), min=1e-38)
    # in this order: weight / expected is at most the size of the box, while observed / expected may overflow
    return weight / expected * observed


def rate_from_log_rate(log_rate: Tensor, photons: Tensor) -> Tensor:
    """Turn the log-rates of whole images into expected photons: softmax times the photons of the input.

    Source: arXiv 2307.06607, section 3. The softmax runs over channels and pixels of each image, without hot pixels.
    """
    cold = (1.0 - hot_pixels(photons).double()).flatten(1)
    total = torch.sum(photons.flatten(1).double() * cold, 1, keepdim=True)
    share = torch.softmax(log_rate.flatten(1).double(), 1)
    rate = share / torch.clamp(torch.sum(share * cold, 1, keepdim=True), min=1e-300) * total
    return rate.float().reshape(log_rate.shape)


def photons_of(rate: Tensor, background: float, ceiling: int) -> Tensor:
    """Return the photons from the sample: the expected counts minus ``background``, the counts without light.

    If pixels are sums of ``ceiling`` one-bit frames (0 if not), a frame counts 1 if it catches at least one photon,
    which has the probability ``q = 1 - exp(-s)``. This is solved for the photons s, summed over the frames.
    """
    if ceiling > 0:
        return -ceiling * torch.log1p(-torch.clamp(rate / ceiling, max=0.999))
    return rate - background


def paired(x: Tensor, filters: int) -> Tensor:
    """Duplicate a single small volume on a CPU: torch convolves one without oneDNN, which takes ten times as long.

    Source: ``use_mkldnn`` in aten/src/ATen/native/Convolution.cpp, torch 1.13 to 2.13.
    """
    single = x.dim() == 5 and x.shape[0] == 1 and x.dtype == torch.float32 and x.device.type == "cpu"
    return torch.cat([x, x]) if single and filters * x.shape[2] * x.shape[3] <= 20480 else x


class ConvBlock(nn.Module):
    """Three convolutions, the last two on a residual path; with a stem the first folds ``stem`` x ``stem`` pixels."""

    def __init__(self, inputs: int, outputs: int, dim: int, along_z: bool, stem: int = 1) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dim == 2 else nn.Conv3d
        kernel, padding = _per_axis(3, 1, dim, along_z), _per_axis(1, 0, dim, along_z)
        if stem == 1:
            self.conv1 = conv(inputs, outputs, kernel, padding=padding)
        else:
            folded = _per_axis(stem, 1, dim, False)
            self.conv1 = conv(inputs, outputs, folded, stride=folded)
        self.conv2 = conv(outputs, outputs, kernel, padding=padding)
        self.conv3 = conv(outputs, outputs, kernel, padding=padding)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the three convolutions, (b, inputs, ...) to (b, outputs, ...); a small volume returns as two copies."""
        shortcut = self.conv1(paired(x, min(x.shape[1], self.conv2.out_channels)))
        # in place: allocating results takes half of the time spent outside convolutions
        x = torch.relu_(self.conv2(shortcut))
        return torch.relu_(self.conv3(x).add_(shortcut))


class DownConv(ConvBlock):
    """Encoder block."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of this level, (b, outputs, ...)."""
        return self.convolve(x)


class LinearUpsample(nn.Module):
    """Double the size of the pooled axes linearly.

    Not ``nn.Upsample``: scripted by recent torch it names operators that older engines lack, even in unused branches.
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
    """Decoder block: upsample by two, merge with the encoder's features, convolve."""

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
        x = self.upconv(x).narrow(0, 0, skip.shape[0])
        x = torch.cat([x, skip], 1) if self.concat else x + skip
        return self.convolve(x)


class UNet(nn.Module):
    """Residual U-Net from counts to log-rates, in 2D or 3D, for inputs of any size.

    Parameter names are those of the original code, so its checkpoints load.

    With ``anchor`` the network corrects smoothed counts (see ``Anchor``); otherwise ``levels`` sines and ``log1p``
    encode counts. There are ``depth`` resolution levels; the first has ``start_filts`` filters, each further one twice
    as many. ``up_mode`` is "transpose" or "upsample", ``merge_mode`` "add" or "concat". In 3D the first
    ``z_conv_stage`` levels convolve and pool along z (None: all). ``stem`` x ``stem`` pixels in y and x are folded into
    one before the first level and unfolded after the last.
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
        z_conv_stage: Optional[int] = None,
        anchor: bool = False,
        anchor_version: int = 1,
        stem: int = 1,
    ) -> None:
        super().__init__()
        if dim not in (2, 3) or up_mode not in ("transpose", "upsample") or merge_mode not in ("add", "concat"):
            raise ValueError(
                f"dim={dim}, up_mode={up_mode!r}, merge_mode={merge_mode!r}: expected dim 2 or 3, "
                "up_mode 'transpose' or 'upsample', merge_mode 'add' or 'concat'"
            )
        self.dim, self.channels, self.levels, self.log1p, self.depth = dim, channels, levels, log1p, depth
        z_stages = depth if z_conv_stage is None else z_conv_stage
        self.along_z, self.stem = [stage < z_stages for stage in range(depth)], stem
        self.upsampled = up_mode == "upsample"
        filters = [start_filts * 2**stage for stage in range(depth)]
        self.anchored, self.anchor = anchor, Anchor(dim, anchor_version, anchor)
        features = self.anchor.n_features if anchor else levels + int(log1p)
        inputs = [channels * features, *filters[:-1]]
        self.down_convs = nn.ModuleList(
            DownConv(i, o, dim, along, 1 if stage else stem)
            for stage, (i, o, along) in enumerate(zip(inputs, filters, self.along_z, strict=False))
        )
        factors = [_per_axis(2, 1, dim, along) for along in self.along_z[:-1]]
        self.pools = nn.ModuleList((nn.MaxPool2d if dim == 2 else nn.MaxPool3d)(factor) for factor in factors)
        self.up_convs = nn.ModuleList(
            UpConv(filters[stage + 1], filters[stage], dim, self.along_z[stage], up_mode, merge_mode)
            for stage in reversed(range(depth - 1))
        )
        final: Any = (nn.Conv2d, nn.Conv3d)[dim - 2] if stem == 1 else (nn.ConvTranspose2d, nn.ConvTranspose3d)[dim - 2]
        unfolded = _per_axis(stem, 1, dim, False)
        self.conv_final = final(filters[0], channels * (self.anchor.n_answers if anchor else 1), unfolded, unfolded)
        # inputs are padded to multiples of this, and tiles must start at multiples of it
        factors.append(unfolded)
        self.step_px: List[int] = [math.prod(factor[axis] for factor in factors) for axis in range(dim)]
        if anchor:  # it pools 4 x 4 or 8 x 8 pixels
            self.step_px[-2:] = [max(step, 4 if anchor_version == 1 else FIT_POOL) for step in self.step_px[-2:]]
        self._initialise()

    def _initialise(self) -> None:
        """Apply He initialisation; a zero last layer starts at the uniform distribution, or at the anchor's estimate.

        The blocks of anchored networks start as their first convolution alone: their residual paths end in zeros.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.modules():
            if self.anchored and isinstance(block, ConvBlock):
                nn.init.zeros_(block.conv3.weight)
        nn.init.zeros_(self.conv_final.weight)
        nn.init.zeros_(self.conv_final.bias)

    def checked(self, photons: Tensor) -> Tensor:
        """Return counts in the dtype of the weights; raise ValueError if axes or channels do not fit the network."""
        if photons.dim() != self.dim + 2 or photons.shape[1] != self.channels:
            axes = "batch, channel, y, x" if self.dim == 2 else "batch, channel, z, y, x"
            raise ValueError(f"the input has shape {photons.shape}, expected ({axes}) with {self.channels} channels")
        return photons.to(self.conv_final.weight.dtype)

    def forward(self, photons: Tensor) -> Tensor:
        """Return the log-rate of the next photon for float32 counts (b, c, [z,] y, x) of any size; same shape.

        Its softmax over channels and pixels is the distribution of the next photon. It is the logarithm of the expected
        counts: exactly for anchored networks, up to one constant per image for plain ones.
        """
        if not self.anchored:
            x = encode(pad_to_multiple(photons, self.step_px), self.levels, self.log1p)
            return self._answer(x, photons)
        features, smoothed, weight = self.anchor(without_hot_pixels(photons))
        answer = self._answer(pad_to_multiple(features, self.step_px), photons)
        return self.anchor.log_rate(answer, smoothed, weight)

    def _answer(self, x: Tensor, photons: Tensor) -> Tensor:
        """Run the U-Net in the dtype of its weights, and crop the padding."""
        x = x.to(self.conv_final.weight.dtype)
        skips: List[Tensor] = []
        for down, pool in zip(self.down_convs, self.pools, strict=False):
            skips.append(down(x))
            x = pool(skips[-1])
        x = self.down_convs[-1](x)
        for up in self.up_convs:
            x = up(x, skips.pop())
        x = self.conv_final(x).narrow(0, 0, photons.shape[0])
        for axis in range(len(self.step_px)):
            x = x.narrow(axis + 2, 0, photons.shape[axis + 2])
        return x

    def rate(self, photons: Tensor, log_rate: Tensor, box_px: List[int]) -> Tensor:
        """Turn the result of ``forward`` for ``photons`` into expected counts per pixel, (b, c, [z,] y, x).

        Anchored networks have a scale; plain ones conserve photons in an odd box (in the image if ``box_px`` is empty).
        """
        if self.anchored:
            return torch.exp(log_rate)
        if len(box_px) == 0:
            return rate_from_log_rate(log_rate, photons)
        return conserve_photons(photons, log_rate, box_px)


class PhotonDenoiser(nn.Module):
    """The module of an exported model: counts in, denoised photons out.

    See ``UNet.rate`` for ``box_px``, ``network_counts`` for ``rounded`` and ``shift``, ``photons_of`` for
    ``background`` and ``ceiling``; ``network`` holds the arguments of ``UNet``.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self,
        box_px: List[int],
        rounded: bool = False,
        background: float = 0.0,
        ceiling: int = 0,
        shift: float = 0.0,
        **network,
    ) -> None:
        super().__init__()
        self.network = UNet(**network)
        self.box_px: List[int] = odd_box(box_px, self.network.dim)
        self.rounded, self.background, self.ceiling, self.shift = rounded, float(background), ceiling, float(shift)

    def forward(self, photons: Tensor) -> Tensor:
        """Return the expected photons per pixel for counts (b, c, [z,] y, x) of any dtype; same shape."""
        photons = network_counts(self.network.checked(photons), self.rounded, self.shift)
        rate = self.network.rate(photons, self.network(photons), self.box_px)
        return photons_of(rate, self.background, self.ceiling)


def odd_box(box_px: List[int], dim: int) -> List[int]:
    """Return ``box_px``; raise ValueError unless it is one odd size per spatial axis."""
    if len(box_px) != dim or any(size % 2 != 1 for size in box_px):
        raise ValueError(f"box_px={list(box_px)}: expected {dim} odd numbers")
    return list(box_px)


def _per_axis(planar: int, through_z: int, dim: int, along_z: bool) -> Tuple[int, ...]:
    """Return ``planar`` for every axis, except ``through_z`` for z in 3D without ``along_z``."""
    return (planar,) * dim if dim == 2 or along_z else (through_z, planar, planar)
