"""Training pairs: random windows of the counts, turned and flipped, split into input and target.

Every batch is a function of the seed and its number alone, so that a resumed run, or one with other
worker processes, sees the same batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from gap_bioimage.camera.noise import hot_pixels
from gap_bioimage.config import ThinningConfig
from gap_bioimage.counts import binomial, free_slots, pseudo_psnr_db
from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.training.stacks import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gap_bioimage.training.stacks import Stack

_REDRAWS = 10
_CANDIDATES = 4


class Pairs(NamedTuple):
    """A batch of training pairs.

    Attributes
    ----------
    photons, target
        Input and target counts, (b, c, [z,] y, x) float32.
    db
        Pseudo-PSNR of the inputs, (b,).
    exposure
        Expected photons of the target per expected photon of the input and unit of ``weight``, (b,).
    weight
        How many photons of the target a pixel could have held: 0 where the camera is saturated or the pixel hot; of
        one-bit cameras the frames that are left. None where there is no such limit.
    """

    photons: torch.Tensor
    target: torch.Tensor
    db: torch.Tensor
    exposure: torch.Tensor
    weight: torch.Tensor | None = None


@dataclass(frozen=True)
class WindowDrawer:
    """Draws windows and splits them into training pairs.

    Parameters
    ----------
    stacks
        Images ``(c, [z,] y, x)``.
    patch_px
        Window; clipped to the smallest image.
    thinning
        Range of input brightness, with ``max_db`` resolved.
    min_photons
        Windows with fewer photons are drawn anew, at most ten times.
    augment
        Turn and flip the windows.
    """

    stacks: Sequence[Stack]
    patch_px: tuple[int, ...]
    thinning: ThinningConfig
    min_photons: int = 0
    augment: bool = True

    @property
    def window_px(self) -> tuple[int, ...]:
        """The window that fits every image."""
        smallest = [min(stack.shape[a + 1] for stack in self.stacks) for a in range(len(self.patch_px))]
        return tuple(min(patch, size) for patch, size in zip(self.patch_px, smallest, strict=True))

    def batch(self, key: Sequence[int], size: int) -> Pairs:
        """Draw a batch; the same ``key`` gives the same batch."""
        rng = np.random.default_rng([*key])
        kept, rest, db, exposure, weights = [], [], [], [], []
        for window in self.windows(rng, size):
            fraction = self._fraction(window.counts, rng)
            part = binomial(window.counts, fraction, rng)
            weight = self._weight(window, part, fraction, rng)
            kept.append(part)
            rest.append(np.where(weight > 0, window.counts - part, 0))
            db.append(pseudo_psnr_db(part))
            ceiling = self.thinning.ceiling
            exposure.append((1 - fraction) / fraction if ceiling is None else 1 / (ceiling * fraction))
            weights.append(weight)
        limited = self.thinning.ceiling is not None or any((weight == 0).any() for weight in weights)
        return Pairs(
            _tensor(kept),
            _tensor(rest),
            torch.tensor(db, dtype=torch.float32),
            torch.tensor(exposure, dtype=torch.float32),
            _tensor(weights) if limited else None,
        )

    def windows(self, rng: np.random.Generator, size: int) -> list[Window]:
        """Draw windows ``(c, [z,] y, x)``, brighter ones more often: of four one, with chances as their photons.

        The loss is an average over windows per photon; so it is, over many windows, that of whole images.
        """
        chances, windows = self._chances(), []
        for _ in range(size):
            candidates = [self._bright_enough(rng, chances) for _ in range(_CANDIDATES)]
            photons = np.array([max(window.photons, 1e-9) for window in candidates])
            chosen = candidates[int(rng.choice(_CANDIDATES, p=photons / photons.sum()))]
            windows.append(augmented(chosen, rng) if self.augment else chosen)
        return windows

    def _bright_enough(self, rng: np.random.Generator, chances: NDArray[np.float64]) -> Window:
        """Draw a window with enough photons, where ten tries find one."""
        best = self._window(rng, chances)
        for _ in range(_REDRAWS):
            if best.photons >= self.min_photons:
                break
            best = max(best, self._window(rng, chances), key=lambda window: window.photons)
        return best

    def rejected_share(self, seed: int, trials: int = 200) -> float:
        """Estimate the share of windows that hold fewer photons than asked."""
        rng = np.random.default_rng([seed, trials])
        chances = self._chances()
        few = [self._window(rng, chances).photons < self.min_photons for _ in range(trials)]
        return float(np.mean(few))

    def _chances(self) -> NDArray[np.float64]:
        """Chances of the images: every pixel counts the same."""
        sizes = np.array([math.prod(stack.shape) for stack in self.stacks], float)
        chances: NDArray[np.float64] = sizes / sizes.sum()
        return chances

    def _window(self, rng: np.random.Generator, chances: NDArray[np.float64]) -> Window:
        stack = self.stacks[int(rng.choice(len(chances), p=chances))]
        starts = [int(rng.integers(0, n - w + 1)) for n, w in zip(stack.shape[1:], self.window_px, strict=True)]
        where = tuple(slice(s, s + w) for s, w in zip(starts, self.window_px, strict=True))
        return stack[(slice(None), *where)].window(rng)

    def _weight(
        self, window: Window, part: NDArray[np.int32], fraction: float, rng: np.random.Generator
    ) -> NDArray[np.int32]:
        """Return the photons that the target could have held, per pixel."""
        ceiling = self.thinning.ceiling
        weight = np.ones(part.shape, np.int32)
        if ceiling is not None:
            weight = free_slots(window.counts, part, fraction, ceiling, rng)
        if window.usable is not None:
            weight = np.where(window.usable, weight, 0)
        # no network can expect what hot pixels hold, and they would be all that the loss sees
        return np.where(hot_pixels(window.counts), 0, weight)

    def _fraction(self, window: NDArray[np.int32], rng: np.random.Generator) -> float:
        assert self.thinning.max_db is not None  # noqa: S101  (resolved by the caller)
        photons = 10 ** (rng.uniform(self.thinning.min_db, self.thinning.max_db) / 10)
        mean = float(window.mean())
        return min(photons / mean, self.thinning.max_fraction) if mean > 0 else self.thinning.max_fraction


class PairBatches(Dataset[Pairs]):
    """Batches by number; a sampler of numbers makes it an epoch."""

    def __init__(self, drawer: WindowDrawer, batch_size: int, seed: int, rank: int = 0) -> None:
        self.drawer, self.batch_size, self.seed, self.rank = drawer, batch_size, seed, rank

    def __getitem__(self, number: int) -> Pairs:
        return self.drawer.batch([self.seed, self.rank, number], self.batch_size)


def augmented(window: Window, rng: np.random.Generator) -> Window:
    """Turn and mirror a window in its plane (8-fold if square), and flip z in 3D."""
    flip_y, flip_x, turn, flip_z = (bool(drawn) for drawn in rng.integers(0, 2, 4))

    def moved(image: NDArray[Any]) -> NDArray[Any]:
        image = image[..., ::-1, :] if flip_y else image
        image = image[..., ::-1] if flip_x else image
        image = image.swapaxes(-1, -2) if turn and image.shape[-1] == image.shape[-2] else image
        return image[:, ::-1] if flip_z and image.ndim == 4 else image

    usable = None if window.usable is None else moved(window.usable)
    return Window(moved(window.counts), usable, window.background)


def brightest_db(stacks: Sequence[Stack], patch_px: tuple[int, ...], seed: int) -> float:
    """Return the pseudo-PSNR of the brightest of 200 random windows.

    Raises
    ------
    NotPhotonCountsError
        If all of them are empty.
    """
    drawer = WindowDrawer(stacks, patch_px, ThinningConfig(), augment=False)
    best = max(pseudo_psnr_db(window.counts) for window in drawer.windows(np.random.default_rng([seed, 1]), 200))
    if math.isinf(best):
        raise NotPhotonCountsError("200 random windows hold no photon at all; expected images with photons")
    return best


def _tensor(parts: list[NDArray[np.int32]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(parts).astype(np.float32))
