"""Tiny models for the tests: random ones, ones trained for seconds, and their zips."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
import yaml

from gap_bioimage.config import NetworkConfig, RunConfig
from gap_bioimage.model import Model
from gap_bioimage.network import UNet
from gap_bioimage.simulation import simulate
from gap_bioimage.validation.check import Check

CARD = """\
name: Tiny photon denoiser
description: Denoises simulated photon counts in tests.
authors:
  - name: Ada Example
license: MIT
# one of the names that bioimageio.spec knows without looking it up
maintainers:
  - github_user: fynnbe
training_data: Simulated cells.
"""
TINY = {
    "network": {"depth": 2, "start_filts": 4},
    "train": {
        "steps": 60, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 5, "validate_every": 30,
        "validation_windows": 8,
    },
}  # fmt: skip

CONFIGS: list[dict[str, Any]] = [
    {"dim": 2},
    {"dim": 2, "channels": 2, "up_mode": "upsample", "merge_mode": "concat"},
    {"dim": 3, "z_conv_stage": 1, "log1p": False},
    {"dim": 3, "up_mode": "upsample"},
]
"""Networks that differ in everything that a format of weights has to express."""


@dataclass(frozen=True)
class Trained:
    """A run folder, the counts that it was trained on, and a card for its export."""

    run: Path
    counts: xr.DataArray
    card: Path


def random_network(seed: int = 0, **config: Any) -> UNet:
    """A network that answers with structure: the untrained last layer is zero."""
    torch.manual_seed(seed)
    network = UNet(**{"depth": 2, "start_filts": 4, **config})
    torch.nn.init.normal_(network.conv_final.weight, std=0.1)
    return network.eval().requires_grad_(False)


def random_model(seed: int = 0, trained_range_db: tuple[float, float] = (-40.0, 20.0), **config: Any) -> Model:
    """A model with random weights."""
    settings = NetworkConfig(**{"depth": 2, "start_filts": 4, "anchor": False, **config})
    network = random_network(seed, **settings.model_dump())
    return Model(network, settings, trained_range_db, source=Path("random"))


class InPlaceOf(torch.nn.Module):
    """Stands for a network in all but ``forward``, which subclasses define."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "network" else getattr(self.network, name)


def broken_model(value: float = float("nan")) -> Model:
    """A model whose log-rates are not finite."""
    model = random_model()
    torch.nn.init.constant_(model.network.conv_final.bias, value)  # type: ignore[arg-type]
    return model


def _train(folder: Path, dim: int, shape: Sequence[int], **network: Any) -> Trained:
    from gap_bioimage.training.fit import train

    counts, _ = simulate(dim, shape, photons=2.0, seed=1)  # type: ignore[arg-type]
    settings = {
        **TINY,
        "network": {**TINY["network"], "dim": dim, **network},
        "train": {**TINY["train"], "patch_px": [32, 32] if dim == 2 else [8, 24, 24]},
    }
    train(counts, folder / "run", RunConfig.from_dict(settings), progress=False, device="cpu")
    card = folder / "card.yaml"
    card.write_text(CARD)
    return Trained(folder / "run", counts, card)


@pytest.fixture(scope="session")
def trained_2d(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A 2D network after a few steps."""
    return _train(tmp_path_factory.mktemp("trained_2d"), 2, (160, 160))


@pytest.fixture(scope="session")
def trained_3d(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A 3D network after a few steps."""
    return _train(tmp_path_factory.mktemp("trained_3d"), 3, (24, 48, 48), start_filts=2, z_conv_stage=1)


def rdf_of(path: Path) -> dict[str, Any]:
    """The description in a zip."""
    with zipfile.ZipFile(path) as archive:
        rdf: dict[str, Any] = yaml.safe_load(archive.read("rdf.yaml"))
    return rdf


@contextmanager
def no_validation(*checks: Check) -> Iterator[None]:
    """Let exports leave out their validation, which takes most of the time; it finds these checks instead."""
    from gap_bioimage.validation import report
    from gap_bioimage.validation.run.sandbox import Sandbox

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "validate", lambda path, **_: report.Report(str(path), checks, description_only=True))
        patch.setattr(Sandbox, "start", lambda process: None)
        yield


def export_unchecked(trained: Trained, out: Path, *arguments: Any, **options: Any) -> Path:
    """Export without the validation."""
    from gap_bioimage.exporting.archive import export

    with no_validation():
        export(trained.run, out, trained.card, *arguments, **options)
    return out


@pytest.fixture(scope="session")
def unchecked_zip_2d(trained_2d: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip of ``trained_2d``."""
    return export_unchecked(trained_2d, tmp_path_factory.mktemp("zip_2d") / "model.zip")
