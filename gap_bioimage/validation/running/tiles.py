"""Checks of a running model about places: tiles, paddings and odd sizes against the whole image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.checks import Evidence, Outcome, one_sentence
from gap_bioimage.validation.running.measures import relative_rms
from gap_bioimage.validation.running.shapes import FIXED, MAX_VOXELS, is_stochastic, shape_of, voxels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gap_bioimage.validation.checks import Status
    from gap_bioimage.validation.running.runner import Arrays, Runner, Sizes

TILED = 1e-2
"""Largest difference of a tiled prediction, as relative RMS."""
MAX_TILES = 6
"""So many tiles, spread over the image, stand for all of them."""


def tiled(runner: Runner) -> Outcome:
    """A tiled prediction equals the whole-image one: the declared halo covers what the network looks at.

    ``config.gap_bioimage.stochastic: true`` says that each tile draws its own sample: no agreement then.
    """
    if not runner.steps:
        return Outcome("skipped", "the input size is fixed, so no image can be predicted as a whole")
    if runner.postprocesses_whole_images:
        return Outcome("skipped", "postprocessing takes statistics of the whole image")
    if is_stochastic(runner):
        return Outcome("skipped", "it is declared stochastic, so each tile holds another sample")
    image, tile = tiled_sizes(runner)
    if voxels(image) > MAX_VOXELS:
        return Outcome("skipped", "an image of three tiles is too large to be run here")
    # Preprocessing may take statistics of the image: apply it once, so that only tiling differs.
    inputs = runner.preprocess(runner.inputs_of(image))
    found = _tile_difference(runner, inputs, tile)
    text = (
        f"{shape_of(runner, image)} in {found.n_tiles} tiles of {shape_of(runner, tile)}, halo included, differs from "
        f"the whole by {found.worst:.2%} (below {TILED:.0%} expected)"
    )
    if found.worst < TILED:
        return Outcome("passed", text)
    if runner.has_custom_postprocessing and _tile_difference(runner, inputs, tile, postprocess=False).worst < TILED:
        fix = "Let the postprocessing look at each pixel by itself, or tell users not to run it in tiles."
        return Outcome("warning", f"{text}, because of its custom postprocessing", fix, found.evidence)
    enough = sufficient_halo(runner)
    if enough is None:
        text += "; no halo that was tried would do"
        fix = "Enlarge min and halo, keep statistics of the whole image, such as norms, out, or train longer."
    else:
        text += f"; a halo of {enough} px would do"
        fix = f"Declare a halo of {enough} px on the outputs' axes, and a min above {2 * enough}."
    if not any(runner.halo.values()):  # nothing was promised
        return Outcome("warning", text + "; no halo is declared", fix, found.evidence)
    return Outcome("failed", text, fix, found.evidence)


@dataclass(frozen=True)
class _Tiles:
    """Tiles that were run, their relative RMS against the whole, all together, and the worst of them."""

    n_tiles: int
    worst: float
    evidence: tuple[Evidence, ...]


def _tile_difference(runner: Runner, inputs: Arrays, tile: Sizes, *, postprocess: bool = True) -> _Tiles:
    whole = runner.run(inputs, preprocessed=True, padded=True, postprocess=postprocess)
    pieces: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {name: [] for name in whole}
    for outputs, slices in runner.run_tiles(inputs, tile, MAX_TILES, postprocess=postprocess):
        for name, piece in outputs.items():
            pieces[name].append((piece, whole[name][slices[name]]))
    worst, evidence = 0.0, []
    for name, pairs in pieces.items():
        got, expected = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
        worst = max(worst, relative_rms(got, expected, centred=False))
        made, wanted = max(pairs, key=lambda pair: float(np.abs(pair[0] - pair[1]).max(initial=0)))
        evidence.append(Evidence(f"{name}, a tile against the whole image", runner.axes(name), wanted, made))
    return _Tiles(max(map(len, pieces.values())), worst, tuple(evidence))


def sufficient_halo(runner: Runner) -> int | None:
    """Measure the halo, in pixels along every spatial axis, with which tiles would equal the whole.

    A piece of an image is run by itself, and compared with the same place of the whole, ever further from the
    piece's border; smaller pieces elsewhere must agree at that distance too.

    Returns
    -------
    The smallest halo, or None where none that was tried suffices, or sizes change.
    """
    smallest, _ = runner.sizes(0)
    for times in (3, 8):
        ns = {(t, a): math.ceil((times - 1) * smallest[t][a] / step) for (t, a), step in runner.steps.items()}
        image, _ = runner.sizes(ns)
        if voxels(image) > MAX_VOXELS:
            break
        wholes = [_Whole(runner, image, blank=blank) for blank in (False, True)]
        half = {key: image[key[0]][key[1]] / 2 for key in runner.steps}
        distances = range(int(min(half.values())) // 2)
        wrong = [d for d in distances if not all(whole.agrees(half, 1 / 6, d) for whole in wholes)]
        halo = max(wrong, default=-1) + 1
        small = dict.fromkeys(half, 2.0 * halo + 1)
        places = (0.1, 0.2, 0.3)
        if halo < len(distances) and all(whole.agrees(small, p, halo) for whole in wholes for p in places):
            return halo
    return None


class _Whole:
    """The output of a whole image, and what pieces of the image give by themselves."""

    def __init__(self, runner: Runner, image: Sizes, *, blank: bool) -> None:
        self._runner, self._image = runner, image
        raw = runner.inputs_of(image)
        for name, array in raw.items() if blank else ():
            # a part without signal, far from all pieces: what looks at the whole image sees another brightness
            sizes = zip(runner.axes(name), array.shape, strict=True)
            far = tuple(slice(3 * size // 4 if axis == "x" else 0, None) for axis, size in sizes)
            array[far] = array.min(initial=0)
        self._inputs = runner.preprocess(raw)
        self._outputs = runner.run(self._inputs, preprocessed=True, postprocess=False)
        self._pieces: dict[tuple[tuple[int, int], ...], Arrays] = {}

    def agrees(self, size: dict[tuple[str, str], float], place: float, distance: int) -> bool:
        """Whether a piece of about that size agrees with the whole, so far from its border.

        Parameters
        ----------
        size
            Smallest wanted size in pixels, by (input id, axis id).
        place
            Where it starts, as a share of the image.
        distance
            Pixels of its border that may differ.
        """
        runner = self._runner
        smallest, _ = runner.sizes(0)
        cuts = {}
        for (tensor, axis), step in runner.steps.items():
            more = math.ceil(max(0.0, size[tensor, axis] - smallest[tensor][axis]) / step)
            # pooling has a grid: a piece starts on it
            start = int(place * self._image[tensor][axis] / step) * step
            cuts[tensor, axis] = (start, min(smallest[tensor][axis] + more * step, self._image[tensor][axis] - start))
        alone = self._run(cuts)
        first = next(iter(self._inputs))
        for name, got in alone.items():
            names = runner.axes(name)
            expected = self._outputs[name][tuple(_cut(cuts.get((first, axis))) for axis in names)]
            inner = tuple(
                slice(distance, n - distance) if (first, a) in cuts else slice(None)
                for n, a in zip(got.shape, names, strict=True)
            )
            if (
                got.shape != expected.shape or relative_rms(got[inner], expected[inner], centred=False) >= TILED / 2
            ):  # other images differ more
                return False
        return True

    def _run(self, cuts: dict[tuple[str, str], tuple[int, int]]) -> Arrays:
        key = tuple(cuts.values())
        if key not in self._pieces:
            cropped = {
                name: array[tuple(_cut(cuts.get((name, axis))) for axis in self._runner.axes(name))]
                for name, array in self._inputs.items()
            }
            self._pieces[key] = self._runner.run(cropped, preprocessed=True, postprocess=False)
        return self._pieces[key]


def _cut(start_size: tuple[int, int] | None) -> slice:
    return slice(None) if start_size is None else slice(start_size[0], start_size[0] + start_size[1])


def padding(runner: Runner) -> Outcome:
    """An image's inner part stays the same where the image is padded, as programs do to reach a size they can use."""
    if not runner.steps:
        return FIXED
    if runner.postprocesses_whole_images or is_stochastic(runner):
        return Outcome("skipped", "the output is not meant to stay the same")
    image, _ = tiled_sizes(runner)
    if voxels(image) > MAX_VOXELS:
        return Outcome("skipped", "a padded image is too large to be run here")
    inputs = runner.preprocess(runner.inputs_of(image))
    padded = {}
    for name, array in inputs.items():
        widths = [(0, 2 * runner.steps.get((name, axis), 0)) for axis in runner.axes(name)]
        padded[name] = np.pad(array, widths, mode="symmetric")
    plain, more = (runner.run(given, preprocessed=True, postprocess=False) for given in (inputs, padded))
    worst, evidence = 0.0, []
    for name, expected in plain.items():
        names = runner.axes(name)
        halo = {axis: max((tensor.get(axis, 0) for tensor in runner.halo.values()), default=0) for axis in names}
        inner = tuple(slice(0, expected.shape[number] - halo[axis]) for number, axis in enumerate(names))
        got = more[name][inner]
        worst = max(worst, relative_rms(got, expected[inner], centred=False))
        evidence.append(Evidence(f"{name}, padded against not", names, expected[inner], got))
    text = f"{shape_of(runner, image)} padded at its end differs inside by {worst:.2%} (below {TILED:.0%} expected)"
    if worst < TILED:
        return Outcome("passed", text)
    fix = "Keep statistics of the whole image, such as norms over all pixels, out of the network, or enlarge the halo."
    status: Status = "failed" if any(runner.halo.values()) else "warning"
    return Outcome(status, text, fix, tuple(evidence))


