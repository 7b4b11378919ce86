"""What is measured on an image before it is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.photons.judging.correlation import NOTHING, Correlation, neighbour_correlation
from gap_bioimage.photons.judging.statistics import Noise, Statistics, estimate_noise, scan
from gap_bioimage.photons.judging.traces import Traces, find_traces
from gap_bioimage.photons.judging.variance import Curve, variance_curve

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

_CEILINGS = (255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True)
class Evidence:
    """Statistics of all pixels; noise and traces of processing where there is enough to see."""

    dtype: np.dtype[Any]
    statistics: Statistics
    noise: Noise | None = None
    correlation: Correlation = NOTHING
    curve: Curve | None = None
    traces: Traces = field(default_factory=Traces)

    @property
    def levels(self) -> str:
        """Minimum and mean in words."""
        return f"minimum {self.statistics.minimum:g}, mean {self.statistics.mean:.4g}"

    @property
    def neighbours(self) -> str:
        """The correlation of neighbouring pixels in words."""
        return f"{self.correlation.y:.2f} along y and {self.correlation.x:.2f} along x"

    @property
    def grey_photograph(self) -> bool:
        """Whether it fills the range of 8 bits as pictures for display do."""
        return self.dtype == np.uint8 and self.statistics.maximum >= 250

    @property
    def piled_up(self) -> bool:
        """Whether the maximum is a ceiling: more pixels there than the values just below lead one to expect."""
        found = self.statistics
        integers = self.dtype.kind in "iu"
        if found.maximum in _CEILINGS or (integers and found.maximum == np.iinfo(self.dtype).max):
            return found.at_maximum >= 5 and found.at_maximum > 2 * found.below_maximum
        pile = found.at_maximum > 5 * found.below_maximum
        return found.maximum >= 20 and found.at_maximum >= 10 and pile


def measure(photons: xr.DataArray) -> Evidence:
    """Measure an image of any type and size.

    Parameters
    ----------
    photons
        Any dims that end in y, x. All pixels are read once, piece by piece, for the statistics; the rest is measured on
        a part of them.

    Returns
    -------
    Evidence
    """
    values: NDArray[Any] = photons.data if isinstance(photons.data, np.ndarray) else photons.values
    if values.dtype.kind not in "biuf":
        nothing = Statistics(values.size, values.size, 0, 0, math.nan, math.nan, 0.0, 1, 0, 0.0)
        return Evidence(values.dtype, nothing)
    statistics = scan(values)
    if statistics.nonfinite or statistics.minimum == statistics.maximum or not statistics.pixels:
        return Evidence(values.dtype, statistics)
    repeats, channels = (photons.dims.index(d) if d in photons.dims else None for d in ("t", "c"))
    return Evidence(
        values.dtype,
        statistics,
        estimate_noise(values) if statistics.total else None,
        neighbour_correlation(values, repeats),
        variance_curve(values, repeats),
        find_traces(values, channels),
    )
