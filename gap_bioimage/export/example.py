"""The counts that a zip is tested with, and that its numbers are measured on."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gap_bioimage.counts import thin
from gap_bioimage.errors import ExportError
from gap_bioimage.export.halo import mirrored
from gap_bioimage.export.intake import Intake
from gap_bioimage.io import read_photons
from gap_bioimage.sampler import GAIN, WINDOW_PX, photon_budget, total_photons

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr
    from torch import Tensor

    from gap_bioimage.model import Model

_WARN_ROOM_DB = 6.0
_REGION_PX = {2: (8, 8), 3: (4, 8, 8)}
_FEW_PHOTONS, _FEWEST_PHOTONS = 100, 20  # for all samples together, and for each
_LEAST_RATE = 0.02  # tests allow differences of 0.001


def values_for(
    model: Model, intake: Intake, test_image: xr.DataArray | str | Path | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return values (c, [z,] y, x) for the test tensors, and held-out ones to score if the run kept them.

    They are what the zip will be given: counts, or values of the camera.

    Raises
    ------
    ExportError
        If there are none, or they do not fit the model.
    """
    from gap_bioimage.training.stacks import as_stacks, values_of

    if test_image is not None:
        counts = intake.detector is None and intake.ceiling is None
        image = read_photons(test_image, check=counts) if isinstance(test_image, (str, Path)) else test_image
        stacks = as_stacks([image], model.config.dim)
        if stacks[0].shape[0] != model.config.channels:
            raise ExportError(
                f"the test image has {stacks[0].shape[0]} channels, the model expects {model.config.channels}"
            )
        return np.asarray(values_of(max(stacks, key=lambda stack: float(stack.mean())))), None
    folder = model.source.parent
    if not (folder / "example.npy").is_file():
        raise ExportError(
            f"{model.source} brings no counts for the test tensors; give an image of real counts with --test-image"
        )
    example, held_out = np.load(folder / "example.npy"), np.load(folder / "held_out.npy")
    own = Intake.of(model)
    if own == intake:
        return example, held_out
    # the zip is for another camera: what it would have written
    return tuple(intake.values_of(own.counts(values)) for values in (example, held_out))  # type: ignore[return-value]


def piece_to_test(example: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the brightest piece of the example, mirrored up where that is too small."""
    return brightest_piece(mirrored(example, list(map(max, size, example.shape[1:]))), size)


def brightest_piece(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the piece of an image (c, [z,] y, x) with the most photons, out of pieces that overlap by half."""
    starts = itertools.product(
        *(range(0, have - want + 1, max(1, want // 2)) for have, want in zip(image.shape[1:], size, strict=True))
    )
    cuts = [tuple(slice(s, s + want) for s, want in zip(start, size, strict=True)) for start in starts]
    return max((image[(slice(None), *cut)] for cut in cuts), key=lambda piece: float(piece.sum(dtype=np.float64)))


def room_db(counts: np.ndarray, brightest: float) -> float:
    """Return how far sampling may add photons to counts (c, [z,] y, x), in dB; 0 where it may not.

    Parameters
    ----------
    counts
        The image.
    brightest
        Top of the trained range, photons per pixel.
    """
    photons = torch.from_numpy(counts.astype(np.float32))[None]
    budget = photon_budget(photons, GAIN, brightest, list(WINDOW_PX[counts.ndim - 1]))
    return float(10 * torch.log10(budget / torch.clamp(total_photons(photons), min=1.0)).clamp(min=0.0))


def check_room(example: np.ndarray, brightest: float) -> float:
    """Return how far sampling may add photons to the example, in dB, and warn where that is little.

    Parameters
    ----------
    example, brightest
        As for ``room_db``.
    """
    room = room_db(example, brightest)
    if room < _WARN_ROOM_DB:
        warnings.warn(
            "samples are drawn by adding photons up to the brightness that the network was trained for, and the "
            f"example image has {room:.1f} dB of room only: samples of images like it may show as little as "
            f"{1 - 10 ** (-room / 10):.0%} of the posterior's variance; train on brighter images to have more",
            stacklevel=4,
        )
    return room


def sparse_counts(counts: np.ndarray, n_samples: int, denoise: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Keep few photons of counts (c, [z,] y, x), close together: a test input that samples alike everywhere.

    A sampler adds photons by the hundred. With each there is a chance of about 1e-6 that a rounding of another
    processor, number of threads or engine adds another one, and from there on the samples differ: those of whole
    images cannot be reproduced elsewhere. Those of some tens of photons can.

    Parameters
    ----------
    counts
        The piece to take them from.
    n_samples
        As many as are drawn.
    denoise
        Counts (1, c, [z,] y, x) to rates, which must not be so small that any output passes for the expected one.
    """
    size = counts.shape[1:]
    region = brightest_piece(counts, [min(*pair) for pair in zip(_REGION_PX[len(size)], size, strict=True)])
    # off the middle, so that a mirrored output is a wrong one
    starts = [min(s // 4, s - r) for s, r in zip(size, region.shape[1:], strict=True)]
    place = (slice(None), *(slice(start, start + r) for start, r in zip(starts, region.shape[1:], strict=True)))
    sparse, total = np.zeros_like(counts, dtype=np.int64), int(region.sum(dtype=np.int64))
    wanted = max(_FEWEST_PHOTONS, _FEW_PHOTONS // n_samples)
    while True:
        share = min(1.0, wanted / max(total, 1))
        sparse[place] = thin(region.astype(np.int64), share, 0)[0]
        with torch.inference_mode():
            brightest = float(denoise(torch.from_numpy(sparse.astype(np.float32))[None]).max())
        if share == 1.0 or brightest >= _LEAST_RATE:
            return sparse
        wanted *= 2
