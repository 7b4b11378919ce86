"""What tiles change: one profile of the difference against the distance from a cut answers seams and halos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gap_bioimage.validation.check import Severity, run_check
from gap_bioimage.validation.outcome import Evidence, NotApplicable, Outcome
from gap_bioimage.validation.run.runner import MAX_VOXELS, Axis, Runner, voxels

SEAM = 1e-2
"""Largest difference between tiles and the whole image, as relative RMS."""
_SAFETY = 0.9
_STATISTICS = "Keep statistics of the whole image, such as norms over all pixels, out of the network"


@dataclass(frozen=True)
class EdgeProfile:
    """How much of a result changes where its image is cut, against the distance from the cut along one axis.

    One measurement judges every halo: what lies nearer to the cut than the halo is thrown away.
    """

    squares: NDArray[np.float64]  # mean squared difference at 0, 1, 2, ... px from the cut
    scale: float  # mean square of the uncut result

    @classmethod
    def of(cls, whole: NDArray[Any], cut: NDArray[Any], axis: int) -> EdgeProfile:
        """Compare the result of an image that was cut at both ends of an axis with the same place of the whole."""
        with np.errstate(invalid="ignore"):
            squares = np.square(cut.astype(np.float64) - whole)
        line = np.moveaxis(np.where(np.isfinite(squares), squares, np.inf), axis, 0).reshape(whole.shape[axis], -1)
        means = line.mean(axis=1)
        half = len(means) // 2
        return cls((means[:half] + means[::-1][:half]) / 2, float(np.mean(np.square(whole.astype(np.float64)))))

    def seam(self, halo_px: int, width_px: int) -> float:
        """Relative RMS difference in the ``width_px`` beside the halo; infinite where nothing was measured there."""
        near = self.squares[halo_px : halo_px + max(1, width_px)]
        if not near.size:
            return math.inf
        mean = float(near.mean())
        return math.sqrt(mean / self.scale) if self.scale > 0 else (math.inf if mean > 0 else 0.0)

    def needed_halo(self, allowed: float, step_px: int = 1) -> int | None:
        """The smallest halo, a multiple of ``step_px``, that leaves less than the allowed seam; None if none does.

        The seam is that of the smallest sensible tile, which is as wide as its two halos and two thirds of one more.
        """
        halos = range(0, len(self.squares), step_px)
        return next((halo for halo in halos if self.seam(halo, beside(halo)) < allowed), None)


def beside(halo_px: int) -> int:
    """How many pixels beside a halo count: half of what the smallest sensible tile keeps."""
    return max(8, halo_px // 3)


@dataclass(frozen=True)
class Cut:
    """An output whose image was cut along one axis: its profile, and the arrays."""

    key: Axis
    profile: EdgeProfile
    evidence: Evidence


def cuts_of(runner: Runner, axis: str, reach_px: int) -> list[Cut] | None:
    """Cut an image on both sides along an axis, and compare its middle with that of the whole.

    Far outside, the whole is dark: what takes statistics of all pixels differs then at every distance.

    Returns one cut for every output that has the axis, whose profile reaches at least ``reach_px`` input pixels; None
    where the whole would be too large to be run here.
    """
    keys = {key: step for key, step in runner.steps.items() if key[1] == axis}
    first, step = next(iter(keys.items()))
    smallest = runner.sizes(0)[0][first[0]][axis]
    n_middle = max(0, math.ceil((2 * reach_px - smallest) / step))
    # whole tiles away, so that both begin where the network pools
    n_margin = math.ceil(math.ceil(2 * reach_px / smallest) * smallest / step)
    sizes, _ = runner.sizes({**dict.fromkeys(runner.steps, 0), **dict.fromkeys(keys, n_middle + 2 * n_margin)})
    if voxels(sizes) > MAX_VOXELS:
        return None
    # Preprocessing may take statistics of the image: apply it once, so that only the cut differs.
    image = runner.inputs_of(sizes)
    for (name, _), step in keys.items():
        image[name][_along(runner, name, axis, slice(-(n_margin * step // 2), None))] = image[name].min(initial=0)
    image = runner.preprocess(image)
    middle = dict(image)
    for (name, _), step in keys.items():
        middle[name] = image[name][_along(runner, name, axis, slice(n_margin * step, -n_margin * step))]
    whole = runner.run(image, preprocessed=True)
    cut = runner.run(middle, preprocessed=True)
    found = []
    for name, made in cut.items():
        place = runner.axes(name).index(axis) if axis in runner.axes(name) else -1
        margin = (whole[name].shape[place] - made.shape[place]) // 2
        expected = whole[name][_along(runner, name, axis, slice(margin, margin + made.shape[place]))]
        if place >= 0 and margin > 0 and expected.shape == made.shape:
            what = f"{name}, cut along {axis} against the whole image"
            evidence = Evidence(what, runner.axes(name), expected, made)
            found.append(Cut((name, axis), EdgeProfile.of(expected, made, place), evidence))
    return found


def _along(runner: Runner, name: str, axis: str, part: slice) -> tuple[slice, ...]:
    return tuple(part if other == axis else slice(None) for other in runner.axes(name))


def _measured(runner: Runner, reach_px: int) -> list[Cut] | None:
    found: list[Cut] = []
    for axis in dict.fromkeys(axis for _, axis in runner.steps):
        cuts = cuts_of(runner, axis, reach_px)
        if cuts is None:
            return None
        found += cuts
    return found


def _seams(runner: Runner, cuts: Sequence[Cut]) -> float:
    """The worst output's difference in the smallest tiles: what the axes leave adds up in squares."""
    outputs, squares = runner.sizes(0)[1], dict[str, float]()
    for cut in cuts:
        name, axis = cut.key
        size, halo = outputs[name][axis], runner.halo.get(cut.key, 0)
        width = max(1, size // 2 - halo) if isinstance(size, int) else 1
        squares[name] = squares.get(name, 0.0) + cut.profile.seam(halo, width) ** 2
    return math.sqrt(max(squares.values(), default=0.0))


@run_check("run.tiled", Severity.DEGRADES, breaks="seams show between tiles", once=True, compares=True,
           fix="Enlarge the halo, or keep whole-image statistics out of the network.")  # fmt: skip
def tiled(runner: Runner) -> Outcome:
    """A tiled prediction equals the whole-image one: the declared halo covers what the network looks at."""
    if not runner.steps:
        raise NotApplicable("the input size is fixed, so no image can be predicted as a whole")
    if runner.postprocesses_whole_images:
        raise NotApplicable("postprocessing takes statistics of the whole image")
    if runner.is_stochastic:
        raise NotApplicable("it is declared stochastic, so each tile holds another sample")
    smallest = runner.sizes(0)[0]
    largest = max(smallest[tensor][axis] for tensor, axis in runner.steps)
    cuts = _measured(runner, math.ceil(largest / 2))
    if cuts is None:
        raise NotApplicable("an image of three tiles is too large to be run here")
    worst, tile = _seams(runner, cuts), runner.shape_of(smallest)
    text = f"tiles of {tile}, halo included, differ from the whole by {worst:.2%} (below {SEAM:.0%} expected)"
    if worst < SEAM:
        return Outcome("passed", text)
    if _needed(cuts) is None:  # look farther, where such an image can be run here
        cuts = _measured(runner, 2 * largest) or cuts
    told, fix = _sufficient(cuts)
    none = "" if any(runner.halo.values()) else "; no halo is declared"
    return Outcome("failed", f"{text}; {told}{none}", fix, tuple(cut.evidence for cut in cuts))


def _sufficient(cuts: list[Cut]) -> tuple[str, str]:
    """Which halo would do, as far as the cuts reach: half a sentence, and what to do."""
    if (halos := _needed(cuts)) is not None:
        told, least = _told(halos), _told({key: 2 * halo + 2 * beside(halo) for key, halo in halos.items()})
        return f"a halo of {told} would do", f"Declare a halo of {told} on the outputs' axes, and a min of {least}."
    tried = min((len(cut.profile.squares) for cut in cuts), default=0)
    told = f"none up to {tried} px would do"
    return told, f"{_STATISTICS}, enlarge min and halo, or train longer."


def _needed(cuts: Sequence[Cut]) -> dict[Axis, int] | None:
    halos = {}
    for cut in cuts:
        n_axes = sum(other.key[0] == cut.key[0] for other in cuts)
        halo = cut.profile.needed_halo(_SAFETY * SEAM / math.sqrt(n_axes))
        if halo is None:
            return None
        halos[cut.key] = halo
    return halos


def _told(values: Mapping[Axis, int]) -> str:
    """Pixels by axis; one number where all axes have the same."""
    by_axis: dict[str, int] = {}
    for (_, axis), n in values.items():
        by_axis[axis] = max(n, by_axis.get(axis, 0))
    if len(set(by_axis.values())) == 1:
        return f"{next(iter(by_axis.values()))} px"
    return ", ".join(f"{axis} {n}" for axis, n in by_axis.items()) + " px"
