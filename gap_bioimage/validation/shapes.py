"""Checks of a running model about sizes: every declared one, those below min, and tiles against the whole."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.checks import Outcome, one_sentence
from gap_bioimage.validation.measures import relative_rms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gap_bioimage.validation.runner import Arrays, Runner, Sizes

TILED = 1e-2
"""Largest difference of a tiled prediction, as relative RMS."""
MAX_VOXELS = 2**22
"""Larger inputs (channels included) are not made: a U-Net needs some hundred bytes for each."""
MAX_TILES = 6
"""So many tiles, spread over the image, stand for all of them."""
MIXED_SECONDS = 10.0
"""Sizes that differ over the axes are tried for so long."""

_FIXED = Outcome("skipped", "the input size is fixed")
_TOO_LARGE = Outcome("skipped", "the smallest declared input is too large to be run here")


def sizes(runner: Runner) -> Outcome:
    """Every declared size runs and gives the declared output shape: n = 0, 1, 2, also mixed over the axes."""
    if not runner.steps:
        return _FIXED
    start, done = time.monotonic(), []
    for ns in _size_parameters(list(runner.steps)):
        if len(set(ns.values())) > 1 and time.monotonic() - start > MIXED_SECONDS:
            break
        wanted, promised = runner.sizes(ns)
        if voxels(wanted) > MAX_VOXELS:
            continue
        if problem := _wrong_shape(runner, wanted, promised):
            return Outcome("failed", problem, "Correct min, step or the output's size in the description.")
        done.append(_shape(runner, wanted))
    if not done:
        return _TOO_LARGE
    return Outcome("passed", f"{len(done)} sizes from {min(done)} to {max(done)} run")


def _size_parameters(axes: list[tuple[str, str]]) -> Iterator[dict[tuple[str, str], int]]:
    """Size parameters n by (tensor, axis): equal ones first, then every mixture over the axes' names."""
    names = sorted({axis for _, axis in axes})
    mixtures = itertools.product(range(3), repeat=len(names))
    for chosen in sorted(mixtures, key=lambda ns: (len(set(ns)) > 1, sum(ns))):
        by_name = dict(zip(names, chosen, strict=True))
        yield {(tensor, axis): by_name[axis] for tensor, axis in axes}


def _wrong_shape(runner: Runner, wanted: Sizes, promised: dict[str, Any]) -> str | None:
    shape = _shape(runner, wanted)
    try:
        smallest = wanted == runner.sizes(0)[0]
        produced = runner.small_outputs if smallest else runner.run(runner.inputs_of(wanted))
    except Exception as error:  # whatever the model raises at this size
        return f"input size {shape} raised {type(error).__name__}: {one_sentence(error, 160)}"
    for name, declared in promised.items():
        got = dict(zip(runner.axes(name), produced[name].shape, strict=True))
        for axis, size in declared.items():
            if not _fits(got[axis], size):
                return f"input size {shape} gives {name!r} {got[axis]} along {axis}, declared is {size}"
    return None


def _fits(size: int, declared: Any) -> bool:
    if isinstance(declared, int):
        return size == declared
    upper = declared.max  # a size that depends on the data has bounds
    return bool(size >= declared.min and (upper is None or size <= upper))


def voxels(wanted: Sizes) -> int:
    """Number of elements of the largest input."""
    return max(math.prod(axes.values()) for axes in wanted.values())


def _shape(runner: Runner, wanted: Sizes) -> tuple[int, ...]:
    """Sizes of the first flexible input along its flexible axes, in pixels."""
    first = next(iter(runner.steps))[0]
    return tuple(wanted[tensor][axis] for tensor, axis in runner.steps if tensor == first)


def below_min(runner: Runner) -> Outcome:
    """Multiples of step below min run too: deepImageJ's engine does not enforce min."""
    if not runner.steps:
        return _FIXED
    minimal, _ = runner.sizes(0)
    fitting = {(t, a): (minimal[t][a] - 1) // step for (t, a), step in runner.steps.items()}
    highest = max(fitting.values())
    tried = []
    for k in sorted({1, 2, highest} & set(range(1, highest + 1))):
        wanted: Sizes = {tensor: dict(found) for tensor, found in minimal.items()}
        for (tensor, axis), step in runner.steps.items():
            wanted[tensor][axis] = step * max(1, min(k, fitting[tensor, axis]))
        try:
            runner.run(runner.inputs_of(wanted))
        except Exception as error:  # whatever the model raises at this size
            text = f"input size {_shape(runner, wanted)}, below min, raised {one_sentence(error, 160)}"
            return Outcome("failed", text, "Make the network accept every multiple of step.")
        tried.append(_shape(runner, wanted))
    if not tried:
        return Outcome("skipped", "no multiple of step lies below min")
    return Outcome("passed", f"{len(tried)} sizes below min run, from {tried[0]}")


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
    n_tiles, worst = _tile_difference(runner, inputs, tile)
    text = (
        f"{_shape(runner, image)} in {n_tiles} tiles of {_shape(runner, tile)} differs from the whole by {worst:.2%} "
        f"(below {TILED:.0%} expected)"
    )
    if worst < TILED:
        return Outcome("passed", text)
    if runner.has_custom_postprocessing and _tile_difference(runner, inputs, tile, postprocess=False)[1] < TILED:
        fix = "Let the postprocessing look at each pixel by itself, or tell users not to run it in tiles."
        return Outcome("warning", f"{text}, because of its custom postprocessing", fix)
    if not any(runner.halo.values()):  # nothing was promised
        fix = "Declare the halo that the network needs on the outputs' axes."
        return Outcome("warning", text + "; no halo is declared", fix)
    return Outcome("failed", text, "Enlarge the halo, or keep whole-image statistics out of the network.")


def _tile_difference(runner: Runner, inputs: Arrays, tile: Sizes, *, postprocess: bool = True) -> tuple[int, float]:
    """Number of tiles run, and the relative RMS of all of them together against the same places of the whole."""
    whole = runner.run(inputs, preprocessed=True, padded=True, postprocess=postprocess)
    pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in whole}
    places: dict[str, list[NDArray[Any]]] = {name: [] for name in whole}
    n_tiles = 0
    for outputs, slices in runner.run_tiles(inputs, tile, MAX_TILES, postprocess=postprocess):
        n_tiles += 1
        for name, piece in outputs.items():
            pieces[name].append(piece.ravel())
            places[name].append(whole[name][slices[name]].ravel())
    joined = [(np.concatenate(pieces[name]), np.concatenate(places[name])) for name in whole]
    return n_tiles, max(relative_rms(got, expected, centred=False) for got, expected in joined)


def is_stochastic(runner: Runner) -> bool:
    """Whether a model is declared to draw samples, others in each tile."""
    return declared(runner.descr, "stochastic") is True


def declared(descr: Any, key: str) -> Any:
    """A value of ``config.gap_bioimage`` in a description, None if it is absent."""
    config = descr.config
    extra = config if isinstance(config, dict) else getattr(config, "model_extra", None)
    section = (extra or {}).get("gap_bioimage")
    return section.get(key) if isinstance(section, dict) else None


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
