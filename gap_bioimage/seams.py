"""How much of a result changes where its image is cut: what halos are judged by, of our networks and of anybody's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EdgeProfile:
    """How much of a result changes where its image is cut, against the distance from the cut along one axis.

    One measurement judges every halo: what lies nearer to the cut than the halo is thrown away.
    """

    squares: NDArray[np.float64]  # mean squared difference at 0, 1, 2, ... px from the cut
    scale: float  # mean square of the uncut result

    @classmethod
    def of(cls, whole: NDArray[Any], cut: NDArray[Any], axis: int) -> EdgeProfile:
        """Compare the result of an image that was cut at both ends of an axis with the same place of the whole."""
        with np.errstate(invalid="ignore"):
            squares = np.square(cut.astype(np.float64) - whole)
        line = np.moveaxis(np.where(np.isfinite(squares), squares, np.inf), axis, 0).reshape(whole.shape[axis], -1)
        means = line.mean(axis=1)
        half = len(means) // 2
        return cls((means[:half] + means[::-1][:half]) / 2, float(np.mean(np.square(whole.astype(np.float64)))))

    def seam(self, halo_px: int, width_px: int) -> float:
        """Relative RMS difference in the ``width_px`` beside the halo; infinite where nothing was measured there."""
        near = self.squares[halo_px : halo_px + max(1, width_px)]
        if not near.size:
            return math.inf
        mean = float(near.mean())
        return math.sqrt(mean / self.scale) if self.scale > 0 else (math.inf if mean > 0 else 0.0)

    def needed_halo(self, allowed: float, step_px: int = 1) -> int | None:
        """The smallest halo, a multiple of ``step_px``, that leaves less than the allowed seam; None if none does.

        The seam is that of the smallest sensible tile, which is as wide as its two halos and two thirds of one more.
        """
        halos = range(0, len(self.squares), step_px)
        return next((halo for halo in halos if self.seam(halo, beside(halo)) < allowed), None)


def beside(halo_px: int) -> int:
    """How many pixels beside a halo count: half of what the smallest sensible tile keeps."""
    return max(8, halo_px // 3)
