"""Budgets and room within the trained range, per image."""

from __future__ import annotations

import warnings

import pytest
import torch

from gap_bioimage.errors import TrainedRangeError
from gap_bioimage.inference.trained_range import check_room, photons_to_stop_at


def flat(value: float, size: int = 63, channels: int = 1) -> torch.Tensor:
    return torch.full((1, channels, size, size), value)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("value", "brightest", "gain"), [(1.0, 1000.0, 100.0), (1.0, 8.0, 8.0), (9.0, 8.0, 1.0)])
def test_the_default_is_20_db_more_within_the_range(value: float, brightest: float, gain: float, channels: int) -> None:
    item = flat(value, channels=channels)
    stop = photons_to_stop_at(item, None, brightest, from_nothing=False)
    assert float(stop) == pytest.approx(gain * float(item.sum()), rel=1e-5)


def test_the_brightest_window_counts() -> None:
    item = torch.ones(1, 1, 189, 63)
    item[:, :, 63:126] = 4
    assert float(photons_to_stop_at(item, None, 8.0, from_nothing=False)) == pytest.approx(2 * float(item.sum()))


def test_generation_may_fill_the_image_to_the_brightest() -> None:
    assert float(photons_to_stop_at(flat(0.0), None, 8.0, from_nothing=True)) == 8 * 63 * 63
    assert float(photons_to_stop_at(flat(0.0), 0.0, 8.0, from_nothing=True)) == pytest.approx(63 * 63)
    assert float(photons_to_stop_at(flat(0.0), None, 8.0, from_nothing=False)) == 0


def test_a_wish_is_followed_within_the_range() -> None:
    assert float(photons_to_stop_at(flat(1.0), 10.0, 11.0, from_nothing=False)) == pytest.approx(10 * 63 * 63)
    with pytest.raises(TrainedRangeError, match=r"stop_db is 10.5.*up to 10\.4 dB only; give at most that"):
        photons_to_stop_at(flat(1.0), 10.5, 11.0, from_nothing=False)
    with pytest.raises(TrainedRangeError, match=r"already has 0\.0 dB"):
        photons_to_stop_at(flat(1.0), -1.0, 11.0, from_nothing=False)


def test_room_is_that_of_the_best_and_the_worst_image() -> None:
    bright, dark = flat(9.0), flat(1.0)
    stops = [photons_to_stop_at(item, None, 10.0, from_nothing=False) for item in (bright, dark)]
    with pytest.warns(UserWarning, match=r"9\.5 dB .* up to 10\.0 dB: photons grow by 0\.5 dB only.* 10% of the"):
        check_room([bright, dark], stops, 10.0)
    with pytest.raises(TrainedRangeError, match="no room"):
        check_room([bright], [stops[0] * 0 + bright.sum()], 10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_room([dark, flat(0.0)], [stops[1], stops[1] * 0], 10.0)
        check_room([flat(0.0)], [stops[1]], 10.0)
