"""Recorded images, and random windows of their counts in batches that depend on seed and batch number alone."""

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from gap_bioimage.camera.camera import Detector, share_noise
from gap_bioimage.config import ThinningConfig
from gap_bioimage.counts import as_integers, check_dim, check_whole_numbers, pseudo_psnr_db
from gap_bioimage.errors import AxesError, CountsWarning, NotPhotonCountsError
from gap_bioimage.io.image import ON_DISK, as_image, each_item, items_first, middle_slice
from gap_bioimage.training.pairs import Pairs, Window, pairs_of

_HELD_OUT_IMAGES_FROM = 8  # with fewer images a slab of each is held out instead
_REDRAWS = 10
_CANDIDATES = 4
_TARGET_EXPOSURES = 4  # summed into a target; more take longer to read and blur what moves, without improving it much
_TESTED_ITEMS, _TESTED_PAIRS, _TESTED_PX = 4, 16, 256  # limits of the test for motion: items, pairs of frames, pixels
_SUMMED, _SUMMED_PHOTONS = (1, 8, 64), 16.0  # frames summed in that test, up to so many photons per pixel
_MOTION = 0.01
_PHOTONS_LIMIT = 1 << 26  # per pixel: sums of exposures and of 2 x 2 pixels must fit into 32 bits

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Stack:
    """One recorded image, or several exposures of one still scene."""

    values: NDArray[Any]  # counts or camera values ([exposure,] c, [z,] y, x), possibly memory-mapped or on disk
    name: str = "the image"
    detector: Detector | None = None  # the camera, cropped to these pixels, if the values are not counts
    repeated: bool = False  # whether the first axis holds exposures

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes (c, [z,] y, x)."""
        return self.values.shape[1:] if self.repeated else self.values.shape

    def __getitem__(self, cut: tuple[slice, ...]) -> Self:
        """Return a part of the image; one slice per axis."""
        rows, columns = (*cut, *(slice(None),) * (len(self.shape) - len(cut)))[-2:]
        detector = None if self.detector is None else self.detector.crop(rows, columns)
        return replace(self, values=self.values[(slice(None), *cut) if self.repeated else cut], detector=detector)

    @property
    def photons(self) -> float:
        """Approximate number of photons in all pixels; for exposures, in the first one."""
        values = self.values[0] if self.repeated else self.values
        total = float((np.nansum if values.dtype.kind == "f" else np.sum)(values, dtype=np.float64))
        camera = None if self.detector is None else self.detector.camera
        return total if camera is None else (total - camera.offset * values.size) / camera.gain

    def window(self, rng: np.random.Generator) -> Window:
        """Return the counts of the whole stack; for exposures, those of one and the sum of up to four nearest ones."""
        if not self.repeated:
            return self._counts(self.values, rng)
        chosen = int(rng.integers(count := len(self.values)))
        first = max(0, min(chosen - _TARGET_EXPOSURES // 2, count - _TARGET_EXPOSURES - 1))
        near = [other for other in range(count)[first : first + _TARGET_EXPOSURES + 1] if other != chosen]
        one, *others = (self._counts(self.values[number], rng) for number in (chosen, *near))
        usable = [window.usable for window in (one, *others) if window.usable is not None]
        total = np.stack([window.counts for window in others]).sum(axis=0, dtype=np.int32)
        return one._replace(usable=np.all(usable, axis=0) if usable else None, others=total, n_others=len(others))

    def _counts(self, values: NDArray[Any], rng: np.random.Generator) -> Window:
        """Return counts; camera values are first spread at random within their ADU."""
        values, detector = np.asarray(values), self.detector
        if detector is not None:
            return Window(detector.counts(values, rng), ~detector.saturated(values))
        try:
            counts = as_integers(values)
        except NotPhotonCountsError as error:
            raise NotPhotonCountsError(f"{self.name}: {error}") from None
        if (highest := int(counts.max(initial=0))) >= _PHOTONS_LIMIT:
            problem = f"{self.name}: a pixel holds {highest} photons, expected fewer than {_PHOTONS_LIMIT}"
            raise NotPhotonCountsError(f"{problem}; if values are multiples of photon counts, divide by the factor")
        return Window(counts.astype(np.int32))


class _Candidate(NamedTuple):
    """Part of an image that may become a window."""

    stack: Stack
    binned: bool
    photons: float


class Split(NamedTuple):
    """Images for training and images for validation, which share no pixel."""

    training: list[Stack]
    held_out: list[Stack]


def as_stacks(
    images: Sequence[xr.DataArray],
    dim: int,
    detector: Detector | None = None,
    separate_channels: bool = False,
    repeats: str | None = None,
) -> list[Stack]:
    """View images as arrays (c, [z,] y, x).

    Frames become separate items, as do planes in 2D and channels if ``separate_channels``. Frames along ``repeats``
    stay together as exposures of one item.
    """
    stacks: list[Stack] = []
    for image in images:
        name = Path(str(image.attrs.get("source", "the image"))).name
        as_image(image, what=name)
        check_dim(image, dim, plane_by_plane=True, name=name)
        if min(image.sizes["y"], image.sizes["x"]) < 2:
            problem = f"{name} has {image.sizes['y']} x {image.sizes['x']} pixels (y, x), expected several each"
            raise AxesError(f"{problem}; if its rows were stored as one, reshape it")
        if detector is not None:
            detector.check_size(image, name)
        elif image.size and not image.encoding.get(ON_DISK):
            check_whole_numbers(image, name=name)
        if repeats is None:
            items = each_item(image, dim, separate_channels=separate_channels)
            stacks += [Stack(item, name, detector) for item in items]
        else:
            items = items_first(image, dim, separate_channels=separate_channels)
            stacks += _exposures(items, dim, repeats, name, detector)
    if not stacks:
        raise AxesError("no image was given; expected at least one")
    if len(channels := {stack.shape[0]: stack.name for stack in stacks}) > 1:
        counts = ", ".join(f"{count} in {name}" for count, name in sorted(channels.items()))
        raise AxesError(f"the images have different numbers of channels ({counts}), expected the same number in all")
    return stacks


def _exposures(items: xr.DataArray, dim: int, axis: str, name: str, detector: Detector | None) -> list[Stack]:
    """Return items whose frames along ``axis`` are exposures of one scene; warn if the scene moves."""
    if items.sizes.get(axis, 1) < 2:
        raise AxesError(f"{name} has no frames along {axis}, expected repeats of one scene; leave repeats out")
    items = items.transpose(*(other for other in items.dims[: -dim - 1] if other != axis), axis, ...)
    stacks = [Stack(item, name, detector, True) for item in items.data.reshape(-1, *items.shape[-dim - 2 :])]
    shared = detector is not None and share_noise(detector.correlations[0])  # such noise looks like motion
    if not shared and max(motion(stack) for stack in stacks[:: -(-len(stacks) // _TESTED_ITEMS)]) > _MOTION:
        problem = f"{name} does not stand still: changes of neighbouring pixels are correlated, unlike noise"
        warnings.warn(f"{problem}; moving parts will be blurred: train without repeats", CountsWarning, stacklevel=4)
    return stacks


def motion(stack: Stack) -> float:
    """Return the correlation of neighbouring pixels in differences of exposures, 0 to 1, beyond what chance explains.

    Noise is independent from pixel to pixel, whatever its size; moving structure is not. Changes of the brightness of
    the whole image are removed. Single frames of dim scenes show little but noise, so sums of frames are tested too.
    """
    plane: Any = (0, stack.shape[1] // 2)[: len(stack.shape) - 2]
    plane += tuple(middle_slice(size, _TESTED_PX) for size in stack.shape[-2:])
    camera, half = None if stack.detector is None else stack.detector.camera, len(stack.values) // 2
    offset, gain = (0.0, 1.0) if camera is None else (camera.offset, camera.gain)

    def photons(first: int, count: int) -> NDArray[Any]:
        """Return the sum of successive frames in photons, (y, x)."""
        frames = [stack.values[(number, *plane)] for number in range(first, first + count)]
        return np.asarray((np.sum(frames, axis=0, dtype=float) - count * offset) / gain)

    correlation, brightness = 0.0, float(photons(half, 1).mean())
    for count in _SUMMED:
        if count > half or (count > 1 and brightness * count > _SUMMED_PHOTONS):
            break
        products, variances = [], []
        for first in np.unique(np.linspace(0, half - count, min(half, _TESTED_PAIRS)).astype(int)):
            one, other = photons(first, count), photons(first + half, count)
            change = one * other.mean() - other * one.mean()
            products.append((change[:, 1:] * change[:, :-1]).ravel())
            variances.append(np.square(change).mean())
        covariances, variance = np.concatenate(products), float(np.mean(variances))
        margin = 5 * math.sqrt(np.square(covariances).mean() / covariances.size)
        correlation = max(correlation, float(covariances.mean() - margin) / variance if variance else 0.0)
    return correlation


def split_held_out(stacks: Sequence[Stack], share: float, seed: int) -> Split:
    """Hold out ``share`` of the images or, if there are fewer than eight, of the longest axis of each."""
    split = Split([], [])
    if len(stacks) >= _HELD_OUT_IMAGES_FROM:
        count = max(1, round(share * len(stacks)))
        chosen = np.random.default_rng(seed).choice(len(stacks), count, replace=False)
        for number, stack in enumerate(stacks):
            split[number in chosen].append(stack)
        return split
    for stack in stacks:
        axis = int(np.argmax(stack.shape[1:])) + 1
        size = stack.shape[axis]
        slab = max(8, round(share * size))
        if size < 2 * slab:
            problem = f"{stack.name} has shape {stack.shape[1:]}, too small to hold out {slab} pixels for validation"
            raise AxesError(f"{problem}; give larger images, or at least {_HELD_OUT_IMAGES_FROM} of them")
        for part, piece in zip(split, (slice(0, size - slab), slice(size - slab, size)), strict=True):
            part.append(stack[(*[slice(None)] * axis, piece)])
    return split


@dataclass(frozen=True)
class WindowDrawer:
    """Draws windows and splits them into training pairs."""

    stacks: Sequence[Stack]
    patch_px: tuple[int, ...]  # clipped to the smallest image
    thinning: ThinningConfig  # with max_db set
    min_photons: int = 0  # windows with fewer photons are redrawn, at most ten times
    augment: bool = True  # flip and transpose at random

    @cached_property
    def window_px(self) -> tuple[int, ...]:
        """Shape of a window, reduced to fit every image."""
        smallest = [min(stack.shape[a + 1] for stack in self.stacks) for a in range(len(self.patch_px))]
        return tuple(min(patch, size) for patch, size in zip(self.patch_px, smallest, strict=True))

    def batch(self, key: Sequence[int], size: int, device: torch.device = _CPU) -> Pairs:
        """Draw a batch; the same ``key`` gives the same batch on devices of one type."""
        rng = np.random.default_rng([*key])
        windows = self.windows(rng, size)
        fractions = [self._fraction(window, rng) for window in windows]
        generator = torch.Generator(device).manual_seed(int(rng.integers(1 << 63)))
        return pairs_of(windows, fractions, self.thinning.ceiling, generator)

    def windows(self, rng: np.random.Generator, size: int) -> list[Window]:
        """Draw windows (c, [z,] y, x), each out of four candidates with probabilities proportional to their photons.

        The loss is per photon and averaged over windows. Preferring bright windows makes this average, over many
        windows, the loss of whole images.
        """
        windows = []
        for _ in range(size):
            candidates = [self._bright_enough(rng) for _ in range(_CANDIDATES)]
            photons = np.array([candidate.photons for candidate in candidates])
            chosen = candidates[_choice(_bounds(np.maximum(photons, 1e-9)), rng)]
            window, detector = chosen.stack.window(rng), chosen.stack.detector
            if self.thinning.read_noise and detector is not None:
                window = window._replace(dark=float(np.mean(detector.shift())))
            window = window.binned() if chosen.binned else window
            windows.append(augmented(window, rng) if self.augment else window)
        return windows

    def _bright_enough(self, rng: np.random.Generator) -> _Candidate:
        """Draw a candidate with at least ``min_photons``; after ten redraws return the brightest."""
        best = self._candidate(rng)
        for _ in range(_REDRAWS):
            if best.photons >= self.min_photons:
                break
            best = max(best, self._candidate(rng), key=lambda candidate: candidate.photons)
        return best

    @cached_property
    def _image_bounds(self) -> NDArray[np.float64]:
        """Cumulative probabilities of the images, proportional to their numbers of pixels."""
        return _bounds(np.array([math.prod(stack.shape) for stack in self.stacks], float))

    def _candidate(self, rng: np.random.Generator) -> _Candidate:
        stack = self.stacks[_choice(self._image_bounds, rng)]
        doubled = (*self.window_px[:-2], *(2 * size for size in self.window_px[-2:]))
        binned = self.thinning.binned > 0 and rng.random() < self.thinning.binned
        binned = binned and all(np.less_equal(doubled, stack.shape[1:]))
        sizes = doubled if binned else self.window_px
        starts = rng.integers(0, np.subtract(stack.shape[1:], sizes) + 1).tolist()
        part = stack[(slice(None), *(slice(s, s + size) for s, size in zip(starts, sizes, strict=True)))]
        part = replace(part, values=np.asarray(part.values))  # read from disk once
        # a quarter for binned windows, so that they are not chosen more often
        return _Candidate(part, binned, part.photons / 4 if binned else part.photons)

    def _fraction(self, window: Window, rng: np.random.Generator) -> float:
        assert self.thinning.max_db is not None  # noqa: S101
        photons = 10 ** (rng.uniform(self.thinning.min_db, self.thinning.max_db) / 10)
        mean, largest = float(window.counts.mean()), 1.0 if window.n_others else self.thinning.max_fraction
        return min(photons / mean, largest) if mean > 0 else largest


def _bounds(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return cumulative probabilities; the last one is 1."""
    ends = (weights / weights.sum()).cumsum()
    return np.asarray(ends / ends[-1])


