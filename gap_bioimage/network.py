"""The GAP network: photon counts in, log-rates (or rates) out.

Only torch is imported, and everything compiles with ``torch.jit.script``: this file travels unchanged in
every exported model as its architecture source, so what is tested here is what runs in Fiji.

Source: Krull et al., "Image Denoising and the Generative Accumulation of Photons", arXiv 2307.06607.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def encode(photons: Tensor, levels: int, log1p: bool) -> Tensor:
    """Encode counts as sin(x 10^-i), i < levels, and log(1 + x), along the channels.

    The sines are the original encoding; the logarithm keeps bright pixels apart, where the sines alone
    repeat themselves.
    """
    parts: List[Tensor] = []
    for level in range(levels):
        parts.append(torch.sin(photons * (10.0**-level)))
    if log1p:
        parts.append(torch.log1p(photons))
    return torch.cat(parts, 1)


def pad_to_multiple(x: Tensor, step: List[int]) -> Tensor:
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


def box_mean(x: Tensor, box_px: List[int]) -> Tensor:
    """Average over an odd box around each pixel, axis by axis; what lies outside counts as zero."""
    for axis in range(len(box_px)):
        size = box_px[axis]
        rows = x.movedim(axis + 2, -1)
        means = F.avg_pool1d(rows.reshape(-1, 1, rows.shape[-1]), size, 1, size // 2)
        x = means.reshape(rows.shape).movedim(-1, axis + 2)
    return x


def conserve_photons(photons: Tensor, log_rate: Tensor, box_px: List[int]) -> Tensor:
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
        z_conv_stage: Optional[int] = None,
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
        self.step_px: List[int] = [
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
        skips: List[Tensor] = []
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
        box_px: List[int],
        rounded: bool = False,
        background: float = 0.0,
        ceiling: int = 0,
        **network,
    ) -> None:
        super().__init__()
        self.network = UNet(**network)
        self.box_px: List[int] = odd_box(box_px, self.network.dim)
        self.rounded, self.background, self.ceiling = rounded, float(background), ceiling

    def forward(self, photons: Tensor) -> Tensor:
        """Return the expected photons per pixel, same shape as ``photons`` (b, c, [z,] y, x), counts of any type."""
        photons = whole_counts(self.network.fitting(photons), self.rounded)
        rate = conserve_photons(photons, self.network(photons), self.box_px)
        return photons_of(rate, self.background, self.ceiling)


def odd_box(box_px: List[int], dim: int) -> List[int]:
    """Return one odd size per spatial axis; raise ValueError for others."""
    if len(box_px) != dim or any(size % 2 != 1 for size in box_px):
        raise ValueError(f"box_px={list(box_px)}: expected {dim} odd numbers")
    return list(box_px)


def _per_axis(planar: int, through_z: int, dim: int, along_z: bool) -> Tuple[int, ...]:
    """Sizes per axis: ``planar`` everywhere, or ``through_z`` along z where z takes no part."""
    return (planar,) * dim if dim == 2 or along_z else (through_z, planar, planar)
