"""How bright images may become, and whether samples are plausible: networks know only what they were trained on."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from gap_bioimage.errors import NetworkWarning, TrainedRangeError, TrainedRangeWarning
from gap_bioimage.sampler import GAIN, WINDOW_PX, brightest_mean, photon_budget, total_photons

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr
    from torch import Tensor

_LEAST_ROOM_DB = 0.5  # less than that gives copies of the denoised image
_WARN_ROOM_DB = 6.0
_STRANGE_WINDOW = 2.0  # times the brightest window of the training: the climb ends there, but for its last step
_STRANGE_PIXEL = 30.0  # the same for single pixels; in microscopy they are 2 to 20 times as bright as their window
_BOX_PX = 16  # single pixels differ by chance, boxes of them hardly
_LARGE, _SURE = 0.10, 3.0


def photons_to_stop_at(item: Tensor, stop_db: float | None, brightest: float, least_gain: float = 1.0) -> Tensor:
    """Return the photons, (1,) float64, that an image is to have at the end of its climb.

    Parameters
    ----------
    item
        Counts (1, c, [z,] y, x); without any, an image is generated.
    stop_db
        Mean photons per pixel in dB; when None, 20 dB above the image, as far as the trained range goes.
    brightest
        Photons per pixel that the brightest window may have.
    least_gain
        Photons at the end per observed photon that are allowed in any case.

    Raises
    ------
    TrainedRangeError
        If ``stop_db`` lies beyond the trained range, or below the image.
    """
    n_pixels, has = item[0].numel(), total_photons(item)
    window = list(WINDOW_PX[item.dim() - 2])
    from_nothing = not float(has)
    if from_nothing:
        limit = torch.full_like(has, brightest * n_pixels)
    else:
        limit = photon_budget(item, math.inf, brightest, window, least_gain)
    if stop_db is None:
        return limit if from_nothing else photon_budget(item, GAIN, brightest, window, least_gain)
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


def check_room(
    counts: Sequence[Tensor], stops: Sequence[Tensor], brightest: float, names: Callable[[Sequence[int]], str]
) -> None:
    """See that photons can be added, and say where too few can for the full posterior.

    Parameters
    ----------
    counts, stops
        Images (1, c, [z,] y, x) and the photons they shall have at the end, (1,); empty ones have room.
    brightest
        Photons per pixel that the brightest window may have.
    names
        What to call some of the images, given their numbers.

    Raises
    ------
    TrainedRangeError
        If no image has room.
    """
    rooms = {n: _room_db(item, stop) for n, (item, stop) in enumerate(zip(counts, stops, strict=True))}
    tight = [n for n, room in rooms.items() if room < _WARN_ROOM_DB]
    if not tight:
        return
    window = list(WINDOW_PX[counts[0].dim() - 2])
    brightness = max(_db(float(brightest_mean(counts[n], window))) for n in tight)
    where = (
        f"the brightest part of {names(tight)} has {brightness:.1f} dB (10 log10 photons per pixel) and the model was "
        f"trained up to {_db(brightest):.1f} dB"
    )
    if max(room for room in rooms.values() if room < math.inf) < _LEAST_ROOM_DB:
        raise TrainedRangeError(
            f"{where}: sampling adds photons and has no room; train on images at least 10 dB brighter than those to "
            "sample from (the same sample exposed longer, or frames summed)"
        )
    least = min(rooms.values())
    share = 1 - 10 ** (-least / 10)
    warnings.warn(
        f"{where}: photons grow by {least:.1f} dB only, and samples may show as little as {share:.0%} of the "
        "posterior's variance; train on brighter images",
        TrainedRangeWarning,
        stacklevel=4,
    )


class Strangeness:
    """How far generated images are from what the network was trained on; nothing was observed to hold them against.

    Parameters
    ----------
    brightest
        Photons per pixel of the brightest window in the training.
    """

    def __init__(self, brightest: float) -> None:
        self._brightest = brightest
        self._strange = self._all = 0
        self._window = self._pixel = 0.0

    def look_at(self, rate: Tensor) -> None:
        """Measure some generated images, expected photons per pixel (b, c, [z,] y, x)."""
        window = brightest_mean(rate, list(WINDOW_PX[rate.dim() - 2]))
        pixel = rate.flatten(1).amax(1)
        strange = (window > _STRANGE_WINDOW * self._brightest) | (pixel > _STRANGE_PIXEL * self._brightest)
        self._all += len(rate)
        self._strange += int(strange.sum())
        self._window, self._pixel = max(self._window, float(window.max())), max(self._pixel, float(pixel.max()))

    def warn(self) -> None:
        """Warn once of all images that are far outside."""
        if self._strange:
            warnings.warn(
                f"{self._strange} of {self._all} generated images lie far outside what the model was trained on (up "
                f"to {self._pixel:.3g} photons in a pixel; {self._window:.3g} per pixel in the brightest window, which "
                f"had {self._brightest:.3g} in the training): unless such bright spots are expected, the network was "
                "trained too briefly to generate; train longer, from the dark on (thinning.min_db=-40)",
                NetworkWarning,
                stacklevel=3,
            )


def _room_db(item: Tensor, stop: Tensor) -> float:
    has = float(total_photons(item))
    return _db(float(stop) / has) if has else math.inf


def _db(value: float) -> float:
    return 10 * math.log10(max(value, 1e-30))


def warn_if_samples_disagree(samples: xr.DataArray, mmse: xr.DataArray) -> None:
    """Warn when the samples' mean is not the denoised image: then the network contradicts itself.

    Parameters
    ----------
    samples
        With the dim ``sample``; fewer than two tell nothing.
    mmse
        The denoised image, with the other dims. Planes without any light tell nothing: their samples were generated.

    Warns
    -----
    NetworkWarning
        If they differ by more than 10 % in boxes of 16 px, and by more than three times what the spread of the
        samples explains.
    """
    count = samples.sizes["sample"]
    seen = (mmse > 0).any(("y", "x")).values
    if count < 2 or not seen.any():
        return
    mmse = mmse.transpose(..., "y", "x")
    expected = _boxes(mmse)[seen]
    size = _rms(expected)
    # one sample at a time: all of them may not fit into memory twice
    boxes = np.stack([_boxes(samples.isel(sample=n, drop=True).transpose(*mmse.dims))[seen] for n in range(count)])
    difference = _rms(boxes.mean(0) - expected) / size
    explained = _rms(boxes.std(0, ddof=1)) / math.sqrt(count) / size
    if difference > max(_LARGE, _SURE * explained):
        warnings.warn(
            f"the mean of the samples differs from the denoised image by {100 * difference:.0f} % (their spread "
            f"explains {100 * explained:.0f} %): the network was trained too briefly, or on other images; train longer",
            NetworkWarning,
            stacklevel=2,
        )


def _boxes(image: xr.DataArray) -> np.ndarray:
    """Return the means of boxes along y and x times the root of their pixels, so that each counts by its size."""
    values = image.transpose(..., "y", "x").values
    starts = [np.arange(0, size, _BOX_PX) for size in values.shape[-2:]]
    widths = [np.diff(start, append=size) for start, size in zip(starts, values.shape[-2:], strict=True)]
    sums = np.add.reduceat(values, starts[0], axis=-2, dtype=np.float64)
    # those at the far borders are smaller
    return np.asarray(np.add.reduceat(sums, starts[1], axis=-1) / np.sqrt(np.outer(*widths)))


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values).mean()))
