"""What can be read off a TorchScript file without loading it, and which of its operators old engines have."""

import json
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import scripted
import torch
import zips

from gap_bioimage.validation.archive import torchscript
from gap_bioimage.validation.archive.torchscript import TorchScriptCode, read_code
from gap_bioimage.validation.check import NotApplicable

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


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("torch.conv2d(x, w, None, [1, 1])", []), ("torch.format(a, b, c, d, e, f, g, h)", []),
        ("torch.zeros([2, torch.len(q)], dtype=6, device=ops.prim.device(x))", []), ("torch.squeeze(x, 0)", []),
        ("_0 = __torch__.torch.nn.functional.rms_norm(x, [3])", []), ("(self.torch.conv).forward(x, )", []),
        ('torch.eq(mode, "a \\" torch.nonsense(")', []), ("torch.relu(torch.rms_norm(x))", ["torch.rms_norm"]),
        ("ops.prim.itemsize(x)", ["prim.itemsize"]), ("ops.torchvision.nms(x)", ["torchvision.nms"]),
        ("torch.autograd.nothing(x)", ["torch.nothing"]), ("torch.relu(x, 1)", ["torch.relu"]),
        ("torch.relu(x, inplace=True)", ["torch.relu"]),
        ("def f(x: Tensor, g: Optional[Generator]) -> Tensor:\n  return x", ["Generator"]),
    ],
)  # fmt: skip
def test_calls_are_compared_with_the_old_engine(text: str, problems: list[str]) -> None:
    assert list(TorchScriptCode(text, 0).unportable) == problems


@pytest.mark.parametrize(
    "text", ["torch.neg(" * 5000 + ")" * 5000, "x" + ".y" * 10**5, "torch.f(a", "\0", "- " * 10**5]
)
def test_code_that_torch_never_writes_is_not_judged(text: str) -> None:
    code = TorchScriptCode(text, 0)
    with pytest.raises(NotApplicable) as told:
        _ = code.unportable
    assert told.value.fix and not code.touches_files


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
    assert said["attention"] == ["torch.scaled_dot_product_attention"]
    assert said["own_rms_norm"] == said["Holder"] == []


LANCZOS = ["torch._upsample_lanczos2d_aa"] if hasattr(torch._C._nn, "_upsample_lanczos2d_aa") else []


@pytest.mark.parametrize(
    ("body", "init", "expected"),
    [
        ("", "", {}),
        ("rate = nn.functional.interpolate(rate, scale_factor=1.0)", "", {"unportable": LANCZOS}),
        ("rate = rate.to(torch.uint16).to(torch.float32)", "", {"unportable": ["uint16"]}),
        ("rate = rate.to(torch.float64).to(torch.float32) + torch.zeros([27]).sum() + 28", "", {}),  # sizes, not types
        ('rate = rate + torch.zeros(1, device=torch.device("cpu"))', "", {"devices": ["cpu"]}),
        ("rate = self.other(rate)", "self.other = nn.InstanceNorm2d(1)", {"norms": ["instance_norm"]}),
        ("rate = self.other(rate)", "self.other = nn.LayerNorm(32)", {}),
    ],
)  # fmt: skip
def test_networks_are_read(tmp_path: Path, body: str, init: str, expected: dict[str, object]) -> None:
    path = tmp_path / "torchscript.pt"
    path.write_bytes(zips.model_files(zips.tiny(body, init))["torchscript.pt"])
    code = read_code(path)
    found = {"unportable": list(code.unportable), "devices": code.devices, "norms": code.norms,
             "saved_on": code.saved_on, "has_parameters": code.has_parameters}  # fmt: skip
    nothing = {"unportable": [], "devices": [], "norms": [], "saved_on": (), "has_parameters": True}
    assert found == nothing | expected


def archive_of(tmp_path: Path, code: str, state: bytes = b"") -> TorchScriptCode:
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/code/__torch__.py", code)
        archive.writestr("made/data.pkl", state)
    return read_code(path)


def test_tensors_on_a_gpu_are_found_and_damaged_states_say_nothing(tmp_path: Path) -> None:
    state = pickle.dumps({"weight": ("storage", "cuda:0"), "bias": ("storage", "cuda:0"), "cuda": 3}, protocol=2)
    assert archive_of(tmp_path, "x", state).saved_on == ("cuda", "cuda:0")
    assert archive_of(tmp_path, "x", b"\x80\x02X\xff\xff\xff\xff").saved_on == ()


def test_reading_and_writing_files_is_found(tmp_path: Path) -> None:
    for code in (
        'torch.save(x, "f")', 'torch . \\\n save (x, "f")', '_0 = torch.save\n_0(x, "f")', 'torch.from_file("f")',
        'getattr(torch, "\\163ave")(x, "f")',
    ):  # fmt: skip
        assert archive_of(tmp_path, code).touches_files, code
    assert not archive_of(tmp_path, 'self.saved = getattr(self, "0")\ntorch.add(x, "from_files")').touches_files


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content, told in ((zips.model_files()["weights.pt"], "no TorchScript code"), (b"text", "not a TorchScript")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            read_code(path)
