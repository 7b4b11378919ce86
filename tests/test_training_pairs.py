"""Training pairs: thinning on the device that trains, one-bit frames, and repeats of a still scene."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import ndimage
from test_training_patches import CAMERA, movie, poisson

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import ThinningConfig
from gap_bioimage.errors import AxesError, CountsWarning, NotPhotonCountsError
from gap_bioimage.training.loss import without_dark
from gap_bioimage.training.pairs import Window, free_slots, pairs_of
from gap_bioimage.training.patches import Stack, WindowDrawer, as_stacks, motion


def test_pairs_are_functions_of_the_seed_and_windows_keep_their_own_fractions() -> None:
    windows = [Window(np.full((1, 40, 40), n, np.int32)) for n in (9, 0, 20)]
    first, same, other = (
        pairs_of(windows, [0.1, 0.5, 0.8], None, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first.photons, same.photons)
    assert not torch.equal(first.photons, other.photons)
    for index, expected in enumerate((0.9, 0.0, 16.0)):
        assert float(first.photons[index].mean()) == pytest.approx(expected, abs=0.15)
    torch.testing.assert_close(first.exposure, torch.tensor([9.0, 1.0, 0.25]))
    assert torch.isneginf(first.db[1])


def test_thinned_camera_images_keep_their_read_noise_and_targets_follow_from_their_light() -> None:
    light, dark, fraction = 5.0, 3.0, 0.25
    counts = np.random.default_rng(0).poisson(light + dark, (1, 300, 300)).astype(np.int32)
    window = Window(counts, dark=dark)
    assert window.binned().dark == 4 * dark
    pairs = pairs_of([window], [fraction], None, torch.Generator().manual_seed(1))
    seen = fraction * light + dark
    assert float(pairs.photons.mean()) == pytest.approx(seen, abs=0.03)
    assert float(pairs.photons.var()) == pytest.approx(seen, abs=0.1)
    log_rate = without_dark(torch.full_like(pairs.photons, math.log(seen)), pairs.dark)
    expected = float(pairs.exposure) * float(log_rate.exp().mean())
    assert expected == pytest.approx((1 - fraction) * (light + dark), rel=1e-5)
    assert float(pairs.target.mean()) == pytest.approx(expected, abs=0.05)
    assert pairs_of([Window(counts)], [fraction], None, torch.Generator()).dark is None


def learned(counts: np.ndarray, parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what the photon loss teaches a network that tells pixels and their own input apart, (inputs, pixels).

    At its minimum ``r = sum of targets / sum of weight x targets of the image / sum of weight x r``.
    """
    target, ceiling = (counts - parts).astype(float), int(counts.max())
    known = parts[None] == np.arange(ceiling + 1)[:, None, None]  # (input, image, pixel)
    r, pixels = np.ones((ceiling + 1, counts.shape[1])), np.arange(counts.shape[1])
    seen = (known * target).sum(1)
    for _ in range(200):
        total = (weights * r[parts, pixels]).sum(1)
        share = target.sum(1) / np.maximum(total, 1e-12)
        exposure = (known * weights * share[:, None]).sum(1)
        r = np.where(exposure > 0, seen / np.maximum(exposure, 1e-12), 0)
        r /= r[0].mean()
    return r


@pytest.mark.parametrize("ceiling", [1, 4])
def test_one_bit_frames_teach_the_true_rates_whatever_the_input(ceiling: int) -> None:
    rng = np.random.default_rng(0)
    chance = 1 - np.exp(-np.linspace(0.3, 1.5, 12))
    images = 12_000
    counts = rng.binomial(ceiling, chance, (images, 12)).astype(np.int32)
    fraction = torch.from_numpy(rng.choice([0.2, 0.5, 0.8], (images, 1))).float().expand(-1, 12)
    generator, all_counts = torch.Generator().manual_seed(1), torch.from_numpy(counts).float()
    kept = torch.binomial(all_counts, fraction, generator=generator)
    slots = free_slots(all_counts, kept, fraction, ceiling, generator).numpy()
    parts = kept.numpy().astype(np.int32)
    assert (slots >= counts - parts).all()
    right = learned(counts, parts, slots.astype(float))
    expected = chance / chance.mean()
    for photons in range(ceiling):  # where all slots have fired none is left to learn from
        enough = (parts == photons).sum(0) > 1000
        np.testing.assert_allclose(right[photons, enough] / right[0].mean(), expected[enough], rtol=0.12)
    # taken as photon counts, a pixel that has fired is one where none can land, or fewer
    wrong = learned(counts, parts, np.ones(counts.shape))
    assert (wrong[1] < 0.85 * expected).all()


def test_more_photons_than_frames_are_refused() -> None:
    window = Window(np.array([[[0, 3]]], np.int32))
    with pytest.raises(NotPhotonCountsError, match="2 one-bit frames hold at most 2"):
        pairs_of([window], [0.5], 2, torch.Generator())


# Repeats of a still scene


def exposures(frames: int = 6, shift: float = 0, mean: float = 3.0, bleached: float = 0.95) -> xr.DataArray:
    """Frames of a scene that moves by so many pixels from each to the next, and bleaches."""
    rng = np.random.default_rng(0)
    scene = mean * 2 * ndimage.gaussian_filter(rng.random((64, 80)) > 0.9, 1.5, mode="wrap", output=float) / 0.1
    rates = [np.roll(scene, int(shift * n), 1) * bleached**n for n in range(frames)]
    return xr.DataArray(rng.poisson(rates).astype(np.uint16), dims=["t", "y", "x"])


