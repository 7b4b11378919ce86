"""What tiles change: one profile of the difference against the distance from a cut answers seams, halos and padding."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.check import Evidence, NotApplicable, Outcome, Severity, run_check
from gap_bioimage.validation.run.compare import relative_rms
from gap_bioimage.validation.run.runner import MAX_VOXELS, voxels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gap_bioimage.validation.run.runner import Arrays, Runner

    Places = dict[tuple[str, str], int]

SEAM = 1e-2
"""Largest difference between tiles and the whole image, as relative RMS."""
SEARCH_S = 30.0
"""No wider cut is tried after that time."""
_SAFETY = 0.9
_STATISTICS = "Keep statistics of the whole image, such as norms over all pixels, out of the network"


@dataclass(frozen=True)
class EdgeProfile:
    """How much of a result changes where its image is cut, against the distance from the cut along one axis.

    One measurement judges every halo: what lies nearer to the cut than the halo is thrown away.

    Parameters
    ----------
    squares
        Mean squared difference at 0, 1, 2, ... px from the cut.
    scale
        Mean square of the uncut result.
    """

    squares: NDArray[np.float64]
    scale: float

    @classmethod
    def of(cls, whole: NDArray[Any], cut: NDArray[Any], axis: int) -> EdgeProfile:
        """Compare the result of an image that was cut at both ends of an axis with the same place of the whole.

        Parameters
        ----------
        whole, cut
            Of one shape.
        axis
            The axis that was cut.
        """
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
        for halo in range(0, len(self.squares), step_px):
            if self.seam(halo, beside(halo)) < allowed:
                return halo
        return None


def beside(halo_px: int) -> int:
    """How many pixels beside a halo count: half of what the smallest sensible tile keeps."""
    return max(8, halo_px // 3)


@dataclass(frozen=True)
class Cut:
    """An output whose image was cut along one axis: its profile, and the arrays."""

    output: str
    axis: str
    profile: EdgeProfile
    evidence: Evidence


def cuts_of(runner: Runner, axis: str, reach_px: int, *, postprocess: bool = True) -> list[Cut] | None:
    """Cut an image on both sides along an axis, and compare its middle with that of the whole.

    Far outside, the whole is dark: what takes statistics of all pixels differs then at every distance.

    Parameters
    ----------
    runner
        The model; its first flexible input counts.
    axis
        Axis id, e.g. ``x``.
    reach_px
        So far the profile reaches at least, in input pixels.
    postprocess
        Apply the declared postprocessing, to the middle by itself.

    Returns
    -------
    One cut for every output that has the axis; None where the whole would be too large to be run here.
    """
    keys = {key: step for key, step in runner.steps.items() if key[1] == axis}
    first, step = next(iter(keys.items()))
    smallest = runner.sizes(0)[0][first[0]][axis]
    n_middle = max(0, math.ceil((2 * reach_px - smallest) / step))
    n_margin = math.ceil(2 * max(reach_px, smallest // 2) / step)
    ns = dict.fromkeys(runner.steps, 0)
    sizes, _ = runner.sizes({**ns, **dict.fromkeys(keys, n_middle + 2 * n_margin)})
    if voxels(sizes) > MAX_VOXELS:
        return None
    # Preprocessing may take statistics of the image: apply it once, so that only the cut differs.
    image = runner.inputs_of(sizes)
    for name, key_step in ((name, key_step) for (name, _), key_step in keys.items()):
        dark = _along(runner, name, axis, slice(-(n_margin * key_step // 2), None))
        image[name][dark] = image[name].min(initial=0)
    image = runner.preprocess(image)
    middle = dict(image)
    for (name, _), key_step in keys.items():
        margin = n_margin * key_step
        middle[name] = image[name][_along(runner, name, axis, slice(margin, -margin))]
    whole = runner.run(image, preprocessed=True, postprocess=postprocess)
    cut = runner.run(middle, preprocessed=True, postprocess=postprocess)
    return [made for name in whole if (made := _compared(runner, name, axis, whole[name], cut[name])) is not None]


def _along(runner: Runner, name: str, axis: str, part: slice) -> tuple[slice, ...]:
    return tuple(part if other == axis else slice(None) for other in runner.axes(name))


def _compared(runner: Runner, name: str, axis: str, whole: NDArray[Any], cut: NDArray[Any]) -> Cut | None:
    axes = runner.axes(name)
    if axis not in axes:
        return None
    place = axes.index(axis)
    margin = (whole.shape[place] - cut.shape[place]) // 2
    if margin <= 0:
        return None
    expected = whole[_along(runner, name, axis, slice(margin, margin + cut.shape[place]))]
    if expected.shape != cut.shape:
        return None
    evidence = Evidence(f"{name}, cut along {axis} against the whole image", axes, expected, cut)
    return Cut(name, axis, EdgeProfile.of(expected, cut, place), evidence)


def _seams(cuts: Sequence[Cut], halos: Mapping[tuple[str, str], int], widths: Mapping[tuple[str, str], int]) -> float:
    """The worst output's difference: what the axes leave adds up in squares."""
    squares: dict[str, float] = {}
    for cut in cuts:
        key = cut.output, cut.axis
        squares[cut.output] = squares.get(cut.output, 0.0) + cut.profile.seam(halos.get(key, 0), widths[key]) ** 2
    return math.sqrt(max(squares.values(), default=0.0))


