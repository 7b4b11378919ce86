"""Images as the independent items that a network sees, and what to call each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.errors import AxesError
from gap_bioimage.io.image import items_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

_WORDS = {"t": "frame", "z": "plane", "channel": "channel"}


@dataclass(frozen=True)
class Items:
    """Frames, planes of a 2D model, channels on their own: what a network sees one by one.

    Attributes
    ----------
    image
        As it was given.
    ordered
        The same with dims ``(..., c, [z,] y, x)``.
    values
        ``(n, c, [z,] y, x)``, a view where memory allows.
    """

    image: xr.DataArray
    ordered: xr.DataArray
    values: np.ndarray

    def restore(self, values: np.ndarray, n_samples: int | None = None) -> xr.DataArray:
        """Return values of the items' shape as an image with the axes and coordinates of the one that was given.

        Parameters
        ----------
        values
            Of the shape of the items, or so many of them, (n_samples, n, c, [z,] y, x).
        n_samples
            How many, if there is a first axis ``sample``.
        """
        full = self.ordered if n_samples is None else self.ordered.expand_dims(sample=n_samples)
        result = full.copy(data=values.reshape(full.shape))
        if "channel" in result.dims:
            result = result.squeeze("c", drop=True).rename(channel="c")
        elif "c" not in self.image.dims:
            result = result.squeeze("c", drop="c" not in self.image.coords)  # the name of a chosen channel stays
        return result.transpose(*(() if n_samples is None else ("sample",)), *self.image.dims)

    def names(self, numbers: Sequence[int]) -> str:
        """Return some items in words: the first, and how many more."""
        n_items, first = len(self.values), self._name(numbers[0])
        if n_items == 1:
            return "the image"
        more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
        return f"{first}{more} of {n_items} (counted from 0)"

    def without_photons(self, numbers: Sequence[int]) -> str:
        """Say in words that items hold no photons."""
        return f"{self.names(numbers)} {'holds' if len(numbers) == 1 else 'hold'} no photons"

    def _name(self, number: int) -> str:
        axes = self.ordered.dims[: self.ordered.ndim + 1 - self.values.ndim]
        index = np.unravel_index(number, [self.ordered.sizes[axis] for axis in axes])
        return ", ".join(
            f"{_WORDS.get(str(axis), axis)} {i}"
            for axis, i in zip(axes, index, strict=True)
            if self.ordered.sizes[axis] > 1
        )


def as_items(photons: xr.DataArray, dim: int, channels: int, *, separate_channels: bool = False) -> Items:
    """View an image as independent items.

    Raises
    ------
    AxesError
        If the number of channels is not the model's.
    """
    ordered = items_first(photons, dim, separate_channels=separate_channels)
    if ordered.sizes["c"] != channels:
        raise AxesError(
            f"the image has {ordered.sizes['c']} channels, the model expects {channels}; "
            + (
                "choose one with --channel, or denoise each by itself with --separate-channels"
                if channels == 1
                else f"give an image with {channels}, all at once, without --channel"
            )
        )
    return Items(photons, ordered, ordered.data.reshape(-1, *ordered.shape[-dim - 1 :]))
