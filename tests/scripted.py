"""Functions in TorchScript's dialect, which between them use most of what serialised code may hold."""

import enum
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Pair(NamedTuple):
    tensor: Tensor
    number: int


class Color(enum.Enum):
    RED = 1
    GREEN = 2


def language(x: Tensor, y: Tensor | None = None) -> Pair:
    # strings that look like operators, and quotes within them
    assert x.dim() == 4, 'torch.nonsense( is "bad" %d' % x.dim()  # noqa: UP031
    if x.dtype == torch.int32:
        raise ValueError("no \" torch.nonsense(3), ops.prim.nothing('x')")
    d: dict[str, Tensor] = {"a": x if y is None else y}
    for key, value in d.items():
        x = x + value + d[key]
    d.update({"b": x})
    for a, b in zip([1, 2], [3, 4]):  # noqa: B905
        if a == 2:
            continue
        x = x * a + b
    while bool(x.sum() > 1e9):
        x = x / 2
    with torch.no_grad():
        warnings.warn("hey")  # noqa: B028
    color = Color.RED
    if color == Color.GREEN:
        x = x + color.value
    return Pair(x if torch.jit.is_scripting() else x - 1, len(d) + sum({i: i * 2 for i in range(3)}.values()))


def layers(x: Tensor):
    x = F.pad(F.pad(x, [1, 1], mode="reflect"), [1, 1, 1, 1], mode="replicate")
    x = F.max_pool2d(F.avg_pool2d(F.adaptive_avg_pool2d(x, 1), 1), 1)
    x = F.pixel_shuffle(F.unfold(x, 1), 1)
    x = F.gelu(F.silu(F.leaky_relu(F.softplus(F.elu(F.hardswish(F.mish(x)))))))
    x = F.log_softmax(F.softmax(F.dropout(x, 0.5), -1), 1)
    same = F.conv2d(x, x, padding="same")
    x = F.instance_norm(F.group_norm(F.layer_norm(F.batch_norm(x, x, x), [3]), 1))
    several = F.conv3d(x, x), F.conv_transpose2d(x, x), F.conv_transpose3d(x, x), torch.conv2d(x, x, groups=2)
    return same, several, F.normalize(x)


def anything(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.ones(1) if isinstance(x, list) else torch.zeros(1)


def oddities(x: Tensor):
    waited = torch.jit.wait(torch.jit.fork(anything, x))
    drawn = torch.poisson(x), torch.rand_like(x), torch.randint(0, 3, [2]), torch.multinomial(x, 1), x.uniform_()
    where = torch.device("cuda:0"), torch.zeros(2, device=x.device), x.device.type
    upsampled = torch._C._nn.upsample_bilinear2d(x, [4, 4], False, None)
    return waited, drawn, where, torch.autograd.grad([x.sum()], [x]), upsampled


def rms_norm(x: Tensor):
    """A name of torch's, but none of its operators."""
    return x / x.square().mean()


def own_rms_norm(x: Tensor):
    return rms_norm(x)


class Generator(nn.Module):
    """Half of a generative adversarial network, not a random generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()

    def forward(self, x: Tensor) -> Tensor:
        return self.generator(x)


# What older engines may lack: each by itself, so that none hides behind another


def attention(x: Tensor):
    return F.scaled_dot_product_attention(x, x, x)


def interpolation(x: Tensor):
    return F.interpolate(x, scale_factor=2.0)


def torch_rms_norm(x: Tensor):
    return F.rms_norm(x, [3])


def item_size(x: Tensor):
    return x.itemsize


def fourier(x: Tensor):
    return torch.stft(x, 4, return_complex=True)


def squeezed(x: Tensor):
    return torch.squeeze(x, [0, 1])


def any_of_axes(x: Tensor):
    return torch.any(x, [0, 1])


def random_generator(x: Tensor, generator: torch.Generator):
    return torch.randn(2, generator=generator)


FUNCTIONS = [
    language, layers, anything, oddities, own_rms_norm, Holder(),
    attention, interpolation, torch_rms_norm, item_size, fourier, squeezed, any_of_axes, random_generator,
]  # fmt: skip


def name_of(subject: Any) -> str:
    """The name of a function or a module."""
    return str(getattr(subject, "__name__", type(subject).__name__))
