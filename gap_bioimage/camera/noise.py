"""The noise of images: which pixels no photons explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage, special

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_SHARPEST = 4.0  # a pixel over its third brightest neighbour: 3.4 for spots of 1.5 pixels full width
_CHANCE = 1e-10  # of one pixel, so that images of many million pixels have none


def hot_pixels(counts: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which pixels hold more than photons can bring where the neighbours are so dark.

    Optics spread every spot over several pixels. A pixel is hot if even four times the rate of the third brightest of
    the 24 pixels around it (one more photon than that one counted) gives such a count once in 10^10 pixels.

    Parameters
    ----------
    counts
        Photon counts (..., y, x), whole numbers of any type.

    Returns
    -------
    NDArray
        Same shape; all False where a side has fewer than three pixels.
    """
    found = np.zeros(counts.shape, bool)
    if counts.ndim < 2 or min(counts.shape[-2:], default=0) < 3:
        return found
    for index in np.ndindex(counts.shape[:-2]):
        plane = np.asarray(counts[index], np.float64)
        # of the 3 x 3 pixels around a hot one at most three are as bright
        bright = (plane >= _SHARPEST) & (plane > 2 * ndimage.uniform_filter(plane, 3, mode="mirror"))
        rows, columns = np.nonzero(bright)
        if not len(rows):
            continue
        padded = np.pad(plane, 2, mode="reflect")
        around = [padded[rows + dy, columns + dx] for dy in range(5) for dx in range(5) if (dy, dx) != (2, 2)]
        third = np.sort(np.stack(around), axis=0)[-3]
        hot = special.pdtrc(plane[rows, columns] - 1, _SHARPEST * (third + 1)) < _CHANCE
        found[(*index, rows[hot], columns[hot])] = True
    return found
