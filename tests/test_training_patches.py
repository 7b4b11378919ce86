import math
from collections import Counter
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera, ThinningConfig
from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.training import patches
from gap_bioimage.training.pairs import Window
from gap_bioimage.training.patches import PairBatches, Stack, WindowDrawer, as_stacks

RANGE = ThinningConfig(min_db=-10, max_db=5)


def numbered(shapes: list[tuple[int, ...]]) -> list[Stack]:
    values = iter(range(sum(math.prod(shape) for shape in shapes)))
    return [Stack(np.fromiter(values, np.int32, math.prod(shape)).reshape(shape)) for shape in shapes]


def poisson(shape: tuple[int, ...], mean: float = 4.0, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(mean, shape).astype(np.uint16)


@pytest.mark.parametrize(
    ("shapes", "patch"),
    [
        ([(2, 9, 12), (2, 6, 7)], (4, 5)),
        ([(2, 5, 9, 12)], (3, 4, 5)),
        ([(1, 9, 12), (1, 3, 40)], (8, 16)),
        ([(1, 4, 6)], (128, 128)),
    ],
)
def test_windows_lie_inside_the_images(shapes: list[tuple[int, ...]], patch: tuple[int, ...]) -> None:
    stacks = numbered(shapes)
    drawer = WindowDrawer(stacks, patch, RANGE, augment=False)
    size = tuple(min([p, *(shape[axis + 1] for shape in shapes)]) for axis, p in enumerate(patch))
    assert drawer.window_px == size
    for window in (w.counts for w in drawer.windows(np.random.default_rng(1), 200)):
        stack = next(s.values for s in stacks if window.max() <= s.values.max())
        _, *starts = np.unravel_index(int(window.flat[0]) - int(stack.flat[0]), stack.shape)
        where = tuple(slice(s, s + n) for s, n in zip(starts, size, strict=True))
        np.testing.assert_array_equal(window, stack[(slice(None), *where)])


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 4, 6), (1, 3, 5, 5), (2, 4, 4, 6)], ids=str)
def test_orientations_are_all_of_the_symmetric_ones_equally_often(shape: tuple[int, ...]) -> None:
    window = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    square = shape[-1] == shape[-2]
    expected = set()
    for turns in range(4) if square else (0, 2):
        for turned in (np.rot90(window, turns, (-2, -1)), np.rot90(window, turns, (-2, -1))[..., ::-1]):
            expected |= {turned.tobytes()} | ({turned[:, ::-1].tobytes()} if len(shape) == 4 else set())
    assert len(expected) == (8 if square else 4) * (2 if len(shape) == 4 else 1)
    rng = np.random.default_rng(3)
    seen = Counter(patches.augmented(Window(window), rng).counts.tobytes() for _ in range(200 * len(expected)))
    assert set(seen) == expected
    assert chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 40, 50), (2, 6, 30, 20)], ids=str)
def test_inputs_and_targets_make_up_the_windows(shape: tuple[int, ...]) -> None:
    stack = poisson(shape)
    patch = (4, 16, 16)[-(len(shape) - 1) :]
    drawer = WindowDrawer([Stack(stack)], patch, RANGE)
    batch = drawer.batch([1, 2, 3], 5)
    photons, target, db = batch.photons, batch.target, batch.db
    expected = batch.exposure * photons.flatten(1).sum(1)
    assert ((target.flatten(1).sum(1) - expected).abs() < 6 * torch.sqrt(expected * (1 + batch.exposure))).all()
    assert (batch.weight == 1).all()
    assert photons.shape == (5, shape[0], *patch)
    rng = np.random.default_rng([1, 2, 3])
    np.testing.assert_array_equal((photons + target).numpy(), np.stack([w.counts for w in drawer.windows(rng, 5)]))
    assert min(photons.min(), target.min()) >= 0
    np.testing.assert_allclose(db, 10 * np.log10(photons.double().flatten(1).mean(1).numpy()), rtol=1e-5)


def test_brightness_of_inputs_is_uniform_in_db() -> None:
    stack = np.full((1, 64, 64), 100, np.uint16)
    drawer = WindowDrawer([Stack(stack)], (64, 64), ThinningConfig(min_db=0, max_db=15))
    db = drawer.batch([0], 400).db.numpy()
    # at 0 dB 4096 photons, so 1.6 % noise, 0.07 dB
    assert db.min() > -0.35
    assert db.max() < 15.1
    assert kstest(db, "uniform", (0, 15)).pvalue > 1e-3
    dim = WindowDrawer([Stack(stack // 10)], (64, 64), ThinningConfig(min_db=20, max_db=30, max_fraction=0.9))
    photons, target, *_ = dim.batch([0], 20)
    assert float(photons.sum() / (photons.sum() + target.sum())) == pytest.approx(0.9, abs=0.002)  # no more than that


def test_empty_windows_are_no_error() -> None:
    photons, target, db, *_ = WindowDrawer([Stack(np.zeros((1, 20, 20), np.uint8))], (8, 8), RANGE, 10).batch([0], 3)
    assert not photons.any() and not target.any() and torch.isneginf(db).all()


def test_batches_are_functions_of_seed_rank_and_number() -> None:
    drawer = WindowDrawer([Stack(poisson((1, 30, 30)))], (12, 12), RANGE)
    keys = [(seed, rank, number) for seed in (0, 1, 2**32) for rank in (0, 3) for number in (0, 1, 10**6)]
    first, again = ([PairBatches(drawer, 3, s, r)[n].photons for s, r, n in order] for order in (keys, keys[::-1]))
    for number, photons in enumerate(first):
        assert [torch.equal(photons, other) for other in again[::-1]] == [number == n for n in range(len(keys))]


def test_batches_are_drawn_while_the_network_sees_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = PairBatches(WindowDrawer([Stack(poisson((1, 30, 30)))], (12, 12), RANGE), 3, 0, 0, range(4, 8))
    expected = [batches[number].photons for number in batches.numbers]
    draw, drawn = PairBatches.__getitem__, Queue[int]()

    def tell(self: PairBatches, number: int) -> Any:
        drawn.put(number)
        return draw(self, number)

    monkeypatch.setattr(PairBatches, "__getitem__", tell)
    iterator = iter(batches)
    first = next(iterator)
    assert [drawn.get(timeout=60) for _ in range(2)] == [4, 5]
    for pairs, photons in zip([first, *iterator], expected, strict=True):
        assert torch.equal(pairs.photons, photons)


def test_brightest_window() -> None:
    stack = np.zeros((1, 32, 64), np.uint16)
    stack[:, :, 32:] = 100
    assert patches.brightest_db([Stack(stack)] * 2, (8, 8), 0) == 20.0
    assert patches.brightest_db([Stack(stack)], (32, 64), 0) == pytest.approx(10 * math.log10(50))
    hot = stack.copy()
    hot[0, 5, 5] = 60_000
    assert patches.brightest_db([Stack(hot)], (32, 64), 0) == patches.brightest_db([Stack(stack)], (32, 64), 0)
    camera = Detector(Camera(gain=1, offset=0, saturation=1000))
    assert patches.brightest_db([Stack(np.where(stack, stack, 1000), detector=camera)], (32, 64), 0) < 20
    with pytest.raises(NotPhotonCountsError, match="no photon"):
        patches.brightest_db([Stack(np.zeros_like(stack))], (8, 8), 0)
    for number in (2**26, 2**31 + 5, 2**40):  # which 32 bits would not tell from fewer
        with pytest.raises(NotPhotonCountsError, match=str(number)):
            patches.brightest_db([Stack(np.full((1, 9, 9), number))], (8, 8), 0)


def test_binned_windows_are_sums_and_come_as_often_as_asked() -> None:
    values = np.arange(2 * 12 * 16, dtype=np.int32).reshape(2, 12, 16)
    window = Window(values, values % 5 > 0, 3 * values, 4).binned()
    sums = values.reshape(2, 6, 2, 8, 2).sum((2, 4))
    np.testing.assert_array_equal(window.counts, sums)
    np.testing.assert_array_equal(window.others, 3 * sums)
    np.testing.assert_array_equal(window.usable, (values % 5 > 0).reshape(2, 6, 2, 8, 2).all((2, 4)))
    assert (window.n_others, window.counts.dtype) == (4, np.int32)
    even = [Stack(np.full((1, 5, 40, 40), 7, np.uint16)), Stack(np.full((1, 5, 30, 64), 7, np.uint16))]
    drawer = WindowDrawer(even, (3, 16, 16), ThinningConfig(min_db=0, max_db=14, binned=0.3))
    drawn = [window.counts for window in drawer.windows(np.random.default_rng(2), 600)]
    assert {(counts.shape, *np.unique(counts)) for counts in drawn} == {((1, 3, 16, 16), 7), ((1, 3, 16, 16), 28)}
    # only images of twice the window's size can be binned, 40 x 40 of them
    share = 0.3 * 40 * 40 / (40 * 40 + 30 * 64)
    assert np.mean([counts[0, 0, 0, 0] == 28 for counts in drawn]) == pytest.approx(share, abs=0.04)
    assert patches.brightest_db(even, (3, 16, 16), 0, binned=True) == pytest.approx(10 * math.log10(28))


def test_bright_windows_come_more_often_and_dark_ones_are_drawn_anew() -> None:
    stack = np.zeros((1, 8, 16), np.uint8)
    stack[..., :8], stack[..., 8:] = 1, 3
    drawer = WindowDrawer([Stack(stack)], (8, 1), RANGE, augment=False)
    windows = drawer.windows(np.random.default_rng(5), 2000)
    # of four windows, each bright with chance 1/2, the one that is taken is bright with 3 n / (3 n + 4 - n)
    expected = sum(math.comb(4, n) / 16 * 3 * n / (2 * n + 4) for n in range(5))
    found = np.mean([w.counts.sum() == 24 for w in windows])
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)
    lit = np.zeros((1, 8, 80), np.uint8)
    lit[..., 40:] = 5
    drawer = WindowDrawer([Stack(lit)], (8, 8), RANGE, min_photons=100)
    assert np.mean([w.counts.sum() >= 100 for w in drawer.windows(np.random.default_rng(5), 500)]) > 0.99


def test_saturated_and_hot_pixels_are_no_targets() -> None:
    values = np.rint(100 + 2 * np.random.default_rng(0).poisson(8, (40, 50))).astype(np.uint16)
    values[10:20, 10:20] = 200
    values[30, 30] = 148
    camera = Detector(Camera(gain=0.5, offset=100, saturation=150))
    counts = as_stacks([xr.DataArray(values, dims=["y", "x"])], 2, camera)
    batch = WindowDrawer(counts, (40, 50), ThinningConfig(min_db=0, max_db=5), augment=False).batch([0], 2)
    assert not batch.weight[..., 10:20, 10:20].any()
    assert not batch.target[batch.weight == 0].any()
    assert batch.photons[..., 10:20, 10:20].any()
    hot = poisson((1, 20, 20))
    hot[0, 5, 5] = 60_000
    batch = WindowDrawer([Stack(hot)], (20, 20), RANGE, augment=False).batch([0], 2)
    assert torch.argwhere(batch.weight == 0).tolist() == [[0, 0, 5, 5], [1, 0, 5, 5]]


# Images


CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5, saturation=150)
SIZES = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}


