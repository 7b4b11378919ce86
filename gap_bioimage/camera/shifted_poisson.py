"""The numbers behind counts from camera values: what to add to electrons so that their variance is their mean.

Read noise, the steps of ADU and rounding to counts add variance to the electrons, clipping at zero takes some away.
All of it is worked out here from the chances of each value, exactly but for the read noise being normal.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are used

Floats = npt.NDArray[np.float64]

ROUNDING = 1 / 12  # variance of rounding to whole numbers
LOWEST = 6  # counts from 1 to below this are spread near darkness
_NEVER_DARK = 12.0  # electrons of noise from which on no count is that low, since so much is added
MODEL_FROM = 1.0  # signal + read^2, electrons, from which on counts are made like those of photons
_FINDS_ELECTRONS = 0.15  # electrons of noise below which rounding finds their number
_FINE_STEPS = 8  # ADU per electron from which on the steps of ADU are no matter


@functools.lru_cache(maxsize=1024)
def balanced_shift(deviation: float) -> float:
    """Return the shift for which mean and variance of ``rint(N(shift, deviation^2))`` are equal.

    That is ``deviation^2 + 1/12`` unless noise is so low that rounding finds the electrons, and then 0.
    """
    guess = deviation**2 + ROUNDING
    if not _FINDS_ELECTRONS <= deviation <= 1:
        return guess if deviation > 1 else 0.0

    def excess(shift: float) -> float:
        k = np.arange(-10, 14)
        chances = np.diff(scipy.special.ndtr((k + 0.5 - shift) / deviation), prepend=0.0)
        mean = float(k @ chances)
        return float(k**2 @ chances) - mean**2 - mean

    return float(scipy.optimize.brentq(excess, 0.0, guess + 0.5))


@functools.lru_cache(maxsize=64)
def camera_shift(gain: float, phase: float, noise: float, deviation: float) -> float:
    """Return the shift for which counts have as much variance as mean beyond the electrons'.

    It is ``balanced_shift(deviation)``, but for cameras with about as many ADU as electrons: the steps of ADU and of
    counts then meet in the same way everywhere, and rounding adds less or more than 1/12. ``phase`` is the offset's
    fraction of an ADU, ``noise`` the read noise without digitisation, ``deviation`` with all that is added; electrons.
    """
    guess = balanced_shift(deviation)
    if gain > _FINE_STEPS or deviation < _FINDS_ELECTRONS:
        return guess
    adu, electrons, chances = _adu_chances(gain, phase, noise, 24)

    def excess(shift: float) -> float:
        x = (adu[:, None] + np.array([-0.5, 0.5]) - phase) / gain + shift
        n = np.rint(x)  # whose integral from 0 and that of its square are taken between the edges of each ADU
        integrals = n * x - n**2 / 2, (n - 1) * n * (2 * n - 1) / 6 + n**2 * (x - n + 0.5)
        first, second = (np.diff(integral, axis=1)[:, 0] * gain for integral in integrals)
        mean = first @ chances
        return float(np.mean(second @ chances - mean**2) - np.mean(mean - electrons))

    tried = guess + np.linspace(-0.35, 0.35, 29)
    found = np.array([excess(float(shift)) for shift in tried])
    changes = np.flatnonzero(np.sign(found[:-1]) != np.sign(found[1:]))
    if not changes.size:
        return float(tried[np.argmin(np.abs(found))])
    nearest = min(changes, key=lambda i: abs(tried[i] - guess))
    return float(scipy.optimize.brentq(excess, tried[nearest], tried[nearest + 1]))


@functools.lru_cache(maxsize=64)
def mean_of_counts(gain: float, phase: float, noise: float, shift: float) -> float:
    """Return the mean of counts made without added noise, less the electrons: ``Detector.background``.

    Averaged over electron numbers, because the steps of ADU and those of counts meet differently at each.
    """
    adu, electrons, chances = _adu_chances(gain, phase, noise, 64)
    return float(np.mean(np.rint((adu - phase) / gain + shift) @ chances - electrons))


def _adu_chances(gain: float, phase: float, noise: float, n_electrons: int) -> tuple[Floats, Floats, Floats]:
    """Return values above the offset, electron numbers, and the chances of each value for each number."""
    reach = 6 * noise + 1 + 2 / gain
    electrons = np.arange(math.ceil(reach), math.ceil(reach) + n_electrons, dtype=np.float64)
    adu = np.arange(0, math.ceil(phase + gain * (electrons[-1] + reach)) + 1, dtype=np.float64)
    edges = (adu[:, None] + 0.5 - phase) / gain - electrons
    below = scipy.special.ndtr(edges / noise) if noise > 1e-6 else (edges >= 0).astype(float)
    return adu, electrons, np.diff(below, axis=0, prepend=0.0)


@functools.lru_cache(maxsize=64)
def spread_of_lowest(deviation: float) -> tuple[float, ...]:
    """Return the chances with which counts 1, 2, ... are to be moved up, and as often down, by one.

    Read noise takes dark pixels below zero, where they are clipped, and the variance falls below the mean. Moving
    count k by one either way with the chances c_k adds the variance ``sum 2 c_k P(k)``; the c_k are fitted so that
    variance and mean agree for all signals with signal + deviation^2 of at least 1.
    """
    if deviation > _NEVER_DARK:
        return (0.0,) * (LOWEST - 1)
    shift = balanced_shift(deviation)
    signals = max(0.0, MODEL_FROM - deviation**2) + np.array([0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6])
    highest = int(signals[-1] + shift + 8 * math.sqrt(signals[-1] + shift)) + 2
    k = np.arange(highest + 1)
    below = scipy.special.ndtr((k[:, None] + 0.5 - k - shift) / max(deviation, 1e-6))  # P(count <= k | electrons)
    weights = np.exp(scipy.special.xlogy(k[:, None], signals) - signals - scipy.special.gammaln(k + 1)[:, None])
    chances = np.diff(below, axis=0, prepend=0.0) @ weights  # (count, signal)
    mean = k @ chances
    missing = mean - (k**2 @ chances - mean**2)
    fit = scipy.optimize.lsq_linear(2 * chances[1:LOWEST].T / mean[:, None], missing / mean, bounds=(0, 0.5))
    return tuple(float(c) if c > 1e-4 else 0.0 for c in fit.x)
