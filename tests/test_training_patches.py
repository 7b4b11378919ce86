from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera, ThinningConfig
from gap_bioimage.errors import NotPhotonCountsError
from gap_bioimage.training.patches import PairBatches, WindowDrawer, augmented, brightest_db
from gap_bioimage.training.stacks import Stack, Window, as_stacks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANGE = ThinningConfig(min_db=-10, max_db=5)


def numbered(shapes: list[tuple[int, ...]]) -> list[Stack]:
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
    return [Stack(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]


def poisson(shape: tuple[int, ...], mean: float = 4.0, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(mean, shape).astype(np.uint16)


@pytest.mark.parametrize(
    ("shapes", "patch"),
    [
        ([(1, 9, 12)], (4, 5)),
        ([(2, 9, 12), (2, 6, 7)], (4, 5)),
        ([(2, 5, 9, 12)], (3, 4, 5)),
        ([(1, 9, 12), (1, 3, 40)], (8, 16)),
        ([(1, 5, 5)], (5, 5)),
        ([(1, 4, 6)], (128, 128)),
    ],
)
def test_windows_lie_inside_the_images(shapes: list[tuple[int, ...]], patch: tuple[int, ...]) -> None:
    stacks = numbered(shapes)
    drawer = WindowDrawer(stacks, patch, RANGE, augment=False)
    size = tuple(
        min(p, *(shape[axis + 1] for shape in shapes)) if len(shapes) > 1 else min(p, shapes[0][axis + 1])
        for axis, p in enumerate(patch)
    )
    assert drawer.window_px == size
    for window in (w.counts for w in drawer.windows(np.random.default_rng(1), 200)):
        arrays = [s.values for s in stacks]
        stack = next(a for a in arrays if a.min() <= window.min() and window.max() <= a.max())
        _, *starts = np.unravel_index(int(window.flat[0]) - int(stack.flat[0]), stack.shape)
        where = tuple(slice(s, s + n) for s, n in zip(starts, size, strict=True))
        np.testing.assert_array_equal(window, stack[(slice(None), *where)])


@pytest.mark.parametrize("shape", [(1, 5, 5), (2, 4, 4), (1, 4, 6), (2, 7, 3), (1, 3, 5, 5), (2, 4, 4, 6)], ids=str)
def test_orientations_are_all_of_the_symmetric_ones_equally_often(shape: tuple[int, ...]) -> None:
    window = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    square = shape[-1] == shape[-2]
    expected = set()
    for turns in range(4) if square else (0, 2):
        for mirrored in (False, True):
            turned = np.rot90(window, turns, (-2, -1))
            turned = turned[..., ::-1] if mirrored else turned
            expected |= {turned.tobytes()} | ({turned[:, ::-1].tobytes()} if len(shape) == 4 else set())
    assert len(expected) == (8 if square else 4) * (2 if len(shape) == 4 else 1)
    rng = np.random.default_rng(3)
    draws = [augmented(Window(window, None, 0.0), rng).counts for _ in range(200 * len(expected))]
    assert {turned.shape for turned in draws} == {shape}
    found, observed = np.unique([turned.tobytes() for turned in draws], return_counts=True)
    assert {bytes(f).ljust(window.nbytes, b"\0") for f in found} == expected
    assert chisquare(observed).pvalue > 1e-3
    assert all(np.array_equal(np.sort(turned, None), window.ravel()) for turned in draws[:50])
    # channels are never mixed up
    assert all(np.array_equal(np.sort(t[0], None), window[0].ravel()) for t in draws[:50])


def test_windows_of_a_drawer_come_in_all_orientations() -> None:
    stack = numbered([(1, 4, 4)])
    turned = {w.counts.tobytes() for w in WindowDrawer(stack, (4, 4), RANGE).windows(np.random.default_rng(4), 200)}
    plain = {
        w.counts.tobytes()
        for w in WindowDrawer(stack, (4, 4), RANGE, augment=False).windows(np.random.default_rng(4), 9)
    }
    assert len(turned) == 8
    assert plain == {stack[0].values.tobytes()}


def test_rejected_share_is_that_of_the_windows_drawn() -> None:
    dark, bright = np.zeros((1, 16, 16), np.uint8), np.full((1, 48, 64), 9, np.uint8)
    drawer = WindowDrawer([Stack(dark), Stack(bright)], (8, 8), RANGE, min_photons=1)
    share = dark.size / (dark.size + bright.size)
    assert abs(drawer.rejected_share(0, 4000) - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert WindowDrawer([Stack(bright)], (8, 8), RANGE, min_photons=1).rejected_share(0) == 0
    assert WindowDrawer([Stack(dark)], (8, 8), RANGE, min_photons=1).rejected_share(0) == 1


@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 40, 50), (2, 6, 30, 20)], ids=str)
def test_inputs_and_targets_make_up_the_windows(shape: tuple[int, ...]) -> None:
    stack = poisson(shape)
    patch = (4, 16, 16)[-(len(shape) - 1) :]
    drawer = WindowDrawer([Stack(stack)], patch, RANGE)
    batch = drawer.batch([1, 2, 3], 5)
    photons, target, db = batch.photons, batch.target, batch.db
    assert batch.weight is None
    assert photons.shape == target.shape == (5, shape[0], *patch)
    assert photons.dtype == target.dtype == db.dtype == torch.float32
    rng = np.random.default_rng([1, 2, 3])
    np.testing.assert_array_equal((photons + target).numpy(), np.stack([w.counts for w in drawer.windows(rng, 5)]))
    assert photons.min() >= 0
    assert target.min() >= 0
    means = photons.double().flatten(1).mean(1)
    np.testing.assert_allclose(db, 10 * np.log10(means.numpy()), rtol=1e-5)


