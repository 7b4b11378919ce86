"""What images are: counts, cameras, and what programs made of them."""

import io
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from made_images import image, poisson, sharp_cells
from PIL import Image
from scipy import ndimage

import gap_bioimage
from benchmarks.cameras import simulate_camera
from gap_bioimage.errors import AxesError
from gap_bioimage.evidence import measure
from gap_bioimage.inspection import inspect
from gap_bioimage.judging import Finding, judge
from gap_bioimage.simulation import simulate, simulate_truth

Values = np.ndarray[Any, Any]


def cells(photons: float = 20.0, seed: int = 0, size: int = 256) -> Values:
    return np.asarray(simulate(2, (size, size), photons, seed)[0])


def light(photons: float, size: int = 192) -> Values:
    return np.asarray(simulate_truth(2, (size, size), 0)) * photons


def judged(values: Any, dims: str = "tczyx") -> Finding:
    return judge(measure(image(values, dims)), "x")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(log_mean=1.25, shape=(8, 8), covered=1.0, seed=1961)
@example(log_mean=3.0, shape=(2, 3, 16, 16), covered=0.02, seed=1)
@given(
    log_mean=st.floats(-2, 3),
    shape=st.sampled_from([(8, 8), (64, 64), (3, 3), (2, 50), (5, 32, 32), (2, 3, 16, 16), (256, 40)]),
    covered=st.sampled_from([1.0, 0.3, 0.02]),
    seed=st.integers(0, 2**32 - 1),
)
def test_poisson_counts_are_accepted(log_mean: float, shape: tuple[int, ...], covered: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(10**log_mean * (rng.random(shape) < covered))
    assume(counts.any())
    finding = judged(counts.astype(np.uint16))
    assert not finding.refused
    assert finding.verdict != "processed"
    if covered == 1:
        assert finding.verdict == "photon counts"
        assert not any(told in finding.message for told in ("dead time", "hot pixel"))


@pytest.mark.parametrize("photons", [2, 100])
@pytest.mark.parametrize(
    ("gain", "offset"),
    [(2.2, 100), (0.5, 500), (12, -40), (2, -100), (1, 20), (30, 500), (4.3, 0), (2.2, -32_668), (0.1, 12)],
)
def test_cameras_lead_to_their_calibration(photons: float, gain: float, offset: float) -> None:
    rng, scene = np.random.default_rng(0), light(photons, 128)
    film = np.rint(offset + gain * (rng.poisson(scene, (4, 128, 128)) + rng.normal(0, 1.5, (4, 128, 128))))
    film = (film.clip(0) if offset == 0 else film).astype(np.int16)
    for values, method in ((film, "repeats"), (film[0], "single image")):
        found = inspect(values, dims="tyx"[-values.ndim :])
        assert (found.verdict, found.source_kind, found.noise_correlation_method) == ("camera image", "camera", method)
        assert found.next.startswith("gap-bioimage calibrate ")
        assert "nan" not in found.message
    assert judged(film[0]).refused == (offset != 0)


@pytest.mark.parametrize("photons", [0.1, 0.3, 2])
def test_dim_films_with_a_baseline_below_zero_are_of_cameras(photons: float) -> None:
    rng, scene = np.random.default_rng(0), photons * far_apart(1.0, 192) / far_apart(1.0, 192).mean()
    film = -200 + 30 * (rng.poisson(scene, (8, 192, 192)) + rng.normal(0, 1, (8, 192, 192)))
    assert judged(np.rint(film).astype(np.int16), "tyx").verdict == "camera image"


def camera_image(electrons: Values, offset: int = 100, gain: float = 2.2) -> Values:
    return np.asarray(simulate_camera(electrons, n_frames=1, offset=offset, gain=gain))[0]


@pytest.mark.parametrize("verdict", ["camera image", "photon counts"])
def test_margins_are_left_out_and_told(verdict: str) -> None:
    counts = camera_image(light(20.0, 96)) if verdict == "camera image" else cells(300.0, size=96)
    padded = np.pad(counts, ((8, 20), (9, 0)))
    found = inspect(image(padded))
    assert (found.verdict, found.variance_curve) == (verdict, inspect(image(counts)).variance_curve)
    assert "margin" in found.message
    padded[20, 30] = 60_000
    assert verdict != "photon counts" or "(y 20 x 30)" in judged(padded).message


@pytest.mark.parametrize("frames", [1, 6])
def test_what_is_cleared_outside_of_an_outline_makes_no_camera_a_counter(frames: int) -> None:
    inside = np.hypot(*np.mgrid[-48:48, -48:48]) < 40
    film = simulate_camera(light(20.0, 96), n_frames=frames).values
    assert [judged(film * inside, "tyx").verdict, judged(film, "tyx").verdict] == ["camera image"] * 2
    counts = np.random.default_rng(0).poisson(light(20.0, 96) + 400, film.shape)
    assert judged(counts * inside, "tyx").verdict == "photon counts"


def test_repeated_frames_are_left_out_and_told() -> None:
    film = np.random.default_rng(0).poisson(light(20.0, 96), (6, 96, 96))
    twice = inspect(film.repeat(2, 0), dims="tyx")
    assert twice.variance_curve == inspect(film, dims="tyx").variance_curve
    assert "frames 0 and 1 are equal" in twice.message
    assert inspect(film[[0, 0, 0]], dims="tyx").verdict == "photon counts"
    assert "left out" not in judged(poisson(0.0005, (500, 32, 32)), "tyx").message
    beads = np.random.default_rng(0).random((16, 32, 32)) < 0.8 * np.eye(32)
    assert "left out" not in judged(beads, "tyx").message


def test_what_a_camera_is_and_what_is_wrong_with_it_is_told() -> None:
    film = simulate_camera(light(30, 96), n_frames=20)
    guess = inspect(film).gain_guess or {}
    assert [guess["gain"], guess["offset"]] == pytest.approx([2.2, 100], rel=0.1)
    film[:, 40, 50] = film[7] = 0  # neither a dead pixel nor a dropped frame is a baseline
    assert [inspect(film).verdict, inspect(film[0]).verdict] == ["camera image"] * 2
    assert "% of the pixels are saturated at 180" in judged(camera_image(light(20.0, 96)).clip(max=180)).message
    found = inspect(image(np.stack([cells(20, size=96), camera_image(light(20.0, 96))]), "cyx"))
    assert found.verdict == "camera image"
    assert found.message.startswith("channel 1 of ")


CHANGES: dict[str, Any] = {
    "smoothed": lambda counts: ndimage.gaussian_filter(counts, 0.8),
    "median": lambda counts: ndimage.median_filter(counts, 3),
    "repeated": lambda counts: counts.repeat(2, 0).repeat(2, 1),
    "turned": lambda counts: ndimage.rotate(counts, 3, order=1, reshape=False, mode="reflect"),
    "scaled": lambda counts: counts * 1.7,
    "sharpened": lambda counts: (counts - ndimage.laplace(counts)).clip(0),
    "stretched": lambda counts: counts * (9.7 if counts.max() < 50 else 2.4),
}


@pytest.mark.parametrize("photons", [84, 5000])
def test_films_that_are_empty_around_a_disc_are_counts(photons: float) -> None:
    film = np.random.default_rng(0).poisson(photons * (np.hypot(*np.mgrid[-32:32, -32:32]) < 21), (5, 64, 64))
    assert judged(film, "tyx").verdict == judged(film, "zyx").verdict == "photon counts"
    assert judged(16 * film, "tyx").verdict == "counts times k"


def far_apart(photons: float, size: int = 256) -> Values:
    """Spots on a background."""
    points = np.zeros(size * size)
    points[np.random.default_rng(1).integers(0, size * size, 60)] = 60
    return photons * (0.27 + 13 * np.asarray(ndimage.gaussian_filter(points.reshape(size, size), 1.2)))


def jpeg(quality: int) -> Values:
    file = io.BytesIO()
    Image.fromarray(cells(5).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def four_of(rate: Values) -> Values:
    """Four frames of lines of these rates."""
    return np.random.default_rng(0).poisson(rate[:, None], (4, len(rate), 96))


def full(ceiling: int) -> Values:
    rate = np.linspace(0.2 * ceiling, 1.2 * ceiling, 128)[None].repeat(128, 0)
    return np.random.default_rng(0).poisson(rate).clip(max=ceiling)


def stack(photons: float) -> Values:
    return np.asarray(simulate(3, (12, 128, 128), photons, 1)[0])


smooth = ndimage.gaussian_filter
DISC = np.hypot(*np.mgrid[-96:96, -96:96]) < 64
# of each verdict what is made of a number: photons per pixel, but reach, quality, gain and pixels
NATURES: dict[str, dict[str, tuple[Any, Sequence[float]]]] = {
    "photon counts": {
        "cells": (cells, (0.03, 1, 3000)),
        "cells in depth": (stack, (0.03, 1, 3000)),
        "sharp cells": (lambda seed: sharp_cells(4.0 * 5 ** (seed % 3), seed), range(6)),
        "sharp cells in the dark": (lambda seed: sharp_cells(4.0 * 5 ** (seed % 3), seed, dark=0.0), range(6)),
        "edges that bend the line": (lambda seed: np.random.default_rng(seed).poisson(10 + 50 * DISC), (11, 12, 17)),
        "sum": (lambda p: stack(p).sum(0), (2, 50)),
        "slots that fill": (lambda p: np.random.default_rng(0).binomial(200, 1 - np.exp(-light(p))), (0.5,)),
        "channels": (lambda p: np.stack([cells(p), cells(p, 1), cells(p, 2)]), (5,)),
        "an empty channel": (lambda p: np.stack([cells(p), 0 * cells(p)]), (5,)),
        "bright spots": (lambda p: np.random.default_rng(0).poisson(far_apart(p)), (200, 1000)),
    },
    "counts times k": {"means of bright frames": (lambda n: np.float32(cells(300 * n) / n), (2, 3, 7))},
    "camera image": {
        "sharp cells of a camera": (lambda g: camera_image(sharp_cells(30, 2, dark=0.0), 0, g), (2.2, 10)),
        "single electrons": (lambda p: simulate_camera(light(p), gain=9.35, read_noise=0.27), (0.5, 3, 40)),
        "few ADU per electron": (lambda p: simulate_camera(light(p), gain=4.6, read_noise=0.27), (3, 40)),
        "twelve bits in sixteen": (lambda k: k * camera_image(light(20.0), 50, 1.0), (2, 16)),
        "an even camera": (lambda p: camera_image(np.full((256, 256), p)), (20.0, 60.0)),
    },
    "processed": {
        **{name: (lambda p, of=of: np.rint(of(1.0 * cells(p))), (0.5, 50)) for name, of in CHANGES.items()},
        "dim background": (lambda reach: cells(2) - np.rint(smooth(1.0 * cells(2), reach)), (5, 20)),
        "bright background": (lambda reach: cells(100) - np.rint(smooth(1.0 * cells(100), reach)), (5, 20)),
        "mean subtracted": (lambda p: cells(p) - cells(p).mean() + 0.123, (2, 100)),
        "cut at zero": (lambda b: (poisson(light(20.0) + b, None) - b).clip(0), (5, 20)),
        "maximum": (lambda p: stack(p).max(0), (2, 10, 50)),
        "mean": (lambda p: np.rint(stack(p).mean(0)), (2, 10, 50)),
        "counts of 8 bits": (lambda p: np.rint(255 / poisson(p).max() * poisson(p)), (0.3, 1)),
        "roots": (lambda p: np.rint(16 * np.sqrt(poisson(p))), (0.3,)),
        "mean of a slope": (lambda top: np.rint(four_of(np.geomspace(0.4, top, 96)).mean(0)), (30, 90)),
        "a smoothed camera": (lambda s: np.rint(smooth(1.0 * camera_image(light(50.0)), s)), (0.7, 1.5)),
        "jpeg": (jpeg, (50, 75)),
        "maximum of a camera": (lambda p: np.asarray(simulate_camera(far_apart(p), n_frames=10)).max(0), (60,)),
    },
    "not usable": {
        "dead pixels": (lambda p: np.where(np.arange(65536).reshape(256, 256) % 509, 1.0 * cells(p), -1), (2, 200)),
        "beyond 8 bits": (lambda p: cells(p) % 256, (200, 400)),
        "below 0 of 16 bits": (lambda below: camera_image(light(2.0), 50, 12.0) - np.uint16(50 + below), (0, 40)),
        "saturated": (full, (255, 1023, 4095, 65535, 300)),
        "full slots": (lambda p: np.random.default_rng(0).binomial(64, 1 - np.exp(-far_apart(p) / 64)), (20, 60)),
        "one row": (lambda n: poisson(5, (1, n)) + 1, (1, 4000)),
        "rows": (lambda n: poisson(5, (n, 1, 40)) + 1, (30,)),
    },
}
ROWS = [(v, name, number) for v, kinds in NATURES.items() for name, (_, numbers) in kinds.items() for number in numbers]


@pytest.mark.parametrize(("verdict", "name", "number"), ROWS)
def test_images_of_every_nature(verdict: str, name: str, number: float) -> None:
    values = NATURES[verdict][name][0](number)
    found = inspect(image(values, "cyx" if len(values) < 4 and values.ndim > 2 else "tczyx"))
    assert found.verdict == verdict
    if verdict == "photon counts":
        assert not (found.thinning or "").startswith("not valid")
        assert found.next.startswith("gap-bioimage train")
        assert "dead time" not in found.message or name == "slots that fill"
    if verdict == "processed":
        assert found.source_kind == verdict
        assert "gap-bioimage" not in found.next
        assert (found.thinning or "").startswith(("not valid", "not possible"))


def test_numbers_that_chance_or_structure_decides_are_left_out_of_the_message() -> None:
    columns = np.arange(96) * np.ones((96, 1))
    bars = inspect(image(np.random.default_rng(0).poisson(5 + 100.0 * (columns // 4 % 2))))
    smooth = inspect(image(poisson(5, (256, 256))))
    assert bars.verdict == smooth.verdict == "photon counts"
    assert f"{bars.fano_bright:.2f} where" not in bars.message
    assert f"{smooth.fano_bright:.2f} where" in smooth.message


@pytest.mark.parametrize("dims", ["yx", "tyx", "zyx"])
@pytest.mark.parametrize("value", [400, 65535])
def test_hot_pixels_are_named_and_in_no_mean_and_no_variance(dims: str, value: int) -> None:
    plain = poisson(5, (6, 96, 96)[-len(dims) :])
    hot = plain.copy()
    places = np.random.default_rng(1).integers(0, 96, (8, 2))
    hot[..., places[:, 0], places[:, 1]] = value
    found, expected = inspect(image(hot, dims)), inspect(image(plain, dims))
    assert (found.hot_pixels, expected.hot_pixels) == (len(np.unique(places, axis=0)), 0)
    y, x = min(map(tuple, places))
    assert f"(y {y} x {x}" in found.message
    assert (found.verdict, found.max) == ("photon counts", value)
    assert found.mean == pytest.approx(expected.mean, rel=2e-3)
    assert found.fano == pytest.approx(expected.fano, rel=0.05)
    assert found.fano_bright == pytest.approx(expected.fano_bright, rel=0.1)


@settings(max_examples=12, deadline=None)
@given(k=st.integers(2, 300), mean=st.floats(0.5, 50), seed=st.integers(0, 2**32 - 1))
def test_multiplied_counts_are_found_with_their_factor(k: int, mean: float, seed: int) -> None:
    for factor, dtype in ((k, np.int64), (1 / k, np.float64), (1 / k, np.float32)):
        finding = judged((factor * poisson(mean, seed=seed)).astype(dtype))
        assert finding.verdict == "counts times k"
        assert finding.factor == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("file", "verdict", "thinning"),
    [
        ("zebrafish_clean_yx.tif", "camera image", "not valid"),
        ("pollen_clean_zyx.tif", "processed", "not valid"),
        ("telomeres_camera_tyx.tif", "camera image", "not valid"),
        ("hazelnut_photons_t0_zyx.tif", "photon counts", "valid"),
    ],
)
def test_real_images(shared_data: Path, file: str, verdict: str, thinning: str) -> None:
    found = inspect(shared_data / file)
    assert found.verdict == verdict
    assert found.thinning.startswith(thinning)  # type: ignore[union-attr]
    if verdict == "photon counts":
        assert found.fano == pytest.approx(1, abs=0.05)
        assert 0.7 < found.fano_bright < 0.95  # type: ignore[operator]
        assert "dead time" in found.message


ODD = [np.full((8, 8), np.nan), np.zeros((8, 8)), np.zeros((0, 8, 8)), np.zeros((4, 4), complex)]
ODD += [np.array([[0, 1e30], [5, 7]]), np.array([[0, 2**63 + 9], [5, 7]], np.uint64)]
ODD += [-poisson(shape=(8, 8)), poisson(shape=(8, 8)) / 3, np.full((40, 40), 300, np.uint16)]


@pytest.mark.parametrize("values", ODD)
def test_any_values_are_reported_as_json_and_drawn(values: Values, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = inspect(image(values), plot=tmp_path / "a.png")
    assert found.message
    json.dumps(found.to_dict(), allow_nan=False)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_has_exact_numbers_and_reads_like_a_dictionary() -> None:
    found = gap_bioimage.inspect(np.array([[0, 1, 2], [3, 0, 6]], np.uint16), dims="yx")
    assert (found.min, found.max, found.mean, found.total) == (0, 6, 2, 12)
    assert found["zero_share"] == pytest.approx(1 / 3)
    assert found["pseudo_psnr_db"] == pytest.approx(10 * math.log10(2))
    assert (found["axes"], found["shape"], found["dtype"]) == ("yx", [2, 3], "uint16")
    assert dict(found) == found.to_dict()
    with pytest.raises(AxesError):
        inspect(poisson(5, (3, 40, 40)))
