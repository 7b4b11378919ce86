"""Camera values to counts."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gap_bioimage.camera.camera import Detector, PixelMaps, check_camera_image, read_camera, write_camera
from gap_bioimage.camera.shifted_poisson import balanced_shift
from gap_bioimage.config import Camera
from gap_bioimage.errors import AxesError, ConfigError, NotPhotonCountsError

N = 400_000


def written(gain: float, offset: float, read: float, signal: float, seed: int = 0, size: int = N) -> NDArray[np.int64]:
    """Return what a camera writes for pixels that expect ``signal`` electrons."""
    rng = np.random.default_rng(seed)
    electrons = rng.poisson(signal, size) + rng.normal(0, read, size)
    return np.rint(offset + gain * electrons).astype(np.int64)


def image(values: NDArray[np.generic]) -> xr.DataArray:
    return xr.DataArray(values, dims=["t", "y", "x"][-values.ndim :])


def measured(gain: float, offset: float, read: float) -> Detector:
    """Return the camera as its dark frames tell."""
    dark = written(gain, offset, read, 0.0, seed=1)
    return Detector(Camera(gain=gain, offset=float(dark.mean()), read_noise=float(dark.std() / gain)))


# one ADU is several electrons, and one electron many ADU; the camera's own noise is at least 0.6 ADU
CAMERAS = [
    (0.2, 100.37, 3.0),
    (0.5, 0.0, 3.0),
    (1.0, 99.8, 0.75),
    (2.2, 100.37, 0.5),
    (2.2, 100.0, 1.5),
    (10.0, 100.0, 0.0),
    (30.0, 400.3, 2.0),
]


@pytest.mark.parametrize(("gain", "offset", "read"), CAMERAS)
def test_halves_of_thinned_counts_are_independent_and_what_was_added_is_subtracted(
    gain: float, offset: float, read: float
) -> None:
    detector = measured(gain, offset, read)
    rng = np.random.default_rng(2)
    for signal in (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 5.0, 20.0):
        if signal + read**2 < 1:
            continue
        adu = written(gain, offset, read, signal).reshape(400, -1)
        counts = detector.counts(adu, rng)
        for fraction in (0.2, 0.5):
            part = rng.binomial(counts, fraction).ravel()
            rest = counts.ravel() - part
            assert abs(np.corrcoef(part, rest)[0, 1]) < 0.02, (signal, fraction)
            # nor does any other function of the input tell the noise of the target
            _, where, times = np.unique(part, return_inverse=True, return_counts=True)
            means = np.bincount(where, rest) / times
            told = np.sum((times * (means - rest.mean()) ** 2)[times > 100]) - rest.var() * np.sum(times > 100)
            assert told < 0.06**2 * rest.sum(), (signal, fraction)
        if signal >= 2:
            expected = pytest.approx(signal, abs=0.06 + 0.005 * signal)
            assert counts.mean() - detector.shift() == expected
            assert detector.counts(adu).mean() - detector.background() == expected


@settings(max_examples=30)
@given(deviation=st.floats(0.0, 4.0))
def test_the_shift_balances_mean_and_variance_of_rounded_noise(deviation: float) -> None:
    shift = balanced_shift(deviation)
    k = np.arange(-60, 80)
    edges = (k[:, None] + np.array([-0.5, 0.5]) - shift) / max(deviation, 1e-9)
    chance = np.diff([[0.5 * math.erfc(-e / math.sqrt(2)) for e in row] for row in edges], axis=1)[:, 0]
    mean = float(k @ chance)
    assert float(k**2 @ chance) - mean**2 == pytest.approx(mean, abs=1e-3)


def test_without_noise_rounding_finds_the_electrons() -> None:
    detector = measured(10.0, 100.0, 0.0)
    assert detector.shift() == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(detector.counts(np.array([100, 110, 150])), [0, 1, 5])


def test_counts_are_functions_of_values_and_seed() -> None:
    detector, adu = Detector(Camera(gain=0.4, offset=10, read_noise=2)), np.arange(500).reshape(20, 25)
    spread = [detector.counts(adu, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(spread[0], spread[1])
    assert (spread[0] != spread[2]).any()
    noisy = Detector(Camera(gain=2, offset=100, read_noise=300))
    assert noisy.counts(adu, np.random.default_rng(1)).mean() == pytest.approx(300**2, rel=0.01)


def maps() -> PixelMaps:
    rng = np.random.default_rng(4)
    offset = 100 + rng.normal(0, 2, (24, 30))
    noise = np.exp(rng.normal(0, 0.5, (24, 30)))
    return PixelMaps(offset.astype(np.float32), noise.astype(np.float32))


@pytest.mark.parametrize("signal", [0.0, 0.3, 2.0])
def test_anchored_networks_see_the_moments_of_photons_and_no_zeros_where_noise_was_negative(signal: float) -> None:
    detector = measured(2.2, 100.0, 1.6).for_network(anchored=True)
    adu = written(2.2, 100.0, 1.6, signal).reshape(400, -1)
    values = detector.values(adu)
    seen = detector.seen(values).numpy().astype(float)
    assert values.dtype == np.float32
    assert values.min() < 0 <= seen.min()
    mean, variance = seen.mean(), seen.var()
    assert mean - detector.background() == pytest.approx(signal, abs=0.03)
    assert 0.9 * mean < variance < 1.02 * mean  # without what spreading and rounding add in training
    assert ((seen - mean) ** 3).mean() == pytest.approx(mean, rel=0.2)
    counts = detector.scalar.counts(adu)
    assert counts.dtype == np.int32
    whole = detector.for_network(anchored=False)
    np.testing.assert_array_equal(whole.seen(whole.values(adu)).numpy(), counts)
    if signal < 1:
        assert counts.mean() - whole.background() > signal + 0.04


def test_counts_stay_whole_where_rounding_finds_the_electrons_or_light_was_multiplied() -> None:
    adu = written(10.0, 100.0, 0.2, 2.0).reshape(400, -1)
    for camera in (Camera(gain=10, offset=100, read_noise=0.2), Camera(gain=10, offset=100, multiplying=True)):
        detector = Detector(camera).for_network(anchored=True)
        assert not detector.moved
        np.testing.assert_array_equal(detector.seen(detector.values(adu)).numpy(), detector.counts(adu))


def test_pixels_with_little_noise_are_rounded_beside_others_that_are_moved() -> None:
    noise = np.full((40, 40), 0.2, np.float32)
    noise[:, 20:] = 2.0
    maps = PixelMaps(np.full((40, 40), 100, np.float32), noise)
    detector = Detector(Camera(gain=10, offset=100, read_noise=1), maps).for_network(anchored=True)
    seen = detector.seen(detector.values(written(10.0, 100.0, 0.0, 2.0, size=1600).reshape(40, 40))).numpy()
    assert (seen[:, :20] == np.rint(seen[:, :20])).all()
    assert (seen[:, 20:] != np.rint(seen[:, 20:])).mean() > 0.9
    part = detector.crop(slice(5, 9), slice(18, 24))
    assert part.moved
    assert part.shift().shape == (4, 6)


def test_every_pixel_has_its_own_offset_and_noise_and_a_part_its_own_pixels() -> None:
    detector, rng = Detector(Camera(gain=2.2, offset=100, read_noise=1.2), maps()), np.random.default_rng(5)
    noise = rng.normal(0, 1, (3000, 24, 30)) * maps().read_noise
    adu = np.rint(maps().offset + 2.2 * (rng.poisson(6.0, noise.shape) + noise))
    pixels = detector.counts(adu, rng).mean(0) - detector.shift()
    # 3000 frames of variance 7 and more
    np.testing.assert_allclose(pixels, 6.0, atol=5 * math.sqrt((6 + 30) / 3000))
    assert pixels.mean() == pytest.approx(6.0, abs=0.02)
    assert (detector.counts(adu).mean(0) - detector.background()).mean() == pytest.approx(6.0, abs=0.02)
    # scalars leave the fixed pattern in
    assert (detector.scalar.counts(adu, rng).mean(0)).std() > 3 * pixels.std()
    part = detector.crop(slice(3, 20), slice(10, None))
    np.testing.assert_array_equal(part.counts(adu[0, 3:20, 10:]), detector.counts(adu[0])[3:20, 10:])


def test_cameras_are_written_and_read(tmp_path: Path) -> None:
    camera = Camera(gain=2.2, offset=100.25, read_noise=1.2, saturation=4095, measured={"method": "dark frames"})
    write_camera(tmp_path / "camera.yaml", Detector(camera))
    assert read_camera(tmp_path / "camera.yaml") == Detector(camera)
    assert "maps" not in yaml.safe_load((tmp_path / "camera.yaml").read_text())
    write_camera(tmp_path / "mine.yaml", Detector(camera, maps()))
    found = Detector.of(tmp_path / "mine.yaml")
    assert found.camera.maps == "mine_maps.tif"
    assert found.maps is not None
    np.testing.assert_array_equal([found.maps.offset, found.maps.read_noise], [maps().offset, maps().read_noise])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("offset: 100", "gain"),
        ("gain: 0\noffset: 1", "greater than 0"),
        ("gain: .nan\noffset: 1", "gain"),
        ("gain: 2\noffset: 1\nread_noise: -1", "read_noise"),
        ("gain: 2\noffset: 100\nsaturation: 100", "more than the offset"),
        ("gain: 2\noffset: 1\nreadnoise: 1", "did you mean 'read_noise'"),
        ("- 1", "expected a mapping"),
        ("gain: 2\noffset: 1\nmaps: gone.tif", "not in its folder"),
    ],
)
def test_what_describes_no_camera_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "camera.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_camera(tmp_path / "camera.yaml")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.random.default_rng(0).poisson(3, (40, 40)), NotPhotonCountsError),
        (np.full((40, 40), np.nan), NotPhotonCountsError),
        (np.ones((40, 40), complex), NotPhotonCountsError),
        (np.full((40, 40), 100), AxesError),
    ],
)
def test_images_of_other_cameras_are_refused(values: NDArray[np.generic], error: type[Exception]) -> None:
    detector = Detector(Camera(gain=2.2, offset=100, read_noise=1.2), maps() if error is AxesError else None)
    with pytest.raises(error):
        check_camera_image(image(values), detector, name="a.tif")


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_refused_wherever_they_are_and_never_cast(tmp_path: Path) -> None:
    values = written(2.2, 100.0, 1.2, 3.0, size=60 * 400).reshape(60, 20, 20).astype(np.float32)
    detector = measured(2.2, 100.0, 1.2)
    for value in (np.nan, np.inf):
        values[33, 4, 5] = value
        with pytest.raises(NotPhotonCountsError, match="not finite"):
            check_camera_image(image(values), detector, name="a.tif")
        assert detector.counts(values)[33, 4, 5] == (0 if np.isnan(value) else np.iinfo(np.int32).max)
    broken = maps()
    broken.offset[3, 4] = np.nan
    assert Detector(detector.camera, broken).counts(np.full((24, 30), 120))[3, 4] == 0
    write_camera(tmp_path / "camera.yaml", Detector(detector.camera, broken))
    with pytest.raises(ConfigError, match="not finite"):
        read_camera(tmp_path / "camera.yaml")


def test_saturated_pixels_and_hopelessly_dark_ones_are_warned_of() -> None:
    bright = written(2.2, 100.0, 1.2, 50.0, size=4000).reshape(2, 40, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_camera_image(image(bright), measured(2.2, 100.0, 1.2), name="a.tif")
    detector = Detector(Camera(gain=2.2, offset=100, read_noise=1.2, saturation=230))
    with pytest.warns(UserWarning, match="are saturated"):
        check_camera_image(image(bright), detector, name="a.tif")
    assert detector.saturated(bright).sum() == (bright >= 230).sum() > 0
    with pytest.warns(UserWarning, match="add saturation: 230"):  # where the camera's ceiling is not known
        check_camera_image(image(bright.clip(max=230)), measured(2.2, 100.0, 1.2), name="a.tif")
    # without a known ceiling that of the type counts
    assert Detector(Camera(gain=1, offset=0)).saturated(np.array([254, 255], np.uint8)).tolist() == [False, True]
    shared = Camera(gain=2.2, offset=100, read_noise=1.2, measured={"correlated": [0.02, None, 0.3]})
    with pytest.warns(UserWarning, match="share noise"):
        check_camera_image(image(bright), Detector(shared), name="a.tif")
    dark = written(2.2, 100.0, 0.7, 0.05, size=4000).reshape(2, 40, 50)
    with pytest.warns(UserWarning, match=r"read noise\^2 should be at least 1"):
        check_camera_image(image(dark), Detector(Camera(gain=2.2, offset=100, read_noise=0.7)), name="a.tif")
