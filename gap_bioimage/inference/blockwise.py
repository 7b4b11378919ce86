"""Compute one block of a volume's result from the counts in the block and its surroundings.

No block needs the result of another: the rates of anchored networks have the scale of the counts, and plain networks
conserve photons in a box around each pixel.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from gap_bioimage.camera.camera import Detector
from gap_bioimage.counts import check_dim, check_photon_counts
from gap_bioimage.errors import AxesError, GapWarning
from gap_bioimage.filters import NEIGHBOURS_REACH_PX
from gap_bioimage.inference.denoising import parts_of, sum_of_parts, warn_of_parts
from gap_bioimage.inference.files import beside, mean_and_std
from gap_bioimage.inference.preparation import Layout, Prepared, prepare, warn_of_single_frames
from gap_bioimage.inference.reach import conservation_box_px, round_up
from gap_bioimage.inference.resume import fingerprint
from gap_bioimage.inference.sampling import Drawing, Draws
from gap_bioimage.inference.tiling import TiledNetwork, at, best_device, check_sizes, tiles, within
from gap_bioimage.io import sum_frames
from gap_bioimage.io.blocks import Blocks, Index, stored_settings
from gap_bioimage.io.image import AXES, metadata_of, middle_slice, time_as_z, warn_of_leftover_frames
from gap_bioimage.io.ome_zarr import CHUNK, Design
from gap_bioimage.io.read import loaded, open_volume
from gap_bioimage.model import Model, load_model

_BLOCK_PX = {2: {"z": 16, "y": 1024, "x": 1024}, 3: {"z": 64, "y": 512, "x": 512}}
_CPU_BYTES, _GPU_BYTES = 1e9, 16e9  # per tile; on the CPU a process then takes less than 2 GiB
_CHECKED_PX = {"t": 4, "z": 4, "y": 512, "x": 512}  # the middle of a volume, enough to recognise counts
_PIECE_PX = 128  # side of the pieces in which photons are conserved, without the reach of the boxes

Region = dict[str, slice]
BlockResult = tuple[list[NDArray[np.float32]], list[tuple[str, str]]]
"""The values of a block in each result, and the warnings raised: names of categories with texts."""


@dataclass(frozen=True)
class Job:
    """The settings of a run, in a form that can be sent to other machines that see the same files."""

    model: Path
    image: Path
    out: Path
    layout: Layout
    selection: Mapping[str, Any] = field(default_factory=dict)
    n_frames: int | None = None  # one-bit frames to sum
    draws: Draws | None = None  # for mean and standard deviation of samples
    tile_px: Sequence[int] | None = None
    halo_px: Sequence[int] | None = None
    device: str = "auto"
    block_px: Sequence[int] | None = None
    version: str = "0.5"
    precision: str = "auto"


class Volume:
    """A volume, its results, and the computation of single blocks."""

    def __init__(self, job: Job, model: Model | None = None) -> None:
        self.job, self.model = job, load_model(job.model) if model is None else model
        self.paths = {"denoised": job.out} if job.draws is None else {k: beside(job.out, k) for k in ("mean", "std")}
        self.earlier = stored_settings(next(iter(self.paths.values())))  # an interrupted run keeps its blocks and halo
        self.detector = self.model.camera_for(job.layout.camera)
        self.moved = self.detector is not None and self.detector.moved
        memory = _GPU_BYTES if best_device(job.device).startswith("cuda") else _CPU_BYTES
        self.network = TiledNetwork(self.model.network, job.tile_px, job.halo_px, job.device, memory, job.precision)
        self.source = open_volume(job.image, **job.selection)
        dim, step = self.model.config.dim, self.network.step
        self.axes = tuple("t" if job.layout.time_as_z and axis == "z" else axis for axis in "zyx"[-dim:])
        self.sizes = {axis: self.source.sizes[axis] for axis in AXES if axis in self.source.dims}
        if job.n_frames is not None:
            self.sizes["t"], rest = divmod(frames := self.sizes.get("t", 1), job.n_frames)
            if not self.sizes["t"]:
                raise AxesError(f"{job.n_frames} frames are to be summed, but {job.image} has {frames}; give more")
            warn_of_leftover_frames(rest, job.n_frames, job.image.name)
        image = time_as_z(self.source) if job.layout.time_as_z else self.source
        check_dim(image, dim, plane_by_plane=job.layout.planes)
        self.box_px = conservation_box_px(self.model.network)
        self.reach = {a: round_up(b // 2, s) for a, b, s in zip(self.axes, self.box_px, step, strict=True)}

    @cached_property
    def results(self) -> list[Blocks]:
        """The stores to fill: the denoised volume, or mean and standard deviation of samples."""
        template = metadata_of(self.source)
        if self.job.n_frames and "t" in template.steps:
            template = replace(template, steps={**template.steps, "t": template.steps["t"] * self.job.n_frames})
        design = Design("", self.sizes, template, np.dtype(np.float32), self.job.version, self._block_px)
        # named after the image, not the result: the bytes must not depend on where they are written
        name = self.job.image.name.partition(".")[0]
        return [Blocks(path, replace(design, name=f"{name} {kind}")) for kind, path in self.paths.items()]

    @cached_property
    def _block_px(self) -> dict[str, int]:
        """The size of a block per axis: a multiple of the pooling step, and of the chunk if larger than one."""
        if self.job.block_px is None and "block" in self.earlier:
            return dict(self.earlier["block"])
        dim = self.model.config.dim
        block = {"t": 1, "c": self.sizes.get("c", 1), **_BLOCK_PX[dim]}
        if self.job.layout.time_as_z:
            block["t"] = block["z"]
        if (block_px := self.job.block_px) is not None:
            check_sizes("block", block_px, dim, 1)
            block |= dict(zip(self.axes, block_px, strict=True))
        for axis, step in zip(self.axes, self.network.step, strict=True):
            block[axis] = round_up(block[axis], step)
        return {a: round_up(n, CHUNK[a]) if n > CHUNK.get(a, n) else n for a, n in block.items() if a in self.sizes}

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on."""
        job, network, draws = self.job, self.model.network, self.job.draws
        maps = None if self.detector is None else self.detector.maps
        maps_hash = maps and fingerprint(*map(torch.tensor, (maps.offset, maps.read_noise)))
        camera = None if self.detector is None else self.detector.camera.model_dump(mode="json", exclude={"measured"})
        layout = asdict(replace(job.layout, camera=None))  # stored under its own key
        image = {"name": job.image.name, "sizes": self.sizes, "type": str(self.source.dtype), **job.selection}
        return {
            "model": {"network": fingerprint(*network.state_dict().values()), "range": self.model.trained_range_db},
            "image": {**image, "sum_frames": job.n_frames},
            "camera": {"numbers": camera, "maps": maps_hash, **({"moved": True} if self.moved else {})},
            "layout": layout,
            "tile": job.tile_px,
            "halo": list(self.network.halo_px),
            "precision": "bf16" if self.network.bf16 else "float32",
            "samples": draws and [draws.n_samples, draws.seed, draws.settings.model_dump(mode="json"), draws.batch],
            "block": self._block_px,
            "version": job.version,
        }

    def start(self) -> None:
        """Create or reopen the stores; before the first block, measure the halo and check the middle of the volume."""
        if self.job.halo_px is None and "halo" in self.earlier:
            self.network.halo_px = self.earlier["halo"]
        else:
            self.network.measure_halo(*([px[axis] for axis in self.axes] for px in (self.sizes, self._block_px)))
        if (tile := self.job.tile_px) is not None:
            tiles([2 * n for n in tile], tile, self.network.halo_px, self.network.step)  # raises if tiles are too small
        if not all(result.path.exists() for result in self.results):
            self._check_middle()
        for result in self.results:
            result.start(self.settings())

    def _check_middle(self) -> None:
        """Refuse values that are not counts, and images that do not fit the model, before anything is written."""
        core = {axis: middle_slice(size, _CHECKED_PX.get(axis, size)) for axis, size in self.sizes.items()}
        part = self.read(core)
        whole = part.sizes == self.sizes  # else there may be photons outside the middle
        if self.detector is None and self.model.n_frames is None and (whole or part.any()):
            check_photon_counts(part, name=self.job.image.name)
        if self.model.n_frames is not None:
            warn_of_single_frames(part, self.model.n_frames, self.job.image.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GapWarning)  # the blocks will warn
            self._prepared(part, core)

    def outer(self, core: Region) -> Region:
        """Return the region that a block depends on."""
        halos = zip(self.axes, self.network.halo_px, self.network.step, strict=True)
        around = NEIGHBOURS_REACH_PX if self.moved else 0
        margin = {axis: round_up(halo + around * (axis in "yx"), step) + self.reach[axis] for axis, halo, step in halos}
        return self._grown(core, margin)

    def _grown(self, core: Region, margin: Mapping[str, int]) -> Region:
        return {
            axis: slice(max(0, cut.start - margin.get(axis, 0)), min(self.sizes[axis], cut.stop + margin.get(axis, 0)))
            for axis, cut in core.items()
        }

    def read(self, region: Region) -> xr.DataArray:
        """Read a part of the volume."""
        if (count := self.job.n_frames) is None:
            return loaded(self.source.isel(region), self.job.image)
        frames = slice(region["t"].start * count, region["t"].stop * count)
        summed = sum_frames(loaded(self.source.isel({**region, "t": frames}), self.job.image), count)
        return summed if "t" in summed.dims else summed.expand_dims("t")

    def read_for(self, place: Index) -> xr.DataArray:
        """Read the counts that a block depends on."""
        return self.read(self.outer(self.results[0].region(0, place)))

    def _prepared(self, part: xr.DataArray, region: Region) -> Prepared:
        layout = replace(self.job.layout, dims=None, camera=self._camera(region))
        return prepare(self.model, part, layout, (region["y"].start, region["x"].start))

    def _camera(self, region: Region) -> Detector | None:
        return self.detector and self.detector.crop(region["y"], region["x"])

    def compute(self, core: Region, part: xr.DataArray) -> list[NDArray[np.float32]]:
        """Return the values of a block in each result, from the counts that it depends on."""
        if self.detector is None and not part.values.any():
            return [np.zeros([cut.stop - cut.start for cut in core.values()], np.float32) for _ in self.results]
        outer = self.outer(core)
        prepared, draws = self._prepared(part, outer), self.job.draws
        inside = [within(core[axis], outer[axis]) for axis in self.axes]
        names = dict(zip("zyx"[-len(inside) :], inside, strict=True))
        images = {name: getattr(prepared, name).isel(names) for name in ("image", "ordered")}
        cut, parts = replace(prepared, camera=self._camera(core), **images), parts_of(self.model, prepared)
        rates = np.zeros((1 if draws is None else draws.n_samples, *cut.items.shape), np.float32)
        if draws is None and max(parts) > 1:
            warn_of_parts(self.job.image.name, max(parts))
        for number, item in enumerate(prepared.items):
            if item.any():  # without photons the network returns only its prior
                if draws is None:
                    rates[:, number] = self._expected(prepared.tensor(number), core, parts[number])
                else:
                    image = xr.DataArray(item, dims=["c", *names])
                    drawing = Drawing(self.model, self.network, draws)
                    samples = drawing.rates_of(Prepared(image, image, prepared.camera))
                    rates[:, number] = samples[:, 0][at(inside)]
        results = [cut.photons(rates[0])] if draws is None else mean_and_std(cut.photons(rates, draws.n_samples))
        return [result.transpose(*self.sizes).values for result in results]

    def _expected(self, counts: Tensor, core: Region, parts: int) -> NDArray[np.float32]:
        """Return the expected counts of a block, (1, c, [z,] y, x), from the counts that it depends on."""
        outer, near = self.outer(core), self._grown(core, self.reach)
        nearby, inside = ([within(cut[a], o[a]) for a in self.axes] for cut, o in ((near, outer), (core, near)))
        network = self.model.network
        whole = all(core[axis] == slice(0, self.sizes[axis]) for axis in self.axes)

        def expect(part: Tensor) -> Tensor:
            photons, log_rate = part[at(nearby)], self.network(part, wanted=nearby)
            if network.anchored or whole:
                return network.rate(photons, log_rate, [])
            return self._in_boxes(photons, log_rate, inside)

        result: NDArray[np.float32] = sum_of_parts(expect, counts, parts).numpy()
        return result

    def _in_boxes(self, photons: Tensor, log_rate: Tensor, inside: Sequence[slice]) -> Tensor:
        """Conserve photons in boxes, piece by piece: this takes many times the memory of the counts."""
        rate = torch.empty(*photons.shape[:2], *(cut.stop - cut.start for cut in inside))
        reach = list(self.reach.values())
        for tile in tiles(log_rate.shape[2:], [_PIECE_PX + 2 * r for r in reach], reach, [1] * len(reach), inside):
            piece = self.model.network.rate(photons[at(tile.outer)], log_rate[at(tile.outer)], self.box_px)
            rate[at(tile.inner)] = piece[at(tile.crop)]
        return rate

    def make(self, place: Index, part: xr.DataArray) -> BlockResult:
        """Return the values of a block and the warnings raised, from the counts that ``read_for`` returned."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GapWarning)
            values = self.compute(self.results[0].region(0, place), part)
        return values, [(w.category.__name__, str(w.message)) for w in caught if issubclass(w.category, GapWarning)]

    def write(self, place: Index, block: BlockResult) -> None:
        """Write a block of each result, and the blocks of smaller levels that were waiting for it."""
        all_values, warned = block
        for result, values in zip(self.results, all_values, strict=True):
            result.write(0, place, values, warned)
            result.write_averages(place)

    def unfinished(self, part: tuple[int, int]) -> list[Index]:
        """Return the unfinished blocks of part (i, n); blocks are dealt out by size, for parts of equal duration."""
        done = set.intersection(*(result.done(0) for result in self.results))
        number, parts = part
        places = sorted(self.results[0].indices(0), key=self.voxels, reverse=True)[number - 1 :: parts]
        return sorted(place for place in places if place not in done)

    def voxels(self, place: Index) -> int:
        """Return the number of voxels in a block."""
        return math.prod(cut.stop - cut.start for cut in self.results[0].region(0, place).values())
