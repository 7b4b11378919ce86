"""How bright images may become: the networks know only what they were trained on."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gap_bioimage.errors import TrainedRangeError
from gap_bioimage.inference.climb import GAIN, WINDOW_PX
from gap_bioimage.network import brightest_mean, photon_budget, total_photons

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_ROOM_DB = 0.5  # less than that gives copies of the denoised image
_WARN_ROOM_DB = 6.0


def photons_to_stop_at(item: Tensor, stop_db: float | None, brightest: float, *, from_nothing: bool) -> Tensor:
    """Return the photons, (1,) float64, that an image is to have at the end of its climb.

    Parameters
    ----------
    item
        Counts (1, c, [z,] y, x).
    stop_db
        Mean photons per pixel in dB; when None, 20 dB above the image, as far as the trained range goes.
    brightest
        Photons per pixel that the brightest window may have.
    from_nothing
        The image is empty and to be generated; other empty images stay empty.

    Raises
    ------
    TrainedRangeError
        If ``stop_db`` lies beyond the trained range, or below the image.
    """
    n_pixels, has = item[0].numel(), total_photons(item)
    window = list(WINDOW_PX[item.dim() - 2])
    if from_nothing:
        limit = torch.full_like(has, brightest * n_pixels)
    elif not float(has):
        return has
    else:
        limit = photon_budget(item, math.inf, brightest, window)
    if stop_db is None:
        return limit if from_nothing else photon_budget(item, GAIN, brightest, window)
    stop = torch.full_like(has, 10 ** (stop_db / 10) * n_pixels)
    if float(stop) > 1.001 * float(limit):
        raise TrainedRangeError(
            f"stop_db is {stop_db:g}, but this image stays within what the model was trained for up to "
            f"{_db(float(limit) / n_pixels):.1f} dB only; give at most that, or leave it out"
        )
    if float(stop) <= float(has):
        raise TrainedRangeError(
            f"stop_db is {stop_db:g}, but the image already has {_db(float(has) / n_pixels):.1f} dB; give more than "
            "that, or leave it out"
        )
    return stop


def check_room(counts: Sequence[Tensor], stops: Sequence[Tensor], brightest: float) -> None:
    """See that photons can be added, and say where too few can for the full posterior.

    Parameters
    ----------
    counts, stops
        Images (1, c, [z,] y, x) and the photons they shall have at the end, (1,).
    brightest
        Photons per pixel that the brightest window may have.

    Raises
    ------
    TrainedRangeError
        If no image has room.
    """
    seen = [(item, stop) for item, stop in zip(counts, stops, strict=True) if bool(item.any())]
    if not seen:
        return
    rooms = [_db(float(stop) / float(total_photons(item))) for item, stop in seen]
    window = list(WINDOW_PX[seen[0][0].dim() - 2])
    brightness = max(_db(float(brightest_mean(item, window))) for item, _ in seen)
    where = (
        f"the brightest part of the image has {brightness:.1f} dB (10 log10 photons per pixel) and the model was "
        f"trained up to {_db(brightest):.1f} dB"
    )
    if max(rooms) < _LEAST_ROOM_DB:
        raise TrainedRangeError(
            f"{where}: sampling adds photons and has no room; train on images at least 10 dB brighter than those to "
            "sample from (the same sample exposed longer, or frames summed)"
        )
    if min(rooms) < _WARN_ROOM_DB:
        share = 1 - 10 ** (-min(rooms) / 10)
        warnings.warn(
            f"{where}: photons grow by {min(rooms):.1f} dB only, and samples may show as little as {share:.0%} of the "
            "posterior's variance; train on brighter images",
            stacklevel=3,
        )


def _db(value: float) -> float:
    return 10 * math.log10(max(value, 1e-30))
