"""Pickles are read without being loaded: plain weights pass, code is named."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zips

from gap_bioimage.validation.package import pickles
from gap_bioimage.validation.package.archive import Package, open_package
from gap_bioimage.validation.package.pickles import Scan, pickle_check, scan_pickle
from gap_bioimage.validation.report import validate

if TYPE_CHECKING:
    from pathlib import Path


class Evil:
    """Makes the directory ``evil`` wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').mkdir('evil')",)


class Network(torch.nn.Module):
    """A user's own."""


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def scripted() -> bytes:
    return zips.model_files()["torchscript.pt"]


def judged(folder: Path, content: bytes, name: str = "w.pt") -> tuple[str, str]:
    (folder / name).write_bytes(content)
    check = pickle_check(Package(folder, folder, "rdf.yaml", {}, (name,), folder / "scratch"))
    assert (check.id, check.consumer) == ("archive.pickles", "archive")
    assert len(check.message) < 700
    assert bool(check.fix) == (check.status == "failed")
    return check.status, check.message


def names_in(data: bytes) -> list[str]:
    scan = Scan()
    scan_pickle(io.BytesIO(data), scan)
    return list(scan.globals)


STATE = {
    "weight": torch.nn.Parameter(torch.zeros(3, 2)),
    "half": torch.zeros(2, dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "sparse": torch.eye(3).to_sparse(),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "shape": torch.Size([1, 2]),
    "numbers": {1, 2.0, None, 3j},
    "nested": collections.OrderedDict(a=[b"bytes", bytearray(b"x")]),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_weights_pass(tmp_path: Path, legacy: bool, protocol: int) -> None:
    data = saved(STATE, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    assert judged(tmp_path, data) == ("passed", "1 files with pickles hold plain weights")


def test_torchscript_passes_and_its_names_are_allowed_there_only(tmp_path: Path) -> None:
    assert judged(tmp_path, scripted())[0] == "passed"
    with zipfile.ZipFile(io.BytesIO(scripted())) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        data = archive.read(name)
    status, message = judged(tmp_path, data, "data.pkl")
    assert status == "failed"
    assert "__torch__" in message


def test_numpy_and_all_that_torch_allows_are_allowed() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    assert [name for name in _get_allowed_globals() if not pickles._SAFE.fullmatch(name)] == []
    for value in (np.arange(3.0), np.float32(1), np.array(["x"])):
        assert all(pickles._SAFE.fullmatch(name) for name in names_in(pickle.dumps(value)))


@pytest.mark.parametrize(
    "name",
    ["torch.load", "torch.storage._load_from_bytes", "torch.hub.load", "torch.jit.load", "builtins.eval",
     "builtins.getattr", "builtins.__import__", "os.system", "numpy.load", "torch.nn.Linear", "torch._utils.eval",
     "collections.OrderedDict.os", "torch.FloatStorage.os", "torch.jit._pickle.build_intlist", "?"],
)  # fmt: skip
def test_code_is_not_allowed(name: str) -> None:
    assert not pickles._SAFE.fullmatch(name)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"w": torch.zeros(2), "hook": Evil()}, ".eval"),
        ({"w": torch.zeros(2), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (Network(), "Network"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_checkpoints_with_code_are_refused_by_name(
    tmp_path: Path, content: Any, named: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, message = judged(tmp_path, saved(content, _use_new_zipfile_serialization=not legacy))
    assert status == "failed"
    assert message.startswith("'w.pt' ")
    assert named in message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pth", ".ckpt", ".bin", ".dat", ""])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path: Path, protocol: int, suffix: str) -> None:
    status, message = judged(tmp_path, pickle.dumps([1, Evil()], protocol), f"x{suffix}")
    if protocol < 2 and suffix in (".dat", ""):  # nothing tells such a file from text
        assert status == "passed"
    else:
        assert status == "failed"
        assert ".eval" in message


SYSTEM = b"\x8c\x02os\x94\x8c\x06system\x94"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        pytest.param(b"cos\nsystem\n.", "os.system", id="GLOBAL"),
        pytest.param(b"(S'id'\nios\nsystem\n.", "os.system", id="INST"),
        pytest.param(b"\x80\x04" + SYSTEM + b"\x93.", "os.system", id="STACK_GLOBAL"),
        pytest.param(b"\x80\x04" + SYSTEM + b"00h\x00h\x01\x93.", "os.system", id="from the memo"),
        pytest.param(b"\x80\x04" + SYSTEM + b"\x8c\x01x0\x93.", "os.system", id="after a popped string"),
        pytest.param(b"\x80\x04" + SYSTEM + b"(\x8c\x01x\x8c\x01y1\x93.", "os.system", id="after a popped mark"),
        pytest.param(b"\x80\x04\x8c\x02os2\x93.", "os.os", id="DUP"),
        pytest.param(b"\x80\x04\x8c\x02osq\x05\x8c\x06systemq\x0600h\x05h\x06\x93.", "os.system", id="BINPUT"),
        pytest.param(b"U\x02osp7\n0U\x06systemp8\n0g7\ng8\n\x93.", "os.system", id="GET of bytes"),
        pytest.param(b"\x80\x04]\x8c\x01x\x93.", "?", id="a list for a name"),
        pytest.param(b"\x80\x02\x82\x01.", "?", id="EXT1"),
    ],
)
def test_every_way_to_name_a_global_is_followed(tmp_path: Path, data: bytes, named: str) -> None:
    assert names_in(data) == [named]
    assert judged(tmp_path, data, "x.pkl")[0] == "failed"


def test_code_before_a_broken_end_is_found(tmp_path: Path) -> None:
    assert "os.system" in judged(tmp_path, b"cos\nsystem\n(S'id'\ntR\xff\xff", "x.bin")[1]
    assert "breaks off" in judged(tmp_path, pickle.dumps([1, 2, 3])[:-1], "x.pkl")[1]
    # pickletools does not read hexadecimal numbers, though unpicklers do
    assert "breaks off" in judged(tmp_path, b"I0x10\n0cos\nsystem\n.", "x.pkl")[1]


@pytest.mark.parametrize(
    "data", [b"", b"plain text", bytes(range(256)), b"\x89HDF\r\n\x1a\n", b"\x08\x07\x12\x07pytorch"]
)
def test_other_binaries_are_left_alone(tmp_path: Path, data: bytes) -> None:
    assert judged(tmp_path, data, "x.bin") == ("passed", "there are no pickles")


def test_a_second_pickle_in_a_row_is_read(tmp_path: Path) -> None:
    assert judged(tmp_path, pickle.dumps(1) + pickle.dumps(Evil()))[0] == "failed"


def test_all_pickles_of_a_zip_are_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}))
        archive.writestr("w/DATA.PKL", pickle.dumps(Evil()))  # torch looks names up in any case
    assert judged(tmp_path, path.read_bytes())[0] == "failed"


