"""Whether samples agree with the denoised image, which is the mean of all that could be drawn."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

_BOX_PX = 16  # single pixels differ by chance, boxes of them hardly
_LARGE, _SURE = 0.10, 3.0


def warn_if_samples_disagree(samples: xr.DataArray, mmse: xr.DataArray) -> None:
    """Warn when the samples' mean is not the denoised image: then the network contradicts itself.

    Parameters
    ----------
    samples
        With the dim ``sample``; fewer than two tell nothing.
    mmse
        The denoised image, with the other dims. Planes without any light tell nothing: their samples were generated.

    Warns
    -----
    UserWarning
        If they differ by more than 10 % in boxes of 16 px, and by more than three times what the spread of the
        samples explains.
    """
    count = samples.sizes["sample"]
    seen = (mmse > 0).any(("y", "x")).values
    if count < 2 or not seen.any():
        return
    mmse = mmse.transpose(..., "y", "x")
    expected = _boxes(mmse)[seen]
    size = _rms(expected)
    # one sample at a time: all of them may not fit into memory twice
    boxes = np.stack([_boxes(samples.isel(sample=n, drop=True).transpose(*mmse.dims))[seen] for n in range(count)])
    difference = _rms(boxes.mean(0) - expected) / size
    explained = _rms(boxes.std(0, ddof=1)) / math.sqrt(count) / size
    if difference > max(_LARGE, _SURE * explained):
        warnings.warn(
            f"the mean of the samples differs from the denoised image by {100 * difference:.0f} % (their spread "
            f"explains {100 * explained:.0f} %): the network was trained too briefly, or on other images; train longer",
            stacklevel=2,
        )


def _boxes(image: xr.DataArray) -> np.ndarray:
    """Return the means of boxes along y and x times the root of their pixels, so that each counts by its size."""
    values = image.transpose(..., "y", "x").values
    starts = [np.arange(0, size, _BOX_PX) for size in values.shape[-2:]]
    widths = [np.diff(start, append=size) for start, size in zip(starts, values.shape[-2:], strict=True)]
    sums = np.add.reduceat(values, starts[0], axis=-2, dtype=np.float64)
    # those at the far borders are smaller
    return np.asarray(np.add.reduceat(sums, starts[1], axis=-1) / np.sqrt(np.outer(*widths)))


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values).mean()))
