"""Checks of a running model about places: tiles, paddings and odd sizes against the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gap_bioimage.validation.checks import Evidence, Outcome, one_sentence
from gap_bioimage.validation.running.halo_search import sufficient_halo
from gap_bioimage.validation.running.measures import relative_rms
from gap_bioimage.validation.running.shapes import FIXED, MAX_VOXELS, is_stochastic, shape_of, voxels
from gap_bioimage.validation.running.tile_runs import TILED, tile_difference, tiled_sizes

if TYPE_CHECKING:
    from gap_bioimage.validation.checks import Status
    from gap_bioimage.validation.running.runner import Runner


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
    found = tile_difference(runner, inputs, tile)
    text = (
        f"{shape_of(runner, image)} in {found.n_tiles} tiles of {shape_of(runner, tile)}, halo included, differs from "
        f"the whole by {found.worst:.2%} (below {TILED:.0%} expected)"
    )
    if found.worst < TILED:
        return Outcome("passed", text)
    if runner.has_custom_postprocessing and tile_difference(runner, inputs, tile, postprocess=False).worst < TILED:
        fix = "Let the postprocessing look at each pixel by itself, or tell users not to run it in tiles."
        return Outcome("warning", f"{text}, because of its custom postprocessing", fix, found.evidence)
    found_halo = sufficient_halo(runner)
    text += f"; {found_halo.told}"
    fix = found_halo.fix
    if not any(runner.halo.values()):  # nothing was promised
        return Outcome("warning", text + "; no halo is declared", fix, found.evidence)
    return Outcome("failed", text, fix, found.evidence)


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
