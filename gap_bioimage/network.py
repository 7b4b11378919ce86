"""The GAP network: photon counts in, log-rates (or rates) out.

Only torch is imported, and everything compiles with ``torch.jit.script``: this file travels unchanged in
every exported model as its architecture source, so what is tested here is what runs in Fiji.

An anchored network (the default of training) corrects locally smoothed counts, so that its log-rate is that of the
photons of its input. The log-rate of a plain U-Net, such as the original, has an unknown constant per image.

Source: Krull et al., "Image Denoising and the Generative Accumulation of Photons", arXiv 2307.06607.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

import math
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# sigma of the anchor's filters in px: in the plane, and along z
_PLANAR_SCALES = [(sigma, 0.0) for sigma in (0.4, 0.7, 1.2, 2.0, 3.4, 5.8, 9.5, 15.0)]
_VOLUME_SCALES = [(0.4, 0.0), (0.6, 0.0), (0.8, 0.4), (1.2, 0.6), (1.7, 0.0), (1.7, 0.9), (2.9, 0.0), (2.9, 1.4)]
_VOLUME_SCALES += [(5.0, 2.0), (8.5, 2.0)]
# anchors of version 2: scales whose differences are fitted, the smoothest of them is half of what they are added to;
# and sigma of the window of the fit in px, in the plane and along z
_FITTED = {2: ([1, 2, 3, 4, 5, 7], 5), 3: ([0, 2, 3, 5, 7, 8, 9], 8)}
_FIT_WINDOW = {2: (24.0, 0.0), 3: (20.0, 2.0)}
_FIT_POOL = 8


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
    agree with each other. Hot pixels are left out of both means.
    """
    dims = list(range(1, log_rate.dim()))
    # a constant cancels in the ratio; subtracting the largest keeps exp from overflowing
    weight = torch.exp(torch.clamp(log_rate - torch.amax(log_rate, dims, keepdim=True), min=-80.0))
    cold = 1.0 - hot_pixels(photons).to(weight.dtype)
    seen = box_mean(torch.sum(photons * cold, 1, keepdim=True), box_px)
    expected = torch.clamp(box_mean(torch.sum(weight * cold, 1, keepdim=True), box_px), min=1e-38)
    # in this order: the share is at most the box's size, while seen / expected may overflow
    return weight / expected * seen


def rate_from_log_rate(log_rate: Tensor, photons: Tensor) -> Tensor:
    """Turn the log-rates of whole images into expected photons: softmax times the photons of the input.

    Source: arXiv 2307.06607, section 3; the softmax runs over channels and pixels of each image, but for hot ones.
    """
    cold = (1.0 - hot_pixels(photons).double()).flatten(1)
    total = torch.sum(photons.flatten(1).double() * cold, 1, keepdim=True)
    share = torch.softmax(log_rate.flatten(1).double(), 1)
    rate = share / torch.clamp(torch.sum(share * cold, 1, keepdim=True), min=1e-300) * total
    return rate.float().reshape(log_rate.shape)


def whole_counts(photons: Tensor, rounded: bool) -> Tensor:
    """Return counts as networks know them: not negative, and whole where they were computed from camera values."""
    photons = torch.clamp(photons, min=0.0)
    return torch.round(photons) if rounded else photons


def photons_of(rate: Tensor, background: float, ceiling: int) -> Tensor:
    """Return the photons of the sample from the expected counts, less those that are there without light.

    Where pixels are sums of ``ceiling`` one-bit frames (0: they are not), a frame that catches any photon counts one,
    with the chance ``q = 1 - exp(-s)``; solved for the photons s.
    """
    if ceiling > 0:
        return -ceiling * torch.log1p(-torch.clamp(rate / ceiling, max=0.999))
    return rate - background


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
    first, second, third = torch.zeros_like(photons), torch.zeros_like(photons), torch.zeros_like(photons)
    for row in range(5):
        for column in range(5):
            if row != 2 or column != 2:
                value = padded.narrow(-2, row, height).narrow(-1, column, width)
                third = torch.maximum(third, torch.minimum(second, value))
                second = torch.maximum(second, torch.minimum(first, value))
                first = torch.maximum(first, value)
    rate = 4.0 * (third + 1.0)
    # 6.4 standard deviations, and what the tail of few counts is longer
    return photons > rate + 6.4 * torch.sqrt(rate) + 7.0


