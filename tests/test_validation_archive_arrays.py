"""Arrays that lie about themselves are refused by their headers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zips

from gap_bioimage.validation.archive import arrays
from gap_bioimage.validation.archive.examine import examine
from gap_bioimage.validation.archive.package import Package, open_package
from gap_bioimage.validation.check import Check, definition

if TYPE_CHECKING:
    from pathlib import Path


def header(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, []], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def tensor_check(package: Package) -> Check:
    made = definition("archive.tensors")
    return made.check(made.outcome_of(package))


def judged(folder: Path, content: bytes, name: str = "x.npy") -> str:
    (folder / name).write_bytes(content)
    rdf = {"attachments": [{"source": name}]}
    check = tensor_check(Package(folder, folder, "rdf.yaml", rdf, (name,), folder / "scratch"))
    assert check.status == ("passed" if "as large as they say" in check.message else "failed")
    return check.message


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header("(10**12,)"), "cannot be read"),
        (header("(1000000000000,)"), "at most 16 dimensions"),
        (header("(1000000, 1000000)"), "3725.3 GiB, at most 4"),
        (header("(4,)") + bytes(15), "16 bytes, but holds 15"),
        (header("(4,)") + bytes(17), "16 bytes, but holds 17"),
        (header("(-1,)") + bytes(4), "0 or more"),
        (header("(True, 4)") + bytes(16), "0 or more"),
        (header("(" + "1, " * 17 + ")") + bytes(4), "at most 16 dimensions"),
        (header("(4,)", "'|O'") + bytes(32), "Python objects"),
        (header("(4,)", "[('a', '<f4'), ('b', '|O')]") + bytes(48), "Python objects"),
        (objects(), "Python objects"),
        (header("__import__('os').getpid()"), "cannot be read"),
        (header("(" * 3000), "cannot be read"),
        (header("(4,)" + " " * 20_000, version=2), "cannot be read"),
        (header("(4,)", "'<q77'"), "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"", "not an .npy file"),
        (b"PK\x03\x04", "not an .npy file"),
    ],
)
def test_arrays_that_are_not_what_they_seem_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    message = judged(tmp_path, content)
    assert why in message
    assert message.startswith("'x.npy' ")
    assert len(message) < 500


@pytest.mark.parametrize("version", [1, 2, 3])
def test_plain_arrays_of_every_version_pass(tmp_path: Path, version: int) -> None:
    assert judged(tmp_path, header("(2, 3)", version=version) + bytes(24)) == "1 arrays are as large as they say"


def test_arrays_by_another_name_are_judged_too(tmp_path: Path) -> None:
    assert "Python objects" in judged(tmp_path, objects(), "image.bin")
    assert judged(tmp_path, b"text", "README.md") == "0 arrays are as large as they say"


def test_the_cap_is_on_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_TENSOR_BYTES", 16)
    assert "as large as they say" in judged(tmp_path, zips.npy(np.zeros(16, np.uint8)))
    assert "at most" in judged(tmp_path, zips.npy(np.zeros(17, np.uint8)))


def test_arrays_that_a_lone_yaml_refers_to_are_judged(tmp_path: Path) -> None:
    (tmp_path / "rdf.yaml").write_text("{type: model, test_inputs: [a.npy]}")
    (tmp_path / "a.npy").write_bytes(objects())
    with open_package(tmp_path / "rdf.yaml") as (package, _):
        assert package is not None
        assert tensor_check(package).status == "failed"


def test_a_test_tensor_of_terabytes_is_never_read(tmp_path: Path) -> None:
    path = zips.make_zip(tmp_path, files={"input.npy": header("(1, 1, 1000000, 1000000)")})
    with open_package(path) as (package, _):
        assert package is not None
        examined = examine(package)
    assert {check.id: check.status for check in examined.checks}["archive.tensors"] == "failed"
    assert "archive.tensors" in examined.why_not_run


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8", np.complex64])
def test_test_tensors_hold_finite_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(arrays, "_PIECE", 100)
    values = np.ones((1, 1, 32, 32), dtype)
    values[0, 0, 0, 5] = np.nan
    values[0, 0, -1, -2:] = np.inf
    with open_package(zips.make_zip(tmp_path, files={"output.npy": zips.npy(values)})) as (package, _):
        assert package is not None
        check = tensor_check(package)
    assert check.status == "failed"
    assert check.message == "'output.npy' holds 3 values that are not numbers (NaN) or infinite, which test nothing"
    assert check.fix.startswith("Choose a test image")


def test_other_arrays_may_hold_anything(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {"mask.npy": zips.npy(np.full((2, 2), np.nan))}
    with open_package(zips.make_zip(tmp_path, files=files)) as (package, _):
        assert package is not None
        assert tensor_check(package).status == "passed"


@pytest.mark.parametrize("value", [None, 3, [], {}, [3], [{}], [{"test_tensor": 3}], [{"test_tensor": {"source": []}}]])
def test_odd_descriptions_hold_no_tensors(value: Any) -> None:
    assert list(arrays.tested_tensors({"inputs": value, "outputs": value, "test_inputs": value})) == []
