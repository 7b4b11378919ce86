"""Frames of calibrations: dark ones, and those that repeat others, were averaged or have no noise."""

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage
from test_camera_calibration import DARK, SIZE, camera, scene, tyx

from gap_bioimage.camera.calibration import calibrate
from gap_bioimage.errors import NotPhotonCountsError


@pytest.mark.parametrize(("count", "hot"), [(1, False), (5, False), (20, False), (20, True)])
def test_dark_frames_give_offset_read_noise_and_maps(count: int, hot: bool) -> None:
    dark = DARK.isel(t=slice(0, count)).copy(deep=True).rename(t="z" if hot else "t")  # in the dark planes are frames
    if hot:
        dark[:, 5::20, 7::20] = 5000
    found = calibrate(camera(), dark=dark)
    assert found.offset_from == "dark frames"
    assert found.offset.value == pytest.approx(100, abs=0.1)
    assert found.gain.value == pytest.approx(2.2, rel=0.03)
    assert found.read_noise.value == pytest.approx(1.6, abs=0.04)
    assert any(warning.startswith(f"{count} dark frames") for warning in found.warnings) == (count < 16)
    assert (found.detector.maps is None) == (count == 1)


@pytest.mark.parametrize("count", [1, 20])
def test_dark_frames_of_quiet_cameras_tell_the_offset_up_to_rounding(count: int) -> None:
    found = calibrate(camera(read_noise=0.0, n_frames=12), dark=0 * DARK[:count] + 100)
    assert found.gain.value == pytest.approx(2.2, rel=0.02)
    assert found.offset.value == 100
    assert 0.4 < found.offset.high - 100 < 0.7


def test_maps_follow_pixels_that_differ() -> None:
    rng = np.random.default_rng(0)
    level = np.rint(rng.normal(0, 5, SIZE))
    loud = np.where(rng.random(SIZE) < 0.05, 4.0, 1.0)

    def record(electrons: np.ndarray) -> xr.DataArray:
        noise = 1.6 * loud * rng.standard_normal((40, *SIZE))
        return tyx(np.rint(100 + level + 2.2 * (rng.poisson(electrons, (40, *SIZE)) + noise)).astype(np.uint16))

    found = calibrate(record(scene().values), dark=record(np.zeros(SIZE)))
    maps = found.detector.maps
    assert maps is not None
    assert np.corrcoef(maps.offset.ravel(), level.ravel())[0, 1] > 0.98
    assert maps.read_noise[loud > 1].mean() == pytest.approx(6.4, rel=0.1)
    assert maps.read_noise[loud == 1].mean() == pytest.approx(1.6, rel=0.1)


def test_frames_that_repeat_others_or_have_no_noise_are_left_out() -> None:
    frames = camera(n_frames=20)
    stamped = frames.isel(t=np.repeat(np.arange(20), 2))
    twice = calibrate(stamped)
    assert (twice.gain, twice.frames) == (calibrate(frames).gain, 20)
    assert twice.warnings[0].startswith("frames 0 and 1 are equal")
    stamped[:, 0, :14] = np.arange(40)[:, None]  # with its number, as some cameras do
    assert calibrate(stamped).frames == 20
    half = calibrate(frames.isel(t=[*[0] * 10, *range(10, 20)]))
    assert (half.frames, half.gain.value) == (11, pytest.approx(2.2, rel=0.05))
    same = calibrate(frames.isel(t=[3] * 8))
    assert (same.method, same.frames, same.gain.low <= 2.2 <= same.gain.high) == ("one image", 1, True)

    whole = calibrate(frames.isel(t=slice(2, None)))
    frames[{"t": [0, 1]}] = 100
    for part in (slice(None), slice(20, None)):  # of a frame, that the camera dropped
        frames[{"t": [0, 1], "y": part}] = 100
        for found in (calibrate(frames), calibrate(frames.transpose("y", "x", "t"))):
            assert (found.frames, found.gain, found.offset) == (18, whole.gain, whole.offset)
        frames[{"t": [0, 1]}] = frames[{"t": [2, 3]}].values + 1


def test_frames_that_were_averaged_or_stretched_are_told() -> None:
    stretched = (1.7 * camera().values).astype(np.uint16)
    assert any("misses" in warning for warning in calibrate(tyx(stretched)).warnings)
    values = camera(n_frames=60, gain=20.0).values.astype(float)
    mixed = np.rint(0.8 * values[1:] + 0.2 * values[:-1])
    assert any("correlated" in warning for warning in calibrate(tyx(mixed)).warnings)
    with pytest.raises(NotPhotonCountsError):
        calibrate(tyx(ndimage.uniform_filter1d(values, 5, axis=0)[5:-5]))
