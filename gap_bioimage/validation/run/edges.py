"""Seams between tiles, and halos that avoid them, from the difference as a function of the distance from a cut."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from gap_bioimage.seams import EdgeProfile, seam_width_px
from gap_bioimage.validation.check import Evidence, NotApplicable, Outcome, Severity, run_check
from gap_bioimage.validation.run.runner import MAX_VOXELS, Axis, Runner, voxels

SEAM = 1e-2  # largest difference between tiles and the whole image, as relative RMS
_SAFETY = 0.9
_FAR_PX = 64  # least distance up to which a sufficient halo is searched
_STATISTICS = "Keep statistics of the whole image, such as norms over all pixels, out of the network"

Cuts = dict[Axis, tuple[EdgeProfile, Evidence, float]]  # the number: input pixels per output pixel


def _cuts(runner: Runner, reach_px: int) -> Cuts:
    """Cut an image along each axis in turn, on both sides; profiles reach at least ``reach_px`` input pixels."""
    axes = dict.fromkeys(axis for _, axis in runner.steps)
    return {key: cut for axis in axes for key, cut in _cuts_along(runner, axis, reach_px).items()}


def _cuts_along(runner: Runner, axis: str, reach_px: int) -> Cuts:
    steps = {key: step for key, step in runner.steps.items() if key[1] == axis}
    (first, _), step = next(iter(steps.items()))
    smallest = runner.sizes(0)[0][first][axis]
    n_middle = max(0, math.ceil((2 * reach_px - smallest) / step))
    # a margin of whole tiles, so that both images start on the pooling grid
    n_margin = math.ceil(math.ceil(2 * reach_px / smallest) * smallest / step)
    others, ns = dict.fromkeys(runner.steps, 0), (n_middle, n_middle + 2 * n_margin)
    small, large = (runner.sizes(others | dict.fromkeys(steps, n))[0] for n in ns)
    if voxels(large) > MAX_VOXELS:
        raise NotApplicable("an image of three tiles is too large to run here")
    # for every input that grows along the axis: its size may also follow that of another input
    growths = {(name, of): large[name][of] - size for name, sizes in small.items() for of, size in sizes.items()}
    margins = {name: growth // 2 for (name, of), growth in growths.items() if growth and of == axis}
    if any(growth and of != axis for (_, of), growth in growths.items()):
        raise NotApplicable("the size of one axis follows that of another, so no axis can be cut alone")

    def part(name: str, array: NDArray[Any], window: slice) -> NDArray[Any]:
        return array[tuple(window if other == axis else slice(None) for other in runner.axes(name))]

    image = runner.inputs_of(large)
    for name, margin in margins.items():
        # The far margin is dark, so that networks with statistics of all pixels differ at every distance.
        part(name, image[name], slice(-(margin // 2), None))[...] = image[name].min(initial=0)
    # Preprocessing may take statistics of the image: apply it once, so that only the cut differs.
    image = runner.preprocess(image)
    cut = {name: part(name, image[name], slice(margin, margin + small[name][axis])) for name, margin in margins.items()}
    whole, middle = runner.run(image, preprocessed=True), runner.run(image | cut, preprocessed=True)
    cuts: Cuts = {}
    for name, got in middle.items():
        index = runner.axes(name).index(axis) if axis in runner.axes(name) else -1
        margin = (whole[name].shape[index] - got.shape[index]) // 2
        expected = part(name, whole[name], slice(margin, margin + got.shape[index]))
        if index >= 0 and margin > 0 and expected.shape == got.shape:
            evidence = Evidence(f"{name}, cut along {axis} against the whole image", runner.axes(name), expected, got)
            cuts[name, axis] = EdgeProfile.of(expected, got, index), evidence, margins[first] / margin
    return cuts


@run_check("run.tiled", Severity.DEGRADES, breaks="tiles show seams", once=True, compares=True,
           fix="Enlarge the halo, or keep whole-image statistics out of the network.")  # fmt: skip
def tiled(runner: Runner) -> Outcome:
    """Tiles predict the same as the whole image: the declared halo covers the receptive field."""
    if not runner.steps:
        raise NotApplicable("the input size is fixed, so no image can be predicted as a whole")
    if runner.postprocesses_whole_images:
        raise NotApplicable("postprocessing needs statistics of the whole image")
    if runner.is_stochastic:
        raise NotApplicable("it is declared stochastic, so each tile is another sample")
    smallest = runner.sizes(0)[0]
    largest = max(smallest[tensor][axis] for tensor, axis in runner.steps)
    if not (cuts := _cuts(runner, math.ceil(largest / 2))):
        raise NotApplicable("no output grows with the image, so tiles cannot be joined")
    worst, tile = _seam(runner, cuts), runner.shape_of(smallest)
    text = f"tiles of {tile}, halo included, differ from the whole by {worst:.2%} (below {SEAM:.0%} expected)"
    if worst < SEAM:
        return Outcome("passed", text)
    if _sufficient(cuts) is None:  # search farther, if so large an image can be run here
        with contextlib.suppress(NotApplicable):
            cuts = _cuts(runner, max(_FAR_PX, 2 * largest))
    undeclared = "" if any(runner.halo.values()) else "; no halo is declared"
    evidence = tuple(item for _, item, _ in cuts.values())
    if (sufficient := _sufficient(cuts)) is None:
        tried = min(len(profile.squares) for profile, *_ in cuts.values())
        fix = f"{_STATISTICS}, enlarge min and halo, or train longer."
        return Outcome("failed", f"{text}; no halo up to {tried} px suffices{undeclared}", fix, evidence)
    halo, minimum = map(_px_text, sufficient)
    fix = f"Declare a halo of {halo} on the outputs' axes, and a min of {minimum}."
    return Outcome("failed", f"{text}; a halo of {halo} suffices{undeclared}", fix, evidence)


def _seam(runner: Runner, cuts: Cuts) -> float:
    """Return the relative RMS of the worst output in the smallest tiles; squares add up over the axes."""
    outputs, squares = runner.sizes(0)[1], dict[str, float]()
    for (name, axis), (profile, *_) in cuts.items():
        size, halo = outputs[name][axis], runner.halo.get((name, axis), 0)
        width = max(1, size // 2 - halo) if isinstance(size, int) else 1
        squares[name] = squares.get(name, 0.0) + profile.seam(halo, width) ** 2
    return math.sqrt(max(squares.values(), default=0.0))


def _sufficient(cuts: Cuts) -> tuple[dict[str, int], dict[str, int]] | None:
    """Return the halo per axis that suffices and the min that holds it; None if the cuts do not reach that far."""
    halos, minimum = dict[str, int](), dict[str, int]()
    for (name, axis), (profile, _, input_px) in cuts.items():
        halo = profile.needed_halo(_SAFETY * SEAM / math.sqrt(sum(other == name for other, _ in cuts)))
        if halo is None:
            return None
        halos[axis] = max(halo, halos.get(axis, 0))
        minimum[axis] = max(math.ceil(input_px * 2 * (halo + seam_width_px(halo))), minimum.get(axis, 0))
    return halos, minimum


def _px_text(pixels: Mapping[str, int]) -> str:
    if len({*pixels.values()}) == 1:
        return f"{next(iter(pixels.values()))} px"
    return f"{', '.join(f'{axis} {n}' for axis, n in pixels.items())} px"
