"""Images as training sees them: arrays of counts, or of camera values that become counts when windows are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gap_bioimage.counts import as_integers, check_axes
from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.io.image import items_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from gap_bioimage.camera.camera import Detector

_HELD_OUT_IMAGES_FROM = 8  # with fewer images a slab of each is held out instead


@dataclass(frozen=True)
class Stack:
    """One image as it was recorded.

    Attributes
    ----------
    values
        Counts or camera values ``(c, [z,] y, x)``, maybe memory-mapped.
    name
        What to call it in messages: its file.
    detector
        The camera of these very pixels, if the values are not counts.
    """

    values: NDArray[Any]
    name: str = "the image"
    detector: Detector | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes ``(c, [z,] y, x)``."""
        return self.values.shape

    def mean(self) -> float:
        """Mean of the values."""
        return float(self.values.mean())

    def __getitem__(self, cut: tuple[slice, ...]) -> Stack:
        """Return a part of the image; one slice per axis."""
        rows, columns = (*cut, *(slice(None),) * (len(self.shape) - len(cut)))[-2:]
        detector = None if self.detector is None else self.detector.crop(rows, columns)
        return Stack(self.values[cut], self.name, detector)

    def window(self, rng: np.random.Generator) -> Window:
        """Return the counts of the whole stack; camera values are spread within their ADU at random.

        Raises
        ------
        NotPhotonCountsError
            If values that should be counts are not.
        """
        values, detector = np.asarray(self.values), self.detector
        if detector is None:
            try:
                return Window(as_integers(values).astype(np.int32), None, 0.0)
            except NotPhotonCountsError as error:
                raise NotPhotonCountsError(f"{self.name}: {error}") from None
        return Window(detector.counts(values, rng), ~detector.saturated(values), float(np.mean(detector.shift())))


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


def values_of(stack: Stack) -> NDArray[Any]:
    """Return counts or camera values as they were recorded."""
    return stack.values


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
        check_axes(image)
        name = Path(str(image.attrs.get("source", "the image"))).name
        missing = [axis for axis in spatial if axis not in image.dims]
        if missing:
            as_z = " or take time as z" if "t" in image.dims else ""
            raise AxesError(
                f"{name} has axes {''.join(map(str, image.dims))}, expected {', '.join(missing)} for a {dim}D network; "
                f"train one with network.dim=2{as_z}"
            )
        if min(image.sizes["y"], image.sizes["x"]) < 2:
            raise AxesError(
                f"{name} has {image.sizes['y']} x {image.sizes['x']} pixels (y, x), expected an image of several rows "
                "and columns; is it of one row because its sizes are told elsewhere?"
            )
        if detector is not None:
            detector.check_size(image)
        array = items_first(image, dim, separate_channels=separate_channels).data
        stacks.extend(Stack(item, name, detector) for item in array.reshape(-1, *array.shape[-dim - 1 :]))
    channels = {stack.shape[0]: stack.name for stack in stacks}
    if len(channels) > 1:
        told = ", ".join(f"{count} in {name}" for count, name in sorted(channels.items()))
        raise AxesError(f"the images have different numbers of channels ({told}), expected the same number in all")
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
                f"{stack.name} has shape {stack.shape[1:]}, too small to hold out {slab} pixels for validation; "
                "give larger or at least 8 images"
            )
        cut = (slice(None),) * axis
        training.append(stack[(*cut, slice(0, size - slab))])
        held_out.append(stack[(*cut, slice(size - slab, size))])
    return Split(training, held_out)
