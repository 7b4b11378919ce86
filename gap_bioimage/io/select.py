"""Which image of a file, what its axes are, and which channel and frames of it to keep; all of it by ``isel``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io.image import AXES, OPEN_ENDED, SAMPLES, STORED, Stored, is_foreign, is_unknown, with_coordinates

_SHOWN = 8
_RANGE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(\d+)?)?")
_EXPECTED = "expected them out of t, c, z, y, x"


def choose_image(path: Path, images: Sequence[Stored], series: int | str | None, level: int | None) -> xr.DataArray:
    """Return the image and the level that were asked for, the full resolution where none was."""
    whole = [image for image in images if image.levels]
    if not whole:
        raise UnreadableImageError(f"{path} holds no image, expected at least one; name another file")
    chosen = whole[_place(path, whole, [image.name for image in images if not image.levels], series)]
    if (level or 0) not in chosen.levels:
        known = ", ".join(f"{number} {image.shape}" for number, image in chosen.levels.items())
        raise AxesError(
            f"level {level or 0} was asked for, but {path.name} has {known}; choose one, 0 is the full size"
        )
    image = chosen.levels[level or 0]
    return image.assign_attrs(series=chosen.name) if chosen.name else image


def _place(path: Path, images: Sequence[Stored], absent: Sequence[str], series: int | str | None) -> int:
    if series is None and len(images) == 1:
        return 0
    shapes = [next(iter(image.levels.values())).shape for image in images[:_SHOWN]]
    named = [f"{place} {image.name!r}" if image.name else str(place) for place, image in enumerate(images[:_SHOWN])]
    listed = ", ".join(f"{name} {shape}" for name, shape in zip(named, shapes, strict=True))
    listed += f", and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
    listed += f" (and lists, but lacks, {', '.join(absent[:_SHOWN])})" if absent else ""
    if series is None:
        raise UnreadableImageError(f"{path} holds {len(images)} images: {listed}; choose one, such as series=0")
    if str(series).lstrip("-").isdigit():
        places = [int(series)] if 0 <= int(series) < len(images) else []
    else:
        places = [place for place, image in enumerate(images) if image.name.strip("/") == str(series).strip("/")]
    if len(places) != 1:
        kind = f"{len(places)} images named {series!r}: " if places else ""
        raise AxesError(f"series {series} was asked for, but {path.name} holds {kind}{listed}; choose one, as series=0")
    return places[0]


def name_axes(image: xr.DataArray, axes: str | None, file: str) -> xr.DataArray:
    """Return an image with dims out of ``t c z y x``: those given, else those of the file."""
    if axes is not None:
        return _renamed(image, axes.lower(), file)
    dims, shape, meta = [str(dim) for dim in image.dims], image.shape, image.attrs["metadata"]
    if SAMPLES in dims:
        raise _photograph(image, file)
    known = set(dims) <= set(AXES) and {"y", "x"} <= set(dims)
    if STORED in image.coords and not known:
        raise _incomplete(image, file)
    if meta.problem:
        raise AxesError(f"{file} {meta.problem}")
    if known and 1 not in (image.sizes["y"], image.sizes["x"]):
        return image
    if known:
        raise _line(image, file)
    if not 2 <= len(shape) <= len(AXES):
        raise AxesError(f"{file} has shape {shape}, expected 2 to 5 axes out of t, c, z, y, x; save it as an image")
    if any(map(is_foreign, dims)) or not any(map(is_unknown, dims)):
        hint = 'save the part that is an image, or name all axes by what they stand for, such as axes="tzyx"'
        raise AxesError(f"{file} has axes {_told(image)}, {_EXPECTED}; {hint}")
    guess = _guess(image)
    hint = f'if they are {guess}, give axes="{guess}"'
    raise AxesError(f"{file} has shape {shape} and does not say what its axes are, {_EXPECTED}; {hint}")


def _renamed(image: xr.DataArray, axes: str, file: str) -> xr.DataArray:
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        raise AxesError(f'axes="{axes}" is not an order of axes, expected y, x and some of t, c, z; try axes="zyx"')
    if [axis for axis in axes if axis in image.dims] == list(image.dims):  # libraries leave out those of length 1
        missing = {axis: 1 for axis in axes if axis not in image.dims}
        return with_coordinates(image.expand_dims(missing).transpose(*axes))
    if len(axes) != image.ndim:
        told = f"{image.ndim}, shape {image.shape}"
        raise AxesError(f'axes="{axes}" names {len(axes)} axes but {file} has {told}; name each one')
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


def _told(image: xr.DataArray) -> str:
    return ", ".join(f"{'unknown' if is_unknown(dim) else dim} {length}" for dim, length in image.sizes.items())


def _photograph(image: xr.DataArray, file: str) -> NotPhotonCountsError:
    count = image.sizes[SAMPLES]
    kind = "is an RGB photograph" if count == 3 else f"holds {count} samples per pixel, as pictures in colours do"
    others = [dim for dim in image.dims if dim != SAMPLES]
    hint = "save one of its colours as an image"
    if "c" not in others and not any(map(is_foreign, others)) and image.ndim <= len(AXES):
        hint = f'if its colours are detector channels, name the axes, as axes="{_guess(image)}"'
    return NotPhotonCountsError(f"{file} {kind} (axes {_told(image)}), expected one channel of photon counts; {hint}")


def _line(image: xr.DataArray, file: str) -> AxesError:
    """Return the error for one row or column; what divides its length in its description may be its sizes."""
    size, axes = image.sizes["y"] * image.sizes["x"], "".join(str(dim) for dim in image.dims)
    said = [" ".join(part.split()) for part in re.split(r"[;\n\r]", image.attrs["metadata"].description)]
    numbers = {part: int(found[1]) for part in said if (found := re.search(r"(?:[=:]\s*|\s)(\d+)$", part))}
    sizes = [part for part, number in numbers.items() if 1 < number <= size and size % number == 0]
    told = f"; its description says {', '.join(sizes[:6])}" if sizes else ""
    return AxesError(
        f"{file} is {image.sizes['y']} x {image.sizes['x']} pixels, a line and no image, expected rows and columns"
        f'{told}; arrange its values as an image and save that, or give axes="{axes}" if it is a line'
    )


def choose_channel(image: xr.DataArray, channel: int | str | None, file: str) -> xr.DataArray:
    """Return one channel, by place from 0 (digits count as one) or by name, without its axis; all where None."""
    if channel is None:
        return image
    count, names = image.sizes.get("c", 1), [str(name) for name in image.attrs["metadata"].channels]
    asked = f"channel {channel} was asked for, but"
    if str(channel).lstrip("-").isdigit():
        places = [int(channel)]
        if not 0 <= places[0] < count:
            raise AxesError(f"{asked} {file} has {count} (counted from 0); choose 0 to {count - 1}")
    else:
        places = [place for place, name in enumerate(names) if name == channel]
        places = places or [place for place, name in enumerate(names) if name.lower() == str(channel).lower()]
    if len(places) != 1:
        known = f"its channels are {', '.join(names)}" if names else f"its {count} have no names"
        have = f"{len(places) or 'none'} in {file} has that name; {known}"
        raise AxesError(f"{asked} {have}; choose by number, such as channel=0")
    return image.isel(c=places[0]) if "c" in image.dims else image


def frames_of(time: int | str, count: int, file: str) -> int | slice:
    """Return a frame by its number (from the end below 0), or a range such as ``0:50``, ``10:`` or ``::2``."""
    text = str(time).strip()
    if re.fullmatch(r"-?\d+", text):
        number = int(text) + (count if int(text) < 0 else 0)
        if 0 <= number < count:
            return number
        raise AxesError(f"frame {text} was asked for, but {file} has {count} (counted from 0); choose 0 to {count - 1}")
    match = _RANGE.fullmatch(text)
    if match is None or match[3] == "0":
        raise AxesError(f'time="{text}" is no frame and no range of frames, expected such as 3, "0:50", "10:" or "::2"')
    chosen = range(count)[slice(*(None if part is None else int(part) for part in match.groups()))]
    if not chosen:
        raise AxesError(f'time="{text}" holds no frame of {file}, which has {count}; choose from "0:{count}"')
    return slice(chosen.start, chosen[-1] + 1, chosen.step)


def choose_frames(image: xr.DataArray, time: int | str | None, file: str) -> xr.DataArray:
    """Return frames, see :func:`frames_of`, all of them where None; planes that the file lacks are refused."""
    chosen = image
    if time is not None:
        frames = frames_of(time, image.sizes.get("t", 1), file)
        chosen = image.isel(t=frames) if "t" in image.dims else image
        if isinstance(frames, int):
            chosen = chosen.drop_vars("t", errors="ignore")
        elif "t" in chosen.coords:
            chosen.coords["t"].attrs["step"] *= frames.step or 1
    if STORED in chosen.coords and not bool(chosen.coords[STORED].all()):
        raise _incomplete(image, file)
    return chosen.drop_vars(STORED, errors="ignore")


def _incomplete(image: xr.DataArray, file: str) -> UnreadableImageError:
    """Return the error for an image of which planes are missing, with what there is of it and how to read that."""
    stored = image.coords[STORED]
    least = "at least " if stored.attrs[OPEN_ENDED] else ""
    ways = [("t", "frames", 'them with time="{0}:{1}"'), ("c", "channels", "it with channel={0}")]
    if stored.ndim == 1 and image.ndim == 3:
        ways.append((str(stored.dims[0]), "planes", 'them with axes="tyx" and time="{0}:{1}"'))
    for axis, kind, way in ways:
        whole = stored.all([dim for dim in stored.dims if dim != axis]).values if axis in stored.dims else np.array([])
        if whole.any() and not whole.all():
            first = int(np.argmax(whole))
            last = first + int(np.argmin([*whole[first:], False]))
            told = f"{file} holds {int(whole.sum())} of {least}{whole.size} {kind}"
            return UnreadableImageError(f"{told}; read {way.format(first, last)}, or copy the file again")
    told = f"it holds {int(stored.sum())} of {least}{stored.size} planes"
    return UnreadableImageError(f"{file} is cut: {told}; copy or export it again")
