from __future__ import annotations

import argparse
import io
import json
import pathlib
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gap_bioimage.errors import CheckpointError
from gap_bioimage.foreign import read_safetensors, read_weights

if TYPE_CHECKING:
    from pathlib import Path


def stored(content: Any, legacy: bool = False) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    return file


def foreign_class(monkeypatch: pytest.MonkeyPatch, name: str, base: type = object) -> Any:
    """Make a class that pickles under the name of a package that need not be installed."""
    module, _, last = name.rpartition(".")
    made = type(last, (base,), {"__module__": module})
    for end in range(1, module.count(".") + 2):
        parent = ".".join(module.split(".")[:end])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    setattr(sys.modules[module], last, made)
    return made


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value", [np.int64(-3), np.float32(2.5), np.float16(0.5), np.bool_(True), np.array([7], ">i4")[0]]
)
def test_numbers_and_paths_are_read(value: Any, legacy: bool) -> None:
    assert read_weights(stored({"x": value, "at": pathlib.PurePosixPath("runs/a")}, legacy), "stream")["x"] == value


def test_settings_become_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"levels": 10, "depth": np.int64(5)}
    for name in (
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ):
        with monkeypatch.context() as patch:
            file = stored({"hyper_parameters": foreign_class(patch, name, dict)(given)})
        assert read_weights(file, name)["hyper_parameters"] == {"levels": 10, "depth": 5}
    with monkeypatch.context() as patch:
        callback = foreign_class(patch, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
        file = stored({"callbacks": {callback: {"best_model_score": torch.tensor(0.5)}}})
    assert list(read_weights(file, "stream")["callbacks"].values()) == [{"best_model_score": torch.tensor(0.5)}]
    file = stored({"hyper_parameters": argparse.Namespace(**given)})
    assert vars(read_weights(file, "namespace")["hyper_parameters"]) == {"levels": 10, "depth": 5}


def test_nothing_stays_allowed() -> None:
    def mine() -> None: ...

    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([mine])
    try:
        read_weights(stored({"x": np.int64(1)}), "stream")
        with pytest.raises(CheckpointError):
            read_weights(io.BytesIO(b"nothing"), "stream")
        assert set(torch.serialization.get_safe_globals()) == {*before, mine}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(stored({"x": argparse.Namespace()}), weights_only=True)


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", ["bare", "settings", "key", "number", "path"])
def test_what_could_run_code_is_refused_by_name(tmp_path: Path, wrapped: str, legacy: bool) -> None:
    call: Any = Call(exec, f"open({str(tmp_path / 'executed')!r}, 'w')")
    content = {
        "bare": {"x": call},
        "settings": {"hyper_parameters": argparse.Namespace(levels=call)},
        "key": {("a", call): 1},
        "number": {"x": Call(np.dtype, call)},
        "path": {"x": Call(pathlib.PurePosixPath, call)},
    }[wrapped]
    with pytest.raises(CheckpointError, match=r"cannot|can be read safely.*names exec, which may run code: save"):
        read_weights(stored(content, legacy), "stream")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "call",
    [
        Call(np._core.multiarray.scalar, np.dtype("O"), b"\0" * 8),
        Call(np._core.multiarray.scalar, np.dtype("i8"), b"\0" * 7),
        Call(np._core.multiarray.scalar, 3, b"\0" * 8),
        Call(np._core.multiarray.scalar, np.dtype("i8"), 8),
        Call(np._core.multiarray.scalar),
    ],
    ids=range(5),
)
def test_numbers_that_are_none_are_refused(call: Call) -> None:
    with pytest.raises(CheckpointError, match="stream is not a checkpoint"):
        read_weights(stored({"x": call}), "stream")


def test_whole_modules_are_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match="stream holds a list"):
        read_weights(stored([1]), "stream")
    with pytest.raises(CheckpointError, match=r"names torch\.nn\.modules\.linear\.Linear, .* state_dict\(\) alone"):
        read_weights(stored(torch.nn.Linear(1, 1)), "stream")


def safetensors(header: Any, numbers: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + numbers


def test_safetensors_are_read(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype="<f4"), np.array([3], "<i8")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [1], "data_offsets": [24, 32]},
    }
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors(header, a.tobytes() + b.tobytes()))
    again = read_safetensors(path)
    assert list(again) == ["a", "b"]
    np.testing.assert_array_equal(again["a"].numpy(), a.reshape(2, 3))
    np.testing.assert_array_equal(again["b"].numpy(), b)


WRONG = ["3", '{"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}']
WRONG += [f'{{"dtype": "F32", "shape": [3], "data_offsets": [{start}, 8]}}' for start in (-8, 0)]
WRONG += [
    '{"dtype": "X", "shape": [2], "data_offsets": [0, 8]}',
    '{"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}',
]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, *(safetensors(f'{{"a": {entry}}}'.encode(), bytes(8)) for entry in WRONG)],
    ids=range(8),
)
def test_broken_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole file of the safetensors format"):
        read_safetensors(path)
