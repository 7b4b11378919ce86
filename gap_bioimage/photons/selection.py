"""Which axes an image has, and which frames and channel of it to read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gap_bioimage.errors import AxesError, NotPhotonCountsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AXES = "tczyx"
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(\d+)?)?")


def axes_of(path: Path, shape: tuple[int, ...], stored: str, axes: str | None) -> str:
    """Return the axes of an array, in lower case: those given, else those of the file.

    Raises
    ------
    AxesError
        If neither fits.
    NotPhotonCountsError
        If it is a photograph in colours.
    """
    if axes is not None:
        return _given_axes(path, shape, axes.lower())
    if "S" in stored:
        raise NotPhotonCountsError(
            f"{path.name} is an RGB photograph (axes {stored}), expected one channel of photon counts; "
            "if its colours are detector channels, name the axes, for example --axes yxc"
        )
    if set(stored) <= set(AXES.upper()) and {"Y", "X"} <= set(stored):
        return stored.lower()
    if len(shape) < 2 or len(shape) > len(AXES):
        raise AxesError(
            f"{path.name} has shape {shape}, expected 2 to 5 axes out of t, c, z, y, x; save it as an image"
        )
    guess = _guess(shape, stored)
    raise AxesError(
        f"{path.name} has shape {shape} and does not say what its axes are, expected some of t, c, z, y, x; "
        f"if they are {guess}, add --axes {guess} (in Python axes={guess!r})"
    )


def channel_of(path: Path, channel: int | str, count: int, names: Sequence[str]) -> int:
    """Return the place of a channel, given by place from 0 (digits count as one) or by name.

    Raises
    ------
    AxesError
        If there is no such channel, or several of that name.
    """
    if str(channel).lstrip("-").isdigit():
        if not 0 <= int(channel) < count:
            raise AxesError(
                f"channel {channel} was asked for, but {path.name} has {count} (counted from 0); "
                f"choose 0 to {count - 1}"
            )
        return int(channel)
    wanted = str(channel)
    for fold in (str, str.casefold):  # names that differ in capitals only are told apart where that is possible
        places = [place for place, name in enumerate(names) if fold(name) == fold(wanted)]
        if len(places) == 1:
            return places[0]
    known = f"its channels are {', '.join(names)}" if names else f"its {count} have no names"
    raise AxesError(f"channel {wanted} was asked for, but in {path.name} {known}; choose one by number, from 0")


def frames_of(path: Path, time: int | str, count: int) -> tuple[slice, bool]:
    """Return which frames to read, and whether that is one frame by its number, whose axis goes.

    Parameters
    ----------
    path
        The file, for messages.
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
                f"frame {text} was asked for, but {path.name} has {count} (counted from 0); choose 0 to {count - 1}"
            )
        return slice(number, number + 1), True
    match = _SLICE.fullmatch(text)
    if match is None or match[3] == "0":
        raise AxesError(f"--time {text} is no frame and no range of frames, expected such as 3, 0:50, 10: or ::2")
    start, stop, step = (None if part is None else int(part) for part in match.groups())
    chosen = range(count)[slice(start, stop, step)]
    if not chosen:
        raise AxesError(f"--time {text} holds no frame of {path.name}, which has {count}; choose from 0:{count}")
    return slice(chosen.start, chosen[-1] + 1, chosen.step), False


def _given_axes(path: Path, shape: tuple[int, ...], axes: str) -> str:
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        raise AxesError(f"--axes {axes} is not an order of axes, expected y, x and some of t, c, z; try --axes zyx")
    if len(axes) != len(shape):
        raise AxesError(
            f"--axes {axes} names {len(axes)} axes but {path.name} has {len(shape)}, shape {shape}; name each one"
        )
    return axes


def _guess(shape: tuple[int, ...], stored: str) -> str:
    known = [letter.lower() if letter in AXES.upper() else "" for letter in stored]
    known[-2:] = ["y", "x"]
    for i, length in enumerate(shape[:-2]):
        if not known[i]:
            order = "czt" if length <= 3 else "ztc"
            known[i] = next((axis for axis in order if axis not in known), "?")
    return "".join(known)
