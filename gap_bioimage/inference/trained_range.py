"""Limits of the trained range: how bright images may become in sampling, and whether samples are plausible."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gap_bioimage.errors import NetworkWarning, TrainedRangeError, TrainedRangeWarning
from gap_bioimage.sampler import GAIN, WINDOW_PX, photon_budget, total_photons

_LEAST_HEADROOM_DB = 0.5  # with less, samples are copies of the denoised image
_WARN_HEADROOM_DB = 6.0
_BOX_PX = 16  # single pixels differ by chance, means over boxes barely
_LARGE, _SIGNIFICANT = 0.10, 3.0  # differences of the mean: relative, and in standard errors


def photons_to_stop_at(item: Tensor, stop_db: float | None, brightest: float, least_gain: float = 1.0) -> Tensor:
    """Return the photons, (1,) float64, at which the samples of an image (1, c, [z,] y, x) are complete.

    The default is 20 dB more than the image has; ``stop_db`` sets the mean per pixel instead. The brightest window must
    stay within ``brightest`` photons per pixel, but the image may always gain ``least_gain``. An image without photons
    may reach ``brightest`` everywhere.
    """
    n_pixels, observed = item[0].numel(), total_photons(item)
    window = list(WINDOW_PX[item.dim() - 2])
    if not float(observed):
        limit = stop = torch.full_like(observed, brightest * n_pixels)
    else:
        limit, stop = (photon_budget(item, gain, brightest, window, least_gain) for gain in (math.inf, GAIN))
    if stop_db is not None:
        stop = torch.full_like(observed, 10 ** (stop_db / 10) * n_pixels)
        if not float(observed) < float(stop) <= 1.001 * float(limit):
            low = f"the image has {_db(float(observed) / n_pixels):.1f} dB and " if float(observed) else ""
            high = f"the model was trained for up to {_db(float(limit) / n_pixels):.1f} dB of such images"
            remedy = f"give {'a value in between' if low else 'a lower value'}, or leave it out"
            raise TrainedRangeError(f"stop_db is {stop_db:g}, but {low}{high}; {remedy}")
    if float(stop) < 1:  # for less than one photon, sampling would take endless steps
        size, least = "x".join(map(str, item.shape[2:])), _db(1 / n_pixels)
        problem = f"images of {size} px would hold {float(stop):.2g} photons in all, expected at least one"
        raise TrainedRangeError(f"{problem}; give a larger image, or stop_db above {least:.1f}")
    return stop


def check_headroom(
    counts: Sequence[Tensor], stops: Sequence[Tensor], brightest: float, names: Callable[[Sequence[int]], str]
) -> None:
    """Refuse images if none has room for photons, and warn if there is too little for the full posterior variance.

    ``names`` describes images by their numbers; ``stops`` are the final photons, (1,), of each.
    """
    pairs = [(float(total_photons(item)), float(stop)) for item, stop in zip(counts, stops, strict=True)]
    rooms = {n: _db(stop / observed) for n, (observed, stop) in enumerate(pairs) if observed}
    if not (tight := [n for n, room in rooms.items() if room < _WARN_HEADROOM_DB]):
        return
    problem = f"hardly any photons can be added to {names(tight)} with a model for up to {_db(brightest):.1f} dB"
    if max(rooms.values()) < _LEAST_HEADROOM_DB:
        advice = "train on images 10 dB brighter (exposed longer, or frames summed)"
        raise TrainedRangeError(f"{problem}, but sampling adds photons; {advice}")
    warn_of_headroom(min(rooms.values()), f"{problem}:")


def warn_of_headroom(room_db: float, where: str) -> None:
    """Warn if there is too little room for photons to show the full posterior variance."""
    if room_db < _WARN_HEADROOM_DB:
        text = f"{where} photons grow by {room_db:.1f} dB only, and samples may show as little as"
        share = f"{1 - 10 ** (-room_db / 10):.0%} of the posterior's variance"
        warnings.warn(f"{text} {share}; train on brighter images", TrainedRangeWarning, stacklevel=6)


def warn_if_samples_disagree(samples: xr.DataArray, mmse: xr.DataArray) -> None:
    """Warn if the mean of the samples, in boxes of 16 px, is not the denoised image: the network contradicts itself.

    Planes without light are left out, since their samples were generated.
    """
    count, lit = samples.sizes["sample"], (mmse > 0).any(("y", "x"))
    if count < 2 or not lit.any():
        return
    expected = _boxes(mmse).where(lit)
    # one sample at a time: all of them may not fit into memory twice
    boxes = xr.concat([_boxes(samples.isel(sample=n, drop=True)) for n in range(count)], "sample").where(lit)
    difference = _rms(boxes.mean("sample") - expected) / _rms(expected)
    explained = _rms(boxes.std("sample", ddof=1)) / math.sqrt(count) / _rms(expected)
    if difference > max(_LARGE, _SIGNIFICANT * explained):
        problem = f"the mean of the samples differs from the denoised image by {difference:.0%} (their spread explains"
        reason = "the network was trained too briefly, or on other images; train longer"
        warnings.warn(f"{problem} {explained:.0%}): {reason}", NetworkWarning, stacklevel=2)


def _boxes(image: xr.DataArray) -> xr.DataArray:
    sides = {axis: min(_BOX_PX, image.sizes[axis]) for axis in "yx"}
    return image.astype(np.float64).coarsen(sides, boundary="trim").mean()


def _rms(values: xr.DataArray) -> float:
    return math.sqrt(float(np.square(values).mean()))


def _db(value: float) -> float:
    return 10 * math.log10(max(value, 1e-30))
