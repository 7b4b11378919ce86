"""A camera's numbers from the photon-transfer line, with intervals from a bootstrap over blocks.

The line gives the gain and ``read^2 - gain offset``. The third central moment, ``gain^2 (mean - offset)`` for Poisson
light, to which symmetric read noise adds nothing, separates the two; behind electron multiplication it is 1.5 times as
large. Two bounds hold in any case: read noise is at least that of digitisation, no block is darker than the offset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gap_bioimage.camera.moments import Floats
from gap_bioimage.camera.photon_transfer import COARSE, Fit, Points, line_of_sums
from gap_bioimage.camera.shifted_poisson import ROUNDING

POISSON, MULTIPLIED = 1.0, 1.5  # slope of the third moment over gain^2
_REPLICATES, _MOST_CLUSTERS = 1000, 1024
_SYSTEMATIC = 0.03  # of the third moment's slope


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Value and interval with as many digits as they are worth."""
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    @property
    def error(self) -> float:
        """About one standard error."""
        return (self.high - self.low) / 4

    def to_list(self) -> list[float | None]:
        """Value, low, high for JSON; None for what is not bounded."""
        return [float(f"{x:.6g}") if np.isfinite(x) else None for x in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class Known:
    """What was given."""

    offset: tuple[float, float] | None = None  # ADU, and its standard error
    read_noise: float | None = None  # electrons
    multiplying: bool | None = None
    imposed: bool = True  # the third moment's slope follows from the gain; noise that somebody smoothed has another


@dataclass(frozen=True)
class Numbers:
    """Gain (ADU per electron), offset (ADU), read noise (electrons), and what the third moment says."""

    gain: Estimate
    offset: Estimate
    read_noise: Estimate
    intercept: float
    third: Estimate | None  # slope over gain^2
    multiplying: bool
    undecided: bool  # whether it multiplies


def numbers_of(fit: Fit, known: Known, third: Points | None, seed: int) -> Numbers:
    """Return a camera's numbers, with intervals from a bootstrap over blocks; without ``third`` from bounds alone."""
    points = fit.points
    # the same draws for both, because variance and third moment of a block err together
    sums = _resampled(points.line_sums, (seed, 3))
    cubes = None if third is None else _resampled(third.third_sums, (seed, 3))
    if fit.dark is not None:
        sums = sums + _resampled(fit.dark.line_sums, (seed, 4))
    used = points.weight > 0 if points.weight.any() else slice(None)
    darkest = float(np.min((points.mean + 3 * np.sqrt(np.maximum(points.variance, ROUNDING) / points.samples))[used]))
    tries = [POISSON, MULTIPLIED] if known.multiplying is None else [MULTIPLIED if known.multiplying else POISSON]
    solved = {q: _solve(sums, cubes, known, q, darkest, np.random.default_rng((seed, 5))) for q in tries}
    ratio = None if cubes is None else _ratio(cubes, solved[tries[0]], known)
    chosen, undecided = _choose(ratio, known)
    kept, best = [solved[q] for q in (tries if undecided else [chosen])], solved[chosen]
    intervals = [each.offset_interval() for each in kept]
    return Numbers(
        gain=_estimate(best.gain[0], *(each.gain[1:] for each in kept)),
        offset=Estimate(float(best.offset[0]), min(i.low for i in intervals), max(i.high for i in intervals)),
        read_noise=_estimate(best.read_noise[0], *(each.read_noise[1:] for each in kept)),
        intercept=float(best.intercept[0]),
        third=ratio,
        multiplying=chosen == MULTIPLIED,
        undecided=undecided,
    )


def _resampled(sums: Floats, seed: tuple[int, int]) -> Floats:
    """Add up sums over blocks: all of them first, then as bootstrap replicates draw clusters of neighbours."""
    many = min(sums.shape[1], _MOST_CLUSTERS)
    edges = np.linspace(0, sums.shape[1], many + 1).astype(int)[:-1]
    draws = np.random.default_rng(seed).multinomial(many, np.full(many, 1 / many), _REPLICATES)
    resampled: Floats = np.add.reduceat(sums, edges, axis=1) @ np.concatenate([np.ones((1, many)), draws]).T
    return resampled


@dataclass(frozen=True)
class _Solution:
    """The numbers from all resampled sums: (replicates,), the data themselves first."""

    gain: Floats
    intercept: Floats
    crossing: Floats  # the offset before its bounds are applied
    lowest: Floats
    highest: Floats
    floor: Floats  # the least variance

    @property
    def offset(self) -> Floats:
        return np.clip(self.crossing, self.lowest, self.highest)

    @property
    def read_noise(self) -> Floats:
        noise: Floats = np.sqrt(np.maximum(self.intercept + self.gain * self.offset, self.floor)) / self.gain
        return noise

    def offset_interval(self) -> Estimate:
        """Bounds err by themselves: a clipped replicate would be taken for a sure one."""
        parts = (self.crossing, self.lowest, self.highest)
        crossing, lowest, highest = (_estimate(values[0], values[1:]) for values in parts)
        if not math.isfinite(lowest.value):  # nothing bounds an offset that was given
            return crossing
        low = float(np.clip(crossing.low, lowest.low, max(highest.low, lowest.low)))
        high = float(np.clip(crossing.high, lowest.high, max(highest.high, lowest.high)))
        value = float(self.offset[0])
        return Estimate(value, min(low, value), max(high, value))


def _solve(
    sums: Floats, cubes: Floats | None, known: Known, q: float, darkest: float, rng: np.random.Generator
) -> _Solution:
    """Solve for all numbers; the third moment's slope is ``q`` gain^2, and no used block lies below ``darkest``."""
    read, free = 0.0, known.offset is None and known.read_noise is None
    for _ in range(4):
        gain, intercept = line_of_sums(sums, read, q)
        gain = np.where(gain > 0, gain, np.nan)
        floor = np.where(gain < COARSE, ROUNDING, 0.0)
        lowest = (floor - intercept) / gain if free else np.full_like(gain, -np.inf)
        highest = np.maximum(darkest, lowest) if free else np.full_like(gain, np.inf)
        crossing = _crossing(gain, intercept, cubes, known, q)
        if crossing is None:  # anything between the bounds
            crossing = lowest + (highest - lowest) * np.concatenate([[0], rng.random(len(gain) - 1)])
        elif known.offset is not None:
            crossing[1:] += known.offset[1] * rng.standard_normal(len(gain) - 1)
        found = _Solution(gain, intercept, crossing, lowest, highest, floor)
        read = max(float(intercept[0] + gain[0] * found.offset[0]), float(floor[0]))
        if not np.isfinite(read):
            break
    return found


def _crossing(gain: Floats, intercept: Floats, cubes: Floats | None, known: Known, q: float) -> Floats | None:
    """Offset: given, from a given read noise, or where the third moment vanishes; None if nothing tells."""
    if known.offset is not None:
        return np.full_like(gain, known.offset[0])
    if known.read_noise is not None:
        return gain * known.read_noise**2 - intercept / gain
    if cubes is None:
        return None
    w, x, xx, k, xk = cubes
    slope = q * gain**2 if known.imposed else (xk - x * k / w) / (xx - x * x / w)
    # a slope that noise has turned negative says nothing
    return np.where(slope > 0, (x - k / np.where(slope > 0, slope, 1)) / w, -np.inf)


def _ratio(cubes: Floats, solved: _Solution, known: Known) -> Estimate:
    """Slope of the third moment over gain^2."""
    w, x, xx, k, xk = cubes
    origin = x / w if known.offset is None else solved.offset
    slope = (xk - origin * k) / (xx - 2 * origin * x + origin**2 * w)
    values = slope / solved.gain**2
    return _estimate(values[0], values[1:])


def _choose(ratio: Estimate | None, known: Known) -> tuple[float, bool]:
    """Whether electrons are multiplied, and whether that is left open."""
    if known.multiplying is not None:
        return (MULTIPLIED if known.multiplying else POISSON), False
    if ratio is None or not known.imposed or not np.isfinite(ratio.low + ratio.high):
        return POISSON, ratio is None or known.imposed
    error = max(ratio.error, _SYSTEMATIC)
    undecided = max(abs(ratio.value - POISSON), abs(ratio.value - MULTIPLIED)) < 3 * error
    return (MULTIPLIED if ratio.value > (POISSON + MULTIPLIED) / 2 and not undecided else POISSON), undecided


def _estimate(value: float, *replicates: Floats) -> Estimate:
    """Interval that holds the middle 95 % of each set of replicates."""
    ends = [np.percentile(np.where(np.isfinite(r), r, np.inf), (2.5, 97.5), method="nearest") for r in replicates]
    low, high = min(value, *(e[0] for e in ends)), max(value, *(e[1] for e in ends))
    return Estimate(float(value), float(low), float(high))
