"""Images as training sees them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera
from gap_bioimage.errors import AxesError, NotPhotonCountsError
from gap_bioimage.training.stacks import Stack, as_stacks, split_held_out

CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5, saturation=150)
SIZES = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}


def movie(frames: int = 3) -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = np.rint(100 + 2 * (rng.poisson(8, (frames, 40, 50)) + rng.normal(0, 1.5, (frames, 40, 50))))
    return xr.DataArray(values.astype(np.uint16), dims=["t", "y", "x"])


def detector() -> Detector:
    offset = (100 + np.random.default_rng(1).normal(0, 5, (40, 50))).astype(np.float32)
    return Detector(CAMERA, PixelMaps(offset, np.full((40, 50), 1.5, np.float32)))


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


def test_stacks_of_several_images_come_in_order_and_are_views() -> None:
    images = [xr.DataArray(np.ones(shape, np.uint16), dims=("y", "x")) for shape in ((5, 6), (9, 4))]
    for image, stack in zip(images, as_stacks(images, 2), strict=True):
        assert np.shares_memory(stack.values, image.values)


@pytest.mark.parametrize(("dim", "count", "shape"), [(2, 6, (1, 40, 50)), (3, 3, (1, 2, 40, 50))])
def test_channels_may_be_images_of_their_own(dim: int, count: int, shape: tuple[int, ...]) -> None:
    counts = xr.DataArray(movie(6).values.reshape(3, 2, 40, 50), dims=["c", "z", "y", "x"])
    stacks = as_stacks([counts], dim, separate_channels=True)
    assert [stack.shape for stack in stacks] == [shape] * count
    assert sum(int(stack.values.sum(dtype=int)) for stack in stacks) == int(counts.values.sum(dtype=int))


@pytest.mark.parametrize(
    ("dims", "dim"),
    [
        ([("y", "x")], 3),
        ([("z", "y", "x"), ("y", "x")], 3),
        ([("z", "x")], 2),
        ([("c", "y", "x"), ("y", "x")], 2),
        ([], 2),
    ],
)
def test_axes_that_do_not_fit_are_refused(dims: list[tuple[str, ...]], dim: int) -> None:
    images = [xr.DataArray(np.ones([3] * len(axes), np.uint8), dims=axes) for axes in dims]
    with pytest.raises(AxesError):
        as_stacks(images, dim)


@pytest.mark.parametrize("shape", [(1, 5000), (48, 1), (1, 1)])
def test_images_of_one_row_or_column_are_refused_by_name(shape: tuple[int, int]) -> None:
    image = xr.DataArray(np.ones(shape, np.uint8), dims=("y", "x"), attrs={"source": "/data/flim.tif"})
    with pytest.raises(AxesError, match=r"flim\.tif"):
        as_stacks([image], 2)


def test_windows_of_no_counts_are_refused_by_name() -> None:
    for wrong in (0.5, -1.0, math.nan):
        with pytest.raises(NotPhotonCountsError, match=r"a\.tif"):
            Stack(np.full((1, 4, 4), wrong, np.float32), "a.tif").window(np.random.default_rng(0))


def test_camera_images_keep_their_values_until_they_are_drawn() -> None:
    stacks = as_stacks([movie()], 2, Detector(CAMERA))
    assert [stack.shape for stack in stacks] == [(1, 40, 50)] * 3
    np.testing.assert_array_equal(stacks[1].values[0], movie().values[1])
    window = stacks[1].window(np.random.default_rng(0))
    assert window.counts.dtype == np.int32
    assert window.usable is not None
    np.testing.assert_array_equal(window.usable[0], movie().values[1] < 150)
    assert window.background == Detector(CAMERA).shift()
    assert window.photons / window.counts.size == pytest.approx(8, abs=0.3)


def test_windows_know_where_on_the_camera_they_lie() -> None:
    stack = as_stacks([movie(1).isel(t=0)], 2, detector())[0]
    part = stack[(slice(None), slice(5, 21), slice(30, 46))]
    held_out = split_held_out([stack], 0.2, 0).held_out[0]
    whole, cut, slab = (s.detector.counts(s.values) for s in (stack, part, held_out))  # type: ignore[union-attr]
    np.testing.assert_array_equal(cut, whole[:, 5:21, 30:46])
    np.testing.assert_array_equal(slab, whole[:, :, 40:])


def test_maps_of_another_camera_are_refused() -> None:
    with pytest.raises(AxesError):
        as_stacks([movie().isel(x=slice(0, 40))], 2, detector())


def numbered(shapes: list[tuple[int, ...]]) -> list[Stack]:
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
    return [Stack(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]


@pytest.mark.parametrize(
    "shapes",
    [[(1, 40, 30)], [(2, 20, 50), (2, 33, 17)], [(1, 6, 30, 40)], [(1, 20, 30)] * 25, [(2, 3, 20, 30)] * 9],
    ids=str,
)
@pytest.mark.parametrize("share", [0.1, 0.49])
def test_held_out_pixels_are_never_trained_on(shapes: list[tuple[int, ...]], share: float) -> None:
    stacks = numbered(shapes)
    split = split_held_out(stacks, share, 3)
    pixels = np.concatenate([stack.values.ravel() for part in split for stack in part])
    np.testing.assert_array_equal(np.sort(pixels), np.arange(len(pixels)))  # together every pixel once
    if len(shapes) >= 8:
        assert len(split.held_out) == max(1, round(share * len(shapes)))
    else:
        for stack, part in zip(stacks, split.held_out, strict=True):
            longest = max(stack.shape[1:])
            assert part.values.size * longest == stack.values.size * max(8, round(share * longest))


def test_which_images_are_held_out_depends_on_the_seed_alone() -> None:
    stacks = numbered([(1, 4, 5)] * 20)
    chosen = {seed: [id(stack) for stack in split_held_out(stacks, 0.2, seed).held_out] for seed in range(10)}
    assert chosen[1] == [id(stack) for stack in split_held_out(stacks, 0.2, 1).held_out]
    assert len({tuple(ids) for ids in chosen.values()}) > 5


def test_images_too_small_to_share_are_refused() -> None:
    with pytest.raises(AxesError):
        split_held_out([Stack(np.ones((1, 100, 100))), Stack(np.ones((1, 15, 15)))], 0.1, 0)