def _choice(bounds: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Draw as ``Generator.choice`` does, without its checks, which take a fifth of the time of a batch."""
    return int(bounds.searchsorted(rng.random(), "right"))


@dataclass
class PairBatches:
    """Batches by number; ``waiting_share`` is the fraction of the iteration's time that was spent waiting for them."""

    drawer: WindowDrawer
    batch_size: int
    seed: int
    rank: int = 0
    numbers: range = range(0)
    device: torch.device = _CPU
    waiting_share: float = 0.0

    def __getitem__(self, number: int) -> Pairs:
        """Draw the batch of a number."""
        return self.drawer.batch([self.seed, self.rank, number], self.batch_size, self.device)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Pairs]:
        """Draw each batch while the network processes the previous one, if a core is free; GPUs draw on their own."""
        start, waited, pending = time.monotonic(), 0.0, None
        # without a free core, the network's threads wait for the one that shares its core: 1.5 times as long in all
        prefetch = self.device.type == "cpu" and (os.cpu_count() or 1) > torch.get_num_threads()
        with ThreadPoolExecutor(1) as executor:
            for number in self.numbers:
                waiting_since = time.monotonic()
                pairs = self[number] if pending is None else pending.result()
                ahead = prefetch and number + 1 in self.numbers
                pending = executor.submit(self.__getitem__, number + 1) if ahead else None
                waited += time.monotonic() - waiting_since
                self.waiting_share = waited / max(time.monotonic() - start, 1e-9)
                yield pairs


