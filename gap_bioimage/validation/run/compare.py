"""Numbers and pictures that compare two outputs: on their own scale, and as bioimageio.core compares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gap_bioimage.files import replacing
from gap_bioimage.validation.outcome import Evidence, Outcome, Picture

_MAX_SHOWN_PX = 1024


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be off: ``|a - b| > atol + rtol |b|`` in at most ``ppm`` per million."""

    rtol: float = 1e-3
    atol: float = 1e-3
    ppm: float = 100.0


ZOO_DEEPIMAGEJ = Tolerance(rtol=1e-4, atol=1.5e-4, ppm=0.0)
"""The zoo's deepImageJ check wants every pixel this close."""


def relative_rms(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """RMS difference over the standard deviation of the expected values, so that a large offset hides no structure.

    A constant is measured against its magnitude. Infinite for other shapes and what is not finite.
    """
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    difference, rms = (float(np.sqrt(np.mean(np.square(values)))) for values in (a - b, b))
    scale = float(b.std()) or rms
    return 0.0 if difference == 0 else difference / scale if scale > 0 else float("inf")


def worst_rms(actual: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """The largest `relative_rms` of several outputs."""
    return max((relative_rms(actual[name], array) for name, array in expected.items()), default=0.0)


def mismatched_ppm(actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> float:
    """Elements per million that differ by more than the tolerance.

    As bioimageio.core counts them, except that a number never agrees with what is not finite: its own comparison lets
    NaN pass for any value.
    """
    a, b = actual.astype(np.float32), expected.astype(np.float32)
    close = np.isclose(a, b, tolerance.rtol, tolerance.atol, equal_nan=True)
    return float((~close).mean() * 1e6)


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> str:
    """How many values of which arrays are NaN or infinite, in words; empty if none is."""
    floats = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.inexact)}
    found = {name: int(np.count_nonzero(~np.isfinite(array))) for name, array in floats.items()}
    parts = [f"{n} of {arrays[name].size} values of {name!r}" for name, n in found.items() if n]
    return f"{', '.join(parts)} {'is' if sum(found.values()) == 1 else 'are'} NaN or infinite" if parts else ""


def keep_evidence(
    check_id: str, outcome: Outcome, *, keep: Path | None, pictures: Path | None
) -> list[tuple[str, Path]]:
    """Write arrays and pictures of what failed, and pictures of the rest, where asked for; their titles and paths."""
    failed = outcome.status == "failed" and keep is not None
    folder = keep if failed else pictures
    if folder is None or not outcome.evidence:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for item in outcome.evidence:
        stem = re.sub(r"[^A-Za-z0-9_.]+", "_", f"{check_id}_{item.title}")[:120]
        for name in ("given", "expected", "got"):
            if failed and (array := getattr(item, name)) is not None:
                with replacing(folder / f"{stem}_{name}.npy") as temporary:
                    np.save(temporary, array)
        draw_evidence(folder / f"{stem}.png", item)
        drawn.append((item.title, folder / f"{stem}.png"))
    return drawn


def read_pictures(drawn: Sequence[tuple[str, str, Path]]) -> tuple[Picture, ...]:
    """Read pictures back, given as check id, title and path; those that are gone are left out."""
    return tuple(Picture(check_id, title, path.read_bytes()) for check_id, title, path in drawn if path.is_file())


def draw_evidence(path: Path, evidence: Evidence) -> None:
    """Draw input, expected, got and their difference side by side, one plane of each."""
    from matplotlib.figure import Figure

    arrays = {"input": evidence.given, "expected": evidence.expected, "got": evidence.got}
    planes = {name: _plane(array, evidence.axes) for name, array in arrays.items() if array is not None}
    looks = {name: _limits(plane) for name, plane in planes.items()} | {"got": _limits(planes["expected"])}
    if planes["got"].shape == planes["expected"].shape:
        difference = planes["got"] - planes["expected"]
        top = float(np.abs(difference[np.isfinite(difference)]).max(initial=0)) or 1.0
        planes["got - expected"], looks["got - expected"] = difference, {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    height, width = planes["expected"].shape
    scale = 3.2 / max(height, width)
    figure = Figure((len(planes) * max(1.9, scale * width + 0.5), max(1.6, scale * height) + 0.9), layout="constrained")
    figure.suptitle(evidence.title, fontsize=10)
    for axes, (name, plane) in zip(np.ravel(figure.subplots(1, len(planes))), planes.items(), strict=True):
        image = axes.imshow(plane, interpolation="nearest", **looks[name])
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
        axes.set_title(name if "got - expected" in planes or name != "got" else f"got another size\n{plane.shape}")
        axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _limits(image: NDArray[Any]) -> dict[str, Any]:
    finite = image[np.isfinite(image)]
    low, high = (float(value) for value in np.percentile(finite, [0.1, 99.9])) if finite.size else (0.0, 1.0)
    return {"cmap": "magma", "vmin": low, "vmax": high if high > low else low + 1.0}


def _plane(array: NDArray[Any], axes: Sequence[str]) -> NDArray[np.float64]:
    """One ``(y, x)`` plane: the first of every other axis, the middle one along z."""
    is_named = len(axes) == array.ndim and {"y", "x"} <= {*axes}
    names = list(axes) if is_named else [*[""] * (array.ndim - 2), "y", "x"]
    kept = {"y": slice(_MAX_SHOWN_PX), "x": slice(_MAX_SHOWN_PX)}
    sizes = zip(names, array.shape, strict=False)  # fewer than two axes have fewer sizes
    part = tuple(kept.get(name, size // 2 if name == "z" else 0) for name, size in sizes)
    plane: NDArray[np.float64] = np.atleast_2d(array[part].astype(np.float64))
    return plane.T if names.index("x") < names.index("y") else plane
