"""Training pairs: random windows of the counts, turned and flipped, split into input and target.

Every batch is a function of the seed and its number alone, so that a resumed run, or one with other
worker processes, sees the same batches.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from gap_bioimage.config import ThinningConfig
from gap_bioimage.counts import binomial, free_slots, pseudo_psnr_db
from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.training.stacks import Window, window_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gap_bioimage.training.stacks import Stack

log = logging.getLogger(__name__)

_REDRAWS = 10


class Pairs(NamedTuple):
    """A batch: input and target counts ``(b, c, [z,] y, x)`` float32, and the inputs' pseudo-PSNR (b,).

    ``weight`` (shape of the target) is how many photons of the target a pixel could have held: 0 where the camera is
    saturated; the frames left of one-bit cameras. None where there is no such limit.
    """

    photons: torch.Tensor
    target: torch.Tensor
    db: torch.Tensor
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
        windows = self.windows(rng, size)
        kept, rest, db, weights = [], [], [], []
        for window in windows:
            fraction = self._fraction(window.counts, rng)
            part = binomial(window.counts, fraction, rng)
            weight = self._weight(window, part, fraction, rng)
            target = window.counts - part
            kept.append(part)
            rest.append(target if weight is None else np.where(weight > 0, target, 0))
            db.append(pseudo_psnr_db(part))
            weights.append(weight)
        limited = [weight for weight in weights if weight is not None]
        return Pairs(
            _tensor(kept), _tensor(rest), torch.tensor(db, dtype=torch.float32), _tensor(limited) if limited else None
        )

    def windows(self, rng: np.random.Generator, size: int) -> list[Window]:
        """Draw windows ``(c, [z,] y, x)`` with enough photons where ten tries find them."""
        chances, windows = self._chances(), []
        for _ in range(size):
            best = self._window(rng, chances)
            for _ in range(_REDRAWS):
                if best.photons >= self.min_photons:
                    break
                best = max(best, self._window(rng, chances), key=lambda window: window.photons)
            windows.append(augmented(best, rng) if self.augment else best)
        return windows

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
        return window_of(stack[(slice(None), *where)], rng)

    def _weight(
        self, window: Window, part: NDArray[np.int32], fraction: float, rng: np.random.Generator
    ) -> NDArray[np.int32] | None:
        """Return the photons that the target could have held, per pixel."""
        if self.thinning.ceiling is None:
            return None if window.usable is None else window.usable.astype(np.int32)
        return free_slots(window.counts, part, fraction, self.thinning.ceiling, rng)

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
