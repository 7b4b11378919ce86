import ast
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from torch import Tensor

from gap_bioimage.exporting.weights import architecture_source, without_debug_records
from gap_bioimage.inference.reach import receptive_field_px
from gap_bioimage.network import (
    PhotonDenoiser,
    UNet,
    box_mean,
    conserve_photons,
    encode,
    pad_to_multiple,
    paired,
    rate_from_log_rate,
)

VARIANTS: list[dict[str, Any]] = [
    {"dim": dim, "up_mode": up, "merge_mode": merge, "z_conv_stage": z, "depth": 3}
    for dim, up, merge in itertools.product((2, 3), ("transpose", "upsample"), ("add", "concat"))
    for z in ((None,) if dim == 2 else (None, 1, 2))
] + [
    {"dim": 2, "depth": 3, "stem": 2, "z_conv_stage": None},
    {"dim": 3, "depth": 3, "stem": 4, "up_mode": "upsample", "z_conv_stage": 1},
]
SMALL: dict[str, Any] = {"start_filts": 2, "levels": 3}


def name_of(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values())


def poisson(shape: tuple[int, ...], mean: float = 3.0, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).poisson(mean, shape).astype(np.float32))


def uneven(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        # outputs of the size of inputs, as in a trained network: log-rates of a few nats
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    return module.eval().requires_grad_(False)


def positive(network: UNet) -> UNet:
    for name, parameter in network.named_parameters():
        parameter.data.fill_(0.0 if name.endswith("bias") else 0.1)
    return network.double().eval().requires_grad_(False)


def network_of(variant: dict[str, Any], **more: Any) -> UNet:
    return UNet(**{**SMALL, **variant, **more})


def test_only_torch_and_the_standard_library_are_imported() -> None:
    tree = ast.parse(architecture_source(sampling=True))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported == {"math", "typing", "torch"}


@pytest.mark.parametrize("log1p", [True, False])
def test_encoding_is_the_papers_sines_and_the_logarithm(log1p: bool) -> None:
    photons = poisson((2, 2, 5, 4), 40)
    encoded = encode(photons, 4, log1p)
    parts = [np.sin(photons.numpy().astype(float) * 10.0**-level) for level in range(4)]
    parts += [np.log1p(photons.numpy())] if log1p else []
    np.testing.assert_allclose(encoded.numpy(), np.concatenate(parts, 1), atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=3), data=st.data())
def test_padding_mirrors_at_the_end(shape: list[int], data: st.DataObject) -> None:
    step = [data.draw(st.sampled_from([1, 2, 4, 8, 16])) for _ in shape]
    x = torch.rand(1, 1, *shape)
    padded = pad_to_multiple(x, step)
    widths = [(0, 0), (0, 0), *((0, -size % by) for size, by in zip(shape, step, strict=True))]
    np.testing.assert_array_equal(padded.numpy(), np.pad(x.numpy(), widths, mode="symmetric"))


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_other_sizes_are_those_of_the_mirrored_image_cut(variant: dict[str, Any]) -> None:
    network = uneven(network_of(variant))
    shape = (3, 6, 5)[-variant["dim"] :]
    photons = poisson((1, 1, *shape))
    whole = tuple(-(-size // step) * step for size, step in zip(shape, network.step_px, strict=True))
    widths = [(0, 0), (0, 0), *((0, w - s) for w, s in zip(whole, shape, strict=True))]
    padded = torch.from_numpy(np.pad(photons.numpy(), widths, mode="symmetric"))
    cut = (..., *(slice(0, size) for size in shape))
    assert torch.equal(network(photons), network(padded)[cut])
    # and a multiple of the step is not touched at all
    assert pad_to_multiple(padded, network.step_px) is padded


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_step_is_the_product_of_the_pools(variant: dict[str, Any]) -> None:
    stages = variant.get("z_conv_stage") or variant["depth"]
    along_z, planar = 2 ** min(stages, variant["depth"] - 1), 4 * variant.get("stem", 1)
    assert network_of(variant).step_px == ([planar, planar] if variant["dim"] == 2 else [along_z, planar, planar])


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_receptive_field_is_what_single_photons_reach(variant: dict[str, Any], depth: int) -> None:
    # with positive weights and no bias, exactly the pixels that see the photon differ from zero
    network = positive(network_of(variant, depth=depth, start_filts=1, levels=1))
    claimed = receptive_field_px(network)
    assert len(claimed) == variant["dim"]
    for axis, reach in enumerate(claimed):
        step = network.step_px[axis]
        centre = -(-(reach + step + 2) // step) * step
        size = [network.step_px[other] for other in range(variant["dim"])]
        size[axis] = 2 * centre + step
        photons = torch.zeros(step, 1, *size, dtype=torch.float64)
        for position in range(step):
            photons[position].select(axis + 1, centre + position)[(..., *(0 for _ in size[1:]))] = 1
        others = tuple(d for d in range(1, photons.dim()) if d != axis + 2)
        seen = network(photons).abs().amax(others) > 0
        distance = [
            int((torch.nonzero(row).flatten() - (centre + position)).abs().max()) for position, row in enumerate(seen)
        ]
        assert max(distance) == reach


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_every_size_keeps_its_shape_and_scripted_equals_eager(variant: dict[str, Any]) -> None:
    network = uneven(network_of(variant, channels=2))
    denoiser = PhotonDenoiser([3] * variant["dim"], **{**SMALL, **variant, "channels": 2})
    denoiser.network.load_state_dict(network.state_dict())
    denoiser.eval().requires_grad_(False)
    scripts = torch.jit.script(network), torch.jit.script(denoiser)
    # twice each: the second call runs what the profiler specialised, and another size must still work
    for seed, size in enumerate([(4, 8, 8), (4, 8, 8), (3, 5, 7), (1, 1, 1), (1, 2, 3), (3, 1, 17)]):
        photons = poisson((2, 2, *size[-variant["dim"] :]), seed=seed)
        for eager, script in zip((network, denoiser), scripts, strict=True):
            result = eager(photons)
            assert result.shape == photons.shape
            assert torch.isfinite(result).all()
            assert torch.equal(script(photons), result)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v["z_conv_stage"] != 2], ids=name_of)
def test_images_of_a_batch_do_not_meet(variant: dict[str, Any]) -> None:
    denoiser = uneven(PhotonDenoiser([5] * variant["dim"], **SMALL, **variant))
    photons = poisson((3, 1, *(6, 9, 8)[-variant["dim"] :]))
    photons[1] *= 1e4
    together = denoiser(photons)
    for index in range(3):
        torch.testing.assert_close(together[index], denoiser(photons[index : index + 1])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "images"),
    [((1, 3, 8, 40, 40), 2), ((1, 64, 8, 40, 40), 2), ((1, 64, 8, 41, 40), 1), ((2, 3, 8, 8, 8), 2), ((1, 3, 8, 8), 1)],
)
def test_single_small_volumes_run_in_pairs_as_any_others(shape: tuple[int, ...], images: int) -> None:
    assert len(paired(torch.zeros(shape), min(shape[1], 64))) == images
    assert len(paired(torch.zeros(shape, dtype=torch.bfloat16), 1)) == shape[0]


