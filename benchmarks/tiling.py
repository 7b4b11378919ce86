"""Agreement of tiles: ways to turn log-rates into photons, tiled against whole, and their cost in PSNR.

    python benchmarks/tiling.py WORK

Two plain 2D networks, without an anchor, are trained on simulated cells from -17 to 6 dB, one as usual and one with a
weak loss that ties the total rate to the photons of the input. Each way denoises 512 x 512 test images whole and in
tiles of 256 px.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from results import table, write_section
from scores import psnr_db
from torch import Tensor

from gap_bioimage.config import RunConfig
from gap_bioimage.inference.reach import receptive_field_px
from gap_bioimage.inference.tiling import TiledNetwork, tiles
from gap_bioimage.network import UNet, conserve_photons, rate_from_log_rate
from gap_bioimage.simulation import simulate, simulate_truth
from gap_bioimage.training.fit import train

EXPOSURES = (0.03, 0.3, 3.0)
TILE_PX, SIZE_PX, IMAGES = 256, 512, 2
CONFIG = {
    "network": {"dim": 2, "depth": 4, "start_filts": 16, "anchor": False},
    "thinning": {"min_db": -17.0, "max_fraction": 0.9},
    "train": {"steps": 1000, "batch_size": 8, "patch_px": [64, 64], "validate_every": 250, "ema_decay": 0.99},
}
Denoise = Callable[[UNet, Tensor], Tensor]


def train_network(work: Path, total_weight: float) -> UNet:
    """Train, or load an earlier result."""
    settings = {**CONFIG, "train": {**CONFIG["train"], "total_weight": total_weight}}
    images = [simulate(2, (256, 256), 4.0, seed)[0] for seed in range(12)]
    run = work / f"run_{total_weight:g}"
    return train(images, run, RunConfig.from_dict(settings), resume=(run / "config.yaml").exists()).network


def softmax(network: UNet, photons: Tensor) -> Tensor:
    """Return the softmax over the tile or image, times its photons."""
    return rate_from_log_rate(network(photons), photons)


def box(size: int) -> Denoise:
    """Return a function that conserves photons in a box, as exported graphs do."""
    return lambda network, photons: conserve_photons(photons, network(photons), [size, size])


def exp_rate(network: UNet, photons: Tensor) -> Tensor:
    """Return exp(log-rate) without normalisation."""
    return torch.exp(network(photons))


def in_tiles(denoise: Denoise, network: UNet, photons: Tensor, halo: int) -> Tensor:
    """Denoise each tile separately."""
    result = torch.empty_like(photons)
    for tile in tiles(photons.shape[2:], [TILE_PX] * 2, [halo] * 2, network.step_px):
        result[(..., *tile.inner)] = denoise(network, photons[(..., *tile.outer)].contiguous())[(..., *tile.crop)]
    return result


def stitched(network: UNet, photons: Tensor, halo: int) -> Tensor:
    """Stitch log-rates, then take one softmax, as ``gap-bioimage denoise`` does."""
    return rate_from_log_rate(TiledNetwork(network, [TILE_PX] * 2, [halo] * 2)(photons), photons)


def scene_of(exposure: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the truth and the counts of a test image."""
    truth = torch.from_numpy(simulate_truth(2, (SIZE_PX, SIZE_PX), 500 + seed).values)[None, None] * exposure
    return truth, torch.poisson(truth, torch.Generator().manual_seed(seed))


def psnr(rate: Tensor, truth: Tensor) -> float:
    """Return the PSNR in dB."""
    return psnr_db(rate.numpy(), truth.numpy())


def measure(tiled: Denoise, whole: Denoise, network: UNet) -> list[str]:
    """Return table cells: relative RMS between tiled and whole, and PSNR minus that of the whole-image softmax."""
    cells = []
    for exposure in EXPOSURES:
        rms, cost = [], []
        for seed in range(IMAGES):
            scene, photons = scene_of(exposure, seed)
            one, other = tiled(network, photons), whole(network, photons)
            rms.append(float((one - other).square().mean().sqrt() / other.square().mean().sqrt()))
            cost.append(psnr(one, scene) - psnr(softmax(network, photons), scene))
        cells.append(f"{100 * np.mean(rms):.2f} % / {np.mean(cost):+.2f} dB")
    return cells


def main() -> None:
    """Train, measure, and write the section."""
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    free, tied = train_network(work, 0.0), train_network(work, 0.01)
    reach = receptive_field_px(free)[0]
    rows: list[tuple[str, UNet, Denoise, Denoise]] = []
    for halo in (16, 32, 64, reach):
        rows.append((f"log-rates stitched, one softmax (Python driver), halo {halo}", free,
                     lambda n, p, h=halo: stitched(n, p, h), softmax))  # fmt: skip
    for size, halos in ((65, (32, 48)), (129, (48, 64, 96)), (257, (96,))):
        for halo in halos:
            rows.append((f"box of {size} px (exported graph), halo {halo}", free,
                         lambda n, p, s=size, h=halo: in_tiles(box(s), n, p, h), box(size)))  # fmt: skip
    rows.append(("softmax per tile, halo 64", free, lambda n, p: in_tiles(softmax, n, p, 64), softmax))
    rows.append(
        ("exp(log-rate), total tied in training, halo 64", tied, lambda n, p: in_tiles(exp_rate, n, p, 64), exp_rate)
    )
    rows.append(("box of 129 px, total tied in training, halo 64", tied,
                 lambda n, p: in_tiles(box(129), n, p, 64), box(129)))  # fmt: skip
    with torch.inference_mode():
        lines = [[name, *measure(tiled, whole, network)] for name, network, tiled, whole in rows]
        base = " / ".join(_softmax_psnr(network) for network in (free, tied))
    head = ["way", *(f"{exposure:g} photons/px" for exposure in EXPOSURES)]
    write_section(
        "Tiles against the whole image",
        __doc__,
        f"2D, depth 4, receptive field {reach} px, tiles of {TILE_PX} px in images of {SIZE_PX} px, {IMAGES} images. "
        "Each cell: relative RMS of tiled minus whole, and PSNR of the tiled result minus that of the whole-image "
        f"softmax of the same network.\n\n{table(head, lines)}\n\nPSNR of the whole-image softmax at the three "
        f"exposures, usual network / total tied in training: {base}.",
    )


def _softmax_psnr(network: UNet) -> str:
    scenes = (scene_of(exposure, 0) for exposure in EXPOSURES)
    return ", ".join(f"{psnr(softmax(network, photons), truth):.2f}" for truth, photons in scenes) + " dB"


if __name__ == "__main__":
    main()