def test_brightness_of_inputs_is_uniform_in_db() -> None:
    stack = np.full((1, 64, 64), 100, np.uint16)
    drawer = WindowDrawer([Stack(stack)], (64, 64), ThinningConfig(min_db=0, max_db=15))
    db = drawer.batch([0], 400).db.numpy()
    # at 0 dB 4096 photons, so 1.6 % noise, 0.07 dB
    assert db.min() > -0.35
    assert db.max() < 15.1
    assert kstest(db, "uniform", (0, 15)).pvalue > 1e-3


@pytest.mark.parametrize("fraction", [0.5, 0.99])
def test_dim_windows_give_no_more_than_the_largest_fraction(fraction: float) -> None:
    stack = np.full((1, 64, 64), 10, np.uint16)
    drawer = WindowDrawer([Stack(stack)], (64, 64), ThinningConfig(min_db=20, max_db=30, max_fraction=fraction))
    photons, target, *_ = drawer.batch([0], 50)
    share = float(photons.sum() / (photons.sum() + target.sum()))
    assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / (50 * stack.sum()))


def test_empty_windows_are_no_error() -> None:
    photons, target, db, *_ = WindowDrawer([Stack(np.zeros((1, 20, 20), np.uint8))], (8, 8), RANGE, 10).batch([0], 3)
    assert not photons.any()
    assert not target.any()
    assert torch.isneginf(db).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), rank=st.integers(0, 3), number=st.integers(0, 10**6))
def test_batches_are_functions_of_their_number(seed: int, rank: int, number: int) -> None:
    drawer = WindowDrawer([Stack(poisson((1, 30, 30)))], (12, 12), RANGE)
    batches = PairBatches(drawer, 3, seed, rank)
    first = batches[number]
    batches[number + 1]
    for a, b in zip(first[:3], PairBatches(drawer, 3, seed, rank)[number][:3], strict=True):
        assert torch.equal(a, b)
    for other in (batches[number + 1], PairBatches(drawer, 3, seed + 1, rank)[number]):
        assert not torch.equal(first.photons, other.photons)
    assert not torch.equal(first.photons, PairBatches(drawer, 3, seed, rank + 1)[number].photons)


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<i4", "u8", "f4", "bool"])
def test_types_and_memory_maps_give_the_same_batches(tmp_path: Path, dtype: str) -> None:
    values = np.minimum(poisson((1, 30, 30)), 1) if dtype == "bool" else poisson((1, 30, 30))
    np.save(tmp_path / "stack.npy", values.astype(dtype))
    mapped = np.load(tmp_path / "stack.npy", mmap_mode="r")
    for a, b in zip(
        *(WindowDrawer([Stack(s)], (12, 12), RANGE).batch([7], 4)[:3] for s in (values, mapped)), strict=True
    ):
        assert torch.equal(a, b)


