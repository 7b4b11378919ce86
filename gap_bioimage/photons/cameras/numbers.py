"""Gain, offset and read noise from the photon-transfer line, and how sure they are.

The line alone gives the gain and ``read^2 - gain offset``. What separates offset from read noise is the third central
moment, ``gain^2 (mean - offset)`` for Poisson light, to which symmetric read noise adds nothing; two bounds hold in any
case: read noise is at least that of digitisation, and no block is darker than the offset. Electron multiplication makes
the third moment 1.5 times ``gain^2 (mean - offset)`` with the noise-derived gain, which tells such detectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.photons.cameras.photon_transfer import line_of_sums, line_sums
from gap_bioimage.photons.cameras.shifted_poisson import ROUNDING

if TYPE_CHECKING:
    import numpy.typing as npt

    from gap_bioimage.photons.cameras.photon_transfer import Points

    Floats = npt.NDArray[np.float64]

_REPLICATES = 1000
_MOST_CLUSTERS = 1024
_COARSE = 0.9  # ADU per electron, above which an ADU need not hold digitisation noise
_TAIL = 2.5  # per cent on either side of an interval
_SYSTEMATIC = 0.03  # of the third moment's slope
POISSON, MULTIPLIED = 1.0, 1.5


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Value and interval with as many digits as they are worth."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def to_list(self) -> list[float | None]:
        """Value, low, high for JSON; None for what is not bounded."""
        return [float(f"{x:.6g}") if np.isfinite(x) else None for x in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class Known:
    """What was given.

    Attributes
    ----------
    offset
        ADU and its standard error.
    read_noise
        Electrons.
    multiplying
        Whether the detector multiplies, if known.
    imposed
        Whether the third moment's slope follows from the gain; noise that somebody smoothed has another.
    """

    offset: tuple[float, float] | None = None
    read_noise: float | None = None
    multiplying: bool | None = None
    imposed: bool = True


@dataclass(frozen=True)
class Numbers:
    """Gain (ADU per electron), offset (ADU), read noise (electrons), and what the third moment says.

    ``third`` is the third moment's slope over gain^2: 1 for Poisson light, 1.5 behind electron multiplication.
    ``undecided`` tells that both would do.
    """

    gain: Estimate
    offset: Estimate
    read_noise: Estimate
    intercept: float
    third: Estimate | None
    multiplying: bool
    undecided: bool


def estimate_numbers(
    points: Points, known: Known, *, third: Points | None, dark: Points | None = None, seed: int = 0
) -> Numbers:
    """Estimate a camera's numbers, with intervals from a bootstrap over positions.

    Parameters
    ----------
    points
        What the line goes through.
    known
        What was given.
    third
        Points whose third moments are known; None leaves the offset to its bounds.
    dark
        Points of dark frames, through which the line goes too.
    seed
        Of the bootstrap.
    """
    rng = np.random.default_rng((seed, 3))
    lines = line_sums(points)
    cubes: Floats | None
    if third is points:  # variance and third moment of a block err together
        both = _resampled(np.concatenate([lines, _third_sums(points)]), rng)
        sums, cubes = both[: len(lines)], both[len(lines) :]
    else:
        sums = _resampled(lines, rng)
        cubes = None if third is None else _resampled(_third_sums(third), rng)
    if dark is not None:
        sums = sums + _resampled(line_sums(dark), rng)
    darkest = float(np.min(points.mean + 3 * np.sqrt(np.maximum(points.variance, ROUNDING) / points.samples)))
    tries = [POISSON, MULTIPLIED] if known.multiplying is None else [MULTIPLIED if known.multiplying else POISSON]
    solved = {q: _solve(sums, cubes, known, q, darkest, rng) for q in tries}
    ratio = None if cubes is None else _ratio(cubes, solved[tries[0]], known)
    chosen, undecided = _choose(ratio, known)
    kept = [solved[q] for q in (tries if undecided else [chosen])]
    best = solved[chosen]
    gain = _estimate(best.gain[0], np.stack([each.gain[1:] for each in kept]))
    noise = _estimate(best.read_noise[0], np.stack([each.read_noise[1:] for each in kept]))
    intervals = [each.offset_interval() for each in kept]
    offset = Estimate(float(best.offset[0]), min(i.low for i in intervals), max(i.high for i in intervals))
    return Numbers(gain, offset, noise, float(best.intercept[0]), ratio, chosen == MULTIPLIED, undecided)


def _resampled(sums: Floats, rng: np.random.Generator) -> Floats:
    """Add up sums over points: all of them first, then as bootstrap replicates draw them."""
    count = sums.shape[1]
    edges = np.unique(np.linspace(0, count, min(count, _MOST_CLUSTERS) + 1).astype(int))[:-1]
    clusters = np.add.reduceat(sums, edges, axis=1)
    many = clusters.shape[1]
    draws = rng.multinomial(many, np.full(many, 1 / many), _REPLICATES)
    weights = np.concatenate([np.ones((1, many)), draws])
    resampled: Floats = clusters @ weights.T
    return resampled


def _third_sums(points: Points) -> Floats:
    w, x, k = points.third_weight, points.mean, points.third
    return np.stack([w, w * x, w * x * x, w * k, w * x * k])


@dataclass(frozen=True)
class _Solved:
    """The same numbers from all resampled sums: (replicates,), the data themselves first."""

    gain: Floats
    intercept: Floats
    crossing: Floats
    """Offset before the bounds are applied, and the bounds."""
    lowest: Floats
    highest: Floats
    floor: Floats

    @property
    def offset(self) -> Floats:
        return np.clip(self.crossing, self.lowest, self.highest)

    @property
    def read_noise(self) -> Floats:
        variance = np.maximum(self.intercept + self.gain * self.offset, self.floor)
        noise: Floats = np.sqrt(variance) / self.gain
        return noise

    def offset_interval(self) -> Estimate:
        """Bounds err by themselves: a clipped replicate would be taken for a sure one."""
        crossing, lowest, highest = (
            _estimate(values[0], values[None, 1:]) for values in (self.crossing, self.lowest, self.highest)
        )
        if not math.isfinite(lowest.value):  # nothing bounds an offset that was given
            return crossing
        low, high = (
            float(np.clip(c, lo, max(hi, lo)))
            for c, lo, hi in (
                (crossing.low, lowest.low, highest.low),
                (crossing.high, lowest.high, highest.high),
            )
        )
        value = float(self.offset[0])
        return Estimate(value, min(low, value), max(high, value))


def _solve(
    sums: Floats, cubes: Floats | None, known: Known, multiplied: float, darkest: float, rng: np.random.Generator
) -> _Solved:
    read = 0.0
    for _ in range(4):
        gain, intercept = line_of_sums(sums, read, multiplied)
        gain = np.where(gain > 0, gain, np.nan)
        floor = np.where(gain < _COARSE, ROUNDING, 0.0)
        free = known.offset is None and known.read_noise is None
        lowest = (floor - intercept) / gain if free else np.full_like(gain, -np.inf)
        highest = np.maximum(darkest, lowest) if free else np.full_like(gain, np.inf)
        crossing = _crossing(gain, intercept, cubes, known, multiplied, (lowest, highest), rng)
        solved = _Solved(gain, intercept, crossing, lowest, highest, floor)
        read = float(intercept[0] + gain[0] * solved.offset[0])
        if not np.isfinite(read):
            break
        read = max(read, float(floor[0]))
    return solved


def _crossing(
    gain: Floats,
    intercept: Floats,
    cubes: Floats | None,
    known: Known,
    multiplied: float,
    bounds: tuple[Floats, Floats],
    rng: np.random.Generator,
) -> Floats:
    """Offset: given, from a given read noise, or where the third moment vanishes."""
    if known.offset is not None:
        value, error = known.offset
        drawn = value + error * rng.standard_normal(gain.shape)
        drawn[0] = value
        return drawn
    if known.read_noise is not None:
        return gain * known.read_noise**2 - intercept / gain
    if cubes is None:  # anything between the bounds
        lowest, highest = bounds
        free: Floats = lowest + (highest - lowest) * rng.random(gain.shape)
        free[0] = lowest[0]
        return free
    w, x, xx, k, xk = cubes
    slope = multiplied * gain**2 if known.imposed else (xk - x * k / w) / (xx - x * x / w)
    # a slope that noise has turned negative says nothing
    return np.where(slope > 0, (x - k / np.where(slope > 0, slope, 1)) / w, -np.inf)


def _ratio(cubes: Floats, solved: _Solved, known: Known) -> Estimate:
    """Slope of the third moment over gain^2."""
    w, x, xx, k, xk = cubes
    gain, offset = solved.gain, solved.offset
    if known.offset is not None:
        slope = (xk - offset * k) / (xx - 2 * offset * x + offset**2 * w)
    else:
        slope = (xk - x * k / w) / (xx - x * x / w)
    values = slope / gain**2
    return _estimate(values[0], values[None, 1:])


def _choose(ratio: Estimate | None, known: Known) -> tuple[float, bool]:
    """Whether electrons are multiplied, and whether that is left open."""
    if known.multiplying is not None:
        return (MULTIPLIED if known.multiplying else POISSON), False
    if ratio is None or not known.imposed or not np.isfinite(ratio.low + ratio.high):
        return POISSON, ratio is None or known.imposed
    error = max((ratio.high - ratio.low) / 4, _SYSTEMATIC)
    undecided = max(abs(ratio.value - POISSON), abs(ratio.value - MULTIPLIED)) < 3 * error
    return (MULTIPLIED if ratio.value > (POISSON + MULTIPLIED) / 2 and not undecided else POISSON), undecided


def _estimate(value: float, replicates: Floats) -> Estimate:
    """Interval that holds the middle 95 % of each row of replicates."""
    values = np.where(np.isfinite(replicates), replicates, np.inf)
    low, high = (np.percentile(values, q, axis=1, method="nearest") for q in (_TAIL, 100 - _TAIL))
    return Estimate(float(value), min(float(low.min()), float(value)), max(float(high.max()), float(value)))
