"""Read the headers of a package's arrays, and look through the test tensors piece by piece."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import one_sentence
from gap_bioimage.validation.package.declared import names_of_test_tensors
from gap_bioimage.validation.package.entries import none_of, shown
from gap_bioimage.validation.package.references import files_of

if TYPE_CHECKING:
    from pathlib import Path

    from gap_bioimage.validation.checks import Check
    from gap_bioimage.validation.package.archive import Package

MAX_TENSOR_BYTES = 4 * 2**30
"""A test tensor is read as a whole, and its output several times."""
_MAX_DIMENSIONS = 16
_PIECE = 2**20
"""Values that are looked at together."""
_MAGIC = b"\x93NUMPY"


def tensor_check(package: Package) -> Check:
    """Whether every .npy file is a plain array of the size that its header states: the check ``archive.tensors``."""
    problems, n_arrays = [], 0
    tested = {PurePosixPath(name) for _, _, name in names_of_test_tensors(package.rdf)}
    fix = "Choose a test image from which the model makes numbers, and write both tensors again."
    for name in files_of(package):
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
    good = f"{n_arrays} arrays are as large as they say"
    return none_of("archive.tensors", problems, good, fix)


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
    if not bad:
        return None
    values = "1 value that is not a number" if bad == 1 else f"{bad} values that are not numbers"
    return f"holds {values} (NaN) or infinite, which test nothing"


def _problem_of(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
        if start != _MAGIC:
            return "is not an .npy file" if path.suffix.lower() == ".npy" else None
        file.seek(0)
        try:
            shape, dtype = _read_header(file)
        except Exception as error:  # numpy parses Python literals here, which may fail in any way
            return f"has a header that cannot be read: {one_sentence(error, 120)}"
        header_bytes = file.tell()
    if dtype.hasobject:
        return "holds Python objects, which are pickles; numbers are expected"
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or not 0 <= n <= MAX_TENSOR_BYTES for n in shape):
        return (
            f"has the shape {one_sentence(shape, 80)}; at most {_MAX_DIMENSIONS} dimensions of 0 or more are expected"
        )
    expected = math.prod(shape) * int(dtype.itemsize)
    stated = f"{one_sentence(shape, 80)} of {one_sentence(dtype, 40)}"
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
