"""What every reader gives: the images of a file, of which one is chosen by series and level."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gap_bioimage.errors import AxesError, GapError, UnreadableImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import xarray as xr

_SHOWN = 8


@dataclass(frozen=True)
class Stored:
    """One image in a file.

    Parameters
    ----------
    name
        Empty where the file gives none.
    levels
        Shape of each level of its pyramid; without those that the file lists and lacks.
    open
        From a level to its values, which are read where they are indexed.
    """

    name: str
    levels: Mapping[int, tuple[int, ...]]
    open: Callable[[int], xr.DataArray]


def choose(path: Path, images: Sequence[Stored], series: int | str | None, level: int | None) -> xr.DataArray:
    """Open the image and the level that were asked for, the full resolution where none was.

    Raises
    ------
    UnreadableImageError
        If there are several images and none was chosen, or none at all.
    AxesError
        If there is no such image or level, or several images of that name.
    """
    whole = [image for image in images if image.levels]
    if not whole:
        raise UnreadableImageError(f"{path} holds no image, expected at least one; name another file")
    chosen = whole[_place(path, whole, [image.name for image in images if not image.levels], series)]
    if (level or 0) not in chosen.levels:
        known = ", ".join(f"{number} {shape}" for number, shape in chosen.levels.items())
        raise AxesError(
            f"level {level or 0} was asked for, but {path.name} has {known}; choose one of these, 0 is the full "
            "resolution"
        )
    return chosen.open(level or 0)


def _place(path: Path, images: Sequence[Stored], absent: Sequence[str], series: int | str | None) -> int:
    shown = [f"{place} {image.name!r}" if image.name else f"{place}" for place, image in enumerate(images[:_SHOWN])]
    listed = ", ".join(f"{name} {next(iter(i.levels.values()))}" for name, i in zip(shown, images, strict=False))
    listed += f", and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
    listed += f" (and lists, but lacks, {', '.join(absent[:_SHOWN])})" if absent else ""
    if series is None:
        if len(images) == 1:
            return 0
        raise UnreadableImageError(
            f"{path} holds {len(images)} images: {listed}; choose one by number or name, such as series=0"
        )
    if str(series).lstrip("-").isdigit():
        places = [int(series)] if 0 <= int(series) < len(images) else []
    else:
        places = [place for place, each in enumerate(images) if each.name.strip("/") == str(series).strip("/")]
    if len(places) == 1:
        return places[0]
    if places:
        raise AxesError(
            f"{path.name} holds {len(places)} images named {series!r}, expected one; choose by number, such as "
            f"series={places[0]}"
        )
    raise AxesError(
        f"series {series} was asked for, but {path.name} holds {listed}; choose one of these, such as series=0"
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
