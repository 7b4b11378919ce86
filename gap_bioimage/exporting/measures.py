"""Measurements on a network during export: sizes of its tiles, scores and speed."""

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from gap_bioimage.counts import pseudo_psnr_db, thin
from gap_bioimage.exporting.intake import brightest_piece
from gap_bioimage.inference.reach import HaloReport, round_up
from gap_bioimage.sampler import GAIN, WINDOW_PX, PosteriorSampler, photon_budget, total_photons
from gap_bioimage.seams import seam_width_px

MOST_HALO_PX = {2: 160, 3: 40}
"""Widest practical halo in tiles of 2D and 3D consumers."""
_SIGMAS_PX = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
_Z_RATIOS = (0.0, 0.3, 0.6, 1.0)  # sigma along z over sigma in the plane
_PIECE_PX = {2: (256, 256), 3: (24, 96, 96)}  # sampling costs many runs of the network
_MIN_SAMPLES = 4


@dataclass(frozen=True)
class Sizes:
    """Input sizes that a model declares, per spatial axis: ``min_px + n step_px``, its halo, and its pooling.

    The graph pads its input to multiples of ``pool_px`` by itself. Min and halo are multiples as well, so that tiles
    lie on the pooling grid of the whole image.
    """

    min_px: tuple[int, ...]
    step_px: tuple[int, ...]
    halo_px: tuple[int, ...]
    pool_px: tuple[int, ...]

    @classmethod
    def of(
        cls, pool_px: Sequence[int], halo_px: Sequence[int], depth: int | None = None, *, any_size: bool = True
    ) -> Self:
        """Choose the smallest size as a multiple of the pooling that holds two halos and a block.

        The halo then takes at most three quarters of each axis of the smallest tile. ``any_size`` declares a step of 1:
        Fiji then runs an image of any size in one tile. A larger step makes two tiles per axis, the second off the
        pooling grid. ONNX weights take multiples of the pooling only. Stacks with fewer planes (``depth``) than the
        smallest size run whole along z, without a halo: programs would refuse them otherwise.
        """
        pairs = zip(pool_px, halo_px, strict=True)
        minimum = [round_up(2 * halo + max(pool, 2 * seam_width_px(halo)), pool) for pool, halo in pairs]
        halo = list(halo_px)
        if depth is not None and depth < minimum[0]:
            minimum[0], halo[0] = pool_px[0], 0
        return cls(tuple(minimum), (1,) * len(pool_px) if any_size else tuple(pool_px), tuple(halo), tuple(pool_px))


@dataclass(frozen=True)
class Scores:
    """Error of a denoised image against held-out photons, compared with the best Gaussian filter.

    Mean squared errors, and the standard error of their difference, in photons^2 per pixel.
    """

    squared_error: float
    gaussian_error: float
    error_difference: float
    pseudo_psnr_db: float  # brightness of the half that was denoised
    correlated: bool = False  # whether neighbouring pixels share noise, and so do the halves

    @property
    def verdict(self) -> str:
        """How the squared error compares with that of the best Gaussian filter: continues "its squared error ..."."""
        chance = 2 * self.error_difference
        if self.correlated or self.squared_error < -chance:
            return "is not known, because neighbouring pixels share noise, and so do the halves used to measure it"
        if self.gaussian_error <= 0:
            return "is not measurably different from that of the best Gaussian filter"
        ratio, chance = self.squared_error / self.gaussian_error, chance / self.gaussian_error
        text = f"is {abs(1 - ratio):.0%} {'below' if ratio < 1 else 'above'} that of the best Gaussian filter"
        if abs(1 - ratio) <= chance:
            return f"{text}, but with so few held-out photons chance alone makes {chance:.0%}"
        return f"{text}, {-10 * math.log10(ratio):.1f} dB" if 0 < ratio < 1 else text


def score_on_halves(denoiser: Callable[[Tensor], Tensor], counts: np.ndarray, *, correlated: bool = False) -> Scores:
    """Denoise one half of the photons of counts (c, [z,] y, x) and score it on the other half, which is independent.

    The squared error of an estimate m is the mean of ``(u - m)^2 - u`` over the held-out counts u, which are Poisson
    with the unknown rate: no ground truth is needed.
    """
    half, held_out = thin(counts.astype(np.int64), 0.5, 0)
    with torch.inference_mode():
        rate = denoiser(torch.from_numpy(half.astype(np.float32))[None])[0].numpy().astype(float)
    errors = (np.square(held_out - image) - held_out for image in gaussian_filters(half, _SIGMAS_PX))
    gaussian, own = min(errors, key=lambda error: float(error.mean())), np.square(held_out - rate) - held_out
    uncertainty = float((own - gaussian).std() / math.sqrt(own.size))
    return Scores(float(own.mean()), float(gaussian.mean()), uncertainty, pseudo_psnr_db(half), correlated)


