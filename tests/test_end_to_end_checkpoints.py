"""Every verb with models from elsewhere, by typed commands."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from fixtures_model import CARD
from original_gap import HYPER, OriginalGap, lightning_checkpoint, original_gap

SHAPES = {2: (40, 44), 3: (12, 24, 28)}


@dataclass(frozen=True)
class Elsewhere:
    """Weights from elsewhere, and an image for them."""

    path: Path
    image: Path
    dim: int
    channels: int
    kind: str  # what ``info`` says
    origin: str
    network: OriginalGap  # the reference


KINDS = {
    "rgb": ({"dim": 2, "channels": 3, "merge_mode": "concat"}, "original GAP checkpoint, 2D, RGB"),
    "anisotropic": (
        {"dim": 3, "z_conv_stage": 1, "depth": 3},
        "original GAP checkpoint, 3D anisotropic, z in 1 of 3 levels",
    ),
    "state_dict": ({"dim": 2, "up_mode": "upsample"}, "state_dict, 2D"),
}


def with_structure(network: OriginalGap) -> OriginalGap:
    """Scale random weights so that log-rates differ by one or so, also where there is a photon here and there."""
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    channels, _, *kernel = network.conv_final.weight.shape
    photons = torch.poisson(torch.full((1, channels, *SHAPES[len(kernel)]), 0.1))
    network.conv_final.weight.div_(network(photons).std())
    return network


@pytest.fixture(params=KINDS)
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Elsewhere:
    change, kind = KINDS[request.param]
    settings = {**HYPER, "depth": 2, "levels": 2, **change}
    dim, channels = settings["dim"], settings["channels"]
    network = with_structure(original_gap(**settings))
    hyper = {name: value for name, value in settings.items() if name != "dim"}
    path = tmp_path / f"{request.param}.ckpt"
    if request.param == "state_dict":
        path = tmp_path / "weights.pt"
        weights = OrderedDict((f"module.{name}", value) for name, value in sorted(network.state_dict().items()))
        torch.save(weights, path)
        (tmp_path / "weights.yaml").write_text("levels: 2\nlog1p: false\ntrained_range_db: [-40, 25]\n")
    else:
        # such as old Lightning saved, with a number of numpy among the settings
        torch.save(lightning_checkpoint(network, {**hyper, "levels": np.int64(2)}), path)
    rate = np.where(np.arange(SHAPES[dim][-1]) // 4 % 2, 3.0, 0.3)
    counts = np.random.default_rng(1).poisson(rate, (channels, *SHAPES[dim])).astype(np.uint16)
    np.save(tmp_path / "counts.npy", counts if channels > 1 else counts[0])
    origin = kind.split(",")[0]
    return Elsewhere(path, tmp_path / "counts.npy", dim, channels, kind, origin, network)


def axes_of(model: Elsewhere) -> list[str]:
    return ["--axes", ("c" if model.channels > 1 else "") + "zyx"[-model.dim :]]


def test_verbs_take_them(elsewhere: Elsewhere, tmp_path: Path, run: Any) -> None:
    model, image, axes = elsewhere.path, elsewhere.image, axes_of(elsewhere)
    info = json.loads(run("info", model, "--json", "-").out)
    assert (info["kind"], info["origin"]) == (elsewhere.kind, elsewhere.origin)
    expected = [elsewhere.dim, elsewhere.channels, 2, False]
    assert [info[key] for key in ("dim", "channels", "levels", "log1p")] == expected
    assert info["parameters"] == sum(p.numel() for p in elsewhere.network.parameters())
    assert info["settings_from"]["dim"] == "weights"
    if elsewhere.origin == "state_dict":
        assert (info["range_from"], info["trained_range_db"]) == ("sidecar", [-40, 25])
        assert info["settings_from"]["levels"] == "sidecar"
    else:
        assert (info["range_from"], info["epochs"], info["steps"]) == ("assumed", 41, 4200)
        assert info["settings_from"]["levels"] == "hyper_parameters"
    assert "settings from" in run("info", model).out

    assert run("denoise", model, image, tmp_path / "rate.tif", *axes).code == 0
    counts = np.load(image).astype(np.float32).reshape(1, elsewhere.channels, *SHAPES[elsewhere.dim])
    with torch.inference_mode():
        share = torch.softmax(elsewhere.network(torch.from_numpy(counts)).flatten(), 0).numpy()
    np.testing.assert_allclose(tifffile.imread(tmp_path / "rate.tif").ravel(), share * counts.sum(), rtol=1e-4)
    options = ["--samples", 2, "--seed", 1, "--steps", 2, *axes, "--quiet"]
    assert run("sample", model, image, tmp_path / "samples.tif", *options).code == 0
    assert np.isfinite(tifffile.imread(tmp_path / "samples_std.tif")).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["denoise", "sample"])
def test_they_are_exported_and_pass_every_check(elsewhere: Elsewhere, tmp_path: Path, run: Any, kind: str) -> None:
    (tmp_path / "card.yaml").write_text(CARD)
    axes = "CYX" if elsewhere.channels > 1 else "ZYX"[-elsewhere.dim :]
    tifffile.imwrite(tmp_path / "counts.tif", np.load(elsewhere.image), imagej=True, metadata={"axes": axes})
    options = ["--kind", kind, "--card", tmp_path / "card.yaml", "--test-image", tmp_path / "counts.tif"]
    more = ["--samples", 2, "--steps", 2] if kind == "sample" else []
    result = run("export", elsewhere.path, tmp_path / "model.zip", *options, *more, "--quiet")
    assert result.code == 0, result.err
    again = json.loads(run("info", tmp_path / "model.zip", "--json", "-").out)
    assert again["kind"] == elsewhere.kind.replace(elsewhere.origin, "bioimage.io zip")
