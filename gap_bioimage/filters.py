"""Filters normalised at image borders, hot pixels, and the transform that gives camera noise Poisson statistics.

It imports only torch, compiles with ``torch.jit.script``, and is part of every exported model.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SHIFT = 0.25
"""Shift of electrons (here for a noise of 0.4) above which camera noise is transformed to Poisson statistics."""
NEIGHBOURS_REACH_PX = 2
"""Reach of the neighbourhood from which the mean at a camera pixel is estimated."""
_MATRIX_PX = 1024  # largest side that a GPU filters with matrices; for larger images launch times do not matter
_TRAINING_PX = 128  # the same for windows that a CPU trains on
_MATRICES: dict[tuple[str, int, int, int, bool, str], Tensor] = {}


def hot_pixels(photons: Tensor) -> Tensor:
    """Find hot pixels: those that are brighter than photons can explain next to such dark neighbours.

    Optics spread every spot over several pixels. The rate is assumed to be at most four times that of the third
    brightest of the 24 surrounding pixels (its count plus one). A pixel is hot if this rate gives such a count only
    once in 10^10 pixels. Images with fewer than three pixels along y or x have none.
    """
    height, width = photons.shape[-2], photons.shape[-1]
    if height < 3 or width < 3:
        return torch.zeros_like(photons, dtype=torch.bool)
    padded = torch.constant_pad_nd(photons, [2, 2, 2, 2], 0.0)
    # the three brightest of two rows, of the four around a row, and of all five; then the same along columns
    above, below = padded.narrow(-2, 0, height + 3), padded.narrow(-2, 1, height + 3)
    pairs = [torch.maximum(above, below), torch.minimum(above, below), torch.zeros_like(above)]
    four = _brightest(_cut(pairs, -2, 0, height), _cut(pairs, -2, 3, height))
    middle = padded.narrow(-2, 2, height)
    columns = _brightest(four, [middle, torch.zeros_like(middle), torch.zeros_like(middle)])
    pairs = _brightest(_cut(columns, -1, 0, width + 3), _cut(columns, -1, 1, width + 3))
    sides = _brightest(_cut(pairs, -1, 0, width), _cut(pairs, -1, 3, width))
    return photons > most_photons(_brightest(sides, _cut(four, -1, 2, width))[2])


def most_photons(third: Tensor) -> Tensor:
    """Return the most photons of a pixel that is not hot, given the third brightest of the 24 around it."""
    rate = 4.0 * (third + 1.0)
    # 6.4 standard deviations, and 7 more for the longer tail of low counts
    return rate + 6.4 * torch.sqrt(rate) + 7.0


def _brightest(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Merge two sets of the three brightest pixels, each in descending order, into the three brightest of both."""
    second = torch.maximum(torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1]))
    third = torch.maximum(torch.minimum(one[0], other[1]), torch.minimum(one[1], other[0]))
    third = torch.maximum(third, torch.maximum(one[2], other[2]))
    return [torch.maximum(one[0], other[0]), second, third]


def _cut(images: list[Tensor], axis: int, start: int, size: int) -> list[Tensor]:
    return [image.narrow(axis, start, size) for image in images]


def without_hot_pixels(photons: Tensor) -> Tensor:
    """Replace hot pixels by the mean of their neighbours, (b, c, [z,] y, x)."""
    hot = hot_pixels(photons)
    ones = [1.0, 1.0]
    cold = 1.0 - hot.to(photons.dtype)
    total, count = blur(blur(photons * cold, ones, -1), ones, -2), blur(blur(cold, ones, -1), ones, -2)
    return torch.where(hot, total / torch.clamp(count, min=1.0), photons)


def whole_counts(photons: Tensor, rounded: bool) -> Tensor:
    """Clip counts at zero, and round those that were computed from camera values."""
    photons = torch.clamp(photons, min=0.0)
    return torch.round(photons) if rounded else photons


def network_counts(photons: Tensor, rounded: bool, shift: float) -> Tensor:
    """Return counts as networks see them: camera electrons that contain a ``shift`` get the noise of photons."""
    if shift > 0.0:
        shifts = torch.full([1], shift, dtype=photons.dtype, device=photons.device)
        return like_photons(without_hot_pixels(photons), shifts)
    return whole_counts(photons, rounded)