def test_brightest_window() -> None:
    stack = np.zeros((1, 32, 64), np.uint16)
    stack[:, :, 32:] = 100
    assert brightest_db([Stack(stack)] * 2, (8, 8), 0) == 20.0
    assert brightest_db([Stack(stack)], (32, 64), 0) == pytest.approx(10 * math.log10(50))
    with pytest.raises(NotPhotonCountsError, match="no photon"):
        brightest_db([Stack(np.zeros_like(stack))], (8, 8), 0)


def test_bright_windows_come_more_often_and_dark_ones_are_drawn_anew() -> None:
    stack = np.zeros((1, 8, 16), np.uint8)
    stack[..., :8], stack[..., 8:] = 1, 3
    drawer = WindowDrawer([Stack(stack)], (8, 1), RANGE, augment=False)
    windows = drawer.windows(np.random.default_rng(5), 2000)
    # of four windows, each bright with chance 1/2, the one that is taken is bright with 3 n / (3 n + 4 - n)
    expected = sum(math.comb(4, n) / 16 * 3 * n / (2 * n + 4) for n in range(5))
    found = np.mean([w.photons == 24 for w in windows])
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)
    lit = np.zeros((1, 8, 80), np.uint8)
    lit[..., 40:] = 5
    drawer = WindowDrawer([Stack(lit)], (8, 8), RANGE, min_photons=100)
    assert np.mean([w.photons >= 100 for w in drawer.windows(np.random.default_rng(5), 500)]) > 0.99


def test_the_exposure_of_targets_is_what_thinning_left() -> None:
    stack = Stack(np.full((1, 64, 64), 10, np.uint16))
    batch = WindowDrawer([stack], (64, 64), ThinningConfig(min_db=0, max_db=9)).batch([0], 20)
    expected = batch.exposure * batch.photons.flatten(1).sum(1)
    got = batch.target.flatten(1).sum(1)
    assert ((got - expected).abs() < 6 * torch.sqrt(expected * (1 + batch.exposure))).all()


def test_saturated_and_hot_pixels_are_no_targets() -> None:
    values = np.rint(100 + 2 * np.random.default_rng(0).poisson(8, (40, 50))).astype(np.uint16)
    values[10:20, 10:20] = 200
    values[30, 30] = 148
    camera = Detector(Camera(gain=0.5, offset=100, saturation=150))
    counts = as_stacks([xr.DataArray(values, dims=["y", "x"])], 2, camera)
    batch = WindowDrawer(counts, (40, 50), ThinningConfig(min_db=0, max_db=5), augment=False).batch([0], 2)
    assert batch.weight is not None
    assert not batch.weight[..., 10:20, 10:20].any()
    assert not batch.target[batch.weight == 0].any()
    assert batch.photons[..., 10:20, 10:20].any()
    hot = poisson((1, 20, 20))
    hot[0, 5, 5] = 60_000
    batch = WindowDrawer([Stack(hot)], (20, 20), RANGE, augment=False).batch([0], 2)
    assert batch.weight is not None
    assert (batch.weight == 0).sum() == 2
    assert not batch.weight[..., 5, 5].any()


def test_one_bit_sums_weigh_targets_by_the_frames_left() -> None:
    counts = Stack(np.random.default_rng(2).binomial(4, 0.3, (1, 30, 30)).astype(np.uint8))
    batch = WindowDrawer([counts], (16, 16), ThinningConfig(min_db=-5, max_db=0, ceiling=4)).batch([0], 60)
    assert batch.weight is not None
    assert (batch.weight >= batch.target).all()
    assert (batch.weight + batch.photons <= 4).all()
    # targets are those that the frames left hold at the rate of the inputs
    rate = batch.photons.flatten(1).mean(1)
    expected = float((batch.exposure * rate * batch.weight.flatten(1).sum(1)).sum())
    assert float(batch.target.sum()) == pytest.approx(expected, rel=0.05)
