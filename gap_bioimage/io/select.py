"""Choose an image of a file, name its axes, and choose channels and frames; all of it lazily, by ``isel``."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from gap_bioimage.errors import AxesError, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io.image import AXES, SAMPLES, STORED, Stored, is_unknown, with_coordinates

_SHOWN = 8
_FEW = 4  # channels
_RANGE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(\d+)?)?")


def choose_image(path: Path, images: Sequence[Stored], series: int | str | None, level: int | None) -> xr.DataArray:
    """Return an image of a file at a level of its pyramid, by default the full resolution."""
    whole, absent = [each for each in images if each.levels], [each.name for each in images if not each.levels]
    told = ", ".join(
        f"{place} {f'{image.name!r} ' if image.name else ''}{next(iter(image.levels.values())).shape}"
        for place, image in enumerate(whole[:_SHOWN])
    )
    told += f", and {len(whole) - _SHOWN} more" if len(whole) > _SHOWN else ""
    told += f" (and lists, but lacks, {', '.join(absent[:_SHOWN])})" if any(absent) else ""
    if not whole:
        raise UnreadableImageError(f"{path} holds no image{told}, expected at least one; name another file")
    if series is None and len(whole) > 1:
        raise UnreadableImageError(f"{path} holds {len(whole)} images: {told}; choose one, such as series=0")
    wanted = "0" if series is None else str(series)
    named = [image for image in whole if image.name.strip("/") == wanted.strip("/")]
    found = whole[int(wanted) :][:1] if wanted.isdecimal() else named
    if len(found) != 1:
        raise AxesError(f"series {series} was asked for, but {path.name} holds {told}; choose one, as series=0")
    name, levels = found[0].name, found[0].levels
    if (level or 0) not in levels:
        known = ", ".join(f"{number} {image.shape}" for number, image in levels.items())
        raise AxesError(f"level {level or 0} was asked for, but {path.name} has {known}; choose one of these")
    return levels[level or 0].assign_attrs({"series": name} if name else {})


def name_axes(image: xr.DataArray, axes: str | None, file: str) -> xr.DataArray:
    """Return an image with dims out of ``t c z y x``: those given in ``axes``, else those of the file."""
    if axes is not None:
        return _renamed(image, axes.lower(), file)
    known, meta = {"y", "x"} <= set(image.dims) <= set(AXES), image.attrs["metadata"]
    if known and 1 not in (image.sizes["y"], image.sizes["x"]):
        return image
    samples, guess = image.sizes.get(SAMPLES, 0), _guess(image)
    told = ", ".join(f"{'' if is_unknown(dim) else f'{dim} '}{length}" for dim, length in image.sizes.items())
    hint = f'if they are {guess}, give axes="{guess}"' if guess else "save the part of it that is an image"
    if samples:
        why = f"is {'an RGB' if samples == 3 else 'a colour'} photograph, with {samples} samples per pixel"
        raise NotPhotonCountsError(f"{file} {why} ({told}), expected detector channels with counts; {hint}")
    if known:
        said = _sizes_said(meta.description, image.sizes["y"] * image.sizes["x"])
        raise AxesError(f"{file} is a line ({told}), expected rows and columns{said}; arrange it as an image")
    if STORED in image.coords:
        raise _incomplete(image, file)
    why = meta.problem or "does not say what its axes are"
    raise AxesError(f"{file} {why} ({told}), expected axes out of t, c, z, y, x; {hint}")


def _renamed(image: xr.DataArray, axes: str, file: str) -> xr.DataArray:
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        raise AxesError(f'axes="{axes}" is not an order of axes, expected y, x and some of t, c, z; try axes="zyx"')
    if [axis for axis in axes if axis in image.dims] == list(image.dims):  # libraries drop axes of length 1
        missing = {axis: 1 for axis in axes if axis not in image.dims}
        return with_coordinates(image.expand_dims(missing).transpose(*axes))
    if len(axes) != image.ndim:
        raise AxesError(f'axes="{axes}" names {len(axes)} axes, {file} has {image.ndim}: {image.shape}; name each one')
    bare = image.drop_vars([name for name in image.coords if name != STORED])
    return with_coordinates(bare.rename(dict(zip(image.dims, axes, strict=True))))


def _guess(image: xr.DataArray) -> str:
    """Guess the axes that a file does not name; "" if it has other axes or there is no fitting order."""
    known = ["c" if dim == SAMPLES else "" if is_unknown(dim) else str(dim) for dim in image.dims]
    missing = [axis for axis in "xy" if axis not in known]
    fits = 2 <= len(known) <= len(AXES) and set(known) <= {"", *AXES} and known.count("c") < 2
    if not fits or known.count("") < len(missing):
        return ""
    if known == [""] * len(AXES):
        return AXES
    places = [place for place, name in enumerate(known) if not name]
    few = [place for place in places if image.shape[place] <= _FEW]
    if len(missing) == 2 and len(places) > 2 and few == places[-1:] and "c" not in known:  # channels are stored last
        known[places.pop()] = "c"
    for axis in missing:
        known[places.pop()] = axis
    for place, length in enumerate(image.shape):
        order = "czt" if length <= 3 else "ztc"
        known[place] = known[place] or next(axis for axis in order if axis not in known)
    return "".join(known)


def _sizes_said(description: str, size: int) -> str:
    said = re.findall(r"([^\s;]+ *[=: ] *(\d+)) *(?:[;\n\r]|$)", description)
    sizes = [part for part, number in said if 1 < int(number) <= size and size % int(number) == 0]
    return f"; its description says {', '.join(sizes[:6])}" if sizes else ""


def choose_channel(image: xr.DataArray, channel: int | str | None, file: str) -> xr.DataArray:
    """Return one channel, by index from 0 (also as digits) or by name, without its axis; all of them for None."""
    if channel is None:
        return image
    count, names = image.sizes.get("c", 1), [str(name) for name in image.attrs["metadata"].channels]
    if str(channel).isdecimal():
        places = list(range(count))[int(channel) :][:1]
    else:
        places = [place for place, name in enumerate(names) if name == channel]
        places = places or [place for place, name in enumerate(names) if name.lower() == str(channel).lower()]
    if len(places) != 1:
        told = f"channel {channel} was asked for, but {file} has {count} ({', '.join(names) or 'without names'})"
        raise AxesError(f"{told}; choose by number from 0 up, such as channel=0")
    return image.isel(c=places[0]) if "c" in image.dims else image


def frames_of(time: int | str, count: int, file: str) -> int | slice:
    """Return the index of a frame, or the slice for a range such as ``0:50``, ``10:`` or ``::2``, as in Python."""
    text, every = str(time).strip(), range(count)
    if re.fullmatch(r"-?\d+", text) and -count <= int(text) < count:
        return every[int(text)]
    match = _RANGE.fullmatch(text)
    cut = match and slice(*(None if part is None else int(part) for part in match.groups()))
    if cut and cut.step != 0 and (chosen := every[cut]):
        return slice(chosen.start, chosen[-1] + 1, chosen.step)
    told = f'time="{text}" is no frame and no range of frames of {file}, which has {count} (counted from 0)'
    raise AxesError(f'{told}; choose such as 3, "0:50", "10:" or "::2"')


def choose_frames(image: xr.DataArray, time: int | str | None, file: str) -> xr.DataArray:
    """Return the frames that :func:`frames_of` reads from ``time``, all for None; refuse planes that the file lacks."""
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
    """Return the error for an image with missing planes: how many the file holds, and how to read those."""
    stored = image.coords[STORED]
    for axis in ("t", "c", *stored.dims[:1]):
        whole = stored.all([dim for dim in stored.dims if dim != axis]).values if axis in stored.dims else np.array([])
        if whole.any() and not whole.all() and (axis in ("t", "c") or image.ndim == 3):
            first = int(np.argmax(whole))
            last = first + int(np.argmin([*whole[first:], False]))
            kind = {"t": "frames", "c": "channels"}.get(str(axis), "planes")
            way = f"channel={first}" if axis == "c" else f'time="{first}:{last}"'
            way += "" if axis in ("t", "c") else ' and axes="tyx"'
            told = f"{file} holds {int(whole.sum())} of {whole.size} {kind}; read them with {way}"
            return UnreadableImageError(f"{told}, or copy it again")
    return UnreadableImageError(f"{file} holds {int(stored.sum())} of {stored.size} planes; copy or export it again")
