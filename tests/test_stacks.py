"""Images as training sees them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from gap_bioimage.camera.camera import Detector, PixelMaps
from gap_bioimage.config import Camera, ThinningConfig
from gap_bioimage.errors import AxesError
from gap_bioimage.training.patches import WindowDrawer
from gap_bioimage.training.stacks import CameraStack, as_stacks, split_held_out, values_of, window_of

CAMERA = Camera(gain=2.0, offset=100, read_noise=1.5, saturation=150)


def movie(frames: int = 3) -> xr.DataArray:
    rng = np.random.default_rng(0)
    values = np.rint(100 + 2 * (rng.poisson(8, (frames, 40, 50)) + rng.normal(0, 1.5, (frames, 40, 50))))
    return xr.DataArray(values.astype(np.uint16), dims=["t", "y", "x"])


def detector() -> Detector:
    rng = np.random.default_rng(1)
    offset = (100 + rng.normal(0, 5, (40, 50))).astype(np.float32)
    return Detector(CAMERA, PixelMaps(offset, np.full((40, 50), 1.5, np.float32)))


def test_camera_images_keep_their_values_until_they_are_drawn() -> None:
    stacks = as_stacks([movie()], 2, Detector(CAMERA))
    assert [stack.shape for stack in stacks] == [(1, 40, 50)] * 3
    assert stacks[0].dtype == np.uint16
    np.testing.assert_array_equal(values_of(stacks[1])[0], movie().values[1])
    window = window_of(stacks[1], np.random.default_rng(0))
    assert window.counts.dtype == np.int32
    assert window.usable is not None
    np.testing.assert_array_equal(window.usable[0], movie().values[1] < 150)
    assert window.background == Detector(CAMERA).shift()
    assert window.photons / window.counts.size == pytest.approx(8, abs=0.3)


def test_windows_know_where_on_the_camera_they_lie() -> None:
    stack = as_stacks([movie(1).isel(t=0)], 2, detector())[0]
    assert isinstance(stack, CameraStack)
    part = stack[(slice(None), slice(5, 21), slice(30, 46))]
    whole, cut = (s.detector.counts(values_of(s)) for s in (stack, part))
    np.testing.assert_array_equal(cut, whole[:, 5:21, 30:46])
    held_out = split_held_out([stack], 0.2, 0).held_out[0]
    np.testing.assert_array_equal(held_out.detector.counts(values_of(held_out)), whole[:, :, 40:])  # type: ignore[union-attr]


def test_maps_of_another_camera_are_refused() -> None:
    with pytest.raises(AxesError, match="maps have"):
        as_stacks([movie().isel(x=slice(0, 40))], 2, detector())


def test_saturated_pixels_are_no_targets() -> None:
    values = movie(1).isel(t=0).values.copy()
    values[10:20, 10:20] = 200
    stacks = as_stacks([xr.DataArray(values, dims=["y", "x"])], 2, Detector(CAMERA))
    drawer = WindowDrawer(stacks, (40, 50), ThinningConfig(min_db=0, max_db=5), augment=False)
    batch = drawer.batch([0], 2)
    assert batch.weight is not None
    assert set(np.unique(batch.weight)) == {0, 1}
    assert not batch.weight[..., 10:20, 10:20].any()
    assert not batch.target[batch.weight == 0].any()
    assert batch.photons[..., 10:20, 10:20].any()


def test_one_bit_sums_weigh_targets_by_the_frames_left() -> None:
    rng = np.random.default_rng(2)
    counts = rng.binomial(4, 0.3, (1, 30, 30)).astype(np.uint8)
    drawer = WindowDrawer([counts], (16, 16), ThinningConfig(min_db=-5, max_db=0, ceiling=4))
    batch = drawer.batch([0], 6)
    assert batch.weight is not None
    assert (batch.weight >= batch.target).all()
    assert (batch.weight + batch.photons <= 4).all()


@pytest.mark.parametrize(("dim", "count", "shape"), [(2, 6, (1, 40, 50)), (3, 3, (1, 2, 40, 50))])
def test_channels_may_be_images_of_their_own(dim: int, count: int, shape: tuple[int, ...]) -> None:
    image = movie(6).rename(t="n").values.reshape(3, 2, 40, 50)
    counts = xr.DataArray(image, dims=["c", "z", "y", "x"])
    stacks = as_stacks([counts], dim, separate_channels=True)
    assert [stack.shape for stack in stacks] == [shape] * count
    assert int(sum(np.asarray(values_of(stack)).sum(dtype=int) for stack in stacks)) == int(image.sum(dtype=int))
