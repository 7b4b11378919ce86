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
_ELECTRONS = 64  # numbers of electrons averaged over


def balanced_shift(deviation: npt.ArrayLike) -> Floats:
    """Return the shift for which mean and variance of ``rint(N(shift, deviation^2))`` are equal.

    It is ``deviation^2 + 1/12``, or 0 if the noise is so low that rounding recovers the electrons.
    """
    deviation = np.asarray(deviation, np.float64)
    shift = np.where(deviation > 1, deviation**2 + ROUNDING, np.interp(deviation, *_quiet_shifts()))
    return np.where(deviation < _FINDS_ELECTRONS, 0.0, shift)


@functools.cache
def _quiet_shifts() -> tuple[Floats, Floats]:
    """Return deviations up to 1 and their balanced shifts, for interpolation."""
    k, deviations = np.arange(-10, 14), np.linspace(_FINDS_ELECTRONS, 1.0, 200)

    def excess(shift: float, deviation: float) -> float:
        chances = np.diff(scipy.special.ndtr((k + 0.5 - shift) / deviation), prepend=0.0)
        mean = float(k @ chances)
        return float(k**2 @ chances) - mean**2 - mean

    shifts = [scipy.optimize.brentq(excess, 0.0, d**2 + ROUNDING + 0.5, args=(d,)) for d in deviations]
    return deviations, np.array(shifts)


@functools.lru_cache(maxsize=64)
def mean_of_counts(gain: float, phase: float, noise: float, shift: float) -> float:
    """Return the mean of counts without the noise added in training, minus the electrons: ``Detector.background``.

    It is averaged over electron numbers, because rounding to ADU and then to counts differs from one to the next.
    ``phase`` is the fractional part of the offset (ADU), ``noise`` the read noise without digitisation (electrons).
    """
    reach = 6 * noise + 1 + 2 / gain
    electrons = np.arange(math.ceil(reach), math.ceil(reach) + _ELECTRONS, dtype=np.float64)
    adu = np.arange(0, math.ceil(phase + gain * (electrons[-1] + reach)) + 1, dtype=np.float64)
    edges = (adu[:, None] + 0.5 - phase) / gain - electrons
    below = scipy.special.ndtr(edges / noise) if noise > 1e-6 else (edges >= 0).astype(float)
    chances = np.diff(below, axis=0, prepend=0.0)
    return float(np.mean(np.rint((adu - phase) / gain + shift) @ chances - electrons))
