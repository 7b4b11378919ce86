"""What can be read off a TorchScript file without loading it, and which of its operators old engines have."""

from __future__ import annotations

import json
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scripted
import torch
import zips
from fixtures_model import CONFIGS, random_network

from gap_bioimage.network import PhotonDenoiser
from gap_bioimage.sampler import PosteriorSampler
from gap_bioimage.validation.archive import torchscript
from gap_bioimage.validation.archive.torchscript import TorchScriptCode, calls, known_operators, problem_of, read_code

if TYPE_CHECKING:
    from collections.abc import Callable

LISTING = Path(__file__).parents[1] / "benchmarks" / "list_operators.py"
LOADS = """
import json, sys, torch
from pathlib import Path
loads = {}
for path in sorted(Path(sys.argv[1]).glob("*.pt")):
    try:
        torch.jit.load(str(path))
        loads[path.stem] = ""
    except Exception as error:
        loads[path.stem] = str(error)
Path(sys.argv[1], "loads.json").write_text(json.dumps(loads))
"""


def found(text: str) -> list[tuple[str, list[str], dict[str, str]]]:
    return [(call.name, call.arguments, call.keywords) for call in calls(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x0 = torch.add(x, 1)", [("aten::add", ["x", "1"], {})]),
        ("return ops.prim.min([a, b])", [("prim::min", ["["], {})]),
        ("y = ops.torchvision.nms(x, y, 0.5)", [("torchvision::nms", ["x", "y", "0.5"], {})]),
        ("g = torch.autograd.grad([y], [x])", [("aten::grad", ["[", "["], {})]),
        ("t = torch.tensor([1., 2.], dtype=7, device=ops.prim.device(x))",
         [("prim::device", ["x"], {}), ("aten::tensor", ["["], {"dtype": "7", "device": "ops.prim.device"})]),
        ("torch.zeros([2, torch.len(q)], dtype=6)", [("aten::len", ["q"], {}), ("aten::zeros", ["["], {"dtype": "6"})]),
        ("torch.f(a, )", [("aten::f", ["a"], {})]),
        ("torch.f()", [("aten::f", [], {})]),
        ('raise_("torch.nonsense(x", torch.f("a, (b", \'c\'))', [("aten::f", ['"a, (b"', "'c'"], {})]),
        ('torch.eq(mode, "a \\" torch.g(")', [("aten::eq", ["mode", '"a \\" torch.g("'], {})]),
        ("torch.f(-1, (a, b), {k: v}, x[0])", [("aten::f", ["-1", "(", "{", "x"], {})]),
        ("_0 = __torch__.torch.nn.functional.rms_norm(x, [3])", []),
        ("(self.torch.conv).forward(x, )", []),
        ("torch.f(a))]}", [("aten::f", ["a"], {})]),
        ("torch.f(a", []),
    ],
)  # fmt: skip
def test_calls_are_read_off_the_code(text: str, expected: list[tuple[str, list[str], dict[str, str]]]) -> None:
    assert found(text) == expected


def test_deep_nesting_is_read() -> None:
    depth = 20_000
    assert len(found("torch.neg(" * depth + ")" * depth)) == depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torch.conv2d(x, w, None, [1, 1])", ""),
        ("torch.format(a, b, c, d, e, f, g, h)", ""),
        ("torch.rms_norm(x)", "the code uses torch.rms_norm (RMSNorm), which libtorch 1.13 does not have"),
        ("ops.prim.itemsize(x)", "the code uses prim.itemsize, which libtorch 1.13 does not have"),
        ("ops.torchvision.nms(x)", "the code uses torchvision.nms, which libtorch 1.13 does not have"),
        ("torch.relu(x, 1)", "the code calls torch.relu with arguments that libtorch 1.13 does not take"),
        ("torch.relu(x, inplace=True)", "the code calls torch.relu with arguments that libtorch 1.13 does not take"),
        ("torch.squeeze(x, 0)", ""),
        ("torch.squeeze(x, [0, 1])", "the code calls torch.squeeze with arguments that libtorch 1.13 does not take"),
    ],
)
def test_a_call_is_compared_with_the_old_engine(text: str, message: str) -> None:
    assert [problem_of(call) for call in calls(text)] == [message]


def test_the_table_holds_one_sorted_name_per_line() -> None:
    lines = torchscript._TABLE.read_text().splitlines()
    names = [line.split()[0] for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
    assert list(known_operators()) == names
    assert {"aten::conv2d", "prim::RaiseException", "aten::upsample_nearest2d"} <= set(names)
    assert "aten::scaled_dot_product_attention" not in names


@pytest.fixture(scope="module")
def torch_1_13(old_python: str) -> str:
    """Return the system's Python, if it has the torch that the table was made with."""
    command = [old_python, "-c", "import torch; print(torch.__version__)"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not version.startswith("1.13."):
        pytest.skip(f"the system's torch is {version}")
    return old_python


def test_the_table_can_be_made_again(torch_1_13: str) -> None:
    made = subprocess.run([torch_1_13, str(LISTING)], capture_output=True, text=True, check=True)
    assert made.stdout == torchscript._TABLE.read_text()


def test_what_is_said_not_to_load_does_not_and_all_else_does(
    tmp_path: Path, old_torch: Callable[..., None], torch_1_13: str
) -> None:
    for subject in scripted.FUNCTIONS:
        torch.jit.save(torch.jit.script(subject), str(tmp_path / f"{scripted.name_of(subject)}.pt"))
    old_torch(LOADS, tmp_path)
    errors = json.loads((tmp_path / "loads.json").read_text())
    said = {path.stem: sorted(read_code(path).unportable) for path in tmp_path.glob("*.pt")}
    assert len(said) == len(scripted.FUNCTIONS)
    assert {name: problems for name, problems in said.items() if problems and not errors[name]} == {}
    assert {name: error for name, error in errors.items() if error and not said[name]} == {}
    assert said["attention"] == said["scaled_attention"] == ["torch.scaled_dot_product_attention"]
    assert said["own_rms_norm"] == said["Holder"] == []


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_our_own_modules_are_portable(tmp_path: Path, config: dict[str, object]) -> None:
    small = {**config, "depth": 2, "start_filts": 4, "levels": 3}
    dim, channels = int(str(config["dim"])), int(str(config.get("channels", 1)))
    box = [3] * dim
    modules = [
        random_network(0, **small),
        PhotonDenoiser(box_px=box, **small),
        PosteriorSampler(box_px=box, window_px=box, n_samples=2, n_steps=2, seed=0, gain=1.0, brightest=1e6, **small),
    ]
    for module in modules:
        torch.jit.save(torch.jit.script(module.eval()), tmp_path / "module.pt")
        assert read_code(tmp_path / "module.pt").unportable == {}
    image = torch.ones(1, channels, *[8] * dim)
    torch.jit.save(torch.jit.trace(modules[0].eval(), image), tmp_path / "module.pt")
    assert read_code(tmp_path / "module.pt").unportable == {}


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
