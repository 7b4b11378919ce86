"""The arrays of a package, judged by their headers; test tensors are also looked through, piece by piece."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.archive.entries import few, shown
from gap_bioimage.validation.check import Outcome, Severity, archive_check, one_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gap_bioimage.validation.archive.package import Package

MAX_TENSOR_BYTES = 4 * 2**30
"""A test tensor is read as a whole, and its output several times."""
_MAX_DIMENSIONS = 16
_PIECE = 2**20
"""Values that are looked at together."""
_MAGIC = b"\x93NUMPY"
_CONVERTED = {f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)} | {"float32", "float64"}
"""What bioimageio.spec accepts where float32 or float64 is declared."""
_DECLARED = {*_CONVERTED, "bool"}
_FIX_DTYPE = "Store it with the declared data type (array.astype), or declare the data type that it has."


@archive_check("archive.tensors", Severity.BLOCKS, order=13,
               breaks="reading them fails or fills the memory, or they test nothing",
               fix="Write it again with numpy.save, as a plain array of finite numbers.")  # fmt: skip
def tensors(package: Package) -> Outcome:
    """Test tensors that are plain arrays of finite numbers, as large as they say."""
    problems, n_arrays = [], 0
    tested = {PurePosixPath(name) for _, _, name in tested_tensors(package.rdf)}
    fix = "Choose a test image from which the model makes numbers, and write both tensors again."
    for name in package.named:
        path = package.file(name)
        if path is None:
            continue
        try:
            problem = _problem_of(path)
            if problem:
                fix = "Write it again with numpy.save, as a plain array of numbers."
            elif PurePosixPath(name) in tested:
                problem = _not_finite(path)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        n_arrays += path.suffix.lower() == ".npy"
        if problem:
            problems.append(f"{shown(name)} {problem}")
    if problems:
        return Outcome("failed", few(problems), fix)
    return Outcome("passed", f"{n_arrays} arrays are as large as they say")


def _not_finite(path: Path) -> str | None:
    """Numbers that are none; comparisons with them pass whatever a model makes."""
    import numpy as np

    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
        file.seek(0)
        shape, dtype = _read_header(file)
        if dtype.kind not in "fc":
            return None
        left, bad = math.prod(shape), 0
        while left > 0:
            piece = np.fromfile(file, dtype, min(left, _PIECE))
            bad += int(piece.size - np.isfinite(piece).sum())
            left -= _PIECE
    values = "1 value that is not a number" if bad == 1 else f"{bad} values that are not numbers"
    return f"holds {values} (NaN) or infinite, which test nothing" if bad else None


def _problem_of(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return "is not an .npy file" if path.suffix.lower() == ".npy" else None
        file.seek(0)
        try:
            shape, dtype = _read_header(file)
        except Exception as error:  # numpy parses Python literals here, which may fail in any way
            return f"has a header that cannot be read: {one_sentence(error, 120)}"
        header_bytes = file.tell()
    if dtype.hasobject:
        return "holds Python objects, which are pickles; numbers are expected"
    stated = one_sentence(shape, 80)
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or not 0 <= n <= MAX_TENSOR_BYTES for n in shape):
        return f"has the shape {stated}; at most {_MAX_DIMENSIONS} dimensions of 0 or more are expected"
    expected = math.prod(shape) * int(dtype.itemsize)
    stated += f" of {one_sentence(dtype, 40)}"
    if expected > MAX_TENSOR_BYTES:
        return f"states {stated}, {expected / 2**30:.1f} GiB, at most {MAX_TENSOR_BYTES >> 30} are read"
    if header_bytes + expected != size:
        return f"states {stated}, {expected} bytes, but holds {size - header_bytes}"
    return None


def _read_header(file: Any) -> tuple[tuple[Any, ...], Any]:
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    # Format 3 differs from 2 in the encoding of the header, which matters to names of fields only.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def tested_tensors(rdf: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Side, declaration and file name of every test tensor of a description in format 0.3 to 0.5."""
    for side in ("input", "output"):
        declared, listed = rdf.get(f"{side}s"), rdf.get(f"test_{side}s")
        for index, entry in enumerate(declared if isinstance(declared, list) else []):
            if not isinstance(entry, dict):
                continue
            written = entry.get("test_tensor")
            if written is None and isinstance(listed, list) and index < len(listed):
                written = listed[index]
            name = written.get("source") if isinstance(written, dict) else written
            if isinstance(name, str):
                yield side, entry, name


@archive_check("format.dtypes", Severity.BLOCKS, order=2, breaks="some programs refuse them, others convert them",
               fix=_FIX_DTYPE)  # fmt: skip
def dtypes(package: Package) -> Outcome | str | None:
    """Test tensors stored with the data type that is declared."""
    found: list[str] = []
    converted = True
    for side, entry, name in tested_tensors(package.rdf):
        stored, declared = getattr(_header_of(package.file(name))[1], "name", ""), _declared(entry)
        if stored and stored != declared and declared in _DECLARED:
            what = f"the test tensor of {side} {shown(str(entry.get('id') or entry.get('name') or ''))}"
            found.append(f"{what} ({one_sentence(name, 60)}) is stored as {stored}, declared is {declared}")
            converted &= declared in ("float32", "float64") and stored in _CONVERTED
    if found and converted:
        return Outcome("warning", f"{few(found)}; bioimageio.core converts it, other programs may not", _FIX_DTYPE)
    return few(found) or None


def shape_of(path: Path | None) -> tuple[int, ...]:
    """The shape of an .npy file; empty if it is not one."""
    return tuple(_header_of(path)[0])


def _header_of(path: Path | None) -> tuple[tuple[Any, ...], Any]:
    try:
        with open(path or "", "rb") as file:
            return _read_header(file)
    except Exception:  # archive.tensors tells what is wrong with it
        return (), None


def _declared(entry: dict[str, Any]) -> str:
    data = entry.get("data")
    first = data[0] if isinstance(data, list) and data else data
    declared = first.get("type") if isinstance(first, dict) else entry.get("data_type")
    return declared if isinstance(declared, str) else "float32"  # the format's default
