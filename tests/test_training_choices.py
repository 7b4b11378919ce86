"""What training chooses by itself."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

from gap_bioimage.camera.camera import Detector
from gap_bioimage.config import Camera, RunConfig
from gap_bioimage.errors import ConfigError
from gap_bioimage.simulation import simulate_truth
from gap_bioimage.training import choices
from gap_bioimage.training.choices import choose_dim, choose_repeats, choose_sizes
from gap_bioimage.training.patches import Split, Stack


def image(**sizes: int) -> xr.DataArray:
    return xr.DataArray(np.ones(tuple(sizes.values()), np.uint8), dims=tuple(sizes))


def split(shape: tuple[int, ...] = (1, 96, 80), mean: float = 4.0) -> Split:
    stack = Stack(np.random.default_rng(0).poisson(mean, shape).astype(np.uint16))
    return Split([stack], [stack])


@pytest.mark.parametrize(
    ("images", "settings", "dim"),
    [
        ([image(y=40, x=40)], {}, 2),
        ([image(z=7, y=40, x=40)], {}, 2),
        ([image(z=12, y=40, x=40)], {}, 3),
        ([image(z=12, y=40, x=40), image(y=40, x=40)], {}, 2),
        ([image(z=12, y=40, x=40)], {"network": {"dim": 2}}, 2),
        ([image(z=3, y=40, x=40)], {"network": {"dim": 3}}, 3),
        ([image(z=12, y=40, x=40)], {"train": {"patch_px": (16, 16)}}, 2),
        ([image(z=4, y=40, x=40)], {"network": {"z_conv_stage": 1}}, 3),
    ],
)
def test_dimensions_are_those_of_the_images_unless_set(images: Any, settings: dict[str, Any], dim: int) -> None:
    assert choose_dim(RunConfig.from_dict(settings), images).network.dim == dim


@pytest.mark.parametrize(
    ("shared", "images", "train", "expected"),
    [
        ([0.05, -0.2, 0.0], [image(t=5, y=40, x=40)], {}, "t"),
        ([0.3, None, None], [image(t=5, y=40, x=40), image(t=2, y=40, x=40)], {}, "t"),
        ([0.3, 0.0, 0.0], [image(t=5, y=40, x=40), image(y=40, x=40)], {}, None),
        ([0.3, 0.0, 0.2], [image(t=5, y=40, x=40)], {}, None),
        ([0.05, 0.05, 0.0], [image(t=5, y=40, x=40)], {}, None),
        (None, [image(t=5, y=40, x=40)], {}, None),
        ([0.3, 0.0, 0.0], [image(t=5, y=40, x=40)], {"repeats": None}, None),
    ],
)
def test_frames_nearby_are_targets_if_pixels_share_noise_and_frames_do_not(
    shared: Any, images: Any, train: dict[str, Any], expected: str | None
) -> None:
    detector = None if shared is None else Detector(Camera(gain=2.0, offset=100, measured={"correlated": shared}))
    assert choose_repeats(RunConfig.from_dict({"train": train}), images, detector).train.repeats == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("muon", 4e-3, 20)),
        ({"train": {"optimizer": "adam"}}, ("adam", 2e-3, 200)),
        ({"train": {"learning_rate": 5e-4, "warmup_steps": 7}}, ("muon", 5e-4, 7)),
        ({"network": {"anchor": False}}, ("adam", 1e-3, 200)),
    ],
)
def test_anchored_networks_learn_by_muon(settings: dict[str, Any], expected: Any) -> None:
    settings = {**settings, "train": {"steps": 5, **settings.get("train", {})}}
    chosen = choose_sizes(RunConfig.from_dict(settings), split(), accelerator=False).train
    assert (chosen.optimizer, chosen.learning_rate, chosen.warmup_steps) == expected


@pytest.mark.parametrize(
    ("purpose", "anchor", "expected"),
    [
        (None, True, True),
        ("denoise", True, True),
        ("sample", True, False),
        ("generate", True, False),
        (None, False, False),
    ],
)
def test_thinned_camera_images_keep_the_read_noise_where_networks_are_to_denoise(
    purpose: str | None, anchor: bool, expected: bool
) -> None:
    settings = {"train": {"steps": 5, "purpose": purpose}, "network": {"anchor": anchor}}
    camera = {"gain": 2.0, "offset": 100, "read_noise": 1.5}
    images = split((1, 200, 200))
    assert not choose_sizes(RunConfig.from_dict(settings), images, accelerator=False).thinning.read_noise
    chosen = choose_sizes(RunConfig.from_dict({**settings, "camera": camera}), images, accelerator=False).thinning
    assert chosen.read_noise == expected
    assert chosen.max_db is not None
    assert (chosen.max_db - chosen.min_db < 10.1) == expected


@pytest.mark.parametrize(
    ("settings", "bf16", "accelerator", "precision"),
    [
        ({}, True, False, "bf16-mixed"),
        ({}, False, False, "32-true"),
        ({}, True, True, "32-true"),
        ({"train": {"precision": "32-true"}}, True, False, "32-true"),
        ({"network": {"anchor": False}}, True, False, "32-true"),
    ],
)
def test_anchored_networks_learn_in_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], bf16: bool, accelerator: bool, precision: str
) -> None:
    monkeypatch.setattr(choices, "_has_bf16", lambda: bf16)
    settings = {**settings, "train": {"steps": 5, **settings.get("train", {})}}
    assert choose_sizes(RunConfig.from_dict(settings), split(), accelerator).train.precision == precision


@pytest.mark.parametrize(
    ("frames", "settings", "version"),
    [
        (simulate_truth(3, (16, 64, 64), 1).values, {}, 4),
        (np.broadcast_to(simulate_truth(2, (64, 64), 1).values, (40, 64, 64)), {}, 5),
        (np.broadcast_to(simulate_truth(2, (64, 64), 1).values, (40, 64, 64)), {"anchor_version": 4}, 4),
    ],
    ids=["volume", "movie", "set"],
)
@pytest.mark.parametrize("ceiling", [None, 1])
def test_volumes_that_change_slowly_along_z_are_smoothed_along_it(
    frames: Any, settings: dict[str, Any], version: int, ceiling: int | None
) -> None:
    counts = np.random.default_rng(0).poisson(0.2 * frames).astype(np.uint8)
    stack = Stack(counts[None] if ceiling is None else np.minimum(counts, 1)[None])
    config = {"network": {"dim": 3, **settings}, "thinning": {"ceiling": ceiling}, "train": {"steps": 5}}
    chosen = choose_sizes(RunConfig.from_dict(config), Split([stack], [stack]), accelerator=False)
    assert chosen.network.anchor_version == version
    assert chosen.train.patch_px == ((32, 32, 32) if version == 5 else (12, 48, 48))


@pytest.mark.parametrize(
    ("scenes", "planes", "version"), [([1] * 3, 0, 6), ([1, 2, 3], 0, 4), ([1] * 3, 40, 7), ([1, 2], 40, 5)]
)
def test_channels_that_share_structures_are_smoothed_in_their_sum(scenes: list[int], planes: int, version: int) -> None:
    rate = np.stack([0.2 * simulate_truth(2, (64, 64), scene).values for scene in scenes])
    rate = np.repeat(rate[:, None], planes, 1) if planes else rate
    stack = Stack(np.random.default_rng(0).poisson(rate).astype(np.uint8))
    config = {"network": {"dim": 3 if planes else 2, "channels": len(scenes)}, "train": {"steps": 5}}
    chosen = choose_sizes(RunConfig.from_dict(config), Split([stack], [stack]), accelerator=False)
    assert chosen.network.anchor_version == version


def test_sizes_follow_the_machine_and_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "_seconds_per_step", lambda *_: 0.5)
    cpu, fast = (choose_sizes(RunConfig(), split(), accelerator) for accelerator in (False, True))
    assert (cpu.network.depth, cpu.network.start_filts, cpu.train.batch_size) == (3, 16, 8)
    assert cpu.train.steps == 1000  # eight minutes
    assert cpu.train.patience is not None
    assert fast.network == cpu.network
    assert fast.train.batch_size > cpu.train.batch_size
    assert fast.train.steps > cpu.train.steps
    given = {"network": {"depth": 2}, "train": {"steps": 7, "batch_size": 3, "patch_px": (9, 9)}}
    chosen = choose_sizes(RunConfig.from_dict(given), split(), accelerator=False)
    assert (chosen.network.depth, chosen.network.start_filts) == (2, 16)
    train = chosen.train
    assert (train.steps, train.batch_size, train.patch_px, train.patience) == (7, 3, (9, 9), None)
    assert train.validate_every == 20
    # all that was chosen counts as set: a resumed run has the same
    assert choose_sizes(RunConfig.from_dict(cpu.model_dump()), split(mean=9.0), accelerator=True) == cpu


@pytest.mark.parametrize(
    ("shape", "patch", "accelerator", "batch"),
    [
        ((1, 200, 300), None, False, 8),
        ((1, 200, 300), None, True, 16),
        ((1, 200, 32), None, False, 16),  # windows are no larger than the images
        ((1, 200, 300), (128, 128), False, 2),
        ((1, 200, 300), (200, 300), False, 1),
        ((1, 16, 16), None, False, 64),
        ((1, 20, 96, 96), None, False, 2),
        ((1, 6, 96, 96), None, False, 4),
    ],
)
def test_a_step_sees_as_many_pixels_whatever_the_size_of_windows(
    shape: tuple[int, ...], patch: Any, accelerator: bool, batch: int
) -> None:
    given = {"network": {"dim": len(shape) - 1}, "train": {"steps": 1, **({"patch_px": patch} if patch else {})}}
    assert choose_sizes(RunConfig.from_dict(given), split(shape), accelerator).train.batch_size == batch


@pytest.mark.parametrize("dim", [2, 3])
def test_a_size_is_the_same_network_on_any_machine_and_settings_win(dim: int) -> None:
    seen, shape = [], (1, 64, 64) if dim == 2 else (1, 8, 64, 64)
    for size in ("small", "base", "large"):
        config = RunConfig.from_dict({"network": {"dim": dim}, "train": {"steps": 1, "size": size}})
        cpu, fast = (choose_sizes(config, split(shape), accelerator=yes).network for yes in (False, True))
        assert cpu == fast
        seen.append(cpu)
    assert seen[0] != seen[1] != seen[2]
    assert [network.stem > 1 for network in seen] == [True, False, False]
    given = RunConfig.from_dict({"network": {"dim": dim, "stem": 1}, "train": {"steps": 1, "size": "small"}})
    assert choose_sizes(given, split(shape), accelerator=False).network == seen[0].model_copy(update={"stem": 1})
    assert choose_sizes(given, split((*shape[:-2], 20, 200)), accelerator=True).network.depth == 2  # of small images


@pytest.mark.parametrize("seconds", [0.01, 0.4, 1.7, 3.0, 1000.0])
def test_a_laptop_trains_less_than_a_quarter_of_an_hour(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "_seconds_per_step", lambda *_: seconds)
    steps = choose_sizes(RunConfig(), split(), accelerator=False).train.steps
    assert steps * seconds < 14 * 60 or steps == 20
    assert steps >= min(400, 12 * 60 / seconds)


@pytest.mark.parametrize(
    ("purpose", "mean", "given", "low", "high"),
    [
        (None, 50.0, {}, -22.5, 17),
        (None, 0.3, {}, -40.0, -4.3),
        ("denoise", 50.0, {}, -2.5, 17),
        ("generate", 50.0, {}, -40.0, 17),
        ("denoise", 0.3, {}, -24.3, -4.3),
        ("sample", 4.0, {"min_db": -9.0}, -9.0, 12.2),
        (None, 50.0, {"max_db": 40.0}, -22.5, 17),  # the data end before
        (None, 50.0, {"max_db": 5.0}, -35, 5.0),
        # what is binned is brighter, but the darkest inputs are of the images themselves
        ("sample", 50.0, {}, -2.5, 23),
        ("sample", 50.0, {"binned": 0.0, "max_fraction": 0.5}, -2.5, 17),
        ("sample", 50.0, {"ceiling": 200}, -2.5, 17),
        ("sample", 50.0, {"max_db": 15.0}, -5, 15),
        ("denoise", 50.0, {"binned": 0.1}, -2.5, 23),
    ],
)
def test_the_range_ends_at_the_brightest_window_and_begins_where_the_purpose_needs(
    purpose: Any, mean: float, given: dict[str, float], low: float, high: float
) -> None:
    train = {"steps": 1, "purpose": purpose, "patch_px": [16, 16]}
    settings = RunConfig.from_dict({"train": train, "thinning": given})
    thinning = choose_sizes(settings, split(mean=mean), accelerator=False).thinning
    assert (thinning.min_db, thinning.max_db) == pytest.approx((low, high), abs=0.6)
    samples = purpose == "sample"
    assert thinning.max_fraction == given.get("max_fraction", 0.95 if samples else 0.8)
    assert thinning.binned == given.get("binned", 0.4 if samples and "ceiling" not in given else 0.0)


def test_a_range_that_begins_above_all_windows_is_refused() -> None:
    settings = RunConfig.from_dict({"train": {"steps": 1}, "thinning": {"min_db": 20}})
    with pytest.raises(ConfigError):
        choose_sizes(settings, split(), accelerator=False)