def gaussian_filters(counts: np.ndarray, sigmas_px: Sequence[float]) -> Iterator[np.ndarray]:
    """Filter counts (c, [z,] y, x) with every sigma in the plane and, in 3D, several ratios along z."""
    for sigma in sigmas_px:
        for ratio in _Z_RATIOS if counts.ndim == 4 else (0.0,):
            widths = (*[0.0] * (counts.ndim - 3), ratio * sigma, sigma, sigma)
            yield ndimage.gaussian_filter(counts.astype(float), widths)


@dataclass(frozen=True)
class SampleScores:
    """Samples drawn from one half of an image's photons, scored on the other half."""

    n_samples: int
    headroom_db: float
    variance: float  # mean over the pixels
    squared_error: float  # of the denoised image, measured on the other half, with its standard error
    standard_error: float


def score_samples(sampler: PosteriorSampler, denoiser: Callable[[Tensor], Tensor], counts: np.ndarray) -> SampleScores:
    """Draw samples from one half of the photons of counts (c, [z,] y, x), and score their variance on the other half.

    The variance of a correct posterior equals the squared error of its mean, measured as in `score_on_halves`.
    """
    sizes = _PIECE_PX[counts.ndim - 1]
    piece = brightest_piece(counts, [min(*pair) for pair in zip(sizes, counts.shape[1:], strict=True)])
    half, held_out = thin(piece.astype(np.int64), 0.5, 0)
    photons = torch.from_numpy(half.astype(np.float32))[None]
    n_samples = max(_MIN_SAMPLES, sampler.n_samples)
    with torch.inference_mode():
        errors = np.square(held_out - denoiser(photons)[0].double().numpy()) - held_out
        samples = sampler.sample(photons, n_samples, sampler.n_steps, sampler.seed)[:, 0].double().numpy()
    variance, standard_error = float(samples.var(axis=0, ddof=1).mean()), float(errors.std() / np.sqrt(errors.size))
    return SampleScores(n_samples, headroom_db(half, sampler), variance, float(errors.mean()), standard_error)


def headroom_db(counts: np.ndarray, sampler: PosteriorSampler) -> float:
    """Return the headroom of counts (c, [z,] y, x), in dB: how far a sampler may add photons; 0 if it may add none."""
    photons, window = torch.from_numpy(counts.astype(np.float32))[None], list(WINDOW_PX[counts.ndim - 1])
    budget = photon_budget(photons, GAIN, sampler.brightest, window, sampler.least_gain)
    return float(10 * torch.log10(budget / torch.clamp(total_photons(photons), min=1.0)).clamp(min=0.0))


def speed_of(run: Callable[[Tensor], Any], photons: np.ndarray) -> str:
    """Describe how long a module takes per 10^6 pixels (voxels) of input (b, c, [z,] y, x) on this machine's CPU."""
    inputs = torch.from_numpy(photons)
    with torch.inference_mode():
        run(inputs)  # warm-up
        start = time.perf_counter()
        run(inputs)
    seconds = float(f"{1e6 * (time.perf_counter() - start) / math.prod(photons.shape[2:]):.2g}")
    cores = f"{threads} cores" if (threads := torch.get_num_threads()) > 1 else "1 core"
    unit = "megapixel" if photons.ndim == 4 else "10^6 voxels"
    return f"{seconds:g} s per {unit} on the machine that made this file ({cores}, {platform.machine()}, no GPU)"


@dataclass(frozen=True)
class Measured:
    """Measurements on the model during export."""

    sizes: Sizes
    halo: HaloReport
    box_px: list[int]
    scores: Scores
    held_out: bool  # whether the scores are from counts that took no part in training
    speed: str  # seconds per 10^6 pixels, and the machine
    samples: SampleScores | None = None  # of sampling zips
    headroom_db: float = 0.0  # of the example, for sampling zips

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers, for ``config.gap_bioimage``."""
        tiles = {f"at {exposure:g}": rms for exposure, rms in self.halo.relative_rms.items()}
        return {**asdict(self.scores), "held_out": self.held_out, "tile_difference": tiles}
