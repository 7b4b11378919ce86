"""Calibration of cameras against simulated ones, whose numbers are known."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import gap_bioimage
from benchmarks.cameras import simulate_camera
from gap_bioimage.camera.calibration import Calibration, calibrate
from gap_bioimage.camera.camera import check_camera_image, read_camera
from gap_bioimage.camera.photon_transfer import Estimate
from gap_bioimage.camera.plots import plot_calibration
from gap_bioimage.errors import AxesError, ConfigError, GapWarning, NotPhotonCountsError
from gap_bioimage.pictures import save_figure
from gap_bioimage.simulation import simulate_truth

SIZE = (96, 96)
CAMERAS = [(2.2, 100.0, 1.6, False), (0.5, 500.0, 3.0, False), (30.0, 500.0, 0.0, False), (10.0, 100.0, 1.0, True)]


def scene(electrons: float = 30.0, seed: int = 0, size: tuple[int, int] = SIZE) -> xr.DataArray:
    return simulate_truth(2, size, seed) * electrons


def camera(electrons: float = 30.0, seed: int = 0, **numbers: Any) -> xr.DataArray:
    return simulate_camera(scene(electrons, seed), seed=seed, **numbers)


def tyx(values: Any) -> xr.DataArray:
    return xr.DataArray(values, dims=list("tyx"))


@pytest.fixture(scope="module")
def plain() -> xr.DataArray:
    """24 frames of gain 2.2, offset 100, read noise 1.6."""
    return camera()


DARK = simulate_camera(scene() * 0, n_frames=20, seed=9)


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize("share", [0, 2])
def test_parts_without_light_are_no_misfit_of_the_line(share: int) -> None:
    light = scene(10.0, size=(192, 192)).values.copy()
    light[:, : share * 48] = 0
    film, dark = simulate_camera(light, n_frames=20), simulate_camera(0 * light, n_frames=20, seed=9)
    found = calibrate(film, dark=None if share else dark)
    assert found.goodness.chi_square < 2
    assert len(found.goodness.mean) >= 8
    assert found.gain.value == pytest.approx(2.2, rel=0.02)


@pytest.mark.parametrize("electrons", [1.0, 3.0])
def test_cameras_whose_offset_was_subtracted_are_warned_of_and_counts_are_not(electrons: float) -> None:
    film = camera(electrons, n_frames=30)
    cut = film.copy(data=np.maximum(film.values.astype(int) - 100, 0).astype(np.uint16))
    assert any("clipped at zero" in told for told in calibrate(cut).warnings)
    counts = np.random.default_rng(0).poisson(scene(electrons), (30, *SIZE))
    assert calibrate(tyx(counts)).warnings == ()


@pytest.mark.parametrize("electrons", [100.0, 1000.0])
def test_one_image_of_sharp_structure_tells_no_gain(electrons: float) -> None:
    y, x = np.mgrid[:192, :192]
    sharp = np.full((192, 192), 0.2)
    for top, left, tall, wide, bright in np.random.default_rng(5).uniform(
        [0, 0, 3, 3, 1], [192, 192, 12, 12, 4], (24, 5)
    ):
        sharp[((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < 1] += bright
    film = simulate_camera(sharp * electrons, n_frames=20)
    with pytest.raises(NotPhotonCountsError):
        calibrate(film.isel(t=0))
    assert calibrate(film).gain.value == pytest.approx(2.2, rel=0.05)


def truths(gain: float, offset: float, read: float, em: bool) -> tuple[float, float, float]:
    factor = 2 if em else 1
    return factor * gain, offset, float(np.sqrt((read / factor) ** 2 + (gain < 0.9) / 12 / (factor * gain) ** 2))


@pytest.mark.parametrize(("gain", "offset", "read", "em"), CAMERAS)
def test_the_numbers_of_every_camera(gain: float, offset: float, read: float, em: bool) -> None:
    found = calibrate(camera(20.0, 1, gain=gain, offset=offset, read_noise=read, em=em))
    assert found.gain.value == pytest.approx(truths(gain, offset, read, em)[0], rel=0.03)
    assert abs(found.offset.value - offset) < 1 or holds(found.offset, offset)
    assert found.detector.camera.multiplying == em
    assert found.goodness.chi_square < 2.5


@pytest.mark.parametrize(
    ("numbers", "cameras"),
    [pytest.param(CAMERAS[0], 24), *(pytest.param(numbers, 60, marks=pytest.mark.slow) for numbers in CAMERAS)],
)
def test_intervals_hold_the_truth(numbers: tuple[float, float, float, bool], cameras: int) -> None:
    (gain, offset, read, em), held = numbers, []
    for seed in range(cameras):
        found = calibrate(camera(20.0, seed, gain=gain, offset=offset, read_noise=read, em=em), multiplying=em)
        held.append(list(map(holds, (found.gain, found.offset, found.read_noise), truths(*numbers))))
    assert np.mean(held, axis=0).min() >= 0.88


@pytest.mark.parametrize("seed", range(3))
def test_many_dark_blocks_do_not_hide_the_line(seed: int) -> None:
    dark = simulate_camera(0 * scene(size=(128, 128)), n_frames=100, seed=seed + 50)
    found = calibrate(simulate_camera(scene(60.0, seed, (128, 128)), seed=seed, n_frames=16), dark=dark)
    assert found.gain.value == pytest.approx(2.2, rel=0.02)


@pytest.mark.parametrize("frames", [2, 20])
def test_exposures_may_be_unequal(frames: int) -> None:
    light = scene(80.0, 1, (128, 128)).values * np.array([1, 0.3] * (frames // 2))[:, None, None]
    assert calibrate(simulate_camera(light)).gain.value == pytest.approx(2.2, rel=0.03 if frames > 2 else 0.06)


@pytest.mark.parametrize("seed", range(3))
def test_fields_that_move_as_a_whole_are_told(seed: int) -> None:
    light, rng = ndimage.gaussian_filter(scene(200.0, seed).values, 4), np.random.default_rng(seed)
    moved = np.stack([ndimage.shift(light, rng.normal(0, 0.4, 2), mode="nearest") for _ in range(20)])
    assert any("moves" in told for told in calibrate(simulate_camera(np.maximum(moved, 0))).warnings)


def test_given_numbers_are_kept(plain: xr.DataArray) -> None:
    offset = calibrate(plain, offset=100)
    assert offset.offset == Estimate(100, 100, 100)
    assert offset.read_noise.value == pytest.approx(1.6, abs=0.1)
    low = calibrate(plain, offset=90)
    assert (low.read_noise.high, len(low.warnings), offset.warnings) == (0, 1, ())
    noise = calibrate(plain, read_noise=1.6)
    assert noise.read_noise.value == pytest.approx(1.6)
    assert holds(noise.offset, 100)
    with pytest.raises(NotPhotonCountsError, match="read noise"):  # its offset is above the whole image
        calibrate(plain, read_noise=50)


def rolling() -> xr.DataArray:
    light = scene(20.0, 2, (160, 160)).values
    frames = np.stack([light] * 24)
    for i, frame in enumerate(frames):
        frame[:, :40] = np.roll(light[:, :40], 3 * i, axis=0)
    return simulate_camera(frames)


def squares() -> np.ndarray:
    """Sharp edges, as no optics leave them."""
    return np.asarray(np.kron(np.random.default_rng(0).random((16, 16)) < 0.3, np.ones((6, 6)))) * 60.0 + 2


def moving() -> xr.DataArray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    spots = [300 * np.exp(-((y - 40 - 5 * np.sin(t)) ** 2 + (x - 2 * t - 20) ** 2) / 8) for t in range(30)]
    return simulate_camera(scene().values + spots, seed=1)


def torn(rows: slice) -> xr.DataArray:
    """Return frames of which every other one has some rows from the next exposure."""
    frames = camera()
    frames[{"t": slice(0, None, 2), "y": rows}] = frames[{"t": slice(1, None, 2), "y": rows}].values
    return frames


FLICKER = np.random.default_rng(0).uniform(0.7, 1.2, (24, 1, 1))
FILMS: dict[str, Any] = {
    "saturated": (lambda: camera(saturation=300, n_frames=40), "saturated"),
    "clipped": (lambda: camera(60.0, offset=0, read_noise=3), "clipped"),
    "one image": (lambda: camera().isel(t=0), "one image"),
    "two frames": (lambda: camera().isel(t=slice(0, 2)), ""),
    "moving": (moving, ""),
    "rolling": (rolling, "moves or flickers"),
    "bleached": (lambda: simulate_camera(scene(40.0).values * np.exp(-np.arange(24) / 60)[:, None, None]), ""),
    "flickering": (lambda: camera() + np.random.default_rng(0).integers(0, 4, (24, 1, 1)).astype(np.uint16), ""),
    "light that flickers": (lambda: simulate_camera(scene(40.0).values * FLICKER), ""),
    "torn": (lambda: torn(slice(40, None)), "torn"),
    "interlaced": (lambda: torn(slice(None, None, 2)), "torn"),
    "planes with frames": (lambda: xr.concat([camera(30.0, seed, n_frames=6) for seed in range(3)], "z"), ""),
    "two sharp frames": (lambda: simulate_camera(squares(), n_frames=2), ""),
    "planes": (lambda: xr.concat([camera(30.0, seed, n_frames=1).isel(t=0) for seed in range(6)], "z"), "one image"),
}


@pytest.mark.parametrize("name", FILMS)
def test_the_gain_is_right_and_what_may_be_wrong_is_said(name: str) -> None:
    make, word = FILMS[name]
    found = calibrate(make())
    assert found.gain.value == pytest.approx(2.2, rel=0.03) or (found.frames < 3 and holds(found.gain, 2.2))
    assert holds(found.offset, 100) or name in ("clipped", "flickering", "moving")
    assert any(word in warning for warning in found.warnings) or not word
    assert (found.detector.camera.saturation == 300) == (name == "saturated")
    assert not found.detector.camera.multiplying


def test_a_bent_curve_is_said() -> None:
    signal = camera(60.0, seed=4, n_frames=40) - 100.0
    found = calibrate(100 + signal / (1 + signal / 2000))
    assert found.goodness.bends(0.05) == -1
    assert any("falls short" in warning for warning in found.warnings)


@settings(max_examples=4, deadline=None)
@given(added=st.integers(-500, 5000), factor=st.integers(2, 9))
def test_added_adu_move_the_offset_and_factors_scale(added: int, factor: int) -> None:
    images = camera(20.0, 2, n_frames=8).astype(np.float64)
    plain, moved, scaled = (calibrate(i, multiplying=False) for i in (images, images + added, images * factor))
    assert moved.gain.value == pytest.approx(plain.gain.value, rel=1e-6)
    assert moved.offset.value == pytest.approx(plain.offset.value + added, abs=1e-3)
    assert moved.read_noise.value == pytest.approx(plain.read_noise.value, rel=1e-4)
    assert scaled.gain.value == pytest.approx(factor * plain.gain.value, rel=1e-4)
    assert scaled.offset.value == pytest.approx(factor * plain.offset.value, rel=1e-3)


def test_smoothed_noise_is_said(plain: xr.DataArray) -> None:
    smooth = ndimage.uniform_filter1d(plain.values.astype(float), 2, axis=1)
    found = calibrate(tyx(np.rint(smooth).astype(np.uint16)))
    assert found.correlation == (pytest.approx(0.5, abs=0.05), pytest.approx(0, abs=0.05))
    assert "correlated" in found.warnings[0]
    assert not any("moves" in warning for warning in found.warnings)  # correlated noise looks the same
    assert holds(found.offset, 100)


@pytest.mark.parametrize("frames", [1, 24])
def test_counts_need_no_camera(frames: int) -> None:
    found = calibrate(tyx(np.random.default_rng(0).poisson(scene(3.0).values, (frames, *SIZE)).astype(np.uint16)))
    assert found.counts
    assert "no camera is needed" in found.message


def flat_noise() -> xr.DataArray:
    light = 200 + 100 * scene(1.0).values
    return tyx(np.random.default_rng(0).normal(light, 400 / light**0.5, (20, *SIZE)))


BITS = (np.random.default_rng(0).random((8, 64, 64)) < 0.3).astype(np.uint8) * 255
BAD: dict[str, tuple[Any, dict[str, Any], type[Exception]]] = {
    "one pixel": (tyx(np.zeros((4, 1, 1), np.uint16)), {}, AxesError),
    "constant": (tyx(np.full((4, 32, 32), 100, np.uint16)), {}, NotPhotonCountsError),
    "NaN": (tyx(np.full((4, 32, 32), np.nan)), {}, NotPhotonCountsError),
    "complex": (tyx(np.zeros((4, 32, 32), complex)), {}, NotPhotonCountsError),
    "one-bit": (tyx(BITS), {}, NotPhotonCountsError),
    "smoothed": (tyx(ndimage.gaussian_filter(camera().values.astype(float), (0, 1.5, 1.5))), {}, NotPhotonCountsError),
    "noise that does not grow": (flat_noise(), {}, NotPhotonCountsError),
    "channels": (xr.concat([camera(), camera()], "c"), {}, AxesError),
    "both": (camera(), {"offset": 100, "read_noise": 1}, ConfigError),
    "read noise below 0": (camera(), {"read_noise": -1}, ConfigError),
    "infinite": (camera(), {"offset": np.inf}, ConfigError),
    "all moves": (simulate_camera(np.stack([np.roll(scene(), 3 * t, 1) for t in range(20)])), {}, NotPhotonCountsError),
    "all saturated": (camera(), {"saturation": 100}, NotPhotonCountsError),
    "other size": (camera(), {"dark": DARK.isel(x=slice(0, 50))}, AxesError),
    "exchanged": (DARK, {"dark": camera()}, NotPhotonCountsError),
    "lit": (camera(), {"dark": camera(n_frames=9)}, NotPhotonCountsError),
    **{f"dark {a}": (camera(), {"dark": DARK.astype(int) + a}, NotPhotonCountsError) for a in (40, -10, -40, -140)},
    "no frames": (camera().isel(t=slice(0)), {}, AxesError),
    **{f"offset {offset}": (camera(), {"offset": offset}, NotPhotonCountsError) for offset in (0, 80, 130)},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str) -> None:
    images, given, error = BAD[name]
    with pytest.raises(error) as caught:
        calibrate(images, **given)
    assert not re.search(r"\n|--", str(caught.value))


def test_a_flat_scene_needs_dark_frames() -> None:
    flat = simulate_camera(scene() * 0 + 30, n_frames=24, seed=1)
    for known, advised in (({}, True), ({"read_noise": 1.6}, False)):
        with pytest.raises(NotPhotonCountsError) as caught:
            calibrate(flat, **known)
        assert ("dark frames" in str(caught.value)) is advised
    assert calibrate(flat, dark=DARK).gain.value == pytest.approx(2.2, rel=0.03)


def test_report_is_json_and_plot_is_drawn(plain: xr.DataArray, tmp_path: Path) -> None:
    found: Calibration = gap_bioimage.calibrate(plain, seed=1)
    report = json.loads(json.dumps(found.to_dict()))
    assert report == calibrate(plain, seed=1).to_dict()
    assert found.gain != calibrate(plain, seed=2).gain
    assert report["gain"][0] == pytest.approx(found.gain.value, rel=1e-5)
    assert len(report["photon_transfer"]) == len(found.goodness.mean)
    for scale, drawn in (("log", found), ("log", calibrate(plain + 5000)), ("linear", calibrate(plain, dark=DARK))):
        save_figure(figure := plot_calibration(drawn), tmp_path / "plot.png")
        assert figure.axes[0].get_xscale() == scale
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_telomeres_were_resampled_and_their_own_camera_takes_them(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "telomeres_camera_tyx.tif"
    found = calibrate(path)
    assert found.correlation == (pytest.approx(0.46, abs=0.02), pytest.approx(0.13, abs=0.03))
    assert "smoothed or resampled" in found.warnings[0]
    assert 0.3 < found.gain.low < found.gain.high < 0.6
    assert 96 < found.offset.low < found.offset.high < 102
    found.save(tmp_path / "camera.yaml")
    detector, movie = read_camera(tmp_path / "camera.yaml"), gap_bioimage.read_photons(path, check=False)
    for image in (movie, movie.isel(t=0)):
        with pytest.warns(GapWarning) as told:
            check_camera_image(image, detector, name="movie")
        assert len(told) == 1 and "share noise (0.45)" in str(told[0].message)


def test_hazelnut_holds_counts_with_dead_time(shared_data: Path) -> None:
    frames = [gap_bioimage.read_photons(shared_data / f"hazelnut_photons_t{t}_zyx.tif") for t in (0, 1)]
    found = calibrate(xr.concat(frames, "t"))
    assert found.counts
    assert found.gain.value == pytest.approx(1, abs=0.05)
    assert found.goodness.bends(0.05) == -1