def augmented(window: Window, rng: np.random.Generator) -> Window:
    """Flip and, if square, transpose a window in its plane at random (8 orientations); flip z in 3D."""
    flip_y, flip_x, turn, flip_z = rng.integers(0, 2, 4)
    flips = {-2: flip_y, -1: flip_x, -3: flip_z and window.counts.ndim == 4}
    axes = tuple(axis for axis, flip in flips.items() if flip)
    window = window.changed(lambda image: np.flip(image, axes))
    square = window.counts.shape[-1] == window.counts.shape[-2]
    return window.changed(lambda image: image.swapaxes(-1, -2)) if turn and square else window


def brightest_db(stacks: Sequence[Stack], patch_px: tuple[int, ...], seed: int, binned: bool = False) -> float:
    """Return the pseudo-PSNR of the brightest of 200 random windows, without saturated and hot pixels."""
    drawer = WindowDrawer(stacks, patch_px, ThinningConfig(binned=float(binned)), augment=False)
    brightest = -math.inf
    for window in drawer.windows(np.random.default_rng([seed, 1]), 200):
        if pseudo_psnr_db(window.counts) > brightest:  # an upper bound of that of ``light``, which takes longer
            brightest = max(brightest, pseudo_psnr_db(window.light))
    if math.isinf(brightest):
        raise NotPhotonCountsError("200 random windows hold no photon at all; give images with photons")
    return brightest
