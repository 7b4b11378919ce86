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
from command_line import one_sentence
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


def test_every_verb_takes_them(elsewhere: Elsewhere, tmp_path: Path, run: Any) -> None:
    model, image, axes = elsewhere.path, elsewhere.image, axes_of(elsewhere)

    def succeed(*arguments: object) -> str:
        result = run(*arguments)
        assert result.code == 0, result.err
        return str(result.out)

    info = json.loads(succeed("info", model, "--json", "-"))
    assert (info["kind"], info["origin"]) == (elsewhere.kind, elsewhere.origin)
    assert [info[key] for key in ("dim", "channels", "levels", "log1p")] == [
        elsewhere.dim,
        elsewhere.channels,
        2,
        False,
    ]
    assert info["parameters"] == sum(p.numel() for p in elsewhere.network.parameters())
    if elsewhere.origin == "state_dict":
        assert (info["range_from"], info["trained_range_db"]) == ("sidecar", [-40, 25])
        assert info["settings_from"]["levels"] == info["settings_from"]["log1p"] == "sidecar"
    else:
        assert (info["range_from"], info["epochs"], info["steps"]) == ("assumed", 41, 4200)
        assert info["settings_from"]["levels"] == "hyper_parameters"
    assert info["settings_from"]["dim"] == "weights"
    table = succeed("info", model)
    assert elsewhere.kind.split(",")[0] in table
    assert "settings from" in table

    succeed("denoise", model, image, tmp_path / "rate.tif", *axes)
    counts = np.load(image).astype(np.float32).reshape(1, elsewhere.channels, *SHAPES[elsewhere.dim])
    with torch.inference_mode():
        share = torch.softmax(elsewhere.network(torch.from_numpy(counts)).flatten(), 0).numpy()
    rate = tifffile.imread(tmp_path / "rate.tif")
    if elsewhere.channels > 1 and elsewhere.dim == 3:
        rate = np.swapaxes(rate, 0, 1)
    np.testing.assert_allclose(rate.ravel(), share * counts.sum(), rtol=1e-4)

    succeed(
        "sample", model, image, tmp_path / "samples.tif", "--samples", 2, "--seed", 1, "--steps", 2, *axes, "--quiet"
    )
    shape = ",".join(map(str, SHAPES[elsewhere.dim]))
    succeed("generate", model, tmp_path / "new.tif", "--shape", shape, "--seed", 1, "--stop-db", -5, "--quiet")
    for name in ("samples.tif", "samples_mean.tif", "samples_std.tif", "new.tif"):
        assert np.isfinite(tifffile.imread(tmp_path / name)).all()


def test_a_state_dict_that_tells_too_little_is_asked_for_more(tmp_path: Path, run: Any) -> None:
    weights = dict(sorted(original_gap(levels=2).state_dict().items()))
    torch.save(weights, tmp_path / "weights.pt")
    assert "write `log1p: false` or `log1p: true` into weights.yaml" in one_sentence(
        run("info", tmp_path / "weights.pt")
    )
    (tmp_path / "weights.yaml").write_text("log1p: false\n")
    assert run("info", tmp_path / "weights.pt", "--quiet").code == 0


def test_training_starts_from_them(elsewhere: Elsewhere, tmp_path: Path, run: Any) -> None:
    settings = {
        "steps": 2, "validate_every": 1, "batch_size": 2, "validation_windows": 2, "warmup_steps": 1,
        "patch_px": [8, 16] if elsewhere.dim == 2 else [4, 8, 8],
    }  # fmt: skip
    command = [
        *(
            "train",
            elsewhere.image,
            "--out",
            tmp_path / "run",
            "--init",
            elsewhere.path,
            *axes_of(elsewhere),
            "--quiet",
        ),
        *(part for name, value in settings.items() for part in ("--set", f"train.{name}={value}")),
        *("--device", "cpu"),
    ]
    other = 5 - elsewhere.dim
    assert f"network.dim is {other}, but the model to start from" in one_sentence(
        run(*command, "--set", "train.patch_px=null", "--dim", other)
    )
    told = one_sentence(run(*command, "--dim", elsewhere.dim, "--set", "network.start_filts=9"))
    assert "network.start_filts is 9, but the model to start from" in told
    result = run(*command, "--dim", elsewhere.dim)
    assert result.code == 0, result.err
    more = run(*command, "--dim", elsewhere.dim, "--resume", "--set", "train.steps=3")
    assert more.code == 0, more.err
    info = json.loads(run("info", tmp_path / "run", "--json", "-").out)
    assert info["init"]["name"] == elsewhere.path.name
    assert len(info["init"]["sha256"]) == 64
    assert info["kind"] == elsewhere.kind.replace(elsewhere.origin, "training run")


@pytest.mark.slow
def test_they_are_exported_and_pass_every_check(elsewhere: Elsewhere, tmp_path: Path, run: Any) -> None:
    (tmp_path / "card.yaml").write_text(CARD)
    image = np.load(elsewhere.image)
    stored = np.swapaxes(image, 0, 1) if elsewhere.dim == 3 and elsewhere.channels > 1 else image
    axes = "CYX" if elsewhere.channels > 1 else "ZYX"[-elsewhere.dim :]
    tifffile.imwrite(tmp_path / "counts.tif", stored, imagej=True, metadata={"axes": axes})
    for kind in ("denoise", "sample"):
        out = tmp_path / f"{kind}.zip"
        options = ["--kind", kind, "--card", tmp_path / "card.yaml", "--test-image", tmp_path / "counts.tif"]
        more = ["--samples", 2, "--steps", 2] if kind == "sample" else []
        result = run("export", elsewhere.path, out, *options, *more, "--quiet")
        assert result.code == 0, result.err
        assert run("validate", out, "--run-code", "--quiet").code == 0
        again = json.loads(run("info", out, "--json", "-").out)
        assert again["kind"] == elsewhere.kind.replace(elsewhere.origin, "bioimage.io zip")
    run("denoise", tmp_path / "denoise.zip", elsewhere.image, tmp_path / "zip.tif", *axes_of(elsewhere), "--quiet")
    run("denoise", elsewhere.path, elsewhere.image, tmp_path / "rate.tif", *axes_of(elsewhere), "--quiet")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "zip.tif"), tifffile.imread(tmp_path / "rate.tif"))
