"""An OME-Zarr that any number of processes fill block by block, at any time and in any order.

A block is one shard, or in OME-Zarr 0.4 several whole chunks, so that no two blocks share a file. The files of a block
appear by rename, then a record beside them with their hash. A block is done once it is recorded, never half done.
"""

import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from gap_bioimage.config import differences
from gap_bioimage.errors import OutputError
from gap_bioimage.files import output_errors, replacing
from gap_bioimage.io.ome_zarr import Design, halved, is_zarr

Index = tuple[int, ...]
_RECORDS = ".done"  # subfolder of each level, ignored by readers
_KEY = "gap_bioimage"  # attribute of the store with the settings and the number of blocks per level
_HINT = "free some space, or check its permissions; the same command resumes from the blocks that are done"


@dataclass(frozen=True)
class Blocks:
    """The blocks of all levels of a store; a level and an index along each axis identify a block."""

    path: Path
    design: Design

    def start(self, settings: Mapping[str, Any]) -> None:
        """Create the store if there is none; refuse one that was begun with other settings or by another program."""
        if not self.path.exists():
            blocks = [math.prod(self._grid(level)) for level in self._levels]
            attributes = self.design.attributes([[0.0, 1.0]] * self.design.sizes.get("c", 1), 1)
            temporary = self.path.with_name(f".{self.path.stem}.tmp-{secrets.token_hex(4)}.zarr")
            with output_errors(self.path, _HINT):
                try:
                    self.design.create(temporary, {**attributes, _KEY: {"settings": dict(settings), "blocks": blocks}})
                    os.rename(temporary, self.path)
                except OSError:
                    if not self.path.exists():  # another process was first
                        raise
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
        if not (begun := stored_settings(self.path)):
            raise OutputError(f"{self.path} already exists and holds something else; remove it or choose another name")
        if changed := differences(begun, json.loads(json.dumps(settings))):
            problem = f"{self.path} was begun with other settings ({'; '.join(changed.values())})"
            raise OutputError(f"{problem}; use the earlier settings to resume, or choose another name")

    @property
    def _levels(self) -> range:
        return range(len(self.design.factors))

    @cached_property
    def _shapes(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The shapes of each level and of its blocks, in pixels."""
        return [(self.design.shape(level), self.design.stored(level)[1]) for level in self._levels]

    def _grid(self, level: int) -> list[int]:
        return [-(-length // size) for length, size in zip(*self._shapes[level], strict=True)]

    def indices(self, level: int) -> Iterator[Index]:
        """Iterate over the blocks of a level."""
        return np.ndindex(*self._grid(level))

    def region(self, level: int, index: Index) -> dict[str, slice]:
        """Return the pixels of a block as a slice per axis."""
        along = zip(self.design.sizes, index, *self._shapes[level], strict=True)
        return {axis: slice(n * size, min(n * size + size, length)) for axis, n, length, size in along}

    def done(self, level: int) -> set[Index]:
        """Return the recorded blocks of a level."""
        return {tuple(map(int, name.split("."))) for name in _recorded(self.path, level)}

    def is_done(self, level: int, index: Index) -> bool:
        """Whether a block is recorded; the others are not listed."""
        return self._record(level, index).exists()

    def _record(self, level: int, index: Index) -> Path:
        return self.path / str(level) / _RECORDS / ".".join(map(str, index))

    def write_averages(self, index: Index) -> None:
        """Write the blocks of smaller levels for which this block of the full resolution was the last one missing."""
        for level, mean in self._averages(0, index):
            if self.is_done(level, mean):
                continue
            if not all(self.is_done(level - 1, i) for i in self._sources(level, mean)):
                break
            # two processes that finish at the same moment both write it, with the same bytes
            self.write(level, mean, self._averaged(level, mean))

    def write_missing_averages(self) -> None:
        """Write the blocks of smaller levels that killed processes left out, where all that they average is done."""
        for index in self.done(0):
            self.write_averages(index)

    def _ratios(self, level: int) -> list[int]:
        before, after = self.design.factors[level - 1 : level + 1]
        return [after.get(axis, 1) // before.get(axis, 1) for axis in self.design.sizes]

    def _averages(self, level: int, index: Index) -> Iterator[tuple[int, Index]]:
        """Yield the blocks of smaller levels that a block contributes to."""
        for smaller in self._levels[level + 1 :]:
            (_, before), (_, after) = self._shapes[smaller - 1 : smaller + 1]
            along = zip(index, before, self._ratios(smaller), after, strict=True)
            index = tuple(number * size // (ratio * larger) for number, size, ratio, larger in along)
            yield smaller, index

    def _sources(self, level: int, index: Index) -> Iterator[Index]:
        """Yield the blocks of the next larger level that a block averages."""
        along = zip(self.region(level, index).values(), self._ratios(level), *self._shapes[level - 1], strict=True)
        runs = (range(cut.start * ratio // size, -(-min(cut.stop * ratio, n) // size)) for cut, ratio, n, size in along)
        yield from itertools.product(*runs)

    def write(self, level: int, index: Index, values: NDArray[Any], warned: Sequence[Sequence[str]] = ()) -> None:
        """Write a block, then its record."""
        import zarr

        folder = self.path / str(level)
        temporary = folder / _RECORDS / f".tmp-{secrets.token_hex(4)}"
        with output_errors(self.path, _HINT):
            try:
                # a temporary array with the same chunks holds this block alone: nothing has to be read first
                temporary.mkdir(parents=True)
                name = "zarr.json" if (folder / "zarr.json").is_file() else ".zarray"
                metadata = json.loads((folder / name).read_bytes())
                (temporary / name).write_text(json.dumps({**metadata, "shape": values.shape}))
                zarr.open_array(str(temporary))[...] = values
                for written, stored in self._files(level, index):
                    (folder / stored).parent.mkdir(parents=True, exist_ok=True)
                    if (temporary / written).exists():
                        os.replace(temporary / written, folder / stored)
                    else:  # Zarr does not store chunks of zeros
                        (folder / stored).unlink(missing_ok=True)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            record = {"sha256": self._hash(level, index), "range": self._range(values), "warnings": warned}
            with replacing(self._record(level, index)) as file:
                file.write_text(json.dumps(record))

    def discard_damaged(self) -> None:
        """Delete the records of blocks whose files have changed, and of their averages, so that they are made again."""
        for level in self._levels:
            for index in self.done(level):
                if json.loads(self._record(level, index).read_text())["sha256"] != self._hash(level, index):
                    for block in ((level, index), *self._averages(level, index)):
                        self._record(*block).unlink(missing_ok=True)

    def _averaged(self, level: int, index: Index) -> NDArray[Any]:
        import zarr

        before, after = self.design.factors[level - 1 : level + 1]
        source, cuts = zarr.open_array(str(self.path / str(level - 1)), mode="r"), self.region(level, index).values()
        averages = np.zeros([cut.stop - cut.start for cut in cuts], source.dtype)
        chunk = self.design.stored(level)[0]
        for start in itertools.product(*map(range, [0] * len(chunk), averages.shape, chunk)):  # to save memory
            part = tuple(slice(n, n + size) for n, size in zip(start, chunk, strict=True))
            along = zip(cuts, part, self._ratios(level), strict=True)
            read = tuple(
                slice((cut.start + inner.start) * ratio, min(cut.start + inner.stop, cut.stop) * ratio)
                for cut, inner, ratio in along
            )
            if (values := np.asarray(source[read])).any():
                averages[part] = halved(xr.DataArray(values, dims=list(self.design.sizes)), before, after).values
        return averages

    def finish(self, *, alone: bool) -> list[tuple[str, str]]:
        """List all levels and the range of values in the metadata; return the warnings of all blocks, one per kind.

        With ``alone``, no other process is writing, and temporary files of killed ones are removed.
        """
        import zarr

        ranges, warned = np.zeros((self.design.sizes.get("c", 1), 2)), dict[str, list[str]]()
        for name in _recorded(self.path, 0):
            record = json.loads((self.path / "0" / _RECORDS / name).read_text())
            low, high = np.transpose(record["range"])
            ranges = np.stack([np.minimum(ranges[:, 0], low), np.maximum(ranges[:, 1], high)], -1)
            for kind, text in record["warnings"]:
                warned.setdefault(kind, []).append(text)
        with output_errors(self.path, _HINT):
            zarr.open_group(str(self.path)).attrs.update(self.design.attributes(ranges.tolist()))
            for temporary in self.path.glob(f"*/{_RECORDS}/.*tmp-*") if alone else ():
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        return [
            (kind, texts[0] + (f" (and similarly in {len(texts) - 1} other blocks)" if len(texts) > 1 else ""))
            for kind, texts in warned.items()
        ]

    def _files(self, level: int, index: Index) -> Iterator[tuple[str, str]]:
        """Yield the names of a block's files: in an array of this block alone, and in the store."""
        import zarr

        array = zarr.open_array(str(self.path / str(level)), mode="r")
        unit, name = array.shards or array.chunks, array.metadata.encode_chunk_key
        region = self.region(level, index).values()
        counts = [-(-(cut.stop - cut.start) // size) for cut, size in zip(region, unit, strict=True)]
        first = [cut.start // size for cut, size in zip(region, unit, strict=True)]
        for cell in np.ndindex(*counts):
            yield name(cell), name(tuple(start + number for start, number in zip(first, cell, strict=True)))

    def _hash(self, level: int, index: Index) -> str:
        digest = hashlib.sha256()
        for _, name in self._files(level, index):
            path = self.path / str(level) / name
            content = path.read_bytes() if path.exists() else None
            digest.update(f"{name} {None if content is None else len(content)}\n".encode() + (content or b""))
        return digest.hexdigest()

    def _range(self, values: NDArray[Any]) -> list[list[float]]:
        """Return the smallest and the largest value of each channel and 0."""
        axes = tuple(number for number, axis in enumerate(self.design.sizes) if axis != "c")
        ends = values.min(axes, initial=0), values.max(axes, initial=0)
        return np.stack(ends, -1).astype(float).reshape(-1, 2).tolist()


@dataclass(frozen=True)
class VolumeStatus:
    """Progress on a volume: blocks done and in total, of the full resolution and of the smaller levels."""

    done: int
    total: int
    done_smaller: int
    total_smaller: int

    @property
    def complete(self) -> bool:
        """Whether all blocks are done."""
        return (self.done, self.done_smaller) == (self.total, self.total_smaller)

    def __str__(self) -> str:
        smaller = f", and {self.done_smaller} of {self.total_smaller} in smaller levels" if self.total_smaller else ""
        return f"{self.done} of {self.total} blocks are done{smaller}"


def volume_status(out: Path | str) -> VolumeStatus:
    """Return the progress on a volume, whichever processes are working on it.

    Parameters
    ----------
    out
        The OME-Zarr that :func:`denoise_volume` writes.

    Raises
    ------
    OutputError
        If ``out`` is not such a store.
    """
    out = Path(out)
    if (blocks := _entry(out).get("blocks")) is None:
        raise OutputError(f"{out} is not a volume that was denoised here, expected one; denoise into it first")
    done = [len(_recorded(out, level)) for level in range(len(blocks))]
    return VolumeStatus(done[0], blocks[0], sum(done[1:]), sum(blocks[1:]))


def stored_settings(path: Path) -> dict[str, Any]:
    """Return the settings with which a store was begun; empty if it does not exist or is another program's."""
    return dict(_entry(path).get("settings", {}))


def _recorded(path: Path, level: int) -> list[str]:
    folder = path / str(level) / _RECORDS
    return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.is_dir() else []


def _entry(path: Path) -> dict[str, Any]:
    if not is_zarr(path):
        return {}
    import zarr

    attributes: dict[str, Any] = zarr.open(str(path), mode="r").attrs.asdict()
    return dict(attributes.get(_KEY, {}))
