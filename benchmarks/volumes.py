"""Volumes: memory, time relative to the bare network, two workers, the effect of blocks, OME-Zarr against TIFF.

    python benchmarks/volumes.py SHARED WORK
    python benchmarks/volumes.py SHARED WORK workers    prints only that part

The command line denoises an 8 GiB volume with a trivial 3D network (sparse: light in one of its 256 blocks), and one
dense block of an equal volume with the 3D network that training chooses on a CPU. The pretrained 2D network denoises a
dense volume in one process and in two parallel parts; some of its blocks are compared with the network alone. Wall
times are meaningful only on an idle machine; the load is given with them.
"""

import math
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
import zarr
from results import write_section

import gap_bioimage as gap
from gap_bioimage.config import RunConfig
from gap_bioimage.inference.blockwise import Job, Volume
from gap_bioimage.inference.preparation import Layout
from gap_bioimage.inference.reach import measured_halo

GIB = 2**30
LARGE = (1024, 2048, 2048)  # uint16
LIT = (24, 192, 192)
DENSE = (144, 1024, 1024)  # two minutes for one worker; with less, imports would dominate
TRIVIAL: dict[str, Any] = {
    "network": {"dim": 3, "depth": 1, "start_filts": 2, "anchor": False, "levels": 1},
    "train": {"steps": 20, "batch_size": 2, "patch_px": [8, 24, 24], "validate_every": 20, "validation_windows": 2},
}
# the network that training chooses on a CPU; memory does not depend on the weights
DEFAULT = {
    "network": {"dim": 3, "depth": 3, "start_filts": 12},
    "train": {**TRIVIAL["train"], "steps": 1, "validate_every": 1, "warmup_steps": 0},
}
PLAIN = {
    "network": {"dim": 2, "depth": 3, "start_filts": 8, "anchor": False},
    "train": {"steps": 300, "batch_size": 8, "patch_px": [48, 48], "validate_every": 100, "learning_rate": 1e-3},
}


class Cost(NamedTuple):
    """Time and memory of processes."""

    wall_s: float
    cpu_s: float
    longest_s: float  # CPU time of the longest process
    peak_gib: float


