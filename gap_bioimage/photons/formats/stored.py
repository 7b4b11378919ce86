"""What every format gives: one image of a file, described and not yet read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gap_bioimage.errors import AxesError, GapError, UnreadableImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

_SHOWN = 8


@dataclass(frozen=True)
class Metadata:
    """What a file says about an image and its axes; empty where it says nothing trustworthy.

    Parameters
    ----------
    pixel_size_um, interval_s
        Sizes by axis (z, y, x), and seconds between frames.
    channels
        Their names.
    name
        Of the image, where the file gives one or holds several.
    unitless
        Sizes by axis (t, z, y, x) whose unit the file does not say, so that they are not used.
    """

    pixel_size_um: Mapping[str, float] = field(default_factory=dict)
    interval_s: float | None = None
    channels: Sequence[str] = ()
    name: str = ""
    unitless: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """One image in a file.

    Parameters
    ----------
    axes
        One upper-case letter per axis, in the order of the file: T, C, Z, Y, X, S for the colours of a photograph,
        Q for an axis whose meaning is unknown.
    shape, dtype
        Of the whole image.
    read
        From one slice per axis, with steps above 0, to the values.
    meta
        Calibration.
    mapped
        Whether reading takes no memory.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[tuple[slice, ...]], npt.NDArray[Any]]
    meta: Metadata = field(default_factory=Metadata)
    mapped: bool = False


def choose(path: Path, images: Sequence[tuple[str, object]], series: int | str | None) -> int:
    """Return the place of the image to read among those that a file holds.

    Parameters
    ----------
    path
        The file, for messages.
    images
        Name and shape of each image.
    series
        A place from 0, as a number or in digits, or a name; None where the file holds one image only.

    Raises
    ------
    UnreadableImageError
        If there are several and none was chosen, or none at all.
    AxesError
        If there is no such image, or several of that name.
    """
    if not images:
        raise UnreadableImageError(f"{path} holds no image, expected at least one; name another file")
    if series is None:
        if len(images) == 1:
            return 0
        raise UnreadableImageError(
            f"{path} holds {len(images)} images: {_listed(images)}; choose one by number or name, such as --series 0"
        )
    if str(series).lstrip("-").isdigit():
        if 0 <= int(series) < len(images):
            return int(series)
    else:
        places = [place for place, (name, _) in enumerate(images) if name.strip("/") == str(series).strip("/")]
        if len(places) == 1:
            return places[0]
        if places:
            raise AxesError(
                f"{path.name} holds {len(places)} images named {series!r}, expected one; "
                f"choose by number, such as --series {places[0]}"
            )
    raise AxesError(
        f"series {series} was asked for, but {path.name} holds {_listed(images)}; "
        "choose one of these, such as --series 0"
    )


def choose_level(path: Path, shapes: Sequence[object], level: int | None) -> int:
    """Return the resolution level to read; the full resolution, 0, where none was asked for.

    Raises
    ------
    AxesError
        If there is no such level.
    """
    if level is None:
        return 0
    if 0 <= level < len(shapes):
        return level
    known = ", ".join(f"{number} {shape}" for number, shape in enumerate(shapes))
    raise AxesError(
        f"level {level} was asked for, but {path.name} has {known}; choose one of these, 0 is the full resolution"
    )


def damaged(path: Path, error: Exception) -> UnreadableImageError:
    """Return the error for a file that a library could not read."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreadableImageError(
        f"{path} cannot be read as an image ({reason}), expected a whole file in a known format; "
        "copy it again, or convert it to OME-TIFF in Fiji"
    )


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what libraries and codecs raise on damaged files, of many types, into the one error; ours pass."""
    try:
        yield
    except GapError:
        raise
    except Exception as error:
        raise damaged(path, error) from None


def missing(path: Path, extra: str) -> UnreadableImageError:
    """Return the error for a format whose library is not installed."""
    return UnreadableImageError(
        f"{path.name} needs a library that is not installed; type pip install 'gap-bioimage[{extra}]'"
    )


def without_single(axes: str, shape: Sequence[int]) -> tuple[str, tuple[slice | int, ...]]:
    """Return the axes without unknown ones of length 1, and the index that drops those."""
    gone = [axis not in "TCZYX" and length == 1 for axis, length in zip(axes, shape, strict=True)]
    kept = "".join(axis for axis, drop in zip(axes, gone, strict=True) if not drop)
    return kept, tuple(0 if drop else slice(None) for drop in gone)


def _listed(images: Sequence[tuple[str, object]]) -> str:
    shown = [f"{place} {name!r} {shape}" if name else f"{place} {shape}" for place, (name, shape) in enumerate(images)]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
