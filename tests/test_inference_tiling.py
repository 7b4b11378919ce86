"""Tiles cover an image exactly, and together give what the whole image gives."""

import copy
import functools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from fixtures_model import InPlaceOf, random_network
from hypothesis import given
from hypothesis import strategies as st

from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.reach import receptive_field_px
from gap_bioimage.inference.tiling import TiledNetwork, tiles

AXIS = st.tuples(
    st.integers(1, 90),  # size
    st.sampled_from([1, 2, 4, 8]),  # step
    st.integers(0, 19),  # halo
    st.integers(0, 30),  # pixels beyond the smallest tile
)
NETWORKS = [
    {"dim": 2, "depth": 3},
    {"dim": 2, "depth": 3, "up_mode": "upsample", "merge_mode": "concat"},
    {"dim": 2, "depth": 1, "channels": 2},
    {"dim": 3, "depth": 2},
    {"dim": 3, "depth": 2, "up_mode": "upsample"},
    {"dim": 3, "depth": 2, "start_filts": 2, "z_conv_stage": 1, "merge_mode": "concat"},
]


def round_up(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def smallest_tile(step: int, halo: int) -> int:
    return 2 * round_up(halo, step) + step


@given(st.lists(AXIS, min_size=1, max_size=3))
def test_every_pixel_is_written_once_and_every_tile_keeps_its_place(axes: list[Any]) -> None:
    shape, step, halo, extra = (list(column) for column in zip(*axes, strict=True))
    tile = [smallest_tile(s, h) + e for s, h, e in zip(step, halo, extra, strict=True)]
    image = np.arange(math.prod(shape)).reshape(shape)
    copy, written = np.zeros_like(image), np.zeros(shape, int)
    for part in tiles(shape, tile, halo, step):
        written[part.inner] += 1
        copy[part.inner] = image[part.outer][part.crop]
        for axis, (outer, inner) in enumerate(zip(part.outer, part.inner, strict=True)):
            margin = round_up(halo[axis], step[axis])
            assert outer.start % step[axis] == 0
            assert outer.stop - outer.start <= tile[axis]
            assert outer.start == 0 or inner.start - outer.start == margin
            assert outer.stop == shape[axis] or outer.stop - inner.stop == margin
    np.testing.assert_array_equal(written, 1)
    np.testing.assert_array_equal(copy, image)


def test_tiles_and_halos_that_cannot_be_are_refused() -> None:
    network, photons = random_network(dim=2, depth=3), torch.ones(1, 1, 100, 100)
    assert TiledNetwork(network, np.array((64, 36)), (13, 13))(photons).shape == photons.shape
    with pytest.raises(ConfigError, match="36 px"):  # halos rounded up to steps, and a block between
        TiledNetwork(network, (64, 35), (13, 13))(photons)
    tiles_: list[Any] = [(9, 9, 64), 64, "64,64", (64, None), (0, 64)]
    halos: list[Any] = [(40,), (4, -1), 3, (1.5, 2)]
    for tile, halo in [*((tile, None) for tile in tiles_), *(((64, 64), halo) for halo in halos)]:
        with pytest.raises(ConfigError, match="expected 2 whole numbers"):
            TiledNetwork(network, tile, halo)


def photons_for(network: Any, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rate = torch.rand((2, network.channels, *shape), generator=generator) ** 4 * 20
    return torch.poisson(rate, generator)


@pytest.mark.parametrize(("config", "odd"), [(NETWORKS[0], 0), (NETWORKS[3], 0), *((config, 3) for config in NETWORKS)])
def test_tiles_give_what_the_whole_image_gives(config: dict[str, Any], odd: int) -> None:
    network = random_network(seed=2, **config)
    reach, step = receptive_field_px(network), network.step_px
    tile = [smallest_tile(s, r) + s for s, r in zip(step, reach, strict=True)]
    cut = [True] * 2 if network.dim == 2 else [True, False, True]
    shape = tuple(t + s + odd if c else 7 for t, s, c in zip(tile, step, cut, strict=True))
    photons = photons_for(network, shape)
    with torch.inference_mode():
        whole = network(photons)
    seen: list[tuple[int, int]] = []
    tiled = TiledNetwork(network, tile)(photons, lambda *done: seen.append(done))
    assert len(seen) >= 2 ** sum(cut)
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert tiled.dtype == torch.float32
    assert float((tiled - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
    assert float(whole.std()) > 0.01 * float(whole.abs().max())


@functools.cache
def wide_network(**config: Any) -> Any:
    return random_network(**{**config, "start_filts": 32})


@given(st.lists(st.integers(1, 40_000), min_size=3, max_size=3), st.sampled_from(NETWORKS))
def test_automatic_tiles_fit_memory_or_are_the_smallest_that_work(shape: list[int], config: dict[str, Any]) -> None:
    network = wide_network(**config)
    shape = shape[-network.dim :]
    reach, step = receptive_field_px(network), network.step_px
    tile = TiledNetwork(network).tile_for(shape)
    smallest = [min(size, smallest_tile(s, r)) for size, s, r in zip(shape, step, reach, strict=True)]
    assert all(low <= t <= max(low, size) for low, t, size in zip(smallest, tile, shape, strict=True))
    assert math.prod(tile) * 32 * 4 * 8 <= 2e9 or list(tile) == smallest
    per_axis = zip(shape, tile, reach, step, strict=True)
    assert all(tiles([size], [t], [r], [s]) for size, t, r, s in per_axis)


def test_parts_of_an_image_are_what_they_are_in_the_whole() -> None:
    network = random_network(seed=2, depth=3)
    photons, wanted = photons_for(network, (90, 150)), [slice(8, 83), slice(60, 150)]
    part = TiledNetwork(network, [80, 80])(photons, wanted=wanted)
    whole = TiledNetwork(network)(photons)[(..., *wanted)]
    assert float((part - whole).abs().max()) <= 1e-4 * float(whole.abs().max())


@pytest.mark.parametrize(("filters", "narrower"), [(8, True), (32, False)])
def test_an_anchor_takes_memory_before_the_network_and_not_beside_it(filters: int, narrower: bool) -> None:
    tile, anchored = (
        math.prod(TiledNetwork(random_network(start_filts=filters, anchor=anchor), None, (8, 8)).tile_for((9000, 9000)))
        for anchor in (False, True)
    )
    assert (anchored < 0.8 * tile) == narrower


class Exhausted(InPlaceOf):
    """A network on a machine whose memory holds so many pixels."""

    def __init__(self, network: Any, most_px: int, error: Exception) -> None:
        super().__init__(network)
        self.most_px, self.error, self.sizes = most_px, error, []

    def __deepcopy__(self, memo: Any) -> "Exhausted":
        return self

    def forward(self, photons: torch.Tensor) -> torch.Tensor:
        self.sizes.append(photons[0, 0].numel())
        if self.sizes[-1] > self.most_px:
            raise self.error
        log_rate: torch.Tensor = self.network(photons)
        return log_rate


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["python", "cpu", "gpu"],
)
@pytest.mark.parametrize("tile", [None, (150, 150)])
def test_tiles_are_halved_until_the_memory_holds_them(error: Exception, tile: tuple[int, int] | None) -> None:
    network = random_network(seed=4, depth=3)
    photons = photons_for(network, (150, 170))[:1]
    tight: Any = Exhausted(network, 110 * 110, error)
    tiled = TiledNetwork(tight, tile)
    seen: list[tuple[int, int]] = []
    log_rate = tiled(photons, lambda *done: seen.append(done))
    assert tight.sizes[0] > tight.most_px >= tight.sizes[-1]
    assert seen[-1][0] == seen[-1][1] > 1
    whole = network(photons)
    assert float((log_rate - whole).abs().max()) <= 1e-4 * float(whole.abs().max())
    tight.sizes.clear()
    tiled(photons)
    assert max(tight.sizes) <= tight.most_px


def test_no_tile_is_small_enough_for_no_memory_and_other_errors_are_not_hidden() -> None:
    photons = photons_for(random_network(), (64, 64))[:1]
    for error in (MemoryError("none"), RuntimeError("shapes do not fit")):
        tight: Any = Exhausted(random_network(), 0, error)
        with pytest.raises(type(error)) as raised:
            TiledNetwork(tight)(photons)
        assert raised.value is error
        assert (len(tight.sizes) == 1) == isinstance(error, RuntimeError)


def test_bfloat16_changes_the_result_a_little_and_the_anchor_not_at_all(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_network(seed=5, anchor=True, anchor_version=4)
    photons = photons_for(network, (60, 60))[:1]
    tiled = TiledNetwork(network)
    exact = tiled(photons)
    for precision in ("float32", "auto"):
        assert tiled.choose_precision(precision) == "float32"
        assert torch.equal(tiled(photons), exact)
    with caplog.at_level("INFO", logger="gap_bioimage"):
        assert tiled.choose_precision("bf16") == "bf16"
    rough = tiled(photons)
    change = float((rough.exp() - exact.exp()).square().mean().sqrt() / exact.exp().square().mean().sqrt())
    assert 1e-6 < change < 0.02
    told = float(re.search(r"([\d.]+) %", caplog.records[-1].getMessage())[1]) / 100
    assert change / 3 < told < 3 * change
    with monkeypatch.context() as patched:
        patched.delattr(TiledNetwork, "_change_in_bf16")  # it is known by now
        assert TiledNetwork(copy.deepcopy(network)).choose_precision("bf16") == "bf16"
    with pytest.raises(ConfigError, match="half"):
        tiled.choose_precision("half")
