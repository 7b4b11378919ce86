"""Images in tiles against images as a whole, as bioimageio.core predicts both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.validation.checks import Evidence
from gap_bioimage.validation.running.measures import relative_rms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gap_bioimage.validation.running.runner import Arrays, Runner, Sizes

TILED = 1e-2
"""Largest difference of a tiled prediction, as relative RMS."""
MAX_TILES = 6
"""So many tiles, spread over the image, stand for all of them."""


@dataclass(frozen=True)
class Tiles:
    """Tiles that were run, their relative RMS against the whole, all together, and the worst of them."""

    n_tiles: int
    worst: float
    evidence: tuple[Evidence, ...]


def tile_difference(runner: Runner, inputs: Arrays, tile: Sizes, *, postprocess: bool = True) -> Tiles:
    """Compare tiles of a preprocessed image with the same places of the image as a whole."""
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
    return Tiles(max(map(len, pieces.values())), worst, tuple(evidence))


def tiled_sizes(runner: Runner, larger: Mapping[tuple[str, str], int] | None = None) -> tuple[Sizes, Sizes]:
    """Sizes of an image some tiles wide, and of the smallest tile (halo included), in input pixels.

    The image plus its halo is a declared size again, since bioimageio.core pads whole images by the halo.

    Parameters
    ----------
    runner
        The model.
    larger
        So many steps the tile is larger than the smallest declared one, by (input id, axis id).
    """
    halo, more = runner.halo, {**dict.fromkeys(runner.steps, 0), **(larger or {})}
    tile, _ = runner.sizes(more)
    margins = {(t, a): 2 * halo.get(t, {}).get(a, 0) for t, a in runner.steps}
    # bioimageio.core refuses images smaller than a tile, which wide halos would otherwise make.
    ns = {
        (t, a): more[t, a] + math.ceil(max(1.5 * (tile[t][a] - margins[t, a]), margins[t, a]) / step)
        for (t, a), step in runner.steps.items()
    }
    image, _ = runner.sizes(ns)
    for (tensor, axis), margin in margins.items():
        image[tensor][axis] -= margin
    return image, tile