def run(*commands: tuple[object, ...]) -> Cost:
    """Run commands of the command line in parallel."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-m", "gap_bioimage", *map(str, command)], env=environment)
        for command in commands
    ]
    used = [os.wait4(process.pid, 0) for process in processes]
    assert not any(status for _, status, _ in used), used
    cpu = [usage.ru_utime + usage.ru_stime for _, _, usage in used]
    peak = max(usage.ru_maxrss for _, _, usage in used) * 1024 / GIB
    return Cost(time.perf_counter() - start, sum(cpu), max(cpu), peak)


def memory(work: Path) -> list[str]:
    """Return rows on the 8 GiB volume."""
    trained = train_in(work / "trivial", TRIVIAL)
    large, dense, out = work / "large.zarr", work / "large_dense.zarr", work / "large_out.zarr"
    if not dense.exists():
        rng = np.random.default_rng(0)
        z, y, x = LIT
        store = empty_volume(large)
        store[z : z + 16, y : y + 128, x : x + 128] = rng.poisson(2.0, (16, 128, 128)).astype(np.uint16)
        store = empty_volume(dense)
        for z in (0, 64):  # the first block and its surroundings
            store[z : z + 64, :768, :768] = rng.poisson(0.5, (64, 768, 768)).astype(np.uint16)
    shutil.rmtree(out, ignore_errors=True)
    cost = run(("denoise", trained, large, out, "--tile", "64,256,256", "--quiet"))
    idle = run(("denoise", trained, large, out, "--tile", "64,256,256", "--quiet"))
    size = np.prod(LARGE) * 2 / GIB
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / GIB
    return [
        f"- {size:.0f} GiB of counts, `--tile 64,256,256`: peak {cost.peak_gib:.2f} GiB, {cost.cpu_s:.0f} s of "
        f"CPU time, {written:.2f} GiB written (empty chunks are not stored); the same command on the finished result: "
        f"{idle.cpu_s:.0f} s, most of it imports",
        dense_block(work, dense),
    ]


def train_in(folder: Path, config: dict[str, Any]) -> Path:
    """Train a network on a small simulated volume, unless it exists."""
    if not folder.exists():
        image, _ = gap.simulate(3, (16, 48, 48), 2.0, 0)
        gap.train(image, folder, RunConfig.from_dict(config), progress=False, device="cpu")
    return folder


def empty_volume(path: Path) -> Any:
    """Create an empty 8 GiB volume."""
    return zarr.create_array(
        path, shape=LARGE, dtype=np.uint16, chunks=(64, 256, 256), dimension_names=["z", "y", "x"], overwrite=True
    )


def dense_block(work: Path, volume: Path) -> str:
    """Return the row on one block of default size with the default network."""
    model, out = train_in(work / "default", DEFAULT), work / "dense_block.zarr"
    shutil.rmtree(out, ignore_errors=True)
    cost = run(("denoise", model, volume, out, "--quiet", "--part", "1/256"))
    settings: Any = zarr.open_group(out, mode="r").attrs["gap_bioimage"]
    settings = settings["settings"]
    voxels = math.prod(settings["block"].values())
    return (
        f"- a dense block of {voxels / 1e6:.0f} Mvoxel of an equal volume, with the 3D network that training "
        f"chooses on a CPU and all defaults (halo {' x '.join(map(str, settings['halo']))} px): peak "
        f"{cost.peak_gib:.2f} GiB, {cost.cpu_s / voxels * 1e9 / 3600:.1f} CPU hours per gigavoxel"
    )


def dense(work: Path) -> list[str]:
    """Return the row on a dense volume relative to the network alone."""
    image = dense_volume(work)
    one, idle = fill(work, ()), fill(work, (), again=True)  # with nothing left to do
    blocks, network = (min(column) for column in zip(*(network_alone(image) for _ in range(2)), strict=True))
    voxels, spent = float(np.prod(DENSE)), one.cpu_s - idle.cpu_s
    return [
        f"- {voxels / 1e6:.1f} Mvoxel with `nuclei` (2D, blocks of 512 px) on one thread: "
        f"{spent / voxels * 1e9 / 3600:.2f} CPU hours per gigavoxel; reading and computing blocks takes "
        f"{blocks / network:.3f} times as long as the network alone on the same tiles"
    ]


def dense_volume(work: Path) -> Path:
    """Return the dense volume, created on first use."""
    image = work / "dense.zarr"
    if not image.exists():
        values = np.stack([gap.simulate(2, DENSE[1:], 3.0, seed)[0].values for seed in range(DENSE[0])])
        zarr.create_array(image, data=values, chunks=(1, 512, 512), dimension_names=["z", "y", "x"])
    return image


def fill(work: Path, *parts: tuple[str, ...], again: bool = False) -> Cost:
    """Return the cost of denoising the dense volume with one process per part."""
    out = work / "dense_out.zarr"
    if not again:
        shutil.rmtree(out, ignore_errors=True)
    command = ("denoise", "nuclei", dense_volume(work), out, "--planes", "--quiet", "--block", "512,512")
    return run(*((*command, *part) for part in parts))


def workers(work: Path) -> list[str]:
    """Return the row on two workers against one, each the faster of two alternating runs."""
    load = os.getloadavg()[0]
    turns = [(fill(work, ()), fill(work, ("--part", "1/2"), ("--part", "2/2"))) for _ in range(2)]
    one, two = (min(costs, key=lambda cost: cost.wall_s) for costs in zip(*turns, strict=True))
    return [
        f"- wall time of one process {one.wall_s:.1f} s, of two parallel parts {two.wall_s:.1f} s: "
        f"{one.wall_s / two.wall_s:.2f} times as fast; CPU time {one.cpu_s:.1f} s, and {two.cpu_s:.1f} s for both "
        f"parts ({two.longest_s:.1f} s in the longer one); {os.cpu_count()} cores, load before the start {load:.1f}"
    ]


def network_alone(image: Path) -> tuple[float, float]:
    """Return CPU seconds of some blocks of a volume, and of the network alone on the same tiles."""
    job = Job(Path("nuclei"), image, Path("none.zarr"), Layout(planes=True), block_px=(512, 512))
    volume, spent = Volume(job), 0.0
    volume.network.halo_px = measured_halo(volume.network.network).halo_px
    network = volume.network.network
    forward = network.forward

    def timed(photons: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        start = time.process_time()
        answer = forward(photons)
        spent += time.process_time() - start
        return answer

    network.forward = timed  # type: ignore[method-assign]
    start = time.process_time()
    for place in list(volume.results[0].places(0))[:4]:
        core = volume.results[0].region(0, place)
        volume.compute(core, volume.read(volume.outer(core)))
    return time.process_time() - start, spent


def relative(one: xr.DataArray, other: xr.DataArray) -> float:
    """Return the RMS difference relative to the RMS."""
    return float(np.sqrt(np.square(one.values - other.values).mean() / np.square(other.values).mean()))


def hazelnut(shared: Path, work: Path) -> list[str]:
    """Return rows on real counts: blocks against the whole image, OME-Zarr against TIFF."""
    counts, following = (gap.read_photons(shared / "data" / f"hazelnut_photons_t{n}_zyx.tif") for n in (0, 1))
    if not (work / "plain").exists():
        gap.train(following, work / "plain", RunConfig.from_dict(PLAIN), progress=False, device="cpu")
    rows = []
    for name, model in (("nuclei, anchored", gap.load_model("nuclei")), ("plain", gap.load_model(work / "plain"))):
        fewer, _ = gap.thin(counts, 0.2, seed=0)
        results = []
        for kind in ("tif", "zarr"):
            gap.write_image(work / f"fewer.{kind}", fewer)
            out = work / f"hazelnut_{kind}.zarr"
            shutil.rmtree(out, ignore_errors=True)
            gap.denoise_volume(model, work / f"fewer.{kind}", out, block_px=(128, 128), planes=True)
            results.append(gap.read_photons(out, check=False))
        same = "equal" if (results[0].values == results[1].values).all() else "DIFFER"
        whole = gap.denoise(model, fewer, planes=True)
        errors = [float(np.square(each - 0.2 * following.values).mean()) for each in (results[0], whole)]
        rows.append(
            f"- hazelnut at a fifth of its photons, 2D network ({name}): relative RMS difference between blocks of "
            f"128 px and the whole image {relative(results[0], whole):.2g}; squared difference from the next frame "
            f"{errors[0]:.4f}, of the whole image {errors[1]:.4f}; values from OME-Zarr and TIFF {same}"
        )
    return rows


def main(shared: Path, work: Path, only: str = "") -> None:
    """Measure and write the section, or print a single part if ``only`` is given."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    parts = {"memory": memory, "dense": dense, "workers": workers, "hazelnut": partial(hazelnut, shared)}
    if only:
        print("\n".join(parts[only](work)))
        return
    write_section("Volumes", __doc__, "\n".join(row for part in parts.values() for row in part(work)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
