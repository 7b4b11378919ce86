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

    @torch.jit.unused
    def receptive_field_px(self) -> List[int]:  # noqa: UP006
        """Return how far, per axis, the farthest input pixel lies that changes an output pixel."""
        reaches = []
        for axis in range(self.dim):
            along = [axis > 0 or self.dim == 2 or z for z in self.along_z]
            wide_up = self.upsampled and self.dim == 3
            step, reach = self.step_px[axis], 0
            for position in range(step):
                low, high = _needed((position, position), 0, along, self.upsampled, wide_up)
                reach = max(reach, position - low, high - position)
            reaches.append(reach)
        return reaches


class PhotonDenoiser(nn.Module):
    """Counts in, denoised photons out: what an exported model runs.

    Parameters
    ----------
    box_px
        Odd box, per spatial axis, in which photons are conserved (see ``conserve_photons``).
    network
        Arguments of ``UNet``.
    """

    def __init__(self, box_px: List[int], **network) -> None:  # type: ignore[no-untyped-def]  # noqa: UP006
        super().__init__()
        self.network = UNet(**network)
        if len(box_px) != self.network.dim or any(size % 2 != 1 for size in box_px):
            raise ValueError(f"box_px={list(box_px)}: expected {self.network.dim} odd numbers")
        self.box_px: List[int] = list(box_px)  # noqa: UP006

    def forward(self, photons: Tensor) -> Tensor:
        """Return the expected photons per pixel, same shape as ``photons`` (b, c, [z,] y, x)."""
        photons = torch.clamp(photons, min=0.0)
        return conserve_photons(photons, self.network(photons), self.box_px)


def _per_axis(planar: int, through_z: int, dim: int, along_z: bool) -> Tuple[int, ...]:  # noqa: UP006
    """Sizes per axis: ``planar`` everywhere, or ``through_z`` along z where z takes no part."""
    return (planar,) * dim if dim == 2 or along_z else (through_z, planar, planar)


def _needed(
    interval: Tuple[int, int],  # noqa: UP006
    stage: int,
    along: List[bool],  # noqa: UP006
    upsampled: bool,
    wide_up: bool,
) -> Tuple[int, int]:  # noqa: UP006
    """Input pixels that the decoder's outputs ``interval`` of a stage depend on, along one axis."""
    radius = 3 if along[stage] else 0
    if stage == len(along) - 1:
        return _through_encoder((interval[0] - radius, interval[1] + radius), stage, along)
    low, high = interval[0] - radius, interval[1] + radius
    skip_low, skip_high = _through_encoder((low - radius, high + radius), stage, along)
    if along[stage]:
        low, high = ((low - 1) // 2, (high + 1) // 2) if upsampled else (low // 2, high // 2)
    if wide_up:
        # the convolution follows the upsampling, so it widens what is upsampled by one pixel each side
        low, high = interval[0] - radius - 1, interval[1] + radius + 1
        low, high = ((low - 1) // 2, (high + 1) // 2) if along[stage] else (low, high)
    below_low, below_high = _needed((low, high), stage + 1, along, upsampled, wide_up)
    return min(skip_low, below_low), max(skip_high, below_high)


def _through_encoder(interval: Tuple[int, int], stage: int, along: List[bool]) -> Tuple[int, int]:  # noqa: UP006
    """Input pixels behind the inputs ``interval`` of an encoder block."""
    low, high = interval
    for above in reversed(range(stage)):
        radius = 3 if along[above] else 0
        if along[above]:
            low, high = 2 * low, 2 * high + 1
        low, high = low - radius, high + radius
    return low, high