def odd_sizes(runner: Runner) -> Outcome:
    """Sizes off the declared grid, such as odd ones, run too, so that users need not crop."""
    flexible = {key: step for key, step in runner.steps.items() if step > 1}
    if not runner.steps:
        return FIXED
    if not flexible:
        return Outcome("passed", "every size from min on is declared")
    wanted, _ = runner.sizes(0)
    for tensor, axis in flexible:
        wanted[tensor][axis] += 1
    if voxels(wanted) > MAX_VOXELS:
        return Outcome("skipped", "the smallest declared input is too large to be run here")
    shape = shape_of(runner, wanted)
    inputs = runner.inputs_of(wanted)
    try:
        outputs = runner.run(inputs)
    except Exception as error:  # whatever the model raises at this size
        text = f"size {shape} is not declared, and raises {type(error).__name__}: {one_sentence(error, 120)}"
        return Outcome("skipped", f"{text}; programs pad images to min + n step")
    same = {axis for tensor, axis in flexible}
    for name, array in outputs.items():
        sizes = dict(zip(runner.axes(name), array.shape, strict=True))
        smallest = dict(zip(runner.axes(name), runner.small_outputs[name].shape, strict=True))
        if any(sizes.get(axis) == smallest.get(axis) for axis in same & sizes.keys()):
            text = f"size {shape} is not declared, and gives {name!r} of size {array.shape}: pixels are lost"
            return Outcome("skipped", f"{text}; programs pad images to min + n step")
    return Outcome("passed", f"size {shape} runs, though it is not declared")


def tiled_sizes(runner: Runner) -> tuple[Sizes, Sizes]:
    """Sizes of an image some tiles wide, and of the smallest tile (halo included), in input pixels.

    The image plus its halo is a declared size again, since bioimageio.core pads whole images by the halo.
    """
    halo = runner.halo
    tile, _ = runner.sizes(0)
    margins = {(t, a): 2 * halo.get(t, {}).get(a, 0) for t, a in runner.steps}
    # bioimageio.core refuses images smaller than a tile, which wide halos would otherwise make.
    ns = {
        (t, a): math.ceil(max(1.5 * (tile[t][a] - margins[t, a]), margins[t, a]) / step)
        for (t, a), step in runner.steps.items()
    }
    image, _ = runner.sizes(ns)
    for (tensor, axis), margin in margins.items():
        image[tensor][axis] -= margin
    return image, tile
