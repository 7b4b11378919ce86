"""What a model made, kept as arrays and as pictures: input, expected, got, difference."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.files import replacing
from gap_bioimage.validation.check import Picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gap_bioimage.validation.check import Evidence, Outcome

_MAX_SHOWN_PX = 1024


def keep_evidence(
    check_id: str, outcome: Outcome, *, keep: Path | None, pictures: Path | None
) -> list[tuple[str, Path]]:
    """Write what an outcome shows.

    Parameters
    ----------
    check_id, outcome
        The check.
    keep
        Folder for arrays and pictures of what failed, made when something is written; None keeps nothing.
    pictures
        Folder for the pictures of everything else; None draws none.

    Returns
    -------
    Titles and paths of the pictures.
    """
    failed = outcome.status == "failed" and keep is not None
    folder = keep if failed else pictures
    if folder is None or not outcome.evidence:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for item in outcome.evidence:
        stem = re.sub(r"[^A-Za-z0-9_.]+", "_", f"{check_id}_{item.title}")[:120]
        for name, array in (("given", item.given), ("expected", item.expected), ("got", item.got)):
            if failed and array is not None:
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
    panels = [("expected", expected), ("got", got)]
    if evidence.given is not None:
        panels.insert(0, ("input", _plane(evidence.given, evidence.axes)))
    height, width = expected.shape
    scale = 3.2 / max(height, width)
    n_panels = len(panels) + 1
    figure = Figure((n_panels * max(1.9, scale * width + 0.5), max(1.6, scale * height) + 0.9), layout="constrained")
    figure.suptitle(evidence.title, fontsize=10)
    *parts, last = figure.subplots(1, n_panels)
    low, high = _limits(expected)
    for axes, (title, image) in zip(parts, panels, strict=True):
        limits = _limits(image) if title == "input" else (low, high)
        shown = axes.imshow(image, cmap="magma", vmin=limits[0], vmax=limits[1], interpolation="nearest")
        axes.set_title(title)
        figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9)
    _draw_difference(figure, last, expected, got)
    for axes in (*parts, last):
        axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw_difference(figure: Any, axes: Any, expected: NDArray[Any], got: NDArray[Any]) -> None:
    if expected.shape != got.shape:
        axes.text(0.5, 0.5, f"{got.shape} instead of\n{expected.shape}", ha="center", va="center")
        axes.set_title("other size")
        return
    difference = got - expected
    finite = np.abs(difference[np.isfinite(difference)])
    top = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    shown = axes.imshow(difference, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    axes.set_title("no difference" if finite.size and finite.max() == 0 else "got - expected")
    figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9)


def _limits(image: NDArray[Any]) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, [0.1, 99.9]))
    return low, high if high > low else low + 1.0


def _plane(array: NDArray[Any], axes: Sequence[str]) -> NDArray[Any]:
    """One ``(y, x)`` plane: the first of every other axis, the middle one along z."""
    plane: NDArray[Any] = array.astype(np.float64)
    names = list(axes) if len(axes) == array.ndim else [""] * array.ndim
    last_two = ("y", "x") if {"y", "x"} <= set(names) else ()
    kept = [names.index(name) for name in last_two] if last_two else list(range(array.ndim))[-2:]
    for axis in reversed(range(array.ndim)):
        if axis not in kept:
            plane = plane.take(plane.shape[axis] // 2 if names[axis] == "z" else 0, axis)
    if last_two and kept[0] > kept[1]:
        plane = plane.T
    plane = np.atleast_2d(plane)
    return plane[:_MAX_SHOWN_PX, :_MAX_SHOWN_PX]