def without_hot_pixels(photons: Tensor) -> Tensor:
    """Return counts in which hot pixels hold the mean of their neighbours, (b, c, [z,] y, x)."""
    hot = hot_pixels(photons)
    ones = [1.0, 1.0]
    cold = 1.0 - hot.to(photons.dtype)
    seen = blur(blur(photons * cold, ones, -1), ones, -2)
    return torch.where(hot, seen / torch.clamp(blur(blur(cold, ones, -1), ones, -2), min=1.0), photons)


def blur(x: Tensor, kernel: List[float], axis: int) -> Tensor:
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
        pair = padded.narrow(axis, half - shift, size) + padded.narrow(axis, half + shift, size)
        total.add_(pair.mul_(kernel[shift]))
    return total


def enlarged(x: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Enlarge planes linearly, and cut them to a size."""
    size = [factor * x.shape[-2], factor * x.shape[-1]]
    x = torch._C._nn.upsample_bilinear2d(x, size, False)  # type: ignore[call-arg]
    return x.narrow(-2, 0, height).narrow(-1, 0, width)


class Anchor(nn.Module):
    """Counts smoothed at several scales, and how wrong each of them is at each pixel; has no parameters.

    The squared error of a smoothed image s_k has two parts. Its variance is that of Poisson counts: the rate times the
    sum of the squared filter. Its squared bias is what ``(s_k - s_1)^2``, averaged around the pixel, holds above the
    noise of that difference, and that of s_1 itself against the finest scale s_0. Weights ``1 / error^2`` make a filter
    that is about as good as the best Gaussian at any brightness; a network then has to learn only what is better.
    Version 2 adds what a local fit finds (see ``fitted``), and what a network says counts in its standard errors.
    """

    def __init__(self, dim: int, version: int = 1) -> None:
        super().__init__()
        scales = _PLANAR_SCALES if dim == 2 else _VOLUME_SCALES
        windows = [(max(planar, 2.4), along_z) for planar, along_z in scales]  # what the squared bias is averaged with
        self.dim, self.n_scales = dim, len(scales)
        # an image this many scales on tells the variance: where a fine one is 0 by chance, its own rate would tell 0
        self.wider = 2 if dim == 2 else 3
        self.pools: List[int] = []
        self.kernels: List[List[float]] = []
        self.z_kernels: List[List[float]] = []
        for planar, along_z in scales + windows:
            pool = 1 if planar < 2.4 else 2 if planar < 7 else 4
            # pooling and linear interpolation blur by themselves
            self.pools.append(pool)
            self.kernels.append(_gaussian(math.sqrt(planar**2 - (pool**2 - 1) / 4) / pool))
            self.z_kernels.append(_gaussian(along_z))
        self.overlap: List[List[float]] = self._overlaps()
        self.floor = 0.3 * self.overlap[-1][-1]  # photons per pixel where none is near: a third of one in all
        self.fits = version > 1
        self.n_features = 2 * self.n_scales + 3 + int(self.fits)  # per channel
        self.fitted_scales, self.base = _FITTED[dim]
        planar, along_z = _FIT_WINDOW[dim]
        self.pools.append(_FIT_POOL)
        self.kernels.append(_gaussian(math.sqrt(planar**2 - (_FIT_POOL**2 - 1) / 4) / _FIT_POOL))
        self.z_kernels.append(_gaussian(along_z))
        self.few_photons = 5.0  # a filter that holds fewer would show single photons: the fit holds its gain near 0
        # what shrinks the fit: the variance of a gain, 0.2^2, and the number of voxels of a window
        self.shrinkage = 25.0 / (4.0 * math.pi * planar**2 * max(1.0, 2.0 * math.sqrt(math.pi) * along_z))

    def reach_px(self) -> List[int]:
        """Return how far along each spatial axis the features look."""
        planar, along_z = 0, 0
        for scale in range(self.n_scales):
            reach = 0
            for number in (scale, self.n_scales + scale):
                pool, half = self.pools[number], len(self.kernels[number]) - 1
                reach += half if pool == 1 else (half + 2) * pool - 1
            planar = max(planar, reach)
            along_z = max(along_z, len(self.z_kernels[scale]) + len(self.z_kernels[self.n_scales + scale]) - 2)
        if self.fits:
            planar += (len(self.kernels[-1]) + 1) * _FIT_POOL - 1
            along_z += len(self.z_kernels[-1]) - 1
        # hot pixels are replaced by neighbours (1 px), which are told from hot ones by theirs (2 px)
        return [planar + 3, planar + 3] if self.dim == 2 else [along_z, planar + 3, planar + 3]

    def _overlaps(self) -> List[List[float]]:
        """Return the sums over all pixels of products of two filters; those of squares are relative variances."""
        line = torch.zeros(4, 1, 1, 257)  # a photon at each place that pooling tells apart
        line[range(4), 0, 0, range(126, 130)] = 1.0
        planar = torch.stack([self.smooth(line, scale) for scale in range(self.n_scales)]).flatten(1)
        point = torch.zeros(1, 65, 1, 1)
        point[0, 32] = 1.0
        along_z = torch.stack([self.smooth(point, scale) for scale in range(self.n_scales)]).flatten(1)
        # the weight of the photons of a pixel in its own smoothed value, by pooling's places
        middle = planar.reshape(self.n_scales, 4, 257)[:, range(4), range(126, 130)].mean(1)
        self.own: List[float] = (torch.square(middle) * along_z[:, 32]).tolist()
        overlap = torch.square(planar @ planar.T / 4) * (along_z @ along_z.T)
        return [[float(value) for value in row] for row in overlap]

    def smooth(self, x: Tensor, number: int) -> Tensor:
        """Smooth images (b, c, y, x) or (b, z, y, x) with one of the filters; averages of what is there at borders."""
        pool, height, width = self.pools[number], x.shape[-2], x.shape[-1]
        x = self._blurred(self._pooled(x, number), number, height, width)
        return x if pool == 1 else enlarged(x, pool, height, width)

    def _pooled(self, x: Tensor, number: int) -> Tensor:
        pool = self.pools[number]
        if pool == 1:
            return x
        below, right = (pool - x.shape[-2] % pool) % pool, (pool - x.shape[-1] % pool) % pool
        return F.avg_pool2d(torch.constant_pad_nd(x, [0, right, 0, below], 0.0), [pool, pool])

    def _blurred(self, x: Tensor, number: int, height: int, width: int) -> Tensor:
        """Smooth what was pooled from planes of this size, and leave it at that."""
        pool, kernel, z_kernel = self.pools[number], self.kernels[number], self.z_kernels[number]
        rows = pool * self._pooled(torch.ones([1, 1, height, 1], dtype=x.dtype, device=x.device), number)
        columns = pool * self._pooled(torch.ones([1, 1, 1, width], dtype=x.dtype, device=x.device), number)
        x = blur(blur(x, kernel, -1), kernel, -2) / (blur(rows, kernel, -2) * blur(columns, kernel, -1))
        if len(z_kernel) > 1:
            x = blur(x, z_kernel, -3) / blur(torch.ones_like(x[:1, :, :1, :1]), z_kernel, -3)
        return x

    def fitted(self, photons: Tensor, smoothed: Tensor, log_error: Tensor) -> Tensor:
        """Return the counts that add differences of scales with the gains of the least squared error nearby.

        ``m + sum_k g_k d_k``: m is half the mixture by errors and half a smooth scale, d_k are differences of scales.
        The error against the unknown rate r needs only averages of d_j d_k and of ``(r - m) d_k``, over a window
        around each pixel. For Poisson counts x, ``x (d_k - o_k)`` has the expectation of ``r d_k``, where o_k is what
        x itself adds to d_k; and as all is weighted with 1 / rate, the variance of the noise is 1. Gains are expected
        near 0, the nearer the fewer photons the filter of d_k holds (rate / o_k): else single photons show as specks.

        Source: Luisier et al., "Image denoising in mixed Poisson-Gaussian noise", IEEE TIP 20 (2011), here per window.
        """
        weight = torch.softmax(-2.0 * log_error, 1)
        wide = smoothed[:, self.n_scales - 2]
        start = 0.5 * smoothed[:, self.base]
        for scale in range(self.n_scales):
            start = start + 0.5 * weight[:, scale] * smoothed[:, scale]
        parts: List[Tensor] = []
        weighted: List[Tensor] = []
        averaged = [self._for_window(wide + self.floor)]
        for k in range(len(self.fitted_scales) - 1):
            fine, coarse = self.fitted_scales[k], self.fitted_scales[k + 1]
            part = smoothed[:, fine] - smoothed[:, coarse]
            parts.append(part)
            weighted.append(part / (wide + self.floor))
            seen = weighted[k] * (photons - start) - photons * (self.own[fine] - self.own[coarse]) / (wide + self.floor)
            averaged.append(self._for_window(seen))
            for j in range(k + 1):
                averaged.append(self._for_window(weighted[k] * parts[j]))
        height, width = photons.shape[-2], photons.shape[-1]
        means = self._blurred(torch.cat(averaged), 2 * self.n_scales, height, width).chunk(len(averaged))
        level = means[0]
        gains: List[Tensor] = []
        rows: List[List[Tensor]] = []
        for k in range(len(parts)):
            first = 1 + k * (k + 3) // 2
            gains.append(means[first])
            rows.append([means[first + 1 + j] for j in range(k + 1)])
        # Cholesky's factor in place of the matrix, and both triangles solved, pixel by pixel
        for i in range(len(parts)):
            own = self.own[self.fitted_scales[i]] - self.own[self.fitted_scales[i + 1]]
            sparse = self.few_photons * own / level
            rows[i][i] = 1.001 * rows[i][i] + self.shrinkage * (1.0 + sparse * sparse)
            for j in range(i + 1):
                for k in range(j):
                    rows[i][j] = rows[i][j] - rows[i][k] * rows[j][k]
                rows[i][j] = torch.sqrt(torch.clamp(rows[i][j], min=1e-12)) if i == j else rows[i][j] / rows[j][j]
            for k in range(i):
                gains[i] = gains[i] - rows[i][k] * gains[k]
            gains[i] = gains[i] / rows[i][i]
        result = start
        for step in range(len(parts)):
            i = len(parts) - 1 - step
            for k in range(i + 1, len(parts)):
                gains[i] = gains[i] - rows[k][i] * gains[k]
            gains[i] = gains[i] / rows[i][i]
            gain = enlarged(torch.clamp(gains[i], -4.0, 4.0), self.pools[-1], height, width)
            result = result + gain.reshape(photons.shape) * parts[i]
        return torch.maximum(result, 0.3 * torch.minimum(start, wide))

    def _for_window(self, x: Tensor) -> Tensor:
        return self._pooled(x if self.dim == 2 else x.flatten(0, 1), 2 * self.n_scales)

    def forward(self, photons: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return what a network needs to know of counts (b, c, [z,] y, x).

        Features that change slowly with brightness, (b, n c, ...): ratios, logarithms of levels, and errors; the counts
        at each scale, and fitted, (b, scale, c, ...); and the logarithm of the scales' squared errors, less its mean.
        """
        planes = photons if self.dim == 2 else photons.flatten(0, 1)
        levels: List[Tensor] = []
        for scale in range(self.n_scales):
            levels.append(self.smooth(planes, scale))
        errors: List[Tensor] = []
        bias_of_second = torch.zeros_like(planes)
        for scale in range(self.n_scales):
            own = self.overlap[scale][scale]
            error = own * (levels[min(scale + self.wider, self.n_scales - 1)] + 0.3 * own)
            if scale > 0:
                finer = min(scale - 1, 1)
                noise = own + self.overlap[finer][finer] - 2.0 * self.overlap[finer][scale]
                spread = self.smooth(torch.square(levels[scale] - levels[finer]), self.n_scales + scale)
                bias = torch.relu(spread - noise * levels[3 if scale == 1 else scale])
                error = error + bias
                if scale == 1:
                    bias_of_second = bias
                else:
                    error = error + bias_of_second
            errors.append(torch.log(error))
        smoothed, log_error = torch.stack(levels, 1), torch.stack(errors, 1)
        if self.dim == 3:
            shape = [photons.shape[0], photons.shape[1], self.n_scales]
            shape.extend(photons.shape[2:])
            smoothed, log_error = smoothed.reshape(shape).transpose(1, 2), log_error.reshape(shape).transpose(1, 2)
        log_error = torch.clamp(log_error - torch.mean(log_error, 1, keepdim=True), -12.0, 12.0)
        middle, wide = smoothed[:, self.n_scales // 2], smoothed[:, self.n_scales - 2]
        log_wide = torch.log(wide + self.floor)
        features = [
            torch.log1p(photons) - torch.log1p(wide),
            _asinh((photons - middle) / torch.sqrt(middle + 0.05)),
            0.3 * log_wide,
            (torch.log(smoothed + self.floor) - log_wide.unsqueeze(1)).flatten(1, 2),
            0.5 * log_error.flatten(1, 2),
        ]
        if self.fits:
            fitted = self.fitted(photons, smoothed, log_error)
            features.append(torch.log(fitted + self.floor) - log_wide)
            smoothed = torch.cat([smoothed, fitted.unsqueeze(1)], 1)
        return torch.cat(features, 1), smoothed, log_error

    def log_rate(self, answer: Tensor, smoothed: Tensor, log_error: Tensor) -> Tensor:
        """Turn a network's answer into log-rates: a mixture of the scales, times a factor.

        ``log(sum_k w_k s_k + floor e) + r / 2``. The weights are the softmax of what the network adds to those of the
        errors; a small rate is added everywhere, so that also an empty image has one. All that a network says is
        bounded by 3, as ``3 tanh(. / 3)``: it stays near the filter where it knows nothing, such as far above its
        trained brightness. In version 2 the fitted counts, plus the change of the mixture by the network, take the
        place of the mixture, and r / 2 is at most r times the filter's own relative standard error. The answer holds r,
        one number per scale, and the logarithm of e, (b, (scales + 2) c, ...).
        """
        # a network whose numbers have run away answers nothing, and the filter is left
        bounded = 3.0 * torch.tanh(torch.nan_to_num(answer.to(smoothed.dtype), 0.0, 0.0, 0.0) / 3.0)
        shape = [smoothed.shape[0], self.n_scales + 2]
        shape.extend(smoothed.shape[2:])
        bounded = bounded.reshape(shape)
        weight = torch.softmax(bounded[:, 1:-1] - 2.0 * log_error, 1)
        rate = torch.sum(weight * smoothed[:, : self.n_scales], 1)
        least = self.floor * torch.exp(bounded[:, -1])
        if not self.fits:
            return torch.log(rate + least) + 0.5 * bounded[:, 0]
        untrained, fitted, noise = torch.softmax(-2.0 * log_error, 1), smoothed[:, -1], torch.zeros_like(rate)
        change = torch.sum((weight - untrained) * smoothed[:, : self.n_scales], 1)
        for scale in range(self.n_scales):
            noise = noise + untrained[:, scale] * math.sqrt(self.overlap[scale][scale])
        rate = torch.maximum(fitted + change, 0.3 * torch.minimum(fitted, rate)) + least
        relative_error = torch.clamp(noise / torch.sqrt(rate + 0.3 * noise * noise), max=0.5)
        return torch.log(rate) + relative_error * bounded[:, 0]


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
        # in place: half of what is not convolution is the memory of results
        x = torch.relu_(self.conv2(shortcut))
        return torch.relu_(self.conv3(x).add_(shortcut))


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

    ``levels`` sines and ``log1p`` encode counts, where ``anchor`` does not correct smoothed ones (see ``Anchor``);
    ``depth`` resolution levels, the first with ``start_filts`` filters, doubled at each next one; ``up_mode``
    "transpose" or "upsample", ``merge_mode`` "add" or "concat"; ``z_conv_stage`` levels convolve and pool along z in
    3D, None for all.
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
        self.anchored, self.anchor = anchor, Anchor(dim, anchor_version)
        features = self.anchor.n_features if anchor else levels + int(log1p)
        inputs = [channels * features, *filters[:-1]]
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
        self.conv_final = final(filters[0], channels * (self.anchor.n_scales + 2 if anchor else 1), 1)
        # inputs are extended to multiples of this, and tiles must start at multiples of it
        self.step_px: List[int] = [math.prod(factor[axis] for factor in factors) for axis in range(dim)]
        if anchor:  # which averages 4 x 4 or 8 x 8 pixels
            self.step_px[-2:] = [max(step, 4 if anchor_version == 1 else _FIT_POOL) for step in self.step_px[-2:]]
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
        """Return counts in the type of the weights; ValueError for other axes or channels than the network's."""
        if photons.dim() != self.dim + 2 or photons.shape[1] != self.channels:
            axes = "batch, channel, y, x" if self.dim == 2 else "batch, channel, z, y, x"
            raise ValueError(
                f"the input has the shape {photons.shape}, expected ({axes}) with {self.channels} channels"
            )
        return photons.to(self.conv_final.weight.dtype)

    def forward(self, photons: Tensor) -> Tensor:
        """Return the log-rate of the next photon for counts (b, c, [z,] y, x), float32, of any size; same shape.

        Its softmax over channels and pixels is the distribution of the next photon. Of anchored networks it is the
        logarithm of the expected counts; of plain ones that, up to one constant per image.
        """
        if not self.anchored:
            x = encode(pad_to_multiple(photons, self.step_px), self.levels, self.log1p)
            return self._answer(x, photons)
        features, smoothed, log_error = self.anchor(without_hot_pixels(photons))
        answer = self._answer(pad_to_multiple(features, self.step_px), photons)
        return self.anchor.log_rate(answer, smoothed, log_error)

    def _answer(self, x: Tensor, photons: Tensor) -> Tensor:
        """Run the U-Net and cut off what was added to fill its steps."""
        skips: List[Tensor] = []
        for down, pool in zip(self.down_convs, self.pools, strict=False):
            skips.append(down(x))
            x = pool(skips[-1])
        x = self.down_convs[-1](x)
        for up in self.up_convs:
            x = up(x, skips.pop())
        x = self.conv_final(x)
        for axis in range(len(self.step_px)):
            x = x.narrow(axis + 2, 0, photons.shape[axis + 2])
        return x

    def rate(self, photons: Tensor, log_rate: Tensor, box_px: List[int]) -> Tensor:
        """Turn what ``forward`` returned for photons into expected counts per pixel, (b, c, [z,] y, x).

        Plain networks conserve photons in an odd box, or in the whole image where ``box_px`` is empty; the scale of
        anchored ones is their own.
        """
        if self.anchored:
            return torch.exp(log_rate)
        if len(box_px) == 0:
            return rate_from_log_rate(log_rate, photons)
        return conserve_photons(photons, log_rate, box_px)


class PhotonDenoiser(nn.Module):
    """Counts in, denoised photons out: what an exported model runs.

    See ``UNet.rate`` for ``box_px``, ``whole_counts`` for ``rounded`` and ``photons_of`` for the others; ``network``
    are the arguments of ``UNet``.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, box_px: List[int], rounded: bool = False, background: float = 0.0, ceiling: int = 0, **network
    ) -> None:
        super().__init__()
        self.network = UNet(**network)
        self.box_px: List[int] = odd_box(box_px, self.network.dim)
        self.rounded, self.background, self.ceiling = rounded, float(background), ceiling

    def forward(self, photons: Tensor) -> Tensor:
        """Return the expected photons per pixel, same shape as ``photons`` (b, c, [z,] y, x), counts of any type."""
        photons = whole_counts(self.network.fitting(photons), self.rounded)
        rate = self.network.rate(photons, self.network(photons), self.box_px)
        return photons_of(rate, self.background, self.ceiling)


def _asinh(x: Tensor) -> Tensor:
    """Return the inverse hyperbolic sine, for which ONNX of opset 17 has no operator that torch exports."""
    size = torch.abs(x)
    return torch.sign(x) * torch.log1p(size + size * size / (1.0 + torch.sqrt(size * size + 1.0)))


def odd_box(box_px: List[int], dim: int) -> List[int]:
    """Return one odd size per spatial axis; raise ValueError for others."""
    if len(box_px) != dim or any(size % 2 != 1 for size in box_px):
        raise ValueError(f"box_px={list(box_px)}: expected {dim} odd numbers")
    return list(box_px)


def _per_axis(planar: int, through_z: int, dim: int, along_z: bool) -> Tuple[int, ...]:
    """Sizes per axis: ``planar`` everywhere, or ``through_z`` along z where z takes no part."""
    return (planar,) * dim if dim == 2 or along_z else (through_z, planar, planar)


def _gaussian(sigma: float) -> List[float]:
    """Return the centre and one side of a Gaussian filter with sum 1, cut at 2.5 sigma."""
    if sigma <= 0:
        return [1.0]
    side = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(math.ceil(2.5 * sigma) + 1)]
    return [value / (2.0 * sum(side) - side[0]) for value in side]
