"""Images as training sees them: one array of counts each, or of camera values that become counts when drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gap_bioimage.counts import as_integers
from gap_bioimage.errors import AxesError
from gap_bioimage.photons.layout import items_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from gap_bioimage.photons.cameras.camera import Detector

_HELD_OUT_IMAGES_FROM = 8  # with fewer images a slab of each is held out instead


@dataclass(frozen=True)
class CameraStack:
    """Camera values ``(c, [z,] y, x)`` of one image, maybe memory-mapped, and the camera of these very pixels."""

    values: NDArray[Any]
    detector: Detector

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes ``(c, [z,] y, x)``."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    def mean(self) -> float:
        """Mean of the values, ADU."""
        return float(self.values.mean())

    def __getitem__(self, cut: tuple[slice, ...]) -> CameraStack:
        """Return a part of the image; one slice per axis."""
        rows, columns = (*cut, *(slice(None),) * (len(self.shape) - len(cut)))[-2:]
        return CameraStack(self.values[cut], self.detector.crop(rows, columns))


Stack = NDArray[Any] | CameraStack
"""One image ``(c, [z,] y, x)``: counts, maybe memory-mapped, or camera values."""


class Window(NamedTuple):
    """A piece of an image: counts ``(c, [z,] y, x)``, and which pixels are not saturated, where a camera tells."""

    counts: NDArray[np.int32]
    usable: NDArray[np.bool_] | None
    background: float
    """Counts per pixel that are there without light."""

    @property
    def photons(self) -> float:
        """All photons."""
        return float(self.counts.sum()) - self.background * self.counts.size


def window_of(stack: Stack, rng: np.random.Generator) -> Window:
    """Return the counts of a whole stack; camera values are spread within their ADU at random."""
    if not isinstance(stack, CameraStack):
        return Window(as_integers(np.asarray(stack)).astype(np.int32), None, 0.0)
    values, detector = np.asarray(stack.values), stack.detector
    return Window(detector.counts(values, rng), ~detector.saturated(values), float(np.mean(detector.shift())))


def values_of(stack: Stack) -> NDArray[Any]:
    """Return counts or camera values as they were recorded."""
    return stack.values if isinstance(stack, CameraStack) else stack


class Split(NamedTuple):
    """Images to train on and images to validate on, which share no pixel."""

    training: list[Stack]
    held_out: list[Stack]


def as_stacks(
    images: Sequence[xr.DataArray], dim: int, detector: Detector | None = None, *, separate_channels: bool = False
) -> list[Stack]:
    """View images as arrays ``(c, [z,] y, x)``: frames, and in 2D also planes, become separate items.

    Parameters
    ----------
    images
        Dims out of ``t c z y x``.
    dim
        Spatial dimensions of the network.
    detector
        The camera, if the images are not counts.
    separate_channels
        Let channels become separate items, too.

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
            as_z = " or take time as z with --time-as-z" if "t" in image.dims else ""
            advice = f"; use --dim 2{as_z}" if missing == ["z"] else ""
            raise AxesError(
                f"an image has axes {''.join(map(str, image.dims))}, expected {', '.join(missing)} for a {dim}D model"
                f"{advice}"
            )
        array = items_first(image, dim, separate_channels=separate_channels).data
        items = array.reshape(-1, *array.shape[-dim - 1 :])
        if detector is None:
            stacks.extend(items)
        else:
            detector.check_size(image)
            stacks.extend(CameraStack(item, detector) for item in items)
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
    training: list[Stack] = []
    held_out: list[Stack] = []
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