def _measured(runner: Runner, reach_px: int, *, postprocess: bool = True) -> list[Cut] | None:
    found: list[Cut] = []
    for axis in dict.fromkeys(axis for _, axis in runner.steps):
        cuts = cuts_of(runner, axis, reach_px, postprocess=postprocess)
        if cuts is None:
            return None
        found += cuts
    return found


def _smallest_tile(runner: Runner) -> tuple[Places, Places, int]:
    """Halo, and pixels kept beside it, of the smallest tile by (output, axis); and its widest input axis."""
    inputs, outputs = runner.sizes(0)
    widths: Places = {}
    for name, sizes in outputs.items():
        for axis, size in sizes.items():
            if isinstance(size, int):
                widths[name, axis] = max(1, size // 2 - runner.halo.get((name, axis), 0))
    return runner.halo, widths, max(inputs[tensor][axis] for tensor, axis in runner.steps)


@run_check(
    "run.tiled",
    Severity.DEGRADES,
    breaks="seams show between tiles",
    fix="Enlarge the halo, or keep whole-image statistics out of the network.",
    once=True,
    compares=True,
)
def tiled(runner: Runner) -> Outcome:
    """A tiled prediction equals the whole-image one: the declared halo covers what the network looks at."""
    _refuse_tiles(runner)
    halos, widths, largest = _smallest_tile(runner)
    cuts = _measured(runner, math.ceil(largest / 2))
    if cuts is None:
        raise NotApplicable("an image of three tiles is too large to be run here")
    worst = _seams(cuts, halos, widths)
    tile = runner.shape_of(runner.sizes(0)[0])
    text = f"tiles of {tile}, halo included, differ from the whole by {worst:.2%} (below {SEAM:.0%} expected)"
    if worst < SEAM:
        return Outcome("passed", text)
    evidence = tuple(cut.evidence for cut in cuts)
    if runner.has_custom_postprocessing:
        plain = _measured(runner, math.ceil(largest / 2), postprocess=False)
        if plain is not None and _seams(plain, halos, widths) < SEAM:
            fix = "Let the postprocessing look at each pixel by itself, or tell users not to run it in tiles."
            return Outcome("failed", f"{text}, because of its custom postprocessing", fix, evidence)
    told, fix = _sufficient(runner, cuts, largest)
    none = "" if any(halos.values()) else "; no halo is declared"
    return Outcome("failed", f"{text}; {told}{none}", fix, evidence)


def _refuse_tiles(runner: Runner) -> None:
    if not runner.steps:
        raise NotApplicable("the input size is fixed, so no image can be predicted as a whole")
    if runner.postprocesses_whole_images:
        raise NotApplicable("postprocessing takes statistics of the whole image")
    if runner.is_stochastic:
        raise NotApplicable("it is declared stochastic, so each tile holds another sample")


def _sufficient(runner: Runner, cuts: list[Cut], reach_px: int) -> tuple[str, str]:
    """Which halo would do, from cuts that reach farther and farther: half a sentence, and what to do."""
    start = time.monotonic()
    problem = "larger ones take too long to be tried"
    while True:
        halos = _needed(cuts)
        if halos is not None:
            told = _told(halos)
            least = _told({key: 2 * halo + 2 * beside(halo) for key, halo in halos.items()})
            return f"a halo of {told} would do", f"Declare a halo of {told} on the outputs' axes, and a min of {least}."
        if time.monotonic() - start > SEARCH_S:
            break
        wider = _measured(runner, 2 * reach_px)
        if wider is None:
            problem = "larger ones need images that are too large to be run here"
            break
        cuts, reach_px = wider, 2 * reach_px
    tried = min((len(cut.profile.squares) for cut in cuts), default=0)
    told = f"halos up to {tried} px were tried, and none would do; {problem}"
    return told, f"{_STATISTICS}, enlarge min and halo further, or train longer."


def _needed(cuts: Sequence[Cut]) -> Places | None:
    n_axes = {name: sum(cut.output == name for cut in cuts) for name in {cut.output for cut in cuts}}
    halos: Places = {}
    for cut in cuts:
        halo = cut.profile.needed_halo(_SAFETY * SEAM / math.sqrt(n_axes[cut.output]))
        if halo is None:
            return None
        halos[cut.output, cut.axis] = halo
    return halos


def _told(values: Mapping[tuple[str, str], int]) -> str:
    """Pixels by axis; one number where all axes have the same."""
    by_axis: dict[str, int] = {}
    for (_, axis), n in values.items():
        by_axis[axis] = max(n, by_axis.get(axis, 0))
    if len(set(by_axis.values())) == 1:
        return f"{next(iter(by_axis.values()))} px"
    return ", ".join(f"{axis} {n}" for axis, n in by_axis.items()) + " px"


@run_check(
    "run.padding",
    Severity.DEGRADES,
    breaks="results depend on how a program pads",
    fix="Keep statistics of the whole image, such as norms over all pixels, out of the network, or enlarge the halo.",
    once=True,
    compares=True,
)
def padding(runner: Runner) -> Outcome:
    """An image's inner part stays the same where the image is padded, as programs do to reach a size they can use."""
    if not runner.steps:
        raise NotApplicable("the input size is fixed")
    if runner.postprocesses_whole_images or runner.is_stochastic:
        raise NotApplicable("the output is not meant to stay the same")
    inputs = runner.preprocess(runner.small_inputs)
    padded: Arrays = {}
    for name, array in inputs.items():
        widths = [(0, 2 * runner.steps.get((name, axis), 0)) for axis in runner.axes(name)]
        padded[name] = np.pad(array, widths, mode="symmetric")
    if max(array.size for array in padded.values()) > MAX_VOXELS:
        raise NotApplicable("a padded image is too large to be run here")
    plain = runner.run(inputs, preprocessed=True, postprocess=False)
    more = runner.run(padded, preprocessed=True, postprocess=False)
    worst, evidence = 0.0, []
    for name, expected in plain.items():
        axes = runner.axes(name)
        sizes = zip(axes, expected.shape, strict=True)
        inner = tuple(slice(0, max(1, size - runner.halo.get((name, axis), 0))) for axis, size in sizes)
        worst = max(worst, relative_rms(more[name][inner], expected[inner], centred=False))
        evidence.append(Evidence(f"{name}, padded against not", axes, expected[inner], more[name][inner]))
    shape = runner.shape_of(runner.sizes(0)[0])
    text = f"{shape} padded at its end differs inside by {worst:.2%} (below {SEAM:.0%} expected)"
    return Outcome("passed", text) if worst < SEAM else Outcome("failed", text, "", tuple(evidence))
