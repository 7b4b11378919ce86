"""Which halo would do: the check of tiles is made again, with larger halos in the description."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from gap_bioimage.validation.running.shapes import MAX_VOXELS, voxels
from gap_bioimage.validation.running.tile_runs import TILED, tile_difference, tiled_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gap_bioimage.validation.running.runner import Runner

    Halos = dict[tuple[str, str], int]

SEARCH_S = 40.0
"""No further halo is tried after that time."""
_GROWTH = 1.3
_INNER_PX = 16
_INNER_SHARE = 0.5
"""So much of a tile is left beside its halo: pixels, and in halos."""
_STATISTICS = "keep statistics of the whole image, such as norms, out of the network"


@dataclass(frozen=True)
class FoundHalo:
    """What a search for a halo found.

    Parameters
    ----------
    told
        What was tried, and what would do: half a sentence.
    fix
        What to do.
    """

    told: str
    fix: str


def sufficient_halo(runner: Runner) -> FoundHalo:
    """Search the smallest halo with which the tiles of a model would equal the whole.

    Every halo that is tried is declared in a copy of the description, with a min that leaves room for it; the
    criterion is that of the check itself. It has to hold for an image with an empty part too: tiles of a network that
    looks at the whole image may agree by chance, where the image is alike everywhere.
    """
    start = time.monotonic()
    declared, enough, problem = _largest(_output_halos(runner)), None, ""
    tried = failing = declared
    candidate = max(failing + 1, math.ceil(_GROWTH * failing))
    while enough is None:
        if time.monotonic() - start > SEARCH_S:
            problem = "larger ones take too long to be tried"
            break
        agrees = _agrees(runner, candidate)
        if agrees is None:
            problem = "larger ones need images that are too large to be run here"
            break
        tried = candidate
        if agrees:
            enough = candidate
        else:
            failing, candidate = candidate, max(candidate + 1, math.ceil(_GROWTH * candidate))
    if enough is None:
        return _none_found(declared, tried, problem)
    while enough - failing > max(1, enough // 16) and time.monotonic() - start < SEARCH_S:
        middle = (failing + enough) // 2
        failing, enough = (failing, middle) if _agrees(runner, middle) else (middle, enough)
    halos = _candidate(runner, enough)
    return FoundHalo(
        f"a halo of {_told(halos)} would do",
        f"Declare a halo of {_told(halos)} on the outputs' axes, and a min of {_told(_mins(runner, halos))} or more.",
    )


def _none_found(declared: int, tried: int, problem: str) -> FoundHalo:
    if tried == declared:
        return FoundHalo(f"no larger halo was tried: {problem}", f"Enlarge min and halo, or {_STATISTICS}.")
    told = f"halos up to {tried} px were tried, and none would do for every image; {problem}"
    return FoundHalo(told, f"{_STATISTICS[0].upper()}{_STATISTICS[1:]}, enlarge min and halo further, or train longer.")


def _agrees(runner: Runner, candidate: int) -> bool | None:
    """Whether tiles would agree with that halo declared; None where that is too large to be tried."""
    halos = _candidate(runner, candidate)
    # The test tensors may be smaller than the min that such a halo needs: it is not declared, only used.
    other = runner.described_as(redeclared(runner.descr, halos))
    image, tile = tiled_sizes(other, _more(runner, halos))
    padded = {t: {a: n + 2 * other.halo.get(t, {}).get(a, 0) for a, n in axes.items()} for t, axes in image.items()}
    if voxels(padded) > MAX_VOXELS:
        return None
    for blank in (False, True):
        raw = other.inputs_of(image)
        for name, array in raw.items() if blank else ():
            sizes = zip(other.axes(name), array.shape, strict=True)
            far = tuple(slice(3 * size // 4 if axis == "x" else 0, None) for axis, size in sizes)
            array[far] = array.min(initial=0)
        if tile_difference(other, other.preprocess(raw), tile).worst >= TILED:
            return False
    return True


def _output_halos(runner: Runner) -> Halos:
    """The declared halo of every output axis that follows an input axis of many sizes, in the output's pixels."""
    return {key: getattr(axis, "halo", 0) for key, axis, _ in _following(runner)}


