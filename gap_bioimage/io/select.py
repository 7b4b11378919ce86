"""Choose an image of a file, name its axes, and choose channels and frames; all of it lazily, by ``isel``."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from gap_bioimage.errors import AxesError, GapWarning, NotPhotonCountsError, UnreadableImageError
from gap_bioimage.io.image import AXES, SAMPLES, STORED, Stored, is_unknown, with_coordinates

_MAX_LISTED = 8
_MAX_CHANNELS = 4  # along an axis that is guessed to be c
_SLAB = 8  # times that z and y are longer than x, above which x is rather z
_RANGE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(\d+)?)?")


def choose_image(path: Path, images: Sequence[Stored], series: int | str | None, level: int | None) -> xr.DataArray:
    """Return an image of a file at a level of its pyramid, by default the full resolution."""
    present, missing = [image for image in images if image.levels], [image.name for image in images if not image.levels]
    listing = ", ".join(
        f"{number} {f'{image.name!r} ' if image.name else ''}{next(iter(image.levels.values())).shape}"
        for number, image in enumerate(present[:_MAX_LISTED])
    )
    listing += f", and {len(present) - _MAX_LISTED} more" if len(present) > _MAX_LISTED else ""
    listing += f" (listed but missing: {', '.join(missing[:_MAX_LISTED])})" if any(missing) else ""
    if not present:
        raise UnreadableImageError(f"{path} holds no image{listing}, expected at least one; choose another file")
    if series is None and len(present) > 1:
        raise UnreadableImageError(f"{path} holds {len(present)} images: {listing}; choose one, such as series=0")
    wanted = "0" if series is None else str(series)
    named = [image for image in present if image.name.strip("/") == wanted.strip("/")]
    matches = present[int(wanted) :][:1] if wanted.isdecimal() else named
    if len(matches) != 1:
        raise AxesError(f"series {series} is not in {path.name}, which holds {listing}; choose one, such as series=0")
    name, levels = matches[0].name, matches[0].levels
    if (level or 0) not in levels:
        shapes = ", ".join(f"{number} {image.shape}" for number, image in levels.items())
        raise AxesError(f"level {level or 0} is not in {path.name}, which has {shapes}; choose one of these")
    return levels[level or 0].assign_attrs({"series": name} if name else {})


def name_axes(image: xr.DataArray, axes: str | None, file: str) -> xr.DataArray:
    """Return an image with dims out of ``t c z y x``: those given in ``axes``, else those of the file."""
    if axes is not None:
        return _renamed(image, axes.lower(), file)
    known, meta = {"y", "x"} <= set(image.dims) <= set(AXES), image.attrs["metadata"]
    if known and 1 not in (image.sizes["y"], image.sizes["x"]):
        return image
    samples, guess = image.sizes.get(SAMPLES, 0), _guess(image)
    sizes = ", ".join(f"{'' if is_unknown(dim) else f'{dim} '}{length}" for dim, length in image.sizes.items())
    movie = f', for a movie axes="t{guess[1:]}"' if guess[:1] == "z" != image.dims[0] and "t" not in guess else ""
    strange = ", ".join(str(dim) for dim in image.dims if dim not in tuple(AXES) and not is_unknown(dim))
    hint = f"save the sum or a part along {strange}" if strange else "save only the part of it that is an image"
    hint = f'if they are {guess}, give axes="{guess}"{movie}' if guess else hint
    if samples:
        problem = f"is {'an RGB' if samples == 3 else 'a colour'} photograph, with {samples} samples per pixel"
        raise NotPhotonCountsError(f"{file} {problem} ({sizes}), expected detector channels with counts; {hint}")
    if known:
        numbers = _described_sizes(meta.description, image.sizes["y"] * image.sizes["x"])
        raise AxesError(f"{file} is a line ({sizes}), expected rows and columns{numbers}; arrange it as an image")
    if STORED in image.coords:
        raise _incomplete(image, file)
    problem = meta.problem or (f"has the axis {strange}" if strange else "does not name its axes")
    raise AxesError(f"{file} {problem} ({sizes}), expected axes out of t, c, z, y, x; {hint}")


def _renamed(image: xr.DataArray, axes: str, file: str) -> xr.DataArray:
    if not {"y", "x"} <= set(axes) <= set(AXES) or len(set(axes)) < len(axes):
        raise AxesError(f'axes="{axes}" is not an order of axes, expected y, x and some of t, c, z; try axes="zyx"')
    if [axis for axis in axes if axis in image.dims] == list(image.dims):  # libraries drop axes of length 1
        missing = {axis: 1 for axis in axes if axis not in image.dims}
        return with_coordinates(image.expand_dims(missing).transpose(*axes))
    if len(axes) != image.ndim:
        raise AxesError(f'axes="{axes}" names {len(axes)} axes, {file} has {image.ndim}: {image.shape}; name each one')
    renamed = image.drop_vars([name for name in image.coords if name != STORED])
    renamed = renamed.rename(dict(zip(image.dims, axes, strict=True)))
    if axes.endswith("zyx") and (guess := _guess(image)).endswith("yxz"):
        problem = f'axes="{axes}" makes {file} {image.shape} a stack of narrow planes'
        warnings.warn(f'{problem}; if its planes are stored last, give axes="{guess}"', GapWarning, stacklevel=5)
    return with_coordinates(renamed)


def _guess(image: xr.DataArray) -> str:
    """Guess the axes that a file does not name; "" if it has other axes or there is no fitting order."""
    known = ["c" if dim == SAMPLES else "" if is_unknown(dim) else str(dim) for dim in image.dims]
    missing = [axis for axis in "xy" if axis not in known]
    fits = 2 <= len(known) <= len(AXES) and set(known) <= {"", *AXES} and known.count("c") < 2
    if not fits or known.count("") < len(missing):
        return ""
    if known == [""] * len(AXES):
        return AXES
    free = [number for number, name in enumerate(known) if not name]
    short = [number for number in free if image.shape[number] <= _MAX_CHANNELS]
    if len(missing) == 2 and len(free) > 2 and short == free[-1:] and "c" not in known:  # channels are stored last
        known[free.pop()] = "c"
    lengths = [image.shape[number] for number in free]
    if len(missing) == 2 and len(free) > 2 and "z" not in known and _SLAB * lengths[-1] <= min(lengths[-3:-1]):
        known[free.pop()] = "z"  # planes are
    for axis in missing:
        known[free.pop()] = axis
    for number, length in enumerate(image.shape):
        order = "czt" if length <= 3 else "ztc"
        known[number] = known[number] or next(axis for axis in order if axis not in known)
    return "".join(known)


def _described_sizes(description: str, size: int) -> str:
    entries = re.findall(r"([^\s;]+ *[=: ] *(\d+)) *(?:[;\n\r]|$)", description)
    sizes = [entry for entry, number in entries if 1 < int(number) <= size and size % int(number) == 0]
    return f"; its description contains {', '.join(sizes[:6])}" if sizes else ""


def choose_channel(image: xr.DataArray, channel: int | str | None, file: str) -> xr.DataArray:
    """Return one channel, by index from 0 (also as digits) or by name, without its axis; all of them for None."""
    if channel is None:
        return image
    count, names = image.sizes.get("c", 1), [str(name) for name in image.attrs["metadata"].channels]
    if str(channel).isdecimal():
        matches = list(range(count))[int(channel) :][:1]
    else:
        matches = [number for number, name in enumerate(names) if name == channel]
        matches = matches or [number for number, name in enumerate(names) if name.lower() == str(channel).lower()]
    if len(matches) != 1:
        listing = f"{count} ({', '.join(names) if any(names) else 'without names'})"
        raise AxesError(f"channel {channel} is not in {file}, which has {listing}; choose by index or name (channel=0)")
    return image.isel(c=matches[0]) if "c" in image.dims else image


def frames_of(time: int | str, count: int, file: str) -> int | slice:
    """Return the index of a frame, or the slice for a range such as ``0:50``, ``10:`` or ``::2``, as in Python."""
    text, frames = str(time).strip(), range(count)
    if re.fullmatch(r"-?\d+", text) and -count <= int(text) < count:
        return frames[int(text)]
    match = _RANGE.fullmatch(text)
    cut = match and slice(*(None if part is None else int(part) for part in match.groups()))
    if cut and cut.step != 0 and (chosen := frames[cut]):
        return slice(chosen.start, chosen[-1] + 1, chosen.step)
    problem = f'time="{text}" is not a frame or a range of frames of {file}, which has frames 0 to {count - 1}'
    raise AxesError(f'{problem}; choose one such as 3, "0:50", "10:" or "::2"')


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
        full = stored.all([dim for dim in stored.dims if dim != axis]).values if axis in stored.dims else np.array([])
        if full.any() and not full.all() and (axis in ("t", "c") or image.ndim == 3):
            first = int(np.argmax(full))
            last = first + int(np.argmin([*full[first:], False]))
            kind = {"t": "frames", "c": "channels"}.get(str(axis), "planes")
            hint = f"channel={first}" if axis == "c" else f'time="{first}:{last}"'
            hint += "" if axis in ("t", "c") else ' and axes="tyx"'
            count, them = int(full.sum()), "them" if last - first == full.sum() else "some"
            problem = f"{file} holds {count} of {full.size} {kind}"
            return UnreadableImageError(f"{problem}; read {them} with {hint}, or copy the file or its set again")
    return UnreadableImageError(f"{file} holds {int(stored.sum())} of {stored.size} planes; copy or export it again")
