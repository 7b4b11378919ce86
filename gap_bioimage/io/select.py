"""Which axes an image has, and which channel and frames of it to keep."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io.image import AXES, SAMPLES, is_foreign, is_unknown, with_coordinates

if TYPE_CHECKING:
    import xarray as xr

STORED = "stored"  # the coordinate of a file that lacks planes: whether each is there
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(\d+)?)?")


def name_axes(image: xr.DataArray, axes: str | None, file: str) -> xr.DataArray:
    """Return an image with dims out of ``t c z y x``: those given, else those of the file.

    Raises
    ------
    AxesError
        If neither fits, or it is a single row or column.
    NotPhotonCountsError
        If it is a photograph in colours.
    """
    if axes is not None:
        return _renamed(image, axes.lower(), file)
    dims, shape = [str(dim) for dim in image.dims], image.shape
    if SAMPLES in dims:
        raise _photograph(image, file)
    if image.attrs["metadata"].problem:
        raise AxesError(f"{file} {image.attrs['metadata'].problem}")
    if set(dims) <= set(AXES) and {"y", "x"} <= set(dims):
        if 1 in (image.sizes["y"], image.sizes["x"]):
            raise _line(image, file)
        return image
    if not 2 <= len(shape) <= len(AXES):
        raise AxesError(f"{file} has shape {shape}, expected 2 to 5 axes out of t, c, z, y, x; save it as an image")
    if any(map(is_foreign, dims)) or not any(map(is_unknown, dims)):
        raise AxesError(
            f"{file} has axes {', '.join(_told(image))}, expected them out of t, c, z, y, x; save the part that is an "
            'image, or name all of them by what they stand for, such as axes="tzyx"'
        )
    guess = _guess(image)
    raise AxesError(
        f"{file} has shape {shape} and does not say what its axes are, expected some of t, c, z, y, x; "
        f'if they are {guess}, give axes="{guess}"'
    )


def _renamed(image: xr.DataArray, axes: str, file: str) -> xr.DataArray:
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        raise AxesError(f'axes="{axes}" is not an order of axes, expected y, x and some of t, c, z; try axes="zyx"')
    if [axis for axis in axes if axis in image.dims] == list(image.dims):  # libraries leave out those of length 1
        return with_coordinates(
            image.expand_dims({axis: 1 for axis in axes if axis not in image.dims}).transpose(*axes)
        )
    if len(axes) != image.ndim:
        raise AxesError(
            f'axes="{axes}" names {len(axes)} axes but {file} has {image.ndim}, shape {image.shape}; name each one'
        )
    bare = image.drop_vars([name for name in image.coords if name != STORED])
    return with_coordinates(bare.rename(dict(zip(image.dims, axes, strict=True))))


def _guess(image: xr.DataArray) -> str:
    """Return the axes that an image may have; those that its file names stay."""
    known = ["c" if dim == SAMPLES else "" if is_unknown(dim) else str(dim) for dim in image.dims]
    for axis in "xy":
        if axis not in known:
            known[max(place for place, name in enumerate(known) if not name)] = axis
    for place, length in enumerate(image.shape):
        order = "czt" if length <= 3 else "ztc"
        known[place] = known[place] or next((axis for axis in order if axis not in known), "?")
    return "".join(known)


def _told(image: xr.DataArray) -> list[str]:
    return [f"{'unknown' if is_unknown(dim) else dim} {length}" for dim, length in image.sizes.items()]


def _photograph(image: xr.DataArray, file: str) -> NotPhotonCountsError:
    count = image.sizes[SAMPLES]
    kind = "is an RGB photograph" if count == 3 else f"holds {count} samples per pixel, as pictures in colours do"
    others = [dim for dim in image.dims if dim != SAMPLES]
    hint = "save one of its colours as an image"
    if "c" not in others and not any(map(is_foreign, others)) and image.ndim <= len(AXES):
        hint = f'if its colours are detector channels, name the axes, as axes="{_guess(image)}"'
    return NotPhotonCountsError(
        f"{file} {kind} (axes {', '.join(_told(image))}), expected one channel of photon counts; {hint}"
    )


def _line(image: xr.DataArray, file: str) -> AxesError:
    """Return the error for one row or column; what divides its length in its description may be its sizes."""
    size, axes = image.sizes["y"] * image.sizes["x"], "".join(str(dim) for dim in image.dims)
    said = [" ".join(part.split()) for part in re.split(r"[;\n\r]", image.attrs["metadata"].description)]
    sizes = [part for part in said if (n := re.search(r"(?:[=:]\s*|\s)(\d+)$", part)) and _divides(int(n[1]), size)]
    told = f"; its description says {', '.join(sizes[:6])}" if sizes else ""
    return AxesError(
        f"{file} is {image.sizes['y']} x {image.sizes['x']} pixels, a line and no image, expected rows and columns"
        f'{told}; arrange its values as an image and save that, or give axes="{axes}" if it is a line'
    )


def _divides(number: int, size: int) -> bool:
    return number > 1 and size > 1 and size % number == 0


def choose_channel(image: xr.DataArray, channel: int | str | None, file: str) -> xr.DataArray:
    """Return one channel, by place from 0 (digits count as one) or by name, without its axis; all where None.

    Raises
    ------
    AxesError
        If there is no such channel, or several of that name.
    """
    if channel is None:
        return image
    count, names = image.sizes.get("c", 1), [str(name) for name in image.attrs["metadata"].channels]
    if str(channel).lstrip("-").isdigit():
        if not 0 <= int(channel) < count:
            raise AxesError(
                f"channel {channel} was asked for, but {file} has {count} (counted from 0); choose 0 to {count - 1}"
            )
        place = int(channel)
    else:
        for same in (str, str.lower):
            places = [place for place, name in enumerate(names) if same(name) == same(str(channel))]
            if places:
                break
        if len(places) != 1:
            known = f"its channels are {', '.join(names)}" if names else f"its {count} have no names"
            raise AxesError(
                f"channel {channel!r} was asked for, but {len(places) or 'none'} in {file} has that name; {known}; "
                "choose by number, such as channel=0"
            )
        place = places[0]
    return image.isel(c=place) if "c" in image.dims else image


def frames_of(time: int | str, count: int, file: str) -> int | slice:
    """Return a frame by its number, or a range of them.

    Parameters
    ----------
    time
        A number from 0 (from the end below 0), or a range such as ``0:50``, ``10:`` or ``::2``, as in Python.
    count
        How many frames there are.

    Raises
    ------
    AxesError
        If it is neither, or there are no such frames.
    """
    text = str(time).strip()
    if re.fullmatch(r"-?\d+", text):
        number = int(text) + (count if int(text) < 0 else 0)
        if not 0 <= number < count:
            raise AxesError(
                f"frame {text} was asked for, but {file} has {count} (counted from 0); choose 0 to {count - 1}"
            )
        return number
    match = _SLICE.fullmatch(text)
    if match is None or match[3] == "0":
        raise AxesError(
            f'time="{text}" is not a frame or a range of frames, expected such as 3, "0:50", "10:" or "::2"'
        )
    start, stop, step = (None if part is None else int(part) for part in match.groups())
    chosen = range(count)[slice(start, stop, step)]
    if not chosen:
        raise AxesError(f'time="{text}" holds no frame of {file}, which has {count}; choose from "0:{count}"')
    return slice(chosen.start, chosen[-1] + 1, chosen.step)


def choose_frames(image: xr.DataArray, time: int | str | None, file: str) -> xr.DataArray:
    """Return frames, see :func:`frames_of`, all of them where None; planes that the file lacks are refused.

    Raises
    ------
    AxesError
        If there are no such frames.
    UnreadableImageError
        If planes of what was chosen are not in the file.
    """
    chosen = image
    if time is not None:
        frames = frames_of(time, image.sizes.get("t", 1), file)
        if "t" in image.dims:
            chosen = image.isel(t=frames)
            if isinstance(frames, int):
                chosen = chosen.drop_vars("t", errors="ignore")
            elif "t" in chosen.coords:
                chosen.coords["t"].attrs["step"] *= frames.step or 1
    if STORED not in image.coords:
        return chosen
    if not bool(chosen.coords[STORED].all()):
        raise _incomplete(image.coords[STORED], file)
    return chosen.drop_vars(STORED)


def _incomplete(stored: xr.DataArray, file: str) -> UnreadableImageError:
    """Return the error for an image of which planes are missing, with what there is of it."""
    for axis, option in (("t", "time"), ("c", "channel")):
        whole = _whole(stored, axis)
        if whole.any() and not whole.all():
            first = int(np.argmax(whole))
            last = first + int(np.argmin([*whole[first:], False]))
            kind, way = (
                ("frames", f'them with time="{first}:{last}"')
                if axis == "t"
                else ("channels", f"it with {option}={first}")
            )
            return UnreadableImageError(f"{file} holds {int(whole.sum())} of {whole.size} {kind}; read {way}")
    return UnreadableImageError(
        f"{file} is truncated: it holds {int(stored.sum())} of {stored.size} planes; copy or export it again"
    )


def _whole(stored: xr.DataArray, axis: str) -> Any:
    if axis not in stored.dims:
        return np.array([], bool)
    return stored.all([dim for dim in stored.dims if dim != axis]).values
