"""What can be read off a TorchScript file without loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import zips

from gap_bioimage.validation.torchscript import TorchScriptCode, read_code

if TYPE_CHECKING:
    from pathlib import Path


def code_of(tmp_path: Path, source: str = zips.BLUR, freeze: bool = False) -> TorchScriptCode:
    path = tmp_path / "torchscript.pt"
    path.write_bytes(zips.model_files(source, freeze)["torchscript.pt"])
    return read_code(path)


def test_plain_convolutions_are_portable(tmp_path: Path) -> None:
    code = code_of(tmp_path)
    assert code.unportable == []
    assert code.has_parameters
    assert code.devices == []


def test_scripted_interpolation_is_not_portable(tmp_path: Path) -> None:
    source = zips.tiny("rate = nn.functional.interpolate(rate, scale_factor=1.0)")
    code = code_of(tmp_path, source)
    import torch

    expected = ["_upsample_lanczos2d_aa"] if hasattr(torch._C._nn, "_upsample_lanczos2d_aa") else []
    assert code.unportable == expected


def test_attention_is_not_portable(tmp_path: Path) -> None:
    source = zips.tiny("rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")
    assert code_of(tmp_path, source).unportable == ["scaled_dot_product_attention"]


def test_freezing_removes_the_parameters(tmp_path: Path) -> None:
    code = code_of(tmp_path, freeze=True)
    assert not code.has_parameters
    assert code.n_constants > 0


def test_devices_in_the_code_are_found(tmp_path: Path) -> None:
    source = zips.tiny('rate = rate + torch.zeros(1, device=torch.device("cpu"))')
    assert code_of(tmp_path, source).devices == ["cpu"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(zips.model_files()["weights.pt"])
    with pytest.raises(ValueError, match="holds no TorchScript code"):
        read_code(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="not a TorchScript archive"):
        read_code(path)