def _following(runner: Runner) -> Iterator[tuple[tuple[str, str], Any, tuple[str, str]]]:
    """Output axes that may have a halo: output and axis id, the axis, and the input and axis whose size it takes."""
    for tensor in runner.descr.outputs:
        for axis in tensor.axes:
            followed = str(getattr(axis.size, "tensor_id", "")), str(getattr(axis.size, "axis_id", ""))
            if axis.type == "space" and followed in runner.steps:
                yield (str(tensor.id), str(axis.id)), axis, followed


def _largest(halos: Mapping[tuple[str, str], int]) -> int:
    return max(halos.values(), default=0)


def _candidate(runner: Runner, largest: int) -> Halos:
    """Halos in the proportions of the declared ones, the largest of which is given."""
    declared = _output_halos(runner)
    top = _largest(declared)
    wanted = {key: largest * halo / top if halo else largest for key, halo in declared.items()}
    scales = _scales(runner)  # core wants whole input pixels
    whole = {key: Fraction(scales[key]).limit_denominator(64).denominator for key in wanted}
    return {key: math.ceil(halo / whole[key]) * whole[key] for key, halo in wanted.items()}


def _more(runner: Runner, halos: Halos) -> dict[tuple[str, str], int]:
    """By how many steps the smallest tile has to be larger than now, to leave room between such halos."""
    smallest, _ = runner.sizes(0)
    scales, more = _scales(runner), dict.fromkeys(runner.steps, 0)
    for key, _, (tensor, axis) in _following(runner):
        margin = halos[key] * scales[key]
        wanted = 2 * margin + max(_INNER_PX, _INNER_SHARE * margin)
        missing = math.ceil((wanted - smallest[tensor][axis]) / runner.steps[tensor, axis])
        more[tensor, axis] = max(more[tensor, axis], missing)
    return more


def _mins(runner: Runner, halos: Halos) -> dict[tuple[str, str], int]:
    """The smallest sizes of the input axes with which such halos were tried."""
    wanted, _ = runner.sizes(_more(runner, halos))
    return {(t, a): wanted[t][a] for t, a in runner.steps}


def _scales(runner: Runner) -> dict[tuple[str, str], float]:
    """Input pixels for one pixel of each output axis that has a halo or may have one."""
    inputs = {(str(t.id), str(a.id)): float(getattr(a, "scale", 1.0)) for t in runner.descr.inputs for a in t.axes}
    return {key: float(axis.scale) / inputs[followed] for key, axis, followed in _following(runner)}


def redeclared(descr: Any, halos: Mapping[tuple[str, str], int]) -> Any:
    """A copy of a description with other halos of the outputs.

    Parameters
    ----------
    descr
        bioimageio.spec's model description, format 0.5.
    halos
        By output id and axis id, in the output's pixels.
    """
    from bioimageio.spec.model.v0_5 import SpaceOutputAxisWithHalo

    # no deep copy, which would look up the addresses in the description
    outputs = [
        tensor.model_copy(
            update={
                "axes": [
                    SpaceOutputAxisWithHalo(**{**dict(axis), "halo": halos[key]})
                    if (key := (str(tensor.id), str(axis.id))) in halos
                    else axis
                    for axis in tensor.axes
                ]
            }
        )
        for tensor in descr.outputs
    ]
    return descr.model_copy(update={"outputs": outputs})


def _told(values: Mapping[tuple[str, str], int]) -> str:
    """Pixels by axis; one number where all axes have the same."""
    by_axis = {axis: n for (_, axis), n in values.items()}
    if len(set(by_axis.values())) == 1:
        return f"{next(iter(by_axis.values()))} px"
    return ", ".join(f"{axis} {n}" for axis, n in by_axis.items()) + " px"
