"""The filter that an anchored network corrects: counts smoothed at several scales, and the error of each scale.

It imports only torch and ``filters.py``, compiles with ``torch.jit.script``, and is part of every exported model.
Shapes are ``(b, c, y, x)`` in 2D and ``(b, c, z, y, x)`` in 3D.
"""

import math
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor

from gap_bioimage.filters import Filters, asinh, curvatures, slopes, solve_pixelwise, upsample_planes

# per kind of image: sigma of the scales in px, in the plane and along z; from version 2 on the scales whose differences
# are fitted, the one that makes up half of the image they are added to, and sigma of the window of the fit
_Scales = Tuple[List[Tuple[float, float]], List[int], int, Tuple[float, float]]
_PLANES: _Scales = (
    [(sigma, 0.0) for sigma in (0.4, 0.7, 1.2, 2.0, 3.4, 5.8, 9.5, 15.0)], [1, 2, 3, 4, 5, 7], 5, (24.0, 0.0)
)  # fmt: skip
_VOLUMES: _Scales = (
    [(0.4, 0.0), (0.6, 0.0), (0.8, 0.4), (1.2, 0.6), (1.7, 0.0),
     (1.7, 0.9), (2.9, 0.0), (2.9, 1.4), (5.0, 2.0), (8.5, 2.0)], [0, 2, 3, 5, 7, 8, 9], 8, (20.0, 2.0)
)  # fmt: skip
_MOVIES: _Scales = (
    [(0.4, 0.0), (0.6, 0.6), (0.8, 1.0), (0.8, 2.5), (1.2, 1.2),
     (1.2, 5.0), (2.0, 2.0), (1.2, 12.0), (2.9, 5.0), (6.0, 12.0)], [0, 2, 3, 5, 6, 7, 9], 7, (20.0, 6.0)
)  # fmt: skip
# volumes in version 3: scales at which edges are detected, and the squared strength of edges in noise alone (relative
# to the rate); sigma of the window in which an edge has one direction; scales smoothed along edges, with their edges
_EDGES, _EDGE_NOISE = [3, 7], [3.6e-6, 7.2e-9]
_EDGE_WINDOW = (4.0, 1.0)
_STEERED = [(1, 0), (3, 0), (5, 1)]
FIT_POOL = 8


