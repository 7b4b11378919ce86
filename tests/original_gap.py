"""The architecture of the original GAP networks, written from its description alone, and files like theirs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HYPER: dict[str, Any] = {
    "levels": 3, "channels": 1, "depth": 3, "start_filts": 4, "up_mode": "transpose", "merge_mode": "add",
}  # fmt: skip


class Block(nn.Module):
    def __init__(self, dim: int, ins: int, outs: int, z: bool) -> None:
        super().__init__()
        conv: Any = nn.Conv3d if dim == 3 else nn.Conv2d
        sizes: Any = ((1, 3, 3), 1, (0, 1, 1)) if dim == 3 and not z else (3, 1, 1)  # kernel, stride, padding
        self.conv1, self.conv2, self.conv3 = (conv(i, outs, *sizes) for i in (ins, outs, outs))

    def convolve(self, x: Tensor) -> Tensor:
        s = self.conv1(x)
        y = F.relu(self.conv2(s))
        return F.relu(self.conv3(y) + s)


class Up(Block):
    def __init__(self, dim: int, ins: int, z: bool, up_mode: str, merge_mode: str) -> None:
        outs = ins // 2
        super().__init__(dim, 2 * outs if merge_mode == "concat" else outs, outs, z)
        self.merge_mode = merge_mode
        factor: Any = (2, 2) if dim == 2 else (2 if z else 1, 2, 2)
        if up_mode == "transpose":
            transposed: Any = nn.ConvTranspose3d if dim == 3 else nn.ConvTranspose2d
            self.upconv: nn.Module = transposed(ins, outs, factor, stride=factor)
        else:
            conv = nn.Conv2d(ins, outs, 1) if dim == 2 else nn.Conv3d(ins, outs, 3, padding=1)
            mode = "bilinear" if dim == 2 else "trilinear"
            self.upconv = nn.Sequential(nn.Upsample(scale_factor=factor, mode=mode), conv)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.upconv(x)
        return self.convolve(torch.cat((x, skip), 1) if self.merge_mode == "concat" else x + skip)


class OriginalGap(nn.Module):
    """Counts (b, c, [z,] y, x), in sizes that can be halved, to log-rates."""

    def __init__(self, dim: int, z_conv_stage: int | None = None, **hyper: Any) -> None:
        super().__init__()
        self.levels, channels, depth, start_filts, *modes = (hyper[name] for name in HYPER)
        stages = depth if z_conv_stage is None else z_conv_stage
        # the last layer first, as in the original
        self.conv_final = (nn.Conv3d if dim == 3 else nn.Conv2d)(start_filts, channels, 1)
        filters = [start_filts * 2**k for k in range(depth)]
        inputs = [self.levels * channels, *filters[:-1]]
        self.down_convs = nn.ModuleList(
            Block(dim, i, o, k < stages) for k, (i, o) in enumerate(zip(inputs, filters, strict=True))
        )
        self.up_convs = nn.ModuleList(
            Up(dim, filters[depth - 1 - k], (depth - k - 2) < stages, *modes) for k in range(depth - 1)
        )
        pool: Any = nn.MaxPool3d if dim == 3 else nn.MaxPool2d
        self.pools = [pool(2 if dim == 2 or k < stages else (1, 2, 2)) for k in range(depth - 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.sin(x * 10.0**-i) for i in range(self.levels)], 1)
        skips: list[Tensor] = []
        for k, down in enumerate(self.down_convs):
            x = down.convolve(x if k == 0 else self.pools[k - 1](x))  # type: ignore[operator]
            skips.append(x)
        for k, up in enumerate(self.up_convs):
            x = up(x, skips[-(k + 2)])
        log_rate: Tensor = self.conv_final(x)
        return log_rate


def original_gap(dim: int = 2, seed: int = 0, **change: Any) -> OriginalGap:
    """A network with random weights."""
    torch.manual_seed(seed)
    return OriginalGap(dim, **{**HYPER, **change}).eval().requires_grad_(False)


def lightning_checkpoint(network: OriginalGap, hyper_parameters: Any, **change: Any) -> dict[str, Any]:
    """What Lightning saves of the original module."""
    return {
        "epoch": 41,
        "global_step": 4200,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": network.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [torch.optim.Adam(network.parameters()).state_dict()],
        "lr_schedulers": [{"factor": 0.5, "best": float("inf"), "mode": "min", "last_epoch": 41}],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    } | change


class Call:
    """What runs code when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments
