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

from gap_bioimage.config import ThinningConfig
from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.training.patches import PairBatches, WindowDrawer, augmented, brightest_db
from gap_bioimage.training.stacks import Window, as_stacks, split_held_out

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANGE = ThinningConfig(min_db=-10, max_db=5)


def numbered(shapes: list[tuple[int, ...]]) -> list[NDArray[np.int32]]:
    stacks, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        stacks.append(np.arange(start, start + size, dtype=np.int32).reshape(shape))
        start += size
    return stacks


def poisson(shape: tuple[int, ...], mean: float = 4.0, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).poisson(mean, shape).astype(np.uint16)


@pytest.mark.parametrize(
    ("dims", "dim", "count", "shape"),
    [
        ("yx", 2, 1, (1, 5, 6)),
        ("xy", 2, 1, (1, 5, 6)),
        ("tyx", 2, 2, (1, 5, 6)),
        ("zyx", 2, 4, (1, 5, 6)),
        ("cyx", 2, 1, (3, 5, 6)),
        ("tczyx", 2, 8, (3, 5, 6)),
        ("yxzct", 2, 8, (3, 5, 6)),
        ("zyx", 3, 1, (1, 4, 5, 6)),
        ("tczyx", 3, 2, (3, 4, 5, 6)),
        ("czyxt", 3, 2, (3, 4, 5, 6)),
    ],
)
def test_axes_become_items_channels_and_space(dims: str, dim: int, count: int, shape: tuple[int, ...]) -> None:
    sizes = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}
    values = np.arange(math.prod(sizes[axis] for axis in dims)).reshape([sizes[axis] for axis in dims])
    image = xr.DataArray(values, dims=tuple(dims))
    stacks = as_stacks([image], dim)
    assert [stack.shape for stack in stacks] == [shape] * count
    assert np.array_equal(np.unique(stacks), np.unique(values))
    for item, stack in enumerate(stacks):
        places = {"c": 0} if "c" in dims else {}
        places |= dict.fromkeys("zyx" if dim == 3 else "yx", 1)
        others = [axis for axis in image.dims if axis not in places]
        places |= dict(zip(others, np.unravel_index(item, [sizes[str(a)] for a in others]), strict=True))
        assert stack[(0, *[1] * dim)] == image.isel(places)


def test_stacks_of_several_images_come_in_order_and_are_views() -> None:
    images = [xr.DataArray(poisson(shape), dims=("y", "x")) for shape in ((5, 6), (9, 4))]
    stacks = as_stacks(images, 2)
    for image, stack in zip(images, stacks, strict=True):
        assert np.shares_memory(stack, image.values)
        np.testing.assert_array_equal(stack[0], image)


@pytest.mark.parametrize(
    ("dims", "dim", "told"),
    [
        ([("y", "x")], 3, "axes yx, expected z for a 3D model; use --dim 2"),
        ([("t", "y", "x")], 3, "expected z"),
        ([("z", "y", "x"), ("y", "x")], 3, "expected z"),
        ([("z", "x")], 2, "axes zx, expected y for a 2D model"),
        ([("z",)], 3, "axes z, expected y, x for a 3D model"),
        ([("c", "y", "x"), ("y", "x")], 2, r"\[1, 3\] channels"),
        ([], 2, "no image"),
    ],
)
def test_axes_that_do_not_fit_are_refused(dims: list[tuple[str, ...]], dim: int, told: str) -> None:
    images = [xr.DataArray(np.ones([3] * len(axes), np.uint8), dims=axes) for axes in dims]
    with pytest.raises(AxesError, match=told):
        as_stacks(images, dim)


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 40, 30)],
        [(2, 20, 50), (2, 33, 17)],
        [(1, 6, 30, 40)],
        [(1, 64, 16, 16)],
        [(1, 20 + k, 30) for k in range(8)],
        [(1, 20, 30)] * 25,
        [(2, 3, 20, 30)] * 9,
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.49])
def test_held_out_pixels_are_never_trained_on(shapes: list[tuple[int, ...]], share: float) -> None:
    stacks = numbered(shapes)
    split = split_held_out(stacks, share, 3)
    training = np.concatenate([stack.ravel() for stack in split.training])
    held_out = np.concatenate([stack.ravel() for stack in split.held_out])
    # together every pixel once
    np.testing.assert_array_equal(np.sort(np.concatenate([training, held_out])), np.arange(sum(s.size for s in stacks)))
    by_image = len(shapes) >= 8
    if by_image:
        assert len(split.held_out) == max(1, round(share * len(shapes)))
        assert len(split.training) == len(shapes) - len(split.held_out)
    else:
        assert len(split.held_out) == len(split.training) == len(shapes)
        for stack, part in zip(stacks, split.held_out, strict=True):
            longest = max(stack.shape[1:])
            assert part.size * longest == stack.size * max(8, round(share * longest))
            assert part.size <= stack.size / 2
    dim = len(shapes[0]) - 1
    trained = WindowDrawer(split.training, (8,) * dim, RANGE).windows(np.random.default_rng(0), 60)
    tested = WindowDrawer(split.held_out, (8,) * dim, RANGE).windows(np.random.default_rng(0), 60)
    assert np.isin([window.counts for window in trained], training).all()
    assert np.isin([window.counts for window in tested], held_out).all()


def test_which_images_are_held_out_depends_on_the_seed_alone() -> None:
    stacks = numbered([(1, 4, 5)] * 20)
    first = split_held_out(stacks, 0.2, 1)
    assert all(a is b for a, b in zip(first.held_out, split_held_out(stacks, 0.2, 1).held_out, strict=True))
    others = {tuple(int(s[0, 0, 0]) for s in split_held_out(stacks, 0.2, seed).held_out) for seed in range(10)}
    assert len(others) > 5


@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 1, 1), (3, 4, 12, 15)])
def test_images_too_small_to_share_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AxesError, match="too small to hold out 8 pixels"):
        split_held_out([np.ones((1, 100, 100)[: len(shape)], np.uint8), np.ones(shape, np.uint8)], 0.1, 0)


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
        stack = next(s for s in stacks if s.min() <= window.min() and window.max() <= s.max())
        _, *starts = np.unravel_index(int(window.flat[0]) - int(stack.flat[0]), stack.shape)
        where = tuple(slice(s, s + n) for s, n in zip(starts, size, strict=True))
        np.testing.assert_array_equal(window, stack[(slice(None), *where)])


def test_every_position_of_every_image_is_equally_likely() -> None:
    stacks = numbered([(1, 6, 8), (1, 12, 8)])
    drawer = WindowDrawer(stacks, (4, 6), RANGE, augment=False)
    corners = [int(w.counts.flat[0]) for w in drawer.windows(np.random.default_rng(2), 6000)]
    first = np.array([c < stacks[0].size for c in corners])
    assert chisquare([first.sum(), (~first).sum()], [2000, 4000]).pvalue > 1e-3
    for chosen, positions in ((first, 9), (~first, 27)):
        _, observed = np.unique(np.array(corners)[chosen], return_counts=True)
        assert len(observed) == positions
        assert chisquare(observed).pvalue > 1e-3


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
    assert plain == {stack[0].tobytes()}


def test_dark_windows_are_drawn_anew() -> None:
    stack = np.zeros((1, 8, 80), np.uint8)
    stack[..., 40:] = 5
    share = {}
    for needed in (0, 100):
        drawer = WindowDrawer([stack], (8, 8), RANGE, min_photons=needed)
        share[needed] = np.mean([w.counts.sum() >= 100 for w in drawer.windows(np.random.default_rng(5), 1000)])
    # a start s sees 40 (s - 32) photons where the dark ends: 35 to 72 out of 0 to 72 are enough
    right = 38 / 73
    assert abs(share[0] - right) < 4 * math.sqrt(right * (1 - right) / 1000)
    # eleven draws in vain happen once in 3000
    assert share[100] > 0.99


def test_where_all_windows_are_dark_the_brightest_of_the_draws_is_taken() -> None:
    stack = np.zeros((1, 1, 101), np.uint8)
    stack[..., 50] = 9
    windows = WindowDrawer([stack], (1, 1), RANGE, min_photons=50).windows(np.random.default_rng(6), 4000)
    found = np.mean([w.counts.sum() == 9 for w in windows])
    expected = 1 - (100 / 101) ** 11
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_rejected_share_is_that_of_the_windows_drawn() -> None:
    dark, bright = np.zeros((1, 16, 16), np.uint8), np.full((1, 48, 64), 9, np.uint8)
    drawer = WindowDrawer([dark, bright], (8, 8), RANGE, min_photons=1)
    share = dark.size / (dark.size + bright.size)
    assert abs(drawer.rejected_share(0, 4000) - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert WindowDrawer([bright], (8, 8), RANGE, min_photons=1).rejected_share(0) == 0
    assert WindowDrawer([dark], (8, 8), RANGE, min_photons=1).rejected_share(0) == 1


@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 40, 50), (2, 6, 30, 20)], ids=str)
def test_inputs_and_targets_make_up_the_windows(shape: tuple[int, ...]) -> None:
    stack = poisson(shape)
    patch = (4, 16, 16)[-(len(shape) - 1) :]
    drawer = WindowDrawer([stack], patch, RANGE)
    photons, target, db, weight = drawer.batch([1, 2, 3], 5)
    assert weight is None
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
    drawer = WindowDrawer([stack], (64, 64), ThinningConfig(min_db=0, max_db=15))
    db = drawer.batch([0], 400).db.numpy()
    # at 0 dB 4096 photons, so 1.6 % noise, 0.07 dB
    assert db.min() > -0.35
    assert db.max() < 15.1
    assert kstest(db, "uniform", (0, 15)).pvalue > 1e-3


@pytest.mark.parametrize("fraction", [0.5, 0.99])
def test_dim_windows_give_no_more_than_the_largest_fraction(fraction: float) -> None:
    stack = np.full((1, 64, 64), 10, np.uint16)
    drawer = WindowDrawer([stack], (64, 64), ThinningConfig(min_db=20, max_db=30, max_fraction=fraction))
    photons, target, *_ = drawer.batch([0], 50)
    share = float(photons.sum() / (photons.sum() + target.sum()))
    assert abs(share - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / (50 * stack.sum()))


def test_empty_windows_are_no_error() -> None:
    photons, target, db, _ = WindowDrawer([np.zeros((1, 20, 20), np.uint8)], (8, 8), RANGE, 10).batch([0], 3)
    assert not photons.any()
    assert not target.any()
    assert torch.isneginf(db).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), rank=st.integers(0, 3), number=st.integers(0, 10**6))
def test_batches_are_functions_of_their_number(seed: int, rank: int, number: int) -> None:
    drawer = WindowDrawer([poisson((1, 30, 30))], (12, 12), RANGE)
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
    for a, b in zip(*(WindowDrawer([s], (12, 12), RANGE).batch([7], 4)[:3] for s in (values, mapped)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [0.5, -1.0, math.nan])
@pytest.mark.filterwarnings("error")
def test_windows_of_no_counts_are_refused(wrong: float) -> None:
    stack = np.full((1, 30, 30), wrong, np.float32)
    with pytest.raises(NotPhotonCountsError):
        WindowDrawer([stack], (12, 12), RANGE).batch([0], 2)


def test_brightest_window() -> None:
    stack = np.zeros((1, 32, 64), np.uint16)
    stack[:, :, 32:] = 100
    assert brightest_db([stack, stack], (8, 8), 0) == 20.0
    assert brightest_db([stack], (32, 64), 0) == pytest.approx(10 * math.log10(50))
    with pytest.raises(NotPhotonCountsError, match="no photon"):
        brightest_db([np.zeros_like(stack)], (8, 8), 0)