class Anchor(Filters):
    """Counts smoothed at several scales, and the error of each scale at each pixel; it has no trained parameters.

    The squared error of a smoothed image s_k has two parts. Its variance is that of Poisson counts: the rate times the
    sum of the squared filter. Its squared bias is ``(s_k - s_1)^2``, averaged around the pixel, minus the noise of that
    difference, plus the squared bias of s_1, measured in the same way against the finest scale s_0. Weights
    ``1 / (squared error)^2`` give a filter that is about as good as the best Gaussian at any brightness; a network only
    has to learn how to improve it. Version 2 adds a local fit (see ``fitted``), and scales the network's factor with
    the standard error of the filter. Version 3 smooths volumes differently along and across edges in the plane (see
    ``steered``); 2D networks learn this equally well by themselves. Version 4 bounds what a network changes (see
    ``log_rate``). Version 5 is version 4 for volumes that change slowly along z: movies whose frames are planes.
    Versions 6 and 7 are 4 and 5 with structures that channels share smoothed in their sum (see ``joined``).

    In training it records the brightness of its brightest input, and whether counts are sums of one-bit frames; with
    ``stored`` both are part of the state_dict.
    """

    __constants__ = ("joins", "steers")  # unused code is not scripted: old engines optimise it for half a minute
    brightest: Tensor
    per_frame: Tensor

    def __init__(self, dim: int, version: int = 1, stored: bool = True) -> None:
        super().__init__(dim)
        # photons per pixel in the brightest place of the training, infinite if not known
        self.register_buffer("brightest", torch.tensor(math.inf), persistent=stored)
        # 1 / number of one-bit frames that are summed; 0 if counts have no such limit
        self.register_buffer("per_frame", torch.tensor(0.0), persistent=stored)
        kind = _PLANES if dim == 2 else _MOVIES if version in (5, 7) else _VOLUMES
        scales, self.fitted_scales, self.base, fit_window = kind
        windows = [(max(planar, 2.4), along_z) for planar, along_z in scales]  # average the squared bias
        self.n_scales = len(scales)
        # the variance comes from an image this many scales coarser: it would be 0 where a fine one is 0 by chance
        self.wider = 2 if dim == 2 else 3
        for planar, along_z in scales + windows:
            self.add(planar, along_z, 1 if planar < 2.4 else 2 if planar < 7 else 4)
        self.overlap: List[List[float]] = self.overlaps(self.n_scales)
        self.floor = 0.3 * self.overlap[-1][-1]  # photons per pixel where none are near: 0.3 in the widest filter
        self.fits, self.steers, self.bounded = version > 1, version > 2 and dim == 3, version > 3
        self.joins = version > 5
        if self.bounded:  # marks bare weights: the shapes are those of version 3
            self.register_buffer("version", torch.tensor(version), persistent=stored)
        self.n_features = 2 * self.n_scales + 3 + int(self.fits) + int(self.steers)
        self.n_answers = self.n_scales + 2  # both per channel
        self.edges, self.edge_noise, self.steered_scales = _EDGES, _EDGE_NOISE, _STEERED
        self.steps = [math.ceil(1.4 * scales[scale][0]) for scale, _ in self.steered_scales]
        if dim == 3:
            self.add(*_EDGE_WINDOW, 2)
        planar, along_z = fit_window
        self.add(planar, along_z, FIT_POOL)
        self.few_photons = 5.0  # gains of filters that hold fewer are kept near 0, or single photons would show
        # 1 / (variance of a gain, 0.2^2, times the number of voxels in a window)
        self.shrinkage = 25.0 / (4.0 * math.pi * planar**2 * max(1.0, 2.0 * math.sqrt(math.pi) * along_z))

    def reach_px(self) -> List[int]:
        """Return the reach of the features along each spatial axis."""
        planar, along_z = 0, 0
        for scale in range(self.n_scales):
            planar = max(planar, self.filter_reach_px(scale) + self.filter_reach_px(self.n_scales + scale))
            along_z = max(along_z, len(self.z_kernels[scale]) + len(self.z_kernels[self.n_scales + scale]) - 2)
        for _ in range(int(self.fits) + int(self.joins)):  # sums of channels are fitted before the channels
            planar += self.filter_reach_px(-1)
            along_z += len(self.z_kernels[-1]) - 1
        # hot pixels are replaced by neighbours (1 px), which are tested for being hot with theirs (2 px)
        return [planar + 3, planar + 3] if self.dim == 2 else [along_z, planar + 3, planar + 3]

    def joined(
        self, photons: Tensor, smoothed: Tensor, log_weight: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Fit channels, of which the last is the sum of the others, with structures that they may share.

        Where the channels' ratio changes slowly, ``q = R S_c / S`` is a better estimate of channel c than its own
        scales: R is the fitted sum, S_c and S are the channel and the sum at a wide scale. The differences of q (at two
        wide scales) from m are further terms of the local fit, so q counts only where it predicts the channel's own
        photons: little is lost where channels are unrelated. A photon adds to q at its own pixel
        ``o S_c / S + o_S (1 - S_c / S) R / S``, where o and o_S are what it adds to R and S.

        Returns counts, fitted counts, certainty, scales and log-weights without the sum. Scales and log-weights are
        replaced by those of the sum, the scales times S_c / S, in proportion to the gains: the network corrects them.
        """
        n = photons.shape[1] - 1
        total, log_weight_of_total = smoothed[:, :, n:], log_weight[:, :, n:]
        limit = self.per_frame / n  # if the frames' limit is reached in all channels alike
        best, _, own, _ = self.fitted(photons[:, n:], total, torch.softmax(log_weight_of_total, 1), limit, [], [])
        photons, smoothed, log_weight = photons[:, :n], smoothed[:, :, :n], log_weight[:, :, :n]
        shares: List[Tensor] = []
        owns: List[Tensor] = []
        for scale in (self.n_scales - 3, self.n_scales - 1):
            whole = total[:, scale] + n * self.floor
            shares.append((smoothed[:, scale] + self.floor) / whole)
            owns.append(shares[-1] * own + self.own[scale] * (1.0 - shares[-1]) * (best / whole))
        joint = [share * best for share in shares]
        weight = torch.softmax(log_weight, 1)
        fitted, certainty, _, gains = self.fitted(photons, smoothed, weight, self.per_frame, joint, owns)
        left, share = torch.ones_like(fitted), torch.zeros_like(fitted)
        for k in range(len(shares)):
            part = torch.minimum(torch.relu(gains[k]), left)
            left, share = left - part, share + part * shares[k]
        left = left.unsqueeze(1)
        smoothed = left * smoothed + share.unsqueeze(1) * total
        return photons, fitted, certainty, smoothed, left * log_weight + (1.0 - left) * log_weight_of_total

    def fitted(
        self, photons: Tensor, smoothed: Tensor, weight: Tensor, limit: Tensor, joint: List[Tensor], owns: List[Tensor]
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add differences of scales with the gains that minimise the squared error nearby.

        Returns ``m + sum_k g_k d_k``, the certainty of edge directions (0 before version 3), from version 6 on what a
        photon adds to the result at its own pixel, and the gains of ``joint`` estimates. m is half the mixture of
        scales and half a smooth scale, d_k are differences of scales (and of directions), and of joint estimates from
        m. The squared error against the unknown rate r depends on averages of ``d_j d_k`` and ``(r - m) d_k`` over a
        window around each pixel. For Poisson counts x, ``x (d_k - o_k)`` has the expectation of ``r d_k``, where o_k is
        what one photon adds to d_k at its own pixel (``owns``: to joint estimates). Sums of n one-bit frames take x -
        r^2 / n for x in the second term (``limit``: 1 / n). All terms are weighted by 1 / rate, which makes the
        variance of the noise 1. Gains shrink towards 0, the more the fewer photons the filter of d_k holds (rate /
        weight of one photon): otherwise single photons appear as specks. Those of joint estimates, which are as smooth
        as the sum of channels, shrink least.

        Source: Luisier et al., "Image denoising in mixed Poisson-Gaussian noise", IEEE TIP 20 (2011), here per window.
        """
        wide = smoothed[:, self.n_scales - 2]
        mixture = torch.sum(weight * smoothed, 1)
        start = 0.5 * (smoothed[:, self.base] + mixture)
        level = wide + self.floor
        terms, self_weight, one_photon, certainty = self._differences(smoothed, level)
        linear, count = len(terms), len(terms) + len(joint)
        own = level  # up to version 5 nobody asks
        if self.joins:
            own = torch.full_like(level, 0.5 * self.own[self.base])
            for k in range(self.n_scales):
                own.add_(weight[:, k], alpha=0.5 * self.own[k])
        parts = torch.stack([photons - start] + terms + [estimate - start for estimate in joint])
        products = self.products(parts * torch.rsqrt(level))
        alone = photons - (limit * mixture) * mixture
        maps = [level, alone / level] + [alone / level * (more - own) for more in owns]
        levels = torch.cat(maps).flatten(0, -4)
        means = self.smooth_each([levels], len(self.pools) - 1, False)[0].chunk(len(maps))
        sparsity = torch.square(self.few_photons / means[0])
        system = torch.cat([products[1:, 1:], products[1:, :1]], 1)
        for k in range(count):
            if k < linear:
                ridge = self.shrinkage * (1.0 + one_photon[k] * one_photon[k] * sparsity)
                noise = self_weight[k] * means[1]
            else:
                ridge, noise = torch.full_like(sparsity, 0.2 * self.shrinkage), means[k - linear + 2]
            system[k, k] = 1.001 * system[k, k] + ridge.reshape(system.shape[2:])
            system[k, count] -= noise.reshape(system.shape[2:])
        gains = torch.clamp(solve_pixelwise(system), -4.0, 4.0)
        gains = upsample_planes(gains.flatten(0, -4), self.pools[-1], photons.shape[-2], photons.shape[-1])
        result, gains = start.clone(), gains.reshape(parts[1:].shape)
        for k in range(count):
            result.addcmul_(gains[k], parts[k + 1])
        if self.joins:
            for k in range(linear):
                own.add_(gains[k], alpha=self_weight[k])
        # smooth scales may be far brighter than a dark gap: there the mixture is the better bound
        result = torch.maximum(result, torch.minimum(0.3 * torch.minimum(start, wide), mixture))
        return result, certainty, own, gains[linear:]

    def _differences(self, smoothed: Tensor, level: Tensor) -> Tuple[List[Tensor], List[float], List[float], Tensor]:
        """Return differences, what a photon adds to each, its weight in their filters, and the certainty of edges."""
        terms: List[Tensor] = []
        self_weight: List[float] = []
        one_photon: List[float] = []
        for k in range(len(self.fitted_scales) - 1):
            finer, coarser = self.fitted_scales[k], self.fitted_scales[k + 1]
            terms.append(smoothed[:, finer] - smoothed[:, coarser])
            self_weight.append(self.own[finer] - self.own[coarser])
            one_photon.append(self_weight[-1])
        certainty = torch.zeros_like(level)
        if self.steers:
            directions, certainty = self.steered(smoothed, level)
            for k in range(len(directions)):
                terms.append(directions[k])
                self_weight.append(0.0)
                one_photon.append(self.own[self.steered_scales[k][0]])
        return terms, self_weight, one_photon, certainty

    def steered(self, smoothed: Tensor, level: Tensor) -> Tuple[List[Tensor], Tensor]:
        """Return curvatures across edges minus those along them, and the certainty of edge directions, 0 to 1.

        The structure tensor J, the local average of products of slopes, detects edges. If all slopes are parallel, at
        the angle t across an edge, ``cos 2t = (J_xx - J_yy) / (J_xx + J_yy)`` and ``sin 2t = 2 J_xy / (J_xx + J_yy)``;
        if not, both ratios are smaller, down to 0. ``cos 2t (s_xx - s_yy) + sin 2t 2 s_xy`` of a scale s is then the
        curvature across the edge minus that along it: its gain moves the width of the filter from one direction to the
        other. A photon contributes nothing to it at its own pixel. Directions that may be due to noise are set to 0.

        Source for the structure tensor: Weickert, "Anisotropic Diffusion in Image Processing" (1998).
        """
        window, rate = 2 * self.n_scales, level.flatten(0, -4)
        maps: List[Tensor] = []
        certainty = rate
        for edge in range(len(self.edges)):
            x, y = slopes(smoothed[:, self.edges[edge]].flatten(0, -4))
            over_rate = x / rate
            products = torch.cat([over_rate * x, torch.square(y) / rate, over_rate * y])
            xx, yy, xy = self.smooth_each([products], window, False)[0].chunk(3)
            straight, diagonal = xx - yy, 2.0 * xy
            strength = torch.square(straight) + torch.square(diagonal) + 1e-12
            share = torch.relu(1.0 - 12.0 * self.edge_noise[edge] / strength) / (xx + yy + 1e-9)
            maps.append(share * straight)
            maps.append(share * diagonal)
            if edge == 0:
                certainty = share * torch.sqrt(strength)
        maps.append(certainty)
        full_size = upsample_planes(torch.cat(maps), self.pools[window], level.shape[-2], level.shape[-1])
        directions = full_size.chunk(len(maps))
        terms: List[Tensor] = []
        for k in range(len(self.steps)):
            scale, edge = self.steered_scales[k]
            straight, diagonal = curvatures(smoothed[:, scale].flatten(0, -4), self.steps[k])
            straight.mul_(directions[2 * edge]).addcmul_(diagonal, directions[2 * edge + 1])
            terms.append(straight.reshape(level.shape))
        return terms, directions[-1].reshape(level.shape)

    def forward(self, photons: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return the features of counts (b, c, [z,] y, x), the smoothed counts and their weights.

        The features, (b, n c, ...), are ratios, logarithms of levels, and errors: they change slowly with brightness.
        From version 2 on the smoothed counts, (b, scale, c, ...), end with the fitted ones. The weights of the scales
        are proportional to ``1 / (squared error)^2``, with sum 1.
        """
        if self.joins:
            photons = torch.cat([photons, torch.sum(photons, 1, keepdim=True)], 1)
        planes = photons if self.dim == 2 else photons.flatten(0, 1)
        levels = self.smooth_each([planes] * self.n_scales, 0)
        differences = [(levels[k] - levels[min(k - 1, 1)]).square_() for k in range(1, self.n_scales)]
        spreads = self.smooth_each(differences, self.n_scales + 1)
        errors: List[Tensor] = []
        bias_of_second = torch.zeros_like(planes)
        for scale in range(self.n_scales):
            variance = self.overlap[scale][scale]
            error = variance * (levels[min(scale + self.wider, self.n_scales - 1)] + 0.3 * variance)
            if scale > 0:
                finer = min(scale - 1, 1)
                noise = variance + self.overlap[finer][finer] - 2.0 * self.overlap[finer][scale]
                bias = spreads[scale - 1].sub_(levels[3 if scale == 1 else scale], alpha=noise).relu_()
                error.add_(bias).add_(bias_of_second)
                if scale == 1:
                    bias_of_second = bias
            errors.append(error.log_())
        smoothed, log_error = torch.stack(levels, 1), torch.stack(errors, 1)
        if self.dim == 3:
            smoothed = smoothed.unflatten(0, photons.shape[:2]).transpose(1, 2)  # type: ignore[no-untyped-call]
            log_error = log_error.unflatten(0, photons.shape[:2]).transpose(1, 2)  # type: ignore[no-untyped-call]
        log_weight = log_error.sub_(torch.mean(log_error, 1, keepdim=True)).clamp_(-12.0, 12.0).mul_(-2.0)
        fitted = certainty = photons
        if self.joins:
            photons, fitted, certainty, smoothed, log_weight = self.joined(photons, smoothed, log_weight)
        middle, wide = smoothed[:, self.n_scales // 2], smoothed[:, self.n_scales - 2]
        log_wide = torch.log(wide + self.floor)
        features = [
            torch.log1p(photons) - torch.log1p(wide),
            asinh((photons - middle) / torch.sqrt(middle + 0.05)),
            0.3 * log_wide,
            (smoothed + self.floor).log_().sub_(log_wide.unsqueeze(1)).flatten(1, 2),
            -0.25 * log_weight.flatten(1, 2),
        ]
        weight = torch.softmax(log_weight, 1)
        if self.fits:
            if not self.joins:
                fitted, certainty, _, _ = self.fitted(photons, smoothed, weight, self.per_frame, [], [])
            features.append(torch.log(fitted + self.floor) - log_wide)
            if self.steers:
                features.append(certainty)
            smoothed = torch.cat([smoothed, fitted.unsqueeze(1)], 1)
        return torch.cat(features, 1), smoothed, weight

    def log_rate(self, answer: Tensor, smoothed: Tensor, weight: Tensor) -> Tensor:
        """Turn a network's answer into log-rates: a mixture of the scales, times a factor.

        Returns ``log(sum_k w_k s_k + floor e) + r / 2``. The answer, (b, n_answers c, ...), holds r, one number per
        scale, and the logarithm of e, each bounded by 3, as ``3 tanh(. / 3)``: the result stays near the filter where
        the network is unreliable, such as far above its trained brightness. The weights w_k are those of the errors
        times the exponential of the scale's number, with sum 1. ``floor e`` keeps the rate of empty images positive.
        From version 2 on, the fitted counts plus the network's change of the mixture replace the mixture, and r is
        multiplied by the relative standard error of the filter, at most 1/2. From version 4 on, the result stays
        between the fitted counts and the changed mixture: the fit contains only half of the mixture, and networks that
        remove peaks of single photons from all of it left dark dots.
        """
        # NaN and infinities of networks that have diverged become 0, which leaves the filter as the result
        # in the layout of the counts: products of different layouts take twice the time
        answer = torch.nan_to_num(answer.to(smoothed.dtype).contiguous(), 0.0, 0.0, 0.0)
        # 3 tanh(. / 3), in a third of the time
        bounded: Tensor = torch.sigmoid_(answer.mul_(2.0 / 3.0 * self._damping(smoothed))).mul(6.0).sub_(3.0)
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
        corrected, low = fitted + (rate - torch.sum(weight * scales, 1)), torch.minimum(fitted, rate)
        if self.bounded:
            rate = torch.maximum(torch.minimum(corrected, torch.maximum(fitted, rate)), low) + least
        else:
            rate = torch.maximum(corrected, 0.3 * low) + least
        relative_error = torch.clamp(noise / torch.sqrt(rate + 0.3 * noise * noise), max=0.5)
        return torch.log(rate) + relative_error * bounded[:, 0]

    def _damping(self, smoothed: Tensor) -> Tensor:
        """Return a factor for the answer: less than 1 where the image is brighter than the whole training."""
        brightness = torch.mean(smoothed[:, self.n_scales - 2], 1, keepdim=True)
        if self.training:
            self.brightest.copy_(torch.maximum(self.brightest, brightness.max()))
            return torch.ones_like(brightness)
        return torch.sqrt(torch.clamp(self.brightest / brightness, max=1.0))

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *more: Any) -> None:
        """Load a state dict; older ones do not record the brightness of their training, nor one-bit frames."""
        if self.state_dict():  # empty for plain networks
            state_dict.setdefault(prefix + "brightest", torch.tensor(math.inf))
            state_dict.setdefault(prefix + "per_frame", torch.tensor(0.0))
        super()._load_from_state_dict(state_dict, prefix, *more)
