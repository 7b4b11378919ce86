"""Training pairs: windows of counts, split at random into input and target on the device that trains."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.filters import hot_pixels

Counts = NDArray[np.int32]


class Window(NamedTuple):
    """A window of an image, (c, [z,] y, x)."""

    counts: Counts
    usable: NDArray[np.bool_] | None = None  # pixels that are not saturated, if the camera is known
    others: Counts | None = None  # the sum of n_others other exposures of the same scene
    n_others: int = 0
    dark: float = 0.0  # counts per pixel that represent read noise, if inputs are to keep all of it

    @property
    def light(self) -> Counts:
        """Counts of pixels that are neither hot nor saturated; 0 elsewhere."""
        counts = np.where(hot_pixels(torch.from_numpy(self.counts[None].astype(np.float32)))[0], 0, self.counts)
        return counts if self.usable is None else np.where(self.usable, counts, 0)

    def changed(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Window":
        """Return the window with ``change`` applied to each of its arrays."""
        usable, others = (None if image is None else change(image) for image in (self.usable, self.others))
        return self._replace(counts=change(self.counts), usable=usable, others=others)

    def binned(self) -> "Window":
        """Return the window with 2 x 2 pixels of each plane summed, four times as bright; sizes must be even."""
        rows, columns = (size // 2 for size in self.counts.shape[-2:])
        window = self.changed(lambda a: a.reshape(*a.shape[:-2], rows, 2, columns, 2).sum((-3, -1), np.int32))
        usable = None if window.usable is None else window.usable == 4
        return window._replace(usable=usable, dark=4 * self.dark)


class Pairs(NamedTuple):
    """A batch of training pairs."""

    photons: Tensor  # counts of the input, (b, c, [z,] y, x) float32
    target: Tensor  # counts of the target
    db: Tensor  # pseudo-PSNR of the inputs, (b,)
    exposure: Tensor  # expected target photons per expected input photon and unit of weight, (b,)
    weight: Tensor  # 0 for saturated and hot pixels; for one-bit cameras the frames left for the target; else 1
    dark: Tensor | None = None  # counts per pixel that were added to the input alone, (b, 1, ..., 1)


def pairs_of(
    windows: Sequence[Window], fractions: Sequence[float], ceiling: int | None, generator: torch.Generator
) -> Pairs:
    """Split windows on the generator's device; a photon goes to the input with the probability given per window."""
    counts = _stacked([window.counts for window in windows], generator.device).float()
    numbers = [fractions, [window.n_others for window in windows], [window.dark for window in windows]]
    columns = torch.tensor(numbers, dtype=torch.float64).float().to(generator.device, non_blocking=True)
    fraction, n_others, shift = columns.reshape(3, -1, *[1] * (counts.ndim - 1))
    photons = torch.binomial(counts, fraction.expand_as(counts), generator=generator)
    dark = (1 - fraction) * shift if any(window.dark for window in windows) else None
    repeated = windows[0].others is not None
    target = _stacked([window.others for window in windows], generator.device).float() if repeated else counts - photons
    weight, exposure = torch.ones_like(counts), (n_others if repeated else 1 - fraction) / fraction
    if ceiling is not None:
        check_ceiling([window.counts for window in windows], ceiling)
        free = free_slots(counts, photons, fraction, ceiling, generator)
        weight, exposure = ceiling * n_others * weight if repeated else free, 1 / (ceiling * fraction)
    if windows[0].usable is not None:
        weight = weight * _stacked([window.usable for window in windows], generator.device)
    # no network can predict hot pixels, and they would dominate the loss
    weight = weight.masked_fill(hot_pixels(counts), 0.0)
    if dark is not None:
        noise = torch.randn(photons.shape, generator=generator, device=photons.device)
        photons = (photons + torch.round(dark + torch.sqrt(dark) * noise)).clamp(min=0.0)  # Gaussian, like read noise
    db = 10 * torch.log10(photons.flatten(1).mean(1))
    return Pairs(photons, target * (weight > 0), db, exposure.flatten(), weight, dark)


def check_ceiling(images: Iterable[NDArray[Any]], ceiling: int) -> None:
    """Refuse counts above ``ceiling``, the number of one-bit frames summed."""
    if (highest := max(int(counts.max(initial=0)) for counts in images)) > ceiling:
        problem = f"a pixel holds {highest} photons, but {ceiling} one-bit frames hold at most {ceiling}"
        advice = "set thinning.ceiling to the number of frames summed, or give single frames with --sum-frames"
        raise NotPhotonCountsError(f"{problem}; {advice}")


def free_slots(counts: Tensor, photons: Tensor, fraction: Tensor, ceiling: int, generator: torch.Generator) -> Tensor:
    """Return how many of the ``ceiling`` one-bit frames of each pixel are left for the target, given the input.

    A pixel that sums T frames has T slots, each with or without a photon. Thinning assigns every slot, full or empty,
    to the input with the same probability. The target is then Binomial(slots left, q) with the pixel's own q, and
    independent of the input. Otherwise a pixel whose photon went to the input would look as if none can land there.
    """
    empty = ceiling - counts
    return ceiling - photons - torch.binomial(empty, fraction.expand_as(empty), generator=generator)


def _stacked(parts: Sequence[NDArray[Any] | None], device: torch.device) -> Tensor:
    """Stack arrays on a device; copies to a GPU are asynchronous."""
    stacked = torch.from_numpy(np.stack([part for part in parts if part is not None]))
    return stacked.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else stacked
