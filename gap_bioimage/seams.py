"""Edge artefacts: how much a result changes near a cut of the image, from which halos are measured and judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EdgeProfile:
    """Change of a result near a cut of its image, against the distance from the cut along one axis.

    One measurement judges every halo, since a halo discards all pixels that are nearer to the cut.
    """

    squares: NDArray[np.float64]  # mean squared difference at 0, 1, 2, ... px from the cut
    scale: float  # mean square of the result without the cut

    @classmethod
    def of(cls, whole: NDArray[Any], cut: NDArray[Any], axis: int) -> EdgeProfile:
        """Compare the result for an image cut at both ends of an axis with the same part of the whole result."""
        with np.errstate(invalid="ignore"):
            squares = np.square(cut.astype(np.float64) - whole)
        line = np.moveaxis(np.where(np.isfinite(squares), squares, np.inf), axis, 0).reshape(whole.shape[axis], -1)
        means = line.mean(axis=1)
        half = len(means) // 2
        return cls((means[:half] + means[::-1][:half]) / 2, float(np.mean(np.square(whole.astype(np.float64)))))

    def seam(self, halo_px: int, width_px: int) -> float:
        """Return the relative RMS difference in ``width_px`` next to the halo; infinite if nothing was measured."""
        near = self.squares[halo_px : halo_px + max(1, width_px)]
        if not near.size:
            return math.inf
        mean = float(near.mean())
        return math.sqrt(mean / self.scale) if self.scale > 0 else (math.inf if mean > 0 else 0.0)

    def needed_halo(self, allowed: float, step_px: int = 1) -> int | None:
        """Return the smallest halo, a multiple of ``step_px``, with a seam below ``allowed``; None if there is none.

        The seam is that of the smallest sensible tile, whose inner part is two thirds as wide as a halo.
        """
        halos = range(0, len(self.squares), step_px)
        return next((halo for halo in halos if self.seam(halo, seam_width_px(halo)) < allowed), None)


def seam_width_px(halo_px: int) -> int:
    """Return the width next to a halo in which the seam is measured: half of the inner part of the smallest tile."""
    return max(8, halo_px // 3)
