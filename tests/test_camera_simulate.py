"""Simulated camera frames."""

from __future__ import annotations

import numpy as np
import pytest

from gap_bioimage.camera.simulate import simulate_camera
from gap_bioimage.errors import ConfigError


@pytest.mark.parametrize("em", [False, True])
def test_mean_variance_and_third_moment(em: bool) -> None:
    electrons, gain, offset, read = 12.0, 5.0, 100.0, 2.0
    flat = np.full((200, 200), electrons)
    adu = simulate_camera(flat, gain=gain, offset=offset, read_noise=read, n_frames=20, em=em, seed=1).values
    values = adu.astype(float) - offset
    second, third = (2, 6) if em else (1, 1)  # cumulants of exponential, or whole, electrons
    variance = gain**2 * (second * electrons + read**2) + 1 / 12
    assert values.mean() == pytest.approx(gain * electrons, rel=2e-3)
    assert values.var() == pytest.approx(variance, rel=6e-3)
    assert np.mean((values - values.mean()) ** 3) == pytest.approx(third * gain**3 * electrons, rel=0.05)


def test_frames_are_16_bit_clipped_and_repeatable() -> None:
    bright = np.full((20, 20), 1e6)
    assert simulate_camera(bright, saturation=4095).values.max() == 4095
    assert simulate_camera(bright * 0, offset=0, read_noise=3).values.min() == 0
    one = simulate_camera(bright * 1e-5, n_frames=3, seed=4)
    assert one.dtype == np.uint16
    assert one.dims == ("t", "y", "x")
    assert one.equals(simulate_camera(bright * 1e-5, n_frames=3, seed=4))
    assert simulate_camera(np.ones((5, 20, 20))).sizes["t"] == 5


@pytest.mark.parametrize(
    ("electrons", "numbers"),
    [
        (np.ones(5), {}),
        (-np.ones((5, 5)), {}),
        (np.full((5, 5), np.nan), {}),
        (np.ones((5, 5)), {"gain": 0}),
        (np.ones((5, 5)), {"read_noise": -1}),
        (np.ones((5, 5)), {"n_frames": 0}),
        (np.ones((5, 5)), {"offset": np.inf}),
    ],
)
def test_impossible_cameras_are_refused(electrons: np.ndarray, numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        simulate_camera(electrons, **numbers)  # type: ignore[arg-type]