def movie(frames: int = 3) -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = np.rint(100 + 2 * (rng.poisson(8, (frames, 40, 50)) + rng.normal(0, 1.5, (frames, 40, 50))))
    return xr.DataArray(values.astype(np.uint16), dims=["t", "y", "x"])


@pytest.mark.parametrize(
    ("dims", "dim", "count", "shape"),
    [
        ("yx", 2, 1, (1, 5, 6)),
        ("xy", 2, 1, (1, 5, 6)),
        ("zyx", 2, 4, (1, 5, 6)),
        ("cyx", 2, 1, (3, 5, 6)),
        ("yxzct", 2, 8, (3, 5, 6)),
        ("zyx", 3, 1, (1, 4, 5, 6)),
        ("czyxt", 3, 2, (3, 4, 5, 6)),
    ],
)
def test_axes_become_items_channels_and_space(dims: str, dim: int, count: int, shape: tuple[int, ...]) -> None:
    values = np.arange(math.prod(SIZES[axis] for axis in dims)).reshape([SIZES[axis] for axis in dims])
    image = xr.DataArray(values, dims=tuple(dims))
    stacks = as_stacks([image], dim)
    assert [stack.shape for stack in stacks] == [shape] * count
    for item, stack in enumerate(stacks):
        places = {"c": 0} if "c" in dims else {}
        places |= dict.fromkeys("zyx" if dim == 3 else "yx", 1)
        others = [axis for axis in image.dims if axis not in places]
        places |= dict(zip(others, np.unravel_index(item, [SIZES[str(a)] for a in others]), strict=True))
        assert stack.values[(0, *[1] * dim)] == image.isel(places)