def test_weights_that_cannot_be_looked_into_are_refused(tmp_path: Path) -> None:
    data = saved({"w": torch.zeros(2)})
    assert "is damaged: it cannot be unpacked" in judged(tmp_path, data[: len(data) // 2])[1]
    assert judged(tmp_path, data[: len(data) // 2], "x.zip") == ("passed", "there are no pickles")


def test_endless_pickles_are_refused(tmp_path: Path) -> None:
    status, message = judged(tmp_path, pickle.dumps([None] * pickles.MAX_OPCODES), "x.pkl")
    assert status == "failed"
    assert "steps" in message


def test_large_pickles_in_a_zip_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    assert "more than" in judged(tmp_path, saved({f"key {i}": i for i in range(500)}))[1]


def test_a_package_whose_weights_are_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = zips.make_zip(tmp_path, files={"weights.pt": saved({"w": Evil()})})
    with open_package(path) as (package, _):
        assert package is not None
        check = pickle_check(package)
    assert check.status == "failed"
    assert "'weights.pt'" in check.message
    assert "state_dict" in check.fix
    report = validate(path, run_code=True)
    assert report.status == "failed"
    assert {c.id: c.status for c in report.checks}["core.test"] == "skipped"
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_damaged_torchscript_is_told_as_such(tmp_path: Path, kept: float) -> None:
    whole = zips.model_files()["torchscript.pt"]
    damaged = whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)]
    with open_package(zips.make_zip(tmp_path, files={"torchscript.pt": damaged})) as (package, _):
        assert package is not None
        check = pickle_check(package)
    assert check.status == "failed"
    assert check.message == "'torchscript.pt' is damaged, or no TorchScript file"
    assert check.fix == "Download the file again, or write it again with torch.jit.save."


def test_damaged_state_dicts_are_to_be_downloaded_again(tmp_path: Path) -> None:
    whole = zips.model_files()["weights.pt"]
    with open_package(zips.make_zip(tmp_path, files={"weights.pt": whole[: len(whole) // 2]})) as (package, _):
        assert package is not None
        check = pickle_check(package)
    assert check.message.startswith("'weights.pt' is damaged: it cannot be unpacked")
    assert check.fix.startswith("Download the file again")