@pytest.mark.parametrize("size", [(6, 14, 18), (5, 130, 16)])  # pairs at all levels, and at the lower ones
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v["dim"] == 3], ids=name_of)
def test_the_gradient_of_one_volume_is_that_of_two_halved(variant: dict[str, Any], size: tuple[int, ...]) -> None:
    network, photons = network_of(variant, start_filts=32), poisson((1, 1, *size))
    uneven(network).requires_grad_(True)
    found = []
    for batch in (photons, torch.cat([photons, photons])):
        network(batch).square().mean().backward()  # type: ignore[no-untyped-call]
        found.append([parameter.grad for parameter in network.parameters()])
        network.zero_grad()
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(two.abs().max()))


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 1}, {"up_mode": "nearest"}, {"merge_mode": "mean"}, *({"box_px": px} for px in ([4, 5], [5], [5, 0]))],
)
def test_unknown_variants_and_boxes_without_a_centre_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected (dim 2 or 3|2 odd numbers)"):
        PhotonDenoiser(**{"box_px": [5, 5], **SMALL, **wrong})


@pytest.mark.parametrize("dim", [2, 3])
def test_an_untrained_network_starts_uniform(dim: int) -> None:
    log_rate = UNet(dim=dim, depth=2, **SMALL)(poisson((2, 1, *[6] * dim)))
    assert torch.equal(log_rate, torch.zeros_like(log_rate))


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=3), data=st.data(), seed=st.integers(0, 1000))
def test_box_mean_is_scipys_uniform_filter(shape: list[int], data: st.DataObject, seed: int) -> None:
    box = [2 * data.draw(st.integers(0, 12)) + 1 for _ in shape]
    x = np.random.default_rng(seed).gamma(1.0, 5.0, (2, 3, *shape))
    expected = [[uniform_filter(plane, box, mode="constant") for plane in item] for item in x]
    np.testing.assert_allclose(box_mean(torch.from_numpy(x), box).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 1, 9, 12), (2, 3, 8, 7), (2, 2, 4, 6, 5)])
def test_photons_are_conserved_exactly_where_the_box_covers_the_image(shape: tuple[int, ...]) -> None:
    photons = poisson(shape, 4.0)
    log_rate = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    rate = conserve_photons(photons, log_rate, [2 * size - 1 for size in shape[2:]])
    dims = tuple(range(1, len(shape)))
    torch.testing.assert_close(rate.double().sum(dims), photons.double().sum(dims), rtol=1e-6, atol=0)
    torch.testing.assert_close(rate, rate_from_log_rate(log_rate, photons), rtol=1e-5, atol=1e-6)
    # the shares of the softmax are kept too
    share = torch.softmax(log_rate.double().flatten(1), 1)
    torch.testing.assert_close(rate.double().flatten(1) / photons.double().sum(dims)[:, None], share, rtol=1e-5, atol=0)


