"""Volumes larger than memory: block by block from a file into an OME-Zarr, on one machine or many."""

import pickle
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import psutil

from gap_bioimage import errors
from gap_bioimage.config import SamplingConfig
from gap_bioimage.errors import ConfigError, OutputError
from gap_bioimage.inference.blockwise import Job, Volume
from gap_bioimage.inference.files import check_summed
from gap_bioimage.inference.preparation import Layout, check_whole
from gap_bioimage.inference.sampling import Draws
from gap_bioimage.io import check_output
from gap_bioimage.io.blocks import Index, VolumeStatus, volume_status
from gap_bioimage.io.read import open_volume
from gap_bioimage.model import CameraLike, Model, check_model


def denoise_volume(
    model: Model,
    image: Path | str,
    out: Path | str,
    *,
    selection: Mapping[str, Any] | None = None,
    sum_frames: int | None = None,
    n_samples: int | None = None,
    seed: int = 0,
    settings: SamplingConfig | None = None,
    planes: bool = False,
    camera: CameraLike = "model",
    time_as_z: bool = False,
    separate_channels: bool = False,
    tile_px: Sequence[int] | None = None,
    halo_px: Sequence[int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    block_px: Sequence[int] | None = None,
    version: Literal["0.4", "0.5"] = "0.5",
    part: tuple[int, int] = (1, 1),
    scheduler: str | None = None,
    verify: bool = False,
    on_block: Callable[[int, int], None] | None = None,
) -> VolumeStatus:
    """Denoise an image of any size into an OME-Zarr, block by block; the same call resumes after an interruption.

    For anchored networks the result equals that of ``denoise``; plain networks conserve photons in a box around each
    pixel. If a block and its surroundings hold no photons, the result is 0.

    Parameters
    ----------
    image, selection, sum_frames
        A file that ``read_photons`` reads, or a folder of planes (z); its ``axes``, ``channel``, ``time``, ``series``
        and ``level``; how many one-bit frames to sum.
    out
        A name that ends in ``.zarr``. The store can be opened while it is being filled.
    n_samples, seed, settings
        Draw posterior samples as ``sample`` does, and write their mean and standard deviation to ``out`` with ``_mean``
        and ``_std`` before its suffix. Single samples are not kept: they would have seams between blocks.
    model, planes, camera, time_as_z, separate_channels, tile_px, halo_px, device, precision, batch
        As for ``denoise`` and ``sample``.
    block_px, version
        Pixels per spatial axis that are stored at once: a shard in OME-Zarr 0.5, several chunks in 0.4.
    part
        (i, n): do only the i-th of n parts, counted from 1. All parts are about equal in size.
    scheduler
        Address of a dask scheduler whose workers compute the blocks. They must see the same files.
    verify, on_block
        Recompute damaged blocks; called with (voxels done, voxels to do) of this call.

    Returns
    -------
    VolumeStatus
        The finished blocks: all of them, unless other parts are still in progress.

    Raises
    ------
    OutputError, ConfigError
        If the result cannot be written, or was begun with other settings; if the part or the scheduler is impossible.
        Other errors are those of ``denoise`` and ``sample``; so are the warnings, one of each kind, at the end.
    """
    check_model(model)
    check_summed(model, sum_frames)
    _check_arguments(image, out := Path(out), part, version)
    draws = None if n_samples is None else Draws(n_samples, seed, settings or SamplingConfig(), batch)
    layout = Layout(None, planes, camera, time_as_z, separate_channels)
    selected = {name: value for name, value in (selection or {}).items() if value is not None}
    options = (tile_px, halo_px, device, block_px, version, precision)
    volume = _started(Job(model.source, Path(image), out, layout, selected, sum_frames, draws, *options), model, verify)
    _fill(volume, part, scheduler, on_block)
    if all(volume_status(result.path).complete for result in volume.results):
        raised = [result.finish(alone=part[1] == 1) for result in volume.results]
        for kind, text in raised[0]:
            warnings.warn(text, getattr(errors, kind), stacklevel=2)
    return volume_status(volume.results[0].path)


def _started(job: Job, model: Model, verify: bool) -> Volume:
    try:
        volume = Volume(job, model)
        volume.start()
    except ImportError as error:
        raise OutputError(f"{job.out} needs {error.name}; type pip install 'gap-bioimage[zarr]'") from None
    if verify:
        for result in volume.results:
            result.discard_damaged()
    return volume


def _fill(
    volume: Volume, part: tuple[int, int], scheduler: str | None, on_block: Callable[[int, int], None] | None
) -> None:
    places = volume.unfinished(part)
    total, done = sum(map(volume.voxels, places)), 0
    for place in _locally(volume, places) if scheduler is None else _on_cluster(scheduler, volume, places):
        done += volume.voxels(place)
        if on_block is not None:
            on_block(done, total)
    for result in volume.results:
        result.write_missing_averages()


def _check_arguments(image: Path | str, out: Path, part: tuple[int, int], version: str) -> None:
    if not isinstance(image, (str, Path)):
        raise ConfigError(f"the image is of type {type(image).__name__}, expected the path of a file or folder")
    if version not in ("0.4", "0.5"):
        raise ConfigError(f"version is {version!r}, expected '0.4' or '0.5' of OME-Zarr")
    number, parts = (check_whole(f"{name} of part (i, n)", value, 1) for name, value in zip("in", part, strict=True))
    if number > parts:
        raise ConfigError(f"part is {number} of {parts}, expected 1 to {parts}")
    if out.suffix.lower() != ".zarr":
        raise OutputError(f"{out} does not end in .zarr, expected an OME-Zarr for a volume; add .ome.zarr to its name")
    check_output(out, Path(image))


def exceeds_memory(image: Path, selection: Mapping[str, Any], copies: int) -> bool:
    """Return whether ``copies`` of a result, with the memory to compute them, exceed the free memory."""
    return open_volume(image, **selection).size * 4 * (copies + 3) > psutil.virtual_memory().available


def _locally(volume: Volume, places: Sequence[Index]) -> Iterator[Index]:
    """Compute blocks in this process, and read the next and write the previous one meanwhile."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reads = (reader.submit(volume.read_for, place) for place in places)
        reading, writing = deque(islice(reads, 1)), deque[tuple[Index, Future[None]]]()
        for place in places:
            counts = reading.popleft().result()
            reading.extend(islice(reads, 1))
            writing.append((place, writer.submit(volume.write, place, volume.make(place, counts))))
            while len(writing) > 1 or (writing and place == places[-1]):
                written, future = writing.popleft()
                future.result()
                yield written


def _on_cluster(scheduler: str, volume: Volume, places: Sequence[Index]) -> Iterator[Index]:
    """Compute blocks on the workers of a scheduler; the finished blocks of a worker that dies remain."""
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise ConfigError("dask is not installed; type pip install 'gap-bioimage[cluster]'") from None
    try:
        client = Client(scheduler)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ConfigError(f"no scheduler answers at {scheduler!r} ({error}); start one, or give none") from None
    pickled = pickle.dumps(replace(volume.job, halo_px=volume.network.halo_px))  # the halo is measured once
    with client:
        try:
            job = client.submit(bytes, pickled, pure=False)  # camera maps are too large to be sent with every block
            tasks = client.map(_on_worker, places, job=job, pure=False)
            for task in as_completed(tasks):  # type: ignore[no-untyped-call]
                yield task.result()
        except KilledWorker as error:
            problem = f"several workers died while computing one block ({' '.join(str(error).split())[:200]})"
            raise ConfigError(f"{problem}; give them more memory, or smaller tiles") from None


def _on_worker(place: Index, job: bytes) -> Index:
    """Compute a block, unless a worker that died afterwards has finished it."""
    volume = _worker_volume(job)
    if not all(result.is_done(0, place) for result in volume.results):
        volume.write(place, volume.make(place, volume.read_for(place)))
    return place


@lru_cache(1)
def _worker_volume(job: bytes) -> Volume:
    """Return a volume with its model, loaded once per process; refuse files other than those its store began with."""
    volume = Volume(pickle.loads(job))  # noqa: S301  # from the scheduler that started this worker
    volume.start()
    return volume