@pytest.mark.parametrize(
    ("dims", "count", "shape"), [("tyx", 1, (1, 6, 7)), ("tzyx", 3, (1, 6, 7)), ("ztcyx", 3, (2, 6, 7))]
)
def test_repeats_are_exposures_of_one_item(dims: str, count: int, shape: tuple[int, ...]) -> None:
    sizes = {"t": 4, "z": 3, "c": 2, "y": 6, "x": 7}
    image = xr.DataArray(poisson(tuple(sizes[axis] for axis in dims)), dims=list(dims))
    stacks = as_stacks([image], 2, repeats="t")
    assert [(stack.shape, len(stack.values)) for stack in stacks] == [(shape, 4)] * count
    whole = image if "c" in dims else image.expand_dims("c")
    for z, stack in enumerate(stacks):
        expected = (whole.isel(z=z) if "z" in dims else whole).transpose("t", "c", "y", "x").values
        np.testing.assert_array_equal(stack.values, expected)
        part = stack[(slice(None), slice(1, 3), slice(2, 6))]
        np.testing.assert_array_equal(part.values, expected[:, :, 1:3, 2:6])


def test_images_without_repeats_are_refused_by_name() -> None:
    image = xr.DataArray(poisson((20, 20)), dims=["y", "x"], attrs={"source": "/data/one.tif"})
    for wrong in (image, image.expand_dims("t")):
        with pytest.raises(AxesError, match=r"one\.tif has no frames along t"):
            as_stacks([wrong], 2, repeats="t")


@pytest.mark.parametrize(("frames", "others"), [(2, 1), (5, 4), (6, 4), (30, 4)])
def test_targets_are_the_nearest_frames_and_inputs_of_one_frame_alone(frames: int, others: int) -> None:
    numbers = np.arange(frames, dtype=np.int32) + 1
    stack = Stack(np.broadcast_to(numbers[:, None, None, None], (frames, 1, 8, 8)), repeated=True)
    seen = set()
    for seed in range(100):
        window = stack.window(np.random.default_rng(seed))
        assert window.n_others == others and window.others is not None
        one, rest = int(window.counts[0, 0, 0]), int(window.others[0, 0, 0])
        nearest = numbers[max(0, min(one - 3, frames - 5)) :][:5]  # at the ends those on one side
        assert one in nearest and one + rest == nearest.sum()  # no photon twice, none lost
        seen.add(one)
    assert {1, frames} <= seen


def test_inputs_and_targets_of_repeats_are_independent_and_on_one_scale() -> None:
    image = xr.DataArray(poisson((5, 60, 60), 2.0), dims=["t", "y", "x"])
    drawer = WindowDrawer(as_stacks([image], 2, repeats="t"), (32, 32), ThinningConfig(min_db=0, max_db=4))
    batch = drawer.batch([0], 200)
    photons, target = batch.photons.flatten(1), batch.target.flatten(1)
    assert (batch.weight == 1).all()
    expected = batch.exposure * photons.sum(1)
    assert ((target.sum(1) - expected).abs() < 6 * torch.sqrt(expected * (1 + batch.exposure))).all()
    # the whole frame may be the input, and the target holds four times its photons
    assert float(batch.exposure.min()) == 4
    centred = [part - part.mean(1, keepdim=True) for part in (photons, target)]
    correlation = float((centred[0] * centred[1]).mean() / torch.sqrt(centred[0].var() * centred[1].var()))
    # pairs come from five frames of 60 x 60 pixels, again and again
    assert abs(correlation) < 5 / math.sqrt(5 * 60 * 60)


@pytest.mark.filterwarnings("ignore:.*does not stand still")
def test_repeats_keep_what_cameras_and_one_bit_frames_tell() -> None:
    values = movie(4).values.copy()
    values[2, 10:20, 10:20] = 200  # saturated in one frame: no target in any
    stacks = as_stacks([xr.DataArray(values, dims=["t", "y", "x"])], 2, Detector(CAMERA), repeats="t")
    batch = WindowDrawer(stacks, (40, 50), ThinningConfig(min_db=0, max_db=5), augment=False).batch([0], 2)
    assert not batch.weight[..., 10:20, 10:20].any()
    assert not batch.target[batch.weight == 0].any()
    frames = xr.DataArray(np.random.default_rng(2).binomial(4, 0.3, (5, 30, 30)).astype(np.uint8), dims=["t", "y", "x"])
    limited = ThinningConfig(min_db=-5, max_db=0, ceiling=4)
    batch = WindowDrawer(as_stacks([frames], 2, repeats="t"), (16, 16), limited).batch([0], 60)
    assert (batch.weight == 16).all()
    expected = float((batch.exposure * batch.photons.flatten(1).mean(1) * batch.weight.flatten(1).sum(1)).sum())
    assert float(batch.target.sum()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("frames", [100, 200])
@pytest.mark.parametrize("mean", [0.1, 3.0])
def test_slow_drift_is_seen_however_dim_the_frames(frames: int, mean: float) -> None:
    still, drifting = (exposures(frames, shift, mean, bleached=1.0).values[:, None] for shift in (0, 1 / 20))
    assert motion(Stack(still, repeated=True)) < 0.01 < motion(Stack(drifting, repeated=True))


@pytest.mark.parametrize("frames", [2, 3, 40])
def test_scenes_that_move_are_told_from_those_that_stand_still(frames: int) -> None:
    assert motion(as_stacks([exposures(frames)], 2, repeats="t")[0]) < 0.01
    assert motion(Stack(poisson((frames, 1, 50, 50)), repeated=True)) < 0.01
    assert motion(Stack(np.zeros((frames, 1, 50, 50), np.uint8), repeated=True)) == 0
    assert motion(as_stacks([movie(max(3, frames))], 2, Detector(CAMERA), repeats="t")[0]) < 0.01  # at any offset
    with pytest.warns(CountsWarning, match="does not stand still"):
        as_stacks([exposures(frames, shift=3)], 2, repeats="t")
