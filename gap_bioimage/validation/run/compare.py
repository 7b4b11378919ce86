"""Numbers and pictures that compare two outputs: on their own scale, and as bioimageio.core compares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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


def relative_rms(actual: NDArray[Any], expected: NDArray[Any], *, centred: bool = True) -> float:
    """RMS difference over the scale of the expected values; infinite for other shapes and what is not finite.

    The scale is the standard deviation, so that a large offset cannot hide a wrong structure (a constant expectation is
    measured against its magnitude); the RMS where it is not ``centred``.
    """
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    difference, rms = (float(np.sqrt(np.mean(np.square(values)))) for values in (a - b, b))
    scale = (float(b.std()) or rms) if centred else rms
    return 0.0 if difference == 0 else difference / scale if scale > 0 else float("inf")


def mismatched_ppm(actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance) -> float:
    """Elements per million that differ by more than the tolerance.

    As bioimageio.core counts them, except that a number never agrees with what is not finite: its own comparison lets
    NaN pass for any value.
    """
    a, b = actual.astype(np.float32), expected.astype(np.float32)
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= tolerance.atol + tolerance.rtol * np.abs(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float((~np.where(np.isfinite(a) & np.isfinite(b), close, same)).mean() * 1e6)


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> str:
    """How many values of which arrays are NaN or infinite, in words; empty if none is."""
    floats = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.inexact)}
    found = {name: int(np.count_nonzero(~np.isfinite(array))) for name, array in floats.items()}
    parts = [f"{n} of {arrays[name].size} values of {name!r}" for name, n in found.items() if n]
    return f"{', '.join(parts)} {'is' if sum(found.values()) == 1 else 'are'} NaN or infinite" if parts else ""


def core_tolerance(rdf: Mapping[str, Any], output_id: str) -> Tolerance:
    """The tolerance with which bioimageio.core tests an output: ``config.bioimageio.reproducibility_tolerance``."""
    config = rdf.get("config")
    section = config.get("bioimageio") if isinstance(config, dict) else None
    entries = section.get("reproducibility_tolerance") if isinstance(section, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if not entry.get("output_ids") or output_id in entry["output_ids"]:
            names = ("relative_tolerance", "absolute_tolerance", "mismatched_elements_per_million")
            pairs = zip(names, (1e-3, 1e-3, 100.0), strict=True)
            return Tolerance(*(float(entry.get(name, default)) for name, default in pairs))
    return Tolerance()


def wrong_versions(expected: NDArray[Any], axes: Sequence[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Copies of an expected output that a test must refuse: mirrored along each axis (if that changes it), shuffled."""
    for axis in (axis for axis in "xyz" if axis in axes):
        flipped = np.flip(expected, axis=list(axes).index(axis))
        if relative_rms(flipped, expected) > 1e-2:
            yield f"mirrored along {axis}", flipped
    if float(expected.astype(np.float64).std()) > 0:
        order = np.random.default_rng(0).permutation(expected.size)
        yield "shuffled", expected.reshape(-1)[order].reshape(expected.shape)


def keep_evidence(
    check_id: str, outcome: Outcome, *, keep: Path | None, pictures: Path | None
) -> list[tuple[str, Path]]:
    """Write arrays and pictures of what failed to ``keep``, and pictures of the rest to ``pictures``, where given.

    Returns titles and paths of the pictures.
    """
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

    expected, got = (_plane(array, evidence.axes) for array in (evidence.expected, evidence.got))
    limits = _limits(expected)
    panels: list[tuple[str, NDArray[Any], dict[str, Any]]] = [("expected", expected, limits), ("got", got, limits)]
    if evidence.given is not None:
        given = _plane(evidence.given, evidence.axes)
        panels.insert(0, ("input", given, _limits(given)))
    if expected.shape == got.shape:
        finite = np.abs((got - expected)[np.isfinite(got - expected)])
        top = float(finite.max(initial=0)) or 1.0
        title = "no difference" if finite.size and not finite.any() else "got - expected"
        panels.append((title, got - expected, {"cmap": "RdBu_r", "vmin": -top, "vmax": top}))
    height, width = expected.shape
    scale = 3.2 / max(height, width)
    size = len(panels) * max(1.9, scale * width + 0.5), max(1.6, scale * height) + 0.9
    figure = Figure(size, layout="constrained")
    figure.suptitle(evidence.title, fontsize=10)
    for axes, (title, image, look) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        figure.colorbar(axes.imshow(image, interpolation="nearest", **look), ax=axes, location="bottom", shrink=0.9)
        axes.set_title(title if title != "got" or image.shape == expected.shape else f"got another size\n{image.shape}")
        axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _limits(image: NDArray[Any]) -> dict[str, Any]:
    finite = image[np.isfinite(image)]
    low, high = (float(value) for value in np.percentile(finite, [0.1, 99.9])) if finite.size else (0.0, 1.0)
    return {"cmap": "magma", "vmin": low, "vmax": high if high > low else low + 1.0}


def _plane(array: NDArray[Any], axes: Sequence[str]) -> NDArray[Any]:
    """One ``(y, x)`` plane: the first of every other axis, the middle one along z."""
    plane: NDArray[Any] = array.astype(np.float64)
    names = list(axes) if len(axes) == array.ndim else [""] * array.ndim
    is_named = {"y", "x"} <= set(names)
    kept = [names.index("y"), names.index("x")] if is_named else list(range(array.ndim))[-2:]
    for axis in reversed(range(array.ndim)):
        if axis not in kept:
            plane = plane.take(plane.shape[axis] // 2 if names[axis] == "z" else 0, axis)
    plane = plane.T if is_named and kept[0] > kept[1] else plane
    return np.atleast_2d(plane)[:_MAX_SHOWN_PX, :_MAX_SHOWN_PX]
