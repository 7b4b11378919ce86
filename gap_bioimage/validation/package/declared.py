"""Test tensors beside what the description declares of them: data type, size, and values that test something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.checks import Check, one_sentence
from gap_bioimage.validation.package.entries import shown
from gap_bioimage.validation.package.facts import Axis, Facts, TensorFacts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gap_bioimage.validation.package.archive import Package

_SMALL = 1e-4
"""Tensors whose values are all smaller are refused by bioimageio.spec."""
_CONVERTED = {f"{sign}int{bits}" for sign in ("u", "") for bits in (8, 16, 32, 64)} | {"float32", "float64"}
"""What bioimageio.spec accepts where float32 or float64 is declared."""


@dataclass(frozen=True)
class Declared:
    """A test tensor that is there: its side (``input``, ``output``), id, file name, array and declaration."""

    side: str
    id: str
    name: str
    array: NDArray[Any]
    dtype: str
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        """As named in messages."""
        return f"the test tensor of {self.side} {shown(self.id)} ({one_sentence(self.name, 60)})"


def names_of_test_tensors(rdf: dict[str, Any]) -> Iterator[tuple[str, TensorFacts, str]]:
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
                yield side, TensorFacts(entry), name


def declared_tensors(package: Package) -> Iterator[Declared]:
    """All test tensors that can be mapped into memory."""
    import numpy as np

    for side, facts, name in names_of_test_tensors(package.rdf):
        path = package.file(name)
        array = None if path is None else _mapped(path)
        if isinstance(array, np.ndarray):
            written = facts.written
            tensor_id = str(written.get("id") or written.get("name") or "")
            yield Declared(side, tensor_id, name, array, _declared_dtype(written), tuple(facts.axes))


def _mapped(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # archive.tensors tells what is wrong with it
        return None


def _declared_dtype(written: dict[str, Any]) -> str:
    data = written.get("data")
    first = data[0] if isinstance(data, list) and data else data
    declared = first.get("type") if isinstance(first, dict) else written.get("data_type")
    return declared if isinstance(declared, str) else "float32"  # the format's default


def dtype_checks(package: Package) -> list[Check]:
    """Whether test tensors are stored as declared: the check ``format.dtypes``, absent where all are."""
    other = [tensor for tensor in declared_tensors(package) if tensor.array.dtype.name != tensor.dtype]
    if not other:
        return []
    is_converted = all(t.dtype in ("float32", "float64") and t.array.dtype.name in _CONVERTED for t in other)
    named = [f"{tensor} is stored as {tensor.array.dtype.name}, declared is {tensor.dtype}" for tensor in other]
    text = "; ".join(one_sentence(name, 200) for name in named[:3])
    fix = "Store it with the declared data type (array.astype), or declare the data type that it has."
    if is_converted:
        text += "; bioimageio.core converts it, other programs may not"
    return [Check("format.dtypes", "format", "warning" if is_converted else "failed", text, fix)]


def too_small(package: Package) -> list[str]:
    """Test tensors whose values are all so small that any output would pass for them."""
    found = []
    for tensor in declared_tensors(package):
        if not tensor.array.size or tensor.array.dtype.kind not in "fiub":
            continue
        low, high = float(tensor.array.min()), float(tensor.array.max())
        if low == high == 0:
            found.append(f"{tensor} holds only zeros, which test nothing")
        elif low > -_SMALL and high < _SMALL:
            largest = max(-low, high)
            found.append(f"{tensor} holds only values up to {largest:.1g}, too small to test anything")
    return found


def wrong_sizes(package: Package) -> list[str]:
    """Test tensors (of format 0.5) with other numbers of axes, or other sizes, than declared."""
    tensors = list(declared_tensors(package))
    sizes: dict[tuple[str, str], tuple[int, float]] = {}
    for tensor in tensors:
        for axis, size in zip(tensor.axes, tensor.array.shape, strict=False):
            sizes[tensor.id, axis.id] = size, axis.scale
    halo_of_input = Facts(package).halo_of_input
    found: list[str] = []
    for tensor in tensors:
        if found and tensor.side == "output":
            break  # outputs follow inputs
        if len(tensor.axes) != tensor.array.ndim:
            ids = ", ".join(axis.id for axis in tensor.axes)
            found.append(f"{tensor} has {tensor.array.ndim} axes, but {len(tensor.axes)} are declared ({ids})")
            continue
        for axis, size in zip(tensor.axes, tensor.array.shape, strict=True):
            halo = int(2 * halo_of_input.get((tensor.id, axis.id), 0)) if tensor.side == "input" else -2 * axis.halo
            expected = _expected(axis, {size, size + halo}, sizes)
            if expected is not None:
                found.append(f"{tensor} is {size} long along axis {one_sentence(axis.id, 40)}, expected is {expected}")
    return found


def _expected(axis: Axis, given: set[int], sizes: dict[tuple[str, str], tuple[int, float]]) -> str | None:
    """What an axis should be long, or None where one of the given sizes is as declared."""
    size = axis.written.get("size")
    if axis.kind == "channel" and isinstance(axis.written.get("channel_names"), list):
        size = len(axis.written["channel_names"])
    if isinstance(size, int):
        return None if size in given else str(size)
    if axis.min_step is not None:
        least, step = axis.min_step
        if step < 1 or any(n >= least and (n - least) % step == 0 for n in given):
            return None
        return f"{least} plus a multiple of {step}"
    if isinstance(size, dict) and "axis_id" in size:
        key = str(size.get("tensor_id")), str(size["axis_id"])
        if key not in sizes:
            return None
        length, scale = sizes[key]
        exact = length * scale / axis.scale + (size.get("offset") or 0)
        return None if exact in given else f"{exact:g}, from axis {key[1]} of {shown(key[0])}"
    return None
