"""Uncertainty of regions from one more run, against posteriors that are known exactly."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fixtures_model import random_model
from torch import Tensor

from gap_bioimage.errors import AxesError
from gap_bioimage.inference.denoising import Region, region_uncertainty, region_variance
from gap_bioimage.network import rate_from_log_rate


def expectation(predict: Any, counts: Tensor) -> Any:
    """Return expected photons in the exposure of the counts, from log-rates."""
    return lambda x: rate_from_log_rate(predict(x), counts)


def dirichlet(alpha: float) -> tuple[object, object]:
    """Independent pixels but for the total: predictor, and exact variance of a region's photons."""

    def predict(counts: Tensor) -> Tensor:
        return torch.log(counts + alpha)

    def exact(counts: Tensor, mask: Tensor) -> float:
        weights = (counts + alpha).double()
        total = float(weights.sum())
        share = float(weights[mask].sum()) / total
        return float(counts.sum()) ** 2 * share * (1 - share) / (total + 1)

    return predict, exact


@pytest.mark.parametrize("alpha", [0.3, 5.0])
@pytest.mark.parametrize("width", [4, 20])
def test_dirichlet_pixels(alpha: float, width: int) -> None:
    predict, exact = dirichlet(alpha)
    counts = torch.from_numpy(np.random.default_rng(0).poisson(4.0, (1, 1, 40, 40)).astype(np.float32))
    mask = torch.zeros(counts.shape, dtype=torch.bool)
    mask[..., :width, :width] = True
    expect = expectation(predict, counts)
    rate = expect(counts)
    found = [region_variance(expect, counts, rate, mask, seed=seed, passes=10) for seed in range(8)]
    # the mean of 80 runs, against the exact variance, within 3 of its own standard errors and 3 % of nonlinearity
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact(counts, mask)) < 3 * error + 0.03 * exact(counts, mask)
    assert error < 0.15 * exact(counts, mask)


def test_templates_that_move_photons_between_regions() -> None:
    # two scenes that are equally likely a priori: the region's photons are bimodal, and far from Poisson
    scenes = torch.ones(2, 20, 20)
    scenes[0, :10] = 1.1
    scenes[1, 10:] = 1.1
    scenes /= scenes.sum((1, 2), keepdim=True)

    def weights(counts: Tensor) -> Tensor:
        return torch.softmax((counts.double()[0] * scenes.double().log()).sum((1, 2)), 0)

    def predict(counts: Tensor) -> Tensor:
        return torch.log((weights(counts)[:, None, None] * scenes).sum(0))[None, None]

    counts = torch.ones(1, 1, 20, 20)
    mask = torch.zeros(counts.shape, dtype=torch.bool)
    mask[..., :10, :] = True
    w = weights(counts)
    inside = scenes[:, :10].sum((1, 2)).double() * 400
    exact = float((w * inside**2).sum() - (w * inside).sum() ** 2)
    expect = expectation(predict, counts)
    rate = expect(counts)
    arguments = {"passes": 200, "share": 0.005}  # strong ties between photons ask for few of them at a time
    found = [region_variance(expect, counts, rate, mask, seed=seed, **arguments) for seed in range(10)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 3 * error + 0.03 * exact


def test_regions_of_an_image() -> None:
    model = random_model()
    counts = xr.DataArray(np.random.default_rng(0).poisson(3.0, (30, 26)).astype("uint16"), dims=["y", "x"])
    labels = xr.zeros_like(counts)
    labels[2:12, 3:9] = 5
    labels[20:25, 20:25] = 2
    done: list[tuple[int, int]] = []
    found = region_uncertainty(model, counts, labels, seed=0, on_region=lambda *d: done.append(d))
    assert [(r.label, r.pixels, r.counted) for r in found] == [
        (2, 25, int(counts[20:25, 20:25].sum())),
        (5, 60, int(counts[2:12, 3:9].sum())),
    ]
    assert done == [(1, 2), (2, 2)]
    assert all(r.photons > 0 and (r.std is None or r.std > 0) for r in found)  # a random network may tell nothing
    assert found == region_uncertainty(model, counts, labels, seed=0)
    assert found[0].to_dict() == {
        "label": 2,
        "pixels": 25,
        **{k: getattr(found[0], k) for k in ("counted", "photons", "std")},
    }


def test_an_empty_image_tells_nothing_of_its_regions() -> None:
    counts = xr.DataArray(np.zeros((12, 12), np.uint16), dims=["y", "x"])
    labels = counts.copy(data=np.eye(12, dtype=np.uint8))
    (found,) = region_uncertainty(random_model(), counts, labels, seed=0)
    assert (found.photons, found.std) == (0, None)


def test_labels_that_do_not_fit_are_refused() -> None:
    counts = xr.DataArray(np.ones((3, 12, 12), np.uint16), dims=["t", "y", "x"])
    with pytest.raises(AxesError, match="one frame"):
        region_uncertainty(random_model(), counts, counts.isel(t=0), seed=0)
    with pytest.raises(AxesError, match=r"5 x 12 pixels \(y, x\) and the image 12 x 12.*crop or resize the labels"):
        region_uncertainty(random_model(), counts.isel(t=0), counts.isel(t=0)[:5], seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((12, 12), 0.5), "expected whole numbers, 0 outside.*save"),
        (np.eye(12, dtype=int) - 1, "expected whole numbers, 0 outside.*save"),
        (np.zeros((12, 12), np.uint8), "the labels hold no region: all pixels are 0"),
        (np.ones((12, 12), np.uint8), "the labels tell no region from what is outside: all pixels are 1"),
    ],
)
def test_what_is_no_label_image_is_refused(values: np.ndarray, message: str) -> None:
    counts = xr.DataArray(np.ones((12, 12), np.uint16), dims=["y", "x"])
    with pytest.raises(AxesError, match=message):
        region_uncertainty(random_model(), counts, counts.copy(data=values), seed=0)


def test_a_region_is_a_sentence() -> None:
    assert str(Region(7, 9, 40, 41.23, 5.67)) == "region 7: 41.2 +- 5.7 photons (40 counted)"
    assert str(Region(7, 9, 0, 0.2, None)) == "region 7: 0.2 photons, their error is not known (none was counted)"
    assert "(3 counted, too few to tell)" in str(Region(7, 9, 3, 2.2, None))


def test_dim_regions_take_more_passes() -> None:
    predict, exact = dirichlet(0.5)
    counts = torch.zeros(1, 1, 20, 20)
    counts[..., ::3, ::3] = 1
    mask = torch.zeros(counts.shape, dtype=torch.bool)
    mask[..., :6, :6] = True
    expect = expectation(predict, counts)
    rate = expect(counts)
    found = [region_variance(expect, counts, rate, mask, seed=seed) for seed in range(30)]
    assert min(found) > 0
    assert np.mean(found) == pytest.approx(exact(counts, mask), rel=0.2)


def test_a_region_whose_photons_the_network_denies_is_warned_of() -> None:
    flat = random_model()
    for parameter in flat.network.parameters():
        parameter.data.zero_()
    values = np.random.default_rng(0).poisson(4.0, (40, 40)).astype("uint16")
    labels = xr.DataArray(np.repeat([1, 2], 20)[:, None] * np.ones((40, 40), int), dims=["y", "x"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        region_uncertainty(flat, labels.copy(data=values), labels, seed=0)
    values[:20] *= 2
    with pytest.warns(UserWarning, match="region [12]: the network expects .* were counted") as found:
        region_uncertainty(flat, labels.copy(data=values), labels, seed=0)
    assert len(found) == 2
