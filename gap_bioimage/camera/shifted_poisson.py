"""The shift added to a camera's electrons to make their variance equal to their mean.

Read noise, digitisation and rounding to counts add variance to the electrons. The shift follows from the probability of
each value, exactly if read noise is normal. ``like_photons`` (filters.py) corrects the rest of the distribution.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
import scipy  # its subpackages are imported on first use

Floats = npt.NDArray[np.float64]

ROUNDING = 1 / 12  # variance of rounding to whole numbers
MODEL_FROM = 1.0  # signal + read noise^2 (electrons) from which on the shifted-Poisson model holds
_FINDS_ELECTRONS = 0.15  # noise (electrons) below which rounding recovers the number of electrons
_FINE_STEPS = 8  # gain (ADU per electron) above which digitisation is negligible


@functools.lru_cache(maxsize=1024)
def balanced_shift(deviation: float) -> float:
    """Return the shift for which mean and variance of ``rint(N(shift, deviation^2))`` are equal.

    It is ``deviation^2 + 1/12``, or 0 if the noise is so low that rounding recovers the electrons.
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
    """Return deviations from 0 to 1 and their balanced shifts, for interpolation."""
    knots = np.linspace(0.0, 1.0, 200)
    return knots, np.array([balanced_shift(float(knot)) for knot in knots])


@functools.lru_cache(maxsize=64)
def camera_shift(gain: float, phase: float, noise: float, deviation: float) -> float:
    """Return the shift for which counts exceed the electrons by as much in variance as in mean.

    It is ``balanced_shift(deviation)``, except for cameras with about as many ADU as electrons: ADU and counts are then
    in a fixed relation, and rounding adds less or more than 1/12. ``phase`` is the fractional part of the offset (ADU),
    ``noise`` the read noise without digitisation, and ``deviation`` that of all added noise (electrons).
    """
    guess = balanced_shift(deviation)
    if gain > _FINE_STEPS or deviation < _FINDS_ELECTRONS:
        return guess
    adu, electrons, chances = _adu_chances(gain, phase, noise, 24)

    def excess(shift: float) -> float:
        x = (adu[:, None] + np.array([-0.5, 0.5]) - phase) / gain + shift
        n = np.rint(x)  # the count; it and its square are integrated between the edges of each ADU
        integrals = n * x - n**2 / 2, (n - 1) * n * (2 * n - 1) / 6 + n**2 * (x - n + 0.5)
        first, second = (np.diff(integral, axis=1)[:, 0] * gain for integral in integrals)
        mean = first @ chances
        return float(np.mean(second @ chances - mean**2) - np.mean(mean - electrons))

    shifts = guess + np.linspace(-0.35, 0.35, 29)
    values = np.array([excess(float(shift)) for shift in shifts])
    changes = np.flatnonzero(np.sign(values[:-1]) != np.sign(values[1:]))
    if not changes.size:
        return float(shifts[np.argmin(np.abs(values))])
    nearest = min(changes, key=lambda i: abs(shifts[i] - guess))
    return float(scipy.optimize.brentq(excess, shifts[nearest], shifts[nearest + 1]))


@functools.lru_cache(maxsize=64)
def mean_of_counts(gain: float, phase: float, noise: float, shift: float) -> float:
    """Return the mean of counts without the noise added in training, minus the electrons: ``Detector.background``.

    It is averaged over electron numbers, because rounding to ADU and then to counts differs from one to the next.
    """
    adu, electrons, chances = _adu_chances(gain, phase, noise, 64)
    return float(np.mean(np.rint((adu - phase) / gain + shift) @ chances - electrons))


def _adu_chances(gain: float, phase: float, noise: float, n_electrons: int) -> tuple[Floats, Floats, Floats]:
    """Return ADU above the offset, electron numbers, and the probabilities (ADU, electrons)."""
    reach = 6 * noise + 1 + 2 / gain
    electrons = np.arange(math.ceil(reach), math.ceil(reach) + n_electrons, dtype=np.float64)
    adu = np.arange(0, math.ceil(phase + gain * (electrons[-1] + reach)) + 1, dtype=np.float64)
    edges = (adu[:, None] + 0.5 - phase) / gain - electrons
    below = scipy.special.ndtr(edges / noise) if noise > 1e-6 else (edges >= 0).astype(float)
    return adu, electrons, np.diff(below, axis=0, prepend=0.0)
