"""What a cut changes, against the distance from it."""

import math

import numpy as np
import pytest

from gap_bioimage.seams import EdgeProfile


def test_a_profile_is_the_difference_against_the_distance_from_the_cut() -> None:
    whole = np.ones((2, 10))
    cut = whole + np.array([4, 2, 1, 0, 0, 0, 0, 0, 2, 4])
    profile = EdgeProfile.of(whole, cut, axis=1)
    assert profile.squares.tolist() == [16, 4, 0.5, 0, 0]
    assert profile.seam(1, 2) == pytest.approx(math.sqrt(2.25))
    assert (profile.seam(3, 2), profile.seam(5, 2)) == (0, math.inf)
    assert (profile.needed_halo(0.1), profile.needed_halo(0.1, step_px=2)) == (3, 4)
    broken = EdgeProfile.of(whole, np.where(cut == 5, np.nan, cut), axis=1)
    assert (broken.seam(0, 1), broken.needed_halo(0.1)) == (math.inf, 3)
