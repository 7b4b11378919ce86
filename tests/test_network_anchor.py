"""Networks that correct smoothed counts: safe for any counts, alike in tiles, with the scale of the photons."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from gap_bioimage.anchor import Anchor
from gap_bioimage.config import NetworkConfig, RunConfig
from gap_bioimage.filters import without_hot_pixels
from gap_bioimage.inference.reach import receptive_field_px
from gap_bioimage.network import PhotonDenoiser, UNet, photons_of
from gap_bioimage.simulation import simulate_truth

KINDS: list[dict[str, Any]] = [
    {"dim": 2},
    {"dim": 2, "channels": 2, "up_mode": "upsample", "merge_mode": "concat"},
    {"dim": 3, "z_conv_stage": 1},
    {"dim": 2, "stem": 2},
    {"dim": 3, "stem": 2},
    {"dim": 2, "anchor_version": 1},
    {"dim": 3, "anchor_version": 1},
    {"dim": 3, "anchor_version": 2},
    {"dim": 3, "anchor_version": 3},
    {"dim": 3, "anchor_version": 5},
    {"dim": 2, "channels": 3, "anchor_version": 6},
    {"dim": 3, "channels": 2, "anchor_version": 7},
]
SETTINGS: dict[str, Any] = {"depth": 2, "start_filts": 3, "anchor": True, "anchor_version": 4}


OLD_LOG_RATES = [1.316105604171753, 1.2373114824295044, 0.8275614976882935]  # of three pixels


def network_of(**settings: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(**{**SETTINGS, **settings})
    torch.nn.init.normal_(network.conv_final.weight, std=0.2)
    return network.eval().requires_grad_(False)


def counts_of(network: UNet, *size: int, mean: float = 3.0) -> Tensor:
    spatial = size if network.dim == 2 else (5, *size)
    rate = mean * (1.2 + torch.sin(torch.arange(float(spatial[-1])) / 5))
    drawn = np.random.default_rng(1).poisson(rate.expand(1, network.channels, *spatial).numpy())
    return torch.from_numpy(drawn.astype(np.float32))


def median_change(values: Tensor, other: Tensor) -> float:
    return abs(float(values.median() / other.median()) - 1)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("mean", [0.03, 1.0, 100.0, 1e4])
def test_untrained_networks_are_filters_with_the_right_total(dim: int, mean: float, version: int) -> None:
    network = UNet(dim=dim, depth=2, start_filts=2, anchor=True, anchor_version=version)
    counts = counts_of(network, 60, 70, mean=mean)
    rate = network.rate(counts, network(counts), [])
    assert float(rate.sum() / counts.sum()) == pytest.approx(1, abs=0.06)
    truth = mean * (1.2 + torch.sin(torch.arange(70.0) / 5))
    assert float((rate - truth).square().mean()) < 0.6 * float((counts - truth).square().mean())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_counts_and_any_size_have_a_rate(kind: dict[str, Any]) -> None:
    network = network_of(**kind)
    for size in ((1, 1), (1, 9), (7, 2), (33, 18)):
        for counts in (0.0, 1.0, 1e6, 1e8):
            image = torch.full_like(counts_of(network, *size), counts)
            log_rate = network(image)
            assert log_rate.shape == image.shape
            assert log_rate.isfinite().all()
            image[..., 0, 0] = 65535 - image[..., 0, 0]
            assert network(image.abs()).isfinite().all()


def test_networks_whose_weights_ran_away_leave_the_filter() -> None:
    network = network_of()
    counts = counts_of(network, 20, 20)
    for wrong in (float("nan"), float("inf"), 1e30):
        network.conv_final.weight.fill_(wrong)
        assert network(counts).isfinite().all()


@pytest.mark.parametrize("dim", [2, 3])
def test_whatever_a_network_says_its_rates_stay_near_the_counts(dim: int) -> None:
    network = network_of(dim=dim)
    counts = counts_of(network, 24, 24)
    fitted = network.anchor(without_hot_pixels(counts))[1][:, -1]
    for seed in range(3):
        torch.manual_seed(seed)
        torch.nn.init.normal_(network.conv_final.bias, std=1e3)
        rate = network(counts).exp()
        assert float((rate / fitted).min()) > np.exp(-4.5)  # the mixture's bound, and that of the factor
        assert float((rate - fitted).max()) < np.exp(1.5) * float(counts.max() + fitted.max())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tiles_agree_with_the_whole_image(kind: dict[str, Any]) -> None:
    network = network_of(**kind)
    network.anchor.brightest.fill_(2.0)
    reach, step = receptive_field_px(network)[-1], network.step_px[-1]
    start = 8 + -(-reach // step) * step
    stop = start + 8
    counts = counts_of(network, 16, stop + reach + 30)
    whole = network(counts)[..., start:stop]
    left = start - 8 - -(-reach // step) * step + 8
    tile = network(counts[..., left : stop + reach])[..., start - left : stop - left]
    torch.testing.assert_close(tile, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_torchscript_gives_the_same_and_survives_saving(kind: dict[str, Any]) -> None:
    network = network_of(**kind)
    network.anchor.brightest.fill_(2.0)
    denoiser = PhotonDenoiser([3] * network.dim, **{**SETTINGS, **kind})
    denoiser.network.load_state_dict(network.state_dict())
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(denoiser.eval()), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    counts = counts_of(network, 21, 19)
    with torch.no_grad():
        torch.testing.assert_close(loaded(counts), network.rate(counts, network(counts), []), rtol=1e-5, atol=1e-6)


def test_hot_pixels_change_nothing_else() -> None:
    counts = torch.from_numpy(np.random.default_rng(0).poisson(5, (1, 1, 64, 64)).astype(np.float32))
    hot, warm = counts.clone(), counts.clone()
    hot[0, 0, 20, 30] = 65535
    warm.view(-1)[torch.arange(8) * 517 + 40] = 400
    anchored, plain = network_of(), network_of(anchor=False)
    for network, box in ((anchored, []), (plain, [])):
        rates = [network.rate(image, network(image), box) for image in (counts, hot, warm)]
        assert median_change(rates[1], rates[0]) < 0.01
        assert median_change(rates[2], rates[0]) < 0.01
    assert float(without_hot_pixels(hot).max()) == float(counts.max())


def test_ten_times_above_the_trained_brightness_nothing_collapses() -> None:
    torch.manual_seed(0)
    network = UNet(depth=2, start_filts=4, anchor=True, anchor_version=4)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    rng = np.random.default_rng(0)
    truth = 1 + 0.9 * np.sin(np.arange(64) / 4)[:, None] * np.sin(np.arange(64) / 5)
    for _ in range(40):
        counts = torch.from_numpy(rng.poisson(truth * rng.uniform(0.1, 2), (2, 1, 64, 64)).astype(np.float32))
        thinned = torch.from_numpy(rng.binomial(counts.numpy().astype(int), 0.5).astype(np.float32))
        log_rate = network(thinned)
        loss = (log_rate.exp() - (counts - thinned) * log_rate).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    counts = torch.from_numpy(rng.poisson(20 * truth, (1, 1, 64, 64)).astype(np.float32))
    rate = network.rate(counts, network(counts), [])
    error = float((rate[0, 0] - torch.from_numpy(20 * truth)).square().mean())
    assert error < 0.3 * 20  # the noise of the counts
    assert float(rate.sum() / counts.sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dim", [2, 3])
def test_networks_leave_what_is_brighter_than_their_training_to_the_filter(dim: int) -> None:
    network, untrained = network_of(dim=dim), UNet(**{**SETTINGS, "dim": dim}).eval()
    counts = counts_of(network, 24, 240, mean=2.0)
    counts[..., 160:] *= 50
    own, filtered = network(counts), untrained(counts)
    network.anchor.brightest.fill_(10.0)
    bounded = network(counts)
    assert torch.equal(bounded[..., :100], own[..., :100])  # as bright as in training
    said, all_said = ((image - filtered)[..., 210:].abs().mean() for image in (bounded, own))
    assert 0.15 < float(said / all_said) < 0.5  # answers times sqrt(10 / 120)
    network.anchor.brightest.fill_(0.0)
    torch.testing.assert_close(network(counts), filtered)


def test_how_bright_the_training_was_is_kept_with_the_weights() -> None:
    network = network_of()
    assert network.anchor.brightest == torch.inf
    network.anchor.brightest.zero_()
    network.train()
    for level in (3.0, 7.0, 5.0):
        network(torch.full((1, 1, 32, 32), level))
    network.eval()(torch.full((1, 1, 32, 32), 99.0))
    assert float(network.anchor.brightest) == pytest.approx(7.0)
    state, other = network.state_dict(), network_of()
    other.load_state_dict(state)
    assert float(other.anchor.brightest) == pytest.approx(7.0)
    del state["anchor.brightest"]  # as weights of before
    other.load_state_dict(state)
    assert other.anchor.brightest == torch.inf
    assert "anchor.brightest" not in UNet(depth=1, start_filts=2).state_dict()


def test_generation_from_nothing_spreads_and_then_settles() -> None:
    network = UNet(depth=2, start_filts=2, anchor=True, anchor_version=4)
    empty = torch.zeros(1, 1, 48, 48)
    assert float(network(empty).std()) < 1e-3
    one = empty.clone()
    one[..., 24, 24] = 1
    share = torch.softmax(network(one).flatten(), 0).reshape(48, 48).detach()
    assert share[20:29, 20:29].mean() > 5 * share[:8].mean()
    assert float(share[:16].sum() + share[32:].sum()) > 0.1  # the rest of the image has not died


def test_anchors_have_no_parameters_and_overlaps_of_their_filters() -> None:
    for dim in (2, 3):
        anchor = Anchor(dim)
        assert list(anchor.state_dict()) == ["brightest", "per_frame"]
        assert not list(anchor.parameters())
        point = torch.zeros(1, 1, 129, 129) if dim == 2 else torch.zeros(1, 33, 129, 129)
        point[0, point.shape[1] // 2, 64, 64] = 1
        for scale in range(anchor.n_scales):
            seen = anchor.smooth(point, scale)
            assert float(seen.sum()) == pytest.approx(1, abs=0.01)
            assert float(seen.square().sum()) == pytest.approx(anchor.overlap[scale][scale], rel=0.1)


def blobs(level: float) -> tuple[Tensor, Tensor]:
    """Counts of sharp and smooth spots on a dark ground, and what was expected."""
    y, x = np.mgrid[:128, :128]
    spots = ((20, 30, 2.0), (64, 80, 6.0), (100, 40, 12.0), (90, 100, 3.0))
    truth = 0.1 + 8 * sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * s**2)) for a, b, s in spots)
    counts = np.random.default_rng(3).poisson(level * truth)
    return torch.from_numpy(counts.astype(np.float32))[None, None], torch.from_numpy(level * truth)[None, None]


@pytest.mark.parametrize(("frames", "photons"), [(1, 0.3), (4, 2.0), (16, 5.0)])
def test_one_bit_frames_lose_no_peak_to_photons_that_they_cannot_hold(frames: int, photons: float) -> None:
    truth = photons * simulate_truth(2, (256, 256), 3).values
    detected = np.random.default_rng(0).binomial(frames, 1 - np.exp(-truth / frames)).astype(np.float32)
    counts, errors = torch.from_numpy(detected)[None, None], []
    network = UNet(depth=2, start_filts=2, anchor=True, anchor_version=4)
    for per_frame in (0.0, 1 / frames):
        network.anchor.per_frame.fill_(per_frame)
        rate = photons_of(network.rate(counts, network(counts), []), 0.0, frames)[0, 0].detach().numpy()
        errors.append(float(np.square(rate - truth).mean()))
    assert errors[1] < 0.65 * errors[0]
    assert rate[detected > 0].mean() == pytest.approx(truth[detected > 0].mean(), rel=0.2)


@pytest.mark.parametrize("level", [0.3, 3.0, 30.0])
def test_the_local_fit_beats_the_best_gaussian_and_the_weights_by_errors(level: float) -> None:
    counts, truth = blobs(level)
    error = lambda rate: float((rate - truth).square().mean())  # noqa: E731
    filters = [ndimage.gaussian_filter(counts[0, 0].double().numpy(), sigma) for sigma in np.geomspace(0.4, 12, 18)]
    best = min(error(torch.from_numpy(image)[None, None]) for image in filters)
    errors = [error(UNet(depth=1, start_filts=1, anchor=True, anchor_version=v)(counts).exp()) for v in (1, 2, 3, 4)]
    assert max(errors[1:]) < 0.9 * best
    assert max(errors[1:]) < errors[0]


@pytest.mark.parametrize(("level", "share"), [(2.0, 0.75), (20.0, 0.9)])
def test_volumes_are_smoothed_along_their_edges(level: float, share: float) -> None:
    y, x = np.mgrid[:96, :96]
    stripes = np.sin((0.8 * x + 0.6 * y) / 2.2) > 0.6
    truth = ndimage.gaussian_filter(level * (0.3 + 2 * stripes * np.ones((9, 1, 1))), (0, 1, 1))
    counts = torch.from_numpy(np.random.default_rng(2).poisson(truth).astype(np.float32))[None, None]
    errors = [np.mean((Anchor(3, version)(counts)[1][0, -1, 0].numpy() - truth) ** 2) for version in (2, 3)]
    assert errors[1] < share * errors[0]


@pytest.mark.parametrize(("level", "shift", "share"), [(0.1, 0.05, 0.45), (1.0, 0.05, 0.45), (0.1, 0.5, 0.9)])
def test_movies_are_smoothed_over_time(level: float, shift: float, share: float) -> None:
    scene = simulate_truth(2, (96, 96), 3).values
    truth = level * np.stack([ndimage.shift(scene, (n * shift, 0), order=1, mode="mirror") for n in range(48)])
    counts = torch.from_numpy(np.random.default_rng(2).poisson(truth).astype(np.float32))[None, None]
    settings: dict[str, Any] = {"dim": 3, "depth": 1, "start_filts": 1, "anchor": True}
    rates = [UNet(anchor_version=v, **settings)(counts).exp().detach().numpy() for v in (4, 5)]
    errors = [np.square(rate - truth).mean() for rate in rates]
    assert errors[1] < share * errors[0]


@pytest.mark.parametrize(
    ("photons", "scenes", "share"),
    [(0.1, [3] * 4, 0.85), (1.0, [3] * 4, 0.6), (10.0, [3] * 4, 0.5), (1.0, [3, 3, 4, 4], 0.95)]
    + [(photons, [3, 4, 5], 1.02) for photons in (0.1, 1.0, 10.0)],
)
def test_channels_that_share_structures_are_smoothed_in_their_sum(
    photons: float, scenes: list[int], share: float
) -> None:
    truth = np.stack([simulate_truth(2, (128, 128), scene).values for scene in scenes])
    truth *= photons * np.linspace(0.5, 1.5, len(scenes))[:, None, None] / len(scenes)
    counts = torch.from_numpy(np.random.default_rng(0).poisson(truth).astype(np.float32))[None]
    settings: dict[str, Any] = {"channels": len(scenes), "depth": 1, "start_filts": 1, "anchor": True}
    rates = [UNet(anchor_version=v, **settings)(counts).exp()[0].detach().numpy() for v in (4, 6)]
    errors = [np.square(rate - truth).mean() for rate in rates]
    assert errors[1] < share * errors[0]
    np.testing.assert_allclose(rates[1].sum((1, 2)), counts[0].sum((1, 2)), rtol=0.03)


def test_an_empty_channel_stays_empty() -> None:
    counts = torch.cat([blobs(3.0)[0], torch.zeros(1, 1, 128, 128)], 1)
    assert float(UNet(2, 2, depth=1, anchor=True, anchor_version=6)(counts).exp()[:, 1].max()) < 0.01


@pytest.mark.parametrize("level", [0.1, 1.0, 30.0])
def test_noise_alone_has_no_directions(level: float) -> None:
    flat = torch.from_numpy(np.random.default_rng(0).poisson(level, (1, 1, 9, 128, 128)).astype(np.float32))
    features = Anchor(3, 3)(flat)[0]
    assert float((features[:, -1] > 0).float().mean()) < 0.03


def test_planes_of_the_third_version_are_those_of_the_second() -> None:
    counts, _ = blobs(3.0)
    for second, third in zip(Anchor(2, 2)(counts), Anchor(2, 3)(counts), strict=True):
        assert torch.equal(second, third)


@pytest.mark.parametrize("version", [2, 3])
def test_the_fit_is_unbiased_about_its_own_noise(version: int) -> None:
    anchor = Anchor(2, version)
    flat = torch.from_numpy(np.random.default_rng(0).poisson(4.0, (1, 1, 256, 256)).astype(np.float32))
    fitted = anchor(flat)[1][:, -1]
    assert float(fitted.mean()) == pytest.approx(float(flat.mean()), rel=0.005)
    assert float(fitted.var()) < 0.05  # of 4 of the counts


@pytest.mark.parametrize("level", [0.01, 0.04, 0.1])
def test_single_photons_leave_no_specks(level: float) -> None:
    counts = torch.from_numpy(np.random.default_rng(0).poisson(level, (3, 1, 192, 192)).astype(np.float32))
    rate = UNet(depth=1, start_filts=1, anchor=True, anchor_version=4)(counts).exp().detach().numpy()
    above = rate - ndimage.gaussian_filter(rate, (0, 0, 2, 2))
    assert abs(float(above[counts.numpy() > 0].mean())) < 0.08 * level


@pytest.mark.parametrize("dim", [2, 3])
def test_networks_that_remove_a_photons_peak_leave_no_dark_dot(dim: int) -> None:
    size = (9, 64, 64)[3 - dim :]
    counts = torch.poisson(torch.full((1, 1, *size), 0.03), torch.Generator().manual_seed(0))
    counts[..., 32, 32] = 2
    rates = []
    for version in (3, 4):
        anchor = Anchor(dim, version).eval()
        answer = torch.full((1, anchor.n_answers, *size), -9.0)  # the network takes the two widest filters
        answer[:, 0], answer[:, anchor.n_scales - 1 : -1] = 0.0, 9.0
        rates.append(anchor.log_rate(answer, *anchor(counts)[1:]).exp()[..., 32, 32])
    assert float(rates[0].min()) < 0.4 * 0.03
    assert float(rates[1].min()) > 0.9 * 0.03
    assert float(rates[1].max()) < 1.3 * 0.03


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("width", [10, 14, 20])
def test_gaps_between_what_is_bright_stay_dark(dim: int, width: int) -> None:
    rate = np.full((9, 96, 96)[3 - dim :], 800.0)
    gap = slice(48 - width // 2, 48 - width // 2 + width)
    rate[..., gap] = 10.0
    counts = torch.from_numpy(np.random.default_rng(0).poisson(rate)[None, None].astype(np.float32))
    network = UNet(dim=dim, depth=1, start_filts=1, anchor=True, anchor_version=4).eval()
    inside = network(counts).detach().exp()[..., 20:76, gap.start + 3 : gap.stop - 3]
    assert float(inside.mean()) == pytest.approx(10, rel=0.2)


def test_settings_that_name_an_encoding_are_those_of_plain_networks() -> None:
    assert NetworkConfig().anchor
    assert not NetworkConfig.model_validate({"levels": 10, "depth": 3}).anchor
    assert not RunConfig.from_dict({"network": {"log1p": False}}).network.anchor
    assert NetworkConfig(anchor=True, levels=4).anchor
    assert RunConfig.from_dict(RunConfig().model_dump()).network.anchor
    assert not UNet(depth=1, start_filts=2).anchored  # as zips made it before


def test_runs_and_zips_of_before_keep_the_first_anchor() -> None:
    assert NetworkConfig().anchor_version == 4
    stored = {name: value for name, value in NetworkConfig().model_dump().items() if name != "anchor_version"}
    assert NetworkConfig.model_validate(stored).anchor_version == 1
    assert RunConfig.from_dict({"network": stored}).network.anchor_version == 1
    assert RunConfig.from_dict(RunConfig().model_dump()).network.anchor_version == 4
    counts = torch.arange(12 * 20.0).reshape(1, 1, 12, 20) % 7
    old = UNet(depth=1, start_filts=1, anchor=True)(counts)
    np.testing.assert_allclose(old[0, 0, 3, [0, 7, 19]].detach(), OLD_LOG_RATES, rtol=1e-6)