def like_photons(
    values: Tensor, shift: Tensor, reach_px: int = NEIGHBOURS_REACH_PX, least_shift: float = MIN_SHIFT
) -> Tensor:
    """Transform camera values (..., y, x) to the distribution of photon counts: Poisson with the same mean.

    ``values`` are electrons plus ``shift``, one number or (y, x). Their variance equals their mean, but their skewness
    and kurtosis are only those of the electrons. Thinned into halves they would be uncorrelated, yet the target would
    depend on the noise of the input: by a quarter of its own noise at 3 counts per pixel, 2.6 of them added. Networks
    learn to copy this noise, and clipping at zero makes dark images brighter. So values are transformed to a normal
    and then to a Poisson distribution, both by Cornish-Fisher expansions around the mean of the neighbours. With
    little noise they are rounded: the expansions do not hold for so few counts, and rounding recovers the electrons.

    Source: G. W. Hill and A. W. Davis, "Generalized asymptotic expansions of Cornish-Fisher type",
    Ann. Math. Statist. 39, 1264 (1968).
    """
    electrons, side = values - shift, 2 * reach_px + 1
    planes = electrons.reshape([1, -1, values.shape[-2], values.shape[-1]])
    # sums over boxes: averages include zeros beyond the border, and the count of pixels is taken in the same way
    total = side * side * F.avg_pool2d(planes, side, 1, reach_px)
    count = side * side * F.avg_pool2d(torch.ones_like(planes[:, :1]), side, 1, reach_px)
    signal = (total - planes) / torch.clamp(count - 1.0, min=1.0)
    signal = torch.clamp(signal, min=1e-3).reshape(values.shape)
    mean = signal + shift
    deviation = torch.sqrt(mean)
    z = torch.clamp((values - mean) / deviation, -4.0, 4.0)
    skewness, kurtosis, square = signal / (mean * deviation), signal / (mean * mean), z * z
    normal = z - skewness * (square - 1.0) / 6.0 - kurtosis * z * (square - 3.0) / 24.0
    normal = normal + skewness * skewness * z * (4.0 * square - 7.0) / 36.0
    square = normal * normal
    quantile = normal + (square - 1.0) / (6.0 * deviation) - normal * (square - 1.0) / (72.0 * mean)
    counts = torch.where(shift > least_shift, values + deviation * (quantile - z), torch.round(values))
    return torch.clamp(counts, min=0.0)


def blur(x: Tensor, kernel: list[float], axis: int) -> Tensor:
    """Filter along axis -1, -2 or -3; pixels outside the image count as zero.

    ``kernel`` is the centre and one side of a symmetric filter. Shifted images are summed, since a convolution would be
    inexact in mixed precision and differ between engines.
    """
    half, size = len(kernel) - 1, x.shape[axis]
    padded = torch.constant_pad_nd(x, [0, 0] * (-axis - 1) + [half, half], 0.0)
    total = x * kernel[0]
    for shift in range(1, half + 1):
        total.add_(padded.narrow(axis, half - shift, size), alpha=kernel[shift])
        total.add_(padded.narrow(axis, half + shift, size), alpha=kernel[shift])
    return total


def slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return central differences along x and along y; border pixels are repeated beyond the border."""
    height, width = x.shape[-2], x.shape[-1]
    padded = F.pad(x, [1, 1, 1, 1], "replicate")
    row, column = padded.narrow(-2, 1, height), padded.narrow(-1, 1, width)
    along_x = row.narrow(-1, 2, width) - row.narrow(-1, 0, width)
    return 0.5 * along_x, 0.5 * (column.narrow(-2, 2, height) - column.narrow(-2, 0, height))


def curvatures(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return ``x_xx - x_yy`` and ``2 x_xy``, second differences of pixels ``step`` apart."""
    height, width = x.shape[-2], x.shape[-1]
    padded = F.pad(x, [step, step, step, step], "replicate")
    above, below = padded.narrow(-2, 0, height), padded.narrow(-2, 2 * step, height)
    row = padded.narrow(-2, step, height)
    straight = row.narrow(-1, 0, width) + row.narrow(-1, 2 * step, width)
    straight.sub_(above.narrow(-1, step, width)).sub_(below.narrow(-1, step, width))
    diagonal = above.narrow(-1, 0, width) + below.narrow(-1, 2 * step, width)
    diagonal.sub_(above.narrow(-1, 2 * step, width)).sub_(below.narrow(-1, 0, width))
    return straight, diagonal.mul_(0.5)


