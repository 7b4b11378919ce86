"""Training pairs: random windows of the counts, turned and flipped, split into input and target.

Every batch is a function of the seed and its number alone, so that a resumed run, or one with other
worker processes, sees the same batches.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from gap_bioimage.config import ThinningConfig
from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.photons.layout import items_first
from gap_bioimage.photons.thinning import as_integers, binomial, pseudo_psnr_db

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

log = logging.getLogger(__name__)

Stack = NDArray[np.generic]
"""Counts ``(c, [z,] y, x)`` of one image, maybe memory-mapped."""

_REDRAWS = 10
_HELD_OUT_IMAGES_FROM = 8  # with fewer images a slab of each is held out instead


class Pairs(NamedTuple):
    """A batch: input and target counts ``(b, c, [z,] y, x)`` float32, and the inputs' pseudo-PSNR (b,)."""

    photons: torch.Tensor
    target: torch.Tensor
    db: torch.Tensor


class Split(NamedTuple):
    """Images to train on and images to validate on, which share no pixel."""

    training: list[Stack]
    held_out: list[Stack]


def as_stacks(images: Sequence[xr.DataArray], dim: int) -> list[Stack]:
    """View images as arrays ``(c, [z,] y, x)``: frames, and in 2D also planes, become separate items.

    Raises
    ------
    AxesError
        If there is no image, one lacks an axis that ``dim`` needs, or the numbers of channels differ.
    """
    stacks: list[Stack] = []
    spatial = ["z", "y", "x"] if dim == 3 else ["y", "x"]
    if not images:
        raise AxesError("no image was given; expected at least one")
    for image in images:
        missing = [axis for axis in spatial if axis not in image.dims]
        if missing:
            advice = "; use --dim 2" if missing == ["z"] else ""
            raise AxesError(
                f"an image has axes {''.join(map(str, image.dims))}, expected {', '.join(missing)} for a {dim}D model"
                f"{advice}"
            )
        array = items_first(image, dim).data
        stacks.extend(array.reshape(-1, *array.shape[-dim - 1 :]))
    channels = {stack.shape[0] for stack in stacks}
    if len(channels) > 1:
        raise AxesError(f"the images have {sorted(channels)} channels, expected the same number in all")
    return stacks


def split_held_out(stacks: Sequence[Stack], share: float, seed: int) -> Split:
    """Hold out ``share`` of the images, or of the longest axis of each when they are few.

    Raises
    ------
    AxesError
        If an image is too small to give up a slab.
    """
    if len(stacks) >= _HELD_OUT_IMAGES_FROM:
        count = max(1, round(share * len(stacks)))
        chosen = set(np.random.default_rng(seed).choice(len(stacks), count, replace=False).tolist())
        return Split(
            [stack for i, stack in enumerate(stacks) if i not in chosen],
            [stack for i, stack in enumerate(stacks) if i in chosen],
        )
    training, held_out = [], []
    for stack in stacks:
        axis = int(np.argmax(stack.shape[1:])) + 1
        size = stack.shape[axis]
        slab = max(8, round(share * size))
        if size < 2 * slab:
            raise AxesError(
                f"an image has shape {stack.shape[1:]}, too small to hold out {slab} pixels for validation; "
                "give larger or at least 8 images"
            )
        cut = (slice(None),) * axis
        training.append(stack[(*cut, slice(0, size - slab))])
        held_out.append(stack[(*cut, slice(size - slab, size))])
    return Split(training, held_out)


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
        kept, rest, db = [], [], []
        for window in windows:
            fraction = self._fraction(window, rng)
            part = binomial(window, fraction, rng)
            kept.append(part)
            rest.append(window - part)
            db.append(pseudo_psnr_db(part))
        return Pairs(_tensor(kept), _tensor(rest), torch.tensor(db, dtype=torch.float32))

    def windows(self, rng: np.random.Generator, size: int) -> list[NDArray[np.int32]]:
        """Draw windows ``(c, [z,] y, x)`` with enough photons where ten tries find them."""
        weights, windows = self._weights(), []
        for _ in range(size):
            best = self._window(rng, weights)
            for _ in range(_REDRAWS):
                if best.sum() >= self.min_photons:
                    break
                best = max(best, self._window(rng, weights), key=np.sum)
            windows.append(augmented(best, rng) if self.augment else best)
        return windows

    def rejected_share(self, seed: int, trials: int = 200) -> float:
        """Estimate the share of windows that hold fewer photons than asked."""
        rng = np.random.default_rng([seed, trials])
        weights = self._weights()
        few = [self._window(rng, weights).sum() < self.min_photons for _ in range(trials)]
        return float(np.mean(few))

    def _weights(self) -> NDArray[np.float64]:
        """Chances of the images: every pixel counts the same."""
        sizes = np.array([math.prod(stack.shape) for stack in self.stacks], float)
        chances: NDArray[np.float64] = sizes / sizes.sum()
        return chances

    def _window(self, rng: np.random.Generator, weights: NDArray[np.float64]) -> NDArray[np.int32]:
        stack = self.stacks[int(rng.choice(len(weights), p=weights))]
        starts = [int(rng.integers(0, n - w + 1)) for n, w in zip(stack.shape[1:], self.window_px, strict=True)]
        where = tuple(slice(s, s + w) for s, w in zip(starts, self.window_px, strict=True))
        return as_integers(np.asarray(stack[(slice(None), *where)])).astype(np.int32)

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


def augmented(window: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Turn and mirror a window ``(c, [z,] y, x)`` in its plane (8-fold if square), and flip z in 3D."""
    flip_y, flip_x, turn, flip_z = rng.integers(0, 2, 4)
    if flip_y:
        window = window[..., ::-1, :]
    if flip_x:
        window = window[..., ::-1]
    if turn and window.shape[-1] == window.shape[-2]:
        window = window.swapaxes(-1, -2)
    if flip_z and window.ndim == 4:
        window = window[:, ::-1]
    return window


def brightest_db(stacks: Sequence[Stack], patch_px: tuple[int, ...], seed: int) -> float:
    """Return the pseudo-PSNR of the brightest of 200 random windows.

    Raises
    ------
    NotPhotonCountsError
        If all of them are empty.
    """
    drawer = WindowDrawer(stacks, patch_px, ThinningConfig(), augment=False)
    best = max(pseudo_psnr_db(window) for window in drawer.windows(np.random.default_rng([seed, 1]), 200))
    if math.isinf(best):
        raise NotPhotonCountsError("200 random windows hold no photon at all; expected images with photons")
    return best


def _tensor(parts: list[NDArray[np.int32]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(parts).astype(np.float32))
