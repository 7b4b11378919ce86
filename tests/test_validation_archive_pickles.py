"""Pickles are read without being loaded: plain weights pass, all else is named with what to do."""

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

from gap_bioimage.validation.archive import pickles
from gap_bioimage.validation.archive.package import Package, open_package
from gap_bioimage.validation.check import Outcome, definition
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


def judged(folder: Path, content: bytes, name: str = "w.pt", weights: str = "pytorch_state_dict") -> Outcome:
    (folder / name).write_bytes(content)
    rdf: dict[str, Any] = {"weights": {weights: {"source": name}}} if weights else {"attachments": [{"source": name}]}
    outcome = definition("archive.pickles").outcome_of(Package(folder, folder, "rdf.yaml", rdf, (name,), folder / "s"))
    assert len(outcome.message) < 700
    assert bool(outcome.fix) == (outcome.status in ("failed", "warning"))
    return outcome


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
def test_plain_weights_pass_as_torch_loads_them(tmp_path: Path, legacy: bool) -> None:
    data = saved(STATE, _use_new_zipfile_serialization=not legacy)
    assert judged(tmp_path, data).message == "1 file with pickles holds plain weights"
    torch.load(io.BytesIO(data), weights_only=True)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_does_not_load_fails(tmp_path: Path, protocol: int, legacy: bool) -> None:
    data = saved(STATE, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    outcome = judged(tmp_path, data)
    assert (outcome.status, "pickle_protocol" in outcome.fix) == ("failed", True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(data), weights_only=True)


def test_torchscript_passes_and_its_names_are_allowed_there_only(tmp_path: Path) -> None:
    script = zips.model_files()["torchscript.pt"]
    assert judged(tmp_path, script, weights="torchscript").status == "passed"
    with zipfile.ZipFile(io.BytesIO(script)) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    assert "__torch__" in judged(tmp_path, data, "data.pkl").message


@pytest.mark.parametrize(
    ("described", "held", "words"),
    [
        ("torchscript", "weights.pt", ("saved by torch.save", "not TorchScript", "weights.pytorch_state_dict")),
        ("pytorch_state_dict", "torchscript.pt", ("is TorchScript", "not a state_dict", "weights.torchscript")),
    ],
)
def test_weights_of_the_other_kind_are_told_as_such(tmp_path: Path, described: str, held: str, words: Any) -> None:
    outcome = judged(tmp_path, zips.model_files()[held], weights=described)
    assert outcome.status == "failed"
    assert all(word in f"{outcome.message} {outcome.fix}" for word in words)


@pytest.mark.parametrize("number", [np.float64(0.5), np.arange(3.0)])
@pytest.mark.parametrize(
    ("key", "state"), [("model", {"w": torch.zeros(2)}), ("net", collections.OrderedDict(w=STATE["half"]))]
)
def test_numpy_beside_the_tensors_fails_as_in_torch(tmp_path: Path, number: Any, key: str, state: Any) -> None:
    data = saved({"epoch": 3, key: state, "best": number})
    outcome = judged(tmp_path, data)
    assert outcome.status == "failed"
    assert "NumPy" in outcome.message
    assert f"checkpoint[{key!r}]" in outcome.fix
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(data), weights_only=True)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"w": torch.zeros(2), "hook": Evil()}, "eval"),
        ({"w": torch.zeros(2), "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (Network(), "Network"),
    ],
)
def test_checkpoints_with_code_are_refused_by_name(
    tmp_path: Path, content: Any, named: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = judged(tmp_path, saved(content, _use_new_zipfile_serialization=not legacy))
    assert outcome.status == "failed"
    assert outcome.message.startswith("'w.pt' ")
    assert named in outcome.message
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_refused(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps([1, Evil()], protocol)
    assert judged(tmp_path, data).status == "failed"
    for suffix in (".pkl", ".pth", ".ckpt", ".bin"):  # what is only attached is loaded by nobody but people
        outcome = judged(tmp_path, data, f"x{suffix}", weights="")
        assert outcome.status == "warning"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"cos\nsystem\n.", id="GLOBAL"),
        pytest.param(b"(S'id'\nios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.", id="STACK_GLOBAL"),
        pytest.param(b"\x80\x04\x8c\x02os\x94\x8c\x06system\x9400h\x00h\x01\x93.", id="from the memo"),
        pytest.param(b"\x80\x02\x82\x01.", id="EXT1"),
        pytest.param(b"cos\nsystem\n(S'id'\ntR\xff\xff", id="a broken end"),
        pytest.param(b"I0x10\n0cos\nsystem\n.", id="a number that pickletools does not read"),
        pytest.param(pickle.dumps([1, 2, 3])[:-1], id="cut off"),
        pytest.param(pickle.dumps(1) + pickle.dumps(Evil()), id="in the second of two"),
        pytest.param(b"", id="empty"),
        pytest.param(b"plain text", id="text"),
    ],
)
def test_what_cannot_be_explained_fails(tmp_path: Path, data: bytes) -> None:
    assert judged(tmp_path, data).status == "failed"


@pytest.mark.parametrize("data", [b"", b"plain text", b"\x89HDF\r\n\x1a\n", b"\x08\x07\x12\x07pytorch"])
def test_other_weights_are_left_alone(tmp_path: Path, data: bytes) -> None:
    for weights in ("onnx", "keras_hdf5"):
        assert judged(tmp_path, data, "x.bin", weights).message == "there are no pickles"


def test_all_pickles_of_a_zip_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}, 2))
        archive.writestr("w/DATA.PKL", pickle.dumps(Evil(), 2))  # torch looks names up in any case
    assert "eval" in judged(tmp_path, (tmp_path / "zip").read_bytes()).message


def test_large_pickles_in_a_zip_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1000)
    assert "too large" in judged(tmp_path, saved({f"key {i}": i for i in range(500)})).message


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_damaged_weights_are_to_be_downloaded_again(tmp_path: Path, kept: float) -> None:
    for name, weights, how in (
        ("torchscript.pt", "torchscript", "torch.jit.save"),
        ("weights.pt", "pytorch_state_dict", "torch.save(model.state_dict(), ...)"),
    ):
        whole = zips.model_files()[name]
        outcome = judged(tmp_path, whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)], name, weights)
        assert outcome.status == "failed"
        assert "is damaged" in outcome.message
        assert outcome.fix == f"Download the file again, or write it again with {how}."


def test_a_package_whose_weights_are_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = zips.make_zip(tmp_path, files={"weights.pt": saved({"w": Evil()})})
    with open_package(path) as (package, _):
        assert package is not None
    checks = {check.id: check for check in validate(path, run_code=True).checks}
    assert checks["archive.pickles"].status == "failed"
    assert checks["core.test"].status == "skipped"
    assert "archive.pickles" in checks["core.test"].message
    assert not (tmp_path / "evil").exists()