def pad_planes(x: Tensor, factor: int) -> Tensor:
    """Pad planes with zeros at the bottom and on the right, to multiples of ``factor``."""
    below, right = (factor - x.shape[-2] % factor) % factor, (factor - x.shape[-1] % factor) % factor
    return torch.constant_pad_nd(x, [0, right, 0, below], 0.0) if below + right > 0 else x


def upsample_planes(x: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Upsample planes linearly by ``factor``, and crop them to ``height`` and ``width``."""
    size = [factor * x.shape[-2], factor * x.shape[-1]]
    x = torch._C._nn.upsample_bilinear2d(x, size, False)  # type: ignore[call-arg]
    return x.narrow(-2, 0, height).narrow(-1, 0, width)


def asinh(x: Tensor) -> Tensor:
    """Return the inverse hyperbolic sine, which torch cannot export to ONNX opset 17."""
    size = torch.abs(x)
    return torch.sign(x) * torch.log1p(size + size * size / (1.0 + torch.sqrt(size * size + 1.0)))


def solve_pixelwise(system: Tensor) -> Tensor:
    """Solve positive definite systems (row, column, ...) pixel by pixel; the last column is the right-hand side."""
    size = len(system)
    for k in range(size):
        row = system[k] / torch.clamp(system[k, k], min=1e-12)
        system = system - system[:, k].unsqueeze(1) * row
        system[k] = row
    return system[:, size]


class Filters(nn.Module):
    """Gaussian filters, numbered in the order in which they are added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.sigmas = ""
        self.pools: list[int] = []
        self.kernels: list[list[float]] = []
        self.z_kernels: list[list[float]] = []

    def add(self, planar: float, along_z: float, pool: int) -> None:
        """Add a filter, given by its sigma in px in the plane and along z, for planes pooled by ``pool``."""
        self.sigmas += f"{planar},{along_z} "
        self.pools.append(pool)
        # pooling and linear interpolation contribute to the blur
        self.kernels.append(gaussian(math.sqrt(planar**2 - (pool**2 - 1) / 4) / pool))
        self.z_kernels.append(gaussian(along_z))

    def filter_reach_px(self, number: int) -> int:
        """Return the reach of a filter in the plane."""
        pool, half = self.pools[number], len(self.kernels[number]) - 1
        return half if pool == 1 else (half + 2) * pool - 1

    def smooth(self, x: Tensor, number: int, enlarge: bool = True) -> Tensor:
        """Smooth images (b, c, y, x) or (b, z, y, x) with one of the filters, normalised at the borders."""
        pool, height, width = self.pools[number], x.shape[-2], x.shape[-1]
        x = self.smooth_pooled(self._pool(x, number), number, height, width)
        return upsample_planes(x, pool, height, width) if enlarge and pool > 1 else x

    def smooth_each(self, images: list[Tensor], first: int, enlarge: bool = True) -> list[Tensor]:
        """Smooth each image with a filter of its own; the filters are numbered from ``first`` on."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            if max(images[0].shape[-2:]) <= (_MATRIX_PX if images[0].is_cuda else _TRAINING_PX * self.training):
                return list(self._by_matrices(torch.stack(images), first, enlarge).unbind())
        return [self.smooth(images[number], first + number, enlarge) for number in range(len(images))]

    @torch.jit.unused
    def _by_matrices(self, x: Tensor, first: int, enlarge: bool) -> Tensor:
        """Smooth images (filter, b, c or z, y, x) with one matrix product per axis: a GPU starts few kernels."""
        with torch.autocast(x.device.type, enabled=False):
            x = x @ self._matrices(first, x, -1, enlarge).unsqueeze(1)
            x = self._matrices(first, x, -2, enlarge).mT.unsqueeze(1) @ x
            if self.dim == 3:
                x = (self._matrices(first, x, -3, enlarge).mT @ x.flatten(-2)).reshape(x.shape)
        return x

    @torch.jit.unused
    def _matrices(self, first: int, x: Tensor, axis: int, enlarge: bool) -> Tensor:
        """Return filters along an axis as matrices, (filter, 1, before, after), shared by equal networks."""
        count, size, along_z = len(x), x.shape[axis], axis == -3
        key = (self.sigmas, first, count, size, along_z, str(x.device))
        if key not in _MATRICES:
            if len(_MATRICES) >= 32:
                _MATRICES.clear()
            points = torch.eye(size).reshape((size, size, 1, 1) if along_z else (size, 1, 1, size))
            matrices = [self.smooth(points, number, enlarge) for number in range(first, first + count)]
            _MATRICES[key] = torch.stack(matrices).reshape(count, 1, size, -1).to(x.device)
        return _MATRICES[key]

    def _pool(self, x: Tensor, number: int) -> Tensor:
        pool = self.pools[number]
        return x if pool == 1 else F.avg_pool2d(pad_planes(x, pool), [pool, pool])

    def smooth_pooled(self, x: Tensor, number: int, height: int, width: int) -> Tensor:
        """Smooth pooled planes, whose size was ``height`` and ``width``, without enlarging them."""
        pool, kernel, z_kernel = self.pools[number], self.kernels[number], self.z_kernels[number]
        rows = pool * self._pool(torch.ones([1, 1, height, 1], dtype=x.dtype, device=x.device), number)
        columns = pool * self._pool(torch.ones([1, 1, 1, width], dtype=x.dtype, device=x.device), number)
        x = blur(blur(x, kernel, -1), kernel, -2).div_(blur(rows, kernel, -2) * blur(columns, kernel, -1))
        if len(z_kernel) > 1:
            x = blur(x, z_kernel, -3).div_(blur(torch.ones_like(x[:1, :, :1, :1]), z_kernel, -3))
        return x

    def overlaps(self, count: int) -> list[list[float]]:
        """Return sums over all pixels of products of two filters; those of squares are variances per rate."""
        line = torch.zeros(4, 1, 1, 257)  # a photon at each position in the pooling grid
        line[range(4), 0, 0, range(126, 130)] = 1.0
        planar = torch.stack([self.smooth(line, scale) for scale in range(count)]).flatten(1)
        point = torch.zeros(1, 65, 1, 1)
        point[0, 32] = 1.0
        along_z = torch.stack([self.smooth(point, scale) for scale in range(count)]).flatten(1)
        # the weight of a pixel's photons in its own smoothed value, averaged over the positions
        middle = planar.reshape(count, 4, 257)[:, range(4), range(126, 130)].mean(1)
        self.own: list[float] = (torch.square(middle) * along_z[:, 32]).tolist()
        overlap = torch.square(planar @ planar.T / 4) * (along_z @ along_z.T)
        return [[float(value) for value in row] for row in overlap]

    def products(self, maps: Tensor) -> Tensor:
        """Average products of all pairs of maps (map, b, ...) with the last filter, pooled: (map, map, b, ...)."""
        count, height, width, pool = len(maps), maps.shape[-2], maps.shape[-1], self.pools[-1]
        maps = pad_planes(maps, pool)
        rows, columns = maps.shape[-2] // pool, maps.shape[-1] // pool
        shape = list(maps.shape)
        shape[-2], shape[-1] = rows, columns
        shape.insert(0, count)
        blocks = maps.reshape(count, -1, rows, pool, columns, pool).permute(1, 2, 4, 0, 3, 5)
        pooled = self._gram_matrices(blocks.reshape(-1, count, pool * pool)).div_(pool * pool)
        pooled = pooled.reshape(-1, rows, columns, count * count).permute(3, 0, 1, 2).contiguous().reshape(shape)
        return self.smooth_pooled(pooled.flatten(0, -4), len(self.pools) - 1, height, width).reshape(shape)

    def _gram_matrices(self, blocks: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.bmm(blocks, blocks.transpose(1, 2))
        return self._gram_matrices_without_autocast(blocks)

    @torch.jit.unused
    def _gram_matrices_without_autocast(self, blocks: Tensor) -> Tensor:
        with torch.autocast(blocks.device.type, enabled=False):
            return torch.bmm(blocks, blocks.transpose(1, 2))


def cached_matrices() -> list[Tensor]:
    """Return the matrices that a recorded CUDA graph reads, for its owner to keep when the cache is cleared."""
    return list(_MATRICES.values())


def gaussian(sigma: float) -> list[float]:
    """Return the centre and one side of a Gaussian filter with sum 1, cut at 2.5 sigma."""
    if sigma <= 0:
        return [1.0]
    side = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(math.ceil(2.5 * sigma) + 1)]
    return [value / (2.0 * sum(side) - side[0]) for value in side]