@pytest.mark.parametrize(
    ("dims", "dim"),
    [([("y", "x")], 3), ([("z", "y", "x"), ("y", "x")], 3), ([("c", "y", "x"), ("y", "x")], 2), ([], 2)],
)
def test_axes_that_do_not_fit_are_refused(dims: list[tuple[str, ...]], dim: int) -> None:
    images = [xr.DataArray(np.ones([3] * len(axes), np.uint8), dims=axes) for axes in dims]
    with pytest.raises(AxesError):
        as_stacks(images, dim)
    with pytest.raises(AxesError):
        as_stacks([movie().isel(t=slice(0))], dim)


@pytest.mark.parametrize(
    ("values", "dim"),
    [(np.ones(shape), 2) for shape in [(1, 5000), (48, 1), (1, 1)]]
    + [(np.ones((40, 50)), 3), (np.where(np.eye(40) * np.arange(40) == 7, -1, 4), 2), (np.full((40, 50), "a"), 2)],
)
def test_images_that_cannot_be_trained_on_are_refused_by_name(values: NDArray[Any], dim: int) -> None:
    image = xr.DataArray(values, dims=("y", "x"), attrs={"source": "/data/flim.tif"})
    with pytest.raises((AxesError, NotPhotonCountsError), match=r"flim\.tif"):
        as_stacks([image], dim)


def test_camera_images_keep_their_values_until_they_are_drawn() -> None:
    stacks = as_stacks([movie()], 2, Detector(CAMERA))
    assert [stack.shape for stack in stacks] == [(1, 40, 50)] * 3
    np.testing.assert_array_equal(stacks[1].values[0], movie().values[1])
    window = stacks[1].window(np.random.default_rng(0))
    assert window.counts.dtype == np.int32
    assert window.usable is not None
    np.testing.assert_array_equal(window.usable[0], movie().values[1] < 150)
    assert window.counts.mean() - Detector(CAMERA).shift() == pytest.approx(8, abs=0.3)
    assert stacks[1].photons / window.counts.size == pytest.approx(8, abs=0.3)


def test_windows_know_where_on_the_camera_they_lie() -> None:
    offset = (100 + np.random.default_rng(1).normal(0, 5, (40, 50))).astype(np.float32)
    maps = PixelMaps(offset, np.full((40, 50), 1.5, np.float32))
    stack = as_stacks([movie(1).isel(t=0)], 2, Detector(CAMERA, maps))[0]
    part = stack[(slice(None), slice(5, 21), slice(30, 46))]
    held_out = patches.split_held_out([stack], 0.2, 0).held_out[0]
    whole, cut, slab = (s.detector.counts(s.values) for s in (stack, part, held_out))  # type: ignore[union-attr]
    np.testing.assert_array_equal(cut, whole[:, 5:21, 30:46])
    np.testing.assert_array_equal(slab, whole[:, :, 40:])


@pytest.mark.parametrize(
    "shapes", [[(2, 20, 50), (2, 33, 17)], [(1, 6, 30, 40)], [(1, 20, 30)] * 25, [(2, 3, 20, 30)] * 9], ids=str
)
@pytest.mark.parametrize("share", [0.1, 0.49])
def test_held_out_pixels_are_never_trained_on(shapes: list[tuple[int, ...]], share: float) -> None:
    stacks = numbered(shapes)
    split = patches.split_held_out(stacks, share, 3)
    pixels = np.concatenate([stack.values.ravel() for part in split for stack in part])
    np.testing.assert_array_equal(np.sort(pixels), np.arange(len(pixels)))  # together every pixel once
    if len(shapes) >= 8:
        parts = [split, *(patches.split_held_out(stacks, share, seed) for seed in (3, 4))]
        first, again, other = ([stack.values.flat[0] for stack in part.held_out] for part in parts)
        assert first == again != other
        assert len(split.held_out) == max(1, round(share * len(shapes)))
    else:
        for stack, part in zip(stacks, split.held_out, strict=True):
            longest = max(stack.shape[1:])
            assert part.values.size * longest == stack.values.size * max(8, round(share * longest))
