"""The numbers behind counts from camera values: what to add to electrons so that their variance is their mean.

Read noise, the steps of ADU and rounding to counts add variance to the electrons. How much is worked out here from the
chances of each value, exactly but for the read noise being normal. ``like_photons`` (filters.py) does the rest.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported when they are used

Floats = npt.NDArray[np.float64]

ROUNDING = 1 / 12  # variance of rounding to whole numbers
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


@functools.cache
def quiet_shifts() -> tuple[Floats, Floats]:
    """Return deviations up to 1 and their balanced shifts, a smooth curve."""
    knots = np.linspace(0.0, 1.0, 200)
    return knots, np.array([balanced_shift(float(knot)) for knot in knots])


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
