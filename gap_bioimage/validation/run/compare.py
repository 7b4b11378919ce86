"""Numbers that compare two outputs: on their own scale, and as bioimageio.core compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be off: ``|a - b| > atol + rtol |b|`` in at most ``ppm`` per million."""

    rtol: float = 1e-3
    atol: float = 1e-3
    ppm: float = 100.0


ZOO_DEEPIMAGEJ = Tolerance(rtol=1e-4, atol=1.5e-4, ppm=0.0)
"""The zoo's deepImageJ check wants every pixel this close."""


def relative_rms(actual: NDArray[Any], expected: NDArray[Any], *, centred: bool = True) -> float:
    """RMS difference over the scale of the expected values; infinite for other shapes and what is not finite.

    Parameters
    ----------
    actual, expected
        Arrays of one shape, any unit.
    centred
        The scale is the standard deviation, so that a large offset cannot hide a wrong structure (a constant
        expectation is measured against its magnitude); else it is the RMS.
    """
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    difference = float(np.sqrt(np.mean((a - b) ** 2)))
    if difference == 0:
        return 0.0
    rms = float(np.sqrt(np.mean(b**2)))
    scale = (float(b.std()) or rms) if centred else rms
    return difference / scale if scale > 0 else float("inf")


def mismatched_ppm(actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> float:
    """Elements per million that differ by more than the tolerance.

    As bioimageio.core counts them, except that a number never agrees with what is not finite: its own comparison lets
    NaN pass for any value.
    """
    a, b = actual.astype(np.float32), expected.astype(np.float32)
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= tolerance.atol + tolerance.rtol * np.abs(b)
    finite = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float((~np.where(finite, close, same)).mean() * 1e6)


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> str:
    """How many values of which arrays are NaN or infinite, in words; empty if none is."""
    found = {
        name: int(np.count_nonzero(~np.isfinite(array)))
        for name, array in arrays.items()
        if np.issubdtype(array.dtype, np.inexact)
    }
    parts = [f"{n} of {arrays[name].size} values of {name!r}" for name, n in found.items() if n]
    return f"{', '.join(parts)} {'is' if sum(found.values()) == 1 else 'are'} NaN or infinite" if parts else ""


def core_tolerance(rdf: Mapping[str, Any], output_id: str) -> Tolerance:
    """The tolerance with which bioimageio.core tests an output: ``config.bioimageio.reproducibility_tolerance``."""
    config = rdf.get("config")
    section = config.get("bioimageio") if isinstance(config, dict) else None
    entries = section.get("reproducibility_tolerance") if isinstance(section, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        outputs = entry.get("output_ids")
        if not outputs or output_id in outputs:
            return Tolerance(
                float(entry.get("relative_tolerance", 1e-3)),
                float(entry.get("absolute_tolerance", 1e-3)),
                float(entry.get("mismatched_elements_per_million", 100.0)),
            )
    return Tolerance()


def wrong_versions(expected: NDArray[Any], axes: Sequence[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Copies of an expected output that a test must refuse: mirrored along each axis, then shuffled.

    Mirrored copies of a symmetric output are the output itself; they are left out.
    """
    for axis in ("x", "y", "z"):
        if axis not in axes:
            continue
        flipped = np.flip(expected, axis=list(axes).index(axis))
        if relative_rms(flipped, expected) > 1e-2:
            yield f"mirrored along {axis}", flipped
    if float(expected.astype(np.float64).std()) > 0:
        order = np.random.default_rng(0).permutation(expected.size)
        yield "shuffled", expected.reshape(-1)[order].reshape(expected.shape)
