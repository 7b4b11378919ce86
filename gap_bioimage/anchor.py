"""What an anchored network corrects: counts smoothed at several scales, and how wrong each of them is.

Only torch is imported, and everything compiles with ``torch.jit.script``: the source is part of every exported model.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

import math
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from gap_bioimage.filters import Filters, curvatures, enlarged, padded, slopes, solved

# sigma of the anchor's filters in px: in the plane, and along z
_PLANAR_SCALES = [(sigma, 0.0) for sigma in (0.4, 0.7, 1.2, 2.0, 3.4, 5.8, 9.5, 15.0)]
_VOLUME_SCALES = [(0.4, 0.0), (0.6, 0.0), (0.8, 0.4), (1.2, 0.6), (1.7, 0.0), (1.7, 0.9), (2.9, 0.0), (2.9, 1.4)]
_VOLUME_SCALES += [(5.0, 2.0), (8.5, 2.0)]
# anchors from version 2 on: scales whose differences are fitted, and the one that is half of what they are added to;
# and sigma of the window of the fit in px, in the plane and along z
_FITTED = {2: ([1, 2, 3, 4, 5, 7], 5), 3: ([0, 2, 3, 5, 7, 8, 9], 8)}
_FIT_WINDOW = {2: (24.0, 0.0), 3: (20.0, 2.0)}
# volumes of version 3: scales that show edges, with what noise alone shows there (times its level); sigma of the window
# in which edges have one direction; and the scales that are smoothed along the edges, with the edges that they follow
_EDGES, _EDGE_NOISE = [3, 7], [3.6e-6, 7.2e-9]
_EDGE_WINDOW = (4.0, 1.0)
_STEERED = [(1, 0), (3, 0), (5, 1)]
FIT_POOL = 8


class Anchor(Filters):
    """Counts smoothed at several scales, and how wrong each of them is at each pixel; nothing in it is trained.

    The squared error of a smoothed image s_k has two parts. Its variance is that of Poisson counts: the rate times the
    sum of the squared filter. Its squared bias is what ``(s_k - s_1)^2``, averaged around the pixel, holds above the
    noise of that difference, and that of s_1 itself against the finest scale s_0. Weights ``1 / error^2`` make a filter
    that is about as good as the best Gaussian at any brightness; a network then has to learn only what is better.
    Version 2 adds what a local fit finds (see ``fitted``), and what a network says counts in its standard errors. Of
    volumes, version 3 smooths along edges in the plane otherwise than across them (see ``steered``); planes learn that
    as well by themselves.

    In training it keeps how bright its inputs are at most; ``stored`` puts that into the state_dict.
    """

    brightest: Tensor

    def __init__(self, dim: int, version: int = 1, stored: bool = True) -> None:
        super().__init__(dim)
        # photons per pixel around the brightest one in training, infinite where that is not known
        self.register_buffer("brightest", torch.tensor(math.inf), persistent=stored)
        scales = _PLANAR_SCALES if dim == 2 else _VOLUME_SCALES
        windows = [(max(planar, 2.4), along_z) for planar, along_z in scales]  # what the squared bias is averaged with
        self.n_scales = len(scales)
        # an image this many scales on tells the variance: where a fine one is 0 by chance, its own rate would tell 0
        self.wider = 2 if dim == 2 else 3
        for planar, along_z in scales + windows:
            self.add(planar, along_z, 1 if planar < 2.4 else 2 if planar < 7 else 4)
        self.overlap: List[List[float]] = self._overlaps()
        self.floor = 0.3 * self.overlap[-1][-1]  # photons per pixel where none is near: a third of one in all
        self.fits, self.steers = version > 1, version > 2 and dim == 3
        self.n_features = 2 * self.n_scales + 3 + int(self.fits) + int(self.steers)
        self.n_answers = self.n_scales + 2  # both per channel
        self.fitted_scales, self.base = _FITTED[dim]
        self.edges, self.edge_noise, self.steered_scales = _EDGES, _EDGE_NOISE, _STEERED
        self.steps = [math.ceil(1.4 * scales[scale][0]) for scale, _ in self.steered_scales]
        planar, along_z = _FIT_WINDOW[dim]
        if dim == 3:
            self.add(*_EDGE_WINDOW, 2)
        self.add(planar, along_z, FIT_POOL)
        self.few_photons = 5.0  # a filter that holds fewer would show single photons: the fit holds its gain near 0
        # what shrinks the fit: the variance of a gain, 0.2^2, and the number of voxels of a window
        self.shrinkage = 25.0 / (4.0 * math.pi * planar**2 * max(1.0, 2.0 * math.sqrt(math.pi) * along_z))

    def reach_px(self) -> List[int]:
        """Return how far along each spatial axis the features look."""
        planar, along_z = 0, 0
        for scale in range(self.n_scales):
            planar = max(planar, self.filter_reach_px(scale) + self.filter_reach_px(self.n_scales + scale))
            along_z = max(along_z, len(self.z_kernels[scale]) + len(self.z_kernels[self.n_scales + scale]) - 2)
        if self.fits:
            planar += self.filter_reach_px(-1)
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

    def fitted(self, photons: Tensor, smoothed: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the counts that add differences of scales with the gains of the least squared error nearby.

        ``m + sum_k g_k d_k``: m is half the mixture by errors and half a smooth scale, d_k are differences of scales
        (and of directions). The error against the unknown rate r needs only averages of d_j d_k and of ``(r - m) d_k``,
        over a window around each pixel. For Poisson counts x, ``x (d_k - o_k)`` has the expectation of ``r d_k``, where
        o_k is what x itself adds to d_k; and as all is weighted with 1 / rate, the variance of the noise is 1. Gains
        are expected near 0, the nearer the fewer photons the filter of d_k holds (rate / its weight of one photon):
        else single photons show as specks. Beside them, how sure edges have a direction there.

        Source: Luisier et al., "Image denoising in mixed Poisson-Gaussian noise", IEEE TIP 20 (2011), here per window.
        """
        wide = smoothed[:, self.n_scales - 2]
        mixture = torch.sum(weight * smoothed, 1)
        start = 0.5 * (smoothed[:, self.base] + mixture)
        level = wide + self.floor
        terms = [photons - start]
        own: List[float] = []
        one_photon: List[float] = []
        for k in range(len(self.fitted_scales) - 1):
            finer, coarser = self.fitted_scales[k], self.fitted_scales[k + 1]
            terms.append(smoothed[:, finer] - smoothed[:, coarser])
            own.append(self.own[finer] - self.own[coarser])
            one_photon.append(own[-1])
        sure = torch.zeros_like(level)
        if self.steers:
            directions, sure = self.steered(smoothed, level)
            for k in range(len(directions)):
                terms.append(directions[k])
                own.append(0.0)
                one_photon.append(self.own[self.steered_scales[k][0]])
        parts, count = torch.stack(terms), len(terms) - 1
        products = self._products(parts * torch.rsqrt(level))
        mean_level, share = self.smoothed(
            [torch.cat([level, photons / level]).flatten(0, -4)], len(self.pools) - 1, False
        )[0].chunk(2)
        sparse = torch.square(self.few_photons / mean_level)
        system = torch.cat([products[1:, 1:], products[1:, :1]], 1)
        for k in range(count):
            hold = self.shrinkage * (1.0 + one_photon[k] * one_photon[k] * sparse)
            system[k, k] = 1.001 * system[k, k] + hold.reshape(system.shape[2:])
            system[k, count] -= (own[k] * share).reshape(system.shape[2:])
        gains = torch.clamp(solved(system), -4.0, 4.0)
        gains = enlarged(gains.flatten(0, -4), self.pools[-1], photons.shape[-2], photons.shape[-1])
        result, gains = start.clone(), gains.reshape(parts[1:].shape)
        for k in range(count):
            result.addcmul_(gains[k], parts[k + 1])
        # what is smooth may be far brighter than a dark gap: the mixture knows how dark that is
        return torch.maximum(result, torch.minimum(0.3 * torch.minimum(start, wide), mixture)), sure

    def steered(self, smoothed: Tensor, level: Tensor) -> Tuple[List[Tensor], Tensor]:
        """Return curvatures across edges less those along them, and how sure their direction is, 0 to 1.

        Edges are what the structure tensor J shows, averages of products of slopes g: for the angle t across an edge,
        ``cos 2t = (J_xx - J_yy) / (J_xx + J_yy)`` and ``sin 2t = 2 J_xy / (J_xx + J_yy)`` if all slopes are parallel,
        both near 0 if they are not. ``cos 2t (s_xx - s_yy) + sin 2t 2 s_xy`` of a scale s is then the curvature across
        less that along: a gain of it moves the filter's width from one direction to the other. A photon adds nothing
        to it at its own place. Directions that noise might have made are none.

        Source: Weickert, "Anisotropic Diffusion in Image Processing" (1998), of the structure tensor.
        """
        window, rate = 2 * self.n_scales, level.flatten(0, -4)
        maps: List[Tensor] = []
        sure = rate
        for edge in range(len(self.edges)):
            x, y = slopes(smoothed[:, self.edges[edge]].flatten(0, -4))
            over_rate = x / rate
            products = torch.cat([over_rate * x, torch.square(y) / rate, over_rate * y])
            xx, yy, xy = self.smoothed([products], window, False)[0].chunk(3)
            straight, diagonal = xx - yy, 2.0 * xy
            found = torch.square(straight) + torch.square(diagonal) + 1e-12
            share = torch.relu(1.0 - 12.0 * self.edge_noise[edge] / found) / (xx + yy + 1e-9)
            maps.append(share * straight)
            maps.append(share * diagonal)
            if edge == 0:
                sure = share * torch.sqrt(found)
        maps.append(sure)
        directions = enlarged(torch.cat(maps), self.pools[window], level.shape[-2], level.shape[-1]).chunk(len(maps))
        terms: List[Tensor] = []
        for k in range(len(self.steps)):
            scale, edge = self.steered_scales[k]
            straight, diagonal = curvatures(smoothed[:, scale].flatten(0, -4), self.steps[k])
            straight.mul_(directions[2 * edge]).addcmul_(diagonal, directions[2 * edge + 1])
            terms.append(straight.reshape(level.shape))
        return terms, directions[-1].reshape(level.shape)

    def _products(self, maps: Tensor) -> Tensor:
        """Average products of any two maps (map, b, c, [z,] y, x) over the windows of the fit, at its resolution.

        Return (map, map, b, c, [z,] y, x).
        """
        count, height, width, pool = len(maps), maps.shape[-2], maps.shape[-1], self.pools[-1]
        maps = padded(maps, pool)
        rows, columns = maps.shape[-2] // pool, maps.shape[-1] // pool
        shape = list(maps.shape)
        shape[-2], shape[-1] = rows, columns
        shape.insert(0, count)
        blocks = maps.reshape(count, -1, rows, pool, columns, pool).permute(1, 2, 4, 0, 3, 5)
        pooled = self._times_themselves(blocks.reshape(-1, count, pool * pool)).div_(pool * pool)
        pooled = pooled.reshape(-1, rows, columns, count * count).permute(3, 0, 1, 2).contiguous().reshape(shape)
        return self.blurred(pooled.flatten(0, -4), len(self.pools) - 1, height, width).reshape(shape)

    def _times_themselves(self, blocks: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.bmm(blocks, blocks.transpose(1, 2))
        return self._exactly(blocks)

    @torch.jit.unused
    def _exactly(self, blocks: Tensor) -> Tensor:
        """Multiply in float32 where convolutions are not, too."""
        with torch.autocast(blocks.device.type, enabled=False):
            return torch.bmm(blocks, blocks.transpose(1, 2))

    def forward(self, photons: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return what a network needs to know of counts (b, c, [z,] y, x).

        Features that change slowly with brightness, (b, n c, ...): ratios, logarithms of levels, and errors; the counts
        at each scale, and fitted, (b, scale, c, ...); and the scales' weights, 1 / error^2 of sum 1.
        """
        planes = photons if self.dim == 2 else photons.flatten(0, 1)
        levels = self.smoothed([planes] * self.n_scales, 0)
        differences: List[Tensor] = []
        for scale in range(1, self.n_scales):
            differences.append((levels[scale] - levels[min(scale - 1, 1)]).square_())
        spreads = self.smoothed(differences, self.n_scales + 1)
        errors: List[Tensor] = []
        bias_of_second = torch.zeros_like(planes)
        for scale in range(self.n_scales):
            own = self.overlap[scale][scale]
            error = own * (levels[min(scale + self.wider, self.n_scales - 1)] + 0.3 * own)
            if scale > 0:
                finer = min(scale - 1, 1)
                noise = own + self.overlap[finer][finer] - 2.0 * self.overlap[finer][scale]
                bias = spreads[scale - 1].sub_(levels[3 if scale == 1 else scale], alpha=noise).relu_()
                error.add_(bias)
                if scale == 1:
                    bias_of_second = bias
                else:
                    error.add_(bias_of_second)
            errors.append(error.log_())
        smoothed, log_error = torch.stack(levels, 1), torch.stack(errors, 1)
        if self.dim == 3:
            smoothed = smoothed.unflatten(0, photons.shape[:2]).transpose(1, 2)  # type: ignore[no-untyped-call]
            log_error = log_error.unflatten(0, photons.shape[:2]).transpose(1, 2)  # type: ignore[no-untyped-call]
        log_weight = log_error.sub_(torch.mean(log_error, 1, keepdim=True)).clamp_(-12.0, 12.0).mul_(-2.0)
        middle, wide = smoothed[:, self.n_scales // 2], smoothed[:, self.n_scales - 2]
        log_wide = torch.log(wide + self.floor)
        features = [
            torch.log1p(photons) - torch.log1p(wide),
            _asinh((photons - middle) / torch.sqrt(middle + 0.05)),
            0.3 * log_wide,
            (smoothed + self.floor).log_().sub_(log_wide.unsqueeze(1)).flatten(1, 2),
            -0.25 * log_weight.flatten(1, 2),
        ]
        weight = torch.softmax(log_weight, 1)
        if self.fits:
            fitted, sure = self.fitted(photons, smoothed, weight)
            features.append(torch.log(fitted + self.floor) - log_wide)
            if self.steers:
                features.append(sure)
            smoothed = torch.cat([smoothed, fitted.unsqueeze(1)], 1)
        return torch.cat(features, 1), smoothed, weight

    def log_rate(self, answer: Tensor, smoothed: Tensor, weight: Tensor) -> Tensor:
        """Turn a network's answer into log-rates: a mixture of the scales, times a factor.

        ``log(sum_k w_k s_k + floor e) + r / 2``. The weights are those of the errors times the exponential of what the
        network says, with sum 1; a small rate is added everywhere, so that also an empty image has one. All that a
        network says is bounded by 3, as ``3 tanh(. / 3)``: it stays near the filter where it knows nothing, such as far
        above its trained brightness. From version 2 on the fitted counts, plus the network's change of the mixture,
        take the place of the mixture, and r / 2 is at most r times the filter's own relative standard error. The answer
        holds r, one number per scale, and the logarithm of e, (b, n_answers c, ...).
        """
        # a network whose numbers have run away answers nothing, and the filter is left
        # in the layout of the counts: products of other layouts take twice the time
        answer = torch.nan_to_num(answer.to(smoothed.dtype).contiguous(), 0.0, 0.0, 0.0)
        # 3 tanh(. / 3) in a third of its time
        bounded: Tensor = torch.sigmoid_(answer.mul_(2.0 / 3.0 * self._trust(smoothed))).mul(6.0).sub_(3.0)
        bounded = bounded.unflatten(1, [self.n_answers, smoothed.shape[2]])  # type: ignore[no-untyped-call]
        scales = smoothed[:, : self.n_scales]
        changed = weight * torch.exp(bounded[:, 1 : self.n_scales + 1])
        rate = torch.sum(changed * scales, 1) / torch.sum(changed, 1)
        least = self.floor * torch.exp(bounded[:, self.n_scales + 1])
        if not self.fits:
            return torch.log(rate + least) + 0.5 * bounded[:, 0]
        fitted, noise = smoothed[:, -1], torch.zeros_like(rate)
        for scale in range(self.n_scales):
            noise.add_(weight[:, scale], alpha=math.sqrt(self.overlap[scale][scale]))
        change = rate - torch.sum(weight * scales, 1)
        rate = torch.maximum(fitted + change, 0.3 * torch.minimum(fitted, rate)) + least
        relative_error = torch.clamp(noise / torch.sqrt(rate + 0.3 * noise * noise), max=0.5)
        return torch.log(rate) + relative_error * bounded[:, 0]

    def _trust(self, smoothed: Tensor) -> Tensor:
        """Return the share of an answer to take: less than 1 where it is brighter than all of the training."""
        brightness = torch.mean(smoothed[:, self.n_scales - 2], 1, keepdim=True)
        if self.training:
            self.brightest.copy_(torch.maximum(self.brightest, brightness.max()))
            return torch.ones_like(brightness)
        return torch.sqrt(torch.clamp(self.brightest / brightness, max=1.0))

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *more: Any) -> None:
        """Load what is stored; weights of before do not tell how bright their training was."""
        if self.state_dict():  # not of plain networks
            state_dict.setdefault(prefix + "brightest", torch.tensor(math.inf))
        super()._load_from_state_dict(state_dict, prefix, *more)


def _asinh(x: Tensor) -> Tensor:
    """Return the inverse hyperbolic sine, for which ONNX of opset 17 has no operator that torch exports."""
    size = torch.abs(x)
    return torch.sign(x) * torch.log1p(size + size * size / (1.0 + torch.sqrt(size * size + 1.0)))
