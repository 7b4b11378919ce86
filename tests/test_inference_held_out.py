"""Coverage by held-out photons: right where samples are exact, and only there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from command_line import one_sentence
from fixtures_model import InPlaceOf, Trained, random_model

from gap_bioimage.config import SamplingConfig
from gap_bioimage.counts import thin
from gap_bioimage.errors import ConfigError
from gap_bioimage.inference.held_out import Blocks, Coverage, compare, coverage
from gap_bioimage.io import write_image
from gap_bioimage.model import load_model

ALPHA = 0.5


def gamma_scenes(items: int, size: int, smooth: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return counts, and exact posterior samples of scenes whose squares of ``smooth`` pixels are Gamma distributed."""
    rng, shape = np.random.default_rng(seed), (items, 1, size // smooth, size // smooth)
    spread = np.ones((smooth, smooth))
    truth = np.kron(rng.gamma(ALPHA, 8.0, shape), spread)
    return truth, rng.poisson(truth), spread


def exact_samples(seen: np.ndarray, spread: np.ndarray, samples: int = 15) -> np.ndarray:
    rng, smooth = np.random.default_rng(1), len(spread)
    sums = seen.reshape(*seen.shape[:2], seen.shape[2] // smooth, smooth, -1, smooth).sum((3, 5))
    return np.stack([np.kron(rng.gamma(sums + ALPHA), spread) for _ in range(samples)])


def within(found: Coverage) -> np.ndarray:
    return np.array([blocks.within for blocks in found.blocks])


@pytest.mark.parametrize(("smooth", "items", "fraction"), [(1, 12, 0.2), (8, 24, 0.5)])
def test_exact_samples_are_calibrated_and_others_are_not(smooth: int, items: int, fraction: float) -> None:
    _, counts, spread = gamma_scenes(items, 192, smooth)
    seen, rest = thin(counts, fraction, 3)
    samples = exact_samples(seen, spread)
    exact = compare(samples, rest, fraction, 0)
    assert [blocks.count for blocks in exact.blocks] == [items * 48**2, items * 12**2, items * 3**2]
    np.testing.assert_allclose(within(exact)[:2], [[0.5, 0.9]] * 2, atol=0.03)
    # of squares of 8 pixels that are alike, blocks of 4 hold more photon noise than uncertainty
    assert [blocks.verdict for blocks in exact.blocks] == [
        "not seen" if smooth == 8 else "calibrated",
        *2 * ["calibrated"],
    ]
    scale = rest.sum() / (seen.sum() + ALPHA * seen.size / smooth**2)
    for blocks in exact.blocks:
        assert (sum(blocks.ranks), len(blocks.ranks)) == (blocks.count, 16)
        if blocks.size_px >= smooth:
            assert blocks.posterior == pytest.approx(scale / (1 + scale), abs=0.05)
    mean, seen_at = samples.mean(0), 1 if smooth == 8 else 0
    for factor, verdict, sign in ((0.5, "too narrow", -1), (2.0, "too wide", 1)):
        other = compare(np.maximum(mean + factor * (samples - mean), 1e-9), rest, fraction, 0)
        assert (sign * (within(other) - [0.5, 0.9])[seen_at:2] > 0.03).all()
        assert {blocks.verdict for blocks in other.blocks[seen_at:2]} == {verdict}


class Exact(InPlaceOf):
    """The exact predictor of independent Gamma pixels."""

    def forward(self, photons: torch.Tensor) -> torch.Tensor:
        return torch.log(photons + ALPHA)


def test_the_sampler_with_an_exact_predictor_covers_what_it_should() -> None:
    model = random_model(trained_range_db=(-40, 40))
    model = replace(model, network=Exact(model.network))  # type: ignore[arg-type]
    counts = xr.DataArray(gamma_scenes(4, 96)[1][:, 0], dims=["t", "y", "x"])
    steps: list[Any] = []
    found = coverage(model, counts, 8, seed=2, settings=SamplingConfig(steps=20), on_step=steps.append)
    np.testing.assert_allclose(within(found)[0], [0.5, 0.9], atol=0.03)
    assert found.blocks[0].verdict == "calibrated"
    assert len(steps) == 4 * 8 * 20
    flat = random_model(trained_range_db=(-40, 40), levels=1)
    for parameter in flat.network.parameters():
        parameter.data.zero_()
    assert coverage(flat, counts, 4, seed=2, settings=SamplingConfig(steps=3)).blocks[0].verdict == "too narrow"


def test_the_command_line_tells_it_beside_the_samples(run: Any, trained_2d: Trained, tmp_path: Path) -> None:
    seen, _ = thin(trained_2d.counts.astype(np.int64)[:40, :40], 0.1, 0)
    write_image(tmp_path / "counts.tif", seen.astype(np.uint16))
    command = ("sample", trained_2d.run, tmp_path / "counts.tif", tmp_path / "s.tif", "--samples", 2, "--seed", 0)
    result = run(*command, "--steps", 3, "--check-coverage")
    assert result.code == 0, result.err
    assert "held-out photons in blocks of 4 / 16 px: " in result.out
    assert (tmp_path / "s_coverage.png").stat().st_size > 1000


def test_of_one_bit_models_it_is_refused_before_the_samples_are_drawn(
    run: Any, trained_2d: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(load_model(trained_2d.run), n_frames=4)
    monkeypatch.setattr("gap_bioimage.model.load_model", lambda _: model)
    write_image(tmp_path / "counts.tif", np.minimum(trained_2d.counts[:40, :40], 4))
    command = ("sample", trained_2d.run, tmp_path / "counts.tif", tmp_path / "s.tif", "--samples", 2, "--seed", 0)
    assert "one-bit" in one_sentence(run(*command, "--check-coverage"))
    assert [path.name for path in tmp_path.iterdir()] == ["counts.tif"]


@pytest.mark.parametrize(("dims", "dim", "channels"), [("cyx", 2, 2), ("zyx", 3, 1)])
def test_any_image_that_can_be_sampled_can_be_checked(dims: str, dim: int, channels: int) -> None:
    values = np.random.default_rng(0).poisson(2.0, (2, 16, 20)).astype(np.uint16)
    model = random_model(dim=dim, channels=channels)
    found = coverage(model, values, 2, seed=0, dims=dims, settings=SamplingConfig(steps=2))
    assert [(blocks.size_px, blocks.count) for blocks in found.blocks] == [(4, 40), (16, 2)]
    assert (len(str(found).splitlines()), len(found.draw().axes)) == (2, 2)


@pytest.mark.parametrize(("count", "seen"), [(4, False), (9, False), (16, True), (400, True)])
def test_few_blocks_are_not_called_calibrated(count: int, seen: bool) -> None:
    blocks = Blocks(64, count, (0.5, 0.9), (count,), posterior=0.9)
    assert blocks.verdict == ("calibrated" if seen else "not seen")
    assert replace(blocks, posterior=0.1).verdict == "not seen"
    assert replace(blocks, within=(0.0, 0.0)).verdict == "too narrow"


def test_what_cannot_be_checked_is_refused() -> None:
    image = xr.DataArray(np.ones((8, 8), np.uint8), dims=["y", "x"])
    model = random_model()
    for given in ({"fraction": 1}, {"n_samples": 1}, {"model": replace(model, n_frames=4)}, {"photons": image * 0}):
        with pytest.raises(ConfigError):
            coverage(**{"model": model, "photons": image, "seed": 0, **given})