def test_photons_are_nearly_conserved_in_smaller_boxes() -> None:
    truth = 20 * (1.2 + np.sin(np.arange(128) / 20)[:, None] * np.cos(np.arange(128) / 15))
    photons = torch.from_numpy(np.random.default_rng(0).poisson(truth).astype(np.float32))[None, None]
    log_rate = torch.from_numpy(np.log(truth).astype(np.float32))[None, None]
    rate = conserve_photons(photons, log_rate, [15, 15])
    assert float(rate.sum()) == pytest.approx(float(photons.sum()), rel=2e-3)
    np.testing.assert_allclose(rate[0, 0].numpy(), truth, rtol=0.15)


def test_a_perfect_prediction_returns_itself_in_any_box() -> None:
    photons = poisson((2, 2, 11, 13), 9.0) + 1
    rate = conserve_photons(photons, torch.log(photons), [5, 3])
    torch.testing.assert_close(rate, photons, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shift", [-1000.0, -3.0, 0.25, 200.0])
@pytest.mark.parametrize("box_px", [[3, 3], [41, 41]])
def test_a_constant_in_the_log_rate_changes_nothing(shift: float, box_px: list[int]) -> None:
    photons = poisson((2, 2, 9, 8))
    # multiples of 1/64, so that adding the shift is exact
    log_rate = torch.round(64 * torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(2))) / 64
    shifted = log_rate + torch.tensor([shift, 0.0])[:, None, None, None]
    assert torch.equal(conserve_photons(photons, shifted, box_px), conserve_photons(photons, log_rate, box_px))
    torch.testing.assert_close(
        rate_from_log_rate(shifted, photons), rate_from_log_rate(log_rate, photons), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("size", [200.0, 3e4])
@pytest.mark.parametrize("mean", [0.01, 3.0, 1e5])
@pytest.mark.parametrize("box_px", [[3, 3], [5, 7], [81, 81]])
def test_extreme_log_rates_do_not_overflow(size: float, mean: float, box_px: list[int]) -> None:
    photons = poisson((2, 1, 20, 30), mean)
    signs = torch.ones(2, 1, 20, 30)
    signs[..., 12:] = -1
    signs[1] = torch.sign(torch.randn(1, 20, 30, generator=torch.Generator().manual_seed(3)))
    for rate in (conserve_photons(photons, size * signs, box_px), rate_from_log_rate(size * signs, photons)):
        assert torch.isfinite(rate).all()
        assert (rate >= 0).all()
    # one image's huge log-rates leave its mates alone
    assert torch.equal(
        conserve_photons(photons[1:], size * signs[1:], box_px), conserve_photons(photons, size * signs, box_px)[1:]
    )
    whole = rate_from_log_rate(size * signs, photons).double().flatten(1).sum(1)
    torch.testing.assert_close(whole, photons.double().flatten(1).sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_denoiser_of_nothing_is_nothing_and_negatives_count_as_nothing(dim: int) -> None:
    denoiser = uneven(PhotonDenoiser([3] * dim, dim=dim, depth=2, **SMALL))
    photons = poisson((1, 1, *[5] * dim))
    assert torch.equal(denoiser(torch.zeros_like(photons)), torch.zeros_like(photons))
    assert torch.equal(denoiser(torch.where(photons > 0, photons, -7.0)), denoiser(photons))


OLD_SCRIPT = """
import sys, torch
for number in range(int(sys.argv[2])):
    photons = torch.load(f"{sys.argv[1]}/photons{number}")
    with torch.no_grad():
        rates = [torch.jit.load(f"{sys.argv[1]}/{number}.pt")(photons) for _ in range(2)]
    torch.save(rates, f"{sys.argv[1]}/rate{number}")
"""


def test_archives_run_in_an_older_torch(tmp_path: Path, old_torch: Callable[..., None]) -> None:
    variants = [*(VARIANTS[number] for number in (0, 3, 5, 10, 15)), *VARIANTS[-2:]]  # which have every part
    expected = []
    for number, variant in enumerate(variants):
        denoiser = uneven(PhotonDenoiser([5] * variant["dim"], **SMALL, **variant), number)
        torch.jit.save(torch.jit.script(denoiser), tmp_path / "full.pt")
        (tmp_path / f"{number}.pt").write_bytes(without_debug_records((tmp_path / "full.pt").read_bytes()))
        photons = poisson((2, 1, *(5, 21, 18)[-variant["dim"] :]), 6.0)
        torch.save(photons, tmp_path / f"photons{number}")
        expected.append(denoiser(photons))
    old_torch(OLD_SCRIPT, tmp_path, len(variants))
    for number, rate in enumerate(expected):
        for old in torch.load(tmp_path / f"rate{number}", weights_only=True):
            torch.testing.assert_close(old, rate, rtol=1e-4, atol=1.5e-4)
