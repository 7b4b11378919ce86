"""Filters of counts that know where an image ends, and pixels that hold more than photons can bring.

Only torch is imported, and everything compiles with ``torch.jit.script``: the source is part of every exported model.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hot_pixels(photons: Tensor) -> Tensor:
    """Find pixels that hold more than photons can bring where the neighbours are so dark.

    Optics spread every spot over several pixels. A pixel is hot if even four times the rate of the third brightest of
    the 24 pixels around it (one more photon than that one counted) gives such a count once in 10^10 pixels. None is
    where a side has fewer than three pixels.
    """
    height, width = photons.shape[-2], photons.shape[-1]
    if height < 3 or width < 3:
        return torch.zeros_like(photons, dtype=torch.bool)
    padded = torch.constant_pad_nd(photons, [2, 2, 2, 2], 0.0)
    # the brightest of two rows, of the four around a row, and of all five; then the same with columns
    above, below = padded.narrow(-2, 0, height + 3), padded.narrow(-2, 1, height + 3)
    pairs = [torch.maximum(above, below), torch.minimum(above, below), torch.zeros_like(above)]
    around = _brightest(_cut(pairs, -2, 0, height), _cut(pairs, -2, 3, height))
    middle = padded.narrow(-2, 2, height)
    columns = _brightest(around, [middle, torch.zeros_like(middle), torch.zeros_like(middle)])
    pairs = _brightest(_cut(columns, -1, 0, width + 3), _cut(columns, -1, 1, width + 3))
    sides = _brightest(_cut(pairs, -1, 0, width), _cut(pairs, -1, 3, width))
    third = _brightest(sides, _cut(around, -1, 2, width))[2]
    rate = 4.0 * (third + 1.0)
    # 6.4 standard deviations, and what the tail of few counts is longer
    return photons > rate + 6.4 * torch.sqrt(rate) + 7.0


def _brightest(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Merge the three brightest of some pixels, in order, with those of others."""
    second = torch.maximum(torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1]))
    third = torch.maximum(torch.minimum(one[0], other[1]), torch.minimum(one[1], other[0]))
    third = torch.maximum(third, torch.maximum(one[2], other[2]))
    return [torch.maximum(one[0], other[0]), second, third]


def _cut(images: list[Tensor], axis: int, start: int, size: int) -> list[Tensor]:
    return [image.narrow(axis, start, size) for image in images]


def without_hot_pixels(photons: Tensor) -> Tensor:
    """Return counts in which hot pixels hold the mean of their neighbours, (b, c, [z,] y, x)."""
    hot = hot_pixels(photons)
    ones = [1.0, 1.0]
    cold = 1.0 - hot.to(photons.dtype)
    seen = blur(blur(photons * cold, ones, -1), ones, -2)
    return torch.where(hot, seen / torch.clamp(blur(blur(cold, ones, -1), ones, -2), min=1.0), photons)


def blur(x: Tensor, kernel: list[float], axis: int) -> Tensor:
    """Filter along the last (-1), last but one (-2) or third last axis; what lies outside counts as zero.

    Sums of shifted images and not a convolution: exact in mixed precision, and alike in every engine. ``kernel`` is the
    centre and one side of a symmetric filter.
    """
    half, size = len(kernel) - 1, x.shape[axis]
    pad = [0, 0, 0, 0, 0, 0]
    pad[-2 * axis - 2], pad[-2 * axis - 1] = half, half
    padded = torch.constant_pad_nd(x, pad[: -2 * axis], 0.0)
    total = x * kernel[0]
    for shift in range(1, half + 1):
        total.add_(padded.narrow(axis, half - shift, size), alpha=kernel[shift])
        total.add_(padded.narrow(axis, half + shift, size), alpha=kernel[shift])
    return total


def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the differences of neighbours along x and along y; a border's pixels are repeated beyond it."""
    height, width = x.shape[-2], x.shape[-1]
    padded = F.pad(x, [1, 1, 1, 1], "replicate")
    row, column = padded.narrow(-2, 1, height), padded.narrow(-1, 1, width)
    along_x = row.narrow(-1, 2, width) - row.narrow(-1, 0, width)
    return 0.5 * along_x, 0.5 * (column.narrow(-2, 2, height) - column.narrow(-2, 0, height))


def curvatures(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return ``x_xx - x_yy`` and ``2 x_xy``, second differences of pixels so many steps apart."""
    height, width = x.shape[-2], x.shape[-1]
    padded = F.pad(x, [step, step, step, step], "replicate")
    above, below = padded.narrow(-2, 0, height), padded.narrow(-2, 2 * step, height)
    row = padded.narrow(-2, step, height)
    straight = row.narrow(-1, 0, width) + row.narrow(-1, 2 * step, width)
    straight.sub_(above.narrow(-1, step, width)).sub_(below.narrow(-1, step, width))
    diagonal = above.narrow(-1, 0, width) + below.narrow(-1, 2 * step, width)
    diagonal.sub_(above.narrow(-1, 2 * step, width)).sub_(below.narrow(-1, 0, width))
    return straight, diagonal.mul_(0.5)


def enlarged(x: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Enlarge planes linearly, and cut them to a size."""
    size = [factor * x.shape[-2], factor * x.shape[-1]]
    x = torch._C._nn.upsample_bilinear2d(x, size, False)  # type: ignore[call-arg]
    return x.narrow(-2, 0, height).narrow(-1, 0, width)
