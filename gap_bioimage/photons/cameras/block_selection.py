"""Which blocks of pixels tell about a camera: none that is saturated, clipped at zero, coarsely rounded or moving."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.photons.cameras.photon_transfer import average, fit_line, moving

if TYPE_CHECKING:
    import numpy.typing as npt

    from gap_bioimage.photons.cameras.noise_moments import Moments
    from gap_bioimage.photons.cameras.photon_transfer import Line, Points

    Flags = npt.NDArray[np.bool_]

_LEAST_BLOCKS = 12
_MOSTLY = 0.5
_ENOUGH = 0.1  # share of the blocks that must be left, to leave out others
_SATURATED = 0.01  # share of the times at which a block is saturated
_ZEROS = 2e-3  # share of zeros from which on a block may be clipped there
_FEW_ZEROS = (1e-3, 1e-2, 5e-2)  # and up to which it matters little; the first that leaves enough blocks
_COARSE = 0.9  # ADU per electron above which whole numbers of electrons differ by whole ADU
_LEAST_VARIANCE = 0.5  # ADU^2 below which rounding is no longer noise of 1/12 ADU^2
_FAR = 4.0  # standard errors
_SHORT = 0.02  # relative shortfall that clipping at least leaves
_FITS = 3.0  # chi-square per degree of freedom
_LIKE_COUNTS = 0.15  # relative difference of variance and mean
_BENT = 0.1  # relative shortfall of variance at the bright end
_SURE = 5.0  # standard errors
_HALVINGS = 5
_LEAST_CHANGE = 0.02
_GROUPS = 20
_GROUP_BLOCKS = 6
_NONE = np.zeros(0)


@dataclass(frozen=True)
class Goodness:
    """How well the line fits blocks of similar brightness.

    Attributes
    ----------
    mean, variance, error
        Of groups of blocks, dark to bright; ADU, ADU^2.
    chi_square
        Per degree of freedom.
    freedom
        Degrees of freedom.
    bend, bend_error
        By how much a parabola through the points departs from the line at the bright end, relative to it.
    """

    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]
    chi_square: float
    freedom: int
    bend: float
    bend_error: float

    def bends(self, least: float = _BENT) -> int:
        """Whether variance surely rises (1) or falls short (-1) at the bright end by more than a share."""
        sure = abs(self.bend) > max(least, _SURE * self.bend_error)
        return int(np.sign(self.bend)) if sure else 0


@dataclass
class Selected:
    """Blocks that are used, the line through them, and what was left out."""

    moments: Moments
    line: Line
    points: Points
    dark: Points | None
    saturated: float = 0.0
    """Shares of the blocks that are saturated, or that something moves through."""
    moved: float = 0.0
    coarse: bool = False
    clipped: bool = False
    brightest: float | None = None
    """ADU above which blocks were left out because the variance falls short."""
    goodness: Goodness = field(default_factory=lambda: Goodness(_NONE, _NONE, _NONE, 0.0, 0, 0.0, np.inf))


def select_blocks(moments: Moments, *, structure: bool, loud: float, anchor: Moments | None) -> Selected:
    """Fit the line to blocks that obey it.

    Parameters
    ----------
    moments, structure, loud, anchor
        As in :func:`gap_bioimage.photons.photon_transfer.fit_line`.

    Raises
    ------
    NotPhotonCountsError
        If too few blocks are left.
    """
    bad = (moments.saturated > 0).mean(0) > _SATURATED
    if np.count_nonzero(~bad) < _LEAST_BLOCKS:
        raise NotPhotonCountsError(
            f"{np.mean(bad):.0%} of the image is saturated, expected images below the camera's ceiling; use a shorter "
            "exposure, or give --saturation if the ceiling is higher"
        )
    still = ~moving(moments)
    moved = float(np.mean(~still[~bad]))
    keep = ~bad & still if np.count_nonzero(~bad & still) >= max(_LEAST_BLOCKS, _ENOUGH * len(bad)) else ~bad

    def fit(kept: Flags) -> Selected:
        used = moments.at(kept)
        return Selected(used, *fit_line(used, structure=structure, loud=loud, anchor=anchor))

    selected = _unclipped(moments, keep, fit(keep), fit, loud)
    selected = _linear(selected, structure, loud, anchor)
    selected.saturated, selected.moved = float(np.mean(bad)), moved
    return selected


def _unclipped(moments: Moments, keep: Flags, selected: Selected, fit: object, loud: float) -> Selected:
    """Leave out blocks that are clipped at zero, or whose noise is lost in rounding, if others are there."""
    assert callable(fit)  # noqa: S101
    zeros = moments.zeros.mean(0)
    dim = keep & (zeros > _ZEROS)
    if np.any(dim):
        brighter = [keep & (zeros < few) for few in _FEW_ZEROS]
        bright = next((kept for kept in brighter if _enough(kept, keep)), brighter[-1])
        sure = _enough(bright, keep)
        rest = fit(bright) if sure else selected
        if sure and _falls_short(average(moments.at(dim), rest.line, loud=loud), rest.line):
            selected, keep = rest, bright
            selected.clipped = True
        elif not sure and not _like_counts(selected.points):
            selected.clipped = goodness_of(selected.points, selected.line).chi_square > _FITS
    if selected.line.gain < _COARSE:
        fine = keep & (selected.line.intercept + selected.line.gain * moments.mean.mean(0) >= _LEAST_VARIANCE)
        coarse = bool(np.mean(fine[keep]) < _MOSTLY)
        clipped = selected.clipped
        selected = fit(fine) if _enough(fine, keep) and np.any(fine != keep) else selected
        selected.coarse, selected.clipped = coarse, clipped
    return selected


def _falls_short(dim: Points, line: Line) -> bool:
    """Whether dark blocks have less noise than the line through brighter ones says, and are no counts either."""
    total = float(dim.weight.sum())
    if not total:
        return False
    variance, mean = (float(np.sum(dim.weight * values)) / total for values in (dim.variance, dim.mean))
    expected = float(np.sum(dim.weight * line.at(dim.mean))) / total
    short = expected - variance
    return short > max(_FAR / total**0.5, _SHORT * expected) and abs(variance / mean - 1) > _LIKE_COUNTS


def _like_counts(points: Points) -> bool:
    """Whether variance is about the mean where zeros are, as of photon counts."""
    dark = points.mean <= np.median(points.mean)
    ratio = float(points.variance[dark].sum()) / max(float(points.mean[dark].sum()), 1e-9)
    return abs(ratio - 1) < _LIKE_COUNTS


def _enough(kept: Flags, of: Flags) -> bool:
    return bool(np.count_nonzero(kept) >= max(_LEAST_BLOCKS, _ENOUGH * np.count_nonzero(of)))


def _linear(selected: Selected, structure: bool, loud: float, anchor: Moments | None) -> Selected:
    """Leave out the bright end where variance falls short of a line: dead time, compression, saturation."""
    selected.goodness = goodness_of(selected.points, selected.line)
    original = selected
    for _ in range(0 if selected.clipped else _HALVINGS):
        selected.goodness = goodness_of(selected.points, selected.line)
        mean = selected.moments.mean.mean(0)
        middle = float(mean.min() + (mean.max() - mean.min()) / 2)
        kept = mean <= middle
        if selected.goodness.bends(_LEAST_CHANGE) >= 0 or np.count_nonzero(kept) < 2 * _LEAST_BLOCKS:
            break
        used = selected.moments.at(kept)
        halved = Selected(used, *fit_line(used, structure=structure, loud=loud, anchor=anchor))
        if not halved.line.gain > selected.line.gain * (1 + _LEAST_CHANGE):
            break
        halved.coarse, halved.clipped, halved.brightest = selected.coarse, selected.clipped, middle
        halved.goodness = original.goodness
        selected = halved
    return selected


def goodness_of(points: Points, line: Line) -> Goodness:
    """Compare groups of blocks of similar brightness with the line."""
    order = np.argsort(points.mean, kind="stable")
    order = order[points.weight[order] > 0]
    groups = np.array_split(order, int(np.clip(len(order) // _GROUP_BLOCKS, 1, _GROUPS)))
    w = np.array([points.weight[g].sum() for g in groups])
    x, y = (
        np.array([np.sum(points.weight[g] * values[g]) for g in groups]) / w
        for values in (points.mean, points.variance)
    )
    away = (y - line.intercept - line.gain * x) * np.sqrt(w)
    freedom = max(1, len(groups) - 2)
    chi_square = float(np.sum(away**2)) / freedom
    bend, bend_error = _bend(x, y, w, line) if len(groups) >= 4 else (0.0, np.inf)
    return Goodness(x, y, 1 / np.sqrt(w), chi_square, freedom, bend, bend_error)


def _bend(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], w: npt.NDArray[np.float64], line: Line
) -> tuple[float, float]:
    scale = max(float(np.ptp(x)), 1e-9)
    design = np.stack([np.ones_like(x), (x - x[0]) / scale, ((x - x[0]) / scale) ** 2], axis=1) * np.sqrt(w)[:, None]
    solution, *_ = np.linalg.lstsq(design, y * np.sqrt(w), rcond=None)
    covariance = np.linalg.pinv(design.T @ design)
    straight, *_ = np.linalg.lstsq(design[:, :2], y * np.sqrt(w), rcond=None)
    top = float(np.ptp(x)) / scale
    departure = float(solution @ [1, top, top**2] - straight @ [1, top])
    expected = float(line.at(x[-1:])[0])
    per_curvature = abs(departure / solution[2]) if solution[2] else 1.0
    return departure / expected, float(np.sqrt(covariance[2, 2])) * per_curvature / expected
