"""What can be read off a TorchScript file without loading it."""

from __future__ import annotations

import pickle
import zipfile
from typing import TYPE_CHECKING

import pytest
import zips

from gap_bioimage.validation.package.torchscript import TorchScriptCode, read_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def code_of(tmp_path: Path, source: str = zips.BLUR, freeze: bool = False, train: bool = False) -> TorchScriptCode:
    path = tmp_path / "torchscript.pt"
    path.write_bytes(zips.model_files(source, freeze, train)["torchscript.pt"])
    return read_code(path)


def test_plain_convolutions_are_portable(tmp_path: Path) -> None:
    code = code_of(tmp_path)
    assert code.unportable == {}
    assert code.has_parameters
    assert code.devices == []
    assert code.saved_on == ()
    assert code.norms == []
    assert not code.in_training_mode


def test_scripted_interpolation_is_not_portable(tmp_path: Path) -> None:
    source = zips.tiny("rate = nn.functional.interpolate(rate, scale_factor=1.0)")
    code = code_of(tmp_path, source)
    import torch

    expected = ["torch._upsample_lanczos2d_aa"] if hasattr(torch._C._nn, "_upsample_lanczos2d_aa") else []
    assert list(code.unportable) == expected


def test_attention_is_not_portable(tmp_path: Path) -> None:
    source = zips.tiny("rate = nn.functional.scaled_dot_product_attention(rate, rate, rate)")
    assert code_of(tmp_path, source).unportable == {
        "torch.scaled_dot_product_attention": "the code uses torch.scaled_dot_product_attention (attention), which "
        "libtorch 1.13 does not have"
    }


@pytest.mark.parametrize(
    "body",
    [
        "rate = rate.to(torch.uint16).to(torch.float32)",
        "rate = rate + torch.zeros(1, dtype=torch.uint16).to(torch.float32)",
        "rate = rate.to('cpu', torch.uint16).to(torch.float32)",
    ],
)
def test_uint16_is_not_portable(tmp_path: Path, body: str, old_torch: Callable[..., None]) -> None:
    source = zips.tiny(body)
    message = "the code makes uint16 tensors, which libtorch 1.13 does not have"
    assert code_of(tmp_path, source).unportable == {"uint16": message}
    refuses = """
import sys, torch
try:
    torch.jit.load(sys.argv[1])(torch.ones(1, 1, 8, 8))
except RuntimeError:
    sys.exit(0)
sys.exit("it ran")
"""
    old_torch(refuses, tmp_path / "torchscript.pt")


def test_sizes_are_no_types(tmp_path: Path) -> None:
    source = zips.tiny("rate = rate.to(torch.float64).to(torch.float32) + torch.zeros([27]).sum() + 28")
    assert code_of(tmp_path, source).unportable == {}


def test_freezing_removes_the_parameters(tmp_path: Path) -> None:
    code = code_of(tmp_path, freeze=True)
    assert not code.has_parameters
    assert code.n_constants > 0


def test_devices_in_the_code_are_found(tmp_path: Path) -> None:
    source = zips.tiny('rate = rate + torch.zeros(1, device=torch.device("cpu"))')
    assert code_of(tmp_path, source).devices == ["cpu"]


def test_training_mode_is_found(tmp_path: Path) -> None:
    source = zips.tiny("rate = self.other(rate)", "self.other = nn.Dropout(0.5)")
    trained, saved = code_of(tmp_path, source, train=True), code_of(tmp_path, source)
    assert trained.in_training_mode and not saved.in_training_mode
    assert trained.depends_on_mode and saved.depends_on_mode
    plain = code_of(tmp_path, train=True)
    assert plain.in_training_mode and not plain.depends_on_mode


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("GroupNorm(1, 1)", ["group_norm"]),
        ("InstanceNorm2d(1)", ["instance_norm"]),
        ("BatchNorm2d(1)", []),
        ("LayerNorm(32)", []),
    ],
)
def test_norms_over_pixels_are_found(tmp_path: Path, layer: str, expected: list[str]) -> None:
    assert code_of(tmp_path, zips.tiny("rate = self.other(rate)", f"self.other = nn.{layer}")).norms == expected


def archive_of(tmp_path: Path, code: str, state: bytes = b"") -> Path:
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/code/__torch__.py", code)
        archive.writestr("made/data.pkl", state)
    return path


def test_tensors_on_a_gpu_are_found(tmp_path: Path) -> None:
    state = pickle.dumps({"weight": ("storage", "cuda:0"), "bias": ("storage", "cuda:0"), "cuda": 3}, protocol=2)
    assert read_code(archive_of(tmp_path, "x", state)).saved_on == ("cuda", "cuda:0")


@pytest.mark.parametrize("state", [b"", b"text", b"\x80\x02X\xff\xff\xff\xff", pickle.dumps("training")[:-3]])
def test_damaged_states_say_nothing(tmp_path: Path, state: bytes) -> None:
    code = read_code(archive_of(tmp_path, "x", state))
    assert not code.in_training_mode
    assert code.saved_on == ()


@pytest.mark.parametrize(
    "code",
    [
        'torch.save(x, "f")',
        'ops.aten.save(x, "f")',
        'torch . \\\n save (x, "f")',
        '_0 = torch.save\n_0(x, "f")',
        'getattr(torch, "save")(x, "f")',
        'getattr(torch, "\\163ave")(x, "f")',
        'torch.from_file("f")',
    ],
)
def test_reading_and_writing_files_is_found(tmp_path: Path, code: str) -> None:
    assert read_code(archive_of(tmp_path, code)).touches_files


def test_other_code_touches_no_files(tmp_path: Path) -> None:
    text = 'self.saved = getattr(self, "0")\ntorch.add(x, "from_files")'
    assert not read_code(archive_of(tmp_path, text)).touches_files


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(zips.model_files()["weights.pt"])
    with pytest.raises(ValueError, match="holds no TorchScript code"):
        read_code(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="not a TorchScript archive"):
        read_code(path)
